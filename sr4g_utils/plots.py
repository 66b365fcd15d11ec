"""Every figure of the study. Each function takes tables and returns a matplotlib figure; none computes a result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .relations import BY_NAME, FAMILIES, NAMES, RELATIONS, RULES, judge

COLOURS = sns.color_palette("colorblind")
FAMILY_COLOUR = dict(zip(FAMILIES, COLOURS, strict=False))
RULES_COLOUR = dict(zip(RULES, COLOURS, strict=False))
SUBJECT, OBJECT = COLOURS[0], COLOURS[1]  # in every drawing of boxes

IMAGE = (640, 480)  # pixels; the image in which relations are drawn: not square, so that sstd's sectors show
LANDMARK = np.array([240.0, 180.0, 160.0, 120.0])  # the object's box there, xywh


def use_style() -> None:
    """The look of all figures; notebooks call it once."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 100})


def regions(family: str, step: int = 4) -> Figure:
    """Where the subject's centre may lie for each relation of the projective or topological family, per rule set.

    The subject is half as wide and high as the object; for "surrounding" it is half again as large.
    """
    names = [relation.name for relation in RELATIONS if relation.family == family]
    figure, axes = plt.subplots(len(names), len(RULES), figsize=(9, 2.3 * len(names)), sharex=True, sharey=True)
    cx, cy = np.meshgrid(np.arange(step / 2, IMAGE[0], step), np.arange(step / 2, IMAGE[1], step))
    for row, name in enumerate(names):
        w, h = LANDMARK[2:] * (1.5 if name == "surrounding" else 0.5)
        subject = np.stack([cx - w / 2, cy - h / 2, np.full_like(cx, w), np.full_like(cy, h)], axis=-1).reshape(-1, 4)
        for column, rules in enumerate(RULES):
            verdict = judge(subject, np.broadcast_to(LANDMARK, subject.shape), rules, np.array([IMAGE]))
            axis = axes[row, column]
            cmap = ListedColormap(["white", FAMILY_COLOUR[family]])
            axis.imshow(
                verdict[:, NAMES.index(name)].reshape(cx.shape), extent=(0, IMAGE[0], IMAGE[1], 0), cmap=cmap, vmin=0,
                vmax=1, alpha=0.6, interpolation="nearest",
            )  # fmt: skip
            _box(axis, LANDMARK, "black", "")
            axis.text(LANDMARK[0] + LANDMARK[2] / 2, LANDMARK[1] + LANDMARK[3] / 2, "object", ha="center", va="center")
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            if row == 0:
                axis.set_title(rules)
        axes[row, 0].set_ylabel(name)
    figure.supxlabel("shaded: the relation holds for a subject centred here", fontsize="medium")
    figure.tight_layout()
    return figure


def scale_regions(step: float = 0.01) -> Figure:
    """Which widths and heights of the subject, relative to the object's, make it wider, taller, larger, per rule set."""
    names = [relation.name for relation in RELATIONS if relation.family == "scale"][::2]
    figure, axes = plt.subplots(len(names), len(RULES), figsize=(9, 2.7 * len(names)), sharex=True, sharey=True)
    w, h = np.meshgrid(np.arange(step / 2, 2, step), np.arange(step / 2, 2, step))
    subject = np.stack([np.zeros_like(w), np.zeros_like(w), w * LANDMARK[2], h * LANDMARK[3]], axis=-1).reshape(-1, 4)
    for column, rules in enumerate(RULES):
        verdict = judge(subject, np.broadcast_to(LANDMARK, subject.shape), rules, np.array([IMAGE]))
        for row, name in enumerate(names):
            opposite = BY_NAME[name].opposite
            axis = axes[row, column]
            code = verdict[:, NAMES.index(name)] + 2 * verdict[:, NAMES.index(opposite)]
            axis.imshow(
                code.reshape(w.shape), extent=(0, 2, 0, 2), origin="lower", alpha=0.6, vmin=0, vmax=2,
                cmap=ListedColormap(["white", COLOURS[2], COLOURS[4]]), interpolation="nearest",
            )  # fmt: skip
            axis.plot(1, 1, "k+", markersize=10)
            axis.text(1.92, 1.88, name, ha="right", va="top")
            axis.text(0.08, 0.12, opposite, ha="left", va="bottom")
            axis.grid(False)
            if row == 0:
                axis.set_title(rules)
    figure.supxlabel("subject's width ÷ object's width", fontsize="medium")
    figure.supylabel("subject's height ÷ object's height", fontsize="medium")
    figure.tight_layout()
    return figure


def disagreement(table: pd.DataFrame) -> Figure:
    """Of the box pairs for which either rule set sees the relation, the share for which only one does."""
    share = (table.only_a + table.only_b) / (table.both + table.only_a + table.only_b)
    grid = table.assign(share=share, which=table.a + " / " + table.b).pivot(
        index="relation", columns="which", values="share"
    )
    figure, axis = plt.subplots(figsize=(6, 5.5))
    grid = grid.loc[[name for name in NAMES if name in grid.index], list(dict.fromkeys(table.a + " / " + table.b))]
    sns.heatmap(
        grid, annot=True, fmt=".1%", cmap="cividis", vmin=0, vmax=1, ax=axis, cbar_kws={"label": "disagreement"}
    )
    axis.set(xlabel="", ylabel="")
    figure.tight_layout()
    return figure


def human_agreement(table: pd.DataFrame, measures: Sequence[str] = ("precision", "recall", "kappa")) -> Figure:
    """Agreement with people per relation and rule set, with 95 % intervals."""
    table = table[table.frame == "all"]
    names = list(dict.fromkeys(table.relation))
    figure, axes = plt.subplots(1, len(measures), figsize=(11, 5), sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        for offset, (rules, part) in zip((-0.22, 0, 0.22), table.groupby("rules", sort=False), strict=True):
            _points(axis, part.set_index("relation").loc[names], measure, offset, RULES_COLOUR[rules], rules)
        axis.set(xlabel="Cohen's κ" if measure == "kappa" else measure, xlim=(0, 1.02))
    n = table.groupby("relation", sort=False).n.first()
    axes[0].set(yticks=range(len(names)), yticklabels=[f"{name}\n(n = {n[name]:,})" for name in names])
    axes[0].invert_yaxis()
    axes[-1].legend(title="rules", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def frames(table: pd.DataFrame) -> Figure:
    """Recall per reference frame: of the captions that people call true, the share that the rules call true as well."""
    table = table[table.relation.isin(["left of", "right of"]) & table.frame.isin(["0", "1", "2"])]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
    for axis, (relation, rows) in zip(axes, table.groupby("relation"), strict=True):
        for offset, (rules, part) in zip((-0.22, 0, 0.22), rows.groupby("rules", sort=False), strict=True):
            _points(axis, part, "recall", offset, RULES_COLOUR[rules], rules)
        n = rows.groupby("frame").n.first()
        axis.set(
            yticks=range(len(n)), yticklabels=[f"code {frame}\n(n = {k})" for frame, k in n.items()], xlabel="recall"
        )
        axis.set(title=relation, xlim=(-0.02, 1.02))
        axis.invert_yaxis()
    axes[-1].legend(title="rules", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def _points(axis: Any, part: pd.DataFrame, measure: str, offset: float, colour: Any, label: str) -> None:
    """A row of estimates with their intervals, one height each."""
    error = [part[measure] - part[f"{measure}_low"], part[f"{measure}_high"] - part[measure]]
    axis.errorbar(part[measure], np.arange(len(part)) + offset, xerr=error, fmt="o", color=colour, label=label)


def captions_per_relation(frequencies: pd.DataFrame) -> Figure:
    """Number of captions (distinct triplets per image) of each relation."""
    total = frequencies.groupby("relation").n_images.sum().reindex(NAMES, fill_value=0)
    figure, axis = plt.subplots(figsize=(8, 5))
    bars = axis.barh(NAMES, total, color=[FAMILY_COLOUR[BY_NAME[name].family] for name in NAMES])
    axis.bar_label(bars, [f"{n:,}" for n in total], padding=3, fontsize="small")
    axis.set(xlabel="captions", xlim=(0, total.max() * 1.18))
    axis.invert_yaxis()
    handles = [Rectangle((0, 0), 1, 1, color=FAMILY_COLOUR[family]) for family in FAMILIES]
    axis.legend(handles, FAMILIES, loc="upper left", bbox_to_anchor=(1.02, 1))
    axis.ticklabel_format(axis="x", style="plain")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.tight_layout()
    return figure


def rank_frequency(frequencies: pd.DataFrame) -> Figure:
    """In how many images the k-th most frequent triplet of each family occurs, on logarithmic axes."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for family, style in zip(FAMILIES, ("-", "--", "-."), strict=True):
        names = [name for name in NAMES if BY_NAME[name].family == family]
        n = np.sort(frequencies.n_images[frequencies.relation.isin(names)])[::-1]
        axis.loglog(
            np.arange(1, len(n) + 1), n, style, color=FAMILY_COLOUR[family], label=f"{family} ({len(n):,} triplets)"
        )
    axis.set(xlabel="rank of the triplet", ylabel="images that show it")
    axis.legend()
    figure.tight_layout()
    return figure


def cooccurrence(frequencies: pd.DataFrame, names: Sequence[str]) -> Figure:
    """In how many images two categories stand in some relation (logarithmic colour; blank: never)."""
    # every pair of boxes either overlaps or is separated, so these two count images at least once, at most twice
    pairs = frequencies.groupby(["subject", "object"]).n_images.max()
    grid = pairs.unstack().reindex(index=names, columns=names)
    size = max(6, 0.16 * len(names))
    figure, axis = plt.subplots(figsize=(size + 1, size))
    sns.heatmap(
        grid, norm=LogNorm(1, max(grid.max().max(), 2)), cmap="cividis", square=True, ax=axis, xticklabels=1, yticklabels=1,
        cbar_kws={"label": "images (most frequent relation of the pair)", "shrink": 0.7},
    )  # fmt: skip
    axis.tick_params(labelsize=7 if len(names) > 40 else 9)
    axis.grid(False)
    axis.set(xlabel="object", ylabel="subject")
    figure.tight_layout()
    return figure


def examples(rows: pd.DataFrame, photos: str | Path | None) -> Figure:
    """Captions drawn on their image: subject and object boxes; on an empty canvas where the photo is not at hand.

    Args:
        rows: as :func:`sr4g_utils.dataset.examples` gives them.
        photos: the folder that holds the images, if any.
    """
    columns = min(3, len(rows))
    figure, axes = plt.subplots(
        -(-len(rows) // columns), columns, figsize=(4 * columns, 3.4 * -(-len(rows) // columns)), squeeze=False
    )
    for axis, row in zip(axes.flat, rows.itertuples(), strict=False):
        if photos and (photo := Path(photos) / row.file_name).is_file():
            axis.imshow(plt.imread(photo), extent=(0, row.width, row.height, 0), cmap="gray")
        axis.set(xlim=(0, row.width), ylim=(row.height, 0), aspect="equal", xticks=[], yticks=[])
        axis.set_title(row.caption, fontsize="small")
        axis.grid(False)
        _box(axis, row.subject_box, SUBJECT, row.subject)
        _box(axis, row.object_box, OBJECT, row.object)
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    figure.tight_layout()
    return figure


def _box(axis: Any, xywh: np.ndarray, colour: Any, label: str) -> None:
    x, y, w, h = xywh
    axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=2))
    if label:
        axis.text(
            x + 2, y + 2, label, color="white", backgroundcolor=colour, fontsize="x-small", va="top", clip_on=True
        )
