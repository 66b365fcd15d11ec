"""A low-rank adaptation (LoRA) of a pipeline's networks, loaded as diffusers does, and counted.

Diffusers takes a file of another prefix or model for one that adapts nothing, which it says is safe to ignore.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .source import ModelError

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
DOWN = re.compile(r"\.(?:lora_A(?:\.\w+)?|lora_down|\w*lora[._](?:linear_layer\.)?down)\.weight$")


def file_of(path: Path) -> Path:
    """The file of a LoRA, which is named itself or by its folder. ModelError: there is none, or it is none."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        if not path.exists():
            raise ModelError(f"{path}: there is no such LoRA")
        unet = "; it is a network's folder: give it as 'unet'" if (path / "config.json").is_file() else ""
        raise ModelError(f"{path}: has no {FILE}{unet or '; name the .safetensors file itself'}")
    if not _layers(file):
        raise ModelError(f"{file}: has no layers of a LoRA; fetch it again, or name another file")
    return file


def _layers(file: Path) -> set[str]:
    """The layers that a file adapts, by its own names."""
    try:
        with safe_open(file, "pt") as weights:
            return {DOWN.sub("", key) for key in list(weights.keys()) if DOWN.search(key)}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: is no whole file of safetensors ({error}); fetch it again") from None


def add(pipeline: Any, file: Path) -> None:
    """Load a LoRA's file into a pipeline. ModelError: diffusers loads none into one of its class."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"{file}: diffusers loads no LoRA into a {type(pipeline).__name__}")
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)


def check(pipeline: Any, file: Path, model: str) -> int:
    """How many layers a LoRA adapts. ModelError: fewer than it has."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    adapted = sum(bool(getattr(module, "lora_A", None)) for part in parts for module in part.modules())
    if adapted < (wanted := len(_layers(file))):
        few = f"only {adapted:,}" if adapted else "none"
        raise ModelError(f"{file}: {few} of its {wanted:,} layers are {model}'s; give it to the model it was made for")
    return adapted
