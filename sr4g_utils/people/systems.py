"""Published systems, scored by us from their published boxes: how far do rules, pairs and detector move a score?"""

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pandas as pd

from .. import visor
from ..agreement import interval
from ..relations import RULES
from .generated import PAIRS, judged
from .sources import DETECTORS

_KEYS = ["model", "detector", "rules", "pairs"]


def scores(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """:func:`visor.scores` over all relations of every system, detector, rule set and choice of pairs.

    Grounding DINO was run only where Faster R-CNN had found both objects, and not on all of those: its scores are of
    these pictures (``of``), and it has no VISOR_1 to VISOR_4, which need all images of a prompt.

    Returns:
        Columns model, detector, rules, pairs, metric, value, low, high (percent), count and of.
    """
    tables = []
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        told = judged(pictures, boxes, detector, rules, pairs)
        whole = bool(pictures[detector].all())
        for model, records in told.groupby("model", sort=False):
            table = visor.scores(records).query("relation == 'all'")
            table = table.astype({"count": "Int64", "of": "Int64"})
            if not whole:
                table.loc[table.metric.str.fullmatch(r"VISOR_\d"), ["value", "low", "high", "count", "of"]] = pd.NA
            tables.append(table.assign(model=model, detector=detector, rules=rules, pairs=pairs))
    return pd.concat(tables, ignore_index=True)[[*_KEYS, "metric", "value", "low", "high", "count", "of"]]


def compared(
    pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every two systems, and which is best, on the prompts of which the detector saw a picture of each system.

    Returns:
        differences: columns detector, rules, pairs, a, b, metric (OA, VISOR or VISOR_Cond), prompts, difference (b − a,
        points), low and high: bootstrap over prompts, paired between systems.
        order: columns detector, rules, pairs, metric (VISOR or VISOR_Cond), order (best first) and stable: the
        percentage of the resamples that give this very order.
    """
    differences, orders = [], []
    for keys, records in _all_ways(pictures, boxes):
        names, drawn = list(records), visor.draws(list(records.values()), resamples, seed)["all"]
        for metric in ("OA", "VISOR", "VISOR_Cond"):
            values = drawn[:, :, visor.METRICS.index(metric)]
            for a, b in combinations(range(len(names)), 2):
                gain = values[b] - values[a]
                low, high = interval(gain[1:])
                prompts = records[names[a]].prompt_id.nunique()
                about = {**keys, "a": names[a], "b": names[b], "metric": metric, "prompts": prompts}
                differences.append({**about, "difference": gain[0], "low": low, "high": high})
            if metric != "OA":
                ranks = np.argsort(-values, axis=0, kind="stable").T
                stable = 100 * float((ranks[1:] == ranks[0]).all(axis=1).mean())
                best_first = ", ".join(names[i] for i in ranks[0])
                orders.append({**keys, "metric": metric, "order": best_first, "stable": stable})
    return pd.DataFrame(differences), pd.DataFrame(orders)


def _all_ways(pictures: pd.DataFrame, boxes: pd.DataFrame) -> Iterator[tuple[dict[str, str], dict[str, pd.DataFrame]]]:
    """For each detector, rule set and choice of pairs: the records of each system on the prompts that all share."""
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        told = judged(pictures, boxes, detector, rules, pairs)
        told = told.assign(prompt_id=told.asked)
        models = told.model.unique()
        shared = told.groupby("prompt_id").model.nunique().eq(len(models))
        told = told[told.prompt_id.map(shared)]
        keys = {"detector": detector, "rules": rules, "pairs": pairs}
        yield keys, {model: told[told.model == model] for model in models}
