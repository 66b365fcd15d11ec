"""The loop of fine-tuning: its loss, learning rate and options, what validates, and what a run leaves."""

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator, tracking
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tuning import HELD_OUT, distance, drift, net_of, tune, weights

from sr4g_utils.dataset import prompts
from sr4g_utils.evaluation import scores as evaluation_scores
from sr4g_utils.evaluation import verdicts
from sr4g_utils.evaluation.scores import MAIN
from sr4g_utils.finetuning import loop
from sr4g_utils.finetuning.batches import Sampler
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.loop import Validator, rank
from sr4g_utils.finetuning.processes import Ddpm
from sr4g_utils.models import detectors, diffusion
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.models.sampling import Sampling


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_definition(kind, captions, encoded, pipeline, net):
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
    process, batch = Ddpm(schedule, Choices(), "it"), Sampler(captions, encoded, net, size=5)(0, range(5))
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    alpha = alphas[batch.timestep][:, None, None, None]
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    target = batch.noise if kind == "epsilon" else alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
    seen = {}

    def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.update(x=x)
        return target + 0.5

    loss = process.loss(predict, batch)
    torch.testing.assert_close(seen["x"], noisy, rtol=1e-4, atol=1e-4)
    assert loss.item() == pytest.approx(0.25, rel=1e-4)  # of a prediction that is off by one half everywhere


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from(["constant", "cosine"]))
def test_the_learning_rate_rises_and_then_stays_or_falls(warmup, steps, schedule):
    c = Choices(steps=steps, warmup=warmup, schedule=schedule, lr=2.0)
    rates = [loop.learning_rate(step, c) for step in range(steps)]
    assert min(rates) >= 0 and max(rates) <= 2 + 1e-12
    assert (np.diff(rates[:warmup]) > 0).all() and (np.diff(rates[warmup:]) <= 1e-12).all()
    if steps > warmup:
        assert rates[warmup] == 2.0
        assert schedule == "cosine" or rates[-1] == 2.0


@pytest.mark.parametrize("model", ["v1.4", "v2.1"])
def test_accumulation_changes_nothing_but_rounding(world, tmp_path, model):
    for name, options in {"whole": {}, "parts": {"micro_batch": 2, "gradient_checkpointing": True}}.items():
        tune(world, tmp_path / name, model, steps=3, detector=None, **options)
    assert drift(tmp_path / "whole", tmp_path / "parts", world.models / model) < 0.01


def test_without_a_detector_the_last_is_the_best(world, tmp_path):
    result = tune(world, tmp_path / "run", steps=2, detector=None, ema=0.0, schedule="cosine")
    assert distance(weights(tmp_path / "run" / "last"), weights(tmp_path / "run" / "best")) == 0
    assert result["best"] == {"step": 2} and result["start"] is None


def test_the_average_is_kept_when_there_is_one(world, tmp_path):
    tune(world, tmp_path / "run", steps=3, detector=None, ema=0.9999, checkpoint_every=1, keep_checkpoints=3)
    mean = None
    for step in range(3):
        now = load_file(tmp_path / "run" / "checkpoints" / f"step-{step + 1:08}" / "weights.safetensors")
        start = load_pipeline(world.models / "v1.4", device="cpu")[0].unet.state_dict()
        decay = (1 + step) / (10 + step)
        mean = {name: (start if mean is None else mean)[name] * decay + now[name] * (1 - decay) for name in now}
    assert distance(mean, weights(tmp_path / "run" / "last")) < 1e-6


def test_the_best_is_by_visor_cond_among_those_that_still_draw(world, tmp_path, monkeypatch):
    scripted = iter([(80, 50), (79, 55), (40, 90), (75, 60), (78, 58)])  # OA and VISOR_Cond at steps 0, 1, 2, 3, 4

    def validate(*_: Any, **__: Any) -> dict[str, Any]:
        oa, cond = next(scripted)
        return {"OA": float(oa), "VISOR": oa * cond / 100, "VISOR_Cond": float(cond), "images": 9, "both_found": 7}

    monkeypatch.setattr(loop.Validator, "__call__", validate)
    result = tune(world, tmp_path / "run", steps=4, validate_every=1, keep_checkpoints=9)
    assert result["best"]["step"] == 3 and result["start"]["OA"] == 80
    at_best = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "ema.safetensors")
    assert distance(at_best, weights(tmp_path / "run" / "best")) == 0


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_the_run_and_names_the_last_good_checkpoint(world, tmp_path, monkeypatch, where):
    real, calls = loop.diffusion_loss, iter(range(100))

    def loss(network: Any, *rest: Any) -> torch.Tensor:
        good = real(network, *rest)
        if next(calls) < 4:
            return good
        if where == "loss":
            return good * float("nan")
        return good + 0 * torch.sqrt(torch.zeros((), requires_grad=True) * next(network.parameters()).sum() * 0)

    monkeypatch.setattr(loop, "diffusion_loss", loss)
    with pytest.raises(FloatingPointError, match=r"step 5: .*nan.* last good checkpoint is .*step-00000004") as caught:
        tune(world, tmp_path / "run", detector=None)
    named = Path(str(caught.value).split("checkpoint is ")[1].split(". Try")[0])
    good = load_file(named / "weights.safetensors")
    assert all(torch.isfinite(weight).all() for weight in good.values())
    monkeypatch.setattr(loop, "diffusion_loss", real)
    assert tune(world, tmp_path / "run", detector=None)["best"]["step"] == 6  # and from there it can go on


@pytest.fixture
def other_precision():
    """accelerate keeps one precision per process; a test that wants another must say so."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_bfloat16_arithmetic_on_float32_weights(world, tmp_path, other_precision):
    result = tune(world, tmp_path / "run", steps=3, precision="bfloat16")
    assert np.isfinite(result["loss_last"]) and result["start"]["images"] == 14
    assert {weight.dtype for weight in weights(tmp_path / "run" / "last").values()} == {torch.float32}
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "optimiser.safetensors")
    assert {state.dtype for state in saved.values()} == {torch.float32}


def test_milestones_are_kept_as_they_were(world, tmp_path):
    options = {"steps": 4, "detector": None, "checkpoint_every": 1, "keep_checkpoints": 9}
    tune(world, tmp_path / "run", milestones=[2, 4], **options)
    for step in (2, 4):
        kept = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08}" / "ema.safetensors")
        assert distance(kept, weights(tmp_path / "run" / f"step-{step}")) == 0
    assert distance(weights(tmp_path / "run" / "step-2"), weights(tmp_path / "run" / "last")) > 0


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


def test_finding_both_objects_comes_first_and_then_visor_cond():
    start = {"OA": 80.0}
    assert rank({"OA": 0.0, "VISOR_Cond": None}, start, 0.9) < rank({"OA": 1.0, "VISOR_Cond": 0.0}, start, 0.9)
    assert rank({"OA": 71.0, "VISOR_Cond": 99.0}, start, 0.9) < rank({"OA": 72.0, "VISOR_Cond": 1.0}, start, 0.9)
    assert rank({"OA": 90.0, "VISOR_Cond": 50.0}, start, 0.9) < rank({"OA": 72.0, "VISOR_Cond": 51.0}, start, 0.9)
    assert rank({"OA": 1.0, "VISOR_Cond": 2.0}, None, 0.9)[0]  # nothing to compare with


def parts(world: SimpleNamespace, pipeline: Any, **choices: Any) -> tuple:
    """Prompts, a detector, and a validator of both."""
    asked = prompts.validation_prompts(world.prompts, HELD_OUT, 14, 0)
    detector = detectors.load(world.models / "owlvit", device="cpu")
    c = Choices(precision="float32", **choices)
    return asked, detector, Validator(net_of(pipeline), asked, detector, c, Accelerator(cpu=True))


def test_validation_is_the_evaluation_itself(world, pipeline):
    sampling: dict[str, Any] = {"images": 2, "steps": 2}
    asked, detector, validator = parts(world, pipeline, sampling=sampling, threshold=0.3, pairs="best")
    found = validator()
    made = list(diffusion.sample(pipeline, asked, Sampling.of(sampling)))
    assert all(np.array_equal(a, b) for a, b in zip(validator.images, [image for *_, image in made[::2]], strict=False))
    assert len(validator.images) == 8
    names = dict(zip(asked.prompt_id, zip(asked.subject, asked.object, strict=True), strict=True))
    boxes = detector.detect([image for *_, image in made], [names[id] for id, *_ in made], floor=0.01)
    places = pd.DataFrame([place for *place, _ in made], columns=["prompt_id", "image_index"]).iloc[boxes.image]
    boxes = boxes.assign(**places.reset_index(drop=True))
    records = verdicts.verdicts(asked, boxes, images=2, threshold=0.3, pairs="best")
    scores = evaluation_scores.scores(records).query("relation == 'all'").set_index("metric").value
    assert found["images"] == 28 and found["both_found"] == records.both_found.sum() > 0
    assert [found[name] for name in MAIN] == pytest.approx([scores[name] for name in MAIN])


def test_to_have_learnt_to_draw_nothing_is_a_result_but_no_start(world, pipeline):
    *_, validator = parts(world, pipeline, sampling={"images": 1, "steps": 2}, threshold=0.9999)
    with pytest.raises(verdicts.NothingFound, match="the detector found nothing"):
        validator()
    nothing = {"OA": 0.0, "VISOR": 0.0, "VISOR_Cond": None, "images": 14, "both_found": 0}
    assert validator(nothing="record") == nothing
