"""Tables of detected boxes: read and checked, ours, others', and VISOR's published results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .prompts import NEEDED, check_prompts
from .relations import BY_NAME, NAMES, judge

BEHAVIOUR = 1  # raised by hand when the same detector gives other boxes; boxes of another behaviour are made again
FLOOR = 0.01  # scores below it are not stored; VISOR's threshold is 0.1
QUERY = "a photo of a {name}"  # VISOR's
DETECTION_COLUMNS = ("prompt_id", "image_index", "label", "score", "x", "y", "w", "h")


def read_detections(path: Path | str) -> pd.DataFrame:
    """A table of boxes from a Parquet, JSON (list of records or of columns) or JSON Lines file, checked.

    Columns: prompt_id, image_index (from 0), label (a category name), score in [0, 1], and x, y, w, h: the box in
    pixels of its image, origin at the top left. Further columns are kept.

    Raises:
        ValueError: unreadable file, missing column, or a value that cannot be; file, column and row are named.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        raise ValueError(f"{path}: detections are read from .parquet, .json or .jsonl")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `python -m sr4g_utils.detect` writes detections")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False)
    except (ValueError, OSError) as error:  # Arrow's errors are both
        raise ValueError(f"{path}: not readable as detections ({str(error).splitlines()[0]})") from error
    return check_detections(table, str(path))


def check_detections(table: pd.DataFrame, source: str = "detections") -> pd.DataFrame:
    """The table itself, when it is one of detections; see :func:`read_detections`."""
    if missing := [name for name in DETECTION_COLUMNS if name not in table]:
        raise ValueError(f"{source}: the column {missing[0]!r} is missing; needed are {', '.join(DETECTION_COLUMNS)}")
    for name in ("score", "x", "y", "w", "h", "image_index"):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise ValueError(f"{source}: column {name!r} must hold numbers, found {table[name].dtype}")
    numbers = table[["score", "x", "y", "w", "h", "image_index"]]
    score, index = table.score, table.image_index
    wrong = {
        "a value is missing": table[list(DETECTION_COLUMNS)].isna().any(axis=1),
        "a number is infinite": ~np.isfinite(numbers).all(axis=1),
        "the score is not in [0, 1]": (score < 0) | (score > 1),
        "width or height is negative": (table.w < 0) | (table.h < 0),
        "image_index is not a whole number from 0": (index < 0) | (index % 1 != 0),
    }
    for problem, rows in wrong.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            values = table.iloc[row][list(DETECTION_COLUMNS)].to_dict()
            raise ValueError(f"{source}: row {row}: {problem} ({values})")
    return table


# -------------------------------------------------------------------------------------------------- published results


def read_visor_results(path: Path | str, prompts: pd.DataFrame) -> pd.DataFrame:
    """Records from a file of VISOR's published results, for :func:`scores`, :func:`compare` and :func:`chance`.

    The format of microsoft/VISOR's ``results_*.json``: ``{"<unique_id>_<n>": {"classes": [...], "centroid": [[x, y],
    ...], "recall": 0..2, "sra": 0|1, "text": ...}}``. As in its ``visor.py``, both objects are found when their names
    are among the classes, and an image is correct when they are and ``sra`` is 1; ``recall`` is not used. The relation
    columns of projective relations are judged from the centroids (some pair); the others are False, since no boxes
    are published.

    Args:
        path: the file.
        prompts: columns prompt_id (the unique_id), subject, relation, object. Images of other prompts are left out, as
            VISOR leaves out its "and" and single-object prompts.

    Raises:
        ValueError: not a file of that format (file, image and field are named), or no image of these prompts.
    """
    path, prompts = Path(path), check_prompts(prompts, "prompts", NEEDED)[list(NEEDED)]
    try:
        images = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(images, dict):
        raise ValueError(f"{path}: expected an object of images by '<unique_id>_<n>', found {type(images).__name__}")
    of_prompt: dict[str, dict] = {str(prompt["prompt_id"]): prompt for prompt in prompts.to_dict("records")}
    rows = []
    for key, image in images.items():
        unique_id, _, index = key.rpartition("_")
        if not (unique_id and index.isdecimal()):
            raise ValueError(f"{path}: image {key!r} is not named '<unique_id>_<n>'")
        if unique_id in of_prompt:
            rows.append(_published(of_prompt[unique_id], int(index), image, f"{path}: image {key!r}"))
    if not rows:
        raise ValueError(f"{path}: none of its {len(images):,} images belongs to the {len(prompts):,} prompts")
    return pd.DataFrame(rows)


def _published(prompt: dict, index: int, image: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The record of one published image."""
    kinds: dict[str, Any] = {"classes": list, "centroid": list, "sra": (int, float)}
    for field, kind in kinds.items():
        if not isinstance(image.get(field), kind):
            raise ValueError(f"{source}: the field {field!r} is missing or of the wrong type ({image.get(field)!r})")
    classes, centroid, sra = image["classes"], image["centroid"], image["sra"]
    if len(classes) != len(centroid):
        raise ValueError(f"{source}: {len(classes)} classes but {len(centroid)} centroids")
    if sra not in (0, 1):
        raise ValueError(f"{source}: 'sra' must be 0 or 1, found {sra!r}")
    s, o = ([i for i, name in enumerate(classes) if name == prompt[role]] for role in ("subject", "object"))
    found = bool(s and o)
    points = np.zeros((len(classes), 4))  # a centroid is a box without extent
    points[:, :2] = np.array(centroid, np.float64).reshape(-1, 2)
    holds = np.any(judge(points[np.repeat(s, len(o)).astype(int)], points[np.tile(o, len(s)).astype(int)]), axis=0)
    return {
        **prompt,
        "image_index": index,
        "n_subject": len(s),
        "n_object": len(o),
        "both_found": found,
        "correct": found and bool(sra),
        **{name: bool(holds[i]) and BY_NAME[name].family == "projective" for i, name in enumerate(NAMES)},
    }
