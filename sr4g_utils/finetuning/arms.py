"""What an experiment changes of captions and of their draw; the defaults of its choices change nothing.

Captions are left out (``families``, ``withheld``) or photos (``apart``), or all stay and say less (``control``,
``told``), or some triplets are drawn a given number of times (``doses``). The tests are in ``data/protocol.yaml``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from ..dataset import triplets
from ..dataset.captions import listing
from ..relations import FAMILIES, NAMES, family
from ..store.files import read_table
from .captions import Captions
from .choices import Choices


def narrowed(captions: Captions, c: Choices) -> Captions:
    """The captions whose triplet is not withheld (:func:`triplets.withheld`), whose relation is of the families, and
    whose photo shows no two things that are kept apart (:func:`triplets.kept_apart`)."""
    if c.apart:
        pairs, place = np.unique(captions.triplet // len(NAMES), return_inverse=True)
        both = [(a, b) for a, _, b in (captions.parts(pair * len(NAMES)) for pair in pairs)]
        shown = triplets.kept_apart(both, c.apart)[place]
        captions = captions.rows(~np.isin(captions.image, captions.image[shown]))
    if c.withheld:
        numbers, place = np.unique(captions.triplet, return_inverse=True)
        held = triplets.withheld([captions.parts(number) for number in numbers], c.withheld)
        captions = captions.rows(~held[place])
    relations = [NAMES.index(relation) for name in c.families for relation in family(name)]
    return captions.rows(np.isin(captions.relation, relations))


def changed(captions: Captions, c: Choices, prompts: pd.DataFrame | None) -> Captions:
    """The captions as an experiment tells and draws them; ``prompts``: of :func:`dosed_prompts`."""
    if prompts is not None:
        return dosed(captions, prompts, c.doses, c.steps * c.batch, c.balanced, c.seed)
    return captions if c.control == "none" else control(captions, c.control, c.told)


@dataclass(frozen=True)
class Arm(Captions):
    """Captions that say something else than their triplets."""

    words: Int[np.ndarray, "caption"]  # what each says: a triplet, or from ``kinds`` on a list of its two things
    in_order: bool = False  # they are drawn as they come, once each

    def texts(self) -> tuple[list[str], Int[np.ndarray, "caption"]]:
        numbers, place = np.unique(self.words, return_inverse=True)
        return [self._text(number) for number in numbers], place

    def _text(self, number: int | np.integer) -> str:
        if number < self.kinds:
            return self.text(number)
        subject, _, object = self.parts(number - self.kinds)
        return listing([subject, object])

    def draws(self, size: int, balanced: bool, seed: int) -> Callable[[int], Int[np.ndarray, "draw"]]:
        if not self.in_order:
            return super().draws(size, balanced, seed)
        return lambda step: np.arange(step * size, (step + 1) * size)


def control(captions: Captions, kind: str, told: float) -> Arm:
    """A control: the same images, drawn in the same order, with captions that say less than what is true.

    ``kind``: "list" names the two things, "shuffled" a random relation; ``told``: the share of captions that stay true.
    """
    rng = np.random.default_rng(0)  # not the run's seed: the arms of all seeds have the same captions
    other = captions.triplet - captions.relation  # the number of the pair's first relation
    other += rng.integers(len(NAMES), size=len(captions), dtype=np.int32) if kind == "shuffled" else captions.kinds
    words = np.where(rng.random(len(captions)) < told, captions.triplet, other)
    return Arm(captions.image, captions.triplet, captions.names, captions.template, words)


def dosed_prompts(prompts: str | Path | None, c: Choices) -> pd.DataFrame | None:
    """The prompts whose triplets are drawn as often as the choice ``doses`` says; None without doses."""
    if not c.doses:
        return None
    table = read_table(prompts) if prompts else pd.DataFrame({"objects": []})
    if not (table.objects == "dosed").any():
        raise ValueError("doses: there are no dosed prompts; set dosed in notebook 02, say to 40 for each relation")
    return table[table.objects == "dosed"]


def dosed(
    captions: Captions, prompts: pd.DataFrame, doses: Sequence[int], draws: int, balanced: bool = True, seed: int = 0
) -> Arm:
    """The draws of a whole run in their order: each prompt's triplet as often as ``doses`` has it for its group, with
    all of its images in turn or with one of them; in the rest, captions list the two things of any triplet.

    ``prompts``: of :func:`dosed_prompts`; ``draws``: steps times batch. Raises ValueError if a triplet has no caption
    here, or the doses are more than the draws.
    """
    rng, place = np.random.default_rng(seed), {name: i for i, name in enumerate(captions.names)}
    parts = [np.empty(0, np.int64)]
    for prompt in prompts.itertuples():
        subject, object = (place.get(name, -1) for name in (prompt.subject, prompt.object))
        number = (subject * len(captions.names) + object) * len(NAMES) + NAMES.index(prompt.relation)
        rows = rng.permutation(np.flatnonzero((captions.triplet == number) & (min(subject, object) >= 0)))
        if not len(rows):
            raise ValueError(f"doses: no photo of fine-tuning shows {prompt.caption!r}")
        # resize repeats the rows from the start, so no image is drawn twice before all are drawn once
        parts.append(np.resize(rows[:1] if prompt.one_image else rows, doses[prompt.group]))
    named = np.concatenate(parts)
    if len(named) > draws:
        raise ValueError(f"doses: {len(named):,} draws of dosed triplets do not fit into {draws:,} in all")
    rest = triplets.sample(captions.relation, draws - len(named), rng, balanced)
    order = rng.permutation(draws)  # else all doses came first
    rows = np.concatenate([named, rest])[order]
    # only a dosed draw may tell its triplet: the lists keep the number of draws and photos, and tell no relation
    lists = captions.kinds + captions.triplet[rest] - captions.relation[rest]
    words = np.concatenate([captions.triplet[named], lists])[order]
    return Arm(captions.image[rows], captions.triplet[rows], captions.names, captions.template, words, in_order=True)


def described(choices: Mapping[str, Any]) -> list[str]:
    """What a model card says of an experiment's choices."""
    families, told = choices["families"], f", but for {choices['told']:.3g} of them" if choices["told"] else ""
    lines = {
        f"{', '.join(families)} relations only": set(families) != set(FAMILIES),
        f"a control, whose captions are: {choices['control']}{told}": choices["control"] != "none",
        f"{choices['withheld']:.0%} of the triplets held back": choices["withheld"],
        f"without the photos of {choices['apart']:.0%} of the pairs of things": choices["apart"],
        f"triplets of five groups drawn {choices['doses']} times, else lists": choices["doses"],
    }
    return [line for line, holds in lines.items() if holds]
