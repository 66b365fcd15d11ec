"""How far the gain of fine-tuning carries, and what it takes: notebook 07's exploratory experiments.

Families of relations, rule sets, shares of captions that tell a relation, other held-out categories, and quality along
fine-tuning. Tables of verdicts and effects are :mod:`experiments`'.
"""

import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from . import experiments, visor
from .detections import read_detections
from .miniature.world import suits
from .relations import FAMILIES, NAMES, RULES, family
from .running.files import protocol, read_json
from .running.run import Run


def told_or_recorded(
    run: Run, name: str, folder: str | Path | None, make: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame:
    """A table made of the folder of runs, and kept as the result ``name``; or for None the recorded one."""
    if folder is None:
        return run.recorded(name, experiments.RECORDED.name)[0]
    return run.result(make(Path(folder).expanduser().resolve()), name)


def transfer(table: pd.DataFrame, model: str = "main") -> pd.DataFrame:
    """What fine-tuning on some families of relations does to each: the effect on VISOR_Cond over the base, by arm (all
    "relations", or the families trained on) and the family tested."""
    arms = [arm for arm in table.arm.unique() if arm == "relations" or set(arm.split(" and ")) <= set(FAMILIES)]
    rows = []
    for arm in sorted(arms, key=[*FAMILIES, *arms].index):
        treated = list(experiments.verdicts_of(table, model, arm).values())
        for tested in FAMILIES if treated else ():
            after, before = (_of_family(each, tested) for each in (treated, [experiments.base_of(table)]))
            rows.append({"trained": arm, "tested": tested, **experiments.effect(after, before)})
    return pd.DataFrame(rows)


def _of_family(tables: Sequence[pd.DataFrame], name: str) -> list[pd.DataFrame]:
    """The verdicts on a family of relations, or on "all"."""
    return [table[table.relation.isin(NAMES if name == "all" else family(name))] for table in tables]


def by_prior(table: pd.DataFrame, model: str = "main") -> pd.DataFrame:
    """The effect on VISOR_Cond over the base where the usual places and sizes of the two things suit the prompt, and
    where they go against it: family, prior, arm and :func:`experiments.effect`'s columns."""
    asked = table.drop_duplicates("prompt_id")
    told = [suits(*row) for row in asked[["subject", "relation", "object"]].itertuples(index=False)]
    prior = pd.Series(told, asked.prompt_id)
    rows = []
    for name in ("projective", "scale"):
        for words, sign in (("suits", 1), ("against", -1)):
            chosen = asked.prompt_id[asked.relation.isin(family(name)) & (asked.prompt_id.map(prior) == sign)]
            part = table[table.prompt_id.isin(chosen)]
            for arm in ("relations", "list"):
                if treated := list(experiments.verdicts_of(part, model, arm).values()):
                    found = experiments.effect(treated, [experiments.base_of(part)])
                    rows.append({"family": name, "prior": words, "arm": arm, **found})
    return pd.DataFrame(rows)


def by_share(table: pd.DataFrame, model: str = "main") -> pd.DataFrame:
    """The effect on VISOR_Cond and OA over the base by the share of captions that tell a relation, where the others
    list the two things: share (percent; 0 is the arm "list", 100 "relations"), metric and :func:`experiments.effect`'s
    columns."""
    shares = {"list": 0.0, "relations": 100.0}
    for arm in table.arm.unique():
        if found := re.fullmatch(r"list, (.+) % told", arm):
            shares[arm] = float(found[1])
    base, rows = [experiments.base_of(table)], []
    for arm, share in sorted(shares.items(), key=lambda item: item[1]):
        if treated := list(experiments.verdicts_of(table, model, arm).values()):
            for metric in ("VISOR_Cond", "OA"):
                rows.append({"share": share, "metric": metric, **experiments.effect(treated, base, metric)})
    return pd.DataFrame(rows)


def by_rules(sweep: Path, model: str = "main") -> pd.DataFrame:
    """What fine-tuning on the captions of a rule set gains under each: the effect on VISOR_Cond over the base, and over
    fine-tuning on those of the protocol's, by the rule set trained on, the one that judges ("tested") and the family of
    relations. The boxes of each run are judged anew, base and model alike.

    Args:
        sweep: its folder; of runs with relations that differ in fine-tuning's ``rules`` or ``seed``.

    Raises:
        ValueError: no run is finished, or one is of a control, of doses or of some families.
    """
    runs = experiments.finished([sweep])
    alone = {"relations", *(f"relations by {rules}" for rules in RULES)}
    if other := [path for about, path in runs if about["arm"] not in alone]:
        raise ValueError(f"{other[0]}: not of all relations; give a sweep over fine-tuning's rules alone")
    every = [name for name, rules in RULES.items() if set(NAMES) <= set(rules.defines)]
    base = {rules: _judged(runs[0][1], experiments.BASE, rules) for rules in every}
    told: dict[str, dict[int, Path]] = {}  # the runs of a rule set, by seed
    for about, artifacts in runs:
        told.setdefault(about["rules"], {})[about["seed"]] = artifacts
    rows, usual = [], told.get(protocol()["judge"]["rules"], {})
    for (trained, by_seed), tested in product(told.items(), every):
        treated = {seed: _judged(artifacts, model, tested) for seed, artifacts in by_seed.items()}
        pairs = {experiments.BASE: (list(treated.values()), [base[tested]])}
        if by_seed is not usual and (both := sorted(treated.keys() & usual)):
            others = [_judged(usual[seed], model, tested) for seed in both]
            pairs[protocol()["judge"]["rules"]] = [treated[seed] for seed in both], others
        for (over, pair), name in product(pairs.items(), ("all", *FAMILIES)):
            after, before = (_of_family(each, name) for each in pair)
            about = {"trained": trained, "tested": tested, "over": over, "family": name}
            rows.append(about | experiments.effect(after, before))
    return pd.DataFrame(rows)


def _judged(artifacts: Path, model: str, rules: str) -> pd.DataFrame:
    """A run's pictures by a model under another rule set."""
    pictures = pd.read_parquet(artifacts / f"verdicts_{model}.parquet")[["prompt_id", "image_index"]]
    found = read_detections(artifacts / "detections" / f"{model}.parquet")
    how = {**protocol()["judge"], "rules": rules, "nothing": "record"}
    return visor.verdicts(pd.read_parquet(artifacts / "prompts_test.parquet"), found, pictures, **how)


def by_held_out(sweep: Path, model: str = "unseen") -> pd.DataFrame:
    """The effect on VISOR_Cond and OA over the base by the categories that no caption of fine-tuning named: held_out
    (their names), objects, metric and :func:`experiments.effect`'s columns. Each run has prompts of its own.

    Args:
        sweep: its folder; of runs that differ in ``unseen``.

    Raises:
        ValueError: no run is finished, or one has no such model.
    """
    rows = []
    for about, artifacts in experiments.finished([sweep]):
        record = artifacts / f"finetune_{model}" / "result.json"
        if not record.is_file():
            raise ValueError(f"{artifacts}: has no model {model}; give the folder of a sweep of the profile held_out")
        held_out = ", ".join(read_json(record)["result"]["held_out"])
        table = experiments.gather([(about, artifacts)])
        treated, base = ([table[table.model == name]] for name in (model, experiments.BASE))
        for objects in experiments.sets_of(table):
            for metric in ("VISOR_Cond", "OA"):
                after, before = (experiments.of_objects(each, objects) for each in (treated, base))
                found = experiments.effect(after, before, metric)
                rows.append({"held_out": held_out, "objects": objects, "metric": metric, **found})
    return pd.DataFrame(rows)


def along(folder: Path) -> pd.DataFrame:
    """Scores and quality of a run's models in the course of fine-tuning, from the base at step 0.

    Args:
        folder: of a finished run of the profile along.

    Returns:
        step, metric, value, change from the base with low and high. OA, VISOR_Cond, "all things found" (prompts without
        a relation), precision and recall in percent and points; the Fréchet distance, KID and diversity in the
        detector's features.

    Raises:
        ValueError: the run is not finished, or of another profile.
    """
    artifacts = folder / "artifacts"
    results, tuned = artifacts / "results", artifacts / "finetune_main" / "result.json"
    needed = (tuned, *(results / f"{name}.json" for name in ("plain", "quality_detector", "fidelity_detector")))
    if missing := [path for path in needed if not path.is_file()]:
        raise ValueError(f"{missing[0]}: is not there; give the folder of a finished run of the profile along")
    steps = read_json(tuned)["result"]["choices"]["steps"]
    tables = {
        path.stem.removeprefix("verdicts_"): pd.read_parquet(path) for path in artifacts.glob("verdicts_*.parquet")
    }
    base, rows = tables[experiments.BASE], []
    for model, table in tables.items():
        for metric in ("VISOR_Cond", "OA"):
            found = experiments.effect([table], [base], metric)
            rows.append((model, metric, found["after"], found["difference"], found["low"], found["high"]))
    for path, metric, value in (
        (needed[1], "all things found", "found"),
        (needed[2], "Fréchet distance", "value"),
        (needed[3], "", "value"),  # several, by name
    ):
        told = pd.DataFrame(read_json(path)["rows"])
        told = told[told.model.isin(list(tables)) & (told.get("things", "all") == "all")]
        told = told if "metric" in told else told.assign(metric=metric)
        rows += zip(told.model, told.metric, told[value], told.change, told.change_low, told.change_high, strict=True)
    table = pd.DataFrame(rows, columns=["model", "metric", "value", "change", "low", "high"])
    table.loc[table.model == experiments.BASE, ["change", "low", "high"]] = np.nan
    table.insert(0, "step", table.pop("model").replace({experiments.BASE: 0, "main": steps}).astype(int))
    return table.sort_values("step", kind="stable", ignore_index=True)
