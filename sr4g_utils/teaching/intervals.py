"""Exercise 4: read an interval, and make one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from matplotlib.figure import Figure

from ..dataset import figures
from ..evaluation import scores
from ..evaluation.statistics import interval
from .answer import accept, call, refuse, words

Verdicts = Bool[np.ndarray, "prompt image"]
PROMPTS, IMAGES = 160, 4


@cache
def study() -> dict[str, Verdicts]:
    """Three models on the same prompts, (prompt, image): does the relation hold? Both objects are always found.

    Prompts differ in difficulty, and all models find much the same ones hard: "after" is better than "before", and
    "again", the same training with another seed, nearly as good. They are made up, and the intervals are measured.
    """
    rng = np.random.default_rng(1)
    ease = rng.normal(0, 2.0, PROMPTS)[:, None]
    gains = {"before": 0.0, "after": 1.0, "again": 0.65}
    return {
        name: rng.random((PROMPTS, IMAGES)) < 1 / (1 + np.exp(-(ease + rng.normal(0, 1.0, (PROMPTS, 1)) + gain)))
        for name, gain in gains.items()
    }


def _records(verdicts: Verdicts) -> pd.DataFrame:
    n, images = verdicts.shape
    columns = {"prompt_id": np.repeat(np.arange(n), images), "image_index": np.tile(np.arange(images), n)}
    return pd.DataFrame({**columns, "relation": "left of", "both_found": True, "correct": verdicts.ravel()})


@cache
def table() -> pd.DataFrame:
    """VISOR_Cond of each model and the paired differences, in points, with 95 % intervals: what, value, low, high."""
    records = {name: _records(verdicts) for name, verdicts in study().items()}
    rows = []
    for name, part in records.items():
        score = scores.scores(part).query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]
        rows.append({"what": name, "value": score.value, "low": score.low, "high": score.high})
    for a, b in (("before", "after"), ("before", "again"), ("after", "again")):
        change = scores.compare(records[a], records[b]).query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]
        rows.append({"what": f"{b} − {a}", "value": change.difference, "low": change.low, "high": change.high})
    return pd.DataFrame(rows)


def draw() -> Figure:
    """:func:`table` as a figure: the models on the left, the differences on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.2), width_ratios=(1, 1.2))
    for axis, rows, label in zip(axes, (table()[:3], table()[3:]), ("VISOR_Cond (percent)", "difference (points)"),
                                 strict=True):  # fmt: skip
        figures.estimates(axis, rows, np.arange(len(rows)), fmt="o", color=figures.COLOURS[0])
        axis.set(yticks=range(len(rows)), yticklabels=rows.what, ylim=(len(rows) - 0.5, -0.5), xlabel=label)
        axis.grid(False, axis="y")
    axes[1].axvline(0, color="black", linewidth=1)
    figure.tight_layout()
    return figure


@dataclass(frozen=True)
class _Claim:
    """A claim, whether it stands, what to draw (a row and the region claimed), and where to look."""

    text: str
    stands: bool
    row: str
    region: tuple[float, float] | None
    hint: str


CLAIMS: dict[str, _Claim] = {
    "a": _Claim("After fine-tuning the model obeys relations more often than before.", True, "after − before",
                (0.0, np.inf), "Is any value of this interval a loss?"),
    "b": _Claim("Fine-tuning gains at least 10 points.", False, "after − before", (10.0, np.inf),
                "Is all of the interval in the region that is claimed, or only some of it?"),
    "c": _Claim("Fine-tuning gains less than 25 points.", True, "after − before", (-np.inf, 25.0),
                "Is any value of this interval outside the region that is claimed?"),
    "d": _Claim("The intervals of 'before' and 'again' overlap, so there is no gain to be seen between them.", False,
                "again − before", (-np.inf, 0.0), "Both met the same prompts: which interval is of the difference?"),
    "e": _Claim("'after' and 'again' are equally good: their difference's interval holds 0.", False, "again − after",
                None, "An interval that holds 0 holds other values as well: does it rule them out?"),
    "f": _Claim("95 % of the prompts have a score within the interval of 'after'.", False, "after", None,
                "With four images, which scores can a single prompt have? The interval is of the mean."),
    "g": _Claim("With other prompts of the same kind, 'after' may well score two points less than it did here.", True,
                "after", None, "Measure it: is a score two points lower still within the interval?"),
}  # fmt: skip


def claims() -> dict[str, str]:
    """The claims to judge, by letter."""
    return {letter: claim.text for letter, claim in CLAIMS.items()}


def check_claims(stands: Mapping[str, bool | None]) -> None:
    """Whether each claim is judged rightly. ``stands``: a claim's letter -> whether the intervals support it.

    Raises:
        CounterExample: one is missing or judged wrongly; its interval is drawn with the region that it claims.
    """
    for letter, claim in CLAIMS.items():
        if not isinstance(answer := stands.get(letter), bool):
            refuse(f"Claim {letter} is not judged yet: True or False?", words(f"{letter}: ?"))
        if answer != claim.stands:
            row = next(row for row in table().to_dict("records") if row["what"] == claim.row)
            figure = _region(row["value"], row["low"], row["high"], claim.region, f"{letter}: {claim.text}")
            refuse(f"Claim {letter}: {claim.hint}", figure)
    accept("All claims are judged as the intervals do.")


def _region(value: float, low: float, high: float, region: tuple[float, float] | None, title: str) -> Figure:
    """An interval, and the region that is claimed, if one is, shaded."""
    figure, axis = plt.subplots(figsize=(7, 1.8))
    finite = [edge for edge in (low, high, *(region or ())) if np.isfinite(edge)]
    room = 0.3 * (max(finite) - min(finite))
    limits = min(finite) - room, max(finite) + room
    if region:
        axis.axvspan(*np.clip(region, *limits), color=figures.COLOURS[1], alpha=0.3, label="claimed")
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    axis.errorbar([value], [0], xerr=[[value - low], [high - value]], fmt="o", color=figures.COLOURS[0], capsize=5)
    axis.set(yticks=[], xlim=limits)
    axis.set_title(title, fontsize="medium", wrap=True)
    figure.tight_layout()
    return figure


# (value, low, high), the region claimed, and what is special about it
_CASES: list[tuple[tuple[float, float, float], dict[str, float], str]] = [
    ((6.0, 4.0, 8.0), {"above": 0.0}, "The whole interval lies in the region."),
    ((6.0, 4.0, 8.0), {"above": 10.0}, "No value of the interval lies in the region."),
    ((3.0, -1.0, 7.0), {"above": 0.0}, "The estimate lies in the region: does all of its interval?"),
    ((-1.0, -5.0, 3.0), {"above": 0.0}, "One end lies in the region: does all of the interval?"),
    ((3.0, 1.0, 5.0), {"below": 4.0}, "There is a region below a number, too: does all of the interval lie there?"),
    ((3.0, 1.0, 5.0), {"below": 8.0}, "There is a region below a number, too: does all of the interval lie there?"),
    ((3.0, 1.0, 5.0), {"above": 2.0, "below": 8.0}, "The region has two sides: look at both."),
    ((3.0, 1.0, 5.0), {"above": 0.0, "below": 4.0}, "The region has two sides: look at both."),
    ((3.0, 1.0, 5.0), {"above": 0.0, "below": 8.0}, "The region has two sides: look at both."),
    ((2.0, 0.0, 4.0), {"above": 0.0}, "The interval ends exactly on the border, and 'above' means above."),
    ((np.nan, np.nan, np.nan), {"above": 0.0}, "Nothing was measured here: NaN supports no claim."),
]


def check_stands(function: Callable[..., bool]) -> None:
    """Whether a function of value, low, high and the keywords above and below tells rightly, by True or False, when an
    interval supports "the true value is above … and below …".

    Raises:
        CounterExample: its answer is wrong for an interval and a claim, which are drawn.
    """
    for (value, low, high), region, hint in _CASES:
        above, below = region.get("above", -np.inf), region.get("below", np.inf)
        edges = ", ".join(f"{name}={edge:g}" for name, edge in region.items())
        text = f"{function.__name__}({value:g}, {low:g}, {high:g}, {edges})"
        figure = partial(_case, (value, low, high), (above, below), text)
        answer = call(function, value, low, high, figure=figure, **region)
        if not isinstance(answer, bool | np.bool_):
            refuse(f"{function.__name__} returns {answer!r}; a claim stands, True, or does not, False.",
                   figure(f"{answer}"))  # fmt: skip
        if bool(answer) != bool(low > above and high < below):
            refuse(f"{hint} Your function says {answer}.", figure(f"{answer}"))
    accept(f"{function.__name__} says so when, and only when, the whole interval lies in the region.")


def _case(estimate: tuple[float, float, float], region: tuple[float, float], text: str, answer: str) -> Figure:
    title = f"{text}: {answer}"
    return words(title) if np.isnan(estimate[0]) else _region(*estimate, region, title)


def resampled(
    before: Verdicts, after: Verdicts, resamples: int = 4_000, seed: int = 0
) -> Float64[np.ndarray, "sample"]:
    """The difference in points, prompts drawn again with replacement, both models' images of a prompt together."""
    drawn = np.random.default_rng(seed).integers(len(before), size=(resamples, len(before)))
    return 100 * (after.mean(axis=1)[drawn] - before.mean(axis=1)[drawn]).mean(axis=1)


def check_paired_interval(function: Callable) -> None:
    """Whether a function of before and after, bool (prompt, image) each, returns the ends, in points, of the 95 %
    interval of the difference between two models on the same prompts.

    Raises:
        CounterExample: its interval is too wide, too narrow or elsewhere; both are drawn.
    """
    before, after = study()["before"], study()["after"]
    drawn = resampled(before, after)
    low, high = interval(drawn)
    ends = call(function, before.copy(), after.copy(), figure=partial(_histogram, drawn, None))
    try:
        left, right = (float(end) for end in ends)
    except (TypeError, ValueError):
        refuse(f"{function.__name__} returns {ends!r}; an interval is two numbers, low and high.",
               _histogram(drawn, None, "two numbers are needed"))  # fmt: skip
    width, middle = (right - left) / (high - low), (left + right - low - high) / 2 / (high - low)
    if hint := _width_hint(left, right, width, middle):
        refuse(hint, _histogram(drawn, (left, right), "the difference, prompts drawn again and again"))
    accept("Your interval is the paired bootstrap's.")


def _width_hint(left: float, right: float, width: float, middle: float) -> str:
    if abs(left) < 1 and abs(right) < 1:
        return "The ends are given in points, not as fractions."
    if width < 0:
        return "The lower end comes first."
    if abs(middle) > 0.2:
        return "The interval is elsewhere: which difference is meant, after minus before or the other?"
    if width > 1.12:
        return "The interval is too wide: do both models meet the same prompts in each draw?"
    if width < 0.9:
        question = "is a prompt drawn with all of its images, and do 95 % of the draws lie within?"
        return f"The interval is too narrow: {question}"
    return ""


def _histogram(drawn: np.ndarray, interval: tuple[float, float] | None, title: str) -> Figure:
    figure, axis = plt.subplots(figsize=(7, 2.4))
    axis.hist(drawn, bins=40, color=figures.COLOURS[0], alpha=0.5)
    if interval:
        for end, label in zip(interval, ("yours", None), strict=True):
            axis.axvline(end, color=figures.COLOURS[1], linewidth=3, label=label)
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    axis.set(xlabel="difference (points)", yticks=[], title=title)
    figure.tight_layout()
    return figure
