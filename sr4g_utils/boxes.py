"""The box table: COCO's annotations as columns, read from the official JSON, the official zip or Parquet.

The official train2017 file is 448 MB, nearly all of it polygons that no relation needs. It is read as a stream: a few
megabytes at a time are cut at an annotation's end and decoded straight into a few numbers each, so neither the file nor
a polygon is ever held. pycocotools, which holds both, is the oracle in the tests.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int, Int64

# COCO's 80 "thing" categories: supercategory -> {category id: name}. Parquet tables carry ids only.
COCO: dict[str, dict[int, str]] = {
    "person": {1: "person"},
    "vehicle": {
        2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    },
    "outdoor": {10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench"},
    "animal": {
        16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra",
        25: "giraffe",
    },
    "accessory": {27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase"},
    "sports": {
        34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
        40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket",
    },
    "kitchen": {44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl"},
    "food": {
        52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog",
        59: "pizza", 60: "donut", 61: "cake",
    },
    "furniture": {62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet"},
    "electronic": {72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone"},
    "appliance": {78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator"},
    "indoor": {
        84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
    },
}  # fmt: skip


_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class Category(msgspec.Struct, frozen=True):
    """A COCO category record."""

    id: _Int32
    name: str
    supercategory: str = ""


COCO_CATEGORIES: tuple[Category, ...] = tuple(
    Category(id, name, supercategory) for supercategory, names in COCO.items() for id, name in names.items()
)

SLICE = 1 << 20  # rows worked on together where a column's worth of intermediate values would be too many
OUTSIDE_TOLERANCE = 1.0  # pixels; official boxes are rounded polygons and may end a fraction beyond the border


class _Image(msgspec.Struct, gc=False):
    id: _Int64
    width: _Int32
    height: _Int32
    file_name: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    id: _Int64
    image_id: _Int64
    category_id: _Int32
    bbox: tuple[float, float, float, float]
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


@dataclass(frozen=True)
class BoxTable:
    """Valid boxes as columns, sorted by image id, then category, then annotation id.

    ``image`` and ``category`` are positions in the image columns and in ``categories``; x, y, w, h are float64 pixels.
    ``excluded`` counts the annotations that were left out, by reason; it holds nothing else.
    """

    image_id: Int64[np.ndarray, "image"]
    file_name: pa.StringArray
    width: Float64[np.ndarray, "image"]
    height: Float64[np.ndarray, "image"]
    categories: tuple[Category, ...]
    image: Int[np.ndarray, "box"]
    category: Int[np.ndarray, "box"]
    x: Float64[np.ndarray, "box"]
    y: Float64[np.ndarray, "box"]
    w: Float64[np.ndarray, "box"]
    h: Float64[np.ndarray, "box"]
    crowd: Bool[np.ndarray, "box"]
    excluded: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def names(self) -> list[str]:
        """The category names in the order of the ``category`` column."""
        return [category.name for category in self.categories]

    def xywh(self, rows: Any = slice(None)) -> Float64[np.ndarray, "row 4"]:
        """The chosen rows (default: all) as (row, 4) float64 xywh."""
        return np.stack([self.x[rows], self.y[rows], self.w[rows], self.h[rows]], axis=1)

    def rows(self, rows: Any) -> "BoxTable":
        """The same table with the chosen rows (a slice or a mask) only; images and categories stay."""
        columns = ("image", "category", "x", "y", "w", "h", "crowd")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def without_crowds(self) -> "BoxTable":
        """The same table without crowd regions, which mark many things with one box; they are counted as excluded."""
        if not self.crowd.any():
            return self
        return replace(self.rows(~self.crowd), excluded={**self.excluded, "crowd": int(self.crowd.sum())})


def read(path: str | Path, split: str = "train") -> BoxTable:
    """The box table of an official ``instances_*.json``, of that file inside the official zip, or of Parquet.

    Args:
        path: ``.json``, ``.zip`` (member ``annotations/instances_{split}2017.json``) or ``.parquet`` (columns image_id,
            width, height, ann_id, category_id, x, y, w, h, iscrowd; COCO's category ids).
        split: ``train`` or ``val``; it only chooses the member of a zip.

    Raises:
        ValueError: the file is missing, empty, not of a known form or not valid, naming file, field and value.
            Single bad annotations do not raise: they are left out and counted in ``excluded``.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; expected COCO annotations")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; download it again")
    readers: dict[str, Callable[[], BoxTable]] = {
        ".json": lambda: _read_stream(path.open("rb"), str(path)),
        ".zip": lambda: _read_zip(path, split),
        ".parquet": lambda: _read_parquet(path),
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(readers)}")
    return readers[path.suffix]()


# ---------------------------------------------------------------------------------------------- columns and checks


class _Columns:
    """Growing columns: appended to in place, so that reading never holds a column twice."""

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self.dtypes = dtypes
        self._data = {name: bytearray() for name in dtypes}

    def extend(self, **columns: np.ndarray) -> None:
        for name, dtype in self.dtypes.items():
            self._data[name] += np.ascontiguousarray(columns[name], dtype=dtype).data

    def pop(self, name: str) -> np.ndarray:
        return np.frombuffer(self._data.pop(name), dtype=self.dtypes[name])


class _Images:
    """Image records as columns; an image without a file name gets COCO's."""

    def __init__(self) -> None:
        self.columns = _Columns({"id": "i8", "width": "i4", "height": "i4"})
        self.names: list[pa.StringArray] = []

    def extend(self, records: list[_Image]) -> None:
        self.columns.extend(**{name: _column(records, name, dtype) for name, dtype in self.columns.dtypes.items()})
        names = [record.file_name or f"{record.id:012d}.jpg" for record in records]
        self.names.append(pa.array(names, pa.string()))


def _column(records: Sequence[Any], name: str, dtype: str) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), records), dtype, len(records))


_BOX = {
    "id": "i8", "image_id": "i8", "category_id": "i4", "x": "f8", "y": "f8", "w": "f8", "h": "f8", "iscrowd": "i1",
}  # fmt: skip


def _positions(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Position of each value in the sorted ``known``, -1 where it is not there."""
    position = np.full(len(values), -1, np.int32)
    for at in range(0, len(values) if len(known) else 0, SLICE):
        part = values[at : at + SLICE]
        nearest = np.minimum(np.searchsorted(known, part), len(known) - 1)
        position[at : at + SLICE] = np.where(known[nearest] == part, nearest, -1)
    return position


def _repeated(ids: np.ndarray) -> Bool[np.ndarray, "n"]:
    """True for every occurrence of an id but the first."""
    later = np.zeros(len(ids), bool)
    ordered = np.sort(ids)
    if (ordered[1:] == ordered[:-1]).any():
        later[:] = True
        later[np.unique(ids, return_index=True)[1]] = False
    return later


def _table(images: _Images, categories: list[Category], columns: _Columns, source: str) -> BoxTable:
    """Check every annotation, count what is left out, and sort."""
    image_id, width, height = (images.columns.pop(name) for name in ("id", "width", "height"))
    categories = sorted(categories, key=attrgetter("id"))
    category_id = np.array([category.id for category in categories], np.int64)
    for kind, found in (("image", image_id), ("category", category_id)):
        if (repeated := _repeated(found)).any():
            raise ValueError(f"{source}: {kind} id {found[repeated][0]} occurs more than once")
        if not len(found):
            raise ValueError(f"{source}: holds no {'images' if kind == 'image' else 'categories'}")
    if (empty := np.flatnonzero((width <= 0) | (height <= 0))).size:
        at = empty[0]
        raise ValueError(f"{source}: image {image_id[at]} has the size {width[at]} × {height[at]}")
    order = np.argsort(image_id, kind="stable")
    file_name = pa.concat_arrays(images.names).take(pa.array(order))
    image_id, width, height = image_id[order], width[order].astype(np.float64), height[order].astype(np.float64)
    images.names.clear()

    ids = columns.pop("id")
    image = _positions(columns.pop("image_id"), image_id)
    category = _positions(columns.pop("category_id"), category_id).astype(np.int16)
    box = {name: columns.pop(name) for name in "xywh"}
    keep, excluded = np.ones(len(ids), bool), {}
    for reason, bad in _reasons(ids, image, category, box, width, height):
        if (first := bad & keep).any():  # an annotation counts once, under the first reason that fits
            excluded[reason] = int(first.sum())
            keep &= ~bad
    if not keep.any():
        raise ValueError(f"{source}: no usable annotation among {len(ids):,}" + (f" ({excluded})" if excluded else ""))
    order = np.lexsort((ids, category, image))
    del ids
    order = order[keep[order]]
    crowd = columns.pop("iscrowd")[order].astype(bool)
    image, category = image[order], category[order]
    for name in box:  # one after the other, so that one column at most is there twice
        box[name] = box[name][order]
    return BoxTable(
        image_id, file_name, width, height, tuple(categories), image, category, **box, crowd=crowd, excluded=excluded
    )


def _reasons(
    ids: np.ndarray,
    image: np.ndarray,
    category: np.ndarray,
    box: dict[str, np.ndarray],
    width: np.ndarray,
    height: np.ndarray,
) -> Iterator[tuple[str, Bool[np.ndarray, "box"]]]:
    """Why an annotation is left out, and for which ones that holds."""
    x, y, w, h = box.values()
    yield "duplicate annotation id", _repeated(ids)
    yield "unknown image", image < 0
    yield "unknown category", category < 0
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(w) & np.isfinite(h)
    yield "non-finite box", ~finite
    yield "zero or negative size", finite & ((w <= 0) | (h <= 0))
    outside = (x < -OUTSIDE_TOLERANCE) | (y < -OUTSIDE_TOLERANCE)
    for at in range(0, len(image), SLICE):
        part = slice(at, at + SLICE)
        outside[part] |= x[part] + w[part] > width[image[part]] + OUTSIDE_TOLERANCE
        outside[part] |= y[part] + h[part] > height[image[part]] + OUTSIDE_TOLERANCE
    yield "outside the image", finite & outside


# ------------------------------------------------------------------------------------------------------- Parquet


def _read_parquet(path: Path) -> BoxTable:
    needed = ("image_id", "width", "height", "ann_id", "category_id", "x", "y", "w", "h", "iscrowd")
    try:
        schema = pq.read_schema(path)
        if missing := [name for name in needed if name not in schema.names]:
            raise ValueError(f"{path}: the column {missing[0]!r} is missing; a box table has {', '.join(needed)}")
        for name in needed:
            kind, measured = schema.field(name).type, name in tuple("xywh")
            if not (pa.types.is_integer(kind) or (measured and pa.types.is_floating(kind))):
                wanted = "numbers" if measured else "integers"
                raise ValueError(f"{path}: column {name!r} must hold {wanted}, found {kind}")
        table = pq.read_table(path, columns=list(needed))
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for name in needed:
        if table[name].null_count:
            raise ValueError(f"{path}: column {name!r} has {table[name].null_count:,} missing values")
    column = {name: table[name].to_numpy() for name in needed}
    for name, most in {"iscrowd": 1, **dict.fromkeys(("width", "height", "category_id"), (1 << 31) - 1)}.items():
        if (odd := column[name][(column[name] < 0) | (column[name] > most)]).size:
            raise ValueError(f"{path}: column {name!r} holds {odd[0]}; expected 0 to {most}")
    image_id, first = np.unique(column["image_id"], return_index=True)
    at = np.searchsorted(image_id, column["image_id"])
    for side in ("width", "height"):
        if (odd := np.flatnonzero(column[side] != column[side][first][at])).size:
            raise ValueError(f"{path}: image {column['image_id'][odd[0]]} has more than one {side}")
    images = _Images()
    images.columns.extend(id=image_id, **{side: column[side][first] for side in ("width", "height")})
    images.names.append(pa.array([f"{id:012d}.jpg" for id in image_id.tolist()], pa.string()))
    columns = _Columns(_BOX)
    columns.extend(id=column["ann_id"], **{name: column[name] for name in _BOX if name != "id"})
    return _table(images, list(COCO_CATEGORIES), columns, str(path))


# ---------------------------------------------------------------------------------------------------------- JSON


def _read_zip(path: Path, split: str) -> BoxTable:
    member = f"annotations/instances_{split}2017.json"
    try:
        with zipfile.ZipFile(path) as archive:
            if member not in archive.namelist():
                raise ValueError(f"{path}: holds no {member}; expected COCO's annotations_trainval2017.zip")
            return _read_stream(archive.open(member), f"{path}:{member}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a complete zip file ({error}); download it again") from error


def _read_stream(file: Any, source: str) -> BoxTable:
    images, columns = _Images(), _Columns(_BOX)
    categories: list[Category] = []

    def add(annotations: list[_Annotation]) -> None:
        boxes = np.fromiter(chain.from_iterable(a.bbox for a in annotations), "f8", 4 * len(annotations)).reshape(-1, 4)
        integers = {name: _column(annotations, name, dtype) for name, dtype in _BOX.items() if dtype != "f8"}
        columns.extend(**integers, **dict(zip("xywh", boxes.T, strict=True)))

    with file:
        stream = _JsonStream(file, source)
        wanted: dict[str, tuple[type, Callable[[list], None]]] = {
            "images": (_Image, images.extend),
            "annotations": (_Annotation, add),
            "categories": (Category, categories.extend),
        }
        seen = set()
        for key in stream.each_key():
            if key in seen:
                raise ValueError(f"{source}: the key {key!r} occurs twice")
            seen.add(key)
            if key in wanted:
                kind, take = wanted[key]
                for records in stream.records(key, kind):
                    take(records)
            else:
                stream.value()
    if missing := [key for key in wanted if key not in seen]:
        raise ValueError(f"{source}: the key {missing[0]!r} is missing; an instances file has {', '.join(wanted)}")
    return _table(images, categories, columns, source)


class _JsonStream:
    """Reads one large JSON object key by key, and a list of records a few megabytes at a time.

    A list is cut at the last "}, {" in the buffer. Such a cut may lie inside a record or a string, but then what is
    before it is not valid JSON; so a cut is right exactly when what is before it decodes.
    """

    CHUNK = 1 << 19
    _cut = re.compile(rb"\}\s*,\s*(?=\{)")
    _scan = json.JSONDecoder().raw_decode

    def __init__(self, file: Any, source: str) -> None:
        self.file, self.source = file, source
        self.buffer = b""
        self.offset = 0  # of the buffer's first byte in the file

    def each_key(self) -> Iterator[str]:
        """The keys of the outermost object; the caller consumes each value before asking for the next key."""
        self._grow()
        self._drop(3 if self.buffer.startswith(b"\xef\xbb\xbf") else 0)
        self._take(b"{")
        if self._peek() == b"}":
            return
        while True:
            if self._peek() != b'"':
                raise self.fail(f"invalid JSON: expected a key, found {self.buffer[:1]!r}")
            key = self.value()
            self._take(b":")
            yield key
            if self._take(b",", b"}") == b"}":
                break
        if rest := (self.buffer + self.file.read(self.CHUNK)).strip():
            raise self.fail(f"invalid JSON: text after the end, {rest[:20]!r}")

    def value(self) -> Any:
        """The next value, decoded whole."""
        self._peek()
        while (found := self._whole_value(self.buffer)) is None:
            self._grow()
        value, length = found
        self._drop(length)
        return value

    def records(self, key: str, kind: type) -> Iterator[list]:
        """The records of a list, decoded as ``kind``, some thousands at a time."""
        if self._peek() != b"[":
            raise self.fail(f"the value of {key!r} must be a list, found {self.buffer[:1]!r}")
        self._drop(1)
        decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        while True:
            cuts = [
                (cut.start() + 1, cut.end()) for cut in self._cut.finditer(self.buffer, len(self.buffer) - (1 << 16))
            ]
            found = self._decode(decoder, key, *cuts[-1]) if cuts else None
            if found is None and (last := self._whole_value(b"[" + self.buffer)) is not None:
                yield self._as(key, kind, last[0])
                self._drop(last[1] - 1)
                return
            for cut in reversed(cuts[:-1]):
                found = found or self._decode(decoder, key, *cut)
            if found is None:
                self._grow()
                continue
            yield found
            self.buffer += self.file.read(self.CHUNK)

    def _decode(self, decoder: msgspec.json.Decoder, key: str, end: int, after: int) -> list | None:
        """The records before a cut, which are then dropped; None where the cut is not between two records."""
        text = b"[" + self.buffer[:end] + b"]"
        try:
            records = decoder.decode(text)
        except msgspec.ValidationError as error:
            raise self.fail(f"{key!r}: {error}") from None
        except UnicodeError:
            raise self.fail(f"{key!r}: text that is not UTF-8") from None
        except msgspec.DecodeError:
            # Python writes NaN and Infinity, which only its own decoder reads; such boxes are counted later.
            if (found := self._whole_value(text)) is None or found[1] < len(text):
                return None
            records = self._as(key, decoder.type.__args__[0], found[0])
        self._drop(after)
        return records

    def _as(self, key: str, kind: type, values: list) -> list:
        try:
            return msgspec.convert(values, list[kind])  # type: ignore[valid-type]
        except msgspec.ValidationError as error:
            raise self.fail(f"{key!r}: {error}") from None
        except UnicodeError:
            raise self.fail(f"{key!r}: text that is not UTF-8") from None

    def _whole_value(self, data: bytes) -> tuple[Any, int] | None:
        """The value that the data starts with and its length in bytes; None where the data ends too early."""
        text = data.decode("utf-8", "surrogateescape")
        try:
            value, end = self._scan(text)
        except json.JSONDecodeError as error:
            if error.msg.startswith("Unterminated") or error.pos > len(text) - 16:  # 16: a cut number or literal
                return None
            raise self.fail(f"invalid JSON ({error.msg})", len(text[: error.pos].encode(errors="replace"))) from None
        if end == len(text) and not isinstance(value, str | list | dict):
            return None  # a number may go on
        return value, len(text[:end].encode("utf-8", "surrogateescape"))

    def fail(self, problem: str, at: int = 0) -> ValueError:
        return ValueError(f"{self.source}: {problem} near byte {self.offset + at:,}")

    def _grow(self) -> None:
        """Read on, more each time; whoever needs more than there is has a truncated file."""
        if not (chunk := self.file.read(max(self.CHUNK, len(self.buffer)))):
            raise self.fail("the JSON ends too early, the file is truncated", len(self.buffer))
        self.buffer += chunk

    def _drop(self, n: int) -> None:
        self.buffer, self.offset = self.buffer[n:], self.offset + n

    def _peek(self) -> bytes:
        """The next byte that is not white space."""
        while not (stripped := self.buffer.lstrip(b" \t\r\n")):
            self._drop(len(self.buffer))
            self._grow()
        self._drop(len(self.buffer) - len(stripped))
        return self.buffer[:1]

    def _take(self, *expected: bytes) -> bytes:
        if (byte := self._peek()) not in expected:
            raise self.fail(f"invalid JSON: expected {' or '.join(e.decode() for e in expected)}, found {byte!r}")
        self._drop(1)
        return byte
