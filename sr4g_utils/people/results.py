"""All tables of notebook 06, computed from the sources or read from the recorded run."""

from pathlib import Path
from typing import Any

import pandas as pd

from ..evaluation import failure_signs, scores
from ..store.run import RECORDED, Run
from . import agreement, fitted_rule, frames, margins, person_score, published, vsr

RESULTS = (
    "people_curve", "people_held_out", "people_agreement", "people_tests", "people_offsets", "people_ceiling",
    "people_checker", "people_margins", "people_scores", "people_differences", "people_order", "people_swapped",
    "people_several", "people_frames", "people_silence",
    "people_would_score", "people_gaps", "people_whose_gain",
)  # fmt: skip


def results(
    run: Run, spatialbench: Any, geneval_people: Any, vsr_judgements: Any, train: Any, val: Any, resamples: int,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:  # fmt: skip
    """The tables of :data:`RESULTS`, and where they come from.

    Args:
        spatialbench, geneval_people, vsr_judgements, train, val: paths, or None to download; or all ``"recorded"``, for
            the results of the profile ``people`` that ship with the project. ``train`` and ``val`` are COCO's boxes.

    Raises:
        ValueError: some sources are "recorded" and others are not.
    """
    sources = (spatialbench, geneval_people, vsr_judgements, train, val)
    if all(source == RECORDED for source in sources):
        records = {name: run.recorded(name, "people") for name in RESULTS}
        tables = {name: table for name, (table, _) in records.items()}
        tables["people_scores"] = tables["people_scores"].astype({"count": "Int64", "of": "Int64"})
        return tables, records[RESULTS[0]][1]
    if RECORDED in sources:
        raise ValueError(
            "spatialbench, geneval_people, vsr, train_annotations, val_annotations: give all of them (a path, or null "
            f"to download), or leave all of them {RECORDED!r}"
        )
    images = {"spatialbench_uc": spatialbench, "geneval_people": geneval_people}
    folders = {kind: published.folder_of(source, kind) for kind, source in images.items()}
    names = {
        kind: [run.read((folder / name).resolve()).name for name in published.FILES[kind]]
        for kind, folder in folders.items()
    }
    judgements, boxes = vsr.sources(run, vsr_judgements, train, val)
    captions = vsr.read_vsr(judgements)
    angles, answers = fitted_rule.angles(captions, boxes), frames.answers(captions, boxes)
    shares = frames.reversed_shares(answers)
    tables = {
        "people_curve": fitted_rule.curve(angles),
        "people_held_out": fitted_rule.held_out(angles, boxes, seed, resamples),
        **_of_images(folders["spatialbench_uc"], resamples, seed),
        "people_frames": shares,
        "people_silence": frames.silence(answers, shares, resamples, seed),
        "people_ceiling": agreement.ceiling(published.read_geneval_people(folders["geneval_people"]), resamples, seed),
    }
    about = {"sources": {**names, "vsr": "VSR, validated"}, "resamples": resamples, "seed": seed}
    return {name: run.result(tables[name], name, **about) for name in RESULTS}, about


def _of_images(folder: Path, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """Agreement and scores on SpatialBench-UC's images."""
    (pictures, boxes), detector = published.read_spatialbench(folder), "Faster R-CNN"
    differences, order = agreement.compared(pictures, boxes, resamples, seed)
    records = agreement.judged(pictures, boxes, detector, "visor", "any")
    by_model = {name: records[records.model == name] for name in pictures.model.unique()}
    seen = {name: boxes[(boxes.model == name) & (boxes.detector == detector)] for name in by_model}
    prompts, floor = pictures.drop_duplicates("prompt_id"), published.FLOORS[detector] - 1e-9
    return {
        "people_agreement": agreement.with_people(pictures, boxes, resamples, seed),
        "people_tests": agreement.tests(pictures, boxes, resamples, seed),
        "people_offsets": agreement.offsets(pictures, boxes, detector),
        "people_checker": pd.DataFrame([agreement.checker(pictures)]),
        "people_margins": margins.margins(pictures, boxes, detector),
        "people_scores": agreement.scores(pictures, boxes),
        "people_differences": differences,
        "people_order": order,
        "people_would_score": person_score.person_scores(pictures, boxes),
        "people_gaps": person_score.person_gaps(pictures, boxes),
        "people_whose_gain": agreement.whose_gain(pictures, boxes, resamples, seed),
        "people_swapped": failure_signs.swapped(by_model, resamples, seed),
        "people_several": failure_signs.several_boxes(prompts, seen, max(scores.AT_LEAST), floor, "visor"),
    }
