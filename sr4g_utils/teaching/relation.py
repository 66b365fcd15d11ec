"""Exercise 1: write a relation."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float64

from ..relations import BY_NAME, NAMES, judge, rules_named
from .answer import accept, call, pair, refuse

# What may be special about a pair, in the order in which pairs are tried.
HINTS: dict[str, str] = {
    "apart": "The boxes are well apart: which is the subject, and which way do x and y grow?",
    "steep": "The offset of the centres is longer on one axis than on the other: does that count?",
    "edges": "The edges of the boxes and their centres stand in different order: what does the rule compare?",
    "nested": "One box lies wholly within the other: what does the rule say of that, and of whom?",
    "partly": "One box reaches into the other and out again: which sides did you look at?",
    "flush": "One box lies within the other and shares a side with it: does the rule allow that?",
    "tie": "Something is exactly equal here: does a tie count?",
    "diagonal": "The centres lie exactly on a diagonal: to whom does it belong?",
}
# Subject and object, xywh each: what they show is large and clear, so they are tried before the random ones.
_PAIRS = [
    *((120 + dx, 160 + dy, 60, 40, 120, 160, 60, 40) for dx, dy in ((-99, 15), (99, -15), (-15, -90), (15, 90))),
    (40, 40, 40, 240, 150, 100, 60, 60), (40, 60, 40, 200, 150, 120, 60, 120),
    (40, 40, 240, 40, 100, 150, 60, 60), (60, 40, 200, 40, 120, 150, 120, 60),
    (110, 120, 40, 30, 80, 90, 120, 100), (40, 30, 200, 180, 90, 110, 50, 40),
    (140, 105, 100, 80, 100, 80, 100, 120), (60, 120, 100, 20, 100, 80, 100, 120),
    (110, 40, 40, 110, 100, 80, 100, 120), (110, 90, 40, 150, 100, 80, 100, 120),
    (100, 95, 40, 40, 100, 80, 100, 120), (160, 95, 40, 40, 100, 80, 100, 120),
    (120, 80, 40, 40, 100, 80, 100, 120), (120, 160, 40, 40, 100, 80, 100, 120),
    (40, 100, 60, 40, 200, 80, 60, 80), (100, 40, 60, 40, 90, 200, 80, 60), (100, 100, 60, 40, 100, 100, 60, 40),
    *((100 + dx, 100 + dy, 40, 40, 100, 100, 40, 40) for dx in (-80, 80) for dy in (-80, 80)),
]  # fmt: skip


def _special(boxes: Float64[np.ndarray, "pair 2 4"], name: str) -> list[list[str]]:
    """What is special about each pair of subject and object, in the order of ``HINTS``; at least one thing is."""
    low, high = boxes[..., :2], boxes[..., :2] + boxes[..., 2:]  # pair, box, axis
    offset = (low + high)[:, 0] / 2 - (low + high)[:, 1] / 2
    holds = dict(zip(NAMES, judge(boxes[:, 0], boxes[:, 1]).T, strict=True))
    nested = holds["inside"] | holds["surrounding"]
    # the box that is as large as both together holds the other, sharing a side where it is not nested
    whole = ((low == low.min(axis=1, keepdims=True)) & (high == high.max(axis=1, keepdims=True))).all(axis=2)
    order = np.sign(offset)
    crossed = [(np.sign(end[:, 0] - end[:, 1]) != order) & (order != 0) for end in (low, high)]
    across, along = np.abs(offset).T if name in ("above", "below") else np.abs(offset).T[::-1]
    special = {
        "edges": holds["separated"] & np.any(crossed, axis=(0, 2)),
        "nested": nested,
        "partly": holds["overlapping"] & ~whole.any(axis=1),
        "flush": (whole.sum(axis=1) == 1) & ~nested,
        "tie": (order == 0).any(axis=1) | (low == high[:, ::-1]).any(axis=(1, 2)),
        "diagonal": (along == across) & (along > 0),
    }
    plain = np.where((along < across) & (BY_NAME[name].family == "projective"), "steep", "apart")
    return [[kind for kind, is_so in special.items() if is_so[i]] or [str(plain[i])] for i in range(len(boxes))]


def _pairs(name: str, rules: str) -> list[tuple[str, np.ndarray, np.ndarray, bool]]:
    """(kind, subject, object, verdict); both boxes of a pair are the subject in turn.

    Pairs with one special thing come first, in the order of ``HINTS``: that thing is what a wrong answer got wrong. Of
    a topological relation, the order of edges and centres says little: those pairs come last.
    """
    drawn = np.random.default_rng(0).integers(1, 30, (500, 8))
    one_way = np.concatenate([np.array(_PAIRS), drawn]).reshape(-1, 2, 4).astype(np.float64)
    boxes = np.stack([one_way, one_way[:, ::-1]], axis=1).reshape(-1, 2, 4)
    verdict = BY_NAME[name].predicate(boxes[:, 0], boxes[:, 1], rules, np.array([[480.0, 480.0]]))
    special, hints = _special(boxes, name), list(HINTS)

    def place(i: int) -> tuple[bool, int, int]:
        odd = special[i][0] == "edges" and BY_NAME[name].family == "topological"
        return odd, len(special[i]), hints.index(special[i][0])

    order = sorted(range(len(boxes)), key=place)
    return [(special[i][0], boxes[i, 0], boxes[i, 1], bool(verdict[i])) for i in order]


def check_relation(function: Callable, name: str, rules: str = "visor") -> None:
    """Whether a function of subject and object, each a tuple (x, y, w, h) in pixels, decides a relation, by True or
    False, as a rule set does.

    Raises:
        CounterExample: on a pair of boxes, which is drawn, it returns something else, stops, or is not written yet.
    """
    rules_named(rules, [name])
    for kind, subject, object, verdict in _pairs(name, rules):
        boxes = [tuple(int(side) for side in box) for box in (subject, object)]
        answer = call(function, *boxes, figure=partial(pair, subject, object))
        title = f"{function.__name__}(dog, cat)\nsubject {boxes[0]}\nobject {boxes[1]}\nyours: {answer}"
        if not isinstance(answer, bool | np.bool_):
            refuse(f"{function.__name__} returns {answer!r} here; a relation answers True or False.",
                   pair(subject, object, title))  # fmt: skip
        if bool(answer) != verdict:
            refuse(f"{HINTS[kind]} Your function says {answer}, the rule says otherwise.", pair(subject, object, title))
    accept(f"{function.__name__} decides every pair as the rule set {rules!r} does.")
