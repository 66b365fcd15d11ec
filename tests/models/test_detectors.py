"""Detectors against transformers' own processors, models and post-processing; memory, batches, names."""

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from pretend import picture
from refusals import refuses

from sr4g_utils.models import detectors
from sr4g_utils.models.detectors import Detector
from sr4g_utils.models.source import ModelError

KINDS = ("owlvit", "owlv2", "rt_detr")
SIZES = [(64, 64), (50, 70), (96, 96), (300, 200), (33, 97), (64, 64)]
PICTURES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
ASKED = [["dog", "cat"], ["tv", "couch"], ["person"], ["dog", "potted plant"], ["cat", "dog"], ["dog", "cat", "tv"]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    return {kind: detectors.load(getattr(tiny, kind)(folder / kind), device="cpu") for kind in KINDS}


@pytest.mark.parametrize(("kind", "levels"), [("owlvit", 1), ("owlv2", 0.01), ("rt_detr", 1)])
def test_preprocessing_equals_the_stock_processor(loaded, kind, levels):
    detector = loaded[kind]
    stock = getattr(detector.processor, "image_processor", detector.processor)
    expected = stock([Image.fromarray(image) for image in PICTURES], return_tensors="pt").pixel_values
    deviation = torch.tensor(stock.image_std)[:, None, None] if stock.do_normalize else 1
    off = (detector.preprocess(PICTURES) - expected).abs() * deviation * 255
    assert off.max() <= levels + 1e-3
    assert off.mean() < 0.01  # a whole level only where Pillow's fixed point rounds the other way


@pytest.mark.parametrize("seed", range(20))
def test_preprocessing_of_any_size(loaded, seed):
    height, width = (int(n) for n in np.random.default_rng(seed).integers(2, 150, 2))
    image = picture(height, width, seed)
    for kind, levels in (("owlvit", 1), ("owlv2", 0.05)):
        stock = loaded[kind].processor.image_processor
        expected = stock(Image.fromarray(image), return_tensors="pt").pixel_values
        off = (loaded[kind].preprocess([image]) - expected).abs() * torch.tensor(stock.image_std)[:, None, None]
        if kind == "owlvit" and height > max(64, width):  # some Pillows reduce the rows of tall images first
            assert off.mean() * 255 < 1
        else:
            assert off.max() * 255 <= levels + 1e-3


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_boxes_equal_the_stock_model_and_post_processing(loaded, kind):
    """One image at a time, its names as text: the example of the model's documentation."""
    detector, processor = loaded[kind], loaded[kind].processor
    # the stock processor's own pixels, so that the comparison is of everything after them
    ours = detect_with_stock_pixels(detector, floor=0.2)
    for i, (image, names) in enumerate(zip(PICTURES, ASKED, strict=True)):
        texts = [f"a photo of a {name}" for name in names]
        inputs = processor(text=[texts], images=Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            outputs = detector.model(**inputs)
        stock = processor.post_process_grounded_object_detection(
            outputs, threshold=0.2, target_sizes=[image.shape[:2]], text_labels=[names]
        )[0]
        expected = pd.DataFrame(stock["boxes"].numpy(), columns=["x", "y", "x2", "y2"])
        expected = expected.assign(score=stock["scores"].numpy(), label=stock["text_labels"])
        expected = expected.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        found = ours[ours.image == i].reset_index(drop=True)
        assert len(found) == len(expected) > 0 and list(found.label) == list(expected.label)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-4)
        corners = np.column_stack([found.x, found.y, found.x + found.w, found.y + found.h])
        np.testing.assert_allclose(corners, expected[["x", "y", "x2", "y2"]], atol=0.02)


def detect_with_stock_pixels(detector: Detector, floor: float) -> pd.DataFrame:
    def stock(images):
        own = getattr(detector.processor, "image_processor", detector.processor)
        return own([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "preprocess", stock)
        return detector.detect(PICTURES, ASKED, floor=floor, batch=4)


def test_closed_vocabulary_boxes_equal_the_stock_post_processing(loaded):
    detector, processor = loaded["rt_detr"], loaded["rt_detr"].processor
    ours = detect_with_stock_pixels(detector, floor=0.005)
    published = {"tv": "tvmonitor", "couch": "sofa", "potted plant": "pottedplant"}
    n = 0
    for i, (image, names) in enumerate(zip(PICTURES, ASKED, strict=True)):
        with torch.no_grad():
            outputs = detector.model(**processor(images=Image.fromarray(image), return_tensors="pt"))
        stock = processor.post_process_object_detection(outputs, threshold=0.005, target_sizes=[image.shape[:2]])[0]
        labels = np.array([detector.model.config.id2label[int(label)] for label in stock["labels"]], object)
        keep = np.isin(labels, [published.get(name, name) for name in names])
        found = ours[ours.image == i]
        assert [published.get(label, label) for label in found.label] == list(labels[keep])
        np.testing.assert_allclose(found.score, stock["scores"].numpy()[keep], atol=1e-5)
        corners = np.column_stack([found.x, found.y, found.x + found.w, found.y + found.h]).reshape(-1, 4)
        np.testing.assert_allclose(corners, stock["boxes"].numpy()[keep], atol=0.01)
        n += len(found)
    assert n > 0


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_features_are_those_of_the_image_tower(loaded, kind):
    detector, same = loaded[kind], [PICTURES[0], PICTURES[5]]
    pixels = detector.processor.image_processor([Image.fromarray(image) for image in same], return_tensors="pt")
    with torch.no_grad():
        expected = getattr(detector.model, kind).vision_model(pixels.pixel_values).pooler_output
        found = detector.features(same)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    refuses("RTDetrForObjectDetection has no pooled image features", loaded["rt_detr"].features, same)


@pytest.mark.parametrize("kind", ["owlvit", "rt_detr"])
def test_batches_do_not_matter(loaded, kind):
    one, all = (loaded[kind].detect(PICTURES, ASKED, floor=0.005, batch=n) for n in (1, 64))
    pd.testing.assert_frame_equal(one, all, atol=1e-3)


def test_out_of_memory_halves_the_batch(loaded, monkeypatch, capsys):
    detector = loaded["owlvit"]
    expected, own, sizes = detector.detect(PICTURES, ASKED, floor=0.0), detector.find, []

    def short(pixels, *rest):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return own(pixels, *rest)

    monkeypatch.setattr(detector, "find", short)
    made = detector.detect(PICTURES, ASKED, floor=0.0, batch=6)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1] and "going on with batches of 1" in capsys.readouterr().err
    pd.testing.assert_frame_equal(made, expected, rtol=1e-3, atol=1e-3)


def test_each_query_is_embedded_once(tmp_path, monkeypatch):
    detector = detectors.load(tiny.owlvit(tmp_path / "owlvit"), device="cpu")
    tower, embedded = detector.model.owlvit, []
    own = tower.get_text_features
    monkeypatch.setattr(tower, "get_text_features", lambda **k: embedded.append(len(k["input_ids"])) or own(**k))
    first, again = (detector.detect(PICTURES, ASKED) for _ in range(2))
    assert embedded == [len(detector.queries)] == [len({name for each in ASKED for name in each})]
    pd.testing.assert_frame_equal(first, again)


def test_a_name_twice_is_asked_once_and_no_images_have_no_boxes(loaded):
    twice = loaded["owlvit"].detect(PICTURES[:1], [["dog", "dog"]], floor=0.0)
    pd.testing.assert_frame_equal(twice, loaded["owlvit"].detect(PICTURES[:1], [["dog"]], floor=0.0))
    assert not twice.duplicated().any()
    assert all(detector.detect([], []).empty for detector in loaded.values())


def test_unknown_names_and_detectors(loaded, tmp_path):
    with pytest.raises(ValueError, match="does not know 'unicorn'; its labels are person"):
        loaded["rt_detr"].detect(PICTURES[:1], [["unicorn", "dog"]])
    with pytest.raises(ValueError, match="tokens, but the model reads 14"):
        loaded["owlvit"].detect(PICTURES[:1], [["xylophonistically inclined", "dog"]])
    refuses("2 images but names for 1", loaded["owlvit"].detect, PICTURES[:2], [["dog"]])
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(ModelError, match="model_type 'detr'; detectors are owlvit, owlv2, rt_detr"):
        detectors.load(tmp_path)
