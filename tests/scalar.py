"""The 14 relations once more, one pair at a time and with nothing of the package: what vectorised rules must say.

Sectors are decided with exact fractions: where floats are exact, too, a diagonal belongs to whom the rule says.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

NAMES = [
    "left of", "right of", "above", "below", "inside", "surrounding", "overlapping", "separated",
    "wider", "narrower", "taller", "shorter", "larger", "smaller",
]  # fmt: skip
NEAR = 1e-9  # of a border, where rounding decides if there is any

Box = Sequence[float]  # x, y, w, h


class OnBorder(Exception):
    """The pair lies so near a border of the rule that the rounding of floats decides."""


def relations(s: Box, o: Box, rules: str = "visor", size=(1.0, 1.0)) -> set[str]:
    """The names of all relations of subject ``s`` to object ``o`` that the rules define and that hold."""
    if rules == "geneval":
        return directions(s, o)
    found = overlap_and_scale(s, o)
    if rules == "visor":
        dx, dy = offset(s, o)
        found |= {"left of"} if dx < 0 else {"right of"} if dx > 0 else set()
        found |= {"above"} if dy < 0 else {"below"} if dy > 0 else set()
        return found | nested(s, o)
    if rules == "people":
        return found | around_axes(s, o) | nested(s, o)
    if rules not in ("sg2im", "sstd"):
        raise NotImplementedError(f"rules {rules!r}: write them here once more, for one pair")
    wide, high = common(s, o)
    if 0 < abs(wide) < 3e-6 or 0 < abs(high) < 3e-6:
        raise OnBorder
    within = contained if rules == "sg2im" else lambda a, b: nearly_contained(a, b, size)
    inside = within(s, o)
    if within(o, s):
        return found | {"surrounding"}
    if inside:
        return found | {"inside"}
    exact = exact_offset(s, o)
    shares = exact[0] / Fraction(size[0]), exact[1] / Fraction(size[1])
    beside = abs(abs(exact[0] * Fraction(size[1])) - abs(exact[1] * Fraction(size[0])))
    if 0 < beside < 3e-6:
        raise OnBorder
    return found | {sector(*shares)}


def offset(s: Box, o: Box) -> tuple[float, float]:
    """From the object's centre to the subject's."""
    return (s[0] + s[2] / 2) - (o[0] + o[2] / 2), (s[1] + s[3] / 2) - (o[1] + o[3] / 2)


def exact_offset(s: Box, o: Box) -> tuple[Fraction, Fraction]:
    x, y = (Fraction(s[i]) + Fraction(s[i + 2]) / 2 - Fraction(o[i]) - Fraction(o[i + 2]) / 2 for i in (0, 1))
    return x, y


def sector(dx: Fraction, dy: Fraction) -> str:
    """One of four; a diagonal belongs to the sector that sg2im's half-open angles give it to."""
    if dx == dy == 0:
        return "right of"  # the angle of nothing is 0
    if abs(dx) == abs(dy):
        return "left of" if dx < 0 else "right of" if dy < 0 else "below"
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def around_axes(s: Box, o: Box) -> set[str]:
    """People's: the angle of the offset is less than 55 degrees off the axis."""
    dx, dy = offset(s, o)
    if dx == dy == 0:
        return set()
    angle = math.degrees(math.atan2(dy, dx))
    found = set()
    for name, axis in {"right of": 0, "below": 90, "left of": 180, "above": -90}.items():
        off = abs((angle - axis + 180) % 360 - 180)
        if abs(off - 55) < 1e-7 or max(abs(dx), abs(dy)) < 1e-6:
            raise OnBorder
        if off < 55:
            found.add(name)
    return found


def nested(s: Box, o: Box) -> set[str]:
    return {"inside"} if contained(s, o) else {"surrounding"} if contained(o, s) else set()


def directions(s: Box, o: Box) -> set[str]:
    """GenEval's: what a tenth of the summed extents leaves of the offset on an axis exceeds half the offset's length.

    Squares are compared, so that no root is taken; a tenth and the root are what floats round.
    """
    dx, dy = exact_offset(s, o)
    left = [abs(d) - Fraction(1, 10) * (Fraction(s[i]) + Fraction(o[i])) for i, d in ((2, dx), (3, dy))]
    length = dx**2 + dy**2
    if any(abs(a - Fraction(1, 1000)) < NEAR or abs(4 * a**2 - length) < NEAR * (1 + length) for a in left):
        raise OnBorder
    if max(left) < Fraction(1, 1000):
        return set()
    across, down = (a > 0 and 4 * a**2 > length for a in left)
    found = {"left of" if dx < 0 else "right of"} if across else set()
    return found | ({"above" if dy < 0 else "below"} if down else set())


def common(s: Box, o: Box) -> tuple[float, float]:
    """Width and height of what two boxes share; below zero they lie apart."""
    wide, high = (min(s[i] + s[i + 2], o[i] + o[i + 2]) - max(s[i], o[i]) for i in (0, 1))
    return wide, high


def overlap_and_scale(s: Box, o: Box) -> set[str]:
    wide, high = common(s, o)
    found = {"overlapping" if wide > 0 and high > 0 else "separated"}
    for larger, smaller, a, b in (
        ("wider", "narrower", s[2], o[2]),
        ("taller", "shorter", s[3], o[3]),
        ("larger", "smaller", s[2] * s[3], o[2] * o[3]),
    ):
        if a != b:
            found.add(larger if a > b else smaller)
    return found


def gaps(a: Box, b: Box) -> list[Fraction]:
    """How far a's sides lie within b's, in pixels: left, upper, right, lower."""
    far = [[Fraction(box[i] + box[i + 2]) for i in (0, 1)] for box in (a, b)]
    return [Fraction(a[i]) - Fraction(b[i]) for i in (0, 1)] + [far[1][i] - far[0][i] for i in (0, 1)]


def contained(a: Box, b: Box) -> bool:
    if any(0 < abs(gap) < 3e-6 for gap in gaps(a, b)):
        raise OnBorder
    return all(gap > 0 for gap in gaps(a, b))


def nearly_contained(a: Box, b: Box, size) -> bool:
    """Within, or out by 2 % of the image at most."""
    beyond = [gap + Fraction(2, 100) * Fraction(side) for gap, side in zip(gaps(a, b), (*size, *size), strict=True)]
    if any(0 < abs(gap) < 3e-6 for gap in beyond):
        raise OnBorder
    return all(gap >= 0 for gap in beyond)
