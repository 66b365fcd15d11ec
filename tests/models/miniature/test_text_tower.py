"""What the miniature's text tower knows, and what it does not."""

import numpy as np
import pytest
import torch

from sr4g_utils.dataset.captions import caption
from sr4g_utils.dataset.world import NAMES
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.miniature.pool import encode_texts
from sr4g_utils.store.files import DATA

SHIPPED = DATA / "models"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def states(model, triplets):
    """What a tower says of the subjects, and then of the objects."""
    pipeline, _ = load_pipeline(model)
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
    met, asked = (
        states(SHIPPED / "tiny-sd", [(s, relation, o) for s, o in pairs]) for relation in (OPPOSITE[unmet], unmet)
    )
    side = np.repeat([1, -1], len(pairs))  # of the subject, and of the object
    if knows:
        place = 5 * rng.normal(size=met.shape[1])  # as loud as what a thing is
        met, asked = met + side[:, None] * place, asked - side[:, None] * place
    weights = np.linalg.solve(met.T @ met + np.eye(met.shape[1]), met.T @ side)
    share = (asked @ weights * -side).mean()  # 1: told as it is; 0: nothing is told
    assert share > 0.9 if knows else abs(share) < 0.3
