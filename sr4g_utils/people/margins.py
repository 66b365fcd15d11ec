"""Three-valued verdicts: how near a rule's border does a pair of boxes lie, and is it wise to stay silent there?"""

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..evaluation.statistics import cohen
from ..relations import NAMES, RULES, judge
from .agreement import judged
from .published import SIDE

STEPS = np.arange(1, 65) / 128  # how far boxes are moved or resized, in units of the picture's longer side
COVERAGES = (100, 90, 75, 50)  # percent of the pictures that get a verdict
# x, y, w, h: moved in 16 directions; grown and shrunk about the centre in width, in height and in both
_MOVES = np.array(
    [(np.cos(a), np.sin(a), 0.0, 0.0) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)]
    + [(-w / 2, -h / 2, float(w), float(h)) for w in (-1, 0, 1) for h in (-1, 0, 1) if w or h]
)


def margin(
    subject: Float64[np.ndarray, "pair 4"],
    object: Float64[np.ndarray, "pair 4"],
    rules: str,
    size: Float64[np.ndarray, "pair 2"],
) -> Float64[np.ndarray, "pair relation"]:
    """How far the subject's box is from a border of each relation: the smallest change that turns the verdict.

    The box is moved in 16 directions, and made wider, narrower, taller or shorter about its centre, in steps of 1/128
    of the picture's longer side, up to a half. One definition serves every rule set and relation, since only their
    verdicts are asked. A box shrinks to 1 pixel at least.

    Args:
        subject, object: xywh in pixels.
        size: width and height of each picture.

    Returns:
        In units of the picture's longer side; 0.5 where nothing turns the verdict.
    """
    before = judge(subject, object, rules, size)
    found = np.full(before.shape, STEPS[-1])
    times = len(_MOVES)
    others, sizes = np.repeat(object, times, axis=0), np.repeat(size, times, axis=0)
    for step in STEPS[::-1]:  # the smallest is written last
        moved = subject[:, None] + step * size.max(axis=1)[:, None, None] * _MOVES
        moved[..., 2:] = np.maximum(moved[..., 2:], 1.0)
        after = judge(moved.reshape(-1, 4), others, rules, sizes).reshape(len(subject), times, len(NAMES))
        found[(after != before[:, None]).any(axis=1)] = step
    return found


def margins(pictures: pd.DataFrame, boxes: pd.DataFrame, detector: str) -> pd.DataFrame:
    """Every rule set's verdict and margin on the best pair of each judged picture that has both boxes.

    Columns rules, picture, verdict (the person's), holds and margin.
    """
    tables = []
    for rules in RULES:
        told = judged(pictures, boxes, detector, rules, "best")
        told = told[told.verdict.notna() & told.both_found]
        subject, object = (
            told[[f"{role}_{side}" for side in "xywh"]].to_numpy(np.float64) for role in ("subject", "object")
        )
        size = np.full((len(told), 2), SIDE)
        asked = told.relation.map(NAMES.index).to_numpy(int)
        far = margin(subject, object, rules, size)[np.arange(len(told)), asked]
        tables.append(told[["picture", "verdict"]].assign(rules=rules, holds=told.correct, margin=far))
    return pd.concat(tables, ignore_index=True)[["rules", "picture", "verdict", "holds", "margin"]]


def risk(margins: pd.DataFrame) -> pd.DataFrame:
    """Risk against coverage: the rules speak on the pictures farthest from their border and are silent on the others.

    Pictures of equal margin are kept or left together, so that a coverage is met as nearly as that allows, from above.

    Returns:
        Columns rules, asked (percent, see ``COVERAGES``), coverage (met), margin (the least that is kept), n (kept),
        risk (percent of the kept on which rules and person differ, "undecidable" being "not true") with low and high
        (Wilson, 95 %), undecidable_kept and undecidable_left (percent of each that the person calls undecidable), and
        kappa_three: Cohen's kappa of "true", "false" and silence with the person's three verdicts.
    """
    from scipy.stats import binomtest  # slow to import, for --help

    rows = []
    for rules, part in margins.groupby("rules", sort=False):
        ordered = np.sort(part.margin.to_numpy())[::-1]
        for asked in COVERAGES:
            least = ordered[max(int(np.ceil(len(part) * asked / 100)), 1) - 1]
            kept = part.margin >= least
            wrong = int((part.holds != (part.verdict == "true"))[kept].sum())
            low, high = binomtest(wrong, int(kept.sum())).proportion_ci(method="wilson")
            said = part.holds.map({True: "true", False: "false"}).where(kept, "undecidable")
            unclear = 100 * (part.verdict == "undecidable")
            rows.append({
                "rules": rules, "asked": asked, "coverage": 100 * float(kept.mean()), "margin": float(least),
                "n": int(kept.sum()), "risk": 100 * wrong / int(kept.sum()), "low": 100 * low, "high": 100 * high,
                "undecidable_kept": float(unclear[kept].mean()), "undecidable_left": float(unclear[~kept].mean()),
                "kappa_three": cohen(said, part.verdict),
            })  # fmt: skip
    return pd.DataFrame(rows)
