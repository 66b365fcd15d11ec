"""Rules beside what people say: every rule set, where it defines the relation."""

import json

import numpy as np
import pandas as pd
import pytest

from sr4g_utils.dataset import coco, inputs
from sr4g_utils.evaluation import statistics
from sr4g_utils.people import vsr
from sr4g_utils.relations import RULES, family
from sr4g_utils.store.files import DATA, read_json
from sr4g_utils.store.run import Run


@pytest.fixture(scope="module")
def found(shared):
    """Agreement on COCO's own boxes, as notebook 01 computes it."""
    tables = [coco.read(shared / "coco2017" / f"{split}2017_boxes.parquet", split) for split in ("train", "val")]
    judgements = vsr.read_vsr(shared / "vsr" / "vsr_validated.jsonl")
    return vsr.human_agreement(judgements, [table.without_crowds() for table in tables], seed=0)


@pytest.mark.slow("real data")
def test_every_rule_set_has_a_row_where_it_defines_the_relation(found):
    of_all = found[found.frame == "all"]
    told = dict.fromkeys(vsr.VSR_PHRASES.values())
    expected = [(rules, name) for rules in RULES for name in told if name in RULES[rules].defines]
    assert list(zip(of_all.rules, of_all.relation, strict=True)) == expected
    assert set(found[found.rules == "geneval"].relation) == set(family("projective"))
    assert (of_all.groupby("relation").n.nunique() == 1).all() and (of_all.n > 400).all()
    assert set(found.frame) == {"all", "0", "1", "2", "none"}
    for measure in statistics.AGREEMENT:
        assert (found[f"{measure}_low"] <= found[f"{measure}_high"]).sum() == found[measure].notna().sum()
    recorded = pd.DataFrame(json.loads((DATA / "results" / "coco" / "human_agreement.json").read_text())["rows"])
    key = ["rules", "relation", "frame"]
    ours = found.set_index(key).loc[pd.MultiIndex.from_frame(recorded[key])]
    pd.testing.assert_frame_equal(ours, recorded.set_index(key), check_dtype=False, rtol=1e-9)


def test_agreement_of_counts():
    accuracy, precision, recall, kappa = statistics.agreement(np.array([20, 5, 10, 15]))
    assert (accuracy, precision, recall) == pytest.approx((0.7, 0.8, 2 / 3)) and kappa == pytest.approx(0.4)
    assert np.isnan(statistics.agreement(np.array([0, 0, 0, 9]))[1:]).all()


def test_a_line_that_is_no_judgement_is_named(tmp_path):
    line = {"image": "1.jpg", "caption": "The dog is left of the cat.", "relation": "left of", "label": 1}
    (tmp_path / "v.jsonl").write_text(json.dumps({**line, "reference_frame": None}) + "\n" + json.dumps(line))
    with pytest.raises(ValueError, match=r"v.jsonl, line 2: not a VSR judgement \(KeyError: 'reference_frame'\)"):
        vsr.read_vsr(tmp_path / "v.jsonl")


def test_recorded_agreement_is_shown_and_not_kept_again(tmp_path):
    run = Run(tmp_path / "run", "01_test")
    for sources in (("recorded", None, None), (None, "recorded", None)):
        table, about = vsr.human_agreement_result(run, *sources, 10, 0)
        assert len(table) and about["commit"]
    assert not list((run.folder / "artifacts" / "results").glob("*"))


def test_judgements_are_read_where_all_is_given(monkeypatch, tmp_path):
    run = Run(tmp_path / "run", "01_test")
    path, asked = inputs.annotations(run, "miniature:5", "train"), {}
    monkeypatch.setattr(vsr, "read_vsr", lambda source: asked.setdefault("read", source))
    one = pd.DataFrame({"n": [1]})
    monkeypatch.setattr(vsr, "human_agreement", lambda *given: asked.setdefault("given", given) and one)
    (tmp_path / "vsr.jsonl").write_text("{}")
    table, about = vsr.human_agreement_result(run, tmp_path / "vsr.jsonl", path, path, 10, 3)
    assert asked["read"] == tmp_path / "vsr.jsonl" and asked["given"][2:] == (3, 10)
    kept = read_json(run.folder / "artifacts" / "results" / "human_agreement.json")["rows"]
    assert len(table) == len(kept) == 1 and about["resamples"] == 10
