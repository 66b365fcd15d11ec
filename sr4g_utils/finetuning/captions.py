"""The captions of fine-tuning: every relation that the rules find among the boxes that a crop leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, Int32

from ..dataset import triplets
from ..dataset.boxes import BoxTable
from ..dataset.captions import caption
from ..dataset.names import among
from ..relations import NAMES


@dataclass(frozen=True)
class Captions:
    """Distinct triplets per image as numbers, 8 bytes each: image (its place in the box table) and triplet, ascending.

    A triplet's number is (subject · categories + object) · relations + relation: places in their lists. With more than
    8,757 categories it takes 8 bytes itself.
    """

    image: Int32[np.ndarray, "caption"]
    triplet: Int[np.ndarray, "caption"]
    names: list[str]
    template: str

    def __len__(self) -> int:
        return len(self.image)

    @property
    def relation(self) -> Int[np.ndarray, "caption"]:
        return self.triplet % len(NAMES)

    @property
    def kinds(self) -> int:
        """How many triplets the categories and relations allow."""
        return len(self.names) ** 2 * len(NAMES)

    def rows(self, keep: Bool[np.ndarray, "caption"]) -> "Captions":
        return replace(self, image=self.image[keep], triplet=self.triplet[keep])

    def of_images(self, usable: Bool[np.ndarray, "image"]) -> "Captions":
        """Those of usable photos."""
        return self.rows(usable[self.image])

    def without(self, held_out: Sequence[str]) -> "Captions":
        """Those that name none of the categories. Raises ValueError where there is no such category."""
        held = np.isin(self.names, among(self.names, held_out, "held_out: the annotations have no category"))
        subject, object = np.divmod(self.triplet // len(NAMES), len(self.names))
        return self.rows(~(held[subject] | held[object]))

    def parts(self, triplet: int | np.integer) -> tuple[str, str, str]:
        pair, relation = divmod(int(triplet), len(NAMES))
        subject, object = divmod(pair, len(self.names))
        return self.names[subject], NAMES[relation], self.names[object]

    def text(self, triplet: int | np.integer) -> str:
        return caption(*self.parts(triplet), self.template)

    def texts(self) -> tuple[list[str], Int[np.ndarray, "caption"]]:
        """The distinct texts, and the place of each caption's among them."""
        numbers, place = np.unique(self.triplet, return_inverse=True)
        return [self.text(number) for number in numbers], place

    def draws(self, size: int, balanced: bool, seed: int) -> Callable[[int], Int[np.ndarray, "draw"]]:
        """What a step sees, by its number: places of captions; ``balanced``: a relation first, then a caption of it."""
        draw = triplets.sampler(self.relation, balanced)
        return lambda step: draw(size, np.random.default_rng([seed, step]))


def true_captions(
    table: BoxTable, rules: str = "visor", template: str = "plain", same_category: bool = False
) -> Captions:
    """Every caption that is true of a table's images, be they cropped or not; nothing is written or sampled yet."""
    kinds = len(table.names) ** 2 * len(NAMES)
    number = np.int32 if 2 * kinds < 1 << 31 else np.int64  # twice: an arm numbers lists of two things after them
    images, numbers = [np.empty(0, np.int32)], [np.empty(0, number)]
    for groups, counts in triplets.count_pairs(table, rules) if len(table) else ():
        image, subject, object = groups.T
        counts[(subject == object) & (not same_category)] = 0
        group, relation = (index.astype(np.int32) for index in np.nonzero(counts))
        images.append(image[group])
        numbers.append(((subject.astype(number) * len(table.names) + object) * len(NAMES))[group] + relation)
    return Captions(np.concatenate(images), np.concatenate(numbers), table.names, template)


def crop_changes(before: Captions, after: Captions) -> dict[str, int]:
    """How many captions the crop makes untrue (an object is gone, or what is left lies otherwise) or newly true."""
    old, new = (captions.image.astype(np.int64) * captions.kinds + captions.triplet for captions in (before, after))
    common = len(np.intersect1d(old, new, assume_unique=True))
    counts = {"before": len(old), "after": len(new), "dropped": len(old) - common, "new": len(new) - common}
    return {**counts, "distinct": len(np.unique(after.triplet))}
