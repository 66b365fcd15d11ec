"""The pool of scenes that the miniature's models learn from, and its captions.

It shares no scene with the train and val splits of :mod:`.world`. Its things lie anywhere, as on the web: no scene is
composed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ...dataset import world
from ...dataset.captions import caption, listing
from ...dataset.world import NAMES, SIZE
from ...relations import RELATIONS

POOL = 40_000  # scenes to learn from
POOL_SEED = 2  # world.SPLITS are 0 and 1
MOST = max(world.N_OBJECTS)
FOREGROUND = 5.0  # weight of a pixel inside a box in the VAE's loss; grounds are easy and large


@dataclass
class Pool:
    """Scenes to learn from: photos (uint8), boxes (xywh, pixels; NaN beyond the last object), category positions."""

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
        """Photos in [-1, 1]."""
        return torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def weights(self, rows: Int[np.ndarray, "scene"]) -> Float[Tensor, "scene 1 h w"]:
        """Weight of each pixel in the VAE's loss, 1 on average."""
        weight = torch.ones(len(rows), 1, SIZE, SIZE)
        for ground, drawn in zip(weight, self.boxes[rows], strict=True):
            for x, y, w, h in drawn[~np.isnan(drawn[:, 0])].astype(int):
                ground[:, y : y + h, x : x + w] = FOREGROUND
        return weight / weight.mean()

    @cached_property
    def pairs(self) -> Int[np.ndarray, "pair 3"]:
        """Every (scene, subject, object) of two things of different categories, in both orders."""
        found = []
        for a, b in permutations(range(MOST), 2):
            scene = np.flatnonzero((self.labels[:, [a, b]] >= 0).all(1) & (self.labels[:, a] != self.labels[:, b]))
            found.append(np.stack([scene, np.full_like(scene, a), np.full_like(scene, b)], 1))
        return np.concatenate(found)

    def listed(self, scenes: np.ndarray, rng: np.random.Generator) -> list[str]:
        """Captions that name a scene's things in random order."""
        labels = [self.labels[scene][self.labels[scene] >= 0] for scene in scenes]
        return [listing([NAMES[k] for k in rng.permutation(things)]) for things in labels]

    def unrelated(self, n: int, rng: np.random.Generator) -> tuple[Int[np.ndarray, "n"], list[str]]:
        """Scenes, and a caption of each that names two of its things and a relation drawn at random: whether it is true
        of the scene is chance."""
        rows = self.pairs[rng.integers(len(self.pairs), size=n)]
        relations = rng.integers(len(RELATIONS), size=n)
        names = [[NAMES[self.labels[scene, k]] for k in two] for scene, *two in rows]
        return rows[:, 0], [caption(s, RELATIONS[r].name, o) for (s, o), r in zip(names, relations, strict=True)]


def encode_texts(tokens: PreTrainedTokenizerFast, texts: list[str]) -> Int[Tensor, "text token"]:
    """Token ids, padded to the model's length as Stable Diffusion's pipeline pads them."""
    return tokens(
        texts, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
