"""Detections × prompts → one verdict per image → OA, VISOR, VISOR_Cond and VISOR_1..4 with intervals. No torch here.

The metric is VISOR's (Gokhale et al. 2022, arXiv 2212.10015, section 4; ``visor.py`` of microsoft/VISOR):

* OA: share of images in which both objects are found;
* VISOR: share of images in which both are found and the relation holds;
* VISOR_Cond: share of the images with both objects in which the relation holds;
* VISOR_n: share of prompts with at least n correct images.

Detections are stored above a low floor and know nothing of thresholds; the threshold is applied here, and so is the
rule that turns boxes into relations (:mod:`sr4g_utils.relations`). All scores are percentages, as published. **A score
whose denominator is zero is null (NaN), never 0**: no image with both objects says nothing about relations.

The sampling unit is the prompt: its images share a caption, so they are resampled together.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .detections import check_detections
from .prompts import NEEDED, check_prompts
from .relations import BY_NAME, NAMES, judge, rules_named

THRESHOLD = 0.1  # VISOR's: a detection counts when its score is above it
IMAGES = 4  # per prompt, in VISOR's protocol
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
    images: int = IMAGES,
    threshold: float = THRESHOLD,
    pairs: str = "any",
    rules: str = "visor",
) -> pd.DataFrame:
    """One record per image: was the prompt obeyed, from which boxes, and why (not).

    Args:
        prompts: columns prompt_id, subject, relation, object. They choose what is scored: detections of other prompts
            are left aside.
        detections: see :func:`detections.read_detections`; with ``rules="sstd"`` also width and height of the image in
            pixels.
        images: images per prompt, numbered from 0. One without any detection counts as an image in which nothing was
            found.
        threshold: detections whose score is above it count.
        pairs: "any": the relation must hold for some pair of boxes (VISOR); "best": for the pair of highest scores.
        rules: a name in ``RULES`` (:mod:`sr4g_utils.relations`).

    Returns:
        Rows in the order of prompts and images. prompt_id, image_index, subject, relation, object; n_subject, n_object
        (boxes above the threshold); both_found, correct, reason; subject_x, _y, _w, _h, _score and object_… of the pair
        that decided (the most confident that satisfies the relation, else the most confident; NaN where not found);
        and a bool column for each of the 14 relations: does it hold for some pair, or for the best?

    Raises:
        NothingFound: no detection above the threshold belongs to any prompt's objects.
        ValueError: an image_index that is not below ``images``, bad tables, or unknown arguments.
    """
    prompts = check_prompts(prompts, "prompts", NEEDED)[list(NEEDED)].reset_index(drop=True)
    _check_choice("pairs", pairs, ("any", "best"))
    defined = rules_named(rules)
    if len(other := prompts[~prompts.relation.isin(defined.defines)]):
        defined.check(other.relation[:1], f"prompts: prompt {other.prompt_id.iloc[0]}")
    boxes = _of_prompts(prompts, check_detections(detections), images, threshold)
    records = prompts.loc[np.repeat(np.arange(len(prompts)), images)].reset_index(drop=True)
    records.insert(1, "image_index", np.tile(np.arange(images), len(prompts)))
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


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}: unknown value {value!r}; choose one of {', '.join(choices)}")


def _of_prompts(prompts: pd.DataFrame, table: pd.DataFrame, images: int, threshold: float) -> pd.DataFrame:
    """The boxes that count, with their image's number, sorted by image and falling score."""
    at = pd.Index(prompts.prompt_id).get_indexer(table.prompt_id)
    ours = at >= 0
    if (beyond := table[ours & (table.image_index >= images)]).size:
        raise ValueError(
            f"detections: prompt {beyond.prompt_id.iloc[0]} has image_index {beyond.image_index.iloc[0]}, but "
            f"images={images} per prompt are scored; pass the number that was generated"
        )
    keep = ours & (table.score.to_numpy() > threshold)
    boxes, at = table[keep], at[keep]
    label = boxes.label.to_numpy(object)
    is_subject, is_object = (label == prompts[role].to_numpy(object)[at] for role in ("subject", "object"))
    if not (is_subject | is_object).any():
        raise NothingFound(
            f"the detector found nothing: of {int(ours.sum()):,} boxes of these prompts, {len(boxes):,} score above "
            f"{threshold} and none bears its prompt's object names. Check the detector, the images, the label names "
            "and the prompt ids; a score of such a run would say nothing about the model"
        )
    boxes = boxes.assign(
        image=at * images + boxes.image_index.to_numpy(np.int64), is_subject=is_subject, is_object=is_object
    )[is_subject | is_object]
    return boxes.iloc[np.lexsort((-boxes.score.to_numpy(), boxes.image.to_numpy()))].reset_index(drop=True)


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


def scores(records: pd.DataFrame, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """OA, VISOR, VISOR_Cond and VISOR_1..4, over all prompts and per relation, with bootstrap intervals.

    Args:
        records: of :func:`verdicts` or :func:`detections.read_visor_results`.
        resamples: how often the prompts are drawn again, with replacement; 0 leaves the intervals null.
        level: of the percentile interval.
        seed: of the resampling.

    Returns:
        Columns relation ("all", then those that occur), metric, value, low, high (percentages), count, of (the fraction
        whose percentage the value is) and prompts. Null where ``of`` is 0, and VISOR_n where no prompt has n images.
        Resamples in which a denominator is 0 are left out of its interval.
    """
    statistics, relation, _ = _per_prompt(records)
    rows = []
    for name, of in _groups(relation):
        totals = statistics[of].sum(axis=0)
        values = _metrics(totals, _measurable(statistics[of]))
        low, high = _interval(_metrics(_resample(statistics[of], resamples, seed)), values, level)
        rows.append(_frame(name, totals, value=values, low=low, high=high))
    return pd.concat(rows, ignore_index=True)


def compare(
    before: pd.DataFrame, after: pd.DataFrame, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """The change from one model to another on the same prompts, paired by prompt.

    The interval resamples prompts, both models' images of a prompt together. The test exchanges the two models' images
    of a prompt at random, as if the models did not differ; p is two-sided and never below 1 / (resamples + 1).

    Returns:
        Columns relation, metric, before, after, difference, low, high (percentage points) and p; null as in
        :func:`scores`.

    Raises:
        ValueError: the two are not verdicts on the same prompts.
    """
    (a, relation, ids), (b, relation_b, ids_b) = _per_prompt(before), _per_prompt(after)
    if len(ids) != len(ids_b) or (ids != ids_b).any() or (relation != relation_b).any():
        only = next(iter(set(ids.tolist()) ^ set(ids_b.tolist())), "none, but their relations differ")
        raise ValueError(f"compare: both models must be scored on the same prompts; prompt in one only: {only}")
    rows = []
    for name, of in _groups(relation):
        both = np.concatenate([a[of], b[of]], axis=1)
        measurable = _measurable(a[of]) & _measurable(b[of])
        values = [_metrics(statistics[of].sum(axis=0), measurable) for statistics in (a, b)]
        difference = values[1] - values[0]
        low, high = _interval(_difference(_resample(both, resamples, seed)), difference, level)
        swapped = np.abs(_difference(_exchange(both, resamples, seed)))
        # 1e-9: equal differences must count as equal however their sums were rounded
        extreme = (swapped >= np.abs(difference) - 1e-9).sum(axis=0)
        p = np.where(np.isnan(difference), np.nan, (1 + extreme) / (1 + np.isfinite(swapped).sum(axis=0)))
        columns = {"before": values[0], "after": values[1], "difference": difference, "low": low, "high": high, "p": p}
        rows.append(pd.DataFrame({"relation": name, "metric": METRICS, **columns}))
    return pd.concat(rows, ignore_index=True)


def draws(
    models: Sequence[pd.DataFrame], resamples: int = 10_000, seed: int = 0
) -> dict[str, Float[np.ndarray, "model resample metric"]]:
    """The metrics of several models on the same prompts, drawn again and again, for statistics of one's own.

    Resample 0 is what was observed. Prompts are drawn with replacement, all models' images of a prompt together, and
    independently for "all" and for each relation that occurs: the keys. The last axis is ``METRICS``.

    Raises:
        ValueError: the models are not scored on the same prompts.
    """
    parts = [_per_prompt(records) for records in models]
    _, relation, ids = parts[0]
    if not all(np.array_equal(ids, part[2]) and np.array_equal(relation, part[1]) for part in parts):
        raise ValueError("draws: all models must be scored on the same prompts")
    statistics = np.concatenate([part[0] for part in parts], axis=1)
    drawn = {}
    for i, (name, of) in enumerate(_groups(relation)):
        sums = np.concatenate([statistics[of].sum(axis=0)[None], _resample(statistics[of], resamples, [seed, i])])
        drawn[name] = _metrics(sums.reshape(len(sums), len(models), -1)).swapaxes(0, 1)
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
    half = types.shape[1] // 2
    return (count - swapped) @ types + swapped @ np.roll(types, half, axis=1)


def _difference(sums: np.ndarray) -> Float[np.ndarray, "resample metric"]:
    half = sums.shape[1] // 2
    return _metrics(sums[:, half:]) - _metrics(sums[:, :half])


def _interval(
    drawn: Float[np.ndarray, "resample metric"], values: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each metric; null where its value is."""
    low, high = np.full((2, len(METRICS)), np.nan)
    for i in np.flatnonzero(~np.isnan(values)) if len(drawn) else []:
        low[i], high[i] = np.nanquantile(drawn[:, i], [(1 - level) / 2, (1 + level) / 2])
    return low, high


def _frame(name: str, totals: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    counts = {"count": totals[_ABOVE], "of": totals[_BELOW], "prompts": totals[_AT["prompts"]]}
    return pd.DataFrame({"relation": name, "metric": METRICS, **columns, **counts})
