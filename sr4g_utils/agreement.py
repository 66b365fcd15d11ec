"""How far verdicts agree: two judges, several judges, and two judges against a third."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int, Real

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


class Clusters:
    """A bootstrap over clusters, here the prompts: pictures of one prompt are drawn together.

    All measures of one instance see the same draws, so that their differences are paired.
    """

    def __init__(self, ids: pd.Series, resamples: int, seed: int) -> None:
        self.ids = pd.Index(ids.unique())
        n, rng = len(self.ids), np.random.default_rng(seed)
        self.times = rng.multinomial(n, np.full(n, 1 / n), resamples)

    def sums(self, ids: pd.Series, values: np.ndarray) -> Real[np.ndarray, "resample column"]:
        """The columns of ``values`` (a row per picture, whose cluster is in ``ids``) summed in each resample."""
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


def half_widths(n: int, agreed: float = 0.8, differing: float = 0.2) -> dict[str, float]:
    """How far 95 % intervals reach to each side with ``n`` independent judgements, by the normal approximation.

    Args:
        agreed: the share on which rules and people agree, where half of the verdicts are "true".
        differing: the share of pictures on which two rule sets differ.

    Returns:
        agreement and difference (of two rule sets' agreement) in points, and kappa.
    """
    one = 1.96 / np.sqrt(n)
    spread = np.sqrt(agreed * (1 - agreed))
    return {"agreement": 100 * one * spread, "kappa": 2 * one * spread, "difference": 100 * one * np.sqrt(differing)}


def cohen(first: pd.Series, second: pd.Series) -> float:
    """Cohen's kappa of two people's answers of any number of categories; NaN where chance alone gives agreement."""
    table = pd.crosstab(first, second)
    names = table.index.union(table.columns)
    share = table.reindex(index=names, columns=names, fill_value=0).to_numpy(np.float64) / max(len(first), 1)
    chance = float(share.sum(axis=0) @ share.sum(axis=1))
    return (float(np.trace(share)) - chance) / (1 - chance) if len(first) and chance < 1 else np.nan
