"""The log of a run, and the shares of its processes."""

import json
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tuning import tune

from sr4g_utils.finetuning import log as log_module
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.log import Log, accelerator_for, gains


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
