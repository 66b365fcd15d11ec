"""How far a pair of boxes is from a border: the smallest change of the subject's box that turns a verdict.

It uses verdicts alone, so it serves every rule set and relation.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from ..relations import judge

Boxes = Float[np.ndarray, "pair 4"]
Steps = Float[np.ndarray, "pair move"]

REACH = 2.0  # how far a box is moved at most, in units of the boxes' size; from here on a margin is full
_STEPS = REACH / 2.0 ** np.arange(10, -1, -1)  # a first look at where the verdict turns; then halved
_HALVINGS = 10
# x, y, w, h: moved in 16 directions; grown and shrunk about the centre in width, in height and in both
MOVES = np.array(
    [(np.cos(a), np.sin(a), 0.0, 0.0) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)]
    + [(-w / 2, -h / 2, float(w), float(h)) for w in (-1, 0, 1) for h in (-1, 0, 1) if w or h]
).round(12)  # straight up is not a little to the right


def moved(subject: Boxes, step: Steps, least: float) -> Float[np.ndarray, "pair move 4"]:
    """Each box changed by each of ``MOVES``, so many pixels; a side shrinks about its middle, to ``least`` pixels."""
    change = step[..., None] * MOVES
    too_much = np.maximum(least - subject[:, None, 2:] - change[..., 2:], 0)
    change[..., 2:] += too_much
    change[..., :2] -= too_much / 2
    return subject[:, None] + change


def margin(
    subject: Boxes, object: Boxes, relation: Int[np.ndarray, "pair"], rules: str, size: Float[np.ndarray, "pair 2"]
) -> Float[np.ndarray, "pair"]:
    """How far each pair is from the border of its relation, in units of the boxes' size (the root of the mean area).

    Positive where the relation holds, negative where it does not, ``REACH`` at most. Relations are positions in
    ``NAMES``, boxes xywh, sizes the images' width and height, in pixels.
    """
    rows, shape = np.arange(len(subject)), (len(subject), len(MOVES))
    holds = judge(subject, object, rules, size)[rows, relation]
    unit = np.sqrt((subject[:, 2:].prod(1) + object[:, 2:].prod(1)) / 2)[:, None]
    others, sizes, which = (np.repeat(part, len(MOVES), axis=0) for part in (object, size, relation))

    def turns(step: Steps) -> Bool[np.ndarray, "pair move"]:
        boxes = moved(subject, step * unit, 1e-3).reshape(-1, 4)
        after = judge(boxes, others, rules, sizes)[np.arange(len(boxes)), which]
        return after.reshape(shape) != holds[:, None]

    low, high = np.zeros(shape), np.full(shape, np.inf)
    for step in _STEPS:  # where the verdict first turns
        high[np.isinf(high) & turns(np.full(shape, step))] = step
        low[np.isinf(high)] = step
    for _ in range(_HALVINGS):
        middle = (low + np.minimum(high, REACH)) / 2
        nearer = turns(middle) & np.isfinite(high)
        low, high = np.where(nearer | np.isinf(high), low, middle), np.where(nearer, middle, high)
    return np.where(holds, 1, -1) * np.minimum(high.min(axis=1), REACH)
