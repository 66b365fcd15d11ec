"""The training of the miniature's models, at a thousandth of its length: what stock libraries make of it."""

import hashlib

import diffusers
import numpy as np
import pytest
import torch
import transformers

from sr4g_utils.models.miniature import __main__
from sr4g_utils.models.miniature.training import STEPS


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


@pytest.mark.slow("real training")
def test_every_file_has_its_checksum(exported):
    for folder in (exported / "tiny-sd", exported / "tiny-owlvit"):
        sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
        assert {path.relative_to(folder).as_posix() for path in files} == set(sums)
        for path in files:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[path.relative_to(folder).as_posix()]
    assert "linear probe, relation" in (exported / "README.md").read_text()


def test_the_command_knows_every_part():
    """It lists them without importing what trains them."""
    assert tuple(STEPS) == __main__.PARTS
