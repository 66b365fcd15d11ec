"""Prompts to images: any text-to-image pipeline of diffusers, in batches across prompts, resumable and in shards.

**What a sample's noise depends on.** Each image has a generator of its own on the CPU, seeded by a hash of (the
profile's seed, the prompt's text, the image's number) and of nothing else; it gives the initial noise and what the
scheduler adds on the way. So two models, two prompt sets or two machines start the same prompt from the same noise.

**What its bytes depend on.** Prompts form fixed groups, and a group is always made in the same batches. Same group,
batch size, library versions and hardware: same bytes, however often the run was interrupted and however many processes
shared it. Otherwise a sum may be rounded in another order, and pixels differ by a few levels.

Images are lossless WebP (method 0): at 512 × 512 a fifth smaller than PNG and four times as fast to write.
"""

import argparse
import hashlib
import inspect
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pandas as pd
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from . import boxes, dataset, models, runs
from .captions import caption
from .photos import Photos
from .relations import NAMES, RELATIONS

Pixels = UInt8[np.ndarray, "height width 3"]
Wanted = tuple[Any, str, int]  # prompt_id, caption and number of an image
LOSSLESS: dict[str, Any] = {"format": "WEBP", "lossless": True, "method": 0, "quality": 50}
SUFFIXES = (".webp", ".png", ".jpg", ".jpeg", ".bmp")
WRITERS = 4  # threads that encode images while the next batch is made


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are sampled; every result names all of it. ``scheduler``: a class of diffusers, or the model's own."""

    images: int = 4  # per prompt
    steps: int = 50
    guidance: float = 7.5
    scheduler: str | None = None
    negative_prompt: str = ""
    seed: int = 0
    batch: int = 16  # images made together
    group: int = 16  # prompts that are resumed and sharded together

    @classmethod
    def of(cls, values: "Sampling | dict[str, Any]") -> "Sampling":
        """Checked sampling parameters.

        Raises:
            ValueError: an unknown key or a value that cannot be, in one line.
        """
        try:
            made = values if isinstance(values, cls) else msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"sampling: {error}; its keys are {', '.join(cls.__struct_fields__)}") from None
        for name in ("images", "steps", "batch", "group"):
            if getattr(made, name) < 1:
                raise ValueError(f"sampling: {name} must be at least 1, got {getattr(made, name)}")
        return made


# -------------------------------------------------------------------------------------------------------- sampling


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
        pipeline: from :func:`models.load_pipeline`; left as it was.
        prompts: columns prompt_id and caption.
        sampling: see :class:`Sampling`.

    Yields:
        prompt_id, the image's number (from 0) and the image, uint8 RGB.

    Raises:
        ValueError: a caption that the pipeline's vocabulary lacks words for, or an unknown scheduler.
    """
    for tokenizer in models.tokenizers(pipeline):
        models.check_words(tokenizer, [*prompts.caption, sampling.negative_prompt])
    own, pipeline.scheduler = pipeline.scheduler, _scheduler(pipeline, sampling.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    batches = models.Batches(sampling.batch)
    try:
        for group in _groups(prompts, sampling.group):
            rows = zip(group.prompt_id, group.caption, strict=True)
            wanted = [(id, text, i) for id, text in rows for i in range(sampling.images)]
            call = _caller(pipeline, list(group.caption), sampling)
            for part, made in batches(wanted, call):
                for (id, _, index), image in zip(part, made, strict=True):
                    yield id, index, image
    finally:
        pipeline.scheduler = own


def _groups(table: pd.DataFrame, size: int) -> list[pd.DataFrame]:
    return [table.iloc[start : start + size] for start in range(0, len(table), size)]


def _caller(
    pipeline: DiffusionPipeline, texts: list[str], sampling: Sampling
) -> Callable[[Sequence[Wanted]], UInt8[np.ndarray, "image height width 3"]]:
    """A function that draws a batch of images. Stable Diffusion's prompts are encoded here, each once."""
    options: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "output_type": "pt",
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

    def call(wanted: Sequence[Wanted]) -> UInt8[np.ndarray, "image height width 3"]:
        texts, generators = [text for _, text, _ in wanted], [noise(sampling.seed, text, i) for _, text, i in wanted]
        with torch.inference_mode():
            images = pipeline(**prompt(texts), **options, generator=generators).images
            images = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
            return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    return call


def _scheduler(pipeline: DiffusionPipeline, name: str | None) -> Any:
    """A fresh scheduler of that class with the model's noise schedule."""
    kind = type(pipeline.scheduler) if name is None else getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        known = ", ".join(sorted(each.__name__ for each in pipeline.scheduler.compatibles))
        raise ValueError(f"sampling: diffusers has no scheduler {name!r}; this pipeline takes {known}")
    if "noise_sampler_seed" in inspect.signature(kind).parameters:
        raise ValueError(f"sampling: {name} draws noise of its own for a whole batch; choose another scheduler")
    fresh: Any = kind
    return fresh.from_config(pipeline.scheduler.config)


# ---------------------------------------------------------------------------------------------------------- images


def write_images(
    folder: str | Path,
    prompts: str | Path,
    *,
    model: Any,
    unet: str | Path | None = None,
    sampling: dict[str, Any] | Sampling = Sampling(),  # noqa: B008 (frozen)
    dtype: str = "float32",
    shard: int = 0,
    shards: int = 1,
) -> dict[str, Any]:
    """A stage: images of every prompt as ``folder/<group>/<prompt_id>_<number>.webp``.

    What is finished stays; a run that was killed goes on where it was and ends with the same bytes. Of several
    processes with the same arguments, ``shard`` k of ``shards`` n makes the groups k, k + n, … Beside the images lie
    the prompts (``prompts.parquet``) and ``record.json``: the model's record, the sampling and the prompt set's hash.
    Images of another model, sampling or prompt set are deleted first, and that is said.

    Args:
        folder: where to.
        prompts: a Parquet file with prompt_id, subject, relation, object and caption; :func:`write_prompts` makes one.
        model, unet, dtype: see :func:`models.load_pipeline`.
        sampling: see :class:`Sampling`.

    Returns:
        The record.

    Raises:
        ValueError: prompts, sampling or shard that cannot be. models.ModelError: the model does not load.
    """
    folder, sampling = Path(folder), Sampling.of(sampling)
    table = check_prompts(pd.read_parquet(prompts), str(prompts))
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} of {shards}: shards are numbered from 0 to {shards - 1}")
    pipeline, about = models.load_pipeline(model, dtype, unet=unet)
    text = table[["prompt_id", "subject", "relation", "object", "caption"]].to_json(orient="values")
    record = {
        "model": about,
        "sampling": msgspec.to_builtins(sampling),
        "prompts": {"number": len(table), "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "code": runs.digest(Path(__file__)),
    }
    _begin(folder, table, record, alone=shards == 1)
    groups = dict(list(enumerate(_groups(table, sampling.group)))[shard::shards])
    todo = {n: group for n, group in groups.items() if not _finished(folder / f"{n:05}", group.prompt_id, sampling)}
    total, missing = (sampling.images * sum(map(len, part.values())) for part in (groups, todo))
    with (
        tqdm(total=total, initial=total - missing, desc=f"images {about['id']}", unit="image", mininterval=1) as bar,
        ThreadPoolExecutor(WRITERS) as pool,
    ):
        for n, group in todo.items():
            writing: list[Future[None]] = []
            for id, index, image in sample(pipeline, group, sampling):
                writing.append(pool.submit(_write, folder / f"{n:05}" / f"{id}_{index}.webp", image))
                bar.update()
            for each in writing:
                each.result()
    return record


def _begin(folder: Path, table: pd.DataFrame, record: dict[str, Any], alone: bool) -> None:
    """Leave prompts and record in the folder; images that belong to another record go."""
    found = runs.read_json(folder / "record.json")
    if found is not None and _configuration(found) != _configuration(record):
        what = [
            key
            for key in ("model", "sampling", "prompts", "code")
            if _configuration(found).get(key) != _configuration(record)[key]
        ]
        if not alone:
            raise ValueError(f"{folder}: holds images of another configuration ({', '.join(what)}); delete it first")
        print(f"{folder}: holds images of another configuration ({', '.join(what)}); starting afresh", file=sys.stderr)
    if found is None or _configuration(found) != _configuration(record):
        for old in folder.glob("[0-9]*[0-9]"):
            shutil.rmtree(old)
        with runs.atomic(folder / "prompts.parquet") as partial:
            table.to_parquet(partial, index=False)
        runs.write_json(folder / "record.json", record)


def _configuration(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record decides whether images belong to it: not the versions of libraries."""
    return {**record, "model": {key: record["model"].get(key) for key in ("files", "dtype", "class")}}


def _finished(folder: Path, ids: pd.Series, sampling: Sampling) -> bool:
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return all(f"{id}_{index}.webp" in there for id in ids for index in range(sampling.images))


def _write(path: Path, image: Pixels) -> None:
    with runs.atomic(path) as partial:
        Image.fromarray(image).save(partial, **LOSSLESS)


def list_images(folder: str | Path, prompts: str | Path | pd.DataFrame | None = None) -> pd.DataFrame:
    """The images in a folder, of :func:`write_images` or made elsewhere, with their prompts.

    Args:
        folder: image files anywhere below it named ``<prompt_id>_<number>`` (as VISOR's), or ``<prompt_id>/samples/
            <number>`` (as GenEval's). A prompt's images are renumbered from 0 in the order of their numbers.
        prompts: their prompts, or what :func:`read_prompts` reads; by default ``prompts.parquet`` in the folder.

    Returns:
        The prompts' columns, image_index and file_name (within the folder), in the order of prompts and numbers.
        Prompts without an image are left out (one may draw a part of a prompt set); ``attrs["without_images"]`` is
        their number.

    Raises:
        ValueError: no images, an image of no prompt, prompts with unequal numbers of images, or unfinished generation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    if prompts is None and not (folder / "prompts.parquet").is_file():
        raise ValueError(f"{folder}: made elsewhere (it has no prompts.parquet), so give the file of its prompts")
    if prompts is None:
        prompts = folder / "prompts.parquet"
    table = check_prompts(prompts, "prompts") if isinstance(prompts, pd.DataFrame) else read_prompts(prompts)
    rows: dict[str, int] = {str(id): row for row, id in enumerate(table.prompt_id)}
    found: list[tuple[int, int, str]] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
        at = path.relative_to(folder).as_posix()
        match = re.search(r"(?:^|/)([^/]+?)(?:_|/samples/)(\d+)\.\w+$", at)
        id = match[1] if match else at
        row = rows.get(id, rows.get(id.lstrip("0") or "0"))
        if match is None or row is None:
            raise ValueError(
                f"{path}: belongs to no prompt; images are named <prompt_id>_<number>, as {table.prompt_id[0]}_0.png"
            )
        found.append((row, int(match[2]), at))
    if not found:
        raise ValueError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    images = pd.DataFrame(sorted(found), columns=["row", "number", "file_name"])
    images["image_index"] = images.groupby("row").cumcount()
    counts = images.groupby("row").size()
    record = runs.read_json(folder / "record.json")
    per_prompt = record["sampling"]["images"] if record else counts.max()
    if (few := counts[counts != per_prompt]).size or (record and len(counts) < len(table)):
        hint = "run the generation again to finish it" if record else "each prompt needs as many images as the others"
        odd = int(few.index[0]) if few.size else int(np.setdiff1d(np.arange(len(table)), counts.index)[0])
        raise ValueError(
            f"{folder}: prompt {table.prompt_id[odd]} has {counts.get(odd, 0)} images, not {per_prompt}; {hint}"
        )
    joined = (
        table.drop(columns=["file_name", "image_index"], errors="ignore")
        .iloc[images.row]
        .reset_index(drop=True)
        .join(images[["image_index", "file_name"]])
    )
    joined.attrs["without_images"] = len(table) - len(counts)
    return joined


def read_images(
    folder: str | Path, prompts: str | Path | pd.DataFrame | None = None
) -> Iterator[tuple[dict[str, Any], Pixels]]:
    """The rows of :func:`list_images` (a dict each) with their images, decoded ahead of need."""
    listed, photos = list_images(folder, prompts).to_dict("records"), Photos(folder)
    with ThreadPoolExecutor(WRITERS) as pool:
        for rows in (listed[start : start + 64] for start in range(0, len(listed), 64)):
            yield from zip(rows, pool.map(photos.read, [row["file_name"] for row in rows]), strict=True)


# --------------------------------------------------------------------------------------------------------- prompts

_WORDS = {word: r.name for r in RELATIONS for word in (r.name, r.phrase)}
# T2I-CompBench's wording (Huang et al. 2023); "next to", "near" and "on side of" name no relation of ours.
_COMPBENCH = {
    "on the left of": "left of",
    "on the right of": "right of",
    "on the top of": "above",
    "on the bottom of": "below",
}
_COMPBENCH_LINE = re.compile(rf"an? (.+?) ({'|'.join(_COMPBENCH)}) an? (.+)")


def check_prompts(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The table itself, when it is one of prompts with captions.

    Raises:
        ValueError: it names the source, the column and the value.
    """
    needed = ("prompt_id", "subject", "relation", "object", "caption")
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"{source}: the column {missing[0]!r} is missing; prompts have {', '.join(needed)}")
    if not len(table):
        raise ValueError(f"{source}: holds no prompts")
    if (unknown := table[~table.relation.isin(NAMES)]).size:
        row = unknown.iloc[0]
        raise ValueError(
            f"{source}: prompt {row.prompt_id} has the relation {row.relation!r}; it must be one of {', '.join(NAMES)}"
        )
    for name in ("subject", "object", "caption"):
        empty = table[name].isna() | (table[name].astype(str).str.strip() == "")
        if empty.any():
            raise ValueError(f"{source}: prompt {table.prompt_id[empty].iloc[0]} has no {name}")
    if (
        odd := table.prompt_id[table.prompt_id.duplicated() | ~table.prompt_id.astype(str).str.fullmatch(r"[\w.-]+")]
    ).size:
        raise ValueError(
            f"{source}: prompt_id {str(odd.iloc[0])!r} occurs twice or is not made of letters, digits, '.', '-'"
        )
    return table


def read_prompts(source: str | Path) -> pd.DataFrame:
    """A prompt set: columns prompt_id, subject, relation, object, caption, and what else its file holds.

    Args:
        source: ``"sr2d"`` (VISOR's 25,280 spatial prompts), ``"sr4g"`` (the triplets of COCO train2017, which is
            downloaded), ``"geneval"`` (its 100 position prompts, downloaded) or a file: Parquet, CSV, JSON or JSON
            Lines with subject, relation (a name or its phrase), object and perhaps caption and prompt_id; SR2D's
            published JSON; GenEval's ``evaluation_metadata.jsonl``; T2I-CompBench's spatial lines (``.txt``). Of the
            last three, prompts without one of the 14 relations are left out; ``attrs["left_out"]`` is their number.

    Raises:
        ValueError: no such file or set, or a row that cannot be read; file, row and value are named.
    """
    name = str(source)
    if name == "sr2d":
        rows = json.loads(dataset.sr2d([category.name for category in boxes.COCO_CATEGORIES]))
    elif name == "sr4g":
        return _sr4g()
    else:
        path = runs.download("geneval_evaluation_metadata.jsonl") if name == "geneval" else Path(source).expanduser()
        if not path.is_file():
            raise ValueError(f"prompts: {name!r} is neither a file nor one of sr2d, sr4g, geneval")
        if path.suffix == ".parquet":
            return _named(pd.read_parquet(path), name)
        if path.suffix == ".csv":
            return _named(pd.read_csv(path), name)
        rows = _lines(path)
    made = [prompt for i, row in enumerate(rows) for prompt in [_prompt(i, row, f"{name}, row {i + 1}")] if prompt]
    if not made:
        raise ValueError(f"{name}: holds no prompts with one of the relations {', '.join(NAMES)}")
    table = _named(pd.DataFrame(made), name)
    table.attrs["left_out"] = len(rows) - len(table)
    return table


def _lines(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of prompts, found {type(rows).__name__}")
    return rows


def _prompt(row: int, value: Any, where: str) -> dict[str, Any] | None:
    """One prompt of a published set or a user's file; None where it names no relation."""
    match value:
        case str():  # T2I-CompBench
            if not (found := _COMPBENCH_LINE.fullmatch(value)):
                return None
            id, s, words, o, text = row, found[1], _COMPBENCH[found[2]], found[3], value
        case {
            "unique_id": id,
            "obj_1_attributes": [s],
            "obj_2_attributes": [o],
            "rel_type": words,
            "text": text,
        }:  # SR2D
            if words not in _WORDS:
                return None
        case {"tag": str(), "include": [{"class": o}, {"class": s, "position": [words, 0]}], "prompt": text}:  # GenEval
            id = row
        case {"tag": str(), "prompt": str()}:
            return None
        case {"subject": _, "relation": _, "object": _}:
            return {"prompt_id": row, **value}
        case _:
            raise ValueError(f"{where}: not a prompt ({str(value)[:80]}); it needs subject, relation and object")
    return {"prompt_id": id, "subject": s, "relation": _WORDS.get(words, words), "object": o, "caption": text}


def _named(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The prompts, with what a user's file may leave out: prompt_id, caption, and a relation's name for its phrase."""
    if "prompt_id" not in table:
        table = table.assign(prompt_id=np.arange(len(table)))
    if "relation" in table:
        table = table.assign(relation=[_WORDS.get(words, words) for words in table.relation])
    table = check_prompts(table if "caption" in table else table.assign(caption="–"), source).reset_index(drop=True)
    if (table.caption == "–").all():
        table["caption"] = [
            caption(s, r, o) for s, r, o in zip(table.subject, table.relation, table.object, strict=True)
        ]
    return table


def _sr4g() -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as scratch:
        triplets = Path(scratch) / "triplets.parquet"
        dataset.build(triplets, runs.download("annotations_trainval2017.zip"), split="train")
        unseen = dataset.unseen_categories(boxes.COCO_CATEGORIES, 16)
        return dataset.prompts(dataset.frequencies(triplets), unseen, seed=0)


def write_prompts(path: str | Path, *, source: str | Path) -> dict[str, Any]:
    """A stage: :func:`read_prompts` as Parquet. Returns how many there are and how many were left out."""
    table = read_prompts(source)
    with runs.atomic(path) as partial:
        table.to_parquet(partial, index=False)
    return {"prompts": len(table), "left_out": table.attrs.get("left_out", 0)}


# -------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
    """Images of a prompt set (generate.write_images); ``--shard k --shards n`` shares the work among jobs."""
    parser = argparse.ArgumentParser("python -m sr4g_utils.generate", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the images go; run again to go on")
    parser.add_argument("--prompts", required=True, help="sr2d, sr4g, geneval or a file (see read_prompts)")
    parser.add_argument(
        "--model", required=True, help="a folder, an id on the Hub, or YAML: {id: …, revision: …, mirrors: […]}"
    )
    parser.add_argument("--unet", type=Path, help="folder of a fine-tuned UNet")
    parser.add_argument("--dtype", default="float32", choices=models.DTYPES)
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"one of {', '.join(Sampling.__struct_fields__)}; may be repeated",
    )
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    args = parser.parse_args(argv)
    try:
        sampling = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in args.settings)}
        with tempfile.TemporaryDirectory() as scratch:
            prompts = Path(args.prompts)
            if prompts.suffix != ".parquet":
                write_prompts(prompts := Path(scratch) / "prompts.parquet", source=args.prompts)
            write_images(
                args.folder, prompts, model=yaml.safe_load(args.model), unet=args.unet, sampling=sampling,
                dtype=args.dtype, shard=args.shard, shards=args.shards,
            )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
