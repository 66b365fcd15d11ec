"""What survives a kill, when a run goes on and when it starts afresh, and the log of a run."""

import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file, save_file
from tuning import HELD_OUT, QUICK, distance, tune, weights

from sr4g_utils.evaluation.scores import MAIN
from sr4g_utils.finetuning import checkpoints
from sr4g_utils.finetuning import log as log_module
from sr4g_utils.finetuning.checkpoints import WEIGHTS
from sr4g_utils.finetuning.choices import FREE, Choices
from sr4g_utils.finetuning.log import Log, accelerator_for, gains, of_base, read_log
from sr4g_utils.finetuning.stage import finetune
from sr4g_utils.models import lora


def quickly(*where: Any, **choices: Any) -> dict[str, Any]:
    quick = {"steps": 4, "batch": 4, "warmup": 1, "validate_every": 0, "detector": None}
    return tune(*where, **{**quick, **choices})


def test_more_steps_of_a_constant_schedule_go_on_and_end_with_the_bytes_of_a_long_run(world, tmp_path, capsys):
    quickly(world, tmp_path / "short")
    result = quickly(world, tmp_path / "short", steps=8)
    assert "short: going on from step 4\n" in capsys.readouterr().err and result["choices"]["steps"] == 8
    quickly(world, tmp_path / "long", steps=8)
    for name in ("last", "best"):
        assert (tmp_path / "short" / name / WEIGHTS).read_bytes() == (tmp_path / "long" / name / WEIGHTS).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long", "short"]
    written = [tmp_path / "short" / name for name in ("log.jsonl", f"last/{WEIGHTS}")]
    before = [path.stat().st_mtime_ns for path in written]
    assert quickly(world, tmp_path / "short", steps=8, checkpoint_every=5) == result  # how often to save is no choice
    assert before == [path.stat().st_mtime_ns for path in written], "a finished run is not run again"


def test_what_is_only_computed_otherwise_goes_on(world, tmp_path, capsys):
    first = quickly(world, tmp_path / "tuned")
    otherwise = {"micro_batch": 2, "gradient_checkpointing": True, "channels_last": False, "text_cache_mb": 0}
    assert {*otherwise} < {*FREE}
    assert quickly(world, tmp_path / "tuned", **otherwise) == first, "it is finished"
    quickly(world, tmp_path / "tuned", steps=6, **otherwise)
    assert "going on from step 4" in capsys.readouterr().err
    quickly(world, tmp_path / "plain", steps=6)
    assert distance(*(weights(tmp_path / name / "last") for name in ("tuned", "plain"))) < 1e-4, "but for rounding"


def test_trainings_of_other_choices_are_all_kept(world, tmp_path, capsys):
    folder = tmp_path / "tuned"
    cosine = {"schedule": "cosine"}
    for choices in ({}, {"lr": 1e-4, "seed": 1}, cosine, {**cosine, "steps": 6}, {"steps": 3}):
        quickly(world, folder, **choices)
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
    quickly(world, folder, keep_checkpoints=1)
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
        quickly(world, tmp_path / str(n), latents=store, steps=1)
    assert len(list(store.iterdir())) == 3


@pytest.mark.parametrize("file", ["weights.safetensors", "optimiser.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"{" + data[1:30], lambda data: b""])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, capsys, file, damage):
    for step in (3, 6):
        (folder := tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        for name in ("weights", "optimiser", "ema"):
            save_file({"a": torch.ones(4)}, folder / f"{name}.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": step, "key": {}, "optimiser": {}}))
    assert checkpoints._newest(tmp_path) == folder
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    assert checkpoints._newest(tmp_path) == folder.with_name("step-00000003")
    told = capsys.readouterr().err
    assert f"{folder / file}: damaged or missing, so the checkpoint before it is taken; the old one is" in told
    assert checkpoints._look(tmp_path, {})["step"] == 3 and len(list(folder.parent.iterdir())) == 2


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


SMALL: dict[str, Any] = {"resolution": 16, "sampling": {"images": 1, "steps": 2, "size": [16, 16]}, "threshold": 0.01}


@pytest.mark.slow("kills")
@pytest.mark.parametrize(("model", "choices", "kept"), [
    ("v1.4", {}, WEIGHTS), ("StableDiffusion3Pipeline", {"lora_rank": 2, "lora_alpha": 3.0, **SMALL}, lora.FILE),
    ("QwenImagePipeline", SMALL, WEIGHTS), ("QwenImagePipeline", {"lora_rank": 2, **SMALL}, lora.FILE),
])  # fmt: skip
def test_killed_runs_end_like_one_that_was_not(world, tiny_folders, tmp_path, model, choices, kept):
    """SIGKILL while a checkpoint is written, then between two steps: weights and log end bit for bit the same."""
    longer = {"steps": 12, "validate_every": 6, "checkpoint_every": 3, **choices}
    model = str(world.models / model if model == "v1.4" else tiny_folders(model))
    tune(world, tmp_path / "calm", model, **longer)
    arguments = {
        **QUICK, **longer, "folder": str(tmp_path / "killed"), "annotations": str(world.annotations),
        "held_out": HELD_OUT, "photos": str(world.photos), "prompts": str(world.prompts),
        "model": model, "detector": str(world.models / "owlvit"),
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
    for name in (f"best/{kept}", f"last/{kept}", *last):
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


def test_processes_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch: 64 does not divide by 3 processes"):
        log_module.share_of(Choices(), 3, 1)
    assert log_module.share_of(Choices(batch=66, micro_batch=11), 3, 1) == range(22, 44)
    assert log_module.share_of(Choices(batch=64, micro_batch=16), 8, 7) == range(56, 64)  # at most
    with pytest.raises(ValueError, match="micro_batch: 7 does not divide a process's 22"):
        log_module.share_of(Choices(batch=66, micro_batch=7), 3, 1)


def test_peaks_are_matched_from_the_longest_name():
    """ "H100 PCIe" must not be taken for "H100", nor "A10G" for "A10"."""
    names = list(log_module.PEAKS)
    assert not any(earlier in name for i, name in enumerate(names) for earlier in names[:i])


def test_tensorboard_gets_every_line_of_the_log_and_images(world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tune(world, tmp_path / "run", steps=3, track="tensorboard", log_every=1)
    (events,) = (path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*") if path.stat().st_size > 200)
    board = EventAccumulator(str(events)).Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in log if "loss" in line}
    assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(losses, rel=1e-5)
    assert board.Tags()["images"] == ["validation"], "all in one grid"
    assert [event.step for event in board.Images("validation")] == [0, 3]


class Listing(GeneralTracker):
    """A tracker of one's own, which takes one image of a name."""

    name, requires_logging_directory, tracker = "listing", False, None

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.lines.append((step, values))

    def log_images(self, values: dict[str, np.ndarray], step: int) -> None:
        assert all(image.ndim == 3 and image.dtype == np.uint8 for image in values.values())
        self.lines.append((step, values))


def test_any_tracker_of_accelerate_gets_scores_and_images(tmp_path):
    tracker = Listing()
    accelerator = Accelerator(cpu=True, log_with=tracker)
    log = Log(tmp_path / "log.jsonl", {}, None, Choices(steps=4), accelerator)
    scores = {"OA": 50.0, "VISOR": 20.0, "VISOR_Cond": None, "images": 8, "both_found": 0}
    log.validation(2, scores, [np.zeros((8, 8, 3), np.uint8)] * 2)
    log.close()
    told = {name: value for name, value in scores.items() if value is not None}
    assert tracker.lines[0] == (2, told) and list(tracker.lines[1][1]) == ["validation/0", "validation/1"]
    with pytest.raises(ValueError, match="Unsupported logging capability: paper"):
        accelerator_for(Choices(track="paper", precision="float32"), tmp_path)


def test_gains_are_told_of_each_split_that_was_validated():
    scores = {"OA": 50.0, "VISOR": 20.0, "VISOR_Cond": 40.0, "images": 8}
    best = {**scores, "VISOR_Cond": None, "OA": 0.0, "step": 4}
    table = gains({"main": {"start": None, "best": {"step": 4}}, "unseen": {"start": scores, "best": best}})
    assert table.split.tolist() == ["unseen"] * 3 and table.metric.tolist() == ["OA", "VISOR", "VISOR_Cond"]
    assert table.gain.tolist()[:2] == [-50.0, 0.0] and np.isnan(table.gain[2]) and set(table["best step"]) == {4}
    assert len(gains({"main": {"start": None, "best": {"step": 4}}})) == 0


def test_how_a_base_was_trained_is_read_beside_it(tmp_path, capsys):
    (model := tmp_path / "tiny").mkdir()
    assert of_base(str(model)) == {} == of_base("owner/name") and "no record" in capsys.readouterr().out
    base = {"batch": 64, "log": [{"step": 250, "v": 0.9}, {"step": 500, "v": 0.8}]}
    (tmp_path / "training.json").write_text(json.dumps({"parts": {"base": base}}))
    log, curve, most = of_base(str(model))["tiny"]
    assert log.images.tolist() == [16_000, 32_000] and log.loss.tolist() == [0.9, 0.8] and curve.empty and most == {}
    base |= {"curve": [{"pictures": 16_000, "both found": {"a": 5.0, "b": 6.0}}], "drawn": {"a": 98.0}}
    (tmp_path / "training.json").write_text(json.dumps({"parts": {"base": base}}))
    _, curve, most = of_base({"folder": str(model)})["tiny"]
    assert curve.to_numpy().tolist() == [[16_000, "a", 5.0], [16_000, "b", 6.0]] and most == {"a": 98.0}
