"""Whose left? How often people mean the object's own, by kind of object, and whether a rule set should be silent."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..dataset.boxes import COCO_CATEGORIES, BoxTable
from ..evaluation.statistics import Clusters, agreement, interval, outcomes, ratio
from ..relations import BY_NAME, PEOPLE_HALF_WIDTH
from .fitted_rule import angles

SIDES = ("left of", "right of")
FRONT = ("furniture", "electronic", "appliance")
KINDS = ("person", "animal", "vehicle", "with a front", "without")  # of reference objects
LEAST = 0.02  # of kappa, below which silence is no help


def kind_of(name: str) -> str:
    """The kind of a reference object, by its supercategory in COCO."""
    above = next((category.supercategory for category in COCO_CATEGORIES if category.name == name), "")
    return above if above in KINDS else "with a front" if above in FRONT else "without"


def answers(judgements: pd.DataFrame, tables: Sequence[BoxTable]) -> pd.DataFrame:
    """VSR's captions with left and right (:func:`vsr.read_vsr`) of photos with boxes of both names.

    Returns:
        Their columns, with ``kind`` of the reference object, ``holds`` (by the rule set people), ``half``, and
        ``reversed``: whether the answer is that of the mirrored photo; null where the boxes lie on neither side.
    """
    rows = judgements[judgements.relation.isin(SIDES)]
    captions = angles(rows, tables)
    mirrored = angles(rows.assign(relation=[BY_NAME[name].opposite for name in rows.relation]), tables)
    holds, other = (part.angle.to_numpy() < PEOPLE_HALF_WIDTH for part in (captions, mirrored))
    turned = pd.Series(captions.label.to_numpy(bool) != holds, captions.index, dtype="boolean").where(holds != other)
    return captions.assign(kind=captions.object.map(kind_of), holds=holds, reversed=turned)


def reversed_shares(table: pd.DataFrame) -> pd.DataFrame:
    """How often people answer as in a mirrored image, of :func:`answers`.

    Returns:
        A row for each half and kind: half, kind, captions, reversed, percent, low and high (95 %, over photos), and
        ``silent``: whether a rule set should be silent about this kind, by the half that was fitted on.
    """
    rows = []
    for half, part in table.dropna(subset="reversed").groupby("half"):
        for kind in KINDS:
            photos = part[part.kind == kind].groupby("image_id").reversed.agg(["sum", "size"]).to_numpy(float)
            n, total = photos.sum(0) if len(photos) else (0, 0)
            (low,), (high,) = ratio(photos[:, :1], photos[:, 1:])
            row = {"half": half, "kind": kind, "captions": int(total), "reversed": int(n)}
            rows.append(row | {"percent": 100 * n / total if total else np.nan, "low": 100 * low, "high": 100 * high})
    result = pd.DataFrame(rows)
    fitted = result[result.half == "fitted on"].set_index("kind")
    silent = fitted.index[fitted.low > fitted.high["without"]]
    return result.assign(silent=result.kind.isin(list(silent)))


def silence(table: pd.DataFrame, shares: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """What a rule set gains that is silent about left and right of some kinds, on the half that was held out.

    Returns:
        Rows whose ``of`` is "all captions", "where it speaks" and "difference": captions, percent (of all), kappa, low
        and high (95 %, bootstrap over photos), and the verdict of the protocol in the last.
    """
    part = table[table.half == "held out"]
    speaks = ~part.kind.isin(shares.kind[shares.silent]).to_numpy()
    hits = outcomes(part.holds.to_numpy(bool), part.label.to_numpy(bool)).astype(float)
    counts = np.concatenate([hits, hits * speaks[:, None]], axis=1)  # four of all, and of those where it speaks
    sums = Clusters(part.image_id, resamples, seed).sums(part.image_id, counts)
    kappa, samples = (agreement(sum.reshape(*sum.shape[:-1], 2, 4))[..., 3] for sum in (counts.sum(0), sums))
    rows = []
    for name, n, value, sample in (
        ("all captions", len(part), kappa[0], samples[:, 0]),
        ("where it speaks", int(speaks.sum()), kappa[1], samples[:, 1]),
        ("difference", int(len(part) - speaks.sum()), kappa[1] - kappa[0], samples[:, 1] - samples[:, 0]),
    ):
        low, high = interval(sample)
        row = {"of": name, "captions": n, "percent": 100 * n / len(part), "kappa": value, "low": low, "high": high}
        rows.append(row)
    helps = "helps" if rows[2]["low"] > 0 else "does not help" if rows[2]["high"] < LEAST else "undecided"
    return pd.DataFrame(rows).assign(verdict=["", "", "no kind is silent" if speaks.all() else helps])
