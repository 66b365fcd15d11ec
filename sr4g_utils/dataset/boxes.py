"""The box table: COCO's annotations as columns."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int, Int64

LARGEST = (1 << 63) - 1
Id = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]


class Category(msgspec.Struct, frozen=True):
    """A COCO category record."""

    id: Id
    name: Annotated[str, msgspec.Meta(pattern=r"\S")]
    supercategory: str = ""


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

COCO_CATEGORIES: tuple[Category, ...] = tuple(
    Category(id, name, supercategory) for supercategory, names in COCO.items() for id, name in names.items()
)

SLICE = 1 << 20  # rows worked on together where a column's worth of intermediate values would be too many
OUTSIDE_TOLERANCE = 1.0  # pixels; official boxes are rounded polygons and may end a fraction beyond the border


@dataclass(frozen=True)
class BoxTable:
    """Valid boxes as columns, sorted by image id, then category, then annotation id, then place in the file.

    ``image`` and ``category`` are positions in the image columns and in ``categories``; x, y, w, h are float64 pixels.
    ``excluded`` counts the annotations that were left out, by reason; it holds nothing else. Names of categories are
    distinct: captions, prompts and detectors know no more than the name. ``merged`` says which category ids of the file
    went under the lowest id of the same name.
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
    merged: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def names(self) -> list[str]:
        """The category names in the order of the ``category`` column."""
        return [category.name for category in self.categories]

    def xywh(self, rows: Any = slice(None)) -> Float64[np.ndarray, "row 4"]:
        """The chosen rows (default: all) as (row, 4) float64 xywh; each column is contiguous."""
        return np.stack([self.x[rows], self.y[rows], self.w[rows], self.h[rows]]).T

    def rows(self, rows: Any) -> "BoxTable":
        """The same table with the chosen rows (a slice or a mask) only; images and categories stay."""
        columns = ("image", "category", "x", "y", "w", "h", "crowd")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def of_image(self, image: int) -> "BoxTable":
        """A table of one image, by its place."""
        here, only = slice(*np.searchsorted(self.image, [image, image + 1])), slice(image, image + 1)
        columns = {name: getattr(self, name)[only] for name in ("image_id", "file_name", "width", "height")}
        return replace(self.rows(here), **columns, image=np.zeros(here.stop - here.start, self.image.dtype))

    def without_crowds(self) -> "BoxTable":
        """The same table without crowd regions, which mark many things with one box; they are counted as excluded."""
        if not self.crowd.any():
            return self
        return replace(self.rows(~self.crowd), excluded={**self.excluded, "crowd": int(self.crowd.sum())})
