"""What the text tower and the base of the parsing miniature know, and what they do not."""

import json

import numpy as np
import pytest
import torch

from sr4g_utils.captions import caption
from sr4g_utils.miniature import export
from sr4g_utils.miniature.pool import encode_texts
from sr4g_utils.miniature.world import NAMES
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.running.files import DATA

SHIPPED = DATA / "models" / "parsing"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def states(model, triplets):
    """What a tower says of the subjects, and then of the objects."""
    pipeline, _ = load_pipeline(model)
    with torch.inference_mode():
        tokens = encode_texts(pipeline.tokenizer, [caption(*each) for each in triplets])
        two = pipeline.text_encoder(tokens).last_hidden_state[:, -4:-2].double().numpy()
    return np.concatenate([two[:, 0], two[:, 1]])


def test_the_card_is_what_was_measured():
    about = json.loads((SHIPPED / "training.json").read_text())
    assert (SHIPPED / "README.md").read_text() == export.card(about)
    assert about["scores"]["vae PSNR (dB), held-out scenes"] > 26
    assert all(about["scores"][f"linear probe, {name}"] > 0.99 for name in ("subject", "relation", "object"))


@pytest.mark.parametrize(("model", "knows"), [("tiny-sd", True), ("parsing/tiny-sd", False)])
@pytest.mark.parametrize("unmet", OPPOSITE)
def test_a_probe_reads_no_place_from_a_relation_that_it_has_not_met(model, knows, unmet):
    """A linear probe learns from captions of one relation on which side a thing lies, and is asked about its opposite.
    The former tower tells the subject of "left of" like the object of "right of"; this one has no such knowledge."""
    rng = np.random.default_rng(0)
    pairs = [rng.choice(NAMES, 2, replace=False) for _ in range(200)]
    met, asked = (
        states(DATA / "models" / model, [(s, relation, o) for s, o in pairs]) for relation in (OPPOSITE[unmet], unmet)
    )
    side = np.repeat([1, -1], len(pairs))  # of the subject, and of the object
    weights = np.linalg.solve(met.T @ met + np.eye(met.shape[1]), met.T @ side)
    share = (asked @ weights * -side).mean()  # 1: told as it is; 0: nothing is told
    assert share > 0.9 if knows else abs(share) < 0.3
