"""The pool of scenes that the miniature's models learn from, and its captions.

It shares no scene with the train and val splits of :mod:`.world`. Its things lie anywhere, as on the web: no scene is
composed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..captions import caption, with_article
from ..relations import NAMES as RELATION_NAMES
from ..relations import RELATIONS, judge
from . import world
from .networks import SLOTS
from .world import NAMES, SIZE

POOL = 40_000  # scenes to learn from
POOL_SEED = 2  # world.SPLITS are 0 and 1
MOST = max(world.N_OBJECTS)
FOREGROUND = 5.0  # weight of a pixel inside a box in the VAE's loss; grounds are easy and large


@dataclass
class Pool:
    """Scenes to learn from: pictures (uint8), boxes (xywh, pixels; NaN beyond the last object), category positions."""

    pictures: np.ndarray
    boxes: Float[np.ndarray, "scene object 4"]
    labels: Int[np.ndarray, "scene object"]

    @classmethod
    def make(cls, n: int, seed: Sequence[int]) -> "Pool":
        pictures = np.empty((n, SIZE, SIZE, 3), np.uint8)
        boxes, labels = np.full((n, MOST, 4), np.nan), np.full((n, MOST), -1)
        for i, (names, drawn) in enumerate(world.scenes(n, seed, composed=0.0)):
            pictures[i] = world.render(drawn, names, seed=int(np.random.default_rng([*seed, i, 1]).integers(1 << 40)))
            boxes[i, : len(names)], labels[i, : len(names)] = drawn, [NAMES.index(name) for name in names]
        return cls(pictures, boxes, labels)

    def images(self, rows: Any) -> Float[Tensor, "scene 3 h w"]:
        """Pictures in [-1, 1]."""
        return torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def weights(self, rows: Int[np.ndarray, "scene"]) -> Float[Tensor, "scene 1 h w"]:
        """Weight of each pixel in the VAE's loss, 1 on average."""
        weight = torch.ones(len(rows), 1, SIZE, SIZE)
        for ground, drawn in zip(weight, self.boxes[rows], strict=True):
            for x, y, w, h in drawn[~np.isnan(drawn[:, 0])].astype(int):
                ground[:, y : y + h, x : x + w] = FOREGROUND
        return weight / weight.mean()

    @cached_property
    def triplets(self) -> list[Int[np.ndarray, "row 3"]]:
        """For each relation, the (scene, subject, object) of different categories for which it holds."""
        pairs = [(a, b) for a in range(MOST) for b in range(MOST) if a != b]
        found: list[list[np.ndarray]] = [[] for _ in RELATIONS]
        for a, b in pairs:
            scene = np.flatnonzero((self.labels[:, [a, b]] >= 0).all(1) & (self.labels[:, a] != self.labels[:, b]))
            holds = judge(self.boxes[scene, a], self.boxes[scene, b])
            for r in range(len(RELATIONS)):
                rows = scene[holds[:, r]]
                found[r].append(np.stack([rows, np.full_like(rows, a), np.full_like(rows, b)], 1))
        return [np.concatenate(rows) for rows in found]

    def listed(self, scenes: np.ndarray, rng: np.random.Generator) -> tuple[list[str], Int[np.ndarray, "scene slot"]]:
        """Captions that name a scene's things in random order, and which object is named where (-1: none)."""
        texts, slots = [], np.full((len(scenes), SLOTS), -1)
        for i, scene in enumerate(scenes):
            order = rng.permutation((self.labels[scene] >= 0).sum())
            things = [with_article(NAMES[self.labels[scene, k]]) for k in order]
            texts.append(" , ".join(things[:-1]) + " and " * (len(things) > 1) + things[-1])
            slots[i, : len(order)] = order
        return texts, slots

    def related(
        self, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[str], Int[np.ndarray, "n slot"], Int[np.ndarray, "n"]]:
        """Scenes, a caption of each that names a relation (uniformly drawn), the objects named, and the relation."""
        relation = rng.integers(len(RELATIONS), size=n)
        rows = np.stack([self.triplets[r][rng.integers(len(self.triplets[r]))] for r in relation])
        slots = np.full((n, SLOTS), -1)
        slots[:, :2] = rows[:, 1:]
        names = [[NAMES[self.labels[scene, k]] for k in pair] for scene, *pair in rows]
        texts = [caption(s, RELATION_NAMES[r], o) for (s, o), r in zip(names, relation, strict=True)]
        return rows[:, 0], texts, slots, relation


def encode_texts(tokens: PreTrainedTokenizerFast, texts: list[str]) -> Int[Tensor, "text token"]:
    """Token ids, padded to the model's length as Stable Diffusion's pipeline pads them."""
    return tokens(
        texts, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
