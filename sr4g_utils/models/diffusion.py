"""Prompts to pixels: any text-to-image pipeline of diffusers, in batches across prompts.

**What a sample's noise depends on.** Each image has a generator of its own on the CPU, seeded by a hash of (the
profile's seed, the prompt's text, the image's number) and of nothing else; it gives the initial noise and what the
scheduler adds on the way. So two models, two prompt sets or two machines start the same prompt from the same noise.

**What its bytes depend on.** Prompts form fixed groups, and a group is always made in the same batches. Same group,
batch size, library versions and hardware: same bytes, however often the run was interrupted and however many processes
shared it. Otherwise a sum may be rounded in another order, and pixels differ by a few levels.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from jaxtyping import UInt8

from ..store.files import say
from .limits import AdaptiveBatches, check_words, not_numbers, tokenizers
from .sampling import Pixels, Sampling

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
    not fit into memory, it is halved, that is said, and the rest goes on with the smaller one.

    Args:
        pipeline: from :func:`models.load_pipeline`; left as it was. prompts: columns prompt_id and caption.

    Yields:
        prompt_id, the image's number (from 0) and the image, uint8 RGB.

    Raises:
        ValueError: a caption that the pipeline's vocabulary lacks words for, an unknown scheduler, or pixels that are
            none. FloatingPointError: the model gives NaN or infinity.
    """
    for tokenizer in tokenizers(pipeline):
        check_words(tokenizer, [*prompts.caption, sampling.negative_prompt])
    own, pipeline.scheduler = pipeline.scheduler, _scheduler(pipeline, sampling)
    pipeline.set_progress_bar_config(disable=True)
    batches = AdaptiveBatches(sampling.batch)
    try:
        for group in groups(prompts, sampling.group):
            rows = zip(group.prompt_id, group.caption, strict=True)
            wanted = [(id, text, i) for id, text in rows for i in range(sampling.images)]
            call = _caller(pipeline, list(group.caption), sampling)
            for part, images in batches(wanted, call):
                for (id, _, index), image in zip(part, images, strict=True):
                    yield id, index, image
    finally:
        pipeline.scheduler = own


def groups(table: pd.DataFrame, size: int) -> list[pd.DataFrame]:
    return [table.iloc[start : start + size] for start in range(0, len(table), size)]


def _caller(pipeline: DiffusionPipeline, texts: list[str], sampling: Sampling) -> Callable[[Sequence[Wanted]], Images]:
    """A function that draws a batch of images. Stable Diffusion's prompts are encoded here, each once."""
    options: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "output_type": "np",  # which a pipeline converts to [0, 1] itself; not all do so for "pt"
    }
    if isinstance(pipeline, StableDiffusionPipeline):
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        with torch.inference_mode():
            guided = sampling.guidance > 1
            negative = [sampling.negative_prompt] * len(distinct)
            states, empty = pipeline.encode_prompt(list(distinct), pipeline.device, 1, guided, negative)

        def prompt(texts: list[str]) -> dict[str, Any]:
            rows = [distinct[text] for text in texts]
            return {"prompt_embeds": states[rows], "negative_prompt_embeds": empty[rows] if guided else None}
    else:
        takes = inspect.signature(pipeline.__call__).parameters
        options = {name: value for name, value in options.items() if name in takes}

        def prompt(texts: list[str]) -> dict[str, Any]:
            negative = {"negative_prompt": [sampling.negative_prompt] * len(texts)}
            return {"prompt": texts, **(negative if sampling.negative_prompt and "negative_prompt" in takes else {})}

    def call(wanted: Sequence[Wanted]) -> Images:
        texts, generators = [text for _, text, _ in wanted], [noise(sampling.seed, text, i) for _, text, i in wanted]
        with torch.inference_mode():
            images = pipeline(**prompt(texts), **options, generator=generators).images
        return _pixels(images, texts, type(pipeline).__name__, str(pipeline.dtype).removeprefix("torch."))

    return call


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
