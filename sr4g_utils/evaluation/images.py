"""Folders of images with their prompts: drawn here or elsewhere."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..dataset.names import key
from ..dataset.photos import Photos
from ..dataset.prompt_sets import check_prompts, others, read_prompts
from ..models.sampling import Pixels
from ..store.files import read_json, say
from ..store.limits import check_loss
from .captions_beside import FORMS, Caption, captions_beside
from .detections import FROM_1, from_0

READERS = 4  # threads that decode ahead of need
SUFFIXES = (  # what Pillow reads by itself
    ".webp", ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif",
    ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".qoi",
)  # fmt: skip
NO_IMAGES = (*FORMS, ".csv", ".tsv", ".parquet", ".md", ".yaml", ".yml", ".html", ".log", ".npz", ".pt", ".safetensors")
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
    images, left_out_images = _find(folder, table, left_out, promised is not None)
    _check_alone(folder, images, table)
    images["image_index"] = images.groupby("row").cumcount()
    counts = images.groupby("row").size()
    per_prompt = promised or counts.max()
    if (few := counts[counts != per_prompt]).size or (promised and len(counts) < len(table)):
        hint = "run the generation again to finish it" if promised else "each prompt needs as many images as the others"
        odd = int(few.index[0]) if few.size else int(np.setdiff1d(np.arange(len(table)), counts.index)[0])
        many = f"{counts.get(odd, 0)} images, not {per_prompt}"
        raise ValueError(f"{folder}: prompt {table.prompt_id[odd]} has {many}; {hint}")
    if not promised:
        undrawn = table.prompt_id.drop(counts.index)
        without = {"without any image": len(undrawn)}
        such = "".join(f"such as prompt {id}; " for id in undrawn[:1])
        remedy = {"without any image": f"{such}draw them, or give only the prompts that were drawn"}
        check_loss(str(folder), without, len(table), "prompts", remedy)
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
        why = "made elsewhere (it has no prompts.parquet)"
        raise ValueError(f"{folder}: {why}, so give its prompts (prompts=, --prompts)")
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


class _Rows:
    """The row of the prompt that an image is of, or ``_LEFT_OUT``: by the caption beside it, else by its name."""

    def __init__(self, folder: Path, table: pd.DataFrame, left_out: dict[str, str]) -> None:
        self.folder, self.table = folder, table
        self.ids = {**dict.fromkeys(left_out, _LEFT_OUT), **{str(id): row for row, id in enumerate(table.prompt_id)}}
        self.texts = {_spoken(text): _LEFT_OUT for text in left_out.values()}
        self.captions = list(map(_spoken, table.caption))
        for row, text in enumerate(self.captions):
            self.texts[text] = _SEVERAL if self.texts.get(text, _LEFT_OUT) != _LEFT_OUT else row
        self.triplets: list[list[str]] | None = None  # made when first needed
        self.moved: list[str] = []  # images under another prompt's number

    def of_id(self, id: str) -> int | None:
        return self.ids.get(id, self.ids.get(id.lstrip("0") or "0"))

    def of_name(self, at: str) -> int | None:
        match = _NAME.fullmatch(at)
        row = self.of_id(match["id"]) if match else None
        return self.texts.get(_spoken(match["id"])) if match and row is None else row

    def of(self, at: str, beside: Caption | None) -> int:
        row = self.of_name(at)
        if beside is not None and (row is None or row < 0 or self.captions[row] != _spoken(beside[0])):
            row = self._of_caption(at, row, *beside)
        if row is None or row == _SEVERAL:
            what = "several prompts of one text" if row == _SEVERAL else "no prompt"
            named = f"images are named <prompt_id>_<number>, as {self.table.prompt_id[0]}_0.png"
            match = _NAME.fullmatch(at)
            other = match and row is None and match["id"].isdecimal() and self.of_id(match["number"]) is not None
            swapped = f"; read as <number>_<prompt_id> it is of prompt {match['number']}" if match and other else ""
            if match and from_0(self.ids) and match["id"].lstrip("0") == str(len(self.ids)):
                swapped = f"; are the images numbered from 1? {FROM_1}"
            raise ValueError(f"{self.folder / at}: belongs to {what}; {named}{swapped}")
        return row

    def _of_caption(self, at: str, row: int | None, caption: str, file: str) -> int:
        """The row that a caption means, which is not (to the letter) that of the image's name."""
        if (meant := self.texts.get(_spoken(caption))) is None:
            meant = self._in_other_words(caption, row)
        by_name = ""
        if row is not None and row >= 0:
            by_name = f", but by its name it is of prompt {self.table.prompt_id[row]}, {self.table.caption[row]!r}"
        text_of_another = by_name and self.of_id(_NAME.fullmatch(at)["id"]) is None  # type: ignore[index]
        if meant is None or text_of_another:
            what = "that is no prompt's" if meant is None else "so the two contradict each other"
            remedy = "give the prompts that were drawn, with their captions, or remove the file that is wrong"
            raise ValueError(f"{self.folder / at}: {file} says {caption!r}{by_name}; {what}; {remedy}")
        if by_name and meant != row:
            self.moved.append(at)
        return meant

    def _in_other_words(self, caption: str, row: int | None) -> int | None:
        """The row whose triplet a caption says: that of the image's name, or else the only one."""
        try:
            in_caption = read_prompts([caption])[["subject", "relation", "object"]].iloc[0].map(key).tolist()
        except ValueError:
            return None
        if self.triplets is None:
            columns = (self.table[name].map(key) for name in ("subject", "relation", "object"))
            self.triplets = list(map(list, zip(*columns, strict=True)))
        rows = [place for place, triplet in enumerate(self.triplets) if triplet == in_caption]
        return row if row in rows else rows[0] if len(rows) == 1 else None

    def check_start(self, paths: list[str]) -> None:
        """Images numbered from 1 of prompts that count from 0, the first of which has none: are they the next ones'?

        Raises:
            ValueError: so it is, and nobody but the reader numbered the prompts.
        """
        ids = {match["id"] for at in paths if (match := _NAME.fullmatch(at))}
        numbers = {int(id) for id in ids if id.isdecimal()}
        if ids and from_0(self.ids) and numbers == set(range(1, len(ids) + 1)):
            two = f"the images are of prompts 1 to {len(ids)}, the prompts count from 0, and 0 has no image"
            problem = f"{self.folder}: {two}: are the images numbered from 1? {FROM_1}"
            if "counted" in self.table.attrs:
                raise ValueError(f"{problem}, or from 0 if the first was not drawn")
            say(f"WARNING: {problem}")

    def check_order(self, paths: list[str]) -> None:
        """Numbers that fit the prompts both ways, as <prompt>_<number> and as <number>_<prompt>.

        Raises:
            ValueError: read the other way, the images would be of more prompts.
        """
        names = [match.group("id", "number") for at in paths if (match := _NAME.fullmatch(at))]
        if not names or not all(id.isdecimal() and self.of_id(number) is not None for id, number in names):
            return
        first, second = ({int(name[i]) for name in names} for i in (0, 1))

        def reading(prompts: set[int], numbers: set[int], name: str) -> str:
            return f"{name}: {len(prompts):,} prompts with {len(numbers):,} images each"

        example = Path(paths[0]).name
        both = f"{reading(first, second, '<prompt_id>_<number>')}; or {reading(second, first, '<number>_<prompt_id>')}"
        if len(second) > len(first):
            remedy = "Give only the prompts that were drawn, or rename the images, or put a caption beside each (.txt)"
            raise ValueError(f"{self.folder}: names such as {example} fit the prompts both ways. {both}. {remedy}")
        if first == second and any(int(id) != int(number) for id, number in names):
            say(f"WARNING: {self.folder}: names such as {example} fit the prompts both ways; they are read as {both}")


def _find(folder: Path, table: pd.DataFrame, left_out: dict[str, str], ours: bool) -> tuple[pd.DataFrame, int]:
    """The images of the prompts, sorted (row of the prompt, number, file_name, and the sub-folder that holds the
    prompts' images), and how many are left out."""
    paths, others = _files(folder)
    rows, beside = _Rows(folder, table, left_out), {} if ours else captions_beside(folder, paths, others)
    _check_unread(folder, paths, others, rows)
    row_of = [rows.of(at, beside.get(at)) for at in paths]
    if not ours:
        named = [at for at in paths if at not in beside]
        rows.check_order(named)
        rows.check_start(named)
    if rows.moved:
        count = f"{len(rows.moved):,} of {len(paths):,} images, such as {rows.moved[0]},"
        say(f"WARNING: {folder}: {count} have another prompt's number; the captions beside them are taken")
    images: list[tuple[int, int, str, str]] = []
    for place, (at, row) in enumerate(zip(paths, row_of, strict=True)):
        match = _NAME.fullmatch(at)
        number = int(match["number"]) if match and not rows.moved else place
        base = match["base"] if match else at.rpartition("/")[0]
        images += [(row, number, at, base or ".")] * (row != _LEFT_OUT)
    if not images:
        what = f"no image of these prompts, {len(row_of)} of others" if row_of else f"no image ({', '.join(SUFFIXES)})"
        raise ValueError(f"{folder}: holds {what}")
    columns = ["row", "number", "file_name", "base"]
    return pd.DataFrame(sorted(images), columns=columns), len(row_of) - len(images)


def _check_unread(folder: Path, paths: list[str], others: list[str], rows: _Rows) -> None:
    """Say which files have names of the prompts' images but are of no kind that is read. ValueError: most are."""
    stems = {PurePosixPath(at).with_suffix("") for at in paths}
    rest = [PurePosixPath(at) for at in others if not at.lower().endswith(NO_IMAGES)]
    rest = [at for at in rest if at.with_suffix("") not in stems]
    unread = [at for at in rest if rows.of_name(f"{at.with_suffix('.png')}") is not None]
    kinds = ", ".join(sorted({at.suffix.lower() or "no suffix" for at in unread})[:5])
    reason = f"of a kind that is not read ({kinds})"
    remedy = {reason: f"save such as {unread[0]} as PNG"} if unread else {}
    check_loss(str(folder), {reason: len(unread)}, len(paths) + len(unread), "images", remedy)


def _spoken(text: str) -> str:
    """A prompt as one would say it, however a file name spells it."""
    return " ".join(unquote(text).replace("_", " ").lower().split()).rstrip(" .")


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


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """The image files in and below a folder, and the other files, sorted; folders are visited once however often they
    are linked."""
    seen = set(map(str, folder.resolve().parents))  # a link to one of them is a loop
    links, paths, others = [folder], list[str](), list[str]()
    for link in links:  # grows
        for at, inside, names in os.walk(link, onerror=_unreadable):
            if (real := os.path.realpath(at)) in seen:
                inside.clear()
                continue
            seen.add(real)
            inside[:] = [name for name in sorted(inside) if not (name.startswith(".") or name in SKIPPED)]
            links += [Path(at, name) for name in inside if Path(at, name).is_symlink()]
            for name in names:
                if not (name.startswith(".") or ("samples" in inside and _GRID.fullmatch(name))):
                    here = Path(at, name).relative_to(folder).as_posix()
                    (paths if name.lower().endswith(SUFFIXES) else others).append(here)
    for at in paths:
        if not (folder / at).is_file():
            raise ValueError(f"{folder / at}: is a pipe, a device or a link to nothing, no image; remove it")
    return sorted(paths), sorted(others)


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
