"""What learns, and what its options need."""

import builtins
from typing import Any

import pytest
import torch
from accelerate import tracking
from tuning import tune

from sr4g_utils.models.load import load_pipeline


@pytest.mark.parametrize(("package", "choices"), [
    ("peft", {"lora_rank": 4}), ("bitsandbytes", {"adam_8bit": True}), ("tensorboard", {"track": "tensorboard"}),
])  # fmt: skip
def test_what_an_option_needs_is_said(world, tmp_path, package, choices, monkeypatch):
    own = builtins.__import__

    def without(name: str, scope: Any = None, *rest: Any) -> Any:  # as if it were not installed
        if name.partition(".")[0] == package and str((scope or {}).get("__name__")).startswith("sr4g_utils."):
            raise ImportError(name)
        return own(name, scope, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        tune(world, tmp_path / "run", steps=1, detector=None, **choices)


def test_lora_is_saved_as_a_plain_unet(world, tmp_path):
    tune(world, tmp_path / "run", lora_rank=2)
    base = load_pipeline(world.folder / "v1.4", device="cpu")[0]
    tuned = load_pipeline(world.folder / "v1.4", device="cpu", unet=tmp_path / "run" / "last")[0]
    a, b = dict(base.unet.state_dict()), dict(tuned.unet.state_dict())
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert changed and all(".to_" in name for name in changed)
