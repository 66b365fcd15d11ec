"""What a network learns to undo, a class for each kind of diffusion: its noise levels, how they are drawn, its loss.

``draw`` gives the number of a noise level; ``shares`` are those of latents and noise at each level, ``timesteps`` what
the network is told there; ``loss`` compares its prediction with what the process asks for, ``predicts``. A name that is
not known is an error, never a silent uniform draw.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from .choices import Choices

if TYPE_CHECKING:
    from .batches import Batch

Predict = Callable[[Tensor, Tensor], Tensor]  # of noisy latents and timesteps


class Ddpm:
    """The noise is predicted (Ho et al. 2020) or, where the model's scheduler says so, the velocity (Salimans and Ho
    2022). Levels are drawn uniformly, and a variance that a network predicts beside it is not trained."""

    def __init__(self, scheduler: Any, c: Choices, name: str) -> None:
        if (kind := scheduler.config.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction"):
            raise ValueError(f"model: {name} predicts {kind!r}; the loss knows epsilon and v_prediction")
        if chosen := next((key for key in OF_FLOW if getattr(c, key) is not None), None):
            raise ValueError(f"{chosen}: {name} does no flow matching; leave {chosen} out")
        self.schedule = DDPMScheduler.from_config(scheduler.config)
        self.predicts, self.levels = kind, self.schedule.config.num_train_timesteps
        alphas, self.timesteps = self.schedule.alphas_cumprod, torch.arange(self.levels)
        self.shares = alphas.sqrt(), (1 - alphas).sqrt()

    def draw(self, rng: np.random.Generator) -> int | np.integer:
        return rng.integers(self.levels)

    def loss(self, predict: Predict, batch: "Batch") -> Float[Tensor, ""]:
        """The mean squared error."""
        schedule, noise, t = self.schedule, batch.noise, batch.timestep
        predicted = predict(schedule.add_noise(batch.latents, noise, t), t).float()
        if predicted.shape[1] == 2 * noise.shape[1]:
            predicted, _ = predicted.chunk(2, dim=1)
        velocity = self.predicts == "v_prediction"
        target = schedule.get_velocity(batch.latents, noise, t) if velocity else noise
        return functional.mse_loss(predicted, target)


OF_FLOW = ("noise_levels", "logit_mean", "logit_std", "loss_weights", "shift")  # choices that nothing else has


class Flow:
    """Flow matching: latents and noise are mixed on a straight line, and its direction is predicted (Liu et al. 2022;
    Esser et al. 2024).

    The levels are those of a scheduler that nobody has stepped (``set_timesteps`` would apply its shift once more),
    with the model's shift, unless that depends on the image's size when it draws. Level 0 is noise alone, so a
    ``logit_mean`` above 0 means less noise, as in diffusers' scripts.
    """

    def __init__(self, scheduler: Any, c: Choices, name: str) -> None:
        config = scheduler.config
        if not ("FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas")):
            kind = type(scheduler).__name__
            raise ValueError(f"model: {name} has a {kind}, which does no flow matching; keep its own scheduler")
        own = config.get("shift", config.get("flow_shift", 1.0))
        shift = 1.0 if config.get("use_dynamic_shifting") else own
        fresh = FlowMatchEulerDiscreteScheduler(config.num_train_timesteps, shift if c.shift is None else c.shift)
        self.timesteps, self.sigmas, self.levels = fresh.timesteps, fresh.sigmas, len(fresh.timesteps)
        self.predicts, self.shares = "direction", (1 - self.sigmas, self.sigmas)
        self.uniform, self.weights = c.noise_levels == "uniform", c.loss_weights
        self.mean, self.std = c.logit_mean or 0.0, 1.0 if c.logit_std is None else c.logit_std

    def draw(self, rng: np.random.Generator) -> int:
        share = rng.random() if self.uniform else 1 / (1 + math.exp(-rng.normal(self.mean, self.std)))
        return min(int(share * self.levels), self.levels - 1)

    def loss(self, predict: Predict, batch: "Batch") -> Float[Tensor, ""]:
        """The mean squared error, weighted by level."""
        level = batch.timestep.cpu()
        sigma, t = (values[level].to(batch.latents.device) for values in (self.sigmas, self.timesteps))
        mixed = sigma.view(-1, 1, 1, 1)
        predicted = predict((1 - mixed) * batch.latents + mixed * batch.noise, t).float()
        errors = ((predicted - (batch.noise - batch.latents)) ** 2).flatten(1).mean(1)
        return (self._weight(sigma) * errors).mean()

    def _weight(self, sigma: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        if self.weights == "sigma_sqrt":
            return sigma**-2
        if self.weights == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
        return torch.ones_like(sigma)
