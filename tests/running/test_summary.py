"""Runs beside each other, against a slow recomputation from the runs' own files."""

import json
from itertools import combinations
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from pretend import draw, make_prompts
from scipy import stats
from test_run_all import notebook

from sr4g_utils.evaluation import tables, verdicts
from sr4g_utils.running import summary
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT

PARAMETERS = 'from os import PathLike\nrun_folder: str | PathLike = "x"\nseed: int = 0\nrules: str = "visor"'


MODELS = {"base": 0.5, "fine-tuned": 0.7}


def make_run(folder: Path, seed: int, rules: str, prompts: pd.DataFrame, models: dict[str, float] = MODELS) -> None:
    """What notebook 04 leaves that the page reads, of pretended models."""
    results = folder / "artifacts" / "results"
    (folder / "notebooks").mkdir(parents=True)
    results.mkdir(parents=True)
    made = notebook(["# 04 · Evaluation", PARAMETERS])
    told = {"run_folder": str(folder), "seed": seed, "rules": rules}
    made.metadata["papermill"] = {"parameters": told, "duration": 60.0 * (1 + seed)}
    nbformat.write(made, folder / "notebooks" / "04_evaluation.ipynb")
    prompts.to_parquet(folder / "artifacts" / "prompts_test.parquet")
    records = {}
    for i, (model, obeys) in enumerate(models.items()):
        found = draw(prompts, obeys + 0.05 * seed * (i > 0), 10 * seed + i, images=2)
        records[model] = verdicts.verdicts(prompts, found, 2)
        files.write_table(folder / "artifacts" / f"verdicts_{model}.parquet", records[model])
    about = {"about": {"seed": seed}, "provenance": {"python": f"3.{seed}", "machine": "one"}}
    for name, table in (("scores", tables.score_table), ("changes", tables.change_table)):
        rows = table(records, prompts, **({"resamples": 50} if name == "changes" else {})).to_json(orient="records")
        files.write_json(results / f"{name}.json", about | {"rows": json.loads(rows)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three seeds of one kind, and a run of other rules whose prompts are half the same, under other numbers."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = make_prompts(4).query("objects != 'mixed'").reset_index(drop=True)
    prompts["caption"] = [f"caption {i}" for i in prompts.prompt_id]
    for seed in range(3):
        make_run(folder / f"seed={seed}", seed, "visor", prompts)
    other = prompts.iloc[::2].reset_index(drop=True)
    make_run(folder / "sg2im", 0, "sg2im", other.assign(prompt_id=range(len(other) - 1, -1, -1)))
    summary.main([folder], folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return pd.read_csv(folder / "summary.csv", keep_default_na=False, dtype=str).to_dict("records")


def value(table: list[dict], column: str, **of: str) -> float:
    (found,) = [row for row in table if row.items() >= of.items()]
    return float(found[column] or "nan")


def correct_of(folder: Path, model: str, objects: str) -> dict[tuple[str, int], tuple[bool, bool]]:
    """By caption and image: whether both objects were found, and whether the relation holds."""
    prompts = pd.read_parquet(folder / "artifacts" / "prompts_test.parquet")
    told = {p.prompt_id: (p.caption, p.objects) for p in prompts.itertuples()}
    found = {}
    for row in pd.read_parquet(folder / "artifacts" / f"verdicts_{model}.parquet").itertuples():
        caption, its = told[row.prompt_id]
        if objects in (its, "all"):
            found[caption, row.image_index] = (row.both_found, row.correct)
    return found


def cond(records: list[tuple[bool, bool]]) -> float:
    found = [correct for both, correct in records if both]
    return 100 * sum(found) / len(found)


NAMES = ["sg2im", "seed=0", "seed=1", "seed=2"]
SETS = ["seen", "unseen", "all"]


@pytest.mark.parametrize("objects", SETS)
def test_every_score_is_there(folder, rows, objects):
    for run in NAMES:
        for model in ("base", "fine-tuned"):
            wanted = cond(list(correct_of(folder / run, model, objects).values()))
            of = {"run": run, "objects": objects, "model": model, "relation": "all", "metric": "VISOR_Cond"}
            assert value(rows, "value", kind="score", **of) == pytest.approx(wanted)


@pytest.mark.parametrize("objects", SETS)
def test_differences_are_paired_by_what_was_asked(folder, rows, objects):
    """Not by the prompts' numbers, which are a run's own."""
    for run, other in combinations(sorted(NAMES), 2):
        a, b = (correct_of(folder / name, "fine-tuned", objects) for name in (run, other))
        both = sorted(a.keys() & b.keys())
        assert both
        of = {"objects": objects, "model": "fine-tuned", "relation": "all", "metric": "VISOR_Cond"}
        of |= {"run": run, "other": other, "kind": "difference"}
        assert value(rows, "value", **of) == pytest.approx(cond([b[k] for k in both]) - cond([a[k] for k in both]))
        assert value(rows, "images", **of) == len(both)
        assert value(rows, "low", **of) <= value(rows, "value", **of) <= value(rows, "high", **of)


SEEDS = "seed=0 | seed=1 | seed=2"


@pytest.mark.parametrize("objects", SETS)
def test_means_over_seeds_with_both_intervals(folder, rows, objects):
    runs = [{m: correct_of(folder / f"seed={i}", m, objects) for m in ("base", "fine-tuned")} for i in range(3)]
    captions = sorted({caption for caption, _ in runs[0]["base"]})
    of = {"run": SEEDS, "objects": objects, "model": "fine-tuned", "relation": "all", "metric": "VISOR_Cond"}
    rng = np.random.default_rng(1)
    for kind in ("score", "change"):
        each = [cond(list(r["fine-tuned"].values())) for r in runs]
        if kind == "change":
            each = [after - cond(list(r["base"].values())) for after, r in zip(each, runs, strict=True)]
        ends = stats.ttest_1samp(each, 0).confidence_interval(0.95)
        mine = {key: value(rows, key, kind=f"mean {kind}", **of) for key in ("value", "low", "high")}
        assert mine == pytest.approx({"value": np.mean(each), "low": ends.low, "high": ends.high})
        drawn = []
        for _ in range(400):
            asked = rng.choice(captions, len(captions))
            means = []
            for r in runs:
                score = {m: cond([r[m][c, i] for c in asked for i in range(2)]) for m in r}
                means.append(score["fine-tuned"] - (score["base"] if kind == "change" else 0))
            drawn.append(np.mean(means))
        low, high = (value(rows, f"prompts_{end}", kind=f"mean {kind}", **of) for end in ("low", "high"))
        assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.3 * (high - low))


def test_the_page_says_what_differs_and_runs_of_other_parameters_are_no_seeds(folder, rows):
    assert {row["run"] for row in rows if row["kind"].startswith("mean")} == {SEEDS}
    page = (folder / "summary.html").read_text()
    titles = ("What differs between the runs", "Scores", "Over seeds", "Differences between runs")
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    runs = [summary.read(folder / name, name, {}) for name in NAMES]
    table = summary.differing(runs).set_index("what")
    assert table.loc["04_evaluation.seed"].tolist() == ["0", "0", "1", "2"]
    assert table.loc["04_evaluation.rules"].tolist() == ["sg2im", "visor", "visor", "visor"]
    assert set(table.index) == {"04_evaluation.seed", "04_evaluation.rules", "python", "minutes of notebooks"}
    assert all(what in page for what in table.index)


def test_recorded_results_go_as_well(tmp_path):
    """Of which there are no verdicts, so no differences; here as if they were three seeds'."""
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run with scores; run notebook 04 first"):
        summary.main([tmp_path], tmp_path)
    gains: dict[str, list[float]] = {"seen": [], "unseen": []}
    for seed in range(3):
        for name in ("scores", "changes"):
            found = files.read_json(ROOT / "data" / "results" / "miniature" / f"{name}.json")
            found["about"]["seed"] = seed
            rows = found["rows"] if name == "changes" else ()
            for row in (row for row in rows if row["difference"] is not None):  # VISOR_3 of two images is none
                row["difference"] += seed
                if (row["relation"], row["metric"]) == ("all", "VISOR_Cond") and row["objects"] in gains:
                    gains[row["objects"]].append(row["difference"])
            files.write_json(tmp_path / f"seed={seed}" / f"{name}.json", found)
    summary.main([tmp_path], tmp_path)
    table = pd.read_csv(tmp_path / "summary.csv")
    mean = table[(table.kind == "mean change") & (table.relation == "all") & (table.metric == "VISOR_Cond")]
    mean = mean.set_index("objects").value
    for objects, each in gains.items():
        assert len(each) == 3 and mean[objects] == pytest.approx(np.mean(each))
    assert not (table.kind == "difference").any()


def differences_of(folder: Path) -> pd.DataFrame:
    summary.main([folder], folder)
    table = pd.read_csv(folder / "summary.csv")
    return table[(table.kind == "difference") & (table.objects == "all") & (table.metric == "VISOR_Cond")]


def test_models_of_the_hub_other_models_and_those_of_an_earlier_evaluation(tmp_path):
    """A name with a slash; A yesterday and B today; verdicts that lie there of a model that the run does not name."""
    prompts = make_prompts(4).assign(caption=lambda t: [f"caption {i}" for i in t.prompt_id])
    make_run(tmp_path / "one", 0, "visor", prompts, {"org/base": 0.5, "A": 0.6})
    make_run(tmp_path / "two", 1, "visor", prompts, {"org/base": 0.5, "org/B": 0.9})
    other = prompts.assign(prompt_id=prompts.prompt_id.to_numpy()[::-1])
    for name in ("old", "org/old"):
        stale = verdicts.verdicts(other, draw(other, 0.1, 0, images=2), 2)
        files.write_table(tmp_path / "two" / "artifacts" / f"verdicts_{name}.parquet", stale)
    table = differences_of(tmp_path)
    assert list(zip(table.model, table.other_model, strict=True)) == [("org/base", "org/base"), ("A", "org/B")]
    a, b = correct_of(tmp_path / "one", "A", "all"), correct_of(tmp_path / "two", "org/B", "all")
    assert table.value.iloc[1] == pytest.approx(cond(list(b.values())) - cond(list(a.values())))
    assert "org/B" in (tmp_path / "summary.html").read_text()


def test_a_run_of_few_prompts_has_no_intervals_and_runs_without_a_common_prompt_no_differences(tmp_path, capsys):
    prompts = make_prompts(4).assign(caption=lambda t: [f"caption {i}" for i in t.prompt_id])
    make_run(tmp_path / "a" / "few", 0, "visor", prompts.head(3))
    summary.main([tmp_path / "a"], tmp_path / "a")
    assert pd.read_csv(tmp_path / "a" / "summary.csv").low.isna().all()
    assert "[–]" in (tmp_path / "a" / "summary.html").read_text()
    make_run(tmp_path / "a" / "other", 0, "visor", prompts.tail(3))
    assert differences_of(tmp_path / "a").empty
    assert "No two of the runs have verdicts on the same prompts" in capsys.readouterr().out


def test_a_run_of_a_sweep_that_was_lost_is_named(tmp_path, capsys):
    make_run(tmp_path / "seed=0", 0, "visor", make_prompts(4).assign(caption=lambda t: t.prompt_id.astype(str)))
    for name in ("seed=0", "seed=1,lr=0.5"):
        (tmp_path / f"{name}.yaml").write_text("04_evaluation:\n")
    assert summary.main([tmp_path], tmp_path) == 1
    assert "MISSING: seed=1,lr=0.5 has no scores: it is not through, failed or was lost" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nix: no such folder"):
        summary.main([tmp_path / "nix"], tmp_path)
