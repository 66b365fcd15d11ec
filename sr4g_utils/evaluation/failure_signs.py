"""Failure signatures: what is wrong with a model, or with the detector, as the verdicts on its images show.

:func:`look` asks eight questions and answers each with a number, and in words where it is a bad sign. Two further
checks expose scores that look like obedience:

* Two prompts that ask for contrary layouts ("a dog to the left of a cat", "a cat to the left of a dog"): a model that
  never reads the roles obeys one as often as it fails the other, and obeys *both* in a quarter of cases at most.
* Several boxes of one name, of which "any pair" finds one that obeys.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..relations import BY_NAME, OPPOSITES, SYMMETRIC
from . import scores as evaluation_scores
from . import verdicts
from .statistics import FEWEST, Clusters, interval

KINDS = ("roles swapped", "relation turned", "said from the other side")


def partner(triplet: tuple[str, str, str], kind: str) -> tuple[str, str, str] | None:
    """The triplet that a prompt is compared with, by kind: for "A left of B", "B left of A" (roles swapped, a contrary
    layout), "A right of B" (relation turned, contrary as well) or "B right of A" (said from the other side, the same
    layout). None where there is none: overlapping and separated read the same from both sides."""
    subject, relation, object = triplet
    opposite = BY_NAME[relation].opposite
    if kind == "relation turned":
        return subject, opposite, object
    if kind == "roles swapped":
        return None if relation in SYMMETRIC else (object, relation, subject)
    return object, BY_NAME[relation].converse, subject


def swapped(models: Mapping[str, pd.DataFrame], resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How often a model obeys two prompts that say the contrary, or the same in other words, from verdicts by model.

    Returns:
        A row per model and kind that occurs: pairs (of prompts with images of both objects), one (VISOR_Cond of these
        prompts, percent), both (of one image of each prompt, both with both objects: how often both obey, percent) with
        low and high (95 % bootstrap over pairs of prompts), and independent: what ``both`` would be if obeying the one
        prompt said nothing about obeying the other. Empty if no prompt has a partner.
    """
    rows = []
    for model, records in models.items():
        by_triplet = records[records.both_found].groupby(["subject", "relation", "object"]).correct
        table = by_triplet.agg(["sum", "size"])  # correct, and all, of the images with both objects
        counts = dict(zip(table.index, table.to_numpy(int), strict=True))
        for kind in KINDS:
            others: dict[Any, Any] = {triplet: partner(triplet, kind) for triplet in counts}
            couples = {tuple(sorted((a, b))) for a, b in others.items() if b in counts and b != a}
            if couples:
                couple_counts = np.array([[*counts[a], *counts[b]] for a, b in sorted(couples)])
                rows.append({"model": model, "kind": kind} | _both_ways(couple_counts, resamples, seed))
    return pd.DataFrame(rows, columns=["model", "kind", "pairs", "one", "both", "low", "high", "independent"])


def _both_ways(counts: np.ndarray, resamples: int, seed: int) -> dict[str, float | int]:
    """The numbers of couples of prompts: a row each with correct and all images of the first, and of the second."""
    k1, n1, k2, n2 = counts.T
    sums = np.stack([k1 * k2, n1 * n2, k1 + k2, n1 + n2], axis=1)
    ids = pd.Series(np.arange(len(counts)))
    drawn = Clusters(ids, resamples, seed).sums(ids, sums)
    low, high = interval(100 * drawn[:, 0] / drawn[:, 1])
    obeyed, total, single, images = sums.sum(axis=0)
    independent = 100 * (k1.sum() / n1.sum()) * (k2.sum() / n2.sum())
    return {"pairs": len(counts), "one": 100 * single / images, "both": 100 * obeyed / total, "low": low, "high": high,
            "independent": independent}  # fmt: skip


def several_boxes(
    prompts: pd.DataFrame, detections: Mapping[str, pd.DataFrame], images: int | Mapping[str, pd.DataFrame],
    threshold: float, rules: str,
) -> pd.DataFrame:  # fmt: skip
    """How much "any pair" gives to images in which a name has several boxes.

    Arguments are those of :func:`verdicts.verdicts`; detections and images by the model's name, or a number of images.

    Returns:
        A row per model and kind of image (of those with both objects): boxes ("one of each" or "several"), found
        (images), share (of the images with both objects, percent), any and best (VISOR_Cond of any and of the best
        pair, percent) and gift: any − best, points. Null where there is no such image.
    """
    rows = []
    for model, table in detections.items():
        records_by = {}
        for pairs in ("any", "best"):
            own = images if isinstance(images, int) else images[model]
            records_by[pairs] = verdicts.verdicts(prompts, table, own, threshold, pairs, rules, nothing="record")
        both_found = records_by["any"].both_found
        many = both_found & ((records_by["any"].n_subject > 1) | (records_by["any"].n_object > 1))
        for boxes, chosen in {"one of each": both_found & ~many, "several": many}.items():
            cond = {pairs: 100 * records.correct[chosen].mean() for pairs, records in records_by.items()}
            n, share = int(chosen.sum()), 100 * chosen.sum() / max(both_found.sum(), 1)
            gift = cond["any"] - cond["best"]
            rows.append({"model": model, "boxes": boxes, "found": n, "share": share, **cond, "gift": gift})
    return pd.DataFrame(rows)


NEAR = 10.0  # points from chance, or between two sets of objects, that are little
APART = 30.0  # points between the intervals of two opposites that are much
RARE, OFTEN = 20.0, 50.0  # percent
SAME_BOX = 0.9  # intersection over union of two boxes that are one
Sign = tuple[float, str]  # the number, and what is wrong; no words: nothing is


def look(models: Mapping[str, pd.DataFrame], prompts: pd.DataFrame) -> pd.DataFrame:
    """Signs of failure in every model's verdicts, whose ``prompts`` have prompt_id and objects (the set of objects).

    Returns:
        A row per model and sign: model, sign, number (see ``SIGNS``), raised, and says: what is wrong, in words.
    """
    rows = []
    for model, records in models.items():
        judged = records.merge(prompts[["prompt_id", "objects"]], on="prompt_id", validate="many_to_one")
        judged = judged.assign(iou=_iou(judged))
        for sign, (check, _) in SIGNS.items():
            number, says = check(judged)
            rows.append({"model": model, "sign": sign, "number": number, "raised": bool(says), "says": says})
    return pd.DataFrame(rows)


def _iou(records: pd.DataFrame) -> np.ndarray:
    """The intersection over union of the two boxes that decided."""
    s, o = (records[[f"{role}_{side}" for side in "xywh"]].to_numpy(float) for role in ("subject", "object"))
    corner = np.minimum(s[:, :2] + s[:, 2:], o[:, :2] + o[:, 2:]) - np.maximum(s[:, :2], o[:, :2])
    common = corner.clip(0).prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return common / (s[:, 2:].prod(axis=1) + o[:, 2:].prod(axis=1) - common)


def _cond(records: pd.DataFrame) -> pd.DataFrame:
    """VISOR_Cond by relation, with interval and chance; null ends where there are too few prompts."""
    luck = evaluation_scores.chance(records).rename(columns={"value": "chance"})
    scores = evaluation_scores.scores(records).merge(luck, how="left")
    return scores[scores.metric == "VISOR_Cond"].set_index("relation")


def _ignored(records: pd.DataFrame) -> Sign:
    row, both = _cond(records).loc["all"], 100 * records.both_found.mean()
    says = f"draws both things in {both:.0f} % of its images and places them as if it had not read where: "
    says += f"VISOR_Cond {row.value:.1f}, chance {row.chance:.1f}"
    return row.value - row.chance, says if both > OFTEN and row.high < row.chance + NEAR else ""


def _at_chance(records: pd.DataFrame) -> Sign:
    by_relation = _cond(records).drop("all")
    idle = by_relation.index[by_relation.high < by_relation.chance + NEAR].tolist()
    return float(len(idle)), f"surely less than {NEAR:.0f} points above chance: {', '.join(idle)}" if idle else ""


def _unseen(records: pd.DataFrame) -> Sign:
    if not {"seen", "unseen"} <= set(records.objects):
        return np.nan, ""
    seen, unseen = (_cond(records[records.objects == name]).loc["all"] for name in ("seen", "unseen"))
    gap = seen.value - unseen.value
    says = f"VISOR_Cond is {seen.value:.1f} on seen and {unseen.value:.1f} on unseen objects"
    return gap, says if gap > NEAR and seen.low > unseen.high else ""


def _missing(records: pd.DataFrame) -> Sign:
    roles = [records.assign(name=records[role], found=records[f"n_{role}"] > 0) for role in ("subject", "object")]
    shares = pd.concat(roles).groupby("name").agg(found=("found", "mean"), prompts=("prompt_id", "nunique"))
    shares = 100 * shares.found[shares.prompts >= FEWEST]
    if shares.empty:
        return np.nan, ""
    never = shares.index[(shares < RARE) & (shares.median() > OFTEN)].tolist()
    return shares.min(), f"hardly ever found, while other things are: {', '.join(never)}" if never else ""


def _opposite(records: pd.DataFrame) -> Sign:
    cond = _cond(records)
    pairs = [(a, b) for pair in OPPOSITES for a, b in (pair, pair[::-1]) if a not in SYMMETRIC]
    apart = {(a, b): cond.low[a] - cond.high[b] for a, b in pairs if a in cond.index and b in cond.index}
    apart = {pair: points for pair, points in apart.items() if points == points}
    if not apart:
        return np.nan, ""
    pairs = [pair for pair, points in apart.items() if points > APART]
    drawn = [f"{a} ({cond.value[a]:.0f}) rather than {b} ({cond.value[b]:.0f})" for a, b in pairs]
    return max(apart.values()), f"draws one of two opposites, whatever is asked: {', '.join(drawn)}" if drawn else ""


def _several(records: pd.DataFrame) -> Sign:
    both_found = records[records.both_found]
    share = 100 * ((both_found.n_subject > 1) | (both_found.n_object > 1)).mean()
    return share, f"{share:.0f} % of the images have several boxes of a name" if share > OFTEN else ""


def _judge(records: pd.DataFrame) -> Sign:
    both, same = 100 * records.both_found.mean(), 100 * (records.iou[records.both_found] > SAME_BOX).mean()
    if both < RARE:
        return both, f"both things are found in {both:.0f} % of the images: is the judge blind, or the model?"
    says = f"in {same:.0f} % of the images both names have one and the same box: the judge sees what it is asked for"
    return both, says if same > RARE else ""


def _alike(records: pd.DataFrame) -> Sign:
    sides = [f"{role}_{side}" for role in ("subject", "object") for side in "xywh"]
    groups = records[records.both_found].groupby("prompt_id")[sides]
    several = groups.size() > 1
    spread, size = (groups.max() - groups.min())[several], groups.max()[several]
    if spread.empty:
        return np.nan, ""
    largest = size[["subject_w", "subject_h", "object_w", "object_h"]].max(axis=1)
    share = 100 * (spread.max(axis=1) < 0.1 * largest).mean()
    return share, f"the images of a prompt are alike in {share:.0f} % of the prompts" if share > OFTEN else ""


SIGNS: dict[str, tuple[Callable[[pd.DataFrame], Sign], str]] = {  # the question, and what its number is
    "relations ignored": (_ignored, "VISOR_Cond less chance, points"),
    "relations at chance": (_at_chance, "relations"),
    "worse on unseen objects": (_unseen, "VISOR_Cond seen less unseen, points"),
    "a thing never drawn": (_missing, "images in which the rarest name is found, percent"),
    "one opposite drawn": (_opposite, "points between the intervals of two opposites, at most"),
    "several boxes of a name": (_several, "images, percent"),
    "the judge": (_judge, "images in which both names are found, percent"),
    "images alike": (_alike, "prompts, percent"),
}
