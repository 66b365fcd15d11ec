"""How far the gain carries: each experiment's table from runs whose truth is known."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_experiments import EACH, OBJECTS, drawn, prompts, run_of, three_seeds, told

from sr4g_utils.analysis import effects, figures, rescoring, sweeps
from sr4g_utils.evaluation import verdicts
from sr4g_utils.relations import FAMILIES, NAMES, family
from sr4g_utils.store.run import Run


@pytest.fixture(scope="module")
def study():
    return three_seeds()


def test_what_families_teach_each_other(study):
    only = told("scale", 0, "main", 0.5)
    scale = only.relation.isin(family("scale"))
    only = pd.concat([told("scale", 0, "main", 0.8)[scale], only[~scale]])
    table = effects.transfer(pd.concat([study, only])).set_index(["trained", "tested"])
    assert table.index.tolist() == [(a, b) for a in ("scale", "relations") for b in FAMILIES]
    assert table.low.loc["scale", "scale"] > 10 and table.low.loc["scale", "projective"] < 0
    assert (table.low.loc["relations"] > 10).all() and table.seeds.loc["scale"].eq(1).all()
    figures.transfer(table.reset_index()).canvas.draw()
    assert effects.transfer(study[study.arm != "relations"]).empty


def boxes_of(share: float, seed: int) -> pd.DataFrame:
    """A dog and a cat in each picture: in a share of them the dog lies straight in the direction asked for (aslant, if
    none is), in the others to the right."""
    rng, rows = np.random.default_rng(seed), []
    away = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    for prompt, image in product(prompts().itertuples(), range(2)):
        dx, dy = away.get(prompt.relation, (1, 1)) if rng.random() < share else (1, 0)
        about = {"prompt_id": prompt.prompt_id, "image_index": image, "score": 0.9, "w": 10, "h": 10}
        rows.append(about | {"label": "dog", "x": 27 + 20 * dx, "y": 27 + 20 * dy})
        rows.append(about | {"label": "cat", "x": 27, "y": 27})
    return pd.DataFrame(rows).assign(width=64, height=64)


def test_rule_sets_trained_on_and_judging(tmp_path):
    for name, rules, share in (("a", "visor", 0.9), ("b", "sg2im", 0.6), ("c", "sg2im", 0.8)):
        artifacts = run_of(tmp_path, name, "none", int(name == "c"), rules=rules)
        (artifacts / "detections").mkdir()
        for model, obeyed in (("base", 0.2), ("main", share)):
            boxes_of(obeyed, len(name) + int(100 * share)).to_parquet(artifacts / "detections" / f"{model}.parquet")
    straight = verdicts.verdicts(prompts(), boxes_of(0.9, 91), 2, 0.18, "best", "sstd")
    every = rescoring.by_rules(tmp_path)
    whole = every[every.family == "all"]
    table = whole[whole.over == "base"].set_index(["trained", "tested"])
    other = whole[whole.over == "visor"].set_index("tested")
    (part,) = every.query("trained == 'visor' and tested == 'sstd' and family == 'projective'").after
    directions = straight[straight.relation.isin(family("projective"))]
    assert part == pytest.approx(100 * directions.correct.sum() / directions.both_found.sum())
    assert set(other.trained) == {"sg2im"} and (other.seeds == 1).all(), "seed by seed"
    assert other.before["people"] == pytest.approx(table.after["visor", "people"]) and (other.difference < 0).all()
    assert len(table) == 2 * 4 and table.seeds["visor", "people"] == 1 and table.seeds["sg2im", "people"] == 2
    assert table.after["visor", "sstd"] == pytest.approx(100 * straight.correct.sum() / straight.both_found.sum())
    assert (table.difference["visor"] > table.difference["sg2im"]).all()
    figures.transfer(table.reset_index()).canvas.draw()
    told = [about["arm"] for about, _ in sweeps.finished([tmp_path])]
    assert told == ["relations", "relations by sg2im", "relations by sg2im"], "other rules' captions are another arm"
    run_of(tmp_path, "d", "list", 0)
    wanted = "d/artifacts: not of all relations; give a sweep over fine-tuning's rules alone"
    with pytest.raises(ValueError, match=wanted):
        rescoring.by_rules(tmp_path)


def test_habits_are_set_against_prompts(study):
    table = study.assign(subject="elephant", object="cup")  # larger, further left and as low by habit
    found = effects.by_prior(table).set_index(["family", "prior", "arm"])
    asked = found.prompts.groupby(["family", "prior"]).first()
    of = {("scale", "suits"): 3, ("scale", "against"): 3, ("projective", "suits"): 1, ("projective", "against"): 1}
    assert asked.to_dict() == {key: n * EACH * len(OBJECTS) for key, n in of.items()}
    chosen = table[table.relation.isin(["smaller", "shorter", "narrower"])]
    treated = list(sweeps.verdicts_of(chosen, "main", "relations").values())
    ours = found.loc[("scale", "against", "relations")].to_dict()
    assert ours == effects.effect(treated, [sweeps.base_of(chosen)])


def test_the_share_of_captions_that_tell_a_relation(study):
    arms = {"list, 10 % told": 0.6, "list, 2 % told": 0.5, "shuffled, 10 % told": 0.9, "scale": 0.9}
    table = pd.concat([study, *(told(arm, 0, "main", obeyed) for arm, obeyed in arms.items())])
    shares = effects.by_share(table).set_index(["metric", "share"])
    cond = shares.loc["VISOR_Cond"]
    assert cond.index.tolist() == [0, 2, 10, 100] and cond.seeds.tolist() == [3, 1, 1, 3]
    assert cond.difference.loc[10] > cond.difference.loc[2] and cond.difference.loc[100] > 20
    part = [table[(table.arm == "list, 10 % told") & (table.model == "main")]]
    assert shares.loc[("OA", 10)].to_dict() == effects.effect(part, [sweeps.base_of(table)], "OA")
    figures.shares(shares.reset_index()).canvas.draw()


def test_other_categories_held_out(tmp_path):
    for name, held_out, found in (("a", ["dog", "bus"], 0.9), ("b", ["cow"], 0.5)):
        artifacts = run_of(tmp_path, name, "none", 0)
        (artifacts / "finetune_main").rename(artifacts / "finetune_unseen")
        (artifacts / "verdicts_main.parquet").unlink()
        path = artifacts / "finetune_unseen" / "result.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({"result": record["result"] | {"held_out": held_out}}))
        table = drawn(0.5, found, 3).drop(columns="objects")
        table.to_parquet(artifacts / "verdicts_unseen.parquet")
    asked = pd.read_parquet(artifacts / "prompts_test.parquet")
    asked.assign(subject="cow").to_parquet(artifacts / "prompts_test.parquet")  # each run has prompts of its own
    table = effects.by_held_out(tmp_path)
    assert table.groupby("held_out", sort=False).size().to_dict() == {"dog, bus": 10, "cow": 10}
    cells = table.set_index(["held_out", "objects", "metric"])
    assert cells.after["dog, bus", "all", "OA"] == pytest.approx(100 * drawn(0.5, 0.9, 3).both_found.mean())
    assert cells.high["cow", "unseen", "OA"] < 0 and set(table.objects) == {*OBJECTS, "all"}
    figures.held_out(table).canvas.draw()
    run_of(tmp_path, "c", "none", 1)
    with pytest.raises(ValueError, match="c/artifacts: has no model unseen; give the folder of a sweep of the profile"):
        effects.by_held_out(tmp_path)


def along_of(folder: Path) -> Path:
    artifacts = run_of(folder.parent, folder.name, "none", 0)
    drawn(0.9, 0.7, 5).drop(columns="objects").to_parquet(artifacts / "verdicts_4.parquet")
    change = {"change": 0.25, "change_low": -0.5, "change_high": 1.0}
    models = [{"model": "base"}, {"model": "4"} | change, {"model": "main"} | change]
    plain = [model | {"things": things, "found": 50} for model in models for things in ("1", "all")]
    closeness = [model | {"metric": name, "value": 0.5} for name in ("KID", "recall") for model in models]
    distances = [*(model | {"value": 2.0} for model in models), {"model": "photos", "value": 1.0}]
    for name, rows in {"plain": plain, "quality_detector": distances, "fidelity_detector": closeness}.items():
        (artifacts / "results" / f"{name}.json").write_text(json.dumps({"rows": rows}))
    return artifacts


def test_along_fine_tuning(tmp_path):
    artifacts = along_of(tmp_path / "run")
    table = effects.along(tmp_path / "run")
    cells = table.set_index(["metric", "step"])
    assert sorted(set(table.step)) == [0, 4, 800], "the last is all of the run's steps"
    assert set(table.metric) == {"OA", "VISOR_Cond", "all things found", "Fréchet distance", "KID", "recall"}
    assert len(table) == 18 and table[table.step == 0].change.isna().all()
    assert cells.loc[("Fréchet distance", 4)].tolist() == [2, 0.25, -0.5, 1]
    assert cells.value["all things found", 800] == 50
    half = pd.read_parquet(artifacts / "verdicts_4.parquet")
    assert cells.value["OA", 4] == pytest.approx(100 * half.both_found.mean())
    figures.along(table).canvas.draw()
    (artifacts / "results" / "plain.json").unlink()
    with pytest.raises(ValueError, match=r"plain.json: is not there; give the folder of a finished run of the profile"):
        effects.along(tmp_path / "run")


def test_a_table_is_made_of_runs_or_recorded(tmp_path):
    along_of(tmp_path / "given" / "run")
    run = Run(tmp_path / "run", "07")
    made = effects.made_or_recorded(run, "along", tmp_path / "given" / "run", effects.along)
    kept = json.loads((tmp_path / "run" / "artifacts" / "results" / "along.json").read_text())["rows"]
    assert len(kept) == len(made)
    recorded = effects.made_or_recorded(run, "by_relation", None, effects.along)
    assert len(recorded) == len(NAMES), "nothing is made where no folder is given"
