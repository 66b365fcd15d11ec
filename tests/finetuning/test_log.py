"""The log of a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tuning import tune


def test_tensorboard_gets_every_line_of_the_log(world: SimpleNamespace, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tune(world, tmp_path / "run", detector=None, tensorboard=True, log_every=1)
    (events,) = (path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*") if path.stat().st_size > 200)
    board = EventAccumulator(str(events)).Reload()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in log if "loss" in line}
    assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(losses, rel=1e-5)
