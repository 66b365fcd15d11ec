"""Annotations that mean other coordinates or other ids than they are read with: said, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from test_boxes import official, parquet, write

from sr4g_utils.dataset import coco

Boxes = Callable[[list[float], float, float], list[float]]  # xywh and the image's width and height


def changed(shared: Path, change: Boxes) -> dict:
    data = json.loads((shared / "coco_excerpt" / "annotations" / "instances_val2017.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    for annotation in data["annotations"]:
        annotation["bbox"] = change(annotation["bbox"], *sizes[annotation["image_id"]])
    return data


MEANT_OTHERWISE: dict[str, tuple[Boxes, str]] = {
    "corners": (lambda b, w, h: [b[0], b[1], b[0] + b[2], b[1] + b[3]], r"80%\) are left out.*fit as corners \(x1, y1"),
    "y first": (lambda b, w, h: [b[1], b[0], b[1] + b[3], b[0] + b[2]], "fit as corners in the order y1, x1, y2, x2"),
    "centres": (lambda b, w, h: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]], "the boxes fit as centres"),
    "shares": (lambda b, w, h: [b[0] / w, b[1] / h, b[2] / w, b[3] / h], r"a side of at most 0\.\d+ pixels: if boxes"),
    "percent": (lambda b, w, h: [b[0] * 100 / w, b[1] * 100 / h, b[2] * 100 / w, b[3] * 100 / h], "hardly a box"),
    "thousandths": (
        lambda b, w, h: [b[0] * 1000 / w, b[1] * 1000 / h, b[2] * 1000 / w, b[3] * 1000 / h],
        r"fit as thousandths of the image \(x, y, width, height\); write them in pixels",
    ),
    "other images": (lambda b, w, h: [v * 3 for v in b], "the left and upper edge, width and height in pixels of"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT_OTHERWISE)
def test_coordinates_that_mean_something_else(shared, tmp_path, capsys, name):
    change, told = MEANT_OTHERWISE[name]
    path = write(tmp_path, changed(shared, change))
    try:
        coco.read(path)
        said = capsys.readouterr().err
        assert said.startswith(f"WARNING: {path}: ") and said.count("\n") == 1
    except ValueError as error:
        said = str(error)
        assert "more than allow_loss = 0.5" in said and len(coco.read(path, allow_loss=1)) > 0
    assert pd.Series([said]).str.contains(told).all(), said


def test_turned_photos_and_right_files(shared, tmp_path, capsys):
    data = changed(shared, lambda box, width, height: box)
    coco.read(write(tmp_path, data))
    assert capsys.readouterr().err == ""
    for image in data["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    coco.read(write(tmp_path, data))
    assert "width and height are exchanged; are the photos turned?" in capsys.readouterr().err


IDS = {
    "counted from 0": (lambda id: id - 1, "category_id: all ids fit if 1 is added to each; is one of the two lists"),
    "counted from 2": (lambda id: id + 1, "all ids fit if 1 is taken from each"),
    "words": (lambda id: f"c{id}" if id != 18 else id, r"has the category_id 'c16' \(expected: a whole number\)"),
    "of another list": (lambda id: 500 if id != 18 else id, "unknown category; such as 500"),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_another_list(tmp_path, capsys, name):
    change, told = IDS[name]
    data = official(categories=[{"id": id, "name": f"thing {id}"} for id in (16, 17, 18)])
    data["annotations"] = [{**a, "category_id": 16 + i % 3, "id": i} for i, a in enumerate(data["annotations"] * 3)]
    for annotation in data["annotations"]:
        annotation["category_id"] = change(annotation["category_id"])
    coco.read(write(tmp_path, data), allow_loss=1)
    assert pd.Series([capsys.readouterr().err]).str.contains(told).all()


def test_a_box_table_whose_categories_are_counted_without_cocos_gaps(tmp_path, capsys):
    n = 80
    columns = {name: [20.0] * n for name in "wh"} | {name: [1.0] * n for name in "xy"}
    columns |= {"image_id": [1] * n, "width": [64] * n, "height": [48] * n, "ann_id": range(n), "iscrowd": [0] * n}
    coco.read(parquet(tmp_path, **columns, category_id=range(1, n + 1)))
    said = capsys.readouterr().err
    assert "category_id: 1 to 80 may be places in a list; here the ids have gaps, 1 to 90" in said
    assert "12" not in said or "9 of 80 annotations (11%) are left out: unknown category; such as 71" in said


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_a_limit_on_annotations(tmp_path, monkeypatch, form):
    monkeypatch.setenv("SR4G_ANNOTATIONS", "1")
    path = parquet(tmp_path) if form == "parquet" else write(tmp_path, official())
    with pytest.raises(ValueError, match=r"number of annotations: [23] is above the limit of 1; to take it, set SR4G"):
        coco.read(path)
