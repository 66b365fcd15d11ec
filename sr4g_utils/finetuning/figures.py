"""The figures of notebook 03: crops, loss and validation along the steps."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..dataset.figures import COLOURS, MARKERS, METRIC_COLOUR, Boxed, counted, draw_box


def crop(photo: np.ndarray, before: Boxed, cropped: np.ndarray, after: Boxed, frame: np.ndarray) -> Figure:
    """What a crop leaves of a photo (uint8, h × w × 3): the photo with its boxes and the crop's frame (xywh), and what
    the model sees; ``before`` and ``after``: names and xywh boxes in the photo's and in the crop's pixels."""
    names = list(dict.fromkeys(name for name, _ in before))
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    for axis, pixels, boxes in zip(axes, (photo, cropped), (before, after), strict=True):
        h, w = pixels.shape[:2]
        axis.imshow(pixels, extent=(0, w, h, 0))
        for name, xywh in boxes:
            draw_box(axis, xywh, COLOURS[names.index(name) % len(COLOURS)], name)
        axis.set(xticks=[], yticks=[], title=f"{len(boxes)} boxes, {w} × {h} pixels")
        axis.grid(False)
    for colour, style in (("white", "-"), ("black", "--")):  # visible on any ground
        axes[0].add_patch(Rectangle((frame[0], frame[1]), *frame[2:], fill=False, ec=colour, lw=2, linestyle=style))
    figure.tight_layout()
    return figure


def loss_curve(log: pd.DataFrame) -> Figure:
    """The loss of fine-tuning by step, and its running mean; rows of the log without a loss are ignored."""
    rows = log.dropna(subset="loss")
    figure, axis = plt.subplots(figsize=(7, 3.5))
    axis.plot(rows.step, rows.loss, color=COLOURS[7], alpha=0.6, label="logged")
    mean = rows.loss.rolling(max(len(rows) // 20, 1), min_periods=1, center=True).mean()
    axis.plot(rows.step, mean, color=COLOURS[0], label="running mean")
    axis.set(xlabel="step", ylabel="loss (mean squared error)")
    axis.legend()
    figure.tight_layout()
    return figure


def validation_curve(log: pd.DataFrame) -> Figure:
    """OA, VISOR and VISOR_Cond of the validation prompts by step; rows of the log without them are ignored."""
    rows = log.dropna(subset="OA")
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for (name, colour), marker in zip(METRIC_COLOUR.items(), MARKERS, strict=False):
        axis.plot(rows.step, rows[name].astype(float), marker=marker, color=colour, label=name)
    axis.set(xlabel="step", ylabel="percent of validation images", ylim=(-2, 102))
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def learning_curve(log: pd.DataFrame, curve: pd.DataFrame, most: Mapping[str, float]) -> Figure:
    """How a base learnt to draw: its loss, and by each judge how often both things of a caption are found, against the
    images that it was trained on; dashed, in drawn scenes.

    Args:
        log: columns images and loss.
        curve: columns images, judge and both_found (percent); it may be empty.
        most: by the judge's name, both_found in drawn scenes.
    """
    figure, axes = plt.subplots(1, 2 if len(curve) else 1, figsize=(10 if len(curve) else 5, 3.2), squeeze=False)
    axes[0, 0].plot(log.images, log.loss, color=COLOURS[0])
    axes[0, 0].set(xlabel="images trained on", ylabel="loss (mean squared error)")
    for (judge, rows), colour, marker in zip(curve.groupby("judge", sort=False), COLOURS, MARKERS, strict=False):
        axes[0, 1].plot(rows.images, rows.both_found, color=colour, marker=marker, label=judge)
        if judge in most:
            axes[0, 1].axhline(most[judge], color=colour, linestyle="--", linewidth=1)
    if len(curve):
        axes[0, 1].set(xlabel="images trained on", ylabel="both things found (%)", ylim=(-2, 102))
        axes[0, 1].legend(title="judge (dashed: drawn scenes)", loc="upper left", bbox_to_anchor=(1.02, 1))
    for axis in axes.flat:
        axis.locator_params(axis="x", nbins=4)
        axis.xaxis.set_major_formatter(counted)
    figure.tight_layout()
    return figure


def images(rows: Sequence[UInt8[np.ndarray, "n h w 3"]], names: Sequence[str], titles: Sequence[str] = ()) -> Figure:
    """Images in a grid: a row for each array, with its name to the left, and a title above each column."""
    columns, size = len(rows[0]), (1.4 * len(rows[0]) + 1, 1.55 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, name, row in zip(axes, names, rows, strict=True):
        for axis, image in zip(line, row, strict=True):
            axis.imshow(image, interpolation="nearest")  # as it is, and a small file
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize="small")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title("\n".join(wrap(title, 22)), fontsize="x-small")
    figure.tight_layout()
    return figure
