"""VISOR_Cond is over the images with both objects, and two models have other such images. What can still be compared?

Where both models drew the same prompts, there are the images in which both found both objects (complete cases), and
bounds for what the lost images could have shown. Of published scores there are Lee's bounds (Lee 2009, "Training,
wages, and sample selection").
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from .scores import common, fractions
from .statistics import difference

BESIDE = ("complete", "complete_low", "complete_high", "bound_low", "bound_high")  # beside a gain of VISOR_Cond
SAMPLES = ("each model's own", "found by both", "found before, lost ones wrong", "found before, lost ones right")


def same_images(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The change of VISOR_Cond from one model to another over four samples of the images that both have.

    * ``each model's own``: the images in which it found both objects, as VISOR_Cond has it;
    * ``found by both``: those in which each of the two found both;
    * ``found before, lost ones wrong`` and ``… right``: those of ``before``; where ``after`` lacks an object, as if its
      relation were wrong, or right. The truth over these images lies between the two, whatever was lost.

    Args:
        before, after: records of :func:`verdicts.verdicts`, paired by prompt_id and image_index.

    Returns:
        A row for each sample: sample, before, after, difference, low, high (points; 95 %, the cluster being the prompt;
        null where there are too few) and images (before's and after's).
    """
    a, b = (part.sort_values(["prompt_id", "image_index"]) for part in common([before, after]))
    found_a, found_b = (part.both_found.to_numpy(float) for part in (a, b))
    right_a, right_b = (part.correct.to_numpy(float) for part in (a, b))
    both, lost = found_a * found_b, found_a * (1 - found_b)
    samples = [
        (right_a, found_a, right_b, found_b),
        (right_a * both, both, right_b * both, both),
        (right_a, found_a, right_b * both, found_a),
        (right_a, found_a, right_b * both + lost, found_a),
    ]
    prompt = np.unique(a.prompt_id.to_numpy(object).astype(str), return_inverse=True)[1]
    counts = np.zeros((prompt.max() + 1, 4, len(samples)))
    np.add.at(counts, prompt, np.array(samples).transpose(2, 1, 0))
    above_a, below_a, above_b, below_b = counts.transpose(1, 0, 2)
    low, high = difference((above_a, below_a), (above_b, below_b))
    with np.errstate(invalid="ignore"):
        values = [100 * above.sum(0) / below.sum(0) for above, below in ((above_a, below_a), (above_b, below_b))]
    table = pd.DataFrame({"sample": SAMPLES, "before": values[0], "after": values[1]})
    return table.assign(
        difference=values[1] - values[0], low=100 * low, high=100 * high,
        images_before=below_a.sum(0).astype(int), images_after=below_b.sum(0).astype(int),
    )  # fmt: skip


def complete(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """Records of several models, or by several judges, on the images that all have, sorted, as if none had found both
    objects where one did not: VISOR_Cond is then over the images in which all found both (complete cases)."""
    parts = [part.sort_values(["prompt_id", "image_index"], ignore_index=True) for part in common(tables)]
    both = np.logical_and.reduce([part.both_found.to_numpy(bool) for part in parts])
    return [part.assign(both_found=both, correct=part.correct.to_numpy(bool) & both) for part in parts]


def beside(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """What stands beside the change of VISOR_Cond between two models (:data:`BESIDE`): the change over the images in
    which both models found both objects, with its 95 % interval, and the bounds of :func:`lee` for what the lost images
    could have shown, in points."""
    pair = common([before, after])
    a, b = (tuple(part[:, None] for part in fractions(records, "VISOR_Cond")) for records in complete(*pair))
    low, high = difference((a[0], a[1]), (b[0], b[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        change = (b[0].sum() / b[1].sum()) - (a[0].sum() / a[1].sum())
        oa, cond = (
            tuple(100 * np.divide(*(part.sum() for part in fractions(records, metric))) for records in pair)
            for metric in ("OA", "VISOR_Cond")
        )
    bounds = lee((oa[0], oa[1]), (cond[0], cond[1])) if np.isfinite(cond).all() else (np.nan, np.nan)
    return dict(zip(BESIDE, (100 * change, 100 * low[0], 100 * high[0], *bounds), strict=True))


def lee(oa: tuple[float, float], cond: tuple[float, float]) -> tuple[float, float]:
    """Sharp bounds of the second model's VISOR_Cond less the first's, over the images in which both would find both.

    **Assumption**: whatever the model with the lower OA finds, the other finds as well (monotone selection). Then those
    images are all of the former's and a known share of the latter's, of which the best or the worst may be meant.

    Args:
        oa, cond: OA and VISOR_Cond of the two models, in percent.
    """
    fewer = int(oa[1] < oa[0])
    share = oa[fewer] / oa[1 - fewer]  # of the other's images
    value = cond[1 - fewer] / 100
    ends = 100 * max(0.0, (value - (1 - share)) / share), 100 * min(1.0, value / share)
    low, high = (end - cond[fewer] for end in ends)
    return (low, high) if fewer == 0 else (-high, -low)


def published_bounds(published: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """:func:`lee` for every two published systems: a, b, their OA and VISOR_Cond, difference (b − a), low and high."""
    rows = []
    for a, b in combinations(published, 2):
        oa, cond = ((published[a][metric], published[b][metric]) for metric in ("OA", "VISOR_Cond"))
        low, high = lee(oa, cond)
        rows.append(
            {
                "a": a, "b": b, "OA_a": oa[0], "OA_b": oa[1], "VISOR_Cond_a": cond[0], "VISOR_Cond_b": cond[1],
                "difference": cond[1] - cond[0], "low": low, "high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
