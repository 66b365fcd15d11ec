"""The 14 explicit spatial relations of SR4G: the one place that decides who is left of whom.

A relation reads *subject relation object*: "a dog to the left of a cat" is (dog, left of, cat). Boxes are COCO xywh in
pixels with the origin at the top left, so **y grows downwards** and "above" means a smaller y.

The paper does not print its rules. A **rule set** is one published reading of them: a function that returns a column
for each relation that it defines, by name. ``RULES`` holds all of them; whoever judges, draws or compares takes them
from there. To add one, write such a function under :func:`rule_set` (CONTRIBUTING.md has an example).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

Column = Bool[np.ndarray, "pair"]
Boxes = Float[np.ndarray, "pair 4"]
Size = Float[np.ndarray, "#pair 2"]  # image width and height: a row per pair, or one for all
Verdicts = Bool[np.ndarray, "pair relation"]  # columns in the order of ``RELATIONS``

SSTD_SLACK = 0.02  # of the image's width or height
GENEVAL_SLACK = 0.1  # of the two boxes' summed width or height
PEOPLE_HALF_WIDTH = 55.0  # degrees; fitted to half of VSR's photos by people.fitted_rule.fit, see notebook 06


@dataclass(frozen=True)
class Relation:
    """One of the 14: its name, the words a caption uses, its opposite's name and its family."""

    name: str
    phrase: str
    opposite: str
    family: str

    @property
    def converse(self) -> str:
        """What the same layout is called from the object's side: "right of" for "left of"; "overlapping" stays."""
        return self.name if self.name in SYMMETRIC else self.opposite

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
SYMMETRIC: tuple[str, ...] = ("overlapping", "separated")  # they read the same from both sides
FAMILIES: tuple[str, ...] = ("projective", "topological", "scale")
OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (relation.name, relation.opposite) for i, relation in enumerate(RELATIONS) if relation.opposite not in NAMES[:i]
)


def family(name: str) -> tuple[str, ...]:
    """The names of a family's relations, in the order of ``RELATIONS``."""
    return tuple(relation.name for relation in RELATIONS if relation.family == name)


# ---------------------------------------------------------------------------------------------------- the rules


@dataclass(frozen=True)
class Geometry:
    """Corners, centres and sizes of n boxes, a column each, computed once and shared by every rule."""

    x1: np.ndarray
    y1: np.ndarray
    x2: np.ndarray
    y2: np.ndarray
    cx: np.ndarray
    cy: np.ndarray
    w: np.ndarray
    h: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray) -> "Geometry":
        return cls(x, y, x + w, y + h, x + w / 2, y + h / 2, w, h)

    def on_paper(self) -> "Geometry":
        """The same boxes to a millionth of a pixel: what touches on paper (COCO gives hundredths of a
        pixel) touches here."""
        places = {name: np.round(getattr(self, name), 6) for name in ("x1", "y1", "x2", "y2", "cx", "cy")}
        return replace(self, **places)


Columns = dict[str, Column]  # by the relation's name
Rule = Callable[[Geometry, Geometry, Size | None], Columns]  # subject, object, image size


@dataclass(frozen=True)
class RuleSet:
    """A reading of the relations: its name, the relations that it defines, and the function that decides them.

    ``mirrored``: the object stands to the subject exactly in the converse relations, so two boxes are judged once.
    """

    name: str
    defines: tuple[str, ...]
    rule: Rule
    mirrored: bool = False

    def check(self, asked: Collection[str], where: str) -> None:
        """Raises ValueError where a relation is asked for that these rules do not define."""
        if other := [name for name in asked if name not in self.defines]:
            raise ValueError(
                f"{where}: rules={self.name!r} define {', '.join(self.defines)} only, not {other[0]!r}; "
                "leave such prompts out, or choose other rules"
            )


RULES: dict[str, RuleSet] = {}


def rule_set(name: str, defines: Collection[str] = NAMES, mirrored: bool = False) -> Callable[[Rule], Rule]:
    """Register a function as the rule set ``name``; it returns a column for each relation of ``defines``."""

    def register(rule: Rule) -> Rule:
        RULES[name] = RuleSet(name, tuple(defines), rule, mirrored)
        return rule

    return register


@rule_set("visor", mirrored=True)
def visor(s: Geometry, o: Geometry, _size: Size | None) -> Columns:
    """VISOR's centres: compared strictly on each axis, so a pair can be left of *and* above, whatever contains what.

    The default, since it reproduces the paper's 9.9 million captions (Gokhale et al. 2022, arXiv 2212.10015).
    """
    return {
        "left of": s.cx < o.cx,
        "right of": s.cx > o.cx,
        "above": s.cy < o.cy,
        "below": s.cy > o.cy,
        "inside": _within(s, o),
        "surrounding": _within(o, s),
        **_overlap(s, o),
        **_scale(s, o),
    }


@rule_set("sg2im")
def sg2im(s: Geometry, o: Geometry, size: Size | None) -> Columns:
    """Containment first, else exactly one of four 90 degree sectors around the object's centre, in shares of the image.

    Johnson et al. 2018, arXiv 1804.01622, ``sg2im/data/coco.py``, which divides boxes by the image's width and height
    before it compares. It takes mask centroids; detections have no masks, so we take box centres.
    """
    size, s, o = _given("sg2im", size), s.on_paper(), o.on_paper()
    return {**_sectors(s, o, size, _within(s, o), _within(o, s)), **_overlap(s, o), **_scale(s, o)}


@rule_set("sstd")
def sstd(s: Geometry, o: Geometry, size: Size | None) -> Columns:
    """As sg2im, but a box may stick out by 0.02 of the image and still be inside, ties included (arXiv 2403.13666)."""
    size, s, o = _given("sstd", size), s.on_paper(), o.on_paper()
    inside, surrounding = (_nearly_within(a, b, SSTD_SLACK * size) for a, b in ((s, o), (o, s)))
    return {**_sectors(s, o, size, inside, surrounding), **_overlap(s, o), **_scale(s, o)}


@rule_set("geneval", defines=family("projective"), mirrored=True)
def geneval(s: Geometry, o: Geometry, _size: Size | None) -> Columns:
    """GenEval's slack around the axes (Ghosh et al. 2023, arXiv 2310.11513; ``relative_position`` of its
    ``evaluate_images.py``).

    The offset of the centres is shortened on each axis by a tenth of the two boxes' summed extent; a direction holds
    when what is left of it exceeds half the offset's length.
    """
    dx, dy = s.cx - o.cx, s.cy - o.cy
    half = 0.5 * np.hypot(dx, dy)
    across = np.abs(dx) - GENEVAL_SLACK * (s.w + o.w)
    down = np.abs(dy) - GENEVAL_SLACK * (s.h + o.h)
    far = (across >= 1e-3) | (down >= 1e-3)  # pixels; GenEval's own
    across_holds, down_holds = far & (across > half), far & (down > half)
    return {
        "left of": across_holds & (dx < 0),
        "right of": across_holds & (dx > 0),
        "above": down_holds & (dy < 0),
        "below": down_holds & (dy > 0),
    }


@rule_set("people", mirrored=True)
def people(s: Geometry, o: Geometry, size: Size | None) -> Columns:
    """Fitted to people's verdicts: a sector around each axis, whatever contains what; the rest as in ``visor``.

    A direction holds where the offset of the centres is less than ``PEOPLE_HALF_WIDTH`` degrees off its axis. Above 45
    the sectors overlap, so a pair near a diagonal is left of *and* above; 90 would be ``visor``.
    """
    dx, dy = s.cx - o.cx, s.cy - o.cy
    slope = np.tan(np.radians(PEOPLE_HALF_WIDTH))
    across, down = slope * dx, slope * dy
    return {
        **visor(s, o, size),
        "left of": np.abs(dy) < -across,
        "right of": np.abs(dy) < across,
        "above": np.abs(dx) < -down,
        "below": np.abs(dx) < down,
    }


def _given(rules: str, size: Size | None) -> Size:
    if size is None or not (size > 0).all():
        lacks = "is missing" if size is None else "must be above 0"
        remedy = "give them (of a table of boxes: columns width and height), or choose other rules"
        raise ValueError(f"rules={rules!r} judge boxes as shares of the image, whose size {lacks}; {remedy}")
    return size


def _within(a: Geometry, b: Geometry) -> Column:
    """a lies strictly within b on all four sides."""
    return (a.x1 > b.x1) & (a.y1 > b.y1) & (a.x2 < b.x2) & (a.y2 < b.y2)


def _nearly_within(a: Geometry, b: Geometry, slack: Size) -> Column:
    """a lies within b, or sticks out by the slack at most."""
    across, down = slack.T
    return (a.x1 >= b.x1 - across) & (a.y1 >= b.y1 - down) & (a.x2 <= b.x2 + across) & (a.y2 <= b.y2 + down)


def _sectors(s: Geometry, o: Geometry, size: Size, inside: Column, surrounding: Column) -> Columns:
    """Surrounding, else inside, else the sector in which the subject's centre lies, seen from the object's.

    A diagonal belongs to one sector, as in sg2im: the left ones to "left of", the upper right one to "right of", the
    lower right one to "below"; equal centres are "right of".
    """
    inside = inside & ~surrounding
    apart = ~(surrounding | inside)
    width, height = size.T
    # products in place of shares, rounded: what lies on a diagonal on paper lies on it here
    dx, dy = np.round((s.cx - o.cx) * height, 6), np.round((s.cy - o.cy) * width, 6)
    left = (dx < 0) & (np.abs(dy) <= -dx)
    above = (dy < 0) & (np.abs(dx) < -dy)
    below = (dy > 0) & (-dy < dx) & (dx <= dy)
    return {
        "left of": apart & left,
        "right of": apart & ~(left | above | below),
        "above": apart & above,
        "below": apart & below,
        "inside": inside,
        "surrounding": surrounding,
    }


def _overlap(s: Geometry, o: Geometry) -> Columns:
    """A common area above zero, or none."""
    overlapping = (np.minimum(s.x2, o.x2) > np.maximum(s.x1, o.x1)) & (np.minimum(s.y2, o.y2) > np.maximum(s.y1, o.y1))
    return {"overlapping": overlapping, "separated": ~overlapping}


def _scale(s: Geometry, o: Geometry) -> Columns:
    """Width, height and area, compared strictly: a tie gives neither relation."""
    return {
        "wider": s.w > o.w,
        "narrower": s.w < o.w,
        "taller": s.h > o.h,
        "shorter": s.h < o.h,
        "larger": s.w * s.h > o.w * o.h,
        "smaller": s.w * s.h < o.w * o.h,
    }


def complete_rules() -> list[str]:
    """The rule sets that define all relations: captions can be written with these."""
    return [name for name, rules in RULES.items() if set(rules.defines) == set(NAMES)]


def rules_named(name: str, asked: Collection[str] = ()) -> RuleSet:
    """The rule set of that name, which defines all relations asked for.

    Raises:
        ValueError: there is no such rule set, or it does not define one of them.
    """
    if name not in RULES:
        raise ValueError(f"rules: unknown rule set {name!r}; choose one of {', '.join(RULES)}")
    RULES[name].check(asked, "rules")
    return RULES[name]


def judge(subject: Boxes, object: Boxes, rules: str = "visor", size: Size | None = None) -> Verdicts:
    """All 14 relations of n subject boxes to n object boxes.

    Args:
        subject: float (pair, 4), xywh in pixels. float64 for results that do not depend on the platform.
        object: float (pair, 4), as ``subject``.
        rules: a name in ``RULES``.
        size: float (pair, 2) or (1, 2), image width and height in pixels; pass it whenever you have it: ``sg2im`` and
            ``sstd`` need it, others ignore it.

    Returns:
        Bool (pair, 14): columns in the order of ``RELATIONS``; False where the rules do not define a relation.

    Raises:
        ValueError: unknown rules, arrays that are not two of the same (pair, 4), or no sizes where the rules need them.
    """
    chosen = rules_named(rules)
    subject, object = (np.asarray(boxes, dtype=np.float64) for boxes in (subject, object))
    if subject.ndim != 2 or subject.shape[1] != 4 or subject.shape != object.shape:
        raise ValueError(f"subject and object must both be (pair, 4) xywh; got {subject.shape} and {object.shape}")
    size = None if size is None else np.asarray(size, dtype=np.float64)
    columns = chosen.rule(Geometry.of(*subject.T), Geometry.of(*object.T), size)
    verdicts = np.zeros((len(NAMES), len(subject)), bool)  # a relation's column is contiguous
    for row, name in zip(verdicts, NAMES, strict=True):
        if name in chosen.defines:
            row[:] = columns[name]
    return verdicts.T
