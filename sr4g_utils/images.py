"""Folders of images with their prompts: drawn here or elsewhere."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from .photos import Photos
from .prompts import check_prompts, read_prompts
from .running.files import read_json

Pixels = UInt8[np.ndarray, "height width 3"]
READERS = 4  # threads that decode ahead of need
SUFFIXES = (".webp", ".png", ".jpg", ".jpeg", ".bmp")


def list_images(folder: str | Path, prompts: str | Path | pd.DataFrame | None = None) -> pd.DataFrame:
    """The images in a folder, of :func:`generate.write_images` or made elsewhere, with their prompts.

    Args:
        folder: image files anywhere below it named ``<prompt_id>_<number>`` (as VISOR's), or ``<prompt_id>/samples/
            <number>`` (as GenEval's). A prompt's images are renumbered from 0 in the order of their numbers.
        prompts: their prompts, or what :func:`prompts.read_prompts` reads; by default the folder's own
            ``prompts.parquet``.

    Returns:
        The prompts' columns, image_index and file_name (within the folder), in the order of prompts and numbers.
        Prompts without an image are left out (one may draw a part of a prompt set); ``attrs["without_images"]`` is
        their number.

    Raises:
        ValueError: no images, an image of no prompt, prompts with unequal numbers of images, or unfinished generation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    if prompts is None and not (folder / "prompts.parquet").is_file():
        raise ValueError(f"{folder}: made elsewhere (it has no prompts.parquet), so give the file of its prompts")
    if prompts is None:
        prompts = folder / "prompts.parquet"
    table = check_prompts(prompts, "prompts") if isinstance(prompts, pd.DataFrame) else read_prompts(prompts)
    rows: dict[str, int] = {str(id): row for row, id in enumerate(table.prompt_id)}
    found: list[tuple[int, int, str]] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
        at = path.relative_to(folder).as_posix()
        match = re.search(r"(?:^|/)([^/]+?)(?:_|/samples/)(\d+)\.\w+$", at)
        id = match[1] if match else at
        row = rows.get(id, rows.get(id.lstrip("0") or "0"))
        if match is None or row is None:
            raise ValueError(
                f"{path}: belongs to no prompt; images are named <prompt_id>_<number>, as {table.prompt_id[0]}_0.png"
            )
        found.append((row, int(match[2]), at))
    if not found:
        raise ValueError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    images = pd.DataFrame(sorted(found), columns=["row", "number", "file_name"])
    images["image_index"] = images.groupby("row").cumcount()
    counts = images.groupby("row").size()
    record = read_json(folder / "record.json")
    per_prompt = record["sampling"]["images"] if record else counts.max()
    if (few := counts[counts != per_prompt]).size or (record and len(counts) < len(table)):
        hint = "run the generation again to finish it" if record else "each prompt needs as many images as the others"
        odd = int(few.index[0]) if few.size else int(np.setdiff1d(np.arange(len(table)), counts.index)[0])
        raise ValueError(
            f"{folder}: prompt {table.prompt_id[odd]} has {counts.get(odd, 0)} images, not {per_prompt}; {hint}"
        )
    joined = (
        table.drop(columns=["file_name", "image_index"], errors="ignore")
        .iloc[images.row]
        .reset_index(drop=True)
        .join(images[["image_index", "file_name"]])
    )
    joined.attrs["without_images"] = len(table) - len(counts)
    return joined


def read_images(
    folder: str | Path, prompts: str | Path | pd.DataFrame | None = None
) -> Iterator[tuple[dict[str, Any], Pixels]]:
    """The rows of :func:`list_images` (a dict each) with their images, decoded ahead of need."""
    listed, photos = list_images(folder, prompts).to_dict("records"), Photos(folder)
    with ThreadPoolExecutor(READERS) as pool:
        for rows in (listed[start : start + 64] for start in range(0, len(listed), 64)):
            yield from zip(rows, pool.map(photos.read, [row["file_name"] for row in rows]), strict=True)
