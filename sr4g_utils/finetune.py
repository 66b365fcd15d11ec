"""Fine-tuning of a Stable Diffusion's UNet on captions with spatial relations, after the paper's section 4.

The loss is Stable Diffusion's own: the mean squared error of the predicted noise, or of the velocity, as the model's scheduler
says. VAE and text encoder stay frozen. One loop for one process on a laptop and for ``accelerate launch`` on many GPUs.

    python -m sr4g_utils.finetune --profile paper                                      one GPU
    accelerate launch --num_processes 8 -m sr4g_utils.finetune --profile paper         eight
    accelerate launch ... -m sr4g_utils.finetune --profile paper --set splits='["main"]'

**Every draw is a function of what it is for.** The captions of a step come from a generator made of (seed, step); what happens to
one of them (posterior sample, noise, timestep, caption dropout) from one made of (seed, step, place in the batch). So neither the
number of processes nor accumulation changes what a step sees, and a checkpoint needs no random state: there is none to lose.

A checkpoint is a folder that appears whole or not at all. A run that is killed goes on from the last one and ends with the weights
of a run that was not (bit for bit on the CPU).
"""

import argparse
import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from diffusers import DDPMScheduler, UNet2DConditionModel
from jaxtyping import Bool, Float, Float32, Int32, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from . import boxes, dataset, detect, generate, models, runs, visor
from .boxes import BoxTable
from .captions import caption
from .photos import CROP, PhotoError, Photos, crop_photo, crop_table
from .relations import NAMES

NOTEBOOK = "03_finetuning"
SHARD = 256  # photos in a file of latents
ENCODED = 8  # photos that pass through the VAE together
TEXTS = 256  # captions that are encoded together
TIMEOUT = timedelta(hours=3)  # for which processes wait for each other, as while one encodes the last photos
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name of a UNet's file

# Dense bfloat16 FLOP/s by the vendors' data sheets, for model FLOPs utilisation (MFU).
PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A40": 150e12, "A10G": 70e12,
    "A10": 125e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip

HELP = """\
examples:
  python -m sr4g_utils.finetune                                        the miniature, on this machine
  python -m sr4g_utils.finetune --profile paper                        the paper's, on one GPU
  accelerate launch --num_processes 8 -m sr4g_utils.finetune --profile paper
  python -m sr4g_utils.finetune --profile paper --set 'splits=[main]' --set micro_batch=8 --set gradient_checkpointing=true

The result is in RUNS/PROFILE/artifacts/finetune_SPLIT, where notebook 03 finds it and does not train again. The captions come from
notebook 02: run `run_all.py --profile PROFILE --until 02` first. Killed at any moment, the same command goes on.
All parameters: `run_all.py --list`. With several processes the batch stays the same: it is shared among them.
"""


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every choice of a fine-tuning run. The defaults are the paper profile's; the ledger says which are ours."""

    # what is learnt from
    rules: Literal["visor", "sg2im", "sstd"] = "visor"
    template: Literal["plain", "photo", "sentence"] = "plain"
    crowds: bool = False
    same_category: bool = False  # captions such as "a dog to the left of another dog"
    balanced: bool = True  # draw a relation first, then one of its captions
    caption_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    resolution: int | None = None  # pixels; None: the model's own
    min_kept: float = 0.5  # boxes of which less than this share is left by the crop are dropped
    max_unusable: float = 0.01  # share of photos that may be missing or broken

    # how
    steps: int = 100_000  # the paper's
    batch: int = 64  # the paper's; over all processes and accumulation
    lr: float = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 500  # steps of linear warm-up
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.9999  # decay of the average of weights that is validated and kept; 0: the weights themselves
    lora_rank: int = 0  # above 0: train low-rank updates only (needs peft)
    seed: int = 0

    # on what
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights and optimiser are float32
    micro_batch: int | None = None  # pictures at once per process; None: its whole share of the batch
    channels_last: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    adam_8bit: bool = False  # needs bitsandbytes
    text_cache_mb: int = 512  # keep the text states of all captions when they fit into this

    # what is kept and shown
    validate_every: int = 5_000  # steps; also before the first and after the last; 0: never
    validation_prompts: int = 280  # spread evenly over the relations
    sampling: dict[str, Any] = {}  # of the validation images: fields of generate.Sampling
    threshold: float = visor.THRESHOLD
    oa_floor: float = 0.9  # the best checkpoint finds both objects at least this often, relative to the start
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2
    log_every: int = 10
    tensorboard: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Choices":
        """The choices, checked.

        Raises:
            ValueError: an unknown name, or a value that cannot be; the message names it.
        """
        try:
            choices = msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"fine-tuning: {error}; the choices are {', '.join(cls.__struct_fields__)}") from None
        positive = ("steps", "batch", "lr", "checkpoint_every", "keep_checkpoints", "log_every", "max_grad_norm")
        for name in positive:
            if getattr(choices, name) <= 0:
                raise ValueError(f"fine-tuning: {name} must be above 0, got {getattr(choices, name)!r}")
        for name in ("caption_dropout", "ema", "max_unusable"):
            if not 0 <= getattr(choices, name) <= 1:
                raise ValueError(f"fine-tuning: {name} must be in [0, 1], got {getattr(choices, name)!r}")
        return choices


# What may change between two runs of the same folder: it alters neither the weights nor what is chosen among them.
FREE = ("checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "max_unusable")


def finetune(
    folder: str | Path,
    annotations: str | Path,
    photos: str | Path,
    prompts: str | Path | None = None,
    *,
    model: models.Source | Mapping[str, Any] | str,
    detector: models.Source | Mapping[str, Any] | str | None = None,
    unseen: Sequence[str] = (),
    latents: str | Path | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """A stage: fine-tune a model's UNet, or go on where an earlier call was interrupted.

    Args:
        folder: holds ``log.jsonl`` (a line per ``log_every`` steps and per validation), ``checkpoints/`` and, as UNet folders
            that ``models.load_pipeline(unet=...)`` takes, ``best/`` and ``last/``. What another configuration left there is
            moved to ``<folder>.before``.
        annotations: a box table's source, see :func:`boxes.read`.
        photos: folder or zip.
        prompts: Parquet of :func:`dataset.write_prompts`; those of the split "validation" whose objects are both seen choose
            the best checkpoint. Without it, or without a detector, nothing is validated and the last is the best.
        model: a Stable Diffusion, see :class:`models.Source`.
        detector: of the validation.
        unseen: categories that no caption may name.
        latents: the folder of encoded photos, shared by runs; by default ``latents`` beside ``folder``.
        choices: see :class:`Choices`.

    Returns:
        A JSON-able record: captions and photos used, loss, validation scores, best step, speed, model, choices.

    Raises:
        ValueError: a choice, file or model does not fit; the message names it.
        FloatingPointError: the loss is NaN or infinite; the message names the last good checkpoint.
    """
    c, folder = Choices.of(choices), Path(folder)
    accelerator = _accelerator(c, folder)
    pipeline, record = models.load_pipeline(model, device=accelerator.device)
    resolution = _check_model(pipeline, record, c)
    table = boxes.read(annotations)
    table = table if c.crowds else table.without_crowds()
    asked = validation_prompts(prompts, unseen, c) if prompts and detector and c.validate_every else None
    judging = models.load_detector(detector, device=accelerator.device) if detector and asked is not None else None
    key = _key(c, table, unseen, record["files"], asked, judging)
    state = _resume(folder, key, c, accelerator)
    if "result" in state:
        return state["result"]

    cropped = crop_table(table, resolution, c.min_kept)
    captions = training_captions(cropped, c)
    encoded = encode_photos(
        Path(latents or folder.parent / "latents"),
        Photos(photos),
        cropped,
        table,
        np.unique(captions.image),
        pipeline,
        accelerator,
    )
    encoded.check(c.max_unusable)
    captions = captions.without(unseen)
    changes = crop_changes(training_captions(table, c).without(unseen), captions) if accelerator.is_main_process else {}
    judge = _judge(pipeline, judging, asked, c, accelerator) if judging and asked is not None else None
    trained = _train(folder, state, key, pipeline, captions.of_images(encoded.usable), encoded, judge, c, accelerator)
    return _finish(
        folder,
        key,
        {
            "captions": changes,
            "photos": encoded.report,
            "boxes": {"annotated": len(table), "used": len(cropped), **cropped.excluded},
            **trained,
            "unseen": list(unseen),
            "resolution": resolution,
            "model": record,
            "choices": msgspec.to_builtins(c),
        },
        accelerator,
    )


def _train(
    folder: Path,
    state: dict[str, Any],
    key: dict[str, Any],
    pipeline: Any,
    captions: "Captions",
    encoded: "Encoded",
    judge: "Judge | None",
    c: Choices,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The loop. ``state`` is empty, or that of the checkpoint to go on from."""
    share = _share(c, accelerator)
    batches = Batches(captions, encoded, pipeline, c)
    text = Text(pipeline, batches.texts, c)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)

    # `unet` holds the float32 weights that learn; `network` is the same thing, wrapped for precision, speed and processes.
    unet, pipeline.unet = pipeline.unet, copy.deepcopy(pipeline.unet).to(models.DTYPES[c.precision]) if judge else None
    trained = trainable(unet, c)
    optimiser = _optimiser(list(trained.values()), c)
    ema = {name: weight.detach().clone() for name, weight in trained.items()} if c.ema else None
    if state:
        _restore(Path(state["checkpoint"]), trained, ema, optimiser)
    speed_of_light = _images_per_second_at_peak(unet, batches, text, c)
    network = accelerator.prepare_model(torch.compile(unet) if c.compile else unet)
    kept = ema or trained

    done, best, start = state.get("step", 0), state.get("best"), state.get("start")
    good = state.get("checkpoint")
    log = Log(folder / "log.jsonl", state, speed_of_light, c, accelerator)
    if judge and not state:
        start = log.validation(0, judge(merged(unet, kept)))
    unet.train()
    for step, batch in _ahead(lambda step: batches(step, share), range(done, c.steps)):
        torch.manual_seed(_seed(c.seed, step, share.start))  # of dropout, where a model has any
        parts = batch.split(c.micro_batch or len(share))
        for i, part in enumerate(parts):
            with accelerator.no_sync(network) if i + 1 < len(parts) else nullcontext():
                loss = diffusion_loss(network, schedule, part.to(accelerator.device), text(part.caption)) / len(parts)
                accelerator.backward(loss)
            log.add(loss)
        log.add_norm(torch.nn.utils.clip_grad_norm_(trained.values(), c.max_grad_norm))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, c)
        optimiser.step()
        optimiser.zero_grad()
        if ema is not None:  # its decay starts low, as in LDM
            decay = min(c.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), [weight.detach() for weight in trained.values()], 1 - decay)

        done = step + 1
        validate = judge and (done % c.validate_every == 0 or done == c.steps)
        save = validate or done % c.checkpoint_every == 0 or done == c.steps
        if save or done % c.log_every == 0:
            log.line(done, learning_rate(step, c), good)  # raises if the loss is not finite: before anything is saved
        if judge and validate:
            scores = log.validation(done, judge(merged(unet, kept)))
            if best is None or _rank(scores, start, c) > _rank(best, start, c):
                best = scores
                save_unet(folder / "best", unet, merged(unet, kept), done, accelerator)
        if save:
            position = {"step": done, "best": best, "start": start, "key": key, **log.position()}
            good = checkpoint(folder, trained, ema, optimiser, position, c, accelerator)
            log.resume_clock()
    save_unet(folder / "last", unet, merged(unet, kept), done, accelerator)
    if best is None:
        save_unet(folder / "best", unet, merged(unet, kept), done, accelerator)
    log.close()
    return {"start": start, "best": best or {"step": done}, **log.position(), "text_states_cached": text.cached}


def diffusion_loss(network: torch.nn.Module, schedule: DDPMScheduler, batch: "Batch", text: Tensor) -> Tensor:
    """Stable Diffusion's loss: the error of the predicted noise (Ho et al. 2020) or velocity (Salimans and Ho 2022)."""
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timestep)
    predicted = network(noisy, batch.timestep, encoder_hidden_states=text).sample
    velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(batch.latents, batch.noise, batch.timestep) if velocity else batch.noise
    return functional.mse_loss(predicted.float(), target)


def learning_rate(step: int, c: Choices) -> float:
    """Linear warm-up, then constant or half a cosine down to zero; a function of the step, so no state."""
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    if c.schedule == "constant":
        return c.lr
    return c.lr * (1 + math.cos(math.pi * (step - c.warmup) / max(c.steps - c.warmup, 1))) / 2


# -------------------------------------------------------------------------------------------------------- captions


@dataclass(frozen=True)
class Captions:
    """Distinct triplets per image as numbers: image (position in the box table) and triplet, ascending.

    A triplet's number is (subject · categories + object) · 14 + relation, all of them positions.
    """

    image: Int32[np.ndarray, "caption"]
    triplet: Int32[np.ndarray, "caption"]
    names: list[str]
    template: str

    def __len__(self) -> int:
        return len(self.image)

    @property
    def relation(self) -> Int32[np.ndarray, "caption"]:
        return self.triplet % len(NAMES)

    def rows(self, keep: Bool[np.ndarray, "caption"]) -> "Captions":
        return Captions(self.image[keep], self.triplet[keep], self.names, self.template)

    def without(self, unseen: Sequence[str]) -> "Captions":
        """Those that name none of the categories.

        Raises:
            ValueError: an unknown category, or nothing is left.
        """
        if unknown := sorted(set(unseen) - set(self.names)):
            raise ValueError(f"unseen: the annotations have no category {unknown[0]!r}")
        held = np.isin(self.names, list(unseen))
        subject, object = np.divmod(self.triplet // len(NAMES), len(self.names))
        return self.rows(~(held[subject] | held[object]))

    def of_images(self, usable: Bool[np.ndarray, "image"]) -> "Captions":
        """Those of usable photos.

        Raises:
            ValueError: nothing is left.
        """
        left = self.rows(usable[self.image])
        if not len(left):
            raise ValueError(
                "fine-tuning: no caption is left to train on; check annotations, crop and unseen categories"
            )
        return left

    def text(self, triplet: int) -> str:
        pair, relation = divmod(int(triplet), len(NAMES))
        subject, object = divmod(pair, len(self.names))
        return caption(self.names[subject], NAMES[relation], self.names[object], self.template)


def training_captions(table: BoxTable, c: Choices) -> Captions:
    """Every caption that is true of a table's images; nothing is written or sampled yet. 8 bytes a caption."""
    images, triplets = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for groups, counts in dataset.count_pairs(table, c.rules) if len(table) else ():
        image, subject, object = groups.T.astype(np.int32)
        counts[(subject == object) & (not c.same_category)] = 0
        group, relation = np.nonzero(counts)
        images.append(image[group])
        triplets.append(((subject * len(table.names) + object) * len(NAMES))[group] + relation.astype(np.int32))
    return Captions(np.concatenate(images), np.concatenate(triplets), table.names, c.template)


def crop_changes(before: Captions, after: Captions) -> dict[str, int]:
    """How many captions the crop makes untrue (an object is gone, or what is left of it lies otherwise) and newly true."""
    kinds = len(before.names) ** 2 * len(NAMES)
    keys = [one.image.astype(np.int64) * kinds + one.triplet for one in (before, after)]
    common = len(np.intersect1d(*keys, assume_unique=True))
    return {
        "before": len(before),
        "after": len(after),
        "dropped": len(before) - common,
        "new": len(after) - common,
        "distinct": len(np.unique(after.triplet)),
    }


# --------------------------------------------------------------------------------------------------------- latents


@dataclass(frozen=True)
class Encoded:
    """The VAE's posterior of every photo, memory-mapped. Mean *and* deviation are kept, since Stable Diffusion's training
    draws a new sample of a photo each time it sees it; float16 is far finer than that deviation."""

    shards: list[np.ndarray]  # each float16 (photo, 2, channel, h, w)
    row: Int64[np.ndarray, "image"]  # of a table's image in the shards; -1 where it has none
    usable: Bool[np.ndarray, "image"]
    report: dict[str, Any]

    def __getitem__(self, image: int) -> Float32[np.ndarray, "2 channel h w"]:
        shard, place = divmod(int(self.row[image]), SHARD)
        return self.shards[shard][place].astype(np.float32)

    def check(self, max_unusable: float) -> None:
        """Raises ValueError where more photos than allowed could not be used."""
        n, bad = self.report["photos"], self.report["unusable"]
        if bad > max_unusable * n:
            raise ValueError(
                f"{bad:,} of {n:,} photos cannot be used, more than max_unusable={max_unusable:.2%}; the first: "
                + "; ".join(self.report["problems"][:3])
            )


def encode_photos(
    store: Path,
    source: Photos,
    cropped: BoxTable,
    table: BoxTable,
    images: Int64[np.ndarray, "photo"],
    pipeline: Any,
    accelerator: Accelerator,
) -> Encoded:
    """The photos of a table's images through crop and VAE, in files of ``SHARD`` photos that are made once.

    Their folder is named after what they depend on: crop, resolution, VAE, and the photos' names and sizes. The processes
    share the files among them; a file appears whole, so an interrupted run goes on with the next.
    """
    if not len(images):
        raise ValueError("fine-tuning: no image has a caption after the crop; check annotations and resolution")
    resolution = int(cropped.width[0])
    names = table.file_name.take(images).to_pylist()
    sizes = list(zip(table.width[images].tolist(), table.height[images].tolist(), strict=True))
    vae = pipeline.vae
    key = runs._hash([CROP, resolution, SHARD, weights_hash(vae), source.sizes(names), sizes])
    folder = store / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(images), SHARD)
    todo = [i for i in range(len(starts)) if not (folder / f"{i:05}.npy").is_file()]
    accelerator.wait_for_everyone()  # everyone has looked before anyone writes
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(mine, "encoding photos", unit="shard", disable=not accelerator.is_main_process or not mine)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
        for i in bar:
            part = slice(starts[i], starts[i] + SHARD)
            shard, notes = _encode(vae, source, names[part], sizes[part], resolution, readers)
            runs.write_json(folder / f"{i:05}.json", notes)
            with runs.atomic(folder / f"{i:05}.npy") as partial, partial.open("wb") as file:
                np.save(file, shard)
    accelerator.wait_for_everyone()
    notes = [json.loads((folder / f"{i:05}.json").read_text(encoding="utf-8")) for i in range(len(starts))]
    broken = np.array(
        [int(i) * SHARD + place for i, note in enumerate(notes) for place in map(int, note["problems"])], int
    )
    usable, row = np.zeros(len(table.image_id), bool), np.full(len(table.image_id), -1)
    usable[images], row[images] = True, np.arange(len(images))
    usable[images[broken]] = False
    met = {kind for note in notes for kind in note["met"]}
    report = {
        "photos": len(images),
        "unusable": len(broken),
        "problems": [text for note in notes for text in note["problems"].values()][:20],
        **{kind: sum(note["met"].get(kind, 0) for note in notes) for kind in sorted(met)},
    }
    return Encoded([np.load(folder / f"{i:05}.npy", mmap_mode="r") for i in range(len(starts))], row, usable, report)


def _encode(
    vae: Any,
    source: Photos,
    names: list[str],
    sizes: list[tuple[float, float]],
    resolution: int,
    readers: ThreadPoolExecutor,
) -> tuple[np.ndarray, dict[str, Any]]:
    """One shard, and what was met: problems by place, and kinds of photos."""

    def read(name: str, size: tuple[float, float]) -> np.ndarray | str:
        try:
            return crop_photo(source.read(name, size), resolution)
        except PhotoError as error:
            return str(error)

    source.counts.clear()
    found = list(readers.map(read, names, sizes))
    grey = np.full((resolution, resolution, 3), 127, np.uint8)  # in a broken photo's place, never trained on
    pixels = np.stack([grey if isinstance(photo, str) else photo for photo in found])
    made = []
    for start in range(0, len(pixels), ENCODED):
        batch = torch.from_numpy(pixels[start : start + ENCODED]).to(vae.device)
        with torch.inference_mode():
            posterior = vae.encode(batch.permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1).latent_dist
            made.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu().numpy())
    shard = np.concatenate(made)
    if not np.isfinite(shard).all():
        raise ValueError("the VAE's latents are not finite in float16; is its weight file damaged?")
    problems = {str(place): photo for place, photo in enumerate(found) if isinstance(photo, str)}
    return shard, {"problems": problems, "met": dict(source.counts)}


def weights_hash(module: torch.nn.Module) -> str:
    """A hash of a model's weights, whatever file they came from."""
    state = {
        name: value.detach().cpu().contiguous().view(torch.uint8).numpy() for name, value in module.state_dict().items()
    }
    return runs._hash({name: hashlib.sha256(value).hexdigest() for name, value in state.items()})


# --------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """What a process sees in a step: latents and noise (n, channel, h, w), timesteps (n) and the captions' numbers (n)."""

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    caption: Int64[np.ndarray, "n"]

    def split(self, size: int) -> list["Batch"]:
        starts = range(0, len(self.caption), size)
        return [
            Batch(*(part[i : i + size] for part in (self.latents, self.noise, self.timestep, self.caption)))
            for i in starts
        ]

    def to(self, device: torch.device) -> "Batch":
        moved = [part.to(device, non_blocking=True) for part in (self.latents, self.noise, self.timestep)]
        return Batch(*moved, self.caption)


class Batches:
    """``batches(step, share)``: the samples in some places of a step's batch. ``texts`` are the captions by number; 0 is empty."""

    def __init__(self, captions: Captions, encoded: Encoded, pipeline: Any, c: Choices) -> None:
        self.captions, self.encoded, self.c = captions, encoded, c
        self.draw = dataset.sampler(captions.relation, c.balanced)
        triplets, self.number = np.unique(captions.triplet, return_inverse=True)
        self.texts = ["", *map(captions.text, triplets)]
        models.check_words(pipeline.tokenizer, self.texts[1:])
        config = pipeline.vae.config
        self.scale, self.shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
        self.timesteps = pipeline.scheduler.config.num_train_timesteps

    def __call__(self, step: int, share: range) -> Batch:
        rows = self.draw(self.c.batch, np.random.default_rng([self.c.seed, step]))[share.start : share.stop]
        latents, noise, timesteps, numbers = [], [], [], []
        for place, row in zip(share, rows, strict=True):
            # place + 1: numpy pads with zeros, so that [seed, step, 0] would be the generator above
            rng = np.random.default_rng([self.c.seed, step, place + 1])
            timesteps.append(rng.integers(self.timesteps))
            numbers.append(0 if rng.random() < self.c.caption_dropout else self.number[row] + 1)
            mean, deviation = self.encoded[self.captions.image[row]]
            epsilon, one = rng.standard_normal((2, *mean.shape), np.float32)
            latents.append((mean + deviation * epsilon - self.shift) * self.scale)
            noise.append(one)
        tensors = (torch.from_numpy(np.stack(part)) for part in (latents, noise))
        return Batch(*tensors, torch.tensor(timesteps), np.array(numbers))


def _ahead(make: Callable[[int], Batch], steps: range) -> Iterator[tuple[int, Batch]]:
    """Each step with its batch, made while the step before is at work."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(make, steps.start) if steps else None
        for step in steps:
            batch, waiting = waiting.result(), pool.submit(make, step + 1) if step + 1 < steps.stop else None
            yield step, batch


class Text:
    """``text(numbers)``: the text encoder's states of captions, as the pipeline itself makes them for generation.

    Captions repeat, so their states are computed once where all of them fit into ``text_cache_mb``: whole-word miniatures do.
    For CLIP at full size they do not (60,000 captions take 7 GB), and encoding costs next to nothing beside the UNet.
    """

    def __init__(self, pipeline: Any, texts: list[str], c: Choices) -> None:
        self.pipeline, self.texts = pipeline, texts
        pipeline.text_encoder.to(models.DTYPES[c.precision])
        one = self._encode([""])
        self.cached = one.nbytes * len(texts) <= c.text_cache_mb << 20
        if self.cached:
            groups = [texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS)]
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


# ------------------------------------------------------------------------------------------------------ what learns


def trainable(unet: Any, c: Choices) -> dict[str, torch.nn.Parameter]:
    """The float32 weights that learn, by name: all of the UNet's, or LoRA's.

    Raises:
        ImportError: LoRA is asked for, and peft is not installed.
    """
    if c.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if c.channels_last:
        unet.to(memory_format=torch.channels_last)
    if c.lora_rank:
        try:
            from peft import LoraConfig
        except ImportError:
            raise ImportError(
                "lora_rank: low-rank training needs peft; `pip install peft`, or set lora_rank to 0"
            ) from None
        unet.requires_grad_(False)
        torch.manual_seed(c.seed)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(
            LoraConfig(r=c.lora_rank, lora_alpha=c.lora_rank, init_lora_weights="gaussian", target_modules=targets)
        )
    return {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}


def merged(unet: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a plain UNet with the given weights in place of those that learn; low-rank updates are added in."""
    if not getattr(unet, "peft_config", None):
        return {**unet.state_dict(), **{name: weight.detach() for name, weight in weights.items()}}
    plain = copy.deepcopy(unet)
    plain.load_state_dict(dict(weights), strict=False)
    plain.fuse_lora()
    plain.unload_lora()
    return plain.state_dict()


def save_unet(folder: Path, unet: Any, state: Mapping[str, Tensor], step: int, accelerator: Accelerator) -> None:
    """A folder that diffusers loads as a UNet. Its one weight file is replaced whole, so there is always a good one."""
    if not accelerator.is_main_process:
        return
    config = {name: value for name, value in json.loads(unet.to_json_string()).items() if name != "_name_or_path"}
    runs.write_json(folder / "config.json", config)
    with runs.atomic(folder / WEIGHTS) as partial:
        save_file(_plain(state), partial, metadata={"format": "pt", "step": str(step)})


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _optimiser(weights: list[torch.nn.Parameter], c: Choices) -> torch.optim.Optimizer:
    if not c.adam_8bit:
        return torch.optim.AdamW(weights, lr=c.lr, weight_decay=c.weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ImportError(
            "adam_8bit needs bitsandbytes; `pip install bitsandbytes`, or set adam_8bit to false"
        ) from None
    return AdamW8bit(weights, lr=c.lr, weight_decay=c.weight_decay)


# ----------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(
    folder: Path,
    trained: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    optimiser: torch.optim.Optimizer,
    position: dict[str, Any],
    c: Choices,
    accelerator: Accelerator,
) -> str:
    """Write all that the run needs to go on, under a temporary name until it is whole; drop old ones. Returns its path."""
    final = folder / "checkpoints" / f"step-{position['step']:08}"
    if accelerator.is_main_process:
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_plain(trained), partial / "weights.safetensors")
        if ema is not None:
            save_file(_plain(ema), partial / "ema.safetensors")
        tensors, numbers = {}, {}
        for i, values in optimiser.state_dict()["state"].items():
            for name, value in values.items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{i}.{name}"] = value
        save_file(_plain(tensors), partial / "optimiser.safetensors")
        runs.write_json(partial / "state.json", {**position, "optimiser": numbers})
        for path in (*partial.iterdir(), partial):
            _sync(path)
        partial.rename(final)
        _sync(final.parent)
        for old in sorted(final.parent.glob("step-*"))[: -c.keep_checkpoints]:
            shutil.rmtree(old)
    return str(final)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _restore(
    path: Path, trained: Mapping[str, Tensor], ema: Mapping[str, Tensor] | None, optimiser: torch.optim.Optimizer
) -> None:
    """Bring weights, average and optimiser to where a checkpoint has them."""
    for name, into in (("weights", trained), ("ema", ema)):
        saved = load_file(path / f"{name}.safetensors") if into is not None else {}
        with torch.no_grad():
            for key, value in saved.items():
                into[key].copy_(value)
    saved = {**load_file(path / "optimiser.safetensors"), **runs.read_json(path / "state.json")["optimiser"]}
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        i, _, name = key.partition(".")
        state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    for weight, values in optimiser.state.items():
        for name, value in values.items():  # fused AdamW reads memory in order: same layout as the weight's
            if isinstance(value, Tensor) and value.shape == weight.shape:
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _key(
    c: Choices, table: BoxTable, unseen: Sequence[str], files: dict[str, str], asked: pd.DataFrame | None, judging: Any
) -> dict[str, Any]:
    """What the run's weights depend on, by name: two runs that agree in it are one run."""
    names = [name for name in c.__struct_fields__ if name not in FREE]
    if c.schedule == "constant":
        names.remove("steps")  # a finished run may be made longer
    columns = [getattr(table, name) for name in ("image_id", "image", "category", "x", "y", "w", "h")]
    return {
        **{name: getattr(c, name) for name in names},
        "unseen": sorted(unseen),
        "model": runs._hash(files),
        "annotations": runs._hash([hashlib.sha256(column.tobytes()).hexdigest() for column in columns]),
        "validation": runs._hash([asked.to_dict("list"), judging[2]["files"]])
        if judging and asked is not None
        else None,
    }


def _resume(folder: Path, key: dict[str, Any], c: Choices, accelerator: Accelerator) -> dict[str, Any]:
    """The state of the newest checkpoint with its path, ``{"result": ...}`` of a finished run, or {} to start."""
    found = [_look(folder, key, c) if accelerator.is_main_process else None]
    broadcast_object_list(found)
    return found[0]


def _look(folder: Path, key: dict[str, Any], c: Choices) -> dict[str, Any]:
    key = json.loads(json.dumps(key))
    for partial in folder.glob("checkpoints/.*.partial"):
        shutil.rmtree(partial)
    newest = max(folder.glob("checkpoints/step-*"), default=None)
    state = runs.read_json(newest / "state.json") if newest else None
    finished = runs.read_json(folder / "result.json")
    if not (held := finished or state):
        return {}
    different = [name for name in key if held["key"].get(name) != key[name]]
    if held["step"] > c.steps:
        different.append("steps")
    if finished and not different and held["step"] == c.steps:
        if held["code"] == runs.code_digest("finetune"):
            return {"result": finished["result"]}
        different.append("the code")  # of a finished run: an interrupted one may go on with better code
    if different:
        aside = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        _say(f"{folder.name}: made with other {', '.join(different)}; starting afresh, the old run is now {aside.name}")
        return {}
    (folder / "result.json").unlink(missing_ok=True)
    _say(f"{folder.name}: going on from step {state['step']:,}")
    return {**state, "checkpoint": str(newest)}


def _finish(folder: Path, key: dict[str, Any], result: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    result = json.loads(json.dumps(result))
    if accelerator.is_main_process:
        done = {"key": key, "step": result["choices"]["steps"], "code": runs.code_digest("finetune"), "result": result}
        runs.write_json(folder / "result.json", done)
    accelerator.wait_for_everyone()
    return result


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- validation, log

Judge = Callable[[Mapping[str, Tensor]], dict[str, Any]]  # a UNet's weights -> OA, VISOR, VISOR_Cond and their counts


def validation_prompts(path: str | Path, unseen: Sequence[str], c: Choices) -> pd.DataFrame:
    """The prompts that choose among checkpoints: of the split "validation", both objects seen, as many of each relation.

    Raises:
        ValueError: there are none.
    """
    table = pd.read_parquet(path)
    table = table[(table.split == "validation") & ~table.subject.isin(unseen) & ~table.object.isin(unseen)]
    if not len(table):
        raise ValueError(f"{path}: no validation prompt whose objects are both seen; write more in notebook 02")
    shuffled = table.sample(frac=1, random_state=c.seed)
    each = max(c.validation_prompts // table.relation.nunique(), 1)
    return shuffled.groupby("relation").head(each).sort_values("prompt_id", ignore_index=True)


def _judge(
    pipeline: Any, judging: tuple[Any, Any, Any], asked: pd.DataFrame, c: Choices, accelerator: Accelerator
) -> Judge:
    """Validation: the processes share the prompts; generation, detection and scores are those of the evaluation."""
    detector, processor, _ = judging
    try:
        sampling = msgspec.convert(c.sampling, generate.Sampling)
    except msgspec.ValidationError as error:
        raise ValueError(f"fine-tuning: sampling: {error}") from None
    pipeline.vae.to(models.DTYPES[c.precision])
    mine = asked.iloc[accelerator.process_index :: accelerator.num_processes]
    names = dict(zip(asked.prompt_id, zip(asked.subject, asked.object, strict=True), strict=True))

    def judge(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        pipeline.unet.load_state_dict(weights)
        pipeline.unet.eval()
        total, quiet = len(mine) * sampling.images, not accelerator.is_main_process
        made = list(tqdm(generate.sample(pipeline, mine, sampling), "validation", total, leave=False, disable=quiet))
        ids, numbers, pictures = (list(part) for part in zip(*made, strict=True)) if made else ([], [], [])
        found = detect.detect(detector, processor, pictures, [names[id] for id in ids], floor=c.threshold)
        at = found.image.to_numpy(int)
        found = found.assign(prompt_id=np.array(ids, int)[at], image_index=np.array(numbers, int)[at])
        found = pd.concat(gather_object([found]), ignore_index=True)
        records = visor.verdicts(asked, found, images=sampling.images, threshold=c.threshold, rules=c.rules)
        scores = visor.scores(records, resamples=0).query("relation == 'all'").set_index("metric").value
        values = {
            name: None if np.isnan(scores[name]) else float(scores[name]) for name in ("OA", "VISOR", "VISOR_Cond")
        }
        return {**values, "images": len(records), "both_found": int(records.both_found.sum())}

    return judge


def _rank(scores: dict[str, Any], start: dict[str, Any] | None, c: Choices) -> tuple[bool, float]:
    """Better is higher: first, both objects are found nearly as often as at the start; then VISOR_Cond. Without the floor, a
    model that draws two objects three times and puts them right would be the best there is."""
    floor = c.oa_floor * start["OA"] if start else 0.0
    return scores["OA"] >= floor, -1.0 if scores["VISOR_Cond"] is None else scores["VISOR_Cond"]


class Log:
    """``log.jsonl``, the bar on stderr and TensorBoard. Opened at a checkpoint, it forgets what came after."""

    def __init__(
        self, path: Path, state: dict[str, Any], speed_of_light: float | None, c: Choices, accelerator: Accelerator
    ) -> None:
        self.c, self.accelerator, self.speed_of_light = c, accelerator, speed_of_light
        self.done = state.get("step", 0)
        self.kept = {name: state.get(name) for name in ("loss_first", "loss_last", "images_per_s")}
        self.seconds, self.others = state.get("seconds", 0.0), state.get("other_seconds", 0.0)
        self.sums = torch.zeros(2, device=accelerator.device)  # of loss and gradient norm since the last line
        self.since = self.done
        main = accelerator.is_main_process
        self.file = _cut(path, self.done if state else -1) if main else None
        self.bar = tqdm(total=c.steps, initial=self.done, desc="fine-tuning", unit="step", disable=not main)
        if c.tensorboard:
            accelerator.init_trackers("sr4g")
        self.clock = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.sums[0] += loss.detach()

    def add_norm(self, norm: Tensor) -> None:
        self.sums[1] += norm.detach()

    def line(self, done: int, lr: float, good: str | None) -> None:
        """The mean loss since the last line, over all processes.

        Raises:
            FloatingPointError: it is not finite.
        """
        steps, now = done - self.since, time.perf_counter()
        loss, norm = (self.accelerator.reduce(self.sums, "mean") / steps).tolist()
        self.seconds += now - self.clock
        speed = steps * self.c.batch / (now - self.clock)
        self.clock, self.since = now, done
        self.sums.zero_()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {done:,}: the loss is {loss}, its gradient {norm}; the last good checkpoint is {good or 'none yet'}. "
                "Try a lower lr, a longer warmup, or precision: float32"
            )
        self.kept["loss_first"] = self.kept["loss_first"] or loss
        self.kept |= {"loss_last": loss, "images_per_s": done * self.c.batch / self.seconds}
        eta = (self.seconds + self.others) / done * (self.c.steps - done)
        mfu = speed / self.accelerator.num_processes / self.speed_of_light if self.speed_of_light else None
        values = {"loss": loss, "lr": lr, "grad_norm": norm, "images_per_s": speed, "mfu": mfu, "eta_s": eta}
        self._write(done, {name: value for name, value in values.items() if value is not None})
        shown = {
            "loss": f"{loss:.4f}",
            "lr": f"{lr:.1e}",
            "img/s": f"{speed:.1f}",
            "ETA": f"{timedelta(seconds=int(eta))}",
        }
        self.bar.set_postfix(shown | ({"MFU": f"{mfu:.0%}"} if mfu else {}), refresh=False)
        self.bar.update(done - self.bar.n)

    def validation(self, done: int, scores: dict[str, Any]) -> dict[str, Any]:
        self._write(done, scores)
        parts = (
            f"{name} {'–' if scores[name] is None else format(scores[name], '.1f')}"
            for name in ("OA", "VISOR", "VISOR_Cond")
        )
        self.bar.write(f"validation at step {done:,}: {', '.join(parts)} ({scores['images']} images)", file=sys.stderr)
        self.resume_clock()
        return {"step": done, **scores}

    def resume_clock(self) -> None:
        """What went by since the last line was not training."""
        now = time.perf_counter()
        self.others, self.clock = self.others + now - self.clock, now

    def position(self) -> dict[str, Any]:
        return {**self.kept, "seconds": self.seconds, "other_seconds": self.others}

    def _write(self, done: int, values: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps({"step": done, **values}) + "\n")
            self.file.flush()
        if self.c.tensorboard:
            self.accelerator.log({name: value for name, value in values.items() if value is not None}, step=done)

    def close(self) -> None:
        self.bar.close()
        self.accelerator.end_training()
        if self.file:
            self.file.close()


def _cut(path: Path, last: int) -> TextIO:
    """A log opened for more lines after those up to a step; a line torn by a kill goes, too."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= last:
                lines.append(line + "\n")
    runs.write_text(path, "".join(lines))
    return path.open("a", encoding="utf-8")


def read_log(folder: str | Path) -> pd.DataFrame:
    """A run's log: rows with loss, lr, grad_norm, images_per_s, eta_s and perhaps mfu, and rows with the scores of a validation."""
    return pd.read_json(Path(folder) / "log.jsonl", lines=True)


# ------------------------------------------------------------------------------------------------------- the engine


def _accelerator(c: Choices, folder: Path) -> Accelerator:
    if c.tensorboard and find_spec("tensorboard") is None:
        raise ImportError("tensorboard: it is not installed; `pip install tensorboard`, or set tensorboard to false")
    accelerator = Accelerator(
        mixed_precision="bf16" if c.precision == "bfloat16" else "no",
        log_with="tensorboard" if c.tensorboard else None,
        project_dir=folder,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"accelerate: {accelerator.distributed_type} splits the weights; a UNet fits whole, so use plain DDP"
        )
    _share(c, accelerator)
    return accelerator


def _share(c: Choices, accelerator: Accelerator) -> range:
    """This process's places in the batch.

    Raises:
        ValueError: batch, processes and micro_batch do not divide.
    """
    n = accelerator.num_processes
    each, rest = divmod(c.batch, n)
    if rest:
        raise ValueError(f"batch: {c.batch} does not divide by {n} processes; change either")
    if c.micro_batch and (c.micro_batch < 1 or each % c.micro_batch):
        raise ValueError(f"micro_batch: {c.micro_batch} does not divide a process's {each} of the batch of {c.batch}")
    return range(accelerator.process_index * each, (accelerator.process_index + 1) * each)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _check_model(pipeline: Any, record: dict[str, Any], c: Choices) -> int:
    """The resolution to train at, of a model that this loop can train."""
    unet, name = getattr(pipeline, "unet", None), record["id"]
    if not isinstance(unet, UNet2DConditionModel) or unet.config.addition_embed_type or unet.config.class_embed_type:
        raise ValueError(
            f"model: {name} is a {record['class']}; fine-tuning takes Stable Diffusion 1 or 2 (one UNet, one text encoder)"
        )
    if unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise ValueError(
            f"model: {name} takes {unet.config.in_channels} channels, not the VAE's {pipeline.vae.config.latent_channels}"
        )
    if (kind := pipeline.scheduler.config.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction"):
        raise ValueError(f"model: {name} predicts {kind!r}; the loss knows epsilon and v_prediction")
    resolution = c.resolution or record["resolution"][0]
    if resolution % pipeline.vae_scale_factor:
        raise ValueError(f"resolution: {resolution} is no multiple of {pipeline.vae_scale_factor}, the VAE's factor")
    return resolution


def _images_per_second_at_peak(unet: Any, batches: Batches, text: Text, c: Choices) -> float | None:
    """What the device could train at its data sheet's speed; None where that is not known. MFU is measured against it.

    Operations are counted on one forward pass; the backward pass takes twice as many.
    """
    if unet.device.type != "cuda" or c.precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(unet.device)
    if not (peak := next((peak for known, peak in PEAKS.items() if known in name), None)):
        return None
    batch = batches(0, range(1)).to(unet.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(batch.latents, batch.timestep, encoder_hidden_states=text(batch.caption).to(unet.dtype))
    return peak / (3 * counter.get_total_flops())


# ------------------------------------------------------------------------------------------------------ the stage


def stage(run: runs.Run, split: str, parameters: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The artifact ``finetune_{split}`` from the parameters of notebook 03, for the notebook and the command line alike.

    Under ``accelerate launch`` the main process calls this, and the others :func:`follow`.
    """
    annotations = run.annotations(parameters["train_annotations"], "train")
    source = run.photos(parameters["train_photos"], "train", annotations)
    held = (
        dataset.unseen_categories(boxes.read(annotations).categories, parameters["unseen"]) if split == "unseen" else []
    )
    begun = False

    @wraps(finetune)
    def lead(path: Path, **arguments: Any) -> dict[str, Any]:
        nonlocal begun
        begun = True
        broadcast_object_list([{"folder": path, **arguments}])
        return finetune(path, **arguments)

    made = run.stage(
        f"finetune_{split}",
        lead,
        {"annotations": annotations, "photos": source, "prompts": run.read("prompts.parquet")},
        unseen=held,
        **{name: parameters[name] for name in ("model", "detector", *Choices.__struct_fields__) if name in parameters},
    )
    if not begun:
        broadcast_object_list([None])
    return made


def follow() -> None:
    """What the other processes do while the main one is in :func:`stage`: the same work, if there is any."""
    work: list[dict[str, Any] | None] = [None]
    broadcast_object_list(work)
    if work[0]:
        finetune(**work[0])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m sr4g_utils.finetune",
        description="Fine-tune a Stable Diffusion on captions with spatial relations: the heavy part of notebook 03, alone.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--profile",
        default="miniature",
        metavar="NAME|FILE",
        help="whose section 03_finetuning is used (default: miniature)",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a parameter; may be repeated",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=runs.ROOT / "runs",
        metavar="DIR",
        help="where run folders are (default: runs/ in the checkout)",
    )
    args = parser.parse_args(argv)
    try:
        folder = args.runs.expanduser().resolve() / Path(args.profile).stem
        settings = [text if "." in text.partition("=")[0] else f"03.{text}" for text in args.settings]
        profile = runs.load_profile(args.profile, settings, folder)
        if NOTEBOOK not in profile:
            raise ValueError(f"the profile {args.profile} has no section {NOTEBOOK}")
        os.chdir(runs.NOTEBOOKS)  # the notebook's own defaults are paths seen from there
        parameters = {name: value for name, (_, value) in runs.declared(NOTEBOOK).items()} | profile[NOTEBOOK]
        state = PartialState(timeout=TIMEOUT)
        for split in parameters["splits"]:
            if not state.is_main_process:
                follow()
                continue
            path, result = stage(runs.Run(folder, "finetune"), split, parameters)
            print(f"{path}: best at step {result['best']['step']:,} of {result['choices']['steps']:,}")
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
