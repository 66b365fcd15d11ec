"""The analysis of notebooks 04 and 05 and the verdicts on the paper's claims, on worlds whose answers are known."""

import json
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretend import LAYOUT, draw, make_prompts

from sr4g_utils.analysis import bias, claims, frequency, rescoring
from sr4g_utils.analysis.claims import CONTRADICTED, HOLDS, NOT_TESTABLE, NOTHING, UNDECIDED
from sr4g_utils.dataset import coco, counts, triplets
from sr4g_utils.dataset.prompts import draw_prompts
from sr4g_utils.evaluation import judges, statistics, tables
from sr4g_utils.evaluation import scores as evaluation_scores
from sr4g_utils.evaluation import verdicts as evaluation_verdicts
from sr4g_utils.relations import BY_NAME, NAMES, OPPOSITES, RULES, SYMMETRIC, complete_rules, family, judge
from sr4g_utils.store.files import protocol, write_json
from sr4g_utils.store.run import Run


@pytest.fixture(scope="module")
def world():
    prompts = draw_prompts(make_prompts(), 8, seed=0)
    detections = {"base": draw(prompts, 0.5, 1), "fine-tuned": draw(prompts, 0.9, 2)}
    records = {name: evaluation_verdicts.verdicts(prompts, table, 4) for name, table in detections.items()}
    return prompts, detections, records


def test_layouts_show_the_relation_and_not_its_opposite():
    for name, (s, o) in LAYOUT.items():
        holds = dict(zip(NAMES, judge(np.array([s], float), np.array([o], float))[0], strict=True))
        assert holds[name] and not holds[BY_NAME[name].opposite], name


def test_where_rule_sets_disagree(shared, tmp_path):
    """Every two rule sets, and only relations that both define."""
    path = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    counts.write_rule_disagreement(tmp_path / "d.parquet", path, split="val")
    found = pd.read_parquet(tmp_path / "d.parquet").set_index(["a", "b", "relation"])
    both = {(a, b): [n for n in NAMES if n in RULES[a].defines and n in RULES[b].defines] for a in RULES for b in RULES}
    assert list(found.index) == [(a, b, name) for a, b in combinations(RULES, 2) for name in both[a, b]]
    assert {name for a, _, name in found.index if "geneval" in (a, _)} == set(family("projective"))
    table = coco.read(path, "val").without_crowds()
    of = {rules: np.zeros(len(NAMES), int) for rules in RULES}
    apart = np.zeros(len(NAMES), int)  # of visor and geneval
    for _, s, o, _ in triplets.pairs(table):
        held = {rules: triplets.holds(table, s, o, rules) for rules in RULES}
        for rules in RULES:
            of[rules] += held[rules].sum(0)
        apart += (held["visor"] & ~held["geneval"]).sum(0)
    for (a, b, name), row in found.iterrows():
        assert (row.both + row.only_a, row.both + row.only_b) == tuple(of[rules][NAMES.index(name)] for rules in (a, b))
        if (a, b) == ("visor", "geneval"):
            assert row.only_a == apart[NAMES.index(name)]


@pytest.mark.slow("real data")
def test_readings_of_the_paper_are_counted(shared, tmp_path):
    folder = shared / "coco_excerpt" / "annotations"
    paths = {split: folder / f"instances_{split}2017.json" for split in ("train", "val")}
    counts.write_reconstruction(tmp_path / "r.parquet", **paths)
    found = pd.read_parquet(tmp_path / "r.parquet")
    assert set(found.rules) == set(complete_rules()), "those that define all relations"
    assert len(found) == 3 * 3 * len(complete_rules()) * 6 and not found.iloc[:, :-1].duplicated().any()
    found = found.set_index(["images", "rules", "boxes", "counted", "categories"]).n.sort_index()
    for rules, crowds in product(("visor", "sg2im"), (False, True)):
        written = []
        for split, path in paths.items():
            triplets.build(tmp_path / "t.parquet", path, split=split, rules=rules, crowds=crowds)
            written.append(pd.read_parquet(tmp_path / "t.parquet"))
        for images, parts in {"train": written[:1], "val": written[1:], "train + val": written}.items():
            rows = pd.concat(parts)
            each = {"all": rows, "different": rows[rows.subject != rows.object]}
            ours = found[images, rules, "with crowds" if crowds else "all boxes"]
            key = ["subject", "relation", "object"]
            assert ours["triplets per image"].to_dict() == {which: len(part) for which, part in each.items()}
            assert ours["box pairs"].to_dict() == {which: part.n_pairs.sum() for which, part in each.items()}
            distinct = {which: len(part.drop_duplicates(key)) for which, part in each.items()}
            assert ours["distinct triplets"].to_dict() == distinct
    filtered = found.xs("sg2im's filter", level="boxes")
    assert (filtered > 0).all() and (filtered < found.xs("all boxes", level="boxes")).all()


def test_crowds_are_counted_where_annotations_have_them(shared, tmp_path):
    val = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    none = tmp_path / "train.json"
    official = json.loads(val.read_text())
    none.write_text(json.dumps(official | {"annotations": [a for a in official["annotations"] if not a["iscrowd"]]}))
    counts.write_reconstruction(tmp_path / "r.parquet", none, val)
    found = pd.read_parquet(tmp_path / "r.parquet")
    assert set(found.images[found.boxes == "with crowds"]) == {"val"}
    official["categories"][0]["name"] = "somebody"
    none.write_text(json.dumps(official))
    with pytest.raises(ValueError, match="have not the same categories"):
        counts.write_reconstruction(tmp_path / "r.parquet", none, val)


def test_tables_hold_what_visor_says_of_each_part(world):
    prompts, _, records = world
    scores = tables.score_table(records, prompts)
    seen = records["base"][records["base"].prompt_id.isin(prompts.prompt_id[prompts.objects == "seen"])]
    mine = scores[(scores.objects == "seen") & (scores.model == "base")].reset_index(drop=True)
    expected = evaluation_scores.scores(seen)
    pd.testing.assert_frame_equal(mine[list(expected)], expected)
    luck = evaluation_scores.chance(seen).set_index(["relation", "metric"]).value
    assert mine.set_index(["relation", "metric"]).chance.to_dict() == pytest.approx(luck.to_dict(), nan_ok=True)
    assert list(dict.fromkeys(scores.objects)) == ["seen", "unseen", "all"]
    changes = tables.change_table(records, prompts, resamples=200)
    total = changes[(changes.relation == "all") & (changes.metric == "VISOR_Cond")].set_index("objects")
    assert (total.low > 20).all() and (total.p < 0.01).all() and (total.model == "fine-tuned").all()
    assert tables.change_table({"base": records["base"]}, prompts, 10).empty
    outcomes = tables.outcomes(records).set_index("images")
    assert (outcomes.sum() == [len(each) for each in records.values()]).all()
    assert outcomes.loc["correct"].tolist() == [each.correct.sum() for each in records.values()]


def agreed(first, second):
    return judges.agreed({"a": {"base": first}, "b": {"base": second}})["base"]


def test_two_judges_agree_as_far_as_they_do_and_where_they_do(world):
    prompts, detections, records = world
    same = statistics.second_opinion(records["base"], records["base"])
    assert (same.agreement == 100).all() and same.kappa.tolist() == [1, 1] and same.judged[0] == 4 * len(prompts)
    blind = detections["base"].drop(detections["base"][detections["base"].label == "cat"].sample(frac=0.5).index)
    first, second = records["base"].query("image_index == 0"), evaluation_verdicts.verdicts(prompts, blind, 4)
    table = statistics.second_opinion(first, second).set_index("verdict")
    found, holds = table.loc["both objects found"], table.loc["relation holds"]
    assert found.judged == len(prompts) and found.second_only == 0 and 40 < found.agreement < 75
    assert found.low < found.agreement < found.high and holds.agreement == 100 and holds.judged == found.both_yes
    second = evaluation_verdicts.verdicts(prompts, detections["base"].sample(frac=0.7, random_state=0), 4)
    alike, key = agreed(first, second), ["prompt_id", "image_index"]
    verdicts = [table.set_index(key)[["both_found", "correct"]].apply(tuple, axis=1) for table in (first, second)]
    expected = [image for image, verdict in verdicts[0].items() if verdicts[1][image] == verdict]
    assert list(alike[key].itertuples(index=False, name=None)) == expected and list(alike) == list(first)
    opinion = statistics.second_opinion(first, second).set_index("verdict")
    found, holds = opinion.loc["both objects found"], opinion.loc["relation holds"]
    assert len(alike) == holds.both_yes + holds.both_no + found.both_no
    score = tables.score_table({"base": alike}, prompts).query("objects == 'all' and relation == 'all'")
    score = score.set_index("metric").loc["VISOR_Cond"]
    assert (score["count"], score["of"]) == (holds.both_yes, holds.both_yes + holds.both_no)
    nothing = agreed(first, first.assign(both_found=~first.both_found))
    assert nothing.empty and tables.score_table({"base": nothing}, prompts).empty


def test_reported_numbers_stand_beside_ours():
    claims = counts.beside_reported("dataset", {"captions": 9_815_810})
    assert claims.iloc[0]["ours / reported"] == pytest.approx(0.99149, abs=1e-5) and claims.iloc[0].source


def test_verdicts_as_a_stage(world, tmp_path):
    prompts, detections, records = world
    prompts.to_parquet(tmp_path / "prompts.parquet")
    detections["base"].to_parquet(tmp_path / "detections.parquet")
    for prompt, number in product(prompts.prompt_id, range(4)):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{prompt}_{number}.png").touch()
    files = [tmp_path / name for name in ("v.parquet", "prompts.parquet", "detections.parquet", "images")]
    about = tables.write_verdicts(*files, threshold=0.1, pairs="any", rules="visor")
    assert about == {"images": 4 * len(prompts), **records["base"][["both_found", "correct"]].sum().to_dict()}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "v.parquet"), records["base"])


def test_draws_agree_with_scores_and_compare(world):
    _, _, records = world
    drawn = evaluation_scores.draws(list(records.values()), resamples=4000)
    for i, table in enumerate(records.values()):
        scores = evaluation_scores.scores(table).set_index(["relation", "metric"])
        for name, values in drawn.items():
            assert values[i, 0] == pytest.approx(scores.loc[name].value.to_numpy(), nan_ok=True)
            low, high = np.nanquantile(values[i, 1:, bias.COND], [0.025, 0.975])
            # a relation's few prompts: Wilson's interval reaches further towards 50 % than the bootstrap's
            near = 1.5 if name == "all" else 8
            assert (low, high) == pytest.approx(tuple(scores.loc[(name, "VISOR_Cond"), ["low", "high"]]), abs=near)
    left, right = (drawn[name][0, 1:, bias.COND] for name in ("left of", "right of"))
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.06  # relations are drawn independently


def test_bias_is_seen_and_its_end_too(world):
    prompts, _, _ = world
    one_sided = {name: 0.95 if i % 2 == 0 else 0.15 for i, name in enumerate(NAMES)}
    records = [evaluation_verdicts.verdicts(prompts, draw(prompts, p, i), 4) for i, p in enumerate((one_sided, 0.9))]
    table = bias.bias(dict(zip(("before", "after"), records, strict=True)), resamples=500)
    pairs = table[table.with_opposite.notna()]
    assert len(pairs) == 14 and (pairs[pairs.model == "before"].gap > 50).all()
    assert (pairs[pairs.model == "after"].gap.abs() < 25).all()
    assert pairs[pairs.model == "before"].opposite.between(30, 60).all()  # half of the time by far too often
    before, after = table[table.relation == "true opposites"].itertuples()
    squared = pairs[(pairs.model == "before") & (pairs.relation != "overlapping")].gap.pow(2).mean()
    assert np.sqrt(squared) - 5 < before.gap < np.sqrt(squared), "less what noise adds"
    assert after.gap < 15 and after.change_high < -(50**2) and np.isnan(before.change)
    even = bias.bias({"even": evaluation_verdicts.verdicts(prompts, draw(prompts, 0.5, 7), 4)}, resamples=500).iloc[-1]
    assert even.gap_low < 0 < even.gap_high
    left = prompts[prompts.relation == "left of"]
    alone = bias.bias({"x": evaluation_verdicts.verdicts(left, draw(left, 0.5, 0), 4)})
    assert alone.relation.tolist() == ["true opposites"] and alone.gap.isna().all(), "no opposite is asked for"


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_gain_by_frequency_and_known_prompts(slope):
    prompts = draw_prompts(make_prompts(40), 30, 0).query("objects == 'seen'").reset_index(drop=True)
    rank = prompts.groupby("relation").n_images.rank(pct=True)
    base = evaluation_verdicts.verdicts(prompts, draw(prompts, 0.4, 1), 4)
    parts = [draw(prompts[rank.round(1) == r], float(0.5 + slope * r), int(10 * r)) for r in rank.round(1).unique()]
    after = evaluation_verdicts.verdicts(prompts, pd.concat(parts), 4)
    table = frequency.gain_by_frequency(base, after, prompts, resamples=500).set_index("frequency")
    assert table.prompts.tolist() == [140, 140, 140, 420] and list(table.index[:3]) == list(frequency.THIRDS)
    assert table.images_median[:3].is_monotonic_increasing
    contrast = table.loc["most − least"]
    assert contrast.difference == pytest.approx(table.difference.iloc[2] - table.difference.iloc[0])
    assert (contrast.low > 0) == (slope > 0)
    prompts = pd.DataFrame({"objects": ["seen", "unseen", "seen"]})
    assert frequency.known(prompts).index.tolist() == [0, 2]
    assert len(frequency.known(prompts.assign(objects="all"))) == 3


def test_rescoring_under_other_rules_is_what_verdicts_says(world):
    prompts, detections, records = world
    table = rescoring.ablation(prompts, detections, dict.fromkeys(detections, 4), thresholds=(0.1, 0.95), resamples=50)
    assert len(table) == len(complete_rules()) * 2 * 2
    ours = table[(table.rules == "visor") & (table.pairs == "any")].set_index("threshold")
    expected = evaluation_scores.compare(*records.values(), resamples=50).set_index(["relation", "metric"])
    assert ours.loc[0.1, "difference"] == expected.loc[("all", "VISOR_Cond"), "difference"]
    assert table[table.threshold == 0.95].difference.isna().all()  # no box scores above it
    projective = prompts[prompts.relation.isin(family("projective"))]
    able = rescoring.ablation(projective, detections, dict.fromkeys(detections, 4), thresholds=(0.1,), resamples=0)
    assert list(able.rules.unique()) == list(RULES), "GenEval's rules as well, where they define what is asked"


def test_chance_of_both_choices_of_pairs_is_that_of_the_score_table(world):
    prompts, detections, models = world
    table = tables.chance_table(prompts, detections, models, threshold=0.1, rules="visor", pairs="best")
    assert set(table.pair) == {"any", "best"} and set(table.model) == set(models)
    for pair in ("any", "best"):
        told = {name: evaluation_verdicts.verdicts(prompts, found, pairs=pair) for name, found in detections.items()}
        expected = tables.score_table(told, prompts).query("relation == 'all' and metric == 'VISOR_Cond'")
        found = table[table.pair == pair].set_index(["objects", "model"])[["value", "low", "high", "chance"]]
        expected = expected.set_index(["objects", "model"])[["value", "low", "high", "chance"]]
        pd.testing.assert_frame_equal(found.sort_index(), expected.sort_index())


def test_lift_is_the_change_less_that_of_chance(world):
    prompts, _, models = world
    table = tables.change_table(models, prompts, 10).query("metric == 'VISOR_Cond'").set_index(["objects", "relation"])
    scores = tables.score_table(models, prompts).query("metric == 'VISOR_Cond'")
    scores = scores.assign(lift=scores.value - scores.chance).set_index(["model", "objects", "relation"]).lift
    expected = scores["fine-tuned"] - scores["base"]
    assert len(table) == 45 and (table.lift - expected.reindex(table.index)).abs().max() < 1e-9
    assert (table.lift - table.difference).abs().max() > 1


def test_a_change_in_words():
    row = {"model": "m", "objects": "seen", "metric": "OA", "before": 10.0, "after": 20.0, "difference": 10.0}
    ends = [(1.0, 19.0, 0), (-1.0, 21.0, 0), (-19.0, -1.0, 1200), (np.nan, np.nan, 0)]
    changes = pd.DataFrame([row | {"low": low, "high": high, "left_aside": n} for low, high, n in ends])
    more, same, less, few = tables.in_words(changes)
    assert more == "m, seen objects: OA 10.0 → 20.0 (+10.0 [+1.0, +19.0]), more than before"
    assert same.endswith("not distinguishable from before") and few.endswith("not distinguishable from before")
    assert less.endswith("less than before (1,200 images that only one of the two has left aside)")


RUNS = 400  # simulated studies


def quality(change: float, low: float, high: float) -> pd.DataFrame:
    ends = {"change": [np.nan, change], "change_low": [np.nan, low], "change_high": [np.nan, high]}
    return pd.DataFrame({"model": ["base", "fine-tuned"], "value": [10.0, 10 + change], **ends})


def told(study, **changed):
    """The claims of a study: its prompts and, last, its models' verdicts."""
    prompts, *_, records = study
    parts = {
        "changes": tables.change_table(records, prompts, 500), "bias": bias.bias(records, 200),
        "quality": quality(-1.0, -1.5, -0.5), "over_rival": None, "model": "fine-tuned", "unseen_model": "fine-tuned",
    }  # fmt: skip
    return claims.table(**(parts | changed))


def verdict_of(table: pd.DataFrame) -> dict[int, str]:
    return {int(row.claim.split(".")[0]): row.verdict for row in table.itertuples()}


def test_claims_of_models_that_learnt_and_that_learnt_nothing_and_that_forgot(world):
    table = told(world)
    assert verdict_of(table) == {1: HOLDS, 2: HOLDS, 3: HOLDS, 4: UNDECIDED, 5: HOLDS, 6: NOT_TESTABLE}
    assert table.reported[0] == "up to 9 points" and table.source.str.contains("2403.00587").all()
    assert table.number[2] == 14 and 30 < table.number[0] < 50
    assert table.what.str.contains("seen objects")[:2].all() and table.number[4] == pytest.approx(-10)
    prompts, _, records = world
    same = told((prompts, {"base": records["base"], "fine-tuned": records["base"]}))
    assert verdict_of(same) == {1: UNDECIDED, 2: UNDECIDED, 3: UNDECIDED, 4: UNDECIDED, 5: HOLDS, 6: NOT_TESTABLE}
    turned = told((prompts, {"base": records["fine-tuned"], "fine-tuned": records["base"]}))
    assert [verdict_of(turned)[number] for number in (1, 2, 3)] == [CONTRADICTED] * 3
    assert turned.number[2] == 0 and turned.high[2] < 14


def test_a_bias_that_ends_and_one_that_begins(world):
    prompts, _, records = world
    even = {name: 0.95 if i % 2 == 0 else 0.15 for i, name in enumerate(NAMES)}
    unfair = evaluation_verdicts.verdicts(prompts, draw(prompts, even, 3), 4)
    assert verdict_of(told((prompts, {"base": unfair, "fine-tuned": records["fine-tuned"]})))[4] == HOLDS
    assert verdict_of(told((prompts, {"base": records["fine-tuned"], "fine-tuned": unfair})))[4] == CONTRADICTED
    crowded = dict.fromkeys(NAMES, 0.5) | {"overlapping": 0.9, "separated": 0.1}
    full = evaluation_verdicts.verdicts(prompts, draw(prompts, crowded, 4), 4)
    assert verdict_of(told((prompts, {"base": full, "fine-tuned": records["base"]})))[4] == UNDECIDED


def test_quality_and_rivals_are_judged_by_margins(world):
    prompts, _, records = world
    alike = {"OA": 3, "distance": 10, "gap": 10}  # the verdicts recorded under the first protocol stand under both
    assert protocol(1)["margins"] == alike | {"frequency": 1}
    assert protocol()["margins"] == alike | {"dose": 7, "difference": 5}
    assert verdict_of(told(world, quality=None))[5] == NOT_TESTABLE
    for ends, verdict in (((0.5, 0, 0.9), HOLDS), ((0.5, 0, 1.1), UNDECIDED), ((2, 1.1, 3), CONTRADICTED)):
        assert verdict_of(told(world, quality=quality(*ends)))[5] == verdict
    blind = evaluation_verdicts.verdicts(prompts, draw(prompts, 0.9, 2, found=0.6), 4)
    assert verdict_of(told((prompts, {"base": records["base"], "fine-tuned": blind})))[5] == CONTRADICTED, "OA fell"
    over = evaluation_scores.compare(records["base"], records["fine-tuned"], resamples=200)
    assert verdict_of(told(world, over_rival=over))[6] == CONTRADICTED, "VISOR is better, too"
    rarely = evaluation_verdicts.verdicts(prompts, draw(prompts, 0.9, 5, found=0.3), 4)
    poor = evaluation_scores.compare(records["base"], rarely, resamples=200)
    assert verdict_of(told(world, over_rival=poor))[6] == HOLDS


def test_two_models_are_tested_each_where_it_should(world):
    prompts, _, records = world
    three = records | {"without": records["base"]}
    table = told((prompts, three), unseen_model="without", quality=quality(0, -0.1, 0.1))
    assert table.what[0].endswith("all objects") and verdict_of(table)[1] == HOLDS and verdict_of(table)[2] == UNDECIDED
    assert verdict_of(told(world, unseen_model="none"))[2] == NOT_TESTABLE
    some = {name: table[table.relation != "inside"] for name, table in records.items()}
    assert verdict_of(told((prompts[prompts.relation != "inside"], some)))[3] == NOT_TESTABLE


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=20))
def test_holm_is_the_step_down_procedure(p):
    corrected = statistics.holm(p)
    known = sorted(value for value in p if value == value)
    for alpha in (0.01, 0.05, 0.5):
        rejected = 0
        while rejected < len(known) and known[rejected] <= alpha / (len(known) - rejected):
            rejected += 1
        limit = known[rejected - 1] if rejected else -1.0
        close = [abs(value * (len(known) - i) - alpha) < 1e-12 for i, value in enumerate(known)]
        if not any(close):
            assert [bool(c <= alpha) for c in corrected] == [value == value and value <= limit for value in p]
    assert all(np.isnan(c) == (value != value) for c, value in zip(corrected, p, strict=True))


def test_a_test_of_a_true_difference_at_the_bound_errs_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    for side in ("above", "below"):
        found = [claims.against("", [v, v - 1.96, v + 1.96], side, 2.0).verdict for v in rng.normal(2.0, 1.0, 20_000)]
        for verdict in (HOLDS, CONTRADICTED):
            assert 0.02 < found.count(verdict) / len(found) < 0.03


def studied(chances: dict[str, float], rng: np.random.Generator, prompts: int = 24, images: int = 2) -> pd.DataFrame:
    """Verdicts of a model with a known VISOR_Cond for each relation; images of a prompt resemble each other."""
    relation = np.repeat(np.array(list(chances), dtype=object), prompts)
    share = np.repeat(list(chances.values()), prompts)
    holds = rng.random((len(relation), images)) < rng.beta(2 * share + 1e-9, 2 * (1 - share) + 1e-9)[:, None]
    found = rng.random((len(relation), images)) < 0.85
    image, prompt = np.tile(np.arange(images), len(relation)), np.repeat(np.arange(len(relation)), images)
    return pd.DataFrame({"prompt_id": prompt, "image_index": image, "relation": relation[prompt],
                         "both_found": found.ravel(), "correct": (holds & found).ravel()})  # fmt: skip


@pytest.mark.slow("many draws")
def test_relations_are_said_to_change_by_chance_in_5_percent_of_studies_at_most():
    rng, wrong = np.random.default_rng(1), 0
    even = dict.fromkeys(NAMES, 0.5)
    for _ in range(RUNS // 2):
        changes = evaluation_scores.compare(studied(even, rng), studied(even, rng), resamples=1_000)
        each = claims.by_relation(changes)
        wrong += (each.verdict != UNDECIDED).any()
        assert claims.every_relation(each).verdict in (UNDECIDED, CONTRADICTED)
    assert wrong <= 0.05 * RUNS / 2 + 2 * np.sqrt(0.05 * RUNS / 2)


@pytest.mark.parametrize(
    ("gap", "prompts", "studies", "least", "most"), [(0.2, 48, 12, 6, 12), (0.0, 48, 12, 0, 2), (0.0, 1200, 3, 0, 1)]
)
def test_a_pair_of_opposites_that_is_biased_is_found_and_silence_is_no_fairness(gap, prompts, studies, least, most):
    """Studies in which one pair of six has a gap, or none: Holm's correction finds it; "nothing to reduce" is said
    only where many prompts show that there is none."""
    rng, found, fair = np.random.default_rng(4), 0, 0
    chances = dict.fromkeys(NAMES, 0.5) | {"left of": 0.5 + gap / 2, "right of": 0.5 - gap / 2}
    for _ in range(studies):
        one = studied(chances, rng, prompts).assign(**dict.fromkeys(NAMES, False))
        table = bias.bias({"base": one, "fine-tuned": one}, 200)
        found += (table[table.model == "base"].p_holm < claims.ALPHA).any()
        tests = {"4": [claims.against("squared gaps", claims.bias_change(table, "fine-tuned"), "below", 0)]}
        fair += claims.rows_of(tests, table).verdict[0] == NOTHING
    assert least <= found <= most and fair == (studies if prompts == 1200 else 0)


@pytest.mark.slow("many draws")
@pytest.mark.parametrize("gap", [0.0, 0.4])
def test_bias_beyond_noise_is_covered_by_its_interval(gap):
    rng, hits, values = np.random.default_rng(2), 0, []
    chances = {}
    for one, other in OPPOSITES:
        apart = 0.8 if one in SYMMETRIC else gap  # which must not count
        chances |= {one: 0.5 + apart / 2, other: 0.5 - apart / 2}
    for _ in range(RUNS):
        total = bias.bias({"m": studied(chances, rng).assign(**dict.fromkeys(NAMES, False))}, 300).iloc[-1]
        hits += total.gap_low <= 100 * gap <= total.gap_high
        values.append(np.sign(total.gap) * total.gap**2)
    assert hits / RUNS >= 0.93 - 2 * np.sqrt(0.05 * 0.95 / RUNS)
    error = np.std(values) / np.sqrt(RUNS)
    assert abs(np.mean(values) - (100 * gap) ** 2) < 3 * error + 5, "no noise is taken for bias"


def test_what_notebook_04_may_lack(tmp_path):
    run = Run(tmp_path / "run", "05_test")
    assert claims.quality(run, "detector") is None and claims.over_rival(run, None, {}, "m", 10, 0) is None
    write_json(run.folder / "artifacts" / "results" / "quality_FID.json", {"rows": [{"model": "m", "value": 1.0}]})
    assert claims.quality(run, "FID").value.tolist() == [1.0]
    with pytest.raises(FileNotFoundError, match=r"verdicts_other.parquet is missing: run the notebook that makes it"):
        claims.over_rival(run, "other", {}, "m", 10, 0)


def test_a_claim_holds_only_if_it_does_by_each_judge(world):
    prompts, _, records = world
    still = {"base": records["base"], "fine-tuned": records["base"]}
    also = {
        name: (tables.change_table(models, prompts, 200), bias.bias(models, 100))
        for name, models in (("twin", records), ("blind", still))
    }
    headline = judges.by_judge({"a": records, "twin": records, "blind": still}, prompts, 200)
    table = told(world, others=also, headline=headline)
    assert verdict_of(table)[1] == verdict_of(table)[2] == UNDECIDED
    first = table[table.claim.str.startswith("1")]
    assert first.test.tolist() == [HOLDS, HOLDS, UNDECIDED, HOLDS]
    assert first.what.str.extract(r"objects, (.*)$")[0].tolist()[1:] == ["by twin", "by blind", judges.MEDIAN]
    assert verdict_of(told(world, others={"twin": also["twin"]}))[1] == HOLDS
    alone = told(world)
    kept = table[~table.what.str.contains(r", by |median")].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept[["claim", "what", "number", "low", "high"]], alone[list(kept)[:5]])
