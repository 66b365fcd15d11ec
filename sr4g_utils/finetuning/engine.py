"""What the loop runs on: processes, their shares of a batch, and what the device could do at best."""

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch.utils.flop_counter import FlopCounterMode

from ..models.load import default_device
from .choices import Choices
from .samples import Sampler, Text

TIMEOUT = timedelta(hours=3)  # for which processes wait for each other, as while one encodes the last photos

# Dense bfloat16 FLOP/s by the vendors' data sheets, for model FLOPs utilisation (MFU).
PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A40": 150e12, "A10G": 70e12,
    "A10": 125e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def accelerator_for(c: Choices, folder: Path) -> Accelerator:
    if c.tensorboard and find_spec("tensorboard") is None:
        raise ImportError("tensorboard: it is not installed; `pip install tensorboard`, or set tensorboard to false")
    accelerator = Accelerator(
        cpu=default_device() == "cpu",  # else several processes on a CPU do not find each other
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
    share_of(c, accelerator.num_processes, 0)  # an error now, not after the photos are encoded
    return accelerator


def share_of(c: Choices, processes: int, process: int) -> range:
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


def images_per_second_at_peak(unet: Any, samples: Sampler, text: Text, c: Choices) -> float | None:
    """What the device could train at its data sheet's speed; None where that is not known. MFU is measured against it.

    Operations are counted on one forward pass; the backward pass takes twice as many.
    """
    if unet.device.type != "cuda" or c.precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(unet.device)
    if not (peak := next((peak for known, peak in PEAKS.items() if known in name), None)):
        return None
    batch = samples(0, range(1)).to(unet.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(batch.latents, batch.timestep, encoder_hidden_states=text(batch.caption).to(unet.dtype))
    return peak / (3 * counter.get_total_flops())
