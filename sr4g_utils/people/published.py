"""Published human verdicts on generated images, read into tables: SpatialBench-UC and GenEval."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..dataset.prompt_files import numbered, read_cells, read_text
from ..store.files import cache_folder, download, reported

FILES = {
    "spatialbench_uc": (
        "sd15_promptonly.jsonl", "sd15_boxdiff.jsonl", "sd14_gligen.jsonl", "labels_filled.csv", "sample.csv",
    ),
    "geneval_people": ("geneval_clip.csv", "geneval_sdv2.csv", "geneval_if-xl.csv"),
}  # fmt: skip
SYSTEMS = {"sd15_promptonly": "SD 1.5", "sd15_boxdiff": "SD 1.5 + BoxDiff", "sd14_gligen": "SD 1.4 + GLIGEN"}
DETECTORS = {"fasterrcnn": "Faster R-CNN", "grounding_dino": "Grounding DINO"}
FLOORS = {"Faster R-CNN": 0.5, "Grounding DINO": 0.35}  # boxes below are not published
SIDE = 512.0  # pixels of a generated image
ANSWERS = {"PASS": "true", "FAIL": "false", "UNDECIDABLE": "undecidable"}
RELATION = {"left_of": "left of", "right_of": "right of", "above": "above", "below": "below"}
_PICTURE = ["picture", "model", "prompt_id", "image_index", "subject", "relation", "object", "checker",
            *DETECTORS.values()]  # fmt: skip


def folder_of(source: str | Path | None, kind: str) -> Path:
    """The folder of a source, ``"spatialbench_uc"`` or ``"geneval_people"``: as given, or downloaded if None. Raises
    ValueError if the given folder lacks a file."""
    names = FILES[kind]
    if source is None:
        for name in names:
            download(f"{kind}/{name}")
        return cache_folder() / kind
    if missing := [name for name in names if not (Path(source) / name).is_file()]:
        raise ValueError(f"{source}: {missing[0]} is missing; the folder must hold {', '.join(names)}")
    return Path(source)


def read_spatialbench(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """SpatialBench-UC (arXiv 2601.13462): the images of three systems, a person's verdict on some, and all boxes.

    Returns:
        pictures: a row each with picture (its sample id), model, prompt_id, image_index, subject, relation, object,
        verdict (a person's "true", "false" or "undecidable"; missing where nobody judged), weight (how many of the
        images a judged one stands for), stratum (that it was drawn from), checker (the published checker's verdict)
        and a bool column per detector: was it run on this image?
        boxes: as from :func:`detections.read_detections`, with width, height, picture, model and detector.

    Raises:
        ValueError: a file is missing, or a line is not as published; file, line and field are named.
    """
    folder = folder_of(folder, "spatialbench_uc")
    pictures, boxes = [], []
    for stem, model in SYSTEMS.items():
        path = folder / f"{stem}.jsonl"
        for number, line in numbered(read_text(path)).items():
            try:
                picture, detections = _sample(json.loads(line), model)
            except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not as published ({type(error).__name__}: {error})") from None
            pictures.append(picture)
            boxes += detections
    table = pd.DataFrame(pictures, columns=_PICTURE)
    if (repeated := table.picture[table.picture.duplicated()]).size:
        raise ValueError(f"{folder}: the sample {repeated.iloc[0]} occurs twice")
    labels = _labels(folder / "labels_filled.csv", set(table.picture))
    table.insert(_PICTURE.index("object") + 1, "verdict", table.picture.map(labels))
    for at, (name, column) in enumerate(_design(folder / "sample.csv", table).items()):
        table.insert(_PICTURE.index("object") + 2 + at, name, column)
    names = ["picture", "model", "detector", "prompt_id", "image_index", "label", "score", "x", "y", "w", "h"]
    return table, pd.DataFrame(boxes, columns=names).assign(width=SIDE, height=SIDE)


def _sample(record: Any, model: str) -> tuple[list[Any], list[list[Any]]]:
    """One line of per_sample.jsonl: the image's row and the rows of its boxes."""
    id, prompt, seed = record["sample_id"], record["prompt_id"], int(record["sample_id"].rpartition("_seed")[2])
    ran = {DETECTORS[detector["type"]]: detector["detections"] for detector in record["detectors"].values()}
    boxes = []
    for detector, detections in ran.items():
        for box in detections:
            x1, y1, x2, y2 = map(float, box["box_xyxy"])
            about = [id, model, detector, prompt, seed, box["label"], float(box["score"])]
            boxes.append([*about, x1, y1, x2 - x1, y2 - y1])
    triplet = [record["object_a"], RELATION[record["relation"]], record["object_b"]]
    row = [id, model, prompt, seed, *triplet, ANSWERS[record["verdict_raw"]], *(d in ran for d in DETECTORS.values())]
    return row, boxes


def _labels(path: Path, known: set[str]) -> dict[str, str]:
    """A person's verdicts by sample id."""
    table, files = read_cells(path), ", ".join(FILES["spatialbench_uc"][:3])
    if missing := {"sample_id", "human_verdict"} - set(table):
        raise ValueError(f"{path}: the column {min(missing)!r} is missing")
    for row, id, verdict in table[["sample_id", "human_verdict"]].itertuples():
        if verdict not in ANSWERS:
            raise ValueError(f"{path}, line {row}: human_verdict {verdict!r} is none of {', '.join(ANSWERS)}")
        if id not in known:
            raise ValueError(f"{path}, line {row}: sample_id {id!r} is in none of {files}")
    return dict(zip(table.sample_id, table.human_verdict.map(ANSWERS), strict=True))


def _design(path: Path, pictures: pd.DataFrame) -> pd.DataFrame:
    """Of each judged image ``weight``, how many it stands for (those of its stratum by the judged ones in it), and its
    ``stratum``.

    The 200 were drawn by model, relation, verdict and confidence of the checker (as it was before its calibration:
    ``sample.csv`` holds both), about equally many of each: of GLIGEN's "below" that passed with a confidence up to 0.6
    the only one, of the surest 98 seven.
    """
    sample = read_cells(path)
    if missing := {"sample_id", "checker_verdict_raw", "conf"} - set(sample):
        raise ValueError(f"{path}: the column {min(missing)!r} is missing")
    confidence = pd.to_numeric(sample.conf, errors="coerce")
    drawn = sample.assign(before=sample.checker_verdict_raw.map(ANSWERS), fifth=(5 * confidence // 1).clip(0, 4))
    drawn = drawn.drop_duplicates("sample_id").set_index("sample_id")[["before", "fifth"]]
    judged = pictures.loc[pictures.verdict.notna(), ["picture", "model", "relation"]].join(drawn, "picture")
    sizes = reported("spatialbench_uc_strata")
    counts = judged.groupby(["model", "relation", "before", "fifth"]).size()
    result = pd.DataFrame({"weight": np.nan, "stratum": pd.NA}, pictures.index).astype({"stratum": object})
    for index, row in judged.iterrows():
        held = sizes[row.model][row.relation].get(row.before, [0] * 5)
        if pd.isna(row.fifth) or not (size := held[int(row.fifth)]):
            raise ValueError(f"{path}: {row.picture}: its checker_verdict_raw or conf is missing or not as published")
        result.loc[index, "weight"] = size / counts[row.model, row.relation, row.before, row.fifth]
        result.loc[index, "stratum"] = f"{row.model}, {row.relation}, {row.before}, {int(row.fifth)}"
    return result


MODELS = {"geneval_clip.csv": "CLIP retrieval", "geneval_sdv2.csv": "SD 2.1", "geneval_if-xl.csv": "IF-XL"}
_PROMPT = r"a photo of an? (?P<subject>.+?) (?P<relation>left of|right of|above|below) an? (?P<object>.+)"
_AXIS = {"left of": "x", "right of": "x", "above": "y", "below": "y"}


def read_geneval_people(folder: str | Path) -> pd.DataFrame:
    """GenEval's crowd (arXiv 2310.11513): the answers of five people on each image of a relational prompt.

    People were not asked for a verdict. They counted both things, and where they saw both, they gave the first one's
    position on each axis. Our verdict is "true" if the answer names the prompt's direction, else (or without one)
    "false".

    Returns:
        A row per person and image: model, picture, subject, relation, object, verdict ("true" or "false") and both
        (did this person see both things?).

    Raises:
        ValueError: a file or column is missing; file and column are named.
    """
    folder = folder_of(folder, "geneval_people")
    tables = []
    for name, model in MODELS.items():
        table = read_cells(folder / name)
        counts, where = (["Answer.task-count-0", "Answer.task-count-1"], {a: f"Answer.task-position-{a}" for a in "xy"})
        if missing := {"Input.index", "Input.caption", *counts, *where.values()} - set(table):
            raise ValueError(f"{folder / name}: the column {min(missing)!r} is missing")
        numbers = table[counts].apply(pd.to_numeric, errors="coerce")  # nothing is no thing
        if (wrong := table[counts].ne("") & numbers.isna()).any(axis=None):
            row = wrong.index[wrong.any(axis=1)][0]
            raise ValueError(f"{folder / name}, line {row}: a count is no number: {table.loc[row, counts].to_dict()}")
        table = table.assign(**numbers).join(table["Input.caption"].str.extract(_PROMPT)).dropna(subset="relation")
        across = table.relation.map(_AXIS) == "x"
        position = table[where["x"]].where(across, table[where["y"]])
        verdict = np.where(position == table.relation.str.removesuffix(" of"), "true", "false")
        both = (table[counts] > 0).all(axis=1)
        tables.append(table.assign(model=model, picture=table["Input.index"], verdict=verdict, both=both))
    columns = ["model", "picture", "subject", "relation", "object", "verdict", "both"]
    return pd.concat(tables, ignore_index=True)[columns]
