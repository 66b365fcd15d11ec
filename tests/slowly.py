"""VISOR's scores by an independent, slow scorer, and random worlds to score."""

from collections import defaultdict
from itertools import product

import numpy as np
import pandas as pd
import scalar
from PIL import ImageColor
from scipy.signal import correlate

from sr4g_utils.dataset.world import LOOKS, glyph_share
from sr4g_utils.evaluation.detections import DETECTION_COLUMNS
from sr4g_utils.evaluation.glyph_judge import AREA, GOES_ON, GRID, REACH, RING, SCORE
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


def match_slowly(image: np.ndarray, name: str) -> tuple[float, np.ndarray] | None:
    """``glyph_judge.find`` of one name, size after size: three correlations of each, in double precision."""
    ground, ink = (np.array(ImageColor.getrgb(colour)) / 255 for colour in (LOOKS[name].colour, LOOKS[name].ink))
    of_glyph, of_ground = np.zeros((2, *image.shape[:2]))
    for y, x in np.ndindex(image.shape[:2]):
        pixel = image[y, x] / 255
        along = np.clip(np.dot(pixel - ground, ink - ground) / np.dot(ink - ground, ink - ground), 0, 1)
        away = np.mean((pixel - (1 - along) * ground - along * ink) ** 2)
        like = max(1 - away / REACH**2, 0)
        of_glyph[y, x], of_ground[y, x] = like * along, like * (1 - along)
    best = None
    for width in (side for side in GRID if side <= image.shape[1]):
        for height in (side for side in GRID if side <= image.shape[0]):
            glyph = glyph_share(name, width, height)
            frame = np.pad(np.zeros((height, width)), RING, constant_values=1)
            fits = [
                correlate(share, kernel / kernel.sum(), "valid", "fft").clip(0)
                for share, kernel in ((of_glyph, glyph), (of_ground, 1 - glyph), (np.pad(of_ground, RING), frame))
            ]
            score = np.sqrt(fits[0] * fits[1]) - GOES_ON * fits[2]
            y, x = np.unravel_index(score.argmax(), score.shape)
            # of fits that are alike, the larger one explains more of the image
            rank = float(score[y, x] * (width * height) ** AREA)
            if score[y, x] >= SCORE and (best is None or rank > best[0]):
                best = rank, float(score[y, x]), np.array([x, y, width, height], np.float64)
    return best[1:] if best else None
