"""The runs of the experiments in ``data/protocol.yaml``: arms of captions, models and sets of prompts, several seeds.

The verdicts of all judges on all their images are one table, gathered from a sweep's runs or read from
``data/results``; notebook 07 computes the rest from it, judge by judge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.judges import folder_of
from ..evaluation.tables import verdict_files
from ..relations import FAMILIES, NAMES
from ..store.files import DATA, digest, protocol, read_json, read_table, write_table
from ..store.run import Run

EXPERIMENTS = DATA / "results" / "experiments"  # the recorded verdicts and tables
SCORES = "*/artifacts/results/scores.json"  # of a sweep's runs
BASE = "base"
ARM = ["arm", "seed", "model"]
JUDGE = "judge"
ARMS = {"none": "relations", "list": "list", "shuffled": "shuffled"}  # by fine-tuning's choice ``control``
PROMPT = ["prompt_id", "subject", "relation", "object", "objects"]

About = Mapping[str, Any]  # a run's arm, seed, rules and doses


def finished(sweeps: Sequence[str | Path]) -> list[tuple[dict[str, Any], Path]]:
    """The finished runs of some sweeps: arm, seed, rules and doses of each, and its folder of artifacts. Raises
    ValueError if there is none in one of the sweeps."""
    runs: list[tuple[dict[str, Any], Path]] = []
    for sweep in sweeps:
        before = len(runs)
        for artifacts in sorted(Path(sweep).glob("*/artifacts")):
            tuned = sorted(artifacts.glob("finetune_*/result.json"))
            if tuned and (artifacts / "results" / "scores.json").is_file():
                choices = read_json(tuned[0])["result"]["choices"]
                about = {name: choices[name] for name in ("seed", "rules", "doses")}
                runs.append(({"arm": _arm(choices), **about}, artifacts))
        if len(runs) == before:
            hint = "sweep the profile arms, families or doses first (docs/results.md)"
            raise ValueError(f"{sweep}: no run is finished; {hint}")
    return runs


def _arm(choices: Mapping[str, Any]) -> str:
    """A run's arm: what its captions say, and every choice that differs from the protocol's recipe, so that runs which
    were trained differently are kept apart."""
    if choices["doses"]:
        name = "doses"
    else:
        name = ARMS[choices["control"]] + (f", {100 * choices['told']:g} % told" if choices["told"] else "")
        if set(choices["families"]) != set(FAMILIES):
            name = " and ".join(choices["families"]) + ("" if name == "relations" else f", {name}")
    decided = protocol()
    name += f" by {choices['rules']}" if choices["rules"] != decided["judge"]["rules"] else ""
    changes = (f", {key} {choices[key]}" for key, value in decided["recipe"].items() if choices[key] != value)
    return name + "".join(changes)


def gather(
    runs: Sequence[tuple[About, Path]], kept: Sequence[pd.DataFrame] = (), columns: Sequence[str] = NAMES
) -> pd.DataFrame:
    """The verdicts of :func:`finished` runs, a row per image and judge: arm, seed, model, judge (the leading one
    first), ``PROMPT``, image_index, both_found, correct and the 14 relations. The base, alike in all runs, is there
    once, with arm "base" and seed -1.

    Args:
        kept: earlier tables of this kind; a run replaces the kept one of the same arm and seed, but the base's rows are
            never replaced.
        columns: of verdicts or prompts, in place of the relations.

    Raises ValueError if two runs have different prompts, or the same arm and seed.
    """
    whose = [*ARM, JUDGE]
    tables = {key: part for table in kept for key, part in named(table).groupby(whose, sort=False)}
    origin: dict[tuple[Any, ...], Path] = {}
    for about, artifacts in runs:
        prompts = read_table(artifacts / "prompts_test.parquet")
        if not np.array_equal(_prompts(prompts), _prompts(next(iter(tables.values()), prompts))):
            raise ValueError(f"{artifacts}: its test prompts are not those of the runs before it")
        prompts = prompts[[*PROMPT, *(name for name in columns if name not in NAMES)]]
        for judge, model, path in judged_files(artifacts):
            key = (*((BASE, -1, BASE) if model == BASE else (about["arm"], about["seed"], model)), judge)
            if model == BASE and key in tables:
                continue
            if model != BASE and origin.setdefault(key, artifacts) != artifacts:
                raise ValueError(f"{artifacts}: arm {key[0]}, seed {key[1]}, as {origin[key]} is; give one of them")
            relations = [name for name in NAMES if name in columns]
            records = read_table(path)[["prompt_id", "image_index", "both_found", "correct", *relations]]
            table = prompts.merge(records, on="prompt_id", validate="one_to_many")
            tables[key] = table.assign(**dict(zip(whose, key, strict=True)))
    table = pd.concat(tables.values(), ignore_index=True)
    return table[[*whose, *table.columns.drop(whose)]]


def judged_files(artifacts: Path) -> Iterator[tuple[str, str, Path]]:
    """Every judge of a run, the leading one first, with each model and the file of its verdicts."""
    about = (read_json(artifacts / "results" / "scores.json") or {}).get("about", {})
    for i, judge in enumerate(about.get("judges") or [protocol()["world"]["judges"][0]]):
        for model, path in sorted(verdict_files(artifacts).items()):
            path = artifacts / (folder_of(judge) if i else "") / path.name
            if path.is_file():
                yield judge, model, path


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Verdicts with the column judge: earlier ones were all of the leading judge's kind, and do not say so."""
    return table if JUDGE in table else table.assign(**{JUDGE: protocol()["world"]["judges"][0]})


def by_judge(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The verdicts by the judge's name, the leading one first."""
    return {str(name): part for name, part in named(table).groupby(JUDGE, sort=False)}


def by_each(judged: Mapping[str, pd.DataFrame], make: Callable[..., pd.DataFrame], *arguments: Any) -> pd.DataFrame:
    """A table made of each judge's verdicts, as one with the column judge."""
    parts = [make(table, *arguments) for table in judged.values()]
    for name, part in zip(judged, parts, strict=True):
        part.insert(0, JUDGE, name)
    return pd.concat(parts, ignore_index=True)


def leading(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by the leading judge; all rows of an earlier table, which names none."""
    return table[table[JUDGE] == table[JUDGE].iloc[0]] if JUDGE in table and len(table) else table


def _prompts(table: pd.DataFrame) -> np.ndarray:
    return table.drop_duplicates("prompt_id")[PROMPT].sort_values("prompt_id").to_numpy()


def gather_quality(runs: Sequence[tuple[About, Path]]) -> pd.DataFrame:
    """Each run's distances from images of the world (:func:`quality.distances`), with arm and seed."""
    return pd.concat(
        _quality(artifacts / "results" / "quality_detector.json").assign(arm=about["arm"], seed=about["seed"])
        for about, artifacts in runs
    )


def _quality(path: Path) -> pd.DataFrame:
    return pd.DataFrame(read_json(path)["rows"])


def _write_verdicts(path: str | Path, runs: Sequence[Sequence[Any]], kept: Sequence[Sequence[str]] = ()) -> int:
    earlier = [read_table(Path(folder) / "verdicts.parquet") for folder, _ in kept]
    table = gather([(about, Path(artifacts)) for about, artifacts, _ in runs], earlier)
    write_table(path, table, compression="zstd")
    return len(table)


def read(run: Run, sweeps: Sequence[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdicts and the distances of some sweeps' runs (saved as results), or for no sweep the recorded ones.

    A folder of recorded results may be among the sweeps; see ``kept`` of :func:`gather`.
    """
    if not sweeps:
        return named(read_table(run.read(EXPERIMENTS / "verdicts.parquet"))), run.recorded("quality", EXPERIMENTS.name)[
            0
        ]
    folders = [Path(sweep).expanduser().resolve() for sweep in sweeps]
    kept = [folder for folder in folders if (folder / "verdicts.parquet").is_file()]
    others = [folder for folder in folders if folder not in kept]
    for folder in others:
        run.read_all(folder, SCORES)
    runs = finished(others)
    own = [[about, str(path), digest(path / "results" / "scores.json")] for about, path in runs]
    earlier = [[str(folder), digest(run.read(folder / "verdicts.parquet"))] for folder in kept]
    path, _ = run.stage("results/verdicts.parquet", _write_verdicts, runs=own, kept=earlier)
    parts = [_quality(folder / "quality.json") for folder in kept] + ([gather_quality(runs)] if runs else [])
    quality = pd.concat(parts).drop_duplicates(ARM, keep="last", ignore_index=True)
    return read_table(path), run.result(quality, "quality", runs=len(quality.drop_duplicates(ARM[:2])))


def _write_doses(path: str | Path, runs: Sequence[Sequence[Any]]) -> int:
    numbered = [({"arm": "doses", "seed": i}, Path(artifacts)) for i, (_, artifacts, _) in enumerate(runs)]
    table = gather(numbered, columns=["group", "one_image"]).rename(columns={"seed": "run"}).drop(columns="arm")
    doses = np.array([doses for doses, *_ in runs])[table.run, table.group.astype(int)]
    write_table(path, table.assign(dose=doses), compression="zstd")
    return len(table)


def read_doses(run: Run, sweep: str | Path | None) -> pd.DataFrame:
    """The verdicts of a sweep of the profile doses (saved as a result), or for None the recorded ones: a row per image
    and judge with model, judge, run (of the Latin square; -1 for the base), ``PROMPT``, group, one_image, dose (means
    nothing of the base), image_index, both_found, correct. Raises ValueError if no run is finished, or not every
    triplet has had every dose once."""
    if sweep is None:
        return named(read_table(run.read(EXPERIMENTS / "doses.parquet")))
    runs = []
    run.read_all(Path(sweep).expanduser(), SCORES)
    for about, path in finished([Path(sweep).expanduser().resolve()]):
        if about["arm"] != "doses":
            raise ValueError(f"{path}: a run without doses; give the folder of a sweep of the profile doses")
        runs.append([about["doses"], str(path), digest(path / "results" / "scores.json")])
    square = np.sort([doses for doses, *_ in runs], axis=0)
    if not (np.diff(square, axis=1) == 0).all() or len(set(square[:, 0])) < square.shape[1]:
        raise ValueError(f"{sweep}: its {len(runs)} finished runs are no Latin square: a triplet lacks a dose")
    path, _ = run.stage("results/doses.parquet", _write_doses, runs=runs)
    return read_table(path)


def keep(run: Run, sweep: str | Path | Sequence[str | Path] | None, **tables: pd.DataFrame) -> None:
    """Save tables as results, by name, unless they come from the recorded verdicts."""
    for name, table in tables.items() if sweep else ():
        run.result(table, name)


def verdicts_of(table: pd.DataFrame, model: str, arm: str) -> dict[int, pd.DataFrame]:
    """The verdicts of a model and arm, by seed."""
    part = table[(table.model == model) & (table.arm == arm)]
    return {int(str(seed)): records for seed, records in part.groupby("seed")}


def base_of(table: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of the model before fine-tuning."""
    return table[table.model == BASE]
