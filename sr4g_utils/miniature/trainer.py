"""One training loop for every part of the miniature's models."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import trange

from ..running.files import atomic

STEPS = {"vae": 12_000, "text": 1200, "base": 4000, "detector": 6000}
BATCH = {"vae": 8, "text": 128, "base": 48, "detector": 32}
RATE = {"vae": 2e-3, "text": 1e-3, "base": 1e-3, "detector": 1e-3}


class Trainer:
    """One loop for every part: AdamW, warm-up, cosine decay, EMA, a log, and a checkpoint that outlives interruptions.

    What step k sees depends on (seed, part, k) alone, so a resumed run goes on as if undisturbed.
    """

    def __init__(self, name: str, modules: nn.Module, work: Path, steps: int, seed: int) -> None:
        self.name, self.modules, self.folder, self.steps, self.seed = name, modules, work / name, steps, seed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, RATE[name], betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.ema = EMAModel(self.parameters, decay=0.999, use_ema_warmup=True, power=0.75)
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        self._load()

    def run(self, loss_of: Callable[[int, np.random.Generator], dict[str, Tensor]], every: int = 250) -> None:
        warm = min(200, self.steps // 10 + 1)
        start = time.monotonic()
        bar = trange(self.step, self.steps, desc=self.name, initial=self.step, total=self.steps, mininterval=10)
        sums: dict[str, float] = {}
        for step in bar:
            torch.manual_seed(1_000_003 * self.seed + step)
            rate = RATE[self.name] * min((step + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / self.steps)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = loss_of(step, np.random.default_rng([self.seed, sum(map(ord, self.name)), step]))
            total = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(total):
                raise RuntimeError(
                    f"{self.name}: the loss is {total.item()} at step {step}; last checkpoint in {self.folder}"
                )
            total.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.ema.step(self.parameters)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.item()
            if (step + 1) % every == 0 or step + 1 == self.steps:
                n = (step % every) + 1
                self.log.append({"step": step + 1, **{key: round(value / n, 5) for key, value in sums.items()}})
                bar.write(f"{self.name} {self.log[-1]} {(time.monotonic() - start):.0f} s")
                sums = {}
                self.step = step + 1
                self._save(self.seconds + time.monotonic() - start)
        self.seconds += time.monotonic() - start
        self.ema.copy_to(self.parameters)

    def _save(self, seconds: float) -> None:
        tensors = {f"model.{k}": v.contiguous() for k, v in self.modules.state_dict().items()}
        for i, p in enumerate(self.parameters):
            # a parameter that the loss does not reach (OWL-ViT has some) has no state
            tensors |= {f"adam.{i}.{key}": value for key, value in self.optimizer.state[p].items()}
            tensors[f"ema.{i}"] = self.ema.shadow_params[i]
        tensors = {k: v.detach().clone() for k, v in tensors.items()}
        about = {"step": self.step, "seconds": seconds, "log": self.log}
        with atomic(self.folder / "checkpoint.safetensors") as partial:
            save_file(tensors, partial, metadata={"about": json.dumps(about)})

    def _load(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.is_file():
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = load_file(path)
        self.modules.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        for i, p in enumerate(self.parameters):
            adam = {
                key: tensors[f"adam.{i}.{key}"]
                for key in ("exp_avg", "exp_avg_sq", "step")
                if f"adam.{i}.{key}" in tensors
            }
            self.optimizer.state[p].update(adam)
            self.ema.shadow_params[i].copy_(tensors[f"ema.{i}"])
        self.ema.optimization_step = about["step"]
        self.step, self.seconds, self.log = about["step"], about["seconds"], about["log"]
