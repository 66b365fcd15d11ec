"""The paper's six claims: what is tested for each, by the margins of ``data/protocol.yaml``, and the verdicts.

A test compares a 95 % interval with a bound: it *holds* if the interval lies on the right side of the bound, is
*contradicted* if it lies on the other, and is *undecided* if it contains the bound. A claim holds if all its tests do:
for that, no correction is needed, since a false claim has at least one test that holds in 2.5 % of runs at most. It is
contradicted if one of its tests is. Where those are many, one for each relation, they are corrected (Holm 1979).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from ..evaluation import scores, statistics
from ..evaluation.judges import MEDIAN
from ..relations import NAMES, SYMMETRIC
from ..store import files
from ..store.files import protocol, read_table, reported
from ..store.run import Run

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
NOTHING, NOT_TESTABLE = "nothing to reduce", "not testable here"
ALPHA = 0.05


@dataclass(frozen=True)
class Tested:
    """A number with its 95 % interval (None: not measured), the rule by which it is judged, and the verdict."""

    what: str
    number: Sequence[float | int] | None
    rule: str
    verdict: str


def against(
    what: str, number: Sequence[float | int] | None, side: Literal["above", "below"], bound: float | int
) -> Tested:
    """The test whether a number lies above or below a bound, from its interval."""
    verdict = NOT_TESTABLE
    if number is not None and np.isfinite(np.array(number, float)).all():
        sign = 1 if side == "above" else -1
        low, high = sorted(sign * (end - bound) for end in number[1:])
        verdict = HOLDS if low > 0 else CONTRADICTED if high < 0 else UNDECIDED
    return Tested(what, number, f"interval {side} {bound:g}", verdict)


def together(verdicts: Iterable[str]) -> str:
    """A claim's verdict, from its tests'."""
    worst_first: tuple[str, ...] = (CONTRADICTED, NOT_TESTABLE, UNDECIDED)
    present = set(verdicts)
    if NOTHING in present:  # of one judge alone it decides nothing
        present = {NOTHING} if len(present) == 1 else present - {NOTHING} | {UNDECIDED}
        worst_first = (*worst_first, NOTHING)
    return next((verdict for verdict in worst_first if verdict in present), HOLDS)


def by_relation(changes: pd.DataFrame) -> pd.DataFrame:
    """The change of VISOR_Cond of each relation, with p corrected for their number (``p_holm``) and a verdict:
    "gains", "loses", or "undecided"; from one model's rows of :func:`tables.change_table`, of one set of objects."""
    table = changes[(changes.metric == "VISOR_Cond") & (changes.relation != "all")].drop(columns="metric")
    table = table.assign(p_holm=statistics.holm(table.p.to_numpy(np.float64)))
    shown = table.p_holm < ALPHA
    signs = [shown & (table.difference > 0), shown & (table.difference < 0)]
    return table.assign(verdict=np.select(signs, ["gains", "loses"], UNDECIDED)).reset_index(drop=True)


def every_relation(changes: pd.DataFrame) -> Tested:
    """Claim 3, from :func:`by_relation`: how many of the 14 are higher, between the number that is shown to gain and 14
    less those that are shown to lose."""
    known, rule = changes.low.notna().sum() == len(NAMES), "all 14 intervals above 0"
    gains, loses = ((changes.verdict == verdict).sum() for verdict in ("gains", "loses"))
    number = [float(n) for n in ((changes.difference > 0).sum(), gains, len(NAMES) - loses)] if known else None
    verdict = CONTRADICTED if loses else HOLDS if (changes.low > 0).all() else UNDECIDED
    return Tested("relations of 14 with a gain", number, rule, verdict if known else NOT_TESTABLE)


def table(
    changes: pd.DataFrame, bias: pd.DataFrame, quality: pd.DataFrame | None, over_rival: pd.DataFrame | None,
    model: str, unseen_model: str, others: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]] | None = None,
    headline: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The paper's six claims (``claims`` in ``data/reported.yaml``), a row for each test.

    What judges say of the images (claims 1 to 4, and OA) is tested by each of them: a claim holds only if it does by
    all.

    Args:
        changes: of :func:`tables.change_table`, from the model before fine-tuning to the two others.
        bias: of :func:`bias.bias`.
        quality: of :func:`quality.distances`; None if it was not measured.
        over_rival: of :func:`scores.compare`, from a pipeline of the kind of VPGen to ``model``; None if there is none.
        model, unseen_model: names of the fine-tuned model and of that without the unseen objects. If they are the same,
            claim 1 is tested on seen objects only, else on all.
        others: changes and bias as each further judge sees them, by its name.
        headline: of :func:`judges.by_judge`, for the median of the judges.

    Returns:
        Columns claim, what, number, low, high, holds if, test, verdict (of the claim), reported and source.
    """
    rival = over_rival[over_rival.relation == "all"].set_index("metric") if over_rival is not None else None

    def over(metric: str) -> list[float] | None:
        return rival.loc[metric, ["difference", "low", "high"]].tolist() if rival is not None else None

    margins = protocol()["margins"]
    tests: dict[str, list[Tested]] = {key: [] for key in "123456"}
    tests["5"] = [against("Fréchet distance from photos, %", _relative(quality, model), "below", margins["distance"])]
    for judge, (seen, gaps) in {"": (changes, bias), **(others or {})}.items():
        for key, test in _by_judge(seen, gaps, model, unseen_model, judge):
            tests[key].append(test)
    if headline is not None and others:
        for key, test in _by_median(headline, model, unseen_model):
            tests[key].append(test)
    tests["6"] = [
        against("points of VISOR_Cond over the pipeline", over("VISOR_Cond"), "above", 0),
        *(against(f"points of {name} over it", over(name), "below", margins["OA"]) for name in ("OA", "VISOR")),
    ]
    return rows_of(tests, bias, *(gaps for _, gaps in (others or {}).values()))


def _main_set(changes: pd.DataFrame, model: str, unseen_model: str) -> str:
    """The prompts that claim 1 is tested on."""
    sets = list(dict.fromkeys(changes.objects[changes.model == model]))
    return "seen" if model == unseen_model and "seen" in sets else sets[-1]


def _by_judge(
    changes: pd.DataFrame, bias: pd.DataFrame, model: str, unseen_model: str, judge: str
) -> Iterator[tuple[str, Tested]]:
    """The tests of claims 1 to 5 by one judge, with the claim's number."""
    ours, by = changes[changes.model == model], f", by {judge}" if judge else ""
    main, last = _main_set(changes, model, unseen_model), ours.objects.iloc[-1]

    def change(name: str, objects: str, metric: str = "VISOR_Cond") -> list[float] | None:
        rows = changes[(changes.model == name) & (changes.objects == objects) & (changes.metric == metric)]
        rows = rows[rows.relation == "all"]
        return rows[["difference", "low", "high"]].iloc[0].tolist() if len(rows) else None

    points = "points of VISOR_Cond"
    tests = {
        "1": against(f"{points}, {main} objects{by}", change(model, main), "above", 0),
        "2": against(f"{points}, unseen objects{by}", change(unseen_model, "unseen"), "above", 0),
        "3": every_relation(by_relation(ours[ours.objects == last])),
        "4": against(f"squared gaps between opposites, points²{by}", bias_change(bias, model), "below", 0),
        "5": against(
            f"points of OA, {last} objects{by}", change(model, last, "OA"), "above", -protocol()["margins"]["OA"]
        ),
    }
    tests["3"] = replace(tests["3"], what=tests["3"].what + by)
    for key, test in tests.items():  # a further judge that finds too little leaves a claim undecided
        yield key, replace(test, verdict=UNDECIDED) if judge and test.verdict == NOT_TESTABLE else test


def _by_median(headline: pd.DataFrame, model: str, unseen_model: str) -> Iterator[tuple[str, Tested]]:
    """The tests of claims 1 and 2 by the median of the judges."""
    rows = headline[(headline.judge == MEDIAN) & (headline.metric == "VISOR_Cond")]
    main = _main_set(rows, model, unseen_model)
    for key, name, objects in (("1", model, main), ("2", unseen_model, "unseen")):
        part = rows.loc[(rows.model == name) & (rows.objects == objects), ["gain", "gain_low", "gain_high"]]
        number = part.iloc[0].astype(float).tolist() if len(part) else None
        yield key, against(f"points of VISOR_Cond, {objects} objects, {MEDIAN}", number, "above", 0)


def rows_of(tests: Mapping[str, Sequence[Tested]], *biases: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`table` from the tests of each claim, by its number ("2", or "2, control"), and from the bias
    as each judge sees it."""
    published, rows = reported("claims"), []
    fair = bool(biases) and all(map(_fair, biases))
    for key, parts in tests.items():
        paper = published[int(key.partition(",")[0])]
        verdict = together(test.verdict for test in parts)
        if key == "4" and verdict == UNDECIDED and fair:
            verdict = NOTHING
        for test in parts:
            value, low, high = test.number or (np.nan,) * 3
            ours = {"what": test.what, "number": value, "low": low, "high": high, "holds if": test.rule}
            verdicts = {"test": verdict if len(parts) == 1 else test.verdict, "verdict": verdict}
            theirs = {"reported": paper["reported"], "source": paper["source"]}
            rows.append({"claim": f"{key}. {paper['claim']}", **ours, **verdicts, **theirs})
    return pd.DataFrame(rows)


def _fair(bias: pd.DataFrame) -> bool:
    """Whether every pair of opposites of the first model is shown to be treated alike, within the protocol's margin."""
    margin = protocol()["margins"]["gap"]
    first = bias[(bias.model == bias.model.iloc[0]) & ~bias.relation.isin([*SYMMETRIC, "true opposites"])]
    return bool(len(first)) and bool((first.gap_low > -margin).all() and (first.gap_high < margin).all())


def bias_change(bias: pd.DataFrame, model: str) -> list[float]:
    """The change of the true opposites' squared gaps, with its interval; from :func:`bias.bias`."""
    total = bias[(bias.relation == "true opposites") & (bias.model == model)].iloc[0]
    return total[["change", "change_low", "change_high"]].tolist()


def _relative(quality: pd.DataFrame | None, model: str) -> list[float] | None:
    """The change of the distance, in percent of the first model's (taken as exact)."""
    if quality is None:
        return None
    change = quality.loc[quality.model == model, ["change", "change_low", "change_high"]].iloc[0]
    return (100 * change / quality.value.iloc[0]).tolist()


def quality(run: Run, space: str) -> pd.DataFrame | None:
    """The distances from photos that notebook 04 measured in a feature space; None if it did not."""
    path = run.folder / "artifacts" / "results" / f"quality_{space}.json"
    return pd.DataFrame(files.read_json(run.read(path))["rows"]) if path.exists() else None


def over_rival(
    run: Run, rival: str | None, records: Mapping[str, pd.DataFrame], model: str, resamples: int, seed: int
) -> pd.DataFrame | None:
    """:func:`scores.compare` from a rival among notebook 04's models to ``model``; None if there is no rival."""
    if rival is None:
        return None
    theirs = read_table(run.read(f"verdicts_{rival}.parquet"))
    return scores.compare(theirs, records[model], resamples, seed=seed)
