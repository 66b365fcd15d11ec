"""What a pipeline is made of, as its ``model_index.json`` says, and whether it draws images from prompts alone."""

import inspect
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from diffusers.utils.import_utils import BACKENDS_MAPPING

from .source import ModelError, Source

# What a part can be: a network, whose weights are checked, or something that has none.
KINDS = (
    torch.nn.Module, diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin,
    transformers.ImageProcessingMixin, transformers.FeatureExtractionMixin,
)  # fmt: skip


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
    listed = pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
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
        kinds = "no network, tokenizer, scheduler or processor"
        raise ModelError(f"{named} a {name}, which is {kinds}; name another model")
    return kind
