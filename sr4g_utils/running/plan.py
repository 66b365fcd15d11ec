"""What a run needs before it starts: models, downloads, disk, memory and GPU hours. Nothing here touches the network.

Everything is computed from the profile's parameters; what they do not say (sizes of models, and rates measured on some
GPU) stands in the profile's section ``plan``. A rate that nobody has measured is called so, never guessed.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..dataset.prompt_sets import SETS, read_prompts
from ..dataset.prompts import THINGS
from ..evaluation.detections import read_detections
from ..evaluation.judges import TEMPLATES, judges
from ..models.sampling import Sampling, against_card, of_model, recommended_sampling
from ..models.source import ModelError, Source
from ..relations import NAMES
from ..store import files
from ..store.settings import convert, meant
from . import profiles

PHOTOS = 117_266  # labelled photos of COCO train2017, which fine-tuning encodes once
IMAGE_BYTES = 1.5  # of a lossless image, per pixel (measured at 512 × 512: 389 kB)
WORDS = ("download",)  # what a parameter may say in place of a model
STATES = 5  # numbers of 4 bytes per weight while training: weight, average, gradient, two moments
USE = 0.4  # of a GPU's peak, assumed where no rate was measured


class Notes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``plan`` of a profile. ``rates``: by GPU, images/s of finetune, generate and detect."""

    gigabytes: dict[str, float] = {}  # of a model's download, by id
    licences: dict[str, str] = {}  # by id
    unet_parameters: float | None = None  # of the network that learns
    lora_parameters: float | None = None  # of a LoRA of rank 1
    other_gigabytes: float = 0.0  # of the frozen parts in memory
    teraflop: float | None = None  # of the network's forward pass for one image
    peaks: dict[str, float] = {}  # TFLOP/s, by GPU
    latents: tuple[int, int, int] = (2, 4, 8)  # numbers kept of each, channels, pixels to a side
    resolution: int | None = None
    rates: dict[str, dict[str, float]] = {}


def plan(profile: Mapping[str, Mapping[str, Any]], notes: Mapping[str, Any]) -> list[str]:
    """The plan of a profile, in lines.

    Args:
        profile: each notebook's parameters, as :func:`profiles.load_profile` gives them.
        notes: its section ``plan``; see :class:`Notes`. A ValueError names an unknown key or a value of a wrong type.
    """
    about = convert(notes, Notes, "plan")
    values = _with_defaults(profile)
    work = _images(values)
    sections = {
        "Warnings": _warnings(values), "Models": _models(values, about), "Downloads, once": _downloads(values),
        "Disk": _disk(values, work, about), "Memory of a GPU": _memory(values, about),
        "Work": _work(values, work, about),
    }  # fmt: skip
    return [line for title, lines in sections.items() if lines for line in (title, *lines)]


def check(profile: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Look for the files and folders that a run is given, and read its prompts, before the first kernel starts.

    Args:
        profile: the parameters of each notebook that is to run. folder: the run folder.

    Raises:
        ValueError: one is not there, or the prompts cannot be read; parameter, path and remedy are named.
    """
    for notebook, own in profile.items():
        for name, (annotation, _) in profiles.declared(notebook).items():
            value = own.get(name)
            if "PathLike" not in annotation or name == "run_folder" or value is None or value in WORDS:
                continue
            if name == "models":
                for model, entry in value.items():
                    _check_entry(f"{notebook}.models: {model}", entry, folder, "03_finetuning" in profile)
            elif "dict" in annotation:
                for source in value if isinstance(value, list) else [value]:
                    if source != TEMPLATES:
                        _check_model(f"{notebook}.{name}", source)
            else:
                for path in value if isinstance(value, list) else [value]:
                    if str(path).partition(":")[0] not in profiles.NAMED_SOURCES and path not in SETS:
                        _check_path(f"{notebook}.{name}", path)
        if own.get("prompts") and own["prompts"] not in SETS:
            read_prompts(own["prompts"])
        every = {name: default for name, (_, default) in profiles.declared(notebook).items()} | dict(own)
        if {"detector", "threshold"} <= set(every):
            judges(every["detector"], every["threshold"])


def _check_entry(where: str, entry: Mapping[str, Any], folder: Path, tunes: bool) -> None:
    if "images" in entry:
        _check_path(where, entry["images"])
        if Path(entry["images"]).is_dir() and not any(files.walk(Path(entry["images"]))):
            raise ValueError(f"{where}: the folder {entry['images']} is empty; name the folder that holds the images")
    if "boxes" in entry:
        _check_path(where, entry["boxes"])
        read_detections(entry["boxes"])
    if "model" in entry:
        _check_model(where, entry["model"])
    for tuned in filter(None, (entry.get("unet"), entry.get("lora"))):
        if not (tunes and not Path(tuned).is_absolute()):
            _check_path(where, folder / "artifacts" / tuned)


def _check_model(where: str, value: Any) -> None:
    try:
        source = Source.of(value)
    except ModelError as error:
        raise ValueError(f"{where}: {error}") from None
    if source.folder and not Path(source.folder).exists():
        raise ValueError(f"{where}: there is no folder {source.folder}{source.alike() or '; check the path'}")
    if source.checksums:
        _check_path(where, source.checksums)


def _check_path(where: str, value: str | Path) -> None:
    path = Path(value)
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{where}: {path} is not there{meant(path.name, names)}; check the path")


def _with_defaults(profile: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {k: d for k, (_, d) in profiles.declared(name).items()} | dict(own) for name, own in profile.items()}


def hours(profile: Mapping[str, Mapping[str, Any]], notes: Mapping[str, Any]) -> dict[str, float]:
    """A profile's hours on each GPU for which the rates of all its work are noted; arguments as in :func:`plan`."""
    values = _with_defaults(profile)
    return _hours(_images(values), _rates(values, notes.get("rates") or {}, notes.get("resolution")))


def _hours(images: Mapping[str, int | None], by_gpu: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    work = {kind: number for kind, number in images.items() if number != 0}
    times = {}
    for gpu, rates in by_gpu.items():
        rate: dict[str, Any] = {**rates, "validate": rates.get("generate")}
        if work and all(images and rate.get(kind) for kind, images in work.items()):
            times[gpu] = sum(images / rate[kind] / 3600 for kind, images in work.items() if images)
    return times


def _models(values: Mapping[str, Mapping[str, Any]], about: Notes) -> list[str]:
    """Every model that a notebook names, where it comes from and its size."""
    named: list[Any] = []
    for own in values.values():
        models = [spec.get("model") for spec in own.get("models", {}).values()]
        judging = own.get("detector")
        judging = judging if isinstance(judging, list) else [judging]
        found = own.get("models") and all("boxes" in spec for spec in own["models"].values())
        judging = [] if found else judging  # in boxes of others nothing is detected
        named += [source for source in (own.get("model"), *judging, *models) if source and source != TEMPLATES]
    lines = []
    for source in named:
        if not isinstance(source, Mapping):
            # a notebook's relative path starts where notebooks run
            source = {"folder" if (profiles.NOTEBOOKS / str(source)).is_dir() else "id": str(source)}
        if source.get("folder"):
            lines.append(f"  {Path(source['folder']).name}: the local folder {source['folder']}")
            continue
        id, revision = source["id"], source.get("revision", "main")
        mirrors = "".join(f", else {mirror}" for mirror in source.get("mirrors", []))
        size = f"{about.gigabytes[id]} GB" if id in about.gigabytes else "size unknown"
        licence = f"; licence: {about.licences[id]}" if id in about.licences else ""
        lines.append(f"  {id} at revision {revision}{mirrors}: {size}, {_have(_hub(id))}{licence}")
    return list(dict.fromkeys(lines))


def _warnings(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Distilled models that would be sampled otherwise than their cards ask for."""
    lines = []
    for own in values.values():
        for name, entry in own.get("models", {}).items():
            source = entry.get("model") or ""
            id = str(source.get("id", "")) if isinstance(source, Mapping) else str(source)
            way = Sampling.of(of_model(name, entry, own["sampling"]))
            lines += [f"  {text}" for text in [against_card(id, way, recommended_sampling(id))] if text]
    return lines


def _hub(id: str) -> Path:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{id.replace('/', '--')}"


def _have(path: Path) -> str:
    return "in the cache" if path.exists() else "to be downloaded"


def _downloads(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    parameters = {
        "annotations_trainval2017.zip": {"train_annotations", "val_annotations"}, "train2017.zip": {"train_photos"},
        "val2017.zip": {"val_photos"}, "all_vsr_validated.jsonl": {"vsr"},
        "weights-inception-2015-12-05-6726825d.pth": {"inception"},
    }  # fmt: skip
    sources = files.sources()  # those with a slash are whole folders of small files
    parameters |= {file: {file.partition("/")[0].removesuffix("_uc")} for file in sources if "/" in file}
    pairs = [pair for own in values.values() for pair in own.items()]
    wanted = {name for name, value in pairs if value == ("download" if name == "inception" else None)}
    lines = []
    for file, names in parameters.items():
        if wanted & names:
            megabytes = sources[file].get("bytes", 0) / 1e6
            size = f"{megabytes / 1e3:.2f} GB" if megabytes > 5 else f"{megabytes:.2f} MB" if megabytes else "some MB"
            lines.append(f"  {file}: {size} from {sources[file]['url']}, {_have(files.cache_folder() / file)}")
    return lines


def _images(values: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """Images to fine-tune on and to generate (None: as many as the prompt set says)."""
    tuning, evaluation = values.get("03_finetuning"), values.get("04_evaluation")
    work: dict[str, int | None] = {}
    if tuning:
        work["finetune"] = len(tuning["splits"]) * tuning["steps"] * tuning["batch"]
        rounds = 2 + tuning["steps"] // tuning["validate_every"] if tuning["validate_every"] else 0
        images = len(tuning["splits"]) * rounds * tuning["validation_prompts"] * tuning["sampling"].get("images", 4)
        work["validate"] = images
    if evaluation:
        per_relation, source = evaluation["per_relation"], evaluation["prompts"]
        sets = len(evaluation["objects"]) if source is None else 1
        named = SETS.get("sr4g" if source is None else source)
        whole = named.number if named else None
        prompts = len(NAMES) * sets * per_relation if per_relation else whole
        models = {name: entry for name, entry in evaluation["models"].items() if "model" in entry}
        ways = [of_model(name, entry, evaluation["sampling"]) for name, entry in models.items()]
        named_alone = {"seen", "unseen"} & set(evaluation["objects"]) if source is None else {"all"}
        plain = evaluation["plain_prompts"] * len(THINGS) * len(named_alone)
        if ways:
            work["generate"] = prompts and (prompts + plain) * sum(way.get("images", 4) for way in ways)
    return work


def _ways(values: Mapping[str, Mapping[str, Any]]) -> list[Sampling]:
    """How each model that notebook 04 draws with is sampled."""
    own = values.get("04_evaluation", {"models": {}})
    drawn = {name: entry for name, entry in own["models"].items() if "model" in entry}
    return [Sampling.of(of_model(name, entry, own["sampling"])) for name, entry in drawn.items()]


def _rates(
    values: Mapping[str, Mapping[str, Any]], rates: Mapping[str, Mapping[str, float]], resolution: int | None
) -> dict[str, dict[str, float]]:
    """The rates by GPU, without those of drawing where images have another size than the one they were measured at."""
    sizes = [way.size for way in _ways(values)] + [values.get("03_finetuning", {}).get("sampling", {}).get("size")]
    other = any(size and list(size) != [resolution, resolution] for size in sizes)
    return {gpu: {k: rate for k, rate in own.items() if not (other and k == "generate")} for gpu, own in rates.items()}


def _disk(values: Mapping[str, Mapping[str, Any]], work: Mapping[str, int | None], about: Notes) -> list[str]:
    lines = []
    if (tuning := values.get("03_finetuning")) and about.resolution and about.unet_parameters:
        moments, channels, side = about.latents
        latents = PHOTOS * moments * channels * (about.resolution / side) ** 2 * 2 / 1e9
        kept = len(tuning["splits"]) * (tuning["keep_checkpoints"] + 1) * 4 * 4 * _learning(tuning, about) / 1e9
        lines.append(f"  latents of {PHOTOS:,} photos at {about.resolution} pixels: {latents:.0f} GB")
        lines.append(f"  checkpoints (weights, average, optimiser; {tuning['keep_checkpoints']} kept): {kept:.0f} GB")
    ways, own = _ways(values), about.resolution
    if (images := work.get("generate")) and (own or all(way.size for way in ways)):
        pixels = sum(way.images * math.prod(way.size or [own or 0] * 2) for way in ways)
        size = images * IMAGE_BYTES * pixels / sum(way.images for way in ways) / 1e9
        lines.append(f"  {images:,.0f} images: {size:.0f} GB")
    return lines


def _memory(values: Mapping[str, Mapping[str, Any]], about: Notes) -> list[str]:
    offloaded = sum(way.offload for way in _ways(values))
    lines = [f"  models that are on the GPU one part at a time (offload): {offloaded}"] * bool(offloaded)
    if not (tuning := values.get("03_finetuning")) or not about.unet_parameters:
        return lines
    learning = _learning(tuning, about)
    state = STATES * 4 * learning / 1e9
    lines.append(
        f"  {state:.{int(state < 3)}f} GB for {learning / 1e6:,.0f} million weights in training, without activations"
    )
    if tuning["lora_rank"]:
        size = 2 if (tuning["lora_base"] or tuning["precision"]) == "bfloat16" else 4
        frozen = about.unet_parameters * size / 1e9 + about.other_gigabytes
        lines.append(
            f"  {frozen:.0f} GB for what is frozen: {about.unet_parameters / 1e6:,.0f} million weights, texts, VAE"
        )
    return [*lines, "  less with micro_batch, gradient_checkpointing, adam_8bit or lora_rank"]


def _learning(tuning: Mapping[str, Any], about: Notes) -> float:
    """How many weights learn."""
    if tuning["lora_rank"] and about.lora_parameters:
        return tuning["lora_rank"] * about.lora_parameters
    return about.unet_parameters or 0.0


def _operations(tuning: Mapping[str, Any], images: int, about: Notes) -> list[str]:
    """What fine-tuning would take by its counted operations. The backward pass takes twice as many as the forward one,
    half of them for the gradients of weights, which a LoRA hardly has; recomputed activations take one more."""
    if not about.teraflop or not images:
        return []
    passes = 3 - bool(tuning["lora_rank"]) + tuning["gradient_checkpointing"]
    total = images * passes * about.teraflop * 1e12
    hours = (f"{total / (USE * peak * 1e12) / 3600:,.0f} GPU hours on {gpu}" for gpu, peak in about.peaks.items())
    return [f"  fine-tuning takes {total:.2g} FLOP (counted): {', '.join(hours)}, if {USE:.0%} of its peak is used"]


def _work(values: Mapping[str, Mapping[str, Any]], work: Mapping[str, int | None], about: Notes) -> list[str]:
    lines = []
    if tuning := values.get("03_finetuning"):
        splits = ", ".join(tuning["splits"])
        lines.append(f"  fine-tuning ({splits}): {tuning['steps']:,} steps of {tuning['batch']} images each")
    by_gpu = _rates(values, about.rates, about.resolution)
    if sizes := sorted({" x ".join(map(str, way.size)) for way in _ways(values) if way.size}):
        lines.append(f"  images of {', '.join(sizes)} pixels")
    purposes = {"finetune": "fine-tune on", "validate": "validate on", "generate": "generate"}
    for kind, images in work.items():
        hours = [
            f"{images / rates[rate] / 3600:,.1f} GPU hours on {gpu} at {rates[rate]:g} images/s"
            for gpu, rates in by_gpu.items()
            for rate in ["generate" if kind == "validate" else kind]
            if images and rate in rates
        ]
        number = "all prompts' images" if images is None else f"{images:,.0f} images to {purposes[kind]}"
        lines.append(f"  {number}: {'; '.join(hours) or 'GPU hours not measured (run `make bench` and note the rate)'}")
    if tuning:
        lines += _operations(tuning, work["finetune"] or 0, about)
    total = _hours(work, by_gpu)
    return lines + [f"  in all: {value:,.1f} GPU hours on {gpu}" for gpu, value in total.items()]
