"""A judge that has learnt nothing: the world's own cards, matched to the pixels."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Complex64, Float, Int, UInt8
from scipy import fft
from tqdm import tqdm

from ..dataset.photos import Photos
from ..dataset.world import LARGEST, SMALLEST, colours, glyph_share
from ..store.files import read_table, write_table
from .detections import DETECTION_COLUMNS
from .images import list_images

GRID = tuple(int(side) for side in np.geomspace(SMALLEST, LARGEST, 10).round())  # sides that cards are tried at
REACH = 0.3  # distance of a pixel's colour (0 to 1) from the card's colours at which it is none of them
RING = 2  # pixels around a card, in which its ground must not go on
GOES_ON = 0.3  # weight of the ring
SCORE = 0.51  # at least
AREA = 0.1  # power of a card's area in the rank of fits: of two that are alike, the larger explains more
SLACK = 1e-3  # of a score in single precision, in which all places are compared before the best is looked at closely

Match = tuple[float, Float[np.ndarray, "4"]]
Shares = Float[np.ndarray, "2 h w"]  # how much each pixel is of a card's glyph, and of its ground


def find(image: UInt8[np.ndarray, "h w 3"], names: Sequence[str]) -> list[Match | None]:
    """Where each category's own card fits best, by template matching; None where it fits nowhere.

    It has learnt nothing and shares nothing with the detectors. The card is tried at all places in
    ``GRID`` × ``GRID`` sizes: where its glyph should be, pixels must have the glyph's colour, and where its ground
    should be, the ground's, which must not go on around it. A card in front may hide a part.

    Returns:
        Of each name, the score and the box, xywh in pixels. The score is the geometric mean of how much of the glyph
        and of the ground has its colour, less ``GOES_ON`` times the share of the ring that has the ground's.
    """
    return [_best(name, _shares(image / 255, name)) for name in names]


def _shares(pixels: Float[np.ndarray, "h w 3"], name: str) -> Shares:
    """A colour between the two of the card, as at the glyph's edge, is shared by them; any other is less of both."""
    ground, ink = colours(name)
    way = ink - ground
    along = ((pixels - ground) @ way / (way @ way)).clip(0, 1)
    away = ((pixels - ground - along[..., None] * way) ** 2).mean(-1)
    likeness = (1 - away / REACH**2).clip(0)
    return likeness * np.stack([along, 1 - along])


class Places(NamedTuple):
    """Where a card is tried: its sizes, and whether one lies within the image if its corner is at y and x."""

    sizes: Int[np.ndarray, "size 2"]
    inside: Bool[np.ndarray, "size y x"]


@cache
def _places(height: int, width: int) -> Places:
    sizes = np.array([(w, h) for w in GRID if w <= width for h in GRID if h <= height])
    (y, x), (w, h) = np.mgrid[:height, :width], sizes.T[:, :, None, None]
    return Places(sizes, (x <= width - w) & (y <= height - h))


@cache
def _spectra(name: str, height: int, width: int) -> Complex64[np.ndarray, "2 size y x"]:
    """Of a card's glyph and of its ground, in each size: spectra whose product with an image's is the mean share."""
    spectra = []
    for w, h in _places(height, width).sizes.tolist():
        glyph = glyph_share(name, w, h)
        spectra.append([np.conj(np.fft.rfft2(part / part.sum(), s=(height, width))) for part in (glyph, 1 - glyph)])
    return np.stack(spectra, 1).astype(np.complex64)


def _best(name: str, shares: Shares) -> Match | None:
    """The best fit: of those that are among the best in single precision, by their exact ranks."""
    sides = shares.shape[1:]
    places, spectrum = _places(*sides), fft.rfft2(shares.astype(np.float32))
    glyph, ground = fft.irfft2(_spectra(name, *sides) * spectrum[:, None], s=sides)
    fit = glyph * ground  # squared; where both are below 0, they are so by an error of rounding
    size, y, x = np.nonzero((fit >= (SCORE - SLACK) ** 2) & places.inside)
    w, h = places.sizes[size].T
    ring = _in_the_ring(shares[1], x, y, w, h)
    rank = (np.sqrt(fit[size, y, x]) - GOES_ON * ring + SLACK) * (w * h) ** AREA
    best = (0.0, 0.0, np.zeros(4))
    for i in np.argsort(-rank):
        if rank[i] < best[0]:
            break
        part = shares[:, y[i] : y[i] + h[i], x[i] : x[i] + w[i]]
        score = _score(part, glyph_share(name, int(w[i]), int(h[i]))) - GOES_ON * ring[i]
        if score >= SCORE:
            rank_of_it = score * (w[i] * h[i]) ** AREA
            best = max(best, (rank_of_it, score, np.array([x[i], y[i], w[i], h[i]], np.float64)), key=lambda m: m[0])
    return (float(best[1]), best[2]) if best[0] else None


def _in_the_ring(
    ground: Float[np.ndarray, "h w"], x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray
) -> Float[np.ndarray, "place"]:
    """How much of the ring around each box is of the ground; beyond the image's edge nothing is."""
    sums = np.pad(np.pad(ground, RING), ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # an integral image

    def total(left: np.ndarray, top: np.ndarray, right: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]

    outer = total(x, y, x + w + 2 * RING, y + h + 2 * RING)
    inner = total(x + RING, y + RING, x + w + RING, y + h + RING)
    return (outer - inner) / ((w + 2 * RING) * (h + 2 * RING) - w * h)


def _score(part: Shares, glyph: Float[np.ndarray, "h w"]) -> float:
    """The fit of a card on a part of the image."""
    ground = 1 - glyph
    return float(np.sqrt((part[0] * glyph).sum() / glyph.sum() * (part[1] * ground).sum() / ground.sum()))


def write_matches(path: str | Path, images: str | Path, *, prompts: str | Path | None = None) -> int:
    """A stage: boxes by :func:`find` of the two names of each image's prompt. Returns how many images."""
    return _write(path, list_images(images, prompts), Photos(images))


def write_true_matches(path: str | Path, prompts: str | Path, photos: str | Path) -> int:
    """A stage: the same in photos with true captions, the prompts of :func:`detect.ceiling`."""
    return _write(path, read_table(prompts).assign(image_index=0), Photos(photos))


def _write(path: str | Path, listed: pd.DataFrame, images: Photos) -> int:
    rows = []
    for row in tqdm(listed.itertuples(), "matching", len(listed), leave=False):
        image, names = images.read(row.file_name), list(dict.fromkeys([row.subject, row.object]))
        for name, match in zip(names, find(image, names), strict=True):
            if match is not None:
                score, box = match
                rows.append([row.prompt_id, row.image_index, name, score, *box, *image.shape[1::-1]])
    write_table(path, pd.DataFrame(rows, columns=[*DETECTION_COLUMNS, "width", "height"]))
    return len(listed)
