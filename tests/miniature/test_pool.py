"""What the miniature's models learn from."""

import numpy as np

from sr4g_utils.captions import caption
from sr4g_utils.miniature.pool import Pool
from sr4g_utils.miniature.world import NAMES
from sr4g_utils.relations import NAMES as RELATIONS
from sr4g_utils.relations import judge


def test_captions_of_the_pool_are_true():
    pool = Pool.make(300, (0, 77))
    rng = np.random.default_rng(0)
    scenes, texts, slots, relation = pool.related(200, rng)
    for scene, text, (s, o, *_), r in zip(scenes, texts, slots, relation, strict=True):
        assert text == caption(NAMES[pool.labels[scene, s]], RELATIONS[r], NAMES[pool.labels[scene, o]])
        assert judge(pool.boxes[[scene], s], pool.boxes[[scene], o])[0, r]
    assert len(set(relation)) == 14
    texts, slots = pool.listed(np.arange(50), rng)
    for scene, (text, named) in enumerate(zip(texts, slots, strict=True)):
        things = text.replace(" and ", " , ").split(" , ")
        assert [thing.split(" ", 1)[1] for thing in things] == [NAMES[pool.labels[scene, k]] for k in named if k >= 0]
