"""Tables of scores for notebook 04, and published numbers beside them."""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..dataset.prompt_sets import MET
from ..dataset.prompts import OBJECT_SETS
from ..store.files import read_json, read_table, reported, write_table
from . import scores, selection, verdicts
from .detections import read_detections
from .images import list_images
from .scores import MAIN

WORLDS = {
    "miniature": "The **miniature world**: pictograms drawn by the project, a tiny Stable Diffusion and two tiny "
    "detectors of our own. Its base has met relation words at random only, and its text tower knows no places; but the "
    "world is small, and **no number here is the paper's**. What it tests is whether the method works: on unseen "
    "objects, on every relation, between opposites.",
    "photos": "**Photos**, and the models that are named with every result. Numbers compare with the paper's as far as "
    "models, prompts, steps, guidance and detector do.",
}


def write_verdicts(
    path: str | Path, prompts: str | Path, detections: str | Path, images: str | Path, **options: Any
) -> dict[str, int]:
    """A stage: :func:`verdicts.verdicts` on a folder of images. Returns how many, with both objects, and correct."""
    table = read_table(prompts)
    records = verdicts.verdicts(table, read_detections(detections), list_images(images, table), **options)
    write_table(path, records)
    return {"images": len(records), **{name: int(records[name].sum()) for name in ("both_found", "correct")}}


def verdict_files(artifacts: Path) -> dict[str, Path]:
    """The verdicts of a run by model, of those that its scores name: an earlier evaluation's may lie there, too."""
    rows = (read_json(artifacts / "results" / "scores.json") or {}).get("rows", [])
    paths = {name: artifacts / f"verdicts_{name}.parquet" for name in dict.fromkeys(row["model"] for row in rows)}
    return {name: path for name, path in paths.items() if path.is_file()}


def sets_of(prompts: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """Each set of objects that occurs, and its prompts' ids; "all", if there is more than one; and the pairs of things
    that COCO's photos show together, or never, if there are both (:func:`prompt_sets.with_met`)."""
    for name in (*OBJECT_SETS, "all"):
        if (prompts.objects == name).any():
            yield name, prompts.prompt_id[prompts.objects == name]
    if prompts.objects.nunique() > 1:
        yield "all", prompts.prompt_id
    if "met" in prompts and prompts.met.nunique() > 1:
        for name in MET:
            yield name, prompts.prompt_id[prompts.met == name]


def outcomes(models: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What became of each model's images: a row each for how many are correct, lack an object, or lack the relation."""
    counts = {
        name: {
            "correct": records.correct.sum(),
            "an object was not found": (~records.both_found).sum(),
            "both found, but the relation does not hold": (records.both_found & ~records.correct).sum(),
        }
        for name, records in models.items()
    }
    return pd.DataFrame(counts).rename_axis("images").reset_index()


def score_table(models: Mapping[str, pd.DataFrame], prompts: pd.DataFrame) -> pd.DataFrame:
    """:func:`scores.scores` of every model's verdicts with :func:`scores.chance` beside it, for each set of objects.

    Columns: objects, model, those of ``scores``, and chance: what the same images score against permuted prompts. Each
    model is scored on all images that it has of a set; where it has none, it has no rows.
    """
    tables = []
    for objects, ids in sets_of(prompts):
        for model, records in models.items():
            if len(part := records[records.prompt_id.isin(ids)]):
                luck = scores.chance(part).rename(columns={"value": "chance"})
                table = scores.scores(part).merge(luck, on=["relation", "metric"], how="left")
                tables.append(table.assign(objects=objects, model=model))
    empty = pd.DataFrame(columns=["objects", "model", "relation", "metric"])
    table = pd.concat(tables, ignore_index=True) if tables else empty
    return table[["objects", "model", *table.columns.drop(["objects", "model"])]]


def chance_table(
    prompts: pd.DataFrame, detections: Mapping[str, pd.DataFrame], models: Mapping[str, pd.DataFrame], **judged: Any
) -> pd.DataFrame:
    """VISOR_Cond of any pair of boxes and of the best one, from the models' boxes and their images ``models``, judged
    by :func:`verdicts.verdicts` with options ``judged``. Columns: objects, model, pair, value, low, high, chance."""
    tables = []
    for pair in ("any", "best"):
        records_by = {
            model: verdicts.verdicts(prompts, boxes, models[model], **(judged | {"pairs": pair}))
            for model, boxes in detections.items()
        }
        table = score_table(records_by, prompts).query("relation == 'all' and metric == 'VISOR_Cond'")
        tables.append(table.assign(pair=pair)[["objects", "model", "pair", "value", "low", "high", "chance"]])
    return pd.concat(tables, ignore_index=True).sort_values(["objects", "model"], kind="stable", ignore_index=True)


def change_table(
    models: Mapping[str, pd.DataFrame], prompts: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """:func:`scores.compare` of the first model with each of the others, for each set of objects.

    Columns: objects, model (the other one), those of ``visor.compare``, lift: the difference less what chance gains on
    the same images (:func:`scores.chance`), left_aside: how many images of the set only one of the two has, and for
    VISOR_Cond those of :func:`selection.beside`. No rows where the two have no image of a set in common; empty if there
    is one model only.
    """
    (_, first), *others = models.items()
    tables = []
    for (objects, ids), (model, records) in product(sets_of(prompts), others):
        before, after = (table[table.prompt_id.isin(ids)] for table in (first, records))
        if set(before.prompt_id) & set(after.prompt_id):
            table = scores.compare(before, after, resamples, seed=seed)
            luck = [scores.chance(part).value.to_numpy() for part in scores.common([before, after])]
            lift = table.difference - (luck[1] - luck[0])  # rows are in the same order
            of_set = table.assign(lift=lift, objects=objects, model=model, left_aside=table.attrs["left_aside"])
            tables.append(of_set.merge(_beside(before, after), "left", ["relation", "metric"]))
    change = ["before", "after", "difference", "low", "high", "p", "lift"]
    columns = ["relation", "metric", *change, "images", "left_aside", *selection.BESIDE]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*columns, "objects", "model"])
    return table[["objects", "model", *columns]]


def _beside(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """:func:`selection.beside` over all relations and for each, with the columns relation and metric."""
    rows = []
    for relation in ("all", *before.relation.unique()):
        parts = [part if relation == "all" else part[part.relation == relation] for part in (before, after)]
        if set(parts[0].prompt_id) & set(parts[1].prompt_id):
            rows.append({"relation": relation, "metric": "VISOR_Cond", **selection.beside(*parts)})
    return pd.DataFrame(rows)


def with_interval(value: float, low: float | None = None, high: float | None = None) -> str:
    """A number with its interval, if it has one, as text."""
    if np.isnan(value):
        return "–"
    return f"{value:.1f}" if low is None or np.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def with_intervals(table: pd.DataFrame, **ends: str) -> pd.DataFrame:
    """A table to read: each named column that there is as text with its interval, of which the columns go, which are
    called ``low`` and ``high`` behind the name's prefix in ``ends``."""
    shown = table.copy()
    for name in table.columns.intersection(list(ends)):
        limits = [f"{ends[name]}{end}" for end in ("low", "high")]
        shown[name] = list(map(with_interval, *(table[column].astype(float) for column in (name, *limits))))
        shown = shown.drop(columns=limits)
    return shown


def same_images_table(models: Mapping[str, pd.DataFrame], prompts: pd.DataFrame) -> pd.DataFrame:
    """:func:`selection.same_images` of the first model with each of the others, for each set of objects: columns
    objects, model and those of ``same_images``."""
    (_, first), *others = models.items()
    rows = []
    for (objects, ids), (model, records) in product(sets_of(prompts), others):
        before, after = (table[table.prompt_id.isin(ids)] for table in (first, records))
        if set(before.prompt_id) & set(after.prompt_id):
            rows.append(selection.same_images(before, after).assign(objects=objects, model=model))
    columns = ["objects", "model", "sample"]
    return (
        pd.concat(rows, ignore_index=True).set_index(columns).reset_index() if rows else pd.DataFrame(columns=columns)
    )


def by_threshold(
    prompts: pd.DataFrame, boxes: Mapping[str, pd.DataFrame], images: Mapping[str, Any], **judged: Any
) -> pd.DataFrame:
    """OA, VISOR and VISOR_Cond of each model against the detector's threshold: at 15 thresholds that part the boxes'
    scores evenly, and at ``judged["threshold"]``.

    Args:
        boxes, images: each model's detections, and its images as :func:`verdicts.verdicts` takes them.
        judged: its threshold, pairs and rules.

    Returns:
        Columns model, threshold, metric, value, low, high (percentages); no row where nothing is found.
    """
    scores_of_boxes = np.concatenate([table.score.to_numpy() for table in boxes.values()])
    chosen = np.quantile(scores_of_boxes, np.linspace(0.02, 0.98, 15)) if len(scores_of_boxes) else []
    rows = []
    for threshold, model in product(sorted({*np.round(chosen, 4), judged["threshold"]}), boxes):
        how = judged | {"threshold": float(threshold), "nothing": "record"}
        records = verdicts.verdicts(prompts, boxes[model], images[model], **how)
        if not records.attrs["nothing_found"]:
            table = scores.scores(records).query("relation == 'all'")
            rows.append(table[table.metric.isin(MAIN)].assign(model=model, threshold=threshold))
    columns = ["model", "threshold", "metric", "value", "low", "high"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def in_words(changes: pd.DataFrame) -> list[str]:
    """A sentence for each row of a :func:`change_table`: what changed, whether it can be told from no change, and how
    many images were left aside because one of the models lacks them."""
    sentences = []
    for row in changes.itertuples():
        than = "more than" if row.low > 0 else "less than" if row.high < 0 else "not distinguishable from"
        aside = f" ({row.left_aside:,} images that only one of the two has left aside)" if row.left_aside else ""
        change = f"{row.before:.1f} → {row.after:.1f} ({row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}])"
        sentences.append(f"{row.model}, {row.objects} objects: {row.metric} {change}, {than} before{aside}")
    return sentences


def beside_published(
    scores: pd.DataFrame, rescored: pd.DataFrame, models: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Our OA, VISOR and VISOR_Cond (of :func:`score_table`) beside those of published systems: name, million
    parameters, prompts, metrics and source. Systems in ``rescored`` (of :func:`agreement.scores`) are scored by us from
    their published boxes, by VISOR's rule and any pair, as VISOR scores its own; the others are those of
    ``data/reported.yaml``, which says who counted the parameters. ``models``: the records of our own by name; images
    made elsewhere have no parameters that we know (null)."""
    ours = scores[scores.relation == "all"].pivot(index=["model", "objects"], columns="metric", values="value")
    ours = ours.reset_index().assign(prompts=lambda table: table.objects + " objects", source="this run")
    by_visor = rescored[(rescored.rules == "visor") & (rescored.pairs == "any")]
    theirs = by_visor.pivot(index=["model", "detector"], columns="metric", values="value")
    theirs = theirs.dropna(subset="VISOR_4").reset_index()  # a detector that saw some images only is no ruler here
    how = "scored by us from published boxes (" + theirs.detector + ")"
    theirs = theirs.assign(prompts="SpatialBench-UC", source=how)
    named = pd.DataFrame.from_dict(reported("visor"), orient="index").rename_axis("model").reset_index()
    rows = pd.concat([ours, theirs, named.assign(prompts="SR2D")], ignore_index=True).rename(columns={"model": "name"})
    known = {name: row["value"] for name, row in reported("parameters").items()}
    known |= {name: (record.get("model") or {}).get("parameters") for name, record in models.items()}
    rows["million_parameters"] = rows.name.map(known).astype(float) / 1e6
    return rows[["name", "million_parameters", "prompts", *MAIN, "source"]]
