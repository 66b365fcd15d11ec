"""What a step of fine-tuning sees: captions of the crop, photos as latents, captions as states, and their draw.

**Every draw is a function of what it is for.** The captions of a step come from a generator made of (seed, step); what
happens to one of them (posterior sample, noise, timestep, caption dropout) from one made of (seed, step, place in the
batch). So neither the number of processes nor accumulation nor an interruption changes what a step sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int32

from ..dataset import triplets as dataset_triplets
from ..dataset.boxes import BoxTable
from ..dataset.captions import caption, listing
from ..relations import NAMES, family

# ----------------------------------------------------------------------------------------------------------- captions


@dataclass(frozen=True)
class Captions:
    """Distinct triplets per image as numbers, 8 bytes each: image (its place in the box table) and triplet, ascending.

    A triplet's number is (subject · categories + object) · relations + relation: places in their lists.

    In a control the captions say less than what is true, of the same images drawn in the same order: "list" names the
    two things, "shuffled" a relation that is drawn at random for each caption. A share of them, ``told``, stays true.
    """

    image: Int32[np.ndarray, "caption"]
    triplet: Int32[np.ndarray, "caption"]
    names: list[str]
    template: str
    control: str = "none"
    told: float = 0.0

    def __len__(self) -> int:
        return len(self.image)

    @property
    def relation(self) -> Int32[np.ndarray, "caption"]:
        return self.triplet % len(NAMES)

    def rows(self, keep: Bool[np.ndarray, "caption"]) -> "Captions":
        return replace(self, image=self.image[keep], triplet=self.triplet[keep])

    def without(self, held_out: Sequence[str]) -> "Captions":
        """Those that name none of the categories.

        Raises:
            ValueError: there is no such category.
        """
        if unknown := sorted(set(held_out) - set(self.names)):
            raise ValueError(f"held_out: the annotations have no category {unknown[0]!r}")
        held = np.isin(self.names, list(held_out))
        subject, object = np.divmod(self.triplet // len(NAMES), len(self.names))
        return self.rows(~(held[subject] | held[object]))

    def without_triplets(self, share: float) -> "Captions":
        """Those whose triplet is not held back (:func:`triplets.withheld`)."""
        if not share:
            return self
        every, place = np.unique(self.triplet, return_inverse=True)
        words = [(self.names[s], NAMES[r], self.names[o]) for s, r, o in map(self._parts, every.tolist())]
        return self.rows(~dataset_triplets.withheld(words, share)[place])

    def of_families(self, families: Sequence[str]) -> "Captions":
        """Those with a relation of one of the families."""
        return self.rows(np.isin(self.relation, [NAMES.index(name) for each in families for name in family(each)]))

    def dosed(
        self, prompts: pd.DataFrame, doses: Sequence[int], draws: int, balanced: bool = True, seed: int = 0
    ) -> "Captions":
        """The draws of a whole run in their order: each prompt's triplet as often as ``doses`` has it for its group,
        with all of its images in turn or with one of them; in the rest, captions list the two things of any triplet.

        Args:
            prompts: the dosed ones of :func:`prompts.from_triplets`.
            draws: steps times batch.
            balanced, seed: of the lists and of the order.

        Raises:
            ValueError: a triplet has no caption here, or the doses are more than the draws.
        """
        rng, place = np.random.default_rng(seed), {name: i for i, name in enumerate(self.names)}
        told = [np.empty(0, np.int64)]
        for prompt in prompts.itertuples():
            pair = place.get(prompt.subject, -1) * len(self.names) + place.get(prompt.object, -1)
            rows = rng.permutation(np.flatnonzero(self.triplet == pair * len(NAMES) + NAMES.index(prompt.relation)))
            if not len(rows):
                raise ValueError(f"doses: no photo of fine-tuning shows {prompt.caption!r}")
            told.append(np.resize(rows[:1] if prompt.one_image else rows, doses[prompt.group]))
        named = np.concatenate(told)
        if len(named) > draws:
            raise ValueError(f"doses: {len(named):,} draws of dosed triplets do not fit into {draws:,} in all")
        rest = dataset_triplets.sample(self.relation, draws - len(named), rng, balanced)
        order = rng.permutation(draws)
        image = self.image[np.concatenate([named, rest])[order]]
        lists = self._lists + self.triplet[rest] - self.relation[rest]
        return Captions(image, np.concatenate([self.triplet[named], lists])[order], self.names, self.template)

    def _parts(self, triplet: int) -> tuple[int, int, int]:
        pair, relation = divmod(triplet, len(NAMES))
        subject, object = divmod(pair, len(self.names))
        return subject, relation, object

    def of_images(self, usable: Bool[np.ndarray, "image"]) -> "Captions":
        """Those of usable photos."""
        return self.rows(usable[self.image])

    @property
    def said(self) -> Int32[np.ndarray, "caption"]:
        """What the captions say, as :meth:`text` reads it: the triplets, but for a control, which is alike for every
        seed. Numbers beyond the triplets' stand for lists of two things."""
        if self.control == "none":
            return self.triplet
        rng = np.random.default_rng(0)
        other = self.triplet - self.relation
        other += rng.integers(len(NAMES), size=len(self), dtype=np.int32) if self.control == "shuffled" else self._lists
        return np.where(rng.random(len(self)) < self.told, self.triplet, other)

    @property
    def _lists(self) -> int:
        return len(self.names) ** 2 * len(NAMES)

    def text(self, said: int | np.integer) -> str:
        subject, relation, object = self._parts(int(said) % self._lists)
        if said >= self._lists:
            return listing([self.names[subject], self.names[object]])
        return caption(self.names[subject], NAMES[relation], self.names[object], self.template)


def true_captions(
    table: BoxTable,
    rules: str = "visor",
    template: str = "plain",
    same_category: bool = False,
    control: str = "none",
    told: float = 0.0,
) -> Captions:
    """Every caption that is true of a table's images, be they cropped or not; nothing is written or sampled yet."""
    images, triplets = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for groups, counts in dataset_triplets.count_pairs(table, rules) if len(table) else ():
        image, subject, object = groups.T
        counts[(subject == object) & (not same_category)] = 0
        group, relation = (index.astype(np.int32) for index in np.nonzero(counts))
        images.append(image[group])
        triplets.append(((subject * len(table.names) + object) * len(NAMES))[group] + relation)
    return Captions(np.concatenate(images), np.concatenate(triplets), table.names, template, control, told)


def crop_changes(before: Captions, after: Captions) -> dict[str, int]:
    """How many captions the crop makes untrue (an object is gone, or what is left lies otherwise) or newly true."""
    kinds = len(before.names) ** 2 * len(NAMES)
    old, new = (one.image.astype(np.int64) * kinds + one.triplet for one in (before, after))
    common = len(np.intersect1d(old, new, assume_unique=True))
    counts = {"before": len(old), "after": len(new), "dropped": len(old) - common, "new": len(new) - common}
    return {**counts, "distinct": len(np.unique(after.triplet))}
