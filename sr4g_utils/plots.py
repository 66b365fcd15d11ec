"""Every figure of the study. Each function takes tables or arrays and returns a matplotlib figure.

What a figure shows is computed elsewhere, but for shares, sums and running means of its table, and for the verdicts
on a grid of boxes in the pictures of the rules.
"""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from . import relations
from .relations import BY_NAME, FAMILIES, NAMES, OPPOSITES, RULES, judge

COLOURS = sns.color_palette("colorblind")
FAMILY_COLOUR = dict(zip(FAMILIES, COLOURS, strict=False))
SUBJECT, OBJECT = COLOURS[0], COLOURS[1]  # in every drawing of boxes

IMAGE = (640, 480)  # pixels; the image in which relations are drawn: not square, so that sstd's sectors show
LANDMARK = np.array([240.0, 180.0, 160.0, 120.0])  # the object's box there, xywh


Boxed = Sequence[tuple[str, np.ndarray]]  # names and xywh boxes of an image


def rules_colour(rules: str) -> Any:
    """A rule set's colour in every figure."""
    return COLOURS[list(RULES).index(rules) % len(COLOURS)]


def _offsets(n: int, width: float = 0.4) -> list[float]:
    """Where n estimates of one row stand around its middle."""
    return np.linspace(-width / 2, width / 2, n).tolist() if n != 1 else [0.0]


def use_style() -> None:
    """The look of all figures, and tables whose sentences are not cut; notebooks call it once."""
    pd.set_option("display.max_colwidth", 120)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 100})


def regions(family: str, step: int = 2) -> Figure:
    """Where the subject's centre may lie for each relation of the projective or topological family, per rule set.

    The subject is half as wide and high as the object; for "surrounding" it is half again as wide and high. A panel is
    missing where the rules do not define the relation.
    """
    names, columns = relations.family(family), _defining(family)
    size = (3 * len(columns), 2.3 * len(names))
    figure, axes = plt.subplots(len(names), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False)
    cx, cy = np.meshgrid(np.arange(step / 2, IMAGE[0], step), np.arange(step / 2, IMAGE[1], step))
    for row, name in enumerate(names):
        w, h = LANDMARK[2:] * (1.5 if name == "surrounding" else 0.5)
        subject = np.stack([cx - w / 2, cy - h / 2, np.full_like(cx, w), np.full_like(cy, h)], axis=-1).reshape(-1, 4)
        for axis, rules in zip(axes[row], columns, strict=True):
            if name not in RULES[rules].defines:
                axis.set_axis_off()
                continue
            verdict = judge(subject, np.broadcast_to(LANDMARK, subject.shape), rules, np.array([IMAGE], float))
            cmap = ListedColormap(["white", FAMILY_COLOUR[family]])
            axis.imshow(
                verdict[:, NAMES.index(name)].reshape(cx.shape), extent=(0, IMAGE[0], IMAGE[1], 0), cmap=cmap, vmin=0,
                vmax=1, alpha=0.6, interpolation="nearest",
            )  # fmt: skip
            draw_box(axis, LANDMARK, "black", "")
            axis.text(LANDMARK[0] + LANDMARK[2] / 2, LANDMARK[1] + LANDMARK[3] / 2, "object", ha="center", va="center")
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            if row == 0:
                axis.set_title(rules)
        axes[row, 0].set_ylabel(name)
    figure.supxlabel("shaded: the relation holds for a subject centred here", fontsize="medium")
    figure.tight_layout()
    return figure


def _defining(family: str) -> list[str]:
    """The rule sets that define a relation of the family."""
    return [name for name, rules in RULES.items() if set(rules.defines) & set(relations.family(family))]


def scale_regions(step: float = 0.01) -> Figure:
    """Which widths and heights of the subject, in units of the object's, make it wider, taller or larger."""
    opposites, columns = [two for two in OPPOSITES if two[0] in relations.family("scale")], _defining("scale")
    size = (3 * len(columns), 2.7 * len(opposites))
    figure, axes = plt.subplots(len(opposites), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False)
    w, h = np.meshgrid(np.arange(step / 2, 2, step), np.arange(step / 2, 2, step))
    subject = np.stack([np.zeros_like(w), np.zeros_like(w), w * LANDMARK[2], h * LANDMARK[3]], axis=-1).reshape(-1, 4)
    for column, rules in enumerate(columns):
        verdict = judge(subject, np.broadcast_to(LANDMARK, subject.shape), rules, np.array([IMAGE], float))
        for axis, (name, opposite) in zip(axes[:, column], opposites, strict=True):
            code = verdict[:, NAMES.index(name)] + 2 * verdict[:, NAMES.index(opposite)]
            axis.imshow(
                code.reshape(w.shape), extent=(0, 2, 0, 2), origin="lower", alpha=0.6, vmin=0, vmax=2,
                cmap=ListedColormap(["white", COLOURS[2], COLOURS[4]]), interpolation="nearest",
            )  # fmt: skip
            axis.plot(1, 1, "k+", markersize=10)
            axis.text(1.92, 1.88, name, ha="right", va="top")
            axis.text(0.08, 0.12, opposite, ha="left", va="bottom")
            axis.grid(False)
        axes[0, column].set_title(rules)
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
    figure, axis = plt.subplots(figsize=(2.5 + 1.1 * grid.shape[1], 5.5))
    grid = grid.loc[[name for name in NAMES if name in grid.index], list(dict.fromkeys(table.a + " / " + table.b))]
    sns.heatmap(
        grid, annot=True, fmt=".1%", cmap="cividis", vmin=0, vmax=1, ax=axis, cbar_kws={"label": "disagreement"}
    )
    axis.set(xlabel="", ylabel="")
    figure.tight_layout()
    return figure


def human_agreement(
    table: pd.DataFrame, measures: Sequence[str] = ("accuracy", "kappa", "precision", "recall")
) -> Figure:
    """Agreement with people per relation and rule set, with 95 % intervals."""
    table = table[table.frame == "all"]
    names = list(dict.fromkeys(table.relation))
    figure, axes = plt.subplots(1, len(measures), figsize=(3.4 * len(measures), 6), sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        parts = table.groupby("rules", sort=False)
        for offset, (rules, part) in zip(_offsets(len(parts)), parts, strict=True):
            rows = part.set_index("relation").reindex(names)
            _points(axis, rows, measure, offset, rules_colour(rules), rules)
        axis.set(xlabel="Cohen's κ" if measure == "kappa" else measure, xlim=(0, 1.02))
    n = table.groupby("relation", sort=False).n.first()
    axes[0].set(yticks=range(len(names)), yticklabels=[f"{name}\n(n = {n[name]:,})" for name in names])
    axes[0].invert_yaxis()
    axes[-1].legend(title="rules", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def frames(table: pd.DataFrame) -> Figure:
    """Recall per reference frame: of the captions that people call true, the share that the rules call true as well."""
    shown = list(dict.fromkeys(table.rules))
    table = table[table.relation.isin(["left of", "right of"]) & table.frame.isin(["0", "1", "2"])]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
    for axis, relation in zip(axes, ("left of", "right of"), strict=True):
        rows = table[table.relation == relation]  # few photos may leave none
        for offset, rules in zip(_offsets(len(shown)), shown, strict=True):
            _points(axis, rows[rows.rules == rules], "recall", offset, rules_colour(rules), rules)
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
    axis.grid(False, axis="y")
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
        n = np.sort(frequencies.n_images[frequencies.relation.isin(relations.family(family))])[::-1]
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
        grid, norm=LogNorm(1, max(grid.max().max(), 2)), cmap="cividis", square=True, xticklabels=1, yticklabels=1,
        ax=axis, cbar_kws={"label": "images (most frequent relation of the pair)", "shrink": 0.7},
    )  # fmt: skip
    axis.tick_params(labelsize=7 if len(names) > 40 else 9)
    axis.grid(False)
    axis.set(xlabel="object", ylabel="subject")
    figure.tight_layout()
    return figure


def examples(rows: pd.DataFrame, pictures: Sequence[np.ndarray | None]) -> Figure:
    """Captions drawn on their image: the subject's and the object's box; on an empty canvas where there is no picture.

    Args:
        rows: as :func:`sr4g_utils.dataset.examples` gives them.
        pictures: a row's image each, uint8 (h, w, 3), or None.
    """
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row, picture in zip(axes.flat, rows.itertuples(), pictures, strict=False):
        axis.set_axis_on()
        if picture is not None:
            axis.imshow(picture, extent=(0, row.width, row.height, 0))
        axis.set(xlim=(0, row.width), ylim=(row.height, 0), aspect="equal", xticks=[], yticks=[])
        axis.set_title(row.caption, fontsize="small")
        axis.grid(False)
        draw_box(axis, row.object_box, OBJECT, row.object)
        draw_box(axis, row.subject_box, SUBJECT, row.subject)
    figure.tight_layout()
    return figure


def draw_box(axis: Any, xywh: np.ndarray, colour: Any, label: str, below: bool = False) -> None:
    """A box with its label above or ``below`` it, or within it where the image ends."""
    x, y, w, h = xywh
    axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=2))
    if label:
        bottom = axis.get_ylim()[0]
        edge, outside = (y + h, y + h < 0.9 * bottom) if below else (y, y > 0.1 * bottom)
        upwards = outside != below
        left, top = axis.get_xlim()[0], axis.get_ylim()[1]
        corner = max(x, left), min(max(edge, top), bottom)  # where a box leaves the picture, its label stays in it
        axis.annotate(
            label, corner, xytext=(3, 5 if upwards else -5), textcoords="offset points", color="white",
            va="bottom" if upwards else "top", bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},
            fontsize="x-small",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ notebooks 03, 04, 05

MARKERS = ("o", "s", "^", "D", "v", "P")
METRIC_COLOUR = {"OA": COLOURS[2], "VISOR": COLOURS[4], "VISOR_Cond": COLOURS[3]}


def _models(table: pd.DataFrame) -> list[tuple[str, Any, str, float]]:
    """Each model's name, colour, marker and offset from its row's middle."""
    names = list(dict.fromkeys(table.model))
    return list(zip(names, COLOURS, MARKERS, _offsets(len(names)), strict=False))


def _rows(
    axis: Any, part: pd.DataFrame, at: np.ndarray, columns: tuple[str, str, str], colour: Any, marker: str, label: str
) -> None:
    """Estimates with their intervals at given heights; where there is no interval, the point alone."""
    value, low, high = (part[name].to_numpy(float) for name in columns)
    error = np.nan_to_num(np.stack([value - low, high - value]).clip(0))
    axis.errorbar(value, at, xerr=error, fmt=marker, color=colour, label=label, markersize=6)


def crop(photo: np.ndarray, before: Boxed, cropped: np.ndarray, after: Boxed, frame: np.ndarray) -> Figure:
    """What a photo's crop leaves: the photo with its boxes and the frame (xywh) of the crop, and what the model sees.

    Args:
        photo, cropped: uint8 (h, w, 3).
        before, after: names and xywh boxes in the photo's and in the crop's pixels.
    """
    names = list(dict.fromkeys(name for name, _ in before))
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    for axis, picture, boxes in zip(axes, (photo, cropped), (before, after), strict=True):
        h, w = picture.shape[:2]
        axis.imshow(picture, extent=(0, w, h, 0))
        for name, xywh in boxes:
            draw_box(axis, xywh, COLOURS[names.index(name) % len(COLOURS)], name)
        axis.set(xticks=[], yticks=[], title=f"{len(boxes)} boxes, {w} × {h} pixels")
        axis.grid(False)
    for colour, style in (("white", "-"), ("black", "--")):  # to be seen on any ground
        axes[0].add_patch(Rectangle((frame[0], frame[1]), *frame[2:], fill=False, ec=colour, lw=2, linestyle=style))
    figure.tight_layout()
    return figure


def loss_curve(log: pd.DataFrame) -> Figure:
    """The loss of fine-tuning by step, and its running mean.

    Args:
        log: columns step and loss; rows without a loss are left aside.
    """
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
    """OA, VISOR and VISOR_Cond of the validation prompts by step; rows of the log without them are left aside."""
    rows = log.dropna(subset="OA")
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for (name, colour), marker in zip(METRIC_COLOUR.items(), MARKERS, strict=False):
        axis.plot(rows.step, rows[name].astype(float), marker=marker, color=colour, label=name)
    axis.set(xlabel="step", ylabel="percent of validation images", ylim=(-2, 102))
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def scores(table: pd.DataFrame) -> Figure:
    """Every metric over all relations, a panel per set of objects, models beside each other, 95 % intervals.

    Args:
        table: of :func:`analysis.score_table`.
    """
    table = table[(table.relation == "all") & table.value.notna()]  # two images of a prompt have no VISOR_3
    metrics = list(dict.fromkeys(table.metric))
    return _panels(table, "metric", metrics, (4.0, 0.42 * len(metrics) + 1.2), "percent")


def scores_per_relation(table: pd.DataFrame, metric: str = "VISOR_Cond") -> Figure:
    """One metric per relation, a panel per set of objects, models beside each other, 95 % intervals.

    The tick of a model's colour is chance: what the same images score against permuted prompts.
    """
    table = table[table.metric == metric]
    names = [name for name in ("all", *NAMES) if name in set(table.relation)]
    return _panels(table, "relation", names, (4.0, 0.42 * len(names) + 1.2), f"{metric} (percent)")


def _panels(table: pd.DataFrame, by: str, rows: list[str], size: tuple[float, float], label: str) -> Figure:
    panels = list(dict.fromkeys(table.objects))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(size[0] * len(panels) + 2, size[1]), sharex=True, sharey=True, squeeze=False
    )
    for axis, objects in zip(axes[0], panels, strict=True):
        for model, colour, marker, offset in _models(table):
            part = table[(table.objects == objects) & (table.model == model)].set_index(by).reindex(rows)
            at = np.arange(len(rows)) + offset
            axis.scatter(part.chance, at, marker="|", s=90, color=colour, linewidth=2, alpha=0.7)
            _rows(axis, part, at, ("value", "low", "high"), colour, marker, model)
        axis.set(title=f"{objects} objects", xlabel=label, xlim=(-2, 102), yticks=range(len(rows)), yticklabels=rows)
        axis.grid(False, axis="y")
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, -1].get_legend_handles_labels()
    handles.append(Line2D([], [], marker="|", linestyle="none", color="grey", markersize=10, markeredgewidth=2))
    axes[0, -1].legend(handles, [*labels, "chance"], loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def bias(table: pd.DataFrame) -> Figure:
    """The gap between each relation and its opposite, and over the true opposites, what exceeds noise.

    Args:
        table: of :func:`analysis.bias`.
    """
    pairs, total = table[table.with_opposite.notna()], table[table.with_opposite.isna()]
    names = list(dict.fromkeys(zip(pairs.relation, pairs.with_opposite, strict=True)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2.2, 1))
    for model, colour, marker, offset in _models(table):
        part = pairs[pairs.model == model].set_index("relation").reindex([name for name, _ in names])
        _rows(left, part, np.arange(len(names)) + offset, ("gap", "gap_low", "gap_high"), colour, marker, model)
        beyond = total[total.model == model]
        _rows(right, beyond, np.array([offset]), ("gap", "gap_low", "gap_high"), colour, marker, model)
    for axis in (left, right):
        axis.axvline(0, color="black", linewidth=1)
    left.set(yticks=range(len(names)), yticklabels=[f"{one} − {other}" for one, other in names])
    left.set(xlabel="gap in VISOR_Cond (points)", title="each pair")
    left.grid(False, axis="y")
    left.invert_yaxis()
    right.set(title="true opposites, beyond noise", xlabel="points (root of mean square)", yticks=[], ylim=(0.6, -0.6))
    right.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def gain_by_frequency(table: pd.DataFrame) -> Figure:
    """The gain of each third of the prompts, from the least to the most frequent triplets, 95 % intervals.

    Args:
        table: of :func:`analysis.gain_by_frequency`.
    """
    rows = table[(table.frequency != "most − least") & (table.prompts > 0)]
    figure, axis = plt.subplots(figsize=(6.5, 3.2))
    _rows(axis, rows, np.arange(len(rows)), ("difference", "low", "high"), COLOURS[0], "o", "")
    axis.axvline(0, color="black", linewidth=1)
    labels = [f"{r.frequency}\n(median {r.images_median:,.0f} images)" for r in rows.itertuples()]
    axis.set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
    axis.set_xlabel("gain in VISOR_Cond (points)")
    axis.grid(False, axis="y")
    figure.tight_layout()
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """The gain in VISOR_Cond under other rules, thresholds and choices of pairs, with 95 % intervals.

    Args:
        table: of :func:`analysis.ablation`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharex=True, sharey=True)
    for axis, (pairs, part) in zip(axes, table.groupby("pairs", sort=False), strict=True):
        for (rules, rows), marker in zip(part.groupby("rules", sort=False), MARKERS, strict=False):
            axis.plot(rows.threshold, rows.difference, marker=marker, color=rules_colour(rules), label=rules)
            axis.fill_between(rows.threshold, rows.low, rows.high, color=rules_colour(rules), alpha=0.12)
        axis.axhline(0, color="black", linewidth=1)
        axis.set(title=f"{pairs} pair", xlabel="detection threshold")
    axes[0].set_ylabel("gain in VISOR_Cond (points)")
    axes[-1].legend(title="rules", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def distances(table: pd.DataFrame, space: str) -> Figure:
    """Each model's Fréchet distance from the photos, and (line) that of one half of the photos from the other.

    Args:
        table: of :func:`quality.distances`. space: whose features, in a word.
    """
    models, photos = table[table.model != "photos"], table[table.model == "photos"]
    figure, axis = plt.subplots(figsize=(7, 0.5 * len(models) + 1.4))
    for i, (model, colour, marker, _) in enumerate(_models(models)):
        _rows(axis, models[models.model == model], np.array([i]), ("value", "low", "high"), colour, marker, model)
    axis.axvline(photos.value.iloc[0], color="black", linestyle="--", label="photos from photos")
    axis.set(
        yticks=range(len(models)),
        yticklabels=models.model,
        xlabel=f"Fréchet distance from the photos (features: {space})",
    )
    axis.set(xlim=(0, None), ylim=(len(models) - 0.5, -0.5))
    axis.legend(handles=axis.get_lines()[-1:], loc="upper left", bbox_to_anchor=(1.02, 1))
    axis.grid(False, axis="y")
    figure.tight_layout()
    return figure


def contact_sheet(rows: pd.DataFrame, pictures: Sequence[np.ndarray], columns: int) -> Figure:
    """Images with the boxes that decided, the verdict and its reason; the subject's box blue, the object's orange.

    Args:
        rows: verdicts (:func:`visor.verdicts`) in the order of the sheet, with a column ``heading``: of the image.
        pictures: a row's image each, uint8 (h, w, 3).
        columns: images side by side.
    """
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.6 * columns, 3.5 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row, picture in zip(axes.flat, rows.to_dict("records"), pictures, strict=False):
        h, w = picture.shape[:2]
        axis.imshow(picture, extent=(0, w, h, 0))
        for role, colour in (("subject", SUBJECT), ("object", OBJECT)):
            if row[f"n_{role}"]:
                draw_box(axis, np.array([row[f"{role}_{side}"] for side in "xywh"]), colour, "")
        mark, colour = ("✓", COLOURS[2]) if row["correct"] else ("✗", COLOURS[3])
        axis.set_title("\n".join(wrap(row["heading"], 30)), fontsize="x-small")
        axis.text(
            0.5, -0.03, "\n".join(wrap(f"{mark} {row['reason']}", 30)), transform=axis.transAxes, ha="center", va="top",
            fontsize="x-small", color=colour,
        )  # fmt: skip
        axis.set(xlim=(0, w), ylim=(h, 0))
    figure.tight_layout()
    return figure
