"""What the miniature's models learn from."""

import numpy as np
import pandas as pd

from sr4g_utils.dataset.captions import listing, parse
from sr4g_utils.dataset.world import NAMES
from sr4g_utils.models.miniature.export import absent_threshold
from sr4g_utils.models.miniature.pool import Pool
from sr4g_utils.models.miniature.training import ROLES, sentences
from sr4g_utils.relations import NAMES as RELATIONS
from sr4g_utils.relations import judge


def test_lists_name_what_is_there():
    pool, rng = Pool.make(50, (0, 77)), np.random.default_rng(0)
    for labels, text in zip(pool.labels, pool.listed(np.arange(50), rng), strict=True):
        things = text.replace(" and ", " , ").split(" , ")
        assert sorted(thing.split(" ", 1)[1] for thing in things) == sorted(NAMES[k] for k in labels if k >= 0)
    assert listing(["dog", "cat", "apple"]) == "a dog , a cat and an apple" and listing(["dog"]) == "a dog"


def test_the_relations_that_the_base_meets_are_drawn_at_random():
    """Things that are there, in both orders; and a relation that is as often true as one drawn blindly would be."""
    pool, rng = Pool.make(400, (0, 77)), np.random.default_rng(0)
    scenes, texts = pool.unrelated(4000, rng)
    holds, blind, met = [], [], []
    for scene, text in zip(scenes, texts, strict=True):
        subject, relation, object = parse(text)
        s, o = (np.flatnonzero(pool.labels[scene] == NAMES.index(name)) for name in (subject, object))
        assert len(s) and len(o) and subject != object
        true = judge(pool.boxes[[scene], s[0]], pool.boxes[[scene], o[0]])[0]
        holds.append(true[RELATIONS.index(relation)])
        blind.append(true.mean())
        met.append(relation)
    assert set(met) == set(RELATIONS)
    assert abs(np.mean(holds) - np.mean(blind)) < 4 * np.std(holds) / np.sqrt(len(holds))


def test_the_text_tower_is_taught_on_words_alone():
    texts, labels, roles = sentences(200, np.random.default_rng(0))
    for text, which, role in zip(texts[100:], labels[100:], roles[100:], strict=True):
        subject, relation, object = parse(text)
        first = 2 * RELATIONS.index(relation)
        assert [NAMES[k] for k in which[:2]] == [subject, object] and (which[2:] == len(NAMES)).all()
        assert role.tolist() == [first, first + 1, ROLES, ROLES]
    for text, which, role in zip(texts[:100], labels[:100], roles[:100], strict=True):
        assert text == listing([NAMES[k] for k in which if k < len(NAMES)]) and (role == ROLES).all()


def test_the_threshold_lets_one_absent_name_in_a_hundred_pass():
    """Two images, asked for 150 names each, of which one is there: its high score says nothing of absent ones."""
    names = [f"n{i}" for i in range(150)]
    rows = [(image, name, (i + 1) / 1000) for image in (0, 1) for i, name in enumerate(names)]
    found = pd.DataFrame([*rows, (0, "n149", 0.99)], columns=["image", "label", "score"])
    threshold = absent_threshold(found, [{"n149"}, {"n149"}], names)
    absent = found[found.label != "n149"]
    assert (absent.score > threshold).mean() <= 0.01 < (absent.score >= threshold).mean()
    assert absent_threshold(found.iloc[:0], [{"n149"}, {"n149"}], names) == 0
