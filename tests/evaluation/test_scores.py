"""Numbers that were silently wrong: unequal numbers of images, few prompts, models of which nothing is found."""

import json
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from scipy import stats
from slowly import VISORS, make_prompts

from sr4g_utils.analysis import bias as analysis_bias
from sr4g_utils.analysis import claims, rescoring
from sr4g_utils.analysis import figures as analysis_figures
from sr4g_utils.analysis import frequency as analysis_frequency
from sr4g_utils.dataset import figures as dataset_figures
from sr4g_utils.dataset.prompts import OBJECT_SETS
from sr4g_utils.evaluation import figures, statistics, tables, verdicts
from sr4g_utils.evaluation import scores as evaluation_scores
from sr4g_utils.relations import NAMES
from sr4g_utils.running import profiles

AT = [evaluation_scores.METRICS.index(name) for name in VISORS]


def draw(rng: np.random.Generator, n: np.ndarray | int, p: float, rho: float, shape: tuple, at=None) -> np.ndarray:
    """Successes of n trials in each cluster; rho is the correlation of a cluster's trials."""
    if rho == 0:
        return rng.binomial(n, p, shape)
    a, b = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    return rng.binomial(n, rng.beta(a, b, shape) if at is None else stats.beta.ppf(at, a, b))


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    known = ~np.isnan(low)
    return float(((low <= truth + 1e-9) & (truth - 1e-9 <= high))[known].mean()) if known.mean() > 0.05 else 1.0


@pytest.mark.parametrize("prompts", [10, 20, 60])
@pytest.mark.parametrize("metric", ["OA and VISOR", "VISOR_Cond"])
def test_intervals_of_few_prompts_keep_their_coverage(prompts, metric):
    rng, missed = np.random.default_rng(prompts), {}
    for images in (1, 2, 4):
        for rho, p in product((0.0, 0.4, 0.8), (0.05, 0.2, 0.5, 0.8, 0.95)):
            shape = (prompts, 2000)
            below = np.full(shape, images) if metric != "VISOR_Cond" else draw(rng, images, 0.5, rho, shape)
            above = draw(rng, below, p, rho, shape)
            share = covered(*statistics.ratio(above.astype(float), below.astype(float)), p)
            if share < 0.9:
                missed[images, rho, p] = share
    assert not missed


@pytest.mark.parametrize("prompts", [10, 20, 60])
def test_intervals_of_differences_keep_their_coverage(prompts):
    rng, missed = np.random.default_rng(prompts), {}
    shares, shape = ((0.05, 0.05), (0.1, 0.4), (0.3, 0.5), (0.5, 0.5), (0.9, 0.95)), (prompts, 1000)
    for images, rho, two, paired in product((1, 4), (0.0, 0.4, 0.8), shares, (False, True)):
        hard = rng.random(shape)  # if paired, a prompt that is hard for one model is hard for the other
        at = (hard, hard) if paired else (hard, rng.random(shape))
        below = [draw(rng, images, share, rho, shape) for share in (0.6, 0.8)]
        above = [draw(rng, n, p, rho, shape, u) for n, p, u in zip(below, two, at, strict=True)]
        pairs = [(a.astype(float), b.astype(float)) for a, b in zip(above, below, strict=True)]
        if (share := covered(*statistics.difference(*pairs), two[1] - two[0])) < 0.9:
            missed[images, rho, two, paired] = share
    assert not missed


def study(seed: int, prompts: int = 336, images: int = 4, gain: float = 0.0, hard: np.ndarray | None = None):
    """Records of a study's size: prompts differ in difficulty, most of them for both models alike."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(0, 1, (2, prompts)) if hard is None else hard
    found, obeyed = 1 / (1 + np.exp(-(hard + np.array([[1.0], [gain]]))))
    both = rng.random((prompts, images)) < found[:, None]
    correct = both & (rng.random((prompts, images)) < obeyed[:, None])
    id, index = (grid.ravel() for grid in np.mgrid[:prompts, :images])
    return pd.DataFrame({
        "prompt_id": id, "image_index": index, "relation": np.array(NAMES, object)[id % 14], "both_found": both.ravel(),
        "correct": correct.ravel(),
    })  # fmt: skip


def test_intervals_of_a_study_are_those_of_the_bootstrap():
    before, after = study(0), study(1, gain=0.7)
    drawn = evaluation_scores.draws([before, after], resamples=20_000)["all"][..., AT]
    change = evaluation_scores.compare(before, after, resamples=100)
    change = change.set_index(["relation", "metric"]).loc["all"].loc[[*VISORS]]
    for i, records in enumerate((before, after)):
        table = evaluation_scores.scores(records).set_index(["relation", "metric"]).loc["all"].loc[[*VISORS]]
        assert close(table, np.quantile(drawn[i, 1:], [0.025, 0.975], axis=0)) and (table.value == drawn[i, 0]).all()
    assert close(change, np.quantile(drawn[1, 1:] - drawn[0, 1:], [0.025, 0.975], axis=0))


def close(table: pd.DataFrame, percentiles: np.ndarray) -> bool:
    """OA, VISOR and VISOR_Cond within 0.3 points; VISOR_n, of so many prompts and no more, within 0.6."""
    away = np.abs(table[["low", "high"]].to_numpy().T - percentiles).max(axis=0)
    return bool((away <= np.where(np.arange(7) < 3, 0.3, 0.6)).all())


def test_an_interval_is_null_below_what_it_needs_and_never_without_width():
    one = study(0, 1).assign(both_found=[True, False, False, False], correct=False)
    table = evaluation_scores.scores(one).set_index(["relation", "metric"]).loc["all"]
    assert table.value["VISOR_Cond"] == 0 and table[["low", "high"]].isna().all(axis=None)
    perfect = study(0, statistics.FEWEST).assign(both_found=True, correct=True)
    table = evaluation_scores.scores(perfect).set_index(["relation", "metric"]).loc["all"].loc[[*VISORS]]
    assert (table.high == 100).all() and table.low.between(50, 75).all()
    few = perfect.assign(both_found=perfect.prompt_id > 0, correct=False)  # one prompt has no denominator
    table = evaluation_scores.scores(few).set_index(["relation", "metric"]).loc["all"].loc[[*VISORS]]
    assert table.low.isna().tolist() == [name == "VISOR_Cond" for name in VISORS]
    drawn = evaluation_scores.draws([perfect, few], resamples=50)["all"][..., AT]
    assert np.isnan(drawn[1, 1:, 2]).all() and not np.isnan(drawn[0]).any() and drawn[1, 0, 2] == 0
    change = evaluation_scores.compare(perfect, few, resamples=50).set_index(["relation", "metric"]).loc["all"]
    assert change.difference["VISOR_Cond"] == -100 and np.isnan(change.low["VISOR_Cond"])
    assert change.low["OA"] < change.difference["OA"] < 0
    half = study(0, 10).assign(both_found=True, correct=lambda t: t.prompt_id < 5)
    same = evaluation_scores.compare(half, half, resamples=50).set_index(["relation", "metric"]).loc["all"]
    same = same.loc[[*VISORS]]
    assert (same.difference == 0).all() and (same.low < -1).all() and (same.high > 1).all() and (same.p == 1).all()


def test_intervals_lie_around_their_value():
    rng = np.random.default_rng(5)
    for _ in range(50):
        below = rng.integers(0, 5, (rng.integers(8, 30), 6)).astype(float)
        above, other = (np.minimum(rng.integers(0, 5, below.shape), below).astype(float) for _ in range(2))
        low, high = statistics.ratio(above, below)
        value = above.sum(axis=0) / below.sum(axis=0)
        known = ~np.isnan(low)
        assert ((low >= 0) & (low <= value) & (value <= high) & (high <= 1))[known].all()
        mirrored = statistics.ratio(below - above, below)
        assert mirrored[0] == pytest.approx(1 - high, nan_ok=True)
        assert mirrored[1] == pytest.approx(1 - low, nan_ok=True)
        forth = statistics.difference((above, below), (other, below))
        assert forth[0] == pytest.approx(-statistics.difference((other, below), (above, below))[1], nan_ok=True)
        assert (forth[0][known] >= -1).all() and (forth[0] <= forth[1])[known].all()


def boxes_of(prompts: pd.DataFrame, images: int, right=lambda prompt, index: True) -> pd.DataFrame:
    """A box of each object in each image, the subject's to the left; or to the right where ``right`` says no."""
    return pd.DataFrame(
        {"prompt_id": p.prompt_id, "image_index": i, "label": name, "score": 0.9, "x": x, "y": 0.0, "w": 5.0, "h": 5.0}
        for p, i in product(prompts.itertuples(), range(images))
        for name, x in ((p.subject, 0.0 if right(p.prompt_id, i) else 90.0), (p.object, 30.0))
    )


PROMPTS = make_prompts(*[("dog", "left of", "cat")] * 10)


def value(table: pd.DataFrame, column: str = "value") -> pd.Series:
    return table.set_index(["relation", "metric"]).loc["all"][column]


def test_a_table_with_one_image_per_prompt_is_not_scored_as_four(capsys):
    boxes = boxes_of(PROMPTS, 1)
    records = verdicts.verdicts(PROMPTS, boxes, threshold=0.1)  # the documented call
    assert value(evaluation_scores.scores(records))["OA"] == 100 and len(records) == 10
    assert records.attrs["images"] == "images=1 per prompt, by the largest image_index"
    verdicts.verdicts(PROMPTS, boxes_of(PROMPTS, 3), threshold=0.1)
    assert "detections: 3 images per prompt, by the largest image_index" in capsys.readouterr().err
    for boxes in (
        boxes_of(PROMPTS, 4).assign(image_index=lambda t: t.image_index + 1),  # numbered from 1
        pd.concat([boxes_of(PROMPTS, 2), boxes_of(PROMPTS[:5], 4)]),  # unequal numbers
        boxes_of(PROMPTS[:3], 4),  # the images of a part of the prompts
    ):
        message = r"detections: the table does not tell how many images.*per_prompt= or --per-prompt"
        refuses(message, verdicts.verdicts, PROMPTS, boxes)


def test_each_model_is_scored_on_its_own_images_and_compared_on_the_common_ones():
    four, two = boxes_of(PROMPTS, 4), boxes_of(PROMPTS, 2, lambda prompt, index: index == 0)
    one = verdicts.verdicts(PROMPTS, four, 4)
    listed = two[["prompt_id", "image_index"]].drop_duplicates()
    other = verdicts.verdicts(PROMPTS, two, listed)
    own = value(evaluation_scores.scores(other))
    assert own["OA"] == own["VISOR_1"] == 100 and np.isnan(own["VISOR_3"]) and len(other) == 20
    change = evaluation_scores.compare(one, other, resamples=100)
    assert value(change, "before")["VISOR"] == 100 and value(change, "after")["VISOR"] == 50
    assert value(change, "images")["OA"] == 20 and change.attrs["left_aside"] == 20
    drawn = evaluation_scores.draws([one, other], 10)["all"][..., AT]
    assert drawn[:, 0, :2].tolist() == [[100, 100], [100, 50]]
    prompts = PROMPTS.assign(objects="all")
    table = tables.change_table({"one": one, "other": other}, prompts, 10)
    assert set(table.left_aside) == {20} and set(table.images) == {20}
    scores = tables.score_table({"one": one, "other": other}, prompts).query("relation == 'all' and metric == 'OA'")
    assert scores["of"].tolist() == [40, 20] and (scores.value == 100).all()


def test_prompts_that_one_model_lacks_are_no_failures_of_it():
    boxes = boxes_of(PROMPTS, 4)
    one = verdicts.verdicts(PROMPTS, boxes, 4)
    part = one[one.prompt_id < 109]
    other = verdicts.verdicts(PROMPTS, boxes[boxes.prompt_id < 109], part)
    assert len(other) == 36 and value(evaluation_scores.scores(other))["OA"] == 100
    change = evaluation_scores.compare(one, other, resamples=10)
    assert change.attrs["left_aside"] == 4 and (change.query("relation == 'all'").difference.dropna() == 0).all()
    refuses(r"no image .* is in all models", evaluation_scores.compare, part, one[one.prompt_id == 109])
    turned = one.assign(relation="right of")
    refuses("prompt 100 is 'left of' in one model and 'right of' in another", evaluation_scores.compare, one, turned)
    sets = PROMPTS.assign(objects=["seen"] * 9 + ["unseen"])
    assert set(tables.score_table({"a": one, "b": other}, sets).query("objects == 'unseen'").model) == {"a"}
    assert set(tables.change_table({"a": one, "b": other}, sets, 10).objects) == {"seen", "all"}


def test_images_are_listed_or_counted_alike_and_named_if_they_do_not_exist():
    boxes = boxes_of(PROMPTS, 2)
    refuses(r"prompt 100 has image_index 1, but images=1 per prompt are scored", verdicts.verdicts, PROMPTS, boxes, 1)
    listed = boxes[["prompt_id", "image_index"]].drop_duplicates()
    with pytest.raises(ValueError, match=r"prompt 109 has image_index 1, but the listed images are scored"):
        verdicts.verdicts(PROMPTS, boxes, listed[:-1])
    for table, message in [
        (pd.concat([listed, listed]), "prompt 100 has image_index 0, no number of one image only"),
        (listed.assign(image_index=-1), "prompt 100 has image_index -1, no whole number from 0"),
        (listed.drop(columns="image_index"), "images: the column 'image_index' is missing"),
        (listed[:0], "images: the table is empty"),
        (0, "images=0: a prompt has at least one image"),
    ]:
        refuses(message, verdicts.verdicts, PROMPTS, boxes, table)
    boxes = boxes_of(PROMPTS, 3, lambda prompt, index: (prompt + index) % 2 == 0)
    boxes = boxes[(boxes.prompt_id + boxes.image_index) % 5 != 0].sample(frac=1, random_state=0)
    counted = verdicts.verdicts(PROMPTS, boxes, 3)
    listed = verdicts.verdicts(PROMPTS, boxes, counted.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(counted, listed)


def test_one_hopeless_model_does_not_stop_the_others(capsys):
    prompts = make_prompts(*[("dog", name, "cat") for name in NAMES for _ in range(8)])
    prompts = prompts.assign(objects=[OBJECT_SETS[i % 2] for i in range(len(prompts))], n_images=1)
    good = verdicts.verdicts(prompts, boxes_of(prompts, 2, lambda prompt, index: index == 0), 2)
    nothing = boxes_of(prompts, 2).iloc[:0]
    with pytest.raises(verdicts.NothingFound, match="the detector found nothing: of 0 boxes"):
        verdicts.verdicts(prompts, nothing, 2)
    hopeless = verdicts.verdicts(prompts, nothing, good, nothing="record")
    assert "the detector found nothing" in capsys.readouterr().err and hopeless.attrs["nothing_found"]
    table = evaluation_scores.scores(hopeless).set_index(["relation", "metric"]).loc["all"]
    assert table.value[["OA", "VISOR"]].tolist() == [0, 0] and np.isnan(table.value["VISOR_Cond"])
    models = {"good": good, "hopeless": hopeless}
    assert verdicts.unfound(models) == ["hopeless"]
    with pytest.raises(verdicts.NothingFound, match=r"nothing of any model \(a, b\)"):
        verdicts.unfound({"a": hopeless, "b": hopeless})
    faint = boxes_of(prompts, 2).assign(score=0.05)
    assert verdicts.verdicts(prompts, faint, 2, nothing="record").attrs["nothing_found"]
    # and everything that is made of the verdicts
    scores, changes = tables.score_table(models, prompts), tables.change_table(models, prompts, 50)
    bias = analysis_bias.bias(models, 50)
    told = claims.table(changes, bias, None, None, "hopeless", "hopeless").set_index("what")
    assert told.test.drop("points of OA, all objects").eq("not testable here").all()
    opinion = statistics.second_opinion(hopeless, good)
    assert opinion.agreement[0] < 100 and opinion.judged[1] == 0 and np.isnan(opinion.agreement[1])
    frequency = analysis_frequency.gain_by_frequency(good, hopeless, prompts, 50)
    boxes = {"good": boxes_of(prompts, 2).assign(width=99, height=99), "hopeless": nothing}
    ablation = rescoring.ablation(prompts, boxes, models, resamples=10)
    for figure in (
        figures.scores(scores), figures.scores_per_relation(scores), analysis_figures.bias(bias),
        analysis_figures.gain_by_frequency(frequency), analysis_figures.ablation(ablation),
    ):  # fmt: skip
        figure.canvas.draw()


@pytest.mark.parametrize("name", list(profiles.notebooks()))
def test_no_notebook_takes_a_relation_for_granted(name):
    code = ["".join(cell["source"]) for cell in profiles.cells(name) if cell["cell_type"] == "code"]
    taken = rf"\[[\"']({'|'.join(NAMES)})[\"']\]"
    assert not [line for cell in code for line in cell.splitlines() if re.search(taken, line)]


def test_a_study_of_one_relation_is_analysed():
    prompts = make_prompts(*[("dog", "inside", "cat")] * 12).assign(objects="all", n_images=3)
    models = {name: verdicts.verdicts(prompts, boxes_of(prompts, 2), 2) for name in ("before", "after")}
    bias = analysis_bias.bias(models, 20)
    assert bias.relation.tolist() == ["true opposites", "true opposites"] and bias.gap.isna().all()
    told = claims.table(tables.change_table(models, prompts, 20), bias, None, None, "after", "after")
    assert told.verdict[2:4].tolist() == ["not testable here"] * 2
    scores = tables.score_table(models, prompts)
    triplets = prompts[["subject", "relation", "object", "n_images"]]
    for figure in (
        figures.scores(scores), figures.scores_per_relation(scores), analysis_figures.bias(bias),
        dataset_figures.captions_per_relation(triplets), dataset_figures.rank_frequency(triplets),
        dataset_figures.cooccurrence(triplets, ["dog", "cat"]),
        analysis_figures.gain_by_frequency(analysis_frequency.gain_by_frequency(*models.values(), prompts, 20)),
    ):  # fmt: skip
        figure.canvas.draw()
    json.dumps(models["after"].attrs)  # Parquet keeps it
