"""A second detector that has learnt nothing: the world's own cards, matched to the pixels."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Complex64, Float, Float32, Int, UInt8
from PIL import Image
from tqdm import tqdm

from ..dataset.world import LARGEST, SMALLEST, card
from ..store.files import write_table
from .detections import DETECTION_COLUMNS
from .images import list_images

GRID = tuple(int(side) for side in np.geomspace(SMALLEST, LARGEST, 9).round())  # sides that cards are tried at
RING = 2  # pixels around a card, in which its colour must not go on
LIKE = 0.22  # mean colour distance (0 to 1) from the card, at most
FAR = 0.5  # colour distance of the ring beyond which it counts no more
SCORE = 0.06  # at least
AREA = 0.3  # power of a card's area in the rank of fits: of two that are alike, the larger explains more
SLACK = 0.005  # of a score in single precision, in which all places are compared before the best is looked at closely
INSIDE = (slice(None), slice(RING, -RING), slice(RING, -RING))  # of an array with a margin for the ring

Match = tuple[float, Float[np.ndarray, "4"]]


def find(image: UInt8[np.ndarray, "h w 3"], names: Sequence[str]) -> list[Match | None]:
    """Where each category's own card fits best, by template matching; None where it fits nowhere.

    It has learnt nothing and shares nothing with the detector. The card is tried at all places in
    ``GRID`` × ``GRID`` sizes: the image must look like it inside its box, and have another colour right around.

    Returns:
        Of each name, the distance of the ring less twice that of the card as a score, and the box, xywh in pixels.
    """
    places, pixels = _places(*image.shape[:2]), np.full((4, *(side + 2 * RING for side in image.shape[:2])), -0.5)
    pixels[:3][INSIDE] = image.transpose(2, 0, 1) / 255  # beyond the image's edge is no colour at all
    pixels[3] = (pixels[:3] ** 2).sum(0)
    sums = np.pad(pixels, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)  # one integral image for all sizes
    rings, squares = [], []
    for w, h in places.sizes:
        inner, outer = _boxes(sums[INSIDE], w, h), _boxes(sums, w + 2 * RING, h + 2 * RING)
        rings.append(((outer - inner) / _ring(w, h)).reshape(4, -1))
        squares.append(inner[3].ravel() / (w * h))
    ring, square = (np.concatenate(parts, -1).astype(np.float32) for parts in (rings, squares))
    spectrum = np.fft.rfft2(pixels[:3][INSIDE]).astype(np.complex64)
    return [_best(name, places, pixels[:3], ring, square, spectrum) for name in names]


class Places(NamedTuple):
    """Where a card is tried: its sizes, and of each place the number of its size, y and x; its position in an array
    (size, y, x), and the card's area."""

    sizes: list[tuple[int, int]]
    place: Int[np.ndarray, "place 3"]
    at: Int[np.ndarray, "place"]
    area: Float32[np.ndarray, "place"]


@cache
def _places(height: int, width: int) -> Places:
    sizes = [(w, h) for w in GRID if w <= width for h in GRID if h <= height]
    (y, x), (w, h) = np.mgrid[:height, :width], np.array(sizes).T[:, :, None, None]
    place = np.argwhere((x <= width - w) & (y <= height - h))
    area = np.prod(sizes, axis=1)[place[:, 0]].astype(np.float32)
    return Places(sizes, place, place @ [height * width, width, 1], area)


def _boxes(sums: Float[np.ndarray, "c y x"], w: int, h: int) -> Float[np.ndarray, "c top left"]:
    """The sums of all boxes of a size, from an integral image."""
    return sums[:, h:, w:] - sums[:, :-h, w:] - sums[:, h:, :-w] + sums[:, :-h, :-w]


def _ring(w: int, h: int) -> int:
    return (w + 2 * RING) * (h + 2 * RING) - w * h  # pixels


@cache
def _looks(name: str, height: int, width: int) -> tuple[Complex64[np.ndarray, "c size y x"], np.ndarray, np.ndarray]:
    """Of a card in each size: spectra that correlate an image with it; its mean colour and its mean squared value, at
    each place."""
    places = _places(height, width)
    cards = [card(name, w, h).transpose(2, 0, 1) for w, h in places.sizes]
    spectra = np.stack([np.conj(np.fft.rfft2(drawn, s=(height, width))) for drawn in cards], 1)
    mean, square = (np.array([part(drawn) for drawn in cards])[places.place[:, 0]] for part in (_mean, _square))
    return spectra.astype(np.complex64), mean.T, square


def _mean(drawn: Float32[np.ndarray, "c y x"]) -> Float32[np.ndarray, "c"]:
    return drawn.mean((1, 2))


def _square(drawn: Float32[np.ndarray, "c y x"]) -> np.float32:
    return (drawn**2).sum() / drawn[0].size


def _best(
    name: str, places: Places, pixels: np.ndarray, ring: np.ndarray, square: np.ndarray, spectrum: np.ndarray
) -> Match | None:
    """The best fit: of those that are among the best in single precision, by their exact ranks."""
    spectra, mean, own = _looks(name, *(side - 2 * RING for side in pixels.shape[1:]))
    product = spectra[0] * spectrum[0]
    for k in (1, 2):
        product += spectra[k] * spectrum[k]
    alike = np.fft.irfft2(product, s=[side - 2 * RING for side in pixels.shape[1:]]).ravel()[places.at]
    distance = np.sqrt((square + own - 2 * alike / places.area).clip(0) / 3)
    around = np.sqrt((ring[3] + sum(mean[k] * (mean[k] - 2 * ring[k]) for k in range(3))).clip(0) / 3)
    most = np.minimum(around, FAR) - 2 * distance + SLACK
    rows = np.flatnonzero((distance <= LIKE + SLACK) & (most >= SCORE))
    rank = most[rows] * places.area[rows] ** AREA
    best = (0.0, 0.0, np.zeros(4))
    for i in np.argsort(-rank):
        if rank[i] < best[0]:
            break
        size, y, x = places.place[rows[i]]
        w, h = places.sizes[size]
        score = _score(pixels[:, y : y + h + 2 * RING, x : x + w + 2 * RING], card(name, w, h).transpose(2, 0, 1))
        best = max(best, (score * (w * h) ** AREA, score, np.array([x, y, w, h], np.float64)), key=lambda fit: fit[0])
    return best[1:] if best[0] else None


def _score(part: Float[np.ndarray, "3 y x"], drawn: Float32[np.ndarray, "3 h w"]) -> float:
    """The score of a card on a part of the image with its ring; 0 where it does not fit."""
    distance = np.sqrt(((part[INSIDE] - drawn) ** 2).sum() / drawn.size)
    apart = (part - _mean(drawn)[:, None, None]) ** 2
    around = np.sqrt((apart.sum() - apart[INSIDE].sum()) / _ring(*drawn.shape[:0:-1]) / 3)
    score = float(min(around, FAR) - 2 * distance)
    return score if distance <= LIKE and score >= SCORE else 0.0


def write_matches(path: str | Path, images: str | Path, *, prompts: str | Path | None = None) -> int:
    """A stage: boxes by :func:`find` of the two names of each image's prompt. Returns how many images."""
    listed = list_images(images, prompts)
    rows = []
    for row in tqdm(listed.itertuples(), "matching", len(listed), leave=False):
        image = np.asarray(Image.open(Path(images) / row.file_name).convert("RGB"))
        names = list(dict.fromkeys([row.subject, row.object]))
        for name, match in zip(names, find(image, names), strict=True):
            if match is not None:
                score, box = match
                rows.append([row.prompt_id, row.image_index, name, score, *box, *image.shape[1::-1]])
    write_table(path, pd.DataFrame(rows, columns=[*DETECTION_COLUMNS, "width", "height"]))
    return len(listed)
