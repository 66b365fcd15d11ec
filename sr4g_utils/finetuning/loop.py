"""The loop that fine-tunes a Stable Diffusion's UNet on captions with spatial relations (paper, section 4).

The loss is Stable Diffusion's own: the mean squared error of the predicted noise, or of the velocity, as the model's
scheduler says. VAE and text encoder stay frozen.

What a step sees is a function of seed, step and place in the batch (:mod:`.samples`), and the learning rate one of the
step. So a checkpoint needs no random state, sampler or schedule beside the step: weights, their average and the
optimiser are all there is. A run that is killed goes on from the last one and ends with the weights of a run that was
not, bit for bit on the CPU.
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

from ..evaluation import scores as evaluation_scores
from ..evaluation import verdicts
from ..models import diffusion
from ..models.detectors import Detector
from ..models.sampling import Sampling
from .batches import Batch, Sampler, Text, ahead
from .captions import Captions
from .checkpoints import Learner, cast, checkpoint, restore, save_unet
from .choices import Choices
from .latents import Encoded
from .log import Log, images_per_second_at_peak, share_of

# a UNet's weights (and ``nothing``, see visor.verdicts) -> OA, VISOR, VISOR_Cond and their counts
Judge = Callable[..., dict[str, Any]]


def judge_of(pipeline: Any, asked: pd.DataFrame, detector: Detector, c: Choices, accelerator: Accelerator) -> Judge:
    """What scores a UNet's weights on the prompts asked; the processes share the prompts."""
    sampling = Sampling.of(c.sampling)
    cast(pipeline.vae, c.precision)
    mine = asked.iloc[accelerator.process_index :: accelerator.num_processes]
    names = dict(zip(asked.prompt_id, zip(asked.subject, asked.object, strict=True), strict=True))

    def judge(weights: Mapping[str, Tensor], nothing: str = "raise") -> dict[str, Any]:
        pipeline.unet.load_state_dict(weights)
        pipeline.unet.eval()
        total, quiet = len(mine) * sampling.images, not accelerator.is_main_process
        drawn = diffusion.sample(pipeline, mine, sampling)
        made = list(tqdm(drawn, "validation", total, leave=False, disable=quiet))
        ids, numbers, pictures = (list(part) for part in zip(*made, strict=True)) if made else ([], [], [])
        found = detector.detect(pictures, [names[id] for id in ids], floor=c.threshold)
        at = found.image.to_numpy(int)
        found = found.assign(prompt_id=np.array(ids, int)[at], image_index=np.array(numbers, int)[at])
        found = pd.concat(gather_object([found]), ignore_index=True)
        records = verdicts.verdicts(
            asked, found, images=sampling.images, threshold=c.threshold, pairs=c.pairs, rules=c.rules, nothing=nothing
        )
        scores = evaluation_scores.scores(records).query("relation == 'all'").set_index("metric").value
        values = {name: None if np.isnan(scores[name]) else float(scores[name]) for name in evaluation_scores.MAIN}
        return {**values, "images": len(records), "both_found": int(records.both_found.sum())}

    return judge


def rank(scores: dict[str, Any], start: dict[str, Any] | None, oa_floor: float) -> tuple[bool, float]:
    """Higher is better: first, both objects are found nearly as often as at the start; then, VISOR_Cond.

    Without the floor, a model that has all but forgotten to draw two objects, and puts them right by luck, would win.
    """
    floor = oa_floor * start["OA"] if start else 0.0
    return scores["OA"] >= floor, -1.0 if scores["VISOR_Cond"] is None else scores["VISOR_Cond"]


def train(
    folder: Path,
    key: dict[str, Any],
    state: dict[str, Any],
    pipeline: Any,
    captions: Captions,
    encoded: Encoded,
    judge: Judge | None,
    c: Choices,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Fine-tune the pipeline's UNet; ``state`` is empty, or that of the checkpoint to go on from."""
    share = share_of(c, accelerator.num_processes, accelerator.process_index)
    samples = Sampler(captions, encoded, pipeline, c.batch, c.caption_dropout, c.balanced, c.seed, bool(c.doses))
    cast(pipeline.text_encoder, c.precision)
    text = Text(pipeline, samples.texts, c.text_cache_mb, draws=c.steps * c.batch)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    unet, pipeline.unet = pipeline.unet, cast(copy.deepcopy(pipeline.unet), c.precision) if judge else None
    learner = Learner(unet, c)
    if state:
        restore(Path(state["checkpoint"]), learner)
    log = Log(folder / "log.jsonl", state, images_per_second_at_peak(unet, samples, text, c), c, accelerator)
    network = accelerator.prepare_model(
        torch.compile(unet) if c.compile else unet
    )  # wrapped for precision and processes
    begun, best, start, good = (state.get(name) for name in ("step", "best", "start", "checkpoint"))
    if judge and not state:
        start = log.validation(0, judge(learner.kept()))
    unet.train()

    for step, batch in ahead(lambda step: samples(step, share), range(begun or 0, c.steps)):
        torch.manual_seed(_seed(c.seed, step, share.start))  # of dropout, where a model has any
        parts = batch.split(c.micro_batch or len(share))
        for i, part in enumerate(parts):
            with accelerator.no_sync(network) if i + 1 < len(parts) else nullcontext():
                loss = diffusion_loss(network, schedule, part.to(accelerator.device), text(part.caption)) / len(parts)
                accelerator.backward(loss)
            log.add(loss)
        log.add_norm(learner.step(step, learning_rate(step, c)))

        done = step + 1
        validate = judge and (done % c.validate_every == 0 or done == c.steps)
        save = validate or done % c.checkpoint_every == 0 or done == c.steps
        if save or done % c.log_every == 0:
            log.line(done, learning_rate(step, c), good)  # raises if the loss is not finite: before anything is saved
        if judge and validate:
            scores = log.validation(done, judge(learner.kept(), nothing="record"))  # to draw nothing is a result
            if best is None or rank(scores, start, c.oa_floor) > rank(best, start, c.oa_floor):
                best = scores
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
    """Stable Diffusion's loss: the error of the predicted noise (Ho et al. 2020) or velocity (Salimans and Ho 2022)."""
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


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
