"""Verdicts near a border: how near does a pair of boxes lie, and should a rule give no verdict there?"""

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..evaluation.margins import MOVES, moved
from ..evaluation.statistics import cohen
from ..relations import NAMES, RULES, judge
from .agreement import ROLES, judged
from .published import SIDE

STEPS = np.arange(1, 65) / 128  # how far boxes are moved or resized, in units of the image's longer side
COVERAGES = (100, 90, 75, 50)  # percent of the images that get a verdict


def margin(
    subject: Float64[np.ndarray, "pair 4"], object: Float64[np.ndarray, "pair 4"], rules: str,
    size: Float64[np.ndarray, "pair 2"],
) -> Float64[np.ndarray, "pair relation"]:  # fmt: skip
    """How far the subject's box is from a border of each relation: the smallest change that turns the verdict.

    The box is moved in 16 directions, and made wider, narrower, taller or shorter about its centre, in steps of 1/128
    of the image's longer side, up to a half. A box shrinks to 1 pixel at least. Boxes are xywh in pixels, ``size`` is
    each image's width and height, and margins are in units of the longer side; 0.5 where nothing turns the verdict.
    """
    before = judge(subject, object, rules, size)
    smallest = np.full(before.shape, STEPS[-1])
    times = len(MOVES)
    others, sizes = np.repeat(object, times, axis=0), np.repeat(size, times, axis=0)
    for step in STEPS[::-1]:  # downwards, so that the smallest step is written last
        boxes = moved(subject, np.repeat(step * size.max(axis=1, keepdims=True), times, axis=1), 1.0)
        after = judge(boxes.reshape(-1, 4), others, rules, sizes).reshape(len(subject), times, len(NAMES))
        smallest[(after != before[:, None]).any(axis=1)] = step
    return smallest


def margins(pictures: pd.DataFrame, boxes: pd.DataFrame, detector: str) -> pd.DataFrame:
    """Every rule set's verdict and margin on the best pair of each judged image that has both boxes.

    Columns rules, picture, verdict (the person's), holds and margin.
    """
    tables = []
    for rules in RULES:
        records = judged(pictures, boxes, detector, rules, "best")
        records = records[records.verdict.notna() & records.both_found]
        subject, object = (records[[f"{role}_{side}" for side in "xywh"]].to_numpy(float) for role in ROLES)
        far = margin(subject, object, rules, np.full((len(records), 2), SIDE))
        far = far[np.arange(len(records)), records.relation.map(NAMES.index)]
        tables.append(records[["picture", "verdict"]].assign(rules=rules, holds=records.correct, margin=far))
    return pd.concat(tables, ignore_index=True)[["rules", "picture", "verdict", "holds", "margin"]]


def risk(margins: pd.DataFrame) -> pd.DataFrame:
    """Risk against coverage: the rules give a verdict on the images farthest from their border only.

    Images of equal margin are kept or left out together, so the coverage is the next one above that this allows.

    Returns:
        Columns rules, asked (percent, see ``COVERAGES``), coverage (met), margin (the least that is kept), n (kept),
        risk (percent of the kept on which rules and person differ, "undecidable" being "not true") with low and high
        (Wilson, 95 %), undecidable_kept and undecidable_left (percent of each that the person calls undecidable), and
        kappa_three: Cohen's kappa of "true", "false" and no verdict with the person's three verdicts.
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
            verdict = part.holds.map({True: "true", False: "false"}).where(kept, "undecidable")
            unclear = 100 * (part.verdict == "undecidable")
            rows.append({
                "rules": rules, "asked": asked, "coverage": 100 * float(kept.mean()), "margin": float(least),
                "n": int(kept.sum()), "risk": 100 * wrong / int(kept.sum()), "low": 100 * low, "high": 100 * high,
                "undecidable_kept": float(unclear[kept].mean()), "undecidable_left": float(unclear[~kept].mean()),
                "kappa_three": cohen(verdict, part.verdict),
            })  # fmt: skip
    return pd.DataFrame(rows)
