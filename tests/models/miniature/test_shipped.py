"""The models that are shipped in ``data/models``."""

import hashlib
import json

import diffusers
import numpy as np

from sr4g_utils.dataset import world
from sr4g_utils.models import detectors
from sr4g_utils.models.miniature import export
from sr4g_utils.store.files import DATA

SHIPPED = DATA / "models"


def test_shipped_models_are_whole_and_small_and_their_card_is_what_was_measured():
    folders = sorted(path.parent for path in SHIPPED.rglob("SHA256SUMS"))
    assert [folder.name for folder in folders] == ["tiny-owlvit", "tiny-sd"]
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) <= 32 << 20
    for folder in folders:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            value, name = line.split()
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value, name
    about = json.loads((SHIPPED / "training.json").read_text())
    assert (SHIPPED / "README.md").read_text() == export.card(about)
    assert about["scores"]["vae PSNR (dB), held-out scenes"] > 26 and about["scores"]["AP50 reconstructed"] > 0.9
    assert about["scores"]["both things found (%), threshold 0.18"] > 80
    assert all(about["scores"][f"linear probe, {name}"] > 0.99 for name in ("subject", "relation", "object"))


def test_the_shipped_detector_finds_what_is_drawn():
    detector = detectors.load(SHIPPED / "tiny-owlvit")
    scenes = list(world.scenes(60, (0, 78)))
    pictures = [world.render(drawn, names, seed=i) for i, (names, drawn) in enumerate(scenes)]
    found = detector.detect(pictures, [names for names, _ in scenes], floor=0.1)
    there = [
        len(set(found.label[found.image == i]) & set(names)) / len(set(names)) for i, (names, _) in enumerate(scenes)
    ]
    assert np.mean(there) > 0.85


def test_stock_diffusers_draws_with_the_shipped_model():
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(SHIPPED / "tiny-sd")
    image = pipeline("a dog to the left of a cat", num_inference_steps=8, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and image.std() > 0.1
