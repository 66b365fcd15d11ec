"""What a person would score: SpatialBench-UC's 200 verdicts, weighted to all 2,400 images, beside every rule set.

The tests were decided before the numbers were computed (``data/protocol_1.yaml``, ``person score``).
"""

from collections.abc import Iterator
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..evaluation.statistics import holm, student
from ..relations import RULES
from .agreement import judged

DETECTOR = "Faster R-CNN"
STRATA = ("with confidence", "by verdict alone")  # the images were drawn from the first; the second are coarser
Values = Float[np.ndarray, "image"]


class Estimate(NamedTuple):
    """A weighted mean, its variance and the degrees of freedom of that."""

    value: float
    variance: float
    freedom: int

    def interval(self) -> tuple[float, float]:
        reach = student(self.freedom, 0.95) * self.variance**0.5
        return self.value - reach, self.value + reach


def weighted_mean(value: Values, weight: Values, stratum: np.ndarray) -> Estimate:
    """The mean of a population from a stratified sample: each image counts for ``weight`` images of its ``stratum``.

    The variance is that of simple random samples within strata (with their finite sizes), linearised for the estimated
    total; strata with one image are taken as one.
    """
    mean = float(np.average(value, weights=weight))
    part = weight * (value - mean) / weight.sum()
    names, at, n = np.unique(stratum.astype(str), return_inverse=True, return_counts=True)
    at = np.where(n[at] == 1, len(names), at)
    variance, freedom = 0.0, 0
    for k in np.unique(at):
        own = at == k
        if (count := int(own.sum())) > 1:
            left = 1 - count / weight[own].sum()  # of the stratum, what was not judged
            variance += left * count * float(part[own].var(ddof=1))
            freedom += count - 1
    return Estimate(mean, variance, freedom)


def _coarser(pictures: pd.DataFrame) -> pd.DataFrame:
    """The images with weights of strata that do not ask how sure the checker was."""
    stratum = pictures.stratum.str.rsplit(",", n=1).str[0]
    total = pictures.weight.groupby(stratum).sum()
    return pictures.assign(stratum=stratum, weight=stratum.map(total / stratum.value_counts()))


def _sides(pictures: pd.DataFrame, boxes: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Strata, rules and pairs, and the records of all images with ``right``: the person calls it right."""
    for strata, weighted in zip(STRATA, (pictures, _coarser(pictures)), strict=True):
        for rules, pairs in product(RULES, ("any", "best")):
            records = judged(weighted, boxes, DETECTOR, rules, pairs)
            yield {"strata": strata, "rules": rules, "pairs": pairs}, records.assign(right=records.verdict == "true")


def person_scores(pictures: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """What the person would call right of each system's images, of :func:`published.read_spatialbench`.

    Returns:
        A row for each system and way to estimate it: model, strata, rules and pairs ("none": the weighted verdicts
        alone, else corrected by that rule set), value, low and high (percent; 95 %), score (percent: what the rule set
        says of all images), verdicts (judged images), effective (as many of equal weights) and worth: how many verdicts
        one is worth, by the variance.
    """
    rows: list[dict[str, object]] = []
    for how, records in _sides(pictures, boxes):
        for model, part in records.groupby("model", sort=False):
            seen = part[part.weight.notna()]
            weight, stratum = seen.weight.to_numpy(float), seen.stratum.to_numpy(object)
            right, holds = seen.right.to_numpy(float), seen.correct.to_numpy(float)
            alone, off = weighted_mean(right, weight, stratum), weighted_mean(right - holds, weight, stratum)
            score = float(part.correct.mean())
            corrected = Estimate(score + off.value, off.variance, off.freedom)
            about = {"verdicts": len(seen), "effective": weight.sum() ** 2 / (weight**2).sum()}
            if how["rules"] == next(iter(RULES)) and how["pairs"] == "any":
                rows.append(_row(model, how | {"rules": "none", "pairs": "none"}, alone, None) | about | {"worth": 1.0})
            rows.append(_row(model, how, corrected, score) | about | {"worth": alone.variance / off.variance})
    return pd.DataFrame(rows)


def _row(model: str, how: dict[str, str], estimate: Estimate, score: float | None) -> dict[str, object]:
    low, high = estimate.interval()
    numbers = {"value": 100 * estimate.value, "low": 100 * low, "high": 100 * high}
    return {"model": model, **how, **numbers, "score": None if score is None else 100 * score}


def person_gaps(pictures: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """How far apart the person would put every two systems, and a rule set does.

    Returns:
        A row for each two systems, strata, rules and pairs: a, b, strata, rules, pairs, person and score (b − a,
        points), difference (person's gap less the rule set's) with low and high (95 %), p (Student's t), and p_holm
        over the three gaps.
    """
    from scipy.stats import t as students_t  # slow to import, for --help

    tables = []
    for how, records in _sides(pictures, boxes):
        off, score = {}, {}
        for model, part in records.groupby("model", sort=False):
            seen = part[part.weight.notna()]
            value = seen.right.to_numpy(float) - seen.correct.to_numpy(float)
            off[model] = weighted_mean(value, seen.weight.to_numpy(float), seen.stratum.to_numpy(object))
            score[model] = float(part.correct.mean())
        rows = []
        for a, b in combinations(off, 2):
            both = Estimate(
                off[b].value - off[a].value, off[a].variance + off[b].variance, min(off[a].freedom, off[b].freedom)
            )
            (low, high), gap = both.interval(), score[b] - score[a]
            row = {"a": a, "b": b, **how, "person": 100 * (gap + both.value), "score": 100 * gap}
            numbers = {"difference": 100 * both.value, "low": 100 * low, "high": 100 * high}
            rows.append(row | numbers | {"p": 2 * students_t.sf(abs(both.value) / both.variance**0.5, both.freedom)})
        table = pd.DataFrame(rows)
        tables.append(table.assign(p_holm=holm(table.p.to_numpy())))
    return pd.concat(tables, ignore_index=True)
