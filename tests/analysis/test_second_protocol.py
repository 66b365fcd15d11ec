"""The second protocol's tests: opposites asked of the same things, doses by cells, swapped towers, several judges."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from refusals import refuses
from scipy import stats
from test_experiments import DOSES, drawn, prompts, run_of, told

from sr4g_utils.analysis import claims, effects, frequency, judged, opposites, sweeps, tower
from sr4g_utils.dataset.prompts import draw_prompts
from sr4g_utils.evaluation import selection
from sr4g_utils.relations import NAMES, OPPOSITES, SYMMETRIC
from sr4g_utils.store.files import read_json, write_json

THINGS = [(f"a{i}", f"b{i}") for i in range(48)]
MARGIN = 10  # of gaps


def asked(gap: float, rng: np.random.Generator, unequal: int = 1, obeyed: float = 0.5) -> pd.DataFrame:
    """Verdicts on both directions of six pairs of opposites: in ``unequal`` of them a true gap in points."""
    rows = []
    for i, pair in enumerate(opposites.PAIRS):
        of_things = rng.normal(0, 0.15, len(THINGS))
        for sign, relation in zip((0.5, -0.5), pair, strict=True):
            p = obeyed + (sign * gap / 100 if i < unequal else 0) + of_things
            for image in range(2):
                both = rng.random(len(THINGS)) < 0.9
                table = pd.DataFrame(THINGS, columns=["subject", "object"])
                correct = both & (rng.random(len(THINGS)) < np.clip(p, 0, 1))
                rows.append(table.assign(relation=relation, image_index=image, both_found=both, correct=correct))
    return pd.concat(rows, ignore_index=True)


def test_a_gap_is_over_the_things_that_both_pictures_show():
    table = asked(30, np.random.default_rng(0))
    rows = opposites.gaps(table, [table, table])
    one, other = opposites.PAIRS[0]
    total, shown = 0, 0
    for (subject, object), image in product(THINGS, range(2)):  # one by one
        of = table[(table.subject == subject) & (table.object == object) & (table.image_index == image)]
        a, b = (of[of.relation == name].iloc[0] for name in (one, other))
        if a.both_found and b.both_found:
            total, shown = total + int(a.correct) - int(b.correct), shown + 1
    assert rows.before[0] == pytest.approx(100 * total / shown) and rows.after[0] == pytest.approx(rows.before[0])
    assert rows.before_low[0] < rows.before[0] < rows.before_high[0] and (rows.change == 0).all()
    refuses(
        "are not asked of the same things; take the profile opposites", opposites.gaps, table.drop(index=[0, 48]), []
    )


def verdicts_of(
    before: float, after: float, runs: int, unequal: int = 1, after_unequal: int | None = None
) -> list[str]:
    rng, found = np.random.default_rng(int(before + 10 * after + unequal)), []
    for _ in range(runs):
        tuned = [asked(after, rng, unequal if after_unequal is None else after_unequal, 0.7) for _ in range(3)]
        found.append(opposites.verdict(opposites.gaps(asked(before, rng, unequal), tuned)))
    return found


@pytest.mark.slow("many draws")
def test_the_error_rates_of_claim_4():
    """Simulated. A gap that stays is hardly ever said to fall, nor one of 20 points to be nothing.

    By the protocol's own words a gap of 20 points that stays is contradicted in a third of the runs (46 of 150): three
    seeds find after fine-tuning what one base did not show before, and so the pair "becomes" unequal.
    """
    runs, slack = 150, 2 * np.sqrt(0.05 * 0.95 / 150)
    stays = verdicts_of(35, 35, runs)
    assert np.mean([said == claims.HOLDS for said in stays]) <= 0.05 + slack
    assert np.mean([said == claims.CONTRADICTED for said in stays]) <= 0.10 + slack, "two ways, Holm over each"
    assert claims.NOTHING not in verdicts_of(20, 20, runs)
    fair = verdicts_of(0, 0, runs)
    assert np.mean([said in (claims.HOLDS, claims.CONTRADICTED) for said in fair]) <= 0.10 + slack
    assert np.mean([said == claims.HOLDS for said in verdicts_of(45, 0, runs)]) >= 0.8, "it can hold"
    assert np.mean([said == claims.CONTRADICTED for said in verdicts_of(0, 50, runs)]) >= 0.8, "and fail"


def test_the_verdict_on_claim_4_is_as_the_protocol_says():
    rng = np.random.default_rng(1)
    fallen = opposites.gaps(asked(60, rng), [asked(0, rng) for _ in range(3)])
    assert opposites.verdict(fallen) == claims.HOLDS
    assert opposites.verdict(fallen.assign(change=-fallen.change)) == claims.CONTRADICTED
    others = fallen.assign(after_holm=np.where(fallen.unequal, 1, 0.01))
    assert opposites.verdict(others) == claims.CONTRADICTED, "another pair became unequal"
    fair = fallen.assign(unequal=False, change_holm=np.nan, before_low=-9.0, before_high=9.0, after_holm=1.0)
    assert opposites.verdict(fair) == claims.NOTHING
    assert opposites.verdict(fair.assign(before_high=11.0)) == claims.UNDECIDED
    assert claims.together([claims.NOTHING, claims.HOLDS]) == claims.UNDECIDED
    assert claims.together([claims.NOTHING] * 3) == claims.NOTHING
    sizes = opposites.sizes([asked(60, rng, 6)] * 2, [asked(0, rng, 6)] * 2)
    assert sizes["difference_low"] > 20


def test_both_directions_are_asked_of_the_same_things():
    rows = [(a, r, b) for a, b in product("abcdef", repeat=2) if a != b for r in NAMES]
    table = pd.DataFrame(rows, columns=["subject", "relation", "object"]).assign(caption="x", objects="seen")
    table = table.assign(prompt_id=range(len(table)), split="test")
    rng = np.random.default_rng(0)
    table.loc[rng.random(len(table)) < 0.1, "objects"] = "withheld"
    table.loc[rng.random(len(table)) < 0.1, "split"] = "validation"
    test = draw_prompts(table, 12, 0, ["opposites"])
    assert set(test.objects) == {"opposites"} and not test.prompt_id.duplicated().any()
    by_relation = {name: set(zip(p.subject, p.object, strict=True)) for name, p in test.groupby("relation")}
    for one, other in (pair for pair in OPPOSITES if pair[0] not in SYMMETRIC):
        assert by_relation[one] == by_relation[other] and len(by_relation[one]) == 12
    allowed = table[(table.split == "test") & (table.objects == "seen")].prompt_id
    assert test.prompt_id.isin(allowed).all()
    assert not test.equals(draw_prompts(table, 12, 1, ["opposites"]))
    refuses("ordered pairs of things are asked for both", draw_prompts, table, 30, 0, ["opposites"])
    refuses(
        "'opposites' are drawn of the study's own prompts, and alone", draw_prompts, table, 3, 0, ["opposites", "seen"]
    )


def cells(gain: list[float], rng: np.random.Generator, spread: float = 2.0) -> pd.DataFrame:
    """A Latin square whose 25 cells differ by chance, and what each dose adds in points."""
    parts = [pd.DataFrame({"model": "base", "run": -1, "group": 0, "dose": 0, "both_found": True}, index=[0])]
    groups, runs = rng.normal(0, 8, 5), rng.normal(0, 3, 5)
    for group, run in product(range(5), repeat=2):
        at = (group + run) % 5
        p = (50 + groups[group] + runs[run] + gain[at] + rng.normal(0, spread)) / 100
        n = int(rng.integers(150, 230))
        about = {"model": "main", "run": run, "group": group, "dose": DOSES[at]}
        parts.append(pd.DataFrame({**about, "both_found": True, "correct": rng.random(n) < p}))
    return pd.concat(parts, ignore_index=True).fillna({"correct": False}).astype({"correct": bool})


def test_doses_by_cells_are_least_squares_with_12_degrees_of_freedom():
    table = cells([0, 2, 4, 6, 20], np.random.default_rng(0))
    ours = frequency.by_cell(table).set_index("dose")
    assert ours.freedom.tolist() == [12, 12, 12, 12, 15] and (ours.cells == 25).all()
    of = table[table.model == "main"].groupby(["group", "run", "dose"]).correct.agg(["mean", "size"]).reset_index()
    full = np.column_stack([*(of.group == i for i in range(5)), *(of.run == i for i in range(5)),
                            *(of.dose == i for i in DOSES)]).astype(float)  # fmt: skip
    root = np.sqrt(of["size"].to_numpy(float))  # all 15 columns, and a pseudo-inverse
    values = np.linalg.pinv(root[:, None] * full) @ (root * 100 * of["mean"])
    residual = root * (100 * of["mean"] - full @ values)
    inverse = np.linalg.pinv((root[:, None] * full).T @ (root[:, None] * full))
    for i, dose in enumerate(DOSES[1:], 11):
        contrast = np.zeros(15)
        contrast[[10, i]] = -1, 1
        error = np.sqrt(contrast @ inverse @ contrast * (residual**2).sum() / 12)
        assert ours.difference[dose] == pytest.approx(contrast @ values)
        assert ours.high[dose] - ours.difference[dose] == pytest.approx(stats.t.ppf(0.975, 12) * error)
    assert frequency.cell_verdict(ours.reset_index()) == "matters"
    none = ours.reset_index().assign(p_holm=1.0, low=-6.0, high=6.0)
    assert frequency.cell_verdict(none) == "does not matter"
    assert frequency.cell_verdict(none.assign(high=8.0)) == "undecided"


@pytest.mark.slow("many draws")
def test_doses_by_cells_are_seldom_wrong():
    rng, runs = np.random.default_rng(0), 400
    none = [frequency.by_cell(cells([0] * 5, rng, 5.0)) for _ in range(runs)]
    wrong = np.mean([frequency.cell_verdict(table) == "matters" for table in none])
    assert wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    covers = np.mean([(table.low.iloc[0] <= 0) & (table.high.iloc[0] >= 0) for table in none])
    assert abs(covers - 0.95) < 2.5 * np.sqrt(0.05 * 0.95 / runs)


def of_towers(fall: float, rng: np.random.Generator, noise: float = 1.5) -> pd.DataFrame:
    """Gains of twelve runs; on unseen objects they fall by so many points from a share of 0 to one of 0.5."""
    rows = []
    for share, seed in product((0, 0.1, 0.25, 0.5), range(3)):
        lost = {"seen": 0, "withheld": 0, "unseen": fall * share / 0.5}
        for objects, less in lost.items():
            gain = 20 - 10 * share - less + rng.normal(0, noise)
            rows.append({"share": share, "seed": seed, "objects": objects, "gain": gain})
    return pd.DataFrame(rows)


def test_slopes_over_swapped_towers():
    table = of_towers(15, np.random.default_rng(0))
    rows = tower.slopes(table).set_index("what")
    wide = table.pivot(index=["share", "seed"], columns="objects", values="gain")
    shares = wide.index.get_level_values("share")
    oracle = stats.linregress(shares, wide.unseen - wide.seen)
    ours = rows.loc["unseen − seen"]
    assert ours.change == pytest.approx(oracle.slope / 2) and ours.p == pytest.approx(oracle.pvalue)
    assert ours.high - ours.change == pytest.approx(stats.t.ppf(0.975, 10) * oracle.stderr / 2)
    assert (rows.freedom == 10).all() and rows.at_none["unseen"] == pytest.approx(wide.unseen.loc[0].mean())
    assert tower.verdicts(rows.reset_index())["unseen − seen"] == "inherited"
    none = tower.slopes(of_towers(0, np.random.default_rng(1), 0.5))
    assert tower.verdicts(none) == {"withheld − seen": "not inherited", "unseen − seen": "not inherited"}
    assert set(tower.verdicts(none.assign(low=-6, p_holm=none.p_holm * 0 + 1)).values()) == {"undecided"}


def with_judges(artifacts, found: dict[str, float]) -> None:
    """Other judges' verdicts beside a run's."""
    about = {"judges": {"tiny-owlvit": 0.1, **dict.fromkeys(found, 0.2)}}
    path = artifacts / "results" / "scores.json"
    write_json(path, {**read_json(path), "about": about})
    for judge, share in found.items():
        folder = artifacts / "judges" / judge
        folder.mkdir(parents=True)
        for model in ("base", "main"):
            table = drawn(0.5 if model == "base" else share, 0.8, len(judge) + (model == "main"))
            table.drop(columns="objects").to_parquet(folder / f"verdicts_{model}.parquet")


def test_all_judges_are_gathered(tmp_path):
    for seed in range(2):
        with_judges(run_of(tmp_path, str(seed), "none", seed), {"tiny-rtdetr": 0.6, "templates": 0.5})
    table = sweeps.gather(sweeps.finished([tmp_path]))
    by = sweeps.by_judge(table)
    assert list(by) == ["tiny-owlvit", "tiny-rtdetr", "templates"], "the leading one first"
    assert {len(part) for part in by.values()} == {3 * 2 * len(prompts())}, "the base is there once for each"
    ours = sweeps.verdicts_of(by["templates"], "main", "relations")[1].correct.to_numpy()
    assert (ours == drawn(0.5, 0.8, len("templates") + 1).correct).all()
    assert (sweeps.leading(table).judge == "tiny-owlvit").all()
    earlier = table[table.judge == "tiny-owlvit"].drop(columns="judge")
    assert set(sweeps.by_judge(earlier)) == {"tiny-owlvit"}, "recorded verdicts name no judge"
    assert sweeps.leading(earlier) is earlier
    by_relation = sweeps.by_each(by, effects.by_relation, "main")
    assert len(by_relation) == 3 * len(NAMES) and by_relation.VISOR_low.notna().all()
    write_json(tmp_path / "0" / "artifacts" / "finetune_unseen" / "result.json", {})
    refuses("has no model unseen with relations", tower.gains, {0.0: tmp_path})


@pytest.fixture(scope="module")
def by():
    """Three judges of two arms of a main and an unseen model; only the first sees a gain."""
    tables = {}
    for i, judge in enumerate(("a", "b", "c")):
        parts = [told("base", -1, "base", 0.5 + i / 1000)]
        for arm, model, seed in product(("relations", "list"), ("main", "unseen"), range(3)):
            share = 0.8 if arm == "relations" and not i else 0.5 + i / 1000
            parts.append(told(arm, seed, model, share))
        tables[judge] = pd.concat(parts, ignore_index=True)
    return tables


def test_complete_cases_and_bounds_stand_beside_effects(by):
    table = effects.effects(by["a"])
    cond = table[table.metric == "VISOR_Cond"]
    assert cond[list(selection.BESIDE)].notna().all(axis=None)
    assert table.loc[table.metric != "VISOR_Cond", list(selection.BESIDE)].isna().all(axis=None)
    assert (cond.bound_low <= cond.bound_high).all() and (cond.complete_low < cond.complete_high).all()
    base, tuned = sweeps.base_of(by["a"]), sweeps.verdicts_of(by["a"], "main", "relations")
    one, alone = effects.beside([tuned[0]], [base]), selection.beside(base, tuned[0])
    for name in ("complete", "bound_low", "bound_high"):
        assert one[name] == pytest.approx(alone[name])
    assert effects.beside(list(tuned.values()), [base])["bound_low"] == pytest.approx(
        np.mean([selection.beside(base, part)["bound_low"] for part in tuned.values()])
    )


def test_the_median_of_judges_and_whose_gain(by):
    medians = judged.medians(by, 300).set_index(["model", "arm", "objects", "metric"])
    each = [effects.effects(t, ["VISOR"]).query("over == 'base'") for t in by.values()]
    each = [t.set_index(["model", "arm", "objects"]).difference["main", "relations", "all"] for t in each]
    ours = medians.loc["main", "relations", "all", "VISOR"]
    assert ours.low < np.median(each) < ours.high, "the median of the judges' effects, or near it"
    assert ours.value == pytest.approx(np.median(each))
    table = judged.whose_gain(by, 300)
    rows = table.set_index(["model", "arm", "objects", "images"])
    own = rows.loc["main", "relations", "all", "all"]
    assert own.value == pytest.approx(each[0] - np.median(each[1:])) and own.low > 10
    four, verdict = judged.whose_gain_verdict(table)
    assert len(four) == 4 and verdict == "a part is the detector's"
    alike = table.assign(value=0.0, low=-4.0, high=4.0, p=1.0)
    assert judged.whose_gain_verdict(alike)[1] == "none is the detector's"
    assert judged.whose_gain_verdict(alike.assign(high=6.0))[1] == claims.UNDECIDED
    assert judged.whose_gain({"a": by["a"]}).empty


@pytest.mark.slow("many draws")
def test_the_interval_over_judges_covers():
    """Simulated: three judges who see the same prompts, and seeds that differ."""
    rng, hits, runs, n = np.random.default_rng(0), 0, 200, 60

    def tables(mean: float, easy: np.ndarray) -> list[pd.DataFrame]:
        rows = pd.DataFrame({"prompt_id": np.arange(n).repeat(2), "image_index": np.tile([0, 1], n)})
        rows = rows.assign(relation="above", both_found=True)
        return [rows.assign(correct=rng.random(2 * n) < np.clip(mean + easy, 0, 1).repeat(2)) for _ in range(3)]

    for _ in range(runs):
        easy = rng.normal(0, 0.15, n)
        base = [[table] for table in tables(0.5, easy)]
        seeds = [tables(0.6 + rng.normal(0, 0.05), easy) for _ in range(3)]
        treated = [[seed[i] for seed in seeds] for i in range(3)]
        found = judged.over_judges(treated, base, judged.of_first, resamples=300)
        hits += found["low"] <= 0 <= found["high"]
    assert hits / runs >= 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / runs)


def test_the_second_protocols_claims_are_each_judges(by):
    quality = pd.DataFrame([
        {"model": "base", "value": 2.0, "arm": "relations", "seed": 0},
        *({"model": "main", "value": 1.8, "change": -0.2, "change_low": -0.3, "change_high": -0.1, "arm": "relations",
           "seed": seed} for seed in range(3)),
    ])  # fmt: skip
    rng = np.random.default_rng(1)
    gaps = dict.fromkeys(by, opposites.gaps(asked(60, rng), [asked(0, rng) for _ in range(3)]))
    table = judged.confirmed(by, quality, gaps)
    verdict = table.groupby(table.claim.str.partition(".")[0]).verdict.first()
    assert verdict["1"] != claims.HOLDS and verdict["4"] == claims.HOLDS
    named = table.assign(key=table.claim.str.partition(".")[0])
    first = named[named.what.str.contains("by a")].set_index("key")
    assert first.test["1"] == first.test["1, list"] == first.test["2"] == claims.HOLDS
    assert verdict["1, shuffled"] == claims.NOT_TESTABLE, "no such arm was run"
    alone = judged.confirmed({"a": by["a"]}, quality)
    assert "4" not in set(alone.claim.str.partition(".")[0])
    assert (alone[alone.claim.str.startswith("1.")].verdict == claims.HOLDS).all()
