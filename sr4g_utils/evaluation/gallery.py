"""All images with their verdicts on one page, to filter by model, relation and outcome; it works from a file."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from ..store.files import read_table, write_text
from .images import list_images

TEMPLATE = Path(__file__).with_name("gallery.html")
OUTCOMES = ("obeyed", "both found, placed otherwise", "one thing found", "nothing found")


def address(folder: Path, page: Path) -> str:
    """A folder as it is seen from a page, for a link."""
    return quote(Path(os.path.relpath(folder.resolve(), page.parent.resolve())).as_posix())


def write_gallery(
    path: str | Path, *, prompts: str | Path, seen_from: Mapping[str, str], **files: str | Path
) -> dict[str, int]:
    """A stage: the page of each model's ``images_NAME``, a folder, whose :func:`address` is ``seen_from[NAME]``, and
    ``verdicts_NAME``, a file. Returns how many images of each model it shows."""
    table, models = read_table(prompts), {}
    for name, base in seen_from.items():
        listed, verdicts = list_images(files[f"images_{name}"], table), read_table(files[f"verdicts_{name}"])
        models[name] = base, verdicts.merge(listed[["prompt_id", "image_index", "caption", "file_name"]])
    write_page(path, models)
    return {name: len(shown) for name, (_, shown) in models.items()}


def write_page(path: str | Path, models: Mapping[str, tuple[str, pd.DataFrame]]) -> None:
    """The page of each model's folder (its :func:`address`) and images: verdicts (:func:`verdicts.verdicts`) with
    caption and file_name. Images are linked, not copied."""
    relations = list(dict.fromkeys(relation for _, table in models.values() for relation in table.relation))
    shown = [
        {"name": n, "folder": base, "images": list(_rows(table, relations))} for n, (base, table) in models.items()
    ]
    data = {"outcomes": OUTCOMES, "relations": relations, "models": shown}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    write_text(path, TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text))


def _rows(table: pd.DataFrame, relations: list[str]) -> Iterator[list[Any]]:
    """Of each image: file, caption, the places of its relation and of its outcome, reason, and the two boxes."""
    number = table.relation.map(relations.index)
    some = table.n_subject + table.n_object > 0
    outcome = np.select([table.correct.astype(bool), table.both_found.astype(bool), some], [0, 1, 2], 3)
    boxes = [
        [None if np.isnan(box[0]) else [round(side, 1) for side in box] for box in columns.to_numpy(float).tolist()]
        for columns in (table[[f"{role}_{side}" for side in "xywh"]] for role in ("subject", "object"))
    ]
    files = map(quote, table.file_name)
    yield from map(list, zip(files, table.caption, number, outcome.tolist(), table.reason, *boxes, strict=True))
