"""What a profile may say of sampling."""

import pytest

from sr4g_utils.models.sampling import Sampling


@pytest.mark.parametrize(("values", "message"), [
    ({"step": 3}, "unknown field `step`; its keys are images, steps"), ({"steps": "many"}, "Expected `int`, got `str`"),
    ({"images": 0}, "images must be at least 1, got 0"),
])  # fmt: skip
def test_wrong_sampling(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling.of(values)


def test_right_sampling_is_completed():
    made = Sampling.of({"steps": 3, "guidance": 5})
    assert made == Sampling(steps=3, guidance=5.0) and Sampling.of(made) is made and made.images == 4
