"""The profile ``paper``, all five notebooks, on the CPU: tiny models in the exact layout of the published ones, real
COCO annotations in the official format with their photos. In one process, and fine-tuned by two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny

from sr4g_utils.running.files import ROOT
from sr4g_utils.running.profiles import declared

UNETS = {"base": None, "fine-tuned main": "finetune_main/best", "fine-tuned": "finetune_unseen/best"}


def settings(folder: Path, shared: Path, version: str) -> list[str]:
    """What a user without network says: where everything is; and fewer of everything."""
    excerpt = shared / "coco_excerpt"
    model = tiny.stable_diffusion(folder / version, version)
    detector = tiny.owlvit(folder / "owlvit")
    models = {name: {"model": str(model)} | ({"unet": unet} if unet else {}) for name, unet in UNETS.items()}
    values = {
        "train_annotations": excerpt / "annotations" / "instances_train2017.json",
        "val_annotations": excerpt / "annotations" / "instances_val2017.json",
        "vsr": shared / "vsr" / "vsr_validated.jsonl",
        "train_photos": excerpt / "train2017",
        "val_photos": excerpt / "val2017",
        "detector": detector,
        "resamples": 200,
        "03.model": model,
        "03.steps": 4,
        "03.batch": 8,
        "03.micro_batch": 4,
        "03.warmup": 2,
        "03.validate_every": 2,
        "03.validation_prompts": 14,
        "03.checkpoint_every": 2,
        "03.oa_floor": 0,
        "03.precision": "float32",
        "03.sampling": "{images: 1, steps: 2, batch: 16}",
        "04.models": json.dumps(models),
        "04.per_relation": 1,
        "04.sampling": "{images: 2, steps: 2, batch: 16}",
        "04.dtype": "float32",
        "04.ceiling_per_relation": 2,
        "04.quality_photos": 40,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def mine(setting: str) -> bool:
    """Whether notebook 03 has the parameter, so that the fine-tuning command takes it."""
    scope, _, key = setting.partition("=")[0].rpartition(".")
    return scope in ("", "03") and key in declared("03_finetuning")


def run(*command: object) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize(("version", "processes"), [("v1.4", 1), ("v2.1-base", 1), ("v2.1", 2)])
def test_the_whole_profile_runs_on_real_coco(tmp_path, shared, version, processes):
    where = ["--profile", "paper", "--runs", tmp_path / "runs"]
    values = settings(tmp_path / "models", shared, version)
    if processes > 1:  # fine-tuned by several processes first; notebook 03 finds it done
        run("run_all.py", *where, *values, "--until", "02")
        own = [part for value in values[1::2] if mine(value) for part in ("--set", value)]
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        run(*launch, "-m", "sr4g_utils.finetune", *where, *own)
    run("run_all.py", *where, *values)
    results = tmp_path / "runs" / "paper" / "artifacts" / "results"
    claims = pd.DataFrame(json.loads((results / "claims.json").read_text())["rows"])
    assert len(claims) == 6 and set(claims.verdict) <= {"holds", "fails", "not testable here"}
    found = json.loads((results / "scores.json").read_text())
    assert {row["model"] for row in found["rows"]} == set(UNETS)
    about = found["about"]["models"]["base"]["model"]
    assert about["prediction_type"] == ("v_prediction" if version == "v2.1" else "epsilon")
    assert about["resolution"] == ([96, 96] if version == "v2.1" else [64, 64])
    log = (tmp_path / "runs" / "paper" / "artifacts" / "finetune_main" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 4
    state = tmp_path / "runs" / "paper" / ".state"
    made = [json.loads(path.read_text())["result"] for path in state.glob("finetune_*.stage.json")]
    assert [each["processes"] for each in made] == [processes] * 2
