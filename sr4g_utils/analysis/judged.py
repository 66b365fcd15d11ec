"""What several judges say of the experiments' arms: the median of their gains, and whose gain it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from ..evaluation import scores, selection
from ..evaluation.judges import SAMPLES
from ..evaluation.statistics import Clusters, holm
from ..store.files import protocol
from . import claims
from . import opposites as opposite_pairs
from .claims import ALPHA, UNDECIDED
from .effects import by_relation, distance_change, effects, of_objects, sets_of
from .sweeps import ARMS, BASE, base_of, verdicts_of

Gains = Float[np.ndarray, "judge *resample"]
Tables = Sequence[pd.DataFrame]
CONFIRMATORY = {  # a claim's model, objects and what it is compared with; 3 to 5 are told apart
    "1": ("main", "all", BASE), "1, list": ("main", "all", "list"), "1, shuffled": ("main", "all", "shuffled"),
    "2": ("unseen", "unseen", BASE), "2, list": ("unseen", "unseen", "list"),
    "2, shuffled": ("unseen", "unseen", "shuffled"), "3": ("", "", ""), "4": ("", "", ""), "5": ("", "", ""),
}  # fmt: skip
Judged = Mapping[str, pd.DataFrame]  # of :func:`sweeps.by_judge`


def of_median(gains: Gains) -> np.ndarray:
    """The median of the judges' gains."""
    return np.median(gains, axis=0)


def of_first(gains: Gains) -> np.ndarray:
    """The first judge's gain less the median of the others'."""
    return gains[0] - np.median(gains[1:], axis=0)


def over_judges(
    treated: Sequence[Tables], other: Sequence[Tables], of: Callable[[Gains], np.ndarray], metric: str = "VISOR_Cond",
    resamples: int = 2_000, seed: int = 0, level: float = 0.95,
) -> dict[str, float | int]:  # fmt: skip
    """A number ``of`` the gains that judges see (points), with its interval over prompts and seeds.

    As in :func:`effects.effect` two variances add up. A median has no pulls: the variance of prompts is that of a
    bootstrap, in which all judges, models and seeds share the prompts; that of the seeds is their own spread.

    Args:
        treated, other: by judge, the verdicts by seed as :func:`effects.effect` takes them; one table of ``other``
            stands for all seeds.

    Returns:
        value (of the means over seeds), low, high, p (two-sided), seeds, prompts.
    """
    pairs = [(t, list(o) * len(t) if len(o) == 1 else list(o)) for t, o in zip(treated, other, strict=True)]
    by_seed = []
    for i in range(len(treated[0])):
        tables = scores.common([table for after, before in pairs for table in (before[i], after[i])])
        by_seed.append(np.stack([np.stack(scores.fractions(table, metric), 1) for table in tables], 1))
    counts = np.stack(by_seed, 1)  # prompt, seed, judge's before and after, above and below the line
    prompts, seeds = counts.shape[:2]
    ids = pd.Series(np.arange(prompts))
    flat = counts.reshape(prompts, -1).astype(float)
    drawn = np.concatenate([flat.sum(0)[None], Clusters(ids, resamples, seed).sums(ids, flat)])
    drawn = drawn.reshape(1 + resamples, *counts.shape[1:])
    values = 100 * drawn[..., 0] / drawn[..., 1]
    gains = (values[..., 1::2] - values[..., ::2]).transpose(2, 1, 0)  # judge, seed, resample
    value, *resampled = of(gains.mean(axis=1))
    parts = [(float(np.var(resampled, ddof=1)), prompts - 1)]
    if seeds > 1:
        parts.append((float(of(gains[:, :, 0]).var(ddof=1)) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts) if variance else 1.0
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    p = 2 * stats.t.sf(abs(value) / np.sqrt(variance), freedom) if variance else float(value == 0)
    return {"value": value, "low": value - half, "high": value + half, "p": p, "seeds": seeds, "prompts": prompts}


def _arms(by: Judged) -> list[tuple[dict[str, str], list[list[pd.DataFrame]], list[list[pd.DataFrame]]]]:
    """Every model, arm and set of objects that all judges have: what it is, each judge's verdicts on it, by seed, and
    on the base."""
    first, found = next(iter(by.values())), []
    for model in first.model[first.model != BASE].unique():
        for arm in ARMS.values():
            tables = [list(verdicts_of(table, model, arm).values()) for table in by.values()]
            if not all(tables):
                continue
            for objects in sets_of(first):
                treated = [of_objects(part, objects) for part in tables]
                base = [of_objects([base_of(table)], objects) for table in by.values()]
                found.append(({"model": model, "arm": arm, "objects": objects}, treated, base))
    return found


def medians(by: Judged, resamples: int = 2_000) -> pd.DataFrame:
    """The median of the judges' effects over the base: model, arm, objects, metric and the columns of
    :func:`over_judges`."""
    return pd.DataFrame([
        {**about, "metric": metric, **over_judges(treated, base, of_median, metric, resamples)}
        for about, treated, base in _arms(by)
        for metric in scores.MAIN
    ])  # fmt: skip


def whose_gain(by: Judged, resamples: int = 2_000) -> pd.DataFrame:
    """Whose gain is it? For each arm, the gain over the base that the leading judge sees, less the median of those that
    the others see on the same images (:func:`judges.whose_gain`, here over seeds).

    Returns:
        model, arm, objects, metric, images (``judges.SAMPLES``; "all" for VISOR) and the columns of
        :func:`over_judges`. Empty if there is one judge.
    """
    rows: list[dict[str, Any]] = []
    for about, treated, base in _arms(by) if len(by) > 1 else ():
        seeds = len(treated[0])
        before = [list(part) * seeds if len(part) == 1 else part for part in base]
        by_all: tuple[list[list[pd.DataFrame]], ...] = ([[] for _ in by], [[] for _ in by])
        for i in range(seeds):
            for kept, arm in zip(by_all, (treated, before), strict=True):
                for own, table in zip(kept, selection.complete(*(part[i] for part in arm)), strict=True):
                    own.append(table)
        samples: list[tuple[str, str, Sequence[Tables], Sequence[Tables]]] = [
            ("VISOR", "all", treated, base),
            ("VISOR_Cond", SAMPLES[0], treated, base),
            ("VISOR_Cond", SAMPLES[1], by_all[0], by_all[1]),
        ]
        for metric, images, after, other in samples:
            number = over_judges(after, other, of_first, metric, resamples)
            rows.append({**about, "metric": metric, "images": images, **number})
    return pd.DataFrame(rows)


def whose_gain_verdict(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The second protocol's test on :func:`whose_gain`: arms relations and list, models main (all prompts) and unseen
    (unseen objects). A part of the gain is the leading judge's if an interval lies above 0 (Holm over the four), none
    is if all four lie within the margin, and else it is undecided. The four rows, with p_holm, and the verdict."""
    chosen = (table.metric == "VISOR_Cond") & (table.images == SAMPLES[0]) & table.arm.isin(["relations", "list"])
    cells = pd.Series(list(zip(table.model, table.objects, strict=True)), table.index)
    rows = table[chosen & cells.isin([("main", "all"), ("unseen", "unseen")])]
    rows = rows.assign(p_holm=holm(rows.p.to_numpy(float)))
    if ((rows.p_holm < ALPHA) & (rows.value > 0)).any():
        return rows, "a part is the detector's"
    margin = protocol()["margins"]["difference"]
    alike = len(rows) == 4 and bool(rows.low.gt(-margin).all() and rows.high.lt(margin).all())
    return rows, "none is the detector's" if alike else UNDECIDED


def confirmed(
    by: Judged, quality: pd.DataFrame, opposites: Mapping[str, pd.DataFrame] | None = None, seeds: int = 3
) -> pd.DataFrame:
    """The confirmatory tests of the second protocol, by each judge: claims 1 to 5, those against lists and shuffled
    relations among them. A claim holds only if it does by each judge.

    Args:
        by: of :func:`sweeps.by_judge`, from a sweep of the profile arms.
        quality: of :func:`sweeps.read`.
        opposites: by judge, the table of :func:`opposites.gaps`; None: claim 4 was not tested.
        seeds: an arm with fewer is not tested.

    Returns:
        The columns of :func:`claims.table`.
    """
    margins = protocol()["margins"]
    tests: dict[str, list[claims.Tested]] = {key: [] for key in CONFIRMATORY}
    for judge, table in by.items():
        measured = effects(table, ("VISOR_Cond", "OA"))
        measured = measured[(measured.arm == "relations") & (measured.seeds >= seeds)]
        measured = measured.set_index(["model", "objects", "over", "metric"])[["difference", "low", "high"]]

        def number(*cell: str, measured: pd.DataFrame = measured) -> list[float] | None:
            return measured.loc[cell].tolist() if cell in measured.index else None

        points = f"points of VISOR_Cond, by {judge}"
        for key, (model, objects, over) in CONFIRMATORY.items():
            if model:
                cell = (model, objects, over, "VISOR_Cond")
                tests[key].append(claims.against(f"{points}, {objects} objects over {over}", number(*cell), "above", 0))
        of_each = claims.every_relation(by_relation(table, "main"))
        few = len(verdicts_of(table, "main", "relations")) < seeds
        verdict = claims.NOT_TESTABLE if few else of_each.verdict
        tests["3"].append(replace(of_each, what=f"{of_each.what}, by {judge}", verdict=verdict))
        if opposites is not None:
            tests["4"].append(_of_opposites(opposites[judge], judge))
        oa = number("main", "all", BASE, "OA")
        tests["5"].append(claims.against(f"points of OA, by {judge}", oa, "above", -margins["OA"]))
    distance = distance_change(quality, "main")
    tests["5"].append(claims.against("Fréchet distance, %", distance, "below", margins["distance"]))
    return claims.rows_of({key: parts for key, parts in tests.items() if parts})


def _of_opposites(gaps: pd.DataFrame, judge: str) -> claims.Tested:
    """Claim 4 by one judge: how many of the pairs that were unequal have a gap that is shown to be smaller."""
    falls = (gaps.change_holm < claims.ALPHA) & (gaps.change < 0)
    what = f"of {gaps.unequal.sum()} unequal pairs of opposites, gaps that fall, by {judge}"
    number = [float(falls.sum())] * 3
    return claims.Tested(what, number, "all, and none becomes unequal (Holm)", opposite_pairs.verdict(gaps))
