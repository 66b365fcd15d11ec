"""Chooses the files of a model to load, checks that they are complete and that they match their checksums.

The files are chosen from names alone, so that a folder here and a repository on the Hub, of which nothing has been
fetched yet, follow the same rules. Nothing here imports torch, and nothing is unpickled.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..store.files import digest, read_json
from .source import ModelError, Source

SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # configurations and vocabularies
_OTHER = "it is not such a model, or not whole"
_WEIGHTS = re.compile(  # name [.variant] [-shard-of-shards] [.variant, as once written] .format
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d{5}-of-\d{5})?(?:\.(\w+))?\.(?:safetensors|bin)"
)


def read(path: Path, source: Source) -> dict[str, Any]:
    """A configuration. ModelError: it is missing or not JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no mapping")
        return value
    except FileNotFoundError:
        raise source.error(f"{path.name} is missing from its folder; {_OTHER}") from None
    except (ValueError, RecursionError) as error:
        raise source.error(f"{path.name} is not valid JSON ({error}); fetch the model again") from None


_LORA = ("pytorch_lora_weights.safetensors", "adapter_config.json")
_STATE = ("optimizer.bin", "optimizer.pt", "scheduler.bin", "random_states_0.pkl", "trainer_state.json")  # accelerate's
_SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_LAYOUT = "models are read as folders in the layout of diffusers or transformers"
_CONVERT = "convert it with diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
_BESIDE = "is a LoRA, no whole model: give it as 'lora' beside the model that it was trained from"


def instead(path: Path, index: str) -> str:
    """What is at a path where a folder with the file ``index`` should be, and what to do with it."""
    if path.is_file():
        return f"is a file, and {_LAYOUT}; " + (f"it {_BESIDE}" if "lora" in path.name.lower() else _CONVERT)
    names = {at.name for at in path.iterdir()}
    state = bool(names & {*_STATE})
    inside = sorted(name for name in names if (path / name / index).is_file())
    single = ", ".join(sorted(name for name in names if name.endswith(_SINGLE))[:3])
    config = read_json(path / "config.json") or {}
    unets = [at for at in (path / "unet_ema", path / "unet") if (at / "config.json").is_file()]
    unets *= not (path / "vae").is_dir()  # else it is a pipeline that lost its index
    unets += [at / "unet" for at in sorted(path.glob("checkpoint-*")) if (at / "unet" / "config.json").is_file()][::-1]
    remedies = {
        f"it {_BESIDE}": names & {*_LORA},
        f"it comes from a training; give the trained model, and {unets[0] if unets else ''} as its 'unet'": unets,
        "it holds the state of a training, no model; save the model itself (save_pretrained)": state,
        "it is a UNet alone; give it as 'unet' beside the model that it was trained from":
            isinstance(config, dict) and config.get("_class_name") == "UNet2DConditionModel",
        f"a model is in its folder {inside[0] if inside else ''}; give that": inside,
        f"{single} is a single checkpoint, and {_LAYOUT}; {_CONVERT}": single,
        _OTHER: True,
    }  # fmt: skip
    return f"{index} is missing from its folder; {next(remedy for remedy, fits in remedies.items() if fits)}"


def choose(names: Iterable[str], parts: Mapping[str, bool], source: Source) -> list[str]:
    """The files that loading reads, out of all there are.

    Args:
        names: paths in the model's folder or repository, with "/".
        parts: the model's sub-folders ("" is the folder itself), and whether each is a network, with weights.
        source: its ``variant`` and ``pickled`` say which weights.

    Raises:
        ModelError: a part or its weights are not there, or not in a form that is read.
    """
    inside: dict[str, list[str]] = {part: [] for part in parts}
    for name in sorted(names):
        inside.get(name.rpartition("/")[0], []).append(name)
    chosen: list[str] = []
    for part, network in parts.items():
        if not inside[part]:
            raise source.error(f"the part {part!r} is missing from its folder; fetch the model again")
        config = f"{part}/config.json".lstrip("/")
        if network and config not in inside[part]:
            raise source.error(f"{config} is missing from its folder; {_OTHER}")
        chosen += [name for name in inside[part] if name.endswith(SMALL)]
        chosen += _weights(inside[part], part, source) if network else []
    if source.variant and not any(variant(name) == source.variant for name in chosen):
        raise ModelError(f"{source.name} has no weights of the variant {source.variant!r}; leave 'variant' out")
    return chosen


def variant(name: str) -> str | None:
    """The variant that a weight file is of, such as "fp16"; None for any other file."""
    match = _WEIGHTS.fullmatch(name.rpartition("/")[2])
    return (match[1] or match[2]) if match else None


def is_weights(name: str) -> bool:
    return _WEIGHTS.fullmatch(name.rpartition("/")[2]) is not None


def _weights(names: list[str], part: str, source: Source) -> list[str]:
    """A part's weights: of the wanted variant, else of none; pickled ones only where allowed and nothing else is."""
    names_of: dict[tuple[str, str | None], list[str]] = {}
    for name in filter(is_weights, names):
        names_of.setdefault((name.rpartition(".")[2], variant(name)), []).append(name)
    forms = ("safetensors", "bin") if source.pickled else ("safetensors",)
    for key in [(form, kind) for form in forms for kind in (source.variant, None)]:
        if key in names_of:
            return _all_shards(names_of[key], part, source)
    raise source.error(f"{part or 'the folder'} has {_remedy(set(names_of), source)}")


def _all_shards(names: list[str], part: str, source: Source) -> list[str]:
    """The names, if they are not some of several files of one set of weights."""
    totals = [int(shards[1]) for name in names if (shards := re.search(r"-of-(\d{5})\.", name))]
    if len(totals) == len(names) < max(totals):
        some = f"{len(totals)} of the {max(totals)} files of its weights"
        raise source.error(f"{part or 'the folder'} has {some}; fetch it again")
    return names


def _remedy(kinds_found: set[tuple[str, str | None]], source: Source) -> str:
    """What a part has in place of the weights that are wanted, and what would help."""
    safe = sorted(str(kind) for form, kind in kinds_found if form == "safetensors")
    if safe:
        return f"weights of the variant {' or '.join(safe)} only; add `variant: {safe[0]}` to the model"
    if not kinds_found:
        return "no weights; fetch it again"
    conversion = "convert them to safetensors"
    if source.folder is None:
        at = f"https://huggingface.co/{source.id}/discussions"
        conversion = f"name a conversion's `revision: refs/pr/N` (see {at})"
    kinds = sorted(str(kind) for _, kind in kinds_found if kind is not None)
    more = f" and `variant: {kinds[0]}`" if kinds and ("bin", None) not in kinds_found else ""
    return f"only pickled weights, which are not read unasked; {conversion}, or add `pickled: true`{more} to the model"


def verify(folder: Path, files: list[str], source: Source) -> dict[str, str]:
    """sha256 of the files by path, once they are known to be whole and to be the ones that the manifest lists: the
    ``checksums`` of the source, or else ``SHA256SUMS`` in the model's folder. ModelError: they are not."""
    for name in filter(is_weights, files):
        _check_whole(folder / name, source)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the lock
        paths = [folder / name for name in files]
        small = sum(path.stat().st_size for path in paths) <= 1 << 30
        values = tqdm(pool.map(digest, paths), "hashing the model", len(paths), disable=small, leave=False)
        hashes = dict(zip(files, map(str, values), strict=True))
    manifest = Path(source.checksums).expanduser() if source.checksums else folder / "SHA256SUMS"
    if source.checksums or manifest.is_file():  # as the miniature's models have
        listed = _manifest(manifest, source)
        for name, expected in listed.items():
            if name in hashes and hashes[name] != expected.lower():
                other = f"sha256 {hashes[name][:12]}…, not {expected.lower()[:12]}… as in {manifest.name}"
                raise source.error(f"{name} has {other}; fetch it again")
        every = any(name.endswith(SMALL) for name in listed)  # else only weights are listed, and checked
        if more := [name for name in hashes if name not in listed and (every or is_weights(name))]:
            raise source.error(f"{more[0]} is not listed in {manifest.name}; remove it, or renew the checksums")
    return hashes


def _check_whole(path: Path, source: Source) -> None:
    """A safetensors file is as long as its header says and a zipped pickle ends in its index; a broken download fails.

    What Git leaves of a file without Git LFS is neither.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise source.error(f"{path.name} is a pointer of Git LFS; run `git lfs pull` in its folder")
        if path.suffix == ".bin":
            whole = zipfile.is_zipfile(path) or start.startswith(b"\x80\x02")  # older than torch 1.6: not zipped
        else:
            size, length = path.stat().st_size, int.from_bytes(start, "little")
            try:
                header = json.loads(file.read(length)) if 0 < length <= size else {}
                ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
                whole = size == 8 + length + max(ends)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                whole = False
    if not whole:
        raise source.error(f"{path.name} is damaged or only partly downloaded; delete it and fetch it again")


def _manifest(path: Path, source: Source) -> dict[str, str]:
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {name.strip().lstrip("*").removeprefix("./"): value for value, name in lines}
    except (OSError, ValueError) as error:
        raise source.error(f"the checksums {path} are not readable ({error})") from error
