"""The loop that fine-tunes a Stable Diffusion's UNet on captions with spatial relations (paper, section 4).

VAE and text encoder stay frozen. What a step sees depends on seed, step and place in the batch alone (:mod:`.batches`),
and the learning rate on the step. So a checkpoint holds the step, the weights, their average and the optimiser, and no
random state or schedule. A killed run goes on from its last checkpoint and ends with the weights of one that was not,
bit for bit on the CPU.
"""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..evaluation.scores import MAIN, scores
from ..evaluation.verdicts import verdicts
from ..models import diffusion
from ..models.detectors import Detector
from ..models.sampling import Sampling
from .batches import Batch, Sampler, Text, ahead
from .captions import Captions
from .checkpoints import Learner, cast, checkpoint, restore, save_unet
from .choices import Choices
from .latents import Encoded
from .log import Log, images_per_second_at_peak, share_of

SHOWN = 8  # images of a validation that a tracker gets


class Validator:
    """``validator(weights)``: OA, VISOR, VISOR_Cond and counts, of a UNet's weights. Processes share the prompts."""

    def __init__(
        self, pipeline: Any, prompts: pd.DataFrame, detector: Detector, c: Choices, accelerator: Accelerator
    ) -> None:
        self.pipeline, self.prompts, self.detector, self.accelerator = pipeline, prompts, detector, accelerator
        self.c, self.sampling = c, Sampling.of(c.sampling)
        self.images: list[np.ndarray] = []  # some that the last call drew, each of another prompt

    def __call__(self, weights: Mapping[str, Tensor], nothing: str = "raise") -> dict[str, Any]:
        """``nothing``: what to do where the detector finds nothing, see :func:`verdicts.verdicts`."""
        cast(self.pipeline.vae, self.c.precision)  # not earlier: photos are encoded in full precision
        self.pipeline.unet.load_state_dict(weights)
        self.pipeline.unet.eval()
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine, images = self.prompts.iloc[process::processes], self.sampling.images
        bar = {"total": len(mine) * images, "leave": False, "disable": not self.accelerator.is_main_process}
        drawn = list(tqdm(diffusion.sample(self.pipeline, mine, self.sampling), "validation", **bar))
        self.images = [image for _, number, image in drawn if number == 0][:SHOWN]
        boxes, c = pd.concat(gather_object([self._boxes(drawn)]), ignore_index=True), self.c
        records = verdicts(self.prompts, boxes, images, c.threshold, c.pairs, c.rules, nothing=nothing)
        values = scores(records).query("relation == 'all'").set_index("metric").value
        known = {name: None if np.isnan(values[name]) else float(values[name]) for name in MAIN}
        return {**known, "images": len(records), "both_found": int(records.both_found.sum())}

    def _boxes(self, drawn: list[tuple[int, int, np.ndarray]]) -> pd.DataFrame:
        ids, numbers, images = (list(part) for part in zip(*drawn, strict=True)) if drawn else ([], [], [])
        prompts = self.prompts.set_index("prompt_id").loc[ids, ["subject", "object"]]
        names = list(prompts.itertuples(index=False, name=None))
        boxes = self.detector.detect(images, names, floor=self.c.threshold)
        image = boxes.image.to_numpy(int)
        return boxes.assign(prompt_id=np.array(ids, int)[image], image_index=np.array(numbers, int)[image])


def rank(values: dict[str, Any], start: dict[str, Any] | None, oa_floor: float) -> tuple[bool, float]:
    """Higher is better: first, both objects are found nearly as often as at the start; then, VISOR_Cond.

    Without the floor, a model that hardly ever draws two objects, and places those few right by luck, would win.
    """
    floor = oa_floor * start["OA"] if start else 0.0
    return values["OA"] >= floor, -1.0 if values["VISOR_Cond"] is None else values["VISOR_Cond"]


def train(
    folder: Path, key: dict[str, Any], state: dict[str, Any], pipeline: Any, captions: Captions, encoded: Encoded,
    validator: Validator | None, c: Choices, accelerator: Accelerator,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune the pipeline's UNet; ``state`` is empty, or that of the checkpoint to go on from."""
    share = share_of(c, accelerator.num_processes, accelerator.process_index)
    samples = Sampler(captions, encoded, pipeline, c.batch, c.caption_dropout, c.balanced, c.seed)
    cast(pipeline.text_encoder, c.precision)
    text = Text(pipeline, samples.texts, c.text_cache_mb, draws=c.steps * c.batch)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    unet, pipeline.unet = pipeline.unet, cast(copy.deepcopy(pipeline.unet), c.precision) if validator else None
    learner = Learner(unet, c)
    if state:
        restore(Path(state["checkpoint"]), learner)
    log = Log(folder / "log.jsonl", state, images_per_second_at_peak(unet, samples, text, c), c, accelerator)
    network = accelerator.prepare_model(torch.compile(unet) if c.compile else unet)  # for precision and processes
    begun, best, start, good = (state.get(name) for name in ("step", "best", "start", "checkpoint"))
    if validator and not state:
        start = log.validation(0, validator(learner.kept()), validator.images)
    unet.train()

    for step, batch in ahead(lambda step: samples(step, share), range(begun or 0, c.steps)):
        seed = np.random.SeedSequence([c.seed, step, share.start]).generate_state(1)[0]
        torch.manual_seed(int(seed))  # of dropout, where a model has any
        parts = batch.split(c.micro_batch or len(share))
        for i, part in enumerate(parts):
            with accelerator.no_sync(network) if i + 1 < len(parts) else nullcontext():
                loss = diffusion_loss(network, schedule, part.to(accelerator.device), text(part.caption)) / len(parts)
                accelerator.backward(loss)
            log.add(loss)
        log.add_norm(learner.step(step, learning_rate(step, c)))

        done = step + 1
        validate = validator and (done % c.validate_every == 0 or done == c.steps)
        save = validate or done % c.checkpoint_every == 0 or done == c.steps
        if save or done % c.log_every == 0:
            log.line(done, learning_rate(step, c), good)  # raises if the loss is not finite: before anything is saved
        if validator and validate:
            values = validator(learner.kept(), nothing="record")  # to draw nothing is a result
            values = log.validation(done, values, validator.images)
            if best is None or rank(values, start, c.oa_floor) > rank(best, start, c.oa_floor):
                best = values
                save_unet(folder / "best", learner, accelerator)
        if done in c.milestones:
            save_unet(folder / f"step-{done}", learner, accelerator)
        if save:
            position = {"step": done, "best": best, "start": start, "key": key, **log.position()}
            good = checkpoint(folder, learner, position, c.keep_checkpoints, accelerator)
            log.resume_clock()
    for name in ("last", "best") if best is None else ("last",):
        save_unet(folder / name, learner, accelerator)
    log.close()
    return {"start": start, "best": best or {"step": c.steps}, **log.position(), "text_states_cached": text.cached}


def diffusion_loss(network: Callable[..., Any], schedule: DDPMScheduler, batch: Batch, text: Tensor) -> Tensor:
    """Stable Diffusion's loss: the mean squared error of the predicted noise (Ho et al. 2020) or, where the model's
    scheduler says so, of the velocity (Salimans and Ho 2022)."""
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timestep)
    predicted = network(noisy, batch.timestep, encoder_hidden_states=text).sample
    velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(batch.latents, batch.noise, batch.timestep) if velocity else batch.noise
    return functional.mse_loss(predicted.float(), target)


def learning_rate(step: int, c: Choices) -> float:
    """Linear warm-up, then constant or half a cosine down to zero; a function of the step, so no state."""
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    if c.schedule == "constant":
        return c.lr
    return c.lr * (1 + math.cos(math.pi * (step - c.warmup) / max(c.steps - c.warmup, 1))) / 2
