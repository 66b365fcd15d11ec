"""What chooses among checkpoints."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator
from tuning import HELD_OUT

from sr4g_utils.dataset import prompts
from sr4g_utils.evaluation import scores as evaluation_scores
from sr4g_utils.evaluation import verdicts
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.loop import Validator, rank
from sr4g_utils.models import detectors, diffusion
from sr4g_utils.models.sampling import Sampling


def test_finding_both_objects_comes_first_and_then_visor_cond():
    start = {"OA": 80.0}
    nothing = {"OA": 0.0, "VISOR_Cond": None}
    assert rank(nothing, start, 0.9) < rank({"OA": 1.0, "VISOR_Cond": 0.0}, start, 0.9)
    assert rank({"OA": 71.0, "VISOR_Cond": 99.0}, start, 0.9) < rank({"OA": 72.0, "VISOR_Cond": 1.0}, start, 0.9)
    assert rank({"OA": 90.0, "VISOR_Cond": 50.0}, start, 0.9) < rank({"OA": 72.0, "VISOR_Cond": 51.0}, start, 0.9)
    assert rank({"OA": 1.0, "VISOR_Cond": 2.0}, None, 0.9)[0]  # nothing to compare with


def parts(world: SimpleNamespace, pipeline: Any, **choices: Any) -> tuple:
    """Prompts, a detector, a validator of both, and weights to validate."""
    asked = prompts.validation_prompts(world.prompts, HELD_OUT, 14, 0)
    detector = detectors.load(world.folder / "owlvit", device="cpu")
    c = Choices(precision="float32", **choices)
    validator = Validator(pipeline, asked, detector, c, Accelerator(cpu=True))
    return asked, detector, validator, dict(pipeline.unet.state_dict())


def test_it_is_the_evaluation_itself(world, pipeline):
    """The same pictures, boxes, verdicts and scores as by the rooms of notebook 04."""
    sampling: dict[str, Any] = {"images": 2, "steps": 2}
    asked, detector, validator, weights = parts(world, pipeline, sampling=sampling, threshold=0.3, pairs="best")
    found = validator(weights)
    made = list(diffusion.sample(pipeline, asked, Sampling.of(sampling)))
    assert all(np.array_equal(a, b) for a, b in zip(validator.images, [image for *_, image in made[::2]], strict=False))
    assert len(validator.images) == 8
    names = dict(zip(asked.prompt_id, zip(asked.subject, asked.object, strict=True), strict=True))
    boxes = detector.detect([image for *_, image in made], [names[id] for id, *_ in made], floor=0.01)
    places = pd.DataFrame([place for *place, _ in made], columns=["prompt_id", "image_index"]).iloc[boxes.image]
    boxes = boxes.assign(**places.reset_index(drop=True))
    records = verdicts.verdicts(asked, boxes, images=2, threshold=0.3, pairs="best")
    scores = evaluation_scores.scores(records).query("relation == 'all'").set_index("metric").value
    assert found["images"] == 28 and found["both_found"] == records.both_found.sum() > 0
    assert [found[name] for name in evaluation_scores.MAIN] == pytest.approx(
        [scores[n] for n in evaluation_scores.MAIN]
    )


def test_to_have_learnt_to_draw_nothing_is_a_result_but_no_start(world, pipeline):
    *_, validator, weights = parts(world, pipeline, sampling={"images": 1, "steps": 2}, threshold=0.9999)
    with pytest.raises(verdicts.NothingFound, match="the detector found nothing"):
        validator(weights)
    nothing = {"OA": 0.0, "VISOR": 0.0, "VISOR_Cond": None, "images": 14, "both_found": 0}
    assert validator(weights, nothing="record") == nothing
