"""Exercise 1: write a relation."""

from collections.abc import Callable
from functools import partial

import numpy as np

from ..relations import BY_NAME, rules_named
from .answer import accept, call, pair, refuse

# What is special about a pair, in the order in which pairs are tried.
HINTS: dict[str, str] = {
    "apart": "The boxes are well apart: which is the subject, and which way do x and y grow?",
    "steep": "The offset of the centres is longer on one axis than on the other: does that count?",
    "edges": "The edges of the boxes and their centres stand in different order: what does the rule compare?",
    "nested": "One box lies wholly within the other: what does the rule say of that, and of whom?",
    "partly": "One box reaches into the other and out again: which sides did you look at?",
    "flush": "One box lies within the other and shares a side with it: does the rule allow that?",
    "tie": "Something is exactly equal here: does a tie count?",
    "diagonal": "The centres lie exactly on a diagonal: to whom does it belong?",
    "random": "Nothing is special about this pair: go through your function with these numbers.",
}
_Pair = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
_PAIRS: dict[str, list[_Pair]] = {
    "apart": [
        ((120 + dx, 160 + dy, 60, 40), (120, 160, 60, 40)) for dx, dy in ((-99, 15), (99, -15), (-15, -90), (15, 90))
    ],
    "edges": [
        ((40, 40, 40, 240), (150, 100, 60, 60)),
        ((40, 60, 40, 200), (150, 120, 60, 120)),
        ((40, 40, 240, 40), (100, 150, 60, 60)),
        ((60, 40, 200, 40), (120, 150, 120, 60)),
    ],
    "nested": [((110, 120, 40, 30), (80, 90, 120, 100)), ((40, 30, 200, 180), (90, 110, 50, 40))],
    "partly": [
        ((140, 105, 100, 80), (100, 80, 100, 120)),
        ((60, 120, 100, 20), (100, 80, 100, 120)),
        ((110, 40, 40, 110), (100, 80, 100, 120)),
        ((110, 90, 40, 150), (100, 80, 100, 120)),
    ],
    "flush": [
        ((100, 95, 40, 40), (100, 80, 100, 120)),
        ((160, 95, 40, 40), (100, 80, 100, 120)),
        ((120, 80, 40, 40), (100, 80, 100, 120)),
        ((120, 160, 40, 40), (100, 80, 100, 120)),
    ],
    "tie": [
        ((40, 100, 60, 40), (200, 80, 60, 80)),
        ((100, 40, 60, 40), (90, 200, 80, 60)),
        ((100, 100, 60, 40), (100, 100, 60, 40)),
    ],
    "diagonal": [
        ((100 + dx, 100 + dy, 40, 40), (100, 100, 40, 40)) for dx, dy in ((-80, -80), (-80, 80), (80, -80), (80, 80))
    ],
}


def _pairs(name: str, rules: str) -> list[tuple[str, np.ndarray, np.ndarray, bool]]:
    """(kind, subject, object, verdict) in the order of ``HINTS``; both boxes of a pair are the subject in turn.

    Of a topological relation, the order of edges and centres says little: those pairs come last.
    """
    rng = np.random.default_rng(0)
    drawn = [*({"random": rng.integers(1, 30, (500, 2, 4)).tolist()} | _PAIRS).items()]
    kinds = [kind for kind, pairs in drawn for _ in range(2 * len(pairs))]
    both = np.array([two for _, pairs in drawn for s, o in pairs for two in ((s, o), (o, s))], float)
    relation, size = BY_NAME[name], np.array([[640.0, 480.0]])
    verdict, halves, sectors = (
        relation.predicate(both[:, 0], both[:, 1], each, size) for each in (rules, "visor", "sg2im")
    )
    # where centres and sectors part, "well apart" is not what is special
    kinds = ["steep" if k == "apart" and h != q else k for k, h, q in zip(kinds, halves, sectors, strict=True)]
    hints = sorted(HINTS, key=lambda kind: kind == "edges" and relation.family == "topological")
    order = sorted(range(len(kinds)), key=lambda i: hints.index(kinds[i]))
    return [(kinds[i], both[i, 0], both[i, 1], bool(verdict[i])) for i in order]


def check_relation(function: Callable, name: str, rules: str = "visor") -> None:
    """Whether a function of two boxes decides a relation as a rule set does.

    Args:
        function: takes subject and object, each a tuple (x, y, w, h) in pixels, and returns True or False.
        name: of the relation.
        rules: of the rule set.

    Raises:
        CounterExample: on a pair of boxes, which is drawn, it says something else, stops, or is not written yet.
    """
    rules_named(rules, [name])
    for kind, subject, object, verdict in _pairs(name, rules):
        boxes = [tuple(int(side) for side in box) for box in (subject, object)]
        said = call(function, *boxes, figure=partial(pair, subject, object))
        title = f"{function.__name__}(dog, cat)\nsubject {boxes[0]}\nobject {boxes[1]}\nyours: {said}"
        if not isinstance(said, bool | np.bool_):
            refuse(f"{function.__name__} returns {said!r} here; a relation answers True or False.",
                   pair(subject, object, title))  # fmt: skip
        if bool(said) != verdict:
            refuse(f"{HINTS[kind]} Your function says {said}, the rule says otherwise.", pair(subject, object, title))
    accept(f"{function.__name__} decides every pair as the rule set {rules!r} does.")
