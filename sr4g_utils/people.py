"""What people say of pictures, and how well each rule set agrees with them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int

from . import dataset
from .boxes import BoxTable
from .relations import NAMES, RULES

# The phrases of Visual Spatial Reasoning (Liu, Emerson and Collier 2023, arXiv 2205.00363) that name one of ours.
VSR_PHRASES: dict[str, str] = {
    phrase: relation
    for relation, phrases in {
        "left of": ("at the left side of", "left of"),
        "right of": ("at the right side of", "right of"),
        "above": ("above", "over", "on top of"),
        "below": ("below", "beneath", "under"),
        "inside": ("inside", "within", "in", "enclosed by"),
        "surrounding": ("surrounding", "contains", "around"),
        "separated": ("away from", "far away from", "far from", "detached from"),
        "overlapping": ("touching",),
    }.items()
    for phrase in phrases
}


def read_vsr(path: str | Path) -> pd.DataFrame:
    """The human judgements whose phrase is one of ours: image_id, subject, relation, object, label (bool) and frame.

    ``frame`` is the annotator's reference frame as VSR codes it ("0", "1", "2"; "none" where none was noted). The
    published file does not explain the codes.

    Raises:
        ValueError: a line is not a VSR record.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            if (phrase := record["relation"]) not in VSR_PHRASES:
                continue
            subject, object = record["caption"].removeprefix("The ").rstrip(".").split(f"{phrase} the ")
            frame = record["reference_frame"]
            rows.append(
                {
                    "image_id": int(record["image"].removesuffix(".jpg")),
                    "subject": subject.removesuffix(" ").removesuffix(" is"),
                    "relation": VSR_PHRASES[phrase],
                    "object": object,
                    "label": bool(record["label"]),
                    "frame": "none" if frame is None else str(int(frame)),
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a VSR judgement ({type(error).__name__}: {error})") from None
    return pd.DataFrame(rows, columns=["image_id", "subject", "relation", "object", "label", "frame"])


def judge_like_people(judgements: pd.DataFrame, tables: Sequence[BoxTable], rules: str) -> pd.Series:
    """Whether the rules call each judged caption true: some pair of boxes of the two names satisfies it, as in VISOR.

    Missing (NA) where the image or a box of either name is in none of the tables.
    """
    verdict = pd.Series(pd.NA, index=judgements.index, dtype="boolean")
    for table in tables:
        position = {int(id): i for i, id in enumerate(table.image_id)}
        edges = np.searchsorted(table.image, np.arange(len(position) + 1))
        names = np.array(table.names)
        for row in judgements.itertuples():
            if (image := position.get(row.image_id)) is None:
                continue
            rows = np.arange(edges[image], edges[image + 1])
            name = names[table.category[rows]]
            subjects, objects = rows[name == row.subject], rows[name == row.object]
            if len(subjects) and len(objects):
                s, o = (side.ravel() for side in np.meshgrid(subjects, objects))
                relation = NAMES.index(row.relation)
                verdict[row.Index] = bool(dataset.holds(table, s, o, rules)[:, relation].any())
    return verdict


AGREEMENT = ("accuracy", "precision", "recall", "kappa")


def agreement(counts: Int[np.ndarray, "*sample 4"]) -> Float64[np.ndarray, "*sample 4"]:
    """Accuracy, precision, recall and Cohen's kappa from true and false positives, false and true negatives.

    NaN where a measure is not defined (no positive verdict, no positive label, or no chance of disagreement).
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    n = tp + fp + fn + tn
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (tp + tn) / n
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
        return np.stack([accuracy, tp / (tp + fp), tp / (tp + fn), (accuracy - chance) / (1 - chance)], axis=-1)


def human_agreement(
    judgements: pd.DataFrame, tables: Sequence[BoxTable], seed: int, resamples: int = 10_000
) -> pd.DataFrame:
    """Agreement of every rule set with people, per relation and reference frame ("all" for all).

    Columns: relation, rules, frame, n, then accuracy, precision, recall and kappa, each with ``_low`` and ``_high``:
    the 95 % percentile bootstrap over judgements (a bootstrap of the rows is a multinomial draw of their 2 × 2 table).
    """
    rng = np.random.default_rng(seed)
    rows = []
    for rules in RULES:
        told = judgements.assign(verdict=judge_like_people(judgements, tables, rules)).dropna(subset="verdict")
        for relation in dict.fromkeys(name for name in VSR_PHRASES.values() if name in RULES[rules].defines):
            of_relation = told[told.relation == relation]
            for frame in ("all", *sorted(of_relation.frame.unique())):
                part = of_relation if frame == "all" else of_relation[of_relation.frame == frame]
                verdict, label = part.verdict.to_numpy(bool), part.label.to_numpy(bool)
                table = np.array(
                    [
                        (v & w).sum()
                        for v, w in ((verdict, label), (verdict, ~label), (~verdict, label), (~verdict, ~label))
                    ]
                )
                samples = agreement(rng.multinomial(len(part), table / max(len(part), 1), resamples))
                row: dict[str, object] = {"relation": relation, "rules": rules, "frame": frame, "n": len(part)}
                for i, (name, value) in enumerate(zip(AGREEMENT, agreement(table), strict=True)):
                    defined = samples[~np.isnan(samples[:, i]), i]
                    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
                    row |= {name: value, f"{name}_low": low, f"{name}_high": high}
                rows.append(row)
    return pd.DataFrame(rows)
