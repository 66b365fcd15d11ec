from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from ..dataset.prompt_sets import NEEDED, check_prompts
from ..models.names import readings
from ..relations import BY_NAME, NAMES, judge, rules_named
from ..store import settings
from ..store.files import say
from ..store.limits import check_loss, limit
from .detections import check_detections, check_ids, positions, scored_images, source_of

THRESHOLD = 0.1  # VISOR's: a detection counts when its score is above it

# Named ways to go from boxes to a verdict; pass one as ``verdicts(..., **VARIANTS["geneval"])``. Thresholds are left
# to the caller: GenEval's own, 0.3, belongs to its detector.
VARIANTS: dict[str, dict[str, str]] = {
    "any-pair": {"pairs": "any", "rules": "visor"},  # VISOR: some pair of boxes satisfies the relation
    "best-pair": {"pairs": "best", "rules": "visor"},  # the box with the highest score of each object
    "geneval": {"pairs": "best", "rules": "geneval"},  # GenEval: highest scores, slack around the axes
}

LIKE: dict[str, dict[str, Any]] = {  # all settings of two published scripts; each threshold belongs to its detector
    "visor": {"threshold": THRESHOLD, **VARIANTS["any-pair"]},
    "geneval": {"threshold": 0.3, **VARIANTS["geneval"]},
}

_CHECK = "Check the detector, the images and the label names; a score of such a run would say nothing about the"


def settings_like(like: str | None, threshold: float, pairs: str, rules: str) -> tuple[float, str, str]:
    """Threshold, pairs and rules: as given, or those of ``LIKE[like]``.

    Raises:
        ValueError: there is no such script.
    """
    if like is None:
        return threshold, pairs, rules
    if like not in LIKE:
        raise ValueError(f"like: unknown value {like!r}; choose one of {', '.join(LIKE)}")
    return LIKE[like]["threshold"], LIKE[like]["pairs"], LIKE[like]["rules"]


class NothingFound(ValueError):
    """No box above the threshold belongs to any prompt's objects."""


def verdicts(
    prompts: pd.DataFrame, detections: pd.DataFrame, images: int | pd.DataFrame | None = None,
    threshold: float = THRESHOLD, pairs: str = "any", rules: str = "visor", nothing: str = "raise",
) -> pd.DataFrame:  # fmt: skip
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
        nothing: what to do if nothing is found: "raise", or "record": score 0 and warn. Use "record" only if the
            detector found something in another model's images (:func:`unfound`).

    Returns:
        Rows in the order of prompts and images. prompt_id, image_index, subject, relation, object; n_subject, n_object
        (boxes above the threshold); both_found, correct, reason; subject_x, _y, _w, _h, _score and object_… of the pair
        that decided (the most confident that satisfies the relation, else the most confident; NaN where not found);
        and a bool column for each of the 14 relations: does it hold for some pair, or for the best? ``attrs``: images
        (their number and where it comes from), never_found (prompted names that never occur as a label), other_boxes
        (how many are of other prompts), nothing_found.

    Raises:
        NothingFound: no detection above the threshold belongs to any prompt's objects. ValueError: no prompt_id in
            common, an image that does not exist, a table that does not tell how many there are, or other bad arguments.
    """
    settings.check("threshold", threshold, "threshold")
    everything = prompts
    prompts = check_prompts(prompts, "prompts", NEEDED, name_files=False)[list(NEEDED)].reset_index(drop=True)
    for field, value, choices in (("pairs", pairs, ("any", "best")), ("nothing", nothing, ("raise", "record"))):
        if value not in choices:
            raise ValueError(f"{field}: unknown value {value!r}; choose one of {', '.join(choices)}")
    defined = rules_named(rules)
    if len(other := prompts[~prompts.relation.isin(defined.defines)]):
        defined.check(other.relation[:1], f"prompts: prompt {other.prompt_id.iloc[0]}")
    table = check_detections(detections, source_of(detections))
    at = positions(table.prompt_id, prompts.prompt_id, source_of(table))
    if not isinstance(images, pd.DataFrame):
        check_ids(everything, table.prompt_id, at, source_of(table), "boxes")
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
    records = judged(records, boxes, pairs, rules)
    records.attrs = about
    return records


def judged(records: pd.DataFrame, boxes: pd.DataFrame, pairs: str, rules: str) -> pd.DataFrame:
    """The records with verdicts, from the boxes that count, sorted by image (a record's row) and falling score.

    ``boxes`` has image, score, x, y, w, h, is_subject and is_object; the rest as in :func:`verdicts`."""
    n, every = len(records), np.arange(len(records))
    wanted = pd.Index(NAMES).get_indexer(pd.Index(records.relation))
    rows = {role: np.flatnonzero(boxes[f"is_{role}"]) for role in ("subject", "object")}
    image, s, o = _pairs(boxes, rows["subject"], rows["object"], n)
    has, first = np.unique(image, return_index=True)  # images with a pair, and their first
    if pairs == "best":  # boxes are sorted by score, so an image's first pair is its best
        image, s, o, first = has, s[first], o[first], np.arange(len(has))
    xywh = boxes[["x", "y", "w", "h"]].to_numpy(np.float64)
    size = boxes[["width", "height"]].to_numpy(np.float64)[s] if {"width", "height"} <= set(boxes) else None
    try:
        holds = judge(xywh[s], xywh[o], rules, size)  # every pair and relation: one call is cheaper than one per image
    except ValueError as error:
        raise ValueError(f"{source_of(boxes)}: {error}") from None
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
    shown_holds[has] = holds[order]  # what else this pair shows, for the reason in words

    columns: dict[str, np.ndarray] = {
        f"n_{role}": np.bincount(boxes.image.to_numpy()[rows[role]], minlength=n) for role in rows
    }
    columns |= {"both_found": np.isin(every, has), "correct": correct}
    values = np.vstack([np.column_stack([xywh, score]), np.full(5, np.nan)])
    for role, row in shown.items():  # row -1, "not found", is the row of NaN
        columns |= {f"{role}_{name}": values[row, i] for i, name in enumerate((*"xywh", "score"))}
    columns |= dict(zip(NAMES, some.T, strict=True))
    records = records.assign(**columns)
    records.insert(list(records).index("correct") + 1, "reason", _reasons(records, shown_holds))
    return records


def _roles(
    prompts: pd.DataFrame, table: pd.DataFrame, at: Int[np.ndarray, "box"]
) -> tuple[Bool[np.ndarray, "box"], Bool[np.ndarray, "box"], dict[str, Any]]:
    """Which boxes are of their prompt's subject, and of its object, and facts about the names for ``attrs``; ``at`` is
    the row of each box's prompt, -1 for a prompt that is not scored."""
    prompted = [prompts[role].astype(str) for role in ("subject", "object")]
    names = pd.Index(pd.unique(pd.concat(prompted)))
    code, labels = pd.factorize(table.label)
    meant = readings(labels, names)
    name = np.array([names.get_loc(meant[label]) if label in meant else -1 for label in labels], int)[code]
    wanted = [names.get_indexer(pd.Index(own)) for own in prompted]
    is_subject, is_object = ((at >= 0) & (name == own[at]) for own in wanted)
    _check_counted_from(prompts.prompt_id, table, at, [np.flatnonzero(name >= 0), name, *wanted])
    never = names.delete(np.unique(name[name >= 0])).tolist()
    unasked = (at >= 0) & (name < 0)
    strange = [labels[i] for i in np.unique(code[unasked])]
    if never and strange:
        reason = f"never among the labels, so never found: {_few(never)} (of {len(names):,} names asked for)"
        cause = f"labels that no prompt asks for: {_few(strange)}. Are they spelt otherwise?"
        most = unasked.sum() > limit("allow_loss") * (at >= 0).sum()  # else a detector that tells all it sees
        allowed = None if most and len(never) < len(names) else 1.0  # all: NothingFound
        check_loss(source_of(table), {reason: len(never)}, len(names), "names", {reason: cause}, allow_loss=allowed)
    return is_subject, is_object, {"never_found": never, "other_boxes": int((at < 0).sum())}


def _check_counted_from(
    ids: pd.Series, table: pd.DataFrame, at: Int[np.ndarray, "box"], names: list[np.ndarray]
) -> None:
    """Raise ValueError where boxes bear the names of the prompts beside theirs, as ids from 1 in place of 0 make them.

    ``names``: the boxes that bear a prompted name, the names (by number) of all boxes, and of all prompts' two things.
    """
    named, name, subject, object = names
    if not (pd.api.types.is_integer_dtype(ids) and pd.api.types.is_integer_dtype(table.prompt_id) and len(named)):
        return

    def fits(row: Int[np.ndarray, "box"]) -> float:
        return float(((row >= 0) & ((name == subject[row]) | (name == object[row])))[named].mean())

    own, index = fits(at), pd.Index(ids)
    for shift, remedy in ((-1, "subtract 1"), (1, "add 1")):
        other = fits(index.get_indexer(table.prompt_id + shift))
        if 1 - own > limit("allow_loss") and other > max(0.5, 2 * own):
            problem = f"{own:.0%} of the boxes bear a name of their own prompt, {other:.0%} one of prompt_id {shift:+d}"
            remedy = f"is prompt_id counted from another number? {remedy} (SR4G_ALLOW_LOSS=1 takes it as it is)"
            raise ValueError(f"{source_of(table)}: {problem}: {remedy}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _nothing_found(table: pd.DataFrame, threshold: float, nothing: str) -> None:
    what = f"{source_of(table)}: the detector found nothing: of {len(table):,} boxes of these prompts, "
    what += f"{(table.score > threshold).sum():,} score above {threshold} and none bears its prompt's object names"
    if nothing == "raise":
        raise NothingFound(f"{what}. {_CHECK} model")
    say(f"{what}. It is scored as what it seems, a model that draws none of them")


def unfound(models: Mapping[str, pd.DataFrame]) -> list[str]:
    """The models in whose images nothing at all was found, from their verdicts.

    Raises:
        NothingFound: it is all of them, which says more of the detector than of the models.
    """
    names = [name for name, records in models.items() if not (records.n_subject + records.n_object).any()]
    if len(names) == len(models):
        raise NothingFound(f"the detector found nothing of any model ({', '.join(names)}). {_CHECK} models")
    return names


def _pairs(
    boxes: pd.DataFrame, subject: np.ndarray, object: np.ndarray, n: int
) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]:
    """Image, subject row and object row of every (subject box, object box) of an image; never a box with itself."""
    image = boxes.image.to_numpy()
    count = np.bincount(image[object], minlength=n)
    start = np.cumsum(count) - count
    times = count[image[subject]]  # a subject box meets every object box of its image, and no other's
    s = np.repeat(subject, times)
    within = np.arange(len(s)) - np.repeat(np.cumsum(times) - times, times)
    o = object[start[image[s]] + within]
    apart = s != o  # where both names are one, a box has both roles
    return image[s[apart]], s[apart], o[apart]


def _first(boxes: pd.DataFrame, rows: np.ndarray, n: int) -> Int[np.ndarray, "image"]:
    """The first of the rows (the highest score) of each image; -1 where it has none."""
    first = np.full(n, -1)
    image, at = np.unique(boxes.image.to_numpy()[rows], return_index=True)
    first[image] = rows[at]
    return first


def _reasons(records: pd.DataFrame, holds: Bool[np.ndarray, "image relation"]) -> list[str]:
    """What was found, and how the pair that decided stands to each other, in words."""
    instead = {name: _instead(name) for name in NAMES}
    names = ["subject", "relation", "object", "n_subject", "n_object", "both_found", "correct"]
    reasons = []
    rows = zip(*(records[column].tolist() for column in names), strict=True)
    for image, (s, name, o, n_s, n_o, both_found, correct) in enumerate(rows):
        phrase = BY_NAME[name].phrase
        if correct:
            reasons.append(f"the {s} is {phrase} the {o}")
        elif both_found:
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
