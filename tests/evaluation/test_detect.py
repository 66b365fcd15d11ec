"""Boxes in a folder of images as a stage and as a command: resuming, shards, kills, the ceiling."""

import json
import sys
from itertools import product

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pretend import picture
from processes import kill

from sr4g_utils.__main__ import main
from sr4g_utils.dataset.prompt_sets import read_prompts
from sr4g_utils.evaluation import detect, scores, verdicts
from sr4g_utils.evaluation.detections import BEHAVIOUR, DETECTION_COLUMNS, read_detections
from sr4g_utils.evaluation.images import list_images
from sr4g_utils.models import detectors
from sr4g_utils.models.detectors import Detector


@pytest.fixture
def images(tmp_path):
    """A folder of images made elsewhere, three per prompt, with the file of its prompts beside it."""
    names = ["dog", "cat", "tv", "car"]
    table = pd.DataFrame({"subject": names, "relation": "left of", "object": names[1:] + names[:1]})
    table.to_csv(tmp_path / "prompts.csv", index=False)
    (tmp_path / "images").mkdir()
    for i, n in product(range(len(table)), range(3)):
        Image.fromarray(picture(40 + n, 60, 10 * i + n)).save(tmp_path / "images" / f"{i}_{n + 1}.png")
    return tmp_path / "images"


def test_write_detections(images, models, monkeypatch):
    monkeypatch.setattr(detect, "GROUP", 5)
    path, prompts = images.parent / "boxes.parquet", images.parent / "prompts.csv"
    record = detect.write_detections(path, images, detector=str(models / "owlvit"), prompts=prompts, floor=0.2)
    table = read_detections(path)
    assert list(table.columns) == [*DETECTION_COLUMNS, "width", "height"]
    assert record["boxes"] == len(table) and record["images"]["number"] == 12
    assert set(table.image_index) == {0, 1, 2} and set(table.width) == {60} and set(table.height) == {40, 41, 42}
    # the same as asking for each image directly
    listed = list_images(images, prompts)
    pixels = [np.asarray(Image.open(images / name)) for name in listed.file_name]
    pairs = list(zip(listed.subject, listed.object, strict=True))
    direct = detectors.load(models / "owlvit").detect(pixels, pairs, floor=0.2)
    assert list(table.label) == list(direct.label)
    np.testing.assert_allclose(table[["score", *"xywh"]], direct[["score", *"xywh"]], atol=1e-3)
    assert list(table.prompt_id) == list(listed.prompt_id.iloc[direct.image])
    # scored in one call, and nothing is done again
    assert scores.scores(verdicts.verdicts(read_prompts(prompts), table, images=3)).value.notna().any()
    before = path.stat().st_mtime_ns
    assert detect.write_detections(path, images, detector=str(models / "owlvit"), prompts=prompts, floor=0.2) == record
    assert path.stat().st_mtime_ns == before


def test_resume_and_shards_give_the_same_bytes(images, models, monkeypatch):
    monkeypatch.setattr(detect, "GROUP", 5)
    options = {"detector": str(models / "owlvit"), "prompts": images.parent / "prompts.csv", "floor": 0.2}
    whole, resumed, shared = (images.parent / f"{name}.parquet" for name in ("whole", "resumed", "shared"))
    record = detect.write_detections(whole, images, **options)
    own, calls = Detector.detect, []
    monkeypatch.setattr(
        Detector, "detect", lambda *a, **k: own(*a, **k) if calls.append(1) or len(calls) < 3 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        detect.write_detections(resumed, images, **options)
    assert not resumed.exists()
    calls.clear()
    detect.write_detections(resumed, images, **options)
    assert len(calls) == 1  # of three groups, two were done
    assert resumed.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(Detector, "detect", own)
    assert detect.write_detections(shared, images, **options, shard=1, shards=2)["boxes"] is None
    assert not shared.exists()
    assert detect.write_detections(shared, images, **options, shard=0, shards=2) == record
    assert shared.read_bytes() == whole.read_bytes()
    assert not list(images.parent.glob(".*.parts"))
    # another configuration starts afresh
    assert detect.write_detections(whole, images, **{**options, "floor": 0.3})["boxes"] < record["boxes"]
    with pytest.raises(ValueError, match="shard 2 of 2"):
        detect.write_detections(shared, images, **options, shard=2, shards=2)


def test_only_other_behaviour_makes_other_boxes(images, models, monkeypatch, tmp_path):
    options = {"detector": str(models / "owlvit"), "prompts": images.parent / "prompts.csv", "floor": 0.2}
    record = detect.write_detections(tmp_path / "b.parquet", images, **options)
    own, calls = Detector.detect, []
    monkeypatch.setattr(Detector, "detect", lambda *a, **k: calls.append(1) or own(*a, **k))
    monkeypatch.setattr(detectors, "__file__", __file__)  # as after a comment
    assert detect.write_detections(tmp_path / "b.parquet", images, **options) == record and not calls
    monkeypatch.setattr(detect, "BEHAVIOUR", BEHAVIOUR + 1)
    assert detect.write_detections(tmp_path / "b.parquet", images, **options) == record and calls


@pytest.mark.slow("kills")
def test_killed_in_the_middle_and_started_again_it_leaves_the_rows_of_the_undisturbed_run(images, models, monkeypatch):
    whole, killed = (images.parent / f"{name}.parquet" for name in ("whole", "killed"))
    prompts = images.parent / "prompts.csv"
    code = "import sr4g_utils.evaluation.detect as d, sr4g_utils.__main__ as m; d.GROUP = 1; exit(m.main())"
    command = [sys.executable, "-c", code, "detect", str(killed), str(images), "--detector", str(models / "owlvit")]
    command += ["--prompts", str(prompts), "--floor", "0.2"]
    kill(command, lambda: list((images.parent / ".killed.parquet.parts").glob("[0-9]*.parquet")))
    monkeypatch.setattr(detect, "GROUP", 1)
    for path in (killed, whole):
        detect.write_detections(path, images, detector=str(models / "owlvit"), prompts=prompts, floor=0.2)
    assert pq.read_table(killed).equals(pq.read_table(whole))


def test_the_command_says_what_is_wrong_and_that_a_detector_finds_nothing(images, models, capsys, monkeypatch):
    """A result, if another model's images hold something; by itself it is never scored."""
    path, prompts = images.parent / "none.parquet", images.parent / "prompts.csv"
    detector = ["--detector", str(models / "owlvit"), "--prompts", str(prompts), "--floor", "0.9999999"]
    assert main(["detect", str(path), str(images), *detector]) == 1
    told = capsys.readouterr().err
    assert "owlvit found nothing above 0.9999999 in 12 images" in told and "is it the right detector" in told
    table = read_detections(path)
    assert not len(table) and table.label.dtype != float
    with pytest.raises(verdicts.NothingFound, match=r"none\.parquet: the detector found nothing"):
        verdicts.verdicts(read_prompts(prompts), table, 3)
    assert not verdicts.verdicts(read_prompts(prompts), table, 3, nothing="record").both_found.any()
    path = str(images.parent / "boxes.parquet")
    assert main(["detect", path, str(images), "--detector", str(models / "owlvit")]) == 1
    assert "made elsewhere (it has no prompts.parquet), so give its prompts (prompts=" in capsys.readouterr().err
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "1")
    assert main(["detect", path, str(images), "--detector", "{folder: nowhere}", "--prompts", "sr2d"]) == 1
    assert capsys.readouterr().err.strip().endswith("check the path, or give an id on the Hub")


def test_ceiling_on_real_photos(shared, models, tmp_path):
    excerpt = shared / "coco_excerpt"
    options = {"detector": str(models / "owlvit"), "n_per_relation": 4, "floor": 0.2}
    annotations = excerpt / "annotations" / "instances_val2017.json"
    record = detect.ceiling(tmp_path / "ceiling", annotations, excerpt / "val2017", **options)
    prompts = pd.read_parquet(tmp_path / "ceiling" / "prompts.parquet")
    assert record["images"]["number"] == len(prompts) == 4 * 14
    assert set(prompts.relation.value_counts()) == {4} and (prompts.subject != prompts.object).all()
    # each is true of its photo, by pycocotools' own reading
    file = json.loads(annotations.read_text())
    name = {c["id"]: c["name"] for c in file["categories"]}
    image = {i["file_name"]: i["id"] for i in file["images"]}
    for row in prompts.itertuples():
        boxes = [a for a in file["annotations"] if a["image_id"] == image[row.file_name] and not a["iscrowd"]]
        rows = [(image[row.file_name], 0, name[a["category_id"]], 1.0, *a["bbox"]) for a in boxes]
        truth = pd.DataFrame(rows, columns=list(DETECTION_COLUMNS)).assign(prompt_id=row.prompt_id)
        assert verdicts.verdicts(prompts[prompts.prompt_id == row.prompt_id], truth, images=1).correct.all(), row
    table = read_detections(tmp_path / "ceiling" / "detections.parquet")
    scores.scores(verdicts.verdicts(prompts, table, images=1))
