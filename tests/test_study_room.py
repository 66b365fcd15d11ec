"""What notebooks 01, 02 and 05 take from elsewhere: computed, or recorded."""

import json

import pandas as pd
import pytest

from sr4g_utils.analysis import claims
from sr4g_utils.dataset import counts, inputs
from sr4g_utils.people import vsr
from sr4g_utils.store import files
from sr4g_utils.store.run import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", "02_test")


def kept(run: Run, name: str) -> list[dict]:
    path = run.folder / "artifacts" / "results" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def test_recorded_tables_are_shown_and_not_kept_again(run):
    for table, about in (
        counts.rule_disagreement(run, "recorded"),
        counts.reconstruction(run, "miniature:9", "miniature:9"),
        vsr.human_agreement_result(run, "recorded", None, None, 10, 0),
        vsr.human_agreement_result(run, None, "recorded", None, 10, 0),
    ):
        assert len(table) and about["commit"]
    assert not list((run.folder / "artifacts" / "results").glob("*"))


def test_given_annotations_are_counted_and_kept(run):
    path = inputs.annotations(run, "miniature:30", "train")
    table, about = counts.rule_disagreement(run, path)
    assert about == {"annotations": path.name} and len(kept(run, "rule_disagreement")) == len(table) > 0
    val = inputs.annotations(run, "miniature:9", "val")
    table, about = counts.reconstruction(run, path, val)
    assert about == {"annotations": f"{path.name}, {val.name}"} and len(kept(run, "reconstruction")) == len(table) > 0


def test_judgements_are_read_where_all_is_given(run, monkeypatch, tmp_path):
    path, asked = inputs.annotations(run, "miniature:5", "train"), {}
    monkeypatch.setattr(vsr, "read_vsr", lambda source: asked.setdefault("read", source))
    monkeypatch.setattr(
        vsr, "human_agreement", lambda *given: asked.setdefault("given", given) and pd.DataFrame({"n": [1]})
    )
    (tmp_path / "vsr.jsonl").write_text("{}")
    table, about = vsr.human_agreement_result(run, tmp_path / "vsr.jsonl", path, path, 10, 3)
    assert asked["read"] == tmp_path / "vsr.jsonl" and asked["given"][2:] == (3, 10)
    assert len(table) == len(kept(run, "human_agreement")) == 1 and about["resamples"] == 10


def test_the_real_table_beside_the_miniatures(run, tmp_path):
    ours = pd.DataFrame({"step": ["images"], "train": [7]})
    shown = counts.real(run, "miniature:7", ours, "funnel")
    assert shown.train[0] == 117_266 and kept(run, "funnel") == []
    assert counts.real(run, tmp_path / "a.json", ours, "funnel").train[0] == 7 and kept(run, "funnel") == [
        {"step": "images", "train": 7}
    ]


@pytest.mark.parametrize("n", [1, 20, 21, 80])
def test_of_a_long_table_both_ends_are_kept(run, tmp_path, n):
    table = counts.real(run, tmp_path / "a.json", pd.DataFrame({"captions": range(n, 0, -1)}), "objects")
    if n <= 2 * counts.ENDS:
        assert table.captions.tolist() == list(range(n, 0, -1)) and "rank" not in table
    else:
        assert table["rank"].tolist() == [*range(1, 11), *range(n - 9, n + 1)]
        assert (table.captions == n + 1 - table["rank"]).all()
    assert len(kept(run, "objects")) == len(table)


def test_what_notebook_04_may_lack(run):
    assert claims.quality(run, "detector") is None and claims.over_rival(run, None, {}, "m", 10, 0) is None
    files.write_json(
        run.folder / "artifacts" / "results" / "quality_FID.json", {"rows": [{"model": "m", "value": 1.0}]}
    )
    assert claims.quality(run, "FID").value.tolist() == [1.0]
    with pytest.raises(FileNotFoundError, match=r"verdicts_other.parquet is missing: run the notebook that makes it"):
        claims.over_rival(run, "other", {}, "m", 10, 0)
