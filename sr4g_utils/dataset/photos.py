"""Photos as the model sees them: read from a folder or a zip, resized and cropped together with their boxes.

The crop is Stable Diffusion's own: the shorter side is resized to the resolution, then the centre is cut out. Photo and
boxes go through one function, :func:`geometry`, so that a caption judged on the cropped boxes is true of the cropped
pixels. Nothing is ever flipped: a mirrored photo makes "left of" a lie.
"""

import math
import posixpath
import re
import threading
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float64, Int64, Real, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from ..store import files
from ..store.limits import check_limit, limit
from .boxes import BoxTable

CROP = "shorter side resized bicubically, centre cut out"  # what encoded photos are filed under
DROPPED = "mostly outside the crop"  # the reason under which `crop_table` counts

_UTF8 = 0x800  # the flag of a zip's entry that says how its name is written

Size = tuple[int | float, int | float]  # width and height in pixels
Named = tuple[tuple[str, ...], str]  # the parts of a photo's path, and the path in the source


class PhotoError(ValueError):
    """A photo is missing, broken or not the annotated one. The message is one line that names the file."""


class Photos:
    """The photos of a folder or of a zip such as COCO's ``train2017.zip``, by file name; threads may share them.

    A file name is a path within the source, or it means the one photo whose path agrees with it from the end, as far
    as both go: ``7.jpg`` finds ``train2017/7.jpg``, and in the folder ``train2017`` the path ``data/train2017/7.jpg``
    finds ``7.jpg``; ``val2017/7.jpg`` finds neither. Where no name is the same, it may differ as :func:`_loose` allows:
    ``7.JPG``, ``a%20b.jpg``. Nothing outside the source is read.

    ``counts`` are those read: "grayscale", "CMYK", "transparent", "EXIF-rotated", "EXIF rotation ignored".
    """

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._zip: zipfile.ZipFile | None = None
        Image.MAX_IMAGE_PIXELS = None if (most := limit("photo_pixels")) == math.inf else int(most)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # is an error here
        if self.source.is_dir():
            return
        if not self.source.is_file():
            raise PhotoError(f"photos: there is no folder or zip file {self.source}")
        try:
            self._zip = zipfile.ZipFile(self.source)
        except zipfile.BadZipFile as error:
            raise PhotoError(f"{self.source}: not a complete zip file ({error}); download it again") from None

    def read(self, file_name: str, size: Size | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """A photo's pixels, RGB, turned upright as its EXIF orientation says.

        Args:
            file_name: as in the annotations; slashes or backslashes.
            size: annotated width and height. Where only the photo as stored has that size, its boxes were drawn without
                the EXIF rotation, which is then ignored.

        Raises:
            PhotoError: the photo is missing, cannot be decoded, or has another size than annotated; or more than one
                could be meant.
        """
        try:
            with Image.open(BytesIO(self._bytes(file_name))) as image:
                check_limit("photo_pixels", image.width * image.height, "the number of its pixels")
                if image.format == "EPS":
                    raise ValueError("it is PostScript, which another program would run; save it as PNG")
                image.load()
                return self._upright(image, file_name, size)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            if isinstance(error, PhotoError):
                raise
            why = "of no known form, or empty" if isinstance(error, UnidentifiedImageError) else error
            raise PhotoError(f"{self.source}: {file_name} is not a readable photo ({why})") from None

    def contents(self, file_names: Sequence[str], most_missing: float = 1.0) -> list[str]:
        """Of each file what changes with its content: a hash, or its checksum in a zip; "" if it is missing.

        Raises:
            PhotoError: more than ``most_missing``, a share, of the files are missing; it names the first.
        """
        paths, problems = [], []
        for name in file_names:
            paths.append("")
            try:
                paths[-1] = self._find(name)
            except PhotoError as error:
                problems.append(error)
        if len(problems) > most_missing * len(paths):
            there = sorted({path for same in self._by_name.values() for _, path in same})
            some = f"it holds {len(there):,} files" + f" such as {there[0]}" * bool(there)
            lost = f"{len(problems):,} of {len(paths):,} photos are missing"
            raise PhotoError(f"{problems[0]}; {lost}, {some}. Is it the folder of these annotations?")
        if self._zip is not None:
            return [str(self._zip.getinfo(path).CRC) if path else "" for path in paths]
        return files.contents([self.source / path for path in paths])

    def _bytes(self, file_name: str) -> bytes:
        path = self._find(file_name)
        if self._zip is None:
            if not (file := self.source / path).is_file():
                raise PhotoError(f"{self.source}: {file_name} is no regular file")
            check_limit("photo_bytes", file.stat().st_size, "its bytes")
            return file.read_bytes()
        check_limit("photo_bytes", self._zip.getinfo(path).file_size, "its bytes")
        try:
            return self._zip.read(path)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise PhotoError(f"{self.source}: {file_name} cannot be read from the zip ({error})") from None

    def _find(self, file_name: str) -> str:
        """The path within the source of the photo that is meant."""
        parts = _parts(file_name)
        if self._zip is None and (self.source / "/".join(parts)).is_file():
            return "/".join(parts)
        named = self._by_name.get(parts[-1], []) if parts else []
        paths = self._meant(parts, named)
        if not paths and parts:
            loose = [
                (tuple(map(_loose, path)), entry) for path, entry in self._by_loose_name.get(_loose(parts[-1]), [])
            ]
            paths = self._meant(tuple(map(_loose, parts)), loose)
        if len(set(paths)) == 1:
            return paths[0]
        some = ", ".join(str(self.source / path) for path in sorted(paths or [entry for _, entry in named])[:5])
        if paths:
            raise PhotoError(f"{self.source}: {file_name} could be any of {some}; write the folder into its file_name")
        hint = f"; there is {some}, but in a folder of another name: rename it, or change file_name" * bool(some)
        raise PhotoError(f"{self.source}: {file_name} is missing{hint}")

    def _meant(self, parts: tuple[str, ...], named: list[Named]) -> list[str]:
        """The paths that are ``parts`` to the letter, or else agree with it from the end."""
        return [entry for path, entry in named if path == parts] or [
            entry for path, entry in named if self._agree(parts, path)
        ]

    @cached_property
    def _by_name(self) -> dict[str, list[Named]]:
        """The photos by the last part of their path: all parts, and the path in the source."""
        by_name: dict[str, list[Named]] = defaultdict(list)
        for path, entry in self._entries():
            if (parts := _parts(path)) and not path.endswith(("/", "\\")):
                by_name[parts[-1]].append((parts, entry))
        return by_name

    @cached_property
    def _by_loose_name(self) -> dict[str, list[Named]]:
        by_name: dict[str, list[Named]] = defaultdict(list)
        for name, same in self._by_name.items():
            by_name[_loose(name)] += same
        return by_name

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Each file's path as it is meant, and as the source has it."""
        if self._zip is None:
            for path in files.walk(self.source):
                yield (path.relative_to(self.source).as_posix(),) * 2
        for info in self._zip.infolist() if self._zip else ():
            yield info.filename, info.filename
            if not info.flag_bits & _UTF8 and not info.filename.isascii():  # some programs forget the flag
                with suppress(UnicodeError):
                    yield info.filename.encode("cp437").decode(), info.filename

    def _agree(self, name: tuple[str, ...], path: tuple[str, ...]) -> bool:
        source = self.source.absolute()
        if self._zip is None:
            path = (source.name, *path)
        elif len(path) == 1:  # a zip's name says nothing of the folders in it, but may stand for one
            path = (source.stem, *path)
        both = min(len(name), len(path))
        return name[-both:] == path[-both:]

    def _upright(self, image: Image.Image, file_name: str, size: Size | None) -> np.ndarray:
        upright = ImageOps.exif_transpose(image)
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        if size is not None and upright.size != tuple(size):
            if image.size != tuple(size):
                shown, annotated = (" × ".join(f"{side:g}" for side in s) for s in (upright.size, size))
                raise PhotoError(f"{self.source}: {file_name} is {shown} pixels, but annotated as {annotated}")
            upright = image
        kinds = {
            "grayscale": image.mode in ("1", "L", "LA") or image.mode.startswith("I"),
            "CMYK": image.mode == "CMYK",
            "transparent": image.has_transparency_data,
            "EXIF-rotated": turned and upright is not image,
            "EXIF rotation ignored": turned and upright is image,
        }
        with self._lock:
            self.counts.update(name for name, is_so in kinds.items() if is_so)
        return np.asarray(_rgb(upright))


def _loose(name: str) -> str:
    """A name without capitals, with "%20" as a space, accents in one form and one spelling of ".jpg"."""
    name = unicodedata.normalize("NFC", unquote(name)).casefold()
    return re.sub(r"\.(jpeg|jpe|jfif)$", ".jpg", name)


def _parts(path: str) -> tuple[str, ...]:
    """The folders and the name in a path, without a drive and what leads out of the source; backslashes are slashes."""
    path = posixpath.normpath(re.sub("^[A-Za-z]:/", "", path.replace("\\", "/")))
    return tuple(part for part in path.split("/") if part not in ("", ".", ".."))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit grey, which Pillow would clip instead of scale
        return Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def geometry(
    width: Real[np.ndarray, "*n"], height: Real[np.ndarray, "*n"], resolution: int
) -> tuple[Int64[np.ndarray, "*n 2"], Int64[np.ndarray, "*n 2"]]:
    """Resize the shorter side to ``resolution`` and cut out the centre: where things go, for photos and boxes alike.

    Returns:
        The size (w, h) after resizing, and the left and upper edge of the crop in it; whole pixels.
    """
    size = np.stack([width, height], axis=-1).astype(np.float64)
    resized = np.rint(size * (resolution / size.min(axis=-1, keepdims=True))).astype(np.int64)
    return resized, (resized - resolution) // 2


def crop_photo(image: UInt8[np.ndarray, "h w 3"], resolution: int) -> UInt8[np.ndarray, "resolution resolution 3"]:
    """The photo through :func:`geometry`, resampled bicubically with antialiasing (latent-diffusion's default)."""
    h, w = image.shape[:2]
    (width, height), (left, top) = geometry(np.array(w), np.array(h), resolution)
    resized = np.asarray(Image.fromarray(image).resize((int(width), int(height)), Image.Resampling.BICUBIC))
    return resized[top : top + resolution, left : left + resolution]


def crop_table(table: BoxTable, resolution: int, min_kept: float = 0.5) -> BoxTable:
    """The boxes through :func:`geometry`, clipped to the crop; every image then is resolution × resolution pixels.

    Boxes of which less than ``min_kept`` of the area lies in the crop are left out and counted in ``excluded``.

    Raises:
        ValueError: ``resolution`` or ``min_kept`` cannot be.
    """
    if resolution < 1 or not 0 <= min_kept <= 1:
        raise ValueError(f"crop: resolution must be positive and min_kept in [0, 1]; got {resolution} and {min_kept}")
    resized, corner = geometry(table.width, table.height, resolution)
    scale = resized / np.stack([table.width, table.height], axis=-1)
    at = table.image
    first = table.xywh()[:, :2] * scale[at] - corner[at]
    size = table.xywh()[:, 2:] * scale[at]
    low, high = first.clip(0, resolution), (first + size).clip(0, resolution)
    left = high - low
    keep = (left > 0).all(axis=1) & (left.prod(axis=1) >= min_kept * size.prod(axis=1))
    boxes = dict(zip("xywh", np.concatenate([low, left], axis=1).T, strict=True))
    sides = {side: np.full_like(getattr(table, side), resolution) for side in ("width", "height")}
    excluded = table.excluded if keep.all() else {**table.excluded, DROPPED: int((~keep).sum())}
    return replace(table, **sides, **boxes, excluded=excluded).rows(keep)


def frame(width: int | float, height: int | float, resolution: int) -> Float64[np.ndarray, "4"]:
    """The crop as xywh in the pixels of a photo of that size."""
    resized, corner = geometry(np.array(width), np.array(height), resolution)
    scale = np.array([width, height]) / resized
    return np.concatenate([corner * scale, resolution * scale])


def most_cropped(table: BoxTable, cropped: BoxTable) -> int:
    """The image (its place in both tables) that loses most boxes to the crop, of those that keep two or more."""
    before, after = (np.bincount(one.image, minlength=len(one.image_id)) for one in (table, cropped))
    return int(np.argmax(np.where(after > 1, before - after, -1)))


def boxes_of(table: BoxTable, image: int) -> list[tuple[str, Float64[np.ndarray, "4"]]]:
    """Names and xywh of an image's boxes."""
    rows = slice(*np.searchsorted(table.image, [image, image + 1]))
    return list(zip((table.names[i] for i in table.category[rows]), table.xywh(rows), strict=True))
