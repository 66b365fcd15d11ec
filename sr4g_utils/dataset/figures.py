"""The style of all figures and tables, and the figures of notebooks 01 and 02."""

import html
from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from .. import relations
from ..relations import BY_NAME, FAMILIES, NAMES, OPPOSITES, RULES, judge
from . import world

COLOURS = sns.color_palette("colorblind")
FAMILY_COLOUR = dict(zip(FAMILIES, COLOURS, strict=False))
SUBJECT, OBJECT = COLOURS[0], COLOURS[1]  # in every drawing of boxes
MARKERS = ("o", "s", "^", "D", "v", "P")
METRIC_COLOUR = {"OA": COLOURS[2], "VISOR": COLOURS[4], "VISOR_Cond": COLOURS[3]}

IMAGE = (640, 480)  # pixels; the image in which relations are drawn: not square, so that sstd's sectors show
LANDMARK = np.array([240.0, 180.0, 160.0, 120.0])  # the object's box there, xywh

Boxed = Sequence[tuple[str, np.ndarray]]  # names and xywh boxes of an image


def rules_colour(rules: str) -> Any:
    """A rule set's colour in every figure."""
    return COLOURS[list(RULES).index(rules) % len(COLOURS)]


def spread(n: int) -> list[float]:
    """Where n estimates of one row stand around its middle."""
    return np.linspace(-0.2, 0.2, n).tolist() if n != 1 else [0.0]


def estimates(
    axis: Any,
    rows: pd.DataFrame,
    at: Any,
    number: str = "value",
    *,
    upright: bool = False,
    most: Any = np.inf,
    **look: Any,
) -> Any:
    """A column of numbers at the given places, with their intervals; where there is none, the point alone. Returns what
    is drawn, to name in a legend: a label that begins with "_" is none to Matplotlib.

    The interval is in the columns ``number``_low and ``number``_high, or else in low and high; it is drawn up to
    ``most``, the most that the number can be. ``look``: of Matplotlib.
    """
    value = rows[number].to_numpy(float)
    low, high = (rows[end if end in rows else end.rpartition("_")[2]] for end in (f"{number}_low", f"{number}_high"))
    ends = [value - low.to_numpy(float), high.to_numpy(float).clip(None, most) - value]
    error = np.nan_to_num(np.stack(ends).clip(0))
    return axis.errorbar(*((at, value) if upright else (value, at)), **{"yerr" if upright else "xerr": error}, **look)


def use_style() -> None:
    """The look of all figures and tables, whatever a matplotlibrc says; notebooks call it once.

    Names are shown as they are: no ``$`` in one begins an equation, no markup in one is alive.
    """
    pd.set_option("display.max_colwidth", 120, "display.html.use_mathjax", False)
    pd.set_option("styler.format.escape", "html", "styler.html.mathjax", False)
    if (shell := get_ipython()) is not None:
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, table_html)
    matplotlib.rcdefaults()
    plain = {"figure.dpi": 100, "text.parse_math": False}
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc=plain)


def counted(number: float, _: Any = None) -> str:
    """A tick of an axis of counts, for a logarithmic one, too, whose own would be an equation."""
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"


def table_html(table: pd.DataFrame) -> str:
    """A table as notebooks show it: no row numbers, a dash for what is not known, thousands apart, as many decimals for
    all fractions. A column that says the same in each of four or more rows is told below it."""
    numbers = table.select_dtypes("float").to_numpy(float)
    numbers = numbers[np.isfinite(numbers)]
    decimals = next((n for n in range(4) if np.allclose(numbers, numbers.round(n), rtol=0, atol=1e-9)), 4)
    texts = pd.concat([_texts(column, decimals) for _, column in table.items()] or [table], axis=1)
    texts.columns = table.columns
    same = np.array([len(table) > 3 and column.nunique() == 1 for _, column in texts.items()], bool)
    same &= table.columns.nlevels == 1 and not same.all()
    constants = ", ".join(f"{name} {column.iloc[0]}" for name, column in texts.loc[:, same].items())
    is_named = any(table.index.names) or not pd.api.types.is_integer_dtype(table.index)
    texts.columns.names = table.columns.names if is_named else [None] * table.columns.nlevels
    text = texts.loc[:, ~same].to_html(index=is_named, border=0, max_rows=pd.get_option("display.max_rows"))
    return text + (f"<p>In each of these rows: {html.escape(constants)}.</p>" if constants else "")


def _texts(column: pd.Series, decimals: int) -> pd.Series:
    """The values of a column in words; fractions that are whole, with gaps or beyond a thousand, are counts."""
    is_whole = pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all()
    is_count = is_whole and (column.isna().any() or column.max() >= 1000)

    def text(value: Any) -> str:
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return "–"
        if isinstance(value, bool | np.bool_ | str) or not pd.api.types.is_number(value) or is_id:
            return str(value)
        return f"{value:,.0f}" if is_count or pd.api.types.is_integer(value) else f"{value + 0.0:,.{decimals}f}"

    is_id = str(column.name).endswith("id")
    return pd.Series([text(value) for value in column], column.index, object, column.name)


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
            holds = _holds(name, subject, rules).reshape(cx.shape)
            _shade(axis, holds, [FAMILY_COLOUR[family]], extent=(0, IMAGE[0], IMAGE[1], 0))
            draw_box(axis, LANDMARK, "black", "")
            axis.text(LANDMARK[0] + LANDMARK[2] / 2, LANDMARK[1] + LANDMARK[3] / 2, "object", ha="center", va="center")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(rules)
        axes[row, 0].set_ylabel(name)
    figure.supxlabel("shaded: the relation holds for a subject centred here", fontsize="medium")
    figure.tight_layout()
    return figure


def _defining(family: str) -> list[str]:
    """The rule sets that define a relation of the family."""
    return [name for name, rules in RULES.items() if set(rules.defines) & set(relations.family(family))]


def _holds(name: str, subject: np.ndarray, rules: str) -> np.ndarray:
    """Whether a relation holds between each subject's box and the landmark."""
    verdict = judge(subject, np.broadcast_to(LANDMARK, subject.shape), rules, np.array([IMAGE], float))
    return verdict[:, NAMES.index(name)]


def _shade(axis: Any, code: np.ndarray, colours: Sequence[Any], **options: Any) -> None:
    """A grid of whole numbers as an image: 0 in white, the others in these colours."""
    options |= {"cmap": ListedColormap(["white", *colours]), "vmin": 0, "vmax": len(colours), "alpha": 0.6}
    axis.imshow(code, interpolation="nearest", **options)
    axis.grid(False)


def scale_regions(step: float = 0.01) -> Figure:
    """Which widths and heights of the subject, in units of the object's, make it wider, taller or larger."""
    opposites, columns = [two for two in OPPOSITES if two[0] in relations.family("scale")], _defining("scale")
    size = (3 * len(columns), 2.7 * len(opposites))
    figure, axes = plt.subplots(len(opposites), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False)
    w, h = np.meshgrid(np.arange(step / 2, 2, step), np.arange(step / 2, 2, step))
    subject = np.stack([np.zeros_like(w), np.zeros_like(w), w * LANDMARK[2], h * LANDMARK[3]], axis=-1).reshape(-1, 4)
    for column, rules in enumerate(columns):
        for axis, (name, opposite) in zip(axes[:, column], opposites, strict=True):
            code = (_holds(name, subject, rules) + 2 * _holds(opposite, subject, rules)).reshape(w.shape)
            _shade(axis, code, [COLOURS[2], COLOURS[4]], extent=(0, 2, 0, 2), origin="lower")
            axis.plot(1, 1, "k+", markersize=10)
            axis.text(1.92, 1.88, name, ha="right", va="top")
            axis.text(0.08, 0.12, opposite, ha="left", va="bottom")
        axes[0, column].set_title(rules)
    figure.supxlabel("subject's width ÷ object's width", fontsize="medium")
    figure.supylabel("subject's height ÷ object's height", fontsize="medium")
    figure.tight_layout()
    return figure


def disagreement(table: pd.DataFrame) -> Figure:
    """Of the box pairs for which either rule set sees the relation, the share for which only one does."""
    share = (table.only_a + table.only_b) / (table.both + table.only_a + table.only_b)
    table = table.assign(share=share, which=table.a + " / " + table.b)
    grid = table.pivot(index="relation", columns="which", values="share")
    grid = grid.loc[[name for name in NAMES if name in grid.index], table.which.unique()]
    figure, axis = plt.subplots(figsize=(2.5 + 1.1 * grid.shape[1], 5.5))
    bar = {"label": "disagreement", "format": PercentFormatter(1, 0)}
    sns.heatmap(grid, annot=True, fmt=".1%", cmap="cividis", vmin=0, vmax=1, ax=axis, cbar_kws=bar)
    axis.set(xlabel="", ylabel="")
    figure.tight_layout()
    return figure


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
        label = f"{family} ({len(n):,} triplets)"
        axis.loglog(np.arange(1, len(n) + 1), n, style, color=FAMILY_COLOUR[family], label=label)
    axis.set(xlabel="rank of the triplet", ylabel="images that show it")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(counted)
    axis.legend()
    figure.tight_layout()
    return figure


MOST_NAMES = 120  # in one figure


def cooccurrence(frequencies: pd.DataFrame, names: Sequence[str]) -> Figure:
    """In how many images two categories stand in some relation (logarithmic colour; blank: never)."""
    # every pair of boxes either overlaps or is separated, so these two count images at least once, at most twice
    pairs = frequencies.groupby(["subject", "object"]).n_images.max()
    which = ""
    if len(names) > MOST_NAMES:
        common = set(pairs.groupby("subject").sum().nlargest(MOST_NAMES).index)
        which = f" ({MOST_NAMES} most frequent of {len(names):,})"
        names = [name for name in names if name in common]
        pairs = pairs[pairs.index.isin(list(product(names, names)))]
    grid = pairs.unstack().reindex(index=names, columns=names)
    size = max(6, 0.16 * len(names))
    figure, axis = plt.subplots(figsize=(size + 1, size))
    sns.heatmap(
        grid, norm=LogNorm(1, max(grid.max().max(), 2)), cmap="cividis", square=True, xticklabels=1, yticklabels=1,
        ax=axis, cbar_kws={"label": "images (most frequent relation of the pair)", "shrink": 0.7, "format": counted},
    )  # fmt: skip
    axis.tick_params(labelsize=7 if len(names) > 40 else 9)
    axis.grid(False)
    axis.set(xlabel=f"object{which}", ylabel=f"subject{which}")
    figure.tight_layout()
    return figure


def examples(rows: pd.DataFrame, pictures: Sequence[np.ndarray | None]) -> Figure:
    """Captions drawn on their image: the subject's and the object's box; on an empty canvas where there is none.

    Args:
        rows: as :func:`sr4g_utils.dataset.triplets.examples` gives them.
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


def cards(columns: int = 8) -> Figure:
    """The miniature world's cards with their names, each in its usual size, as many pixels as in a photo."""
    lines = -(-len(world.NAMES) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(1.25 * columns, 1.35 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, look) in zip(axes.flat, world.LOOKS.items(), strict=False):
        w, h = (round(world.SIZE * look.size * look.aspect**power) for power in (0.5, -0.5))
        axis.imshow(world.card(name, w, h), extent=(-w / 2, w / 2, h / 2, -h / 2), interpolation="nearest")
        axis.set(xlim=(-22, 22), ylim=(22, -22))
        axis.set_title(name, fontsize="small", y=-0.2)
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
        corner = max(x, left), min(max(edge, top), bottom)  # where a box leaves the image, its label stays in it
        axis.annotate(
            label, corner, xytext=(3, 5 if upwards else -5), textcoords="offset points", color="white",
            va="bottom" if upwards else "top", bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},
            fontsize="x-small",
        )  # fmt: skip
