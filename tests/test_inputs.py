"""A profile's word for annotations or photos becomes a file."""

from pathlib import Path

import pytest

from sr4g_utils import boxes, inputs
from sr4g_utils.running.run import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", "01_test")


def test_paths_and_downloads(run, tmp_path, monkeypatch):
    assert inputs.annotations(run, tmp_path / "a.json", "train") == tmp_path / "a.json"
    assert inputs.photos(run, tmp_path, "train", "unused") == tmp_path
    monkeypatch.setattr(inputs, "download", lambda name: Path("/cache") / name)
    assert inputs.annotations(run, None, "val") == Path("/cache/annotations_trainval2017.zip")
    assert inputs.photos(run, None, "val", "unused") == Path("/cache/val2017.zip")


def test_the_miniature_is_drawn_once(run):
    path = inputs.annotations(run, "miniature:7", "val")
    folder = inputs.photos(run, "miniature", "val", path)
    table = boxes.read(path, "val")
    assert path == run.folder / "artifacts" / "world" / "instances_val2017.json" and len(table.image_id) == 7
    assert {file.name for file in folder.iterdir()} == set(table.file_name.to_pylist())
    stamps = [file.stat().st_mtime_ns for file in (path, *sorted(folder.iterdir()))]
    assert inputs.annotations(run, "miniature:7", "val") == path
    assert inputs.photos(run, "miniature", "val", path) == folder
    assert [file.stat().st_mtime_ns for file in (path, *sorted(folder.iterdir()))] == stamps
