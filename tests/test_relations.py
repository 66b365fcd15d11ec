"""Laws of the 14 relations, and agreement with a scalar implementation that shares nothing with the package."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scalar
from hypothesis import assume, example, given
from hypothesis import strategies as st
from refusals import refuses

from sr4g_utils import relations
from sr4g_utils.relations import BY_NAME, NAMES, OPPOSITES, RELATIONS, RULES, SSTD_SLACK, complete_rules, judge

SIZE = (64.0, 48.0)
# a small grid makes ties, touching, nested and identical boxes common; quarters are exact in float64
grid = st.tuples(*[st.integers(-8, 40)] * 2, *[st.integers(1, 24)] * 2).map(lambda box: tuple(v / 4 for v in box))
real = st.tuples(*[st.floats(-100, 600)] * 2, *[st.floats(0.01, 400)] * 2)
box = grid | real
pair = st.tuples(box, box)
rules = pytest.mark.parametrize("rules", RULES)
SECTORS = ("sg2im", "sstd")  # rule sets by which exactly one of six holds


def held(s, o, rules, size=SIZE) -> set[str]:
    verdict = judge(np.array([s], float), np.array([o], float), rules, np.array([size], float))
    assert verdict.shape == (1, 14)
    return {name for name, holds in zip(NAMES, verdict[0], strict=True) if holds}


def off_borders(s, o, rules, size=SIZE) -> None:
    """Sectors are half-open: on a diagonal a converse or a mirror image may fall to a neighbour."""
    if rules not in SECTORS:
        return
    try:
        scalar.relations(s, o, rules, size)
        scalar.relations(o, s, rules, size)
    except scalar.OnBorder:
        assume(False)
    dx, dy = scalar.exact_offset(s, o)
    assume(abs(dx) / Fraction(size[0]) != abs(dy) / Fraction(size[1]))


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


@given(grid, st.integers(-40, 40), st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1]))
@pytest.mark.parametrize("rules", ["visor", "sg2im"])
def test_on_a_diagonal_nothing_is_left_to_rounding(rules, one, far, right, down):
    """No pair is set aside where floats are exact: diagonals, axes and equal centres included."""
    x, y, w, h = one
    other = (x + right * far / 4 + w / 4, y + down * far / 4 + h / 4, w / 2, h / 2)
    assert held(other, one, rules, (48, 48)) == scalar.relations(other, one, rules, (48, 48))
    assert held(one, other, rules, (48, 48)) == scalar.relations(one, other, rules, (48, 48))


@given(pair)
@rules
def test_opposites_are_converses_and_the_overlap_pair_complementary(rules, boxes):
    s, o = boxes
    off_borders(s, o, rules)
    there, back = held(s, o, rules), held(o, s, rules)
    for relation in map(BY_NAME.get, RULES[rules].defines):
        if relation.name in ("overlapping", "separated"):
            assert (relation.name in there) == (relation.name in back) == (relation.opposite not in there)
        elif not (rules == "sstd" and relation.name in ("inside", "surrounding")):
            assert (relation.name in there) == (relation.opposite in back)
        else:  # two boxes within the slack of each other: surrounding is asked first, both ways
            assert (relation.name in there) == (relation.opposite in back) or there & back >= {"surrounding"}


@given(pair)
@pytest.mark.parametrize("rules", [name for name, rule_set in RULES.items() if rule_set.mirrored])
def test_mirrored_rules_give_the_converse_on_every_border_too(rules, boxes):
    s, o = boxes
    assert held(o, s, rules) == {BY_NAME[name].converse for name in held(s, o, rules)}


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
    assert there <= set(RULES[rules].defines)
    for name in ("left of", "above", "inside", "overlapping", "wider", "taller", "larger"):
        assert not {name, BY_NAME[name].opposite} <= there
    if rules in SECTORS:
        assert len(there & {"left of", "right of", "above", "below", "inside", "surrounding"}) == 1
    else:
        assert not there & {"inside", "surrounding"} or "overlapping" in there


@given(pair)
def test_scale_and_overlap_are_the_same_under_all_rules(boxes):
    assume(not any(0 < abs(side) < 3e-6 for side in scalar.common(*boxes)))  # sectors' rules round there
    names = {r.name for r in RELATIONS if r.family == "scale"} | {"overlapping", "separated"}
    assert len({frozenset(held(*boxes, rules) & names) for rules in complete_rules()}) == 1


@given(grid)
@rules
def test_a_box_and_itself(rules, one):
    expected = {
        "visor": {"overlapping"}, "sg2im": {"overlapping", "right of"}, "sstd": {"overlapping", "surrounding"},
        "geneval": set(), "people": {"overlapping"},
    }  # fmt: skip
    assert held(one, one, rules) == expected[rules]


@pytest.mark.parametrize(("dx", "dy", "name"), [
    (-10, 0, "left of"), (10, 0, "right of"), (0, -10, "above"), (0, 10, "below"),
    (-10, -10, "left of"), (10, -10, "right of"), (10, 10, "below"), (-10, 10, "left of"),
])  # fmt: skip
def test_the_sectors_are_half_open_as_in_sg2im(dx, dy, name):
    assert held((100 + dx, 100 + dy, 2, 2), (100, 100, 2, 2), "sg2im", (300, 300)) & set(NAMES[:6]) == {name}


@pytest.mark.parametrize(("dx", "dy", "expected"), [
    (-30, 0, {"left of"}), (30, 0, {"right of"}), (0, -30, {"above"}), (0, 30, {"below"}),
    (2, 0, set()),  # inside the slack
    (-30, 30, {"left of", "below"}),  # the diagonal: 28 / 42.4 > 0.5 on both axes
    (-30, 12, {"left of"}),  # 10 / 32.3 < 0.5
])  # fmt: skip
def test_geneval_on_cases_worked_by_hand(dx, dy, expected):
    """Extents 10 + 10: a tenth of them, 2 px, is forgiven on each axis."""
    assert held((100 + dx, 100 + dy, 10, 10), (100, 100, 10, 10), "geneval") == expected


def relative_position(a, b) -> set[str]:
    """GenEval's own function (``evaluate_images.py``), on boxes of corners; b is the object."""
    boxes = np.array([a, b]).reshape(2, 2, 2)
    center_a, center_b = boxes.mean(axis=-2)
    dim_a, dim_b = np.abs(np.diff(boxes, axis=-2))[..., 0, :]
    offset = center_a - center_b
    revised_offset = np.maximum(np.abs(offset) - 0.1 * (dim_a + dim_b), 0) * np.sign(offset)
    if np.all(np.abs(revised_offset) < 1e-3):
        return set()
    dx, dy = revised_offset / np.linalg.norm(offset)
    return {name for name, holds in zip(NAMES, (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5), strict=False) if holds}


@given(pair)
def test_geneval_is_what_its_authors_wrote(boxes):
    try:
        scalar.relations(*boxes, "geneval")
    except scalar.OnBorder:
        assume(False)
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    assert held(*boxes, "geneval") == relative_position(*corners)


def test_sectors_are_of_shares_of_the_image():
    s, o = (130, 105, 20, 20), (100, 80, 20, 20)  # 30 right and 25 down
    for rules in SECTORS:
        assert "right of" in held(s, o, rules, (480, 480)) and "below" in held(s, o, rules, (640, 480))


def peer(s, o, size, slack, ties) -> str:
    """The first six relations as their authors decide them: corners as shares of the image, containment, an angle.

    google/sg2im at 1a3d4e7, ``sg2im/data/coco.py`` (no slack, no ties); gazkune/SpatialLM at ddfca29,
    ``datasets/coco_for_spatial_pretraining.py`` (0.02, ties). Both take float32; this takes float64.
    """
    a, b = (np.array([x, y, x + w, y + h]) / np.array([*size, *size]) for x, y, w, h in (s, o))
    compared = np.greater_equal if ties else np.greater
    if compared(np.concatenate([(b - a)[:2], (a - b)[2:]]) + slack, 0).all():
        return "surrounding"
    if compared(np.concatenate([(a - b)[:2], (b - a)[2:]]) + slack, 0).all():
        return "inside"
    dx, dy = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    quarter = (math.atan2(dy, dx) / math.pi * 4 + 1) // 2
    return {-2: "left of", -1: "above", 0: "right of", 1: "below", 2: "left of"}[int(quarter)]


@given(pair, st.tuples(st.integers(1, 700), st.integers(1, 700)))
@pytest.mark.parametrize(("rules", "slack", "ties"), [("sg2im", 0.0, False), ("sstd", SSTD_SLACK, True)])
def test_sectors_and_containment_are_what_their_authors_wrote(rules, slack, ties, boxes, size):
    off_borders(*boxes, rules, size)
    gaps = zip(scalar.gaps(*boxes) + scalar.gaps(*boxes[::-1]), 4 * size, strict=True)
    assume(all(abs(float(gap) + slack * side) > 1e-5 for gap, side in gaps))  # where the shares' rounding decides
    assert held(*boxes, rules, size) & set(NAMES[:6]) == {peer(*boxes, size, slack, ties)}


def test_sstd_has_slack_on_containment_and_takes_ties():
    assert "surrounding" in held((0, 1, 1, 2), (5, 0, 6, 2), "sstd", (500, 500))  # 10 px are 2 % of 500
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
    assert [len(relations.family(family)) for family in relations.FAMILIES] == [4, 4, 6]
    assert all(BY_NAME[BY_NAME[r.opposite].opposite] is r for r in RELATIONS)
    assert [name for two in OPPOSITES for name in two] == list(NAMES)


def test_which_rules_define_what():
    assert list(RULES) == ["visor", "sg2im", "sstd", "geneval", "people"]
    assert complete_rules() == ["visor", "sg2im", "sstd", "people"]
    assert RULES["geneval"].defines == relations.family("projective") == NAMES[:4]
    assert relations.rules_named("geneval", ["above"]) is RULES["geneval"]
    with pytest.raises(ValueError, match=r"rules='geneval' define left of, .*below only, not 'wider'; leave such"):
        relations.rules_named("geneval", ["above", "wider"])


def test_a_rule_set_is_added_by_a_function(monkeypatch):
    monkeypatch.setattr(relations, "RULES", dict(RULES))

    @relations.rule_set("touching", defines=["separated"])
    def touching(s, o, size):
        return {"separated": s.x2 < o.x1, "left of": s.x2 < o.x1}  # more than it defines

    assert relations.RULES["touching"].rule is touching and "touching" not in complete_rules()
    assert held((0, 0, 2, 2), (5, 0, 2, 2), "touching") == {"separated"}


def test_bad_arguments_are_named():
    one, two = np.ones((1, 4)), np.ones((2, 4))
    refuses("rules: unknown rule set 'coco'; choose one of visor, sg2im, sstd, geneval", judge, one, one, "coco")
    for rules in SECTORS:
        wanted = f"rules='{rules}' judge boxes as shares of the image, whose size is missing"
        refuses(wanted, judge, one, one, rules)
    check = getattr(judge, "__wrapped__", judge)  # without the tests' own check of shapes
    refuses(r"must both be \(pair, 4\) xywh; got \(1, 4\) and \(2, 4\)", check, one, two)
