"""The figures of notebooks 05 and 07: bias, gains, experiments."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..dataset.figures import COLOURS, MARKERS, METRIC_COLOUR, estimates, rules_colour
from ..evaluation.figures import look_of, most
from ..relations import FAMILIES, NAMES


def bias(table: pd.DataFrame) -> Figure:
    """The gap between each relation and its opposite, and over the true opposites, what exceeds noise.
    ``table``: of :func:`bias.bias`."""
    pairs, total = table[table.with_opposite.notna()], table[table.with_opposite.isna()]
    names = list(dict.fromkeys(zip(pairs.relation, pairs.with_opposite, strict=True)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2.2, 1))
    handles = {}
    for model, colour, marker, offset in look_of(table):
        part = pairs[pairs.model == model].set_index("relation").reindex([name for name, _ in names])
        estimates(left, part, np.arange(len(names)) + offset, "gap", color=colour, fmt=marker)
        beyond = total[total.model == model]
        handles[model] = estimates(right, beyond, [offset], "gap", color=colour, fmt=marker)
    for axis in (left, right):
        axis.axvline(0, color="black", linewidth=1)
    left.set(yticks=range(len(names)), yticklabels=[f"{one} − {other}" for one, other in names])
    left.set(xlabel="gap in VISOR_Cond (points)", title="each pair")
    left.grid(False, axis="y")
    left.invert_yaxis()
    right.set(title="true opposites, beyond noise", xlabel="points (root of mean square)", yticks=[], ylim=(0.6, -0.6))
    right.legend([*handles.values()], [*handles], loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def gain_by_frequency(table: pd.DataFrame) -> Figure:
    """The gain of each third of the prompts, from the least to the most frequent triplets, 95 % intervals.
    ``table``: of :func:`frequency.gain_by_frequency`."""
    rows = table[(table.frequency != "most − least") & (table.prompts > 0)]
    figure, axis = plt.subplots(figsize=(6.5, 3.2))
    estimates(axis, rows, np.arange(len(rows)), "difference", color=COLOURS[0], fmt="o")
    axis.axvline(0, color="black", linewidth=1)
    labels = [f"{r.frequency}\n(median {r.images_median:,.0f} images)" for r in rows.itertuples()]
    axis.set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
    axis.set_xlabel("gain in VISOR_Cond (points)")
    axis.grid(False, axis="y")
    figure.tight_layout()
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """The gain in VISOR_Cond under other rules, thresholds and choices of pairs, with 95 % intervals.
    ``table``: of :func:`rescoring.ablation`."""
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


KINDS = {  # arm and what it is compared with: colour, marker, words
    ("relations", "base"): (COLOURS[0], "o", "relations − base"),
    ("relations", "list"): (COLOURS[2], "s", "relations − lists"),
    ("list", "base"): (COLOURS[1], "^", "lists − base"),
    ("shuffled", "base"): (COLOURS[7], "v", "shuffled − base"),
}


def effects(table: pd.DataFrame, metric: str, label: str) -> Figure:
    """Each comparison of arms, by model and set of objects, with 95 % intervals.
    ``table``: of :func:`effects.effects`; ``metric``: which of its metrics; ``label`` says it in words."""
    table = table[table.metric == metric]
    models, sets = list(dict.fromkeys(table.model)), list(dict.fromkeys(table.objects))
    kinds = {kind: look for kind, look in KINDS.items() if ((table.arm == kind[0]) & (table.over == kind[1])).any()}
    figure, axes = plt.subplots(1, len(models), figsize=(4.6 * len(models) + 2, 0.75 * len(sets) + 1.4), sharex=True,
                                sharey=True, squeeze=False)  # fmt: skip
    offsets = np.linspace(-0.3, 0.3, len(kinds))
    for axis, model in zip(axes[0], models, strict=True):
        for ((arm, over), (colour, marker, words)), offset in zip(kinds.items(), offsets, strict=True):
            part = table[(table.model == model) & (table.arm == arm) & (table.over == over)]
            part, at = part.set_index("objects").reindex(sets), np.arange(len(sets)) + offset
            estimates(axis, part, at, "difference", fmt=marker, color=colour, label=words)
        axis.axvline(0, color="black", linewidth=1)
        names = [f"{name} triplets" if name == "withheld" else f"{name} objects" for name in sets]
        axis.set(title=f"model {model}", xlabel=label, yticks=range(len(sets)), yticklabels=names)
        axis.grid(False, axis="y")
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def relations(table: pd.DataFrame) -> Figure:
    """VISOR_Cond of each relation before and after, each with its chance as a tick; bars: the change's 95 % interval.
    ``table``: of :func:`effects.by_relation`."""
    table = table.set_index("relation").reindex(NAMES)
    at = np.arange(len(table))
    figure, axis = plt.subplots(figsize=(8, 5.2))
    for when, colour, marker, offset in zip(("before", "after"), COLOURS, MARKERS, (-0.15, 0.15), strict=False):
        axis.scatter(table[when], at + offset, color=colour, marker=marker, s=40, label=f"{when} fine-tuning", zorder=3)
        axis.scatter(table[f"chance_{when}"], at + offset, color=colour, marker="|", s=110, label=f"its chance {when}")
    axis.hlines(at, table.before, table.after, color="0.8", zorder=1)
    ends = table.assign(low=table.before + table.low, high=table.before + table.high)
    estimates(axis, ends, at + 0.15, "after", color=COLOURS[1], fmt="none", most=100.0)
    axis.set(yticks=at, yticklabels=table.index, xlabel="VISOR_Cond (percent)", xlim=(0, 100))
    axis.grid(False, axis="y")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def transfer(table: pd.DataFrame) -> Figure:
    """The change of VISOR_Cond by what was trained on (rows) and tested (columns), with 95 % intervals.
    ``table``: of :func:`effects.transfer`."""
    trained, tested = list(dict.fromkeys(table.trained)), list(dict.fromkeys(table.tested))
    wide = table.pivot(index="trained", columns="tested", values="difference").loc[trained, tested]
    low, high, far = wide.min().min(), wide.max().max(), max(wide.abs().to_numpy().max(), 1)
    ends = (low, high) if low * high > 0 else (-far, far)  # all on one side of 0: told from each other, not from 0
    figure, axis = plt.subplots(figsize=(2.1 * len(tested) + 2.4, 0.8 * len(trained) + 1.2))
    image = axis.imshow(wide, cmap="cividis" if low * high > 0 else "PuOr", vmin=ends[0], vmax=ends[1], aspect="auto")
    for row in table.itertuples():
        text = f"{row.difference:+.1f}\n[{row.low:+.1f}, {row.high:+.1f}]"
        dark = np.mean(image.to_rgba(row.difference)[:3]) < 0.5
        axis.text(tested.index(row.tested), trained.index(row.trained), text, ha="center", va="center",
                  color="white" if dark else "black", fontsize="small")  # fmt: skip
    names = [{"relations": "all"}.get(name, name) for name in trained]
    axis.set(xticks=range(len(tested)), xticklabels=tested, yticks=range(len(trained)), yticklabels=names)
    axis.set(xlabel="tested", ylabel="trained on", title="change of VISOR_Cond (points)")
    axis.grid(False)
    figure.tight_layout()
    return figure


def doses(table: pd.DataFrame) -> Figure:
    """The gain over the base by how often fine-tuning drew the prompt's triplet, with 95 % intervals: families on the
    left, one image or all on the right. ``table``: of :func:`frequency.by_dose`."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for axis, parts in zip(axes, (["all", *FAMILIES], ["all", "all images", "one image"]), strict=True):
        offsets = np.linspace(-0.18, 0.18, len(parts))
        for part, offset, marker, colour in zip(parts, offsets, MARKERS, ["black", *COLOURS], strict=False):
            rows = table[table.part == part]
            at, line = np.log2(1 + rows.dose) + offset, {"fmt": f"{marker}-", "linewidth": 1}
            estimates(axis, rows, at, "difference", upright=True, color=colour, label=part, **line)
        axis.axhline(0, color="black", linewidth=1)
        every = table.dose.unique()
        axis.set(xticks=np.log2(1 + every), xticklabels=every, xlabel="draws of the triplet in fine-tuning")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=len(parts))
    axes[0].set(ylabel="gain of VISOR_Cond (points)", title="by family")
    axes[1].set(title="draws of one image, or of all")
    figure.tight_layout()
    return figure


def shares(table: pd.DataFrame) -> Figure:
    """The gain over the base by the share of captions that tell a relation, with 95 % intervals.
    ``table``: of :func:`effects.by_share`."""
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for metric, marker in zip(table.metric.unique(), MARKERS, strict=False):
        rows, colour = table[table.metric == metric], METRIC_COLOUR[metric]
        at = np.arange(len(rows)) + (0.04 if metric == "OA" else -0.04)
        line = {"fmt": f"{marker}-", "linewidth": 1}
        estimates(axis, rows, at, "difference", upright=True, color=colour, label=metric, **line)
    axis.axhline(0, color="black", linewidth=1)
    names = [f"{share:g}" for share in table.share.unique()]
    axis.set(xticks=range(len(names)), xticklabels=names, xlabel="captions that tell a relation (percent)")
    axis.set(ylabel="change from the base (points)")
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def held_out(table: pd.DataFrame) -> Figure:
    """The change of VISOR_Cond by the categories that were held out and by set of objects, with 95 % intervals.
    ``table``: of :func:`effects.by_held_out`."""
    table = table[table.metric == "VISOR_Cond"]
    categories, sets = table.held_out.unique(), table.objects.unique()
    figure, axis = plt.subplots(figsize=(9, 0.9 * len(categories) + 1.6))
    colours, offsets = [*COLOURS[: len(sets) - 1], "black"], np.linspace(-0.27, 0.27, len(sets))
    for objects, marker, colour, offset in zip(sets, MARKERS, colours, offsets, strict=False):
        rows = table[table.objects == objects].set_index("held_out").reindex(categories)
        at = np.arange(len(categories)) + offset
        estimates(axis, rows, at, "difference", fmt=marker, color=colour, label=objects)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(yticks=range(len(categories)), yticklabels=[textwrap.fill(names, 38) for names in categories])
    axis.set(xlabel="change of VISOR_Cond (points)", title="held out of fine-tuning's captions")
    axis.grid(False, axis="y")
    axis.invert_yaxis()
    axis.legend(title="objects", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def along(table: pd.DataFrame) -> Figure:
    """Each metric in the course of fine-tuning; the bars are 95 % intervals of the change from the base.
    ``table``: of :func:`effects.along`."""
    metrics = table.metric.unique()
    figure, axes = plt.subplots(2, -(-len(metrics) // 2), figsize=(12, 5.6), sharex=True)
    for metric, axis in zip(metrics, axes.flat, strict=False):
        rows = table[table.metric == metric]
        before = rows.value - rows.change  # the base's; the interval is of the change from it
        rows = rows.assign(low=before + rows.low, high=before + rows.high)
        look = {"fmt": "o-", "color": COLOURS[0], "linewidth": 1, "most": most(metric)}
        estimates(axis, rows, rows.step, upright=True, **look)
        axis.axhline(rows.value.iloc[0], color="0.6", linewidth=1, linestyle="--")
        unit = "" if metric in ("KID", "Fréchet distance") else " (%)"
        axis.set(title=metric + unit, xticks=rows.step)
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    figure.supxlabel("steps of fine-tuning")
    figure.tight_layout()
    return figure


def caption_words(table: pd.DataFrame) -> Figure:
    """The share of real captions that say each relation, by our captions' own words and by all, 95 % intervals.
    ``table``: of :func:`rarity.count`."""
    names = list(dict.fromkeys(table.relation))
    figure, axis = plt.subplots(figsize=(8, 5))
    groups = list(table.groupby(["source", "wording"], sort=False))
    for k, ((source, wording), rows) in enumerate(groups):
        rows, colour = rows.set_index("relation").reindex(names), COLOURS[k // 2]
        y = np.arange(len(names)) + 0.18 * (k - (len(groups) - 1) / 2)
        face = colour if wording == "own" else "white"
        words = "our captions' words" if wording == "own" else "other words, too"
        estimates(
            axis,
            rows,
            y,
            "percent",
            color=colour,
            fmt=MARKERS[k // 2],
            markerfacecolor=face,
            label=f"{source}, {words}",
        )
    axis.axvline(100 / len(NAMES), color="black", linestyle="--", linewidth=1)
    axis.text(100 / len(NAMES) * 1.08, 0.1, "each relation in\nSR4G's balanced draws", fontsize=8, va="top")
    axis.set_xscale("symlog", linthresh=0.01)
    axis.set(xticks=[0, 0.01, 0.1, 1, 10], xticklabels=["0", "0.01", "0.1", "1", "10"], xlim=(-0.001, 100))
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axis.set_xlabel("captions that say it (%)")
    axis.grid(False, axis="y")
    axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=2, fontsize=8)
    return figure
