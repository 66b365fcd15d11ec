"""The 14 explicit spatial relations of SR4G: the one place that decides who is left of whom.

A relation reads *subject relation object*: "a dog to the left of a cat" is (dog, left of, cat). Boxes are COCO xywh in
pixels with the origin at the top left, so **y grows downwards** and "above" means a smaller y.

The paper does not print its rules. Three published families are offered, all with the same overlap and scale rules:

* ``visor``: box centres are compared strictly, so a pair can be left of *and* above (Gokhale et al. 2022,
  arXiv 2212.10015); containment is strict on all four sides. The default: it reproduces the paper's 9.9 million.
* ``sg2im``: containment first, else exactly one of four 90 degree sectors around the object's centre (Johnson et
  al. 2018, arXiv 1804.01622, ``sg2im/data/coco.py``, which takes mask centroids; detections have no masks, so we take
  box centres).
* ``sstd``: as sg2im on boxes normalised by the image size, with a slack of 0.02 on containment (arXiv 2403.13666).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Column = Bool[np.ndarray, "pair"]
Boxes = Float[np.ndarray, "pair 4"]
Size = Float[np.ndarray, "#pair 2"]  # image width and height: a row per pair, or one for all

SSTD_SLACK = 0.02  # of the image's width or height


@dataclass(frozen=True)
class Relation:
    """One of the 14: its name, the words a caption uses, its opposite's name and its family."""

    name: str
    phrase: str
    opposite: str
    family: str

    def predicate(self, subject: Boxes, object: Boxes, rules: str = "visor", size: Size | None = None) -> Column:
        """Whether each subject box stands in this relation to its object box. Arguments as in :func:`judge`."""
        return judge(subject, object, rules, size)[:, NAMES.index(self.name)]


RELATIONS: tuple[Relation, ...] = (
    Relation("left of", "to the left of", "right of", "projective"),
    Relation("right of", "to the right of", "left of", "projective"),
    Relation("above", "above", "below", "projective"),
    Relation("below", "below", "above", "projective"),
    Relation("inside", "inside", "surrounding", "topological"),
    Relation("surrounding", "surrounding", "inside", "topological"),
    Relation("overlapping", "overlapping", "separated", "topological"),
    Relation("separated", "separated from", "overlapping", "topological"),
    Relation("wider", "wider than", "narrower", "scale"),
    Relation("narrower", "narrower than", "wider", "scale"),
    Relation("taller", "taller than", "shorter", "scale"),
    Relation("shorter", "shorter than", "taller", "scale"),
    Relation("larger", "larger than", "smaller", "scale"),
    Relation("smaller", "smaller than", "larger", "scale"),
)
NAMES: tuple[str, ...] = tuple(relation.name for relation in RELATIONS)
BY_NAME: dict[str, Relation] = {relation.name: relation for relation in RELATIONS}
FAMILIES: tuple[str, ...] = ("projective", "topological", "scale")


@dataclass(frozen=True)
class _Geometry:
    """Corners and centres of n boxes, a column each, computed once and shared by every predicate."""

    x1: np.ndarray
    y1: np.ndarray
    x2: np.ndarray
    y2: np.ndarray
    cx: np.ndarray
    cy: np.ndarray


def _geometry(boxes: Boxes) -> _Geometry:
    x, y, w, h = boxes.T
    return _Geometry(x, y, x + w, y + h, x + w / 2, y + h / 2)


def _within(a: _Geometry, b: _Geometry, slack: float = 0.0) -> Column:
    """a lies strictly within b on all four sides; b's sides are first moved outwards by the slack."""
    return (a.x1 > b.x1 - slack) & (a.y1 > b.y1 - slack) & (a.x2 < b.x2 + slack) & (a.y2 < b.y2 + slack)


def _centres(s: _Geometry, o: _Geometry) -> tuple[Column, ...]:
    """VISOR: strict comparison of centres. Containment does not matter to the projective relations."""
    return s.cx < o.cx, s.cx > o.cx, s.cy < o.cy, s.cy > o.cy, _within(s, o), _within(o, s)


def _sectors(s: _Geometry, o: _Geometry, slack: float = 0.0) -> tuple[Column, ...]:
    """sg2im: surrounding, else inside, else the sector of the angle from the object's centre to the subject's."""
    surrounding = _within(o, s, slack)
    inside = _within(s, o, slack) & ~surrounding
    apart = ~(surrounding | inside)
    theta = np.arctan2(s.cy - o.cy, s.cx - o.cx)
    quarter = np.pi / 4
    left = apart & ((theta >= 3 * quarter) | (theta <= -3 * quarter))
    above = apart & (theta > -3 * quarter) & (theta < -quarter)
    right = apart & (theta >= -quarter) & (theta < quarter)
    below = apart & (theta >= quarter) & (theta < 3 * quarter)
    return left, right, above, below, inside, surrounding


# A rule set decides the four projective relations and containment; it reads geometry that `judge` has prepared.
_RULES: dict[str, Callable[[_Geometry, _Geometry], tuple[Column, ...]]] = {
    "visor": _centres,
    "sg2im": _sectors,
    "sstd": lambda s, o: _sectors(s, o, SSTD_SLACK),
}
RULES: tuple[str, ...] = tuple(_RULES)


def judge(subject: Boxes, object: Boxes, rules: str = "visor", size: Size | None = None) -> Bool[np.ndarray, "pair 14"]:
    """All 14 relations of n subject boxes to n object boxes.

    Args:
        subject: float (pair, 4), xywh in pixels. float64 for results that do not depend on the platform.
        object: float (pair, 4), as ``subject``.
        rules: ``visor``, ``sg2im`` or ``sstd``; see the module's docstring.
        size: float (pair, 2) or (1, 2), image width and height in pixels; ``sstd`` needs it, the others ignore it.

    Returns:
        Bool (pair, 14): columns in the order of ``RELATIONS``. Overlapping means a common area above zero; separated is
        its complement; wider, taller and larger compare w, h and w·h strictly, so that a tie gives neither.

    Raises:
        ValueError: unknown rules, arrays that are not two of the same (pair, 4), or ``sstd`` without sizes.
    """
    if rules not in RULES:
        raise ValueError(f"rules: unknown rule set {rules!r}; choose one of {', '.join(RULES)}")
    subject, object = (np.asarray(boxes, dtype=np.float64) for boxes in (subject, object))
    if subject.ndim != 2 or subject.shape[1] != 4 or subject.shape != object.shape:
        raise ValueError(f"subject and object must both be (pair, 4) xywh; got {subject.shape} and {object.shape}")
    s, o = _geometry(subject), _geometry(object)
    overlapping = (np.minimum(s.x2, o.x2) > np.maximum(s.x1, o.x1)) & (np.minimum(s.y2, o.y2) > np.maximum(s.y1, o.y1))
    if rules == "sstd":
        if size is None:
            raise ValueError("rules='sstd' judges normalised boxes: pass size, the image's (pair, 2) width and height")
        scale = np.tile(np.asarray(size, dtype=np.float64), 2)  # (w, h, w, h)
        s, o = _geometry(subject / scale), _geometry(object / scale)
    ws, hs = subject[:, 2], subject[:, 3]
    wo, ho = object[:, 2], object[:, 3]
    columns = np.stack(
        [
            *_RULES[rules](s, o),
            *(overlapping, ~overlapping),
            *(ws > wo, ws < wo),
            *(hs > ho, hs < ho),
            *(ws * hs > wo * ho, ws * hs < wo * ho),
        ]
    )
    return columns.T  # a relation's column is contiguous
