"""Images to boxes, by VISOR's protocol: the detector is asked for a prompt's two names and for nothing else.

OWL-ViT and OWLv2 are queried "a photo of a {name}"; each of their boxes carries the better of the two queries, as the
stock post-processing gives it. RT-DETR knows COCO's 80 names; of its boxes those of the two names are kept. No boxes
are suppressed. All boxes above a low floor are stored once, with scores: thresholds and rules come later
(:mod:`sr4g_utils.visor`).

The image tower runs once per image, the text tower once per name. Images are resized and normalised in torch, on the
detector's device, equal to the stock processor's within one grey level (OWLv2's, which resizes in floating point:
within 0.01 levels); the tests hold both it and the boxes against transformers' own.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial as given
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from jaxtyping import Float, Int64, UInt8
from torch.nn import functional as F
from tqdm import tqdm

from . import boxes, dataset, generate, models, runs
from .captions import caption
from .photos import Photos
from .relations import NAMES
from .visor import DETECTION_COLUMNS

FLOOR = 0.01  # scores below it are not stored; VISOR's threshold is 0.1
QUERY = "a photo of a {name}"  # VISOR's
GROUP = 128  # images that are resumed and sharded together
READERS = 4  # threads that decode images while the detector works
# Spellings of COCO's categories in Pascal VOC's tradition (RT-DETR's labels) and in GenEval's prompts.
_ALIASES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "computermouse": "mouse",
    "computerkeyboard": "keyboard",
    "tvremote": "remote",
}

Image = UInt8[np.ndarray, "_ _ 3"]  # images of a list may differ in size


# ------------------------------------------------------------------------------------------------------- detection


def detect(
    detector: Any,
    processor: Any,
    images: Sequence[Image],
    names: Sequence[Sequence[str]],
    *,
    floor: float = FLOOR,
    query: str = QUERY,
    batch: int | models.Batches = 64,
    queries: MutableMapping[str, Float[torch.Tensor, "dim"]] | None = None,
) -> pd.DataFrame:
    """Boxes of the names asked for in each image.

    Args:
        detector, processor: from :func:`models.load_detector`.
        images: uint8 RGB, of any sizes.
        names: for each image what to look for.
        floor: boxes with a higher score are returned.
        query: text of an open-vocabulary query; closed vocabularies take the bare name.
        batch: images that go through the detector together; halved when they do not fit into memory.
        queries: embeddings of queries, to be kept from one call to the next (of the same detector); filled in here.

    Returns:
        Columns image (its position), label (a name asked for), score, and x, y, w, h in pixels of the image; by image,
        best scores first. Boxes may reach beyond the image, as the stock post-processing leaves them.

    Raises:
        ValueError: a name that a closed-vocabulary detector does not know, or that an open one's tokenizer does not.
    """
    names = [list(dict.fromkeys(each)) for each in names]
    if len(images) != len(names):
        raise ValueError(f"detect: {len(images)} images but names for {len(names)}")
    position = {name: i for i, name in enumerate(dict.fromkeys(name for each in names for name in each))}
    asked = np.full((len(names), max(map(len, names), default=0)), -1)
    for row, each in zip(asked, names, strict=True):
        row[: len(each)] = [position[name] for name in each]
    find = _find_open if _is_open(detector) else _find_closed
    batches = batch if isinstance(batch, models.Batches) else models.Batches(batch)
    found = []
    with torch.inference_mode():
        known = _known(detector, processor, list(position), query, {} if queries is None else queries)

        def look(rows: Sequence[int]) -> list[np.ndarray]:
            part = [images[row] for row in rows]
            pixels = preprocess(part, processor, detector.device).to(detector.dtype)
            sizes = torch.tensor([image.shape[:2] for image in part], device=detector.device)
            ask = torch.from_numpy(asked[rows]).to(detector.device)
            return [each.cpu().numpy() for each in find(detector, pixels, sizes, ask, known, floor)]

        for rows, (image, name, score, xywh) in batches(range(len(images)), look):
            found.append([image + rows[0], np.array(list(position), object)[name], score, *xywh.T])
    columns = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [np.empty(0)] * 7
    table = pd.DataFrame(dict(zip(("image", "label", "score", *"xywh"), columns, strict=True)))
    return table.sort_values(["image", "score"], ascending=[True, False], kind="stable", ignore_index=True)


# image, position of the name, score, xywh in pixels
Found = tuple[
    Int64[torch.Tensor, "box"], Int64[torch.Tensor, "box"], Float[torch.Tensor, "box"], Float[torch.Tensor, "box 4"]
]


def _is_open(detector: Any) -> bool:
    """Whether the detector is asked in words."""
    return hasattr(detector, "class_predictor")


@torch.inference_mode()
def _known(
    detector: Any, processor: Any, names: list[str], query: str, queries: MutableMapping[str, torch.Tensor]
) -> torch.Tensor:
    """What the detector has for each name: an embedding (name, dim) of its query, or its own label (name).

    A text that is in ``queries`` is not embedded again.
    """
    if not _is_open(detector):
        labels = {_plain(label): int(i) for i, label in detector.config.id2label.items()}
        if unknown := [name for name in names if _plain(name) not in labels]:
            known = ", ".join(detector.config.id2label.values())
            raise ValueError(f"{type(detector).__name__} does not know {unknown[0]!r}; its labels are {known}")
        return torch.tensor([labels[_plain(name)] for name in names], device=detector.device)
    texts = [query.format(name=name) for name in names]
    if new := [text for text in dict.fromkeys(texts) if text not in queries]:
        models.check_words(processor.tokenizer, new)
        tokens = processor.tokenizer(new, padding="max_length", return_tensors="pt").to(detector.device)
        towers = getattr(detector, detector.base_model_prefix)
        made = towers.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        queries.update(zip(new, made / torch.linalg.norm(made, dim=-1, keepdim=True), strict=True))
    return torch.stack([queries[text] for text in texts]) if texts else torch.empty(0)


def _find_open(
    detector: Any,
    pixels: Float[torch.Tensor, "image 3 height width"],
    sizes: Int64[torch.Tensor, "image 2"],
    ask: Int64[torch.Tensor, "image query"],
    known: Float[torch.Tensor, "name dim"],
    floor: float,
) -> Found:
    """OWL-ViT's forward pass without its text tower, and its post-processing: the better query of each box."""
    features, _ = detector.image_embedder(pixels)
    tokens = features.flatten(1, 2)
    logits, _ = detector.class_predictor(tokens, known[ask], ask >= 0)
    score, best = logits.float().max(dim=-1)
    score = score.sigmoid()
    where = detector.box_predictor(tokens, features).float()
    if detector.config.model_type == "owlv2":  # it sees the image padded to a square
        sizes = sizes.max(dim=1, keepdim=True).values.expand(-1, 2)
    image, box = torch.nonzero(score > floor, as_tuple=True)
    return image, ask.gather(1, best)[image, box], score[image, box], _pixels(where[image, box], sizes[image])


def _find_closed(
    detector: Any,
    pixels: Float[torch.Tensor, "image 3 height width"],
    sizes: Int64[torch.Tensor, "image 2"],
    ask: Int64[torch.Tensor, "image query"],
    known: Int64[torch.Tensor, "name"],
    floor: float,
) -> Found:
    """RT-DETR and its post-processing (as many best pairs of box and label as it has queries), the names asked for."""
    made = detector(pixel_values=pixels)
    scores = made.logits.float().sigmoid()
    score, at = scores.flatten(1).topk(scores.shape[1], dim=1)
    box, label = at // scores.shape[2], at % scores.shape[2]
    wanted = torch.where(ask >= 0, known[ask], -1)
    matches = label[:, :, None] == wanted[:, None, :]
    image, kept = torch.nonzero(matches.any(dim=2) & (score > floor), as_tuple=True)
    name = ask[image, matches[image, kept].float().argmax(dim=1)]
    return image, name, score[image, kept], _pixels(made.pred_boxes.float()[image, box[image, kept]], sizes[image])


def _plain(name: str) -> str:
    name = name.lower().replace(" ", "")
    return _ALIASES.get(name, name)


def _pixels(boxes: Float[torch.Tensor, "box 4"], sizes: Int64[torch.Tensor, "box 2"]) -> Float[torch.Tensor, "box 4"]:
    """Centre, width and height in [0, 1] to xywh in pixels of images of these heights and widths."""
    corner = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return corner * sizes.flip(1).repeat(1, 2)


# ---------------------------------------------------------------------------------------------------------- stages


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
        images: a folder, of :func:`generate.write_images` or made elsewhere (see :func:`generate.list_images`).
        detector: see :class:`models.Source`.
        prompts: the images' prompts (see :func:`generate.read_prompts`), if the folder does not hold them.
        floor, query, batch: see :func:`detect`. dtype: of the detector's weights.

    Returns:
        The record: detector, floor, query, images (their number and record), boxes (their number; None while other
        shards are at work).

    Raises:
        ValueError: no box at all was found, unfinished generation, images that belong to no prompt, an unknown name.
        models.ModelError: the detector does not load. photos.PhotoError: an image is missing or does not decode.
    """
    listed = generate.list_images(images, prompts)
    about = {"folder": runs.digest(Path(images)), "record": runs.read_json(Path(images) / "record.json")}
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
    with runs.atomic(Path(folder) / "prompts.parquet") as partial:
        prompts.to_parquet(partial, index=False)
    source, about = Photos(photos), {"annotations": runs.digest(Path(annotations)), "photos": Path(photos).name}
    return _write(
        Path(folder) / "detections.parquet", prompts.assign(image_index=0),
        lambda row: source.read(row.file_name, (row.width, row.height)), about, detector=detector, **options,
    )  # fmt: skip


def true_prompts(table: boxes.BoxTable, n_per_relation: int, seed: int, rules: str = "visor") -> pd.DataFrame:
    """At most ``n_per_relation`` triplets of different categories per relation, each with an image that shows it."""
    found = []
    for groups, counts in dataset.count_pairs(table, rules):
        group, relation = np.nonzero(counts * (groups[:, 1] != groups[:, 2])[:, None])
        found.append(np.column_stack([groups[group], relation]))
    triplets = np.concatenate(found)
    order = np.random.default_rng(seed).permutation(len(triplets))
    rank = pd.Series(triplets[order, 3]).groupby(triplets[order, 3]).cumcount().to_numpy()
    image, subject, object, relation = triplets[np.sort(order[rank < n_per_relation])].T
    names = np.array(table.names, dtype="object")
    drawn = pd.DataFrame(
        {
            "prompt_id": np.arange(len(image)),
            "subject": names[subject],
            "relation": np.array(NAMES, dtype="object")[relation],
            "object": names[object],
            "file_name": table.file_name.take(image).to_pylist(),
            "width": table.width[image],
            "height": table.height[image],
        }
    )
    triplet = zip(drawn.subject, drawn.relation, drawn.object, strict=True)
    return drawn.assign(caption=[caption(*each) for each in triplet])


def _write(
    path: str | Path,
    listed: pd.DataFrame,
    read: Callable[[Any], Image],
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
    model, processor, about = models.load_detector(detector, dtype)
    record = {"detector": about, "floor": floor, "query": query, "images": {"number": len(listed), **images}}
    key = hashlib.sha256(json.dumps([record, runs.digest(Path(__file__))], sort_keys=True).encode()).hexdigest()
    if path.is_file() and (done := _record(path)) and done.pop("key") == key:
        return done
    if runs.read_json(parts / "key.json") != key:
        if parts.is_dir():
            print(f"{path}: detections of another configuration were begun; starting afresh", file=sys.stderr)
        shutil.rmtree(parts, ignore_errors=True)
        runs.write_json(parts / "key.json", key)
    groups = {n: listed.iloc[start : start + GROUP] for n, start in enumerate(range(0, len(listed), GROUP))}
    mine = {n: group for n, group in groups.items() if n % shards == shard}
    todo = {n: group for n, group in mine.items() if not (parts / f"{n:06}.parquet").is_file()}
    total, missing = (sum(map(len, part.values())) for part in (mine, todo))
    queries: dict[str, torch.Tensor] = {}  # all of them now: an embedding's rounding must not depend on the group
    _known(model, processor, list(dict.fromkeys([*listed.subject, *listed.object])), query, queries)
    batches = models.Batches(batch)
    with (
        tqdm(total=total, initial=total - missing, desc=f"boxes {about['id']}", unit="image", mininterval=1) as bar,
        ThreadPoolExecutor(READERS) as pool,
    ):
        ahead: deque[list[Future[Image]]] = deque()
        coming = iter(todo.values())
        for n, group in todo.items():
            for each in islice(coming, 2 - len(ahead)):  # this group and the next
                ahead.append([pool.submit(read, row) for row in each.itertuples()])
            pixels = [image.result() for image in ahead.popleft()]
            names = list(zip(group.subject, group.object, strict=True))
            found = detect(model, processor, pixels, names, floor=floor, query=query, batch=batches, queries=queries)
            with runs.atomic(parts / f"{n:06}.parquet") as partial:
                _columns(found, group, pixels).to_parquet(partial, index=False)
            bar.update(len(group))
    if not all((parts / f"{n:06}.parquet").is_file() for n in groups):
        return {**record, "boxes": None}
    table = pa.concat_tables(pq.read_table(parts / f"{n:06}.parquet") for n in groups)
    if not len(table):
        raise ValueError(
            f"{path}: {about['id']} found nothing above {floor} in {len(listed):,} images; is it the right detector?"
        )
    record["boxes"] = len(table)
    metadata = {"sr4g": json.dumps({**record, "key": key}, sort_keys=True)}
    with runs.atomic(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")
    shutil.rmtree(parts, ignore_errors=True)  # another shard may be doing the same
    return record


def _columns(found: pd.DataFrame, group: pd.DataFrame, images: list[Image]) -> pd.DataFrame:
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


# --------------------------------------------------------------------------------------------------- preprocessing


def preprocess(images: Sequence[Image], processor: Any, device: Any) -> Float[torch.Tensor, "image 3 height width"]:
    """What the stock image processor makes of the images, in torch on the device; images of one size go together."""
    stock = getattr(processor, "image_processor", processor)
    size = stock.size["height"], stock.size["width"]
    resize = _resize_square if "Owlv2" in type(stock).__name__ else given(_resize, mode=_MODES[stock.resample])
    made: dict[int, torch.Tensor] = {}
    for shape in {image.shape for image in images}:
        rows = [i for i, image in enumerate(images) if image.shape == shape]
        stack = torch.from_numpy(np.stack([images[i] for i in rows])).to(device).permute(0, 3, 1, 2)
        made.update(zip(rows, resize(stack.float(), size=size), strict=True))
    pixels = torch.stack([made[i] for i in range(len(images))]) * stock.rescale_factor
    if stock.do_normalize:
        mean, deviation = torch.tensor([stock.image_mean, stock.image_std], device=device)[..., None, None]
        pixels = (pixels - mean) / deviation
    return pixels


_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def _resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Pillow's resize of 8-bit images: columns, then rows, each rounded to whole grey levels.

    Newer Pillows (seen in 13) reduce the rows of some tall images first, which changes saturated edges by some levels.
    """
    for target in ((pixels.shape[-2], size[1]), size):
        if target != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, target, mode=mode, antialias=True).round().clamp(0, 255)
    return pixels


def _resize_square(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """OWLv2's: padded with black to a square, blurred against aliasing, interpolated linearly (scipy's ``zoom``)."""
    height, width = pixels.shape[-2:]
    pixels = F.pad(pixels, (0, max(height - width, 0), 0, max(width - height, 0)))
    low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
    for dim, target in ((-2, size[0]), (-1, size[1])):
        pixels = _lerp(_blur(pixels.transpose(dim, -1), target), target).transpose(dim, -1)
    return pixels.clamp(low, high)


def _blur(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Rows blurred by a Gaussian as wide as the reduction to ``target`` asks for, mirrored at the ends."""
    sigma = (pixels.shape[-1] / target - 1) / 2
    radius = int(4 * sigma + 0.5)
    if radius < 1:
        return pixels
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=pixels.device) / sigma) ** 2)
    rows = F.pad(pixels.flatten(0, 2)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(rows, (kernel / kernel.sum())[None, None]).view_as(pixels)


def _lerp(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Rows interpolated linearly at the centres of ``target`` pixels, mirrored at the ends."""
    n = pixels.shape[-1]
    at = ((torch.arange(target, device=pixels.device) + 0.5) * (n / target) - 0.5).abs()
    at = (n - 1) - ((n - 1) - at).abs()
    left = at.floor().long().clamp(max=max(n - 2, 0))
    right = (left + 1).clamp(max=n - 1)
    return torch.lerp(pixels[..., left], pixels[..., right], at - left)


# --------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
    """Boxes in a folder of images (detect.write_detections); ``--shard k --shards n`` shares the work among jobs."""
    parser = argparse.ArgumentParser("python -m sr4g_utils.detect", description=main.__doc__)
    parser.add_argument("path", type=Path, help="the Parquet file of boxes; run again to go on")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--detector", required=True, help="a folder, an id on the Hub, or YAML: {id: …, revision: …}")
    parser.add_argument("--prompts", help="of images made elsewhere: sr2d, sr4g, geneval or a file")
    parser.add_argument("--floor", type=float, default=FLOOR, help="scores below are not stored (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=models.DTYPES)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    args = vars(parser.parse_args(argv))
    try:
        write_detections(**args | {"detector": yaml.safe_load(args["detector"])})
    except (ValueError, RuntimeError) as error:
        print(f"detect: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
