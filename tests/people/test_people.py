"""Human verdicts: measures against slow twins, published sources read and refused, and the figures to be met."""

import hashlib
import itertools
import json
import math
import shutil
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refuses
from scipy import stats

from sr4g_utils.dataset import coco, inputs
from sr4g_utils.evaluation import selection, statistics, tables
from sr4g_utils.evaluation.judges import SAMPLES
from sr4g_utils.people import agreement as people_agreement
from sr4g_utils.people import fitted_rule, frames, margins, person_score, vsr
from sr4g_utils.people import published as people_published
from sr4g_utils.relations import BY_NAME, NAMES, PEOPLE_HALF_WIDTH, RULES, family, judge
from sr4g_utils.store.files import DATA, ROOT, read_json, reported
from sr4g_utils.store.run import Run

box = st.tuples(*[st.integers(-40, 400)] * 2, *[st.integers(1, 300)] * 2)


def recorded(name: str, profile: str = "people") -> pd.DataFrame:
    return pd.DataFrame(read_json(DATA / "results" / profile / f"{name}.json")["rows"])


@given(box, box)
def test_the_angle_is_that_of_the_rule_set(s, o):
    """Of which tests/test_relations.py has the laws."""
    dx, dy = s[0] + s[2] / 2 - o[0] - o[2] / 2, s[1] + s[3] / 2 - o[1] - o[3] / 2
    held = judge(np.array([s], float), np.array([o], float), "people")[0]
    for name, (x, y) in fitted_rule.TOWARDS.items():
        along, across = dx * x + dy * y, abs(dx * y) + abs(dy * x)
        angle = math.degrees(math.atan2(across, along)) if (dx, dy) != (0, 0) else 180.0
        assert math.isclose(fitted_rule.off_axis(np.array([[dx, dy]]), name)[0], angle, abs_tol=1e-9)
        assume(abs(angle - PEOPLE_HALF_WIDTH) > 1e-9)
        assert held[NAMES.index(name)] == (angle < PEOPLE_HALF_WIDTH)


def test_the_width_is_what_a_fit_on_the_shared_data_gives(shared):
    """The split and the fit, recomputed with nothing of the package but the readers."""
    folder = shared / "coco2017"
    tables = [coco.read(folder / f"{split}2017_boxes.parquet", split).without_crowds() for split in ("train", "val")]
    angles = fitted_rule.angles(vsr.read_vsr(shared / "vsr" / "vsr_validated.jsonl"), tables)
    assert len(angles) == 3_361 and angles.half.value_counts().to_dict() == {"fitted on": 1_694, "held out": 1_667}
    even = [hashlib.sha256(f"{id}".encode()).hexdigest()[:2] for id in angles.image_id]
    assert [int(byte, 16) % 2 == 0 for byte in even] == (angles.half == "fitted on").tolist()
    assert not set(angles.image_id[angles.half == "fitted on"]) & set(angles.image_id[angles.half == "held out"])
    ours = angles[angles.half == "fitted on"]
    label, angle = ours.label.to_numpy(bool), ours.angle.to_numpy()

    def kappa(width):
        yes = angle < width
        chance = yes.mean() * label.mean() + (~yes).mean() * (~label).mean()
        return ((yes == label).mean() - chance) / (1 - chance)

    assert max(range(30, 91), key=kappa) == PEOPLE_HALF_WIDTH
    assert fitted_rule.fit(fitted_rule.curve(angles)) == PEOPLE_HALF_WIDTH
    theirs = angles[angles.half == "held out"]
    verdict = vsr.judge_like_people(theirs, tables, "people").to_numpy(bool)
    assert (verdict == (theirs.angle < PEOPLE_HALF_WIDTH)).all(), "the rule and the fit judge alike"


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=0, max_size=4), min_size=1, max_size=6))
def test_fleiss_counts_pairs_of_people(items):
    counts = np.array([[item.count(name) for name in "abc"] for item in items])
    agreed, kappa = (value[0] for value in statistics.fleiss(counts))
    asked = [item for item in items if len(item) > 1]
    assume(asked)
    each = [np.mean([a == b for a, b in itertools.combinations(item, 2)]) for item in asked]
    assert math.isclose(agreed, np.mean(each))
    every = [name for item in asked for name in item]
    chance = sum((every.count(name) / len(every)) ** 2 for name in "abc")
    assert math.isnan(kappa) if chance == 1 else math.isclose(kappa, (agreed - chance) / (1 - chance), abs_tol=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_cohen_of_two_categories_is_the_kappa_of_the_counts(pairs):
    a, b = (pd.Series(side) for side in zip(*pairs, strict=True))
    counts = statistics.outcomes(a.to_numpy(), b.to_numpy()).sum(axis=0)
    assert counts.sum() == len(pairs)
    assert np.isclose(statistics.cohen(a, b), statistics.agreement(counts)[3], equal_nan=True)


def test_a_bootstrap_draws_whole_prompts_and_agreement_is_that_of_counts():
    ids = pd.Series(["a", "a", "b", "c"])
    sums = statistics.Clusters(ids, 500, 0).sums(ids, np.array([[1, 1], [1, 1], [0, 1], [0, 1]]))
    assert (sums[:, 0] % 2 == 0).all() and sums[:, 1].min() == 3 and sums[:, 1].max() == 6
    assert statistics.mcnemar(np.array([True] * 6), np.array([False] * 6)) == (6, 0, 2 / 2**6)
    accuracy, precision, recall, kappa = statistics.agreement(np.array([20, 5, 10, 15]))
    assert (accuracy, precision, recall) == pytest.approx((0.7, 0.8, 2 / 3)) and kappa == pytest.approx(0.4)
    assert np.isnan(statistics.agreement(np.array([0, 0, 0, 9]))[1:]).all()


def test_precision_at_the_prevalence_of_coco():
    """A world in which the assumption holds: 1,000 pairs, 200 true; recall 0.9, false alarms 0.1."""
    judged = pd.DataFrame([{"relation": "left of", "rules": "visor", "frame": "all", "n": 200, "accuracy": 0.9,
                            "precision": 0.9, "recall": 0.9, "kappa": 0.8}])  # half true, as in VSR  # fmt: skip
    yes = 0.9 * 200 + 0.1 * 800
    counted = pd.DataFrame([{"relation": "left of", "a": "visor", "b": "sg2im", "pairs": 1000, "both": 100,
                             "only_a": yes - 100, "only_b": 5}])  # fmt: skip
    row = vsr.at_prevalence(judged, counted).iloc[0]
    assert math.isclose(row.pairs, yes / 1000) and math.isclose(row.prevalence, 0.2)
    assert math.isclose(row.precision_at_prevalence, 0.9 * 200 / yes)


@given(box, box)
def test_a_margin_is_the_first_change_that_turns_the_verdict(s, o):
    size = np.array([[512.0, 400.0]])
    one, other = np.array([s], float), np.array([o], float)
    far = margins.margin(one, other, "visor", size)[0]
    assert ((far > 0) & (far <= 0.5)).all()
    dx = s[0] + s[2] / 2 - o[0] - o[2] / 2
    needed = np.ceil(abs(dx) / 512 * 128) / 128 if dx % 4 else abs(dx) / 512 + 1 / 128
    if 0 < needed < 0.5 and dx:
        assert abs(far[NAMES.index("left of")] - needed) <= 1 / 128 + 1e-12
    scaled = margins.margin(2 * one, 2 * other, "visor", 2 * size)[0]
    grown = [i for i, name in enumerate(NAMES) if BY_NAME[name].family == "projective"]
    assert (scaled[grown] == far[grown]).all()


@pytest.fixture(scope="module")
def published(shared):
    return people_published.read_spatialbench(shared / "spatialbench_uc")


def test_the_scratch_figures_are_met_and_those_of_stable_diffusion_under_two_rules(published):
    pictures, found = published
    assert len(pictures) == 2_400 and pictures.verdict.notna().sum() == 200
    table = people_agreement.published_boxes(people_agreement.with_people(pictures, found, resamples=200))
    rows = table[table.detector == "Faster R-CNN"].set_index(["rules", "pairs", "images"])
    for key, n, agreement, kappa in [
        (("visor", "any", "all"), 200, 74.5, 0.49), (("sg2im", "any", "all"), 200, 83.0, 0.64),
        (("sg2im", "best", "all"), 200, 84.0, 0.66), (("geneval", "best", "all"), 200, 82.5, 0.62),
        (("people", "best", "all"), 200, 84.5, 0.68), (("people", "best", "both boxes"), 143, 88.8, 0.78),
    ]:  # fmt: skip
        row = rows.loc[key]
        assert (row.n, round(row.agreement, 1), round(row.kappa, 2)) == (n, agreement, kappa), key
        assert row.agreement_low < row.agreement < row.agreement_high and row.kappa_low < row.kappa < row.kappa_high
    assert list(table) == people_agreement.HEADLINE
    assert people_agreement.checker(pictures)["accuracy"] == pytest.approx(95.7747, abs=1e-4)
    table = people_agreement.scores(pictures, found)
    sd = table.query("model == 'SD 1.5' and detector == 'Faster R-CNN' and pairs == 'any' and metric == 'VISOR_Cond'")
    sd = sd.set_index("rules")
    assert sd.loc["visor", ["value", "low", "high"]].tolist() == pytest.approx([59.2, 53.3, 65.0], abs=0.7)
    assert sd.loc["sg2im", ["value", "low", "high"]].tolist() == pytest.approx([28.9, 23.2, 34.7], abs=0.7)
    assert (sd["of"] == 353).all() and np.allclose((100 * sd["count"] / sd["of"]).astype(float), sd.value)
    few = table[(table.detector == "Grounding DINO") & (table.metric == "VISOR_1")]
    assert few.value.isna().all(), "no VISOR_n where not all images of a prompt were seen"
    runs = pictures.groupby("model")["Grounding DINO"].sum()
    oa = table.query("detector == 'Grounding DINO' and metric == 'OA' and rules == 'visor' and pairs == 'any'")
    assert oa.set_index("model")["of"].to_dict() == runs.to_dict(), "images that a detector never saw are no misses"


def test_judged_pictures_stand_for_those_of_their_stratum(published, shared):
    """The strata's sizes that the project ships are those of the checker's verdicts before it was calibrated."""
    pictures, found = published
    folder, sizes = shared / "spatialbench_uc", {}
    for stem, model in people_published.SYSTEMS.items():
        for line in (folder / f"{stem}_precal.jsonl").read_text().splitlines():
            record = json.loads(line)
            relation, verdict = people_published.RELATION[record["relation"]], record["verdict_raw"]
            held = sizes.setdefault(model, {}).setdefault(relation, {})
            held.setdefault(people_published.ANSWERS[verdict], [0] * 5)[min(int(record["conf"] * 5), 4)] += 1
    assert sizes == reported("spatialbench_uc_strata")
    assert pictures.weight.sum() == pytest.approx(2_400) and (pictures.weight.isna() == pictures.verdict.isna()).all()
    table = people_agreement.with_people(pictures, found, resamples=200)
    row = table.query("rules == 'visor' and pairs == 'any' and images == 'all'").iloc[0]
    records = people_agreement.judged(pictures, found, "Faster R-CNN", "visor", "any").dropna(subset="verdict")
    right = records.correct == (records.verdict == "true")
    assert row.agreement_weighted == pytest.approx(100 * np.average(right, weights=records.weight))
    assert (len(right), round(row.agreement_weighted, 1), round(row.kappa_weighted, 2)) == (200, 80.5, 0.61)


def test_a_picture_is_turned_so_that_the_asked_direction_is_to_the_right(published):
    table = people_agreement.offsets(*published, "Faster R-CNN")
    found = table[table.both_found]
    assert np.allclose(np.degrees(np.arctan2(abs(found.across), found.along)), found.angle)
    assert (found.visor == (found.along > 0)).all()
    why = people_agreement.why(table)
    for rules in RULES:
        of = why[why.rules == rules]
        assert of.person_only.sum() + of.rules_only.sum() == (table[rules] != (table.verdict == "true")).sum()


def test_the_ceiling_by_counting_pairs_of_people(shared):
    answers = people_published.read_geneval_people(shared / "geneval_people")
    assert answers.groupby("model").picture.nunique().to_dict() == dict.fromkeys(people_published.MODELS.values(), 80)
    table = people_agreement.ceiling(answers, resamples=50).set_index(["model", "pictures"])
    of = answers[answers.model == "IF-XL"].groupby("picture").verdict.apply(list)
    same = [np.mean([a == b for a, b in itertools.combinations(each, 2)]) for each in of]
    assert table.loc[("IF-XL", "all"), "agreement"] == pytest.approx(100 * np.mean(same))
    assert table.agreement.between(66, 86).all() and table.kappa.between(0.23, 0.42).all()


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("sample.csv", "", "", r"sb: sample.csv is missing; the folder must hold"),
    ("sd15_boxdiff.jsonl", '"object_a"', '"a"', r"sd15_boxdiff.jsonl, line 1: not as published \(KeyError: 'object_a'"),
    ("labels_filled.csv", "PASS", "MAYBE", r"labels_filled.csv, line 5: human_verdict 'MAYBE' is none of PASS"),
    ("labels_filled.csv", "_seed0003", "_seed9", r"labels_filled.csv, line 2: sample_id '.*_seed9' is in none of"),
    (
        "sample.csv",
        "0.0010",
        "",
        r"sample.csv: sd15_promptonly_.*: its checker_verdict_raw or conf is missing or not as",
    ),
    ("sample.csv", "checker_verdict_raw", "verdict", r"sample.csv: the column 'checker_verdict_raw' is missing"),
    ("labels_filled.csv", "human_verdict", "verdict", r"labels_filled.csv: the column 'human_verdict' is missing"),
])  # fmt: skip
def test_a_spoilt_source_is_named(tmp_path, shared, file, old, new, message):
    folder = shutil.copytree(shared / "spatialbench_uc", tmp_path / "sb", copy_function=shutil.copyfile)
    path = folder / file
    text = path.read_text()
    path.unlink()
    if old:
        path.write_text(text.replace(old, new, 1))
    refuses(message, people_published.read_spatialbench, folder)


def half_widths(n: int, agreed: float = 0.8, differing: float = 0.2) -> dict[str, float]:
    """How far 95 % intervals of ``n`` independent judgements reach to each side: of the share on which rules and people
    agree, of two rule sets' difference if they differ on a share of images (both in points), and of kappa."""
    one, spread = 1.96 / np.sqrt(n), np.sqrt(agreed * (1 - agreed))
    return {"agreement": 100 * one * spread, "kappa": 2 * one * spread, "difference": 100 * one * np.sqrt(differing)}


def test_the_docs_tell_the_right_widths_and_the_ceiling():
    text = (ROOT / "docs" / "people.md").read_text(encoding="utf-8")
    for n in (20, 50, 100, 280, 1_000):
        row = half_widths(n)
        assert f"| {n:,} | ±{row['agreement']:.1f} | ±{row['kappa']:.2f} | ±{row['difference']:.1f} |" in text
    drawn = np.random.default_rng(0).random(20_000 * 100).reshape(20_000, 100) < 0.8
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    assert 100 * (high - low) / 2 == pytest.approx(half_widths(100)["agreement"], abs=0.5)
    assert fitted_rule.fit(recorded("people_curve")) == PEOPLE_HALF_WIDTH
    assert set(recorded("people_agreement").rules) == set(recorded("people_scores").rules) <= set(RULES)
    assert recorded("people_order").order.nunique() == 1
    two = recorded("people_ceiling").set_index("pictures")
    for pictures, words in (("all", "GenEval"), ("both objects", "those")):
        low, high = two.agreement[pictures].min(), two.agreement[pictures].max()
        assert f"on {low:.1f} to {high:.1f} % of {words}" in text
    kappa = two.kappa["all"]
    assert f"κ {kappa.min():.2f} to {kappa.max():.2f}" in text and f"{PEOPLE_HALF_WIDTH:.0f}° off the axis" in text


def test_readme_and_docs_tell_the_recorded_agreement_and_scores():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = people_agreement.published_boxes(recorded("people_agreement"))
    rows = rows.query("detector == 'Faster R-CNN' and images == 'all'")
    by_visor = rows.query("rules == 'visor' and pairs == 'any'").iloc[0]
    others = rows[rows.rules != "visor"]
    assert f"{by_visor.agreement:.1f} % (κ {by_visor.kappa:.2f})" in text
    agreed, kappa = others.agreement, others.kappa
    assert f"{agreed.min():.0f} to {agreed.max():.1f} % (κ {kappa.min():.2f} to {kappa.max():.2f})" in text
    weighted = others.agreement_weighted
    assert f"{by_visor.agreement_weighted:.1f} and {weighted.min():.0f} to {weighted.max():.0f} %" in text
    text = " ".join((ROOT / "docs" / "people.md").read_text(encoding="utf-8").split())
    would = recorded("people_would_score").query("strata == 'with confidence' and pairs in ('none', 'any')")
    person, visor = (would[would.rules == rules] for rules in ("none", "visor"))
    for column in (person.value, visor.score):
        assert "{:.0f}, {:.0f} and {:.0f} %".format(*column) in text
    cells = read_json(ROOT / "notebooks" / "06_people.ipynb")["cells"]
    said = next("".join(cell["source"]) for cell in cells if cell["id"] == "would-score-result")
    alone = recorded("people_would_score").query("strata == 'by verdict alone' and rules == 'none'").value
    gaps = recorded("people_gaps").query("strata == 'with confidence' and rules == 'visor' and pairs == 'any'")
    wide, words = gaps.high - gaps.low, "{:.0f}, {:.0f} and {:.0f} %"
    assert words.format(*person.value) in said and words.format(*alone) in said
    assert f"{wide.min():.0f} to {wide.max():.0f} points wide" in said and f"about {person.effective.sum():.0f}" in said
    bounds = selection.published_bounds(reported("visor"))
    row = bounds[(bounds.a == "stable diffusion 1.4") & (bounds.b == "stable diffusion 2.1")].iloc[0]
    ends = f"between −{-row.low:.0f} and +{row.high:.0f} points, where the published difference is {row.difference:.1f}"
    assert ends in text and not ((bounds.low > 0) | (bounds.high < 0)).any()
    scores = recorded("people_scores").query("model == 'SD 1.5' and detector == 'Faster R-CNN' and pairs == 'any'")
    cond = scores[scores.metric == "VISOR_Cond"].set_index("rules").value
    assert f"from {cond['visor']:.0f} to {cond['sg2im']:.0f}" in text


def test_published_systems_stand_beside_ours():
    scores = pd.DataFrame({"metric": ["OA", "VISOR", "VISOR_Cond"], "value": [50.0, 20.0, 40.0]})
    scores = scores.assign(relation="all", model="mine", objects="seen")
    own = {"mine": {"model": {"parameters": 8_687_699}}, "made elsewhere": {"images": "folder"}}
    table = tables.beside_published(scores, recorded("people_scores"), own).set_index("name")
    shown = ["million_parameters", "prompts", "OA", "source"]
    assert table.loc["mine", shown].tolist() == [8.687699, "seen objects", 50.0, "this run"]
    assert table.million_parameters.notna().all(), "of every system that is named (data/reported.yaml)"
    assert table.loc["stable diffusion 1.4", "VISOR_Cond"] == 62.98 and table.source.notna().all()  # microsoft/VISOR
    row = table.loc["SD 1.5"]  # one row: of the detector that saw all images
    assert row.source == "scored by us from published boxes (Faster R-CNN)" and round(row.VISOR_Cond, 1) == 59.2
    assert set(table.prompts) == {"seen objects", "SpatialBench-UC", "SR2D"} and len(table) == 12


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
    expected = recorded("human_agreement", "coco").set_index(["rules", "relation", "frame"])
    ours = found.set_index(expected.index.names).loc[expected.index]
    pd.testing.assert_frame_equal(ours, expected, check_dtype=False, rtol=1e-9)


def test_a_line_that_is_no_judgement_is_named(tmp_path):
    line = {"image": "1.jpg", "caption": "The dog is left of the cat.", "relation": "left of", "label": 1}
    (tmp_path / "v.jsonl").write_text(json.dumps({**line, "reference_frame": None}) + "\n" + json.dumps(line))
    refuses(r"v.jsonl, line 2: not a VSR judgement \(KeyError: 'reference_frame'\)", vsr.read_vsr, tmp_path / "v.jsonl")


def test_recorded_agreement_is_not_kept_again_and_judgements_are_read_where_all_is_given(monkeypatch, tmp_path):
    run = Run(tmp_path / "run", "01_test")
    for sources in (("recorded", None, None), (None, "recorded", None)):
        table, about = vsr.human_agreement_result(run, *sources, 10, 0)
        assert len(table) and about["commit"]
    assert not list((run.folder / "artifacts" / "results").glob("*"))
    path, asked = inputs.annotations(run, "miniature:5", "train"), {}
    monkeypatch.setattr(vsr, "read_vsr", lambda source: asked.setdefault("read", source))
    one = pd.DataFrame({"n": [1]})
    monkeypatch.setattr(vsr, "human_agreement", lambda *given: asked.setdefault("given", given) and one)
    (tmp_path / "vsr.jsonl").write_text("{}")
    table, about = vsr.human_agreement_result(run, tmp_path / "vsr.jsonl", path, path, 10, 3)
    assert asked["read"] == tmp_path / "vsr.jsonl" and asked["given"][2:] == (3, 10)
    kept = read_json(run.folder / "artifacts" / "results" / "human_agreement.json")["rows"]
    assert len(table) == len(kept) == 1 and about["resamples"] == 10


def test_whose_left_is_counted_and_silence_told_on_the_other_half():
    """People mean a person's own left, and the viewer's for the rest: that kind alone is silent, and it helps."""
    rng, n = np.random.default_rng(0), 1200
    kind, holds = rng.choice(frames.KINDS, n), rng.random(n) < 0.5
    turned = rng.random(n) < np.where(kind == "person", 0.8, 0.1)
    table = pd.DataFrame({"image_id": rng.integers(800, size=n), "kind": kind, "holds": holds, "label": holds ^ turned})
    table["reversed"] = pd.Series(turned, dtype="boolean").mask(rng.random(n) < 0.1)
    table["half"] = np.where(table.image_id % 2, "held out", "fitted on")
    shares = frames.reversed_shares(table)
    decided = table[(table.half == "held out") & (table.kind == "person")].reversed.dropna()
    row = shares[(shares.half == "held out") & (shares.kind == "person")].iloc[0]
    assert row.percent == pytest.approx(100 * decided.mean()) and row.low < row.percent < row.high
    assert set(shares.kind[shares.silent]) == {"person"}
    result = frames.silence(table, shares, 500, 0).set_index("of")
    speaks = table[(table.half == "held out") & (table.kind != "person")]
    assert result.kappa["where it speaks"] == pytest.approx(statistics.cohen(speaks.holds, speaks.label))
    assert result.verdict["difference"] == "helps" and result.low["difference"] > 0
    nobody = frames.silence(table, shares.assign(silent=False), 50, 0)
    assert nobody.verdict.iloc[-1] == "no kind is silent" and nobody.kappa.iloc[-1] == 0
    assert [frames.kind_of(name) for name in ("person", "dog", "bus", "tv", "bowl")] == list(frames.KINDS)


def test_a_stratified_sample_gives_the_mean_and_its_variance_back():
    """Over all samples of a small population: no bias, and the variance that they have."""
    population = np.array([1.0, 0, 0, 1, 1, 1, 0, 1, 0])
    draws = [
        (np.array(one + other), np.array([4 / 2] * 2 + [5 / 3] * 3), np.array(["a"] * 2 + ["b"] * 3, object))
        for one in combinations(range(4), 2) for other in combinations(range(4, 9), 3)
    ]  # fmt: skip
    estimates = [person_score.weighted_mean(population[rows], weight, stratum) for rows, weight, stratum in draws]
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() == pytest.approx(population.mean())
    assert np.mean([estimate.variance for estimate in estimates]) == pytest.approx(values.var(), rel=1e-9)
    assert {estimate.freedom for estimate in estimates} == {3}
    low, high = estimates[0].interval()
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 3) * estimates[0].variance ** 0.5)


def test_what_the_person_would_score_is_the_records(published):
    pictures, boxes = published
    table = person_score.person_scores(pictures, boxes)
    alone = table[(table.rules == "none") & (table.strata == "by verdict alone")]
    assert alone.value.round(1).tolist() == [16.2, 44.1, 71.2]  # the pilot's, of the coarser strata
    own = table[(table.rules == "visor") & (table.pairs == "any") & (table.strata == "with confidence")]
    assert own.score.round(1).tolist() == [26.1, 50.9, 61.6]
    seen = pictures[pictures.weight.notna()]
    by_hand = seen.groupby("model", sort=False).apply(
        lambda part: np.average(part.verdict == "true", weights=part.weight)
    )
    assert table[table.rules == "none"].value.head(3).tolist() == pytest.approx((100 * by_hand).tolist())
    gaps = person_score.person_gaps(pictures, boxes)
    row = gaps[(gaps.rules == "visor") & (gaps.pairs == "any")].iloc[1]
    assert (row.person - row.score) == pytest.approx(row.difference) and row.low < 0 < row.high
    assert (gaps.p_holm >= gaps.p).all()


def test_whose_gain_it_is_between_published_systems_is_the_record(published):
    pictures, boxes = published
    ours, kept = people_agreement.whose_gain(pictures, boxes, 100), recorded("people_whose_gain")
    pd.testing.assert_frame_equal(ours[["gain", "others", "difference"]], kept[["gain", "others", "difference"]])
    both = pictures["Faster R-CNN"] & pictures["Grounding DINO"]
    shares = []
    for detector in ("Faster R-CNN", "Grounding DINO"):
        records = people_agreement.judged(pictures, boxes, detector, "visor", "best")
        records = records[records.picture.isin(pictures.picture[both])]
        one, two = (records[records.model == name] for name in ("SD 1.5", "SD 1.5 + BoxDiff"))
        one, two = one[one.asked.isin(two.asked)], two[two.asked.isin(one.asked)]
        shares.append(100 * (two.correct[two.both_found].mean() - one.correct[one.both_found].mean()))
    row = kept[(kept.pairs == "best") & (kept.images == SAMPLES[0]) & (kept.b == "SD 1.5 + BoxDiff")].iloc[0]
    assert shares == pytest.approx([row.gain, row.others])
    assert people_agreement.whose_gain_verdict(kept) == "undecided"
    best = kept[kept.pairs == "best"]
    beyond = best[(best.images == SAMPLES[1]) & (best.low_corrected > 0)]  # told as exploratory
    rows = pd.concat([best[best.images == SAMPLES[0]], beyond])
    assert len(rows) == 4
    page = (ROOT / "docs" / "people.md").read_text()
    for row in rows.itertuples():
        assert f"{row.difference:.1f} [{row.low:.1f}, {row.high:.1f}]".replace("-", "−") in page
    near = kept.assign(low=-4.0, high=4.0, low_corrected=-4.5, high_corrected=4.5)
    assert "same" in people_agreement.whose_gain_verdict(near)
    assert "detector's" in people_agreement.whose_gain_verdict(near.assign(low_corrected=0.1))
