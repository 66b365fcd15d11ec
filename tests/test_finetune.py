"""The draw, the loss and the loop of fine-tuning: what a step sees, what it learns, and what survives a kill.

The world is the miniature's; the models are tiny ones with random weights. What is tested is therefore that the loop
does what it says, not that anything is learnt.
"""

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from sr4g_utils.samples import Batches, Captions, Encoded, Text

from sr4g_utils import boxes, dataset, finetune, miniature, models, photos, runs, samples
from sr4g_utils.finetune import Choices
from sr4g_utils.relations import NAMES

UNSEEN = ["cat"]
QUICK: dict[str, Any] = {
    "steps": 6, "batch": 8, "lr": 1e-3, "warmup": 2, "ema": 0.5, "precision": "float32", "validate_every": 3,
    "validation_prompts": 14, "sampling": {"images": 1, "steps": 2}, "checkpoint_every": 2, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Annotations, photos, prompts and tiny models."""
    folder = tmp_path_factory.mktemp("world")
    miniature.write_annotations(folder / "train.json", split="train", images=120)
    miniature.write_photos(folder / "photos", folder / "train.json", split="train")
    dataset.build(folder / "triplets.parquet", folder / "train.json", split="train", unseen=UNSEEN)
    dataset.write_prompts(folder / "prompts.parquet", folder / "triplets.parquet", unseen=UNSEEN, seed=0)
    for version in ("v1.4", "v2.1"):
        tiny.stable_diffusion(folder / version, version)
    tiny.owlvit(folder / "owlvit")
    return SimpleNamespace(
        folder=folder, annotations=folder / "train.json", photos=folder / "photos", prompts=folder / "prompts.parquet",
        triplets=folder / "triplets.parquet", table=boxes.read(folder / "train.json"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(world: SimpleNamespace) -> Any:
    return models.load_pipeline(world.folder / "v1.4", device="cpu")[0]


@pytest.fixture(scope="module")
def captions(world: SimpleNamespace) -> Captions:
    return samples.true_captions(world.table)


@pytest.fixture(scope="module")
def encoded(world: SimpleNamespace, captions: Captions, pipeline: Any) -> Encoded:
    return encode(world, captions, pipeline, world.folder / "latents")


def encode(
    world: SimpleNamespace, captions: Captions, pipeline: Any, store: Path, source: Path | None = None
) -> Encoded:
    photos_ = photos.Photos(source or world.photos)
    images = np.unique(captions.image)
    return samples.encode_photos(store, photos_, world.table, images, pipeline.vae, 64, Accelerator(cpu=True))


def tune(world: SimpleNamespace, folder: Path, model: str = "v1.4", **choices: Any) -> dict[str, Any]:
    keywords = {"detector": str(world.folder / "owlvit"), "unseen": UNSEEN, "latents": world.folder / "latents"}
    given = {**QUICK, **keywords, "model": str(world.folder / model), **choices}
    return finetune.finetune(folder, world.annotations, world.photos, world.prompts, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / finetune.WEIGHTS)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def drift(one: Path, two: Path, base: Path) -> float:
    """How far two runs ended from each other, as a share of how far they went.

    Adam divides a gradient by its own size, so a weight whose gradient is rounding and nothing else moves by rounding:
    single weights would not tell.
    """
    a, b, start = weights(one / "last"), weights(two / "last"), load_file(base / "unet" / finetune.WEIGHTS)
    apart, went = (sum(((x[name] - y[name]) ** 2).sum().item() for name in a) for x, y in ((a, b), (a, start)))
    assert went > 0
    return (apart / went) ** 0.5


# -------------------------------------------------------------------------------------------------------- captions


def test_captions_are_those_of_the_dataset(world: SimpleNamespace, captions: Captions) -> None:
    rows = pq.read_table(world.triplets).to_pandas()
    rows = rows[rows.subject != rows.object]
    written = set(zip(rows.image_id, rows.caption, strict=True))
    made = {
        (int(world.table.image_id[i]), captions.text(t)) for i, t in zip(captions.image, captions.triplet, strict=True)
    }
    assert made == written and len(captions) == len(written)
    key = captions.image.astype(np.int64) << 32 | captions.triplet
    assert (np.diff(key) > 0).all()
    with_same = samples.true_captions(world.table, same_category=True)
    assert len(with_same) == pq.read_metadata(world.triplets).num_rows


def test_unseen_categories_are_in_no_caption(captions: Captions) -> None:
    left = captions.without(["cat", "dog"])
    texts = [captions.text(t) for t in np.unique(captions.triplet)]
    assert {left.text(t) for t in np.unique(left.triplet)} == {t for t in texts if not {"cat", "dog"} & set(t.split())}
    with pytest.raises(ValueError, match="no category 'unicorn'"):
        captions.without(["unicorn"])


def test_crop_changes_are_counted(shared: Path) -> None:
    table = boxes.read(shared / "coco_excerpt" / "annotations" / "instances_val2017.json").without_crowds()
    cropped = photos.crop_table(table, 512, 0.5)
    before, after = samples.true_captions(table), samples.true_captions(cropped)
    old, new = (set(zip(one.image.tolist(), one.triplet.tolist(), strict=True)) for one in (before, after))
    counts = samples.crop_changes(before, after)
    expected = {"before": len(old), "after": len(new), "dropped": len(old - new), "new": len(new - old)}
    assert {name: counts[name] for name in expected} == expected
    assert counts["dropped"] > 0 and counts["new"] > 0


# --------------------------------------------------------------------------------------------------------- latents


def test_latents_are_the_vae_s_posterior(
    world: SimpleNamespace, captions: Captions, encoded: Encoded, pipeline: Any
) -> None:
    for image in np.unique(captions.image)[[0, 50, -1]]:
        pixels = np.asarray(Image.open(world.photos / world.table.file_name[image].as_py()).convert("RGB"))
        with torch.no_grad():
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            posterior = pipeline.vae.encode(x).latent_dist
        mean, deviation = encoded[int(image)]
        np.testing.assert_allclose(mean, posterior.mean[0], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(deviation, posterior.std[0], rtol=2e-3, atol=2e-3)


def test_latents_are_made_once_and_go_on_where_they_were_interrupted(
    world: SimpleNamespace, captions: Captions, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SHARD", 40)
    encode(world, captions, pipeline, tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.npy"))}
    assert len(files) == -(-len(np.unique(captions.image)) // 40)
    first, second, *_ = files
    second.unlink()
    stamp = first.stat().st_mtime_ns
    encode(world, captions, pipeline, tmp_path)
    assert first.stat().st_mtime_ns == stamp and second.read_bytes() == files[second]
    other = models.load_pipeline(tiny.stable_diffusion(tmp_path / "sd", seed=1), device="cpu")[0]
    encode(world, captions, other, tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * len(files)  # another VAE, another folder


def test_unusable_photos_are_counted_and_never_trained_on(
    world: SimpleNamespace, captions: Captions, pipeline: Any, tmp_path: Path
) -> None:
    source = tmp_path / "photos"
    shutil.copytree(world.photos, source)
    names = world.table.file_name.take(np.unique(captions.image)[:3]).to_pylist()
    (source / names[0]).unlink()
    (source / names[1]).write_bytes((source / names[1]).read_bytes()[:100])
    Image.open(source / names[2]).convert("L").save(source / names[2])
    found = encode(world, captions, pipeline, tmp_path / "latents", source)
    assert found.report["unusable"] == 2 and found.report["grayscale"] == 1
    assert names[0] in found.report["problems"][0] and names[1] in found.report["problems"][1]
    assert not np.isin(captions.of_images(found.usable).image, np.unique(captions.image)[:2]).any()
    found.check(0.02)
    with pytest.raises(ValueError, match=rf"2 of {found.report['photos']} photos are unusable.*{names[0]} is missing"):
        found.check(0.001)


# ----------------------------------------------------------------------------------------------------- what is drawn


def test_what_a_step_sees_does_not_depend_on_who_sees_it(captions: Captions, encoded: Encoded, pipeline: Any) -> None:
    batches = Batches(captions, encoded, pipeline, size=12, seed=3)
    whole = batches(7, range(12))
    for parts in ([range(6), range(6, 12)], [range(i, i + 1) for i in range(12)], [range(8), range(8, 12)]):
        pieces = [batches(7, part) for part in parts]
        for name in ("latents", "noise", "timestep"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
        np.testing.assert_array_equal(np.concatenate([piece.caption for piece in pieces]), whole.caption)
    assert not torch.equal(batches(8, range(12)).noise, whole.noise)
    assert not torch.equal(Batches(captions, encoded, pipeline, size=12, seed=4)(7, range(12)).noise, whole.noise)
    assert len(torch.unique(whole.noise)) > 0.99 * whole.noise.numel()  # no two places share their noise


def test_the_draw_has_the_distribution_that_it_says(captions: Captions, encoded: Encoded, pipeline: Any) -> None:
    n = 4000
    batch = Batches(captions, encoded, pipeline, size=n, dropout=0.25)(0, range(n))
    assert abs((batch.caption == 0).mean() - 0.25) < 0.03
    assert abs(batch.noise.mean()) < 0.01 and abs(batch.noise.std() - 1) < 0.01
    assert batch.timestep.min() < 20 and batch.timestep.max() > 980 and abs(batch.timestep.float().mean() - 499.5) < 20
    batches = Batches(captions, encoded, pipeline, size=n, dropout=0.0)
    relation = captions.relation[batches.draw(n, np.random.default_rng([0, 0]))]
    np.testing.assert_allclose(np.bincount(relation, minlength=14) / n, 1 / 14, atol=0.02)
    natural = Batches(captions, encoded, pipeline, size=n, balanced=False)
    relation = captions.relation[natural.draw(n, np.random.default_rng([0, 0]))]
    np.testing.assert_allclose(
        np.bincount(relation, minlength=14) / n, np.bincount(captions.relation) / len(captions), atol=0.02
    )


def test_a_sample_s_latents_are_of_its_caption_s_photo(captions: Captions, encoded: Encoded, pipeline: Any) -> None:
    batches = Batches(captions, encoded, pipeline, size=50, dropout=0.0)
    batch = batches(0, range(50))
    rows = batches.draw(50, np.random.default_rng([0, 0]))
    for row, latents, caption in zip(rows, batch.latents, batch.caption, strict=True):
        assert batches.texts[caption] == captions.text(captions.triplet[row])
        mean, deviation = encoded[int(captions.image[row])]
        sigma = (latents.numpy() / pipeline.vae.config.scaling_factor - mean) / np.maximum(deviation, 1e-6)
        assert abs(sigma.mean()) < 0.4 and 0.7 < sigma.std() < 1.3


def test_text_states_are_the_pipeline_s_own_cached_or_not(captions: Captions, pipeline: Any) -> None:
    texts = ["", *(captions.text(t) for t in np.unique(captions.triplet)[:40])]
    cached, fly = Text(pipeline, texts, 512, 10**6), Text(pipeline, texts, 512, 3)
    assert cached.cached and not fly.cached and not Text(pipeline, texts, 0, 10**6).cached
    numbers = np.array([0, 5, 5, 40, 1])
    for i, state in enumerate(cached(numbers)):
        own = pipeline.encode_prompt(texts[numbers[i]], "cpu", 1, False)[0][0]
        torch.testing.assert_close(state, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached(numbers), fly(numbers), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_definition(kind: str, captions: Captions, encoded: Encoded, pipeline: Any) -> None:
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
    batch = Batches(captions, encoded, pipeline, size=5)(0, range(5))
    alpha = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[batch.timestep][
        :, None, None, None
    ]
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    target = batch.noise if kind == "epsilon" else alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
    seen = {}

    def network(x: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        seen.update(x=x, text=encoder_hidden_states)
        return SimpleNamespace(sample=target + 0.5)

    loss = finetune.diffusion_loss(network, schedule, batch, torch.ones(5, 1, 1))
    torch.testing.assert_close(seen["x"], noisy, rtol=1e-4, atol=1e-4)
    assert loss.item() == pytest.approx(0.25, rel=1e-4)  # of a prediction that is off by one half everywhere


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from(["constant", "cosine"]))
def test_the_learning_rate_rises_and_then_stays_or_falls(warmup: int, steps: int, schedule: str) -> None:
    c = Choices(steps=steps, warmup=warmup, schedule=schedule, lr=2.0)
    rates = [finetune.learning_rate(step, c) for step in range(steps)]
    assert min(rates) >= 0 and max(rates) <= 2 + 1e-12
    assert (np.diff(rates[:warmup]) > 0).all() and (np.diff(rates[warmup:]) <= 1e-12).all()
    if steps > warmup:
        assert rates[warmup] == 2.0
        assert schedule == "cosine" or rates[-1] == 2.0


# -------------------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def finished(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, tune(world, folder)


def test_a_run_leaves_unets_that_load_a_log_and_an_honest_record(
    world: SimpleNamespace, finished: tuple[Path, dict]
) -> None:
    folder, result = finished
    base = models.load_pipeline(world.folder / "v1.4", device="cpu")[0]
    for name in ("best", "last"):
        tuned = models.load_pipeline(world.folder / "v1.4", device="cpu", unet=folder / name)[0]
        assert distance(dict(base.unet.state_dict()), dict(tuned.unet.state_dict())) > 1e-4
        assert "_name_or_path" not in json.loads((folder / name / "config.json").read_text())
    log = finetune.read_log(folder)
    assert log.step[log.loss.notna()].tolist() == [1, 2, 3, 4, 5, 6]
    assert log.step[log.OA.notna()].tolist() == [0, 3, 6]
    assert (log.images_per_s.dropna() > 0).all() and (log.eta_s.dropna() >= 0).all() and log.mfu.isna().all()
    assert log.lr.dropna().tolist() == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    assert result["start"]["step"] == 0 and result["best"]["step"] in (3, 6)
    assert result["captions"]["before"] == result["captions"]["after"]  # a square world of the model's size
    assert result["photos"]["unusable"] == 0 and result["choices"]["steps"] == 6 and result["unseen"] == UNSEEN
    assert str(world.folder) not in json.dumps(result)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]
    assert json.loads(json.dumps(result)) == result


def test_a_finished_run_is_not_run_again(world: SimpleNamespace, finished: tuple[Path, dict], capsys: Any) -> None:
    folder, result = finished
    before = runs.digest(folder / "log.jsonl"), (folder / "last" / finetune.WEIGHTS).stat().st_mtime_ns
    assert tune(world, folder, checkpoint_every=5) == result  # how often to save is no part of what a run is
    assert before == (runs.digest(folder / "log.jsonl"), (folder / "last" / finetune.WEIGHTS).stat().st_mtime_ns)


def test_another_configuration_starts_afresh_and_says_so(world: SimpleNamespace, tmp_path: Path, capsys: Any) -> None:
    tune(world, tmp_path / "run", steps=2, detector=None)
    old = weights(tmp_path / "run" / "last")
    tune(world, tmp_path / "run", steps=2, detector=None, lr=2e-3, seed=1)
    assert "run was made with another lr, seed: starting afresh" in capsys.readouterr().err
    assert (
        distance(weights(tmp_path / "run.before" / "last"), old)
        == 0
        < distance(weights(tmp_path / "run" / "last"), old)
    )


@pytest.mark.parametrize("model", ["v1.4", "v2.1"])
def test_accumulation_changes_nothing_but_rounding(world: SimpleNamespace, tmp_path: Path, model: str) -> None:
    for name, options in {"whole": {}, "parts": {"micro_batch": 2, "gradient_checkpointing": True}}.items():
        tune(world, tmp_path / name, model, steps=3, detector=None, **options)
    assert drift(tmp_path / "whole", tmp_path / "parts", world.folder / model) < 0.01


def test_without_a_detector_the_last_is_the_best(world: SimpleNamespace, tmp_path: Path) -> None:
    result = tune(world, tmp_path / "run", steps=2, detector=None, ema=0.0, schedule="cosine")
    assert distance(weights(tmp_path / "run" / "last"), weights(tmp_path / "run" / "best")) == 0
    assert result["best"] == {"step": 2} and result["start"] is None


def test_the_average_is_kept_when_there_is_one(world: SimpleNamespace, tmp_path: Path) -> None:
    tune(world, tmp_path / "run", steps=3, detector=None, ema=0.9999, checkpoint_every=1, keep_checkpoints=3)
    mean = None
    for step in range(3):
        now = load_file(tmp_path / "run" / "checkpoints" / f"step-{step + 1:08}" / "weights.safetensors")
        start = models.load_pipeline(world.folder / "v1.4", device="cpu")[0].unet.state_dict()
        decay = (1 + step) / (10 + step)
        mean = {name: (start if mean is None else mean)[name] * decay + now[name] * (1 - decay) for name in now}
    assert distance(mean, weights(tmp_path / "run" / "last")) < 1e-6


def test_the_best_is_by_visor_cond_among_those_that_still_draw(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([(80, 50), (79, 55), (40, 90), (75, 60), (78, 58)])  # OA and VISOR_Cond at steps 0, 1, 2, 3, 4

    def judge(*_: Any) -> Any:
        def scores(_: Any) -> dict[str, Any]:
            oa, cond = next(scripted)
            return {"OA": float(oa), "VISOR": oa * cond / 100, "VISOR_Cond": float(cond), "images": 9, "both_found": 7}

        return scores

    monkeypatch.setattr(finetune, "_judge", judge)
    result = tune(world, tmp_path / "run", steps=4, validate_every=1, keep_checkpoints=9)
    assert result["best"]["step"] == 3 and result["start"]["OA"] == 80
    at_best = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "ema.safetensors")
    assert distance(at_best, weights(tmp_path / "run" / "best")) == 0
    start = {"OA": 80.0}
    nothing = {"OA": 0.0, "VISOR_Cond": None}
    assert finetune._rank(nothing, start, Choices()) < finetune._rank({"OA": 1.0, "VISOR_Cond": 0.0}, start, Choices())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_the_run_and_names_the_last_good_checkpoint(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real, calls = finetune.diffusion_loss, iter(range(100))

    def loss(network: Any, *rest: Any) -> torch.Tensor:
        good = real(network, *rest)
        if next(calls) < 4:
            return good
        if where == "loss":
            return good * float("nan")
        return good + 0 * torch.sqrt(torch.zeros((), requires_grad=True) * next(network.parameters()).sum() * 0)

    monkeypatch.setattr(finetune, "diffusion_loss", loss)
    with pytest.raises(FloatingPointError, match=r"step 5: .*nan.* last good checkpoint is .*step-00000004") as caught:
        tune(world, tmp_path / "run", detector=None)
    named = Path(str(caught.value).split("checkpoint is ")[1].split(". Try")[0])
    good = load_file(named / "weights.safetensors")
    assert all(torch.isfinite(weight).all() for weight in good.values())
    monkeypatch.setattr(finetune, "diffusion_loss", real)
    assert tune(world, tmp_path / "run", detector=None)["best"]["step"] == 6  # and from there it can go on


@pytest.fixture
def other_precision() -> Any:
    """accelerate keeps one precision per process; a test that wants another must say so."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_bfloat16_arithmetic_on_float32_weights(world: SimpleNamespace, tmp_path: Path, other_precision: None) -> None:
    result = tune(world, tmp_path / "run", steps=3, precision="bfloat16")
    assert np.isfinite(result["loss_last"]) and result["start"]["images"] == 14
    assert {weight.dtype for weight in weights(tmp_path / "run" / "last").values()} == {torch.float32}
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "optimiser.safetensors")
    assert {state.dtype for state in saved.values()} == {torch.float32}


# ------------------------------------------------------------------------------------------- kills and many processes

SCRIPT = """
import json, os, signal, sys
from sr4g_utils import finetune
where, count = sys.argv[2], int(sys.argv[3])
of = finetune.Log if where == "line" else finetune
real = getattr(of, where)
def deadly(*arguments):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(of, where, deadly)
finetune.finetune(**json.loads(sys.argv[1]))
"""


def test_killed_runs_end_like_one_that_was_not(world: SimpleNamespace, tmp_path: Path) -> None:
    """SIGKILL while a checkpoint is written, then between two steps: weights and log end bit for bit the same."""
    longer = {"steps": 12, "validate_every": 6, "checkpoint_every": 3}
    tune(world, tmp_path / "calm", **longer)
    arguments = {
        **QUICK, **longer, "folder": str(tmp_path / "killed"), "annotations": str(world.annotations), "unseen": UNSEEN,
        "photos": str(world.photos), "prompts": str(world.prompts), "model": str(world.folder / "v1.4"),
        "detector": str(world.folder / "owlvit"), "latents": str(world.folder / "latents"),
    }  # fmt: skip
    log, checkpoints = tmp_path / "killed" / "log.jsonl", tmp_path / "killed" / "checkpoints"
    for where, count in (("_sync", 9), ("line", 5)):  # in the second checkpoint; at the fifth line after the first
        command = [sys.executable, "-c", SCRIPT, json.dumps(arguments), where, str(count)]
        died = subprocess.run(command, capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
        if where == "_sync":
            assert [path.name for path in sorted(checkpoints.iterdir())] == [".step-00000006.partial", "step-00000003"]
    with log.open("a") as file:
        file.write('{"step": 9, "lo')  # as a kill may leave a line
    finetune.finetune(**arguments)
    for name in ("best", "last"):
        a, b = ((tmp_path / run / name / finetune.WEIGHTS).read_bytes() for run in ("calm", "killed"))
        assert a == b
    for file in ("weights", "ema", "optimiser"):
        a, b = (
            (tmp_path / run / "checkpoints/step-00000012" / f"{file}.safetensors").read_bytes()
            for run in ("calm", "killed")
        )
        assert a == b
    told = ["step", "loss", "lr", "grad_norm", *finetune.SCORES, "both_found"]  # all but the times
    calm, killed = (finetune.read_log(tmp_path / run)[told] for run in ("calm", "killed"))
    pd.testing.assert_frame_equal(calm, killed)
    assert not list(checkpoints.glob(".*"))


@pytest.fixture
def profile(world: SimpleNamespace, tmp_path: Path) -> Path:
    """A profile of notebook 03 with a run folder that holds the prompts, as notebook 02 leaves them."""
    section = {
        **QUICK, "steps": 4, "train_annotations": str(world.annotations), "train_photos": str(world.photos),
        "model": str(world.folder / "v2.1"), "detector": str(world.folder / "owlvit"), "unseen": 4,
        "splits": ["unseen"],
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({finetune.NOTEBOOK: section}))
    for where in ("one", "two"):
        artifacts = tmp_path / where / "tiny" / "artifacts"
        artifacts.mkdir(parents=True)
        shutil.copy(world.prompts, artifacts)
    return tmp_path / "tiny.yaml"


def test_two_processes_train_what_one_does_and_the_notebook_finds_it(
    world: SimpleNamespace, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a CPU `accelerate launch` starts one process, whatever it is asked for; torch's own launcher starts two
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = ["-m", "sr4g_utils.finetune", "--profile", str(profile), "--runs"]
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *module, str(tmp_path / "two")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best at step" in done.stdout and done.stdout.count("artifacts/finetune_unseen") == 1

    cwd = Path.cwd()
    assert finetune.main(["--profile", str(profile), "--runs", str(tmp_path / "one")]) == 0
    os.chdir(cwd)
    one, two = (tmp_path / where / "tiny" / "artifacts" / "finetune_unseen" for where in ("one", "two"))
    assert drift(one, two, world.folder / "v2.1") < 0.01
    a, b = finetune.read_log(one), finetune.read_log(two)
    np.testing.assert_allclose(a.loss.dropna(), b.loss.dropna(), rtol=1e-4)

    section = runs.load_profile(str(profile), [], tmp_path / "two" / "tiny")[finetune.NOTEBOOK]
    parameters = {name: value for name, (_, value) in runs.declared(finetune.NOTEBOOK).items()} | section
    stamp = (two / "last" / finetune.WEIGHTS).stat().st_mtime_ns
    monkeypatch.setattr(finetune, "_train", lambda *_: pytest.fail("it is done already"))
    path, result = finetune.stage(runs.Run(tmp_path / "two" / "tiny", finetune.NOTEBOOK), "unseen", parameters)
    assert result["processes"] == 2
    assert path == two and len(result["unseen"]) == 4 and (two / "last" / finetune.WEIGHTS).stat().st_mtime_ns == stamp


# ---------------------------------------------------------------------------------------------------------- errors


def test_processes_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="batch: 64 does not divide by 3 processes"):
        finetune._share(Choices(), 3, 1)
    assert finetune._share(Choices(batch=66, micro_batch=11), 3, 1) == range(22, 44)
    assert finetune._share(Choices(batch=64, micro_batch=16), 8, 7) == range(56, 64)  # at most
    with pytest.raises(ValueError, match="micro_batch: 7 does not divide a process's 22"):
        finetune._share(Choices(batch=66, micro_batch=7), 3, 1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"learning_rate": 1}, "unknown field `learning_rate`.*the choices are rules, "),
        ({"steps": "many"}, r"Expected `int`, got `str` - at `\$.steps`"),
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"caption_dropout": 1.5}, r"caption_dropout must be in \[0, 1\], got 1.5"),
        ({"schedule": "linear"}, "Invalid enum value 'linear'"),
        ({"resolution": 60}, "resolution: 60 is no multiple of 8"),
        ({"unseen": ["unicorn"]}, "no category 'unicorn'"),
        ({"sampling": {"step": 2}}, "sampling"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(
    world: SimpleNamespace, tmp_path: Path, choices: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tune(world, tmp_path / "run", **choices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "choices"),
    [("peft", {"lora_rank": 4}), ("bitsandbytes", {"adam_8bit": True}), ("tensorboard", {"tensorboard": True})],
)
def test_what_an_option_needs_is_said(
    world: SimpleNamespace, tmp_path: Path, package: str, choices: dict, monkeypatch: Any
) -> None:
    own = builtins.__import__

    def without(name: str, scope: Any = None, *rest: Any) -> Any:  # as if it were not installed
        if name.partition(".")[0] == package and (scope or {}).get("__name__") == finetune.__name__:
            raise ImportError(name)
        return own(name, scope, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(finetune, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        tune(world, tmp_path / "run", steps=1, detector=None, **choices)


def test_lora_is_saved_as_a_plain_unet(world: SimpleNamespace, tmp_path: Path) -> None:
    tune(world, tmp_path / "run", lora_rank=2)
    base = models.load_pipeline(world.folder / "v1.4", device="cpu")[0]
    tuned = models.load_pipeline(world.folder / "v1.4", device="cpu", unet=tmp_path / "run" / "last")[0]
    a, b = dict(base.unet.state_dict()), dict(tuned.unet.state_dict())
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert changed and all(".to_" in name for name in changed)


def test_8_bit_adam_resumes_where_it_was(world: SimpleNamespace, tmp_path: Path) -> None:
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


def test_tensorboard_gets_every_line_of_the_log(world: SimpleNamespace, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tune(world, tmp_path / "run", detector=None, tensorboard=True, log_every=1)
    (events,) = (path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*") if path.stat().st_size > 200)
    board = EventAccumulator(str(events)).Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in log if "loss" in line}
    assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(losses, rel=1e-5)


def test_a_model_that_this_loop_cannot_train_is_named(world: SimpleNamespace, pipeline: Any) -> None:
    record = {"id": "it", "class": "SomePipeline", "resolution": [64, 64]}
    with pytest.raises(ValueError, match="it is a SomePipeline; what can be fine-tuned here is Stable Diffusion"):
        finetune._check_model(SimpleNamespace(), record, Choices())
    sample = SimpleNamespace(config={"prediction_type": "sample"})
    odd = SimpleNamespace(unet=pipeline.unet, vae=pipeline.vae, vae_scale_factor=8, scheduler=sample)
    with pytest.raises(ValueError, match="predicts 'sample'"):
        finetune._check_model(odd, record, Choices())


# ------------------------------------------------------------------------------------------------ notebook and profiles


def test_the_notebook_declares_every_choice() -> None:
    declared = {name: value for name, (_, value) in runs.declared(finetune.NOTEBOOK).items()}
    choices = {name: declared[name] for name in Choices.__struct_fields__}
    assert Choices.of(choices)
    others = set(declared) - set(choices)
    assert others == {"run_folder", "train_annotations", "train_photos", "model", "detector", "splits", "unseen"}


def test_the_paper_profile_is_the_defaults(tmp_path: Path) -> None:
    """Whoever reads the struct reads the paper's run; the profile adds models, photos and what a machine needs."""
    declared = {name: value for name, (_, value) in runs.declared(finetune.NOTEBOOK).items()}
    section = declared | runs.load_profile("paper", [], tmp_path)[finetune.NOTEBOOK]
    defaults = msgspec.to_builtins(Choices())
    for name in set(defaults) - {"sampling", "micro_batch"}:
        assert section[name] == defaults[name], name
    assert Choices.of({name: section[name] for name in defaults}) and section["splits"] == ["main", "unseen"]


def test_peaks_are_matched_from_the_longest_name() -> None:
    """ "H100 PCIe" must not be taken for "H100", nor "A10G" for "A10"."""
    names = list(finetune.PEAKS)
    for i, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:i])
    assert len(NAMES) == 14
