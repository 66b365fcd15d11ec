"""A profile's word for annotations or photos becomes a file."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sr4g_utils.dataset import card as dataset_card
from sr4g_utils.dataset import coco, inputs, triplets, world
from sr4g_utils.dataset.photos import boxes_of, crop_table


def test_what_a_word_means_paths_and_downloads(run, tmp_path, monkeypatch):
    assert inputs.annotations(run, tmp_path / "a.json", "train") == tmp_path / "a.json"
    assert inputs.photos(run, tmp_path, "train", "unused") == tmp_path
    monkeypatch.setattr(inputs.files, "download", lambda name: Path("/cache") / name)
    assert inputs.annotations(run, None, "val") == Path("/cache/annotations_trainval2017.zip")
    assert inputs.photos(run, None, "val", "unused") == Path("/cache/val2017.zip")
    assert [inputs.is_miniature(word) for word in ("miniature", "miniature:7", "miniatures.json", None)] == [1, 1, 0, 0]
    assert inputs.made_from("miniature:7") == "the miniature world" and inputs.made_from(None) == "COCO annotations"


def test_the_miniature_is_drawn_once(run):
    path = inputs.annotations(run, "miniature:7", "val")
    folder = inputs.photos(run, "miniature", "val", path)
    table = coco.read(path, "val")
    assert path == run.folder / "artifacts" / "world" / "instances_val2017.json" and len(table.image_id) == 7
    assert {file.name for file in folder.iterdir()} == set(table.file_name.to_pylist())
    stamps = [file.stat().st_mtime_ns for file in (path, *sorted(folder.iterdir()))]
    assert inputs.annotations(run, "miniature:7", "val") == path
    assert inputs.photos(run, "miniature", "val", path) == folder
    assert [file.stat().st_mtime_ns for file in (path, *sorted(folder.iterdir()))] == stamps


def test_examples_get_their_pictures_where_there_are_some(run):
    table = coco.read(inputs.annotations(run, "miniature:7", "train"))
    path, _ = run.stage("t.parquet", triplets.build, {"annotations": inputs.annotations(run, "miniature:7", "train")},
                        split="train", held_out=[], rules="visor", template="plain", crowds=False)  # fmt: skip
    rows = triplets.examples(table, path, 3, 0)
    shown = inputs.pictures(run, "miniature", "miniature:7", "train", rows)
    assert [picture.shape for picture in shown] == [(64, 64, 3)] * 3
    for photos, annotations in ((None, "miniature:7"), ("miniature", "instances_train2017.json")):
        assert inputs.pictures(run, photos, annotations, "train", rows) == [None] * 3


def test_the_example_of_the_crop_is_a_photo_that_loses_boxes_or_else_a_landscape(run, tmp_path):
    table, photo = inputs.crop_example(run, "miniature:7", "miniature", 64, 0.5)
    assert photo.shape == (64, 128, 3) and len(crop_table(table, 64)) < len(table)

    columns = {"image_id": [1, 1, 2, 2, 2], "width": [200] * 5, "height": [100] * 5, "ann_id": range(5),
               "category_id": [17, 18] * 2 + [17], "x": [60, 100, 70, 90, 0], "y": [10] * 5, "w": [30] * 5,
               "h": [40] * 5, "iscrowd": [0] * 5}  # fmt: skip
    pd.DataFrame(columns).astype(dict.fromkeys("xywh", float)).to_parquet(tmp_path / "boxes.parquet")
    for id in (1, 2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((100, 200, 3), id, np.uint8)).save(tmp_path / "photos" / f"{id:012d}.jpg")
    table, photo = inputs.crop_example(run, tmp_path / "boxes.parquet", tmp_path / "photos", 100, 0.5)
    assert table.image_id.tolist() == [2] and photo.shape == (100, 200, 3) and abs(int(photo[0, 0, 0]) - 2) <= 1
    assert [name for name, _ in boxes_of(table, 0)] == ["cat", "cat", "dog"]


def test_the_card_claims_cocos_licence_for_coco_only(tmp_path):
    world.write_annotations(tmp_path / "own.json", split="train", images=5)
    made_from = {"miniature:5": "apache-2.0", None: "cc-by-4.0", str(tmp_path / "own.json"): "other"}
    for source, licence in made_from.items():
        assert dataset_card.licence_of(inputs.made_from(source))[0] == licence
    triplets.build(tmp_path / "t.parquet", tmp_path / "own.json", split="train")
    files = [tmp_path / "t.parquet"] * 2
    about = {"source": inputs.made_from(source), "rules": "visor", "held_out": ["cat"]}
    dataset_card.write_card(tmp_path / "card.md", *files, **about)
    card = (tmp_path / "card.md").read_text()
    assert "license: other\n" in card and "CC BY" not in card and "own.json" in card
