"""Can the pictures of the miniature's base be read, and does it know no relation?

``python -m sr4g_utils.evaluation.readable data/models/tiny-sd --detector data/models/tiny-owlvit=0.2`` answers.
Two things and a relation are drawn at random; the base, before any fine-tuning, is asked for a list of the two and for
the relation. Each judge looks at these pictures, at drawn scenes of two things and at what the VAE makes of those.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from ..dataset import world
from ..dataset.captions import caption, listing
from ..dataset.world import NAMES
from ..models.sampling import Sampling
from ..relations import NAMES as RELATIONS
from ..store.files import write_json
from .glyph_judge import find
from .judges import TEMPLATES
from .statistics import agreement, outcomes
from .verdicts import verdicts

Pictures = UInt8[np.ndarray, "n h w 3"]
SAMPLING = Sampling(images=1, steps=12, guidance=5.0, scheduler="DPMSolverMultistepScheduler", batch=64, seed=101)


def questions(n: int, seed: int) -> pd.DataFrame:
    """``n`` times two different things and a relation, each relation equally often: prompt_id, subject, relation,
    object, caption (with the relation) and list."""
    rng = np.random.default_rng([seed, 101])
    things = [[str(name) for name in rng.choice(NAMES, 2, replace=False)] for _ in range(n)]
    rows = [(i, s, RELATIONS[i % len(RELATIONS)], o) for i, (s, o) in enumerate(things)]
    table = pd.DataFrame(rows, columns=["prompt_id", "subject", "relation", "object"])
    asked = table[["subject", "relation", "object"]].itertuples(index=False)
    return table.assign(caption=[caption(*each) for each in asked], list=[listing(two) for two in things])


def drawn(n: int, seed: int) -> tuple[Pictures, list[list[str]]]:
    """``n`` drawn scenes of two different things, and their names."""
    pictures: list[np.ndarray] = []
    asked: list[list[str]] = []
    for i, (names, boxes) in enumerate(world.scenes(4 * n, (seed, 102), composed=0.0)):
        if len(set(names)) == len(names) == 2 and len(asked) < n:
            pictures.append(world.render(boxes, names, seed=i))
            asked.append(names)
    return np.stack(pictures), asked


def look(judges: Mapping[str, Any], pictures: Pictures, asked: Sequence[Sequence[str]]) -> dict[str, pd.DataFrame]:
    """Each judge's boxes of the names that it is asked for: image, label, x, y, w, h, score."""
    result = {}
    for name, (detector, threshold) in judges.items():
        if name == TEMPLATES:
            rows = [
                (i, label, *match[1], match[0])
                for i, (picture, names) in enumerate(zip(pictures, asked, strict=True))
                for label, match in zip(names, find(picture, names), strict=True)
                if match is not None
            ]
            result[name] = pd.DataFrame(rows, columns=["image", "label", *"xywh", "score"])
        else:
            result[name] = detector.detect(list(pictures), asked, floor=threshold)
    return result


def both_found(boxes: pd.DataFrame, asked: Sequence[Sequence[str]]) -> np.ndarray:
    """Of each picture: are both things that it is asked for found?"""
    there = boxes.groupby("image").label.agg(set).to_dict()
    return np.array([set(names) <= there.get(i, set()) for i, names in enumerate(asked)])


def unasked(boxes: pd.DataFrame, asked: Sequence[Sequence[str]]) -> float:
    """Percent of the names that a picture's caption does not say which are found all the same (all are asked for)."""
    pairs = boxes[["image", "label"]].drop_duplicates()
    wrong = sum(label not in asked[i] for i, label in pairs.itertuples(index=False))
    return 100 * wrong / sum(len(NAMES) - len(set(names)) for names in asked)


def kappa(one: np.ndarray, two: np.ndarray) -> float:
    """Cohen's kappa of two judges' verdicts."""
    return float(agreement(outcomes(one.astype(bool), two.astype(bool)).sum(0))[3])


def scores(model: str | Path, judges: Mapping[str, Any], n: int = 420, seed: int = 0) -> dict[str, Any]:
    """What each judge sees, in percent, how far every two of them agree (Cohen's kappa), and what is gained in points
    of VISOR_Cond where the base is told the relation, which it does not know, with a 95 % interval.

    ``judges``: by name, a detector of :func:`models.detectors.load` and its threshold; what stands at ``TEMPLATES`` is
    not looked at.
    """
    table = questions(n, seed)
    shown = _shown(model, table, seed)
    asked = shown["lists"][1]
    boxes = {kind: look(judges, *each) for kind, each in shown.items()}
    found = {
        kind: {judge: both_found(each, shown[kind][1]) for judge, each in by.items()} for kind, by in boxes.items()
    }
    correct = {
        kind: {judge: _correct(table, each) for judge, each in boxes[kind].items()} for kind in ("lists", "relations")
    }
    others = look({k: v for k, v in judges.items() if k != TEMPLATES}, shown["lists"][0], [list(NAMES)] * n)
    agreed = {}
    for one, two in combinations(judges, 2):
        both = found["lists"][one] & found["lists"][two]
        same = kappa(*(correct["lists"][judge][both] for judge in (one, two)))
        of_found = kappa(found["lists"][one], found["lists"][two])
        agreed[f"{one}, {two}"] = {"both found": of_found, "relation": same, "pictures": int(both.sum())}
    kinds = ("relations", "lists")
    return {
        "pictures": n,
        "both found": {kind: {judge: 100 * each.mean() for judge, each in by.items()} for kind, by in found.items()},
        "names not said": {judge: unasked(each, asked) for judge, each in others.items()},
        "agreement": agreed,
        "what the relation word gains": {
            judge: _gain(*(correct[kind][judge][found[kind][judge]] for kind in kinds)) for judge in judges
        },
    }


def _shown(model: str | Path, table: pd.DataFrame, seed: int) -> dict[str, tuple[Pictures, list[list[str]]]]:
    """Drawn scenes, also after the VAE, and the base's pictures of lists and of relations, with what is asked for."""
    from ..models import diffusion  # torch: not for light rooms
    from ..models.load import load_pipeline
    from ..models.miniature.training import reconstruct

    pipeline, asked = load_pipeline(model)[0], table[["subject", "object"]].to_numpy().tolist()
    lists, told = (
        np.stack([picture for *_, picture in diffusion.sample(pipeline, table.assign(caption=texts), SAMPLING)])
        for texts in (table["list"], table.caption)
    )
    scenes, names = drawn(len(table), seed)
    return {
        "drawn scenes": (scenes, names), "after the VAE": (reconstruct(pipeline.vae, scenes), names),
        "lists": (lists, asked), "relations": (told, asked),
    }  # fmt: skip


def _correct(table: pd.DataFrame, boxes: pd.DataFrame) -> np.ndarray:
    """Of each question: does its relation hold between the best boxes?"""
    boxes = boxes.assign(prompt_id=boxes.image, image_index=0)
    return verdicts(table, boxes, 1, 0.0, "best", nothing="record").correct.to_numpy(bool)


def _gain(after: np.ndarray, before: np.ndarray) -> list[float]:
    """The difference of two shares in percent, and its 95 % interval; NaN of fewer than two."""
    gain, error = (
        100 * (after.mean() - before.mean()),
        100 * np.hypot(*(x.std() / len(x) ** 0.5 for x in (after, before))),
    )
    return [float(gain), float(gain - 1.96 * error), float(gain + 1.96 * error)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m sr4g_utils.evaluation.readable", description=__doc__)
    add = parser.add_argument
    add("model", type=Path, help="the base, a folder")
    add("--detector", action="append", default=[], metavar="FOLDER=THRESHOLD", help="a judge; may be repeated")
    add("--pictures", type=int, default=420)
    add("--out", type=Path, help="a JSON file (default: printed)")
    args = parser.parse_args(argv)
    from ..models import detectors  # torch: not for --help

    judges: dict[str, Any] = {}
    for each in args.detector:
        folder, _, threshold = each.rpartition("=")
        judges[Path(folder).name] = (detectors.load(Path(folder)), float(threshold))
    result = scores(args.model, {**judges, TEMPLATES: (None, 0.0)}, args.pictures)
    if args.out:
        write_json(args.out, result)
    else:
        print(result)


if __name__ == "__main__":
    main()
