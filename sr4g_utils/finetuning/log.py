"""What a run reports: its log and trackers, its speed, and the processes that it has."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..evaluation.scores import MAIN
from ..models.load import default_device
from ..models.source import Source
from ..store.files import read_json, write_text
from .batches import Sampler, Text
from .choices import Choices
from .nets import Net

LOGGED = ("loss", "lr", "grad_norm", "images_per_s", "eta_s", "mfu", *MAIN, "images", "both_found")
# Trackers that take several images of one name, and how each wants them.
SEVERAL: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}, "swanlab": {}}
TIMEOUT = timedelta(hours=3)  # for which processes wait for each other, as while one encodes the last photos
# Dense bfloat16 FLOP/s by the vendors' data sheets, for model FLOPs utilisation (MFU).
PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A40": 150e12, "A10G": 70e12,
    "A10": 125e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


class Log:
    """``log.jsonl``, the bar on stderr and a tracker. Opened at a checkpoint, it forgets what came after."""

    def __init__(
        self, path: Path, state: dict[str, Any], speed_of_light: float | None, c: Choices, accelerator: Accelerator
    ) -> None:
        self.c, self.accelerator, self.speed_of_light = c, accelerator, speed_of_light
        self.since = done = state.get("step", 0)
        self.kept = {name: state.get(name) for name in ("loss_first", "loss_last", "images_per_s")}
        self.seconds, self.others = state.get("seconds", 0.0), state.get("other_seconds", 0.0)
        self.sums = torch.zeros(2, device=accelerator.device)  # of loss and gradient norm since the last line
        main = accelerator.is_main_process
        self.file = _cut(path, done if state else -1) if main else None
        self.bar = tqdm(total=c.steps, initial=done, desc="fine-tuning", unit="step", disable=not main)
        accelerator.init_trackers("sr4g")
        self.clock = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.sums[0] += loss.detach()

    def add_norm(self, norm: Tensor) -> None:
        self.sums[1] += norm.detach()

    def line(self, done: int, lr: float, good: str | None) -> None:
        """The mean loss since the last line, over all processes. Raises FloatingPointError where it is not finite."""
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
        shown = {"loss": f"{loss:.4f}", "lr": f"{lr:.1e}", "img/s": f"{speed:.1f}", "ETA": timedelta(seconds=int(eta))}
        self.bar.set_postfix(shown | ({"MFU": f"{mfu:.0%}"} if mfu else {}), refresh=False)
        self.bar.update(done - self.bar.n)

    def validation(self, done: int, scores: dict[str, Any], images: Sequence[np.ndarray]) -> dict[str, Any]:
        self._write(done, scores)
        self._show(done, images)
        parts = (f"{name} {'–' if scores[name] is None else format(scores[name], '.1f')}" for name in MAIN)
        self.bar.write(f"validation at step {done:,}: {', '.join(parts)} ({scores['images']} images)", file=sys.stderr)
        self.resume_clock()
        return {"step": done, **scores}

    def resume_clock(self) -> None:
        """The time since the last line was not training."""
        now = time.perf_counter()
        self.others, self.clock = self.others + now - self.clock, now

    def position(self) -> dict[str, Any]:
        return {**self.kept, "seconds": self.seconds, "other_seconds": self.others}

    def _write(self, done: int, values: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps({"step": done, **values}) + "\n")
            self.file.flush()
        self.accelerator.log({name: value for name, value in values.items() if value is not None}, step=done)

    def _show(self, done: int, images: Sequence[np.ndarray]) -> None:
        """Give images to the trackers that take any: several of a name at once, or one."""
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process and len(images) else ():
            if tracker.name in SEVERAL:
                tracker.log_images({"validation": np.stack(images)}, step=done, **SEVERAL[tracker.name])
            elif hasattr(tracker, "log_images"):
                tracker.log_images({f"validation/{i}": image for i, image in enumerate(images)}, step=done)

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:  # not `end_training`: the processes may have another split to train
            tracker.finish()
        if self.file:
            self.file.close()


def _cut(path: Path, last: int) -> TextIO:
    """A log opened for more lines, cut after a step; an incomplete line that a kill left is dropped."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= last:
                lines.append(line + "\n")
    write_text(path, "".join(lines))
    return path.open("a", encoding="utf-8")


def read_log(folder: str | Path) -> pd.DataFrame:
    """A run's log: rows with loss, lr, grad_norm, images_per_s, eta_s and mfu, and rows with validation scores."""
    log = pd.read_json(Path(folder) / "log.jsonl", lines=True)
    return log.reindex(columns=dict.fromkeys(["step", *LOGGED, *log.columns]))


def of_base(model: Any) -> dict[str, tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]]:
    """How the base was trained, from the ``training.json`` beside its folder, as :func:`figures.learning_curve` takes
    it: its loss, and by each judge how often both things are found along the way and in drawn scenes. Empty, with a
    message, for a model without one."""
    source = Source.of(model)
    about = read_json(Path(source.folder).parent / "training.json") if source.folder else None
    if about is None:
        print(f"{source.name}: no record of how it was trained, so no learning curve")
        return {}
    base = about["parts"]["base"]
    log = pd.DataFrame(base["log"])
    log = pd.DataFrame({"images": base["batch"] * log.step, "loss": log.drop(columns="step").iloc[:, 0]})
    points = [
        {"images": point["pictures"], "judge": judge, "both_found": share}
        for point in base.get("curve", [])
        for judge, share in point["both found"].items()
    ]
    if not points:
        print(f"{source.name}: what its images showed along the way was not recorded")
    return {source.name: (log, pd.DataFrame(points, columns=["images", "judge", "both_found"]), base.get("drawn", {}))}


def gains(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The validation scores before fine-tuning and at the best checkpoint, of the results of some splits' stages:
    split, best step, metric, before, after, images and gain. No rows where nothing was validated."""
    rows = [
        (split, about["best"]["step"], metric, about["start"][metric], about["best"][metric], about["best"]["images"])
        for split, about in results.items()
        for metric in (MAIN if about["start"] else ())
    ]
    table = pd.DataFrame(rows, columns=["split", "best step", "metric", "before", "after", "images"])
    table = table.astype({"before": float, "after": float})
    return table.assign(gain=table.after - table.before)


def accelerator_for(c: Choices, folder: Path) -> Accelerator:
    """The processes of a run; a tracker's own files, if it writes any, are in the run's folder. Raises ImportError if
    the tracker is not installed, ValueError if there is no such tracker or the processes do not fit."""
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True), InitProcessGroupKwargs(timeout=TIMEOUT)]
    precision = "bf16" if c.precision == "bfloat16" else "no"
    cpu = default_device() == "cpu"  # else several processes on a CPU do not find each other
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=precision, log_with=c.track, project_dir=folder, kwargs_handlers=handlers
    )
    if c.track and not accelerator.log_with:
        raise ImportError(f"track: {c.track} is not installed; `pip install {c.track}`, or set track to null")
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"accelerate: {kind} splits the weights; a UNet fits whole, so use plain DDP")
    share_of(c, accelerator.num_processes, 0)  # an error now, not after the photos are encoded
    return accelerator


def share_of(c: Choices, processes: int, process: int) -> range:
    """A process's places in the batch. Raises ValueError where batch, processes and micro_batch do not divide."""
    share, rest = divmod(c.batch, processes)
    if rest:
        raise ValueError(f"batch: {c.batch} does not divide by {processes} processes; change either")
    if c.micro_batch is not None and (c.micro_batch < 1 or share % min(c.micro_batch, share)):
        raise ValueError(f"micro_batch: {c.micro_batch} does not divide a process's {share} of the batch of {c.batch}")
    return range(process * share, (process + 1) * share)


def images_per_second_at_peak(net: Net, samples: Sampler, text: Text, c: Choices) -> float | None:
    """What the device could train at its data sheet's speed, against which MFU is measured; None if that is unknown."""
    if net.device.type != "cuda" or c.precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(net.device)
    if not (peak := next((peak for known, peak in PEAKS.items() if known in name), None)):
        return None
    batch = samples(0, range(1)).to(net.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        net.process.loss(lambda x, t: net.call(net.module, x, t, text(batch.caption)), batch)
    # the backward pass takes twice as many operations, half of them for the weights' gradients
    return peak / ((2 if c.lora_rank else 3) * counter.get_total_flops())
