"""Every reader of files, each with a right input that is then damaged in one of the ways its form allows.

    python tests/fuzz.py --number 300                         # of every reader
    python tests/fuzz.py vsr --number 500 --seed 3

A reader is a function under :func:`reader`. It is a part of :mod:`mutate`, which says what must come of it: a result
within a limit of time, or one line that names the file. Where the function has a slow oracle, it compares.
"""

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import mutate
import numpy as np
import pandas as pd
import safetensors.numpy
from damage import damage
from PIL import Image

from sr4g_utils.dataset import coco
from sr4g_utils.dataset.photos import Photos
from sr4g_utils.dataset.prompt_sets import check_prompts, read_prompts
from sr4g_utils.evaluation.detections import DETECTION_COLUMNS, read_detections, read_visor_results
from sr4g_utils.evaluation.images import list_images
from sr4g_utils.finetuning import checkpoints
from sr4g_utils.models import checks, detectors
from sr4g_utils.models.source import Source
from sr4g_utils.people import answers, kit, published, vsr
from sr4g_utils.running import profiles
from sr4g_utils.store.files import DATA

Files = dict[str, bytes]
FILES: dict[str, Callable[[], Files]] = {}  # the right ones, by reader
READERS: dict[str, Callable[[Path], Any]] = {}


def reader(
    files: Callable[[], Files], damaged: str = "*", forms: bool = True
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Register a reader of these files. One whose name matches ``damaged`` is damaged, in the ways of its form or, as a
    disk damages our own files, in its bytes; the reader gets its path."""

    def register(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        right = cache(files)

        def part(random: Random, folder: Path) -> None:
            for name, data in right().items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            name = random.choice([name for name in right() if fnmatch(name, damaged)])
            (folder / name).write_bytes(damage(random, name if forms else "", right()[name]))
            read(folder / name)

        mutate.PARTS[read.__name__] = part
        FILES[read.__name__], READERS[read.__name__] = right, read
        return read

    return register


# -------------------------------------------------------------------------------------------------- boxes and prompts
def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def _zip(files: Files) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return written.getvalue()


def _instances() -> dict[str, Any]:
    images = [{"id": i, "width": 64, "height": 48, "file_name": f"{i}.png"} for i in (3, 7, 9)]
    categories = [{"id": id, "name": name, "supercategory": ""} for id, name in ((17, "cat"), (18, "dog"), (44, "cup"))]
    boxes = [
        {"id": 10 * i + k, "image_id": i, "category_id": c, "bbox": [2.5 * k, 3.25, 9, 8 + k], "iscrowd": int(k == 3)}
        for i in (3, 7, 9)
        for k, c in enumerate((17, 18, 44, 18))
    ]
    return {"info": {"year": 2017}, "images": images, "categories": categories, "annotations": boxes}


def _box_table() -> bytes:
    written, rows = io.BytesIO(), []
    for box in _instances()["annotations"]:
        x, y, w, h = map(float, box["bbox"])
        about = {"image_id": box["image_id"], "width": 64, "height": 48, "ann_id": box["id"]}
        rows.append(about | {"category_id": box["category_id"], "x": x, "y": y, "w": w, "h": h, "iscrowd": 0})
    pd.DataFrame(rows).to_parquet(written)
    return written.getvalue()


@reader(lambda: {"instances.json": _dumps(_instances())})
def annotations(path: Path) -> None:
    coco.read(path)


@reader(lambda: {"a.zip": _zip({"annotations/instances_train2017.json": _dumps(_instances())})})
def zipped_annotations(path: Path) -> None:
    coco.read(path)


@reader(lambda: {"boxes.parquet": _box_table()})
def box_tables(path: Path) -> None:
    coco.read(path)


def _detections() -> pd.DataFrame:
    rows = [
        (id, i, name, 0.123456789012345678 + i / 3, 1 / 3 + 9 * at, 2.0, 8.1, 1e-3 + 7)
        for id in (7, 8, 12)
        for i in range(2)
        for at, name in enumerate(("dog", "wine glass"))
    ]
    return pd.DataFrame(rows, columns=list(DETECTION_COLUMNS))


def _detection_files() -> Files:
    table, written = _detections(), io.BytesIO()
    table.to_parquet(written)
    rows = table.to_dict("records")
    return {
        "d.csv": table.to_csv(index=False).encode(), "d.json": _dumps(rows), "d.parquet": written.getvalue(),
        "d.jsonl": b"".join(_dumps(row) + b"\n" for row in rows), "columns.json": _dumps(table.to_dict("list")),
    }  # fmt: skip


@reader(_detection_files)
def detection_tables(path: Path) -> None:
    """Against Python's own readers, a row at a time."""
    table = read_detections(path)
    if path.name in ("d.json", "d.jsonl", "d.csv"):
        for row, plain in zip(table.to_dict("records"), _plain(path), strict=True):
            for name in ("score", *"xywh"):
                assert _number(row[name]) == _number(plain[name]), (name, row[name], plain[name])


def _plain(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    delimiter = max(",;\t", key=text.splitlines()[0].count)
    return [row for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row.values())]


def _number(value: Any) -> float:
    return float(str(value).replace(",", ".").strip())


def _prompts() -> pd.DataFrame:
    rows = [(7, "dog", "left of", "wine glass"), (8, "wine glass", "above", "dog"), (12, "dog", "below", "cup")]
    return pd.DataFrame(rows, columns=["prompt_id", "subject", "relation", "object"])


@reader(
    lambda: {
        "r.json": _dumps(
            {
                f"{id}_{i}": {"classes": ["dog", "wine glass"][: 2 - i], "centroid": [[1, 2], [3, 4]][: 2 - i],
                              "recall": 2 - i, "sra": 1 - i, "text": "a dog"}
                for id in (7, 8) for i in range(2)
            }
        )
    }
)  # fmt: skip
def visor_results(path: Path) -> None:
    """Against a loop over the images."""
    prompts = _prompts().set_index("prompt_id")
    records = read_visor_results(path, _prompts())
    images = {tuple(map(int, key.split("_"))): image for key, image in json.loads(path.read_text("utf-8")).items()}
    for row in records.itertuples():
        image = images[int(row.prompt_id), row.image_index]
        both = {prompts.subject[row.prompt_id], prompts.object[row.prompt_id]} <= set(image["classes"])
        assert (row.both_found, row.correct) == (both, both and bool(image["sra"]))


def _prompt_files() -> Files:
    table, written = _prompts().assign(caption="a dog"), io.BytesIO()
    table.to_parquet(written)
    rows = table.to_dict("records")
    position = {"class": "dog", "count": 1, "position": ["left of", 0]}
    line = {"tag": "position", "include": [{"class": "cup", "count": 1}, position], "prompt": "a photo of a dog left"}
    return {
        "p.csv": table.to_csv(index=False).encode(), "p.json": _dumps(rows), "p.parquet": written.getvalue(),
        "p.jsonl": b"".join(_dumps(row) + b"\n" for row in rows), "geneval.jsonl": (_dumps(line) + b"\n") * 3,
        "p.txt": b"a dog on the left of a cup\na cup on the top of a bed\na cat next to a dog\n",
        "sentences.csv": b"prompt\na dog to the left of a cat\na cup above a bed\n",
    }  # fmt: skip


@reader(_prompt_files)
def prompt_files(path: Path) -> None:
    check_prompts(read_prompts(path), "read")


def _picture(suffix: str = "PNG") -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(written, suffix)
    return written.getvalue()


def _geneval_folder() -> Files:
    files: Files = {"prompts.jsonl": b""}
    for at, (first, second) in enumerate((("dog", "cup"), ("cat", "bed"))):
        position = {"class": first, "count": 1, "position": ["left of", 0]}
        about = {"tag": "position", "include": [{"class": second, "count": 1}, position]}
        line = _dumps(about | {"prompt": f"a photo of a {first} left of a {second}"})
        files["prompts.jsonl"] += line + b"\n"
        files[f"images/{at:05}/metadata.jsonl"] = line
        files |= {f"images/{at:05}/samples/{i:05}.png": b"" for i in range(2)}
    return files


@reader(_geneval_folder, "*.jsonl")
def geneval_folders(path: Path) -> None:
    folder = next(folder for folder in path.parents if (folder / "prompts.jsonl").is_file())
    list_images(folder / "images", folder / "prompts.jsonl")


@reader(lambda: {"in/7.png": _picture(), "in/8.jpg": _picture("JPEG"), "photos.zip": _zip({"x/7.png": _picture()})})
def photos(path: Path) -> None:
    source, name = (path, "7.png") if path.suffix == ".zip" else (path.parent, path.name)
    assert Photos(source).read(name, (64, 48)).shape == (48, 64, 3)


# -------------------------------------------------------------------------------------------------------------- people
KEY = [{"item": "q1", "relation": "left of", "model": "m", "prompt_id": 7, "image_index": 0, "subject": "dog",
        "object": "cat", "repeat_of": None}, {"item": "q2", "relation": "above", "model": "m", "prompt_id": 8,
        "image_index": 0, "subject": "cup", "object": "bed", "repeat_of": None}]  # fmt: skip


def _kit() -> Files:
    key = base64.b64encode(_dumps(KEY)).decode()
    data = _dumps({"kit": "k1", "key": key, "items": []}).decode()
    page = f'<html><script id="data" type="application/json">{data}</script></html>'
    rows = "kit,person,item,position,answer,seconds\nk1,Ada,q1,1,yes,1.5\nk1,Ada,q2,2,no,2\n"
    return {"kit.html": page.encode(), "answers.csv": rows.encode()}


@reader(_kit, "kit.html")
def kits(path: Path) -> None:
    kit.read_key(path)


@reader(lambda: {"key.json": _dumps(KEY)} | _kit(), "key.json")
def keys_of_kits(path: Path) -> None:
    """A key that is changed within a whole page."""
    key = base64.b64encode(path.read_bytes()).decode()
    data = _dumps({"kit": "k1", "key": key}).decode()
    page = f'<html><script id="data" type="application/json">{data}</script></html>'
    path.with_name("kit.html").write_text(page)
    answers.read(path.with_name("kit.html"), [path.with_name("answers.csv")])


@reader(_kit, "answers.csv")
def kit_answers(path: Path) -> None:
    """Against Python's own reader of CSV."""
    table = answers.read(path.with_name("kit.html"), [path])
    plain = [{(k or "").strip().lower(): (v or "") for k, v in row.items()} for row in _plain(path)]
    assert table.answer.tolist() == [row["answer"].strip().lower() for row in plain]
    assert table["item"].tolist() == [row["item"].strip() for row in plain]


def _vsr() -> Files:
    lines = [
        {"image": f"{i:012}.jpg", "image_link": "x", "caption": f"The dog is {phrase} the cat.", "label": i % 2,
         "relation": phrase, "annotator_id": 1, "reference_frame": None if i else "0"}
        for i, phrase in enumerate(("left of", "above", "inside", "near"))
    ]  # fmt: skip
    return {"v.jsonl": b"".join(_dumps(line) + b"\n" for line in lines)}


@reader(_vsr)
def vsr_judgements(path: Path) -> None:
    """Against a loop over the lines."""
    table = vsr.read_vsr(path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    lines = [line for line in lines if line["relation"] in vsr.VSR_PHRASES]
    assert table.label.tolist() == [bool(line["label"]) for line in lines]
    assert table.image_id.tolist() == [int(line["image"].removesuffix(".jpg")) for line in lines]


def _spatialbench() -> Files:
    files = {}
    for stem in published.SYSTEMS:
        box = {"label": "dog", "score": 0.5, "box_xyxy": [1.5, 2, 30, 40]}
        found = {"primary": {"type": "fasterrcnn", "detections": [box]},
                 "secondary": {"type": "grounding_dino", "detections": []}}  # fmt: skip
        about = {"relation": "left_of", "object_a": "dog", "object_b": "cat", "verdict_raw": "PASS"}
        lines = [
            {"sample_id": f"{stem}_v1_{i}_seed0000", "prompt_id": f"v1_{i}", **about, "detectors": found}
            for i in range(3)
        ]
        files[f"{stem}.jsonl"] = b"".join(_dumps(line) + b"\n" for line in lines)
    first = f"{next(iter(published.SYSTEMS))}_v1_0_seed0000"
    files["labels_filled.csv"] = f'"sample_id","human_verdict","notes","timestamp"\n"{first}","PASS","",""\n'.encode()
    sample = f"sample_id,checker_verdict_raw,conf\n{first},UNDECIDABLE,0.001\n".encode()
    return files | {name: sample for name in published.FILES["spatialbench_uc"] if name not in files}


@reader(_spatialbench)
def spatialbench(path: Path) -> None:
    published.read_spatialbench(path.parent)


def _geneval_people() -> Files:
    answers = ",".join(f"Answer.task-{name}" for name in ("count-0", "count-1", "position-x", "position-y"))
    rows = "1_0,a photo of a dog left of a cat,1,1,left,\n1_1,a photo of a cup above a bed,1,0,,above\n"
    return {name: f"Input.index,Input.caption,{answers}\n{rows}".encode() for name in published.FILES["geneval_people"]}


@reader(_geneval_people)
def geneval_people(path: Path) -> None:
    published.read_geneval_people(path.parent)


# ------------------------------------------------------------------------------------------------ profiles and models
PROFILE = b"""
extends: miniature
all: {seed: 3, threshold: 0.2, rules: visor, pairs: best}
02_dataset: {unseen: [dog, cat], crowds: false, withheld: 0.1}
03_finetuning: {steps: 4, lr: 1.0e-5, control: none, milestones: [1, 2], track: null}
04_evaluation:
  models: {mine: {model: {folder: x, variant: fp16}, sampling: {steps: 5}}}
  sampling: {steps: 5, guidance: 2.5, images: 2}
"""


@reader(lambda: {"mine.yaml": PROFILE})
def profile_files(path: Path) -> None:
    _load(path, str(path), [])


SETTINGS = "seed=3\n04.threshold=0.2\n04.sampling={steps: 5}\n03.control=list\nlr=1e-5\n03.milestones=[1]\n"


@reader(lambda: {"settings.csv": SETTINGS.replace("=", ",").encode()})
def settings(path: Path) -> None:
    """What stands behind ``--set``, one a line."""
    lines = path.read_text("utf-8", "replace").splitlines()
    _load(path, "miniature", [line.replace(",", "=", 1) for line in lines])


def _load(path: Path, profile: str, settings: list[str]) -> None:
    try:
        profiles.load_profile(profile, settings, path.parent / "run")
    except ValueError as error:  # of what a profile extends, of its models and of `--set` it names the place only
        assert type(error) is ValueError, repr(error)
        raise ValueError(f"{path}: {error}") from error


def _model() -> Files:
    weights = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
    return {"config.json": _dumps({"model_type": "owlvit"}), "model.safetensors": safetensors.numpy.save(weights)}


@reader(_model)
def model_files(path: Path) -> None:
    source = Source(folder=str(path.parent))
    try:
        checks.read(path.with_name("config.json"), source)
        checks.verify(path.parent, ["config.json", "model.safetensors"], source)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


TINY = DATA / "models" / "tiny-owlvit"


@reader(lambda: {path.name: path.read_bytes() for path in TINY.iterdir()}, "*.json")
def detector_folders(path: Path) -> None:
    """Whole, but for one configuration or vocabulary."""
    path.with_name("SHA256SUMS").unlink(missing_ok=True)
    try:
        detectors.load(str(path.parent))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


KEY_OF_RUN = {"steps": 8, "lr": 0.1, "schedule": "constant"}


def _run() -> Files:
    weights, files = safetensors.numpy.save({"a": np.ones((2, 3), np.float32)}), {}
    for step in (4, 8):
        at = f"run/checkpoints/step-{step:08}"
        state = {"step": step, "key": KEY_OF_RUN, "optimiser": {"0.step": step}}
        files |= {f"{at}/{name}.safetensors": weights for name in ("weights", "optimiser", "ema")}
        files[f"{at}/state.json"] = json.dumps(state, indent=1).encode()
    return files


@reader(_run, "*-00000008/*", forms=False)
def checkpoint_folders(path: Path) -> None:
    """The newest is damaged: it or the one before it is taken, or its key is no longer this run's."""
    state = checkpoints._look(folder := path.parents[2], KEY_OF_RUN)
    if not state:
        assert path.name == "state.json" and folder.with_name(f"{folder.name}.before").is_dir()
        return
    for name in ("weights", "optimiser", "ema"):
        assert safetensors.numpy.load_file(Path(state["checkpoint"]) / f"{name}.safetensors")


if __name__ == "__main__":
    mutate.main()
