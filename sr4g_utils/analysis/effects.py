"""Effects of the experiments' arms, with intervals over prompts and seeds, and the protocol's tests."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..dataset.prompts import OBJECT_SETS
from ..dataset.world import suits
from ..evaluation import scores, selection
from ..relations import FAMILIES, NAMES, family
from ..store.files import protocol, read_json, read_table
from ..store.run import Run
from . import claims
from .bias import bias
from .sweeps import (
    ARMS,
    BASE,
    EXPERIMENTS,
    SCORES,
    base_of,
    by_each,
    by_judge,
    finished,
    gather,
    judged_files,
    verdicts_of,
)


def _per_prompt(records: pd.DataFrame, metric: str) -> Sequence[np.ndarray]:
    """What is above and below the line of a metric of :data:`scores.FORMULAS`, or of "lift", prompt by prompt."""
    if metric != "lift":
        return scores.fractions(records, metric)
    share = records.drop_duplicates("prompt_id").relation.value_counts(normalize=True).reindex(NAMES, fill_value=0)
    luck = records[list(NAMES)].to_numpy(float) @ share.to_numpy()  # of a relation drawn from the prompts
    beyond = records.both_found * (records.correct - luck)
    return beyond.groupby(records.prompt_id).sum().to_numpy(float), scores.fractions(records, "VISOR_Cond")[1]


def effect(
    treated: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame], metric: str = "VISOR_Cond", level: float = 0.95
) -> dict[str, float | int]:
    """The mean over seeds of the difference of a metric between two arms, with its interval.

    Two variances add up: of the prompts (each prompt's pull on the mean over seeds, linearised as in
    :mod:`statistics`) and of the seeds. What a prompt does in one seed only is in both, which widens the interval a
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
        above, below = (np.array(part) for part in zip(*(_per_prompt(table, metric) for table in pair), strict=True))
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
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts) if variance else 1.0
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    difference = after - before
    p = 2 * stats.t.sf(abs(difference) / np.sqrt(variance), freedom) if variance else float(difference == 0)
    return {"before": before, "after": after, "difference": difference, "low": difference - half,
            "high": difference + half, "p": p, "seeds": seeds, "prompts": prompts}  # fmt: skip


def with_visor(treated: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame]) -> dict[str, float | int]:
    """:func:`effect` on VISOR_Cond, and beside it that on VISOR: VISOR, VISOR_low, VISOR_high."""
    visor = effect(treated, other, "VISOR")
    beside = {"VISOR": visor["difference"], "VISOR_low": visor["low"], "VISOR_high": visor["high"]}
    return {**effect(treated, other), **beside}


def beside(treated: Sequence[pd.DataFrame], other: Sequence[pd.DataFrame]) -> dict[str, float]:
    """What stands beside an effect on VISOR_Cond (:data:`selection.BESIDE`): the effect over the images in which both
    models of a seed drew both things (complete cases), with its interval, and the mean over seeds of Lee's bounds."""
    others = list(other) * len(treated) if len(other) == 1 else list(other)
    pairs = list(zip(others, treated, strict=True))
    before, after = zip(*(selection.complete(*pair) for pair in pairs), strict=True)
    if not all(table.both_found.any() for table in after):
        return dict.fromkeys(selection.BESIDE, np.nan)
    change = effect(after, before)
    bounds = np.mean([[selection.beside(*pair)[end] for end in selection.BESIDE[3:]] for pair in pairs], axis=0)
    return dict(zip(selection.BESIDE, (change["difference"], change["low"], change["high"], *bounds), strict=True))


def of_objects(tables: Iterable[pd.DataFrame], objects: str) -> list[pd.DataFrame]:
    """The verdicts on a set of objects, or on "all"."""
    return [table[table.objects == objects] if objects != "all" else table for table in tables]


def of_family(tables: Iterable[pd.DataFrame], name: str) -> list[pd.DataFrame]:
    """The verdicts on a family of relations, or on "all"."""
    return [table[table.relation.isin(NAMES if name == "all" else family(name))] for table in tables]


def sets_of(table: pd.DataFrame) -> list[str]:
    """The sets of objects that occur, and "all"."""
    return [name for name in OBJECT_SETS if (table.objects == name).any()] + ["all"]


def effects(table: pd.DataFrame, metrics: Sequence[str] = ("VISOR_Cond", "lift", "VISOR", "OA")) -> pd.DataFrame:
    """Every arm against the base, and the arm with relations against each control: columns model, objects, arm, over
    (what it is compared with), metric, those of :func:`effect`, and beside VISOR_Cond those of :func:`beside`."""
    base, rows = base_of(table), []
    for model in table.model[table.model != BASE].unique():
        arms = {arm: by_seed for arm in ARMS.values() if (by_seed := verdicts_of(table, model, arm))}
        pairs = [(arm, BASE, list(by_seed.values()), [base]) for arm, by_seed in arms.items()]
        relations = arms.pop("relations", {})
        for control, by_seed in arms.items():
            if both := sorted(relations.keys() & by_seed.keys()):
                pairs.append(("relations", control, [relations[i] for i in both], [by_seed[i] for i in both]))
        for (arm, over, treated, other), objects in ((pair, name) for pair in pairs for name in sets_of(table)):
            about = {"model": model, "objects": objects, "arm": arm, "over": over}
            after, before = of_objects(treated, objects), of_objects(other, objects)
            for metric in metrics:
                more = beside(after, before) if metric == "VISOR_Cond" else {}
                rows.append({**about, "metric": metric, **effect(after, before, metric), **more})
    return pd.DataFrame(rows)


def by_relation(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The change of each relation's VISOR_Cond from the base to the arm with relations, over all prompts, with p
    corrected for their number (Holm) and a verdict, as in :func:`claims.by_relation`; lift: the difference less what
    chance gains; and the change of VISOR beside (:func:`with_visor`)."""
    treated, base = list(verdicts_of(table, model, "relations").values()), [base_of(table)]
    rows = []
    for name in NAMES:
        after, before = ([records[records.relation == name] for records in arm] for arm in (treated, base))
        luck = (np.mean([100 * part[name][part.both_found].mean() for part in arm]) for arm in (base, treated))
        chance = dict(zip(("chance_before", "chance_after"), luck, strict=True))
        rows.append({"relation": name, "metric": "VISOR_Cond", **with_visor(after, before), **chance})
    changes = claims.by_relation(pd.DataFrame(rows))
    return changes.assign(lift=changes.difference - (changes.chance_after - changes.chance_before))


def transfer(table: pd.DataFrame, model: str = "main") -> pd.DataFrame:
    """What fine-tuning on some families of relations does to each: the effect on VISOR_Cond over the base, by arm (all
    "relations", or the families trained on) and the family tested; VISOR beside."""
    arms = [arm for arm in table.arm.unique() if arm == "relations" or set(arm.split(" and ")) <= set(FAMILIES)]
    rows = []
    for arm in sorted(arms, key=[*FAMILIES, *arms].index):
        treated = list(verdicts_of(table, model, arm).values())
        for tested in FAMILIES if treated else ():
            after, before = (of_family(tables, tested) for tables in (treated, [base_of(table)]))
            rows.append({"trained": arm, "tested": tested, **with_visor(after, before)})
    return pd.DataFrame(rows)


def by_prior(table: pd.DataFrame, model: str = "main") -> pd.DataFrame:
    """The effect on VISOR_Cond over the base where the usual places and sizes of the two things suit the prompt, and
    where they go against it: family, prior, arm and :func:`with_visor`'s columns."""
    prompts = table.drop_duplicates("prompt_id").set_index("prompt_id")
    prior = np.array([suits(*row) for row in prompts[["subject", "relation", "object"]].itertuples(index=False)])
    rows = []
    for name in ("projective", "scale"):
        for words, sign in (("suits", 1), ("against", -1)):
            chosen = prompts.index[prompts.relation.isin(family(name)) & (prior == sign)]
            part = table[table.prompt_id.isin(chosen)]
            for arm in ("relations", "list"):
                if treated := list(verdicts_of(part, model, arm).values()):
                    rows.append({"family": name, "prior": words, "arm": arm, **with_visor(treated, [base_of(part)])})
    return pd.DataFrame(rows)


def by_share(table: pd.DataFrame, model: str = "main") -> pd.DataFrame:
    """The effect on VISOR_Cond, VISOR and OA over the base by the share of captions that tell a relation, where others
    list the two things: share (percent; 0 is the arm "list", 100 "relations"), metric and :func:`effect`'s columns."""
    shares = {"list": 0.0, "relations": 100.0}
    for arm in table.arm.unique():
        if match := re.fullmatch(r"list, (.+) % told", arm):
            shares[arm] = float(match[1])
    base, rows = [base_of(table)], []
    for arm, share in sorted(shares.items(), key=lambda item: item[1]):
        if treated := list(verdicts_of(table, model, arm).values()):
            for metric in scores.MAIN[::-1]:
                rows.append({"share": share, "metric": metric, **effect(treated, base, metric)})
    return pd.DataFrame(rows)


def by_held_out(sweep: Path, model: str = "unseen") -> pd.DataFrame:
    """The effect on VISOR_Cond, VISOR and OA over the base by the categories that no caption of fine-tuning named:
    judge, held_out (their names), objects, metric and :func:`effect`'s columns. Each run has prompts of its own.

    ``sweep``: a folder of runs that differ in ``unseen``. Raises ValueError if none is finished, or has no such model.
    """
    parts = []
    for run, artifacts in finished([sweep]):
        record = artifacts / f"finetune_{model}" / "result.json"
        if not record.is_file():
            raise ValueError(f"{artifacts}: has no model {model}; give the folder of a sweep of the profile held_out")
        held_out = ", ".join(read_json(record)["result"]["held_out"])
        parts.append(by_each(by_judge(gather([(run, artifacts)])), _of_unnamed, held_out, model))
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("judge", key=lambda names: names.map(list(names.unique()).index), kind="stable")


def _of_unnamed(table: pd.DataFrame, held_out: str, model: str) -> pd.DataFrame:
    """A run's rows of :func:`by_held_out`, by one judge."""
    rows = []
    for objects in sets_of(table):
        after, before = (of_objects([table[table.model == name]], objects) for name in (model, BASE))
        about = {"held_out": held_out, "objects": objects}
        rows += [{**about, "metric": metric, **effect(after, before, metric)} for metric in scores.MAIN[::-1]]
    return pd.DataFrame(rows)


def along(folder: Path) -> pd.DataFrame:
    """Scores and quality of a run's models in the course of fine-tuning, from the base at step 0.

    Returns:
        step, judge, metric, value, change from the base with low and high. OA, VISOR and VISOR_Cond by each judge; "all
        things found" (prompts without a relation), precision and recall in percent and points; the Fréchet distance,
        KID and diversity in the leading detector's features.

    Raises:
        ValueError: the folder is not of a finished run of the profile along.
    """
    artifacts = folder / "artifacts"
    results, tuned = artifacts / "results", artifacts / "finetune_main" / "result.json"
    needed = (tuned, *(results / f"{name}.json" for name in ("plain", "quality_detector", "fidelity_detector")))
    if missing := [path for path in needed if not path.is_file()]:
        raise ValueError(f"{missing[0]}: is not there; give the folder of a finished run of the profile along")
    steps = read_json(tuned)["result"]["choices"]["steps"]
    tables = {(judge, model): read_table(path) for judge, model, path in judged_files(artifacts)}
    lead, models = next(judge for judge, _ in tables), {model for _, model in tables}
    rows = []
    for (judge, model), table in tables.items():
        for metric in scores.MAIN[::-1]:
            change = effect([table], [tables[judge, BASE]], metric)
            values = (change[name] for name in ("after", "difference", "low", "high"))
            rows.append((judge, model, metric, *values))
    columns = {"all things found": "found", "Fréchet distance": "value", "": "value"}  # the last: several, by name
    for path, (metric, value) in zip(needed[1:], columns.items(), strict=True):
        part = pd.DataFrame(read_json(path)["rows"])
        part = part[part.model.isin(models) & (part.get("things", "all") == "all")].assign(judge=lead)
        part = part if "metric" in part else part.assign(metric=metric)
        part = part[["judge", "model", "metric", value, "change", "change_low", "change_high"]]
        rows += part.itertuples(index=False, name=None)
    table = pd.DataFrame(rows, columns=["judge", "model", "metric", "value", "change", "low", "high"])
    table.loc[table.model == BASE, ["change", "low", "high"]] = np.nan
    table.insert(0, "step", table.pop("model").replace({BASE: 0, "main": steps}).astype(int))
    return table.sort_values("step", kind="stable", ignore_index=True)


def made_or_recorded(
    run: Run, name: str, folder: str | Path | None, make: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame:
    """A table made of a folder of runs, and saved as the result ``name``; or for None the recorded one."""
    path = Path(folder or "").expanduser().resolve()
    for pattern in (SCORES, "artifacts/results/*.json") if folder else ():  # of a sweep, or of one run
        run.read_all(path, pattern)
    return run.recorded_or(name, EXPERIMENTS.name, folder is None, lambda: (make(path), {}))[0]


def pooled(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Verdicts of several seeds as if they were one model's with as many more images of each prompt."""
    most = max(table.image_index.max() for table in tables) + 1
    return pd.concat([table.assign(image_index=table.image_index + i * most) for i, table in enumerate(tables)])


def confirmed(table: pd.DataFrame, quality: pd.DataFrame, resamples: int = 2_000) -> pd.DataFrame:
    """The tests that the first protocol calls confirmatory, with their verdicts: claim, what, number, low, high, holds
    if, test and verdict, a row per test. The bias of opposites is of all seeds' images together, with an interval over
    prompts alone. Raises ValueError if there are no verdicts of the model main in the arm with relations."""
    margins, measured = protocol(1)["margins"], effects(table, ("VISOR_Cond", "OA"))

    def number(model: str, objects: str, over: str = BASE, metric: str = "VISOR_Cond") -> list[float] | None:
        rows = measured[(measured.model == model) & (measured.objects == objects) & (measured.arm == "relations")]
        rows = rows[(rows.over == over) & (rows.metric == metric)]
        return rows[["difference", "low", "high"]].iloc[0].tolist() if len(rows) else None

    treated = list(verdicts_of(table, "main", "relations").values())
    if not treated:
        raise ValueError("no verdicts of the model main with relations; run --profile arms --sweep 03.control=none")
    both = {BASE: pooled([base_of(table)] * len(treated)), "main": pooled(treated)}
    gaps = bias(both, resamples)
    points = "points of VISOR_Cond"
    tests = {
        "1": [claims.against(f"{points}, model main, all objects", number("main", "all"), "above", 0)],
        "1, control": [claims.against(f"{points} over lists", number("main", "all", "list"), "above", 0)],
        "2": [claims.against(f"{points}, model unseen, unseen objects", number("unseen", "unseen"), "above", 0)],
        "2, control": [claims.against(f"{points} over lists", number("unseen", "unseen", "list"), "above", 0)],
        "3": [claims.every_relation(by_relation(table, "main"))],
        "4": [claims.against("squared gaps, points²", claims.bias_change(gaps, "main"), "below", 0)],
        "5": [
            claims.against("Fréchet distance, %", distance_change(quality, "main"), "below", margins["distance"]),
            claims.against("points of OA", number("main", "all", metric="OA"), "above", -margins["OA"]),
        ],
    }
    return claims.rows_of(tests, gaps)


def distance_change(quality: pd.DataFrame, model: str, arm: str = "relations") -> list[float] | None:
    """The mean over seeds of the distance's change in percent of the base's, with an interval of both its errors: the
    jackknife's (all seeds are compared with the same images, so it does not shrink with their number), and that of
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
