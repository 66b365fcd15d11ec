"""The rule set ``people``: how far off the axis may a thing stand and still be "left of"? Fitted on half of VSR.

The one free parameter is the half-width of the sector around each axis. It was chosen on the photos of one half of VSR
and is reported on the other half and on generated images, which were not used to choose it.
"""

import hashlib
from collections.abc import Sequence
from itertools import product

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


def off_axis(offset: Float64[np.ndarray, "pair 2"], relation: str) -> Float64[np.ndarray, "pair"]:
    """How many degrees an offset (subject's centre − object's) lies off the direction of a projective relation.

    0: straight in its direction; 90: sideways; 180: the opposite. Equal centres are 180 off every direction.
    """
    towards = np.array(TOWARDS[relation], np.float64)
    along, across = offset @ towards, np.abs(offset @ towards[::-1])
    return np.where((offset == 0).all(axis=1), 180.0, np.degrees(np.arctan2(across, along)))


def angles(judgements: pd.DataFrame, tables: Sequence[BoxTable]) -> pd.DataFrame:
    """The judgements of projective relations with ``angle``, the smallest of any pair of boxes, in degrees off the
    axis, and ``half``: "fitted on" if the first byte of the photo id's sha256 is even, else "held out". Judgements
    without boxes of both names are left out."""
    rows = judgements[judgements.relation.isin(TOWARDS)]
    angle, relation = np.full(len(rows), np.nan), rows.relation.tolist()
    for number, table, s, o in box_pairs(rows, tables):
        subject, object = table.xywh(s), table.xywh(o)
        offset = subject[:, :2] + subject[:, 2:] / 2 - (object[:, :2] + object[:, 2:] / 2)
        angle[number] = off_axis(offset, relation[number]).min()
    odd = [hashlib.sha256(str(id).encode()).digest()[0] % 2 for id in rows.image_id]
    return rows.assign(angle=angle, half=np.array(["fitted on", "held out"])[odd]).dropna(subset="angle")


def curve(angles: pd.DataFrame) -> pd.DataFrame:
    """Agreement with people at every half-width, for each half and group of relations (from :func:`angles`): columns
    half, relations, half_width, n, accuracy, precision, recall, kappa."""
    rows = []
    for half, names in product(("fitted on", "held out"), GROUPS):
        part = angles[(angles.half == half) & angles.relation.isin(GROUPS[names])]
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


def held_out(angles: pd.DataFrame, tables: Sequence[BoxTable], seed: int, resamples: int = 10_000) -> pd.DataFrame:
    """Every rule set on the half of VSR that the width was not fitted on, from :func:`angles`: columns relations (a
    group), rules, n, then accuracy, precision, recall and kappa, each with ``_low`` and ``_high``: 95 % bootstrap over
    judgements."""
    rng, rows = np.random.default_rng(seed), []
    part = angles[angles.half == "held out"]
    for rules in RULES:
        hits = outcomes(judge_like_people(part, tables, rules).to_numpy(bool), part.label.to_numpy(bool))
        for names, relations in GROUPS.items():
            counts = hits[part.relation.isin(relations).to_numpy()].sum(axis=0)
            drawn = rng.multinomial(counts.sum(), counts / counts.sum(), resamples)
            rows.append({"relations": names, "rules": rules, "n": int(counts.sum())} | with_labels(counts, drawn))
    return pd.DataFrame(rows)
