"""Prompts without a relation: does fine-tuning on relations cost the things themselves?

"a dog", "a dog and a cat", "a dog, a cat and a bench": an image obeys if all of them are found, wherever they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..dataset.captions import listing
from ..dataset.prompts import THINGS
from ..store.files import read_table, write_table
from ..store.run import Run
from . import statistics, steps, verdicts
from .detections import read_detections
from .images import list_images

SETS = ("seen", "unseen", "all")  # "all" are the prompts that know of no sets
UNASKED = "separated"  # placeholder: the table needs a relation; it is not in the caption and not scored


def write_prompts(path: str | Path, prompts: str | Path, number: int, seed: int) -> int:
    """A stage: ``number`` prompts for each number of ``THINGS`` and each of ``SETS``, of the names of other prompts.

    Columns are those of a prompt, objects, things (how many it says) and third (the third name). A prompt that says
    fewer than three has names that are not asked for: a detector is asked for two at a time. A set that names fewer
    than three things is left out. Returns how many.
    """
    others, random = read_table(prompts), np.random.default_rng(seed)
    rows = []
    for objects in SETS:
        names = np.unique(others.loc[others.objects == objects, ["subject", "object"]].to_numpy(str))
        for things in THINGS if len(names) >= max(THINGS) else ():
            for i in range(number):
                drawn = random.choice(names, max(THINGS), replace=False).tolist()
                text = {"prompt_id": f"{objects}-{things}-{i}", "caption": listing(drawn[:things]), "objects": objects}
                named = {"subject": drawn[0], "relation": UNASKED, "object": drawn[1], "third": drawn[2]}
                rows.append(text | named | {"things": things})
    write_table(path, pd.DataFrame(rows))
    return len(rows)


def write_thirds(path: str | Path, prompts: str | Path) -> int:
    """A stage: the same prompts with the third thing as their subject, for the detector. Returns how many."""
    table = read_table(prompts)
    write_table(path, table.assign(subject=table.third))
    return len(table)


def found(
    prompts: pd.DataFrame, boxes: pd.DataFrame, thirds: pd.DataFrame, images: pd.DataFrame, threshold: float
) -> pd.DataFrame:
    """A row for each image (of :func:`images.list_images`): prompt_id, objects, things, and found: whether all things
    that its prompt (of :func:`write_prompts`) says are, by detections of the first two names and of the third."""
    first, last = (
        verdicts.verdicts(needed, table, images, threshold, nothing="record")
        for needed, table in ((prompts, boxes), (prompts.assign(subject=prompts.third), thirds))
    )
    rows = first[["prompt_id"]].merge(prompts[["prompt_id", "objects", "things"]], validate="many_to_one")
    there = np.column_stack([first.n_subject, first.n_object, last.n_subject]) > 0
    needed = np.arange(max(THINGS)) < rows.things.to_numpy()[:, None]
    return rows.assign(found=(there | ~needed).all(axis=1))


def scores(models: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How often all things are found, by set of objects and number of things, and in all, from tables of :func:`found`.

    Columns model, objects, things ("all" in the last row of a model), found (percent) with low and high, change from
    the first model (points) with change_low and change_high, prompts and images.
    """
    first, rows = next(iter(models.values())), []
    for model, table in models.items():
        parts = [(*key, part) for key, part in table.groupby(["objects", "things"])]
        for objects, things, part in [*parts, ("all", "all", table)]:
            before, after = (_counts(each[each.prompt_id.isin(part.prompt_id)]) for each in (first, part))
            (low,), (high,) = statistics.ratio(*after)
            change = lowest = highest = np.nan
            if table is not first:
                change = _share(after) - _share(before)
                lowest, highest = np.concatenate(statistics.difference(before, after))
            numbers = {"found": part.found.mean(), "low": low, "high": high, "change": change, "change_low": lowest,
                       "change_high": highest}  # fmt: skip
            about = {"model": model, "objects": objects, "things": str(things)}
            rows.append(about | {name: 100 * number for name, number in numbers.items()}
                        | {"prompts": len(after[0]), "images": len(part)})  # fmt: skip
    return pd.DataFrame(rows)


def _counts(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of each prompt, in the order of ids: images with all things, and images."""
    counts = table.groupby("prompt_id").found.agg(["sum", "size"]).to_numpy(float)
    return counts[:, :1], counts[:, 1:]


def _share(counts: tuple[np.ndarray, np.ndarray]) -> float:
    return counts[0].sum() / counts[1].sum()


def evaluate(
    run: Run, models: Mapping[str, Any], prompt_file: Path, number: int, options: Mapping[str, Any], dtype: str,
    detector: Any, threshold: float, seed: int, about: Any,
) -> pd.DataFrame:  # fmt: skip
    """Every model's :func:`scores`, from prompts to table and result ``plain``; models of which there are only images
    or boxes are left out. Empty, and nothing is kept, for a number of 0, without a model, or if prompts name too few
    things."""
    models = {name: spec for name, spec in models.items() if "model" in spec}
    if not (number and models):
        return pd.DataFrame()
    files = {"prompts": prompt_file}
    prompts, count = run.stage("plain_prompts.parquet", write_prompts, files, number=number, seed=seed)
    if not count:
        return pd.DataFrame()
    thirds, _ = run.stage("plain_thirds.parquet", write_thirds, {"prompts": prompts})
    images, _ = steps.draw(run, models, prompts, options, dtype, "plain/images")
    boxes, _ = steps.find(run, images, prompts, detector, "plain/detections")
    others, _ = steps.find(run, images, thirds, detector, "plain/thirds")
    table, records = read_table(prompts), {}
    for name, folder in images.items():
        first, last = (read_detections(files[name]) for files in (boxes, others))
        records[name] = found(table, first, last, list_images(folder, table), threshold)
    result = run.result(scores(records), "plain", **about, per_cell=number)
    return run.table(result, "plain", "Prompts without a relation: all things found (percent), with 95 % intervals")
