"""The figures of notebook 04: scores, distances from photos, contact sheets."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..dataset.figures import COLOURS, MARKERS, OBJECT, SUBJECT, draw_box, estimates, spread
from ..relations import NAMES
from .scores import MAIN


def look_of(table: pd.DataFrame) -> list[tuple[str, Any, str, float]]:
    """Each model's name, colour, marker and offset from its row's middle."""
    names = list(dict.fromkeys(table.model))
    return list(zip(names, cycle(COLOURS), cycle(MARKERS), spread(len(names)), strict=False))


def scores(table: pd.DataFrame) -> Figure:
    """Every metric of a :func:`tables.score_table` over all relations, a panel per set of objects, 95 % intervals."""
    table = table[(table.relation == "all") & table.value.notna()]  # two images of a prompt have no VISOR_3
    return _panels(table, "metric", list(dict.fromkeys(table.metric)), "percent")


def scores_per_relation(table: pd.DataFrame, metric: str = "VISOR_Cond") -> Figure:
    """One metric per relation, a panel per set of objects, models beside each other, 95 % intervals.

    The tick of a model's colour is chance: what the same images score against permuted prompts.
    """
    table = table[table.metric == metric]
    names = [name for name in ("all", *NAMES) if name in set(table.relation)]
    return _panels(table, "relation", names, f"{metric} (percent)")


def _panels(table: pd.DataFrame, by: str, rows: list[str], label: str) -> Figure:
    panels = list(dict.fromkeys(table.objects))
    size = 4.0 * len(panels) + 2, 0.42 * len(rows) + 1.2
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, objects in zip(axes[0], panels, strict=True):
        handles: dict[str, Any] = {}
        for model, colour, marker, offset in look_of(table):
            part = table[(table.objects == objects) & (table.model == model)].set_index(by).reindex(rows)
            at = np.arange(len(rows)) + offset
            axis.scatter(part.chance, at, marker="|", s=90, color=colour, linewidth=2, alpha=0.7)
            handles[model] = estimates(axis, part, at, color=colour, fmt=marker)
        axis.set(title=f"{objects} objects", xlabel=label, xlim=(-2, 102), yticks=range(len(rows)), yticklabels=rows)
        axis.grid(False, axis="y")
    axes[0, 0].invert_yaxis()
    tick = Line2D([], [], marker="|", linestyle="none", color="grey", markersize=10, markeredgewidth=2)
    axes[0, -1].legend([*handles.values(), tick], [*handles, "chance"], loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def distances(table: pd.DataFrame, space: str) -> Figure:
    """Each model's Fréchet distance from the photos (:func:`quality.distances`), and (line) that of one half of the
    photos from the other; ``space``: whose features, in a word."""
    models, photos = table[table.model != "photos"], table[table.model == "photos"]
    figure, axis = plt.subplots(figsize=(7, 0.5 * len(models) + 1.4))
    for i, (model, colour, marker, _) in enumerate(look_of(models)):
        estimates(axis, models[models.model == model], [i], color=colour, fmt=marker)
    axis.axvline(photos.value.iloc[0], color="black", linestyle="--", label="photos from photos")
    axis.set(yticks=range(len(models)), yticklabels=models.model, ylim=(len(models) - 0.5, -0.5))
    axis.set(xlim=(0, None), xlabel=f"Fréchet distance from the photos\n(features: {space})")
    axis.legend(handles=axis.get_lines()[-1:], loc="upper left", bbox_to_anchor=(1.02, 1))
    axis.grid(False, axis="y")
    figure.tight_layout()
    return figure


def contact_sheet(rows: pd.DataFrame, images: Iterable[np.ndarray], columns: int) -> Figure:
    """Images (uint8, h, w, 3), ``columns`` of them side by side, with the boxes that decided, the verdict and its
    reason; the subject's box blue, the object's orange. ``rows``: the verdicts, with a column ``heading``."""
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(1.8 * columns, 2.4 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row, image in zip(axes.flat, rows.to_dict("records"), images, strict=False):
        h, w = image.shape[:2]
        axis.imshow(image, extent=(0, w, h, 0), interpolation="nearest")
        for role, colour in (("subject", SUBJECT), ("object", OBJECT)):
            if row[f"n_{role}"]:
                draw_box(axis, np.array([row[f"{role}_{side}"] for side in "xywh"]), colour, "")
        mark, colour = ("✓", COLOURS[2]) if row["correct"] else ("✗", COLOURS[3])
        axis.set_title("\n".join(wrap(row["heading"], 24)), fontsize="x-small")
        axis.text(
            0.5, -0.03, "\n".join(wrap(f"{mark} {row['reason']}", 26)), transform=axis.transAxes, ha="center", va="top",
            fontsize="x-small", color=colour,
        )  # fmt: skip
        axis.set(xlim=(0, w), ylim=(h, 0))
    figure.subplots_adjust(
        0, 0, 1, 1, wspace=0.08, hspace=0.5
    )  # close together; titles and reasons have lines to spare
    return figure


def found(records: pd.DataFrame, images: Sequence[UInt8[np.ndarray, "h w 3"]], boxes: Sequence[pd.DataFrame]) -> Figure:
    """Images of one prompt with all boxes found in them (rows of label, x, y, w and h in pixels), thin, the pair that
    decided, and the verdict."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.8 * len(images), 3.4), squeeze=False)
    for axis, image, rows, record in zip(axes[0], images, boxes, records.to_dict("records"), strict=True):
        axis.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
        axis.set(xticks=[], yticks=[], xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
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
    """Every model's number for each sign (:func:`failure_signs.look`), coloured where it is a bad one; ``what`` the
    number of each is."""
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


def most(metric: str) -> float:
    """The most that a metric can be."""
    return np.inf if metric in ("KID", "Fréchet distance", "diversity") else 100.0


def closeness(table: pd.DataFrame, space: str) -> Figure:
    """KID, precision, recall and diversity of every model (:func:`quality.table`), with 95 % intervals, a field for
    each; ``space``: whose features, in a word."""
    metrics, models = (list(dict.fromkeys(table[name])) for name in ("metric", "model"))
    figure, axes = plt.subplots(1, len(metrics), figsize=(2.5 * len(metrics) + 1, 0.4 * len(models) + 1.3), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        rows = table[table.metric == metric]
        for i, (_, colour, marker, _) in enumerate(look_of(rows)):
            estimates(axis, rows[i : i + 1], [i], color=colour, fmt=marker, most=most(metric))
        axis.set(yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.5))
        axis.set_xlabel(metric if metric == "KID" else f"{metric} (%)")
        axis.grid(False, axis="y")
    axes[0].set_title(f"features: {space}", loc="left", fontsize="medium")
    figure.tight_layout()
    return figure


def by_threshold(tables: Mapping[str, pd.DataFrame], chosen: float) -> Figure:
    """OA, VISOR and VISOR_Cond against the threshold, a row of panels for each judge; the dashed line is the threshold
    ``chosen`` for the first one. ``tables``: of :func:`tables.by_threshold`, by the judge's name."""
    figure, axes = plt.subplots(len(tables), 3, figsize=(7.5, 1.7 * len(tables)), squeeze=False, sharey=True)
    for row, (judge, table) in zip(axes, tables.items(), strict=True):
        for axis, metric in zip(row, MAIN, strict=True):
            for model, colour, marker, _ in look_of(table):
                part = table[(table.model == model) & (table.metric == metric) & table.low.notna()]  # of enough prompts
                axis.plot(part.threshold, part.value, color=colour, marker=marker, markersize=3, label=model)
                axis.fill_between(part.threshold, part.low, part.high, color=colour, alpha=0.15)
            if row is axes[0]:
                axis.axvline(chosen, color="black", linestyle="--", linewidth=1)
            axis.set(title=metric, ylim=(0, 100))
        row[0].set_ylabel("%")
        row[1].set_xlabel(f"threshold ({judge})")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure
