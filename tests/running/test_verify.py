"""A run's results beside those recorded for its profile."""

import json
import re
import shutil

import pytest
from pretend import draw, make_prompts

from run_all import main
from sr4g_utils.dataset.prompts import draw_prompts
from sr4g_utils.evaluation import tables, verdicts
from sr4g_utils.running import done, verify
from sr4g_utils.store import files
from sr4g_utils.store.files import DATA
from sr4g_utils.store.run import Run


@pytest.fixture(scope="module")
def world():
    """Prompts, and what is known of a model before and after."""
    prompts = draw_prompts(make_prompts(), 8, seed=0)
    drawn = {"base": draw(prompts, 0.5, 1), "fine-tuned": draw(prompts, 0.9, 2)}
    return prompts, {name: verdicts.verdicts(prompts, table, 4) for name, table in drawn.items()}


def test_a_run_agrees_with_itself_and_differences_are_named(world):
    prompts, records = world
    scores = tables.score_table(records, prompts)
    rows = json.loads(scores.to_json(orient="records", double_precision=12))
    assert verify.differences(rows, rows) == []
    close = [dict(row) for row in rows]
    close[0]["value"] += 0.5 * (rows[0]["high"] - rows[0]["low"])
    assert verify.differences(close, rows) == []
    close[0]["value"] = rows[0]["value"] + 1.1 * max(rows[0]["high"] - rows[0]["low"], 0.01 * rows[0]["value"])
    close[1]["prompts"] = 3
    close[2]["relation"], close[2]["value"] = "none", None
    named = verify.differences(close, rows)
    assert [line.split(": ")[1].split(" is")[0] for line in named] == ["value", "prompts", "relation", "value"]
    assert named[0].startswith("seen, base, all, OA")
    assert verify.differences(rows[1:], rows) == [f"{len(rows) - 1} rows, recorded are {len(rows)}"]


def test_what_depends_on_how_a_machine_rounds_may_differ_and_nothing_else():
    """Rows as training and drawing leave them, where one thread and two gave other pictures."""
    validated = [{"metric": "OA", "best step": 800, "after": 72.3, "images": 112}]
    assert verify.differences([validated[0] | {"after": 81.0}], validated) == []
    (named,) = verify.differences([validated[0] | {"after": 82.0}], validated)
    assert named == "OA: after is 82, recorded is 72.3 ± 9.4"
    assert len(verify.differences([validated[0] | {"images": 110, "best step": 400}], validated)) == 2
    judged = [{"verdict": "holds", "judged": 100, "both_yes": 36, "agreement": 74.0, "low": 66.0, "high": 81.0}]
    assert verify.differences([judged[0] | {"judged": 98, "both_yes": 30}], judged) == []
    assert len(verify.differences([judged[0] | {"judged": 79, "both_yes": 20}], judged)) == 2
    pair = [{"relation": "above", "gap": 2.0, "gap_low": -9.0, "gap_high": 13.0, "opposite": 40.0, "judged": 100}]
    assert verify.differences([pair[0] | {"opposite": 48.0, "judged": 90, "gap": 20.0}], pair) == []
    assert len(verify.differences([pair[0] | {"opposite": 52.0, "gap": 40.0}], pair)) == 2
    counted = [{"relation": "above", "images": 5_000, "captions": 7_000, "low": 1.0}]  # exact on every machine
    assert len(verify.differences([counted[0] | {"images": 5_001, "captions": 7_001}], counted)) == 2


def test_verify_names_what_differs_and_what_is_missing(world, tmp_path, monkeypatch, capsys):
    prompts, records = world
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    with pytest.raises(ValueError, match="nothing of the profile small"):
        verify.verify(tmp_path / "small")
    run = Run(tmp_path / "small", "04_evaluation")
    run.result(tables.score_table(records, prompts), "scores", world="miniature")
    (run.folder / "figures" / "cards.png").write_bytes(b"shown in the docs")
    (run.folder / "figures" / "other.png").write_bytes(b"not shown")
    verify.record(tmp_path / "small")
    assert [path.name for path in (tmp_path / "data" / "results" / "small").glob("*.png")] == ["cards.png"]
    assert verify.verify(tmp_path / "small") == 0
    assert "scores: agrees" in capsys.readouterr().out
    run.result(tables.score_table({"base": records["fine-tuned"]}, prompts), "scores")
    assert verify.verify(tmp_path / "small") == 1
    (run.folder / "artifacts" / "results" / "scores.json").unlink()
    assert verify.verify(tmp_path / "small") == 1
    told = capsys.readouterr().out
    assert "scores: differs" in told and "missing: run the profile first" in told and verify.TOLERANCE in told


def test_every_finished_run_has_a_row(tmp_path, capsys):
    """One that agrees, one whose results are not all there, and those that were not run."""
    shutil.copytree(DATA / "results" / "coco", tmp_path / "coco" / "artifacts" / "results")
    assert main(["--verify", "--profile", "all", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    n = len(list((DATA / "results" / "coco").glob("*.json")))
    assert re.search(rf"^coco +{n} of {n} agree$", out, re.MULTILINE)
    assert re.search(r"^people +not run +run_all.py --profile people$", out, re.MULTILINE)
    (tmp_path / "coco" / "artifacts" / "results" / "funnel.json").unlink()
    assert main(["--verify", "--profile", "all", "--runs", str(tmp_path)]) == 1
    assert re.search(rf"^coco +{n - 1} of {n} agree +funnel$", capsys.readouterr().out, re.MULTILINE)


def test_what_a_changed_run_clears_are_its_numbers(tmp_path):
    names = ["figures/a.png", "tables/a.md", "artifacts/results/a.json", "artifacts/images.parquet"]
    for name in names:
        files.write_text(tmp_path / name, "former")
    done.clear([*names, "tables/gone.md"], tmp_path)
    assert [name for name in names if (tmp_path / name).exists()] == names[3:]
