"""How readable a base's pictures are: what is asked, and what counts."""

import numpy as np
import pandas as pd
import pytest

from sr4g_utils.dataset import world
from sr4g_utils.evaluation import readable
from sr4g_utils.evaluation.judges import TEMPLATES
from sr4g_utils.relations import NAMES as RELATIONS


def test_each_relation_is_asked_equally_often_of_two_different_things():
    asked = readable.questions(4 * len(RELATIONS), 0)
    assert (asked.relation.value_counts() == 4).all() and (asked.subject != asked.object).all()
    assert not any(phrase in text for text in asked["list"] for phrase in ("left", "above", "larger", "inside"))
    pd.testing.assert_frame_equal(asked, readable.questions(4 * len(RELATIONS), 0))


def test_templates_find_what_is_drawn_and_no_other_thing():
    pictures, names = readable.drawn(40, 0)
    assert pictures.shape == (40, 64, 64, 3) and all(len(set(two)) == 2 for two in names)
    judges = {TEMPLATES: (None, 0.0)}
    found = readable.both_found(readable.look(judges, pictures, names)[TEMPLATES], names)
    assert found.mean() > 0.9
    absent = [[name for name in world.NAMES if name not in two][:2] for two in names]
    assert readable.both_found(readable.look(judges, pictures, absent)[TEMPLATES], absent).mean() < 0.1


def test_both_things_must_be_found_and_names_that_are_not_said_are_counted_once():
    boxes = pd.DataFrame({"image": [0, 0, 0, 1, 2, 2], "label": ["dog", "cat", "car", "dog", "car", "car"]})
    asked = [["dog", "cat"]] * 4
    assert readable.both_found(boxes, asked).tolist() == [True, False, False, False]
    assert readable.unasked(boxes, asked) == pytest.approx(100 * 2 / (4 * 38))


def test_kappa_of_judges_who_agree_as_chance_would_is_0():
    one, two = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert readable.kappa(one, two) == 0 and readable.kappa(one, one) == 1
