"""A profile's word for annotations or photos becomes a file: given by path, downloaded, or drawn by the miniature."""

from pathlib import Path

from .miniature import world
from .running.files import download
from .running.run import Run


def annotations(run: Run, source: str | Path | None, split: str) -> Path:
    """The file of an annotation source: a path, ``None`` for COCO 2017 by download, or ``"miniature"``, which makes a
    world of pictures; ``"miniature:500"`` makes one of 500."""
    if source is None:
        return download("annotations_trainval2017.zip")
    name, _, images = str(source).partition(":")
    if name != "miniature":
        return Path(source)
    count = int(images) if images else None
    return run.stage(f"world/instances_{split}2017.json", world.write_annotations, split=split, images=count)[0]


def photos(run: Run, source: str | Path | None, split: str, annotations: str | Path) -> Path:
    """The folder or zip of a split's images: a path, ``None`` for COCO 2017 by download, or ``"miniature"``, which
    draws the images of the annotation file ``annotations``."""
    if source is None:
        return download(f"{split}2017.zip")
    if source != "miniature":
        return Path(source)
    return run.stage(f"world/{split}2017", world.write_photos, {"annotations": annotations}, split=split)[0]
