"""Fine-tuning as a command and as the stage of notebook 03: one run, found by both."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tuning import QUICK, drift

from sr4g_utils import __main__
from sr4g_utils.finetuning import loop, stage
from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.log import read_log
from sr4g_utils.running import profiles
from sr4g_utils.store.files import ROOT
from sr4g_utils.store.run import Run


@pytest.fixture
def profile(world, tmp_path):
    """A profile of notebook 03 with a run folder that holds the prompts, as notebook 02 leaves them."""
    section = {
        **QUICK, "steps": 4, "train_annotations": str(world.annotations), "train_photos": str(world.photos),
        "model": str(world.models / "v2.1"), "detector": str(world.models / "owlvit"), "unseen": 4,
        "splits": ["unseen"],
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({__main__.NOTEBOOK: section}))
    for where in ("one", "two"):
        artifacts = tmp_path / where / "tiny" / "artifacts"
        artifacts.mkdir(parents=True)
        shutil.copy(world.prompts, artifacts)
    return tmp_path / "tiny.yaml"


@pytest.mark.slow("real training")
def test_two_processes_train_what_one_does_and_the_notebook_finds_it(world, profile, tmp_path, monkeypatch):
    # on a CPU `accelerate launch` starts one process, whatever it is asked for; torch's own launcher starts two
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = ["-m", "sr4g_utils", "finetune", "--profile", str(profile), "--runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *module, str(tmp_path / "two")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best at step" in done.stdout and done.stdout.count("artifacts/finetune_unseen") == 1

    cwd = Path.cwd()
    assert __main__.main(["finetune", "--profile", str(profile), "--runs", str(tmp_path / "one")]) == 0
    os.chdir(cwd)
    one, two = (tmp_path / where / "tiny" / "artifacts" / "finetune_unseen" for where in ("one", "two"))
    assert drift(one, two, world.models / "v2.1") < 0.01
    a, b = read_log(one), read_log(two)
    np.testing.assert_allclose(a.loss.dropna(), b.loss.dropna(), rtol=1e-4)

    section = profiles.load_profile(str(profile), [], tmp_path / "two" / "tiny")[__main__.NOTEBOOK]
    parameters = {name: value for name, (_, value) in profiles.declared(__main__.NOTEBOOK).items()} | section
    stamp = (two / "last" / WEIGHTS).stat().st_mtime_ns
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("it is done already"))
    path, result = stage.stage(Run(tmp_path / "two" / "tiny", __main__.NOTEBOOK), "unseen", parameters)
    assert result["processes"] == 2
    assert path == two and len(result["held_out"]) == 4 and (two / "last" / WEIGHTS).stat().st_mtime_ns == stamp


def test_what_is_wrong_is_one_line(profile, tmp_path, capsys):
    where = ["--runs", str(tmp_path / "one")]
    for arguments, message in (
        (["--profile", "coco"], "the profile coco has no section 03_finetuning"),
        (["--profile", "lunch"], "unknown profile 'lunch'"),
        (["--profile", str(profile), "--set", "steps=many"], "--set 03.steps=many: 03_finetuning.steps must be int"),
        (["--profile", str(profile), "--set", "colour=red"], "03_finetuning has no parameter 'colour'"),
    ):
        assert __main__.main(["finetune", *where, *arguments]) == 1
        told = capsys.readouterr().err
        assert told.startswith("finetune: ") and message in told and told.count("\n") == 1
