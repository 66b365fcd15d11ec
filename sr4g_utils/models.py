"""The text-to-image pipeline and the detector of a profile: found, checked, loaded, and written down.

A profile names a model by id and revision on the Hugging Face Hub, with mirrors, or by a local folder in the same
layout. Only safetensors are read: nothing is unpickled, and code that a model brings along is never run. Whatever keeps
a model from loading ends in one :class:`ModelError` that says what to do.

Stable Diffusion's safety checker is left out unless asked for: it blackens pictures, and a black picture would be
counted as a prompt not obeyed. Whoever publishes pictures should turn it on; the record says which it was.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import msgspec
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DETECTORS = {
    "owlvit": "OwlViTForObjectDetection",  # VISOR's protocol
    "owlv2": "Owlv2ForObjectDetection",
    "rt_detr": "RTDetrForObjectDetection",  # closed vocabulary: COCO's 80 categories
}


class ModelError(RuntimeError):
    """A model cannot be loaded. The message is one line: which model, what is wrong, and what to do."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model is: ``folder`` if given, else ``id`` at ``revision`` on the Hub, else its mirrors in turn."""

    id: str | None = None
    revision: str = "main"
    mirrors: list[str] = []  # "owner/name" or "owner/name@revision"
    folder: str | None = None
    variant: str | None = None  # of the weight files, such as "fp16"
    checksums: str | None = None  # a SHA256SUMS file: "<hash>  <path in the model's folder>" per line

    @classmethod
    def of(cls, value: Any) -> "Source":
        """A source from a mapping with these keys (a profile's), or from the path of a folder, or from a Hub id.

        Raises:
            ModelError: an unknown key, a value of the wrong type, or neither an id nor a folder.
        """
        if isinstance(value, str | Path):
            return cls(folder=str(value)) if Path(value).is_dir() else cls(id=str(value))
        try:
            source = value if isinstance(value, cls) else msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise ModelError(f"model: {error}; its keys are {', '.join(cls.__struct_fields__)}") from None
        if not (source.id or source.folder):
            raise ModelError("model: neither 'folder' nor 'id' is given; name a local folder or an id on the Hub")
        return source

    @property
    def name(self) -> str:
        return self.id or Path(str(self.folder)).name


# --------------------------------------------------------------------------------------------------------- loading


def load_pipeline(
    source: Any,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    unet: str | Path | None = None,
    safety_checker: bool = False,
) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """A text-to-image pipeline, any that diffusers can load, on its device, and the record of what was loaded.

    Args:
        source: see :meth:`Source.of`.
        dtype: a key of ``DTYPES``.
        device: by default the accelerator that torch finds, else the CPU.
        unet: folder of a fine-tuned UNet (``config.json`` and safetensors) to take the place of the pipeline's own.
        safety_checker: keep the pipeline's checker, if it has one.

    Returns:
        The pipeline, and a JSON-able record: id, revision, commit, class, prediction_type, resolution (pixels), dtype,
        parameters (number), safety_checker, files (sha256 of each) and versions; nothing of this machine's paths.

    Raises:
        ModelError: the model cannot be had, is incomplete or differs from its checksums.
    """
    source = Source.of(source)
    folder, commit = _find(source, partial(_download_pipeline, safety_checker=safety_checker))
    files = _check_pipeline(folder, source, skip=() if safety_checker else ("safety_checker",))
    options: dict[str, Any] = {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = _load(
        source,
        lambda: DiffusionPipeline.from_pretrained(
            folder,
            variant=source.variant,
            dtype=_dtype(dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **(options if "safety_checker" in _read(folder / "model_index.json", source) else {}),
        ),
    )
    if unet is not None:
        files |= _replace_unet(pipeline, Path(unet), _dtype(dtype))
    pipeline.to(torch.device(device or default_device()))
    for part in (getattr(pipeline, name, None) for name in ("unet", "vae")):
        if part is not None:
            part.to(memory_format=torch.channels_last)  # convolutions are a tenth faster on a CPU, more on a GPU
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    record = {
        **_record(source, commit, files, dtype),
        "class": type(pipeline).__name__,
        "prediction_type": pipeline.scheduler.config.get("prediction_type"),
        "resolution": _resolution(pipeline, denoiser),
        "safety_checker": getattr(pipeline, "safety_checker", None) is not None,
        "parameters": sum(p.numel() for model in models for p in model.parameters()),
        "unet": Path(unet).name if unet is not None else None,
    }
    return pipeline, record


def load_detector(
    source: Any,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    """A detector (OWL-ViT, OWLv2 or RT-DETR), in evaluation mode on its device, its processor, and the record.

    Neither timm nor torchvision is needed. Arguments, record and errors as in :func:`load_pipeline`; the record names
    the ``model_type`` (a key of ``DETECTORS``) and the ``resolution`` that the processor resizes to.
    """
    source = Source.of(source)
    folder, commit = _find(source, _download_detector)
    kind = _read(folder / "config.json", source).get("model_type")
    if kind not in DETECTORS:
        raise ModelError(
            f"{source.name}: config.json names the model_type {kind!r}; detectors are {', '.join(DETECTORS)}"
        )
    files = _check_files(folder, source, [folder])
    options = {"trust_remote_code": False, "local_files_only": True}
    processor_class = transformers.AutoImageProcessor if kind == "rt_detr" else transformers.AutoProcessor
    processor = _load(source, lambda: processor_class.from_pretrained(folder, **options))
    model_class = getattr(transformers, DETECTORS[kind])
    model = _load(
        source, lambda: model_class.from_pretrained(folder, dtype=_dtype(dtype), use_safetensors=True, **options)
    )
    model = model.to(torch.device(device or default_device())).eval()
    image_processor = getattr(processor, "image_processor", processor)
    record = {
        **_record(source, commit, files, dtype),
        "class": type(model).__name__,
        "model_type": kind,
        "resolution": [image_processor.size["height"], image_processor.size["width"]],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return model, processor, record


def default_device() -> str:
    """The accelerator that torch finds, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


class Batches:
    """Work on at most ``size`` things at a time; halved for good, and said, when a batch does not fit into memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, things: Sequence[T], work: Callable[[Sequence[T]], R]) -> Iterator[tuple[Sequence[T], R]]:
        """Each batch of ``things``, in order, and what ``work`` makes of it.

        Raises:
            RuntimeError: of ``work``; out of memory only where a single thing does not fit.
        """
        while things:
            now = things[: self.size]
            try:
                made = work(now)
            except RuntimeError as error:
                text = str(error).lower()
                full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text
                if len(now) == 1 or not (full or "not enough memory" in text):
                    raise
                self.size = len(now) // 2
                print(f"out of memory: going on with batches of {self.size}", file=sys.stderr)
                torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
                continue
            yield now, made
            things = things[len(now) :]


def check_words(tokenizer: Any, texts: Iterable[str]) -> None:
    """Every text is made of words that the tokenizer knows, and fits its length.

    A tokenizer with a whole-word vocabulary turns an unknown word into one that means nothing, and a long text is cut:
    the picture would then answer another prompt than the one that is scored.

    Raises:
        ValueError: it names the text and the word, or the length.
    """
    texts = list(dict.fromkeys(texts))
    if not texts:
        return
    unknown = tokenizer.unk_token_id
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        if unknown is not None and unknown in ids:
            words = [word for word in text.split() if unknown in tokenizer(word, add_special_tokens=False).input_ids]
            raise ValueError(f"prompt {text!r}: the model's vocabulary lacks {' '.join(map(repr, words)) or 'a word'}")
        if len(ids) > room:
            raise ValueError(f"prompt {text!r} has {len(ids)} tokens, but the model reads {room}; shorten it")


def tokenizers(pipeline: DiffusionPipeline) -> list[Any]:
    """The tokenizers of a pipeline; Stable Diffusion has one, larger models up to three."""
    return [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None]


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(f"dtype: unknown precision {name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _load(source: Source, load: Callable[[], Any]) -> Any:
    """What ``load`` returns, without the libraries' chatter, or its failure in one line."""
    libraries = (transformers.utils.logging, diffusers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
        why = " ".join(str(error).split())[:400]
        raise ModelError(f"{source.name}: the files do not load as a model ({type(error).__name__}: {why})") from error
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()


def _resolution(pipeline: DiffusionPipeline, denoiser: Any) -> list[int] | None:
    """Height and width in pixels at which the model was trained, as far as its configuration says."""
    sample = getattr(pipeline, "default_sample_size", None) or getattr(
        getattr(denoiser, "config", None), "sample_size", None
    )
    if sample is None or not hasattr(pipeline, "vae_scale_factor"):
        return None
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return [height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor]


def _replace_unet(pipeline: DiffusionPipeline, folder: Path, dtype: torch.dtype) -> dict[str, str]:
    """Put a fine-tuned UNet into the pipeline; sha256 of its files."""
    source = Source(folder=str(folder))
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder of a fine-tuned UNet")
    if not hasattr(pipeline, "unet"):
        raise ModelError(f"{folder}: a {type(pipeline).__name__} has no UNet that a fine-tuned one could replace")
    files = _check_files(folder, source, [folder])
    kind = type(pipeline.unet)
    pipeline.unet = _load(source, lambda: kind.from_pretrained(folder, dtype=dtype, use_safetensors=True))
    return {f"fine-tuned/{name}": value for name, value in files.items()}


def _record(source: Source, commit: str | None, files: dict[str, str], dtype: str) -> dict[str, Any]:
    libraries = ("torch", "diffusers", "transformers", "accelerate")
    return {
        "id": source.name,
        "revision": source.revision if source.folder is None else None,
        "commit": commit,
        "dtype": dtype,
        "files": files,
        "versions": {name: version(name) for name in libraries},
    }


# --------------------------------------------------------------------------------------------------------- finding


def _find(source: Source, download: Callable[[str, str, Source], str]) -> tuple[Path, str | None]:
    """The model's folder, and the commit that its revision stands for; from the Hub's cache where it is there."""
    if source.folder is not None:
        folder = Path(source.folder).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"{source.name}: there is no folder {folder}; correct the profile's 'folder', or give an 'id'"
            )
        return folder, None
    failures = []
    for place in [f"{source.id}@{source.revision}", *source.mirrors]:
        name, _, revision = place.partition("@")
        try:
            folder = Path(download(name, revision or "main", source))
        except Exception as error:
            failures.append(f"{name}: {_why(error, name, revision)}")
        else:
            return folder, f"{name}@{folder.name}"  # a snapshot's folder is named after its commit
    raise ModelError(
        f"{source.id} cannot be loaded: {'; '.join(failures)}. Or copy the model here and give its path as 'folder'"
    )


def _download_pipeline(name: str, revision: str, source: Source, safety_checker: bool) -> str:
    options: dict[str, Any] = {} if safety_checker else {"safety_checker": None}  # 1.2 GB of v1.4 that nobody runs
    return str(
        DiffusionPipeline.download(
            name, revision=revision, variant=source.variant, use_safetensors=True, trust_remote_code=False, **options
        )
    )


def _download_detector(name: str, revision: str, source: Source) -> str:
    return snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt", "*.safetensors"])


def _why(error: BaseException, name: str, revision: str) -> str:
    """A failed download's reason and remedy, read from the chain of errors that led to it."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    remedies: list[tuple[tuple[type[BaseException], ...], str]] = [
        (
            (hub_errors.GatedRepoError,),
            f"it is gated: accept its licence at https://huggingface.co/{name} and run `hf auth login`",
        ),
        ((hub_errors.DisabledRepoError,), "it was withdrawn from the Hub; name a mirror"),
        (
            (hub_errors.RepositoryNotFoundError,),
            "no such model on the Hub (or a private one); correct the id, or name a mirror",
        ),
        ((hub_errors.RevisionNotFoundError,), f"it has no revision {revision!r}; correct 'revision'"),
        ((hub_errors.IncompleteSnapshotError,), "its download is incomplete; connect and run again to finish it"),
        (
            (hub_errors.OfflineModeIsEnabled, hub_errors.LocalEntryNotFoundError, ConnectionError),
            "not (wholly) in the cache, and the Hub cannot be reached; connect once (and unset HF_HUB_OFFLINE)",
        ),
    ]
    for kinds, remedy in remedies:
        if any(isinstance(each, kinds) for each in chain):
            return remedy
    if any("connect" in type(each).__name__.lower() or "timeout" in type(each).__name__.lower() for each in chain):
        return "not (wholly) in the cache, and the Hub cannot be reached; connect once"
    told = next((each for each in chain if isinstance(each, hub_errors.HfHubHTTPError)), error)
    return f"{type(told).__name__}: {' '.join(str(told).split())[:300]}"


# -------------------------------------------------------------------------------------------------------- checking


def _read(path: Path, source: Source) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{source.name}: {path.name} is missing from its folder; it is not such a model, or not whole"
        ) from None
    except ValueError as error:
        raise ModelError(f"{source.name}: {path.name} is not valid JSON ({error}); fetch the model again") from None


def _check_pipeline(folder: Path, source: Source, skip: tuple[str, ...]) -> dict[str, str]:
    """Every part is there, is whole and brings no code; sha256 of the files."""
    index = _read(folder / "model_index.json", source)
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(
            f"{source.name}: its pipeline is code of its own ({index.get('_class_name')}), which is never run"
        )
    parts = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[0]}
    for name, (library, kind) in parts.items():
        if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, library):
            raise ModelError(f"{source.name}: its {name} is code of its own ({library}.{kind}), which is never run")
    folders = [folder / name for name in parts if name not in skip]
    if missing := [part.name for part in folders if not part.is_dir()]:
        raise ModelError(f"{source.name}: the part {missing[0]!r} is missing from its folder; fetch the model again")
    return _check_files(folder, source, [folder, *folders])


def _check_files(folder: Path, source: Source, parts: list[Path]) -> dict[str, str]:
    """sha256 by path of the files that loading reads, once they are known to be whole."""
    files = []
    for part in parts:
        inside = sorted(path for path in part.iterdir() if path.suffix in (".json", ".txt", ".model", ".safetensors"))
        weights = [path for path in inside if path.suffix == ".safetensors"]
        config = _read(part / "config.json", source) if (part / "config.json").is_file() else {}
        if ("_class_name" in config or "architectures" in config) and not weights:
            pickled = "only pickled weights, which are never read; convert them to safetensors"
            has = pickled if any(part.glob("*.bin")) else "no weights; fetch it again"
            raise ModelError(f"{source.name}: {_inside(part, folder)} has {has}")
        for path in weights:
            _check_whole(path, source)
        files += inside
    hashes = dict(zip((_inside(path, folder) for path in files), _sha256(files), strict=True))
    if source.checksums is not None:
        _check_sums(hashes, Path(source.checksums).expanduser(), source)
    return hashes


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path != folder else "the folder"


def _check_whole(path: Path, source: Source) -> None:
    """A safetensors file is as long as its header says; a broken download is not."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= size else {}
        expected = 8 + length + max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError):
        expected = -1
    if size != expected:
        raise ModelError(
            f"{source.name}: {path.name} is damaged or only partly downloaded; delete it and fetch it again"
        )


def _sha256(files: list[Path]) -> list[str]:
    def one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as pool:  # hashing releases the lock
        large = sum(path.stat().st_size for path in files) > 1 << 30
        return list(tqdm(pool.map(one, files), "hashing the model", len(files), disable=not large, leave=False))


def _check_sums(hashes: dict[str, str], manifest: Path, source: Source) -> None:
    try:
        lines = [line.split(maxsplit=1) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
        expected = {name.strip().lstrip("*").removeprefix("./"): value.lower() for value, name in lines}
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.name}: the checksums {manifest} are not readable ({error})") from error
    for name, value in hashes.items():
        if name not in expected:
            raise ModelError(
                f"{source.name}: {name} is not listed in {manifest.name}; remove it, or renew the checksums"
            )
        if value != expected[name]:
            raise ModelError(
                f"{source.name}: {name} has sha256 {value[:12]}…, not {expected[name][:12]}… as in {manifest.name}; "
                "fetch it again"
            )
