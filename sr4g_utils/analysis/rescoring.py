"""The same boxes judged by other rule sets and thresholds."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ..evaluation import scores, verdicts
from ..evaluation.detections import read_detections
from ..evaluation.judges import folder_of
from ..relations import FAMILIES, NAMES, RULES
from ..store.files import protocol, read_table
from .effects import of_family, with_visor
from .sweeps import BASE, About, finished, judged_files

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)


def ablation(
    prompts: pd.DataFrame, detections: Mapping[str, pd.DataFrame], images: Mapping[str, int | pd.DataFrame],
    thresholds: Sequence[float] = THRESHOLDS, resamples: int = 1_000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """The first model against the last, scored again from the stored boxes under other thresholds, pairs and rules.

    ``images``: those of each model, as :func:`verdicts.verdicts` takes them; its verdicts will do. Columns: rules,
    pairs, threshold, before, after, difference, low, high (VISOR_Cond), VISOR_difference, VISOR_low, VISOR_high,
    OA_before and OA_after. A threshold above which a model has no box that counts gives a row of nulls.
    """
    first, *_, last = detections
    rows: list[dict[str, Any]] = []
    change = ["before", "after", "difference", "low", "high"]
    able = [rules for rules in RULES if set(prompts.relation) <= set(RULES[rules].defines)]
    for rules, pairs, threshold in product(able, ("any", "best"), thresholds):
        row: dict[str, Any] = {"rules": rules, "pairs": pairs, "threshold": threshold}
        try:
            how = threshold, pairs, rules
            before, after = (verdicts.verdicts(prompts, detections[m], images[m], *how) for m in (first, last))
        except verdicts.NothingFound:
            rows.append(row)
            continue
        table = scores.compare(before, after, resamples, seed=seed).query("relation == 'all'").set_index("metric")
        row |= table.loc["VISOR_Cond", change].to_dict() | table.loc["VISOR", change[2:]].add_prefix("VISOR_").to_dict()
        rows.append(row | {f"OA_{name}": table.loc["OA", name] for name in ("before", "after")})
    whole = ["VISOR_difference", "VISOR_low", "VISOR_high", "OA_before", "OA_after"]
    return pd.DataFrame(rows, columns=["rules", "pairs", "threshold", *change, *whole])


def by_rules(sweep: Path, model: str = "main") -> pd.DataFrame:
    """What fine-tuning on the captions of a rule set gains under each: the effect on VISOR_Cond over the base, and over
    fine-tuning on those of the protocol's, by the rule set trained on, the one that judges ("tested") and the family of
    relations; VISOR beside. The boxes of each run are judged anew, base and model alike, by each judge.

    ``sweep``: a folder of runs with relations that differ in fine-tuning's ``rules`` or ``seed``. Raises ValueError if
    no run is finished, or one is of a control, of doses or of some families.
    """
    runs = finished([sweep])
    alone = {"relations", *(f"relations by {rules}" for rules in RULES)}
    if other := [path for about, path in runs if about["arm"] not in alone]:
        raise ValueError(f"{other[0]}: not of all relations; give a sweep over fine-tuning's rules alone")
    judges = list(dict.fromkeys(judge for judge, *_ in judged_files(runs[0][1])))
    parts = []
    for i, judge in enumerate(judges):
        place = folder_of(judge) if i else ""
        threshold = protocol()["thresholds"].get(judge, 0.0)  # templates have a limit of their own
        parts.append(_by_rules(runs, model, place, threshold).assign(judge=judge))
    table = pd.concat(parts, ignore_index=True)
    return table[["judge", *table.columns.drop("judge")]]


def _by_rules(runs: Sequence[tuple[About, Path]], model: str, place: str, threshold: float) -> pd.DataFrame:
    """The rows of :func:`by_rules` by the judge whose boxes lie in ``place``."""

    def judged(artifacts: Path, name: str, rules: str) -> pd.DataFrame:
        return _judged(artifacts, name, rules, place, threshold)

    every = [name for name, rules in RULES.items() if set(NAMES) <= set(rules.defines)]
    base = {rules: judged(runs[0][1], BASE, rules) for rules in every}
    artifacts_of: dict[str, dict[int, Path]] = {}  # by rule set and seed
    for about, artifacts in runs:
        artifacts_of.setdefault(about["rules"], {})[about["seed"]] = artifacts
    decided = protocol()["judge"]["rules"]
    rows, usual = [], artifacts_of.get(decided, {})
    for (trained, by_seed), tested in product(artifacts_of.items(), every):
        treated = {seed: judged(artifacts, model, tested) for seed, artifacts in by_seed.items()}
        pairs = {BASE: (list(treated.values()), [base[tested]])}
        if by_seed is not usual and (both := sorted(treated.keys() & usual)):
            others = [judged(usual[seed], model, tested) for seed in both]
            pairs[decided] = [treated[seed] for seed in both], others
        for (over, pair), name in product(pairs.items(), ("all", *FAMILIES)):
            after, before = (of_family(tables, name) for tables in pair)
            about = {"trained": trained, "tested": tested, "over": over, "family": name}
            rows.append(about | with_visor(after, before))
    return pd.DataFrame(rows)


def _judged(artifacts: Path, model: str, rules: str, place: str, threshold: float) -> pd.DataFrame:
    """The verdicts on a run's images by a model, under another rule set."""
    prompts = read_table(artifacts / "prompts_test.parquet")
    # an image without a box is in no row of the detections, but it was drawn, and counts
    images = read_table(artifacts / place / f"verdicts_{model}.parquet")[["prompt_id", "image_index"]]
    boxes = read_detections(artifacts / place / "detections" / f"{model}.parquet")
    # the protocol's choices but for the rules, so that nothing else can explain a difference; to find nothing at all
    # is a result here, since the detector has found things in the images of other models
    how = {**protocol()["judge"], "threshold": threshold, "rules": rules, "nothing": "record"}
    return verdicts.verdicts(prompts, boxes, images, **how)
