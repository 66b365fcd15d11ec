"""What notebooks 01, 02 and 05 take from elsewhere: computed from what a profile gives, or else recorded earlier."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from . import analysis, boxes, inputs, people, visor
from .running import files
from .running.run import Run

RECORDED = "recorded"
ENDS = 10  # rows of a long table's head, and of its tail, that are kept as a result

Told = tuple[pd.DataFrame, dict[str, Any]]  # a table, and what it was made from


def rule_disagreement(run: Run, train_annotations: Any) -> Told:
    """:func:`analysis.rule_disagreement` of training annotations (:func:`inputs.annotations`), or "recorded"."""
    if train_annotations == RECORDED:
        return run.recorded("rule_disagreement")
    source = inputs.annotations(run, train_annotations, "train")
    path, _ = run.stage("rule_disagreement.parquet", analysis.rule_disagreement, {"annotations": source})
    return run.result(pd.read_parquet(path), "rule_disagreement", annotations=source.name), {"annotations": source.name}


def human_agreement(
    run: Run, vsr: Any, train_annotations: Any, val_annotations: Any, resamples: int, seed: int
) -> Told:
    """:func:`people.human_agreement` on VSR's judgements (a path, or None to download) and COCO's annotations; the
    recorded one where any of them is "recorded"."""
    if RECORDED in (vsr, train_annotations, val_annotations):
        return run.recorded("human_agreement")
    tables = [
        boxes.read(inputs.annotations(run, source, split), split).without_crowds()
        for source, split in ((train_annotations, "train"), (val_annotations, "val"))
    ]
    judgements = people.read_vsr(run.read(vsr) if vsr else files.download("all_vsr_validated.jsonl"))
    agreement = people.human_agreement(judgements, tables, seed, resamples)
    about = {"judgements": "VSR, all_vsr_validated.jsonl", "seed": seed, "resamples": resamples}
    return run.result(agreement, "human_agreement", **about), about


def reconstruction(run: Run, train_annotations: Any, val_annotations: Any) -> Told:
    """:func:`analysis.reconstruction` of annotations; of the miniature's, which have another size, COCO's recorded."""
    if inputs.is_miniature(train_annotations) or inputs.is_miniature(val_annotations):
        return run.recorded("reconstruction")
    given = {"train": train_annotations, "val": val_annotations}
    sources = {split: inputs.annotations(run, source, split) for split, source in given.items()}
    path, _ = run.stage("reconstruction.parquet", analysis.reconstruction, sources)
    about = {"annotations": ", ".join(dict.fromkeys(source.name for source in sources.values()))}
    return run.result(pd.read_parquet(path), "reconstruction", **about), about


def real(run: Run, train_annotations: Any, table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table of the captions of photos: the given one, kept as the result ``name``; or COCO's recorded one, where the
    given one is of the miniature's pictures. Of a long table, the first and the last ``ENDS`` rows, with their rank."""
    if inputs.is_miniature(train_annotations):
        return run.recorded(name)[0]
    if len(table) > 2 * ENDS:
        ranked = table.assign(rank=range(1, len(table) + 1))[["rank", *table.columns]]
        table = pd.concat([ranked.head(ENDS), ranked.tail(ENDS)])
    return run.result(table, name, annotations=inputs.annotations(run, train_annotations, "train").name)


def quality(run: Run, space: str) -> pd.DataFrame | None:
    """The distances from photos that notebook 04 measured in a feature space; None if it did not."""
    path = run.folder / "artifacts" / "results" / f"quality_{space}.json"
    return pd.DataFrame(files.read_json(run.read(path))["rows"]) if path.exists() else None


def over_rival(
    run: Run, rival: str | None, records: Mapping[str, pd.DataFrame], model: str, resamples: int, seed: int
) -> pd.DataFrame | None:
    """:func:`visor.compare` from a rival among notebook 04's models to ``model``; None if there is no rival."""
    if rival is None:
        return None
    theirs = pd.read_parquet(run.read(f"verdicts_{rival}.parquet"))
    return visor.compare(theirs, records[model], resamples, seed=seed)
