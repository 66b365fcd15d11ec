"""A second detector that has learnt nothing: the world's own cards, matched to the pixels."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
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


def find(image: UInt8[np.ndarray, "h w 3"], name: str) -> tuple[float, Float[np.ndarray, "4"]] | None:
    """Where a category's own card fits best, by template matching; None where it fits nowhere.

    It has learnt nothing and shares nothing with the detector. The card is tried at all places in
    ``GRID`` × ``GRID`` sizes: the image must look like it inside its box, and have another colour right around.

    Returns:
        The distance of the ring less twice that of the card as a score, and the box, xywh in pixels.
    """
    h, w = (side + 2 * RING for side in image.shape[:2])
    padded = np.full((h, w, 3), -0.5)  # beyond the image's edge is no colour at all
    padded[RING:-RING, RING:-RING] = image / 255
    spectrum = np.fft.rfft2(np.concatenate([padded, (padded**2).sum(-1, keepdims=True)], -1), axes=(0, 1))
    best = None
    for width in (side for side in GRID if side <= image.shape[1]):
        for height in (side for side in GRID if side <= image.shape[0]):
            kernel, areas, constants = _template(name, width, height, w, h)
            # squared distances to the card inside its box, and to its mean colour in the ring
            sums = np.fft.irfft2(np.einsum("yxc,yxck->yxk", spectrum, kernel), s=(h, w), axes=(0, 1))
            sums = sums[: h - height - 2 * RING + 1, : w - width - 2 * RING + 1] + constants
            distance = np.sqrt(sums.clip(0) / areas / 3)
            score = np.where(distance[..., 0] <= LIKE, np.minimum(distance[..., 1], FAR) - 2 * distance[..., 0], -1)
            y, x = np.unravel_index(score.argmax(), score.shape)
            # of fits that are alike, the larger one explains more of the image
            rank = float(score[y, x] * areas[0] ** 0.3)
            if score[y, x] >= SCORE and (best is None or rank > best[0]):
                best = rank, float(score[y, x]), np.array([x, y, width, height], np.float64)
    return best[1:] if best else None


@cache
def _template(name: str, w: int, h: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra that correlate an image with a card and with the ring around it; areas; sums of squared targets."""
    drawn = card(name, w, h)
    target = np.full((h + 2 * RING, w + 2 * RING, 3), drawn.mean((0, 1)))
    target[RING:-RING, RING:-RING] = drawn
    inside = np.zeros((h + 2 * RING, w + 2 * RING, 1))
    inside[RING:-RING, RING:-RING] = 1
    kernels = []
    for weight in (inside, 1 - inside):
        padded = np.zeros((height, width, 4))
        padded[: len(target), : target.shape[1]] = np.concatenate([-2 * weight * target, weight], -1)
        kernels.append(np.conj(np.fft.rfft2(padded, axes=(0, 1))))
    areas, constants = zip(*((w.sum(), (w * target**2).sum()) for w in (inside, 1 - inside)), strict=True)
    return np.stack(kernels, -1), np.array(areas), np.array(constants)


def write_matches(path: str | Path, images: str | Path, *, prompts: str | Path | None = None) -> int:
    """A stage: boxes by :func:`find` of the two names of each prompt's first image. Returns how many images."""
    listed = list_images(images, prompts).query("image_index == 0")
    rows = []
    for row in tqdm(listed.itertuples(), "matching", len(listed), leave=False):
        image = np.asarray(Image.open(Path(images) / row.file_name).convert("RGB"))
        for name in dict.fromkeys([row.subject, row.object]):
            if (match := find(image, name)) is not None:
                score, box = match
                rows.append([row.prompt_id, row.image_index, name, score, *box, *image.shape[1::-1]])
    write_table(path, pd.DataFrame(rows, columns=[*DETECTION_COLUMNS, "width", "height"]))
    return len(listed)
