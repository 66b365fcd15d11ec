"""The experiments that ``data/protocol.yaml`` decides: arms of captions, models and sets of prompts, in several seeds.

The verdicts of all their pictures are one table, gathered from a sweep's runs or recorded in ``data/results``; notebook
07 computes the rest from it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import analysis, claims
from .finetuning.choices import FREE, Choices
from .prompts import OBJECT_SETS
from .relations import FAMILIES, NAMES, family
from .running import profiles
from .running.files import DATA, atomic, digest, protocol, read_json
from .running.run import Run

RECORDED = DATA / "results" / "experiments"
BASE = "base"
ARM = ["arm", "seed", "model"]
ARMS = {"none": "relations", "list": "list", "shuffled": "shuffled"}  # by the choice ``control``
VARIED = ("control", "told", "families", "rules", "doses", "seed")  # of fine-tuning's choices, by the arms
SHOWN = ("milestones", "validate_every", "validation_prompts", "sampling", "threshold", "pairs", "oa_floor")
PROMPT = ["prompt_id", "subject", "relation", "object", "objects"]
METRICS = {"OA": ("both_found", "image"), "VISOR": ("correct", "image"), "VISOR_Cond": ("correct", "both_found"),
           "lift": ("beyond_chance", "both_found")}  # what is above and below the fraction's line  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ gathering


def finished(sweeps: Sequence[str | Path]) -> list[tuple[dict[str, Any], Path]]:
    """The finished runs of some sweeps: arm, seed, rules and doses of each, and its folder of artifacts.

    Raises:
        ValueError: there is none in one of the sweeps.
    """
    runs: list[tuple[dict[str, Any], Path]] = []
    for sweep in map(Path, sweeps):
        before = len(runs)
        for folder in sorted(path for path in sweep.glob("*") if path.is_dir()):
            artifacts = folder / "artifacts"
            tuned = sorted(artifacts.glob("finetune_*/result.json"))
            if tuned and (artifacts / "results" / "scores.json").is_file():
                choices = read_json(tuned[0])["result"]["choices"]
                about = {name: choices[name] for name in ("seed", "rules", "doses")}
                runs.append(({"arm": _arm(choices), **about}, artifacts))
        if len(runs) == before:
            raise ValueError(
                f"{sweep}: no run is finished; sweep the profile arms, families or doses first (docs/miniature.md)"
            )
    return runs


def _arm(choices: Mapping[str, Any]) -> str:
    """A run's arm: what its captions say, and each other choice that is not the recipe's. So a run that was trained
    otherwise does not take the place of one that was not."""
    if choices["doses"]:
        name = "doses"
    else:
        name = ARMS[choices["control"]] + (f", {100 * choices['told']:g} % told" if choices["told"] else "")
        if set(choices["families"]) != set(FAMILIES):
            name = " and ".join(choices["families"]) + ("" if name == "relations" else f", {name}")
    name += f" by {choices['rules']}" if choices["rules"] != protocol()["judge"]["rules"] else ""
    return name + "".join(f", {key} {choices[key]}" for key, value in _recipe().items() if choices[key] != value)


@cache
def _recipe() -> dict[str, Any]:
    """The choices that the runs of the profile arms share, of those that bear on what is learnt."""
    notebook = "03_finetuning"
    shared = {name: value for name, (_, value) in profiles.declared(notebook).items()}
    shared |= profiles.load_profile("arms", [], Path())[notebook]
    return {name: shared[name] for name in Choices.__struct_fields__ if name not in (*VARIED, *SHOWN, *FREE)}


def gather(
    runs: Sequence[tuple[dict[str, Any], Path]], kept: Sequence[pd.DataFrame] = (), columns: Sequence[str] = NAMES
) -> pd.DataFrame:
    """The verdicts of :func:`finished` runs, a row per picture: arm, seed, model, ``PROMPT``, image_index, both_found,
    correct and the 14 relations. The base, alike in all runs, is there once, with arm "base" and seed -1.

    Args:
        kept: earlier tables of this kind; a run takes the place of one of them, but their base stays.
        columns: which to take in place of the relations; of verdicts or prompts.

    Raises:
        ValueError: two of them asked for other prompts, or two runs are of one arm and seed.
    """
    tables = {key: part for table in kept for key, part in table.groupby(ARM, sort=False)}
    came: dict[tuple[Any, ...], Path] = {}
    for about, artifacts in runs:
        prompts = pd.read_parquet(artifacts / "prompts_test.parquet")
        asked = [table.drop_duplicates("prompt_id")[PROMPT].sort_values("prompt_id").to_numpy()
                 for table in (prompts, *list(tables.values())[:1])]  # fmt: skip
        if not np.array_equal(asked[0], asked[-1]):
            raise ValueError(f"{artifacts}: its test prompts are not those of the runs before it")
        prompts = prompts[[*PROMPT, *(name for name in columns if name not in NAMES)]]
        for path in sorted(artifacts.glob("verdicts_*.parquet")):
            model = path.stem.removeprefix("verdicts_")
            key = (BASE, -1, BASE) if model == BASE else (about["arm"], about["seed"], model)
            told = pd.read_parquet(path)[["prompt_id", "image_index", "both_found", "correct", *NAMES]]
            told = told.drop(columns=[name for name in NAMES if name not in columns])
            table = prompts.merge(told, on="prompt_id", validate="one_to_many")
            if model == BASE and key in tables:
                continue
            if model != BASE and came.setdefault(key, artifacts) != artifacts:
                raise ValueError(f"{artifacts}: arm {key[0]}, seed {key[1]}, as {came[key]} is; give one of them")
            tables[key] = table.assign(**dict(zip(ARM, key, strict=True)))
    table = pd.concat(tables.values(), ignore_index=True)
    return table[[*ARM, *table.columns.drop(ARM)]]


def gather_quality(runs: Sequence[tuple[dict[str, Any], Path]]) -> pd.DataFrame:
    """Each run's distances from pictures of the world (:func:`quality.distances`), with arm and seed."""
    rows = [
        _quality(artifacts / "results" / "quality_detector.json").assign(arm=about["arm"], seed=about["seed"])
        for about, artifacts in runs
    ]
    return pd.concat(rows)


def _quality(path: Path) -> pd.DataFrame:
    return pd.DataFrame(read_json(path)["rows"])


def _write_verdicts(path: str | Path, runs: Sequence[Sequence[Any]], kept: Sequence[Sequence[str]] = ()) -> int:
    earlier = [pd.read_parquet(Path(folder) / "verdicts.parquet") for folder, _ in kept]
    table = gather([(about, Path(artifacts)) for about, artifacts, _ in runs], earlier)
    with atomic(path) as partial:
        table.to_parquet(partial, index=False, compression="zstd")
    return len(table)


def read(run: Run, sweeps: Sequence[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdicts and the distances of some sweeps' runs (kept as results), or for no sweep the recorded ones.

    A folder of recorded results may stand among the sweeps; see ``kept`` of :func:`gather`.
    """
    if not sweeps:
        return pd.read_parquet(run.read(RECORDED / "verdicts.parquet")), run.recorded("quality", RECORDED.name)[0]
    folders = [Path(sweep).expanduser().resolve() for sweep in sweeps]
    kept = [folder for folder in folders if (folder / "verdicts.parquet").is_file()]
    runs = finished([folder for folder in folders if folder not in kept])
    given = [[about, str(path), digest(path / "results" / "scores.json")] for about, path in runs]
    earlier = [[str(folder), digest(folder / "verdicts.parquet")] for folder in kept]
    path, _ = run.stage("results/verdicts.parquet", _write_verdicts, runs=given, kept=earlier)
    own = [gather_quality(runs)] if runs else []  # recorded ones may stand alone
    quality = pd.concat([*(_quality(folder / "quality.json") for folder in kept), *own])
    quality = quality.drop_duplicates(ARM, keep="last", ignore_index=True)
    return pd.read_parquet(path), run.result(quality, "quality", runs=len(quality.drop_duplicates(ARM[:2])))


def _write_doses(path: str | Path, runs: Sequence[Sequence[Any]]) -> int:
    found = [({"arm": "doses", "seed": i}, Path(artifacts)) for i, (_, artifacts, _) in enumerate(runs)]
    table = gather(found, columns=["group", "one_image"]).rename(columns={"seed": "run"}).drop(columns="arm")
    doses = np.array([doses for doses, *_ in runs])[table.run, table.group.astype(int)]
    with atomic(path) as partial:
        table.assign(dose=doses).to_parquet(partial, index=False, compression="zstd")
    return len(table)


def read_doses(run: Run, sweep: str | Path | None) -> pd.DataFrame:
    """The verdicts of a sweep of the profile doses (kept as a result), or for None the recorded ones: a row per picture
    with model, run (of the Latin square; -1 for the base), ``PROMPT``, group, one_image, dose (means nothing of the
    base), image_index, both_found, correct.

    Raises:
        ValueError: no run is finished, or not every triplet has had every dose once.
    """
    if sweep is None:
        return pd.read_parquet(run.read(RECORDED / "doses.parquet"))
    runs = []
    for about, path in finished([Path(sweep).expanduser().resolve()]):
        if about["arm"] != "doses":
            raise ValueError(f"{path}: a run without doses; give the folder of a sweep of the profile doses")
        runs.append([about["doses"], str(path), digest(path / "results" / "scores.json")])
    square = np.sort([doses for doses, *_ in runs], axis=0)
    if not (np.diff(square, axis=1) == 0).all() or len(set(square[:, 0])) < square.shape[1]:
        raise ValueError(f"{sweep}: its {len(runs)} finished runs are no Latin square: a triplet lacks a dose")
    path, _ = run.stage("results/doses.parquet", _write_doses, runs=runs)
    return pd.read_parquet(path)


def keep(run: Run, sweep: str | Path | Sequence[str | Path] | None, **tables: pd.DataFrame) -> None:
    """Keep tables as results, by name, if they are of a sweep; the recorded verdicts' own are recorded already."""
    for name, table in tables.items() if sweep else ():
        run.result(table, name)


def verdicts_of(table: pd.DataFrame, model: str, arm: str) -> dict[int, pd.DataFrame]:
    """The verdicts of a model and arm, by seed."""
    part = table[(table.model == model) & (table.arm == arm)]
    return {int(str(seed)): records for seed, records in part.groupby("seed")}


def base_of(table: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of the model before fine-tuning."""
    return table[table.model == BASE]


# -------------------------------------------------------------------------------------------------------------- effects


def _per_prompt(records: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """What is above and below the metric's line, prompt by prompt."""
    columns = records.assign(image=1.0)
    if metric == "lift":
        share = records.drop_duplicates("prompt_id").relation.value_counts(normalize=True).reindex(NAMES, fill_value=0)
        luck = records[list(NAMES)].to_numpy(float) @ share.to_numpy()  # of a relation drawn from the prompts
        columns["beyond_chance"] = records.both_found * (records.correct - luck)
    sums = columns.groupby("prompt_id")[list(METRICS[metric])].sum().astype(float)
    return sums.iloc[:, 0].to_numpy(), sums.iloc[:, 1].to_numpy()


def effect(
    treated: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame], metric: str = "VISOR_Cond", level: float = 0.95
) -> dict[str, float | int]:
    """The mean over seeds of the difference of a metric between two arms, with its interval.

    Two variances add up: of the prompts (each prompt's pull on the mean over seeds, linearised as in
    :mod:`.intervals`) and of the seeds. What a prompt does in one seed only is in both, which widens the interval a
    little. Student's t takes Satterthwaite's degrees of freedom. (A bootstrap over three seeds would be too narrow, by
    a factor of √(2/3) for the seeds' part.)

    Args:
        treated, other: verdicts by seed, in the same order and on the same prompts; one table of ``other`` stands for
            all seeds (the base).

    Returns:
        before, after (means over seeds), difference, low, high (points), p (two-sided), seeds, prompts. With one seed,
        the interval is over prompts alone.
    """
    others = list(other) * len(treated) if len(other) == 1 else list(other)
    values, pulls = [], []
    for pair in zip(others, treated, strict=True):
        above, below = (np.array(each) for each in zip(*(_per_prompt(table, metric) for table in pair), strict=True))
        total = below.sum(axis=1, keepdims=True)
        ratio = above.sum(axis=1, keepdims=True) / total
        values.append(100 * ratio[:, 0])
        pulls.append(100 * np.diff((above - ratio * below) / total, axis=0)[0])
    before, after = np.mean(values, axis=0)
    prompts, seeds = len(pulls[0]), len(values)
    parts = [(prompts / (prompts - 1) * (np.mean(pulls, axis=0) ** 2).sum(), prompts - 1)]
    if seeds > 1:
        parts.append((np.diff(values, axis=1).var(ddof=1) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts) if variance else 1.0
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    difference = after - before
    p = 2 * stats.t.sf(abs(difference) / np.sqrt(variance), freedom) if variance else float(difference == 0)
    return {"before": before, "after": after, "difference": difference, "low": difference - half,
            "high": difference + half, "p": p, "seeds": seeds, "prompts": prompts}  # fmt: skip


def sets_of(table: pd.DataFrame) -> list[str]:
    """The sets of objects that occur, and "all"."""
    return [name for name in OBJECT_SETS if (table.objects == name).any()] + ["all"]


def of_objects(tables: Iterable[pd.DataFrame], objects: str) -> list[pd.DataFrame]:
    """The verdicts on a set of objects, or on "all"."""
    return [table[table.objects == objects] if objects != "all" else table for table in tables]


def effects(table: pd.DataFrame, metrics: Sequence[str] = ("VISOR_Cond", "lift", "VISOR", "OA")) -> pd.DataFrame:
    """Every arm against the base, and the arm with relations against each control: columns model, objects, arm, over
    (what it is compared with), metric, and those of :func:`effect`."""
    base, rows = base_of(table), []
    for model in table.model[table.model != BASE].unique():
        arms = {arm: by_seed for arm in ARMS.values() if (by_seed := verdicts_of(table, model, arm))}
        pairs = [(arm, BASE, list(by_seed.values()), [base]) for arm, by_seed in arms.items()]
        told = arms.pop("relations", {})
        for control, by_seed in arms.items():
            both = sorted(told.keys() & by_seed.keys())
            if both:
                pairs.append(("relations", control, [told[i] for i in both], [by_seed[i] for i in both]))
        for (arm, over, treated, other), objects in ((pair, name) for pair in pairs for name in sets_of(table)):
            for metric in metrics:
                found = effect(of_objects(treated, objects), of_objects(other, objects), metric)
                rows.append({"model": model, "objects": objects, "arm": arm, "over": over, "metric": metric, **found})
    return pd.DataFrame(rows)


def by_relation(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The change of each relation's VISOR_Cond from the base to the arm with relations, over all prompts, with p
    corrected for their number (Holm) and a verdict, as in :func:`claims.by_relation`; and lift: the difference less
    what chance gains."""
    treated, base = list(verdicts_of(table, model, "relations").values()), [base_of(table)]
    rows = []
    for name in NAMES:
        part, control = ([one[one.relation == name] for one in each] for each in (treated, base))
        luck = [np.mean([100 * one[name][one.both_found].mean() for one in each]) for each in (base, treated)]
        found = effect(part, control)
        found |= {"chance_before": luck[0], "chance_after": luck[1]}
        rows.append({"relation": name, "metric": "VISOR_Cond", **found})
    each = claims.by_relation(pd.DataFrame(rows))
    return each.assign(lift=each.difference - (each.chance_after - each.chance_before))


# ------------------------------------------------------------------------------------------------------------ frequency


def by_dose(table: pd.DataFrame) -> pd.DataFrame:
    """What a dose gains over the base, on the same prompts: dose, part (all, a family, one image or all images) and the
    columns of :func:`effect` for VISOR_Cond."""
    base, rows = base_of(table), []
    for dose, treated in table[table.model != BASE].groupby("dose"):
        for part, chosen in _parts(table.drop_duplicates("prompt_id")).items():
            before, after = (each[each.prompt_id.isin(chosen)] for each in (base, treated))
            rows.append({"dose": dose, "part": part, **effect([after], [before])})
    return pd.DataFrame(rows)


def _parts(prompts: pd.DataFrame) -> dict[str, pd.Series]:
    """The ids of all prompts, of those of a family, and of those whose triplet is drawn of one image or of all."""
    one = prompts.one_image.astype(bool)
    families = {name: prompts.prompt_id[prompts.relation.isin(family(name))] for name in FAMILIES}
    return {
        "all": prompts.prompt_id,
        **families,
        "all images": prompts.prompt_id[~one],
        "one image": prompts.prompt_id[one],
    }


def slopes(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """How much VISOR_Cond rises when 1 + dose doubles, in points, for the parts of :func:`by_dose`.

    Success, where both things are found, is prompt + run + slope · log2(1 + dose), by least squares; the errors of a
    prompt's pictures go together (Liang and Zeger 1986). So a prompt is compared with itself alone.

    Returns:
        part, slope, low, high, p, detectable (the slope that would be found four times in five), prompts, pictures.
    """
    told = table[(table.model != BASE) & table.both_found]
    rows = []
    for part, chosen in _parts(table.drop_duplicates("prompt_id")).items():
        cells = told[told.prompt_id.isin(chosen)].groupby(["prompt_id", "run", "dose"]).correct
        cells = cells.agg(["mean", "size"]).reset_index()
        fixed = pd.get_dummies(cells[["prompt_id", "run"]].astype(str), dtype=float).to_numpy()
        root = np.sqrt(cells["size"].to_numpy(float))[:, None]
        both = root * np.column_stack([np.log2(1 + cells.dose), 100 * cells["mean"]])
        x, y = (both - root * fixed @ np.linalg.lstsq(root * fixed, both)[0]).T  # within prompt and run
        slope = x @ y / (x @ x)
        pull = pd.Series(x * (y - slope * x)).groupby(cells.prompt_id.to_numpy()).sum() / (x @ x)
        n = len(pull)
        error = np.sqrt(n / (n - 1) * (pull**2).sum())
        half = stats.t.ppf((1 + level) / 2, n - 1) * error
        p, least = 2 * stats.t.sf(abs(slope) / error, n - 1), stats.norm.ppf([0.975, 0.8]).sum() * error
        rows.append({"part": part, "slope": slope, "low": slope - half, "high": slope + half, "p": p,
                     "detectable": least, "prompts": n, "pictures": cells["size"].sum()})  # fmt: skip
    return pd.DataFrame(rows)


def dose_verdict(slope: Mapping[str, Any]) -> str:
    """What the protocol says of a row of :func:`slopes`: the dose matters, does not matter, or it is undecided."""
    if slope["low"] > 0:
        return "matters"
    within = max(-slope["low"], slope["high"]) < protocol()["margins"]["frequency"]
    return "does not matter" if within else "undecided"


# --------------------------------------------------------------------------------------------------------- the verdicts


def pooled(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Verdicts of several seeds as if they were one model's with as many more pictures of each prompt."""
    most = max(table.image_index.max() for table in tables) + 1
    return pd.concat([table.assign(image_index=table.image_index + i * most) for i, table in enumerate(tables)])


def confirmed(table: pd.DataFrame, quality: pd.DataFrame, resamples: int = 2_000) -> pd.DataFrame:
    """The tests that the protocol calls confirmatory, with their verdicts: claim, what, number, low, high, holds if,
    test and verdict, a row per test. The bias of opposites is of the seeds' pictures together, and its interval over
    prompts alone.

    Raises:
        ValueError: there are no verdicts of the model main in the arm with relations.
    """
    margins, found = protocol()["margins"], effects(table, ("VISOR_Cond", "OA"))

    def number(model: str, objects: str, over: str = BASE, metric: str = "VISOR_Cond") -> list[float] | None:
        rows = found[(found.model == model) & (found.objects == objects) & (found.arm == "relations")]
        rows = rows[(rows.over == over) & (rows.metric == metric)]
        return rows[["difference", "low", "high"]].iloc[0].tolist() if len(rows) else None

    treated = list(verdicts_of(table, "main", "relations").values())
    if not treated:
        raise ValueError("no verdicts of the model main with relations; run --profile arms --sweep 03.control=none")
    both = {BASE: pooled([base_of(table)] * len(treated)), "main": pooled(treated)}
    bias = analysis.bias(both, resamples)
    points = "points of VISOR_Cond"
    tests = {
        "1": [claims.against(f"{points}, model main, all objects", number("main", "all"), "above", 0)],
        "1, control": [claims.against(f"{points} over lists", number("main", "all", "list"), "above", 0)],
        "2": [claims.against(f"{points}, model unseen, unseen objects", number("unseen", "unseen"), "above", 0)],
        "2, control": [claims.against(f"{points} over lists", number("unseen", "unseen", "list"), "above", 0)],
        "3": [claims.every_relation(by_relation(table, "main"))],
        "4": [claims.against("squared gaps, points²", claims.bias_change(bias, "main"), "below", 0)],
        "5": [
            claims.against("Fréchet distance, %", distance_change(quality, "main"), "below", margins["distance"]),
            claims.against("points of OA", number("main", "all", metric="OA"), "above", -margins["OA"]),
        ],
    }
    return claims.rows_of(tests, bias)


def distance_change(quality: pd.DataFrame, model: str, arm: str = "relations") -> list[float] | None:
    """The mean over seeds of the distance's change in percent of the base's, with an interval of both its errors: the
    jackknife's (all seeds are compared with the same pictures, so it does not shrink with their number), and that of
    the seeds."""
    rows = quality[(quality.model == model) & (quality.arm == arm)]
    if rows.empty:
        return None
    base = quality[quality.model == BASE].value.iloc[0]
    change = 100 * rows.change / base
    half = 100 * (rows.change_high - rows.change_low).mean() / 2 / base
    if len(rows) > 1:
        half = np.hypot(half, stats.t.ppf(0.975, len(rows) - 1) * change.std(ddof=1) / np.sqrt(len(rows)))
    return [float(v) for v in (change.mean(), change.mean() - half, change.mean() + half)]
