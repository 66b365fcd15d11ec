"""A profile's word for annotations or photos becomes a file: given by path, downloaded, or drawn by the miniature."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..store import files
from ..store.run import Run
from . import boxes, card, world
from . import coco as dataset_coco
from .boxes import BoxTable
from .photos import Photos, crop_table, most_cropped

MINIATURE = "miniature"


def is_miniature(source: Any) -> bool:
    """Whether a profile's word for annotations means a world of photos that the miniature draws."""
    return str(source).partition(":")[0] == MINIATURE


def made_from(source: Any) -> str:
    """What annotations are of, for the dataset card: COCO's where they are downloaded or have its categories."""
    if is_miniature(source):
        return card.MINIATURE
    coco = source is None or dataset_coco.read(source).categories == boxes.COCO_CATEGORIES
    return card.COCO if coco else f"annotations of one's own ({Path(source).name})"


def annotations(run: Run, source: str | Path | None, split: str) -> Path:
    """The file of an annotation source: a path, ``None`` for COCO 2017 by download, or ``"miniature"``, which makes a
    world of photos; ``"miniature:500"`` makes one of 500."""
    if source is None:
        return files.download("annotations_trainval2017.zip")
    if not is_miniature(source):
        return Path(source)
    _, _, images = str(source).partition(":")
    count = int(images) if images else None
    return run.stage(f"world/instances_{split}2017.json", world.write_annotations, split=split, images=count)[0]


def photos(run: Run, source: str | Path | None, split: str, annotations: str | Path) -> Path:
    """The folder or zip of a split's images: a path, ``None`` for COCO 2017 by download, or ``"miniature"``, which
    draws the images of the annotation file ``annotations``."""
    if source is None:
        return files.download(f"{split}2017.zip")
    if source != MINIATURE:
        return Path(source)
    return run.stage(f"world/{split}2017", world.write_photos, {"annotations": annotations}, split=split)[0]


def pictures(
    run: Run, photos_source: Any, annotations_source: Any, split: str, rows: pd.DataFrame
) -> list[np.ndarray | None]:
    """The photo of each row of :func:`triplets.examples`, uint8 (h, w, 3); None where there are no photos, as the
    miniature has none of annotations that are not its own."""
    if photos_source is None or (photos_source == MINIATURE and not is_miniature(annotations_source)):
        return [None] * len(rows)
    album = Photos(run.read(photos(run, photos_source, split, annotations(run, annotations_source, split)).resolve()))
    return [album.read(row.file_name, (row.width, row.height)) for row in rows.itertuples()]


def crop_example(
    run: Run, annotations_source: Any, photos_source: Any, resolution: int, min_kept: float
) -> tuple[BoxTable, np.ndarray]:
    """What the crop of training photos does, in one of them: the photo that loses most boxes, as a table of one image,
    and its pixels. Where none loses a box, as in a world of square photos: a landscape of the miniature's."""
    source = annotations(run, annotations_source, "train")
    table = dataset_coco.read(source, "train").without_crowds()
    cropped = crop_table(table, resolution, min_kept)
    if len(cropped) == len(table):
        return world.landscape(resolution)
    image = most_cropped(table, cropped)
    photo = Photos(run.read(photos(run, photos_source, "train", source).resolve())).read(table.file_name[image].as_py())
    return table.of_image(image), photo
