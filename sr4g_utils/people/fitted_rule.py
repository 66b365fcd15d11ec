"""The rule set ``people``: how far off the axis may a thing stand and still be "left of"? Fitted on half of VSR.

The one free parameter is the half-width of the sector around each axis. It is chosen on the photos of one half of VSR
and reported on the other half and on generated pictures, which it never saw.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..dataset.boxes import BoxTable
from ..evaluation.statistics import AGREEMENT, agreement, outcomes, with_labels
from ..relations import RULES, family
from .vsr import box_pairs, judge_like_people

HALF_WIDTHS = np.arange(30.0, 91.0)  # degrees that were tried
TOWARDS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # y grows downwards
GROUPS = {"left, right": ("left of", "right of"), "above, below": ("above", "below"), "all four": family("projective")}


def centres(xywh: Float64[np.ndarray, "box 4"]) -> Float64[np.ndarray, "box 2"]:
    """The boxes' centres."""
    return xywh[:, :2] + xywh[:, 2:] / 2


def off_axis(offset: Float64[np.ndarray, "pair 2"], relation: str) -> Float64[np.ndarray, "pair"]:
    """How many degrees an offset (subject's centre − object's) lies off the direction of a projective relation.

    0: straight in its direction; 90: sideways; 180: the opposite. Equal centres are 180 off every direction.
    """
    towards = np.array(TOWARDS[relation], np.float64)
    along, across = offset @ towards, np.abs(offset @ towards[::-1])
    return np.where((offset == 0).all(axis=1), 180.0, np.degrees(np.arctan2(across, along)))


def in_fit_half(image_id: int) -> bool:
    """Whether a photo belongs to the half that the width was fitted on: the first byte of its id's sha256 is even."""
    return hashlib.sha256(str(image_id).encode()).digest()[0] % 2 == 0


def angles(judgements: pd.DataFrame, tables: Sequence[BoxTable]) -> pd.DataFrame:
    """The judgements of projective relations with ``angle``, the smallest of any pair of boxes, in degrees off the
    axis, and ``half`` ("fitted on" or "held out"). Judgements without boxes of both names are left out."""
    rows = judgements[judgements.relation.isin(TOWARDS)]
    angle, relation = np.full(len(rows), np.nan), rows.relation.tolist()
    for number, table, s, o in box_pairs(rows, tables):
        offset = centres(table.xywh(s)) - centres(table.xywh(o))
        angle[number] = off_axis(offset, relation[number]).min()
    half = rows.image_id.map(in_fit_half).map({True: "fitted on", False: "held out"})
    return rows.assign(angle=angle, half=half).dropna(subset="angle")


def curve(told: pd.DataFrame) -> pd.DataFrame:
    """Agreement with people at every half-width, for each half and group of relations.

    Args:
        told: of :func:`angles`.

    Returns:
        Columns half, relations, half_width, n, accuracy, precision, recall, kappa.
    """
    rows = []
    for half, names in [(half, names) for half in ("fitted on", "held out") for names in GROUPS]:
        part = told[(told.half == half) & told.relation.isin(GROUPS[names])]
        label, angle = part.label.to_numpy(bool), part.angle.to_numpy(np.float64)
        for width in HALF_WIDTHS:
            counts = outcomes(angle < width, label).sum(axis=0)
            measures = dict(zip(AGREEMENT, agreement(counts), strict=True))
            rows.append({"half": half, "relations": names, "half_width": width, "n": len(part), **measures})
    return pd.DataFrame(rows)


def fit(curve: pd.DataFrame) -> float:
    """The half-width, in degrees, with the highest kappa on the half to fit on, all four relations together; of equal
    ones the narrowest. ``relations.PEOPLE_HALF_WIDTH`` is what this gives on VSR and COCO 2017."""
    rows = curve[(curve.half == "fitted on") & (curve.relations == "all four")]
    return float(rows.half_width.to_numpy()[rows.kappa.to_numpy().argmax()])


def held_out(told: pd.DataFrame, tables: Sequence[BoxTable], seed: int, resamples: int = 10_000) -> pd.DataFrame:
    """Every rule set on the half of VSR that the width was not fitted on.

    Args:
        told: of :func:`angles`.

    Returns:
        Columns relations (a group), rules, n, then accuracy, precision, recall and kappa, each with ``_low`` and
        ``_high``: 95 % bootstrap over judgements.
    """
    rng, rows = np.random.default_rng(seed), []
    part = told[told.half == "held out"]
    for rules in RULES:
        verdict = judge_like_people(part, tables, rules).to_numpy(bool)
        for names, relations in GROUPS.items():
            of = part.relation.isin(relations).to_numpy()
            counts = outcomes(verdict[of], part.label.to_numpy(bool)[of]).sum(axis=0)
            drawn = rng.multinomial(counts.sum(), counts / counts.sum(), resamples)
            row = {"relations": names, "rules": rules, "n": int(counts.sum())}
            rows.append(row | with_labels(counts, drawn))
    return pd.DataFrame(rows)
