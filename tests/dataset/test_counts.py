"""Tables of notebooks 01 and 02: computed from the profile's annotations, or read from data/results if it has none."""

import json

import pandas as pd
import pytest

from sr4g_utils.dataset import counts, inputs
from sr4g_utils.store.run import Run


def kept(run: Run, name: str) -> list[dict]:
    path = run.folder / "artifacts" / "results" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def test_recorded_tables_are_shown_and_given_annotations_are_counted_and_kept(run):
    shown = counts.rule_disagreement(run, "recorded"), counts.reconstruction(run, "miniature:9", "miniature:9")
    assert all(len(table) and about["commit"] for table, about in shown)
    assert not list((run.folder / "artifacts" / "results").glob("*"))
    path = inputs.annotations(run, "miniature:30", "train")
    table, about = counts.rule_disagreement(run, path)
    assert about == {"annotations": path.name} and len(kept(run, "rule_disagreement")) == len(table) > 0
    val = inputs.annotations(run, "miniature:9", "val")
    table, about = counts.reconstruction(run, path, val)
    assert about == {"annotations": f"{path.name}, {val.name}"} and len(kept(run, "reconstruction")) == len(table) > 0


def test_the_real_table_beside_the_miniatures(run, tmp_path):
    ours = pd.DataFrame({"step": ["images"], "train": [7]})
    shown = counts.real(run, "miniature:7", ours, "funnel")
    assert shown.train[0] == 117_266 and kept(run, "funnel") == []
    assert counts.real(run, tmp_path / "a.json", ours, "funnel").train[0] == 7
    assert kept(run, "funnel") == [{"step": "images", "train": 7}]


@pytest.mark.parametrize("n", [1, 20, 21, 80])
def test_of_a_long_table_both_ends_are_kept(run, tmp_path, n):
    table = counts.real(run, tmp_path / "a.json", pd.DataFrame({"captions": range(n, 0, -1)}), "objects")
    if n <= 2 * counts.ENDS:
        assert table.captions.tolist() == list(range(n, 0, -1)) and "rank" not in table
    else:
        assert table["rank"].tolist() == [*range(1, 11), *range(n - 9, n + 1)]
        assert (table.captions == n + 1 - table["rank"]).all()
    assert len(kept(run, "objects")) == len(table)
