"""Figures of the cells that work a step out by hand (notebooks 03 and 04)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure

from .plots import COLOURS, OBJECT, SUBJECT, draw_box


def pictures(rows: Sequence[UInt8[np.ndarray, "n h w 3"]], names: Sequence[str], titles: Sequence[str] = ()) -> Figure:
    """Pictures in a grid: a row for each array, with its name to the left, and a title above each column."""
    columns = len(rows[0])
    size = (1.6 * columns + 1, 1.75 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, name, shown in zip(axes, names, rows, strict=True):
        for axis, picture in zip(line, shown, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize="small")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize="x-small")
    figure.tight_layout()
    return figure


def found(
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]], boxes: Sequence[pd.DataFrame], titles: Sequence[str], subject: str
) -> Figure:
    """Pictures of one prompt with every box that was found in them and its score; the subject's are blue.

    Args:
        boxes: of each picture, rows of label, score, x, y, w and h (pixels).
    """
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.8 * len(pictures), 3.2), squeeze=False)
    for axis, picture, rows, title in zip(axes[0], pictures, boxes, titles, strict=True):
        axis.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0))
        for row in rows.itertuples():
            colour = SUBJECT if row.label == subject else OBJECT
            draw_box(axis, np.array([row.x, row.y, row.w, row.h]), colour, f"{row.label} {row.score:.2f}")
        correct = title.startswith("✓")
        axis.set_title(title, fontsize="small", color=COLOURS[2] if correct else COLOURS[3])
        axis.set(xticks=[], yticks=[], xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
        axis.grid(False)
    figure.tight_layout()
    return figure
