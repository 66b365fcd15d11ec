"""Photos as latents: encoded once, kept in shards."""

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from tqdm import tqdm

from ..dataset.boxes import BoxTable
from ..dataset.photos import CROP, PhotoError, Photos, crop_photo
from ..store import files
from ..store.files import say
from ..store.run import alone

SHARD = 256  # photos in a file of latents
SOME = 32  # photos that are looked at before all are encoded
ENCODED = 8  # photos that pass through the VAE together


@dataclass(frozen=True)
class Encoded:
    """The VAE's posterior of every photo, memory-mapped: ``encoded[image]`` is its mean and its standard deviation, or
    the latents alone of a VAE that has no deviation.

    Both are kept, at twice the disk of one sample, because Stable Diffusion's own training draws a new sample each time
    it sees a photo. float16 is fine for them: its rounding is far below the noise that training adds.
    """

    shards: list[np.ndarray]  # each float16 (photo, moment, channel, h, w)
    row: Int[np.ndarray, "image"]  # of a table's image in the shards; -1 where it has none
    usable: Bool[np.ndarray, "image"]
    report: dict[str, Any]

    def __getitem__(self, image: int | np.integer) -> Float32[np.ndarray, "moment channel h w"]:
        shard, place = divmod(int(self.row[image]), SHARD)
        return self.shards[shard][place].astype(np.float32)

    def check(self, max_unusable: float) -> None:
        """Raises ValueError where more photos than this share could not be used; it names the first."""
        n, bad = self.report["photos"], self.report["unusable"]
        if bad > max_unusable * n:
            first = "; ".join(self.report["problems"][:3])
            raise ValueError(f"{bad:,} of {n:,} photos are unusable, above max_unusable = {max_unusable:.1%}: {first}")


def posterior(vae: Any, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n moment channel h w"]:
    """Mean and standard deviation of the latents of images from -1 to 1; where a VAE has none, the latents. To a VAE of
    videos an image is one frame."""
    video = "z_dim" in vae.config
    code = vae.encode(pixels[:, :, None] if video else pixels)
    if not hasattr(code, "latent_dist"):
        return code.latent[:, None]
    moments = torch.stack([code.latent_dist.mean, code.latent_dist.std], dim=1)
    return moments[:, :, :, 0] if video else moments


def encode_photos(
    store: Path, photos: Photos, table: BoxTable, images: Int[np.ndarray, "photo"], vae: Any, resolution: int,
    accelerator: Accelerator, max_unusable: float = 1.0,
) -> Encoded:  # fmt: skip
    """The photos of some of a table's images through crop and VAE, in files of ``SHARD`` photos that are made once.

    Their folder is named after what they depend on: crop, resolution, VAE, and the photos' names and contents.
    The processes share the work; a file appears whole, so an interrupted run goes on with the next one. What a photo
    becomes depends on its file alone, so any number of processes leaves the same files. Raises ValueError where there
    are no images, or the VAE gives no numbers; before it is asked, also where more than ``max_unusable`` of the photos
    are missing, or most of a few cannot be read.
    """
    if not len(images):
        raise ValueError("fine-tuning: no image has a caption after the crop; check annotations and resolution")
    names = table.file_name.take(images).to_pylist()
    sizes = list(zip(table.width[images].tolist(), table.height[images].tolist(), strict=True))
    weights = {name: weight.detach().cpu().contiguous().numpy() for name, weight in vae.state_dict().items()}
    model = files.hash_of({name: hashlib.sha256(weight).hexdigest() for name, weight in weights.items()})
    key = files.hash_of([CROP, resolution, SHARD, ENCODED, model, names, sizes, photos.contents(names, max_unusable)])
    folder = store / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shards = [folder / f"{i:05}.npy" for i in range(-(-len(images) // SHARD))]
    with contextlib.ExitStack() as held:
        if accelerator.is_main_process:  # a sweep's runs share their photos
            held.enter_context(alone(folder / ".lock"))
        accelerator.wait_for_everyone()
        todo = [i for i, file in enumerate(shards) if not _is_whole(file)]
        accelerator.wait_for_everyone()  # all have looked before anyone writes
        mine = todo[accelerator.process_index :: accelerator.num_processes]
        quiet = not (accelerator.is_main_process and mine)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
            if todo:
                _check_some(photos, names, sizes, resolution, readers, max_unusable)
            for i in tqdm(mine, "encoding photos", unit_scale=SHARD, unit=" photos", disable=quiet):
                part = slice(i * SHARD, (i + 1) * SHARD)
                latents, notes = _encode(vae, photos, names[part], sizes[part], resolution, readers)
                files.write_json(shards[i].with_suffix(".json"), notes)  # before the file that says it is done
                with files.atomic(shards[i]) as partial, partial.open("wb") as file:
                    np.save(file, latents)
        accelerator.wait_for_everyone()
    return _read_shards(shards, table, images)


def _is_whole(file: Path) -> bool:
    """Whether a file of encoded photos is there with its notes; a damaged one is said, and made again."""
    if not file.is_file():
        return False
    try:
        np.load(file, mmap_mode="r")  # compares its length with its header
        whole = {"problems", "met"} <= json.loads(file.with_suffix(".json").read_text(encoding="utf-8")).keys()
    except (ValueError, OSError, EOFError, AttributeError):
        whole = False
    if not whole:
        say(f"WARNING: {file}: it or its .json is damaged; its photos are encoded again")
    return whole


def _read_shards(shards: list[Path], table: BoxTable, images: Int[np.ndarray, "photo"]) -> Encoded:
    """Finished files of encoded photos, and the notes of their making."""
    notes = [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in shards]
    broken = [i * SHARD + int(place) for i, note in enumerate(notes) for place in note["problems"]]
    usable, row = np.zeros(len(table.image_id), bool), np.full(len(table.image_id), -1)
    usable[images], row[images] = True, np.arange(len(images))
    usable[images[np.array(broken, np.int64)]] = False
    kinds = sorted({kind for note in notes for kind in note["met"]})
    report = {
        "photos": len(images),
        "unusable": len(broken),
        "problems": [problem for note in notes for problem in note["problems"].values()][:20],
        **{kind: sum(note["met"].get(kind, 0) for note in notes) for kind in kinds},
    }
    return Encoded([np.load(file, mmap_mode="r") for file in shards], row, usable, report)


def _check_some(
    photos: Photos, names: list[str], sizes: list[Any], resolution: int, readers: ThreadPoolExecutor, most: float
) -> None:
    """Raises ValueError where more than ``most`` and half of a few photos, spread over all, cannot be used."""
    some = [len(names) * i // SOME for i in range(SOME)] if len(names) > SOME else range(len(names))
    read = partial(_read, photos, resolution)
    bad = [
        photo
        for photo in readers.map(read, [names[i] for i in some], [sizes[i] for i in some])
        if isinstance(photo, str)
    ]
    if len(bad) > max(most, 0.5) * len(some):
        raise ValueError(f"{bad[0]}; {len(bad)} of {len(some)} photos that were looked at cannot be used")


def _read(photos: Photos, resolution: int, name: str, size: tuple[float, float]) -> np.ndarray | str:
    try:
        return crop_photo(photos.read(name, size), resolution)
    except PhotoError as error:
        return str(error)


def _encode(
    vae: Any, photos: Photos, names: list[str], sizes: list[Any], resolution: int, readers: ThreadPoolExecutor
) -> tuple[np.ndarray, dict[str, Any]]:
    """One shard, and what was met on the way: problems by place, and kinds of photos."""

    photos.counts.clear()
    results = list(readers.map(partial(_read, photos, resolution), names, sizes))
    grey = np.full((resolution, resolution, 3), 127, np.uint8)  # in a broken photo's place; never trained on
    pixels = np.stack([grey if isinstance(photo, str) else photo for photo in results])
    parts = []
    for start in range(0, len(pixels), ENCODED):
        batch = torch.from_numpy(pixels[start : start + ENCODED]).to(vae.device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            parts.append(posterior(vae, batch.to(vae.dtype) / 127.5 - 1).half().cpu().numpy())
    latents = np.concatenate(parts)
    if not np.isfinite(latents).all():
        raise ValueError(f"the VAE gives NaN or infinity between {names[0]} and {names[-1]}; are its weights right?")
    problems = {str(place): photo for place, photo in enumerate(results) if isinstance(photo, str)}
    return latents, {"problems": problems, "met": dict(photos.counts)}
