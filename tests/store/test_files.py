"""Paths, atomic writes, hashes, and what stands in ``data/``."""

import subprocess
import sys

import pytest

from sr4g_utils.store import files


def test_files_are_whole_and_json_that_is_not_is_none(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with files.atomic(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), files.atomic(path) as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]
    assert files.read_json(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"a": ')
    assert files.read_json(tmp_path / "half.json") is None


def test_digest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    one = files.digest(tmp_path / "a")
    assert files.digest(tmp_path / "a" / "x") != one and files.digest(tmp_path / "b") is None
    (tmp_path / "a" / "y").write_text("")
    assert files.digest(tmp_path / "a") != one


def test_provenance_asks_for_versions_without_importing(tmp_path):
    code = "import sys; from sr4g_utils.store import files; files.provenance(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_ledger_and_the_reported_numbers():
    ledger = files.ledger()
    assert ledger.columns.tolist() == ["decision", "value", "alternatives", "source", "effect"]
    assert ledger.notna().all().all() and ledger.decision.is_unique
    assert files.reported("dataset")["captions"]["value"] == 9_900_000
    claims = files.reported("claims")
    assert sorted(claims) == [1, 2, 3, 4, 5, 6]
    assert all({"claim", "reported", "source"} == set(claim) for claim in claims.values())
