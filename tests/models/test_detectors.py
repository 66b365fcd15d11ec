"""Detectors against transformers' own processors, models and post-processing; memory, batches, names."""

from functools import cache
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_detectors
import torch
from PIL import Image
from pretend import picture
from refusals import refuses

from sr4g_utils.evaluation.detect import write_boxes
from sr4g_utils.models import detectors
from sr4g_utils.models.detectors import FAMILIES, Detector
from sr4g_utils.models.source import ModelError
from sr4g_utils.store import files

SIZES = [(64, 64), (50, 70), (96, 96), (300, 200), (33, 97), (64, 64)]
PICTURES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
ASKED = [["dog", "cat"], ["tv", "couch"], ["person"], ["dog", "potted plant"], ["cat", "dog"], ["dog", "cat", "tv"]]
CORNERS = ["x", "y", "x2", "y2"]
GONE = "its image processor needs torchvision, of which there is none for this torch on a CPU"
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(family.needs and not find_spec(family.needs)), reason=GONE))
    for kind, family in FAMILIES.items()
]
each_family = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")

    @cache
    def load(kind: str) -> Detector:
        return detectors.load(tiny_detectors.build(kind, folder / kind), device="cpu")

    return load


def test_the_documentation_has_every_family():
    page = (files.ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    rows = [f"| `{own.published}` | {own.__doc__[:-1]} | {own.names} | {own.scores} |" for own in FAMILIES.values()]
    assert [row for row in rows if row not in page.splitlines()] == []
    assert {*FAMILIES} == {*tiny_detectors.BUILDERS, "owlvit", "owlv2", "rt_detr"}


@each_family
def test_preprocessing_equals_the_stock_processor(loaded, kind):
    """And so does the size of what it makes, of images of any size."""
    detector = loaded(kind)
    stock = getattr(detector.processor, "image_processor", detector.processor)
    deviation = torch.tensor(stock.image_std)[:, None, None] if stock.do_normalize else 1
    random = np.random.default_rng(0)
    for seed, size in enumerate([*SIZES, *random.integers(24, 150, (10, 2)).tolist()]):
        image = picture(*size, seed)
        expected = stock(Image.fromarray(image), return_tensors="pt").pixel_values
        off = (detector.preprocess([image]) - expected).abs() * deviation * 255
        if size[0] <= max(size[1], 64):  # some Pillows reduce the rows of tall images first
            most, mean = {"owlv2": (0.01, 0.01), "owlvit": (1, 0.01)}.get(kind, (2, 0.3))
            # a level for each direction where Pillow's fixed point rounds the other way: linear weights make halves
            assert off.max() <= most + 1e-3 and off.mean() < mean


@pytest.mark.parametrize("seed", range(20))
def test_preprocessing_of_any_size(loaded, seed):
    height, width = (int(n) for n in np.random.default_rng(seed).integers(2, 150, 2))
    image = picture(height, width, seed)
    for kind, levels in (("owlvit", 1), ("owlv2", 0.05)):
        stock = loaded(kind).processor.image_processor
        expected = stock(Image.fromarray(image), return_tensors="pt").pixel_values
        off = (loaded(kind).preprocess([image]) - expected).abs() * torch.tensor(stock.image_std)[:, None, None]
        if kind == "owlvit" and height > max(64, width):  # some Pillows reduce the rows of tall images first
            assert off.mean() * 255 < 1
        else:
            assert off.max() * 255 <= levels + 1e-3


@each_family
def test_boxes_equal_the_stock_model_and_post_processing(loaded, kind):
    """One image at a time, from the stock processor's own pixels: the example of the model's documentation."""
    detector, ours = loaded(kind), detect_with_stock_pixels(loaded(kind), floor=0.005)
    assert len(ours) > 4
    for i, (image, names) in enumerate(zip(PICTURES, ASKED, strict=True)):
        expected = STOCK.get(kind, stock_labels)(detector, image, names, 0.005)
        found = ours[ours.image == i].assign(x2=lambda table: table.x + table.w, y2=lambda table: table.y + table.h)
        # the stock post-processing rounds the scores of masks, whose boxes are whole pixels
        order = ["label", *CORNERS, "score"] if kind == "mask2former" else ["score"]
        found, expected = (table.sort_values(order, kind="stable", ignore_index=True) for table in (found, expected))
        assert list(found.label) == list(expected.label)
        np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[CORNERS], expected[CORNERS], rtol=0, atol=1e-3)


def detect_with_stock_pixels(detector: Detector, floor: float) -> pd.DataFrame:
    def stock(images):
        own = getattr(detector.processor, "image_processor", detector.processor)
        return own([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "preprocess", stock)
        return detector.detect(PICTURES, ASKED, floor=floor, batch=1)


def stock_outputs(detector: Detector, image: np.ndarray, **text: object):
    inputs = detector.processor(images=Image.fromarray(image), return_tensors="pt", **text)
    with torch.no_grad():
        return detector.model(**inputs)


def corners(found: dict, labels: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(found["boxes"].numpy().reshape(-1, 4), columns=CORNERS)
    return table.assign(score=found["scores"].numpy(), label=labels)


def stock_owl(detector: Detector, image: np.ndarray, names: list[str], floor: float) -> pd.DataFrame:
    outputs = stock_outputs(detector, image, text=[[f"a photo of a {name}" for name in names]])
    options = {"threshold": floor, "target_sizes": [image.shape[:2]], "text_labels": [names]}
    found = detector.processor.post_process_grounded_object_detection(outputs, **options)[0]
    return corners(found, found["text_labels"])


def stock_dino(detector: Detector, image: np.ndarray, names: list[str], floor: float) -> pd.DataFrame:
    """The stock post-processing of the logits of each name's own tokens; the best name of each box."""
    outputs, tokenizer = stock_outputs(detector, image, text=[names]), detector.processor.tokenizer
    logits, at, tables = outputs.logits, 1, []
    for name in names:
        n = len(tokenizer(name, add_special_tokens=False).input_ids)
        assert tokenizer.decode(outputs.input_ids[0, at : at + n + 1]) in (f"{name}.", f"{name} .")
        outputs.logits = torch.full_like(logits, -torch.inf)
        outputs.logits[..., at : at + n] = logits[..., at : at + n]
        options = {"threshold": -1, "text_threshold": 0.0, "target_sizes": [image.shape[:2]]}
        found = detector.processor.post_process_grounded_object_detection(outputs, **options)[0]
        tables.append(corners(found, [name] * len(found["scores"])))
        at += n + 1
    table = pd.concat(tables).rename_axis("box").reset_index()
    best = table.sort_values("score", ascending=False, kind="stable").drop_duplicates("box").sort_values("box")
    return best[best.score > floor]


def stock_labels(detector: Detector, image: np.ndarray, names: list[str], floor: float) -> pd.DataFrame:
    outputs, processor = stock_outputs(detector, image), detector.processor
    found = processor.post_process_object_detection(outputs, threshold=floor, target_sizes=[image.shape[:2]])[0]
    return of_names(detector, corners(found, found["labels"].tolist()), names)


def of_names(detector: Detector, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    published = {"tv": "tvmonitor", "couch": "sofa", "potted plant": "pottedplant"}
    meant = {published.get(name, name): name for name in names}
    table = table.assign(label=table.label.map(detector.model.config.id2label).map(meant))
    return table.dropna(subset="label")


def stock_masks(detector: Detector, image: np.ndarray, names: list[str], floor: float) -> pd.DataFrame:
    """The boxes around the stock post-processing's masks, which it rounds the scores of."""
    options = {"threshold": floor, "target_sizes": [image.shape[:2]], "return_binary_maps": True}
    found = detector.processor.post_process_instance_segmentation(stock_outputs(detector, image), **options)[0]
    rows = []
    for mask, about in zip(found["segmentation"].numpy(), found["segments_info"], strict=False):
        y, x = np.nonzero(mask)
        rows.append([x.min(), y.min(), x.max() + 1, y.max() + 1, about["score"], about["label_id"]])
    table = pd.DataFrame(rows, columns=[*CORNERS, "score", "label"])
    return of_names(detector, table, names)


STOCK = {"owlvit": stock_owl, "owlv2": stock_owl, "mask2former": stock_masks}
STOCK |= {"grounding-dino": stock_dino, "mm-grounding-dino": stock_dino}


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_features_are_those_of_the_image_tower(loaded, kind):
    detector, same = loaded(kind), [PICTURES[0], PICTURES[5]]
    pixels = detector.processor.image_processor([Image.fromarray(image) for image in same], return_tensors="pt")
    with torch.no_grad():
        expected = getattr(detector.model, kind).vision_model(pixels.pixel_values).pooler_output
        found = detector.features(same)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    refuses("RTDetrForObjectDetection has no pooled image features", loaded("rt_detr").features, same)


@each_family
def test_batches_do_not_matter(loaded, kind):
    """Nor does it matter what other sizes are among the images."""
    one, all = (loaded(kind).detect(PICTURES, ASKED, floor=0.005, batch=n) for n in (1, 64))
    pd.testing.assert_frame_equal(one, all, atol=1e-3)
    alone = [loaded(kind).detect([image], [names], floor=0.005) for image, names in zip(PICTURES, ASKED, strict=True)]
    alone = pd.concat([table for table in alone if len(table)], ignore_index=True)
    pd.testing.assert_frame_equal(alone, all.assign(image=0), atol=1e-3)


def test_out_of_memory_halves_the_batch(loaded, monkeypatch, capsys):
    detector = loaded("owlvit")
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
    twice = loaded("owlvit").detect(PICTURES[:1], [["dog", "dog"]], floor=0.0)
    pd.testing.assert_frame_equal(twice, loaded("owlvit").detect(PICTURES[:1], [["dog"]], floor=0.0))
    assert not twice.duplicated().any()
    for kind in ("owlvit", "detr", "grounding-dino"):
        assert loaded(kind).detect([], []).empty and loaded(kind).detect(PICTURES[:1], [[]]).empty


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_images_with_unequal_numbers_of_names(loaded, kind):
    """Each finds what it finds alone. The stock processor fills the shorter list up with blank texts, and the model
    searches for them, too: it takes a text for a filling where its first token is 0, but every text has a first token,
    "beginning of text" (transformers 5.24). So no batch goes through the stock processor here."""
    detector, image = loaded(kind), PICTURES[0]
    texts = [["a photo of a dog"], ["a photo of a dog", "a photo of a cat"]]
    inputs = detector.processor(text=texts, images=[Image.fromarray(image)] * 2, return_tensors="pt")
    with torch.no_grad():
        filling = detector.model(**inputs).logits[0, :, 1]
    assert filling.max() > -10  # a query that nobody asked, which takes boxes from the dog; left out, it were -3e38
    both = detector.detect([image, image], [["dog"], ["dog", "cat"]], floor=0.0)
    alone = detector.detect([image], [["dog"]], floor=0.0)
    pd.testing.assert_frame_equal(both[both.image == 0], alone, atol=1e-3)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_all_names_of_an_image_are_one_text(loaded, kind, tmp_path):
    """So what else is asked changes a name's boxes, is counted before, and stands in the record."""
    detector, image = loaded(kind), PICTURES[0]
    alone, both = (detector.detect([image], [names], floor=0.0) for names in (["dog"], ["dog", "cat"]))
    assert abs(alone.score[0] - both[both.label == "dog"].score.max()) > 1e-4
    many = ["dog", "Cat", *(f"small {name}" for name in tiny.NAMES)]
    refuses(r"names 'dog. cat. small .*…' have \d+ tokens, but the model reads 256; ask for fewer", detector.detect,
            [image], [many])  # fmt: skip
    refuses("name 'st. bernard': a full stop or question mark ends a name", detector.detect, [image], [["st. bernard"]])
    refuses("vocabulary lacks '犬.'", detector.detect, [image], [["犬"]])
    listed = pd.DataFrame({"prompt_id": [0, 1, 2], "image_index": 0, "subject": "dog", "object": ["cat", "cat", "bed"]})
    folder = tiny_detectors.build(kind, tmp_path / "model")
    record = write_boxes(tmp_path / "boxes.parquet", listed, lambda _: image, {}, detector=folder)
    asked = {"texts": 2, "longest": "dog. bed.", "tokens": 6, "sha256": files.hash_of(["dog. bed.", "dog. cat."])}
    assert record["asked"] == asked and record["query"] == "{name}." and record["detector"]["dtype"] == "float32"
    assert detector.query not in loaded("owlvit").query and not loaded("owlvit").asked([["dog"]], "{name}")


def test_boxes_in_half_precision_say_so(tmp_path):
    """In bfloat16 a box lies on a grid, and the record has the dtype."""
    folder = tiny_detectors.build("detr", tmp_path / "detr")
    exact, coarse = (detectors.load(folder, dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    assert (exact.record["dtype"], coarse.record["dtype"]) == ("float32", "bfloat16")
    boxes = coarse.detect(PICTURES, ASKED, floor=0.0)
    centre = torch.from_numpy(np.float32((boxes.x + boxes.w / 2) / [SIZES[image][1] for image in boxes.image]))
    assert len(boxes) and (centre - centre.bfloat16().float()).abs().max() < 1e-6


def test_unknown_names_and_detectors(loaded, tmp_path):
    with pytest.raises(ValueError, match="does not know 'unicorn'; its labels are person"):
        loaded("rt_detr").detect(PICTURES[:1], [["unicorn", "dog"]])
    with pytest.raises(ValueError, match="tokens, but the model reads 14"):
        loaded("owlvit").detect(PICTURES[:1], [["xylophonistically inclined", "dog"]])
    refuses("2 images but names for 1", loaded("owlvit").detect, PICTURES[:2], [["dog"]])


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('{"model_type": "omdet-turbo"}', "model_type 'omdet-turbo'; detectors are .*sr4g score boxes.csv"),
        ('{"model_type": "detr"}', "numbers its labels .LABEL_0, …. and does not name them; write the names into its"),
        ('{"model_type": "detr", "id2label": {"0": "LABEL_0"}}', "numbers its labels"),
        ('{"model_type": "detr", "id2label": {"0": "dog"}, "use_timm_backbone": true}', "package timm; .*no_timm"),
        ('{"model_type": "rf_detr", "id2label": {"0": "dog"}}', "needs the package torchvision; install that first"),
    ],
)
def test_folders_that_are_no_detector_for_us(tmp_path, monkeypatch, config, why):
    """Each in one line that says what to do, before any weights are fetched."""
    monkeypatch.setattr("sr4g_utils.models.detectors.detector.find_spec", lambda _: None)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=why):
        detectors.load(tmp_path)
