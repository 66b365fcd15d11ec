"""The stage: from annotations, photos and a model to a fine-tuned network."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast_object_list

from ..dataset import coco, inputs, triplets
from ..dataset.boxes import BoxTable
from ..dataset.photos import Photos, crop_table
from ..dataset.prompts import validation_prompts
from ..models import detectors
from ..models.load import default_device, load_pipeline
from ..models.source import Source
from ..store import run as store_run
from ..store.files import hash_of
from ..store.run import Run
from . import arms, nets
from .captions import crop_changes, true_captions
from .checkpoints import finish, resume
from .choices import FREE, Choices
from .latents import encode_photos
from .log import accelerator_for
from .loop import Validator, train


def finetune(
    folder: str | Path, annotations: str | Path, photos: str | Path, prompts: str | Path | None = None, *,
    model: Source | Mapping[str, Any] | str, detector: Source | Mapping[str, Any] | str | None = None,
    held_out: Sequence[str] = (), latents: str | Path | None = None, **choices: Any,
) -> dict[str, Any]:  # fmt: skip
    """A stage: fine-tune a model's UNet, or go on where an earlier call was interrupted.

    Args:
        folder: gets ``log.jsonl`` (a line per ``log_every`` steps and per validation), ``checkpoints/`` and, as UNet
            folders that ``models.load_pipeline(unet=...)`` takes, ``best/``, ``last/`` and ``step-N/`` of milestones.
            Output of a different configuration is moved to ``<folder>.before`` (``.before-2``, …); the choices in
            ``FREE`` may change without counting as different. A constant schedule may be prolonged: more steps go on
            from the last checkpoint.
        annotations, photos: a box table's source, see :func:`coco.read`; folder or zip.
        prompts: Parquet of :func:`prompts.write_study_prompts`; see :func:`prompts.validation_prompts`. Without it, or
            without a detector, nothing is validated and the last weights are the best.
        model, detector: see :class:`models.source.Source`; a Stable Diffusion, and what finds objects in validation.
        held_out: categories that no caption may name.
        latents: the folder of encoded photos, shared by runs; by default ``latents`` beside ``folder``.

    Returns:
        A JSON-able record: captions and photos used, loss, validation scores, best step, speed, model, choices.

    Raises:
        ValueError: a choice, file or model does not fit; the message names it.
        FloatingPointError: the loss is NaN or infinite; the message names the last good checkpoint.
    """
    c, folder = Choices.of(choices), Path(folder)
    if c.compile and c.precision == "bfloat16" and default_device() == "cpu":
        wrong = "on a CPU, a UNet that torch 2.13 compiled in bfloat16 gets gradients of 0 in most of its layers"
        raise ValueError(f"compile: {wrong}; use precision: float32, or leave compile out")
    accelerator = accelerator_for(c, folder)
    pipeline, record = load(model, c, accelerator.device)
    net = nets.of(pipeline, record, c)
    table = coco.read(annotations) if c.crowds else coco.read(annotations).without_crowds()
    validator = None
    if prompts and detector and c.validate_every:
        questions = validation_prompts(prompts, held_out, c.validation_prompts, c.seed)
        validator = Validator(net, questions, detectors.load(detector, device=accelerator.device), c, accelerator)
    dosed = arms.dosed_prompts(prompts, c)
    key = _key(c, table, held_out, record["files"], validator, dosed)
    state = resume(folder, key, accelerator)
    if "result" in state:
        return state["result"]

    cropped = crop_table(table, net.resolution, c.min_kept)
    captions, uncropped = (true_captions(boxes, c.rules, c.template, c.same_category) for boxes in (cropped, table))
    store, images = Path(latents or folder.parent / "latents"), np.unique(captions.image)
    encoded = encode_photos(
        store, Photos(photos), table, images, pipeline.vae, net.resolution, accelerator, c.max_unusable
    )
    encoded.check(c.max_unusable)
    captions, uncropped = (arms.narrowed(every.without(held_out), c) for every in (captions, uncropped))
    usable = arms.changed(captions.of_images(encoded.usable), c, dosed)
    result = {
        "captions": crop_changes(uncropped, captions),
        "boxes": {"annotated": len(table), "used": len(cropped), **cropped.excluded},
        "photos": encoded.report,
        **train(folder, key, state, net, usable, encoded, validator, c, accelerator),
        "processes": accelerator.num_processes,
        "resolution": net.resolution,
        "held_out": list(held_out),
        "model": record,
        "choices": msgspec.to_builtins(c),
    }
    return finish(folder, key, result, accelerator)


def load(
    model: Source | Mapping[str, Any] | str, c: Choices, device: torch.device | None = None
) -> tuple[Any, dict[str, Any]]:
    """A pipeline as it is fine-tuned: in float32, but for a frozen base, whose VAE alone is; and its record."""
    frozen = c.lora_rank and (c.lora_base or c.precision)
    return load_pipeline(model, frozen or "float32", device, vae_dtype="float32")


def _key(
    c: Choices, table: BoxTable, held_out: Sequence[str], model: Mapping[str, str], validator: Validator | None,
    dosed: pd.DataFrame | None,
) -> dict[str, Any]:  # fmt: skip
    """What a run depends on, by name: two runs that agree in it are one run."""
    validation = [validator.prompts.to_dict("list"), validator.detector.record["files"]] if validator else None
    columns = [getattr(table, name) for name in ("image_id", "image", "category", "x", "y", "w", "h")]
    key = {
        **{name: value for name, value in msgspec.to_builtins(c).items() if name not in FREE},
        "held_out": sorted(held_out),
        "model": hash_of(model),
        "annotations": hash_of([hashlib.sha256(column.tobytes()).hexdigest() for column in columns]),
        "validation": hash_of(validation) if validation else None,
        "dosed": None if dosed is None else hash_of(dosed.to_dict("list")),
    }
    return json.loads(json.dumps(key))


def stage(run: Run, split: str, parameters: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The artifact ``finetune_{split}`` from notebook 03's parameters, for the notebook and the command line alike.

    Under ``accelerate launch`` the main process calls this, and the others :func:`follow`.
    """
    annotations = inputs.annotations(run, parameters["train_annotations"], "train")
    source = inputs.photos(run, parameters["train_photos"], "train", annotations)
    categories = coco.read(annotations).categories
    held_out = triplets.held_out_categories(categories, parameters["unseen"]) if split == "unseen" else []
    choices = msgspec.to_builtins(Choices.among(parameters))
    free = {name: choices.pop(name) for name in FREE}  # no reason to train again
    longer = {"steps": choices.pop("steps")} if choices["schedule"] == "constant" else {}  # nor from the start
    calls: list[Path] = []

    @wraps(finetune)
    def lead(path: Path, **arguments: Any) -> dict[str, Any]:
        calls.append(path)
        if folder := store_run.store():
            arguments["latents"] = folder / "latents"
        broadcast_object_list([{"folder": path, **arguments, **free}])
        return finetune(path, **arguments, **free)

    files = {"annotations": annotations, "photos": source, "prompts": run.read("prompts.parquet")}
    models = {name: parameters[name] for name in ("model", "detector")}
    path, result = run.stage(
        f"finetune_{split}", lead, files, heavy=True, prolongs=longer, held_out=held_out, **models, **choices
    )
    if not calls:
        broadcast_object_list([None])
    return path, result


def follow() -> None:
    """What the other processes do while the main one is in :func:`stage`: the same work, if there is any."""
    work: list[dict[str, Any] | None] = [None]
    broadcast_object_list(work)
    if work[0]:
        finetune(**work[0])
