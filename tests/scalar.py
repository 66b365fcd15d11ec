"""The 14 relations once more, one pair at a time and with nothing of the package: what vectorised rules must say."""

from collections.abc import Sequence

NAMES = [
    "left of", "right of", "above", "below", "inside", "surrounding", "overlapping", "separated",
    "wider", "narrower", "taller", "shorter", "larger", "smaller",
]  # fmt: skip
NEAR = 1e-9  # of a border, where rounding decides


class OnBorder(Exception):
    """The pair lies so near a border of the rule that rounding decides."""


def relations(s: Sequence[float], o: Sequence[float], rules: str = "visor", size=(1.0, 1.0)) -> set[str]:
    """The names of all relations of subject ``s`` to object ``o``, both (x, y, w, h)."""
    found = set()
    wide = min(s[0] + s[2], o[0] + o[2]) - max(s[0], o[0])
    high = min(s[1] + s[3], o[1] + o[3]) - max(s[1], o[1])
    found.add("overlapping" if wide > 0 and high > 0 else "separated")
    for larger, smaller, a, b in (
        ("wider", "narrower", s[2], o[2]),
        ("taller", "shorter", s[3], o[3]),
        ("larger", "smaller", s[2] * s[3], o[2] * o[3]),
    ):
        if a != b:
            found.add(larger if a > b else smaller)
    slack = 0.0
    if rules == "sstd":
        slack = 0.02
        s, o = ([box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]] for box in (s, o))
    dx = (s[0] + s[2] / 2) - (o[0] + o[2] / 2)
    dy = (s[1] + s[3] / 2) - (o[1] + o[3] / 2)
    inside, surrounding = contained(s, o, slack), contained(o, s, slack)
    if rules == "visor":
        found |= {"left of"} if dx < 0 else {"right of"} if dx > 0 else set()
        found |= {"above"} if dy < 0 else {"below"} if dy > 0 else set()
        found |= {"inside"} if inside else {"surrounding"} if surrounding else set()
    elif surrounding:
        found.add("surrounding")
    elif inside:
        found.add("inside")
    elif dx == dy == 0:
        found.add("right of")  # the angle of nothing is 0
    elif abs(abs(dx) - abs(dy)) < NEAR:
        raise OnBorder
    elif abs(dx) > abs(dy):
        found.add("left of" if dx < 0 else "right of")
    else:
        found.add("above" if dy < 0 else "below")
    return found


def contained(a: Sequence[float], b: Sequence[float], slack: float) -> bool:
    gaps = (
        a[0] - b[0] + slack,
        a[1] - b[1] + slack,
        (b[0] + b[2]) - (a[0] + a[2]) + slack,
        (b[1] + b[3]) - (a[1] + a[3]) + slack,
    )
    if slack and any(abs(gap) < NEAR for gap in gaps):
        raise OnBorder
    return all(gap > 0 for gap in gaps)
