"""How much of a gain on what no caption named does the text tower give away? Towers taught with swapped roles tell.

Each tower has a base of its own; ``python -m sr4g_utils.models.miniature --swap`` makes both. The test is in
``data/protocol.yaml``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..evaluation.statistics import holm
from ..store.files import protocol
from .claims import ALPHA, UNDECIDED
from .effects import effect, of_objects
from .frequency import least_squares
from .sweeps import base_of, by_each, by_judge, finished, gather, verdicts_of

PARTS = {"seen": "main", "withheld": "main", "unseen": "unseen"}  # the objects of a gain, and the model that has it


def gains(sweeps: Mapping[float, str | Path | Sequence[str | Path]]) -> pd.DataFrame:
    """The gain of VISOR_Cond of each run over its own base: judge, share (swapped), seed, objects, gain (points).

    ``sweeps``: by the share, the folder of a sweep of the profile arms over seeds, from the base of that tower. Raises
    ValueError if one lacks a model or has no run of all relations.
    """
    parts = []
    for share, folder in sweeps.items():
        table = gather(finished([folder] if isinstance(folder, str | Path) else folder))
        parts.append(by_each(by_judge(table), _gains, float(share), folder))
    return pd.concat(parts, ignore_index=True)


def _gains(table: pd.DataFrame, share: float, folder: object) -> pd.DataFrame:
    rows = []
    for objects, model in PARTS.items():
        by_seed = verdicts_of(table, model, "relations")
        if not by_seed:
            raise ValueError(f"{folder}: has no model {model} with relations; give a sweep of the profile arms")
        for seed, records in by_seed.items():
            gain = effect(of_objects([records], objects), of_objects([base_of(table)], objects))["difference"]
            rows.append({"share": share, "seed": seed, "objects": objects, "gain": gain})
    return pd.DataFrame(rows)


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """How the gains fall with the share, by least squares over the runs, from one judge's rows of :func:`gains`.

    Returns:
        what ("seen", "withheld", "unseen", and the last two less "seen"), at_none and at_most (means of the runs with
        the lowest and the highest share, points), change (the slope times the way from 0 to 0.5), low, high, p,
        freedom (runs less 2) and p_holm (of the two differences).
    """
    wide = table.pivot(index=["share", "seed"], columns="objects", values="gain")
    wide = wide.assign(**{f"{name} − seen": wide[name] - wide["seen"] for name in ("withheld", "unseen")})
    share = wide.index.get_level_values("share").to_numpy(float)
    rows = []
    for what in ("seen", "withheld", "unseen", "withheld − seen", "unseen − seen"):
        y, half_shares = wide[what].to_numpy(float), pd.DataFrame({"share": share / 0.5})
        (line,) = least_squares(np.ones((len(y), 1)), half_shares, y)
        ends = {"at_none": y[share == share.min()].mean(), "at_most": y[share == share.max()].mean()}
        numbers = {name: line[name] for name in ("low", "high", "p", "freedom")}
        rows.append({"what": what, **ends, "change": line["value"], **numbers})
    found = pd.DataFrame(rows)
    return found.assign(p_holm=holm(found.p.where(found.what.str.contains("−")).to_numpy(float)))


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """The second protocol's verdict on each difference of :func:`slopes`: "inherited" if it falls with the share (Holm
    over two), "not inherited" if the change from 0 to 0.5 lies within the margin, else undecided."""
    margin, found = protocol()["margins"]["difference"], {}
    for row in table[table.p_holm.notna()].itertuples():
        falls = row.p_holm < ALPHA and row.change < 0
        within = row.low > -margin and row.high < margin
        found[str(row.what)] = "inherited" if falls else "not inherited" if within else UNDECIDED
    return found
