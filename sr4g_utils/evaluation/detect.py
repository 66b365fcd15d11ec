"""Images to boxes, by VISOR's protocol: the detector is asked for a prompt's two names and for nothing else.

All boxes above a low floor are stored once, with scores: thresholds and rules come later (:mod:`.verdicts`).
"""

import glob
import json
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

from ..dataset import coco
from ..dataset.photos import Photos
from ..dataset.prompts import true_prompts
from ..models.names import FLOOR
from ..models.sampling import Pixels
from ..store import files
from .detections import BEHAVIOUR, record_of
from .images import READERS, list_images, progress

GROUP = 128  # images that are resumed and sharded together


def write_detections(
    path: str | Path, images: str | Path, *, prompts: str | Path | pd.DataFrame | None = None, **options: Any
) -> dict[str, Any]:
    """A stage: boxes of each image's own two names as Parquet, columns ``DETECTION_COLUMNS``, width and height.

    Images go in fixed groups, each kept beside ``path`` as it is finished, until all are there and become one file: a
    run that was killed goes on where it was. Of several processes with the same arguments, ``shard`` k of ``shards`` n
    takes the groups k, k + n, …; the last to finish puts the file together.

    Args:
        path: the Parquet file; its metadata holds the record as JSON under ``sr4g``.
        images: a folder, of :func:`generate.write_images` or made elsewhere (see :func:`images.list_images`).
        prompts: the images' prompts (see :func:`prompt_sets.read_prompts`), if the folder does not hold them.
        options: ``detector`` (a :class:`models.Source`); ``dtype`` of its weights; ``floor``, ``query`` and ``batch``
            as for :meth:`Detector.detect`; ``shard`` and ``shards``.

    Returns:
        The record: detector, floor, query, images (their number and record), asked (the texts, where a name's boxes
        depend on what else is asked: Grounding DINO), boxes (their number; None while other shards are at work; if 0, a
        warning is printed, and :func:`verdicts.verdicts` raises unless told to score it).

    Raises:
        ValueError: unfinished generation, images that belong to no prompt, an unknown name.
        models.ModelError: the detector does not load. photos.PhotoError: an image is missing or does not decode.
    """
    listed = list_images(images, prompts)
    if left_out := listed.attrs["left_out_images"]:
        print(f"{images}: {left_out:,} images of prompts that are left out are not looked at", file=sys.stderr)
    about = {"folder": files.digest(Path(images)), "record": files.read_json(Path(images) / "record.json")}
    photos = Photos(images)
    return write_boxes(path, listed, lambda row: photos.read(row.file_name), about, **options)


def ceiling(
    folder: str | Path,
    annotations: str | Path,
    photos: str | Path,
    *,
    split: str = "val",
    n_per_relation: int = 100,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """A stage: the same detector and protocol on real photos with captions that are true of them.

    What :func:`scores.scores` gives on the result is the most that a perfect generator could reach under this detector.
    Leaves ``folder/prompts.parquet`` (a prompt per image and triplet: prompt_id, subject, relation, object, caption,
    file_name) and ``folder/detections.parquet``; score them with ``images=1``.

    Args:
        annotations, photos, split: COCO-form boxes, and their photos in a folder or zip.
        n_per_relation: triplets of different categories drawn for each relation, or all where there are fewer.
        options: of :func:`write_detections`.
    """
    prompts = true_prompts(coco.read(annotations, split).without_crowds(), n_per_relation, seed)
    files.write_table(Path(folder) / "prompts.parquet", prompts)
    source, about = Photos(photos), {"annotations": files.digest(Path(annotations)), "photos": Path(photos).name}
    path, listed = Path(folder) / "detections.parquet", prompts.assign(image_index=0)
    return write_boxes(path, listed, lambda row: source.read(row.file_name, (row.width, row.height)), about, **options)


def write_boxes(
    path: str | Path, listed: pd.DataFrame, read: Callable[[Any], Pixels], images: dict[str, Any], *, detector: Any,
    floor: float = FLOOR, query: str | None = None, batch: int = 64, dtype: str = "float32", shard: int = 0,
    shards: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Detect in every row of ``listed`` (prompt_id, image_index, subject, object, what ``read`` needs), in groups."""
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} of {shards}: shards are numbered from 0 to {shards - 1}")
    path = Path(path).absolute()
    from ..models import detectors  # torch: not for --help

    loaded = detectors.load(detector, dtype)
    query = query or loaded.query
    record = {"detector": loaded.record, "floor": floor, "query": query, "images": {"number": len(listed), **images}}
    record |= loaded.asked(list(zip(listed.subject, listed.object, strict=True)), query)
    key = files.hash_of([record, BEHAVIOUR])
    parts = path.with_name(f".{path.name}.{key[:8]}.parts")
    groups = {parts / f"{i // GROUP:06}.parquet": listed.iloc[i : i + GROUP] for i in range(0, len(listed), GROUP)}
    try:
        if not _done(path, key):
            _make_way(path, parts, key)
            # all of them now: an embedding's rounding must not depend on the group
            loaded.known(list(dict.fromkeys([*listed.subject, *listed.object])), query)
            _look(loaded, dict(list(groups.items())[shard::shards]), read, batch, floor=floor, query=query)
            if all(part.is_file() for part in groups):
                _join(list(groups), path, record, key)
    except OSError:  # another process has put the file together and removed the parts
        if not _done(path, key):
            raise
    if not (done := _done(path, key)):
        return {**record, "boxes": None}  # other shards are at work
    files.remove(parts)
    return done


def _done(path: Path, key: str) -> dict[str, Any] | None:
    """The record of a file of boxes that was made with this key."""
    record = record_of(path) or {}
    return record if record.pop("key", None) == key else None


def _make_way(path: Path, parts: Path, key: str) -> None:
    """Set aside boxes of another configuration, and say where others were begun. ValueError: a file not made here."""
    if path.exists() and not _done(path, key):
        if record_of(path) is None:
            raise ValueError(f"{path}: is there already, and no file of boxes made here; name another one")
        print(f"{path}: holds boxes of another configuration; {files.set_aside(path)}", file=sys.stderr)
    for other in sorted(path.parent.glob(f".{glob.escape(path.name)}.*.parts")):
        if other != parts:
            print(f"{path}: boxes of another configuration were begun in {other}; delete it at will", file=sys.stderr)
    parts.mkdir(parents=True, exist_ok=True)
    files.sweep(parts)


def _look(loaded: Any, mine: dict[Path, pd.DataFrame], read: Callable[[Any], Pixels], batch: int, **asked: Any) -> None:
    """Detect in every group that is not there yet, and keep each in its file."""
    from ..models.limits import AdaptiveBatches  # torch: not for --help

    todo = {part: group for part, group in mine.items() if not part.is_file()}
    total, missing = (sum(map(len, groups.values())) for groups in (mine, todo))
    with progress(f"boxes {loaded.record['id']}", total, missing) as bar, ThreadPoolExecutor(READERS) as pool:
        ahead: deque[list[Future[Pixels]]] = deque()
        batches, coming = AdaptiveBatches(batch), iter(todo.values())
        for part, group in todo.items():
            for group_ahead in islice(coming, 2 - len(ahead)):  # this group and the next
                ahead.append([pool.submit(read, row) for row in group_ahead.itertuples()])
            pixels = [image.result() for image in ahead.popleft()]
            names = list(zip(group.subject, group.object, strict=True))
            boxes = loaded.detect(pixels, names, batch=batches, **asked)
            files.write_table(part, _columns(boxes, group, pixels))
            bar.update(len(group))


def _join(parts: list[Path], path: Path, record: dict[str, Any], key: str) -> None:
    """Put the groups together."""
    table = pa.concat_tables(pq.read_table(part) for part in parts)
    if not len(table):  # a result, where another model's images hold something: visor.unfound decides
        where = f"{record['images']['number']:,} images"
        print(f"{path}: {record['detector']['id']} found nothing above {record['floor']} in {where}", file=sys.stderr)
    metadata = {"sr4g": json.dumps({**record, "boxes": len(table), "key": key}, sort_keys=True)}
    with files.atomic(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")


def _columns(boxes: pd.DataFrame, group: pd.DataFrame, images: list[Pixels]) -> pd.DataFrame:
    """A group's boxes with their prompt, number and image size."""
    at = boxes.image.to_numpy(int)
    size = np.array([image.shape[:2] for image in images], np.int32)[at]
    numbers = {name: boxes[name].to_numpy(np.float32) for name in ("score", *"xywh")}
    ids = {"prompt_id": group.prompt_id.to_numpy()[at], "image_index": group.image_index.to_numpy(np.int32)[at]}
    return pd.DataFrame(ids | {"label": boxes.label.astype(str), **numbers, "width": size[:, 1], "height": size[:, 0]})
