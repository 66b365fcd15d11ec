"""Images to features: the detector's tower, mean colours, or Inception."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..store.files import digest, download, sources
from . import detectors
from .load import default_device

Image = UInt8[np.ndarray, "height width 3"]
FIDELITY = "weights-inception-2015-12-05-6726825d.pth"  # of torch-fidelity's release 0.2.0


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
        remedy = "`pip install torch-fidelity torchvision`, or give the path of NVIDIA's inception-2015-12-05.pt"
        raise ImportError(f"FID with torch-fidelity's weights: {error}. {remedy}") from None
    if f"sha256:{digest(path)}" != sources()[FIDELITY]["hash"]:  # the package unpickles what it is given
        raise ValueError(f"{path}: not the file that torch-fidelity publishes; delete it and let it be downloaded")
    return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)), {}


def _scripted(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # torch.jit's
            return torch.jit.load(str(path), map_location="cpu"), {"return_features": True}
    except (RuntimeError, ValueError) as error:
        why = f"({str(error).splitlines()[0]}); FID takes NVIDIA's inception-2015-12-05.pt"
        raise ValueError(f"{path}: not a TorchScript network {why}") from error


def features(network: torch.nn.Module, images: Iterable[Image], batch: int = 64) -> Float[np.ndarray, "image feature"]:
    """The network's features of each image, in order. ValueError: there is no image, or a feature is not finite."""
    batches: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        with torch.inference_mode():
            batches.append(network(torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2)).cpu().numpy())
        waiting.clear()

    for image in images:
        if waiting and (len(waiting) == batch or image.shape != waiting[0].shape):
            flush()
        waiting.append(image)
    if waiting:
        flush()
    if not batches:
        raise ValueError("there is no image to compute features of")
    values = np.concatenate(batches)
    if not np.isfinite(values).all():
        raise ValueError(f"a feature of image {int(np.argmin(np.isfinite(values).all(axis=1)))} is not finite")
    return values


def network(space: Mapping[str, Any]) -> torch.nn.Module:
    """The network that a mapping names: ``{"detector": source}``, ``{"inception": path, or "download"}`` or
    ``{"pixels": fields a side}``. ValueError: none of them, or another key."""
    match dict(space):
        case {"pixels": int() as side} if side > 0:
            return PixelSpace(side)
        case {"inception": str() | Path() as path}:
            return Inception(path)
        case {"detector": source}:
            return DetectorSpace(detectors.load(source))
    forms = "{'detector': source}, {'inception': path} or {'pixels': fields}"
    raise ValueError(f"space: expected {forms}, got {dict(space)}")
