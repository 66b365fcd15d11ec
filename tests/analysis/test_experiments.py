"""Arms and seeds: what is gathered of a sweep, effects, the protocol's tests, and how far a gain carries."""

import json
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from scipy import stats

from sr4g_utils.analysis import effects, figures, frequency, rescoring, sweeps
from sr4g_utils.dataset.captions import caption
from sr4g_utils.evaluation import scores as evaluation_scores
from sr4g_utils.evaluation import verdicts
from sr4g_utils.finetuning.choices import FREE, Choices
from sr4g_utils.finetuning.processes import OF_FLOW
from sr4g_utils.relations import FAMILIES, NAMES, family
from sr4g_utils.running import profiles
from sr4g_utils.store.files import protocol, read_json, write_json
from sr4g_utils.store.run import Run

OBJECTS = ("seen", "withheld", "mixed", "unseen")
EACH = 6  # prompts of a relation and set
GROUP = np.arange(len(OBJECTS) * len(NAMES) * EACH) % 5  # of doses
DOSES = [0, 2, 8, 32, 128]


def prompts() -> pd.DataFrame:
    rows = [("dog", name, "cat", objects) for objects in OBJECTS for name in NAMES for _ in range(EACH)]
    table = pd.DataFrame(rows, columns=["subject", "relation", "object", "objects"])
    return table.assign(prompt_id=range(len(table)), caption=list(map(caption, *table.iloc[:, :3].T.to_numpy())))


def drawn(share: float, found: float, seed: int, images: int = 2) -> pd.DataFrame:
    """Verdicts of a model that obeys a share of its prompts; what else holds is a coin's toss."""
    rng, asked = np.random.default_rng(seed), prompts()
    table = asked.loc[asked.index.repeat(images)].reset_index(drop=True)
    table = table.assign(image_index=np.tile(np.arange(images), len(asked)), both_found=rng.random(len(table)) < found)
    holds = rng.random((len(table), len(NAMES))) < 0.5
    of = table.relation.map(NAMES.index).to_numpy()
    holds[np.arange(len(table)), of] = rng.random(len(table)) < share
    holds &= table.both_found.to_numpy()[:, None]
    table = table.assign(correct=holds[np.arange(len(table)), of], **dict(zip(NAMES, holds.T, strict=True)))
    return table[[*sweeps.PROMPT, "image_index", "both_found", "correct", *NAMES]]


def told(arm: str, seed: int, model: str, share: float, found: float = 0.9) -> pd.DataFrame:
    number = zlib.crc32(json.dumps((arm, seed, model)).encode())
    return drawn(share, found, number).assign(arm=arm, seed=seed, model=model)


@pytest.fixture(scope="module")
def study():
    """Three seeds of two arms, and their base."""
    parts = [told("base", -1, "base", 0.5)]
    for model in ("main", "unseen"):
        for seed in range(3):
            parts += [told("relations", seed, model, 0.8), told("list", seed, model, 0.5)]
    return pd.concat(parts, ignore_index=True)


def quality(change: float) -> pd.DataFrame:
    rows = [{"model": "base", "value": 2.0, "arm": "relations", "seed": seed} for seed in range(3)]
    for seed in range(3):
        ends = {"change": change, "change_low": change - 0.1, "change_high": change + 0.1}
        rows.append({"model": "main", "value": 2.0 + change, "arm": "relations", "seed": seed, **ends})
    return pd.DataFrame(rows)


def cond(table: pd.DataFrame) -> pd.Series:
    return table.query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]


def test_an_effect_is_the_mean_of_the_seeds_differences(study):
    base, treated = sweeps.base_of(study), list(sweeps.verdicts_of(study, "main", "relations").values())
    found = effects.effect(treated, [base])
    before, *scores = (cond(evaluation_scores.scores(one)).value for one in (base, *treated))
    assert found["difference"] == pytest.approx(np.mean(scores) - before) and found["before"] == pytest.approx(before)
    assert found["low"] < found["difference"] < found["high"]
    assert (found["seeds"], found["prompts"]) == (3, len(prompts()))
    one, alone = effects.effect(treated[:1], [base]), cond(evaluation_scores.compare(base, treated[0], 10))
    assert (one["low"], one["high"]) == pytest.approx((alone.low, alone.high), abs=0.3), "Newcombe's, with one seed"
    none = effects.effect([base], [base])
    assert none["difference"] == 0 and none["p"] == 1
    luck = cond(evaluation_scores.chance(base)).value  # lift is what permuted prompts do not give
    assert effects.effect([base], [base], "lift")["after"] == pytest.approx(before - luck)


def test_the_table_of_effects_and_figures_of_any_arms(study):
    table = effects.effects(study)
    arms = {("relations", "base"), ("list", "base"), ("relations", "list")}
    assert set(zip(table.arm, table.over, strict=True)) == arms
    assert set(table.objects) == {*OBJECTS, "all"} and set(table.model) == {"main", "unseen"}
    cond = table[(table.metric == "VISOR_Cond") & (table.objects == "all")].set_index(["model", "arm", "over"])
    assert (cond.xs("relations", level="arm").difference > 20).all()
    assert (cond.xs(("list", "base"), level=("arm", "over")).low < 0).all()
    assert (table[table.metric == "OA"].difference.abs() < 12).all()
    fewer = study[(study.arm != "list") | (study.seed != 1)]
    seeds = effects.effects(fewer, ["OA"]).groupby(["arm", "over"]).seeds.first()
    assert seeds.to_dict() == {("relations", "base"): 3, ("list", "base"): 2, ("relations", "list"): 2}, "seed by seed"
    for part in (table, table[table.over == "base"], table[table.model == "main"]):
        figures.effects(part, "VISOR_Cond", "points").canvas.draw()
    figures.relations(effects.by_relation(study, "main")).canvas.draw()


@pytest.mark.slow("many draws")
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_over_prompts_and_seeds_cover(seeds):
    """Simulated: prompts differ, seeds differ, and a prompt differs from seed to seed."""
    rng, hits, runs, n = np.random.default_rng(seeds), 0, 400, 60
    spread = 6.0 if seeds > 1 else 0.0  # of a seed, in points; with one, nothing can be known of it
    for _ in range(runs):
        easy = rng.normal(0, 0.15, n)

        def arm(mean: float, easy=easy) -> pd.DataFrame:
            p = np.clip(mean + easy + rng.normal(0, 0.1, n), 0, 1).repeat(2)
            found = rng.random(2 * n) < 0.9
            told = pd.DataFrame({"prompt_id": np.arange(n).repeat(2), "relation": "above", "both_found": found})
            return told.assign(correct=found & (rng.random(2 * n) < p), **dict.fromkeys(NAMES, False))

        base = arm(0.5)
        found = effects.effect([arm(0.6 + rng.normal(0, spread / 100)) for _ in range(seeds)], [base])
        hits += found["low"] <= 10 <= found["high"]
    assert hits / runs >= 0.93 - 2 * np.sqrt(0.05 * 0.95 / runs)


def test_the_confirmatory_tests(study):
    table = effects.confirmed(study, quality(-0.2), 200).set_index("claim")
    verdicts = {name.partition(".")[0]: row.verdict for name, row in table.iterrows()}
    assert {verdicts.pop("3"), verdicts.pop("5")} <= {"holds", "undecided"}, "24 prompts of a relation are few"
    assert verdicts.pop("4") == "undecided" and len(verdicts) == 4 and set(verdicts.values()) == {"holds"}
    idle = study.assign(arm=study.arm.replace({"relations": "list", "list": "relations"}))
    rows = effects.confirmed(idle, quality(0.5), 200).itertuples()
    verdicts = {row.claim.partition(".")[0]: row.verdict for row in rows}
    assert verdicts["1"] == verdicts["2"] == "undecided" and verdicts["1, control"] == "contradicted"
    assert verdicts["5"] == "contradicted", "the distance grew by a quarter"
    with pytest.raises(ValueError, match="no verdicts of the model main with relations"):
        effects.confirmed(study[study.model != "main"], quality(0.0))
    table = quality(-0.2)  # whose distance has both errors
    value, low, high = effects.distance_change(table, "main")
    assert value == pytest.approx(-10) and (low, high) == pytest.approx((-15, -5))
    table.loc[table.model == "main", "change"] = [-0.3, -0.2, -0.1]
    _, low, high = effects.distance_change(table, "main")
    assert (high - low) / 2 == pytest.approx(np.hypot(5, stats.t.ppf(0.975, 2) * 5 / np.sqrt(3))), "of the seeds, too"


def dosed(slope: float, rng: np.random.Generator) -> pd.DataFrame:
    """Five runs of a Latin square, and a base: prompts and runs differ, and success rises with each doubling."""
    asked = prompts()[["prompt_id", "relation"]].assign(group=GROUP, one_image=GROUP % 2 == 0)
    parts = [asked.assign(model="base", run=-1, dose=0, p=0.4)]
    easy, runs = rng.normal(0, 0.15, len(asked)), rng.normal(0, 0.03, 5)
    for run in range(5):
        dose = np.take(DOSES, (GROUP + run) % 5)
        p = 0.5 + easy + runs[run] + slope / 100 * np.log2(1 + dose)
        parts.append(asked.assign(model="main", run=run, dose=dose, p=p))
    table = pd.concat(parts).loc[lambda t: t.index.repeat(2)].reset_index(drop=True)
    table["both_found"] = rng.random(len(table)) < 0.8
    return table.assign(correct=table.both_found & (rng.random(len(table)) < table.p))


@pytest.mark.slow("many draws")
def test_the_interval_of_the_slope_of_doses_covers():
    rng, runs = np.random.default_rng(0), 200
    found = [frequency.slopes(dosed(1.5, rng)).set_index("part") for _ in range(runs)]
    for part in ("all", "scale", "one image"):
        hits = np.mean([table.low[part] <= 1.5 <= table.high[part] for table in found])
        assert hits >= 0.93 - 2 * np.sqrt(0.05 * 0.95 / runs), part


def test_the_slope_of_doses_is_that_of_a_regression_and_their_gains_are_effects():
    table = dosed(1.5, np.random.default_rng(200))
    told = table[(table.model == "main") & table.both_found]
    plain = np.column_stack([np.log2(1 + told.dose), pd.get_dummies(told.prompt_id), pd.get_dummies(told.run)])
    oracle = np.linalg.lstsq(plain.astype(float), 100.0 * told.correct)[0][0]  # image by image
    ours = frequency.slopes(table).set_index("part").loc["all"]
    assert ours.slope == pytest.approx(oracle) and ours.pictures == len(told)
    figures.doses(frequency.by_dose(table)).canvas.draw()
    # what a dose gains is an effect over the base
    table = dosed(0.0, np.random.default_rng(1))
    gains = frequency.by_dose(table).set_index(["dose", "part"])
    base, high = table[table.model == "base"], table[table.dose.eq(128) & table.run.ge(0)]
    ours, visor = gains.loc[(128, "all")].to_dict(), effects.effect([high], [base], "VISOR")
    assert ours == effects.with_visor([high], [base]) and ours["VISOR_low"] == visor["low"]
    named = base.relation.isin(family("scale"))
    assert gains.before[0, "scale"] == pytest.approx(100 * base[named].correct.sum() / base[named].both_found.sum())
    told = {(0.1, 0.9): "matters", (-0.9, 0.9): "does not matter", (-0.2, 1.2): "undecided", (-2, -1.5): "undecided"}
    assert all(frequency.dose_verdict({"low": low, "high": high}) == said for (low, high), said in told.items())


def run_of(sweep: Path, name: str, control: str, seed: int, doses: Sequence[int] = (), **other: Any) -> Path:
    artifacts = sweep / name / "artifacts"
    arms = profiles.load_profile("arms", [], Path())["03_finetuning"]
    declared = {name: value for name, (_, value) in profiles.declared("03_finetuning").items()} | arms
    choices = {name: declared[name] for name in Choices.__struct_fields__}
    choices |= {"control": control, "seed": seed, "doses": doses, **other}
    write_json(artifacts / "finetune_main" / "result.json", {"result": {"choices": choices}})
    models = [{"model": name} for name in ("base", "main", "unseen", "4")]
    write_json(artifacts / "results" / "scores.json", {"rows": models})
    write_json(artifacts / "results" / "quality_detector.json", {"rows": [{"model": "base", "value": 1}]})
    prompts().assign(group=GROUP, one_image=GROUP == 1).to_parquet(artifacts / "prompts_test.parquet")
    for model in ("base", "main"):
        table = drawn(0.5, 0.9, 0 if model == "base" else seed + 1).drop(columns="objects")
        table.to_parquet(artifacts / f"verdicts_{model}.parquet")
    return artifacts


def test_the_protocol_names_every_choice_that_the_arms_share():
    """A run's arm says what differs from the recipe, so a choice of learning that stands in neither would be lost."""
    arms = profiles.load_profile("arms", [], Path())["03_finetuning"]
    shared = {name: value for name, (_, value) in profiles.declared("03_finetuning").items()} | arms
    varied = {"control", "told", "families", "rules", "doses", "apart", "seed"}
    shown = {"milestones", "validate_every", "validation_prompts", "sampling", "threshold", "pairs", "oa_floor"}
    # of another model than the protocol's, or of a LoRA: refused beside its choices
    others = {"lora_alpha", "lora_base", *OF_FLOW, "guidance_embed"}
    learnt = [name for name in Choices.__struct_fields__ if name not in {*varied, *shown, *FREE, *others}]
    assert protocol()["recipe"] == {name: shared[name] for name in learnt} and list(protocol()["recipe"]) == learnt


def test_the_default_run_and_the_arms_take_what_is_held_out_and_asked_from_the_protocol():
    """One recipe for both, and neither categories nor prompts of the first protocol."""
    decided, former = protocol(), protocol(1)["world"]["held out"]
    assert not set(decided["world"]["held out"]) & set(former) and len(decided["world"]["held out"]) == len(former)
    names = ("02_dataset", "03_finetuning", "04_evaluation")
    default = {name: {key: value for key, (_, value) in profiles.declared(name).items()} for name in names}
    arms = {name: default[name] | given for name, given in profiles.load_profile("arms", [], Path()).items()
            if name in names}  # fmt: skip
    asked = decided["prompts"]
    for kind, values in (("default run", default), ("experiments", arms)):
        data, tuning, scoring = (values[name] for name in names)
        assert data["unseen"] == tuning["unseen"] == decided["world"]["held out"]
        assert data["withheld"] == tuning["withheld"] == decided["world"]["withheld"] == decided["recipe"]["withheld"]
        assert data["seed"] == scoring["seed"] == asked["seed"] and scoring["objects"] == asked["sets"][kind]
        assert scoring["per_relation"] == asked["per relation"][kind]
        assert scoring["sampling"]["images"] == asked["pictures"]
        assert {name: tuning[name] for name in decided["recipe"]} == decided["recipe"]
    assert set(decided["experiments"]) >= {"whose gain", "dose", "tower", "balance", "families"}
    assert all(set(one) == {"asks", "runs", "test"} for one in decided["experiments"].values())


def test_a_sweep_is_gathered(tmp_path):
    for seed, control in ((0, "none"), (0, "list"), (1, "none")):
        run_of(tmp_path, f"{seed}-{control}", control, seed)
    (tmp_path / "unfinished" / "artifacts").mkdir(parents=True)
    table = sweeps.gather(sweeps.finished([tmp_path]))
    groups = table.groupby(["arm", "seed", "model"]).size()
    arms = [("base", -1, "base"), ("list", 0, "main"), ("relations", 0, "main"), ("relations", 1, "main")]
    assert groups.to_dict() == dict.fromkeys(arms, 2 * len(prompts()))
    assert len(sweeps.gather_quality(sweeps.finished([tmp_path]))) == 3
    ours = sweeps.verdicts_of(table, "main", "relations")[1][["both_found", *NAMES]].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, drawn(0.5, 0.9, 2)[["both_found", *NAMES]])


def test_ones_own_runs_take_the_place_of_recorded_ones(tmp_path):
    run_of(tmp_path / "early", "a", "none", 0)
    run_of(tmp_path / "early", "b", "list", 0)
    early, kept = sweeps.finished([tmp_path / "early"]), tmp_path / "kept"
    write_json(kept / "quality.json", {"rows": sweeps.gather_quality(early).assign(value=7).to_dict("records")})
    recorded = sweeps.gather(early).assign(correct=False)
    recorded.to_parquet(kept / "verdicts.parquet")
    alone, of = sweeps.read(Run(tmp_path / "alone", "07"), [kept])
    pd.testing.assert_frame_equal(alone, recorded)
    assert of.value.eq(7).all()
    run_of(tmp_path / "late", "a", "shuffled", 1)
    run_of(tmp_path / "late", "b", "none", 0)
    table, quality = sweeps.read(Run(tmp_path / "run", "07"), [kept, tmp_path / "late"])
    right = table.groupby(["arm", "seed"]).correct.any().to_dict()
    assert right == {("base", -1): False, ("list", 0): False, ("relations", 0): True, ("shuffled", 1): True}
    assert not table.duplicated([*sweeps.ARM, "prompt_id", "image_index"]).any()
    assert quality.groupby("arm").value.unique().map(list).to_dict() == {"list": [7], "relations": [1], "shuffled": [1]}
    run_of(tmp_path / "late", "c", "none", 0)
    with pytest.raises(ValueError, match=r"c/artifacts: arm relations, seed 0, as .*b/artifacts is; give one of them"):
        sweeps.read(Run(tmp_path / "run", "07"), [tmp_path / "late"])


def test_a_latin_square_of_doses_is_gathered(tmp_path):
    for i in range(5):
        run_of(tmp_path / "sweep", str(i), "none", 0, DOSES[i:] + DOSES[:i])
    table = sweeps.read_doses(Run(tmp_path / "run", "07"), tmp_path / "sweep")
    treated = table[table.model == "main"]
    assert (treated.groupby("prompt_id").dose.agg(lambda doses: sorted(set(doses))).map(lambda d: d == DOSES)).all()
    assert (treated.dose == [DOSES[(g + i) % 5] for g, i in zip(treated.group, treated.run, strict=True)]).all()
    assert table[table.model == "base"].run.eq(-1).all() and len(table) == 6 * 2 * len(prompts())
    run_of(tmp_path / "few", "0", "none", 0, DOSES)
    with pytest.raises(ValueError, match="its 1 finished runs are no Latin square: a triplet lacks a dose"):
        sweeps.read_doses(Run(tmp_path / "run", "07"), tmp_path / "few")
    run_of(tmp_path / "few", "1", "none", 1)
    with pytest.raises(ValueError, match="1/artifacts: a run without doses; give the folder of a sweep of the profile"):
        sweeps.read_doses(Run(tmp_path / "run", "07"), tmp_path / "few")
    told = [about["arm"] for about, _ in sweeps.finished([tmp_path / "few"])]
    assert told == ["doses", "relations"], "doses are no arm with relations"


def test_what_cannot_be_gathered_is_named(tmp_path):
    refuses("no run is finished; sweep the profile arms", sweeps.finished, [tmp_path])
    run_of(tmp_path, "a", "none", 0)
    other = run_of(tmp_path, "b", "none", 1)
    prompts().assign(subject="cow").to_parquet(other / "prompts_test.parquet")
    refuses("b/artifacts: its test prompts are not those of", sweeps.gather, sweeps.finished([tmp_path]))


def test_a_run_that_was_trained_otherwise_is_another_arm(tmp_path):
    told = {
        "relations": {}, "relations, balanced False, lr 0.001": {"lr": 1e-3, "balanced": False},
        "list by sg2im": {"control": "list", "rules": "sg2im"}, "list, 2 % told": {"control": "list", "told": 0.02},
        "list": {"control": "list", "told": 0.0}, "shuffled, 50 % told": {"control": "shuffled", "told": 0.5},
        "scale, shuffled, 50 % told": {"control": "shuffled", "told": 0.5, "families": ["scale"]},
        "projective and scale, steps 100": {"families": ["projective", "scale"], "steps": 100},
    }  # fmt: skip
    for i, other in enumerate(told.values()):
        run_of(tmp_path, str(i), **{"control": "none", "seed": 0, **other})
    run_of(tmp_path, "seen", "none", 1, validation_prompts=3, milestones=[4], log_every=1)  # nothing of what is learnt
    assert [about["arm"] for about, _ in sweeps.finished([tmp_path])] == [*told, "relations"]


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
    """A dog and a cat in each image: in a share of them the dog lies straight in the direction asked for (aslant, if
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
    refuses("d/artifacts: not of all relations; give a sweep over fine-tuning's rules", rescoring.by_rules, tmp_path)


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
        write_json(path, {"result": read_json(path)["result"] | {"held_out": held_out}})
        drawn(0.5, found, 3).drop(columns="objects").to_parquet(artifacts / "verdicts_unseen.parquet")
    asked = pd.read_parquet(artifacts / "prompts_test.parquet")
    asked.assign(subject="cow").to_parquet(artifacts / "prompts_test.parquet")  # each run has prompts of its own
    table = effects.by_held_out(tmp_path)
    assert table.groupby("held_out", sort=False).size().to_dict() == {"dog, bus": 15, "cow": 15}
    cells = table.set_index(["held_out", "objects", "metric"])
    assert cells.after["dog, bus", "all", "OA"] == pytest.approx(100 * drawn(0.5, 0.9, 3).both_found.mean())
    assert cells.high["cow", "unseen", "OA"] < 0 and set(table.objects) == {*OBJECTS, "all"}
    figures.held_out(table).canvas.draw()
    run_of(tmp_path, "c", "none", 1)
    with pytest.raises(ValueError, match="c/artifacts: has no model unseen; give the folder of a sweep of the profile"):
        effects.by_held_out(tmp_path)


def test_a_table_is_made_of_runs_or_recorded_as_along_fine_tuning(tmp_path):
    artifacts = run_of(tmp_path, "run", "none", 0)
    drawn(0.9, 0.7, 5).drop(columns="objects").to_parquet(artifacts / "verdicts_4.parquet")
    change = {"change": 0.25, "change_low": -0.5, "change_high": 1.0}
    models = [{"model": "base"}, {"model": "4"} | change, {"model": "main"} | change]
    plain = [model | {"things": things, "found": 50} for model in models for things in ("1", "all")]
    closeness = [model | {"metric": name, "value": 0.5} for name in ("KID", "recall") for model in models]
    distances = [*(model | {"value": 2.0} for model in models), {"model": "photos", "value": 1.0}]
    for name, rows in {"plain": plain, "quality_detector": distances, "fidelity_detector": closeness}.items():
        write_json(artifacts / "results" / f"{name}.json", {"rows": rows})
    table = effects.along(tmp_path / "run")
    cells = table.set_index(["metric", "step"])
    steps = protocol()["recipe"]["steps"]
    assert sorted(set(table.step)) == [0, 4, steps], "the last is all of the run's steps"
    assert set(table.metric) == {"OA", "VISOR", "VISOR_Cond", "all things found", "Fréchet distance", "KID", "recall"}
    assert len(table) == 21 and table[table.step == 0].change.isna().all()
    assert cells.loc[("Fréchet distance", 4)].tolist()[1:] == [2, 0.25, -0.5, 1]
    assert cells.value["all things found", steps] == 50
    assert cells.value["OA", 4] == pytest.approx(100 * drawn(0.9, 0.7, 5).both_found.mean())
    figures.along(table).canvas.draw()
    run = Run(tmp_path / "notebook", "07")
    made = effects.made_or_recorded(run, "along", tmp_path / "run", effects.along)
    assert len(made) == len(read_json(run.folder / "artifacts" / "results" / "along.json")["rows"])
    recorded = effects.made_or_recorded(run, "by_relation", None, effects.along)
    assert len(recorded) == len(NAMES), "nothing is made where no folder is given"
    (artifacts / "results" / "plain.json").unlink()
    with pytest.raises(ValueError, match=r"plain.json: is not there; give the folder of a finished run of the profile"):
        effects.along(tmp_path / "run")
