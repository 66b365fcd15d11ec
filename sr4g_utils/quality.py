"""Fréchet distances: does a model still draw pictures that look like photos?

The distance between two Gaussians fitted to the features of two sets of images (Heusel et al. 2017, arXiv 1706.08500,
equation 6): ``|m - m'|² + tr(S + S' - 2 (S S')^½)``, computed by torchmetrics. What it means depends on the features:

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

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from safetensors.numpy import load_file, save_file
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from . import boxes, detectors
from .images import list_images, read_images
from .intervals import GROUPS, jackknife, parts
from .models.load import default_device
from .photos import Photos, crop_photo
from .running.files import atomic, digest, download, sources

Image = UInt8[np.ndarray, "height width 3"]
FIDELITY = "weights-inception-2015-12-05-6726825d.pth"  # of torch-fidelity's release 0.2.0


# -------------------------------------------------------------------------------------------------------- features


class DetectorSpace(torch.nn.Module):
    """uint8 (image, 3, height, width) to the pooled output of a detector's image tower, (image, feature)."""

    def __init__(self, detector: detectors.Detector) -> None:
        super().__init__()
        self.detector, self.tower = detector, detector.image_tower  # an error now where it has none

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.detector.features(list(images.permute(0, 2, 3, 1).cpu().numpy()))


class PixelSpace(torch.nn.Module):
    """uint8 (image, 3, height, width) to the mean colours of a square of so many fields a side, (image, feature)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.fields = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(side), torch.nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fields(images.float() / 255)


class Inception(torch.nn.Module):
    """uint8 (image, 3, height, width) to Inception's 2,048 features, (image, feature).

    Args:
        weights: "download", the path of torch-fidelity's file of that name, or of a TorchScript network that is called
            as NVIDIA's is.

    Raises:
        RuntimeError: the download fails. ImportError: torch-fidelity is not installed.
        ValueError: the file is neither torch-fidelity's, by its sha256, nor TorchScript.
    """

    def __init__(self, weights: str | Path, device: str | None = None) -> None:
        super().__init__()
        path = download(FIDELITY) if weights == "download" else Path(weights)
        self.device = device or default_device()
        network, self.options = (_fidelity if path.name == FIDELITY else _scripted)(path)
        self.network = network.to(self.device).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = self.network(images.to(self.device), **self.options)
        return (made[0] if isinstance(made, tuple) else made).float()


def _fidelity(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(
            f"FID with torch-fidelity's weights: {error}. `pip install torch-fidelity torchvision`, "
            "or give the path of NVIDIA's inception-2015-12-05.pt"
        ) from None
    if f"sha256:{digest(path)}" != sources()[FIDELITY]["hash"]:  # the package unpickles what it is given
        raise ValueError(f"{path}: not the file that torch-fidelity publishes; delete it and let it be downloaded")
    return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)), {}


def _scripted(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # torch.jit's
            return torch.jit.load(str(path), map_location="cpu"), {"return_features": True}
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a TorchScript network ({str(error).splitlines()[0]}); "
            "FID takes NVIDIA's inception-2015-12-05.pt"
        ) from error


def features(network: torch.nn.Module, images: Iterable[Image], batch: int = 64) -> Float[np.ndarray, "image feature"]:
    """The network's features of each image, in order.

    Raises:
        ValueError: there is no image, or a feature is not finite.
    """
    found: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        with torch.inference_mode():
            found.append(network(torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2)).cpu().numpy())
        waiting.clear()

    for image in images:
        if waiting and (len(waiting) == batch or image.shape != waiting[0].shape):
            flush()
        waiting.append(image)
    if waiting:
        flush()
    if not found:
        raise ValueError("there is no image to compute features of")
    values = np.concatenate(found)
    if not np.isfinite(values).all():
        raise ValueError(f"a feature of image {int(np.argmin(np.isfinite(values).all(axis=1)))} is not finite")
    return values


def network(space: Mapping[str, Any]) -> torch.nn.Module:
    """The network that a mapping names: ``{"detector": source}``, ``{"inception": path, or "download"}`` or
    ``{"pixels": fields a side}``.

    Raises:
        ValueError: none of them, or another key.
    """
    match dict(space):
        case {"pixels": int() as side} if side > 0:
            return PixelSpace(side)
        case {"inception": str() | Path() as path}:
            return Inception(path)
        case {"detector": source}:
            return DetectorSpace(detectors.load(source))
    raise ValueError(
        f"space: expected {{'detector': source}}, {{'inception': path}} or {{'pixels': fields}}, got {dict(space)}"
    )


def write_image_features(
    path: str | Path,
    images: str | Path,
    prompts: str | Path | None = None,
    *,
    space: Mapping[str, Any],
    batch: int = 64,
) -> dict[str, int]:
    """A stage: features of generated images, and each image's prompt. Arguments as in :func:`images.list_images`."""
    of = list_images(images, prompts)
    pixels = (image for _, image in read_images(images, prompts))
    return _write(path, features(network(space), pixels, batch), pd.factorize(of.prompt_id)[0])


def write_photo_features(
    path: str | Path,
    annotations: str | Path,
    photos: str | Path,
    *,
    space: Mapping[str, Any],
    count: int,
    resolution: int,
    seed: int = 0,
    batch: int = 64,
) -> dict[str, int]:
    """A stage: features of ``count`` photos (all, if there are fewer), cropped to the size that the models draw."""
    names = list(boxes.read(annotations, "val").file_name.to_pylist())
    chosen = sorted(np.random.default_rng(seed).permutation(len(names))[:count])
    source = Photos(photos)
    shown = tqdm(chosen, "photos", unit="photo", leave=False)
    pixels = (crop_photo(source.read(names[i]), resolution) for i in shown)
    return _write(path, features(network(space), pixels, batch), range(len(chosen)))


def _write(path: str | Path, values: np.ndarray, group: Sequence[int] | np.ndarray) -> dict[str, int]:
    with atomic(path) as partial:
        save_file({"features": values, "group": np.array(group, np.int64)}, partial)
    return {"images": len(values), "features": values.shape[1]}


# -------------------------------------------------------------------------------------------------------- distance


class _Given(torch.nn.Module):
    """Features that are there already, for a metric that asks for a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


def distance(a: Float[np.ndarray, "image feature"], b: Float[np.ndarray, "picture number"]) -> float:
    """The Fréchet distance of two sets of features.

    Raises:
        ValueError: fewer than two images in a set, or features of different length.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 images with equal features are needed; got {a.shape} and {b.shape}")
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1])).set_dtype(torch.float64)
    centre = b.mean(axis=0)  # moves both sets alike, which changes no distance and spares digits
    metric.update(torch.from_numpy(np.asarray(a - centre, np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(b - centre, np.float64)), real=False)
    return float(metric.compute())


def _quickly(a: Float[np.ndarray, "image feature"], b: Float[np.ndarray, "picture feature"]) -> float:
    """The same by symmetric matrices: with S = R Rᵀ, tr (S S')^½ is the sum of the roots of Rᵀ S' R's eigenvalues.

    At Inception's 2,048 features that takes seconds where a general eigenvalue problem takes minutes, and a jackknife
    asks for dozens.
    """
    s, other = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (a, b))
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(values.clip(0))
    cross = np.sqrt(np.linalg.eigvalsh(root.T @ other @ root).clip(0)).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(s) + np.trace(other) - 2 * cross)


def distances(
    photos: str | Path, images: Mapping[str, str | Path], groups: int = GROUPS, level: float = 0.95
) -> pd.DataFrame:
    """Each model's distance from the photos, and how far it differs from the first model's.

    Intervals are by the jackknife: one of ``groups`` parts is left out of photos and images at a time, all images of a
    prompt together (a bootstrap would draw images twice and so add to the bias). The last row, "photos", is the
    distance of one half of the photos from the other: about what a perfect model would score with so few images.

    Args:
        photos: features of :func:`write_photo_features`.
        images: model name to features of :func:`write_image_features`.

    Returns:
        Columns model, value, low, high, change, change_low, change_high (null in the first row and the last), n_photos,
        n_images and features (their number).
    """
    real, *drawn = [load_file(path) for path in (photos, *images.values())]
    part = [parts(each["group"], groups) for each in (real, *drawn)]
    value = [distance(real["features"], each["features"]) for each in drawn]
    without = np.array(
        [
            [
                _quickly(real["features"][part[0] != out], each["features"][of != out])
                for each, of in zip(drawn, part[1:], strict=True)
            ]
            for out in range(groups)
        ]
    )
    half = part[0] % 2 == 0
    floor = distance(real["features"][half], real["features"][~half])
    width, change_width = jackknife(without, level), jackknife(without - without[:, :1], level)
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "value": value[i],
            "low": value[i] - width[i],
            "high": value[i] + width[i],
            "change": value[i] - value[0] if i else np.nan,
            "change_low": value[i] - value[0] - change_width[i] if i else np.nan,
            "change_high": value[i] - value[0] + change_width[i] if i else np.nan,
            "n_photos": len(real["features"]),
            "n_images": len(drawn[i]["features"]),
        }
        for i, name in enumerate(images)
    ]
    rows.append({"model": "photos", "value": floor, "n_photos": int(half.sum()), "n_images": int((~half).sum())})
    return pd.DataFrame(rows).assign(features=real["features"].shape[1])
