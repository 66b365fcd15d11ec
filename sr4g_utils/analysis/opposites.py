"""Claim 4 by the second protocol: both directions of each pair of true opposites, asked of the same two things.

The prompts are those of ``objects: [opposites]`` (:func:`prompts.of_opposites`); the test is in ``data/protocol.yaml``.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from ..evaluation.statistics import FEWEST, holm
from ..relations import OPPOSITES, SYMMETRIC
from ..store.files import protocol
from .claims import ALPHA, CONTRADICTED, HOLDS, NOTHING, UNDECIDED

PAIRS = tuple(pair for pair in OPPOSITES if pair[0] not in SYMMETRIC)


def _pulls(table: pd.DataFrame, pair: tuple[str, str], things: pd.Index) -> tuple[float, np.ndarray]:
    """The gap of a pair in points, over the images of the same things and number in which both directions show both;
    and how far each two things pull it. Null where too few are shown."""
    keys = ["subject", "object", "image_index"]
    one, other = (table[table.relation == name].set_index(keys)[["both_found", "correct"]] for name in pair)
    both = one.join(other, suffixes=("", "_other"), how="inner", validate="one_to_one")
    shown = (both.both_found & both.both_found_other).astype(float)
    differs = shown * (both.correct.astype(float) - both.correct_other.astype(float))
    sums = pd.DataFrame({"above": differs, "below": shown}).groupby(keys[:2]).sum().reindex(things, fill_value=0.0)
    above, below = sums.to_numpy().T
    if (below > 0).sum() < FEWEST:
        return np.nan, np.full(len(things), np.nan)
    gap = above.sum() / below.sum()
    return 100 * gap, 100 * (above - gap * below) / below.sum()


def _number(
    name: str, value: float, pulls: Sequence[np.ndarray], by_seed: np.ndarray | None = None
) -> dict[str, float]:
    """A number with its interval and p: over things (the widest of several pulls), and over seeds if there are some."""
    n = len(pulls[0])
    parts = [(n / (n - 1) * max((pull**2).sum() for pull in pulls), n - 1)]
    if by_seed is not None and len(by_seed) > 1:
        parts.append((by_seed.var(ddof=1) / len(by_seed), len(by_seed) - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts) if variance else 1.0
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    p = 2 * stats.t.sf(abs(value) / np.sqrt(variance), freedom) if variance else float(value == 0)
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half, f"{name}_p": p}


def gaps(before: pd.DataFrame, after: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The gap of each pair of true opposites before and after fine-tuning.

    Args:
        before, after: verdicts of the base, and of the fine-tuned model by seed, on the prompts of
            :func:`prompts.of_opposites`.

    Returns:
        relation, with_opposite; before, after (the mean over seeds) and change (of the gap's size), in points, each
        with _low, _high and _p; before_holm and after_holm (over six), unequal (before: before_holm < 0.05) and
        change_holm (over the unequal).

    Raises:
        ValueError: a pair's two directions are not asked of the same things.
    """
    rows = []
    for pair in PAIRS:
        parts = (before.loc[before.relation == name, ["subject", "object"]] for name in pair)
        asked = [set(part.itertuples(index=False, name=None)) for part in parts]
        if not asked[0] or asked[0] != asked[1]:
            raise ValueError(f"{pair[0]} and {pair[1]} are not asked of the same things; take the profile opposites")
        things = pd.MultiIndex.from_tuples(sorted(asked[0]), names=["subject", "object"])
        old, old_pulls = _pulls(before, pair, things)
        news = [_pulls(table, pair, things) for table in after]
        values, pulls = np.array([gap for gap, _ in news]), np.mean([pull for _, pull in news], axis=0)
        new = float(values.mean())
        # the new gap's sign may be either where it is small: the wider error of the two counts
        errors = [pulls - old_pulls, pulls + old_pulls]
        rows.append({
            "relation": pair[0], "with_opposite": pair[1], **_number("before", old, [old_pulls]),
            **_number("after", new, [pulls], values), **_number("change", abs(new) - abs(old), errors, values),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    unequal = holm(table.before_p.to_numpy()) < ALPHA
    table = table.assign(before_holm=holm(table.before_p.to_numpy()), after_holm=holm(table.after_p.to_numpy()))
    return table.assign(unequal=unequal, change_holm=holm(table.change_p.where(unequal).to_numpy(float)))


def verdict(table: pd.DataFrame) -> str:
    """Claim 4's verdict from :func:`gaps`, as the second protocol says it."""
    margin = protocol()["margins"]["gap"]
    shown = table.change_holm < ALPHA
    if (shown & (table.change > 0)).any() or (~table.unequal & (table.after_holm < ALPHA)).any():
        return CONTRADICTED
    if table.unequal.any() and (shown & (table.change < 0))[table.unequal].all():
        return HOLDS
    within = table.before_low.gt(-margin).all() and table.before_high.lt(margin).all()
    return NOTHING if within else UNDECIDED


def sizes(natural: Sequence[pd.DataFrame], balanced: Sequence[pd.DataFrame]) -> dict[str, float]:
    """The mean size of the six gaps, natural less balanced drawing, seed by seed: difference (points) with _low, _high
    and _p, over things and seeds."""
    values, pulls = [], []
    for old, new in zip(natural, balanced, strict=True):
        asked = old[["subject", "object"]].drop_duplicates()
        things = pd.MultiIndex.from_frame(asked.sort_values(["subject", "object"]))
        sides = [[_pulls(table, pair, things) for pair in PAIRS] for table in (old, new)]
        means = [np.mean([abs(gap) for gap, _ in side]) for side in sides]
        signed = [np.mean([np.sign(gap) * pull for gap, pull in side], axis=0) for side in sides]
        values.append(means[0] - means[1])
        pulls.append(signed[0] - signed[1])
    return _number("difference", float(np.mean(values)), [np.mean(pulls, axis=0)], np.array(values))
