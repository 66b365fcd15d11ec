"""Images of a prompt set as a stage and as a command: resuming, shards, kills."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pretend import five_prompts
from processes import kill, tree

from sr4g_utils.__main__ import main
from sr4g_utils.dataset.prompt_sets import SETS
from sr4g_utils.evaluation import generate, images
from sr4g_utils.models import diffusion, load
from sr4g_utils.models.sampling import BEHAVIOUR, Sampling

FAST = {"images": 2, "steps": 2, "batch": 4, "group": 2}


@pytest.fixture
def file(tmp_path):
    five_prompts().to_parquet(tmp_path / "prompts.parquet")
    return tmp_path / "prompts.parquet"


def test_write_images_and_others_for_other_behaviour(models, file, tmp_path, monkeypatch, capsys):
    record = generate.write_images(tmp_path / "images", file, model=str(models / "v1.4"), sampling=FAST)
    assert record == json.loads((tmp_path / "images" / "record.json").read_text())
    assert record["model"]["prediction_type"] == "epsilon" and record["sampling"]["steps"] == 2
    assert record["prompts"]["number"] == 5 and record["behaviour"] == BEHAVIOUR
    assert str(tmp_path) not in json.dumps(record)
    pipeline, _ = load.load_pipeline(models / "v1.4", device="cpu")
    drawn = diffusion.sample(pipeline, five_prompts(), Sampling(**FAST))
    expected = {(id, index): image for id, index, image in drawn}
    read = list(images.read_images(tmp_path / "images"))
    assert [(row["prompt_id"], row["image_index"]) for row, _ in read] == list(expected)
    assert all(np.array_equal(image, expected[row["prompt_id"], row["image_index"]]) for row, image in read)
    assert read[0][0]["caption"] == "a dog to the left of a cat"
    monkeypatch.setattr(generate, "BEHAVIOUR", BEHAVIOUR + 1)
    generate.write_images(tmp_path / "images", file, model=str(models / "v1.4"), sampling=FAST)
    assert "another configuration (behaviour): starting afresh" in capsys.readouterr().err


def test_interrupted_and_shared_runs_end_with_the_same_bytes(models, file, tmp_path, monkeypatch, capsys):
    options = {"model": str(models / "v2.1"), "sampling": FAST}
    generate.write_images(tmp_path / "whole", file, **options)
    own, calls = generate._write, []

    def stops(path: Path, image: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        own(path, image)

    monkeypatch.setattr(generate, "_write", stops)
    with pytest.raises(OSError, match="No space"):
        generate.write_images(tmp_path / "resumed", file, **options)
    with pytest.raises(ValueError, match="run the generation again to finish it"):
        images.list_images(tmp_path / "resumed")
    generate.write_images(tmp_path / "resumed", file, **options)
    assert len(calls) == 8 + 6  # the second group of two again, and the third
    assert tree(tmp_path / "resumed") == tree(tmp_path / "whole")
    for shard in (2, 0, 1):
        generate.write_images(tmp_path / "shared", file, **options, shard=shard, shards=3)
    assert tree(tmp_path / "shared") == tree(tmp_path / "whole")
    # nothing is made again
    calls.clear()
    generate.write_images(tmp_path / "shared", file, **options)
    assert not calls
    monkeypatch.setattr(generate, "_write", own)
    # another configuration starts afresh, but not under the feet of other shards
    other = {**options, "sampling": {**FAST, "seed": 1}}
    with pytest.raises(ValueError, match=r"another configuration \(sampling\); move it away first"):
        generate.write_images(tmp_path / "shared", file, **other, shard=0, shards=3)
    generate.write_images(tmp_path / "shared", file, **other)
    assert "another configuration (sampling): starting afresh" in capsys.readouterr().err
    new, old = tree(tmp_path / "shared"), tree(tmp_path / "whole")
    assert new.keys() == old.keys() and all(new[k] != old[k] for k in new if k.endswith("webp"))
    with pytest.raises(ValueError, match="shards are numbered from 0 to 1"):
        generate.write_images(tmp_path / "shared", file, **options, shard=2, shards=2)


@pytest.mark.slow("kills")
def test_killed_in_the_middle_and_started_again_it_leaves_the_bytes_of_the_undisturbed_run(models, file, tmp_path):
    settings = [f"{key}={value}" for key, value in FAST.items()]
    command = [sys.executable, "-m", "sr4g_utils", "generate", str(tmp_path / "killed"), "--prompts", str(file)]
    command += ["--model", str(models / "v1.4"), *(word for each in settings for word in ("--set", each))]
    kill(command, lambda: len(list((tmp_path / "killed").rglob("*.webp"))) >= 5)
    for name in ("killed", "whole"):
        generate.write_images(tmp_path / name, file, model=str(models / "v1.4"), sampling=FAST)
    made, expected = (tree(tmp_path / name) for name in ("killed", "whole"))
    assert {k: v for k, v in made.items() if ".partial" not in k} == expected


def test_the_command_says_what_is_wrong(models, tmp_path, capsys):
    command = [str(tmp_path / "images"), "--model", str(models / "v1.4"), "--prompts"]
    assert main(["generate", *command, "nothing"]) == 1
    told = f"generate: prompts: 'nothing' is neither a file nor one of {', '.join(SETS)}\n"
    assert capsys.readouterr().err == told
    assert main(["generate", *command, "sr2d", "--set", "steps=many"]) == 1
    assert "steps must be a whole number, got 'many'" in capsys.readouterr().err
