"""The best of n pictures by a reward, measured by others."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from slowly import make_detections

from sr4g_utils.evaluation import best_of, verdicts
from sr4g_utils.store.files import protocol


@pytest.mark.parametrize(
    "score", [[0.3, 0.1, 0.9, 0.4, 0.2], [1.0, 0, 1, 0, 0], [0.5] * 5], ids=["all differ", "hard", "same"]
)
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_shares_are_those_of_all_subsets(score, n):
    score, slow = np.array(score), np.zeros(5)
    for drawn in map(list, combinations(range(5), n)):
        best = [i for i in drawn if score[i] == score[drawn].max()]
        slow[best] += 1 / len(best)
    np.testing.assert_allclose(best_of.shares(score, n), slow / slow.sum(), atol=1e-12)


def test_a_judge_that_is_followed_gains_and_one_that_has_nothing_to_do_with_it_does_not():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"prompt_id": np.repeat(range(60), 64), "proxy": rng.random(60 * 64)})
    table = table.assign(good=table.proxy > 0.5, blind=rng.random(len(table)) < 0.5)
    found = best_of.best_of(table, "proxy", ["good", "blind"]).set_index(["of", "n"])
    assert found.loc[("proxy", 64), "value"] > 98 and (found.loc[("good", 64), "value"] > 99)
    assert found.loc[("good", 8), "low"] > 0 and found.loc[("good", 1), "gain"] == 0
    assert found.loc[("blind", 64), "low"] < 0 < found.loc[("blind", 64), "high"]
    assert found.loc[("blind", 64), "lost_low"] > 0 and (found.loc["proxy"].lost == 0).all()
    np.testing.assert_allclose(found.gain + found.lost, np.repeat(found.loc["proxy"].gain.to_numpy(), 3))
    with pytest.raises(ValueError, match="best of 128: a prompt has 64 pictures only"):
        best_of.best_of(table, "proxy", ["good"], [1, 128])


PROMPTS = pd.DataFrame({"prompt_id": [7], "subject": ["dog"], "relation": ["left of"], "object": ["cat"]})
PROMPTS["caption"] = "a dog to the left of a cat"


def test_pictures_have_rewards_judges_and_cheats():
    """Four pictures: right; nothing; a dog on each side, the surer one on the wrong; right, with a giant cat."""
    boxes = make_detections(
        (7, 0, "dog", 0.9, 5, 40, 20, 20), (7, 0, "cat", 0.9, 60, 40, 20, 20),
        (7, 2, "dog", 0.9, 70, 40, 20, 20), (7, 2, "dog", 0.5, 5, 40, 20, 20), (7, 2, "cat", 0.9, 40, 40, 20, 20),
        (7, 3, "dog", 0.9, 5, 40, 20, 20), (7, 3, "cat", 0.9, 20, 10, 75, 75),
    ).assign(width=100, height=100)  # fmt: skip
    judge = verdicts.verdicts(PROMPTS, boxes[boxes.image_index < 2], 4)
    table = best_of.pictures(PROMPTS, boxes, {"a": judge, "b": judge, "c": judge.assign(correct=True)}, 0.1)
    assert table["any pair"].tolist() == [1, 0, 1, 1] and table["best pair"].tolist() == [1, 0, 0, 1]
    assert table["people, guarded"].tolist() == [1, 0, 0, 1] and table.soft.between(0, 1).all()
    assert table["median"].tolist() == [1, 0, 0, 0] and table.c.tolist() == [1, 1, 1, 1]
    assert table.several.tolist() == [0, 0, 1, 0] and table.giant.tolist() == [0, 0, 0, 1]
    assert table.absent.tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="'b' judged other pictures than 'a'"):
        best_of.pictures(PROMPTS, boxes, {"a": judge, "b": judge[:2]}, 0.1)
    with pytest.raises(ValueError, match="judges: none is given"):
        best_of.pictures(PROMPTS, boxes, {}, 0.1)


def test_what_was_decided_is_what_is_computed():
    decided = protocol(1)["wear"]
    assert all(name in decided for name in best_of.PROXIES) and f"{best_of.GIANT:.0%}".replace("%", " %") in decided
    assert ", ".join(map(str, best_of.NS)) in decided
