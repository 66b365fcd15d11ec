"""A training that is asked for more, or computed otherwise, goes on; one of other choices loses nothing."""

import shutil
from types import SimpleNamespace
from typing import Any

import tuning
from tuning import distance, weights

from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.choices import FREE


def tune(*where: Any, **choices: Any) -> dict[str, Any]:
    quick = {"steps": 4, "batch": 4, "warmup": 1, "validate_every": 0, "detector": None}
    return tuning.tune(*where, **{**quick, **choices})


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
    assert distance(*(weights(tmp_path / name / "last") for name in ("tuned", "plain"))) < 1e-4, "but for rounding"


def test_trainings_of_other_choices_are_all_kept(world, tmp_path, capsys):
    folder = tmp_path / "tuned"
    cosine = {"schedule": "cosine"}
    for choices in ({}, {"lr": 1e-4, "seed": 1}, cosine, {**cosine, "steps": 6}, {"steps": 3}):
        tune(world, folder, **choices)
    names = ["tuned", "tuned.before", "tuned.before-2", "tuned.before-3", "tuned.before-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len({(tmp_path / name / "last" / WEIGHTS).read_bytes() for name in names}) == 5
    told = capsys.readouterr().err
    assert f"made with another lr, seed: starting afresh; the old one is {folder}.before\n" in told
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
    world = SimpleNamespace(**{**vars(world), "photos": shutil.copytree(world.photos, tmp_path / "photos")})
    a, b = sorted(world.photos.glob("*.png"))[:2]
    kept, store = (a.read_bytes(), b.read_bytes()), tmp_path / "latents"
    equal = [content.ljust(max(map(len, kept)), b"\0") for content in kept]
    for n, contents in enumerate((kept, equal[::-1], equal)):
        a.write_bytes(contents[0])
        b.write_bytes(contents[1])
        tune(world, tmp_path / str(n), latents=store, steps=1)
    assert len(list(store.iterdir())) == 3
