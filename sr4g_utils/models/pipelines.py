"""Pipelines of diffusers: what they are made of, which draw images from prompts alone, and what their calls take."""

import inspect
from importlib.util import find_spec
from typing import Any

import diffusers
import msgspec
import torch
import transformers
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from diffusers.utils.import_utils import BACKENDS_MAPPING

from ..store.files import say
from .sampling import Sampling
from .source import ModelError, Source

# What a part can be: a network, whose weights are checked, or something that has none.
KINDS = (
    torch.nn.Module, diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin,
    transformers.ImageProcessingMixin, transformers.FeatureExtractionMixin, BaseGuidance,
)  # fmt: skip


# Where diffusers does not tell: an image may be left out; or it makes something else
ALONE = (
    "BriaFibo2Pipeline", "DreamLiteMobilePipeline", "DreamLitePipeline", "Flux2KleinKVPipeline", "UniDiffuserPipeline",
)  # fmt: skip
OTHERS = {
    "JoyImageEditPlusPipeline": "takes an image besides the prompt",
    "StableDiffusionPix2PixZeroPipeline": "takes more than a prompt (it needs source_embeds, target_embeds)",
} | dict.fromkeys(("DiffusionGemmaPipeline", "LLaDA2Pipeline", "StableAudio3Pipeline"), "makes no single images")


def classes(index: dict[str, Any], source: Source, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The class of each part of a pipeline, which is the name of its sub-folder; those to ``skip`` are left out.

    Raises:
        ModelError: a part is code of its own, needs a package that is not installed or is unknown to this diffusers, or
            the pipeline does not draw images from prompts alone.
    """
    takes = inspect.signature(_pipeline(index, source).__init__).parameters
    named = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[0]}
    return {name: _class(name, named[name], source) for name in named if name in takes and name not in skip}


def networks(index: dict[str, Any], source: Source, skip: tuple[str, ...] = ()) -> dict[str, bool]:
    """By name, whether a part of a pipeline is a network, with weights. Errors: see :func:`classes`."""
    return {name: issubclass(kind, torch.nn.Module) for name, kind in classes(index, source, skip).items()}


def _pipeline(index: dict[str, Any], source: Source) -> Any:
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ModelError(f"{source.name}: its pipeline is code of its own ({name}), which is never run")
    kind = getattr(diffusers, name, None)
    if missing := [each for each in getattr(kind, "_backends", ()) if not BACKENDS_MAPPING[each][0]()]:
        raise ModelError(f"{source.name}: a {name} needs {' and '.join(missing)}; install that first (pip install …)")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ModelError(f"{source.name} is a {name}, no pipeline of diffusers {diffusers.__version__}; upgrade that")
    if why := _useless(kind):
        raise ModelError(f"{source.name} is a {name}, which {why}; name a text-to-image model")
    return kind


def _useless(pipeline: Any) -> str | None:
    """Why a pipeline of this class cannot draw an image from a prompt alone; None if it can. That it needs an image it
    often does not say, for its image has the default None: diffusers' list of text-to-image pipelines tells."""
    takes = inspect.signature(pipeline.__call__).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, each in takes.items() if each.default is each.empty and each.kind not in variadic]
    others = [name for name in needed if name not in ("self", "prompt")]
    if "prompt" not in takes or others:
        least = "more than a prompt" if "prompt" in takes else "no prompt"
        return f"takes {least}" + f" (it needs {', '.join(others)})" * bool(others)
    if any("video" in name or "audio" in name or name in ("num_frames", "frames", "frame_size") for name in takes):
        return "makes no single images"
    if "Prior" in pipeline.__name__:
        return "makes embeddings, not images"
    if pipeline.__name__ in OTHERS:
        return OTHERS[pipeline.__name__]
    listed = pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() or pipeline.__name__ in ALONE
    controlled = "controlnet" in inspect.signature(pipeline.__init__).parameters
    if {"control_image", "mask_image"} & takes.keys() or ("image" in takes and (controlled or not listed)):
        return "takes an image besides the prompt"
    return "takes parts of other models" if pipeline._load_connected_pipes else None


def _class(part: str, value: list[Any], source: Source) -> Any:
    """The class that ``[library, name]`` stands for."""
    (library, name), named = value, f"{source.name}: its {part} is"
    if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, str(library)):
        if str(library).isidentifier() and find_spec(f"diffusers.pipelines.{library}"):
            raise ModelError(f"{named} a {library}.{name} of diffusers, which needs a package that is not installed")
        raise ModelError(f"{named} code of its own ({library}.{name}), which is never run")
    try:
        kind = simple_get_class_obj(library, name)
    except AttributeError:
        raise ModelError(f"{named} a {name}, which {library} does not have in the version here; upgrade it") from None
    if not issubclass(kind, KINDS):
        if missing := getattr(kind, "_backends", ()):  # a stand-in for what transformers cannot import
            needs = " and ".join(missing)
            raise ModelError(f"{named} a {name}, which needs {needs}; install that first (pip install …)")
        kinds = "no network, tokenizer, scheduler, guider or processor"
        raise ModelError(f"{named} a {name}, which is {kinds}; name another model")
    return kind


def resolution(pipeline: Any) -> list[int] | None:
    """Height and width in pixels at which the model was trained, as far as its configuration says."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    config = getattr(denoiser, "config", None)
    sample = getattr(pipeline, "default_sample_size", None) or getattr(config, "sample_size", None)
    if sample is None or not hasattr(pipeline, "vae_scale_factor"):
        return None
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return [height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor]


def defaults(pipeline: Any) -> dict[str, Any]:
    """What a pipeline's call takes, and the default of each (an argument without one: None)."""
    takes = inspect.signature(pipeline.__call__).parameters.values()
    return {argument.name: None if argument.default is argument.empty else argument.default for argument in takes}


def guidance_argument(pipeline: Any) -> str | None:
    """The argument of a pipeline's call that guidance is, or "guider", its part; None if it ignores guidance.

    A network that was distilled reads the guidance (``guidance_embeds``); FLUX and Qwen-Image without that have
    classifier-free guidance under another name, and FLUX's is off, as its authors use it without.
    """
    takes = defaults(pipeline)
    network = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    embedded = bool(getattr(getattr(network, "config", None), "guidance_embeds", False))
    if (guider := getattr(pipeline, "guider", None)) is not None:
        return "guider" if "guidance_scale" in guider.config else None
    if "distilled_guidance_scale" in takes:  # HunyuanImage without a guider
        return "distilled_guidance_scale" if embedded else None
    if "true_cfg_scale" in takes and not embedded:
        return None if takes.get("guidance_scale") is not None else "true_cfg_scale"
    if getattr(pipeline.config, "is_distilled", False):  # FLUX.2 Klein of few steps
        return None
    chosen = embedded or "guidance_schedule" in takes  # then None is no default that means "ignored"
    if takes.get("guidance_scale") is not None or ("guidance_scale" in takes and chosen):
        return "guidance_scale"
    return "decoder_guidance_scale" if "decoder_guidance_scale" in takes else None  # unCLIP's; FLUX.2 Klein KV has none


def applied(pipeline: Any, sampling: Sampling) -> Sampling:
    """Sampling as a pipeline of this class does it: guidance that is its default where none is chosen, and None where
    it ignores guidance, which is said; a negative prompt where it reads one; offload where it is loaded so.

    Raises:
        ValueError: a size that it does not take.
    """
    kind, takes, name = type(pipeline).__name__, defaults(pipeline), guidance_argument(pipeline)
    guidance, negative = sampling.guidance, sampling.negative_prompt
    if name is None and guidance is not None:
        if guidance > 1:
            say(f"WARNING: {kind} ignores guidance as this model was made; the record says null, not {guidance:g}")
        guidance = None
    elif name is not None and guidance is None:
        guidance = pipeline.guider.config["guidance_scale"] if name == "guider" else takes[name]
    if negative and ("negative_prompt" not in takes or ("true_cfg_scale" in takes and name != "true_cfg_scale")):
        say(f"WARNING: {kind} does not read a negative prompt as it is sampled here; the record says none")
        negative = ""
    if name == "true_cfg_scale" and guidance and guidance > 1:
        negative = negative or " "  # else it would draw without guidance
    if sampling.size and not {"height", "width"} <= takes.keys():
        raise ValueError(f"sampling: {kind} draws in one size only; leave size out")
    offload = sampling.offload and any(hasattr(part, "_hf_hook") for part in pipeline.components.values())
    return msgspec.structs.replace(sampling, guidance=guidance, negative_prompt=negative, offload=offload)


def arguments(pipeline: Any, sampling: Sampling) -> dict[str, Any]:
    """What a pipeline's call is given, but for prompts and noise, of sampling that is :func:`applied`."""
    takes, name = defaults(pipeline), guidance_argument(pipeline)
    options: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "output_type": "np",  # which a pipeline converts to [0, 1] itself; not all do so for "pt"
    }
    if name is not None and name != "guider" and sampling.guidance is not None:
        options |= {name: sampling.guidance, "guidance_schedule": None}
    if size := sampling.size or (resolution(pipeline) if "use_resolution_binning" in takes else None):
        # Sana and others would draw in another size, and shrink or enlarge that
        options |= {"height": size[0], "width": size[1], "use_resolution_binning": False}
    if not (find_spec("ftfy") and find_spec("bs4")):  # diffusers would leave it out with a warning for each prompt
        options["clean_caption"] = False
    return {key: value for key, value in options.items() if key in takes}


def guiders(pipeline: Any, guidance: float | int | None) -> dict[str, Any]:
    """The parts of a pipeline that apply another guidance than it does by default, changed to that."""
    if guidance_argument(pipeline) != "guider" or guidance == pipeline.guider.config["guidance_scale"]:
        return {}
    parts = {name: part for name in ("guider", "ocr_guider") if (part := getattr(pipeline, name, None)) is not None}
    return {name: part.new(guidance_scale=guidance) for name, part in parts.items()}


def call_record(pipeline: Any, sampling: Sampling) -> dict[str, Any]:
    """For the record: every argument of the calls and its value, chosen or its class's default, that JSON can hold.
    What a pipeline puts before each prompt by itself is among them, and said."""
    values = defaults(pipeline) | arguments(pipeline, sampling)
    values |= {"negative_prompt": sampling.negative_prompt} if "negative_prompt" in values else {}
    left_out = ("output_type", "return_dict", "callback_on_step_end_tensor_inputs", "num_images_per_prompt")
    taken = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    if isinstance(instruction := taken.get("complex_human_instruction"), list):
        say(f"{type(pipeline).__name__} puts {len(''.join(instruction)):,} characters of its own before each prompt")
    if taken.get("use_pe") and getattr(pipeline, "pe", None) is not None:
        say(f"{type(pipeline).__name__} has its own language model rewrite each prompt")
    simple = (bool, int, float, str, list)
    return {name: value for name, value in taken.items() if isinstance(value, simple) and name not in left_out}
