"""Visual Spatial Reasoning: people's judgements of captions of COCO photos, and how well each rule set agrees."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from ..dataset import coco, inputs, triplets
from ..dataset.boxes import BoxTable
from ..dataset.prompt_files import numbered, read_text
from ..evaluation.statistics import outcomes, with_labels
from ..relations import NAMES, RULES
from ..store import files
from ..store.run import RECORDED, Result, Run

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
    """The human judgements of phrases that name our relations: image_id, subject, relation, object, label and frame.

    ``frame`` is the annotator's reference frame as VSR codes it ("0", "1", "2"; "none" where none was noted). The
    published file does not explain the codes. Raises ValueError for a line that is not a VSR record.
    """
    rows = []
    for number, line in numbered(read_text(Path(path))).items():
        try:
            record = json.loads(line)
            if (phrase := record["relation"]) not in VSR_PHRASES:
                continue
            subject, object = record["caption"].removeprefix("The ").rstrip(".").split(f"{phrase} the ")
            frame = record["reference_frame"]
            subject = subject.removesuffix(" ").removesuffix(" is")
            image, frame = int(record["image"].removesuffix(".jpg")), "none" if frame is None else str(int(frame))
            rows.append((image, subject, VSR_PHRASES[phrase], object, bool(record["label"]), frame))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not a VSR judgement ({type(error).__name__}: {error})") from None
    return pd.DataFrame(rows, columns=["image_id", "subject", "relation", "object", "label", "frame"])


def box_pairs(
    judgements: pd.DataFrame, tables: Sequence[BoxTable]
) -> Iterator[tuple[int, BoxTable, Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]]:
    """For each judgement whose photo has boxes of both names: its number, its table, and the rows of every pair there.

    Where a caption names one category twice, the pairs include (box, itself).
    """
    for table in tables:
        position = {int(id): i for i, id in enumerate(table.image_id)}
        edges = np.searchsorted(table.image, np.arange(len(position) + 1))
        names = np.array(table.names)
        names_of_pairs = judgements[["image_id", "subject", "object"]].to_numpy(object)
        for number, (image_id, subject, object_) in enumerate(names_of_pairs):
            if (image := position.get(image_id)) is None:
                continue
            rows = np.arange(edges[image], edges[image + 1])
            name = names[table.category[rows]]
            subjects, objects = rows[name == subject], rows[name == object_]
            if len(subjects) and len(objects):
                s, o = (side.ravel() for side in np.meshgrid(subjects, objects))
                yield number, table, s, o


def judge_like_people(judgements: pd.DataFrame, tables: Sequence[BoxTable], rules: str) -> pd.Series:
    """Whether each judged caption is true under the rules: any pair of boxes of the two names satisfies it.

    Missing (NA) where none of the tables has the photo and a box of either name.
    """
    verdict = np.full(len(judgements), pd.NA, object)
    relation = [NAMES.index(name) for name in judgements.relation]
    for number, table, s, o in box_pairs(judgements, tables):
        verdict[number] = bool(triplets.holds(table, s, o, rules)[:, relation[number]].any())
    return pd.Series(verdict, index=judgements.index, dtype="boolean")


def human_agreement(
    judgements: pd.DataFrame, tables: Sequence[BoxTable], seed: int, resamples: int = 10_000
) -> pd.DataFrame:
    """Agreement of every rule set with people, per relation and reference frame ("all" for all).

    Columns: relation, rules, frame, n, then accuracy, precision, recall and kappa, each with ``_low`` and ``_high``:
    the 95 % percentile bootstrap over judgements (a bootstrap of the rows is a multinomial draw of their 2 × 2 table).
    """
    rng, rows = np.random.default_rng(seed), []
    for rules in RULES:
        captions = judgements.assign(verdict=judge_like_people(judgements, tables, rules)).dropna(subset="verdict")
        for relation in dict.fromkeys(name for name in VSR_PHRASES.values() if name in RULES[rules].defines):
            whole = captions[captions.relation == relation]
            for frame in ("all", *sorted(whole.frame.unique())):
                part = whole if frame == "all" else whole[whole.frame == frame]
                counts = outcomes(part.verdict.to_numpy(bool), part.label.to_numpy(bool)).sum(axis=0)
                drawn = rng.multinomial(len(part), counts / max(len(part), 1), resamples)
                row = {"relation": relation, "rules": rules, "frame": frame, "n": len(part)}
                rows.append(row | with_labels(counts, drawn))
    return pd.DataFrame(rows)


def at_prevalence(agreement: pd.DataFrame, disagreement: pd.DataFrame) -> pd.DataFrame:
    """The precision of a rule set on COCO's own pairs, of which fewer than half are true, from its numbers on VSR.

    Half of VSR's captions are true by design, so its precision is not that of our captions. Of all ordered pairs of
    COCO boxes the rules call a share q true (``pairs``, counted). If people would call a share π of them true, then
    q = recall·π + (false alarms)·(1 − π), hence π (Rogan and Gladen 1978), and the precision is recall·π / q.
    **Assumption**: recall and false alarms are the same on COCO's pairs as on VSR's captions.

    Args:
        agreement, disagreement: from :func:`human_agreement` and :func:`counts.write_rule_disagreement`.

    Returns:
        Columns relation, rules, accuracy, kappa, precision (VSR's), pairs (q), prevalence (π) and
        precision_at_prevalence; the last two null where the assumption cannot hold (π outside 0 to 1).
    """
    columns = ["relation", "all_pairs", "both", "rules", "only"]
    sides = (disagreement[["relation", "pairs", "both", own, f"only_{own}"]] for own in ("a", "b"))
    shares = pd.concat(side.set_axis(columns, axis=1) for side in sides).drop_duplicates(["relation", "rules"])
    table = agreement[agreement.frame == "all"].merge(shares, on=["relation", "rules"])
    # misses and false positives make up the errors: 1 − accuracy = positives·(1 − recall) + positives·wrong
    wrong = table.recall * (1 - table.precision) / table.precision  # false positives per positive
    positives = (1 - table.accuracy) / (1 - table.recall + wrong)
    false_alarms = positives * wrong / (1 - positives)
    q = (table.both + table.only) / table.all_pairs
    prevalence = ((q - false_alarms) / (table.recall - false_alarms)).where(lambda share: (share >= 0) & (share <= 1))
    table = table.assign(pairs=q, prevalence=prevalence, precision_at_prevalence=table.recall * prevalence / q)
    kept = ["relation", "rules", "accuracy", "kappa", "precision", "pairs", "prevalence", "precision_at_prevalence"]
    return table[kept]


def sources(run: Run, judgements: Any, train: Any, val: Any) -> tuple[Path, list[BoxTable]]:
    """The file of VSR's judgements (a path, or None to download) and the boxes of COCO's two splits."""
    paths = {split: inputs.annotations(run, source, split) for split, source in (("train", train), ("val", val))}
    tables = [coco.read(run.read(path.resolve()), split).without_crowds() for split, path in paths.items()]
    return run.read(judgements) if judgements else files.download("all_vsr_validated.jsonl"), tables


def human_agreement_result(
    run: Run, vsr: Any, train_annotations: Any, val_annotations: Any, resamples: int, seed: int
) -> Result:
    """:func:`human_agreement` of :func:`sources`; the recorded one where any of them is "recorded"."""

    def make() -> Result:
        path, tables = sources(run, vsr, train_annotations, val_annotations)
        about = {"judgements": "VSR, all_vsr_validated.jsonl", "seed": seed, "resamples": resamples}
        return human_agreement(read_vsr(path), tables, seed, resamples), about

    return run.recorded_or("human_agreement", "coco", RECORDED in (vsr, train_annotations, val_annotations), make)
