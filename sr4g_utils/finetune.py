"""Fine-tuning of a Stable Diffusion's UNet on captions with spatial relations (paper, section 4).

The loss is Stable Diffusion's own: the mean squared error of the predicted noise, or of the velocity, as the model's
scheduler says. VAE and text encoder stay frozen. One loop for a laptop and for ``accelerate launch`` on many GPUs:

    python -m sr4g_utils.finetune --profile paper                                     one GPU
    accelerate launch --num_processes 8 -m sr4g_utils.finetune --profile paper        eight
    python -m sr4g_utils.finetune                                                     the miniature, on a laptop

What a step sees is a function of seed, step and place in the batch (:mod:`sr4g_utils.samples`), and the learning rate
one of the step. So a checkpoint needs no random state, sampler or schedule beside the step: weights, their average and
the optimiser are all there is. It is a folder that appears whole or not at all; a run that is killed goes on from the
last one and ends with the weights of a run that was not, bit for bit on the CPU.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from . import boxes, dataset, detect, generate, models, runs, visor
from .boxes import BoxTable
from .photos import Photos, crop_table
from .samples import Batch, Batches, Captions, Encoded, Text, ahead, crop_changes, encode_photos, true_captions

NOTEBOOK = "03_finetuning"
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
  python -m sr4g_utils.finetune --profile paper --set 'splits=[main]' --set micro_batch=8

The result is in RUNS/PROFILE/artifacts/finetune_SPLIT, where notebook 03 finds it and does not train again. The prompts
come from notebook 02: run `run_all.py --profile PROFILE --until 02` first. Killed at any moment, the same command goes
on. Boxes and photos are those of the profile; the captions are judged here, after the crop.
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
    micro_batch: int | None = None  # pictures at once per process, at most; None: its whole share of the batch
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
    pairs: Literal["any", "best"] = "any"  # of boxes, as in visor.verdicts
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


# What may change from one start of a run to the next: it alters neither the weights nor the choice among them.
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
        folder: gets ``log.jsonl`` (a line per ``log_every`` steps and per validation), ``checkpoints/`` and, as UNet
            folders that ``models.load_pipeline(unet=...)`` takes, ``best/`` and ``last/``. What another configuration
            left there is moved to ``<folder>.before``.
        annotations: a box table's source, see :func:`boxes.read`.
        photos: folder or zip.
        prompts: Parquet of :func:`dataset.write_prompts`; see :func:`validation_prompts`. Without it, or without a
            detector, nothing is validated and the last weights are the best.
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
    judging = None
    if prompts and detector and c.validate_every:
        judging = validation_prompts(prompts, unseen, c), *models.load_detector(detector, device=accelerator.device)
    key = _key(c, table, unseen, record["files"], judging)
    state = _resume(folder, key, accelerator)
    if "result" in state:
        return state["result"]

    cropped = crop_table(table, resolution, c.min_kept)
    every, uncropped = (true_captions(one, c.rules, c.template, c.same_category) for one in (cropped, table))
    store, images = Path(latents or folder.parent / "latents"), np.unique(every.image)
    encoded = encode_photos(store, Photos(photos), table, images, pipeline.vae, resolution, accelerator)
    encoded.check(c.max_unusable)
    captions = every.without(unseen).of_images(encoded.usable)
    judge = _judge(pipeline, *judging[:3], c, accelerator) if judging else None
    trained = _train(folder, state, key, pipeline, captions, encoded, judge, c, accelerator)
    result = {
        "captions": crop_changes(uncropped.without(unseen), every.without(unseen)),
        "boxes": {"annotated": len(table), "used": len(cropped), **cropped.excluded},
        "photos": encoded.report,
        **trained,
        "processes": accelerator.num_processes,
        "resolution": resolution,
        "unseen": list(unseen),
        "model": record,
        "choices": msgspec.to_builtins(c),
    }
    return _finish(folder, key, result, accelerator)


def _train(
    folder: Path,
    state: dict[str, Any],
    key: dict[str, Any],
    pipeline: Any,
    captions: Captions,
    encoded: Encoded,
    judge: "Judge | None",
    c: Choices,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The loop. ``state`` is empty, or that of the checkpoint to go on from."""
    share = _share(c, accelerator.num_processes, accelerator.process_index)
    batches = Batches(
        captions, encoded, pipeline, size=c.batch, dropout=c.caption_dropout, seed=c.seed, balanced=c.balanced
    )
    _cast(pipeline.text_encoder, c)
    text = Text(pipeline, batches.texts, c.text_cache_mb, draws=c.steps * c.batch)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)

    # `unet` holds the float32 weights that learn; `network` is the same, wrapped for precision, speed and processes
    unet, pipeline.unet = pipeline.unet, _cast(copy.deepcopy(pipeline.unet), c) if judge else None
    trained = trainable(unet, c)
    optimiser = _optimiser(list(trained.values()), c)
    ema = {name: weight.detach().clone() for name, weight in trained.items()} if c.ema else None
    if state:
        _restore(Path(state["checkpoint"]), trained, ema, optimiser)
    speed_of_light = _images_per_second_at_peak(unet, batches, text, c)
    network = accelerator.prepare_model(torch.compile(unet) if c.compile else unet)
    kept = ema or trained

    done, best, start, good = (state.get(name) for name in ("step", "best", "start", "checkpoint"))
    done = done or 0
    log = Log(folder / "log.jsonl", state, speed_of_light, c, accelerator)
    if judge and not state:
        start = log.validation(0, judge(merged(unet, kept)))
    unet.train()
    for step, batch in ahead(lambda step: batches(step, share), range(done, c.steps)):
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
                save_unet(folder / "best", unet, merged(unet, kept), accelerator)
        if save:
            position = {"step": done, "best": best, "start": start, "key": key, **log.position()}
            good = checkpoint(folder, trained, ema, optimiser, position, c, accelerator)
            log.resume_clock()
    save_unet(folder / "last", unet, merged(unet, kept), accelerator)
    if best is None:
        save_unet(folder / "best", unet, merged(unet, kept), accelerator)
    log.close()
    return {"start": start, "best": best or {"step": done}, **log.position(), "text_states_cached": text.cached}


def diffusion_loss(network: Callable[..., Any], schedule: DDPMScheduler, batch: Batch, text: Tensor) -> Tensor:
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


# ------------------------------------------------------------------------------------------------------ what learns


def trainable(unet: Any, c: Choices) -> dict[str, torch.nn.Parameter]:
    """The float32 weights that learn, by name: all of the UNet's, or LoRA's.

    Raises:
        ImportError: LoRA is asked for, and peft is not installed.
    """
    if c.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    # bitsandbytes lays weights out anew, but not what it remembers of them
    last = c.channels_last and not c.adam_8bit
    unet.to(memory_format=torch.channels_last if last else torch.contiguous_format)
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


def save_unet(folder: Path, unet: Any, state: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """A folder that diffusers loads as a UNet. Its one weight file is replaced whole, so there is always a good one."""
    if not accelerator.is_main_process:
        return
    config = {name: value for name, value in json.loads(unet.to_json_string()).items() if name != "_name_or_path"}
    runs.write_json(folder / "config.json", config)
    with runs.atomic(folder / WEIGHTS) as partial:
        _write(state, partial)


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()  # bitsandbytes shares tables among weights; safetensors does not
        plain[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    save_file(plain, path, metadata={"format": "pt"})  # one key: several come in any order
    path.chmod(0o644)  # safetensors keeps its files private; a cluster's users share theirs


def _cast(module: Any, c: Choices) -> Any:
    """A frozen model in the run's precision; by torch's own method, since diffusers' warns of what is not there."""
    return torch.nn.Module.to(module, dtype=models.DTYPES[c.precision])


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
    """Write all that the run needs to go on, under a temporary name until it is whole, and drop old ones. Its path."""
    final = folder / "checkpoints" / f"step-{position['step']:08}"
    if accelerator.is_main_process:
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(trained, partial / "weights.safetensors")
        if ema is not None:
            _write(ema, partial / "ema.safetensors")
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for i, weight in enumerate(trained.values()):  # not `state_dict`, which bitsandbytes nests
            for name, value in optimiser.state[weight].items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{i}.{name}"] = value
        _write(tensors, partial / "optimiser.safetensors")
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
    for file, into in (("weights", trained), ("ema", ema or {})):
        with torch.no_grad():
            for key, value in load_file(path / f"{file}.safetensors").items() if into else ():
                into[key].copy_(value)
    saved = {**load_file(path / "optimiser.safetensors"), **runs.read_json(path / "state.json")["optimiser"]}
    weights = list(trained.values())
    for key, value in saved.items():
        i, _, name = key.partition(".")
        weight = weights[int(i)]
        if isinstance(value, Tensor):
            value = value.to(weight.device)
            if value.shape == weight.shape:  # fused AdamW reads memory in order: same layout as the weight's
                value = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        optimiser.state[weight][name] = value


def _key(c: Choices, table: BoxTable, unseen: Sequence[str], files: dict[str, str], judging: Any) -> dict[str, Any]:
    """What a run depends on, by name: two runs that agree in it are one run."""
    columns = [getattr(table, name) for name in ("image_id", "image", "category", "x", "y", "w", "h")]
    key = {
        **{name: value for name, value in msgspec.to_builtins(c).items() if name not in FREE},
        "unseen": sorted(unseen),
        "model": runs._hash(files),
        "annotations": runs._hash([hashlib.sha256(column.tobytes()).hexdigest() for column in columns]),
        "validation": runs._hash([judging[0].to_dict("list"), judging[3]["files"]]) if judging else None,
    }
    return json.loads(json.dumps(key))


def _resume(folder: Path, key: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """The state of the newest checkpoint with its path, ``{"result": ...}`` of a finished run, or {} to start."""
    found = [_look(folder, key) if accelerator.is_main_process else {}]
    broadcast_object_list(found)
    return found[0]


def _look(folder: Path, key: dict[str, Any]) -> dict[str, Any]:
    for partial in folder.glob("checkpoints/.*.partial"):
        shutil.rmtree(partial)
    newest = max(folder.glob("checkpoints/step-*"), default=folder)
    state = runs.read_json(newest / "state.json") or {}
    finished = runs.read_json(folder / "result.json") or {}
    held = (finished or state).get("key", key)
    if different := [name for name in key if held.get(name) != key[name]]:
        aside = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        _say(f"{folder.name} was made with another {', '.join(different)}: starting afresh; the old one is {aside}")
        return {}
    if finished:
        return {"result": finished["result"]}
    if state:
        _say(f"{folder.name}: going on from step {state['step']:,}")
        return {**state, "checkpoint": str(newest)}
    return {}


def _finish(folder: Path, key: dict[str, Any], result: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    result = json.loads(json.dumps(result))
    if accelerator.is_main_process:
        runs.write_json(folder / "result.json", {"key": key, "result": result})
    accelerator.wait_for_everyone()
    return result


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- validation, log

Judge = Callable[[Mapping[str, Tensor]], dict[str, Any]]  # a UNet's weights -> OA, VISOR, VISOR_Cond and their counts


def validation_prompts(path: str | Path, unseen: Sequence[str], c: Choices) -> pd.DataFrame:
    """The prompts that choose among checkpoints: split "validation", both objects seen, as many of each relation.

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
    pipeline: Any, asked: pd.DataFrame, detector: Any, processor: Any, c: Choices, accelerator: Accelerator
) -> Judge:
    """Validation, by generation, detection and scores of the evaluation itself; the processes share the prompts."""
    sampling = generate.Sampling.of(c.sampling)
    _cast(pipeline.vae, c)
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
        records = visor.verdicts(
            asked, found, images=sampling.images, threshold=c.threshold, pairs=c.pairs, rules=c.rules
        )
        scores = visor.scores(records, resamples=0).query("relation == 'all'").set_index("metric").value
        values = {name: None if np.isnan(scores[name]) else float(scores[name]) for name in SCORES}
        return {**values, "images": len(records), "both_found": int(records.both_found.sum())}

    return judge


def _rank(scores: dict[str, Any], start: dict[str, Any] | None, c: Choices) -> tuple[bool, float]:
    """Higher is better: first, both objects are found nearly as often as at the start; then, VISOR_Cond.

    Without the floor, a model that has all but forgotten to draw two objects, and puts them right by luck, would win.
    """
    floor = c.oa_floor * start["OA"] if start else 0.0
    return scores["OA"] >= floor, -1.0 if scores["VISOR_Cond"] is None else scores["VISOR_Cond"]


SCORES = ("OA", "VISOR", "VISOR_Cond")  # of a validation
LOGGED = ("loss", "lr", "grad_norm", "images_per_s", "eta_s", "mfu", *SCORES, "images", "both_found")


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
                f"step {done:,}: the loss is {loss} and its gradient {norm}. The last good checkpoint is "
                f"{good or 'none yet'}. Try a lower lr, a longer warmup, or precision: float32"
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
        parts = (f"{name} {'–' if scores[name] is None else format(scores[name], '.1f')}" for name in SCORES)
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
        for tracker in self.accelerator.trackers:  # `end_training` would part the processes, which have a split to go
            tracker.finish()
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
    """A run's log: rows with loss, lr, grad_norm, images_per_s, eta_s and mfu, and rows with validation scores."""
    log = pd.read_json(Path(folder) / "log.jsonl", lines=True)
    return log.reindex(columns=dict.fromkeys(["step", *LOGGED, *log.columns]))


# ------------------------------------------------------------------------------------------------------- the engine


def _accelerator(c: Choices, folder: Path) -> Accelerator:
    if c.tensorboard and find_spec("tensorboard") is None:
        raise ImportError("tensorboard: it is not installed; `pip install tensorboard`, or set tensorboard to false")
    accelerator = Accelerator(
        cpu=models.default_device() == "cpu",  # else several processes on a CPU do not find each other
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
    _share(c, accelerator.num_processes, 0)  # an error now, not after the photos are encoded
    return accelerator


def _share(c: Choices, processes: int, process: int) -> range:
    """A process's places in the batch.

    Raises:
        ValueError: batch, processes and micro_batch do not divide.
    """
    each, rest = divmod(c.batch, processes)
    if rest:
        raise ValueError(f"batch: {c.batch} does not divide by {processes} processes; change either")
    if c.micro_batch is not None and (c.micro_batch < 1 or each % min(c.micro_batch, each)):
        raise ValueError(f"micro_batch: {c.micro_batch} does not divide a process's {each} of the batch of {c.batch}")
    return range(process * each, (process + 1) * each)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _check_model(pipeline: Any, record: dict[str, Any], c: Choices) -> int:
    """The resolution to train at, of a model that this loop can train."""
    unet, name = getattr(pipeline, "unet", None), record["id"]
    if not isinstance(unet, UNet2DConditionModel) or unet.config.addition_embed_type or unet.config.class_embed_type:
        raise ValueError(
            f"model: {name} is a {record['class']}; what can be fine-tuned here is Stable Diffusion 1 or 2"
        )
    if unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise ValueError(
            f"model: {name}'s UNet takes {unet.config.in_channels} channels, but its VAE makes "
            f"{pipeline.vae.config.latent_channels}; name a text-to-image model"
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
    """The artifact ``finetune_{split}`` from notebook 03's parameters, for the notebook and the command line alike.

    Under ``accelerate launch`` the main process calls this, and the others :func:`follow`.
    """
    annotations = run.annotations(parameters["train_annotations"], "train")
    source = run.photos(parameters["train_photos"], "train", annotations)
    held = (
        dataset.unseen_categories(boxes.read(annotations).categories, parameters["unseen"]) if split == "unseen" else []
    )
    given = {name: parameters[name] for name in ("model", "detector", *Choices.__struct_fields__)}
    free = {name: given.pop(name) for name in FREE}  # no reason to train again
    begun = False

    @wraps(finetune)
    def lead(path: Path, **arguments: Any) -> dict[str, Any]:
        nonlocal begun
        begun = True
        broadcast_object_list([{"folder": path, **arguments, **free}])
        return finetune(path, **arguments, **free)

    made = run.stage(
        f"finetune_{split}",
        lead,
        {"annotations": annotations, "photos": source, "prompts": run.read("prompts.parquet")},
        heavy=True,
        unseen=held,
        **given,
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
        description="Fine-tune a Stable Diffusion on captions with spatial relations: notebook 03's heavy part, alone.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--profile", default="miniature", metavar="NAME|FILE", help="a profile of data/profiles, or a YAML file")
    add("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change a parameter of it")
    add("--runs", type=Path, default=runs.ROOT / "runs", metavar="DIR", help="where run folders are")
    args = parser.parse_args(argv)
    try:
        folder = args.runs.expanduser().resolve() / Path(args.profile).stem
        settings = [text if "." in text.partition("=")[0] else f"03.{text}" for text in args.settings]
        profile = runs.load_profile(args.profile, settings, folder)
        if NOTEBOOK not in profile:
            raise ValueError(f"the profile {args.profile} has no section {NOTEBOOK}")
        os.chdir(runs.NOTEBOOKS)  # the notebook's own defaults are paths seen from there
        parameters = {name: value for name, (_, value) in runs.declared(NOTEBOOK).items()} | profile[NOTEBOOK]
        state = PartialState(cpu=models.default_device() == "cpu", timeout=TIMEOUT)
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
