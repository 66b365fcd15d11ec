"""Folders of images with their prompts: drawn here or elsewhere."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..dataset.photos import Photos
from ..dataset.prompt_sets import check_prompts, others, read_prompts
from ..models.sampling import Pixels
from ..store.files import read_json

READERS = 4  # threads that decode ahead of need
SUFFIXES = (".webp", ".png", ".jpg", ".jpeg", ".bmp")
# folders of systems and their waste
SKIPPED = ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_NAME = re.compile(r"(?:(?P<base>.*)/)?(?P<id>[^/]+?)(?:_|/samples/)(?P<number>\d+)\.\w+")
_GRID = re.compile(r"(.*-)?grid(-\d+)?\.\w+")  # GenEval's and T2I-CompBench's overviews
_LEFT_OUT, _SEVERAL = -1, -2  # in place of a prompt's row


def list_images(folder: str | Path, prompts: str | Path | pd.DataFrame | None = None) -> pd.DataFrame:
    """The images in a folder, of :func:`generate.write_images` or made elsewhere, with their prompts.

    Args:
        folder: image files anywhere below it named ``<prompt_id>_<number>`` (as VISOR's), ``<prompt_id>/samples/
            <number>`` (as GenEval's) or ``<prompt>_<number>`` (as T2I-CompBench's). A prompt's images are renumbered
            from 0 in the order of their numbers. Hidden folders, those of :data:`SKIPPED` and grids beside
            ``samples`` are no images; links to folders are followed, none twice.
        prompts: their prompts, or what :func:`read_prompts` reads; by default ``prompts.parquet`` in the folder.

    Returns:
        The prompts' columns, image_index and file_name (within the folder), in the order of prompts and numbers.
        Prompts without an image are left out (one may draw a part of a prompt set); ``attrs["without_images"]`` is
        their number. Images of the set's other prompts (:func:`prompt_sets.others`) are left out as well;
        ``attrs["left_out_images"]`` is theirs.

    Raises:
        ValueError: no images, an image of no prompt, two for one number, several models' images, prompts with unequal
            numbers of images, or unfinished generation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    promised = _promised(folder)
    table, left_out = _prompts(folder, prompts, promised is not None)
    images, left_out_images = _find(folder, table, left_out)
    _check_alone(folder, images, table)
    images["image_index"] = images.groupby("row").cumcount()
    counts = images.groupby("row").size()
    per_prompt = promised or counts.max()
    if (few := counts[counts != per_prompt]).size or (promised and len(counts) < len(table)):
        hint = "run the generation again to finish it" if promised else "each prompt needs as many images as the others"
        odd = int(few.index[0]) if few.size else int(np.setdiff1d(np.arange(len(table)), counts.index)[0])
        many = f"{counts.get(odd, 0)} images, not {per_prompt}"
        raise ValueError(f"{folder}: prompt {table.prompt_id[odd]} has {many}; {hint}")
    rows = table.drop(columns=["file_name", "image_index"], errors="ignore").iloc[images.row].reset_index(drop=True)
    joined = rows.join(images[["image_index", "file_name"]])
    joined.attrs = {"without_images": len(table) - len(counts), "left_out_images": left_out_images}
    return joined


def _promised(folder: Path) -> int | None:
    """How many images of each prompt the record of our generation promises; None for a folder made elsewhere."""
    match read_json(folder / "record.json"):
        case {"model": _, "sampling": {"images": int(number)}}:
            return number
    return None


def _prompts(folder: Path, wanted: str | Path | pd.DataFrame | None, ours: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    """The prompts of a folder's images, and those of their set (id and caption) whose images are left out."""
    own = folder / "prompts.parquet"
    if wanted is None and not own.is_file():
        raise ValueError(f"{folder}: made elsewhere (it has no prompts.parquet), so give the file of its prompts")
    if isinstance(wanted, pd.DataFrame):
        table = check_prompts(wanted, "prompts").reset_index(drop=True)
    else:
        table = read_prompts(own if wanted is None else wanted)
    left_out = others(table)
    if ours and wanted is not None and own.is_file():
        drawn = read_prompts(own)
        captions = dict(zip(drawn.prompt_id.astype(str), drawn.caption, strict=True))
        for id, caption in zip(table.prompt_id.astype(str), table.caption, strict=True):
            if (at_first := captions.get(id, caption)) != caption:
                but = f"but the prompts given say {caption!r}; give its own, {own}"
                raise ValueError(f"{folder}: prompt {id} was drawn as {at_first!r}, {but}")
        left_out |= captions
    return table, left_out


def _find(folder: Path, table: pd.DataFrame, left_out: dict[str, str]) -> tuple[pd.DataFrame, int]:
    """The images of the prompts, sorted (row of the prompt, number, file_name, and the sub-folder that holds the
    prompts' images), and how many are left out."""
    rows: dict[str, int] = {**dict.fromkeys(left_out, -1), **{str(id): row for row, id in enumerate(table.prompt_id)}}
    texts: dict[str, int] = {}  # made when first needed
    images: list[tuple[int, int, str, str]] = []
    skipped = 0
    for at in _files(folder):
        match = _NAME.fullmatch(at)
        id = match["id"] if match else at
        row = rows.get(id, rows.get(id.lstrip("0") or "0"))
        if match and row is None:
            texts = texts or _by_text(table, left_out)
            row = texts.get(_spoken(id))
        if match is None or row is None or row == _SEVERAL:
            what = "several prompts of one text" if row == _SEVERAL else "no prompt"
            named = f"images are named <prompt_id>_<number>, as {table.prompt_id[0]}_0.png"
            raise ValueError(f"{folder / at}: belongs to {what}; {named}")
        if row == _LEFT_OUT:
            skipped += 1
        else:
            images.append((row, int(match["number"]), at, match["base"] or "."))
    if not images:
        what = f"no image of these prompts, {skipped} of others" if skipped else f"no image ({', '.join(SUFFIXES)})"
        raise ValueError(f"{folder}: holds {what}")
    return pd.DataFrame(sorted(images), columns=["row", "number", "file_name", "base"]), skipped


def _by_text(table: pd.DataFrame, left_out: dict[str, str]) -> dict[str, int]:
    texts = {_spoken(text): _LEFT_OUT for text in left_out.values()}
    for row, text in enumerate(map(_spoken, table.caption)):
        texts[text] = _SEVERAL if texts.get(text, _LEFT_OUT) != _LEFT_OUT else row
    return texts


def _spoken(text: str) -> str:
    """A prompt as one would say it, however a file name spells it."""
    return " ".join(text.replace("_", " ").lower().split()).rstrip(" .")


def _check_alone(folder: Path, images: pd.DataFrame, table: pd.DataFrame) -> None:
    """One set of images only: of each prompt in one sub-folder, and no number twice."""
    bases = images.groupby("row").base
    if (several := bases.nunique() > 1).any():
        names = sorted(set(images.base[images.row.isin(several.index[several])]))
        folders = f"{', '.join(names[:8])}{' …' * (len(names) > 8)}"
        why = "each hold images of the same prompts, as those of several models do; give one of them"
        raise ValueError(f"{folder}: its folders {folders} {why}")
    if (twice := images[images.duplicated(["row", "number"], keep=False)]).size:
        first, second = twice.file_name.iloc[:2]
        image = f"image {twice.number.iloc[0]} of prompt {table.prompt_id[twice.row.iloc[0]]}"
        raise ValueError(f"{folder}: {first} and {second} are both {image}; keep one")


def _files(folder: Path) -> Iterator[str]:
    """The image files in and below a folder, sorted, with their folders visited once however often they are linked."""
    seen = set(map(str, folder.resolve().parents))  # a link to one of them is a loop
    links, paths = [folder], []
    for link in links:  # grows
        for at, inside, names in os.walk(link, onerror=_unreadable):
            if (real := os.path.realpath(at)) in seen:
                inside.clear()
                continue
            seen.add(real)
            inside[:] = [name for name in sorted(inside) if not (name.startswith(".") or name in SKIPPED)]
            links += [Path(at, name) for name in inside if Path(at, name).is_symlink()]
            images = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
            if "samples" in inside:
                images = [name for name in images if not _GRID.fullmatch(name)]
            paths += [Path(at, name).relative_to(folder).as_posix() for name in images]
    yield from sorted(paths)


def _unreadable(error: OSError) -> None:
    raise ValueError(f"{error.filename}: this folder cannot be read ({error.strerror})")


def read_images(
    folder: str | Path, prompts: str | Path | pd.DataFrame | None = None
) -> Iterator[tuple[dict[str, Any], Pixels]]:
    """The rows of :func:`list_images` (a dict each) with their images, decoded ahead of need."""
    listed, photos = list_images(folder, prompts).to_dict("records"), Photos(folder)
    with ThreadPoolExecutor(READERS) as pool:
        for rows in (listed[start : start + 64] for start in range(0, len(listed), 64)):
            yield from zip(rows, pool.map(photos.read, [row["file_name"] for row in rows]), strict=True)


def progress(title: str, total: int, missing: int) -> Any:
    return tqdm(total=total, initial=total - missing, desc=title, unit="image", mininterval=1)
