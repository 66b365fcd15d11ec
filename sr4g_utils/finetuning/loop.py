"""The loop that fine-tunes a model on captions with spatial relations (paper, section 4).

VAE and text encoders stay frozen. What a step sees depends on seed, step and place in the batch alone
(:mod:`.batches`), and the learning rate on the step. So a checkpoint holds the step, the weights, their average and the
optimiser, and no random state or schedule. A killed run goes on from its last checkpoint and ends with the weights of
one that was not, bit for bit on the CPU.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from ..evaluation.scores import MAIN, scores
from ..evaluation.verdicts import verdicts
from ..models import diffusion
from ..models.detectors import Detector
from ..models.load import DTYPES
from ..models.sampling import Sampling
from .batches import Batch, Sampler, Text, ahead
from .captions import Captions
from .checkpoints import Learner, cast, checkpoint, restore, save_network
from .choices import Choices
from .latents import Encoded
from .log import Log, images_per_second_at_peak, share_of
from .nets import Net, States

SHOWN = 8  # images of a validation that a tracker gets


class Validator:
    """``validator()``: OA, VISOR, VISOR_Cond and counts of what the pipeline draws. Processes share the prompts."""

    def __init__(
        self, net: Net, prompts: pd.DataFrame, detector: Detector, c: Choices, accelerator: Accelerator
    ) -> None:
        self.net, self.prompts, self.detector, self.accelerator = net, prompts, detector, accelerator
        self.c, self.sampling = c, Sampling.of(c.sampling)
        self.images: list[np.ndarray] = []  # some that the last call drew, each of another prompt

    def __call__(self, nothing: str = "raise") -> dict[str, Any]:
        """``nothing``: what to do where the detector finds nothing, see :func:`verdicts.verdicts`."""
        cast(self.net.pipeline.vae, self.c.precision)  # not earlier: photos are encoded in full precision
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine, images = self.prompts.iloc[process::processes], self.sampling.images
        bar = {"total": len(mine) * images, "leave": False, "disable": not self.accelerator.is_main_process}
        with _answering(self.net.module, self.c.precision):
            drawn = list(tqdm(diffusion.sample(self.net.pipeline, mine, self.sampling), "validation", **bar))
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


@contextmanager
def _answering(network: Any, precision: str) -> Iterator[None]:
    """A network whose output is in the precision of the pipeline around it, as it is not while it learns."""
    hook = network.register_forward_hook(lambda _, __, output: (output[0].to(DTYPES[precision]), *output[1:]))
    try:
        yield
    finally:
        hook.remove()


def rank(values: dict[str, Any], start: dict[str, Any] | None, oa_floor: float) -> tuple[bool, float]:
    """Higher is better: first, both objects are found nearly as often as at the start; then, VISOR_Cond.

    Without the floor, a model that hardly ever draws two objects, and places those few right by luck, would win.
    """
    floor = oa_floor * start["OA"] if start else 0.0
    return values["OA"] >= floor, -1.0 if values["VISOR_Cond"] is None else values["VISOR_Cond"]


def train(
    folder: Path, key: dict[str, Any], state: dict[str, Any], net: Net, captions: Captions, encoded: Encoded,
    validator: Validator | None, c: Choices, accelerator: Accelerator,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune a pipeline's network; ``state`` is empty, or that of the checkpoint to go on from."""
    share = share_of(c, accelerator.num_processes, accelerator.process_index)
    samples = Sampler(captions, encoded, net, c.batch, c.caption_dropout, c.balanced, c.seed)
    for name, part in net.pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            cast(part, c.precision)
    text = Text(net, samples.texts, c.text_cache_mb, draws=c.steps * c.batch)
    learner = Learner(net, c)
    if state:
        restore(Path(state["checkpoint"]), learner)
    log = Log(folder / "log.jsonl", state, images_per_second_at_peak(net, samples, text, c), c, accelerator)
    network = accelerator.prepare_model(net.module)  # for precision and processes
    network = torch.compile(network) if c.compile else network
    begun, best, start, good = (state.get(name) for name in ("step", "best", "start", "checkpoint"))
    if validator and not state:
        with learner.shown():
            start = log.validation(0, validator(), validator.images)
    net.module.train()

    for step, batch in ahead(lambda step: samples(step, share), range(begun or 0, c.steps)):
        seed = np.random.SeedSequence([c.seed, step, share.start]).generate_state(1)[0]
        torch.manual_seed(int(seed))  # of dropout, where a model has any
        parts = batch.split(c.micro_batch or len(share))
        for i, part in enumerate(parts):
            with accelerator.no_sync(network) if i + 1 < len(parts) else nullcontext():
                loss = diffusion_loss(network, net, part.to(accelerator.device), text(part.caption)) / len(parts)
                accelerator.backward(loss)
            log.add(loss)
        log.add_norm(learner.step(step, learning_rate(step, c)))

        done = step + 1
        validate = validator and (done % c.validate_every == 0 or done == c.steps)
        save = validate or done % c.checkpoint_every == 0 or done == c.steps
        if save or done % c.log_every == 0:
            log.line(done, learning_rate(step, c), good)  # raises if the loss is not finite: before anything is saved
        if validator and validate:
            with learner.shown():
                values = validator(nothing="record")  # to draw nothing is a result
            values = log.validation(done, values, validator.images)
            if best is None or rank(values, start, c.oa_floor) > rank(best, start, c.oa_floor):
                best = values
                save_network(folder / "best", learner, accelerator)
        if done in c.milestones:
            save_network(folder / f"step-{done}", learner, accelerator)
        if save:
            position = {"step": done, "best": best, "start": start, "key": key, **log.position()}
            good = checkpoint(folder, learner, position, c.keep_checkpoints, accelerator)
            log.resume_clock()
    for name in ("last", "best") if best is None else ("last",):
        save_network(folder / name, learner, accelerator)
    log.close()
    about = {"start": start, "best": best or {"step": c.steps}, "text_states_cached": text.cached}
    return {**about, **log.position(), **({"lora": learner.lora} if learner.lora else {})}


def diffusion_loss(network: Any, net: Net, batch: Batch, states: States) -> Tensor:
    """The loss of the family's process on a batch; ``network`` is the family's, perhaps compiled or of a process."""
    return net.process.loss(lambda x, t: net.call(network, x, t, states), batch)


def learning_rate(step: int, c: Choices) -> float:
    """Linear warm-up, then constant or half a cosine down to zero; a function of the step, so no state."""
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    if c.schedule == "constant":
        return c.lr
    return c.lr * (1 + math.cos(math.pi * (step - c.warmup) / max(c.steps - c.warmup, 1))) / 2
