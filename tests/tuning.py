"""Fine-tuning for tests: the miniature's world and tiny models with random weights.

What is tested is therefore that the loop does what it says, not that anything is learnt.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from sr4g_utils.dataset import coco, prompts, triplets, world
from sr4g_utils.dataset.photos import Photos
from sr4g_utils.finetuning import latents, nets
from sr4g_utils.finetuning.captions import Captions
from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.latents import Encoded
from sr4g_utils.finetuning.stage import finetune

HELD_OUT = ["cat"]
QUICK: dict[str, Any] = {
    "steps": 6, "batch": 8, "lr": 1e-3, "warmup": 2, "ema": 0.5, "precision": "float32", "validate_every": 3,
    "validation_prompts": 14, "sampling": {"images": 1, "steps": 2}, "checkpoint_every": 2, "log_every": 1,
}  # fmt: skip


def make_world(folder: Path, models: Path) -> SimpleNamespace:
    """Annotations, photos, prompts, and where tiny models are."""
    world.write_annotations(folder / "train.json", split="train", images=120)
    world.write_photos(folder / "photos", folder / "train.json", split="train")
    triplets.build(folder / "triplets.parquet", folder / "train.json", split="train", held_out=HELD_OUT)
    prompts.write_study_prompts(folder / "prompts.parquet", folder / "triplets.parquet", held_out=HELD_OUT, seed=0)
    return SimpleNamespace(
        folder=folder, models=models, table=coco.read(folder / "train.json"), photos=folder / "photos",
        **{name: folder / f"{name}.parquet" for name in ("prompts", "triplets")}, annotations=folder / "train.json",
    )  # fmt: skip


def encode(world: Any, captions: Captions, pipeline: Any, store: Path, source: Path | None = None) -> Encoded:
    photos, images = Photos(source or world.photos), np.unique(captions.image)
    return latents.encode_photos(store, photos, world.table, images, pipeline.vae, 64, Accelerator(cpu=True))


def net_of(pipeline: Any, resolution: int = 64, **choices: Any) -> nets.Net:
    record = {"id": "it", "class": type(pipeline).__name__, "resolution": [resolution, resolution]}
    return nets.of(pipeline, record, Choices(**choices))


def tune(world: SimpleNamespace, folder: Path, model: str = "v1.4", **choices: Any) -> dict[str, Any]:
    keywords = {"detector": str(world.models / "owlvit"), "held_out": HELD_OUT, "latents": world.folder / "latents"}
    given = {**QUICK, **keywords, "model": str(world.models / model), **choices}
    return finetune(folder, world.annotations, world.photos, world.prompts, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def drift(one: Path, two: Path, base: Path) -> float:
    """How far two runs ended from each other, as a share of how far they went. Single weights would not tell: Adam
    divides a gradient by its own size, so one whose gradient is nothing but rounding moves by rounding."""
    a, b, start = weights(one / "last"), weights(two / "last"), load_file(base / "unet" / WEIGHTS)
    apart, went = (sum(((x[name] - y[name]) ** 2).sum().item() for name in a) for x, y in ((a, b), (a, start)))
    assert went > 0
    return (apart / went) ** 0.5
