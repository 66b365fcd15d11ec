"""Validation: the evaluation's own generation, detection and scores, on validation prompts, along fine-tuning."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from .. import diffusion, visor
from ..detectors import Detector
from ..sampling import Sampling
from .choices import Choices
from .learner import cast
from .log import SCORES

# a UNet's weights (and ``nothing``, see visor.verdicts) -> OA, VISOR, VISOR_Cond and their counts
Judge = Callable[..., dict[str, Any]]


def judge_of(pipeline: Any, asked: pd.DataFrame, detector: Detector, c: Choices, accelerator: Accelerator) -> Judge:
    """What scores a UNet's weights on the prompts asked; the processes share the prompts."""
    sampling = Sampling.of(c.sampling)
    cast(pipeline.vae, c.precision)
    mine = asked.iloc[accelerator.process_index :: accelerator.num_processes]
    names = dict(zip(asked.prompt_id, zip(asked.subject, asked.object, strict=True), strict=True))

    def judge(weights: Mapping[str, Tensor], nothing: str = "raise") -> dict[str, Any]:
        pipeline.unet.load_state_dict(weights)
        pipeline.unet.eval()
        total, quiet = len(mine) * sampling.images, not accelerator.is_main_process
        drawn = diffusion.sample(pipeline, mine, sampling)
        made = list(tqdm(drawn, "validation", total, leave=False, disable=quiet))
        ids, numbers, pictures = (list(part) for part in zip(*made, strict=True)) if made else ([], [], [])
        found = detector.detect(pictures, [names[id] for id in ids], floor=c.threshold)
        at = found.image.to_numpy(int)
        found = found.assign(prompt_id=np.array(ids, int)[at], image_index=np.array(numbers, int)[at])
        found = pd.concat(gather_object([found]), ignore_index=True)
        records = visor.verdicts(
            asked, found, images=sampling.images, threshold=c.threshold, pairs=c.pairs, rules=c.rules, nothing=nothing
        )
        scores = visor.scores(records).query("relation == 'all'").set_index("metric").value
        values = {name: None if np.isnan(scores[name]) else float(scores[name]) for name in SCORES}
        return {**values, "images": len(records), "both_found": int(records.both_found.sum())}

    return judge


def rank(scores: dict[str, Any], start: dict[str, Any] | None, oa_floor: float) -> tuple[bool, float]:
    """Higher is better: first, both objects are found nearly as often as at the start; then, VISOR_Cond.

    Without the floor, a model that has all but forgotten to draw two objects, and puts them right by luck, would win.
    """
    floor = oa_floor * start["OA"] if start else 0.0
    return scores["OA"] >= floor, -1.0 if scores["VISOR_Cond"] is None else scores["VISOR_Cond"]
