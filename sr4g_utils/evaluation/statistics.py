"""Intervals of ratios over prompts, and agreement between people, rules and detectors."""

from collections.abc import Sequence
from functools import cache
from math import exp, lgamma, log, nan, pi, sqrt
from statistics import NormalDist

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int, Real

GROUPS = 20  # of the jackknife
FEWEST = 8  # clusters with a denominator, below which there is no interval: from here on they cover (tests/mistakes)

Counts = Float[np.ndarray, "cluster ratio"]  # of each cluster, what is above and what is below the fraction's line
Ratios = Float[np.ndarray, "ratio"]


def enough(below: Counts) -> np.ndarray:
    """Whether each ratio has clusters enough for an interval."""
    return (below > 0).sum(axis=0) >= FEWEST


@cache
def student(freedom: int, level: float) -> float:
    """How far a share ``level`` of Student's t reaches to each side; NaN without a degree of freedom.

    Newton's method on the closed form (Abramowitz and Stegun 26.7.3 and 26.7.4); so that scores need no scipy.
    """
    if freedom < 1:
        return nan
    odd, k = freedom % 2, np.arange(freedom % 2 + 2, freedom - 1, 2)
    peak = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(freedom * pi)
    before, t = 0.0, NormalDist().inv_cdf((1 + level) / 2)
    while t > before:  # from below, where every step is too short: the share is concave in t
        cosine, sine = sqrt(freedom / (freedom + t * t)), t / sqrt(freedom + t * t)
        series = 1 + np.cumprod((k - 1) / k * cosine**2).sum()
        angle = np.arctan2(t, sqrt(freedom)) + (sine * cosine * series if freedom > 1 else 0)
        share = angle * 2 / pi if odd else sine * series
        density = peak * exp(-(freedom + 1) / 2 * log(1 + t * t / freedom))
        before, t = t, t + (level - float(share)) / (2 * density)
    return float(before)


def ratio(above: Counts, below: Counts, level: float = 0.95) -> tuple[Ratios, Ratios]:
    """The interval, low and high in [0, 1], of each ratio sum(above) / sum(below), 0 ≤ above ≤ below in each cluster.

    Null where fewer than ``FEWEST`` clusters have a denominator.
    """
    n, total = (below > 0).sum(axis=0), below.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = above.sum(axis=0) / total
        variance = n / (n - 1) * (_influence(above, below) ** 2).sum(axis=0)
        # all clusters alike tell nothing of how alike the images of one are: each counts once (Kish)
        clusters = total**2 / (below**2).sum(axis=0)
        effective = np.where((p == 0) | (p == 1), clusters, np.minimum(p * (1 - p) / variance, total))
        c = np.array([student(int(k) - 1, level) for k in n]) ** 2 / effective
        middle, half = (p + c / 2) / (1 + c), np.sqrt(c * p * (1 - p) + c**2 / 4) / (1 + c)
        low, high = np.clip(middle - half, 0, p), np.clip(middle + half, p, 1)
    return np.where(enough(below), low, np.nan), np.where(enough(below), high, np.nan)


def difference(before: tuple[Counts, Counts], after: tuple[Counts, Counts]) -> tuple[Ratios, Ratios]:
    """The interval, low and high in [−1, 1], of the change of each ratio between two models: above and below of each,
    as in :func:`ratio`; row by row the same clusters."""
    (low_a, high_a), (low_b, high_b) = ratio(*before), ratio(*after)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (above.sum(axis=0) / below.sum(axis=0) for above, below in (before, after))
        x, y = _influence(*before), _influence(*after)
        r = np.nan_to_num((x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0)))
        n = ((before[1] > 0) & (after[1] > 0)).sum(axis=0)
        r = np.where(r > 0, np.maximum(r - 1 / (2 * n * np.sqrt(a * (1 - a) * b * (1 - b))), 0), r)

    def reach(up: Ratios, down: Ratios) -> Ratios:
        return np.sqrt(np.maximum(up**2 + down**2 - 2 * r * up * down, 0))

    return b - a - reach(b - low_b, high_a - a), b - a + reach(high_b - b, a - low_a)


def _influence(above: Counts, below: Counts) -> Counts:
    """How far each cluster moves its ratio (the linearised, or sandwich, variance is the sum of their squares)."""
    total = below.sum(axis=0)
    return (above - above.sum(axis=0) / total * below) / total


def parts(group: Int[np.ndarray, "image"], count: int = GROUPS) -> Int[np.ndarray, "image"]:
    """The part of each image, from 0; images of a group share it."""
    return np.unique(group, return_inverse=True)[1] % count


def jackknife(without: Float[np.ndarray, "part number"]) -> Float[np.ndarray, "number"]:
    """Half the width of each number's interval, from its values with one part left out each (delete-a-group)."""
    n = len(without)
    error = np.sqrt((n - 1) / n * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return student(n - 1, 0.95) * error


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values corrected for their number (Holm 1979); null where they are."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p)
    n = int(np.isfinite(p).sum())
    corrected = np.full(len(p), np.nan)
    corrected[order[:n]] = np.minimum(np.maximum.accumulate(p[order[:n]] * np.arange(n, 0, -1)), 1)
    return corrected


AGREEMENT = ("accuracy", "precision", "recall", "kappa")


def agreement(counts: Real[np.ndarray, "*sample 4"]) -> Float64[np.ndarray, "*sample 4"]:
    """Accuracy, precision, recall and Cohen's kappa from true and false positives, false and true negatives.

    NaN where a measure is not defined (no positive verdict, no positive label, or no chance of disagreement).
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    n = tp + fp + fn + tn
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (tp + tn) / n
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
        return np.stack([accuracy, tp / (tp + fp), tp / (tp + fn), (accuracy - chance) / (1 - chance)], axis=-1)


def outcomes(verdict: Bool[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n 4"]:
    """Which of true positive, false positive, false negative and true negative each verdict is; sum it for counts."""
    return np.stack([verdict & label, verdict & ~label, ~verdict & label, ~verdict & ~label], axis=1)


def interval(drawn: Float64[np.ndarray, "resample"], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a bootstrap; resamples in which the number is not defined are left out."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def measured(name: str, value: float, drawn: Float64[np.ndarray, "resample"], scale: float = 1.0) -> dict[str, float]:
    """A number under its name, and its percentile interval under ``name_low`` and ``name_high``, times ``scale``."""
    low, high = interval(scale * drawn)
    return {name: scale * float(value), f"{name}_low": low, f"{name}_high": high}


def with_labels(counts: Real[np.ndarray, "4"], drawn: Real[np.ndarray, "resample 4"]) -> dict[str, float]:
    """:func:`agreement` of counts, each of the four numbers :func:`measured` by resamples of the counts."""
    values, resampled = agreement(counts), agreement(drawn)
    columns: dict[str, float] = {}
    for i, name in enumerate(AGREEMENT):
        columns |= measured(name, values[i], resampled[:, i])
    return columns


class Clusters:
    """A bootstrap over clusters, here the prompts: images of one prompt are drawn together. All measures of one
    instance see the same draws, so that their differences are paired."""

    def __init__(self, ids: pd.Series, resamples: int, seed: int) -> None:
        self.ids = pd.Index(ids.unique())
        n, rng = len(self.ids), np.random.default_rng(seed)
        self.times = rng.multinomial(n, np.full(n, 1 / n), resamples)

    def sums(self, ids: pd.Series, values: np.ndarray) -> Real[np.ndarray, "resample column"]:
        """The columns of ``values`` (a row per image, whose cluster is in ``ids``) summed in each resample."""
        per_cluster = np.zeros((len(self.ids), values.shape[1]), np.result_type(values.dtype, np.int64))
        np.add.at(per_cluster, self.ids.get_indexer(ids), values)
        return self.times @ per_cluster


def mcnemar(first: Bool[np.ndarray, "n"], second: Bool[np.ndarray, "n"]) -> tuple[int, int, float]:
    """On how many items only the first judge is right, and only the second; and McNemar's exact two-sided p."""
    from scipy.stats import binomtest  # slow to import, for --help

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, n).pvalue) if n else 1.0


def fleiss(
    counts: Int[np.ndarray, "item category"], times: Int[np.ndarray, "resample item"] | None = None
) -> tuple[Float64[np.ndarray, "resample"], Float64[np.ndarray, "resample"]]:
    """How often two people agree on an item (mean over items), and Fleiss' kappa.

    ``counts`` is how many people gave each answer; ``times`` how often each resample holds an item (by default one
    resample, with each item once). Items with fewer than two answers say nothing and are left out; numbers of answers
    may differ. NaN where nothing is left, and kappa where everybody gave one answer throughout.
    """
    kept = counts.sum(axis=1) > 1
    counts = counts[kept].astype(np.float64)
    weights = np.ones((1, len(counts))) if times is None else times[:, kept].astype(np.float64)
    n = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = weights @ ((counts * (counts - 1)).sum(axis=1) / (n * (n - 1))) / weights.sum(axis=1)
        totals = weights @ counts
        chance = ((totals / totals.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return agreed, (agreed - chance) / (1 - chance)


def pairwise(counts: Int[np.ndarray, "item answer"], times: Int[np.ndarray, "resample item"]) -> dict[str, float]:
    """:func:`fleiss`: agreement (percent) and kappa, each :func:`measured`."""
    (agreed, kappa), (drawn, drawn_kappa) = fleiss(counts), fleiss(counts, times)
    return measured("agreement", agreed[0], drawn, 100.0) | measured("kappa", kappa[0], drawn_kappa)


def cohen(first: pd.Series, second: pd.Series) -> float:
    """Cohen's kappa of two people's answers of any number of categories; NaN where chance alone gives agreement."""
    table = pd.crosstab(first, second)
    names = table.index.union(table.columns)
    share = table.reindex(index=names, columns=names, fill_value=0).to_numpy(np.float64) / max(len(first), 1)
    chance = float(share.sum(axis=0) @ share.sum(axis=1))
    return (float(np.trace(share)) - chance) / (1 - chance) if len(first) and chance < 1 else np.nan


def second_opinion(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """How far two judges agree on the images that both have, from their verdicts.

    Returns:
        A row for "both objects found" and one for "relation holds" (where both judges found both objects): judged
        (images), both_yes, first_only, second_only, both_no; agreement (percent) with low and high
        (:func:`ratio`, the cluster being the prompt), and Cohen's kappa.
    """
    both = first.merge(second, on=["prompt_id", "image_index"], suffixes=("", "_second"))
    both_found = both[both.both_found & both.both_found_second]
    rows = []
    for what, part, column in (("both objects found", both, "both_found"), ("relation holds", both_found, "correct")):
        a, b = part[column].to_numpy(bool), part[f"{column}_second"].to_numpy(bool)
        counts = np.array([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()])
        accuracy, _, _, kappa = agreement(counts)
        agreed = pd.Series(a == b).groupby(part.prompt_id.to_numpy()).agg(["sum", "size"]).to_numpy(np.float64)
        (low,), (high,) = ratio(agreed[:, :1], agreed[:, 1:])
        row = dict(zip(("both_yes", "first_only", "second_only", "both_no"), counts.tolist(), strict=True))
        rows.append({"verdict": what, "judged": len(part), **row, "agreement": 100 * accuracy, "low": 100 * low,
                     "high": 100 * high, "kappa": kappa})  # fmt: skip
    return pd.DataFrame(rows)
