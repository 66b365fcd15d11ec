"""Laws of the 14 relations, and agreement with a scalar implementation that shares nothing with the package."""

import numpy as np
import pytest
import scalar
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sr4g_utils.relations import BY_NAME, FAMILIES, NAMES, RELATIONS, RULES, judge

SIZE = (64.0, 48.0)
# a small grid makes ties, touching, nested and identical boxes common; quarters are exact in float64
grid = st.tuples(st.integers(-8, 40), st.integers(-8, 40), st.integers(1, 24), st.integers(1, 24)).map(
    lambda box: tuple(v / 4 for v in box)
)
real = st.tuples(*[st.floats(-100, 600)] * 2, *[st.floats(0.01, 400)] * 2)
box = grid | real
pair = st.tuples(box, box)
rules = pytest.mark.parametrize("rules", RULES)


def held(s, o, rules, size=SIZE) -> set[str]:
    verdict = judge(np.array([s], float), np.array([o], float), rules, np.array([size], float))
    assert verdict.shape == (1, 14)
    return {name for name, holds in zip(NAMES, verdict[0], strict=True) if holds}


def off_borders(s, o, rules, size=SIZE) -> None:
    """sg2im's and sstd's sectors are half-open: on a diagonal a converse or a mirror image may fall to a neighbour."""
    if rules == "visor":
        return
    try:
        scalar.relations(s, o, rules, size)
        scalar.relations(o, s, rules, size)
    except scalar.OnBorder:
        assume(False)
    assume(s[0] + s[2] / 2 != o[0] + o[2] / 2 or s[1] + s[3] / 2 != o[1] + o[3] / 2)  # one centre: angle 0


@given(pair)
@rules
@example(((0, 0, 2, 2), (0, 0, 2, 2)))  # identical
@example(((0, 0, 2, 2), (2, 0, 2, 2)))  # touching
@example(((1, 1, 2, 2), (0, 0, 4, 4)))  # nested
@example(((0, 1, 2, 2), (0, 0, 4, 4)))  # nested, on the border
def test_agrees_with_the_scalar_implementation(rules, boxes):
    try:
        expected = scalar.relations(*boxes, rules, SIZE)
    except scalar.OnBorder:
        assume(False)
    assert held(*boxes, rules) == expected


@given(pair)
@rules
def test_opposites_are_converses_and_the_overlap_pair_complementary(rules, boxes):
    s, o = boxes
    off_borders(s, o, rules)
    there, back = held(s, o, rules), held(o, s, rules)
    for relation in RELATIONS:
        if relation.name in ("overlapping", "separated"):
            assert (relation.name in there) == (relation.name in back) == (relation.opposite not in there)
        elif not (rules == "sstd" and relation.name in ("inside", "surrounding")):
            assert (relation.name in there) == (relation.opposite in back)
        else:  # two boxes within the slack of each other: surrounding is asked first, both ways
            assert (relation.name in there) == (relation.opposite in back) or there & back >= {"surrounding"}


def flipped(box, axis: int, size=SIZE):
    mirrored = list(box)
    mirrored[axis] = size[axis] - box[axis] - box[axis + 2]
    return tuple(mirrored)


@given(st.tuples(grid, grid))
@rules
@pytest.mark.parametrize(("axis", "swapped"), [(0, ("left of", "right of")), (1, ("above", "below"))])
def test_a_flip_swaps_exactly_one_pair(axis, swapped, rules, boxes):
    s, o = boxes
    off_borders(s, o, rules)
    off_borders(flipped(s, axis), flipped(o, axis), rules)
    swap = {swapped[0]: swapped[1], swapped[1]: swapped[0]}
    mirrored = held(flipped(s, axis), flipped(o, axis), rules)
    assert mirrored == {swap.get(name, name) for name in held(s, o, rules)}


@given(st.tuples(grid, grid), st.integers(-50, 50), st.integers(-50, 50), st.sampled_from([0.25, 0.5, 2, 8]))
@rules
def test_translation_and_scale_change_nothing(rules, boxes, dx, dy, scale):
    s, o = boxes
    off_borders(s, o, rules)
    moved = [(scale * (x + dx), scale * (y + dy), scale * w, scale * h) for x, y, w, h in boxes]
    assert held(*moved, rules, (scale * SIZE[0], scale * SIZE[1])) == held(s, o, rules)


@given(pair)
@rules
def test_exclusive_where_it_should_be(rules, boxes):
    there = held(*boxes, rules)
    for name in ("left of", "above", "inside", "overlapping", "wider", "taller", "larger"):
        assert not {name, BY_NAME[name].opposite} <= there
    if rules == "visor":
        assert not there & {"inside", "surrounding"} or "overlapping" in there
    else:
        assert len(there & {"left of", "right of", "above", "below", "inside", "surrounding"}) == 1


@given(pair)
def test_scale_and_overlap_are_the_same_under_all_rules(boxes):
    names = {r.name for r in RELATIONS if r.family == "scale"} | {"overlapping", "separated"}
    assert len({frozenset(held(*boxes, rules) & names) for rules in RULES}) == 1


@given(grid)
@rules
def test_a_box_and_itself(rules, one):
    expected = {"visor": {"overlapping"}, "sg2im": {"overlapping", "right of"}, "sstd": {"overlapping", "surrounding"}}
    assert held(one, one, rules) == expected[rules]


@pytest.mark.parametrize(
    ("dx", "dy", "name"),
    [
        (-10, 0, "left of"), (10, 0, "right of"), (0, -10, "above"), (0, 10, "below"),
        (-10, -10, "left of"), (10, -10, "right of"), (10, 10, "below"), (-10, 10, "left of"),
    ],
)  # fmt: skip
def test_the_sectors_are_half_open_as_in_sg2im(dx, dy, name):
    assert held((100 + dx, 100 + dy, 2, 2), (100, 100, 2, 2), "sg2im") & set(NAMES[:6]) == {name}


def test_sstd_judges_normalised_boxes_with_slack():
    s, o = (130, 100, 20, 20), (100, 80, 20, 20)  # 30 right, 20 down: right in pixels
    assert "right of" in held(s, o, "sg2im")
    assert "below" in held(s, o, "sstd", (640, 320))  # 0.047 right, 0.0625 down
    assert "inside" in held((0, 10, 5, 5), (1, 0, 40, 40), "sstd", (100, 100))  # sticks out by 1 of 100
    assert "inside" not in held((0, 10, 5, 5), (2.5, 0, 40, 40), "sstd", (100, 100))


def test_many_pairs_at_once_are_each_judged_alone():
    rng = np.random.default_rng(0)
    s, o = rng.integers(0, 30, (2, 500, 4)) + np.array([0, 0, 1, 1])
    for name in RULES:
        together = judge(s.astype(float), o.astype(float), name, np.array([SIZE]))
        alone = [judge(s[[i]].astype(float), o[[i]].astype(float), name, np.array([SIZE])) for i in range(500)]
        assert np.array_equal(together, np.concatenate(alone))
        for i, relation in enumerate(RELATIONS):
            column = relation.predicate(s.astype(float), o.astype(float), name, np.array([SIZE]))
            assert np.array_equal(column, together[:, i])
    assert judge(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0, 14)


def test_the_fourteen():
    assert len(RELATIONS) == 14 and list(NAMES) == scalar.NAMES
    assert [sum(r.family == family for r in RELATIONS) for family in FAMILIES] == [4, 4, 6]
    assert all(BY_NAME[BY_NAME[r.opposite].opposite] is r for r in RELATIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": "coco"}, "rules: unknown rule set 'coco'; choose one of visor, sg2im, sstd"),
        ({"rules": "sstd"}, "pass size"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        judge(np.ones((1, 4)), np.ones((1, 4)), **arguments)


def test_bad_shapes_are_named():
    check = getattr(judge, "__wrapped__", judge)  # without the tests' own check of shapes
    with pytest.raises(ValueError, match=r"must both be \(pair, 4\) xywh; got \(1, 4\) and \(2, 4\)"):
        check(np.ones((1, 4)), np.ones((2, 4)))
