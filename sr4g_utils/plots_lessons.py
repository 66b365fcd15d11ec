"""Figures of notebooks 03 and 04 that show pictures, or look at a step more closely."""

from collections.abc import Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .plots import COLOURS, MARKERS, OBJECT, SUBJECT, draw_box


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
        axis.set_title("\n".join(wrap(title, 22)), fontsize="x-small")
    figure.tight_layout()
    return figure


def found(
    records: pd.DataFrame, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], boxes: Sequence[pd.DataFrame]
) -> Figure:
    """Pictures of one prompt with all boxes found in them, thin, the pair that decided, and the verdict.

    Args:
        records: the pictures' verdicts (:func:`visor.verdicts`).
        boxes: of each picture, rows of label, x, y, w and h (pixels).
    """
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.8 * len(pictures), 3.4), squeeze=False)
    for axis, picture, rows, record in zip(axes[0], pictures, boxes, records.to_dict("records"), strict=True):
        axis.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0))
        axis.set(xticks=[], yticks=[], xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
        for row in rows.itertuples():
            colour = SUBJECT if row.label == record["subject"] else OBJECT
            axis.add_patch(Rectangle((row.x, row.y), row.w, row.h, fill=False, edgecolor=colour, linewidth=0.7))
        for role, colour in (("object", OBJECT), ("subject", SUBJECT)):
            if record[f"n_{role}"]:
                xywh = np.array([record[f"{role}_{side}"] for side in "xywh"])
                label = f"{record[role]} {record[f'{role}_score']:.2f}"
                draw_box(axis, xywh, colour, label, below=role == "object")  # two boxes, two places for their labels
        mark, colour = ("✓", COLOURS[2]) if record["correct"] else ("✗", COLOURS[3])
        axis.set_title("\n".join(wrap(f"{mark} {record['reason']}", 28)), fontsize="small", color=colour)
        axis.grid(False)
    figure.tight_layout()
    return figure


def signs(table: pd.DataFrame, what: dict[str, str]) -> Figure:
    """The failure signatures of every model: its number for each, coloured where it is a bad sign.

    Args:
        table: of :func:`signatures.look`.
        what: what the number of each sign is.
    """
    models, names = list(dict.fromkeys(table.model)), list(dict.fromkeys(table.sign))
    figure, axis = plt.subplots(figsize=(6.6 + 1.5 * len(models), 0.42 * len(names) + 0.8))
    for row in table.itertuples():
        x, y = models.index(row.model), names.index(row.sign)
        colour = (*COLOURS[3], 0.35) if row.raised else "white"
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="0.8"))
        number = "–" if np.isnan(row.number) else f"{row.number:.0f}"
        axis.text(x, y, f"{number} !" if row.raised else number, ha="center", va="center")
    axis.set(xlim=(-0.5, len(models) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axis.set(xticks=range(len(models)), xticklabels=models)
    axis.set(yticks=range(len(names)), yticklabels=[f"{name} ({what[name]})" for name in names])
    axis.xaxis.tick_top()
    axis.grid(False)
    figure.tight_layout()
    return figure


def closeness(table: pd.DataFrame, space: str) -> Figure:
    """KID, precision, recall and diversity of every model, with 95 % intervals, a field for each.

    Args:
        table: of :func:`fidelity.table`. space: whose features, in a word.
    """
    metrics, models = (list(dict.fromkeys(table[name])) for name in ("metric", "model"))
    figure, axes = plt.subplots(1, len(metrics), figsize=(2.5 * len(metrics) + 1, 0.4 * len(models) + 1.3), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        for i, row in enumerate(table[table.metric == metric].itertuples()):
            error = np.nan_to_num([[row.value - row.low], [row.high - row.value]]).clip(0)
            axis.errorbar(row.value, i, xerr=error, fmt=MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)])
        axis.set(yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.5))
        axis.set_xlabel(metric if metric == "KID" else f"{metric} (%)")
        axis.grid(False, axis="y")
    axes[0].set_title(f"features: {space}", loc="left", fontsize="medium")
    figure.tight_layout()
    return figure
