"""Prompts to images: any text-to-image pipeline of diffusers, resumable and in shards.

Images are lossless WebP (method 0): at 512 × 512 a fifth smaller than PNG and four times as fast to write.
"""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ..dataset.prompt_sets import check_prompts, prompts_hash
from ..models.sampling import BEHAVIOUR, Pixels, Sampling, against_card, recommended_sampling
from ..store import files
from .images import progress

LOSSLESS: dict[str, Any] = {"format": "WEBP", "lossless": True, "method": 0, "quality": 50}
WRITERS = 4  # threads that encode images while the next batch is made


def write_images(
    folder: str | Path, prompts: str | Path, *, model: Any, unet: str | Path | None = None,
    lora: str | Path | None = None, sampling: dict[str, Any] | Sampling = Sampling(),  # noqa: B008 (frozen)
    dtype: str = "float32", shard: int = 0, shards: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """A stage: images of every prompt as ``folder/<group>/<prompt_id>_<number>.webp``.

    What is finished stays; a run that was killed goes on where it was and ends with the same bytes. Of several
    processes with the same arguments, ``shard`` k of ``shards`` n makes the groups k, k + n, … Beside the images lie
    the prompts (``prompts.parquet``) and ``record.json``: the model's record, the sampling as the pipeline did it, the
    arguments of its calls and the prompt set's hash.
    What was made of another model, sampling or prompt set is moved to ``<folder>.before`` first, and that is said; a
    folder that holds something else is refused.

    Args:
        prompts: a Parquet file with prompt_id, subject, relation, object and caption, as
            :func:`prompt_sets.write_given_prompts` makes one.
        model, unet, lora, dtype: see :func:`models.load_pipeline`. sampling: see :class:`Sampling`.

    Returns the record.

    Raises:
        ValueError: prompts, sampling, shard or folder that cannot be. models.ModelError: the model does not load.
        FloatingPointError: the model gives NaN or infinity; finished groups stay.
    """
    folder, sampling = Path(folder).absolute(), Sampling.of(sampling)
    table = check_prompts(files.read_table(prompts), str(prompts))
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} of {shards}: shards are numbered from 0 to {shards - 1}")
    from ..models import diffusion, pipelines  # torch: not for --help
    from ..models.load import load_pipeline

    _look(folder)  # an error now, not after the model is loaded
    pipeline, about = load_pipeline(model, dtype, unet=unet, lora=lora, offload=sampling.offload)
    sampling = pipelines.applied(pipeline, sampling)
    if warning := against_card(about["id"], sampling, recommended_sampling(about["id"])):
        print(warning, file=sys.stderr)
    asked = {"number": len(table), "sha256": prompts_hash(table)}
    record = {"model": about, "sampling": sampling.record(), "prompts": asked, "behaviour": BEHAVIOUR}
    record["scheduler"] = diffusion.scheduling(pipeline, sampling)
    if about["class"] != "StableDiffusionPipeline":  # whose every argument is in its sampling
        record["call"] = pipelines.call_record(pipeline, sampling)
    _begin(folder, table, record, alone=shards == 1)
    groups = dict(list(enumerate(diffusion.groups(table, sampling.group)))[shard::shards])
    todo = {n: group for n, group in groups.items() if not _finished(folder / f"{n:05}", group.prompt_id, sampling)}
    total, missing = (sampling.images * sum(map(len, part.values())) for part in (groups, todo))
    with progress(f"images {about['id']}", total, missing) as bar, ThreadPoolExecutor(WRITERS) as pool:
        for n, group in todo.items():
            writing: list[Future[None]] = []
            for id, index, image in diffusion.sample(pipeline, group, sampling):
                writing.append(pool.submit(_write, folder / f"{n:05}" / f"{id}_{index}.webp", image))
                bar.update()
            for future in writing:
                future.result()
    return record


def _look(folder: Path) -> dict[str, Any] | None:
    """The record of a folder of images; None of an empty or a new one. ValueError: it holds something else."""
    there = folder.is_dir() and [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    record = files.read_json(folder / "record.json")  # after the look: who writes here writes the record first
    if isinstance(record, dict) and {"model", "sampling", "prompts"} <= record.keys():
        return record
    if there or folder.is_file():
        raise ValueError(f"{folder}: is not empty, and no folder of images made here; name another one")
    return None


def _begin(folder: Path, table: pd.DataFrame, record: dict[str, Any], alone: bool) -> None:
    """Leave prompts and record in the folder; what belongs to another record is set aside."""
    present, wanted = _look(folder), _configuration(record)
    if present is not None and (what := [key for key in wanted if _configuration(present).get(key) != wanted[key]]):
        if not alone:
            raise ValueError(f"{folder}: holds images of another configuration ({', '.join(what)}); move it away first")
        why = f"{folder}: holds images of another configuration ({', '.join(what)}): starting afresh"
        print(f"{why}; {files.set_aside(folder)}", file=sys.stderr)
        present = None
    files.sweep(folder)
    if present is None:
        files.write_json(folder / "record.json", record)
    if not (folder / "prompts.parquet").is_file():
        files.write_table(folder / "prompts.parquet", table)


def _configuration(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record decides whether images belong to it: not the versions of libraries."""
    sampling = {key: value for key, value in record["sampling"].items() if key != "offload"}  # the same images
    model = {key: record["model"].get(key) for key in ("files", "dtype", "class")}
    return {**record, "model": model, "sampling": sampling}


def _finished(folder: Path, ids: pd.Series, sampling: Sampling) -> bool:
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return all(f"{id}_{index}.webp" in present for id in ids for index in range(sampling.images))


def _write(path: Path, image: Pixels) -> None:
    with files.atomic(path) as partial:
        Image.fromarray(image).save(partial, **LOSSLESS)
