"""The box table against pycocotools, and every bad input: a clear error or a counted exclusion, never a traceback."""

import contextlib
import io
import json
import os
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr4g_utils.dataset import coco as dataset_coco
from sr4g_utils.dataset.boxes import COCO_CATEGORIES, BoxTable
from sr4g_utils.dataset.jsonstream import JsonStream
from sr4g_utils.store import limits


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
        "categories": [{"supercategory": "animal", "id": id, "name": name} for id, name in ((18, "dog"), (17, "cat"))],
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
    table = dataset_coco.read(write(tmp_path, official()))
    assert table.image_id.tolist() == [7, 9] and table.file_name.to_pylist() == ["seven.jpg", "nine }, { .jpg"]
    assert table.names == ["cat", "dog"] and table.excluded == {}
    assert table.xywh().tolist() == [[10, 10, 50.25, 40.5], [10, 10, 50.25, 40.5], [0, 0, 64, 48]]
    assert table.image.tolist() == [0, 0, 1] and table.category.tolist() == [1, 1, 0]
    assert table.crowd.tolist() == [False, True, False]
    crowdless = table.without_crowds()
    assert len(crowdless) == 2 and crowdless.excluded == {"crowd": 1}


def test_a_table_of_one_image(shared):
    table = dataset_coco.read(shared / "coco_excerpt" / "annotations" / "instances_val2017.json", "val")
    for image in (0, 7, len(table.image_id) - 1):
        one = table.of_image(image)
        assert one.image_id.tolist() == [table.image_id[image]] and one.file_name[0] == table.file_name[image]
        assert (one.width[0], one.height[0]) == (table.width[image], table.height[image]) and (one.image == 0).all()
        np.testing.assert_array_equal(one.xywh(), table.xywh(table.image == image))
        assert [one.names[i] for i in one.category] == [table.names[i] for i in table.category[table.image == image]]


@pytest.mark.parametrize("split", ["val", "train"])
def test_agrees_with_pycocotools(shared, split, monkeypatch):
    from pycocotools.coco import COCO

    path = shared / "coco_excerpt" / "annotations" / f"instances_{split}2017.json"
    table = dataset_coco.read(path)
    monkeypatch.setattr(JsonStream, "CHUNK", 5000)
    assert same(dataset_coco.read(path), table), "read in small chunks"
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
    tables = {split: dataset_coco.read(source / f"instances_{split}2017.json") for split in ("train", "val")}
    for split, table in tables.items():
        assert same(dataset_coco.read(archive, split), table)
    assert set(tmp_path.iterdir()) == before  # nothing is unpacked to disk
    assert not same(tables["train"], tables["val"])

    table = tables["val"]
    columns = {"image_id": table.image_id, "width": table.width.astype(int), "height": table.height.astype(int)}
    frame = pd.DataFrame({name: column[table.image] for name, column in columns.items()})
    frame[list("xywh")], frame["iscrowd"] = table.xywh(), table.crowd.astype(int)
    frame = frame.assign(ann_id=np.arange(len(table)), category_id=[table.categories[i].id for i in table.category])
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "boxes.parquet")
    assert same(dataset_coco.read(tmp_path / "boxes.parquet"), table)
    assert table.file_name[0].as_py() == f"{table.image_id[0]:012d}.jpg"


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1000, 100_000])
def test_where_the_stream_is_cut_does_not_matter(tmp_path, monkeypatch, chunk):
    """Cuts within numbers, strings, literals and records; with and without white space, in any order of keys."""
    data = official()
    data["annotations"] = [{**data["annotations"][0], "id": i, "bbox": [i % 7, 1, 30 + i / 8, 9]} for i in range(40)]
    for indent, order in ((None, list(data)), (2, list(data)[::-1])):
        path = write(tmp_path, json.dumps({key: data[key] for key in order}, indent=indent))
        whole = dataset_coco.read(path)
        monkeypatch.setattr(JsonStream, "CHUNK", chunk)
        assert same(dataset_coco.read(path), whole) and len(whole) == 40
        monkeypatch.undo()


# ------------------------------------------------------------------------------------------------------- bad files
def error_of(path: Path, split: str = "train") -> str:
    with pytest.raises(ValueError) as caught:
        dataset_coco.read(path, split)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message, message
    return message


def no(key: str) -> dict:
    return {k: v for k, v in official().items() if k != key}


BAD = {
    "nothing": ("", "the file is empty; download it again"),
    "blank": ("  \n", "ends too early"),
    "not an object": ("[]", r"a list, as results are"),
    "not JSON": ("hello", "expected {, found b'h'"),
    "no images": (no("images"), "the key 'images' is missing"),
    "no annotations": (no("annotations"), "'annotations' is missing"),
    "no categories": (no("categories"), "'categories' is missing"),
    "captions file": (no("categories") | {"annotations": [{"id": 1, "image_id": 7, "caption": "a"}]},
        "the key 'categories' is missing; an instances file has images, annotations, categories"),
    "empty lists": ({"images": [], "annotations": [], "categories": []}, "holds no images"),
    "no annotation": (official(annotations=[]), "no usable annotation among 0$"),
    "no annotation, and lists after it": (official(annotations=[], categories=official()["categories"] * 3),
        "no usable annotation among 0$"),
    "a list that is none": (official(annotations={}), "the value of 'annotations' must be a list"),
    "no box": (official(annotations=[{"id": 1, "image_id": 7, "category_id": 18}]),
        r"no box of four finite numbers: 1\); annotations\[0\] has no bbox \(expected: four finite numbers\)$"),
    "no record": (official(annotations=[[7, 18]]),
        r"unknown image: 1\); annotations\[0\] is \[7, 18\] \(expected: an object\)$"),
    "images without a size": (official(images=[{"id": 9, "width": 0, "height": 5}, {"id": 7, "width": 5}]),
        r"image without a size: 3\); images\[0\] has the width 0 \(expected: a whole number of pixels\)$"),
    "images without a number": (official(images=[{"id": "a17f", "width": 5, "height": 5}]),
        r"holds no images; images\[0\] has the id 'a17f' \(expected: a whole number\)$"),
    "categories without a name": (official(categories=[{"id": 1, "name": " "}, None]),
        r"holds no categories; categories\[0\] has the name ' ' \(expected: text\)$"),
    "two images of one id": (official(images=[*official()["images"], {"id": 9, "width": 64, "height": 48}]),
        "image id 9 occurs more than once, as 64 × 48 nine }, { .jpg and 64 × 48 000000000009.jpg; number"),
    "two categories of one id": (official(categories=[*official()["categories"], {"id": 17, "name": "cow"}]),
        "category id 17 occurs more than once, as 'cat' and 'cow'; number the categories anew"),
    "40,000 categories": (official(categories=[{"id": i, "name": f"thing {i}"} for i in range(40_000)]),
        "holds 40,000 categories; at most"),
    "key twice": ('{"images": [], "images": []}', "the key 'images' occurs twice"),
    "text after the end": (json.dumps(official()) + "x", "text after the end"),
    "a stray comma": (json.dumps(official()).replace('"annotations": [', '"annotations": [,'), "invalid JSON"),
    "nested too deeply": (json.dumps(official()).replace('"iscrowd": 0', f'"more": {"[" * 200_000}{"]" * 200_000}'),
        "nested too deeply"),
    "single quotes": (json.dumps(official()).replace('"bbox"', "'bbox'"), "invalid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_json(tmp_path, name):
    content, expected = BAD[name]
    assert re.search(expected, error_of(write(tmp_path, content)))


NAN, INFINITY = float("nan"), float("inf")
BAD_VALUES = {  # by field and reason
    ("bbox", "no box of four finite numbers"): [
        [NAN, 1, 2, 3], [1, 1, INFINITY, 3], [1, 1, 10**400, 3], [], None, [1, 2, 3], [1, 2, 3, 4, 5],
        ["1", "2", "3", "x"], [1, 2, 3, True], "1 2 3 4",
    ],
    ("bbox", "zero or negative size"): [[1, 1, 0, 3], [1, 1, 5, -3]],
    ("bbox", "outside the image"): [[-2, 1, 5, 3], [90, 1, 12, 3], [1, 70, 12, 30]],
    ("iscrowd", "iscrowd neither 0 nor 1"): [2, "yes"],
    ("image_id", "unknown image"): [8, None, NAN, 7.5, 7 + 2**64, [7]],
    ("category_id", "unknown category"): [99, "dog", 10**30],
}  # fmt: skip


@pytest.mark.parametrize(("field", "reason", "value"), [(*key, v) for key in BAD_VALUES for v in BAD_VALUES[key]])
def test_bad_annotations_are_left_out_and_counted(tmp_path, field, reason, value):
    table = dataset_coco.read(write(tmp_path, with_box(**{field: value})))
    assert len(table) == 2 and table.excluded == {reason: 1}


def test_a_fraction_of_a_pixel_outside_a_byte_order_mark_and_escapes_are_no_fault(tmp_path):
    table = dataset_coco.read(write(tmp_path, with_box(bbox=[-0.5, 0, 101, 80.9])))
    assert len(table) == 3 and not table.excluded
    data = official(info={"description": 'quote " backslash \\ é €'})
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(data).encode())
    assert len(dataset_coco.read(tmp_path / "bom.json")) == 3


@pytest.mark.slow("many draws")
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
            assert isinstance(dataset_coco.read(path), BoxTable)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_what_is_no_annotation_file(tmp_path):
    assert "is a directory" in error_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    assert "no regular file" in error_of(tmp_path / "pipe.json")
    assert "no such file" in error_of(tmp_path / "nowhere.json")
    assert len(dataset_coco.read(write(tmp_path, official(), "A.JSON"))) == 3
    (tmp_path / "wide.json").write_bytes(json.dumps(official()).encode("utf-16"))
    assert "text in UTF-16; save it as UTF-8 near byte 0" in error_of(tmp_path / "wide.json")
    assert "unknown kind of file '.csv'" in error_of(write(tmp_path, "a,b", "boxes.csv"))
    assert "not a complete zip file" in error_of(write(tmp_path, "PK", "annotations.zip"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "holds no annotations/instances_val2017.json" in error_of(tmp_path / "other.zip", "val")


def test_a_cut_or_damaged_zip(shared, tmp_path):
    path, member = tmp_path / "a.zip", "annotations/instances_train2017.json"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(shared / "coco_excerpt" / member, member)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "download it again" in error_of(path)
    rng = random.Random(1)
    for _ in range(20):
        at = rng.randrange(100, len(whole) - 200)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        error_of(path)


def made_unreadable(path: Path) -> Iterator[str]:
    """A zip that Python cannot unpack, in two ways, each with the word for it."""
    whole = path.read_bytes()
    for at, value, problem in ((6, 1, "encrypted"), (8, 9, "compression")):  # the flags and the method of a member
        changed = bytearray(whole)
        for start in (whole.index(b"PK\3\4") + at, whole.index(b"PK\1\2") + at + 2):
            changed[start] = value
        path.write_bytes(changed)
        yield problem


def test_a_zip_that_python_cannot_unpack(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations/instances_train2017.json", json.dumps(official()))
    for problem in made_unreadable(path):
        assert re.search(f"Python cannot unpack it .*{problem}.*; unpack it and give annotations/", error_of(path))


def test_a_zip_that_unpacks_to_far_more_than_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SMALL", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_train2017.json", json.dumps(official(info=" " * 100_000)))
    monkeypatch.setenv("SR4G_UNPACKED", "50")
    assert "bytes for each that is packed: " in (told := error_of(path)) and "above the limit of 50" in told
    monkeypatch.setenv("SR4G_UNPACKED", "500")
    assert len(dataset_coco.read(path)) == 3


def parquet(folder: Path, **columns) -> Path:
    table = {
        "image_id": [1, 1], "width": [64, 64], "height": [48, 48], "ann_id": [1, 2], "category_id": [1, 2],
        "x": [1.0, 2.0], "y": [1.0, 2.0], "w": [5.0, 6.0], "h": [5.0, 6.0], "iscrowd": [0, 0],
    } | columns  # fmt: skip
    path = folder / "b.parquet"
    pd.DataFrame({name: column for name, column in table.items() if column is not None}).to_parquet(path)
    return path


@pytest.mark.parametrize(("columns", "expected"), [
    ({"w": None}, "the column 'w' is missing"),
    ({"category_id": ["person", "dog"]}, "column 'category_id' must hold integers"),
    ({"x": ["1", "2"]}, "column 'x' must hold numbers"), ({"width": [64, 65]}, "image 1 has more than one width"),
    ({"width": [0, 0]}, "no usable annotation among 2 .*image without a size: 2"),
    ({"image_id": [None, None]}, "column 'image_id' must hold integers, found null"),
    ({"image_id": [1.5, np.nan]}, "holds no images"),
    ({"category_id": [99, 98]}, "no usable annotation among 2 .*unknown category"),
])  # fmt: skip
def test_bad_or_cut_parquet(tmp_path, columns, expected):
    path = parquet(tmp_path, **columns)
    assert re.search(expected, error_of(path))
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in error_of(path)


@pytest.mark.parametrize(("columns", "reason"), [
    ({"w": [float("inf"), 6.0]}, "no box of four finite numbers"),
    ({"x": [None, 2.0]}, "no box of four finite numbers"), ({"image_id": [None, 1]}, "unknown image"),
    ({"image_id": [1.5, 1]}, "unknown image"), ({"image_id": [2, 1], "width": [None, 64]}, "image without a size"),
    ({"image_id": [2, 1], "height": [1 << 40, 48]}, "image without a size"),
    ({"category_id": [2 + (1 << 32), 2]}, "unknown category"), ({"iscrowd": [256, 0]}, "iscrowd neither 0 nor 1"),
    ({"iscrowd": [None, False]}, "iscrowd neither 0 nor 1"),
])  # fmt: skip
def test_bad_rows_of_parquet_are_counted(tmp_path, columns, reason):
    table = dataset_coco.read(parquet(tmp_path, **columns))
    assert table.xywh().tolist() == [[2, 2, 6, 6]] and table.excluded == {reason: 1}
    assert table.image_id.tolist() == [1] and table.names[table.category[0]] == "bicycle"


def test_parquet_of_floats_and_truth_values_and_without_ids(tmp_path):
    whole = dataset_coco.read(parquet(tmp_path, iscrowd=[0, 1]))
    floats = {name: [1.0, 2.0] for name in ("ann_id", "category_id", "w", "h")}
    changed = {"image_id": [1.0, 1.0], "width": [64.0, 64.0], "iscrowd": [False, True], "w": [5, 6], "h": [5, 6]}
    assert same(dataset_coco.read(parquet(tmp_path, **(floats | changed))), whole)
    for ids in ([1, 1], [None, 7], [7.5, 2.5]):
        assert same(dataset_coco.read(parquet(tmp_path, iscrowd=[0, 1], ann_id=ids)), whole)
