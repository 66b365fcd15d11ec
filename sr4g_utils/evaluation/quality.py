"""Fréchet distances: do a model's images still look like photos?

The distance between two Gaussians fitted to the features of two sets of images (Heusel et al. 2017, arXiv 1706.08500,
equation 6): ``|m - m'|² + tr(S + S' - 2 (S S')^½)``. What it means depends on the features:

* **FID** takes the 2,048 features of the Inception network of 2015, in one of two translations of the TensorFlow
  original: torch-fidelity's, downloaded and checked by its sha256 (and read by that package, which needs torchvision),
  or the TorchScript file ``inception-2015-12-05.pt`` that NVIDIA publishes with StyleGAN2-ADA, given as a path.
  TorchScript has a reader of its own, which runs no Python; a pickle is read only where its sha256 is the known one.
* **The detector's own features** (OWL-ViT's pooled image tower) need no download. Their distance is no FID and compares
  with nothing published; it compares the models of one run.
* **Mean colours** of a few fields are the plainest second opinion: where things and colours are, not what they are.

A Fréchet distance is biased upwards, the more so the fewer images there are: compare distances of equally many images
only, and read them beside the distance that the photos have from each other.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import cdist
from tqdm import tqdm

from ..dataset import coco
from ..dataset.photos import Photos, crop_photo
from ..models.sampling import Pixels
from ..store.files import atomic
from .images import list_images, read_images
from .statistics import GROUPS, jackknife, parts

NEAREST = 3  # the neighbour to which a ball reaches
MOST = 2_000  # photos, and images of a model, for what compares each with each
METRICS = ("KID", "precision", "recall", "diversity")
Features = Float[np.ndarray, "image feature"]
Groups = Int[np.ndarray, "image"]
Space = Mapping[str, Any]  # see features.network


def write_image_features(
    path: str | Path, images: str | Path, prompts: str | Path | None = None, *, space: Space, batch: int = 64
) -> dict[str, int]:
    """A stage: features of generated images, and each image's prompt. Arguments as in :func:`images.list_images`."""
    group, pixels = list_images(images, prompts).prompt_id, (image for _, image in read_images(images, prompts))
    return _write(path, space, pixels, pd.factorize(group)[0], batch)


def write_photo_features(
    path: str | Path, annotations: str | Path, photos: str | Path, *, space: Space, count: int, resolution: int,
    seed: int = 0,
) -> dict[str, int]:  # fmt: skip
    """A stage: features of ``count`` photos (all, if there are fewer), cropped to the size that the models draw."""
    names = list(coco.read(annotations, "val").file_name.to_pylist())
    chosen = sorted(np.random.default_rng(seed).permutation(len(names))[:count])
    source, shown = Photos(photos), tqdm(chosen, "photos", unit="photo", leave=False)
    return _write(path, space, (crop_photo(source.read(names[i]), resolution) for i in shown), np.arange(len(chosen)))


def _write(path: str | Path, space: Space, images: Iterator[Pixels], group: np.ndarray, batch: int = 64) -> Any:
    from ..models.features import features, network  # torch: in stages alone

    values = features(network(space), images, batch)
    with atomic(path) as partial:
        save_file({"features": values, "group": np.array(group, np.int64)}, partial)
    return {"images": len(values), "features": values.shape[1]}


def distance(a: Float[np.ndarray, "image feature"], b: Float[np.ndarray, "other number"]) -> float:
    """The Fréchet distance of two sets of features.

    By symmetric matrices: with S = R Rᵀ, tr (S S')^½ is the sum of the roots of Rᵀ S' R's eigenvalues. At Inception's
    2,048 features that takes seconds where a general eigenvalue problem takes minutes, and a jackknife asks for dozens.

    Raises:
        ValueError: fewer than two images in a set, or features of different length.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 images with equal features are needed; got {a.shape} and {b.shape}")
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    s, other = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (a, b))
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(values.clip(0))
    cross = np.sqrt(np.linalg.eigvalsh(root.T @ other @ root).clip(0)).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(s) + np.trace(other) - 2 * cross)


def distances(photos: str | Path, images: Mapping[str, str | Path], groups: int = GROUPS) -> pd.DataFrame:
    """Each model's distance from the photos, and how far it differs from the first model's, from files of features.

    Intervals are by the jackknife: one of ``groups`` parts is left out of photos and images at a time, all images of a
    prompt together (a bootstrap would draw images twice and so add to the bias). The last row, "photos", is the
    distance of one half of the photos from the other: about what a perfect model would score with so few images.

    Returns:
        Columns model, value, low, high, change, change_low, change_high (null in the first row and the last), n_photos,
        n_images and features (their number).
    """
    real, *drawn = [load_file(path) for path in (photos, *images.values())]
    part = [parts(own["group"], groups) for own in (real, *drawn)]
    value = np.array([distance(real["features"], own["features"]) for own in drawn])
    without = []
    for out in range(groups):
        left, *rest = (own["features"][own_part != out] for own, own_part in zip((real, *drawn), part, strict=True))
        without.append([distance(left, own) for own in rest])
    numbers = {"n_photos": len(real["features"]), "n_images": [len(own["features"]) for own in drawn]}
    models = pd.DataFrame({"model": [*images], **_with_changes(value, np.array(without)), **numbers})
    half = part[0] % 2 == 0
    floor = distance(real["features"][half], real["features"][~half])
    photos_row = {"model": "photos", "value": floor, "n_photos": int(half.sum()), "n_images": int((~half).sum())}
    rows = [*models.to_dict("records"), photos_row]
    return pd.DataFrame(rows).assign(features=real["features"].shape[1])


def _with_changes(
    value: Float[np.ndarray, "model *metric"], without: Float[np.ndarray, "part model *metric"]
) -> dict[str, np.ndarray]:
    """Values of models with intervals by the jackknife, and how far they differ from the first model's (null there)."""
    change = value - value[0]
    wide, apart = (jackknife(x.reshape(len(x), -1)).reshape(value.shape) for x in (without, without - without[:, :1]))
    changes = {"change": change, "change_low": change - apart, "change_high": change + apart}
    changes["change"][0] = changes["change_low"][0] = changes["change_high"][0] = np.nan
    return {"value": value, "low": value - wide, "high": value + wide, **changes}


def some(
    features: Features, group: Groups, count: int
) -> tuple[Float[np.ndarray, "some feature"], Int[np.ndarray, "some"]]:
    """At most ``count`` images, of whole groups that are drawn at random, the same of every model."""
    ids, sizes = np.unique(group, return_counts=True)
    order = np.random.default_rng(0).permutation(len(ids))
    chosen = np.isin(group, ids[order[sizes[order].cumsum() <= count]])
    return features[chosen], group[chosen]


def _kernel(a: Features, b: Float[np.ndarray, "other feature"]) -> Float[np.ndarray, "image other"]:
    return (a.astype(float) @ b.T.astype(float) / a.shape[1] + 1) ** 3


def _kid(photos: np.ndarray, images: np.ndarray, across: np.ndarray) -> float:
    within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in (photos, images)]
    return float(sum(within) - 2 * across.mean())


def among(across: Float[np.ndarray, "a b"], within: Float[np.ndarray, "b b"]) -> Bool[np.ndarray, "a"]:
    """Which of ``a`` lie within the ball of one of ``b``, whose distances from each other are ``within``."""
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


def table(photos: Mapping[str, np.ndarray], images: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """The numbers of each model, and how far they differ from the first model's, from ``features`` and ``group`` as
    :func:`write_photo_features` keeps them.

    Returns:
        Columns metric, model, value, low, high, change, change_low, change_high (null for the first model), n_photos
        and n_images: as many of one as of the other, or a few less since prompts stay whole, and ``MOST`` at most.

    Raises:
        ValueError: fewer than two photos or images.
    """
    count = min(MOST, *(len(own["features"]) for own in (photos, *images.values())))
    real, *drawn = (some(own["features"], own["group"], count) for own in (photos, *images.values()))
    if min(len(own) for own, _ in (real, *drawn)) < 2:
        most = f"no prompt with more than {count} images"
        raise ValueError(f"KID, precision and recall need 2 photos, 2 images of each model, and {most}")
    sets = [_Sets(real, own) for own in drawn]
    value = np.array([own.numbers() for own in sets])
    without = np.array([[own.numbers(out) for own in sets] for out in range(GROUPS)])
    columns = {name: column.T.ravel() for name, column in _with_changes(value, without).items()}
    rows = pd.DataFrame({"metric": np.repeat(METRICS, len(sets)), "model": [*images] * len(METRICS), **columns})
    return rows.assign(n_photos=len(real[0]), n_images=[len(own[0]) for own in drawn] * len(METRICS))
