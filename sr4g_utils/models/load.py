"""The text-to-image pipeline and the detector of a profile: found, checked, loaded, and written down.

A profile names a model by id and revision on the Hugging Face Hub, with mirrors, or by a local folder in the same
layout. Safetensors are read, and pickled weights only where the profile says so; code that a model brings along is
never run. Whatever keeps a model from loading ends in one :class:`ModelError` that says what to do.

Stable Diffusion's safety checker is left out unless asked for: it blackens images, and a black image would be
counted as a prompt not obeyed. Whoever publishes images should turn it on; the record says which it was.
"""

import contextlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from ..store.files import digest
from . import checks, hub, pipelines
from . import lora as lora_of
from .source import PRECISIONS, ModelError, Source, causes

DTYPES = {name: getattr(torch, name) for name in PRECISIONS}

# Names of numbers that published files hold and today's libraries do not, or the other way round, and nothing is lost:
HARMLESS = (
    "position_ids",  # 0, 1, 2, …
    "inv_freq",  # of rotary embeddings, computed from the configuration
    "num_batches_tracked",  # batch normalisation counts with it in training only
)
# What a pipeline gives its UNet and takes from it. ``sample_size`` is the size that it draws at: a UNet of another one
# (2.1's in 2.1-base's pipeline) may predict something else as well, which no UNet's configuration says.
INTERFACE = (
    "in_channels", "out_channels", "sample_size", "cross_attention_dim", "use_linear_projection", "encoder_hid_dim",
    "encoder_hid_dim_type", "class_embed_type", "num_class_embeds", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "joint_attention_dim", "pooled_projection_dim", "caption_channels",
    "guidance_embeds", "patch_size",
)  # fmt: skip


def load_pipeline(
    source: Any, dtype: str = "float32", device: str | torch.device | None = None, unet: str | Path | None = None,
    safety_checker: bool = False, offload: bool = False, vae_dtype: str | None = None, lora: str | Path | None = None,
) -> tuple[DiffusionPipeline, dict[str, Any]]:  # fmt: skip
    """A text-to-image pipeline, any of diffusers that draws from prompts alone, on its device, and the record of it.

    Args:
        source: see :meth:`Source.of`. dtype: one of ``PRECISIONS``. device: see :func:`default_device`.
        unet: folder of a fine-tuned UNet or transformer (``config.json`` and safetensors) to take the place of the
            pipeline's own. lora: folder or file of a low-rank adaptation of it.
        safety_checker: keep the pipeline's checker, if it has one. offload: the device holds one part at a time.
        vae_dtype: of the VAE, if not ``dtype``.

    Returns:
        The pipeline, and a JSON-able record: id, revision, commit, class, prediction_type, resolution (pixels), dtype,
        parameters (number), safety_checker, files (sha256 of each) and versions; nothing of this machine's paths.

    Raises:
        ModelError: the model cannot be had, is incomplete, lacks weights, differs from its checksums or draws nothing
            from a prompt; or the UNet is not one for this pipeline.
    """
    source, skip, precision = Source.of(source), () if safety_checker else ("safety_checker",), _dtype(dtype)
    if unet is not None and not (Path(unet) / "config.json").is_file():
        raise ModelError(f"{unet}: {_no_unet(Path(unet))}")
    adaptation = lora_of.file_of(Path(lora)) if lora is not None else None
    folder, commit, files = hub.find(source, "model_index.json", partial(pipelines.networks, skip=skip))
    index = checks.read(folder / "model_index.json", source)
    kinds = pipelines.classes(index, source, skip)
    hashes = checks.verify(folder, files, source)
    loaded = {}
    for name, kind in kinds.items():
        if name != _denoiser(kinds) or unet is None:
            own = [file for file in files if file.startswith(f"{name}/")]
            part_dtype = _dtype(vae_dtype) if vae_dtype and name == "vae" else precision
            loaded[name] = _part(kind, folder / name, own, source, part_dtype)
    if unet is not None:
        loaded[_denoiser(kinds)], replaced = _replacement(kinds, folder, Path(unet), source, precision)
        hashes |= replaced
    unchecked = {"safety_checker": None, "requires_safety_checker": False} if skip and skip[0] in index else {}
    with _one_line(source.name):
        options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
        pipeline = DiffusionPipeline.from_pretrained(folder, **options, **loaded, **unchecked)
    adapted = _adapt(pipeline, adaptation, source.name) if adaptation else {}
    hashes |= adapted.pop("files", {})
    for part in filter(None, (getattr(pipeline, name, None) for name in ("unet", "vae"))):
        if all(weight.dim() < 5 for weight in part.parameters()):  # those of videos have no such format
            part.to(memory_format=torch.channels_last)  # convolutions are a tenth faster on a CPU, more on a GPU
    _place(pipeline, torch.device(device or default_device()), offload, source.name)
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    record = {
        **_record(source, commit, hashes, dtype),
        "class": type(pipeline).__name__,
        "prediction_type": pipeline.scheduler.config.get("prediction_type"),
        "resolution": pipelines.resolution(pipeline),
        "safety_checker": getattr(pipeline, "safety_checker", None) is not None,
        "parameters": sum(p.numel() for model in models for p in model.parameters()),
        "unet": Path(unet).name if unet is not None else None,
        **adapted,
    }
    return pipeline, record


def load_detector(
    source: Any, dtype: str = "float32", device: str | torch.device | None = None, *, families: Mapping[str, Any]
) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    """A detector in evaluation mode on its device, its processor, and the record; see :func:`detectors.load`, whose
    ``families`` say what is loaded, and how."""
    source, precision = Source.of(source), _dtype(dtype)
    try:
        folder, commit, files = hub.find(source, "config.json", partial(_detector, families=families))
    except ModelError as error:
        known = f"; detectors are {', '.join(families)}"
        raise ModelError(f"{error}{known * (source.folder is None and known not in str(error))}") from None
    kind = str(checks.read(folder / "config.json", source)["model_type"])
    family = families[kind]
    hashes = checks.verify(folder, files, source)
    with _one_line(source.name):
        options = {"local_files_only": True, "trust_remote_code": False}
        processor = getattr(transformers, family.loader).from_pretrained(folder, **options)
        resolution = family.resolution(processor)
    _check_vocabulary(processor, source.name)
    model = _part(getattr(transformers, family.architecture), folder, files, source, precision)
    model = model.to(torch.device(device or default_device())).eval()
    record = {
        **_record(source, commit, hashes, dtype),
        "class": type(model).__name__,
        "model_type": kind,
        "resolution": resolution,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return model, processor, record


def default_device() -> str:
    """The accelerator that torch finds, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def _detector(config: dict[str, Any], source: Source, families: Mapping[str, Any]) -> dict[str, bool]:
    kind = config.get("model_type", "")
    if kind not in families:
        other = "boxes that another program found are scored as a table (`sr4g score boxes.csv`, docs/evaluate.md)"
        raise source.error(f"config.json names the model_type {kind!r}; detectors are {', '.join(families)}; {other}")
    families[kind].check(config, source)
    return {"": True}


def _place(pipeline: DiffusionPipeline, device: torch.device, offload: bool, name: str) -> None:
    """Put a pipeline on its device, whole or one part at a time."""
    if not offload:
        pipeline.to(device)
    elif device.type == "cpu":
        print(f"{name}: offload does nothing without a GPU", file=sys.stderr)
    else:
        with _one_line(name):
            pipeline.enable_model_cpu_offload(device=device)


def _record(source: Source, commit: str | None, hashes: dict[str, str], dtype: str) -> dict[str, Any]:
    revision = source.revision if source.folder is None else None
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers", "accelerate")}
    about = {"id": source.name, "revision": revision, "commit": commit, "dtype": dtype}
    return about | {"files": hashes, "versions": versions}


def _part(kind: Any, folder: Path, files: list[str], source: Source, dtype: torch.dtype) -> Any:
    """One part from its folder: a network of which nothing is missing, or a tokenizer, scheduler or processor."""
    name = f"{source.name}: {folder.name}" if any("/" in file for file in files) else source.name
    if not issubclass(kind, torch.nn.Module):
        with _one_line(name):
            part = kind.from_pretrained(folder, local_files_only=True)
        _check_vocabulary(part, name)
        return part
    weights = [file for file in files if checks.is_weights(file)]
    options = {
        "dtype": dtype,
        "variant": checks.variant(weights[0]),
        "use_safetensors": not weights[0].endswith(".bin"),  # pickled ones are read as tensors only (weights_only)
        "output_loading_info": True,
        "local_files_only": True,
    }
    if issubclass(kind, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # so that they are reported by name, and refused below
    with _one_line(name):
        network, report = kind.from_pretrained(folder, **options)
    _check_report(network, report, name)
    return network


def _check_report(network: torch.nn.Module, report: dict[str, Any], name: str) -> None:
    """Nothing of a network was left to chance: the libraries fill what a file lacks with random numbers and go on."""
    keys = (report["missing_keys"], report["unexpected_keys"])
    missing, unused = (sorted(name for name in names if not name.endswith(HARMLESS)) for names in keys)
    state = [*network.named_parameters(), *network.named_buffers()]
    missing += [key for key, value in state if value.is_meta and key not in missing]
    known = f"which a {type(network).__name__} does not have"
    if missing:
        more = f" and has {_some(unused)}, {known}" if unused else ""
        raise ModelError(f"{name} lacks the weights {_some(missing)}{more}; fetch it again, or name another model")
    if wrong := sorted(tuple(each) for each in report["mismatched_keys"]):
        key, shape, wanted = wrong[0]
        shapes = f"of shape {list(shape)}, not {list(wanted)} as its config.json says ({len(wrong)} such)"
        raise ModelError(f"{name} has {key} {shapes}; fetch it again")
    if unused:
        print(f"{name}: not used: its weights {_some(unused)}, {known}", file=sys.stderr)


def _some(keys: list[str], n: int = 3) -> str:
    return ", ".join(keys[:n]) + (f" and {len(keys) - n} more" if len(keys) > n else "")


def _check_vocabulary(part: Any, name: str) -> None:
    """A part that is, or holds, a tokenizer has a vocabulary: else it would read every word as unknown, and go on."""
    tokenizer = getattr(part, "tokenizer", part)
    if isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        if set(tokenizer.get_vocab()) <= special:
            raise ModelError(f"{name} has no vocabulary (such as vocab.json and merges.txt); fetch it again")


def _replacement(
    kinds: dict[str, Any], base: Path, folder: Path, source: Source, dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, str]]:
    """A fine-tuned UNet that fits where the pipeline's own was, and the sha256 of its files."""
    own = Source(id=str(folder), folder=str(folder), pickled=source.pickled)
    if (part := _denoiser(kinds)) not in kinds:
        raise ModelError(f"{folder}: {source.name} has no UNet or transformer that a fine-tuned one could replace")
    new, old = (checks.read(where / "config.json", own) for where in (folder, base / part))
    defaults = inspect.signature(kinds[part].__init__).parameters
    for key in ("_class_name", *(key for key in INTERFACE if key in defaults)):
        ours, theirs = (each.get(key, defaults[key].default if key in defaults else None) for each in (new, old))
        if ours != theirs:
            kind, remedy = "UNet" if part == "unet" else part, "give it to the model that it was trained from"
            other = f"the {kind} of {source.name} has {theirs}; {remedy}"
            raise ModelError(f"{folder}: its {key} is {ours}, but {other}")
    files = checks.choose(hub.listing(folder), {"": True}, own)
    hashes = checks.verify(folder, files, own)
    return _part(kinds[part], folder, files, own, dtype), {f"fine-tuned/{file}": hashes[file] for file in files}


def _denoiser(kinds: Mapping[str, Any]) -> str:
    return "unet" if "unet" in kinds else "transformer"


def _adapt(pipeline: DiffusionPipeline, file: Path, name: str) -> dict[str, Any]:
    """Load a low-rank adaptation into a pipeline; what the record has of it."""
    if not find_spec("peft"):
        raise ModelError(f"{file}: a LoRA needs peft; `pip install peft`")
    with _one_line(str(file)):
        lora_of.add(pipeline, file)
    layers = lora_of.check(pipeline, file, name)
    return {"lora": {"name": file.parent.name, "layers": layers}, "files": {f"lora/{file.name}": digest(file)}}


def _no_unet(folder: Path) -> str:
    """What is wrong with the folder of a fine-tuned UNet that has no configuration, and what to do."""
    if not folder.exists():
        return "there is no such folder of a fine-tuned UNet"
    if (folder / lora_of.FILE).is_file():
        return "is a LoRA; give it as 'lora'"
    inside = [folder / name for name in ("unet_ema", "unet") if (folder / name / "config.json").is_file()]
    return f"is no UNet's folder; give {inside[0]}" if inside else checks.instead(folder, "config.json")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(f"dtype: unknown precision {name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """The libraries without their chatter, and their failure in one line."""
    libraries = (transformers.utils.logging, diffusers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    except Exception as error:
        raise ModelError(f"{name} does not load: {_reason(error)}") from error
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()


def _reason(error: Exception) -> str:
    """What a library says, but for advice that would do harm here."""
    text = " ".join(str(error).split())
    if any(isinstance(each, UnpicklingError) for each in causes(error)):
        return "its pickle holds more than tensors, and is not read; name a copy in safetensors"
    if ("sentencepiece" in text.lower() or "tiktoken" in text) and not find_spec("sentencepiece"):
        return "it needs the package sentencepiece; install that first (pip install sentencepiece)"
    if shapes := re.search(r"because (\S+) expected shape torch.Size\((.+?)\), but got torch.Size\((.+?)\)", text):
        return "{} has the shape {}, not {} as its config.json says; fetch it again".format(*shapes.group(1, 3, 2))
    return f"{type(error).__name__}: {text[:400]}"
