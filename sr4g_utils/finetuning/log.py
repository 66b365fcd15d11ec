"""The log of a fine-tuning run."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..running.files import write_text
from .choices import Choices

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
    write_text(path, "".join(lines))
    return path.open("a", encoding="utf-8")


def read_log(folder: str | Path) -> pd.DataFrame:
    """A run's log: rows with loss, lr, grad_norm, images_per_s, eta_s and mfu, and rows with validation scores."""
    log = pd.read_json(Path(folder) / "log.jsonl", lines=True)
    return log.reindex(columns=dict.fromkeys(["step", *LOGGED, *log.columns]))


def gains(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The validation scores before fine-tuning and at the best checkpoint, of the results of some splits' stages.

    Columns: split, best step, metric, before, after, images, gain. No rows where nothing was validated.
    """
    rows = [
        {
            "split": split,
            "best step": about["best"]["step"],
            "metric": metric,
            "before": about["start"][metric],
            "after": about["best"][metric],
            "images": about["best"]["images"],
        }
        for split, about in results.items()
        if about["start"]
        for metric in SCORES
    ]
    table = pd.DataFrame(rows, columns=["split", "best step", "metric", "before", "after", "images"])
    table = table.astype({"before": float, "after": float})
    return table.assign(gain=table.after - table.before)
