"""Detection against transformers' own processors, models and post-processing; resuming, shards, the ceiling."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image

from sr4g_utils import detect, generate, models, visor
from sr4g_utils.models import ModelError

SIZES = [(64, 64), (50, 70), (96, 96), (300, 200), (33, 97), (64, 64)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("detectors")
    for kind in ("owlvit", "owlv2", "rt_detr"):
        getattr(tiny, kind)(made / kind)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, tuple]:
    return {kind: models.load_detector(folder / kind, device="cpu") for kind in ("owlvit", "owlv2", "rt_detr")}


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Patches of flat colour with some noise: edges in both directions."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(coarse + rng.integers(-9, 10, coarse.shape), 0, 255).astype(np.uint8)


PICTURES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
ASKED = [["dog", "cat"], ["tv", "couch"], ["person"], ["dog", "potted plant"], ["cat", "dog"], ["dog", "cat", "tv"]]


# ------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize(("kind", "levels"), [("owlvit", 1), ("owlv2", 0.01), ("rt_detr", 1)])
def test_preprocessing_equals_the_stock_processor(loaded: dict, kind: str, levels: float) -> None:
    _, processor, _ = loaded[kind]
    stock = getattr(processor, "image_processor", processor)
    expected = stock([Image.fromarray(image) for image in PICTURES], return_tensors="pt").pixel_values
    deviation = torch.tensor(stock.image_std)[:, None, None] if stock.do_normalize else 1
    off = (detect.preprocess(PICTURES, processor, "cpu") - expected).abs() * deviation * 255
    assert off.max() <= levels + 1e-3
    assert off.mean() < 0.01  # a whole level only where Pillow's fixed point rounds the other way


@pytest.mark.parametrize("seed", range(20))
def test_preprocessing_of_any_size(loaded: dict, seed: int) -> None:
    height, width = (int(n) for n in np.random.default_rng(seed).integers(2, 150, 2))
    image = picture(height, width, seed)
    for kind, levels in (("owlvit", 1), ("owlv2", 0.05)):
        stock = loaded[kind][1].image_processor
        expected = stock(Image.fromarray(image), return_tensors="pt").pixel_values
        off = (detect.preprocess([image], stock, "cpu") - expected).abs() * torch.tensor(stock.image_std)[:, None, None]
        if kind == "owlvit" and height > max(64, width):  # some Pillows reduce the rows of tall images first
            assert off.mean() * 255 < 1
        else:
            assert off.max() * 255 <= levels + 1e-3


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_boxes_equal_the_stock_model_and_post_processing(loaded: dict, kind: str) -> None:
    """One image at a time, its names as text: the example of the model's documentation."""
    detector, processor, _ = loaded[kind]
    # the stock processor's own pixels, so that the comparison is of everything after them
    ours = detect_with_stock_pixels(detector, processor, floor=0.2)
    for i, (image, names) in enumerate(zip(PICTURES, ASKED, strict=True)):
        texts = [f"a photo of a {name}" for name in names]
        inputs = processor(text=[texts], images=Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            outputs = detector(**inputs)
        stock = processor.post_process_grounded_object_detection(
            outputs, threshold=0.2, target_sizes=[image.shape[:2]], text_labels=[names]
        )[0]
        expected = pd.DataFrame(stock["boxes"].numpy(), columns=["x", "y", "x2", "y2"])
        expected = expected.assign(score=stock["scores"].numpy(), label=stock["text_labels"])
        expected = expected.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        found = ours[ours.image == i].reset_index(drop=True)
        assert len(found) == len(expected) > 0
        assert list(found.label) == list(expected.label)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-4)
        corners = np.column_stack([found.x, found.y, found.x + found.w, found.y + found.h])
        np.testing.assert_allclose(corners, expected[["x", "y", "x2", "y2"]], atol=0.02)


def detect_with_stock_pixels(detector, processor, floor: float) -> pd.DataFrame:
    def stock(images, processor, device):
        own = getattr(processor, "image_processor", processor)
        return own([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "preprocess", stock)
        return detect.detect(detector, processor, PICTURES, ASKED, floor=floor, batch=4)


def test_closed_vocabulary_boxes_equal_the_stock_post_processing(loaded: dict) -> None:
    detector, processor, _ = loaded["rt_detr"]
    ours = detect_with_stock_pixels(detector, processor, floor=0.005)
    published = {"tv": "tvmonitor", "couch": "sofa", "potted plant": "pottedplant"}
    n = 0
    for i, (image, names) in enumerate(zip(PICTURES, ASKED, strict=True)):
        with torch.no_grad():
            outputs = detector(**processor(images=Image.fromarray(image), return_tensors="pt"))
        stock = processor.post_process_object_detection(outputs, threshold=0.005, target_sizes=[image.shape[:2]])[0]
        labels = np.array([detector.config.id2label[int(label)] for label in stock["labels"]], object)
        keep = np.isin(labels, [published.get(name, name) for name in names])
        found = ours[ours.image == i]
        assert [published.get(label, label) for label in found.label] == list(labels[keep])
        np.testing.assert_allclose(found.score, stock["scores"].numpy()[keep], atol=1e-5)
        corners = np.column_stack([found.x, found.y, found.x + found.w, found.y + found.h]).reshape(-1, 4)
        np.testing.assert_allclose(corners, stock["boxes"].numpy()[keep], atol=0.01)
        n += len(found)
    assert n > 0


# ----------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("kind", ["owlvit", "rt_detr"])
def test_batches_do_not_matter(loaded: dict, kind: str) -> None:
    detector, processor, _ = loaded[kind]
    one, all = (detect.detect(detector, processor, PICTURES, ASKED, floor=0.005, batch=n) for n in (1, 64))
    pd.testing.assert_frame_equal(one, all, atol=1e-3)


def test_out_of_memory_halves_the_batch(loaded: dict, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    detector, processor, _ = loaded["owlvit"]
    expected, own, sizes = detect.detect(detector, processor, PICTURES, ASKED, floor=0.0), detect._find_open, []

    def short(detector, pixels, *rest):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return own(detector, pixels, *rest)

    monkeypatch.setattr(detect, "_find_open", short)
    made = detect.detect(detector, processor, PICTURES, ASKED, floor=0.0, batch=6)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1] and "going on with batches of 1" in capsys.readouterr().err
    pd.testing.assert_frame_equal(made, expected, rtol=1e-3, atol=1e-3)


def test_each_query_is_embedded_once(loaded: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, processor, _ = loaded["owlvit"]
    embedded = []
    own = detector.owlvit.get_text_features
    monkeypatch.setattr(
        detector.owlvit, "get_text_features", lambda **k: embedded.append(len(k["input_ids"])) or own(**k)
    )
    queries: dict = {}
    first = detect.detect(detector, processor, PICTURES, ASKED, queries=queries)
    again = detect.detect(detector, processor, PICTURES, ASKED, queries=queries)
    assert embedded == [len(queries)] == [len({name for each in ASKED for name in each})]
    pd.testing.assert_frame_equal(first, again)


def test_a_name_twice_is_asked_once(loaded: dict) -> None:
    detector, processor, _ = loaded["owlvit"]
    twice = detect.detect(detector, processor, PICTURES[:1], [["dog", "dog"]], floor=0.0)
    pd.testing.assert_frame_equal(twice, detect.detect(detector, processor, PICTURES[:1], [["dog"]], floor=0.0))
    assert not twice.duplicated().any()


def test_no_images_no_boxes(loaded: dict) -> None:
    assert detect.detect(*loaded["owlvit"][:2], [], []).empty


def test_unknown_names(loaded: dict) -> None:
    with pytest.raises(ValueError, match="does not know 'unicorn'; its labels are person"):
        detect.detect(*loaded["rt_detr"][:2], PICTURES[:1], [["unicorn", "dog"]])
    with pytest.raises(ValueError, match="tokens, but the model reads 14"):
        detect.detect(*loaded["owlvit"][:2], PICTURES[:1], [["xylophonistically inclined", "dog"]])
    with pytest.raises(ValueError, match="2 images but names for 1"):
        detect.detect(*loaded["owlvit"][:2], PICTURES[:2], [["dog"]])


# --------------------------------------------------------------------------------------------------------- stages


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images made elsewhere, three per prompt, with the file of its prompts beside it."""
    names = ["dog", "cat", "tv", "car"]
    table = pd.DataFrame({"subject": names, "relation": "left of", "object": names[1:] + names[:1]})
    table.to_csv(tmp_path / "prompts.csv", index=False)
    for i in range(len(table)):
        for n in range(3):
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.fromarray(picture(40 + n, 60, 10 * i + n)).save(tmp_path / "images" / f"{i}_{n + 1}.png")
    return tmp_path / "images"


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(detect, "GROUP", 5)
    yield


def test_write_detections(images: Path, folder: Path, small_groups: None) -> None:
    path, prompts = images.parent / "boxes.parquet", images.parent / "prompts.csv"
    record = detect.write_detections(path, images, detector=str(folder / "owlvit"), prompts=prompts, floor=0.2)
    table = visor.read_detections(path)
    assert list(table.columns) == [*visor.DETECTION_COLUMNS, "width", "height"]
    assert record["boxes"] == len(table) and record["images"]["number"] == 12
    assert set(table.image_index) == {0, 1, 2} and set(table.width) == {60} and set(table.height) == {40, 41, 42}
    # the same as asking for each image directly
    listed = generate.list_images(images, prompts)
    pixels = [np.asarray(Image.open(images / name)) for name in listed.file_name]
    detector, processor, _ = models.load_detector(folder / "owlvit")
    pairs = list(zip(listed.subject, listed.object, strict=True))
    direct = detect.detect(detector, processor, pixels, pairs, floor=0.2)
    assert list(table.label) == list(direct.label)
    np.testing.assert_allclose(table[["score", *"xywh"]], direct[["score", *"xywh"]], atol=1e-3)
    assert list(table.prompt_id) == list(listed.prompt_id.iloc[direct.image])
    # scored in one call, and nothing is done again
    assert (
        visor.scores(visor.verdicts(generate.read_prompts(prompts), table, images=3), resamples=10).value.notna().any()
    )
    before = path.stat().st_mtime_ns
    assert detect.write_detections(path, images, detector=str(folder / "owlvit"), prompts=prompts, floor=0.2) == record
    assert path.stat().st_mtime_ns == before


def test_resume_and_shards_give_the_same_bytes(
    images: Path, folder: Path, small_groups: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = {"detector": str(folder / "owlvit"), "prompts": images.parent / "prompts.csv", "floor": 0.2}
    whole, resumed, shared = (images.parent / f"{name}.parquet" for name in ("whole", "resumed", "shared"))
    record = detect.write_detections(whole, images, **options)
    own, calls = detect.detect, []
    monkeypatch.setattr(
        detect, "detect", lambda *a, **k: calls.append(1) or (own(*a, **k) if len(calls) < 3 else 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        detect.write_detections(resumed, images, **options)
    assert not resumed.exists()
    calls.clear()
    detect.write_detections(resumed, images, **options)
    assert len(calls) == 1  # of three groups, two were done
    assert resumed.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(detect, "detect", own)
    assert detect.write_detections(shared, images, **options, shard=1, shards=2)["boxes"] is None
    assert not shared.exists()
    assert detect.write_detections(shared, images, **options, shard=0, shards=2) == record
    assert shared.read_bytes() == whole.read_bytes()
    assert not list(images.parent.glob(".*.parts"))
    # another configuration starts afresh
    assert detect.write_detections(whole, images, **{**options, "floor": 0.3})["boxes"] < record["boxes"]
    with pytest.raises(ValueError, match="shard 2 of 2"):
        detect.write_detections(shared, images, **options, shard=2, shards=2)


def test_killed_at_any_moment(images: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of the command, then the same again: the bytes of the undisturbed run."""
    whole, killed = (images.parent / f"{name}.parquet" for name in ("whole", "killed"))
    prompts = images.parent / "prompts.csv"
    code = "from sr4g_utils import detect; detect.GROUP = 1; raise SystemExit(detect.main())"
    command = [sys.executable, "-c", code, str(killed), str(images), "--detector", str(folder / "owlvit")]
    process = subprocess.Popen(
        [*command, "--prompts", str(prompts), "--floor", "0.2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    parts = images.parent / ".killed.parquet.parts"
    while process.poll() is None and not list(parts.glob("[0-9]*.parquet")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(detect, "GROUP", 1)
    for path in (killed, whole):
        detect.write_detections(path, images, detector=str(folder / "owlvit"), prompts=prompts, floor=0.2)
    assert pq.read_table(killed).equals(pq.read_table(whole))


def test_a_detector_that_finds_nothing_is_an_error(images: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"owlvit found nothing above 0.9999999 in 12 images"):
        detect.write_detections(
            images.parent / "none.parquet", images, detector=str(folder / "owlvit"),
            prompts=images.parent / "prompts.csv", floor=0.9999999,
        )  # fmt: skip
    assert not (images.parent / "none.parquet").exists()


def test_the_command_says_what_is_wrong(images: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(images.parent / "boxes.parquet")
    assert detect.main([path, str(images), "--detector", str(folder / "owlvit")]) == 1
    assert "made elsewhere (it has no prompts.parquet), so give the file of its prompts" in capsys.readouterr().err
    assert detect.main([path, str(images), "--detector", "{folder: nowhere}", "--prompts", "sr2d"]) == 1
    assert capsys.readouterr().err.strip().endswith("correct the profile's 'folder', or give an 'id'")


# -------------------------------------------------------------------------------------------------------- ceiling


def test_ceiling_on_real_photos(shared: Path, folder: Path, tmp_path: Path) -> None:
    excerpt = shared / "coco_excerpt"
    options = {"detector": str(folder / "owlvit"), "n_per_relation": 4, "floor": 0.2}
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
        truth = pd.DataFrame(rows, columns=list(visor.DETECTION_COLUMNS)).assign(prompt_id=row.prompt_id)
        assert visor.verdicts(prompts[prompts.prompt_id == row.prompt_id], truth, images=1).correct.all(), row
    table = visor.read_detections(tmp_path / "ceiling" / "detections.parquet")
    visor.scores(visor.verdicts(prompts, table, images=1), resamples=10)


def test_detectors_that_do_not_load(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(ModelError, match="model_type 'detr'; detectors are owlvit, owlv2, rt_detr"):
        models.load_detector(tmp_path)
