"""What learns, and its checkpoints: all that a run needs to go on, in folders that appear whole or not at all."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..models.load import DTYPES
from ..models.lora import FILE as LORA
from ..store import files
from ..store.files import atomic, read_json, say, write_json
from .choices import Choices
from .nets import Net

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name of a network's file


class Learner:
    """The float32 weights of a network that learn (all of them, or LoRA's), their moving average and AdamW. Raises
    ImportError if LoRA or 8-bit Adam is asked for and its package is not installed."""

    def __init__(self, net: Net, c: Choices) -> None:
        self.net, self.c, network = net, c, net.module
        if c.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        # bitsandbytes changes the layout of weights, but not that of their moments
        last = c.channels_last and not c.adam_8bit
        network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        for name in net.idle:  # processes wait for the gradient of all that learns
            network.get_submodule(name).requires_grad_(False)
        self.lora = _add_lora(net, c) if c.lora_rank else None
        self.weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.optimiser = _optimiser(list(self.weights.values()), c)
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()} if c.ema else None

    def step(self, number: int, lr: float) -> Tensor:
        """One step of the optimiser on the current gradients; their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.c.max_grad_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.average is not None:  # its decay starts low, as in LDM
            decay = min(self.c.ema, (1 + number) / (10 + number))
            now = [weight.detach() for weight in self.weights.values()]
            torch._foreach_lerp_(list(self.average.values()), now, 1 - decay)
        return norm

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network as it is validated: with the average in place of its weights, and neither copied."""
        self._swap()
        self.net.module.eval()
        try:
            yield
        finally:
            self._swap()
            self.net.module.train()

    def _swap(self) -> None:
        average = self.average or {}
        for name, mean in average.items():
            average[name], self.weights[name].data = self.weights[name].data, mean

    def kept(self) -> dict[str, Tensor]:
        """What is validated and kept, the average where there is one: the network's state or, of a LoRA, diffusers'
        form of it. That has no alpha, and readers take the rank for it: so it is multiplied into the weights."""
        weights = {name: weight.detach() for name, weight in (self.average or self.weights).items()}
        if not self.lora:
            return {**self.net.module.state_dict(), **weights}
        strength = self.lora["alpha"] / self.lora["rank"]
        return {
            f"{self.net.part}.{name.replace('.default.', '.')}": weight * (strength if ".lora_B." in name else 1)
            for name, weight in weights.items()
        }


def cast(module: Any, precision: str) -> Any:
    """A frozen model in the run's precision; by torch's own method, since that of diffusers warns without need."""
    return torch.nn.Module.to(module, dtype=DTYPES[precision])


def _add_lora(net: Net, c: Choices) -> dict[str, Any]:
    """Freeze a network and add low-rank updates in float32 to the layers of its family; what the record has of them."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("lora_rank needs peft; `pip install peft`, or set lora_rank to 0") from None
    network, ends = net.module, tuple(f".{name}" for name in net.targets)
    if not hasattr(net.pipeline, "load_lora_weights"):
        kind = type(net.pipeline).__name__
        raise ValueError(f"lora_rank: diffusers loads no LoRA into a {kind}; set it to 0, and train all weights")
    network.requires_grad_(False)
    layers = [name for name, _ in network.named_modules() if name.endswith(ends) and name not in net.idle]
    if not layers:
        raise ValueError(f"lora_rank: this {type(network).__name__} has none of the layers {', '.join(net.targets)}")
    alpha: Any = c.lora_rank if c.lora_alpha is None else c.lora_alpha
    torch.manual_seed(c.seed)
    network.add_adapter(
        LoraConfig(r=c.lora_rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=layers)
    )
    for weight in network.parameters():
        if weight.requires_grad:  # diffusers gives them the base's precision
            weight.data = weight.data.float()
    base = str(network.dtype).removeprefix("torch.")
    return {"rank": c.lora_rank, "alpha": alpha, "base": base, "targets": list(net.targets), "layers": len(layers)}


def _optimiser(weights: list[torch.nn.Parameter], c: Choices) -> torch.optim.Optimizer:
    if not c.adam_8bit:
        return torch.optim.AdamW(weights, lr=c.lr, weight_decay=c.weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ImportError("adam_8bit needs bitsandbytes; `pip install bitsandbytes`, or set it to false") from None
    return AdamW8bit(weights, lr=c.lr, weight_decay=c.weight_decay)


def save_network(folder: Path, learner: Learner, accelerator: Accelerator) -> None:
    """A folder that diffusers loads as a network, or as a LoRA. Its one weight file is replaced whole, so there is
    always a good one."""
    if not accelerator.is_main_process:
        return
    if not learner.lora:
        config = json.loads(learner.net.module.to_json_string())
        write_json(folder / "config.json", {name: value for name, value in config.items() if name != "_name_or_path"})
    with atomic(folder / (LORA if learner.lora else WEIGHTS)) as partial:
        _write(learner.kept(), partial)


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()  # bitsandbytes shares tables among weights; safetensors does not
        plain[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    with files.full_disk_named(path):
        save_file(plain, path, metadata={"format": "pt"})  # one key: several come in any order
    path.chmod(0o644)  # safetensors keeps its files private; a cluster's users share theirs


def checkpoint(folder: Path, learner: Learner, position: dict[str, Any], keep: int, accelerator: Accelerator) -> str:
    """Write all that the run needs to go on, under a temporary name until it is whole; remove old ones; its path."""
    final = folder / "checkpoints" / f"step-{position['step']:08}"
    if accelerator.is_main_process:
        partial = files.temporary(final)
        partial.mkdir(parents=True)
        _write(learner.weights, partial / "weights.safetensors")
        if learner.average is not None:
            _write(learner.average, partial / "ema.safetensors")
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for i, weight in enumerate(learner.weights.values()):  # not `state_dict`, which bitsandbytes nests
            for name, value in learner.optimiser.state[weight].items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{i}.{name}"] = value
        _write(tensors, partial / "optimiser.safetensors")
        write_json(partial / "state.json", {**position, "optimiser": numbers})
        for path in (*partial.iterdir(), partial):
            _sync(path)
        files.remove(final)
        partial.rename(final)
        _sync(final.parent)
        for old in _checkpoints(folder)[:-keep]:
            files.remove(old)
    return str(final)


def _checkpoints(folder: Path) -> list[Path]:
    """The newest last."""
    return sorted(path for path in folder.glob("checkpoints/step-*") if re.fullmatch(r"step-\d{8}", path.name))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def restore(path: Path, learner: Learner) -> None:
    """Bring weights, average and optimiser to where a checkpoint has them."""
    for file, into in (("weights", learner.weights), ("ema", learner.average or {})):
        with torch.no_grad():
            for key, value in load_file(path / f"{file}.safetensors").items() if into else ():
                into[key].copy_(value)
    saved = {**load_file(path / "optimiser.safetensors"), **read_json(path / "state.json")["optimiser"]}
    weights = list(learner.weights.values())
    for key, value in saved.items():
        i, _, name = key.partition(".")
        weight = weights[int(i)]
        if isinstance(value, Tensor):
            value = value.to(weight.device)
            if value.shape == weight.shape:  # fused AdamW reads memory in order: same layout as the weight's
                value = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        learner.optimiser.state[weight][name] = value


def resume(folder: Path, key: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """The state of the newest checkpoint with its path, ``{"result": ...}`` of a finished run, or {} to start."""
    states = [_look(folder, key) if accelerator.is_main_process else {}]
    broadcast_object_list(states)
    return states[0]


def _damage(path: Path) -> str | None:
    """The file of a checkpoint that is damaged, if one is: cut short, or no longer what its name says."""
    if not isinstance(read_json(path / "state.json"), dict):
        return "state.json"
    for file in ("weights.safetensors", "optimiser.safetensors", *(file.name for file in path.glob("ema.*"))):
        try:
            with safe_open(path / file, "pt"):  # compares its length with its header
                pass
        except (SafetensorError, OSError):
            return file
    return None


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are set aside, and said."""
    for path in reversed(_checkpoints(folder)):
        if (file := _damage(path)) is None:
            return path
        say(
            f"WARNING: {path / file}: damaged or missing, so the checkpoint before it is taken; {files.set_aside(path)}"
        )
    return None


def _look(folder: Path, key: dict[str, Any]) -> dict[str, Any]:
    files.sweep(folder)
    newest = _newest(folder)
    state = read_json(newest / "state.json") if newest else {}
    finished = read_json(folder / "result.json") or {}
    earlier = (finished or state).get("key", key)
    different = [name for name in key if earlier.get(name) != key[name]]
    longer = different == ["steps"] and key["schedule"] == "constant" and state and state["step"] <= key["steps"]
    if different and not longer:
        aside = files.set_aside(folder)
        say(f"{folder.name} was made with another {', '.join(different)}: starting afresh; {aside}")
        return {}
    if finished and not longer:
        return {"result": finished["result"]}
    (folder / "result.json").unlink(missing_ok=True)  # of fewer steps
    if state:
        say(f"{folder.name}: going on from step {state['step']:,}")
        return {**state, "checkpoint": str(newest)}
    return {}


def finish(folder: Path, key: dict[str, Any], result: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Record that the run is done; its result, as it will be read again."""
    result = json.loads(json.dumps(result))
    if accelerator.is_main_process:
        write_json(folder / "result.json", {"key": key, "result": result})
    accelerator.wait_for_everyone()
    return result
