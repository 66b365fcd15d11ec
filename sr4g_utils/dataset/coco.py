"""COCO annotation files (JSON, zip, Parquet) as box tables: records, mended where other tools write them differently,
then columns, then checks.

Exports differ from the official files: ``"iscrowd": false``, ids and sizes as 12.0 or "12", boxes of strings,
``"supercategory": null``, annotations without a box. What can be converted without loss is converted. Anything else
becomes a value that no annotation has (``NO_ID``, a side of 0, a box of NaN, a flag of -1), by which the checks find
and count it.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import inf, isfinite, nan
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool
from msgspec import structs

from ..store.limits import check_limit, check_loss, check_unpacked
from . import doubts
from .boxes import COCO_CATEGORIES, LARGEST, OUTSIDE_TOLERANCE, SLICE, BoxTable, Category, Id
from .jsonstream import JsonStream
from .names import key, tidy

NO_ID = -(1 << 63)  # the id of no image and no category
_EXACT = 1 << 53  # below it, a float is exactly the number that was written
PARQUET_ROWS = 1 << 16  # of a box table, read together
SAMPLE = 10_000  # boxes that tell how boxes are meant

_EXPECTED = {
    **dict.fromkeys(("id", "image_id", "category_id"), "a whole number"),
    **dict.fromkeys(("width", "height"), "a whole number of pixels"),
    "bbox": "four finite numbers", "iscrowd": "0 or 1", "name": "text",
}  # fmt: skip
_Size = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class ImageRecord(msgspec.Struct, gc=False):
    """A COCO image record: width and height in pixels."""

    id: Id
    width: _Size
    height: _Size
    file_name: str | None = None


class Annotation(msgspec.Struct, gc=False):
    """A COCO annotation record: the box is xywh in pixels."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


class Mender:
    """Makes records from any JSON values.

    ``first`` describes, for each list of the file, its first value that could not be used in full, for an error;
    ``of_field`` the first one by its field.
    """

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.of_field: dict[str, str] = {}

    def image(self, place: int, value: Any) -> ImageRecord | None:
        """The image record at a place in the list; None if it has no id."""
        fields = value if isinstance(value, dict) else {}
        id, width, height = (_whole_number(fields.get(name)) for name in ("id", "width", "height"))
        width, height = (side if 0 < side < 1 << 31 else 0 for side in (width, height))
        self._note("images", place, value, id=id != NO_ID, width=width > 0, height=height > 0)
        return None if id == NO_ID else ImageRecord(id, width, height, _text(fields.get("file_name")))

    def annotation(self, place: int, value: Any) -> Annotation:
        """The annotation at a place in the list; it needs no id."""
        fields = value if isinstance(value, dict) else {}
        id, image, category = (_whole_number(fields.get(name)) for name in ("id", "image_id", "category_id"))
        box, crowd = _box(fields.get("bbox")), _flag(fields.get("iscrowd"))
        self._note(
            "annotations", place, value, image_id=image != NO_ID, category_id=category != NO_ID,
            bbox=all(map(isfinite, box)), iscrowd=crowd >= 0,
        )  # fmt: skip
        return Annotation(id, image, category, box, crowd)

    def category(self, place: int, value: Any) -> Category | None:
        """The category at a place in the list; None if it has no id or no name."""
        fields = value if isinstance(value, dict) else {}
        id, name = _whole_number(fields.get("id")), _text(fields.get("name"))
        self._note("categories", place, value, id=id != NO_ID, name=bool(tidy(name)))
        return Category(id, name, _text(fields.get("supercategory"))) if id != NO_ID and tidy(name) else None

    def _note(self, key: str, place: int, value: Any, **usable: bool) -> None:
        for field in (name for name, is_usable in usable.items() if not is_usable and name not in self.of_field):
            problem, expected = f"is {value!r:.60}", "an object"
            if isinstance(value, dict):
                problem = f"has the {field} {value[field]!r:.60}" if field in value else f"has no {field}"
                expected = _EXPECTED[field]
            self.of_field[field] = f"{key}[{place}] {problem} (expected: {expected})"
            self.first.setdefault(key, self.of_field[field])


def _whole_number(value: Any) -> int:
    """The whole number written as 12, 12.0, "12" or "12.0"; NO_ID for anything else or beyond 64 bits."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,40}(\.0*)?", value):
        value = int(value.partition(".")[0])
    elif isinstance(value, float) and abs(value) <= _EXACT and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) <= LARGEST else NO_ID


def _box(value: Any) -> tuple[float, float, float, float]:
    """The four numbers, which may be written as strings; NaN for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return nan, nan, nan, nan
    x, y, w, h = map(_number, value)
    return x, y, w, h


def _number(value: Any) -> float:
    is_text = isinstance(value, str) and re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", value)
    try:
        return float(value) if is_text or type(value) in (int, float) else nan
    except OverflowError:
        return inf


def _flag(value: Any) -> int:
    """0 or 1, from a number or a truth value; 0 for null, and -1 for anything else."""
    if isinstance(value, bool) or value is None:
        return int(bool(value))
    return number if (number := _whole_number(value)) in (0, 1) else -1


def _text(value: Any) -> str:
    """A text, or a whole number as its digits; "" for anything else, also for half of a surrogate pair."""
    if type(value) is int and abs(value) <= LARGEST:
        return str(value)
    return value if isinstance(value, str) and not re.search("[\ud800-\udfff]", value) else ""


# ---------------------------------------------------------------------------------------------- columns and checks


class _Growing:
    """Growing columns: appended to in place, so that reading never holds a column twice."""

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self.dtypes = dtypes
        self._data = {name: bytearray() for name in dtypes}

    def extend(self, **columns: np.ndarray) -> None:
        for name, dtype in self.dtypes.items():
            self._data[name] += np.ascontiguousarray(columns[name], dtype=dtype).data

    def pop(self, name: str) -> np.ndarray:
        return np.frombuffer(self._data.pop(name), dtype=self.dtypes[name])


_IMAGE = {"id": "i8", "width": "i4", "height": "i4"}
_BOX = {
    "id": "i8", "image_id": "i8", "category_id": "i8", "x": "f8", "y": "f8", "w": "f8", "h": "f8", "iscrowd": "i1",
}  # fmt: skip


class _Contents:
    """What has been read: images and boxes as columns, categories, and what could not be used."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.images = _Growing(_IMAGE)
        self.boxes = _Growing(_BOX)
        self.file_names: list[pa.StringArray] = []
        self.categories: list[Category] = []
        self.mender = Mender()
        self.rows = 0
        self.causes: dict[str, str] = {}  # of what is left out, by the reason
        self.doubts: list[str] = []

    def add_images(self, records: list[ImageRecord]) -> None:
        """An image without a file name gets COCO's."""
        self.images.extend(**{name: _column(records, name, dtype) for name, dtype in self.images.dtypes.items()})
        names = [(record.file_name or f"{record.id:012d}.jpg").replace("\\", "/") for record in records]
        self.file_names.append(pa.array(names, pa.string()))

    def add_annotations(self, records: list[Annotation]) -> None:
        numbers = chain.from_iterable(map(attrgetter("bbox"), records))
        boxes = np.fromiter(numbers, "f8", 4 * len(records)).reshape(-1, 4)
        self.rows += len(records)
        check_limit("annotations", self.rows, f"{self.source}: its number of annotations")
        integers = {name: _column(records, name, dtype) for name, dtype in _BOX.items() if dtype != "f8"}
        self.boxes.extend(**integers, **dict(zip("xywh", boxes.T, strict=True)))

    def add_rows(self, rows: dict[str, np.ndarray]) -> None:
        """Rows of a box table, which repeats an image's id and size for each of its boxes."""
        for name, most in {"iscrowd": 1, "width": (1 << 31) - 1, "height": (1 << 31) - 1}.items():
            rows[name] = np.where((rows[name] < 0) | (rows[name] > most), -1, rows[name])
        image = {name: rows[key] for name, key in {"id": "image_id", "width": "width", "height": "height"}.items()}
        other = np.any([np.append(True, column[1:] != column[:-1]) for column in image.values()], axis=0)
        other &= rows["image_id"] != NO_ID
        self.images.extend(**{name: column[other] for name, column in image.items()})
        self.boxes.extend(**rows, id=rows["ann_id"])

    def places(self, kind: str, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The place of each annotation's image or category among the sorted ids; -1 where it has none."""
        place = _positions(ids, known)
        if (missing := ids[place < 0]).size:
            numbers = np.unique(ids[ids != NO_ID])
            unread = self.mender.of_field.get(f"{kind}_id", "")
            self.causes[f"unknown {kind}"] = unread if (missing == NO_ID).all() else f"such as {missing.max()}"
            if numbers.size and (list_of_ids := doubts.of_ids(numbers, known)):
                self.doubts.append(f"{kind}_id: {list_of_ids}")
        return place

    def fail(self, problem: str) -> ValueError:
        return ValueError("; ".join([f"{self.source}: {problem}", *self.mender.first.values()]))


def _column(records: Sequence[Any], name: str, dtype: str) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), records), dtype, len(records))


def _positions(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Position of each value in the sorted ``known``, -1 where it is not there."""
    position = np.full(len(values), -1, np.int32)
    for at in range(0, len(values) if len(known) else 0, SLICE):
        part = values[at : at + SLICE]
        nearest = np.minimum(np.searchsorted(known, part), len(known) - 1)
        position[at : at + SLICE] = np.where(known[nearest] == part, nearest, -1)
    return position


def _table(contents: _Contents, allow_loss: float | int | None) -> BoxTable:
    """Check every annotation, count those left out and say so, and sort."""
    image_id, file_name, width, height = _images(contents)
    categories, merged = _categories(contents)
    category_id = contents.boxes.pop("category_id")
    for id, lowest in merged.items():
        category_id[category_id == id] = lowest
    known = np.array([category.id for category in categories])
    category = contents.places("category", category_id, known).astype(np.int16)
    del category_id
    image = contents.places("image", contents.boxes.pop("image_id"), image_id)
    box, crowd = {name: contents.boxes.pop(name) for name in "xywh"}, contents.boxes.pop("iscrowd")
    keep, excluded = np.ones(len(image), bool), {}
    for reason, bad in _reasons(image, category, box, crowd, width, height):
        if (first := bad & keep).any():  # an annotation counts once, under the first reason that fits
            excluded[reason] = int(first.sum())
            keep &= ~bad
    if not keep.any():
        counts = ", ".join(f"{reason}: {n:,}" for reason, n in excluded.items())
        if "outside the image" in excluded:
            at = _sample(image >= 0)
            sampled = {name: column[at] for name, column in box.items()}
            counts += f"; {doubts.of_places(sampled, width[image[at]], height[image[at]])}"
        raise contents.fail(f"no usable annotation among {len(keep):,}" + f" ({counts})" * bool(counts))
    _say_what_is_doubtful(contents, image, box, width, height, keep, excluded, allow_loss)
    order = np.lexsort((contents.boxes.pop("id"), category, image))
    order = order[keep[order]]
    image, category, crowd = image[order], category[order], crowd[order].astype(bool)
    for name in box:  # one after the other, so that one column at most is there twice
        box[name] = box[name][order]
    if not (usable := width > 0).all():
        image = (np.cumsum(usable, dtype=np.int32) - 1)[image]
        image_id, width, height, file_name = image_id[usable], width[usable], height[usable], file_name.filter(usable)
    return BoxTable(
        image_id, file_name, width, height, categories, image, category, **box,
        crowd=crowd, excluded=excluded, merged=merged,
    )  # fmt: skip


def _sample(rows: Bool[np.ndarray, "box"]) -> np.ndarray:
    """The places of at most ``SAMPLE`` of some rows."""
    at = np.flatnonzero(rows)
    return at[:: len(at) // SAMPLE + 1]


def _say_what_is_doubtful(
    contents: _Contents, image: np.ndarray, box: dict, width: np.ndarray, height: np.ndarray,
    keep: Bool[np.ndarray, "box"], excluded: dict[str, int], allow_loss: float | int | None,
) -> None:  # fmt: skip
    def sample(rows: Bool[np.ndarray, "box"]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        at = _sample(rows)
        return {name: column[at] for name, column in box.items()}, width[image[at]], height[image[at]]

    unread = contents.mender.of_field
    fields = {"no box of four finite numbers": "bbox", "iscrowd neither 0 nor 1": "iscrowd"}
    causes = contents.causes | {reason: unread.get(field, "") for reason, field in fields.items()}
    causes["image without a size"] = unread.get("width", unread.get("height", ""))
    if "outside the image" in excluded:
        causes["outside the image"] = doubts.of_places(*sample(image >= 0))
    more = [*contents.doubts, *doubts.of_sizes(*sample(keep))]
    check_loss(contents.source, excluded, len(keep), "annotations", causes, more, allow_loss)


def _categories(contents: _Contents) -> tuple[tuple[Category, ...], dict[int, int]]:
    """One category per name, sorted by id, and the ids that were merged into a lower one of the same name."""
    named = [structs.replace(category, name=tidy(category.name)) for category in contents.categories]
    named = sorted((category for category in named if category.name), key=attrgetter("id"))
    if not named:
        raise contents.fail("holds no categories")
    by_id: dict[int, Category] = {}
    by_name: dict[str, Category] = {}
    for category in named:
        if key((known := by_id.setdefault(category.id, category)).name) != key(category.name):
            raise contents.fail(
                f"category id {category.id} occurs more than once, as {known.name!r} and {category.name!r}; number the "
                "categories anew, in the annotations too"
            )
        by_name.setdefault(key(category.name), category)
    if len(by_name) > np.iinfo(np.int16).max:
        raise contents.fail(f"holds {len(by_name):,} categories; at most {np.iinfo(np.int16).max:,} can be told apart")
    lowest = {id: by_name[key(category.name)].id for id, category in by_id.items()}
    return tuple(by_name.values()), {id: to for id, to in lowest.items() if id != to}


def _images(contents: _Contents) -> tuple[np.ndarray, pa.StringArray, np.ndarray, np.ndarray]:
    """Id, file name, width and height of every image, sorted by id; a size of 0 where it cannot be used."""
    image_id, width, height = (contents.images.pop(name) for name in ("id", "width", "height"))
    if not len(image_id):
        raise contents.fail("holds no images")
    order = np.argsort(image_id, kind="stable")
    file_name = pa.concat_arrays(contents.file_names).take(pa.array(order))
    contents.file_names.clear()
    image_id, width, height = image_id[order], width[order].astype(np.float64), height[order].astype(np.float64)
    width, height = (np.where((width > 0) & (height > 0), side, 0) for side in (width, height))

    def record(at: Any) -> str:
        return f"{width[at]:.0f} × {height[at]:.0f} {file_name[at].as_py()}"

    again = np.append(False, image_id[1:] == image_id[:-1])
    for at in np.flatnonzero(again):
        if record(at - 1) != record(at):
            raise contents.fail(
                f"image id {image_id[at]} occurs more than once, as {record(at - 1)} and {record(at)}; number the "
                "images anew, in the annotations too"
            )
    if again.any():
        image_id, width, height, file_name = image_id[~again], width[~again], height[~again], file_name.filter(~again)
    return image_id, file_name, width, height


def _reasons(
    image: np.ndarray, category: np.ndarray, box: dict, crowd: np.ndarray, width: np.ndarray, height: np.ndarray
) -> Iterator[tuple[str, Bool[np.ndarray, "box"]]]:
    """The reasons to leave an annotation out, each with a mask of the annotations it holds for."""
    x, y, w, h = box.values()
    yield "unknown image", image < 0
    yield "image without a size", (width == 0)[image]
    yield "unknown category", category < 0
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(w) & np.isfinite(h)
    yield "no box of four finite numbers", ~finite
    yield "iscrowd neither 0 nor 1", crowd < 0
    yield "zero or negative size", finite & ((w <= 0) | (h <= 0))
    outside = (x < -OUTSIDE_TOLERANCE) | (y < -OUTSIDE_TOLERANCE)
    for at in range(0, len(image), SLICE):
        part = slice(at, at + SLICE)
        outside[part] |= x[part] + w[part] > width[image[part]] + OUTSIDE_TOLERANCE
        outside[part] |= y[part] + h[part] > height[image[part]] + OUTSIDE_TOLERANCE
    yield "outside the image", finite & outside


# ------------------------------------------------------------------------------------------------------------- files


def read(path: str | Path, split: str = "train", allow_loss: float | int | None = None) -> BoxTable:
    """The box table of an official ``instances_*.json``, of that file inside the official zip, or of Parquet.

    Args:
        path: ``.json``, ``.zip`` (member ``annotations/instances_{split}2017.json``) or ``.parquet`` (columns image_id,
            width, height, ann_id, category_id, x, y, w, h, iscrowd; COCO's category ids). Numbers of a JSON file may be
            written as other tools do (12.0, "12", false) if nothing is lost; backslashes in file names become slashes.
            Ids are whole numbers of 64 bits; written as floats, they are read up to 2**53, beyond which floats do not
            tell neighbours apart. Names are made :func:`names.tidy`.
        split: ``train`` or ``val``; it only chooses the member of a zip.
        allow_loss: the share of annotations that may be left out, see :func:`store.limits.check_loss`.

    Raises:
        ValueError: the file is missing, empty, not of a known form or not valid, naming file, field and value; or most
            of it is lost. Single bad annotations do not raise: they are left out and counted in ``excluded``, as are
            those of a single image or category that cannot be used. What looks doubtful is printed to stderr.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "no regular file" if path.exists() else "no such file"
        raise ValueError(f"{path}: {what}; expected COCO annotations")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; download it again")
    readers: dict[str, Callable[[], _Contents]] = {
        ".json": lambda: _read_stream(path.open("rb"), str(path)),
        ".zip": lambda: _read_zip(path, split),
        ".parquet": lambda: _read_parquet(path),
    }
    if (suffix := path.suffix.lower()) not in readers:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(readers)}")
    return _table(readers[suffix](), allow_loss)


def _read_parquet(path: Path) -> _Contents:
    needed = ("image_id", "width", "height", "ann_id", "category_id", "x", "y", "w", "h", "iscrowd")
    try:
        contents = _Contents(str(path))
        with pq.ParquetFile(path) as file:  # some rows at a time: a column is never there twice
            check_limit("annotations", file.metadata.num_rows, f"{path}: its number of annotations")
            _check_columns(file.schema_arrow, needed, path)
            for rows in file.iter_batches(PARQUET_ROWS, columns=list(needed)):
                contents.add_rows({name: _numbers(rows[name], name not in tuple("xywh")) for name in needed})
    except (pa.ArrowException, OSError) as error:  # damaged bytes are of either kind
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    image_id, width, height = (contents.images.pop(name) for name in ("id", "width", "height"))
    image_id, first, at = np.unique(image_id, return_index=True, return_inverse=True)
    for name, side in {"width": width, "height": height}.items():
        if (odd := np.flatnonzero(side != side[first][at])).size:
            raise ValueError(f"{path}: image {image_id[at[odd[0]]]} has more than one {name}")
    contents.images = _Growing(_IMAGE)
    contents.images.extend(id=image_id, width=width[first], height=height[first])
    contents.file_names.append(pa.array(map("{:012d}.jpg".format, image_id.tolist()), pa.string()))
    contents.categories.extend(COCO_CATEGORIES)
    return contents


def _check_columns(schema: pa.Schema, needed: Sequence[str], path: Path) -> None:
    if missing := [name for name in needed if name not in schema.names]:
        raise ValueError(f"{path}: the column {missing[0]!r} is missing; a box table has {', '.join(needed)}")
    for name in needed:
        kind, measured = schema.field(name).type, name in tuple("xywh")
        is_flag = name == "iscrowd" and pa.types.is_boolean(kind)
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or is_flag):
            wanted = "numbers" if measured else "integers"
            raise ValueError(f"{path}: column {name!r} must hold {wanted}, found {kind}")


def _numbers(column: pa.Array, whole: bool) -> np.ndarray:
    """A column's numbers. Where they must be whole, they may be kept as floats; NO_ID for all else and missing ones."""
    if not whole or (pa.types.is_signed_integer(column.type) and not column.null_count):
        return column.to_numpy(zero_copy_only=False)
    if not pa.types.is_floating(column.type):
        return column.cast(pa.int64()).fill_null(NO_ID).to_numpy()
    values = column.to_numpy(zero_copy_only=False)
    exact = (np.abs(values) <= _EXACT) & (values == np.floor(values))
    return np.where(exact, values, NO_ID).astype(np.int64)


def _read_zip(path: Path, split: str) -> _Contents:
    member = f"annotations/instances_{split}2017.json"
    try:
        with zipfile.ZipFile(path) as archive:
            if member not in archive.namelist():
                raise ValueError(f"{path}: holds no {member}; expected COCO's annotations_trainval2017.zip")
            about = archive.getinfo(member)
            check_unpacked(about.compress_size, about.file_size, f"{path}:{member}")
            return _read_stream(archive.open(member), f"{path}:{member}")
    except RuntimeError as error:  # a password, or a compression that Python does not know
        raise ValueError(f"{path}: Python cannot unpack it ({error}); unpack it and give {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a complete zip file ({error}); download it again") from error


def _read_stream(file: Any, source: str) -> _Contents:
    contents = _Contents(source)
    wanted: dict[str, tuple[type, Callable, Callable]] = {
        "images": (ImageRecord, contents.mender.image, contents.add_images),
        "annotations": (Annotation, contents.mender.annotation, contents.add_annotations),
        "categories": (Category, contents.mender.category, contents.categories.extend),
    }
    with file:
        stream = JsonStream(file, source)
        seen = set()
        for key in stream.each_key():
            if key in seen:
                raise ValueError(f"{source}: the key {key!r} occurs twice")
            seen.add(key)
            if key in wanted:
                kind, mend, add = wanted[key]
                for records in stream.records(key, kind, mend):
                    add(records)
            else:
                stream.skip(key)
    if missing := [key for key in wanted if key not in seen]:
        raise ValueError(f"{source}: the key {missing[0]!r} is missing; an instances file has {', '.join(wanted)}")
    return contents
