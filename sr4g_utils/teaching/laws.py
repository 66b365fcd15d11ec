"""Exercise 3: a metric with a bug, found by the laws that it breaks.

Records are rows of prompt_id, image_index, both_found and correct, as in the table of verdicts. A metric takes records
and returns VISOR_Cond in percent: of the images with both objects, those in which the relation holds; NaN where there
is none.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd

from .answer import accept, call, grid, refuse, words

Metric = Callable[[pd.DataFrame], float]
Law = Callable[[Metric, pd.DataFrame], bool]


def _pooled(records: pd.DataFrame) -> float:
    found = records.both_found.sum()
    return float(100 * (records.correct & records.both_found).sum() / found) if found else float("nan")


def _by_prompt(records: pd.DataFrame) -> float:
    values = [_pooled(part) for _, part in records.groupby("prompt_id") if part.both_found.any()]
    return float(np.mean(values)) if values else float("nan")


def _of_all(records: pd.DataFrame) -> float:
    return float(100 * (records.correct & records.both_found).mean()) if records.both_found.any() else float("nan")


def _zero(records: pd.DataFrame) -> float:
    value = _pooled(records)
    return value if value == value else 0.0


def _all_but_one(records: pd.DataFrame) -> float:
    return _pooled(records[records.both_found].iloc[1:])


METRICS: dict[str, Metric] = {"A": _by_prompt, "B": _all_but_one, "C": _pooled, "D": _zero, "E": _of_all}
# Each law and the suspect that breaks it.
LAWS: dict[str, str] = {"order": "B", "missing": "E", "owner": "A", "nothing": "D"}


def same(a: float, b: float) -> bool:
    """Equal but for rounding, or both NaN."""
    return bool(np.isclose(a, b, equal_nan=True))


def tables(n: int = 60, seed: int = 0) -> Iterator[pd.DataFrame]:
    """Random records of 2 to 5 prompts with four images each; a few without a single image with both objects."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        prompts, found = int(rng.integers(2, 6)), 0.0 if i % 6 == 5 else 0.7
        both = rng.random(4 * prompts) < found
        columns = {"prompt_id": np.repeat(np.arange(prompts), 4), "image_index": np.tile(np.arange(4), prompts)}
        yield pd.DataFrame({**columns, "both_found": both, "correct": both & (rng.random(4 * prompts) < 0.5)})


def check_law(law: Law, name: str) -> None:
    """Whether the right metric obeys a law, and the suspect that it is meant for breaks it.

    Args:
        law: takes a metric and records, and returns whether the metric obeys it there; ``name`` is its key in ``LAWS``.

    Raises:
        CounterExample: it accuses the right metric, or lets the wrong one pass; the records are drawn.
    """
    caught, suspect = False, METRICS[LAWS[name]]
    for records in tables():
        before = records.copy()
        verdicts = [call(law, metric, records, figure=partial(grid, before)) for metric in (_pooled, suspect)]
        if not all(isinstance(verdict, bool | np.bool_) for verdict in verdicts):
            refuse("A law answers True or False.", grid(before, f"{law.__name__}: {verdicts[0]!r}"))
        if not records.equals(before):
            refuse("The law changes the records that it is given; let it work on a copy.", grid(before, "before"))
        if not verdicts[0]:
            value = f"VISOR_Cond = {_pooled(before):.1f} %"
            refuse("This law accuses a metric that is right: it does not hold for VISOR_Cond.", grid(before, value))
        caught |= not verdicts[1]
    if not caught:
        odd = next(records for records in tables() if not same(suspect(records), _pooled(records)))
        refuse("This law holds for the right metric, but the wrong one obeys it, too: it asks too little.",
               grid(odd, f"one of the suspects says {suspect(odd):.1f} %"))  # fmt: skip
    accept(f"The law of {name!r} holds for the right metric and catches a wrong one.")


def check_suspects(broken: Mapping[str, str | None]) -> None:
    """Whether each law is set against the one suspect that breaks it. ``broken``: a law's name -> a metric's.

    Raises:
        CounterExample: one is missing or wrong; records on which the named metric is right are drawn.
    """
    for law, suspect in LAWS.items():
        name = broken.get(law)
        if name not in METRICS:
            refuse(f"Which metric breaks the law of {law!r}? Name one of {', '.join(METRICS)}.",
                   words(f"{law}: {name}"))  # fmt: skip
        if name != suspect:
            records = next(tables(seed=2))
            value = f"metric {name}: {METRICS[name](records):.1f} %"
            refuse(f"Metric {name} obeys the law of {law!r}: try your law on all five, on many tables.",
                   grid(records, value))  # fmt: skip
    accept("Four laws, four bugs; the metric that is left over is the right one.")


def check_cond(metric: Metric) -> None:
    """Whether a function of records is VISOR_Cond. Raises CounterExample with records on which its value is wrong."""
    for records in tables(seed=1):
        value = call(metric, records.copy(), figure=partial(grid, records))
        if not isinstance(value, int | float | np.number):
            refuse(f"{metric.__name__} returns {value!r}; a metric is a number.", grid(records, "which number?"))
        if not same(float(value), _pooled(records)):
            refuse(_hint(float(value), records), grid(records, f"yours: {value:.1f} %"))
    accept("On every table your metric is VISOR_Cond.")


def _hint(value: float, records: pd.DataFrame) -> str:
    if not records.both_found.any():
        return "No image has both objects: what can VISOR_Cond say of relations here?"
    if same(value, _pooled(records) / 100):
        return "The scores of this study are percentages, not fractions."
    for name, sentence in {
        "E": "The white squares say nothing about relations: should they count?",
        "A": "A prompt with one image counts here as much as a prompt with four.",
        "B": "Not every image of this table has been counted.",
    }.items():
        if same(value, METRICS[name](records)):
            return sentence
    return "Count by hand: which squares does the metric count, and what does it divide them by?"
