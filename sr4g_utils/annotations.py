"""The records of an annotation file, and what becomes of those that other tools write in their own way.

Exports differ from the official files: ``"iscrowd": false``, ids and sizes as 12.0 or "12", boxes of strings,
``"supercategory": null``, annotations without a box. What can be converted without loss is. What cannot gets a value
that no annotation has (``NO_ID``, a side of 0, a box of NaN, a flag of -1), by which the box table finds and counts it.
"""

import re
from math import inf, isfinite, nan
from typing import Annotated, Any

import msgspec

NO_ID = -(1 << 63)  # no image or category has it
_LARGEST = (1 << 63) - 1
_EXACT = 1 << 53  # up to here a float is the number that was written

_EXPECTED = {
    **dict.fromkeys(("id", "image_id", "category_id"), "a whole number"),
    **dict.fromkeys(("width", "height"), "a whole number of pixels"),
    "bbox": "four finite numbers", "iscrowd": "0 or 1", "name": "text",
}  # fmt: skip

_Id = Annotated[int, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
_Size = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class Category(msgspec.Struct, frozen=True):
    """A COCO category record."""

    id: _Id
    name: Annotated[str, msgspec.Meta(pattern=r"\S")]
    supercategory: str = ""


class ImageRecord(msgspec.Struct, gc=False):
    """A COCO image record: width and height in pixels."""

    id: _Id
    width: _Size
    height: _Size
    file_name: str | None = None


class Annotation(msgspec.Struct, gc=False):
    """A COCO annotation record: the box is xywh in pixels."""

    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0


class Mender:
    """Makes records of any JSON values.

    ``first`` holds, by the key of its list, the first value of which not all could be used, as a clause for an error.
    """

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    def image(self, place: int, value: Any) -> ImageRecord | None:
        """The image record at a place in the list; None if it has no id."""
        fields = value if isinstance(value, dict) else {}
        id, width, height = (_whole(fields.get(name)) for name in ("id", "width", "height"))
        width, height = (side if 0 < side < 1 << 31 else 0 for side in (width, height))
        self._note("images", place, value, id=id != NO_ID, width=width > 0, height=height > 0)
        return None if id == NO_ID else ImageRecord(id, width, height, _text(fields.get("file_name")))

    def annotation(self, place: int, value: Any) -> Annotation:
        """The annotation at a place in the list; an id that it lacks is of no importance."""
        fields = value if isinstance(value, dict) else {}
        id, image, category = (_whole(fields.get(name)) for name in ("id", "image_id", "category_id"))
        box, crowd = _box(fields.get("bbox")), _flag(fields.get("iscrowd"))
        self._note(
            "annotations", place, value, image_id=image != NO_ID, category_id=category != NO_ID,
            bbox=all(map(isfinite, box)), iscrowd=crowd >= 0,
        )  # fmt: skip
        return Annotation(id, image, category, box, crowd)

    def category(self, place: int, value: Any) -> Category | None:
        """The category at a place in the list; None if it has no id or no name."""
        fields = value if isinstance(value, dict) else {}
        id, name = _whole(fields.get("id")), _text(fields.get("name"))
        self._note("categories", place, value, id=id != NO_ID, name=bool(name.strip()))
        return Category(id, name, _text(fields.get("supercategory"))) if id != NO_ID and name.strip() else None

    def _note(self, key: str, place: int, value: Any, **usable: bool) -> None:
        if all(usable.values()) or key in self.first:
            return
        field = next(name for name, is_usable in usable.items() if not is_usable)
        if not isinstance(value, dict):
            problem, field = f"is {value!r:.60}", ""
        elif field not in value:
            problem = f"has no {field}"
        else:
            problem = f"has the {field} {value[field]!r:.60}"
        self.first[key] = f"{key}[{place}] {problem} (expected: {_EXPECTED.get(field, 'an object')})"


def _whole(value: Any) -> int:
    """The whole number written as 12, 12.0, "12" or "12.0"; NO_ID for all else and for what 64 bits cannot hold."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,40}(\.0*)?", value):
        value = int(value.partition(".")[0])
    elif isinstance(value, float) and abs(value) <= _EXACT and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) <= _LARGEST else NO_ID


def _box(value: Any) -> tuple[float, float, float, float]:
    """The four numbers, which may be written as strings; NaN in place of what is none."""
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
    """0 or 1, of a number or a truth value; nothing is 0, and all else -1."""
    if isinstance(value, bool) or value is None:
        return int(bool(value))
    return found if (found := _whole(value)) in (0, 1) else -1


def _text(value: Any) -> str:
    """A text; a whole number as its digits; nothing for all else, half of a surrogate pair included."""
    if type(value) is int and abs(value) <= _LARGEST:
        return str(value)
    return value if isinstance(value, str) and not re.search("[\ud800-\udfff]", value) else ""
