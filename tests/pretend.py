"""Prompts, and detections of pretended models that obey them as often as they are told to."""

import numpy as np
import pandas as pd

from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.dataset.captions import caption
from sr4g_utils.evaluation.detections import DETECTION_COLUMNS
from sr4g_utils.relations import BY_NAME, NAMES

# Two boxes in which the relation holds and its opposite does not; swapped, the other way round.
LAYOUT = {
    "left of": ((5, 20, 10, 10), (40, 20, 10, 10)), "above": ((20, 5, 10, 10), (20, 40, 10, 10)),
    "inside": ((22, 22, 8, 8), (10, 10, 40, 40)), "overlapping": ((10, 10, 20, 20), (20, 20, 20, 20)),
    "wider": ((5, 5, 30, 10), (5, 40, 10, 10)), "taller": ((5, 5, 10, 30), (40, 5, 10, 10)),
    "larger": ((5, 5, 30, 30), (45, 45, 10, 10)),
}  # fmt: skip
LAYOUT |= {BY_NAME[name].opposite: (b, a) for name, (a, b) in LAYOUT.items()}
LAYOUT["separated"] = ((5, 5, 10, 10), (40, 40, 10, 10))


def make_prompts(per_relation: int = 8, seed: int = 0) -> pd.DataFrame:
    """Test and validation prompts of the study's own form, seen and unseen."""
    rng = np.random.default_rng(seed)
    rows = [(r, objects) for objects in ("seen", "unseen", "mixed") for r in NAMES for _ in range(2 * per_relation)]
    table = pd.DataFrame(rows, columns=["relation", "objects"])
    return table.assign(
        prompt_id=np.arange(len(table)), subject="dog", object="cat", caption="–",
        n_images=rng.integers(1, 1000, len(table)),
        split=np.where(np.arange(len(table)) % 4 == 0, "validation", "test"),
    )  # fmt: skip


def draw(prompts: pd.DataFrame, obeys: dict[str, float] | float, seed: int, found: float = 0.9, images: int = 4):
    """Detections of a model that obeys a relation with a given probability, and else draws its opposite."""
    rng, rows = np.random.default_rng(seed), []
    for p in prompts.itertuples():
        for i in range(images):
            share = obeys if isinstance(obeys, float) else obeys[p.relation]
            drawn = p.relation if rng.random() < share else BY_NAME[p.relation].opposite
            subject, object = LAYOUT[drawn]
            rows.append((p.prompt_id, i, p.subject, 0.9, *map(float, subject)))
            if rng.random() < found:
                rows.append((p.prompt_id, i, p.object, 0.8, *map(float, object)))
    return pd.DataFrame(rows, columns=list(DETECTION_COLUMNS)).assign(width=64, height=64)


TRIPLETS = [
    ("dog", "left of", "cat"), ("cat", "above", "dog"), ("cup", "inside", "bowl"), ("tv", "wider", "car"),
    ("bus", "below", "kite"),
]  # fmt: skip


def five_prompts() -> pd.DataFrame:
    """Prompts with captions, to be drawn."""
    table = pd.DataFrame(TRIPLETS, columns=["subject", "relation", "object"])
    return table.assign(prompt_id=np.arange(len(table)) + 7, caption=[caption(*triplet) for triplet in TRIPLETS])


def neighbours(n: int) -> pd.DataFrame:
    """Prompts with captions that put each of COCO's names to the left of the next."""
    names = [category.name for category in COCO_CATEGORIES[: n + 1]]
    table = pd.DataFrame({"prompt_id": range(n), "subject": names[:-1], "relation": "left of", "object": names[1:]})
    return table.assign(caption=list(map(caption, table.subject, table.relation, table.object)))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Patches of flat colour with some noise: edges in both directions."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(coarse + rng.integers(-9, 10, coarse.shape), 0, 255).astype(np.uint8)
