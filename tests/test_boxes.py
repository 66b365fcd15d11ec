"""The box table against pycocotools, and every bad input: a clear error or a counted exclusion, never a traceback."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sr4g_utils import boxes, inputs
from sr4g_utils.boxes import COCO_CATEGORIES, BoxTable, _JsonStream
from sr4g_utils.running import files
from sr4g_utils.running.run import Run


def official(**changes) -> dict:
    """A small file in the official form, with what is not read (licences, polygons, RLE) in it."""
    annotations = [
        {
            "segmentation": [[10.0, 10.0, 60.0, 10.0, 60.0, 50.0]], "area": 1000.0, "iscrowd": 0, "image_id": 7,
            "bbox": [10.0, 10.0, 50.25, 40.5], "category_id": 18, "id": 100 + i,
        }
        for i in range(3)
    ]  # fmt: skip
    annotations[1] |= {"image_id": 9, "category_id": 17, "bbox": [0, 0, 64, 48]}
    annotations[2] |= {"iscrowd": 1, "segmentation": {"counts": [3, 5, 7], "size": [48, 64]}}
    return {
        "info": {"description": "a } , { in a string"},
        "licenses": [{"id": 1, "name": "}, {"}],
        "images": [
            {"id": 9, "file_name": "nine }, { .jpg", "width": 64, "height": 48, "license": 1},
            {"id": 7, "file_name": "seven.jpg", "width": 100, "height": 80, "license": 1},
        ],
        "annotations": annotations,
        "categories": [
            {"supercategory": "animal", "id": 18, "name": "dog"},
            {"supercategory": "animal", "id": 17, "name": "cat"},
        ],
    } | changes


def write(folder: Path, content, name: str = "instances.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def with_box(**change) -> dict:
    data = official()
    data["annotations"][0] |= change
    return data


def same(a: BoxTable, b: BoxTable) -> bool:
    columns = ("image_id", "width", "height", "image", "category", "x", "y", "w", "h", "crowd")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns) and (
        a.file_name.equals(b.file_name) and a.categories == b.categories and a.excluded == b.excluded
    )


# ------------------------------------------------------------------------------------------------------ good files


def test_a_small_file(tmp_path):
    table = boxes.read(write(tmp_path, official()))
    assert table.image_id.tolist() == [7, 9] and table.file_name.to_pylist() == ["seven.jpg", "nine }, { .jpg"]
    assert table.names == ["cat", "dog"] and table.excluded == {}
    assert table.xywh().tolist() == [[10, 10, 50.25, 40.5], [10, 10, 50.25, 40.5], [0, 0, 64, 48]]
    assert table.image.tolist() == [0, 0, 1] and table.category.tolist() == [1, 1, 0]
    assert table.crowd.tolist() == [False, True, False]
    crowdless = table.without_crowds()
    assert len(crowdless) == 2 and crowdless.excluded == {"crowd": 1}


@pytest.mark.parametrize("split", ["val", "train"])
def test_agrees_with_pycocotools(shared, split):
    from pycocotools.coco import COCO

    path = shared / "coco_excerpt" / "annotations" / f"instances_{split}2017.json"
    table = boxes.read(path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    records = sorted(coco.loadAnns(coco.getAnnIds()), key=lambda a: (a["image_id"], a["category_id"], a["id"]))
    assert table.excluded == {} and len(table) == len(records) > 700
    assert table.xywh().tolist() == [a["bbox"] for a in records]
    assert table.image_id[table.image].tolist() == [a["image_id"] for a in records]
    assert [table.categories[i].id for i in table.category] == [a["category_id"] for a in records]
    assert table.crowd.tolist() == [bool(a["iscrowd"]) for a in records]
    images = [coco.imgs[id] for id in table.image_id.tolist()]
    assert table.file_name.to_pylist() == [image["file_name"] for image in images]
    assert np.array_equal(table.width, [image["width"] for image in images])
    assert np.array_equal(table.height, [image["height"] for image in images])
    assert list(table.categories) == sorted(COCO_CATEGORIES, key=lambda c: c.id)


def test_the_zip_member_and_parquet_give_the_same_table(shared, tmp_path, monkeypatch):
    source = shared / "coco_excerpt" / "annotations"
    archive = tmp_path / "annotations_trainval2017.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for split in ("val", "train"):
            file.write(source / f"instances_{split}2017.json", f"annotations/instances_{split}2017.json")
    before = set(tmp_path.iterdir())
    tables = {split: boxes.read(source / f"instances_{split}2017.json") for split in ("train", "val")}
    for split, table in tables.items():
        assert same(boxes.read(archive, split), table)
    assert set(tmp_path.iterdir()) == before  # nothing is unpacked to disk
    assert not same(tables["train"], tables["val"])

    table = tables["val"]
    frame = pd.DataFrame(
        {
            "image_id": table.image_id[table.image], "width": table.width[table.image].astype(int),
            "height": table.height[table.image].astype(int), "ann_id": np.arange(len(table)),
            "category_id": [table.categories[i].id for i in table.category],
            "x": table.x, "y": table.y, "w": table.w, "h": table.h, "iscrowd": table.crowd.astype(int),
        }
    )  # fmt: skip
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "boxes.parquet")
    assert same(boxes.read(tmp_path / "boxes.parquet"), table)
    assert table.file_name[0].as_py() == f"{table.image_id[0]:012d}.jpg"


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1000, 100_000])
def test_where_the_stream_is_cut_does_not_matter(tmp_path, monkeypatch, chunk):
    """Cuts within numbers, strings, literals and records; with and without white space, in any order of keys."""
    data = official()
    data["annotations"] = [{**data["annotations"][0], "id": i, "bbox": [i % 7, 1, 30 + i / 8, 9]} for i in range(40)]
    for indent, order in ((None, list(data)), (2, list(data)[::-1])):
        path = write(tmp_path, json.dumps({key: data[key] for key in order}, indent=indent))
        whole = boxes.read(path)
        monkeypatch.setattr(_JsonStream, "CHUNK", chunk)
        assert same(boxes.read(path), whole) and len(whole) == 40
        monkeypatch.undo()


def test_the_excerpt_in_small_chunks(shared, monkeypatch):
    path = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    whole = boxes.read(path)
    monkeypatch.setattr(_JsonStream, "CHUNK", 5000)
    assert same(boxes.read(path), whole)


def test_a_byte_order_mark_and_escapes(tmp_path):
    data = official(info={"description": 'quote " backslash \\ é €'})
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(data).encode())
    assert len(boxes.read(path)) == 3


# ------------------------------------------------------------------------------------------------------- bad files


def error_of(path: Path, split: str = "train") -> str:
    with pytest.raises(ValueError) as caught:
        boxes.read(path, split)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message, message
    return message


BAD = {
    "nothing": ("", "the file is empty; download it again"),
    "blank": ("  \n", "ends too early"),
    "not an object": ("[]", r"expected {, found b'\['"),
    "not JSON": ("hello", "expected {, found b'h'"),
    "no images": ({k: v for k, v in official().items() if k != "images"}, "the key 'images' is missing"),
    "no annotations": ({k: v for k, v in official().items() if k != "annotations"}, "'annotations' is missing"),
    "no categories": ({k: v for k, v in official().items() if k != "categories"}, "'categories' is missing"),
    "captions file": ({"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}, "category_id"),
    "empty lists": ({"images": [], "annotations": [], "categories": []}, "holds no images"),
    "no annotation": (official(annotations=[]), "no usable annotation among 0"),
    "a list that is none": (official(annotations={}), "the value of 'annotations' must be a list"),
    "no box": (official(annotations=[{"id": 1, "image_id": 7, "category_id": 18}]), "bbox"),
    "half a box": (with_box(bbox=[1, 2, 3]), "annotations.*length 4"),
    "a box of text": (with_box(bbox=["1", 2, 3, 4]), "Expected `float`, got `str`"),
    "a fractional id": (with_box(id=1.5), "Expected `int`, got `float`"),
    "image twice": (
        official(images=official()["images"] + official()["images"][:1]),
        "image id 9 occurs more than once",
    ),
    "category twice": (official(categories=official()["categories"] * 2), "category id 17 occurs more than once"),
    "an image without size": (official(images=[{"id": 7, "width": 0, "height": 5}]), "image 7 has the size 0 × 5"),
    "key twice": ('{"images": [], "images": []}', "the key 'images' occurs twice"),
    "text after the end": (json.dumps(official()) + "x", "text after the end"),
    "a stray comma": (json.dumps(official()).replace('"annotations": [', '"annotations": [,'), "invalid JSON"),
    "an id that is too large": (with_box(id=10**30), "annotations.*`int` <="),
    "a category id that is too large": (official(categories=[{"id": 1 << 40, "name": "a"}]), "categories.*`int`"),
    "single quotes": (json.dumps(official()).replace('"bbox"', "'bbox'"), "invalid JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json(tmp_path, name):
    content, expected = BAD[name]
    assert re.search(expected, error_of(write(tmp_path, content)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [float("nan"), 1, 2, 3]}, "non-finite box"),
        ({"bbox": [1, 1, float("inf"), 3]}, "non-finite box"),
        ({"bbox": [1, 1, 0, 3]}, "zero or negative size"),
        ({"bbox": [1, 1, 5, -3]}, "zero or negative size"),
        ({"bbox": [-2, 1, 5, 3]}, "outside the image"),
        ({"bbox": [90, 1, 12, 3]}, "outside the image"),
        ({"bbox": [1, 70, 12, 30]}, "outside the image"),
        ({"image_id": 8}, "unknown image"),
        ({"category_id": 99}, "unknown category"),
        ({"id": 101}, "duplicate annotation id"),
    ],
)
def test_bad_annotations_are_left_out_and_counted(tmp_path, change, reason):
    table = boxes.read(write(tmp_path, with_box(**change)))
    assert len(table) == 2 and table.excluded == {reason: 1}


def test_a_fraction_of_a_pixel_outside_is_kept(tmp_path):
    table = boxes.read(write(tmp_path, with_box(bbox=[-0.5, 0, 101, 80.9])))
    assert len(table) == 3 and not table.excluded


@given(st.data())
def test_truncated_anywhere(shared, tmp_path_factory, data):
    text = (shared / "coco_excerpt" / "annotations" / "instances_train2017.json").read_bytes()
    end = data.draw(st.integers(1, len(text) - 1) | st.integers(len(text) - 300, len(text) - 1) | st.integers(1, 300))
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_bytes(text[:end])
    if text[end:].strip():
        assert "truncated" in error_of(path)


def test_truncated_everywhere_and_damaged(tmp_path):
    text = json.dumps(official())
    for end in range(1, len(text)):
        error_of(write(tmp_path, text[:end]))
    rng = random.Random(0)
    for _ in range(600):  # one wrong byte: an error in one line, or a table where it hit what is not read
        at = rng.randrange(len(text))
        damaged = text[:at].encode() + bytes([rng.randrange(256)]) + text[at + 1 :].encode()
        path = tmp_path / "damaged.json"
        path.write_bytes(damaged)
        try:
            assert isinstance(boxes.read(path), BoxTable)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_what_is_no_annotation_file(tmp_path):
    assert "is a directory" in error_of(tmp_path)
    assert "no such file" in error_of(tmp_path / "nowhere.json")
    assert "unknown kind of file '.csv'" in error_of(write(tmp_path, "a,b", "boxes.csv"))
    assert "not a complete zip file" in error_of(write(tmp_path, "PK", "annotations.zip"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "holds no annotations/instances_val2017.json" in error_of(tmp_path / "other.zip", "val")


def test_a_cut_or_damaged_zip(shared, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(
            shared / "coco_excerpt" / "annotations" / "instances_train2017.json", "annotations/instances_train2017.json"
        )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "download it again" in error_of(path)
    rng = random.Random(1)
    for _ in range(20):
        at = rng.randrange(100, len(whole) - 200)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        error_of(path)


def parquet(folder: Path, **columns) -> Path:
    table = {
        "image_id": [1, 1], "width": [64, 64], "height": [48, 48], "ann_id": [1, 2], "category_id": [1, 2],
        "x": [1.0, 2.0], "y": [1.0, 2.0], "w": [5.0, 6.0], "h": [5.0, 6.0], "iscrowd": [0, 0],
    } | columns  # fmt: skip
    pd.DataFrame({name: column for name, column in table.items() if column is not None}).to_parquet(
        folder / "b.parquet"
    )
    return folder / "b.parquet"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"w": None}, "the column 'w' is missing"),
        ({"x": [1.0, None]}, "column 'x' has 1 missing values"),
        ({"category_id": ["person", "dog"]}, "column 'category_id' must hold integers"),
        ({"x": ["1", "2"]}, "column 'x' must hold numbers"),
        ({"width": [64, 65]}, "image 1 has more than one width"),
        ({"width": [0, 0]}, "image 1 has the size 0 × 48"),
        ({"iscrowd": [0, 256]}, "column 'iscrowd' holds 256"),
        ({"category_id": [1, 1 + (1 << 32)]}, "column 'category_id' holds 4294967297"),
        ({"category_id": [99, 98]}, "no usable annotation among 2 .*unknown category"),
    ],
)
def test_bad_parquet(tmp_path, columns, expected):
    assert re.search(expected, error_of(parquet(tmp_path, **columns)))


def test_cut_parquet(tmp_path):
    path = parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in error_of(path)


def test_bad_rows_of_parquet_are_counted(tmp_path):
    table = boxes.read(parquet(tmp_path, w=[float("inf"), 6.0]))
    assert len(table) == 1 and table.excluded == {"non-finite box": 1}


# ------------------------------------------------------------------------------------------------------- downloads


class Server:
    """Serves one body: whole, broken off in the middle (once or always), slowly, or not at all."""

    def __init__(self, body: bytes) -> None:
        self.body, self.mode, self.requests = body, "whole", 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                if server.mode == "missing":
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                if server.mode == "broken" or (server.mode == "broken once" and server.requests == 1):
                    self.wfile.write(server.body[: len(server.body) // 2])
                elif server.mode == "slow":
                    for at in range(0, len(server.body), 1000):
                        with contextlib.suppress(OSError):
                            self.wfile.write(server.body[at : at + 1000])
                        time.sleep(0.05)
                else:
                    self.wfile.write(server.body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


NAME = "annotations_trainval2017.zip"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror that holds a small annotation zip, whose hash is the one that is expected."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(official()))
    server = Server(buffer.getvalue() + b"\0" * 100_000)
    data = tmp_path / "data"
    shutil.copytree(files.DATA, data)
    sources = yaml.safe_load((data / "sources.yaml").read_text())
    sources[NAME]["hash"] = "sha1:" + hashlib.sha1(server.body).hexdigest()
    (data / "sources.yaml").write_text(yaml.safe_dump(sources))
    monkeypatch.setattr(files, "DATA", data)
    monkeypatch.setenv("SR4G_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SR4G_MIRROR", server.url)
    yield server
    server.http.shutdown()


def test_download_once(server, tmp_path):
    path = files.download(NAME)
    assert path.parent == tmp_path / "cache" and path.read_bytes() == server.body
    server.mode = "missing"
    assert files.download(NAME) == path and server.requests == 1
    assert inputs.annotations(Run(tmp_path / "run", "x"), None, "val") == path


def test_a_broken_download_starts_again(server):
    server.mode = "broken once"
    assert files.download(NAME).read_bytes() == server.body and server.requests == 2


@pytest.mark.parametrize("mode", ["broken", "missing", "wrong"])
def test_a_failed_download_leaves_no_half_file(server, tmp_path, mode):
    server.mode = mode
    if mode == "wrong":
        server.body = b"something else"
    with pytest.raises(RuntimeError, match=rf"{NAME}: could not download .* download the file yourself") as caught:
        files.download(NAME)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / NAME).exists()


def test_a_file_that_was_damaged_since_is_downloaded_again(server):
    path = files.download(NAME)
    path.write_bytes(b"half")
    assert files.download(NAME).read_bytes() == server.body


def test_killed_in_the_middle(server, tmp_path):
    server.mode = "slow"
    code = f"from sr4g_utils.running import files; from pathlib import Path; files.DATA = Path({str(files.DATA)!r});"
    code += f"files.download({NAME!r})"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=files.ROOT, env=os.environ.copy())
    while not server.requests:
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "cache" / NAME).exists()
    server.mode = "whole"
    assert files.download(NAME).read_bytes() == server.body


def test_the_official_hashes():
    sources = yaml.safe_load((files.DATA / "sources.yaml").read_text())
    assert {
        name: source["hash"] for name, source in sources.items() if name.endswith(("2017.zip", "validated.jsonl"))
    } == {
        "annotations_trainval2017.zip": "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
        "val2017.zip": "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",
        "train2017.zip": "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
        "all_vsr_validated.jsonl": "sha256:096251a50060c63b242e074697d835acd0e7d5c97eedaeeccf08301982f1252e",
    }
