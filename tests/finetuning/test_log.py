"""The log of a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tuning import tune

from sr4g_utils.finetuning.log import gains


def test_tensorboard_gets_every_line_of_the_log(world: SimpleNamespace, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tune(world, tmp_path / "run", detector=None, tensorboard=True, log_every=1)
    (events,) = (path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*") if path.stat().st_size > 200)
    board = EventAccumulator(str(events)).Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in log if "loss" in line}
    assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(losses, rel=1e-5)


def test_gains_are_told_of_each_split_that_was_validated() -> None:
    scores = {"OA": 50.0, "VISOR": 20.0, "VISOR_Cond": 40.0, "images": 8}
    best = {**scores, "VISOR_Cond": None, "OA": 0.0, "step": 4}
    table = gains({"main": {"start": None, "best": {"step": 4}}, "unseen": {"start": scores, "best": best}})
    assert table.split.tolist() == ["unseen"] * 3 and table.metric.tolist() == ["OA", "VISOR", "VISOR_Cond"]
    assert table.gain.tolist()[:2] == [-50.0, 0.0] and np.isnan(table.gain[2]) and set(table["best step"]) == {4}
    assert len(gains({"main": {"start": None, "best": {"step": 4}}})) == 0
