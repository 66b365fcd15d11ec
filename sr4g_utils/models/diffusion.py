"""Prompts to pixels: any text-to-image pipeline of diffusers, in batches across prompts.

**What a sample's noise depends on.** Each image has a generator of its own on the CPU, seeded by a hash of (the
profile's seed, the prompt's text, the image's number) and of nothing else; it gives the initial noise and what the
scheduler adds on the way. So two models, two prompt sets or two machines start the same prompt from the same noise.

**What its bytes depend on.** Prompts form fixed groups, and a group is always made in the same batches. Same group,
batch size, library versions and hardware: same bytes, however often the run was interrupted and however many processes
shared it. Otherwise a sum may be rounded in another order, and pixels differ by a few levels. Some classes draw
something else in a batch than alone: that is checked, and such a one draws one image at a time.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from jaxtyping import UInt8

from ..store.files import say
from . import pipelines
from .limits import AdaptiveBatches, check_words, is_full, not_numbers, tokenizers
from .sampling import Pixels, Sampling
from .source import ModelError

Wanted = tuple[Any, str, int]  # prompt_id, caption and number of an image
Images = UInt8[np.ndarray, "image height width 3"]


def noise(seed: int, text: str, index: int) -> torch.Generator:
    """The random numbers of one image: a function of the seed, the prompt's text and the image's number alone."""
    data = json.dumps([seed, text, index]).encode()
    return torch.Generator("cpu").manual_seed(int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1)


def sample(
    pipeline: DiffusionPipeline,
    prompts: pd.DataFrame,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Iterator[tuple[Any, int, Pixels]]:
    """Images of every prompt, ``sampling.images`` each, in the order of the prompts.

    Batches reach across prompts, but not from one group of ``sampling.group`` prompts into the next. When a batch does
    not fit into memory, it is halved, that is said, and the rest goes on with the smaller one. An image of each
    group's first batch is drawn alone, too; if it differs, the group is drawn one image at a time, which is said.

    Args:
        pipeline: from :func:`models.load_pipeline`; left as it was. prompts: columns prompt_id and caption.

    Yields:
        prompt_id, the image's number (from 0) and the image, uint8 RGB.

    Raises:
        ValueError: a caption that the pipeline's vocabulary lacks words for, an unknown scheduler, or pixels that are
            none. ModelError: the pipeline fails. FloatingPointError: the model gives NaN or infinity.
    """
    sampling = pipelines.applied(pipeline, sampling)
    longest = pipelines.defaults(pipeline).get("max_sequence_length")
    check_words(tokenizers(pipeline), [*prompts.caption, sampling.negative_prompt], longest)
    changed = {"scheduler": _scheduler(pipeline, sampling), **pipelines.guiders(pipeline, sampling.guidance)}
    own = {name: getattr(pipeline, name) for name in changed}
    pipeline.set_progress_bar_config(disable=True)
    batches = AdaptiveBatches(sampling.batch)
    try:
        for name, part in changed.items():
            setattr(pipeline, name, part)
        for group in groups(prompts, sampling.group):
            rows = zip(group.prompt_id, group.caption, strict=True)
            wanted = [(id, text, i) for id, text in rows for i in range(sampling.images)]
            call = _caller(pipeline, list(group.caption), sampling)
            for n, (part, images) in enumerate(batches(wanted, call)):
                if not n and _depends_on_batch(pipeline, call, part, images):
                    batches.size = 1
                    images = np.concatenate([call([one]) for one in part])
                for (id, _, index), image in zip(part, images, strict=True):
                    yield id, index, image
    finally:
        for name, part in own.items():
            setattr(pipeline, name, part)


def groups(table: pd.DataFrame, size: int) -> list[pd.DataFrame]:
    return [table.iloc[start : start + size] for start in range(0, len(table), size)]


def _caller(pipeline: DiffusionPipeline, texts: list[str], sampling: Sampling) -> Callable[[Sequence[Wanted]], Images]:
    """A function that draws a batch of images. Stable Diffusion's prompts are encoded here, each once."""
    options = pipelines.arguments(pipeline, sampling)
    if isinstance(pipeline, StableDiffusionPipeline):
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        with torch.inference_mode():
            guided = options["guidance_scale"] > 1
            negative = [sampling.negative_prompt] * len(distinct)
            states, empty = pipeline.encode_prompt(list(distinct), pipeline._execution_device, 1, guided, negative)

        def prompt(texts: list[str]) -> dict[str, Any]:
            rows = [distinct[text] for text in texts]
            return {"prompt_embeds": states[rows], "negative_prompt_embeds": empty[rows] if guided else None}
    else:

        def prompt(texts: list[str]) -> dict[str, Any]:
            negative = {"negative_prompt": [sampling.negative_prompt] * len(texts)}
            return {"prompt": texts, **(negative if sampling.negative_prompt else {})}

    def call(wanted: Sequence[Wanted]) -> Images:
        texts, generators = [text for _, text, _ in wanted], [noise(sampling.seed, text, i) for _, text, i in wanted]
        try:
            with torch.inference_mode():
                images = pipeline(**prompt(texts), **options, generator=generators)[0]
        except Exception as error:
            if is_full(error):
                raise
            raise ModelError(_failure(type(pipeline).__name__, texts, error)) from error
        images = _pixels(images, texts, type(pipeline).__name__, str(pipeline.dtype).removeprefix("torch."))
        if sampling.size and list(images.shape[1:3]) != sampling.size:
            here, wished = ("{} x {}".format(*size) for size in (images.shape[1:3], sampling.size))
            kind = type(pipeline).__name__
            raise ValueError(f"sampling: {kind} draws {here} pixels where size is {wished}; let size be what it draws")
        return images

    return call


def _failure(kind: str, texts: list[str], error: Exception) -> str:
    """What to say of a pipeline that fails, whatever its error is."""
    remedy = "see whether diffusers draws this prompt by itself"
    if len(texts) > 1:
        remedy = "it may draw one image at a time: set batch to 1 in sampling"
    if isinstance(error, NameError) and error.name and not find_spec(error.name):  # diffusers' optional packages
        remedy = f"install the package {error.name} (pip install {error.name})"
    more = f" and {len(texts) - 1} more" * (len(texts) > 1)
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return f"{kind} fails on the prompt {texts[0]!r}{more}: {reason}; {remedy}"


LEVELS = 3  # by which an image may differ between batches in float32, where sums are rounded in another order
MEAN_LEVELS = 8  # on average over pixels, in half precision, whose errors add up from step to step


def _depends_on_batch(pipeline: DiffusionPipeline, call: Callable, part: Sequence[Wanted], images: Images) -> bool:
    """Whether an image of a batch differs from itself drawn alone: the one of the shortest prompt, which is padded
    most, if that is not the first image; of equally short ones the last."""
    if len(part) == 1 or isinstance(pipeline, StableDiffusionPipeline):
        return False
    at = min(range(1, len(part)), key=lambda i: (len(part[i][1]), -i))
    difference = np.abs(call([part[at]])[0].astype(int) - images[at])
    if difference.max() <= LEVELS or (pipeline.dtype != torch.float32 and difference.mean() <= MEAN_LEVELS):
        return False
    kind, saves = type(pipeline).__name__, "batch: 1 in sampling saves the attempt"
    say(f"WARNING: {kind} draws something else in a batch than alone: going on one image at a time; {saves}")
    return True


def _pixels(images: Any, texts: list[str], kind: str, dtype: str) -> Images:
    """What a pipeline returns, in grey levels: a black image in place of NaN would be scored as one that disobeys."""
    values = np.stack([np.asarray(image) for image in images])
    if values.ndim != 4 or values.shape[-1] != 3:
        raise ValueError(f"{kind}: returns arrays of shape {values.shape}, not RGB images; it cannot be scored")
    if values.dtype == np.uint8:  # a pipeline that knows images alone
        return values
    if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3)))):
        raise FloatingPointError(f"{kind}: {texts[bad[0]]!r} gives pixels that are {not_numbers(dtype)}")
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise ValueError(f"{kind}: returns pixels from {values.min():.3g} to {values.max():.3g}, not from 0 to 1")
    return (values * 255).round().clip(0, 255).astype(np.uint8)


# Which noise levels a scheduler visits and how it goes from one to the next: the class's own, not the model's
STEPS = (
    "timestep_spacing", "timestep_type", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "interpolation_type", "final_sigmas_type", "euler_at_final", "lower_order_final",
    "algorithm_type", "solver_order", "solver_type",
)  # fmt: skip


def scheduling(pipeline: DiffusionPipeline, sampling: Sampling) -> dict[str, Any]:
    """The class of the scheduler that :func:`sample` uses, and its settings, for the record."""
    scheduler = _scheduler(pipeline, sampling)
    named = ("prediction_type", "rescale_betas_zero_snr", "shift", *STEPS, "steps_offset")
    settings = {name: scheduler.config[name] for name in named if name in scheduler.config}
    return {"class": type(scheduler).__name__, **settings}


def _scheduler(pipeline: DiffusionPipeline, sampling: Sampling) -> Any:
    """A fresh scheduler of the class that is named, or the model's, with the model's noise schedule; see Sampling."""
    name, own = sampling.scheduler, pipeline.scheduler.config
    kind = type(pipeline.scheduler) if name is None else getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        known = ", ".join(sorted(scheduler.__name__ for scheduler in pipeline.scheduler.compatibles))
        raise ValueError(f"sampling: diffusers has no scheduler {name!r}; this pipeline takes {known}")
    if "noise_sampler_seed" in inspect.signature(kind).parameters:
        raise ValueError(f"sampling: {name} draws noise of its own for a whole batch; choose another scheduler")
    takes = inspect.signature(kind).parameters
    laid = {key: takes[key].default for key in STEPS if name is not None and key in takes}
    if "timestep_spacing" in laid and own.get("timestep_spacing", laid["timestep_spacing"]) not in (
        laid["timestep_spacing"], sampling.timestep_spacing,
    ):  # fmt: skip
        here = f"{sampling.timestep_spacing or laid['timestep_spacing']} here, as in all models"
        say(f"{name}: timestep_spacing is {here}; the model's folder says {own['timestep_spacing']} (docs/evaluate.md)")
    choices = {"timestep_spacing": sampling.timestep_spacing, "steps_offset": sampling.steps_offset}
    chosen = {key: value for key, value in choices.items() if value is not None}
    if lacks := [key for key in chosen if key not in takes]:
        raise ValueError(f"sampling: {kind.__name__} has no {lacks[0]}; leave it out")
    fresh: Any = kind
    scheduler = fresh.from_config(own, **laid | chosen)
    most = scheduler.config.get("num_train_timesteps", sampling.steps + 2) - 2
    if scheduler.config.get("timestep_spacing") == "leading" and sampling.steps > most:  # some would stay at timestep 1
        remedy = f"take at most {most}, or timestep_spacing: trailing"
        raise ValueError(f"sampling: steps: {sampling.steps} do not fit the model's timesteps; {remedy}")
    return scheduler
