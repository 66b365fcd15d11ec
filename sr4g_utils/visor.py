"""Detections × prompts → one verdict per image → OA, VISOR, VISOR_Cond and VISOR_1..4 with intervals. No torch here.

The metric is VISOR's (Gokhale et al. 2022, arXiv 2212.10015, section 4; ``visor.py`` of microsoft/VISOR):

* OA: share of images in which both objects are found;
* VISOR: share of images in which both are found and the relation holds;
* VISOR_Cond: share of the images with both objects in which the relation holds;
* VISOR_n: share of prompts with at least n correct images.

Detections are stored above a low floor and know nothing of thresholds; the threshold is applied here, and so is the
rule that turns boxes into relations (:mod:`sr4g_utils.relations`). All scores are percentages, as published. **A score
whose denominator is zero is null (NaN), never 0**: no image with both objects says nothing about relations.

The sampling unit is the prompt: its images share a caption (:mod:`sr4g_utils.intervals`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from . import intervals
from .detections import check_detections, positions, readings, say, scored_images, source_of
from .prompts import NEEDED, check_prompts
from .relations import BY_NAME, NAMES, judge, rules_named

THRESHOLD = 0.1  # VISOR's: a detection counts when its score is above it
AT_LEAST = (1, 2, 3, 4)  # images of a prompt, in VISOR_1 to VISOR_4

# What each metric divides by what. The counts are of images, but for those of prompts with at least n correct ones.
FORMULAS: dict[str, tuple[str, str]] = {
    "OA": ("both_found", "images"),
    "VISOR": ("correct", "images"),
    "VISOR_Cond": ("correct", "both_found"),
    **{f"VISOR_{n}": (f"at_least_{n}", "prompts") for n in AT_LEAST},
}
METRICS = tuple(FORMULAS)
STATISTICS = ("prompts", "images", "both_found", "correct", *(f"at_least_{n}" for n in AT_LEAST))  # of a prompt
# Named ways to go from boxes to a verdict; pass one as ``verdicts(..., **VARIANTS["geneval"])``. Thresholds are left
# to the caller: GenEval's own, 0.3, belongs to its detector.
VARIANTS: dict[str, dict[str, str]] = {
    "any-pair": {"pairs": "any", "rules": "visor"},  # VISOR: some pair of boxes satisfies the relation
    "best-pair": {"pairs": "best", "rules": "visor"},  # the box with the highest score of each object
    "geneval": {"pairs": "best", "rules": "geneval"},  # GenEval: highest scores, slack around the axes
}

# ----------------------------------------------------------------------------------------------------------- verdicts


class NothingFound(ValueError):
    """No box above the threshold belongs to any prompt's objects."""


def verdicts(
    prompts: pd.DataFrame,
    detections: pd.DataFrame,
    images: int | pd.DataFrame | None = None,
    threshold: float = THRESHOLD,
    pairs: str = "any",
    rules: str = "visor",
    nothing: str = "raise",
) -> pd.DataFrame:
    """One record per image: was the prompt obeyed, from which boxes, and why (not).

    Args:
        prompts: columns prompt_id, subject, relation, object. They choose what is scored: detections of other prompts
            are left aside.
        detections: see :func:`detections.read_detections`; with ``rules="sstd"`` also width and height of the image in
            pixels.
        images: what exists, since boxes know nothing of an image in which nothing was found: a number of images per
            prompt, or a table with a row of prompt_id and image_index for each (as of :func:`images.list_images`;
            prompts without one are left out). None takes the number from the largest image_index and says so.
        threshold: detections whose score is above it count.
        pairs: "any": the relation must hold for some pair of boxes (VISOR); "best": for the pair of highest scores.
        rules: a name in ``RULES`` (:mod:`sr4g_utils.relations`).
        nothing: "raise", or "record": a model of which nothing is found has a score of 0, which is said. The caller
            vouches for the detector, which found something of another model (:func:`unfound`).

    Returns:
        Rows in the order of prompts and images. prompt_id, image_index, subject, relation, object; n_subject, n_object
        (boxes above the threshold); both_found, correct, reason; subject_x, _y, _w, _h, _score and object_… of the pair
        that decided (the most confident that satisfies the relation, else the most confident; NaN where not found);
        and a bool column for each of the 14 relations: does it hold for some pair, or for the best? ``attrs``: images
        (how many, and who says so), never_found (names asked for that are no label of the whole table), other_boxes
        (of prompts that are not asked), nothing_found.

    Raises:
        NothingFound: no detection above the threshold belongs to any prompt's objects.
        ValueError: no prompt_id in common, an image that does not exist, a table that does not tell how many images
            there are, bad tables, or unknown arguments.
    """
    prompts = check_prompts(prompts, "prompts", NEEDED, name_files=False)[list(NEEDED)].reset_index(drop=True)
    for field, value, choices in (("pairs", pairs, ("any", "best")), ("nothing", nothing, ("raise", "record"))):
        if value not in choices:
            raise ValueError(f"{field}: unknown value {value!r}; choose one of {', '.join(choices)}")
    defined = rules_named(rules)
    if len(other := prompts[~prompts.relation.isin(defined.defines)]):
        defined.check(other.relation[:1], f"prompts: prompt {other.prompt_id.iloc[0]}")
    table = check_detections(detections, source_of(detections))
    at = positions(table.prompt_id, prompts.prompt_id, source_of(table))
    is_subject, is_object, about = _roles(prompts, table, at)
    keep = (is_subject | is_object) & (table.score.to_numpy() > threshold)
    about["nothing_found"] = not keep.any()
    if about["nothing_found"]:
        _nothing_found(table[at >= 0], threshold, nothing)
    prompt, number, image, about["images"] = scored_images(prompts, table, at, images)
    boxes = table[keep].assign(image=image[keep], is_subject=is_subject[keep], is_object=is_object[keep])
    boxes = boxes.iloc[np.lexsort((-boxes.score.to_numpy(), boxes.image.to_numpy()))].reset_index(drop=True)
    records = prompts.iloc[prompt].reset_index(drop=True)
    records.insert(1, "image_index", number)
    records = _judged(records, boxes, pairs, rules)
    records.attrs = about
    return records


def _judged(records: pd.DataFrame, boxes: pd.DataFrame, pairs: str, rules: str) -> pd.DataFrame:
    """The records with verdicts, from the boxes that count, sorted by image (a record's row) and falling score."""
    n, every = len(records), np.arange(len(records))
    wanted = pd.Index(NAMES).get_indexer(pd.Index(records.relation))

    rows = {role: np.flatnonzero(boxes[f"is_{role}"]) for role in ("subject", "object")}
    image, s, o = _pairs(boxes, rows["subject"], rows["object"], n)
    has, first = np.unique(image, return_index=True)  # images with a pair, and their first
    if pairs == "best":  # boxes are sorted by score, so an image's first pair is its best
        image, s, o, first = has, s[first], o[first], np.arange(len(has))
    holds = _holds(boxes, s, o, rules)
    some = np.zeros((n, len(NAMES)), bool)
    if len(has):
        some[has] = np.logical_or.reduceat(holds, first)
    correct = some[every, wanted]

    # The pair to show: of those that satisfy the relation, else of all, the one with the highest product of scores.
    score = boxes.score.to_numpy(np.float64)
    order = np.lexsort((-score[s] * score[o], ~holds[np.arange(len(s)), wanted[image]], image))[first]
    shown = {role: _first(boxes, rows[role], n) for role in rows}
    shown["subject"][has], shown["object"][has] = s[order], o[order]
    shown_holds = np.zeros((n, len(NAMES)), bool)
    shown_holds[has] = holds[order]

    columns: dict[str, np.ndarray] = {
        f"n_{role}": np.bincount(boxes.image.to_numpy()[rows[role]], minlength=n) for role in rows
    }
    columns |= {"both_found": np.isin(every, has), "correct": correct}
    values = np.vstack([boxes[["x", "y", "w", "h", "score"]].to_numpy(np.float64), np.full(5, np.nan)])
    for role, row in shown.items():  # row -1, "not found", is the row of NaN
        columns |= {f"{role}_{name}": values[row, i] for i, name in enumerate(("x", "y", "w", "h", "score"))}
    columns |= dict(zip(NAMES, some.T, strict=True))
    records = records.assign(**columns)
    records.insert(list(records).index("correct") + 1, "reason", _reasons(records, shown_holds))
    return records


Of = Bool[np.ndarray, "box"]


def _roles(prompts: pd.DataFrame, table: pd.DataFrame, at: Int[np.ndarray, "box"]) -> tuple[Of, Of, dict[str, Any]]:
    """Which boxes are of their prompt's subject, and of its object, and what is to be told of the names.

    ``at``: the row of each box's prompt, -1 for a prompt that is not asked.
    """
    asked = [prompts[role].astype(str) for role in ("subject", "object")]
    names = pd.Index(pd.unique(pd.concat(asked)))
    code, labels = pd.factorize(table.label)
    meant = readings(labels, names)
    name = np.array([names.get_loc(meant[label]) if label in meant else -1 for label in labels], int)[code]
    is_subject, is_object = ((at >= 0) & (name == names.get_indexer(pd.Index(each))[at]) for each in asked)
    never = names.delete(np.unique(name[name >= 0])).tolist()
    strange = [labels[i] for i in np.unique(code[(at >= 0) & (name < 0)])]
    if never and strange:
        say(
            f"verdicts: {_few(never)} (of {len(names):,} names asked for) are never among the labels, so never found; "
            f"labels that no prompt asks for: {_few(strange)}. Are they spelt otherwise?"
        )
    return is_subject, is_object, {"never_found": never, "other_boxes": int((at < 0).sum())}


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _nothing_found(table: pd.DataFrame, threshold: float, nothing: str) -> None:
    found = (
        f"{source_of(table)}: the detector found nothing: of {len(table):,} boxes of these prompts, "
        f"{(table.score > threshold).sum():,} score above {threshold} and none bears its prompt's object names"
    )
    if nothing == "raise":
        raise NothingFound(
            f"{found}. Check the detector, the images and the label names; a score of such a run would say nothing "
            "about the model"
        )
    say(f"{found}. It is scored as what it seems, a model that draws none of them")


def unfound(models: Mapping[str, pd.DataFrame]) -> list[str]:
    """The models in whose images nothing at all was found, from their verdicts.

    Raises:
        NothingFound: that is all of them, which says more of the detector than of the models.
    """
    names = [name for name, records in models.items() if not (records.n_subject + records.n_object).any()]
    if len(names) == len(models):
        raise NothingFound(
            f"the detector found nothing of any model ({', '.join(names)}). Check the detector, the images and the "
            "label names; a score of such a run would say nothing about the models"
        )
    return names


def _pairs(
    boxes: pd.DataFrame, subject: np.ndarray, object: np.ndarray, n: int
) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]:
    """Image, subject row and object row of every (subject box, object box) of an image; never a box with itself."""
    image = boxes.image.to_numpy()
    count = np.bincount(image[object], minlength=n)
    start = np.cumsum(count) - count
    times = count[image[subject]]
    s = np.repeat(subject, times)
    within = np.arange(len(s)) - np.repeat(np.cumsum(times) - times, times)
    o = object[start[image[s]] + within]
    apart = s != o
    return image[s[apart]], s[apart], o[apart]


def _first(boxes: pd.DataFrame, rows: np.ndarray, n: int) -> Int[np.ndarray, "image"]:
    """The first of the rows (the highest score) of each image; -1 where it has none."""
    first = np.full(n, -1)
    image, at = np.unique(boxes.image.to_numpy()[rows], return_index=True)
    first[image] = rows[at]
    return first


def _holds(boxes: pd.DataFrame, s: np.ndarray, o: np.ndarray, rules: str) -> Bool[np.ndarray, "pair relation"]:
    """All 14 relations of subject rows to object rows."""
    xywh = boxes[["x", "y", "w", "h"]].to_numpy(np.float64)
    size = boxes[["width", "height"]].to_numpy(np.float64)[s] if {"width", "height"} <= set(boxes) else None
    return judge(xywh[s], xywh[o], rules, size)


def _reasons(records: pd.DataFrame, holds: Bool[np.ndarray, "image relation"]) -> list[str]:
    """What was found, and how the pair that decided stands to each other, in words."""
    instead = {name: _instead(name) for name in NAMES}
    names = ["subject", "relation", "object", "n_subject", "n_object", "both_found", "correct"]
    reasons = []
    for image, (s, name, o, n_s, n_o, found, correct) in enumerate(
        zip(*(records[column].tolist() for column in names), strict=True)
    ):
        phrase = BY_NAME[name].phrase
        if correct:
            reasons.append(f"the {s} is {phrase} the {o}")
        elif found:
            but = [BY_NAME[NAMES[other]].phrase for other in instead[name] if holds[image, other]][:1]
            reasons.append(f"the {s} is not {phrase} the {o}" + "".join(f" but {phrase} it" for phrase in but))
        elif s == o:
            reasons.append(f"only one {s} found" if n_s else f"no {s} found")
        elif n_s or n_o:
            reasons.append(f"no {o if n_s else s} found")
        else:
            reasons.append(f"neither {s} nor {o} found")
    return reasons


def _instead(name: str) -> list[int]:
    """What to mention when a relation fails: its opposite first, then the rest of its family."""
    relation = BY_NAME[name]
    family = [i for i, other in enumerate(NAMES) if BY_NAME[other].family == relation.family and other != name]
    return sorted(family, key=lambda i: NAMES[i] != relation.opposite)


# ------------------------------------------------------------------------------------------------------------- scores

_AT = {name: i for i, name in enumerate(STATISTICS)}
_ABOVE = [_AT[above] for above, _ in FORMULAS.values()]
_BELOW = [_AT[below] for _, below in FORMULAS.values()]


def scores(records: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """OA, VISOR, VISOR_Cond and VISOR_1..4, over all prompts and per relation, with intervals.

    Args:
        records: of :func:`verdicts` or :func:`detections.read_visor_results`; each image counts, even where prompts
            have unequal numbers of them.
        level: of the interval (:func:`intervals.ratio`, the cluster being the prompt).

    Returns:
        Columns relation ("all", then those that occur), metric, value, low, high (percentages), count, of (the fraction
        whose percentage the value is) and prompts. Null where ``of`` is 0, and VISOR_n where no prompt has n images;
        low and high also where fewer than ``intervals.FEWEST`` prompts have something to divide by.
    """
    statistics, relation, _ = _per_prompt(records)
    rows = []
    for name, of in _groups(relation):
        totals, measurable = statistics[of].sum(axis=0), _measurable(statistics[of])
        low, high = _percent(intervals.ratio(*_fractions(statistics[of]), level), measurable)
        rows.append(_frame(name, totals, value=_metrics(totals, measurable), low=low, high=high))
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
    asked = [part.groupby("prompt_id").relation.first() for part in parts]
    for other in asked[1:]:
        if (differ := asked[0] != other).any():
            id = differ.index[differ][0]
            raise ValueError(f"compare: prompt {id} is {asked[0][id]!r} in one model and {other[id]!r} in another")
    return parts


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    *,
    per_relation: bool = True,
) -> pd.DataFrame:
    """The change from one model to another on the images that both have (:func:`common`), paired by prompt.

    The interval is :func:`intervals.difference`, the cluster being the prompt. The test exchanges the two models'
    images of a prompt at random, ``resamples`` times, as if the models did not differ; p is two-sided and never below
    1 / (resamples + 1). Without ``per_relation``, over all prompts only.

    Returns:
        Columns relation, metric, before, after, difference, low, high (percentage points), p and images (those that
        both have); null as in :func:`scores`. ``attrs["left_aside"]``: how many images only one of the two has.

    Raises:
        ValueError: the two have no image in common, or a prompt asks for something else in each.
    """
    parts = common([before, after])
    (a, relation, _), (b, _, _) = (_per_prompt(part) for part in parts)
    rows = []
    for name, of in _groups(relation)[: None if per_relation else 1]:
        measurable = _measurable(a[of]) & _measurable(b[of])
        values = [_metrics(statistics[of].sum(axis=0), measurable) for statistics in (a, b)]
        difference = values[1] - values[0]
        low, high = _percent(intervals.difference(_fractions(a[of]), _fractions(b[of]), level), measurable)
        swapped = np.abs(_difference(_exchange(np.concatenate([a[of], b[of]], axis=1), resamples, seed)))
        # 1e-9: equal differences must count as equal however their sums were rounded
        extreme = (swapped >= np.abs(difference) - 1e-9).sum(axis=0)
        p = np.where(np.isnan(difference), np.nan, (1 + extreme) / (1 + np.isfinite(swapped).sum(axis=0)))
        columns = {"before": values[0], "after": values[1], "difference": difference, "low": low, "high": high, "p": p}
        images = int(a[of, _AT["images"]].sum())
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
    for i, (name, of) in enumerate(_groups(parts[0][1])):
        sums = np.concatenate([statistics[of].sum(axis=0)[None], _resample(statistics[of], resamples, [seed, i])])
        drawn[name] = _metrics(sums.reshape(len(sums), len(models), -1)).swapaxes(0, 1)
        few = [~intervals.enough(_fractions(part[0][of])[1]) for part in parts]
        drawn[name][:, 1:][np.broadcast_to(np.array(few)[:, None], drawn[name][:, 1:].shape)] = np.nan
    return drawn


def chance(records: pd.DataFrame) -> pd.DataFrame:
    """What the same images score against permuted prompts: a relation drawn from the prompt set, the objects kept.

    The objects stay, because open-vocabulary detections hold only the names that were asked for; so OA does not change,
    and what is left of VISOR_Cond is what the layouts and the any-pair rule give away. The result is the mean over all
    permutations, in closed form: no chance enters. Per relation, it is the share of all images that obey that relation.

    Returns:
        Columns relation, metric, value; the rows of :func:`scores`.
    """
    statistics, relation, _ = _per_prompt(records)
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
    rows = [("all", mean)] + [(name, totals[NAMES.index(name)]) for name in NAMES if share[name]]
    return pd.concat(
        [pd.DataFrame({"relation": n, "metric": METRICS, "value": _metrics(t, measurable)}) for n, t in rows],
        ignore_index=True,
    )


def _per_prompt(
    records: pd.DataFrame,
) -> tuple[Int[np.ndarray, "prompt statistic"], np.ndarray, np.ndarray]:
    """Sufficient statistics, relation and id of each prompt, sorted by id."""
    if not len(records):
        raise ValueError("records: the table is empty, so there is nothing to score")
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
    return statistics, relation.to_numpy(object), relation.index.to_numpy()


def _groups(relation: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """All prompts, then those of each relation that occurs."""
    each = [(name, relation == name) for name in NAMES]
    return [("all", np.ones(len(relation), bool)), *((name, of) for name, of in each if of.any())]


def _measurable(statistics: Int[np.ndarray, "prompt statistic"]) -> Bool[np.ndarray, "metric"]:
    """VISOR_n says nothing where no prompt has n images."""
    most = statistics[:, _AT["images"]].max()
    needed = {f"VISOR_{n}": n for n in AT_LEAST}
    return np.array([most >= needed.get(name, 1) for name in METRICS])


def _metrics(totals: np.ndarray, measurable: np.ndarray | bool = True) -> Float[np.ndarray, "... metric"]:
    """(..., statistic) sums to (..., metric) percentages; NaN for 0/0 and where not measurable."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 100.0 * totals[..., _ABOVE] / totals[..., _BELOW]
    return np.where(measurable, values, np.nan)


def _fractions(statistics: Int[np.ndarray, "prompt statistic"]) -> tuple[intervals.Counts, intervals.Counts]:
    """What is above and below each metric's line, prompt by prompt."""
    return statistics[:, _ABOVE].astype(np.float64), statistics[:, _BELOW].astype(np.float64)


def _percent(ends: tuple[intervals.Ratios, intervals.Ratios], measurable: np.ndarray) -> list[intervals.Ratios]:
    return [np.where(measurable, 100 * end, np.nan) for end in ends]


def _types(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows and how many prompts have each.

    Prompts with equal statistics are interchangeable, and with 4 images there are only 15 kinds of prompts (225 for a
    pair of models). So resampling prompts is, exactly, one multinomial draw over the kinds.
    """
    types, count = np.unique(statistics, axis=0, return_counts=True)
    return types.astype(np.float64), count


def _resample(statistics: np.ndarray, resamples: int, seed: int | list[int]) -> Float[np.ndarray, "resample statistic"]:
    """Summed statistics of as many prompts, drawn with replacement."""
    types, count = _types(statistics)
    drawn = np.random.default_rng(seed).multinomial(count.sum(), count / count.sum(), size=resamples)
    return drawn @ types


def _exchange(both: np.ndarray, resamples: int, seed: int) -> Float[np.ndarray, "resample statistic"]:
    """Summed statistics of two models after each prompt's results were exchanged with probability one half."""
    types, count = _types(both)
    swapped = np.random.default_rng(seed + 1).binomial(count, 0.5, size=(resamples, len(count)))
    exchanged = np.roll(types, types.shape[1] // 2, axis=1)
    return count @ types + swapped.astype(np.float64) @ (exchanged - types)  # whole numbers: exact, and floats are fast


def _difference(sums: np.ndarray) -> Float[np.ndarray, "resample metric"]:
    half = sums.shape[1] // 2
    return _metrics(sums[:, half:]) - _metrics(sums[:, :half])


def _frame(name: str, totals: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    counts = {"count": totals[_ABOVE], "of": totals[_BELOW], "prompts": totals[_AT["prompts"]]}
    return pd.DataFrame({"relation": name, "metric": METRICS, **columns, **counts})
