"""Paths, atomic writes, hashes, and what stands in ``data/``."""

import errno
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from sr4g_utils.running import pages
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


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError('Error while serializing: Os { code: 28, message: "No space left on device" }'),
])  # fmt: skip
def test_a_full_disk_names_the_file(tmp_path, error):
    full = r"the disk is full: .* has no room left for the file: '.*boxes\.parquet'"
    with pytest.raises(OSError, match=full), files.atomic(tmp_path / "boxes.parquet"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_named(tmp_path):
    files.write_table(tmp_path / "a.parquet", pd.DataFrame({"x": range(9)}))
    assert list(files.read_table(tmp_path / "a.parquet", columns=["x"]).x) == list(range(9))
    for cut in (-9, 3, 0):
        (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:cut])
        with pytest.raises(ValueError, match=r"b\.parquet: not readable as Parquet \(.*\); delete it, and run again"):
            files.read_table(tmp_path / "b.parquet")


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
    systems = files.reported("parameters").values()
    assert all(row["source"] and row["by"] in ("this project", "its authors") for row in systems)


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\nb: 2\na: 3\n", r"'a' stands twice, in line 1 and line 3"),
    ("a:\n  b: 1\n  c: {d: 1}\n  b: 2\n", r"'b' stands twice, in line 2 and line 4"),
    ("{a: 1, 'a': 2}", "'a' stands twice"), ("1: a\n0x1: b\n", "1 stands twice, in line 1 and line 2"),
    ("{<<: {a: 1}, <<: {b: 1}}", "'<<' stands twice"), ("a: &a [*a]", "line 1: refers to itself"),
    ("a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n", "repeats itself into more values than SR4G_YAML_VALUES=20"),
    (f"[{'1, ' * 21}1]", "holds more values than SR4G_YAML_VALUES=20"),
    ("[[[[[1]]]]]", "nested more deeply than SR4G_YAML_DEPTH=4"),
    ("a" * 201, "201 characters, more than SR4G_YAML_LENGTH"),
    ("!!timestamp 2020-99-99", "month must be in 1..12"), ("!!python/name:os.system", "tag"),
])  # fmt: skip
def test_yaml_that_means_nothing_good_is_refused_in_a_line(text, message, monkeypatch):
    for name, most in (("LENGTH", 200), ("VALUES", 20), ("DEPTH", 4)):
        monkeypatch.setattr(files, f"YAML_{name}", most)
    with pytest.raises(yaml.YAMLError, match=message):
        files.read_yaml(text)


def test_yaml_that_repeats_a_little_is_read_and_a_setting_is_refused_as_a_profile_is():
    assert files.read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")["b"] == {"x": 1, "y": 3}
    with pytest.raises(ValueError, match=r"\{steps: 1, steps: 2\}: 'steps' stands twice, in line 1 and line 1"):
        files.read_setting("{steps: 1, steps: 2}")


@pytest.mark.parametrize(("text", "shown"), [
    ("VISOR_Cond", "VISOR_Cond"), ("_a|b_", "&#95;a&#124;b&#95;"), ("$5^ to $6", "&#36;5^ to &#36;6"),
    ("<b>x</b> 1 < 2", "&#60;b>x&#60;/b> 1 < 2"), ("[1.0, 2.0] [x](y)", "&#91;1.0, 2.0] &#91;x](y)"),
    ("`a`\n*b* \\c &amp; AT&T", "&#96;a&#96; &#42;b&#42; &#92;c &#38;amp; AT&T"),
])  # fmt: skip
def test_a_text_in_markdown_is_no_markup(text, shown):
    assert files.markdown(text) == shown
    page = pages.markdown_to_html(f"| a |\n|---|\n| {shown} |\n")
    assert BeautifulSoup(page, "html.parser").td.text.split() == text.split()
