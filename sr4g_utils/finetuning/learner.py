"""What learns: a UNet's weights, their average and their optimiser."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.load import DTYPES
from .choices import Choices


class Learner:
    """The float32 weights of a UNet that learn (all of them, or LoRA's), their moving average and AdamW.

    Raises:
        ImportError: LoRA or 8-bit Adam is asked for, and its package is not installed.
    """

    def __init__(self, unet: Any, c: Choices) -> None:
        self.unet, self.c = unet, c
        if c.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        # bitsandbytes lays weights out anew, but not what it remembers of them
        last = c.channels_last and not c.adam_8bit
        unet.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        if c.lora_rank:
            _add_lora(unet, c.lora_rank, c.seed)
        self.weights = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
        self.optimiser = _optimiser(list(self.weights.values()), c)
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()} if c.ema else None

    def step(self, number: int, lr: float) -> Tensor:
        """One step of the optimiser on the gradients that are there; the norm that they had."""
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

    def kept(self) -> dict[str, Tensor]:
        """The state of a plain UNet with what is validated and kept: the average where there is one."""
        return merged(self.unet, self.average or self.weights)


def merged(unet: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a plain UNet with the given weights in place of those that learn; low-rank updates are added in."""
    if not getattr(unet, "peft_config", None):
        return {**unet.state_dict(), **{name: weight.detach() for name, weight in weights.items()}}
    plain = copy.deepcopy(unet)
    plain.load_state_dict(dict(weights), strict=False)
    plain.fuse_lora()
    plain.unload_lora()
    return plain.state_dict()


def cast(module: Any, precision: str) -> Any:
    """A frozen model in the run's precision; by torch's own method, since diffusers' warns of what is not there."""
    return torch.nn.Module.to(module, dtype=DTYPES[precision])


def _add_lora(unet: Any, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError(
            "lora_rank: low-rank training needs peft; `pip install peft`, or set lora_rank to 0"
        ) from None
    unet.requires_grad_(False)
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))


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
