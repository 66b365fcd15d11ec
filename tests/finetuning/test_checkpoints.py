"""What survives a kill, and when a run starts afresh."""

import json
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tuning import HELD_OUT, QUICK, distance, tune, weights

from sr4g_utils.evaluation.scores import MAIN
from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.log import read_log
from sr4g_utils.finetuning.stage import finetune
from sr4g_utils.store.files import digest


def test_a_finished_run_is_not_run_again(world, tmp_path):
    folder = tmp_path / "run"
    result = tune(world, folder)
    before = digest(folder / "log.jsonl"), (folder / "last" / WEIGHTS).stat().st_mtime_ns
    assert tune(world, folder, checkpoint_every=5) == result  # how often to save is no part of what a run is
    assert before == (digest(folder / "log.jsonl"), (folder / "last" / WEIGHTS).stat().st_mtime_ns)


def test_another_configuration_starts_afresh_and_says_so(world, tmp_path, capsys):
    tune(world, tmp_path / "run", steps=2, detector=None)
    old = weights(tmp_path / "run" / "last")
    tune(world, tmp_path / "run", steps=2, detector=None, lr=2e-3, seed=1)
    assert "run was made with another lr, seed: starting afresh" in capsys.readouterr().err
    before, now = (weights(tmp_path / name / "last") for name in ("run.before", "run"))
    assert distance(before, old) == 0 < distance(now, old)


SCRIPT = """
import json, os, signal, sys
from sr4g_utils.finetuning import checkpoints, log, stage
where, count = sys.argv[2], int(sys.argv[3])
of = log.Log if where == "line" else checkpoints
real = getattr(of, where)
def deadly(*arguments):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(of, where, deadly)
stage.finetune(**json.loads(sys.argv[1]))
"""


@pytest.mark.slow("kills")
def test_killed_runs_end_like_one_that_was_not(world, tmp_path):
    """SIGKILL while a checkpoint is written, then between two steps: weights and log end bit for bit the same."""
    longer = {"steps": 12, "validate_every": 6, "checkpoint_every": 3}
    tune(world, tmp_path / "calm", **longer)
    arguments = {
        **QUICK, **longer, "folder": str(tmp_path / "killed"), "annotations": str(world.annotations),
        "held_out": HELD_OUT, "photos": str(world.photos), "prompts": str(world.prompts),
        "model": str(world.folder / "v1.4"), "detector": str(world.folder / "owlvit"),
        "latents": str(world.folder / "latents"),
    }  # fmt: skip
    log, checkpoints = tmp_path / "killed" / "log.jsonl", tmp_path / "killed" / "checkpoints"
    for where, count in (("_sync", 9), ("line", 5)):  # in the second checkpoint; at the fifth line after the first
        command = [sys.executable, "-c", SCRIPT, json.dumps(arguments), where, str(count)]
        died = subprocess.run(command, capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
        if where == "_sync":
            begun, whole = sorted(path.name for path in checkpoints.iterdir())
            assert begun.startswith(".step-00000006.") and begun.endswith(".partial") and whole == "step-00000003"
    with log.open("a") as file:
        file.write('{"step": 9, "lo')  # as a kill may leave a line
    finetune(**arguments)
    last = [f"checkpoints/step-00000012/{name}.safetensors" for name in ("weights", "ema", "optimiser")]
    for name in (f"best/{WEIGHTS}", f"last/{WEIGHTS}", *last):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    told = ["step", "loss", "lr", "grad_norm", *MAIN, "both_found"]  # all but the times
    calm, killed = (read_log(tmp_path / run)[told] for run in ("calm", "killed"))
    pd.testing.assert_frame_equal(calm, killed)
    assert not list(checkpoints.glob(".*"))


def test_8_bit_adam_resumes_where_it_was(world, tmp_path):
    pytest.importorskip("bitsandbytes", reason="8-bit Adam is optional; pip install bitsandbytes")
    tune(world, tmp_path / "whole", detector=None, adam_8bit=True, checkpoint_every=3)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    for path in ("checkpoints/step-00000006", "result.json", "last"):
        path = tmp_path / "half" / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tune(world, tmp_path / "half", detector=None, adam_8bit=True, checkpoint_every=3)
    whole, half = (weights(tmp_path / name / "last") for name in ("whole", "half"))
    assert distance(whole, half) == 0
    state = load_file(tmp_path / "whole" / "checkpoints" / "step-00000006" / "optimiser.safetensors")
    assert {value.dtype for name, value in state.items() if name.endswith("state1")} >= {torch.uint8}
