"""The analysis of notebooks 04 and 05 on worlds whose answers are known."""

import json

import numpy as np
import pandas as pd
import pytest

import run_all
from sr4g_utils import analysis, runs, visor
from sr4g_utils.relations import BY_NAME, NAMES, judge

# Two boxes in which the relation holds and its opposite does not; swapped, the other way round.
LAYOUT = {
    "left of": ((5, 20, 10, 10), (40, 20, 10, 10)),
    "above": ((20, 5, 10, 10), (20, 40, 10, 10)),
    "inside": ((22, 22, 8, 8), (10, 10, 40, 40)),
    "overlapping": ((10, 10, 20, 20), (20, 20, 20, 20)),
    "wider": ((5, 5, 30, 10), (5, 40, 10, 10)),
    "taller": ((5, 5, 10, 30), (40, 5, 10, 10)),
    "larger": ((5, 5, 30, 30), (45, 45, 10, 10)),
}
LAYOUT |= {BY_NAME[name].opposite: (b, a) for name, (a, b) in LAYOUT.items()}
LAYOUT["separated"] = ((5, 5, 10, 10), (40, 40, 10, 10))


def make_prompts(per_relation: int = 8, seed: int = 0) -> pd.DataFrame:
    """Test and validation prompts of the study's own form, seen and unseen."""
    rng = np.random.default_rng(seed)
    rows = [(r, objects) for objects in ("seen", "unseen", "mixed") for r in NAMES for _ in range(2 * per_relation)]
    table = pd.DataFrame(rows, columns=["relation", "objects"])
    return table.assign(
        prompt_id=np.arange(len(table)),
        subject="dog",
        object="cat",
        caption="–",
        n_images=rng.integers(1, 1000, len(table)),
        split=np.where(np.arange(len(table)) % 4 == 0, "validation", "test"),
    )


def draw(prompts: pd.DataFrame, obeys: dict[str, float] | float, seed: int, found: float = 0.9, images: int = 4):
    """Detections of a model that obeys a relation with a given probability, and else draws its opposite."""
    rng, rows = np.random.default_rng(seed), []
    for p in prompts.itertuples():
        for i in range(images):
            share = obeys if isinstance(obeys, float) else obeys[p.relation]
            drawn = p.relation if rng.random() < share else BY_NAME[p.relation].opposite
            subject, object = LAYOUT[drawn]
            rows.append((p.prompt_id, i, p.subject, 0.9, *map(float, subject)))
            if rng.random() < found:
                rows.append((p.prompt_id, i, p.object, 0.8, *map(float, object)))
    return pd.DataFrame(rows, columns=list(visor.DETECTION_COLUMNS)).assign(width=64, height=64)


@pytest.fixture(scope="module")
def world():
    prompts = analysis.draw_prompts(make_prompts(), 8, seed=0)
    detections = {"base": draw(prompts, 0.5, 1), "fine-tuned": draw(prompts, 0.9, 2)}
    return prompts, detections, {name: visor.verdicts(prompts, table) for name, table in detections.items()}


def test_layouts_show_the_relation_and_not_its_opposite():
    for name, (s, o) in LAYOUT.items():
        holds = dict(zip(NAMES, judge(np.array([s], float), np.array([o], float))[0], strict=True))
        assert holds[name] and not holds[BY_NAME[name].opposite], name


# ------------------------------------------------------------------------------------------------ notebook 04


def test_prompts_are_balanced_tested_on_and_of_a_seed():
    table = make_prompts()
    drawn = analysis.draw_prompts(table, 8, seed=3)
    assert drawn.groupby(["objects", "relation"]).size().eq(8).all() and set(drawn.objects) == {"seen", "unseen"}
    assert set(drawn.split) == {"test"} and drawn.prompt_id.is_monotonic_increasing
    pd.testing.assert_frame_equal(drawn, analysis.draw_prompts(table.copy(), 8, seed=3))
    assert set(drawn.prompt_id) != set(analysis.draw_prompts(table, 8, seed=4).prompt_id)
    assert len(analysis.draw_prompts(table, None, 0)) == ((table.split == "test") & (table.objects != "mixed")).sum()
    foreign = table.drop(columns=["split", "objects"])
    assert set(analysis.draw_prompts(foreign, None, 0).objects) == {"all"}
    assert len(analysis.draw_prompts(foreign, 2, 0)) == 28
    with pytest.raises(ValueError, match="no test prompt"):
        analysis.draw_prompts(table[table.objects == "mixed"], 8, 0)


def test_tables_hold_what_visor_says_of_each_part(world):
    prompts, _, records = world
    scores = analysis.score_table(records, prompts, resamples=200)
    seen = records["base"][records["base"].prompt_id.isin(prompts.prompt_id[prompts.objects == "seen"])]
    mine = scores[(scores.objects == "seen") & (scores.model == "base")].reset_index(drop=True)
    expected = visor.scores(seen, 200)
    pd.testing.assert_frame_equal(mine[list(expected)], expected)
    luck = visor.chance(seen).set_index(["relation", "metric"]).value
    assert mine.set_index(["relation", "metric"]).chance.to_dict() == pytest.approx(luck.to_dict(), nan_ok=True)
    assert list(dict.fromkeys(scores.objects)) == ["seen", "unseen", "all"]
    changes = analysis.change_table(records, prompts, resamples=200)
    total = changes[(changes.relation == "all") & (changes.metric == "VISOR_Cond")].set_index("objects")
    assert (total.low > 20).all() and (total.p < 0.01).all() and (total.model == "fine-tuned").all()
    assert analysis.change_table({"base": records["base"]}, prompts, 10).empty


def test_two_judges_agree_as_far_as_they_do(world):
    prompts, detections, records = world
    same = analysis.second_opinion(records["base"], records["base"], resamples=100)
    assert (same.agreement == 100).all() and same.kappa.tolist() == [1, 1] and same.images[0] == 4 * len(prompts)
    blind = detections["base"].drop(detections["base"][detections["base"].label == "cat"].sample(frac=0.5).index)
    first, second = records["base"].query("image_index == 0"), visor.verdicts(prompts, blind)
    table = analysis.second_opinion(first, second, resamples=500).set_index("verdict")
    found, holds = table.loc["both objects found"], table.loc["relation holds"]
    assert found.images == len(prompts) and found.second_only == 0 and 40 < found.agreement < 75
    assert found.low < found.agreement < found.high and holds.agreement == 100 and holds.images == found.both_yes


def test_published_rows_stand_beside_ours(world):
    prompts, _, records = world
    scores = analysis.score_table(records, prompts, resamples=0)
    table = analysis.beside_published(scores).set_index(["name", "prompts"])
    assert table.loc[("stable diffusion 1.4", "SR2D"), "VISOR_Cond"] == 62.98  # microsoft/VISOR
    assert table.loc[("fine-tuned", "unseen objects"), "OA"] > 80 and table.source.notna().all()


def test_prompts_and_verdicts_as_stages(world, tmp_path):
    prompts, detections, records = world
    make_prompts().to_parquet(tmp_path / "all.parquet")
    drawn = analysis.write_test_prompts(tmp_path / "prompts.parquet", tmp_path / "all.parquet", per_relation=8, seed=0)
    assert drawn == {"seen": 112, "unseen": 112}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "prompts.parquet"), prompts)
    detections["base"].to_parquet(tmp_path / "detections.parquet")
    files = (tmp_path / "v.parquet", tmp_path / "prompts.parquet", tmp_path / "detections.parquet")
    about = analysis.write_verdicts(*files, images=4, threshold=0.1, pairs="any", rules="visor")
    assert about == {"images": 4 * len(prompts), **records["base"][["both_found", "correct"]].sum().to_dict()}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "v.parquet"), records["base"])


# ------------------------------------------------------------------------------------------------ notebook 05


def test_draws_agree_with_scores_and_compare(world):
    _, _, records = world
    drawn = visor.draws(list(records.values()), resamples=4000)
    for i, table in enumerate(records.values()):
        scores = visor.scores(table, resamples=4000).set_index(["relation", "metric"])
        for name, values in drawn.items():
            assert values[i, 0] == pytest.approx(scores.loc[name].value.to_numpy(), nan_ok=True)
            low, high = np.nanquantile(values[i, 1:, analysis.COND], [0.025, 0.975])
            assert (low, high) == pytest.approx(tuple(scores.loc[(name, "VISOR_Cond"), ["low", "high"]]), abs=4)
    left, right = (drawn[name][0, 1:, analysis.COND] for name in ("left of", "right of"))
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.06  # relations are drawn independently
    with pytest.raises(ValueError, match="same prompts"):
        visor.draws([records["base"], records["base"].iloc[4:]])


def test_bias_is_seen_and_its_end_too(world):
    prompts, _, _ = world
    one_sided = {name: 0.95 if i % 2 == 0 else 0.15 for i, name in enumerate(NAMES)}
    records = [visor.verdicts(prompts, draw(prompts, p, i)) for i, p in enumerate((one_sided, 0.9))]
    table = analysis.bias(dict(zip(("before", "after"), records, strict=True)), resamples=500)
    pairs = table[table.relation != "all pairs"]
    assert len(pairs) == 14 and (pairs[pairs.model == "before"].gap > 50).all()
    assert (pairs[pairs.model == "after"].gap.abs() < 25).all()
    assert pairs[pairs.model == "before"].opposite.between(30, 60).all()  # half of the time by far too often
    before, after = table[table.relation == "all pairs"].itertuples()
    assert before.gap == pytest.approx(pairs[pairs.model == "before"].gap.abs().mean())
    assert after.change_high < -50 and np.isnan(before.change)
    # an even model's mean gap is what the noise says, and no more
    even = analysis.bias({"even": visor.verdicts(prompts, draw(prompts, 0.5, 7))}, resamples=500).iloc[-1]
    assert even.gap == pytest.approx(even.noise, rel=0.8) and even.noise > 2
    left = prompts[prompts.relation == "left of"]
    with pytest.raises(ValueError, match="no relation is asked for together with its opposite"):
        analysis.bias({"x": visor.verdicts(left, draw(left, 0.5, 0))})


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_gain_by_frequency(slope):
    prompts = analysis.draw_prompts(make_prompts(40), 30, 0).query("objects == 'seen'").reset_index(drop=True)
    rank = prompts.groupby("relation").n_images.rank(pct=True)
    base = visor.verdicts(prompts, draw(prompts, 0.4, 1))
    parts = [draw(prompts[rank.round(1) == r], float(0.5 + slope * r), int(10 * r)) for r in rank.round(1).unique()]
    after = visor.verdicts(prompts, pd.concat(parts))
    table = analysis.gain_by_frequency(base, after, prompts, resamples=500).set_index("frequency")
    assert table.prompts.tolist() == [140, 140, 140, 420] and list(table.index[:3]) == list(analysis.THIRDS)
    assert table.images_median[:3].is_monotonic_increasing
    contrast = table.loc["most − least"]
    assert contrast.difference == pytest.approx(table.difference.iloc[2] - table.difference.iloc[0])
    assert (contrast.low > 0) == (slope > 0)


def test_rescoring_under_other_rules_is_what_verdicts_says(world):
    prompts, detections, records = world
    table = analysis.ablation(prompts, detections, 4, thresholds=(0.1, 0.95), resamples=50)
    assert len(table) == 3 * 2 * 2
    ours = table[(table.rules == "visor") & (table.pairs == "any")].set_index("threshold")
    expected = visor.compare(*records.values(), resamples=50).set_index(["relation", "metric"])
    assert ours.loc[0.1, "difference"] == expected.loc[("all", "VISOR_Cond"), "difference"]
    assert table[table.threshold == 0.95].difference.isna().all()  # no box scores above it


def claims_of(world, **changed):
    prompts, _, records = world
    quality = pd.DataFrame({"model": ["fine-tuned"], "change": [-1.0], "change_low": [-1.5], "change_high": [-0.5]})
    parts = {
        "changes": analysis.change_table(records, prompts, 200),
        "relations": analysis.every_relation(list(records.values()), 200),
        "bias": analysis.bias(records, 200),
        "quality": quality,
        "over_rival": None,
        "model": "fine-tuned",
        "unseen_model": "fine-tuned",
    }
    return analysis.claims(**(parts | changed)).set_index(pd.Index(range(1, 7)))


def test_claims_hold_fail_or_cannot_be_tested(world):
    prompts, detections, records = world
    table = claims_of(world)
    assert table.verdict.drop(4).tolist() == ["holds", "holds", "holds", "holds", "not testable here"]
    assert table.reported[1] == "up to 9 points" and table.source.str.contains("2403.00587").all()
    assert table.number[3] == 14 and 30 < table.number[1] < 50
    # nothing gained: the same pictures from both
    same = {"base": records["base"], "fine-tuned": records["base"]}
    nothing = claims_of((prompts, detections, same))
    assert nothing.verdict[:4].tolist() == ["fails"] * 4 and (nothing.number[:2] == 0).all()
    assert claims_of(world, quality=None).verdict[5] == "not testable here"
    worse = pd.DataFrame({"model": ["fine-tuned"], "change": [2.0], "change_low": [1.0], "change_high": [3.0]})
    assert claims_of(world, quality=worse).verdict[5] == "fails"
    over = visor.compare(records["base"], records["fine-tuned"], resamples=200)
    assert claims_of(world, over_rival=over).verdict[6] == "fails"  # VISOR is better, too
    poor = visor.compare(records["base"], visor.verdicts(prompts, draw(prompts, 0.9, 5, found=0.3)), resamples=200)
    assert claims_of(world, over_rival=poor).verdict[6] == "holds"
    assert claims_of(world, unseen_model="none").verdict[2] == "not testable here"
    some = analysis.every_relation([r[r.relation != "inside"] for r in records.values()], 100)
    assert some["asked"] == 13 and claims_of(world, relations=some).verdict[3] == "not testable here"


# ------------------------------------------------------------------------------------------------ verification


def test_a_run_agrees_with_itself_and_differences_are_named(world):
    prompts, _, records = world
    scores = analysis.score_table(records, prompts, resamples=100)
    rows = json.loads(scores.to_json(orient="records", double_precision=12))
    assert analysis.differences(rows, rows) == []
    close = [dict(row) for row in rows]
    close[0]["value"] += 0.5 * (rows[0]["high"] - rows[0]["low"])
    assert analysis.differences(close, rows) == []
    close[0]["value"] = rows[0]["value"] + 1.1 * max(rows[0]["high"] - rows[0]["low"], 0.01 * rows[0]["value"])
    close[1]["prompts"] = 3
    close[2]["relation"], close[2]["value"] = "none", None
    named = analysis.differences(close, rows)
    assert [line.split(": ")[1].split(" is")[0] for line in named] == ["value", "prompts", "relation", "value"]
    assert named[0].startswith("seen, base, all, OA")
    assert analysis.differences(rows[1:], rows) == [f"{len(rows) - 1} rows, recorded are {len(rows)}"]


def test_verify_names_what_differs_and_what_is_missing(world, tmp_path, monkeypatch, capsys):
    prompts, _, records = world
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    with pytest.raises(ValueError, match="nothing of the profile small"):
        run_all.verify(tmp_path / "small")
    run = runs.Run(tmp_path / "small", "04_evaluation")
    run.result(analysis.score_table(records, prompts, 50), "scores", world="miniature")
    run_all.record(tmp_path / "small")
    assert run_all.verify(tmp_path / "small") == 0
    assert "scores: agrees" in capsys.readouterr().out
    run.result(analysis.score_table({"base": records["fine-tuned"]}, prompts, 50), "scores")
    assert run_all.verify(tmp_path / "small") == 1
    (run.folder / "artifacts" / "results" / "scores.json").unlink()
    assert run_all.verify(tmp_path / "small") == 1
    told = capsys.readouterr().out
    assert "scores: differs" in told and "missing: run the profile first" in told and analysis.TOLERANCE in told


def test_reported_claims_are_six_with_sources():
    claims = runs.reported("claims")
    assert sorted(claims) == [1, 2, 3, 4, 5, 6]
    assert all({"claim", "reported", "source"} == set(claim) for claim in claims.values())
