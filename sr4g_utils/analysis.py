"""What the numbers say: agreement of the rules with people, and where rule sets disagree."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int

from . import boxes, dataset
from .boxes import BoxTable
from .relations import NAMES, RULES
from .runs import atomic

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
        for relation in dict.fromkeys(VSR_PHRASES.values()):
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


def rule_disagreement(path: str | Path, annotations: str | Path, split: str = "train") -> None:
    """How often two rule sets judge a pair of COCO boxes differently (an artifact: written to ``path`` as Parquet).

    One row per relation and two rule sets ``a`` and ``b``: pairs (ordered pairs of boxes judged), both, only_a, only_b.
    """
    table = boxes.read(annotations, split).without_crowds()
    both, only = np.zeros((len(RULES), len(RULES), 14), np.int64), np.zeros((len(RULES), len(RULES), 14), np.int64)
    n = 0
    for _, subject, object, _ in dataset.pairs(table):
        verdicts = [dataset.holds(table, subject, object, rules) for rules in RULES]
        n += int((subject != object).sum())
        for i, j in combinations(range(len(RULES)), 2):
            both[i, j] += (verdicts[i] & verdicts[j]).sum(0)
            only[i, j] += (verdicts[i] & ~verdicts[j]).sum(0)
            only[j, i] += (verdicts[j] & ~verdicts[i]).sum(0)
    rows = [
        {
            "relation": relation, "a": RULES[i], "b": RULES[j], "pairs": n, "both": both[i, j, r], "only_a": only[i, j, r],
            "only_b": only[j, i, r],
        }
        for i, j in combinations(range(len(RULES)), 2)
        for r, relation in enumerate(NAMES)
    ]  # fmt: skip
    with atomic(path) as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)


# sg2im's own reading of COCO (sg2im/data/coco.py): objects of at least 2 % of the image, images with 3 to 8 of them
SG2IM_AREA, SG2IM_OBJECTS = 0.02, (3, 8)


def reconstruction(path: str | Path, annotations: str | Path, split: str = "train") -> None:
    """Which reading of the paper gives 9.9 million captions? (an artifact: written to ``path`` as Parquet)

    One row per rule set, box filter, and kind of thing counted: box pairs in a relation, distinct triplets per image,
    or distinct (subject, relation, object); each over all categories and over different categories only.
    """
    table = boxes.read(annotations, split).without_crowds()
    large = table.w * table.h >= SG2IM_AREA * (table.width * table.height)[table.image]
    per_image = np.bincount(table.image[large], minlength=len(table.image_id))[table.image]
    filtered = large & (per_image >= SG2IM_OBJECTS[0]) & (per_image <= SG2IM_OBJECTS[1])
    rows = []
    for boxes_kept, part in {"all boxes": table, "sg2im's filter": table.rows(filtered)}.items():
        if not len(part):
            continue
        for rules in RULES:
            counted = np.zeros((3, 2), np.int64)
            seen = np.zeros((len(table.names), len(table.names), 14), bool)
            for groups, counts in dataset.count_pairs(part, rules):
                different = groups[:, 1] != groups[:, 2]
                for k, kept in enumerate((slice(None), different)):
                    counted[0, k] += counts[kept].sum()
                    counted[1, k] += np.count_nonzero(counts[kept])
                np.logical_or.at(seen, (groups[:, 1], groups[:, 2]), counts > 0)
            counted[2] = seen.sum(), seen.sum() - seen[np.arange(len(seen)), np.arange(len(seen))].sum()
            for i, kind in enumerate(("box pairs", "triplets per image", "distinct triplets")):
                for k, categories in enumerate(("all", "different")):
                    rows.append(
                        {
                            "rules": rules,
                            "boxes": boxes_kept,
                            "counted": kind,
                            "categories": categories,
                            "n": counted[i, k],
                        }
                    )
    with atomic(path) as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)
