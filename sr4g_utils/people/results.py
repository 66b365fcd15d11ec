"""Everything that notebook 06 tells, computed from the sources or taken from the recorded run."""

from pathlib import Path
from typing import Any

import pandas as pd

from ..dataset import coco, inputs
from ..evaluation import failure_signs, scores
from ..store import files
from ..store.run import Run
from . import agreement, fitted_rule, margins, published, vsr

RESULTS = (
    "people_curve", "people_held_out", "people_agreement", "people_tests", "people_offsets", "people_ceiling",
    "people_checker", "people_margins", "people_scores", "people_differences", "people_order", "people_swapped",
    "people_several",
)  # fmt: skip
RECORDED = "recorded"


def results(
    run: Run,
    spatialbench: Any,
    geneval_people: Any,
    vsr_judgements: Any,
    train_annotations: Any,
    val_annotations: Any,
    resamples: int,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables of :data:`RESULTS`, and where they come from. All sources are given (or None: downloaded), or all are
    ``"recorded"``: the results of the profile ``people``, shipped with the project.

    Raises:
        ValueError: some sources are "recorded" and others are not.
    """
    asked = (spatialbench, geneval_people, vsr_judgements, train_annotations, val_annotations)
    if all(source == RECORDED for source in asked):
        found = {name: run.recorded(name, "people") for name in RESULTS}
        tables = {name: table for name, (table, _) in found.items()}
        tables["people_scores"] = tables["people_scores"].astype({"count": "Int64", "of": "Int64"})
        return tables, found[RESULTS[0]][1]
    if RECORDED in asked:
        raise ValueError(
            "spatialbench, geneval_people, vsr, train_annotations, val_annotations: give all of them (a path, or null "
            f"to download), or leave all of them {RECORDED!r}"
        )
    folders = {
        kind: published.folder_of(source, kind)
        for kind, source in (("spatialbench_uc", spatialbench), ("geneval_people", geneval_people))
    }
    read = {
        kind: [run.read((folder / name).resolve()) for name in published.FILES[kind]]
        for kind, folder in folders.items()
    }
    made = {
        **_of_photos(run, vsr_judgements, train_annotations, val_annotations, resamples, seed),
        **_of_pictures(folders["spatialbench_uc"], resamples, seed),
        "people_ceiling": agreement.ceiling(published.read_geneval_people(folders["geneval_people"]), resamples, seed),
    }
    named = {kind: [path.name for path in paths] for kind, paths in read.items()}
    about = {"sources": {**named, "vsr": "VSR, validated"}, "resamples": resamples, "seed": seed}
    return {name: run.result(made[name], name, **about) for name in RESULTS}, about


def _of_photos(run: Run, judgements: Any, train: Any, val: Any, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """The fit of the sectors, and every rule set on the half of VSR that it did not see."""
    tables = [
        coco.read(run.read(Path(inputs.annotations(run, source, split)).resolve()), split).without_crowds()
        for source, split in ((train, "train"), (val, "val"))
    ]
    told = vsr.read_vsr(run.read(judgements) if judgements else files.download("all_vsr_validated.jsonl"))
    angles = fitted_rule.angles(told, tables)
    return {
        "people_curve": fitted_rule.curve(angles),
        "people_held_out": fitted_rule.held_out(angles, tables, seed, resamples),
    }


def _of_pictures(folder: Path, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """Agreement and scores on SpatialBench-UC's pictures."""
    pictures, found = published.read_spatialbench(folder)
    detector = "Faster R-CNN"
    differences, order = agreement.compared(pictures, found, resamples, seed)
    told = agreement.judged(pictures, found, detector, "visor", "any")
    models = list(pictures.model.unique())
    prompts = pictures.drop_duplicates("prompt_id")
    by_model = {name: found[(found.model == name) & (found.detector == detector)] for name in models}
    return {
        "people_agreement": agreement.with_people(pictures, found, resamples, seed),
        "people_tests": agreement.tests(pictures, found, resamples, seed),
        "people_offsets": agreement.offsets(pictures, found, detector),
        "people_checker": pd.DataFrame([agreement.checker(pictures)]),
        "people_margins": margins.margins(pictures, found, detector),
        "people_scores": agreement.scores(pictures, found, resamples, seed),
        "people_differences": differences,
        "people_order": order,
        "people_swapped": failure_signs.swapped({name: told[told.model == name] for name in models}, resamples, seed),
        "people_several": failure_signs.several_boxes(
            prompts, by_model, max(scores.AT_LEAST), published.FLOORS[detector] - 1e-9, "visor"
        ),
    }
