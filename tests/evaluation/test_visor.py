"""VISOR's scores against an independent slow scorer, and by their properties."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from slowly import VISORS, make_detections, make_prompts, random_world, score_slowly

from sr4g_utils.evaluation import scores
from sr4g_utils.evaluation import verdicts as evaluation_verdicts
from sr4g_utils.relations import BY_NAME, NAMES


def verdicts(prompts, detections, images=4, **options):
    """As VISOR's protocol has it: four images a prompt, whatever was found in them."""
    return evaluation_verdicts.verdicts(prompts, detections, images, **options)


@pytest.mark.parametrize("variant", ["any-pair", "best-pair"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_slow_scorer(variant, seed):
    prompts, detections = random_world(seed, 60)
    records = verdicts(prompts, detections, threshold=0.3, **evaluation_verdicts.VARIANTS[variant])
    table = scores.scores(records)
    for relation in ["all", *NAMES]:
        of = prompts if relation == "all" else prompts[prompts.relation == relation]
        expected = score_slowly(of, detections, 0.3, variant == "best-pair")
        found = table[table.relation == relation].set_index("metric")["value"].to_dict()
        assert found == pytest.approx(expected, nan_ok=True), relation


def test_a_record_tells_verdict_boxes_and_reason():
    prompts = make_prompts(("dog", "left of", "cat"), ("dog", "above", "cat"))
    detections = make_detections(
        (100, 0, "dog", 0.9, 50, 0, 10, 10),  # right of the cat
        (100, 0, "dog", 0.2, 0, 0, 10, 10),  # left of it: any pair will do
        (100, 0, "cat", 0.8, 30, 0, 10, 10),
        (100, 1, "dog", 0.9, 50, 5, 10, 10), (100, 1, "cat", 0.8, 30, 0, 10, 10), (100, 2, "dog", 0.9, 50, 0, 10, 10),
        (100, 2, "cat", 0.1, 30, 0, 10, 10),  # not above the threshold
        (100, 3, "sofa", 0.9, 0, 0, 5, 5),  # not asked for
        (101, 0, "cat", 0.8, 30, 0, 10, 10),
        (999, 0, "dog", 0.9, 0, 0, 5, 5),  # another prompt's
    )  # fmt: skip
    records = verdicts(prompts, detections)
    assert records.prompt_id.tolist() == [100] * 4 + [101] * 4 and records.image_index.tolist() == [0, 1, 2, 3] * 2
    assert records.correct.tolist() == [True] + [False] * 7
    assert records.both_found.tolist() == [True, True] + [False] * 6
    assert records.reason.tolist() == [
        "the dog is to the left of the cat", "the dog is not to the left of the cat but to the right of it",
        "no cat found", "neither dog nor cat found", "no dog found", *["neither dog nor cat found"] * 3,
    ]  # fmt: skip
    assert (records.n_subject[0], records.n_object[0]) == (2, 1)
    assert records.subject_x[:4].tolist() == pytest.approx([0, 50, 50, np.nan], nan_ok=True)
    assert records.subject_score[0] == 0.2, "the pair that satisfies the relation, not the most confident one"
    assert records.loc[0, ["left of", "right of"]].all(), "both hold for some pair"
    best = verdicts(prompts, detections, **evaluation_verdicts.VARIANTS["best-pair"])
    assert not best.correct[0] and best.subject_score[0] == 0.9 and best.n_subject[0] == 2
    prompts = make_prompts(("dog", "left of", "dog"))  # two different boxes
    one = make_detections((100, 0, "dog", 0.9, 0, 0, 5, 5))
    two = make_detections((100, 0, "dog", 0.9, 0, 0, 5, 5), (100, 0, "dog", 0.8, 20, 0, 5, 5))
    for pairs in ("any", "best"):
        assert verdicts(prompts, one, images=1, pairs=pairs).reason.item() == "only one dog found"
        assert verdicts(prompts, two, images=1, pairs=pairs).correct.item()


def test_rule_sets_and_their_needs():
    prompts = make_prompts(("dog", "left of", "cat"))
    apart = make_detections((100, 0, "dog", 0.9, 0, 50, 9, 9), (100, 0, "cat", 0.9, 10, 0, 9, 9))
    assert verdicts(prompts, apart, images=1).correct.item(), "centres: left of and below at once"
    sized = apart.assign(width=64, height=64)
    assert not verdicts(prompts, sized, images=1, rules="sg2im").correct.item(), "sectors: below"
    assert not verdicts(prompts, apart, images=1, **evaluation_verdicts.VARIANTS["geneval"]).correct.item()
    for rules in ("sg2im", "sstd"):
        apart.attrs["source"] = "mine.csv"
        refuses(rf"mine.csv: rules='{rules}'.* size is missing; .*width", verdicts, prompts, apart, 1, rules=rules)
        refuses("above 0", verdicts, prompts, sized.assign(width=0), 1, rules=rules)
    with pytest.raises(ValueError, match=r"prompt 101: rules='geneval' define left of, .* only, not 'wider'"):
        scale = make_prompts(("dog", "left of", "cat"), ("dog", "wider", "cat"))
        verdicts(scale, apart, images=1, rules="geneval")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["any", "best"]))
def test_properties(seed, pairs):
    prompts, detections = random_world(seed, 12)
    records = verdicts(prompts, detections, pairs=pairs)
    assert not (records.correct & ~records.both_found).any()
    shuffled = detections.sample(frac=1, random_state=seed)
    at = {r["prompt_id"]: r["relation"] for r in prompts.to_dict("records")}
    wanted = zip(records.iterrows(), records.prompt_id.map(at), strict=True)
    assert (records.correct == [row[relation] for (_, row), relation in wanted]).all()
    if pairs == "any":  # ties of the score may be broken otherwise by "best"
        pd.testing.assert_frame_equal(records[["correct", *NAMES]], verdicts(prompts, shuffled)[["correct", *NAMES]])
        # naming the objects the other way round and turning the relation about is the same prompt
        turned = prompts.rename(columns={"subject": "object", "object": "subject"})
        turned = turned.assign(relation=[BY_NAME[name].converse for name in prompts.relation])
        assert (verdicts(turned, detections).correct == records.correct).all()
        # a lower threshold can only find more
        assert (verdicts(prompts, detections, threshold=0.05).correct >= records.correct).all()
    table = scores.scores(records).set_index(["relation", "metric"])["value"]
    assert table["all", "VISOR"] <= table["all", "OA"]
    if table["all", "OA"] > 0:
        assert table["all", "VISOR"] == pytest.approx(table["all", "VISOR_Cond"] * table["all", "OA"] / 100)
    visor_n = [table["all", f"VISOR_{n}"] for n in (1, 2, 3, 4)]
    assert visor_n == sorted(visor_n, reverse=True) and sum(visor_n) / 4 == pytest.approx(table["all", "VISOR"])


def test_draws_are_those_of_prompts_one_by_one_and_the_intervals_are_near_theirs():
    prompts, detections = random_world(3, 80)
    records = verdicts(prompts, detections, threshold=0.3)
    table = scores.scores(records).set_index(["relation", "metric"])
    drawn = scores.draws([records], 20_000, seed=1)["all"][0]
    rng = np.random.default_rng(7)
    by_prompt = records.groupby("prompt_id")[["both_found", "correct"]].sum().to_numpy()
    one_by_one = by_prompt[rng.integers(0, 80, (4000, 80))].sum(axis=1)
    for metric, values in {
        "OA": one_by_one[:, 0] / 3.2,
        "VISOR": one_by_one[:, 1] / 3.2,
        "VISOR_Cond": 100 * one_by_one[:, 1] / one_by_one[:, 0],
    }.items():
        expected = np.quantile(values, [0.025, 0.975])
        ours = drawn[1:, scores.METRICS.index(metric)]
        assert np.quantile(ours, [0.025, 0.975]) == pytest.approx(expected, abs=0.8)
        assert table.loc[("all", metric), ["low", "high"]].tolist() == pytest.approx(expected, abs=2.5)


def test_compare_is_paired():
    prompts, detections = random_world(5, 300)
    before = verdicts(prompts, detections)
    same = scores.compare(before, before, resamples=500).dropna()
    assert (same.difference == 0).all() and (same.low <= 0).all() and (same.high >= 0).all() and (same.p == 1).all()
    # one found but wrong image of each tenth prompt becomes right: a small gain, but the same images otherwise
    wrong = before[before.both_found & ~before.correct].drop_duplicates("prompt_id").index[::10]
    after = before.assign(correct=before.correct | before.index.isin(wrong))
    change = scores.compare(before, after, resamples=2000).set_index(["relation", "metric"]).loc[("all", "VISOR_Cond")]
    assert change.difference == pytest.approx(100 * len(wrong) / before.both_found.sum())
    assert change.low > 0 and change.p < 0.01
    assert scores.compare(after, before).set_index(["relation", "metric"]).difference["all", "VISOR"] < 0
    unpaired = scores.scores(before).set_index(["relation", "metric"]).loc[("all", "VISOR_Cond")]
    assert change.high - change.low < (unpaired.high - unpaired.low) / 2, "pairing is what makes it sharp"


def test_p_values_are_uniform_without_a_difference():
    rng, p, id = np.random.default_rng(1), [], np.repeat(np.arange(60), 4)
    images = pd.DataFrame({"prompt_id": id, "image_index": np.tile(np.arange(4), 60), "relation": "above"})
    for _ in range(100):
        one, two = (images.assign(both_found=rng.random(240) < 0.8, correct=rng.random(240) < 0.5) for _ in range(2))
        for table in (one, two):
            table["correct"] &= table.both_found
        p.append(scores.compare(one, two, resamples=200).set_index(["relation", "metric"]).p["all", "VISOR_Cond"])
    assert 0.01 <= np.mean(np.array(p) < 0.1) <= 0.2 and 0.38 <= np.mean(p) <= 0.62


def test_chance_is_the_mean_over_permuted_prompts():
    prompts, detections = random_world(11, 40, relations=("left of", "above", "separated"))
    records = verdicts(prompts, detections)
    expected = scores.chance(records).set_index(["relation", "metric"])["value"]
    order = [np.random.default_rng(seed).permutation(len(prompts)) for seed in range(3000)]
    relations, runs = prompts.relation.to_numpy(object), []
    holds = records[list(NAMES)].to_numpy(bool).reshape(len(prompts), 4, len(NAMES))
    column = pd.Index(NAMES).get_indexer(pd.Index(relations))
    for permutation in order:
        correct = np.take_along_axis(holds, column[permutation][:, None, None], axis=2)[:, :, 0].sum(axis=1)
        runs.append([correct.sum() / 1.6, *(100 * (correct >= n).mean() for n in (1, 2, 3, 4))])
    mean = dict(zip(("VISOR", *VISORS[3:]), np.mean(runs, axis=0), strict=True))
    for metric, value in mean.items():
        assert value == pytest.approx(expected["all", metric], abs=0.4), metric
    table = scores.scores(verdicts(prompts.assign(relation=relations[order[0]]), detections))
    table = table.set_index(["relation", "metric"])["value"]
    assert table["all", "VISOR"] == pytest.approx(runs[0][0]), "a permutation is a scoring against permuted prompts"
    assert table["all", "OA"] == expected["all", "OA"]
    assert expected["all", "VISOR_Cond"] == pytest.approx(100 * expected["all", "VISOR"] / expected["all", "OA"])
    opposite = make_prompts(("dog", "left of", "cat"), ("dog", "right of", "cat"))
    boxes = [(i, 0, "dog", 0.9, x, 0, 5, 5) for i, x in ((100, 0), (101, 40))]
    boxes += [(i, 0, "cat", 0.9, 20, 0, 5, 5) for i in (100, 101)]
    perfect = verdicts(opposite, make_detections(*boxes), images=1)
    assert perfect.correct.all()
    assert scores.chance(perfect).set_index(["relation", "metric"])["value"]["all", "VISOR_Cond"] == 50


def test_nothing_to_divide_by_is_null_and_never_zero():
    prompts = make_prompts(("dog", "left of", "cat"), ("dog", "above", "cat"))
    detections = make_detections((100, 0, "dog", 0.9, 0, 0, 5, 5), (100, 0, "cat", 0.9, 9, 0, 5, 5))
    table = scores.scores(verdicts(prompts, detections, images=2)).set_index(["relation", "metric"])
    assert table.loc[("left of", "VISOR_Cond"), "value"] == 100
    assert table.loc[("above", "VISOR_Cond"), ["value", "low", "high"]].isna().all()
    assert table.loc[("above", "VISOR_Cond"), "of"] == 0 and table.loc[("above", "VISOR"), "value"] == 0
    assert table.loc[("all", "VISOR_2"), "value"] == 0 and np.isnan(table.loc[("all", "VISOR_3"), "value"])


def test_errors_say_what_to_do():
    prompts = make_prompts(("dog", "left of", "cat"))
    for row in [
        (100, 0, "dog", 0.05, 0, 0, 5, 5),  # nothing above the threshold
        (100, 0, "sofa", 0.9, 0, 0, 5, 5),  # nothing that was asked for
    ]:
        refuses("the detector found nothing", verdicts, prompts, make_detections(row))
    refuses("no prompt_id is one of the prompts'", verdicts, prompts, make_detections((7, 0, "dog", 0.9, 0, 0, 5, 5)))
    detections = make_detections((100, 0, "dog", 0.9, 0, 0, 5, 5))
    refuses("the detector found nothing", verdicts, prompts, detections.iloc[:0])
    refuses(r"prompt 100 has image_index 4, but images=4", verdicts, prompts, detections.assign(image_index=4))
    refuses("relation 'near'", verdicts, make_prompts(("dog", "near", "cat")), detections)
    refuses("prompt_id '100' occurs twice", verdicts, pd.concat([prompts, prompts]), detections)
    refuses("empty", verdicts, prompts.iloc[:0], detections)
    refuses("column 'object' is missing", verdicts, prompts.drop(columns="object"), detections)
    refuses("pairs: unknown value 'all'", verdicts, prompts, detections, pairs="all")
    refuses("rules: unknown rule set 'coco'; choose one of visor, sg2im", verdicts, prompts, detections, rules="coco")


def test_prompts_without_a_box_are_counted_and_said(capsys):
    """160 of 200 prompts drawn: VISOR's script, which knows the images of its file only, says 40.2 for our 32.1."""
    prompts = pd.concat([make_prompts(("dog", "left of", "cat"))] * 200, ignore_index=True)
    prompts["prompt_id"] = range(200)
    drawn, rows = prompts[:160], []
    both = np.random.default_rng(0).permutation(640) < 257
    for (id, index), found in zip(product(drawn.prompt_id, range(4)), both, strict=True):
        things = ("dog", "cat") if found else ("dog",)
        rows += [(id, index, name, 0.9, 50.0 * (name == "cat"), 0.0, 9.0, 9.0) for name in things]
    boxes = make_detections(*rows)
    records = evaluation_verdicts.verdicts(prompts, boxes)
    assert scores.scores(records).query("relation == 'all'").value.iloc[0] == pytest.approx(100 * 257 / 800)
    assert "40 of 200 prompts have no box: each counts as 4 images in which" in capsys.readouterr().err
    assert "40 prompts without any box count" in records.attrs["images"]
    listed = pd.DataFrame(product(drawn.prompt_id, range(4)), columns=["prompt_id", "image_index"])
    records = evaluation_verdicts.verdicts(prompts, boxes, listed)
    assert scores.scores(records).query("relation == 'all'").value.iloc[0] == pytest.approx(100 * 257 / 640)
