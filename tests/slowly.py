"""VISOR's scores by an independent, slow scorer, and random worlds to score."""

from collections import defaultdict
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import scalar

from sr4g_utils.dataset.world import card
from sr4g_utils.evaluation.detections import DETECTION_COLUMNS
from sr4g_utils.evaluation.glyph_judge import FAR, GRID, LIKE, RING, SCORE
from sr4g_utils.relations import NAMES

VISORS = ("OA", "VISOR", "VISOR_Cond", "VISOR_1", "VISOR_2", "VISOR_3", "VISOR_4")  # a further metric is not of these


def make_prompts(*triplets: tuple[str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(triplets, columns=["subject", "relation", "object"])
    return table.assign(prompt_id=np.arange(len(table)) + 100)


def make_detections(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(DETECTION_COLUMNS))


def random_world(seed: int, n: int, relations: tuple[str, ...] = NAMES) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    names = np.array(["dog", "cat", "cup", "car"], object)
    s = rng.integers(0, 4, n)
    prompts = pd.DataFrame({
        "prompt_id": np.arange(n), "subject": names[s], "relation": rng.choice(np.array(relations, object), n),
        "object": names[(s + rng.integers(1, 4, n)) % 4],
    })  # fmt: skip
    m = 8 * n
    boxes = {k: rng.integers(0, 12, m).astype(float) for k in "xy"} | {k: rng.integers(1, 8, m) * 1.0 for k in "wh"}
    table = {"prompt_id": rng.integers(0, n, m), "image_index": rng.integers(0, 4, m), "label": rng.choice(names, m)}
    return prompts, pd.DataFrame(table | {"score": rng.random(m).round(2)} | boxes)


def score_slowly(prompts: pd.DataFrame, detections: pd.DataFrame, threshold: float, best: bool) -> dict[str, float]:
    boxes = defaultdict(list)
    for d in detections.to_dict("records"):
        if d["score"] > threshold:
            boxes[d["prompt_id"], d["image_index"]].append(d)
    both = correct = 0
    per_prompt = []
    for p in prompts.to_dict("records"):
        n = 0
        for image in range(4):
            of = boxes[p["prompt_id"], image]
            subjects = sorted((d for d in of if d["label"] == p["subject"]), key=lambda d: -d["score"])
            objects = sorted((d for d in of if d["label"] == p["object"]), key=lambda d: -d["score"])
            if best:
                subjects, objects = subjects[:1], objects[:1]
            both += bool(subjects and objects)
            pairs = product(*([tuple(d[side] for side in "xywh") for d in found] for found in (subjects, objects)))
            n += any(p["relation"] in scalar.relations(s, o) for s, o in pairs)
        correct += n
        per_prompt.append(n)
    images = 4 * len(prompts)
    share = {f"VISOR_{k}": 100 * sum(n >= k for n in per_prompt) / len(prompts) for k in (1, 2, 3, 4)}
    cond = 100 * correct / both if both else float("nan")
    return {"OA": 100 * both / images, "VISOR": 100 * correct / images, "VISOR_Cond": cond} | share


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


def match_slowly(image: np.ndarray, name: str) -> tuple[float, np.ndarray] | None:
    """``glyph_judge.find`` of one name as it was recorded first: two correlations for each size of the card."""
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
