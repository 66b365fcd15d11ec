"""Several judges of the same images: what each says, their median, and whose gain it is.

The headline is the **median** of the judges (of two: their mean). A judge is a detector with a threshold of its own, or
:data:`TEMPLATES`. Intervals of medians and of differences between judges are bootstraps over prompts, in which all
judges and models see the same prompts.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..models.source import Source
from ..store.files import read_table
from ..store.run import Run
from . import scores, selection, tables, verdicts
from .statistics import Clusters, enough, interval

TEMPLATES = "templates"  # the judge that matches the miniature's own cards to the pixels, in place of a detector
MEDIAN = "median of the judges"
SAMPLES = ("as each judge finds them", "found by all judges")  # the images of VISOR_Cond

Judged = Mapping[str, Mapping[str, pd.DataFrame]]  # by the judge's name, its verdicts by the model's name
Pairs = Sequence[Sequence[pd.DataFrame]]  # each judge's verdicts on two models' images


@dataclass(frozen=True)
class Judge:
    """A detector (a :class:`Source`, or what makes one) or ``TEMPLATES``; boxes count above its threshold."""

    name: str
    source: Any
    threshold: float

    @property
    def folder(self) -> str:
        """Where a run keeps its boxes and verdicts, if it is not the first."""
        return folder_of(self.name)


def folder_of(name: str) -> str:
    return "judges/" + re.sub(r"[^\w.-]+", "-", name) + "/"


def judges(detector: Any, threshold: Any) -> list[Judge]:
    """The judges that a setting names: a detector or a list, ``TEMPLATES`` among them but not first; and a threshold
    for all detectors, or a list with one for each. What templates match, they have judged: they take none.

    Raises:
        ValueError: other numbers of them, or templates alone.
    """
    sources = list(detector) if isinstance(detector, list | tuple) else [detector]
    learnt = [source for source in sources if source != TEMPLATES]
    thresholds = list(threshold) if isinstance(threshold, list | tuple) else [threshold] * len(learnt)
    if not learnt or sources[0] == TEMPLATES:
        raise ValueError(f"detector: {sources!r} must begin with a detector; {TEMPLATES!r} may come after it")
    if len(learnt) != len(thresholds):
        counts = f"{len(learnt)} detectors and {len(thresholds)} thresholds"
        raise ValueError(f"threshold: {counts}; give one for all, or one for each detector ({TEMPLATES} take none)")
    left = iter(thresholds)
    limits = [0.0 if source == TEMPLATES else next(left) for source in sources]
    names = [source if source == TEMPLATES else Source.of(source).name for source in sources]
    count = Counter(names)
    names = [
        f"{name}, threshold {limit}" if count[name] > 1 else name for name, limit in zip(names, limits, strict=True)
    ]
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"detector: {repeated[0]} is named twice; name each judge once")
    return [Judge(*judge) for judge in zip(names, sources, limits, strict=True)]


def read(run: Run, about: Mapping[str, Any], models: Sequence[str]) -> dict[str, dict[str, pd.DataFrame]]:
    """The verdicts of all judges of a run on some models' images, from what its results say (``about``); an earlier
    version's name one judge. A judge of images has none of a model of which only boxes were given."""
    names = list(about.get("judges") or [(about["detector"] or {"id": "detector"})["id"]])
    by: dict[str, dict[str, pd.DataFrame]] = {}
    for i, name in enumerate(names):
        paths = {model: f"{folder_of(name) if i else ''}verdicts_{model}.parquet" for model in models}
        there = {model: path for model, path in paths.items() if not i or (run.folder / "artifacts" / path).is_file()}
        by[name] = {model: read_table(run.read(path)) for model, path in there.items()}
    return by


def by_visors_rule(
    by: Judged, boxes: Mapping[str, Mapping[str, pd.DataFrame]], prompts: pd.DataFrame, judged: Mapping[str, Any]
) -> dict[str, dict[str, pd.DataFrame]]:
    """The detectors' verdicts as VISOR's script has them, by a name that says so: any pair of boxes above 0.1 may show
    the relation. None where a run judges so (``judged``) anyway; nor of templates, whose scores have another scale."""
    own = verdicts.LIKE["visor"]
    if all(judged[key] == value for key, value in own.items()):
        return {}
    return {
        f"{judge}, any pair above {own['threshold']}": {
            model: verdicts.verdicts(prompts, boxes[judge][model], records, **own, nothing="record")
            for model, records in models.items()
        }
        for judge, models in by.items()
        if judge != TEMPLATES
    }


def agreed(by: Judged) -> dict[str, pd.DataFrame]:
    """The first judge's verdicts, by the model's name, on the images of which all judges say the same: both objects
    found or not, and the relation obeyed or not. Images that look alike to all are clearer ones than the rest."""
    (_, first), *others = by.items()
    alike = {}
    for model in set.intersection(*(set(models) for models in by.values())):
        table, keys = first[model], ["prompt_id", "image_index"]
        for _, models in others:
            other = models[model][[*keys, "both_found", "correct"]]
            both = table.merge(other, on=keys, suffixes=("", "_other"))
            same = (both.both_found == both.both_found_other) & (both.correct == both.correct_other)
            table = both.loc[same, list(table)].reset_index(drop=True)
        alike[model] = table
    return {model: alike[model] for model in first if model in alike}


def counts(by: Judged, model: str) -> pd.DataFrame:
    """What most judges say of each of a model's images: columns prompt_id, image_index, correct (more than half of them
    say that it is; the median judge's verdict), and reason, in words."""
    tables = [models[model] for models in by.values() if model in models]
    keys = ["prompt_id", "image_index"]
    sums = pd.concat(tables).groupby(keys, sort=False)[["both_found", "correct"]].sum().reset_index()
    words = [
        f"{correct} of {len(tables)} judges" + ("" if 2 * both > len(tables) else ": a thing is missing")
        for both, correct in zip(sums.both_found, sums.correct, strict=True)
    ]
    return sums[keys].assign(correct=2 * sums.correct > len(tables), reason=words)


def by_judge(
    by: Judged, prompts: pd.DataFrame, resamples: int = 10_000, seed: int = 0, beside: Judged | None = None
) -> pd.DataFrame:
    """OA, VISOR and VISOR_Cond by each judge and by their median, and the gain from the first model.

    Args:
        beside: more verdicts to show, which do not count for the median, such as those by VISOR's own protocol.

    Returns:
        Columns judge, objects, model, metric, value, low, high, gain, gain_low, gain_high (points; null for the first
        model), and beside VISOR_Cond's gain those of :data:`selection.BESIDE`. The rows of ``MEDIAN`` have the median
        of the judges' numbers, with bootstraps; no bounds.
    """
    keys, rows = ["relation", "objects", "model", "metric"], []
    gains = {"difference": "gain", "low": "gain_low", "high": "gain_high"}
    for judge, models in {**by, **(beside or {})}.items():
        changes = tables.change_table(models, prompts, 1, seed).rename(columns=gains)  # without its test
        changes = changes[[*keys, *gains.values(), *selection.BESIDE]]
        table = tables.score_table(models, prompts).merge(changes, on=keys, how="left")
        rows.append(table[(table.relation == "all") & table.metric.isin(scores.MAIN)].assign(judge=judge))
    if len(by) > 1:
        rows.append(_medians(by, prompts, resamples, seed))
    columns = ["judge", *keys[1:], "value", "low", "high", *gains.values(), *selection.BESIDE]
    return pd.concat(rows, ignore_index=True)[columns]


def _medians(by: Judged, prompts: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """The rows of ``MEDIAN`` of :func:`by_judge`, with the relation."""
    names = [name for name in next(iter(by.values())) if all(name in models for models in by.values())]
    rows = []
    for (objects, ids), name, metric in product(tables.sets_of(prompts), names, scores.MAIN):
        pairs = [(_of(models[names[0]], ids), _of(models[name], ids)) for models in by.values()]
        if not all(len(table) for pair in pairs for table in pair):
            continue
        row: dict[str, Any] = {"judge": MEDIAN, "objects": objects, "model": name, "metric": metric, "relation": "all"}
        drawn = _drawn(scores.common([after for _, after in pairs]), metric, resamples, seed)
        row |= scores.estimate(np.median(drawn, axis=0), "value", "low", "high")
        if name != names[0]:
            pairs = _shared(pairs)
            gain = np.median(gains(pairs, metric, resamples, seed), axis=0)
            row |= scores.estimate(gain, "gain", "gain_low", "gain_high")
            if metric == "VISOR_Cond":
                complete = [selection.complete(*pair) for pair in pairs]
                gain = np.median(gains(complete, metric, resamples, seed), axis=0)
                row |= scores.estimate(gain, *selection.BESIDE[:3])
        rows.append(row)
    return pd.DataFrame(rows)


def whose_gain(
    by: Judged, prompts: pd.DataFrame, before: str, after: str, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Whose gain is it? The gain that the first judge sees, less the median of those that the others see.

    Returns:
        Column objects and those of :func:`apart`. Empty if there is one judge.
    """
    parts = []
    for objects, ids in tables.sets_of(prompts) if len(by) > 1 else ():
        pairs = [(_of(models[before], ids), _of(models[after], ids)) for models in by.values()]
        if all(len(table) for pair in pairs for table in pair):
            parts.append(apart(_shared(pairs), resamples, seed).assign(objects=objects))
    return pd.concat(parts, ignore_index=True).set_index("objects").reset_index() if parts else pd.DataFrame()


def apart(pairs: Pairs, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> pd.DataFrame:
    """The gain by the first judge, less the median of the others' gains on the same images, from the verdicts of each
    judge on two models, which have the same prompts.

    VISOR has the same images for all judges. VISOR_Cond is given twice (``SAMPLES``): over the images in which each
    judge finds both things, and over those in which all judges find them.

    Returns:
        Columns metric, images (``SAMPLES``; "all" for VISOR), gain (the first judge's), others (the median of theirs),
        difference, low, high (points; a bootstrap over prompts that all judges and models share), images_before and
        images_after (that the first judge's score is over).
    """
    rows = []
    by_all = list(zip(*(selection.complete(*models) for models in zip(*pairs, strict=True)), strict=True))
    for metric, sample, chosen in (
        ("VISOR", "all", pairs),
        ("VISOR_Cond", SAMPLES[0], pairs),
        ("VISOR_Cond", SAMPLES[1], by_all),
    ):
        own, *others = gains(chosen, metric, resamples, seed)
        median = np.median(others, axis=0)
        row = {"metric": metric, "images": sample, "gain": own[0], "others": median[0]}
        low, high = interval((own - median)[1:], level)
        counted = [len(table) if metric == "VISOR" else int(table.both_found.sum()) for table in chosen[0]]
        rows.append({**row, "difference": own[0] - median[0], "low": low, "high": high,
                     "images_before": counted[0], "images_after": counted[1]})  # fmt: skip
    return pd.DataFrame(rows)


def gains(pairs: Pairs, metric: str, resamples: int, seed: int) -> Float[np.ndarray, "judge resample"]:
    """The gain from one model to another by each judge, as :func:`_drawn`; all have the same prompts."""
    values = _drawn([table for pair in pairs for table in pair], metric, resamples, seed)
    return values[1::2] - values[::2]


def _of(records: pd.DataFrame, ids: pd.Series) -> pd.DataFrame:
    return records[records.prompt_id.isin(ids)]


def _shared(pairs: Pairs) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The verdicts on the images that all judges have of both models."""
    parts = scores.common([table for pair in pairs for table in pair])
    return list(zip(parts[::2], parts[1::2], strict=True))


def _drawn(
    models: Sequence[pd.DataFrame], metric: str, resamples: int, seed: int
) -> Float[np.ndarray, "table resample"]:
    """A metric of several tables of the same prompts, and that of these prompts drawn again and again; resample 0 is
    what was observed. Resamples are null where few prompts have something to divide by."""
    counts = [np.stack(scores.fractions(records, metric), 1) for records in models]  # of prompts, sorted by id
    ids, together = pd.Series(np.arange(len(counts[0]))), np.concatenate(counts, 1)
    sums = np.concatenate([together.sum(0)[None], Clusters(ids, resamples, seed).sums(ids, together)])
    sums = sums.reshape(1 + resamples, len(models), 2)
    with np.errstate(invalid="ignore"):
        values = 100 * (sums[..., 0] / sums[..., 1]).T
    few = np.array([not enough(part[:, 1:])[0] for part in counts])
    values[few, 1:] = np.nan
    return values
