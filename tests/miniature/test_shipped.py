"""The models that are shipped in ``data/models``."""

import hashlib
import json

import numpy as np
import torch

from sr4g_utils import detectors
from sr4g_utils.captions import caption
from sr4g_utils.miniature import world
from sr4g_utils.miniature.pool import encode_texts
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.running.files import DATA

SHIPPED = DATA / "models"


def test_shipped_models_are_whole_and_small():
    folders = sorted(path.parent for path in SHIPPED.rglob("SHA256SUMS"))
    names = [folder.relative_to(SHIPPED).as_posix() for folder in folders]
    assert names == ["parsing/tiny-sd", "tiny-owlvit", "tiny-sd", "tiny-sd-finetuned"]
    for kind in ("parsing/**/", "tiny-*/**/"):  # the base that parses, and the others
        assert sum(path.stat().st_size for path in SHIPPED.glob(f"{kind}*.safetensors")) <= 32 << 20
    for folder in folders:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            value, name = line.split()
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value, name


def test_the_shipped_card_is_what_was_measured():
    about, card = json.loads((SHIPPED / "training.json").read_text()), (SHIPPED / "README.md").read_text()
    for name, value in about["scores"].items():
        assert f"| {name} | {value:.3f} |" in card
    for name, part in about["parts"].items():
        assert f"| {name} | {part['parameters']:,} | {part['steps']:,} |" in card
    assert about["scores"]["AP50 clean"] > 0.9


def test_the_shipped_detector_finds_what_is_drawn():
    detector = detectors.load(SHIPPED / "tiny-owlvit")
    scenes = list(world.scenes(60, (0, 78)))
    pictures = [world.render(drawn, names, seed=i) for i, (names, drawn) in enumerate(scenes)]
    found = detector.detect(pictures, [names for names, _ in scenes], floor=0.1)
    there = [
        len(set(found.label[found.image == i]) & set(names)) / len(set(names)) for i, (names, _) in enumerate(scenes)
    ]
    assert np.mean(there) > 0.85


def test_the_shipped_text_tower_says_of_a_thing_how_it_stands():
    """The subject of "left of" is told like the object of "right of", and unlike that of "left of"."""
    pipeline, _ = load_pipeline(SHIPPED / "tiny-sd")
    texts = [caption("dog", "left of", "cat"), caption("cat", "right of", "dog"), caption("dog", "right of", "cat")]
    with torch.inference_mode():
        states = pipeline.text_encoder(encode_texts(pipeline.tokenizer, texts)).last_hidden_state[:, -4:-2]
    dog, same, other = states[0, 0], states[1, 1], states[2, 0]
    assert (dog - same).norm() < 0.2 * (dog - other).norm()
