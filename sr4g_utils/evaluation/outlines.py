"""Boxes of others as a model of a run: where there are no images, outlines stand in their place."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..store import files
from .detections import positions, read_detections, scored_images

BOXES, RECORD = "boxes.parquet", "record.json"  # in a folder of outlines


def of_images(folders: dict[str, Path]) -> dict[str, Path]:
    """The models of which there are images, by name, without those of which there are boxes only."""
    return {name: folder for name, folder in folders.items() if not (folder / BOXES).is_file()}


def write_outlines(path: Path, prompts: Path, boxes: Path) -> dict[str, Any]:
    """A stage: a grey image with the outlines of its boxes for each image that a file of boxes tells of, and the boxes.

    Where the file has no width and height of images, the farthest edge of any box stands for them, with a warning.

    Raises:
        ValueError: the file cannot be read, or does not tell how many images a prompt has.
    """
    table, detections = files.read_table(prompts).reset_index(drop=True), read_detections(boxes)
    at = positions(detections.prompt_id, table.prompt_id, str(boxes))
    detections, at = detections[at >= 0].reset_index(drop=True), at[at >= 0]
    prompt, number, place, how = scored_images(table, detections, at, None)
    if not {"width", "height"} <= set(detections):
        width, height = (int(np.ceil((detections[a] + detections[b]).max())) for a, b in ("xw", "yh"))
        taken = (
            f"taken as {width} × {height}, the farthest edges; rules other than visor and geneval need the true ones"
        )
        files.say(f"WARNING: {boxes}: has no width and height of the images: {taken}")
        detections = detections.assign(width=width, height=height)
    detections = detections.assign(prompt_id=table.prompt_id.to_numpy()[at])
    path.mkdir(parents=True, exist_ok=True)
    by_image = dict(tuple(detections.groupby(place)))
    usual = (int(detections.width.median()), int(detections.height.median()))
    for i, (row, index) in enumerate(zip(prompt.tolist(), number.tolist(), strict=True)):
        own = by_image.get(i)
        size = usual if own is None else (int(own.width.iloc[0]), int(own.height.iloc[0]))
        image = Image.new("RGB", size, "lightgrey")
        for box in own.itertuples() if own is not None else ():
            ImageDraw.Draw(image).rectangle((box.x, box.y, box.x + box.w, box.y + box.h), outline="dimgrey")
        image.save(path / f"{table.prompt_id.iloc[row]}_{index}.webp", lossless=True, method=0)
    files.write_table(path / BOXES, detections)
    name = Path(boxes).name
    about = {"boxes": {"id": name, "files": {name: files.digest(Path(boxes))}}, "images": how}
    files.write_json(path / RECORD, about)
    return about


def copy_boxes(path: Path, outlines: Path) -> dict[str, Any]:
    """A stage: the boxes of a folder of outlines, as a detector's would be written. Returns what is known of them."""
    with files.atomic(path) as partial:
        shutil.copyfile(outlines / BOXES, partial)
    return {"detector": files.read_json(outlines / RECORD)["boxes"]}
