"""Exercise 2: predict VISOR of a generator that throws dice."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from ..evaluation.scores import AT_LEAST, MAIN
from ..evaluation.verdicts import verdicts
from .answer import accept, grid, refuse, words

IMAGES = 4  # of each prompt, as in VISOR
FOUND = 0.8  # how often each object is drawn so that the detector finds it, the two independently of each other
GENERATORS = ("dice", "stubborn")  # both objects anywhere; the subject always on the left
RELATIONS = ("left of", "right of")  # half of the prompts each


def throw(prompts: int, generator: str = "dice", seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompts and the detections of four images each, as :func:`sr4g_utils.evaluation.verdicts.verdicts` takes them.

    Every image is 64 pixels wide and high. An object that is drawn is one box of 16 × 16 pixels and found with
    certainty. A generator that is "stubborn" puts the subject on the left, whatever the prompt says.
    """
    if generator not in GENERATORS:
        raise ValueError(f"generator: unknown generator {generator!r}; choose one of {', '.join(GENERATORS)}")
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"prompt_id": np.arange(prompts), "subject": "dog", "object": "cat"})
    table["relation"] = np.resize(RELATIONS, prompts)
    places = rng.uniform(0, 48, (prompts, IMAGES, 2, 2))  # image, object, axis
    if generator == "stubborn":
        places[..., 0].sort(axis=-1)
    found = rng.random((prompts, IMAGES, 2)) < FOUND
    rows = [
        {"prompt_id": p, "image_index": i, "label": ("dog", "cat")[k], "score": 0.9,
         "x": places[p, i, k, 0], "y": places[p, i, k, 1], "w": 16.0, "h": 16.0}
        for p, i, k in product(range(prompts), range(IMAGES), range(2)) if found[p, i, k]
    ]  # fmt: skip
    return table, pd.DataFrame(rows)


def _expected(generator: str) -> dict[str, float]:
    """The metrics' expectations in percent (of VISOR_Cond, that of its numerator by that of its denominator)."""
    both = FOUND**2
    obeyed = {"dice": (0.5, 0.5), "stubborn": (1.0, 0.0)}[generator]  # of images with both objects, per relation
    correct = both * np.array(obeyed)
    shares = [both, correct.mean(), correct.mean() / both]
    shares += [stats.binom.sf(n - 1, IMAGES, correct).mean() for n in AT_LEAST]
    names = (*MAIN, *(f"VISOR_{n}" for n in AT_LEAST))
    return {name: 100 * float(share) for name, share in zip(names, shares, strict=True)}


TOLERANCE = 0.5  # points


def check_prediction(prediction: Mapping[str, float | int | None], generator: str = "dice") -> None:
    """Whether the predicted percentages are those to be expected of a generator, to within half a point.

    Args:
        prediction: a percentage for each of OA, VISOR, VISOR_Cond, VISOR_1 and VISOR_4.
        generator: one of ``GENERATORS``.

    Raises:
        CounterExample: one of them is missing, or is not what dice would give; some throws are drawn.
    """
    expected = _expected(generator)
    for metric in ("OA", "VISOR_Cond", "VISOR", "VISOR_4", "VISOR_1"):
        said = prediction.get(metric)
        if said is None:
            refuse(f"Nothing is predicted for {metric} yet.", words(f"{metric}: ?"))
        if abs(said - expected[metric]) > TOLERANCE:
            prompts, detections = throw(6, generator, seed=1)
            title = f"six prompts, four images each ({generator})\nyou predict {metric} = {said:g} %"
            refuse(_hint(metric, float(said), expected), grid(verdicts(prompts, detections, IMAGES), title))
    accept(f"That is what {generator} would score. Now throw them and see.")


def _hint(metric: str, said: float, expected: Mapping[str, float]) -> str:
    """One sentence on where to look, by the error that leads to such a number."""

    def near(value: float) -> bool:
        return abs(said - value) <= TOLERANCE

    one = expected["VISOR"] / 100
    if not 0 <= said <= 100:
        return f"{metric} is a percentage of something: {said:g} cannot be one."
    if 0 < said <= 1 and near(expected[metric] / 100):
        return f"{metric} is given in percent: {said:g} is a fraction."
    if metric == "OA" and near(100 * FOUND):
        return "OA needs both objects in the same image: how often are the dog and the cat there together?"
    if metric == "VISOR_Cond" and near(expected["VISOR"]):
        return "VISOR_Cond looks only at images in which both are found: count the white squares out."
    if metric == "VISOR" and near(expected["VISOR_Cond"]):
        return "VISOR divides by all images, also by those without both objects: the white squares count."
    if metric == "VISOR_4" and near(expected["VISOR"]):
        return "VISOR_4 counts prompts, not images: how often are all four squares of a row blue?"
    if metric == "VISOR_4" and near(100 * one**4):
        return "Not every prompt has the same chance here: look at the rows one by one."
    if metric == "VISOR_1" and near(100 * (1 - (1 - one) ** 4)):
        return "Not every prompt has the same chance here: look at the rows one by one."
    if metric == "VISOR_1" and near(100 - expected["VISOR_4"]):
        return "The opposite of 'at least one blue square' is not 'not all four blue'."
    return f"{metric} is something else: which squares does it count, and what does it divide them by?"
