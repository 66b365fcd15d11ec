"""The stage, as a command, too, and its choices: an honest record, the paper's defaults, and each mistake in a line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pytest
import yaml
from refusals import refuses
from tuning import HELD_OUT, QUICK, distance, drift, tune, weights

from sr4g_utils.__main__ import NOTEBOOK, main
from sr4g_utils.finetuning import loop, nets, stage
from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.log import read_log
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.running import profiles
from sr4g_utils.store.files import ROOT
from sr4g_utils.store.run import Run


def test_a_run_leaves_unets_that_load_a_log_and_an_honest_record(world, tmp_path):
    folder = tmp_path / "run"
    result = tune(world, folder)
    base = load_pipeline(world.models / "v1.4", device="cpu")[0]
    for name in ("best", "last"):
        tuned = load_pipeline(world.models / "v1.4", device="cpu", unet=folder / name)[0]
        assert distance(dict(base.unet.state_dict()), dict(tuned.unet.state_dict())) > 1e-4
        assert "_name_or_path" not in json.loads((folder / name / "config.json").read_text())
    log = read_log(folder)
    assert log.step[log.loss.notna()].tolist() == [1, 2, 3, 4, 5, 6]
    assert log.step[log.OA.notna()].tolist() == [0, 3, 6]
    assert (log.images_per_s.dropna() > 0).all() and (log.eta_s.dropna() >= 0).all() and log.mfu.isna().all()
    assert log.lr.dropna().tolist() == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    assert result["start"]["step"] == 0 and result["best"]["step"] in (3, 6)
    assert result["captions"]["before"] == result["captions"]["after"]  # a square world of the model's size
    assert result["photos"]["unusable"] == 0 and result["choices"]["steps"] == 6 and result["held_out"] == HELD_OUT
    assert not any(str(place) in json.dumps(result) for place in (world.folder, world.models))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(("choices", "message"), [
    ({"learning_rate": 1}, "unknown key 'learning_rate'.*its keys are rules, "),
    ({"steps": "many"}, r"steps must be a whole number, got 'many'"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"caption_dropout": 1.5}, "caption_dropout must be at least 0 and at most 1, got 1.5"),
    ({"schedule": "linear"}, "schedule must be one of constant, cosine, got 'linear'"),
    ({"resolution": 60}, "resolution: 60 is no multiple of 8"),
    ({"held_out": ["unicorn"]}, "no category 'unicorn'"),
    ({"doses": [0, 1, 2, 4, 8], "schedule": "cosine"}, "there are no dosed prompts; set dosed in notebook 02"),
    ({"sampling": {"step": 2}}, "sampling"),
    ({"rules": "coco"}, "rules: unknown rule set 'coco'; choose one of visor, sg2im, sstd"),
    ({"rules": "geneval"}, "rules='geneval' define left of, .* only, not 'inside'"),
    ({"families": []}, "families must be some of"), ({"families": ["scale", "size"]},
     r"families must be some of projective, topological, scale, got \['scale', 'size'\]"),
    ({"doses": [1, 2]}, r"doses must be 5 numbers, one a group, got \[1, 2\]"),
    ({"doses": [0, 2, 8, 32, -1], "schedule": "cosine"}, "doses must be at least 0, got -1"),
    ({"doses": [0, 2, 8, 32, 128]}, "doses are shared out over all steps: take schedule cosine, control none"),
    ({"told": 0.1}, "told is of a control's captions: take control list or shuffled"),
    ({"told": 1.1, "control": "list"}, "told must be at least 0 and at most 1, got 1.1"),
    ({"milestones": [5, 9], "steps": 8}, "milestones: there is no step 9 of 8"),
    ({"noise_levels": "mode"}, "noise_levels must be one of uniform, logit_normal"),
    ({"loss_weights": "none"}, "loss_weights must be one of equal, sigma_sqrt, cosmap"),
    ({"lora_alpha": 8.0}, "lora_alpha needs lora_rank"),
    ({"noise_levels": "uniform", "logit_mean": 1.0}, "logit_mean is of noise_levels logit_normal; leave it out"),
    ({"logit_std": 0.0}, "logit_std must be at least 1e-06 and at most 20, got 0"),
    ({"lora_rank": 4, "lora_base": "bfloat16"}, "lora_base bfloat16 needs precision bfloat16"),
    ({"guidance_embed": 3.5}, "guidance_embed: v1.4 is told no guidance; leave it out"),
    ({"compile": True, "precision": "bfloat16"}, "compile: on a CPU, .* gradients of 0"),
    ({"template": "haiku"}, "template must be one of plain, photo, sentence, got 'haiku'"),
])  # fmt: skip
def test_a_choice_that_cannot_be_is_one_line(world, tmp_path, choices, message):
    with pytest.raises(ValueError, match=message) as caught:
        tune(world, tmp_path / "run", **choices)
    assert "\n" not in str(caught.value)


def test_dosed_prompts_decide_what_is_drawn(world, tmp_path):
    prompts = pd.read_parquet(world.prompts)
    asked = prompts[prompts.in_unseen].head(10)
    dosed = prompts.assign(group=pd.Series(range(10), asked.index, "Int8") % 5, one_image=False)
    dosed.loc[asked.index, "objects"] = "dosed"
    dosed.to_parquet(tmp_path / "dosed.parquet")
    mine = SimpleNamespace(**{**vars(world), "prompts": tmp_path / "dosed.parquet"})
    options = {"schedule": "cosine", "validate_every": 0}
    tune(world, tmp_path / "plain", **options)
    for name, doses in {"lists": [0] * 5, "told": [2] * 5}.items():
        assert tune(mine, tmp_path / name, **options, doses=doses)["choices"]["doses"] == doses
    ends = [weights(tmp_path / name / "last") for name in ("plain", "lists", "told")]
    assert distance(ends[0], ends[1]) > 0 and distance(ends[1], ends[2]) > 0
    refuses("draws of dosed triplets do not fit into", tune, mine, tmp_path / "many", **options, doses=[1_000] * 5)


def test_a_model_that_this_loop_cannot_train_is_named(world, pipeline):
    record = {"id": "it", "class": "SomePipeline", "resolution": [64, 64]}
    with pytest.raises(ValueError, match="it is a SomePipeline; what can be fine-tuned is Stable Diffusion"):
        nets.of(SimpleNamespace(), record, Choices())
    sample = SimpleNamespace(config={"prediction_type": "sample"})
    odd = SimpleNamespace(unet=pipeline.unet, vae=pipeline.vae, vae_scale_factor=8, scheduler=sample)
    refuses("predicts 'sample'", nets.of, odd, record, Choices())
    refuses("noise_levels: it does no flow matching; leave", nets.of, pipeline, record, Choices(noise_levels="uniform"))


def test_every_choice_is_a_parameter_and_declared_once():
    declared = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()}
    own = set(profiles.for_cell(NOTEBOOK, declared)) - {"choices"}
    assert len(own) <= 27 and "choices" not in declared, "the notebook opens with few of them"
    others = {"run_folder", "train_annotations", "train_photos", "model", "detector", "splits", "unseen", "plain_steps"}
    others |= {"allow_loss"}
    assert set(declared) == {*others, *Choices.__struct_fields__} and others < own
    flat, nested = Choices.among(declared), Choices.among(profiles.for_cell(NOTEBOOK, declared))
    assert flat == nested == Choices.among(profiles.for_cell(NOTEBOOK, {name: declared[name] for name in own}))
    assert Choices.among({"choices": {"control": "list"}, "seed": 3, "splits": []}) == Choices(control="list", seed=3)


def test_the_paper_profile_is_the_defaults(tmp_path):
    """Whoever reads the struct reads the paper's run; the profile adds models, photos and what a machine needs."""
    declared = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()}
    section = declared | profiles.load_profile("paper", [], tmp_path)[NOTEBOOK]
    defaults = msgspec.to_builtins(Choices())
    for name in set(defaults) - {"sampling", "micro_batch"}:
        assert section[name] == defaults[name], name
    assert Choices.of({name: section[name] for name in defaults}) and section["splits"] == ["main", "unseen"]


@pytest.fixture
def profile(world, tmp_path):
    """A profile of notebook 03 with a run folder that holds the prompts, as notebook 02 leaves them."""
    section = {
        **QUICK, "steps": 4, "train_annotations": str(world.annotations), "train_photos": str(world.photos),
        "model": str(world.models / "v2.1"), "detector": str(world.models / "owlvit"), "unseen": 4,
        "splits": ["unseen"],
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({NOTEBOOK: section}))
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
    assert main(["finetune", "--profile", str(profile), "--runs", str(tmp_path / "one")]) == 0
    os.chdir(cwd)
    one, two = (tmp_path / where / "tiny" / "artifacts" / "finetune_unseen" for where in ("one", "two"))
    assert drift(one, two, world.models / "v2.1") < 0.01
    a, b = read_log(one), read_log(two)
    np.testing.assert_allclose(a.loss.dropna(), b.loss.dropna(), rtol=1e-4)

    section = profiles.load_profile(str(profile), [], tmp_path / "two" / "tiny")[NOTEBOOK]
    parameters = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()} | section
    stamp = (two / "last" / WEIGHTS).stat().st_mtime_ns
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("it is done already"))
    path, result = stage.stage(Run(tmp_path / "two" / "tiny", NOTEBOOK), "unseen", parameters)
    assert result["processes"] == 2
    assert path == two and len(result["held_out"]) == 4 and (two / "last" / WEIGHTS).stat().st_mtime_ns == stamp


def test_what_is_wrong_is_one_line(profile, tmp_path, capsys):
    where = ["--runs", str(tmp_path / "one")]
    for arguments, message in (
        (["--profile", "coco"], "the profile coco has no section 03_finetuning"),
        (["--profile", "lunch"], "unknown profile 'lunch'"),
        (["--profile", str(profile), "--set", "steps=many"], "--set 03.steps=many: 03_finetuning.steps must be a"),
        (["--profile", str(profile), "--set", "colour=red"], "03_finetuning has no parameter 'colour'"),
    ):
        assert main(["finetune", *where, *arguments]) == 1
        told = capsys.readouterr().err
        assert told.startswith("finetune: ") and message in told and told.count("\n") == 1
