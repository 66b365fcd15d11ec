"""What a step of fine-tuning sees: captions of the crop, photos as latents, captions as states, and their draw.

**Every draw is a function of what it is for.** The captions of a step come from a generator made of (seed, step); what
happens to one of them (posterior sample, noise, timestep, caption dropout) from one made of (seed, step, place in the
batch). So neither the number of processes nor accumulation nor an interruption changes what a step sees.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64
from torch import Tensor
from tqdm import tqdm

from .. import dataset
from ..boxes import BoxTable
from ..captions import caption, listing
from ..models.words import check_words
from ..photos import CROP, PhotoError, Photos, crop_photo
from ..relations import NAMES, family
from ..running import files
from ..running.shared import alone

SHARD = 256  # photos in a file of latents
ENCODED = 8  # photos that pass through the VAE together
TEXTS = 256  # captions that are encoded together

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
        """Those whose triplet is not held back (:func:`dataset.withheld`)."""
        if not share:
            return self
        every, place = np.unique(self.triplet, return_inverse=True)
        words = [(self.names[s], NAMES[r], self.names[o]) for s, r, o in map(self._parts, every.tolist())]
        return self.rows(~dataset.withheld(words, share)[place])

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
        rest = dataset.sample(self.relation, draws - len(named), rng, balanced)
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
    for groups, counts in dataset.count_pairs(table, rules) if len(table) else ():
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


# ------------------------------------------------------------------------------------------------------------ latents


@dataclass(frozen=True)
class Encoded:
    """The VAE's posterior of every photo, memory-mapped: ``encoded[image]`` is its mean and its standard deviation.

    Both are kept, at twice the disk of one sample, because Stable Diffusion's own training draws a new sample each time
    it sees a photo. float16 is fine for them: its rounding is far below the noise that training adds.
    """

    shards: list[np.ndarray]  # each float16 (photo, 2, channel, h, w)
    row: Int[np.ndarray, "image"]  # of a table's image in the shards; -1 where it has none
    usable: Bool[np.ndarray, "image"]
    report: dict[str, Any]

    def __getitem__(self, image: int | np.integer) -> Float32[np.ndarray, "2 channel h w"]:
        shard, place = divmod(int(self.row[image]), SHARD)
        return self.shards[shard][place].astype(np.float32)

    def check(self, max_unusable: float) -> None:
        """Raises ValueError where more photos than this share could not be used; it names the first."""
        n, bad = self.report["photos"], self.report["unusable"]
        if bad > max_unusable * n:
            first = "; ".join(self.report["problems"][:3])
            raise ValueError(f"{bad:,} of {n:,} photos are unusable, above max_unusable = {max_unusable:.1%}: {first}")


def encode_photos(
    store: Path,
    photos: Photos,
    table: BoxTable,
    images: Int[np.ndarray, "photo"],
    vae: Any,
    resolution: int,
    accelerator: Accelerator,
) -> Encoded:
    """The photos of some of a table's images through crop and VAE, in files of ``SHARD`` photos that are made once.

    Their folder is named after what they depend on: crop, resolution, VAE, and the photos' names and contents.
    The processes share the work; a file appears whole, so an interrupted run goes on with the next one. What a photo
    becomes depends on its file alone, so any number of processes leaves the same files.

    Raises:
        ValueError: there are no images, or the VAE gives no numbers.
    """
    if not len(images):
        raise ValueError("fine-tuning: no image has a caption after the crop; check annotations and resolution")
    names = table.file_name.take(images).to_pylist()
    sizes = list(zip(table.width[images].tolist(), table.height[images].tolist(), strict=True))
    key = files.hash_of([CROP, resolution, SHARD, ENCODED, weights_hash(vae), names, sizes, photos.contents(names)])
    folder = store / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shards = [folder / f"{i:05}.npy" for i in range(-(-len(images) // SHARD))]
    with contextlib.ExitStack() as held:
        if accelerator.is_main_process:  # a sweep's runs share their photos
            held.enter_context(alone(folder / ".lock"))
        accelerator.wait_for_everyone()
        todo = [i for i, file in enumerate(shards) if not file.is_file()]
        accelerator.wait_for_everyone()  # all have looked before anyone writes
        mine = todo[accelerator.process_index :: accelerator.num_processes]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
            quiet = not (accelerator.is_main_process and mine)
            for i in tqdm(mine, "encoding photos", unit_scale=SHARD, unit=" photos", disable=quiet):
                part = slice(i * SHARD, (i + 1) * SHARD)
                latents, notes = _encode(vae, photos, names[part], sizes[part], resolution, readers)
                files.write_json(shards[i].with_suffix(".json"), notes)  # before the file that says it is done
                with files.atomic(shards[i]) as partial, partial.open("wb") as file:
                    np.save(file, latents)
        accelerator.wait_for_everyone()
    return _read_shards(shards, table, images)


def _read_shards(shards: list[Path], table: BoxTable, images: Int[np.ndarray, "photo"]) -> Encoded:
    """Finished files of encoded photos, and what was met on the way."""
    every = [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in shards]
    broken = [i * SHARD + int(place) for i, note in enumerate(every) for place in note["problems"]]
    usable, row = np.zeros(len(table.image_id), bool), np.full(len(table.image_id), -1)
    usable[images], row[images] = True, np.arange(len(images))
    usable[images[np.array(broken, np.int64)]] = False
    kinds = sorted({kind for note in every for kind in note["met"]})
    report = {
        "photos": len(images),
        "unusable": len(broken),
        "problems": [problem for note in every for problem in note["problems"].values()][:20],
        **{kind: sum(note["met"].get(kind, 0) for note in every) for kind in kinds},
    }
    return Encoded([np.load(file, mmap_mode="r") for file in shards], row, usable, report)


def _encode(
    vae: Any, photos: Photos, names: list[str], sizes: list[Any], resolution: int, readers: ThreadPoolExecutor
) -> tuple[np.ndarray, dict[str, Any]]:
    """One shard, and what was met on the way: problems by place, and kinds of photos."""

    def read(name: str, size: tuple[float, float]) -> np.ndarray | str:
        try:
            return crop_photo(photos.read(name, size), resolution)
        except PhotoError as error:
            return str(error)

    photos.counts.clear()
    found = list(readers.map(read, names, sizes))
    grey = np.full((resolution, resolution, 3), 127, np.uint8)  # in a broken photo's place; never trained on
    pixels = np.stack([grey if isinstance(photo, str) else photo for photo in found])
    made = []
    for start in range(0, len(pixels), ENCODED):
        batch = torch.from_numpy(pixels[start : start + ENCODED]).to(vae.device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            posterior = vae.encode(batch.to(vae.dtype) / 127.5 - 1).latent_dist
        made.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu().numpy())
    latents = np.concatenate(made)
    if not np.isfinite(latents).all():
        raise ValueError(f"the VAE gives NaN or infinity between {names[0]} and {names[-1]}; are its weights right?")
    problems = {str(place): photo for place, photo in enumerate(found) if isinstance(photo, str)}
    return latents, {"problems": problems, "met": dict(photos.counts)}


def weights_hash(module: torch.nn.Module) -> str:
    """A hash of a model's weights, whatever file they came from."""
    parts = {name: weight.detach().cpu().contiguous().numpy() for name, weight in module.state_dict().items()}
    return files.hash_of({name: hashlib.sha256(part).hexdigest() for name, part in parts.items()})


# ------------------------------------------------------------------------------------------------------------ batches


@dataclass(frozen=True)
class Batch:
    """Samples of a step."""

    latents: Float32[Tensor, "n channel h w"]
    noise: Float32[Tensor, "n channel h w"]
    timestep: Int64[Tensor, "n"]
    caption: Int64[np.ndarray, "n"]  # numbers into the captions' texts

    def split(self, size: int) -> list["Batch"]:
        parts = (slice(start, start + size) for start in range(0, len(self.caption), size))
        return [Batch(self.latents[p], self.noise[p], self.timestep[p], self.caption[p]) for p in parts]

    def to(self, device: torch.device) -> "Batch":
        latents, noise, timestep = (part.to(device) for part in (self.latents, self.noise, self.timestep))
        return Batch(latents, noise, timestep, self.caption)


class Sampler:
    """``sampler(step, places)``: what is in some places of a step's batch of ``size``.

    ``texts`` are the captions by number; 0 is the empty one, which a share of ``dropout`` gets instead of its own.
    ``in_order`` takes the captions as they come, once each (:meth:`Captions.dosed`), where else they are drawn.
    """

    def __init__(
        self,
        captions: Captions,
        encoded: Encoded,
        pipeline: Any,
        size: int,
        dropout: float = 0.1,
        balanced: bool = True,
        seed: int = 0,
        in_order: bool = False,
    ) -> None:
        self.captions, self.encoded = captions, encoded
        self.size, self.dropout, self.seed = size, dropout, seed
        self.draw = None if in_order else dataset.sampler(captions.relation, balanced)
        triplets, number = np.unique(captions.said, return_inverse=True)
        self.number = number.astype(np.int32) + 1
        self.texts = ["", *map(captions.text, triplets)]
        check_words(pipeline.tokenizer, self.texts[1:])
        config = pipeline.vae.config
        self.scale, self.shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
        self.timesteps = pipeline.scheduler.config.num_train_timesteps

    def __call__(self, step: int, places: range) -> Batch:
        here = np.arange(step * self.size, (step + 1) * self.size)
        rows = self.draw(self.size, np.random.default_rng([self.seed, step])) if self.draw else here
        latents, noise, timestep, caption = [], [], [], []
        for place in places:
            # place + 1, since numpy pads with zeros: (seed, step, 0) would be the generator above
            rng = np.random.default_rng([self.seed, step, place + 1])
            timestep.append(rng.integers(self.timesteps))
            caption.append(0 if rng.random() < self.dropout else self.number[rows[place]])
            mean, deviation = self.encoded[self.captions.image[rows[place]]]
            inside, outside = rng.standard_normal((2, *mean.shape), np.float32)
            latents.append((mean + deviation * inside - self.shift) * self.scale)
            noise.append(outside)
        x, epsilon = (torch.from_numpy(np.stack(part)) for part in (latents, noise))
        return Batch(x, epsilon, torch.tensor(timestep), np.array(caption, np.int64))


def ahead(make: Callable[[int], Batch], steps: range) -> Iterator[tuple[int, Batch]]:
    """Each step with its batch, which is made while the step before is at work."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step) for step in steps[:1]]
        for step in steps:
            batch = waiting.pop().result()
            waiting += [pool.submit(make, later) for later in range(step + 1, min(step + 2, steps.stop))]
            yield step, batch


class Text:
    """``text(numbers)``: the text encoder's states of captions, as the pipeline itself makes them for generation.

    Captions repeat, so the states of all are computed once, where they fit into ``cache_mb`` and are fewer than the
    draws of the run. At full size 60,000 captions take 7 GB in bfloat16; encoding is 0.5 % of the UNet's arithmetic.
    """

    def __init__(self, pipeline: Any, texts: list[str], cache_mb: int, draws: int) -> None:
        self.pipeline, self.texts = pipeline, texts
        self.cached = len(texts) <= draws and self._encode([""]).nbytes * len(texts) <= cache_mb << 20
        if self.cached:
            groups = (texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS))
            self.states = torch.cat([self._encode(group) for group in groups])

    def __call__(self, numbers: Int64[np.ndarray, "n"]) -> Float[Tensor, "n token width"]:
        if self.cached:
            return self.states[torch.from_numpy(numbers).to(self.states.device)]
        once, place = np.unique(numbers, return_inverse=True)
        states = self._encode([self.texts[number] for number in once])
        return states[torch.from_numpy(place).to(states.device)]

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Tensor:
        device = self.pipeline.text_encoder.device
        return self.pipeline.encode_prompt(texts, device, 1, do_classifier_free_guidance=False)[0]
