"""How close generated images come to photos, and how varied they are: what one Fréchet distance mixes, told apart.

Of the features that :mod:`.quality` keeps:

* **KID** (Bińkowski et al. 2018, arXiv 1801.01401): the squared maximum mean discrepancy with the kernel
  (x·y / features + 1)³, unbiased: 0 on average where images and photos have one distribution, however few there are.
* **Precision and recall** (Kynkäänniemi et al. 2019, arXiv 1904.06991): the share of images that lie among photos
  (within the ball of a photo that reaches to its third nearest photo), and the share of photos that lie among images.
  A model that draws one thing well has precision and no recall. Both depend on the numbers, so they are of as many
  images as photos.
* **Diversity**: how far apart the images of a prompt are, in percent of how far apart those of different prompts are.

Intervals are by the jackknife, as there.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from .intervals import GROUPS, jackknife, parts

NEAREST = 3  # the neighbour to which a ball reaches
MOST = 2_000  # photos, and images of a model, for what compares each with each
METRICS = ("KID", "precision", "recall", "diversity")

Features = Float[np.ndarray, "image feature"]
Groups = Int[np.ndarray, "image"]
Some = Float[np.ndarray, "some feature"]
Far = Float[np.ndarray, "a b"]


def some(features: Features, group: Groups, count: int) -> tuple[Some, Int[np.ndarray, "some"]]:
    """At most ``count`` images, of whole groups that are drawn at random, the same of every model."""
    ids, sizes = np.unique(group, return_counts=True)
    order = np.random.default_rng(0).permutation(len(ids))
    chosen = np.isin(group, ids[order[sizes[order].cumsum() <= count]])
    return features[chosen], group[chosen]


def kid(photos: Features, images: Some) -> float:
    """The kernel distance of two sets of at least two images."""
    return _kid(*(_kernel(a, b) for a, b in ((photos, photos), (images, images), (photos, images))))


def _kernel(a: Features, b: Some) -> Far:
    return (a.astype(float) @ b.T.astype(float) / a.shape[1] + 1) ** 3


def _kid(photos: np.ndarray, images: np.ndarray, across: np.ndarray) -> float:
    within = [(each.sum() - np.trace(each)) / (len(each) * (len(each) - 1)) for each in (photos, images)]
    return float(sum(within) - 2 * across.mean())


def among(across: Far, within: Float[np.ndarray, "b b"]) -> Bool[np.ndarray, "a"]:
    """Which of ``a`` lie within the ball of one of ``b``.

    Args:
        across: the distances of a from b. within: those of b from each other, of which each is its own nearest.
    """
    radius = np.partition(within, NEAREST, axis=1)[:, NEAREST] if len(within) > NEAREST else np.zeros(len(within))
    return np.any(across <= radius, axis=1)


def diversity(far: Float[np.ndarray, "image image"], group: Groups) -> float:
    """The mean distance of two images of a prompt, in percent of that of two of different prompts; else null."""
    alike = group[:, None] == group
    pairs = alike.sum() - len(group), (~alike).sum()
    return 100 * (far[alike].sum() / pairs[0]) / (far[~alike].sum() / pairs[1]) if all(pairs) else np.nan


class _Sets:
    """Photos and a model's images, and what each is to each, so that to leave out a part costs little."""

    def __init__(self, photos: tuple[Features, Groups], images: tuple[Features, Groups]) -> None:
        self.group = images[1]
        self.part = [parts(group) for _, group in (photos, images)]
        pairs = [(a, b) for (a, _), (b, _) in ((photos, photos), (images, images), (photos, images))]
        self.kernels, self.far = [_kernel(a, b) for a, b in pairs], [cdist(a, b) for a, b in pairs]

    def numbers(self, out: int = -1) -> list[float]:
        """``METRICS`` without a part; without none for −1."""
        p, i = (part != out for part in self.part)
        kernels, (photos, images, across) = (
            [table[np.ix_(*rows)] for table, rows in zip(tables, ((p, p), (i, i), (p, i)), strict=True)]
            for tables in (self.kernels, self.far)
        )
        precision, recall = among(across.T, photos), among(across, images)
        return [_kid(*kernels), 100 * precision.mean(), 100 * recall.mean(), diversity(images, self.group[i])]


def table(
    photos: Mapping[str, np.ndarray], images: Mapping[str, Mapping[str, np.ndarray]], level: float = 0.95
) -> pd.DataFrame:
    """The numbers of each model, and how far they differ from the first model's.

    Args:
        photos: ``features`` and ``group``, as :func:`quality.write_photo_features` keeps them.
        images: the same of each model's images.

    Returns:
        Columns metric, model, value, low, high, change, change_low, change_high (null for the first model), n_photos
        and n_images: as many of one as of the other, or a few less since prompts stay whole, and ``MOST`` at most.

    Raises:
        ValueError: fewer than two photos or images.
    """
    count = min(MOST, *(len(each["features"]) for each in (photos, *images.values())))
    real, *drawn = (some(each["features"], each["group"], count) for each in (photos, *images.values()))
    if min(len(each) for each, _ in (real, *drawn)) < 2:
        raise ValueError(
            "KID, precision and recall need 2 photos, 2 images of each model, "
            f"and no prompt with more than {count} images"
        )
    sets = [_Sets(real, each) for each in drawn]
    value = np.array([each.numbers() for each in sets])
    without = np.array([[each.numbers(out) for each in sets] for out in range(GROUPS)])
    wide, apart = (
        jackknife(x.reshape(GROUPS, -1), level).reshape(value.shape) for x in (without, without - without[:, :1])
    )
    columns = {"value": value, "low": value - wide, "high": value + wide, "change": value - value[0]}
    columns |= {"change_low": columns["change"] - apart, "change_high": columns["change"] + apart}
    made = pd.DataFrame({"metric": np.repeat(METRICS, len(sets)), "model": [*images] * len(METRICS)})
    made = made.assign(**{name: numbers.T.ravel() for name, numbers in columns.items()})
    made.loc[made.model == next(iter(images)), ["change", "change_low", "change_high"]] = np.nan
    return made.assign(n_photos=len(real[0]), n_images=[len(each[0]) for each in drawn] * len(METRICS))
