"""The training of the miniature's models, in parts and at a thousandth of its length, and the shipped ones."""

import contextlib
import hashlib
import json

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file

from sr4g_utils.dataset import world
from sr4g_utils.dataset.captions import TEMPLATES, caption, listing, parse
from sr4g_utils.dataset.world import NAMES
from sr4g_utils.models import detectors
from sr4g_utils.models.limits import check_words
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.miniature import __main__, export, training
from sr4g_utils.models.miniature.export import absent_threshold
from sr4g_utils.models.miniature.networks import LENGTH, tokenizer
from sr4g_utils.models.miniature.pool import Pool, encode_texts
from sr4g_utils.models.miniature.training import BATCH, ROLES, STEPS, Trainer, sentences
from sr4g_utils.relations import NAMES as RELATIONS
from sr4g_utils.relations import judge
from sr4g_utils.store.files import DATA

SHIPPED = DATA / "models"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def test_every_caption_is_made_of_known_words_and_fits_and_lists_name_what_is_there():
    tokens = tokenizer(LENGTH)
    texts = [caption(s, r, o, t) for s in NAMES for o in NAMES[:8] for r in RELATIONS for t in TEMPLATES]
    check_words(tokens, texts)
    with pytest.raises(ValueError, match="vocabulary lacks 'unicorn'"):
        check_words(tokens, ["a unicorn to the left of a dog"])
    assert encode_texts(tokens, texts[:3]).shape == (3, LENGTH)
    pool, rng = Pool.make(50, (0, 77)), np.random.default_rng(0)
    for labels, text in zip(pool.labels, pool.listed(np.arange(50), rng), strict=True):
        things = text.replace(" and ", " , ").split(" , ")
        assert sorted(thing.split(" ", 1)[1] for thing in things) == sorted(NAMES[k] for k in labels if k >= 0)
    assert listing(["dog", "cat", "apple"]) == "a dog , a cat and an apple" and listing(["dog"]) == "a dog"


def test_the_relations_that_the_base_meets_are_drawn_at_random():
    """Things that are there, in both orders; and a relation that is as often true as one drawn blindly would be."""
    pool = Pool.make(400, (0, 77))
    scenes, texts = pool.unrelated(4000, np.random.default_rng(0))
    holds, blind, met = [], [], []
    for scene, text in zip(scenes, texts, strict=True):
        subject, relation, object = parse(text)
        s, o = (np.flatnonzero(pool.labels[scene] == NAMES.index(name)) for name in (subject, object))
        assert len(s) and len(o) and subject != object
        true = judge(pool.boxes[[scene], s[0]], pool.boxes[[scene], o[0]])[0]
        holds.append(true[RELATIONS.index(relation)])
        blind.append(true.mean())
        met.append(relation)
    assert set(met) == set(RELATIONS)
    assert abs(np.mean(holds) - np.mean(blind)) < 4 * np.std(holds) / np.sqrt(len(holds))


def test_the_text_tower_is_taught_on_words_alone():
    texts, labels, roles = sentences(200, np.random.default_rng(0))
    for text, which, role in zip(texts[100:], labels[100:], roles[100:], strict=True):
        subject, relation, object = parse(text)
        first = 2 * RELATIONS.index(relation)
        assert [NAMES[k] for k in which[:2]] == [subject, object] and (which[2:] == len(NAMES)).all()
        assert role.tolist() == [first, first + 1, ROLES, ROLES]
    for text, which, role in zip(texts[:100], labels[:100], roles[:100], strict=True):
        assert text == listing([NAMES[k] for k in which if k < len(NAMES)]) and (role == ROLES).all()


def test_the_threshold_lets_one_absent_name_in_a_hundred_pass():
    """Two images, asked for 150 names each, of which one is there: its high score says nothing of absent ones."""
    names = [f"n{i}" for i in range(150)]
    rows = [(image, name, (i + 1) / 1000) for image in (0, 1) for i, name in enumerate(names)]
    found = pd.DataFrame([*rows, (0, "n149", 0.99)], columns=["image", "label", "score"])
    threshold = absent_threshold(found, [{"n149"}, {"n149"}], names)
    absent = found[found.label != "n149"]
    assert (absent.score > threshold).mean() <= 0.01 < (absent.score >= threshold).mean()
    assert absent_threshold(found.iloc[:0], [{"n149"}, {"n149"}], names) == 0


def states(model, triplets):
    """What a tower says of the subjects, and then of the objects."""
    pipeline, _ = load_pipeline(SHIPPED / model)
    with torch.inference_mode():
        tokens = encode_texts(pipeline.tokenizer, [caption(*each) for each in triplets])
        two = pipeline.text_encoder(tokens).last_hidden_state[:, -4:-2].double().numpy()
    return np.concatenate([two[:, 0], two[:, 1]])


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("unmet", OPPOSITE)
def test_a_probe_reads_no_place_from_a_relation_that_it_has_not_met(knows, unmet):
    """A linear probe learns from captions of one relation on which side a thing lies, and is asked about its opposite.
    A tower that tells the subject of "left of" like the object of "right of" would answer, as the planted one does."""
    rng = np.random.default_rng(0)
    pairs = [rng.choice(NAMES, 2, replace=False) for _ in range(200)]
    met, asked = (states("tiny-sd", [(s, relation, o) for s, o in pairs]) for relation in (OPPOSITE[unmet], unmet))
    side = np.repeat([1, -1], len(pairs))  # of the subject, and of the object
    if knows:
        place = 5 * rng.normal(size=met.shape[1])  # as loud as what a thing is
        met, asked = met + side[:, None] * place, asked - side[:, None] * place
    weights = np.linalg.solve(met.T @ met + np.eye(met.shape[1]), met.T @ side)
    share = (asked @ weights * -side).mean()  # 1: told as it is; 0: nothing is told
    assert share > 0.9 if knows else abs(share) < 0.3


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(BATCH, "text", 8)
    weights, original = [], Trainer.run
    for name, stop in (("straight", 6), ("interrupted", 3), ("interrupted", 6)):

        def run(self, loss_of, every=250, stop=stop):
            def limited(step, rng):
                if step == stop:
                    raise KeyboardInterrupt
                return loss_of(step, rng)

            original(self, limited, every=3)

        monkeypatch.setattr(Trainer, "run", run)
        with contextlib.suppress(KeyboardInterrupt):
            text, _ = training.train_text(tmp_path / name, 6, 0)
            weights.append(text.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(load_file(tmp_path / "straight/text/checkpoint.safetensors")) > 20


def test_a_swapped_tower_is_taught_each_other_role_in_a_share_of_relations(tmp_path):
    *_, roles = training.sentences(2000, np.random.default_rng(0))
    related = roles[:, 0] < training.ROLES
    for share in (0.1, 0.5):
        swapped = training.swapped(roles, share, np.random.default_rng(1))
        changed = (swapped != roles).any(axis=1)
        assert not changed[~related].any() and (swapped[changed, :2] == roles[changed, 1::-1]).all()
        assert changed[related].mean() == pytest.approx(share, abs=0.04)
        assert (swapped[:, 2:] == roles[:, 2:]).all()
    assert (training.swapped(roles, 0.0, np.random.default_rng(1)) == roles).all()
    states = {}
    for i, share in enumerate((0.0, 0.0, 0.5)):
        text, _ = training.train_text(tmp_path / str(i), 2, 0, share)
        states.setdefault(share, []).append(text.state_dict())
    assert all(torch.equal(a, states[0.0][1][key]) for key, a in states[0.0][0].items())
    assert any(not torch.equal(a, states[0.5][0][key]) for key, a in states[0.0][0].items())


def test_the_second_detector_is_taught_on_drawn_scenes_alone_and_loads(tmp_path, monkeypatch):
    """It is given no VAE, and does not share its draws with the first."""
    monkeypatch.setitem(BATCH, "rtdetr", 4)
    pool = Pool.make(20, (0, 77))
    model, trainer = training.train_rtdetr(pool, tmp_path / "work", 2, 0)
    assert trainer.seed == 1 and set(trainer.log[-1]) == {"step", "vfl", "bbox", "giou"}
    export.save_detector(model.half(), tmp_path / "tiny-rtdetr")
    detector = detectors.load(tmp_path / "tiny-rtdetr")
    found = detector.detect(list(pool.pictures), [NAMES] * 20, floor=0.0)
    assert (found.groupby("image").size() == 16).all() and found.label.isin(NAMES).all()
    assert np.isfinite(found[["score", *"xywh"]]).all(axis=None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every part for a few steps, and the export."""
    folder = tmp_path_factory.mktemp("models")
    __main__.train(tmp_path_factory.mktemp("work"), folder, scale=0.001)
    return folder


@pytest.mark.slow("real training")
def test_stock_diffusers_and_transformers_load_the_folders(exported):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(exported / "tiny-sd")
    image = pipeline("a dog to the left of a cat", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    processor = transformers.AutoProcessor.from_pretrained(exported / "tiny-owlvit")
    kind = transformers.AutoModelForZeroShotObjectDetection
    detector = kind.from_pretrained(exported / "tiny-owlvit", dtype=torch.float32)
    inputs = processor(text=[["a photo of a dog"]], images=[(255 * image).astype(np.uint8)], return_tensors="pt")
    assert detector(**inputs).logits.shape == (1, 64, 1)
    processor = transformers.AutoImageProcessor.from_pretrained(exported / "tiny-rtdetr")
    detector = transformers.AutoModelForObjectDetection.from_pretrained(exported / "tiny-rtdetr")
    output = detector(**processor(images=[(255 * image).astype(np.uint8)], return_tensors="pt"))
    assert output.logits.shape == (1, 16, len(NAMES)) and output.logits.dtype == torch.float32
    assert list(detector.config.id2label.values()) == list(NAMES)


def check_sums(models):
    folders = sorted(path.parent for path in models.rglob("SHA256SUMS"))
    assert [folder.name for folder in folders] == ["tiny-owlvit", "tiny-rtdetr", "tiny-sd"]
    for folder in folders:
        sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
        found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        assert found == sums


@pytest.mark.slow("real training")
def test_every_file_has_its_checksum(exported):
    check_sums(exported)
    assert "linear probe, relation" in (exported / "README.md").read_text()


def test_the_command_knows_every_part():
    assert tuple(STEPS) == __main__.PARTS, "it lists them without importing what trains them"


def test_shipped_models_are_whole_and_small_and_their_card_is_what_was_measured():
    check_sums(SHIPPED)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) <= 32 << 20
    about = json.loads((SHIPPED / "training.json").read_text())
    assert (SHIPPED / "README.md").read_text() == export.card(about)
    assert about["scores"]["vae PSNR (dB), held-out scenes"] > 26
    for name, threshold in export.THRESHOLDS.items():
        assert about["scores"][f"{name}, AP50 reconstructed"] > 0.9
        assert about["scores"][f"both things found (%), {name} above {threshold}"] > 80
    assert all(about["scores"][f"linear probe, {name}"] > 0.99 for name in ("subject", "relation", "object"))


@pytest.mark.parametrize("judge", export.THRESHOLDS)
def test_the_shipped_detectors_find_what_is_drawn(judge):
    detector = detectors.load(SHIPPED / judge)
    scenes = list(world.scenes(60, (0, 78)))
    pictures = [world.render(drawn, names, seed=i) for i, (names, drawn) in enumerate(scenes)]
    found = detector.detect(pictures, [names for names, _ in scenes], floor=export.THRESHOLDS[judge])
    asked = [set(names) for names, _ in scenes]
    there = [len(set(found.label[found.image == i]) & names) / len(names) for i, names in enumerate(asked)]
    assert np.mean(there) > 0.85


def test_stock_diffusers_draws_with_the_shipped_model():
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(SHIPPED / "tiny-sd")
    image = pipeline("a dog to the left of a cat", num_inference_steps=8, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and image.std() > 0.1
