"""What the numbers say: where rule sets disagree, gains, bias, frequency, and other rulers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from . import boxes, dataset, intervals, visor
from .agreement import agreement
from .boxes import BoxTable
from .detections import read_detections
from .images import list_images
from .prompts import OBJECT_SETS
from .relations import NAMES, OPPOSITES, RELATIONS, RULES, SYMMETRIC, complete_rules
from .running.files import atomic, reported


def rule_disagreement(path: str | Path, annotations: str | Path, split: str = "train") -> None:
    """How often two rule sets judge a pair of COCO boxes differently (an artifact: written to ``path`` as Parquet).

    One row per two rule sets ``a`` and ``b`` and relation that both define: pairs (ordered pairs of boxes judged),
    both, only_a, only_b.
    """
    table = boxes.read(annotations, split).without_crowds()
    counted = {two: np.zeros((3, len(NAMES)), np.int64) for two in combinations(RULES, 2)}
    n = 0
    for _, subject, object, _ in dataset.pairs(table):
        verdicts = {rules: dataset.holds(table, subject, object, rules) for rules in RULES}
        n += int((subject != object).sum())
        for (a, b), counts in counted.items():
            one, other = verdicts[a], verdicts[b]
            counts += [(one & other).sum(0), (one & ~other).sum(0), (other & ~one).sum(0)]
    rows = [
        {"relation": name, "a": a, "b": b, "pairs": n}
        | dict(zip(("both", "only_a", "only_b"), counts[:, i].tolist(), strict=True))
        for (a, b), counts in counted.items()
        for i, name in enumerate(NAMES)
        if name in RULES[a].defines and name in RULES[b].defines
    ]
    with atomic(path) as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)


# sg2im's own reading of COCO (sg2im/data/coco.py): objects of at least 2 % of the image, images with 3 to 8 of them
SG2IM_AREA, SG2IM_OBJECTS = 0.02, (3, 8)


def reconstruction(path: str | Path, train: str | Path, val: str | Path) -> None:
    """Which reading of the paper gives 9.9 million captions? (an artifact: written to ``path`` as Parquet)

    One row per set of images ("train", "val", "train + val"), rule set, box filter ("with crowds" where all of their
    annotations have crowd regions), and kind of thing counted: box pairs in a relation, distinct triplets per image, or
    distinct (subject, relation, object); each over all categories and over different categories only. Train and val of
    COCO 2017 together are those of COCO 2014, with the same annotations.

    Raises:
        ValueError: the splits have other categories.
    """
    tables = {"train": boxes.read(train, "train"), "val": boxes.read(val, "val")}
    if tables["train"].names != tables["val"].names:
        raise ValueError(f"{train} and {val} have not the same categories")
    kept = {"all boxes": BoxTable.without_crowds, "sg2im's filter": _filtered, "with crowds": lambda table: table}
    rows = []
    for (boxes_kept, choose), rules in product(kept.items(), complete_rules()):
        parts = {split: _captions(choose(table), rules) for split, table in tables.items()
                 if boxes_kept != "with crowds" or table.crowd.any()}  # fmt: skip
        for images in ("train", "val", "train + val"):
            if set(of := images.split(" + ")) <= set(parts):
                about = {"images": images, "rules": rules, "boxes": boxes_kept}
                rows += [about | told for told in _counted([parts[split] for split in of])]
    with atomic(path) as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)


def _filtered(table: BoxTable) -> BoxTable:
    """The boxes that sg2im takes: large ones, in images that have neither few nor many of them."""
    table = table.without_crowds()
    large = table.w * table.h >= SG2IM_AREA * (table.width * table.height)[table.image]
    per_image = np.bincount(table.image[large], minlength=len(table.image_id))[table.image]
    return table.rows(large & (per_image >= SG2IM_OBJECTS[0]) & (per_image <= SG2IM_OBJECTS[1]))


def _captions(
    table: BoxTable, rules: str
) -> tuple[dict[tuple[str, str], int], Bool[np.ndarray, "subject object relation"]]:
    """How many captions a rule set writes, by what is counted and of which categories; and the triplets there are."""
    counted = dict.fromkeys(product(("box pairs", "triplets per image"), ("all", "different")), 0)
    seen = np.zeros((len(table.names), len(table.names), len(NAMES)), bool)
    for groups, counts in dataset.count_pairs(table, rules) if len(table) else ():
        different = groups[:, 1] != groups[:, 2]
        for which, rows in (("all", slice(None)), ("different", different)):
            counted["box pairs", which] += int(counts[rows].sum())
            counted["triplets per image", which] += int(np.count_nonzero(counts[rows]))
        np.logical_or.at(seen, (groups[:, 1], groups[:, 2]), counts > 0)
    return counted, seen


def _counted(parts: Sequence[tuple[dict[tuple[str, str], int], np.ndarray]]) -> list[dict[str, Any]]:
    """The counts of splits together: of images they add up, and a triplet that is in both is one."""
    total = {kind: sum(counted[kind] for counted, _ in parts) for kind in parts[0][0]}
    seen = np.any([seen for _, seen in parts], axis=0)
    same = seen[np.arange(len(seen)), np.arange(len(seen))]
    total["distinct triplets", "all"] = int(seen.sum())
    total["distinct triplets", "different"] = int(seen.sum() - same.sum())
    return [{"counted": counted, "categories": which, "n": n} for (counted, which), n in total.items()]


def beside_reported(section: str, ours: Mapping[str, float | int]) -> pd.DataFrame:
    """Published numbers of a section of ``data/reported.yaml`` beside ours: claim, reported, ours, ratio, source."""
    published = reported(section)
    return pd.DataFrame(
        {
            "claim": name,
            "reported": published[name]["value"],
            "ours": value,
            "ours / reported": value / published[name]["value"],
            "source": published[name]["source"],
        }
        for name, value in ours.items()
    )


# ------------------------------------------------------------------------------------------- evaluation (notebook 04)

WORLDS = {
    "miniature": "The **miniature world**: pictograms drawn by the project, a tiny Stable Diffusion and a tiny OWL-ViT "
    "of our own. Its base has met relation words at random only, and its text tower knows no places; but the world is "
    "small, and **no number here is the paper's**. What it tests is whether the method works: on unseen objects, on "
    "every relation, between opposites.",
    "photos": "**Photos**, and the models that are named with every result. Numbers compare with the paper's as far as "
    "models, prompts, steps, guidance and detector do.",
}


def write_verdicts(
    path: str | Path, prompts: str | Path, detections: str | Path, images: str | Path, **options: Any
) -> dict[str, int]:
    """A stage: :func:`visor.verdicts` on a folder of images, from files to a file.

    Returns how many images, with both objects, and correct.
    """
    asked = pd.read_parquet(prompts)
    records = visor.verdicts(asked, read_detections(detections), list_images(images, asked), **options)
    with atomic(path) as partial:
        records.to_parquet(partial, index=False)
    return {"images": len(records), **{name: int(records[name].sum()) for name in ("both_found", "correct")}}


def _sets(prompts: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """Each set of objects that occurs, and its prompts' ids; "all" last, if there is more than one."""
    for name in [name for name in (*OBJECT_SETS, "all") if (prompts.objects == name).any()]:
        yield name, prompts.prompt_id[prompts.objects == name]
    if prompts.objects.nunique() > 1:
        yield "all", prompts.prompt_id


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
    """:func:`visor.scores` of every model's verdicts with :func:`visor.chance` beside it, for each set of objects.

    Each model is scored on all images that it has of a set; where it has none, it has no rows.

    Columns: objects, model, those of ``visor.scores``, and chance: what the same images score against permuted prompts.
    """
    tables = []
    for objects, ids in _sets(prompts):
        for model, records in models.items():
            part = records[records.prompt_id.isin(ids)]
            if not len(part):
                continue
            luck = visor.chance(part).rename(columns={"value": "chance"})
            table = visor.scores(part).merge(luck, on=["relation", "metric"], how="left")
            tables.append(table.assign(objects=objects, model=model))
    empty = pd.DataFrame(columns=["objects", "model", "relation", "metric"])
    table = pd.concat(tables, ignore_index=True) if tables else empty
    return table[["objects", "model", *table.columns.drop(["objects", "model"])]]


def chance_table(
    prompts: pd.DataFrame, detections: Mapping[str, pd.DataFrame], models: Mapping[str, pd.DataFrame], **judged: Any
) -> pd.DataFrame:
    """VISOR_Cond of any pair of boxes and of the best one, with interval and chance, from the models' boxes.

    ``models``: their images (as of :func:`visor.verdicts`); ``judged``: options of :func:`visor.verdicts`.

    Columns: objects, model, pair, value, low, high, chance.
    """
    tables = []
    for pair in ("any", "best"):
        told = {
            model: visor.verdicts(prompts, found, models[model], **(judged | {"pairs": pair}))
            for model, found in detections.items()
        }
        table = score_table(told, prompts).query("relation == 'all' and metric == 'VISOR_Cond'")
        tables.append(table.assign(pair=pair)[["objects", "model", "pair", "value", "low", "high", "chance"]])
    return pd.concat(tables, ignore_index=True).sort_values(["objects", "model"], kind="stable", ignore_index=True)


def change_table(
    models: Mapping[str, pd.DataFrame], prompts: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """:func:`visor.compare` of the first model with each of the others, for each set of objects.

    Columns: objects, model (the other one), those of ``visor.compare``, lift: the difference less what chance gains on
    the same images (:func:`visor.chance`), and left_aside: how many images of the set only one of the two has. No rows
    where the two have no image of a set in common; empty if there is one model only.
    """
    (_, first), *others = models.items()
    tables = []
    for (objects, ids), (model, records) in product(_sets(prompts), others):
        before, after = (table[table.prompt_id.isin(ids)] for table in (first, records))
        if set(before.prompt_id) & set(after.prompt_id):
            table = visor.compare(before, after, resamples, seed=seed)
            luck = [visor.chance(one).value.to_numpy() for one in visor.common([before, after])]
            lift = table.difference - (luck[1] - luck[0])  # rows are in the same order
            tables.append(table.assign(lift=lift, objects=objects, model=model, left_aside=table.attrs["left_aside"]))
    change = ["before", "after", "difference", "low", "high", "p", "lift"]
    columns = ["relation", "metric", *change, "images", "left_aside"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*columns, "objects", "model"])
    return table[["objects", "model", *columns]]


def in_words(changes: pd.DataFrame) -> list[str]:
    """A sentence for each row of a :func:`change_table`: what changed, whether it can be told from no change, and how
    many images were left aside because one of the models lacks them."""
    sentences = []
    for row in changes.itertuples():
        than = "more than" if row.low > 0 else "less than" if row.high < 0 else "not distinguishable from"
        aside = f" ({row.left_aside:,} images that only one of the two has left aside)" if row.left_aside else ""
        sentences.append(
            f"{row.model}, {row.objects} objects: {row.metric} {row.before:.1f} → {row.after:.1f} "
            f"({row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]), {than} before{aside}"
        )
    return sentences


def second_opinion(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """How far two judges agree on the same images, from their verdicts; of images that one of them lacks, nothing.

    Returns:
        A row for "both objects found" and one for "relation holds" (where both judges found both objects): judged
        (images), both_yes, first_only, second_only, both_no; agreement (percent) with low and high
        (:func:`intervals.ratio`, the cluster being the prompt), and Cohen's kappa.
    """
    both = first.merge(second, on=["prompt_id", "image_index"], suffixes=("", "_second"))
    found = both[both.both_found & both.both_found_second]
    rows = []
    for what, part, column in (("both objects found", both, "both_found"), ("relation holds", found, "correct")):
        a, b = part[column].to_numpy(bool), part[f"{column}_second"].to_numpy(bool)
        counts = np.array([(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()])
        accuracy, _, _, kappa = agreement(counts)
        agreed = pd.Series(a == b).groupby(part.prompt_id.to_numpy()).agg(["sum", "size"]).to_numpy(np.float64)
        (low,), (high,) = intervals.ratio(agreed[:, :1], agreed[:, 1:])
        row = dict(zip(("both_yes", "first_only", "second_only", "both_no"), counts.tolist(), strict=True))
        rows.append({"verdict": what, "judged": len(part), **row, "agreement": 100 * accuracy, "low": 100 * low,
                     "high": 100 * high, "kappa": kappa})  # fmt: skip
    return pd.DataFrame(rows)


def agreed(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The first judge's verdicts on the images of which the second says the same: both objects found or not, and the
    relation obeyed or not. Images that look alike to two judges are clearer ones than the rest."""
    told = second[["prompt_id", "image_index", "both_found", "correct"]]
    both = first.merge(told, on=["prompt_id", "image_index"], suffixes=("", "_second"))
    alike = (both.both_found == both.both_found_second) & (both.correct == both.correct_second)
    return both.loc[alike, list(first)].reset_index(drop=True)


def beside_published(scores: pd.DataFrame, rescored: pd.DataFrame) -> pd.DataFrame:
    """Our OA, VISOR and VISOR_Cond beside those of published systems: name, prompts, metrics and source.

    Args:
        scores: of :func:`score_table`.
        rescored: of :func:`people.systems.scores`: systems that we score from their published boxes, by VISOR's rule
            and any pair, as VISOR scores its own. The other rows are those of ``data/reported.yaml``.
    """
    ours = scores[scores.relation == "all"].pivot(index=["model", "objects"], columns="metric", values="value")
    ours = ours.reset_index().assign(prompts=lambda table: table.objects + " objects", source="this run")
    by_visor = rescored[(rescored.rules == "visor") & (rescored.pairs == "any")]
    theirs = by_visor.pivot(index=["model", "detector"], columns="metric", values="value")
    theirs = theirs.dropna(subset="VISOR_4").reset_index()  # a detector that saw some pictures only is no ruler here
    told = "scored by us from published boxes (" + theirs.detector + ")"
    theirs = theirs.assign(prompts="SpatialBench-UC", source=told)
    named = pd.DataFrame.from_dict(reported("visor"), orient="index").rename_axis("model").reset_index()
    rows = pd.concat([ours, theirs, named.assign(prompts="SR2D")], ignore_index=True).rename(columns={"model": "name"})
    return rows[["name", "prompts", "OA", "VISOR", "VISOR_Cond", "source"]]


# --------------------------------------------------------------------------------------------- analysis (notebook 05)

COND = visor.METRICS.index("VISOR_Cond")


def _estimate(draws: Float64[np.ndarray, "resample"], *keys: str, level: float = 0.95) -> dict[str, float]:
    """What was observed (draw 0) and the percentile interval of the other draws, under three names."""
    drawn = draws[1:][~np.isnan(draws[1:])]
    known = len(drawn) and not np.isnan(draws[0])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if known else (np.nan, np.nan)
    return dict(zip(keys, (float(draws[0]), float(low), float(high)), strict=True))


_GAP, _CHANGE = ("gap", "gap_low", "gap_high"), ("change", "change_low", "change_high")


def bias(models: Mapping[str, pd.DataFrame], resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How unequally a model treats a relation and its opposite, and what became of it after the first model.

    The gap of a pair is VISOR_Cond of its first relation minus that of its opposite: a model that draws everything
    "left of" has +100, one that obeys both equally well (or equally badly) has 0. We take it rather than the rate of
    opposites drawn, because that rate is little else than one minus accuracy; it is given beside, as ``opposite``.

    Returns:
        Per model and pair (relation, with_opposite): gap, gap_low, gap_high; judged: images with both objects;
        opposite: the percentage of these in which the opposite of what was asked for holds, over both relations of the
        pair; change: of the gap's size since the first model, with interval. Last, for "true opposites", all pairs but
        overlapping and separated, which complement each other: the mean of the squared gaps less their squared standard
        errors, which is 0 on average where there is no bias. Its gap is the root, with its sign, in points; its change
        is in points² (:func:`_beyond_noise`). Bootstrap over prompts, paired between models. Null where it cannot be
        told: all of it where no relation is asked for together with its opposite.
    """
    drawn = visor.draws(list(models.values()), resamples, seed)
    swapped = {name: _asked_for_opposite(records) for name, records in models.items()}
    gaps, true, rows = [], [], []
    for one, other in OPPOSITES:
        if one not in drawn or other not in drawn:
            continue
        gaps.append(drawn[one][:, :, COND] - drawn[other][:, :, COND])
        true.append(one not in SYMMETRIC)
        for i, (model, records) in enumerate(swapped.items()):
            of = records[records.relation.isin([one, other]) & records.both_found]
            change = _estimate(abs(gaps[-1][i]) - abs(gaps[-1][0]), *_CHANGE) if i else {}
            opposite = 100 * of.correct.mean() if len(of) else np.nan
            rows.append({"relation": one, "with_opposite": other, "model": model, **_estimate(gaps[-1][i], *_GAP),
                         "opposite": opposite, "judged": len(of), **change})  # fmt: skip
    apart = np.array(gaps)[true] if any(true) else np.full((1, len(models), resamples + 1), np.nan)
    squared = _beyond_noise(apart)
    for i, model in enumerate(models):
        change = _estimate(squared[i] - squared[0], *_CHANGE) if i else {}
        root = _estimate(np.sign(squared[i]) * np.sqrt(np.abs(squared[i])), *_GAP)
        rows.append({"relation": "true opposites", "with_opposite": np.nan, "model": model, **root,
                     "opposite": np.nan, "judged": None, **change})  # fmt: skip
    return pd.DataFrame(rows).astype({"judged": "Int64"})


def _beyond_noise(gaps: Float64[np.ndarray, "pair model resample"]) -> Float64[np.ndarray, "model resample"]:
    """The mean of the squared gaps less what noise adds to them: its variance to what was observed (resample 0), and
    twice that to the others, which are drawn from an observation that is noisy already."""
    variance = gaps[:, :, 1:].var(axis=2, ddof=1, keepdims=True)
    times = np.r_[1.0, np.full(gaps.shape[2] - 1, 2.0)]
    return (gaps**2 - times * variance).mean(axis=0)


def _asked_for_opposite(records: pd.DataFrame) -> pd.DataFrame:
    """The records as if each prompt had asked for the opposite."""
    column = pd.Index(NAMES).get_indexer(pd.Index(records.relation.map({r.name: r.opposite for r in RELATIONS})))
    holds = records[list(NAMES)].to_numpy(bool)[np.arange(len(records)), column]
    return records.assign(correct=holds & records.both_found)


THIRDS = ("rarest third", "middle third", "most frequent third")


def known(prompts: pd.DataFrame) -> pd.DataFrame:
    """The prompts whose objects fine-tuning saw; all of them where none is said to be seen."""
    seen = prompts[prompts.objects == "seen"]
    return seen if len(seen) else prompts


def gain_by_frequency(
    before: pd.DataFrame, after: pd.DataFrame, prompts: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Is the gain larger where fine-tuning saw the prompt's triplet more often?

    Prompts are ranked by ``n_images`` (training images that show the triplet) *within their relation*, and cut into
    thirds: relations differ in frequency and in difficulty, and would otherwise be confounded with it.

    Returns:
        A row per third: frequency (its name), prompts, images_median, before, after, difference, low, high (VISOR_Cond,
        points); null for a third without prompts. The last row, "most − least", has the outer thirds' difference.
    """
    before, after = visor.common([before, after])
    prompts = prompts[prompts.prompt_id.isin(before.prompt_id)]
    by_relation = prompts.groupby("relation").n_images
    place = (by_relation.rank(method="first") - 0.5) / by_relation.transform("size")
    gains, rows = [], []
    for i, name in enumerate(THIRDS):
        part = prompts[np.floor(3 * place) == i]
        drawn = np.full((2, resamples + 1), np.nan)
        if len(part):
            records = [r[r.prompt_id.isin(part.prompt_id)] for r in (before, after)]
            drawn = visor.draws(records, resamples, seed + i)["all"][:, :, COND]
        gains.append(drawn[1] - drawn[0])
        values = {"images_median": part.n_images.median(), "before": drawn[0, 0], "after": drawn[1, 0]}
        gain = _estimate(gains[-1], "difference", "low", "high")
        rows.append({"frequency": name, "prompts": len(part), **values, **gain})
    contrast = _estimate(gains[-1] - gains[0], "difference", "low", "high")
    return pd.DataFrame([*rows, {"frequency": "most − least", "prompts": len(prompts), **contrast}])


THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)


def ablation(
    prompts: pd.DataFrame,
    detections: Mapping[str, pd.DataFrame],
    images: Mapping[str, int | pd.DataFrame],
    thresholds: Sequence[float] = THRESHOLDS,
    resamples: int = 1_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The first model against the last, scored again from the stored boxes under other thresholds, pairs and rules.

    Args:
        images: those of each model, as :func:`visor.verdicts` takes them; its verdicts will do.

    Columns: rules, pairs, threshold, before, after, difference, low, high (VISOR_Cond), OA_before and OA_after. A
    threshold above which a model has no box that counts gives a row of nulls.
    """
    first, *_, last = detections
    rows: list[dict[str, Any]] = []
    change = ["before", "after", "difference", "low", "high"]
    able = [rules for rules in RULES if set(prompts.relation) <= set(RULES[rules].defines)]
    for rules, pairs, threshold in product(able, ("any", "best"), thresholds):
        row: dict[str, Any] = {"rules": rules, "pairs": pairs, "threshold": threshold}
        try:
            before, after = (
                visor.verdicts(prompts, detections[name], images[name], threshold, pairs, rules)
                for name in (first, last)
            )
        except visor.NothingFound:
            rows.append(row)
            continue
        table = visor.compare(before, after, resamples, seed=seed).query("relation == 'all'").set_index("metric")
        row |= table.loc["VISOR_Cond", change].to_dict()
        rows.append(row | {f"OA_{name}": table.loc["OA", name] for name in ("before", "after")})
    return pd.DataFrame(rows, columns=["rules", "pairs", "threshold", *change, "OA_before", "OA_after"])
