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
FOUND = 0.8  # the share of images in which the detector finds an object, for each of the two independently
GENERATORS = ("dice", "stubborn")  # both objects anywhere; the subject always on the left
RELATIONS = ("left of", "right of")  # half of the prompts each


def throw(prompts: int, generator: str = "dice", seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Prompts and the detections of four images each, as :func:`sr4g_utils.evaluation.verdicts.verdicts` takes them.

    Every image is 64 pixels wide and high, and an object that is found is one box of 16 × 16 pixels. A generator that
    is "stubborn" puts the subject on the left, whatever the prompt says.
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
    """Whether the predicted percentages of OA, VISOR, VISOR_Cond and VISOR_1 to VISOR_4 are those to be expected of one
    of ``GENERATORS``, to within half a point.

    Raises:
        CounterExample: one of them is missing, or is not the expected one; some throws are drawn.
    """
    expected = _expected(generator)
    for metric in expected:
        value = prediction.get(metric)
        if not isinstance(value, int | float | np.number):
            refuse(f"Nothing is predicted for {metric} yet: give a percentage.", words(f"{metric}: ?"))
        if not abs(value - expected[metric]) <= TOLERANCE:
            prompts, detections = throw(6, generator, seed=1)
            title = f"six prompts, four images each ({generator})\nyou predict {metric} = {value:g} %"
            refuse(_hint(metric, float(value), expected), grid(verdicts(prompts, detections, IMAGES), title))
    accept(f"That is what {generator} would score. Now throw them and see.")


def _hint(metric: str, predicted: float, expected: Mapping[str, float]) -> str:
    """One sentence on where to look, by the error that leads to such a number."""

    def near(value: float) -> bool:
        return abs(predicted - value) <= TOLERANCE

    if not 0 <= predicted <= 100:
        return f"{metric} is a percentage of something: {predicted:g} cannot be one."
    if 0 < predicted <= 1 and near(expected[metric] / 100):
        return f"{metric} is given in percent: {predicted:g} is a fraction."
    if metric == "OA" and near(100 * FOUND):
        return "OA needs both objects in the same image: how often are the dog and the cat there together?"
    if metric == "VISOR_Cond" and near(expected["VISOR"]):
        return "VISOR_Cond looks only at images in which both are found: count the white squares out."
    if metric == "VISOR" and near(expected["VISOR_Cond"]):
        return "VISOR divides by all images, also by those without both objects: the white squares count."
    if metric == "VISOR_1" and near(100 - expected["VISOR_4"]):
        return "The opposite of 'at least one blue square' is not 'not all four blue'."
    if metric.removeprefix("VISOR_").isdigit():
        n = int(metric[-1])
        if near(expected["VISOR"]):
            return f"{metric} counts prompts, not images: how often does a row have at least {n} blue squares?"
        if near(float(100 * stats.binom.sf(n - 1, IMAGES, expected["VISOR"] / 100))):
            return "Not every prompt has the same chance here: look at the rows one by one."
        if n < IMAGES and near(expected[metric] - expected[f"VISOR_{n + 1}"]):
            return f"That is how often exactly {n} squares of a row are blue: more than {n} count as well."
    return f"{metric} is something else: which squares does it count, and what does it divide them by?"
