"""Failure signatures: scores that look like obedience and are not. From the verdicts of any model.

* Two prompts that ask for contrary layouts ("a dog to the left of a cat", "a cat to the left of a dog"): a model that
  never reads the roles obeys one as often as it fails the other, and obeys *both* in a quarter of cases at most.
* Several boxes of one name, of which "any pair" finds one that obeys.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from . import visor
from .agreement import Clusters, interval
from .relations import BY_NAME, SYMMETRIC

KINDS = ("roles swapped", "relation turned", "said from the other side")


def partner(triplet: tuple[str, str, str], kind: str) -> tuple[str, str, str] | None:
    """The triplet that a prompt is compared with, by kind; None where there is none.

    "roles swapped": "B left of A" for "A left of B", a contrary layout; "relation turned": "A right of B", contrary as
    well; "said from the other side": "B right of A", the same layout. Overlapping and separated read the same from both
    sides.
    """
    subject, relation, object = triplet
    opposite = BY_NAME[relation].opposite
    if kind == "relation turned":
        return subject, opposite, object
    if kind == "roles swapped":
        return None if relation in SYMMETRIC else (object, relation, subject)
    return object, BY_NAME[relation].converse, subject


def swapped(models: Mapping[str, pd.DataFrame], resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How often a model obeys two prompts that say the contrary, or the same in other words.

    Args:
        models: verdicts (:func:`visor.verdicts`) by the model's name.

    Returns:
        A row per model and kind that occurs: pairs (of prompts with images of both objects), one (VISOR_Cond of these
        prompts, percent), both (of one image of each prompt, both with both objects: how often both obey, percent) with
        low and high (95 % bootstrap over pairs of prompts), and independent: what ``both`` would be if obeying the one
        prompt said nothing about obeying the other. Empty if no prompt has a partner.
    """
    rows = []
    for model, records in models.items():
        counts: dict[tuple[str, str, str], list[int]] = {}  # correct, and all, of the images with both objects
        found = records[records.both_found]
        for *triplet, correct in found[["subject", "relation", "object", "correct"]].itertuples(index=False):
            count = counts.setdefault(tuple(triplet), [0, 0])
            count[0] += bool(correct)
            count[1] += 1
        for kind in KINDS:
            couples = {
                tuple(sorted((triplet, other)))
                for triplet in counts
                if (other := partner(triplet, kind)) in counts and other != triplet
            }
            if couples:
                each = np.array([[*counts[a], *counts[b]] for a, b in sorted(couples)])
                rows.append({"model": model, "kind": kind} | _both_ways(each, resamples, seed))
    columns = ["model", "kind", "pairs", "one", "both", "low", "high", "independent"]
    return pd.DataFrame(rows, columns=columns)


def _both_ways(each: np.ndarray, resamples: int, seed: int) -> dict[str, float | int]:
    """The numbers of couples of prompts: a row each with correct and all images of the first, and of the second."""
    k1, n1, k2, n2 = each.T
    sums = np.stack([k1 * k2, n1 * n2, k1 + k2, n1 + n2], axis=1)
    ids = pd.Series(np.arange(len(each)))
    drawn = Clusters(ids, resamples, seed).sums(ids, sums)
    low, high = interval(100 * drawn[:, 0] / drawn[:, 1])
    obeyed, of, one, images = sums.sum(axis=0)
    independent = 100 * (k1.sum() / n1.sum()) * (k2.sum() / n2.sum())
    return {"pairs": len(each), "one": 100 * one / images, "both": 100 * obeyed / of, "low": low, "high": high,
            "independent": independent}  # fmt: skip


def several_boxes(
    prompts: pd.DataFrame,
    detections: Mapping[str, pd.DataFrame],
    images: int | Mapping[str, pd.DataFrame],
    threshold: float,
    rules: str,
) -> pd.DataFrame:
    """How much "any pair" gives to images in which a name has several boxes.

    Args:
        prompts, threshold, rules: as for :func:`visor.verdicts`.
        detections, images: by the model's name; images as there, or their number per prompt for all models.

    Returns:
        A row per model and kind of image (of those with both objects): boxes ("one of each" or "several"), found
        (images), share (of the images with both objects, percent), any and best (VISOR_Cond of any and of the best
        pair, percent) and gift: any − best, points. Null where there is no such image.
    """
    rows = []
    for model, table in detections.items():
        given = images if isinstance(images, int) else images[model]
        told = {
            pairs: visor.verdicts(prompts, table, given, threshold, pairs, rules, nothing="record")
            for pairs in ("any", "best")
        }
        found = told["any"].both_found
        many = found & ((told["any"].n_subject > 1) | (told["any"].n_object > 1))
        for boxes, of in {"one of each": found & ~many, "several": many}.items():
            cond = {pairs: 100 * records.correct[of].mean() for pairs, records in told.items()}
            n, share = int(of.sum()), 100 * of.sum() / max(found.sum(), 1)
            gift = cond["any"] - cond["best"]
            rows.append({"model": model, "boxes": boxes, "found": n, "share": share, **cond, "gift": gift})
    return pd.DataFrame(rows)
