"""Several judges of the same images: each, their median, and whose gain it is, on models that are known."""

import numpy as np
import pandas as pd
import pytest
from pretend import draw, make_prompts

from sr4g_utils.evaluation import judges, scores, selection, tables, verdicts
from sr4g_utils.evaluation.scores import MAIN

PROMPTS = make_prompts(2)
OBEYS = {"detector": (0.4, 0.9), "b": (0.4, 0.6), "c": (0.4, 0.7)}  # as each judge sees them, before and after
FOUND = {"detector": 0.9, "b": 0.5, "c": 0.7}


def boxes_of(judge: str) -> dict[str, pd.DataFrame]:
    seed = list(OBEYS).index(judge)
    pairs = zip(("base", "tuned"), OBEYS[judge], strict=True)
    return {name: draw(PROMPTS, obeys, 10 * seed + i, FOUND[judge], 2) for i, (name, obeys) in enumerate(pairs)}


def judged(*names: str) -> dict[str, dict[str, pd.DataFrame]]:
    return {
        judge: {name: verdicts.verdicts(PROMPTS, boxes, 2, pairs="best") for name, boxes in boxes_of(judge).items()}
        for judge in names
    }


def row(table: pd.DataFrame, **wanted: object) -> pd.Series:
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1, wanted
    return table.iloc[0]


def test_most_judges_decide_on_an_image():
    by = judged("detector", "b", "c")
    for count in (2, 3):
        some = dict(list(by.items())[:count])
        counts = judges.counts(some, "tuned").sort_values(["prompt_id", "image_index"])
        tables = [models["tuned"].sort_values(["prompt_id", "image_index"]) for models in some.values()]
        obeyed, both = (np.sum([table[name] for table in tables], axis=0) for name in ("correct", "both_found"))
        assert (counts.correct == (2 * obeyed > count)).all() and 0 < counts.correct.sum() < len(counts)
        assert [int(reason[0]) for reason in counts.reason] == obeyed.tolist()
        assert (counts.reason.str.endswith("missing") == (2 * both <= count)).all()


def test_each_judge_has_its_scores_and_the_median_is_theirs():
    by = judged("detector", "b", "c")
    table = judges.by_judge(by, PROMPTS, 300, 0)
    assert table.judge.unique().tolist() == ["detector", "b", "c", judges.MEDIAN] and len(table) == 4 * 4 * 2 * 3
    for judge, models in by.items():
        changes = tables.change_table(models, PROMPTS, 1)
        for metric in MAIN:
            ours = row(table, judge=judge, objects="all", model="tuned", metric=metric)
            theirs = row(changes, objects="all", relation="all", metric=metric)
            assert (ours.value, ours.gain, ours.gain_low) == (theirs.after, theirs.difference, theirs.low)
    for objects in ("seen", "all"):
        for metric in MAIN:
            rows = table[(table.objects == objects) & (table.model == "tuned") & (table.metric == metric)]
            each, median = rows[rows.judge != judges.MEDIAN], row(rows, judge=judges.MEDIAN)
            assert median.gain == pytest.approx(each.gain.median()) and median.gain_low < median.gain < median.gain_high
            assert median.value == pytest.approx(each.value.median()) and median.low < median.value < median.high
            if metric == "VISOR_Cond":
                assert median.complete == pytest.approx(each.complete.median())
    assert table[table.model == "base"].gain.isna().all()
    assert table[table.metric != "VISOR_Cond"][list(selection.BESIDE)].isna().all(axis=None)
    two = judges.by_judge({name: by[name] for name in ("detector", "b")}, PROMPTS, 50, 0)
    gains = two[(two.objects == "all") & (two.model == "tuned") & (two.metric == "VISOR_Cond")].gain.tolist()
    assert gains[2] == pytest.approx(np.mean(gains[:2])), "of two judges their mean"
    one = judges.by_judge({"detector": by["detector"]}, PROMPTS, 50, 0)
    assert set(one.judge) == {"detector"}


def test_visors_own_rule_stands_beside_and_does_not_count():
    by, boxes = judged("detector", "b"), {name: boxes_of(name) for name in ("detector", "b")}
    how = {"threshold": 0.3, "pairs": "best", "rules": "visor"}
    beside = judges.by_visors_rule(by, boxes, PROMPTS, how)
    assert list(beside) == ["detector, any pair above 0.1", "b, any pair above 0.1"]
    own = verdicts.verdicts(PROMPTS, boxes["b"]["tuned"], 2, **verdicts.LIKE["visor"])
    assert beside["b, any pair above 0.1"]["tuned"].correct.tolist() == own.correct.tolist()
    with_it, without = (judges.by_judge(by, PROMPTS, 50, 0, more) for more in (beside, None))
    medians = [table[table.judge == judges.MEDIAN].reset_index(drop=True) for table in (with_it, without)]
    pd.testing.assert_frame_equal(*medians)
    assert judges.by_visors_rule(by, boxes, PROMPTS, verdicts.LIKE["visor"]) == {}
    templates = {"detector": by["detector"], judges.TEMPLATES: by["b"]}
    assert list(judges.by_visors_rule(templates, boxes, PROMPTS, how)) == ["detector, any pair above 0.1"]


def test_whose_gain_is_the_first_judges_less_the_others_median():
    by = judged("detector", "b", "c")
    table = judges.whose_gain(by, PROMPTS, "base", "tuned", 400, 0)
    assert len(table) == 4 * 3 and not table.isna().any(axis=None)
    gains = []
    for models in by.values():
        before, after = (100 * t.correct.sum() / t.both_found.sum() for t in (models["base"], models["tuned"]))
        gains.append(after - before)
    ours = row(table, objects="all", metric="VISOR_Cond", images=judges.SAMPLES[0])
    assert (ours.gain, ours.others) == pytest.approx((gains[0], np.median(gains[1:])))
    assert ours.difference == pytest.approx(ours.gain - ours.others) and ours.low < ours.difference < ours.high
    assert ours.low > 0, "half of the gain is the detector's"
    found = {name: np.logical_and.reduce([by[judge][name].both_found for judge in by]) for name in ("base", "tuned")}
    same = row(table, objects="all", images=judges.SAMPLES[1])
    shares = [100 * by["detector"][name].correct[found[name]].mean() for name in ("base", "tuned")]
    assert same.gain == pytest.approx(shares[1] - shares[0])
    assert [same.images_before, same.images_after] == [found["base"].sum(), found["tuned"].sum()]
    visor = row(table, objects="all", metric="VISOR")
    assert visor.images_before == 2 * len(PROMPTS)
    twins = {"detector": by["detector"], "twin": by["detector"]}
    none = judges.whose_gain(twins, PROMPTS, "base", "tuned", 100, 0)
    assert (none[["difference", "low", "high"]] == 0).all(axis=None)
    assert judges.whose_gain({"detector": by["detector"]}, PROMPTS, "base", "tuned").empty


def test_a_bootstrap_of_one_judge_is_about_as_wide_as_the_interval():
    before, after = judged("detector")["detector"].values()
    drawn = judges.gains([(before, after)], "VISOR_Cond", 2_000, 0)[0]
    own = scores.compare(before, after, 1).query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    assert drawn[0] == own.difference and (high - low) == pytest.approx(own.high - own.low, rel=0.15)
    few = [table[table.prompt_id < 7] for table in (before, after)]
    assert np.isnan(judges.gains([tuple(few)], "VISOR_Cond", 50, 0)[0, 1:]).all(), "too few prompts"


def test_what_stands_beside_a_gain_is_that_of_the_same_images():
    before, after = judged("b")["b"].values()
    same = selection.same_images(before, after).set_index("sample").loc["found by both"]
    beside = selection.beside(before, after.sample(frac=1, random_state=0))
    assert [beside[name] for name in selection.BESIDE[:3]] == pytest.approx([same.difference, same.low, same.high])
    oa, cond = ([100 * t[name].sum() / n for t, n in zip((before, after), of, strict=True)] for name, of in (
        ("both_found", (len(before), len(after))), ("correct", (before.both_found.sum(), after.both_found.sum()))
    ))  # fmt: skip
    assert (beside["bound_low"], beside["bound_high"]) == pytest.approx(selection.lee(tuple(oa), tuple(cond)))
    none = before.assign(both_found=False, correct=False)
    assert np.isnan(list(selection.beside(none, after).values())).all()
