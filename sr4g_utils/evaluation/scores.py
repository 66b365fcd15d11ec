"""Detections × prompts → one verdict per image → OA, VISOR, VISOR_Cond and VISOR_1..4 with intervals. No torch here.

The metric is VISOR's (Gokhale et al. 2022, arXiv 2212.10015, section 4; ``visor.py`` of microsoft/VISOR):

* OA: share of images in which both objects are found;
* VISOR: share of images in which both are found and the relation holds;
* VISOR_Cond: share of the images with both objects in which the relation holds;
* VISOR_n: share of prompts with at least n correct images.

Detections are stored above a low floor and know nothing of thresholds; the threshold is applied here, and so is the
rule that turns boxes into relations (:mod:`sr4g_utils.relations`). All scores are percentages, as published. **A score
whose denominator is zero is null (NaN), never 0**: no image with both objects says nothing about relations.

The sampling unit is the prompt: its images share a caption (:mod:`sr4g_utils.evaluation.statistics`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ..relations import NAMES
from . import statistics as evaluation_statistics
from .statistics import Counts, Ratios

AT_LEAST = (1, 2, 3, 4)  # images of a prompt, in VISOR_1 to VISOR_4

# What each metric divides by what. The counts are of images, but for those of prompts with at least n correct ones.
FORMULAS: dict[str, tuple[str, str]] = {
    "OA": ("both_found", "images"),
    "VISOR": ("correct", "images"),
    "VISOR_Cond": ("correct", "both_found"),
    **{f"VISOR_{n}": (f"at_least_{n}", "prompts") for n in AT_LEAST},
}
METRICS = tuple(FORMULAS)
MAIN = ("OA", "VISOR", "VISOR_Cond")  # that every table and figure shows
STATISTICS = ("prompts", "images", "both_found", "correct", *(f"at_least_{n}" for n in AT_LEAST))  # of a prompt
_AT = {name: i for i, name in enumerate(STATISTICS)}
_ABOVE = [_AT[above] for above, _ in FORMULAS.values()]
_BELOW = [_AT[below] for _, below in FORMULAS.values()]


def scores(records: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """OA, VISOR, VISOR_Cond and VISOR_1..4, over all prompts and per relation, with intervals.

    Args:
        records: of :func:`verdicts` or :func:`detections.read_visor_results`; each image counts, even where prompts
            have unequal numbers of them.
        level: of the interval (:func:`statistics.ratio`, the cluster being the prompt).

    Returns:
        Columns relation ("all", then those that occur), metric, value, low, high (percentages), count, of (the fraction
        whose percentage the value is) and prompts. Null where ``of`` is 0, and VISOR_n where no prompt has n images;
        low and high also where fewer than ``intervals.FEWEST`` prompts have something to divide by.
    """
    statistics, relation = _per_prompt(records)
    rows = []
    for name, where in _groups(relation):
        totals, measurable = statistics[where].sum(axis=0), _measurable(statistics[where])
        low, high = _percent(evaluation_statistics.ratio(*_fractions(statistics[where]), level), measurable)
        values = {"value": _metrics(totals, measurable), "low": low, "high": high}
        counts = {"count": totals[_ABOVE], "of": totals[_BELOW], "prompts": totals[_AT["prompts"]]}
        rows.append(pd.DataFrame({"relation": name, "metric": METRICS, **values, **counts}))
    return pd.concat(rows, ignore_index=True)


def common(models: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The models' records of the images (prompt_id and image_index) that all of them have.

    Raises:
        ValueError: there are none, or a prompt asks for something else in another model.
    """
    columns = ["prompt_id", "image_index", "relation"]
    if len(models[0]) and all(models[0][columns].equals(records[columns]) for records in models[1:]):
        return list(models)  # the usual case, and quickly told
    keys = [pd.MultiIndex.from_frame(records[["prompt_id", "image_index"]]) for records in models]
    shared = keys[0]
    for key in keys[1:]:
        shared = shared if shared.equals(key) else shared.intersection(key)
    if not len(shared):
        raise ValueError("compare: no image (prompt_id, image_index) is in all models, so nothing can be compared")
    parts = [r if k.equals(shared) else r[k.isin(shared)] for r, k in zip(models, keys, strict=True)]
    relations = [part.groupby("prompt_id").relation.first() for part in parts]
    for other in relations[1:]:
        if (differ := relations[0] != other).any():
            id = differ.index[differ][0]
            raise ValueError(f"compare: prompt {id} is {relations[0][id]!r} in one model and {other[id]!r} in another")
    return parts


def compare(
    before: pd.DataFrame, after: pd.DataFrame, resamples: int = 10_000, seed: int = 0, *, per_relation: bool = True
) -> pd.DataFrame:
    """The change from one model to another on the images that both have (:func:`common`), paired by prompt.

    The interval is :func:`statistics.difference`, the cluster being the prompt. The test exchanges the two models'
    images of a prompt at random, ``resamples`` times, as if the models did not differ; p is two-sided and never below
    1 / (resamples + 1). Without ``per_relation``, over all prompts only.

    Returns:
        Columns relation, metric, before, after, difference, low, high (percentage points), p and images (those that
        both have); null as in :func:`scores`. ``attrs["left_aside"]``: how many images only one of the two has.

    Raises:
        ValueError: the two have no image in common, or a prompt asks for something else in each.
    """
    parts = common([before, after])
    (a, relation), (b, _) = (_per_prompt(part) for part in parts)
    rows = []
    for name, where in _groups(relation)[: None if per_relation else 1]:
        measurable = _measurable(a[where]) & _measurable(b[where])
        values = [_metrics(statistics[where].sum(axis=0), measurable) for statistics in (a, b)]
        difference = values[1] - values[0]
        low, high = _percent(evaluation_statistics.difference(_fractions(a[where]), _fractions(b[where])), measurable)
        one, other = _exchange(np.concatenate([a[where], b[where]], axis=1), resamples, seed)
        swapped = np.abs(_metrics(other) - _metrics(one))
        # 1e-9: equal differences must count as equal however their sums were rounded
        extreme = (swapped >= np.abs(difference) - 1e-9).sum(axis=0)
        p = np.where(np.isnan(difference), np.nan, (1 + extreme) / (1 + np.isfinite(swapped).sum(axis=0)))
        columns = {"before": values[0], "after": values[1], "difference": difference, "low": low, "high": high, "p": p}
        images = int(a[where, _AT["images"]].sum())
        rows.append(pd.DataFrame({"relation": name, "metric": METRICS, **columns, "images": images}))
    table = pd.concat(rows, ignore_index=True)
    table.attrs["left_aside"] = len(before) + len(after) - 2 * len(parts[0])
    return table


def draws(
    models: Sequence[pd.DataFrame], resamples: int = 10_000, seed: int = 0
) -> dict[str, Float[np.ndarray, "model resample metric"]]:
    """The metrics of several models on the images that all have, drawn again and again, for statistics of one's own.

    Resample 0 is what was observed. Prompts are drawn with replacement, all models' images of a prompt together, and
    independently for "all" and for each relation that occurs: the keys. The last axis is ``METRICS``. The resamples are
    null where fewer than ``intervals.FEWEST`` prompts have something to divide by: they would say too much.

    Raises:
        ValueError: as :func:`common`.
    """
    parts = [_per_prompt(records) for records in common(models)]
    statistics = np.concatenate([part[0] for part in parts], axis=1)
    drawn = {}
    for i, (name, where) in enumerate(_groups(parts[0][1])):
        types, count = _types(statistics[where])
        random = np.random.default_rng([seed, i])
        sums = random.multinomial(count.sum(), count / count.sum(), size=resamples) @ types
        sums = np.concatenate([statistics[where].sum(axis=0)[None], sums])
        drawn[name] = _metrics(sums.reshape(len(sums), len(models), -1)).swapaxes(0, 1)
        few = [~evaluation_statistics.enough(_fractions(part[0][where])[1]) for part in parts]
        drawn[name][:, 1:][np.broadcast_to(np.array(few)[:, None], drawn[name][:, 1:].shape)] = np.nan
    return drawn


def estimate(drawn: Float[np.ndarray, "resample"], *names: str) -> dict[str, float]:
    """What was observed (resample 0 of :func:`draws`) and the interval of the others, under three names."""
    low, high = (np.nan, np.nan) if np.isnan(drawn[0]) else evaluation_statistics.interval(drawn[1:])
    return dict(zip(names, (float(drawn[0]), low, high), strict=True))


def chance(records: pd.DataFrame) -> pd.DataFrame:
    """What the same images score against permuted prompts: a relation drawn from the prompt set, the objects kept.

    The objects stay, because open-vocabulary detections hold only the names that were asked for; so OA does not change,
    and what is left of VISOR_Cond is what the layouts and the any-pair rule give away. The result is the mean over all
    permutations, in closed form: no chance enters. Per relation, it is the share of all images that obey that relation.

    Columns relation, metric, value; the rows of :func:`scores`.
    """
    statistics, relation = _per_prompt(records)
    prompt = pd.factorize(records.prompt_id)[0]
    holds = records[list(NAMES)].to_numpy(bool) & records.both_found.to_numpy(bool)[:, None]
    correct = np.zeros((len(statistics), len(NAMES)))
    np.add.at(correct, prompt, holds)
    measurable = _measurable(statistics)
    # (relation, statistic): all prompts, as if each named this relation
    totals = np.tile(statistics.sum(axis=0).astype(np.float64), (len(NAMES), 1))
    totals[:, _AT["correct"]] = correct.sum(axis=0)
    for n in AT_LEAST:
        totals[:, _AT[f"at_least_{n}"]] = (correct >= n).sum(axis=0)
    share = {name: np.isin(relation, [name]).mean() for name in NAMES}
    mean = sum(share[name] * totals[i] for i, name in enumerate(NAMES))
    rows = [("all", mean), *((name, totals[i]) for i, name in enumerate(NAMES) if share[name])]
    tables = [pd.DataFrame({"relation": n, "metric": METRICS, "value": _metrics(t, measurable)}) for n, t in rows]
    return pd.concat(tables, ignore_index=True)


def fractions(records: pd.DataFrame, metric: str) -> list[Float[np.ndarray, "prompt"]]:
    """What is above and below a metric's line, prompt by prompt, sorted by id."""
    return [counts[:, METRICS.index(metric)] for counts in _fractions(_per_prompt(records)[0])]


def _per_prompt(records: pd.DataFrame) -> tuple[Int[np.ndarray, "prompt statistic"], np.ndarray]:
    """Sufficient statistics and relation of each prompt, sorted by id."""
    grouped = records.groupby("prompt_id", sort=True)
    relation, correct = grouped["relation"].first(), grouped["correct"].sum()
    counts = {
        "prompts": np.ones(len(relation)),
        "images": grouped["correct"].size(),
        "both_found": grouped["both_found"].sum(),
        "correct": correct,
        **{f"at_least_{n}": correct >= n for n in AT_LEAST},
    }
    statistics = np.column_stack([np.asarray(counts[name], np.int64) for name in STATISTICS])
    return statistics, relation.to_numpy(object)


def _groups(relation: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """All prompts, then those of each relation that occurs."""
    return [("all", np.ones(len(relation), bool)), *((name, relation == name) for name in NAMES if name in relation)]


def _measurable(statistics: Int[np.ndarray, "prompt statistic"]) -> Bool[np.ndarray, "metric"]:
    """VISOR_n says nothing where no prompt has n images. ValueError: there is no prompt."""
    if not len(statistics):
        raise ValueError("records: the table is empty, so there is nothing to score")
    most = statistics[:, _AT["images"]].max()
    needed = {f"VISOR_{n}": n for n in AT_LEAST}
    return np.array([most >= needed.get(name, 1) for name in METRICS])


def _metrics(totals: np.ndarray, measurable: np.ndarray | bool = True) -> Float[np.ndarray, "... metric"]:
    """(..., statistic) sums to (..., metric) percentages; NaN for 0/0 and where not measurable."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 100.0 * totals[..., _ABOVE] / totals[..., _BELOW]
    return np.where(measurable, values, np.nan)


def _fractions(statistics: Int[np.ndarray, "prompt statistic"]) -> tuple[Counts, Counts]:
    """What is above and below each metric's line, prompt by prompt."""
    return statistics[:, _ABOVE].astype(np.float64), statistics[:, _BELOW].astype(np.float64)


def _percent(ends: tuple[Ratios, Ratios], measurable: np.ndarray) -> list[Ratios]:
    return [np.where(measurable, 100 * end, np.nan) for end in ends]


def _types(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows and how many prompts have each: with 4 images, only 15 kinds of prompts (225 for two models).
    So resampling prompts is, exactly, one multinomial draw over the kinds."""
    types, count = np.unique(statistics, axis=0, return_counts=True)
    return types.astype(np.float64), count


def _exchange(both: np.ndarray, resamples: int, seed: int) -> list[Float[np.ndarray, "resample statistic"]]:
    """Summed statistics of each of two models after every prompt's results were exchanged with probability one half."""
    types, count = _types(both)
    swapped = np.random.default_rng(seed + 1).binomial(count, 0.5, size=(resamples, len(count)))
    exchanged = np.roll(types, types.shape[1] // 2, axis=1)
    sums = count @ types + swapped.astype(np.float64) @ (exchanged - types)  # whole numbers: exact, and floats are fast
    return np.split(sums, 2, axis=1)
