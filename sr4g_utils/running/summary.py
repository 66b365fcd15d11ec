"""Several runs beside each other: scores, seeds, paired differences, and what differed between the runs."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from scipy import stats

from ..dataset.prompts import OBJECT_SETS
from ..evaluation import scores, statistics
from ..evaluation.tables import verdict_files
from ..store import files
from . import profiles
from .pages import render
from .sweep import measured_minutes

OF = ["kind", "objects", "model", "relation", "metric"]  # what a number is of; kind: "score" or "change"
ENDS = ["value", "low", "high"]
PROMPT = ["subject", "relation", "object", "caption", "objects"]  # two runs' prompts are the same where these are
RESAMPLES = 1_000


@dataclass(frozen=True)
class Finished:
    """A finished run, or the results that were recorded of one.

    numbers: columns ``OF``, value, low and high (over prompts). verdicts: by model, with ``prompt`` numbered alike in
    all runs; empty where only results are there.
    """

    name: str
    parameters: Mapping[str, Any]
    about: Mapping[str, Any]
    numbers: pd.DataFrame
    verdicts: Mapping[str, pd.DataFrame]


def finished_in(folders: Sequence[Path]) -> list[Path]:
    """The run folders that have scores, among some folders and right below them.

    Raises:
        ValueError: there is none in one of the folders.
    """
    paths = []
    for folder in folders:
        below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        runs = [path for path in ([folder] if _results(folder) else below) if _results(path)]
        if not runs:
            raise ValueError(f"--summary: {folder} holds no run with scores; run notebook 04 first")
        paths += runs
    return list(dict.fromkeys(path.resolve() for path in paths))


def _results(folder: Path) -> Path | None:
    """Where a run's results are, if its scores are there; those of ``data/results`` stand in their folder itself."""
    places = (folder / "artifacts" / "results", folder)
    return next((place for place in places if (place / "scores.json").is_file()), None)


def read(folder: Path, name: str, numbered: dict[tuple[Any, ...], int]) -> Finished:
    """A finished run. ``numbered`` has the numbers of the prompts of earlier runs and grows: a prompt's id is its run's
    own."""
    place = _results(folder)
    assert place is not None
    results = {path.stem: files.read_json(path) for path in sorted(place.glob("*.json"))}
    scores = pd.DataFrame(results["scores"]["rows"]).assign(kind="score")
    changes = pd.DataFrame(results.get("changes", {"rows": []})["rows"]).rename(columns={"difference": "value"})
    numbers = pd.concat([scores, changes.assign(kind="change")])[[*OF, *ENDS]]
    numbers = numbers.astype(dict.fromkeys(ENDS, float))  # null where there are too few prompts
    minutes = measured_minutes(folder)
    about = {k: v for k, v in results["scores"]["provenance"].items() if not isinstance(v, dict | list)}
    if not (parameters := _parameters(folder)):
        values = {f"{key}.{part}": value for key, own in results.items() for part, value in own["about"].items()}
        parameters = {key: value for key, value in values.items() if not isinstance(value, dict)}
    about |= {} if minutes is None else {"minutes of notebooks": round(minutes, 1)}
    return Finished(name, parameters, about, numbers.reset_index(drop=True), _verdicts(folder, numbered))


def _parameters(folder: Path) -> dict[str, Any]:
    """All parameters of a run's executed notebooks, but for its own folder."""
    parameters: dict[str, Any] = {}
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        values = {key: default for key, (_, default) in profiles.declared_in(notebook["cells"]).items()}
        values |= profiles.injected(notebook)
        parameters |= {f"{path.stem}.{key}": value for key, value in values.items() if key != "run_folder"}
    return parameters


def _verdicts(folder: Path, numbered: dict[tuple[Any, ...], int]) -> dict[str, pd.DataFrame]:
    test_prompts = folder / "artifacts" / "prompts_test.parquet"
    if not test_prompts.is_file():
        return {}
    prompts = files.read_table(test_prompts, columns=["prompt_id", *PROMPT])
    rows = prompts[PROMPT].itertuples(index=False, name=None)
    prompts = prompts.assign(prompt=[numbered.setdefault(row, len(numbered)) for row in rows])
    prompts = prompts[["prompt_id", "prompt", "objects"]]
    needed = ["prompt_id", "image_index", "relation", "both_found", "correct"]
    tables = {}
    for model, path in verdict_files(test_prompts.parent).items():
        table = files.read_table(path, columns=needed).merge(prompts, on="prompt_id", validate="many_to_one")
        table = table.drop(columns="prompt_id").rename(columns={"prompt": "prompt_id"})
        tables[model] = table
    return tables


def differing(runs: Sequence[Finished]) -> pd.DataFrame:
    """What is not the same in all runs: a row per parameter, version or machine, a column per run."""
    rows = []
    for kind in ("parameters", "about"):
        values = [getattr(run, kind) for run in runs]
        for key in dict.fromkeys(key for value in values for key in value):
            texts = [str(value.get(key, "–")) for value in values]
            if len(set(texts)) > 1:
                rows.append({"what": key, **dict(zip((run.name for run in runs), texts, strict=True))})
    return pd.DataFrame(rows, columns=["what", *(run.name for run in runs)])


def by_seed(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """The runs that differ in seeds only, under a name for each such group; only groups of at least two."""
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        rest = {key: value for key, value in run.parameters.items() if key.rpartition(".")[2] != "seed"}
        groups.setdefault(files.hash_of(rest), []).append(run)
    several = [group for group in groups.values() if len(group) > 1]
    return {" | ".join(run.name for run in group): group for group in several}


def over_seeds(runs: Sequence[Finished]) -> pd.DataFrame:
    """The mean over runs that differ in seeds only, of every number that all of them have, with 95 % intervals.

    Columns: ``OF``, value (the mean), runs, low and high over seeds (Student's t: what another seed would give), and
    prompts_low and prompts_high (bootstrap over prompts, these seeds kept: what other prompts would give; null where
    the runs are not scored on the same images).
    """
    every = pd.concat([run.numbers for run in runs]).groupby(OF, sort=False, dropna=False).value
    table = every.agg(["mean", "std", "count"]).reset_index().rename(columns={"mean": "value", "count": "runs"})
    table = table[table.runs == len(runs)].reset_index(drop=True)
    half = stats.t.ppf(0.975, len(runs) - 1) * table["std"] / np.sqrt(len(runs))
    table = table.assign(low=table.value - half, high=table.value + half).drop(columns="std")
    ends = pd.DataFrame(_over_prompts(runs), columns=[*OF, "prompts_low", "prompts_high"])
    return table.merge(ends, on=OF, how="left") if len(ends) else table.assign(prompts_low=np.nan, prompts_high=np.nan)


def _over_prompts(runs: Sequence[Finished]) -> Iterator[tuple[Any, ...]]:
    """Intervals over prompts of the runs' mean: of each score, and of each change from the first model."""
    if not all(run.verdicts for run in runs):
        return
    models = [m for m in _models(runs[0]) if all(m in run.verdicts for run in runs)]
    tables = [run.verdicts[model] for model in models for run in runs]
    if len({tuple(sorted(zip(t.prompt_id, t.image_index, strict=True))) for t in tables}) != 1:
        return
    for objects, parts in _sets(tables):
        for relation, drawn in scores.draws(parts, RESAMPLES).items():
            means = drawn.reshape(len(models), len(runs), *drawn.shape[1:]).mean(axis=1)
            for i, model in enumerate(models):
                for kind, values in (("score", means[i]), ("change", means[i] - means[0])):
                    if kind == "score" or i:
                        for metric, drawn_again in zip(scores.METRICS, values[1:].T, strict=True):
                            ends = statistics.interval(drawn_again)
                            yield kind, objects, model, relation, metric, *ends


def _models(run: Finished) -> list[str]:
    return list(dict.fromkeys(run.numbers.model))


def _sets(tables: Sequence[pd.DataFrame]) -> Iterator[tuple[str, list[pd.DataFrame]]]:
    """Each set of objects that occurs in all tables, with their records of it; "all" last, if there are several."""
    kinds = set.intersection(*(set(table.objects) for table in tables))
    for name in [name for name in (*OBJECT_SETS, "all") if name in kinds]:
        yield name, [table[table.objects == name] for table in tables]
    if len(kinds) > 1:
        yield "all", list(tables)


def _paired_models(a: Finished, b: Finished) -> Iterator[tuple[str, str]]:
    """A model of one run beside that of the same name in the other; those of which it has none, beside each such."""
    ours, theirs = ([m for m in _models(run) if m in run.verdicts] for run in (a, b))
    yield from ((model, model) for model in ours if model in theirs)
    yield from product([m for m in ours if m not in theirs], [m for m in theirs if m not in ours])


def differences(runs: Sequence[Finished]) -> pd.DataFrame:
    """Every two runs' difference in scores over all relations, on the prompts that both have, paired: of the models
    with one name, and of each that only one run has from each that only the other has.

    Returns:
        Columns run and other, objects, model, other_model, then those of :func:`scores.compare` (before: run, after:
        other). Where two runs have no prompt in common, or only results were kept, they have no rows.
    """
    tables = []
    for a, b in combinations(runs, 2):
        for model, other in _paired_models(a, b):
            for objects, (first_table, second_table) in _sets([a.verdicts[model], b.verdicts[other]]):
                if set(first_table.prompt_id) & set(second_table.prompt_id):
                    table = scores.compare(first_table, second_table, RESAMPLES, per_relation=False)
                    table.attrs = {}
                    named = {"run": a.name, "other": b.name, "objects": objects, "model": model, "other_model": other}
                    tables.append(table.assign(**named))
    columns = ["run", "other", "objects", "model", "other_model"]
    columns += ["relation", "metric", "before", "after", "difference", "low", "high", "p", "images"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def lost(folders: Sequence[Path]) -> list[Path]:
    """The folders of sweeps' runs, among some folders, that have no scores: they failed, or their jobs were lost."""
    runs = [path.parent / path.name.removesuffix(".yaml") for folder in folders for path in folder.glob("*.yaml")]
    return sorted(run for run in runs if not _results(run))


def main(folders: Sequence[Path], into: Path) -> int:
    """``run_all.py --summary``: write ``summary.html`` and ``summary.csv`` for all finished runs in some folders.
    Returns the number of runs of a sweep that are missing.

    Raises:
        ValueError: one of them is not there, or holds no finished run.
    """
    if gone := [folder for folder in folders if not folder.is_dir()]:
        raise ValueError(f"--summary: {gone[0]}: no such folder; name folders of runs, or folders of them")
    if gone := [folder for folder in folders if not folder.is_dir()]:
        raise ValueError(f"--summary: {gone[0]}: no such folder; name folders of runs, or folders of them")
    paths = finished_in(folders)
    unique = len({path.name for path in paths}) == len(paths)
    numbered: dict[tuple[Any, ...], int] = {}
    runs = [read(path, path.name if unique else str(path), numbered) for path in paths]
    scores = pd.concat([run.numbers.assign(run=run.name) for run in runs], ignore_index=True)
    seeds = [over_seeds(group).assign(run=name) for name, group in by_seed(runs).items()]
    every = differences(runs)
    paired = every.rename(columns={"difference": "value"}).assign(kind="difference")
    parts = [scores, *(table.assign(kind="mean " + table.kind) for table in seeds), paired]
    columns = ["run", "other", *OF, "other_model", *ENDS, "runs", "prompts_low", "prompts_high", "p", "images"]
    text = pd.concat(parts, ignore_index=True).reindex(columns=columns).to_csv(index=False)
    files.write_text(into / "summary.csv", text)
    files.write_text(into / "summary.html", _page(runs, scores, seeds, every))
    if len(runs) > 1 and every.empty:
        print("No two of the runs have verdicts on the same prompts: there are no differences between them.")
    print(f"{len(runs)} runs beside each other: {into / 'summary.html'} and summary.csv")
    missing = lost(folders)
    for run in missing:
        why = "it is not through, failed or was lost"
        print(f"MISSING: {run.name} has no scores: {why}; see {run}.txt", file=sys.stderr)
    return len(missing)


def _page(runs: Sequence[Finished], scores: pd.DataFrame, seeds: Sequence[pd.DataFrame], every: pd.DataFrame) -> str:
    order = {"columns": "run", "index": ["kind", "objects", "model", "metric"]}
    wide = _headlines(scores).assign(text=lambda t: _texts(t.value, t.low, t.high))
    wide = wide.pivot(**order, values="text")[[run.name for run in runs]].reset_index()
    mean = _headlines(pd.concat(seeds)) if seeds else pd.DataFrame(columns=[*OF, "run"])
    if seeds:
        mean = mean.assign(
            **{"mean, interval over seeds": _texts(mean.value, mean.low, mean.high)},
            **{"interval over prompts": _texts(None, mean.prompts_low, mean.prompts_high)},
        ).drop(columns=["value", "low", "high", "prompts_low", "prompts_high", "relation"])
        mean.insert(0, "run", mean.pop("run"))
    paired = _headlines(every)
    paired = paired.assign(difference=_texts(paired.difference, paired.low, paired.high))
    paired = paired.drop(columns=["low", "high", "relation"]).round(3)
    tables = {"differing": differing(runs), "scores": wide, "seeds": mean, "paired": paired}
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": "–"}
    html = {name: Markup(table.to_html(**options)) for name, table in tables.items() if len(table)}
    return render("summary.html", title=f"SR4G: {len(runs)} runs", tables=html)


def _headlines(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table.relation == "all") & table.metric.isin(scores.MAIN)]


def _texts(value: pd.Series | None, low: pd.Series, high: pd.Series) -> list[str]:
    """ "12.3 [11.0, 13.6]" of each row; a dash where a number is not known."""
    ends = [f"[{a:.1f}, {b:.1f}]" if a == a and b == b else "[–]" for a, b in zip(low, high, strict=True)]
    if value is None:
        return ends
    return [f"{v:.1f} {end}" if v == v else "–" for v, end in zip(value, ends, strict=True)]
