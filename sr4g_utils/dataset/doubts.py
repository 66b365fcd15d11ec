"""Signs that a file of boxes means other coordinates or other ids than it is read with, for readers' messages."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int64

FEW = 20  # with fewer boxes, where all of them end says nothing
NEARLY_ALL = 0.99
TINY = 2.0  # pixels
SLACK = 1.0  # pixels

Column = Float[np.ndarray, "box"]
Reading = Callable[[Column, Column, Column, Column], tuple[Column, Column, Column, Column]]

# from what is read as x, y, w, h to the left, upper, right and lower edge that it may mean
READINGS: dict[str, Reading] = {
    "corners (x1, y1, x2, y2)": lambda x, y, w, h: (x, y, w, h),
    "corners in the order y1, x1, y2, x2": lambda x, y, w, h: (y, x, h, w),
    "centres with width and height": lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
}


def of_places(box: dict[str, Column], width: Column, height: Column) -> str:
    """What boxes that leave their images hold instead of x, y, width, height, and the remedy.

    Args:
        box: x, y, w and h in pixels, as they are read; width, height: of each box's image.
    """
    x, y, w, h = box.values()

    def fit(left: Column, top: Column, right: Column, bottom: Column, width: Column, height: Column) -> bool:
        inside = (left >= -SLACK) & (top >= -SLACK) & (right <= width + SLACK) & (bottom <= height + SLACK)
        return bool(np.mean(inside & (left < right) & (top < bottom)) >= NEARLY_ALL)

    for name, reading in READINGS.items():
        if fit(*reading(x, y, w, h), width, height):
            return f"the boxes fit as {name}; write the left and upper edge, width and height"
    if fit(x, y, x + w, y + h, height, width):
        return "the boxes fit if the images' width and height are exchanged; are the photos turned?"
    pixels = x * width / 1000, y * height / 1000, w * width / 1000, h * height / 1000
    for name, reading in {"x, y, width, height": lambda x, y, w, h: (x, y, x + w, y + h), **READINGS}.items():
        if fit(*reading(*pixels), width, height):
            return f"the boxes fit as thousandths of the image ({name}); write them in pixels"
    return "a box is the left and upper edge, width and height in pixels of the image whose size the file gives"


def of_sizes(box: dict[str, Column], width: Column, height: Column) -> list[str]:
    """Warnings where boxes are too small, or too near to the first corner, to be in pixels of their images."""
    x, y, w, h = box.values()
    if not len(x):
        return []
    if (median := np.median(np.minimum(w, h))) < TINY:
        shares = "if boxes are shares of the image, multiply them by its width and height"
        return [f"half of the boxes have a side of at most {median:.2g} pixels: {shares}"]
    across, down = (float(np.quantile(end, NEARLY_ALL)) for end in ((x + w) / width, (y + h) / height))
    if len(x) >= FEW and max(across, down) < 0.5:
        where = f"hardly a box reaches beyond {across:.0%} of its image's width and {down:.0%} of its height"
        return [f"{where}: if boxes are percent, or of smaller copies, write them in pixels of the size that is given"]
    return []


def of_ids(ids: Int64[np.ndarray, "id"], known: Int64[np.ndarray, "known"]) -> str:
    """Which other list ids are of, where not all of them are ``known`` (sorted); "" where none fits."""
    for step, change in ((1, "1 is added to"), (-1, "1 is taken from")):
        if np.isin(ids + step, known).all():
            return f"all ids fit if {change} each; is one of the two lists counted from 0?"
    gaps = known[-1] - known[0] >= len(known)
    if gaps and known[0] - 1 <= ids.min() and ids.max() <= known[0] + len(known) - 1:
        return f"{ids.min()} to {ids.max()} may be places in a list; here the ids have gaps, {known[0]} to {known[-1]}"
    return ""
