"""What two conditional scores can be compared on."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sr4g_utils.evaluation import selection
from sr4g_utils.evaluation.scores import compare
from sr4g_utils.store.files import reported


def records(rng, n, found, right, images=2):
    both = rng.random(n * images) < found
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(np.arange(n), images).astype(str), "image_index": np.tile(np.arange(images), n),
            "relation": "above", "both_found": both, "correct": both & (rng.random(n * images) < right),
        }
    )  # fmt: skip


def test_four_samples_as_by_hand():
    rng = np.random.default_rng(0)
    before, after = records(rng, 60, 0.8, 0.4), records(rng, 60, 0.6, 0.7)
    table = selection.same_images(before, after.sample(frac=1, random_state=1)).set_index("sample")
    a, b = before, after
    own = compare(before, after, 99).query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]
    assert table.loc["each model's own", ["before", "after", "difference", "low", "high"]].tolist() == pytest.approx(
        own[["before", "after", "difference", "low", "high"]].tolist()
    )
    both = a.both_found & b.both_found
    assert table.difference["found by both"] == pytest.approx(100 * (b.correct[both].mean() - a.correct[both].mean()))
    s = a.both_found
    for name, lost in (("wrong", b.correct), ("right", b.correct | ~b.both_found)):
        row = table.loc[f"found before, lost ones {name}"]
        assert row.difference == pytest.approx(100 * (lost[s].mean() - a.correct[s].mean()))
        assert row.low <= row.difference <= row.high and row.images_before == row.images_after == s.sum()
    truth = rng.random(len(b)) < 0.5  # of lost images
    complete = np.where(b.both_found, b.correct, truth)[s].mean() - a.correct[s].mean()
    ends = table.difference[["found before, lost ones wrong", "found before, lost ones right"]]
    assert ends.iloc[0] <= 100 * complete <= ends.iloc[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 99), st.integers(1, 99), st.integers(0, 100), st.integers(0, 100))
def test_lees_bounds_are_sharp(oa_a, oa_b, cond_a, cond_b):
    """A linear programme over who is found by whom and right where finds the same ends."""
    low, high = selection.lee((float(oa_a), float(oa_b)), (float(cond_a), float(cond_b)))
    never = (1, 0) if oa_a <= oa_b else (0, 1)  # found by the weaker one alone
    strata = [stratum for stratum in product((0, 1), repeat=4) if stratum[:2] != never]
    mass = lambda choose: [float(choose(*stratum)) for stratum in strata]  # noqa: E731
    equal = [mass(lambda *_: 1), mass(lambda fa, *_: fa), mass(lambda _, fb, *__: fb)]
    equal += [mass(lambda fa, _, ra, __: fa * ra), mass(lambda _, fb, __, rb: fb * rb)]
    target = [1, oa_a / 100, oa_b / 100, oa_a * cond_a / 1e4, oa_b * cond_b / 1e4]
    always = min(oa_a, oa_b) / 100
    gain = np.array(mass(lambda fa, fb, ra, rb: fa * fb * (rb - ra))) / always
    ends = [sign * linprog(sign * gain, A_eq=equal, b_eq=target, bounds=(0, 1)).fun for sign in (1, -1)]
    assert 100 * np.array(ends) == pytest.approx([low, high], abs=1e-4)
    assert selection.lee((float(oa_b), float(oa_a)), (float(cond_b), float(cond_a))) == pytest.approx((-high, -low))


def test_published_rows_are_hardly_ordered():
    table = selection.published_bounds(reported("visor")).set_index(["a", "b"])
    row = table.loc["stable diffusion 1.4", "stable diffusion 2.1"]
    assert (row.difference, row.low, row.high) == pytest.approx((0.26, -21.87, 37.02), abs=0.01)
    assert len(table) == 28 and (table.low <= table.difference).all() and (table.difference <= table.high).all()
