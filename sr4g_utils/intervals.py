"""Intervals of percentages whose images come in clusters: a prompt's images share a caption, so they are not so many
independent ones. They hold for few prompts as for thousands, and next to 0 and 100.

* one model: Wilson's interval, with the effective number of images (their number over the design effect) in place of
  their number, and Student's t in place of the normal (Korn and Graubard 1998, Survey Methodology 24:193; recommended
  in the comparison by Franco et al. 2019, doi 10.1093/jssam/smy019; R's ``survey::svyciprop(method="wilson")``);
* the difference of two models on the same prompts: Newcombe's, from the two models' own intervals and the correlation
  between them, a positive one with his correction for continuity, so that models that agree in every one of ten prompts
  are not taken for equal (Newcombe 1998, Statistics in Medicine 17:2635, method 10; for ratios, Zou and Donner 2008,
  doi 10.1002/sim.3095).

The bootstrap's percentiles, their rivals, are as good for many prompts; for few they are too narrow, and where all of
a model's images are right, or all wrong, they have no width at all.

What is no share of images, such as a distance of two sets of them, has an interval by the jackknife (a bootstrap would
draw images twice and so change the distance itself).
"""

import numpy as np
from jaxtyping import Float, Int
from scipy import special

GROUPS = 20  # of the jackknife
FEWEST = 8  # clusters with a denominator, below which there is no interval: from here on they cover (tests/mistakes)

Counts = Float[np.ndarray, "cluster ratio"]  # of each cluster, what is above and what is below the fraction's line
Ratios = Float[np.ndarray, "ratio"]


def enough(below: Counts) -> np.ndarray:
    """Whether each ratio has clusters enough for an interval."""
    return (below > 0).sum(axis=0) >= FEWEST


def ratio(above: Counts, below: Counts, level: float = 0.95) -> tuple[Ratios, Ratios]:
    """The interval, low and high in [0, 1], of each ratio sum(above) / sum(below), 0 ≤ above ≤ below in each cluster.

    Null where fewer than ``FEWEST`` clusters have a denominator.
    """
    n, total = (below > 0).sum(axis=0), below.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = above.sum(axis=0) / total
        variance = n / (n - 1) * (_influence(above, below) ** 2).sum(axis=0)
        # all clusters alike tell nothing of how alike the images of one are: each counts once (Kish)
        clusters = total**2 / (below**2).sum(axis=0)
        effective = np.where((p == 0) | (p == 1), clusters, np.minimum(p * (1 - p) / variance, total))
        c = special.stdtrit(n - 1, (1 + level) / 2) ** 2 / effective
        middle, half = (p + c / 2) / (1 + c), np.sqrt(c * p * (1 - p) + c**2 / 4) / (1 + c)
        low, high = np.clip(middle - half, 0, p), np.clip(middle + half, p, 1)
    return np.where(enough(below), low, np.nan), np.where(enough(below), high, np.nan)


def difference(
    before: tuple[Counts, Counts], after: tuple[Counts, Counts], level: float = 0.95
) -> tuple[Ratios, Ratios]:
    """The interval, low and high in [−1, 1], of the change of each ratio between two models on the same clusters.

    Args:
        before, after: above and below of each model, as in :func:`ratio`; row by row the same clusters.
    """
    (low_a, high_a), (low_b, high_b) = ratio(*before, level), ratio(*after, level)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (above.sum(axis=0) / below.sum(axis=0) for above, below in (before, after))
        one, two = _influence(*before), _influence(*after)
        r = np.nan_to_num((one * two).sum(axis=0) / np.sqrt((one**2).sum(axis=0) * (two**2).sum(axis=0)))
        n = ((before[1] > 0) & (after[1] > 0)).sum(axis=0)
        r = np.where(r > 0, np.maximum(r - 1 / (2 * n * np.sqrt(a * (1 - a) * b * (1 - b))), 0), r)

    def reach(up: Ratios, down: Ratios) -> Ratios:
        return np.sqrt(np.maximum(up**2 + down**2 - 2 * r * up * down, 0))

    return b - a - reach(b - low_b, high_a - a), b - a + reach(high_b - b, a - low_a)


def _influence(above: Counts, below: Counts) -> Counts:
    """How far each cluster moves its ratio (the linearised, or sandwich, variance is the sum of their squares)."""
    total = below.sum(axis=0)
    return (above - above.sum(axis=0) / total * below) / total


def parts(group: Int[np.ndarray, "image"], count: int = GROUPS) -> Int[np.ndarray, "image"]:
    """The part of each image, from 0; images of a group share it."""
    return np.unique(group, return_inverse=True)[1] % count


def jackknife(without: Float[np.ndarray, "part number"], level: float = 0.95) -> Float[np.ndarray, "number"]:
    """Half the width of each number's interval, from its values with one part left out each (delete-a-group)."""
    n = len(without)
    error = np.sqrt((n - 1) / n * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return special.stdtrit(n - 1, (1 + level) / 2) * error
