"""Images to boxes, by VISOR's protocol: the detector is asked for a prompt's two names and for nothing else.

All boxes above a low floor are stored once, with scores: thresholds and rules come later (:mod:`sr4g_utils.visor`). A
stage and a command; what a detector is and does is in :mod:`sr4g_utils.detectors`.
"""

import argparse
import json
import shutil
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from . import boxes
from .detections import BEHAVIOUR, DETECTION_COLUMNS, FLOOR, QUERY
from .images import READERS, Pixels, list_images
from .photos import Photos
from .prompts import true_prompts
from .running import files

GROUP = 128  # images that are resumed and sharded together


def write_detections(
    path: str | Path,
    images: str | Path,
    *,
    detector: Any,
    prompts: str | Path | None = None,
    floor: float = FLOOR,
    query: str = QUERY,
    batch: int = 64,
    dtype: str = "float32",
    shard: int = 0,
    shards: int = 1,
) -> dict[str, Any]:
    """A stage: boxes of each image's own two names as Parquet, columns ``DETECTION_COLUMNS``, width and height.

    Images go in fixed groups, each kept beside ``path`` as it is finished, until all are there and become one file: a
    run that was killed goes on where it was. Of several processes with the same arguments, ``shard`` k of ``shards`` n
    takes the groups k, k + n, …; the last to finish puts the file together.

    Args:
        path: the Parquet file; its metadata holds the record as JSON under ``sr4g``.
        images: a folder, of :func:`generate.write_images` or made elsewhere (see :func:`images.list_images`).
        detector: see :class:`models.Source`.
        prompts: the images' prompts (see :func:`prompts.read_prompts`), if the folder does not hold them.
        floor, query, batch: see :meth:`detectors.Detector.detect`. dtype: of the detector's weights.

    Returns:
        The record: detector, floor, query, images (their number and record), boxes (their number; None while other
        shards are at work; 0, which is said, is a result that :func:`visor.verdicts` does not score by itself).

    Raises:
        ValueError: unfinished generation, images that belong to no prompt, an unknown name.
        models.ModelError: the detector does not load. photos.PhotoError: an image is missing or does not decode.
    """
    listed = list_images(images, prompts)
    about = {"folder": files.digest(Path(images)), "record": files.read_json(Path(images) / "record.json")}
    photos = Photos(images)
    return _write(
        path, listed, lambda row: photos.read(row.file_name), about,
        detector=detector, floor=floor, query=query, batch=batch, dtype=dtype, shard=shard, shards=shards,
    )  # fmt: skip


def ceiling(
    folder: str | Path,
    annotations: str | Path,
    photos: str | Path,
    *,
    detector: Any,
    split: str = "val",
    n_per_relation: int = 100,
    seed: int = 0,
    rules: str = "visor",
    **options: Any,
) -> dict[str, Any]:
    """A stage: the same detector and protocol on real photos with captions that are true of them.

    What :func:`visor.scores` gives on the result is the most that a perfect generator could reach under this detector.
    Leaves ``folder/prompts.parquet`` (a prompt per image and triplet: prompt_id, subject, relation, object, caption,
    file_name) and ``folder/detections.parquet``; score them with ``images=1``.

    Args:
        annotations, photos, split: COCO-form boxes, and their photos in a folder or zip.
        n_per_relation: triplets of different categories drawn for each relation, or all where there are fewer.
        rules: by which the triplets are true of the annotated boxes.
        options: of :func:`write_detections`.
    """
    prompts = true_prompts(boxes.read(annotations, split).without_crowds(), n_per_relation, seed, rules)
    with files.atomic(Path(folder) / "prompts.parquet") as partial:
        prompts.to_parquet(partial, index=False)
    source, about = Photos(photos), {"annotations": files.digest(Path(annotations)), "photos": Path(photos).name}
    return _write(
        Path(folder) / "detections.parquet", prompts.assign(image_index=0),
        lambda row: source.read(row.file_name, (row.width, row.height)), about, detector=detector, **options,
    )  # fmt: skip


def _write(
    path: str | Path,
    listed: pd.DataFrame,
    read: Callable[[Any], Pixels],
    images: dict[str, Any],
    *,
    detector: Any,
    floor: float = FLOOR,
    query: str = QUERY,
    batch: int = 64,
    dtype: str = "float32",
    shard: int = 0,
    shards: int = 1,
) -> dict[str, Any]:
    """Detect in every row of ``listed`` (prompt_id, image_index, subject, object, what ``read`` needs), in groups."""
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} of {shards}: shards are numbered from 0 to {shards - 1}")
    path = Path(path)
    parts = path.with_name(f".{path.name}.parts")
    from . import detectors, models  # torch: not for --help

    judge = detectors.load(detector, dtype)
    about = judge.record
    record = {"detector": about, "floor": floor, "query": query, "images": {"number": len(listed), **images}}
    key = files.hash_of([record, BEHAVIOUR])
    if path.is_file() and (done := _record(path)) and done.pop("key") == key:
        return done
    if files.read_json(parts / "key.json") != key:
        if parts.is_dir():
            print(f"{path}: detections of another configuration were begun; starting afresh", file=sys.stderr)
        shutil.rmtree(parts, ignore_errors=True)
        files.write_json(parts / "key.json", key)
    groups = {n: listed.iloc[start : start + GROUP] for n, start in enumerate(range(0, len(listed), GROUP))}
    mine = {n: group for n, group in groups.items() if n % shards == shard}
    todo = {n: group for n, group in mine.items() if not (parts / f"{n:06}.parquet").is_file()}
    total, missing = (sum(map(len, part.values())) for part in (mine, todo))
    # all of them now: an embedding's rounding must not depend on the group
    judge.known(list(dict.fromkeys([*listed.subject, *listed.object])), query)
    batches = models.Batches(batch)
    with (
        tqdm(total=total, initial=total - missing, desc=f"boxes {about['id']}", unit="image", mininterval=1) as bar,
        ThreadPoolExecutor(READERS) as pool,
    ):
        ahead: deque[list[Future[Pixels]]] = deque()
        coming = iter(todo.values())
        for n, group in todo.items():
            for each in islice(coming, 2 - len(ahead)):  # this group and the next
                ahead.append([pool.submit(read, row) for row in each.itertuples()])
            pixels = [image.result() for image in ahead.popleft()]
            names = list(zip(group.subject, group.object, strict=True))
            found = judge.detect(pixels, names, floor=floor, query=query, batch=batches)
            with files.atomic(parts / f"{n:06}.parquet") as partial:
                _columns(found, group, pixels).to_parquet(partial, index=False)
            bar.update(len(group))
    if not all((parts / f"{n:06}.parquet").is_file() for n in groups):
        return {**record, "boxes": None}
    table = pa.concat_tables(pq.read_table(parts / f"{n:06}.parquet") for n in groups)
    if not len(table):  # a result, where another model's images hold something: visor.unfound decides
        print(f"{path}: {about['id']} found nothing above {floor} in {len(listed):,} images", file=sys.stderr)
    record["boxes"] = len(table)
    metadata = {"sr4g": json.dumps({**record, "key": key}, sort_keys=True)}
    with files.atomic(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")
    shutil.rmtree(parts, ignore_errors=True)  # another shard may be doing the same
    return record


def _columns(found: pd.DataFrame, group: pd.DataFrame, images: list[Pixels]) -> pd.DataFrame:
    """A group's boxes with their prompt, number and image size."""
    at = found.image.to_numpy(int)
    size = np.array([image.shape[:2] for image in images], np.int32)[at]
    numbers = {name: found[name].to_numpy(np.float32) for name in ("score", *"xywh")}
    table = {"prompt_id": group.prompt_id.to_numpy()[at], "image_index": group.image_index.to_numpy(np.int32)[at]}
    table |= {"label": found.label.astype(str), **numbers, "width": size[:, 1], "height": size[:, 0]}
    return pd.DataFrame(table)[[*DETECTION_COLUMNS, "width", "height"]]


def _record(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads((pq.read_schema(path).metadata or {})[b"sr4g"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def main(argv: list[str] | None = None) -> int:
    """Boxes in a folder of images (detect.write_detections); ``--shard k --shards n`` shares the work among jobs."""
    parser = argparse.ArgumentParser("python -m sr4g_utils.detect", description=main.__doc__)
    parser.add_argument("path", type=Path, help="the Parquet file of boxes; run again to go on")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--detector", required=True, help="a folder, an id on the Hub, or YAML: {id: …, revision: …}")
    parser.add_argument("--prompts", help="of images made elsewhere: sr2d, sr4g, geneval or a file")
    parser.add_argument("--floor", type=float, default=FLOOR, help="scores below are not stored (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    args = vars(parser.parse_args(argv))
    try:
        record = write_detections(**args | {"detector": yaml.safe_load(args["detector"])})
    except (ValueError, RuntimeError) as error:
        print(f"detect: {error}", file=sys.stderr)
        return 1
    if record["boxes"] == 0:
        print("detect: no box at all: is it the right detector, and are these the prompts' images?", file=sys.stderr)
    return int(record["boxes"] == 0)


if __name__ == "__main__":
    sys.exit(main())
