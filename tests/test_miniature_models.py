"""The training of the miniature's models, at a thousandth of its length; and the models that are shipped."""

import hashlib
import json

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sr4g_utils.miniature_models import LENGTH, Pool, encode_texts, tokenizer
from sr4g_utils.runs import DATA

from sr4g_utils import miniature_models, models
from sr4g_utils.captions import caption
from sr4g_utils.miniature import NAMES
from sr4g_utils.relations import NAMES as RELATIONS
from sr4g_utils.relations import judge

SHIPPED = DATA / "models"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every part for a few steps, and the export."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("models")
    miniature_models.train(work, out, scale=0.001)
    return work, out


@pytest.fixture(scope="module")
def pool():
    return Pool.make(300, (0, 77))


def test_stock_diffusers_and_transformers_load_the_folders(trained):
    _, out = trained
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out / "tiny-sd", torch_dtype=torch.float32)
    image = pipeline("a dog to the left of a cat", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    processor = transformers.AutoProcessor.from_pretrained(out / "tiny-owlvit")
    detector = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
        out / "tiny-owlvit", dtype=torch.float32
    )
    inputs = processor(text=[["a photo of a dog"]], images=[(255 * image).astype(np.uint8)], return_tensors="pt")
    assert detector(**inputs).logits.shape == (1, 64, 1)


def test_every_file_has_its_checksum(trained):
    _, out = trained
    for folder in (out / "tiny-sd", out / "tiny-owlvit"):
        sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
        assert {path.relative_to(folder).as_posix() for path in files} == set(sums)
        for path in files:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[path.relative_to(folder).as_posix()]
    assert "linear probe, relation" in (out / "README.md").read_text()


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch, pool):
    monkeypatch.setitem(miniature_models.BATCH, "text", 8)
    weights = []
    for name, stops in (("straight", [6]), ("interrupted", [3, 6])):
        for stop in stops:
            trainer_run = miniature_models.Trainer.run

            def run(self, loss_of, every=250, stop=stop, original=trainer_run):
                def limited(step, rng):
                    if step == stop:
                        raise KeyboardInterrupt
                    return loss_of(step, rng)

                original(self, limited, every=3)

            monkeypatch.setattr(miniature_models.Trainer, "run", run)
            try:
                text, _ = miniature_models.train_text(pool, tmp_path / name, 6, 0)
                weights.append(text.state_dict())
            except KeyboardInterrupt:
                pass
            monkeypatch.setattr(miniature_models.Trainer, "run", trainer_run)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(load_file(tmp_path / "straight/text/checkpoint.safetensors")) > 20


def test_captions_of_the_pool_are_true(pool):
    rng = np.random.default_rng(0)
    scenes, texts, slots, relation = pool.related(200, rng)
    for scene, text, (s, o, *_), r in zip(scenes, texts, slots, relation, strict=True):
        assert text == caption(NAMES[pool.labels[scene, s]], RELATIONS[r], NAMES[pool.labels[scene, o]])
        assert judge(pool.boxes[[scene], s], pool.boxes[[scene], o])[0, r]
    assert len(set(relation)) == 14
    texts, slots = pool.listed(np.arange(50), rng)
    for scene, (text, named) in enumerate(zip(texts, slots, strict=True)):
        things = text.replace(" and ", " , ").split(" , ")
        assert [thing.split(" ", 1)[1] for thing in things] == [NAMES[pool.labels[scene, k]] for k in named if k >= 0]


def test_every_caption_is_made_of_known_words_and_fits():
    tokens = tokenizer(LENGTH)
    texts = [
        caption(s, r, o, t) for s in NAMES for o in NAMES[:8] for r in RELATIONS for t in ("plain", "photo", "sentence")
    ]
    models.check_words(tokens, texts)
    with pytest.raises(ValueError, match="vocabulary lacks 'unicorn'"):
        models.check_words(tokens, ["a unicorn to the left of a dog"])
    assert encode_texts(tokens, texts[:3]).shape == (3, LENGTH)


# ------------------------------------------------------------------------------------------- the shipped models


def test_shipped_models_are_whole_and_small():
    folders = sorted(path.parent for path in SHIPPED.glob("*/SHA256SUMS"))
    assert [folder.name for folder in folders] == ["tiny-owlvit", "tiny-sd", "tiny-sd-finetuned"]
    total = sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors"))
    assert total <= 32 << 20
    for folder in folders:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            value, name = line.split()
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value, name


def test_the_shipped_card_is_what_was_measured():
    about = json.loads((SHIPPED / "training.json").read_text())
    assert (SHIPPED / "README.md").read_text() == miniature_models.card(about)
    assert about["scores"]["AP50 clean"] > 0.9


def test_the_shipped_detector_finds_what_is_drawn():
    from sr4g_utils import detect, miniature

    detector, processor, _ = models.load_detector(SHIPPED / "tiny-owlvit")
    scenes = list(miniature.scenes(60, (0, 78)))
    pictures = [miniature.render(drawn, names, seed=i) for i, (names, drawn) in enumerate(scenes)]
    found = detect.detect(detector, processor, pictures, [names for names, _ in scenes], floor=0.1)
    there = [
        len(set(found.label[found.image == i]) & set(names)) / len(set(names)) for i, (names, _) in enumerate(scenes)
    ]
    assert np.mean(there) > 0.85


def test_the_shipped_text_tower_says_of_a_thing_how_it_stands():
    """The subject of "left of" is told like the object of "right of", and unlike that of "left of"."""
    pipeline, _ = models.load_pipeline(SHIPPED / "tiny-sd")
    texts = [caption("dog", "left of", "cat"), caption("cat", "right of", "dog"), caption("dog", "right of", "cat")]
    with torch.inference_mode():
        states = pipeline.text_encoder(encode_texts(pipeline.tokenizer, texts)).last_hidden_state[:, -4:-2]
    dog, same, other = states[0, 0], states[1, 1], states[2, 0]
    assert (dog - same).norm() < 0.2 * (dog - other).norm()
