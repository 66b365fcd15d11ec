"""The figures of notebook 06, and of people's agreement in notebook 01."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..dataset.figures import COLOURS, MARKERS, estimates, rules_colour, spread
from ..relations import GENEVAL_SLACK, PEOPLE_HALF_WIDTH

RIGHT: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)}  # a legend beside the axes


def human_agreement(
    table: pd.DataFrame, measures: Sequence[str] = ("accuracy", "kappa", "precision", "recall")
) -> Figure:
    """Agreement with people per relation and rule set, with 95 % intervals."""
    table = table[table.frame == "all"]
    names = list(dict.fromkeys(table.relation))
    figure, axes = plt.subplots(1, len(measures), figsize=(3.4 * len(measures), 6), sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        parts = table.groupby("rules", sort=False)
        for offset, (rules, part) in zip(spread(len(parts)), parts, strict=True):
            rows, at = part.set_index("relation").reindex(names), np.arange(len(names)) + offset
            estimates(axis, rows, at, measure, fmt="o", color=rules_colour(rules), label=rules)
        axis.set(xlabel="Cohen's κ" if measure == "kappa" else measure, xlim=(0, 1.02))
    n = table.groupby("relation", sort=False).n.first()
    axes[0].set(yticks=range(len(names)), yticklabels=[f"{name}\n(n = {n[name]:,})" for name in names])
    axes[0].invert_yaxis()
    axes[-1].legend(title="rules", **RIGHT)
    figure.tight_layout()
    return figure


def frames(table: pd.DataFrame) -> Figure:
    """Recall per reference frame: the share of people's true captions that are true under the rules as well."""
    shown = list(dict.fromkeys(table.rules))
    table = table[table.relation.isin(["left of", "right of"]) & table.frame.isin(["0", "1", "2"])]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
    for axis, relation in zip(axes, ("left of", "right of"), strict=True):
        rows = table[table.relation == relation]  # few photos may leave none
        for offset, rules in zip(spread(len(shown)), shown, strict=True):
            part = rows[rows.rules == rules]
            look = {"fmt": "o", "color": rules_colour(rules), "label": rules}
            estimates(axis, part, np.arange(len(part)) + offset, "recall", **look)
        n = rows.groupby("frame").n.first()
        axis.set(yticks=range(len(n)), yticklabels=[f"code {frame}\n(n = {k})" for frame, k in n.items()])
        axis.set(title=relation, xlabel="recall", xlim=(-0.02, 1.02))
        axis.invert_yaxis()
    axes[-1].legend(title="rules", **RIGHT)
    figure.tight_layout()
    return figure


# a person's: colour, marker
VERDICTS = {"true": (COLOURS[0], "o"), "undecidable": (COLOURS[7], "x"), "false": (COLOURS[3], "^")}


def agreement(table: pd.DataFrame, ceiling: pd.DataFrame) -> Figure:
    """Agreement and kappa of every rule set with the person, any and best pair, and how often two people agree.
    ``table``: from :func:`agreement.with_people`; all images and the published boxes are shown. ``ceiling``: from
    :func:`agreement.ceiling`; the band spans its models."""
    table = table[(table.images == "all") & (table.threshold == table.groupby("detector").threshold.transform("min"))]
    people = ceiling[ceiling.pictures == "all"]
    rules, detectors = list(dict.fromkeys(table.rules)), list(dict.fromkeys(table.detector))
    figure, axes = plt.subplots(2, len(detectors), figsize=(5.2 * len(detectors), 7), sharey=True, sharex="row")
    for row, (measure, label) in enumerate({"agreement": "agreement (percent)", "kappa": "κ"}.items()):
        for axis, detector in zip(axes[row], detectors, strict=True):
            band = axis.axvspan(people[measure].min(), people[measure].max(), color="0.88", label="two people")
            for pairs, offset in (("any", -0.15), ("best", 0.15)):
                part = table[(table.detector == detector) & (table.pairs == pairs)].set_index("rules").loc[rules]
                for i, name in enumerate(rules):
                    estimates(axis, part.loc[[name]], [i + offset], measure, **_look(name, pairs))
            axis.set(yticks=range(len(rules)), yticklabels=rules, xlabel=label, ylim=(len(rules) - 0.5, -0.5))
            axis.grid(False, axis="y")
            if row == 0:
                axis.set_title(f"{detector}, n = {part.n.iloc[0]}")
    points = [plt.Line2D([], [], marker=marker, linestyle="none", color="black", markerfacecolor=fill)
              for marker, fill in (("o", "white"), ("s", "black"))]  # fmt: skip
    labels = ["any pair", "best pair", "two people\n(range of 3 models)"]
    axes[0, -1].legend([*points, band], labels, **RIGHT)
    figure.tight_layout()
    return figure


def _look(rules: str, pairs: str) -> dict[str, Any]:
    """Any pair: hollow circles; best pair: filled squares."""
    colour = rules_colour(rules)
    fmt, fill = ("o", "white") if pairs == "any" else ("s", colour)
    return {"fmt": fmt, "color": colour, "markerfacecolor": fill}


def offsets(table: pd.DataFrame) -> Figure:
    """Where the most confident boxes are, turned so that the prompt's direction points right, and each rule's border.
    ``table``: from :func:`agreement.offsets`. GenEval's border depends on the boxes' sizes: it is drawn for the median
    ones. Containment, which sg2im and sstd test first, is drawn as a ring."""
    shown = table[table.both_found]
    figure, axis = plt.subplots(figsize=(7.5, 6))
    for verdict, (colour, marker) in VERDICTS.items():
        part = shown[shown.verdict == verdict]
        label = f"{verdict} ({len(part)})"
        axis.scatter(part.along, part.across, color=colour, marker=marker, s=40, label=label, zorder=3)
    inside = shown[shown.contains]
    axis.scatter(inside.along, inside.across, 110, "none", edgecolors="black", label="one box in the other")
    reach = 0.85
    lines = [axis.axvline(0, color=rules_colour("visor"), linewidth=2)]
    for rules, degrees, style in (("sg2im", 45, "--"), ("people", PEOPLE_HALF_WIDTH, "-")):
        across = reach * np.tan(np.radians(degrees))
        lines += axis.plot([reach, 0, reach], [across, 0, -across], style, color=rules_colour(rules), linewidth=2)
    along, across = np.meshgrid(np.linspace(0, reach, 300), np.linspace(-reach, reach, 600))
    slack = GENEVAL_SLACK * shown.extent_along.to_numpy(float)
    holds = along - np.median(slack) > 0.5 * np.hypot(along, across)
    axis.contour(along, across, holds, levels=[0.5], colors=[rules_colour("geneval")], linestyles=":", linewidths=2)
    lines.append(plt.Line2D([], [], color=rules_colour("geneval"), linestyle=":", linewidth=2))
    verdicts = axis.legend(title="the person says", **RIGHT)
    names = ["visor", "sg2im, sstd", f"people ({PEOPLE_HALF_WIDTH:.0f}°)", "geneval (median boxes)"]
    axis.legend(lines, names, title="border of", loc="upper left", bbox_to_anchor=(1.02, 0.55))
    axis.add_artist(verdicts)
    axis.set(xlim=(-0.75, reach), ylim=(reach, -reach), aspect="equal", ylabel="across it")
    axis.set_xlabel("along the asked direction (sides of the image)")
    figure.tight_layout()
    return figure


def curve(table: pd.DataFrame) -> Figure:
    """Kappa with people on VSR at every half-width, on the half that it was fitted on and on the other.
    ``table``: from :func:`fitted_rule.curve`."""
    groups = list(dict.fromkeys(table.relations))
    figure, axes = plt.subplots(1, len(groups), figsize=(4 * len(groups), 3.8), sharex=True, sharey=True)
    for axis, group in zip(axes, groups, strict=True):
        halves = table[table.relations == group].groupby("half")
        for (half, part), style, colour in zip(halves, ("-", "--"), COLOURS[:2], strict=True):
            axis.plot(part.half_width, part.kappa, style, color=colour, label=f"{half} (n = {part.n.iloc[0]:,})")
        axis.axvline(PEOPLE_HALF_WIDTH, color="black", linewidth=1)
        axis.set(title=group, xlabel="half-width of the sector (degrees)")
        axis.legend(fontsize="small", loc="lower center", framealpha=1)  # the line passes behind it
    axes[0].set_ylabel("κ with people")
    axes[0].set_ylim(bottom=0)
    figure.tight_layout()
    return figure


def risk(margins: pd.DataFrame) -> Figure:
    """Risk against coverage: a rule set gives a verdict on the images farthest from its border only.
    ``margins``: from :func:`margins.margins`."""
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for (rules, part), marker in zip(margins.groupby("rules", sort=False), MARKERS, strict=False):
        ordered = part.sort_values("margin", ascending=False)
        wrong = (ordered.holds != (ordered.verdict == "true")).cumsum().to_numpy()
        kept = np.arange(1, len(ordered) + 1)
        whole = np.append(np.diff(ordered.margin.to_numpy()) != 0, True) & (kept >= 20)  # equal margins stay together
        axis.plot(
            100 * kept[whole] / len(ordered), 100 * wrong[whole] / kept[whole], marker=marker, markersize=4,
            color=rules_colour(str(rules)), label=rules,
        )  # fmt: skip
    axis.set(xlabel="coverage: images that get a verdict (percent)", ylabel="risk: differs from the person (percent)")
    axis.set(xlim=(0, 102), ylim=(0, None))
    axis.legend(title="rules", **RIGHT)
    figure.tight_layout()
    return figure


def systems(table: pd.DataFrame, metrics: tuple[str, ...] = ("VISOR", "VISOR_Cond")) -> Figure:
    """The score of each published system under every rule set, any pair (hollow) and best pair (filled).
    ``table``: from :func:`agreement.scores`."""
    models, detectors, rules = (list(dict.fromkeys(table[name])) for name in ("model", "detector", "rules"))
    size = (5 * len(detectors), 3 * len(metrics))
    figure, axes = plt.subplots(len(metrics), len(detectors), figsize=size, sharex=True, sharey=True)
    at = dict(zip(rules, np.linspace(-0.32, 0.32, len(rules)), strict=True))
    for row, metric in zip(axes, metrics, strict=True):
        for axis, detector in zip(row, detectors, strict=True):
            for name in rules:
                for pairs, shift in (("any", -0.03), ("best", 0.03)):
                    part = table[(table.metric == metric) & (table.detector == detector) & (table.rules == name)]
                    part = part[part.pairs == pairs].set_index("model").loc[models]
                    heights = np.arange(len(models)) + at[name] + shift
                    estimates(axis, part, heights, markersize=5, linewidth=1, **_look(name, pairs))
            axis.set(title=detector, xlabel=f"{metric} (percent)", yticks=range(len(models)), yticklabels=models)
            axis.set(xlim=(-2, 102), ylim=(len(models) - 0.5, -0.5))
            axis.grid(False, axis="y")
    handles = [plt.Line2D([], [], marker="s", linestyle="none", color=rules_colour(name)) for name in rules]
    handles.append(plt.Line2D([], [], marker="o", linestyle="none", color="black", markerfacecolor="white"))
    axes[0, -1].legend(handles, [*rules, "any pair (filled: best)"], **RIGHT)
    figure.tight_layout()
    return figure


def would_score(table: pd.DataFrame) -> Figure:
    """What the person would score of each system, alone and with each rule set's help, and the rule sets' own scores.
    ``table``: of :func:`person_score.person_scores`."""
    table = table[(table.strata == "with confidence") & table.pairs.isin(["none", "any"])]
    models = list(dict.fromkeys(table.model))
    figure, axes = plt.subplots(1, len(models), figsize=(10, 3.2), sharex=True, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        rows = table[table.model == model]
        estimates(axis, rows, np.arange(len(rows)), color="black", fmt="o", label="the person, estimated")
        axis.plot(rows.score, np.arange(len(rows)), "x", color=COLOURS[1], label="the rule set's own score")
        axis.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5), title=model, xlabel="right (%)")
        axis.set_yticklabels(["verdicts alone", *(f"with {name}" for name in rows.rules[1:])])
        axis.grid(False, axis="y")
    axes[0].legend(loc="upper center", bbox_to_anchor=(1.7, -0.22), ncols=2)
    return figure
