"""A training that is asked for more, or computed otherwise, goes on; one of other choices loses nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import tuning
from safetensors.torch import load_file

from sr4g_utils.dataset import world as dataset_world
from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.choices import FREE
from sr4g_utils.finetuning.stage import finetune

QUICK: dict[str, Any] = {**tuning.QUICK, "steps": 4, "batch": 4, "warmup": 1, "validate_every": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    at = tmp_path_factory.mktemp("world")
    dataset_world.write_annotations(at / "train.json", split="train", images=24)
    dataset_world.write_photos(at / "photos", at / "train.json", split="train")
    tiny.stable_diffusion(at / "sd")
    return SimpleNamespace(at=at)


def tune(world: SimpleNamespace, folder: Path, **choices: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    given = {**QUICK, "model": str(world.at / "sd"), "latents": world.at / "latents", **choices}
    return finetune(folder, world.at / "train.json", world.at / "photos", **given)


def test_more_steps_of_a_constant_schedule_go_on_and_end_with_the_bytes_of_a_long_run(world, tmp_path, capsys):
    tune(world, tmp_path / "short")
    result = tune(world, tmp_path / "short", steps=8)
    assert "short: going on from step 4\n" in capsys.readouterr().err and result["choices"]["steps"] == 8
    tune(world, tmp_path / "long", steps=8)
    for name in ("last", "best"):
        assert (tmp_path / "short" / name / WEIGHTS).read_bytes() == (tmp_path / "long" / name / WEIGHTS).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long", "short"]
    assert tune(world, tmp_path / "short", steps=8) == result


def test_what_is_only_computed_otherwise_goes_on(world, tmp_path, capsys):
    first = tune(world, tmp_path / "tuned")
    otherwise = {"micro_batch": 2, "gradient_checkpointing": True, "channels_last": False, "text_cache_mb": 0}
    assert {*otherwise} < {*FREE}
    assert tune(world, tmp_path / "tuned", **otherwise) == first, "it is finished"
    tune(world, tmp_path / "tuned", steps=6, **otherwise)
    assert "going on from step 4" in capsys.readouterr().err
    tune(world, tmp_path / "plain", steps=6)
    one, two = (load_file(tmp_path / name / "last" / WEIGHTS) for name in ("tuned", "plain"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4, "but for rounding"


def test_trainings_of_other_choices_are_all_kept(world, tmp_path, capsys):
    folder = tmp_path / "tuned"
    for choices in ({}, {"lr": 1e-4}, {"schedule": "cosine"}, {"schedule": "cosine", "steps": 6}, {"steps": 3}):
        tune(world, folder, **choices)
    names = ["tuned", "tuned.before", "tuned.before-2", "tuned.before-3", "tuned.before-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len({(tmp_path / name / "last" / WEIGHTS).read_bytes() for name in names}) == 5
    told = capsys.readouterr().err
    assert f"made with another lr: starting afresh; the old one is {folder}.before\n" in told
    older = f"starting afresh; the old one is {folder}.before-3 (and older ones: {folder}.before, "
    assert f"with another steps: {older}" in told


def test_the_users_files_beside_the_checkpoints_stay(world, tmp_path):
    folder = tmp_path / "tuned"
    (folder / "checkpoints" / "step-notes").mkdir(parents=True)
    (folder / "checkpoints" / ".mine.partial").mkdir()
    (folder / "state.json").write_text('{"of": "another tool"}')
    tune(world, folder, keep_checkpoints=1)
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    assert found == {"step-notes", ".mine.partial", "step-00000004"} and (folder / "state.json").is_file()


def test_photos_replaced_by_others_of_equal_size_are_encoded_again(world, tmp_path):
    a, b = sorted((world.at / "photos").glob("*.png"))[:2]
    kept, store = (a.read_bytes(), b.read_bytes()), tmp_path / "latents"
    equal = [content.ljust(max(map(len, kept)), b"\0") for content in kept]
    for n, contents in enumerate((kept, equal[::-1], equal)):
        a.write_bytes(contents[0])
        b.write_bytes(contents[1])
        tune(world, tmp_path / str(n), latents=store, steps=1)
    assert len(list(store.iterdir())) == 3
    a.write_bytes(kept[0])
    b.write_bytes(kept[1])
