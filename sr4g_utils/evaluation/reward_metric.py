"""The reward as a torchmetrics metric, for loggers. torchmetrics is not among this package's requirements."""

import hashlib
from typing import Any

import torch
from torchmetrics import Metric

from .reward import Reward


class RewardMetric(Metric):
    """The mean reward of all images since the last reset; arguments as of :class:`reward.Reward`."""

    higher_is_better = True
    full_state_update = False
    settings: torch.Tensor
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, detector: Any = None, **options: Any) -> None:
        super().__init__()
        self.reward = Reward(**({"detector": detector} if detector is not None else {}), **options)
        # a MetricCollection merges metrics whose states are equal after the first batch: settings must differ in one
        about = [self.reward.detector.record, self.reward.rules, self.reward.pairs, self.reward.soft]
        about += [self.reward.threshold, self.reward.extra]
        number = int.from_bytes(hashlib.sha256(repr(about).encode()).digest()[:6], "big")
        self.add_state("settings", torch.tensor(float(number), dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Any, prompts: Any) -> None:
        rewards = self.reward(images, prompts)
        self.total += rewards.sum()
        self.count += len(rewards)

    def compute(self) -> torch.Tensor:
        """The mean, null before the first image."""
        return self.total / self.count
