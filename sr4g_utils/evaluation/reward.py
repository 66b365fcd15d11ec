"""The judge as a reward, for whoever fine-tunes by reinforcement: images and prompts → a number in [0, 1] for each.

A policy cheats where it can. So the pair of the most confident boxes decides (with "any pair" an image full of dogs and
cats obeys everything), every further instance of either thing costs ``EXTRA``, and what the detector finds of names
that the prompt does not say is reported. Nothing is written, and memory does not grow with calls.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..dataset.prompt_sets import read_prompts
from ..models.names import spelling
from ..relations import NAMES, rules_named
from .margins import REACH, margin
from .score import DETECTOR, pixels_of
from .verdicts import THRESHOLD, judged

EXTRA = 0.25  # what each further instance of the subject or the object costs
SAME = 0.5  # boxes of one name that share more of the smaller one are one instance
Triplet = tuple[str, str, str]


def instances(xywh: Float[np.ndarray, "box 4"]) -> int:
    """How many things the boxes of one name are, best scores first: a box that shares more than ``SAME`` of the smaller
    one with a kept box is the same thing."""
    number = 0
    while len(xywh):
        best, rest = xywh[0], xywh[1:]
        xywh = rest[_shared(best, rest) <= SAME]
        number += 1
    return number


def _shared(one: Float[np.ndarray, "4"], others: Float[np.ndarray, "box 4"]) -> Float[np.ndarray, "box"]:
    """What a box has in common with others, as a share of the smaller one."""
    sides = np.minimum(one[:2] + one[2:], others[:, :2] + others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    smaller = np.minimum(one[2:].prod(), others[:, 2:].prod(axis=1))
    return sides.clip(0).prod(axis=1) / np.maximum(smaller, 1e-12)


@lru_cache(maxsize=100_000)
def _understood(prompt: str | Triplet) -> Triplet:
    try:
        return tuple(read_prompts([prompt]).iloc[0][["subject", "relation", "object"]])
    except ValueError as error:
        raise ValueError(f"reward: {prompt!r} does not say where one thing is to another ({error})") from None


def triplet_of(prompt: Any) -> Triplet:
    """Subject, relation and object of a sentence, a triplet or GenEval's metadata. ValueError: no relation of ours."""
    if isinstance(prompt, dict):
        return tuple(read_prompts([prompt]).iloc[0][["subject", "relation", "object"]])
    return _understood(prompt if isinstance(prompt, str) else tuple(prompt))


class Reward:
    """Rewards images by how well they obey their prompts' spatial relation.

    Args:
        detector: a :class:`models.Source`, or a loaded detector; by default VISOR's OWL-ViT.
        rules: a rule set; ``people`` is the one that people agree with most.
        pairs: "best" or "any", which is easily cheated.
        soft: False: 1 where the relation holds, else 0. True: 0.5 + margin / (2 · ``REACH``), above 0.5 where it
            holds, so that a policy is told whether it comes nearer (:func:`margin`). Both: 0 where a thing is missing.
        threshold: boxes with a higher score count.
        extra: what each further instance of either thing costs; 0 takes this guard away.
        also: names to look for beside the prompt's, for the report. dtype, device, batch: of the detector.
    """

    def __init__(
        self, detector: Any = DETECTOR, rules: str = "people", pairs: str = "best", soft: bool = False, *,
        threshold: float = THRESHOLD, extra: float | int = EXTRA, also: Sequence[str] = (), dtype: str = "float32",
        device: Any = None, batch: int = 64,
    ) -> None:  # fmt: skip
        if pairs not in ("best", "any"):
            raise ValueError(f"pairs: unknown value {pairs!r}; choose one of best, any")
        rules_named(rules)
        if not hasattr(detector, "detect"):
            from ..models import detectors  # torch

            detector = detectors.load(detector, dtype, device)
        self.detector, self.rules, self.pairs, self.soft = detector, rules, pairs, soft
        self.threshold, self.extra, self.also, self.batch = threshold, extra, tuple(also), batch

    def __call__(self, images: Any, prompts: Sequence[Any]) -> Float[np.ndarray, "image"]:
        """The reward of each image, finite and in [0, 1].

        Args:
            images: PIL images or arrays, one for each prompt; or one array or tensor of all, (image, height, width, 3)
                or (image, 3, height, width), uint8, or floats from 0 to 1.
            prompts: sentences, (subject, relation, object), or GenEval's metadata.

        Raises:
            ValueError: numbers of images and prompts differ; an image or a prompt that cannot be.
        """
        return self.verdicts(images, prompts).reward.to_numpy(np.float64)

    def verdicts(self, images: Any, prompts: Sequence[Any]) -> pd.DataFrame:
        """The same with its reasons: columns reward, correct, both_found, reason, margin (null where a thing is
        missing), subject, relation, object, n_subject and n_object (instances), and unasked (names of ``also`` that
        are found and that the prompt does not say)."""
        pixels = pixels_of(images)
        if len(pixels) != len(prompts):
            raise ValueError(f"reward: {len(pixels)} images but {len(prompts)} prompts")
        wanted = pd.DataFrame([triplet_of(prompt) for prompt in prompts], columns=["subject", "relation", "object"])
        for relation in wanted.relation.unique():
            rules_named(self.rules).check([relation], "reward: a prompt")
        names = [list(dict.fromkeys([row.subject, row.object, *self.also])) for row in wanted.itertuples()]
        boxes = self.detector.detect(pixels, names, floor=self.threshold, batch=self.batch)
        size = np.array([image.shape[1::-1] for image in pixels], np.float64).reshape(-1, 2)
        return self.of_boxes(wanted, boxes.reset_index(drop=True), size)

    def of_boxes(self, wanted: pd.DataFrame, boxes: pd.DataFrame, size: Float[np.ndarray, "image 2"]) -> pd.DataFrame:
        """:meth:`verdicts` from boxes that are known: ``wanted`` has subject, relation and object of each image; boxes
        have image (its row), label, score, x, y, w, h, image by image and best first; ``size`` is width and height."""
        image = boxes.image.to_numpy(int)
        label = boxes.label.map(spelling).to_numpy(object)
        names = {role: wanted[role].map(spelling).to_numpy(object)[image] for role in ("subject", "object")}
        roles = {role: np.equal(label, name).astype(bool) for role, name in names.items()}
        boxes = boxes.assign(image=image, **{f"is_{role}": mask for role, mask in roles.items()})
        boxes[["width", "height"]] = size[image]
        own_boxes = boxes[roles["subject"] | roles["object"]].reset_index(drop=True)
        numbered = wanted.assign(prompt_id=np.arange(len(wanted)), image_index=0)
        records = judged(numbered, own_boxes, self.pairs, self.rules)
        xywh = boxes[[*"xywh"]].to_numpy(np.float64)
        for role, mask in roles.items():
            ends = np.searchsorted(image[mask], np.arange(1, len(records)))  # boxes come image by image
            records[f"n_{role}"] = [instances(own) for own in np.split(xywh[mask], ends)][: len(records)]
        both, correct = records.both_found.to_numpy(bool), records.correct.to_numpy(bool)
        s, o = (records.loc[both, [f"{role}_{side}" for side in "xywh"]].to_numpy(float) for role in roles)
        relation = np.array([NAMES.index(name) for name in wanted.relation])[both]
        far = np.full(len(records), np.nan)
        far[both] = margin(s, o, relation, self.rules, size[both])
        value = np.where(both, 0.5 + far / (2 * REACH), 0) if self.soft else correct.astype(float)
        extra = (records.n_subject - 1).clip(lower=0) + (records.n_object - 1).clip(lower=0)
        value = np.nan_to_num(value - self.extra * extra.to_numpy()).clip(0, 1)
        others = boxes[~(roles["subject"] | roles["object"])].groupby("image").label.unique()
        unasked = [sorted(others.get(i, [])) for i in range(len(records))]
        shown = ["correct", "both_found", "reason", "subject", "relation", "object", "n_subject", "n_object"]
        table = records[shown].assign(margin=far, unasked=unasked)
        table.insert(0, "reward", value)
        return table

    def flow_grpo(self) -> Callable[..., tuple[list[float], dict[str, Any]]]:
        """The reward as flow_grpo and its descendants call it: ``(images, prompts, metadata) → (scores, info)``, of a
        float tensor (image, 3, h, w) or a uint8 array (image, h, w, 3). Metadata of GenEval's form counts before the
        sentence. ``info`` has the shares of images with both things and of those that obey."""

        def reward(images: Any, prompts: Sequence[str], metadata: Sequence[Any] | None = None, **_: Any) -> Any:
            wanted = [
                about if isinstance(about, dict) and "include" in about else prompt
                for prompt, about in zip(prompts, metadata or [None] * len(prompts), strict=True)
            ]
            table = self.verdicts(images, wanted)
            info = {name: table[name].astype(float).tolist() for name in ("both_found", "correct")}
            return table.reward.tolist(), info

        return reward

    def columns(self, image: str = "images", prompt: str = "prompts") -> Callable[..., list[float]]:
        """The reward as GRPO trainers call it: a function of named columns that ignores the others."""

        def reward(**columns: Any) -> list[float]:
            return self(columns[image], columns[prompt]).tolist()

        return reward

    def metric(self) -> Any:
        """The mean reward of all images since the last reset, as a torchmetrics metric for loggers: ``update(images,
        prompts)`` and ``compute()``, null before the first image. ``pip install '.[reward]'`` brings torchmetrics."""
        import torch
        from torchmetrics import Metric

        reward = self

        class MeanReward(Metric):
            higher_is_better, full_state_update = True, False
            settings: torch.Tensor
            total: torch.Tensor
            count: torch.Tensor

            def __init__(self) -> None:
                super().__init__()
                # a MetricCollection merges metrics whose states are equal after the first batch: settings must differ
                about = [getattr(reward, name) for name in ("rules", "pairs", "soft", "threshold", "extra", "also")]
                text = repr([reward.detector.record, *about]).encode()
                number = float(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"))
                for name, value, reduced in (("settings", number, "max"), ("total", 0.0, "sum"), ("count", 0.0, "sum")):
                    self.add_state(name, torch.tensor(value, dtype=torch.float64), dist_reduce_fx=reduced)

            def update(self, images: Any, prompts: Sequence[Any]) -> None:
                rewards = reward(images, prompts)
                self.total += rewards.sum()
                self.count += len(rewards)

            def compute(self) -> torch.Tensor:
                return self.total / self.count

        return MeanReward()
