"""The judge as a reward: what it gives, what it cannot be cheated by, and how trainers call it."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics import MetricCollection

from sr4g_utils.evaluation.margins import REACH, margin
from sr4g_utils.evaluation.reward import Reward, instances, triplet_of
from sr4g_utils.relations import NAMES, RELATIONS, judge
from sr4g_utils.store.files import DATA, protocol

SIZE = np.array([[100.0, 100.0]])
SHAPE = np.zeros((100, 100, 3), np.uint8)


class Stub:
    """A detector that finds, in the k-th image, the boxes (label, score, x, y, w, h) of the k-th scene."""

    def __init__(self, *scenes):
        self.scenes, self.record = scenes, {"id": "stub"}

    def detect(self, images, names, floor, **_):
        rows = [
            (i, *box) for i, (scene, wanted) in enumerate(zip(self.scenes, names, strict=True))
            for box in sorted(scene, key=lambda box: -box[1]) if box[0] in wanted and box[1] > floor
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["image", "label", "score", *"xywh"])


def of(scene, prompt, **options):
    return Reward(Stub(scene), **options)([SHAPE], [prompt])[0]


DOG, CAT = ("dog", 0.9, 10, 40, 20, 20), ("cat", 0.9, 60, 40, 20, 20)
PROMPT = "a dog to the left of a cat"


def test_hard_and_soft():
    for soft in (False, True):
        right, wrong = of([DOG, CAT], PROMPT, soft=soft), of([DOG, CAT], "a cat to the left of a dog", soft=soft)
        assert 0 <= wrong < 0.5 < right <= 1 and right + wrong == pytest.approx(1)
        assert of([DOG], PROMPT, soft=soft) == of([], PROMPT, soft=soft) == 0
    assert of([DOG, CAT], PROMPT) == 1
    far = [of([DOG, ("cat", 0.9, x, 40, 20, 20)], PROMPT, soft=True) for x in range(0, 80, 4)]
    assert (np.diff(far) >= 0).all() and len(set(far)) > 10


APART = [0.137, 0.291, 0.413, 0.271], [0.033, 0.177, 0.229, 0.371]  # so that no two sides are in one line


def boxes(k):
    sides = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(5, 40)] * 2)
    return sides.map(lambda box: np.array([box], float) + APART[k])


@settings(max_examples=10, deadline=None)
@given(boxes(0), boxes(1), st.sampled_from(RELATIONS), st.sampled_from(["people", "visor", "sg2im"]))
def test_the_margin_has_the_verdicts_sign_and_mirrors(subject, object, relation, rules):
    which = np.array([NAMES.index(relation.name)])
    far = margin(subject, object, which, rules, SIZE)[0]
    assert (far > 0) == judge(subject, object, rules, SIZE)[0, which[0]] and abs(far) <= REACH

    def mirrored(box):
        return np.column_stack([100 - box[:, 0] - box[:, 2], box[:, 1:]])

    other = relation.opposite if relation.name in ("left of", "right of") else relation.name
    back = margin(mirrored(subject), mirrored(object), np.array([NAMES.index(other)]), rules, SIZE)[0]
    assert back == pytest.approx(far, abs=1e-6)


def test_a_margin_is_the_way_to_the_border_in_units_of_the_boxes():
    left = np.array([NAMES.index("left of")])
    for dx in (5.0, 10.0, 20.0):
        far = margin(np.array([[40 - dx, 40.0, 10, 10]]), np.array([[40.0, 40, 10, 10]]), left, "visor", SIZE)
        assert far[0] == pytest.approx(min(dx / 10, REACH), abs=2e-3)


@pytest.mark.parametrize(
    "cheat,prompt,open_to",  # boxes, and what the cheat earns without its guard
    [
        (
            [DOG, CAT, ("dog", 0.6, 85, 40, 10, 10), ("cat", 0.6, 0, 40, 8, 10)], "a cat to the left of a dog",
            {"pairs": "any", "extra": 0.0},
        ),
        ([DOG, CAT, *(("dog", 0.5, 5 + 12 * i, 80, 9, 9) for i in range(4))], PROMPT, {"extra": 0.0}),
    ],
    ids=["a thing on each side", "many of a thing"],
)  # fmt: skip
def test_cheats_earn_little_with_the_guard_and_all_without(cheat, prompt, open_to):
    assert of(cheat, prompt) == 0 and of(cheat, prompt, **open_to) == 1


def test_boxes_of_one_thing_are_one_instance():
    assert instances(np.array([[0.0, 0, 20, 20], [1, 1, 20, 20], [50, 50, 20, 20]])) == 2
    twice = [DOG, ("dog", 0.5, 11, 41, 20, 20), CAT]
    assert of(twice, PROMPT) == 1
    table = Reward(Stub([DOG, CAT, ("tie", 0.7, 0, 0, 5, 5)]), also=["tie", "cup"]).verdicts([SHAPE], [PROMPT])
    assert table.unasked[0] == ["tie"] and table.n_subject[0] == 1 and table.reason[0]


def test_prompts_and_images_of_every_kind():
    geneval = {"tag": "position", "prompt": "a photo of a dog left of a cat", "include": [
        {"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]}  # fmt: skip
    for prompt in (PROMPT, ("dog", "left of", "cat"), ["dog", "left of", "cat"], geneval):
        assert triplet_of(prompt) == ("dog", "left of", "cat")
    with pytest.raises(ValueError, match="does not say where one thing is"):
        triplet_of("two dogs in a park")
    reward = Reward(Stub([DOG, CAT], [DOG]))
    batch = np.stack([SHAPE, SHAPE])
    tensor = torch.zeros(2, 3, 100, 100, dtype=torch.bfloat16)
    for images in (
        [Image.fromarray(SHAPE)] * 2,
        list(batch),
        batch,
        batch / 255,
        tensor,
        tensor.to(torch.uint8),
        list(tensor),
    ):
        assert reward(images, [PROMPT] * 2).tolist() == [1, 0]
    for images, says in (
        (batch[:1], "1 images but 2 prompts"),
        (torch.full((2, 3, 8, 8), float("nan")), "an image is"),
    ):
        with pytest.raises(ValueError, match=says):
            reward(images, [PROMPT] * 2)
    with pytest.raises(ValueError, match="rules='geneval' define"):
        Reward(Stub([DOG]), rules="geneval")([SHAPE], ["a dog inside a cat"])


def test_trainers_call_it_their_way():
    reward = Reward(Stub([DOG, CAT], [DOG]))
    scores, info = reward.flow_grpo()(torch.zeros(2, 3, 100, 100), [PROMPT] * 2, [{}, None], only_strict=True)
    assert scores == [1, 0] and info == {"both_found": [1, 0], "correct": [1, 0]}
    named = reward.columns(image="completions", prompt="prompts")
    assert named(completions=np.stack([SHAPE] * 2), prompts=[PROMPT] * 2, step=3) == [1, 0]


@pytest.mark.parametrize("order", [("people", "visor"), ("visor", "people")])
def test_a_collection_keeps_two_settings_apart(order):
    """Their first batch agrees, the second does not: a dog above and a little left of a cat is left by visor alone."""
    slanted = [("dog", 0.9, 38, 0, 20, 20), ("cat", 0.9, 44, 60, 20, 20)]
    stub = Stub([DOG, CAT])
    metrics = MetricCollection({rules: Reward(stub, rules=rules).metric() for rules in order})
    metrics.update([SHAPE], [PROMPT])
    stub.scenes = (slanted,)
    metrics.update([SHAPE], [PROMPT])
    assert {name: float(value) for name, value in metrics.compute().items()} == {"people": 0.5, "visor": 1.0}


def test_on_real_images_it_is_what_score_says(tmp_path):
    from sr4g_utils import score
    from sr4g_utils.dataset import world

    scenes = [(names, xywh) for names, xywh in world.scenes(40, [5]) if len(set(names)) == len(names) == 2][:12]
    images = [world.render(xywh, names, seed=i) for i, (names, xywh) in enumerate(scenes)]
    prompts = [(names[0], "left of", names[1]) for names, _ in scenes]
    detector = DATA / "models" / "tiny-owlvit"
    limit = protocol()["thresholds"]["tiny-owlvit"]
    reward = Reward(detector, threshold=limit, extra=0.0)
    table = reward.verdicts(images, prompts)
    judged = score(images, prompts, detector=detector, threshold=limit, pairs="best", rules="people").verdicts
    assert table.reward.tolist() == judged.correct.astype(float).tolist() and table.correct.any()
    assert table.reason.tolist() == judged.reason.tolist()
    soft = Reward(reward.detector, threshold=limit, soft=True)(images, prompts)
    assert np.isfinite(soft).all() and ((soft > 0.5) <= table.correct).all()


CALLS = """
import gc, resource, sys
from sr4g_utils.dataset import world
from sr4g_utils.evaluation.reward import Reward
from sr4g_utils.relations import RELATIONS

reward = Reward(sys.argv[1], soft=True, threshold=0.13, also=["bus"])
images = [world.render(xywh, names, seed=i) for i, (names, xywh) in enumerate(world.scenes(100, [5]))]
prompts = [f"a {a} {r.phrase} a {b}" for r in RELATIONS for a, b in (("dog", "cat"), ("car", "cup"))]

def held(calls):
    for i in range(calls):
        reward([images[i % 100]], [prompts[i % 28]])
    gc.collect()
    return sys.getallocatedblocks(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

first = held(100)  # what is made once is made
print(*(after - before for before, after in zip(first, held(int(sys.argv[2])))))
"""


@pytest.mark.slow("hundreds of calls")
def test_memory_does_not_grow_with_calls():
    """Neither the blocks that Python holds nor, by the peak of the whole process, what torch does. docs/reward.md has
    what ``SR4G_REWARD_CALLS=10000 pytest -m '' -s -k memory tests/evaluation/test_reward.py`` prints."""
    calls = int(os.environ.get("SR4G_REWARD_CALLS", 300))
    command = [sys.executable, "-c", CALLS, str(DATA / "models" / "tiny-owlvit"), str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    blocks, kilobytes = map(int, done.stdout.split())
    print(f"{calls:,} calls: {blocks:+,} of Python's blocks of memory, the process's peak {kilobytes / 1000:+.1f} MB")
    assert blocks < 300 + calls / 10 and kilobytes < 16_000 + calls
