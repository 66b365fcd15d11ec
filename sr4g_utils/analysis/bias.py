"""Bias between opposite relations."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy import stats

from ..evaluation import scores, statistics
from ..relations import NAMES, OPPOSITES, RELATIONS, SYMMETRIC

COND = scores.METRICS.index("VISOR_Cond")
_GAP, _CHANGE = ("gap", "gap_low", "gap_high"), ("change", "change_low", "change_high")


def bias(models: Mapping[str, pd.DataFrame], resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How unequally a model treats a relation and its opposite, and how that changes from the first model on.

    The gap of a pair is VISOR_Cond of its first relation minus that of its opposite: a model that draws everything
    "left of" has +100, one that obeys both equally well (or equally badly) has 0. We take it rather than the rate of
    opposites drawn, because that rate is little else than one minus accuracy; the column ``opposite`` has it.

    Returns:
        Per model and pair (relation, with_opposite): gap, gap_low, gap_high; judged: images with both objects;
        opposite: the percentage of these in which the opposite of the prompt's relation holds, over both relations of
        the pair; change: of the gap's size since the first model, with interval; p_holm: of no gap, two-sided, of the
        true opposites, corrected for their number (Holm 1979). Last, "true opposites", all pairs but overlapping and
        separated, which complement each other: the mean of the squared gaps less their squared standard
        errors, which is 0 on average where there is no bias. Its gap is the root, with its sign, in points; its change
        is in points² (:func:`_beyond_noise`). Bootstrap over prompts, paired between models. Null where it is
        undefined: everywhere if the prompts have no relation together with its opposite.
    """
    drawn = scores.draws(list(models.values()), resamples, seed)
    swapped = {name: _with_opposites(records) for name, records in models.items()}
    gaps, true, rows = [], [], []
    for one, other in OPPOSITES:
        if one not in drawn or other not in drawn:
            continue
        gaps.append(drawn[one][:, :, COND] - drawn[other][:, :, COND])
        true.append(one not in SYMMETRIC)
        for i, (model, records) in enumerate(swapped.items()):
            both = records[records.relation.isin([one, other]) & records.both_found]
            change = scores.estimate(abs(gaps[-1][i]) - abs(gaps[-1][0]), *_CHANGE) if i else {}
            opposite = 100 * both.correct.mean() if len(both) else np.nan
            p = 2 * stats.norm.sf(abs(gaps[-1][i, 0]) / gaps[-1][i, 1:].std(ddof=1)) if true[-1] else np.nan
            rows.append({"relation": one, "with_opposite": other, "model": model, **scores.estimate(gaps[-1][i], *_GAP),
                         "opposite": opposite, "judged": len(both), **change, "p_holm": p})  # fmt: skip
    apart = np.array(gaps)[true] if any(true) else np.full((1, len(models), resamples + 1), np.nan)
    squared = _beyond_noise(apart)
    for i, model in enumerate(models):
        change = scores.estimate(squared[i] - squared[0], *_CHANGE) if i else {}
        root = scores.estimate(np.sign(squared[i]) * np.sqrt(np.abs(squared[i])), *_GAP)
        rows.append({"relation": "true opposites", "with_opposite": np.nan, "model": model, **root,
                     "opposite": np.nan, "judged": None, **change, "p_holm": np.nan})  # fmt: skip
    table = pd.DataFrame(rows).astype({"judged": "Int64"})
    return table.assign(
        p_holm=table.groupby("model", sort=False).p_holm.transform(lambda p: statistics.holm(p.to_numpy()))
    )


def _beyond_noise(gaps: Float64[np.ndarray, "pair model resample"]) -> Float64[np.ndarray, "model resample"]:
    """The mean of the squared gaps less what noise adds to them: its variance to what was observed (resample 0), and
    twice that to the others, which are drawn from an observation that is noisy already."""
    variance = gaps[:, :, 1:].var(axis=2, ddof=1, keepdims=True)
    times = np.r_[1.0, np.full(gaps.shape[2] - 1, 2.0)]
    return (gaps**2 - times * variance).mean(axis=0)


def _with_opposites(records: pd.DataFrame) -> pd.DataFrame:
    """The records as if each prompt had the opposite relation."""
    column = pd.Index(NAMES).get_indexer(pd.Index(records.relation.map({r.name: r.opposite for r in RELATIONS})))
    holds = records[list(NAMES)].to_numpy(bool)[np.arange(len(records)), column]
    return records.assign(correct=holds & records.both_found)
