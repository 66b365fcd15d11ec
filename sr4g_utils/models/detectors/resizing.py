"""Images resized in torch as the stock image processors resize them."""

from typing import Any

import torch
from jaxtyping import Float
from torch.nn import functional as F
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

Grey = Float[torch.Tensor, "image 3 h w"]  # grey levels
MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def target_size(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width to which an image processor of transformers resizes an image of this height and width."""
    size = processor.size
    if not getattr(processor, "do_resize", True):
        return height, width
    if "shortest_edge" in size:
        return get_size_with_aspect_ratio((height, width), size["shortest_edge"], size.get("longest_edge"))
    if "max_height" in size:
        return get_image_size_for_max_height_width((height, width), size["max_height"], size["max_width"])
    return size["height"], size["width"]


def resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Pillow's resize of 8-bit images: columns, then rows, each rounded to whole grey levels. (Pillow 13 reduces the
    rows of some tall images first, which changes saturated edges by some levels.)"""
    for target in ((pixels.shape[-2], size[1]), size):
        if target != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, target, mode=mode, antialias=True).round().clamp(0, 255)
    return pixels


def resize_square(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """OWLv2's: padded with black to a square, blurred against aliasing, interpolated linearly (scipy's ``zoom``)."""
    height, width = pixels.shape[-2:]
    pixels = F.pad(pixels, (0, max(height - width, 0), 0, max(width - height, 0)))
    low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
    for dim, target in ((-2, size[0]), (-1, size[1])):
        pixels = _lerp(_blur(pixels.transpose(dim, -1), target), target).transpose(dim, -1)
    return pixels.clamp(low, high)


def _blur(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Rows blurred by a Gaussian as wide as the reduction to ``target`` asks for, mirrored at the ends."""
    sigma = (pixels.shape[-1] / target - 1) / 2
    radius = int(4 * sigma + 0.5)
    if radius < 1:
        return pixels
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=pixels.device) / sigma) ** 2)
    rows = F.pad(pixels.flatten(0, 2)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(rows, (kernel / kernel.sum())[None, None]).view_as(pixels)


def _lerp(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Rows interpolated linearly at the centres of ``target`` pixels, mirrored at the ends."""
    n = pixels.shape[-1]
    at = ((torch.arange(target, device=pixels.device) + 0.5) * (n / target) - 0.5).abs()
    at = (n - 1) - ((n - 1) - at).abs()
    left = at.floor().long().clamp(max=max(n - 2, 0))
    right = (left + 1).clamp(max=n - 1)
    return torch.lerp(pixels[..., left], pixels[..., right], at - left)
