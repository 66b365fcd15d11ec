"""Failure signatures: each is planted and found, and a healthy model shows none."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretend import LAYOUT, draw, make_prompts
from slowly import make_detections

from sr4g_utils.dataset.prompts import draw_prompts
from sr4g_utils.evaluation import failure_signs, figures, verdicts
from sr4g_utils.relations import NAMES


def test_partners_ask_for_what_they_say():
    for relation, change, expected in [
        ("left of", "roles swapped", ("cat", "left of", "dog")), ("overlapping", "roles swapped", None),
        ("left of", "relation turned", ("dog", "right of", "cat")),
        ("left of", "said from the other side", ("cat", "right of", "dog")),
        ("overlapping", "said from the other side", ("cat", "overlapping", "dog")),
    ]:  # fmt: skip
        assert failure_signs.partner(("dog", relation, "cat"), change) == expected


@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 4), st.integers(0, 4))
def test_who_ignores_the_roles_obeys_both_in_a_quarter_at_most(n1, k1, n2, k2):
    k1, k2 = min(k1, n1), min(k2, n2)
    rows = [("dog", "cat", i < k1) for i in range(n1)] + [("cat", "dog", i < k2) for i in range(n2)]
    records = pd.DataFrame(rows, columns=["subject", "object", "correct"]).assign(relation="left of", both_found=True)
    row = failure_signs.swapped({"m": records}, resamples=50).iloc[0]
    both = [a[2] and b[2] for a, b in itertools.product(rows[:n1], rows[n1:])]
    assert row.kind == "roles swapped" and row.pairs == 1 and math.isclose(row.both, 100 * np.mean(both))
    if k1 / n1 == 1 - k2 / n2:
        assert row.both <= 25 + 1e-9
    assert failure_signs.swapped({"m": records[:n1]}).empty


def test_several_boxes_are_what_any_pair_rewards():
    prompts = pd.DataFrame({"prompt_id": ["1"], "subject": ["dog"], "relation": ["left of"], "object": ["cat"]})
    cat = ["1", 0, "cat", 0.9, 50.0, 0.0, 10.0, 10.0]
    right, left = (["1", 0, "dog", score, x, 0.0, 10.0, 10.0] for score, x in ((0.9, 90.0), (0.5, 10.0)))
    found = make_detections(cat, right, left)
    listed = {"m": prompts[["prompt_id"]].assign(image_index=0)}
    table, same = (
        failure_signs.several_boxes(prompts, {"m": found}, images, 0.1, "visor").set_index("boxes")
        for images in (1, listed)
    )
    pd.testing.assert_frame_equal(same, table)
    assert table.loc["several", ["found", "any", "best", "gift"]].tolist() == [1, 100, 0, 100]
    assert table.loc["one of each", "found"] == 0 and np.isnan(table.loc["one of each", "any"])


THINGS = ["dog", "cat", "cup", "bowl"]


@pytest.fixture(scope="module")
def prompts():
    table = draw_prompts(make_prompts(32), 16, seed=0)
    rng = np.random.default_rng(0)
    two = [rng.choice(THINGS, 2, replace=False) for _ in range(len(table))]
    return table.assign(subject=[a for a, _ in two], object=[b for _, b in two])


def obeying(prompts: pd.DataFrame, share: dict[str, float] | float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Boxes of a model that obeys a share of the prompts, each image laid out a little elsewhere."""
    boxes, rng = draw(prompts, share, seed), np.random.default_rng(seed)
    picture = boxes.groupby(["prompt_id", "image_index"], sort=False).ngroup()
    moved = rng.uniform(-5, 5, (picture.max() + 1, 2))[picture] + 8
    return boxes.assign(x=boxes.x + moved[:, 0], y=boxes.y + moved[:, 1])


def raised(prompts: pd.DataFrame, boxes: pd.DataFrame, pairs: str = "best") -> dict[str, str]:
    records = verdicts.verdicts(prompts, boxes, 4, pairs=pairs, nothing="record")
    table = failure_signs.look({"m": records}, prompts)
    assert table.sign.tolist() == list(failure_signs.SIGNS) and (table.raised == (table.says != "")).all()
    figures.signs(table, {name: what for name, (_, what) in failure_signs.SIGNS.items()}).canvas.draw()
    return dict(table.says[table.raised].groupby(table.sign).first())


def test_a_healthy_model_shows_no_sign_and_one_that_does_not_read_relations_does(prompts):
    assert raised(prompts, obeying(prompts)) == {}
    rng = np.random.default_rng(0)
    any_relation = prompts.assign(relation=rng.choice(list(LAYOUT), len(prompts)))
    found = raised(prompts, obeying(any_relation, 1.0))
    assert found["relations ignored"].startswith("draws both things in 9")
    assert {"relations ignored", "relations at chance"} == set(found)
    some = dict.fromkeys(NAMES, 0.95) | {"wider": 0.15, "narrower": 0.15}
    told = "surely less than 10 points above chance: wider, narrower"
    assert raised(prompts, obeying(prompts, some)) == {"relations at chance": told}


def test_unseen_objects_one_thing_and_one_opposite_that_fare_worse(prompts):
    known = prompts.objects == "seen"
    boxes = pd.concat([obeying(prompts[known], 0.98, 1), obeying(prompts[~known], 0.7, 2)])
    assert raised(prompts, boxes)["worse on unseen objects"].startswith("VISOR_Cond is 9")
    boxes = obeying(prompts)
    found = raised(prompts, boxes[boxes.label != "cup"])
    assert found["a thing never drawn"] == "hardly ever found, while other things are: cup"
    even = dict.fromkeys(NAMES, 0.9) | {"left of": 0.97, "right of": 0.05}
    found = raised(prompts, obeying(prompts, even))
    assert found["one opposite drawn"].startswith("draws one of two opposites, whatever is asked: left of (9")


def test_several_boxes_of_a_name_and_images_that_are_alike(prompts):
    boxes = obeying(prompts)
    again = boxes[boxes.label == "dog"].assign(score=0.5, x=1.0)
    more = boxes[boxes.label == "cat"].assign(score=0.5, x=1.0)
    assert "several boxes of a name" in raised(prompts, pd.concat([boxes, again, more]))
    first = boxes[boxes.image_index == 0]
    copies = pd.concat([first.assign(image_index=i) for i in range(4)])
    assert "images alike" in raised(prompts, copies) and "images alike" not in raised(prompts, boxes)


def test_a_judge_that_is_blind_or_sees_what_it_is_asked_for_and_a_model_of_which_nothing_is_found(prompts):
    boxes = obeying(prompts)
    blind = boxes[boxes.prompt_id.isin(prompts.prompt_id[::9])]
    assert "is the judge blind" in raised(prompts, blind)["the judge"]
    told = prompts.loc[prompts.index.repeat(4)].assign(image_index=np.tile(range(4), len(prompts)))
    rows = [told.assign(label=told[role], score=0.9, x=5.0, y=5.0, w=20.0, h=20.0) for role in ("subject", "object")]
    everything = pd.concat(rows)[["prompt_id", "image_index", "label", "score", "x", "y", "w", "h"]]
    assert "one and the same box" in raised(prompts, everything)["the judge"]
    nothing = verdicts.verdicts(prompts, boxes.iloc[:0], verdicts.verdicts(prompts, boxes, 4), nothing="record")
    table = failure_signs.look({"m": nothing}, prompts).set_index("sign")
    assert table.raised[table.raised].index.tolist() == ["the judge"]
    few = prompts[prompts.relation == "above"].head(3)
    assert not failure_signs.look({"m": verdicts.verdicts(few, boxes, 4)}, few).raised.any()
