"""Notebook 04's steps, from files to files: images, boxes, verdicts, the ceiling, a second judge, quality."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from ..dataset import inputs, prompt_sets, prompts
from ..dataset.photos import Photos
from ..models import sampling
from ..store.files import atomic
from ..store.run import Run
from . import detect, generate, glyph_judge, quality, tables
from . import scores as evaluation_scores
from . import verdicts as evaluation_verdicts
from .detections import read_detections
from .images import list_images
from .statistics import ratio

TEMPLATES = "templates"  # the second judge that matches the miniature's own cards
MAIN = ("OA", "VISOR", "VISOR_Cond")

Files = dict[str, Path]  # by the model's name
Features = dict[str, tuple[Path, Files]]  # by the space's name: of photos, and of each model's images
Records = Mapping[str, pd.DataFrame]  # verdicts (visor.verdicts) by the model's name


def write_prompts(
    run: Run, source: Any, objects: Sequence[str], per_relation: int | None, seed: int
) -> tuple[Path, dict[str, Any]]:
    """The prompts to test, and their numbers: of a prompt set or file (:func:`prompt_sets.read_prompts`), or for None
    the study's own, as notebook 02 leaves them."""
    if source is None:
        given = run.read("prompts.parquet")
    else:
        given, _ = run.stage("prompts_given.parquet", prompt_sets.write_given_prompts, source=source)
    asked = {"prompts": given}
    drawn: dict[str, Any] = {"objects": objects, "per_relation": per_relation, "seed": seed}
    return run.stage("prompts_test.parquet", prompts.write_test_prompts, asked, **drawn)


def draw(
    run: Run,
    models: Mapping[str, Mapping[str, Any]],
    asked: Path,
    options: Mapping[str, Any],
    dtype: str,
    place: str = "images",
) -> tuple[Files, dict[str, Any]]:
    """The folder of each model's images and the record of how they came about: drawn here (in ``place`` of the run), or
    given as ``images``."""
    folders, about = {}, {}
    for name, spec in models.items():
        if "images" in spec:
            folders[name], about[name] = run.read(spec["images"]), {"images": Path(spec["images"]).name}
            continue
        unet = {"unet": run.read(spec["unet"])} if "unet" in spec else {}
        folders[name], about[name] = run.stage(
            f"{place}/{name}",
            generate.write_images,
            {"prompts": asked, **unet},
            heavy=True,
            model=spec["model"],
            sampling=sampling.of_model(name, spec, options),
            dtype=dtype,
        )
    return folders, about


def find(
    run: Run, images: Files, asked: Path, detector: Any, place: str = "detections"
) -> tuple[Files, dict[str, Any] | None]:
    """The detector's boxes in each model's images (in ``place`` of the run), and the record of the detector."""
    boxes, about = {}, None
    for name, folder in images.items():
        boxes[name], about = run.stage(
            f"{place}/{name}.parquet",
            detect.write_detections,
            {"images": folder, "prompts": asked},
            heavy=True,
            detector=detector,
        )
    return boxes, about and about["detector"]


def judge(run: Run, images: Files, asked: Path, boxes: Files, **judged: Any) -> dict[str, pd.DataFrame]:
    """The verdict on every image; options of :func:`verdicts.verdicts`."""
    records = {}
    for name, folder in images.items():
        given = {"prompts": asked, "detections": boxes[name], "images": folder}
        path, _ = run.stage(f"verdicts_{name}.parquet", tables.write_verdicts, given, **judged)
        records[name] = pd.read_parquet(path)
    return records


def write_absent(path: str | Path, prompts: str | Path, seed: int) -> int:
    """A stage: the prompts with the object of another one in place of their own.

    Returns how many; none where fewer than three names are asked for in all.
    """
    asked, random = pd.read_parquet(prompts), np.random.default_rng(seed)
    names = np.unique(asked[["subject", "object"]].to_numpy(str))
    asked = asked if len(names) > 2 else asked.iloc[:0]
    others = [np.setdiff1d(names, own) for own in asked[["subject", "object"]].to_numpy(str)]
    with atomic(path) as partial:
        asked.assign(object=[random.choice(each) for each in others]).to_parquet(partial, index=False)
    return len(asked)


def absent(
    run: Run, images: Files, asked: Path, found: Files, detector: Any, threshold: float, seed: int, about: Any
) -> pd.DataFrame:
    """How often the detector, asked for the subject and for a name that the prompt does not say, finds the latter;
    beside OA, at VISOR's threshold and at the run's: table and result ``absent``. Columns model, threshold, OA, absent
    (percent of the images) with low and high, and images. Empty where there are too few names, and nothing is kept."""
    others, count = run.stage("prompts_absent.parquet", write_absent, {"prompts": asked}, seed=seed)
    rows = []
    for model, folder in images.items() if count else ():
        given, path = {"images": folder, "prompts": others}, f"absent/{model}.parquet"
        boxes, _ = run.stage(path, detect.write_detections, given, heavy=True, detector=detector)
        listed = list_images(folder, others)
        for least in sorted({evaluation_verdicts.THRESHOLD, threshold}):
            own, other = (
                evaluation_verdicts.verdicts(
                    pd.read_parquet(prompts), read_detections(table), listed, least, nothing="record"
                )
                for prompts, table in ((asked, found[model]), (others, boxes))
            )
            each = (other.n_object > 0).groupby(other.prompt_id).agg(["sum", "size"]).to_numpy(float)
            low, high = (100 * end[0] for end in ratio(each[:, :1], each[:, 1:]))
            shares = {"OA": 100 * own.both_found.mean(), "absent": 100 * (other.n_object > 0).mean()}
            rows.append({"model": model, "threshold": least, **shares, "low": low, "high": high, "images": len(own)})
    if not rows:
        return pd.DataFrame()
    table = run.result(pd.DataFrame(rows), "absent", **about)
    return run.table(table, "absent", "How often a name is found that the prompt does not say, with 95 % intervals")


def sheet(images: Files, drawn: Records, records: Records, chosen: pd.Series) -> pd.DataFrame:
    """A row for the first image of each chosen prompt and model, side by side: its verdict, heading and picture."""
    rows = []
    for name, listed in drawn.items():
        first = listed[listed.prompt_id.isin(chosen) & (listed.image_index == 0)]
        pictures = [Photos(images[name]).read(file) for file in first.file_name]
        shown = pd.DataFrame({"heading": name + ": " + first.caption, "picture": pictures})
        rows.append(first[["prompt_id", "image_index"]].join(shown).merge(records[name]))
    return pd.concat(rows).sort_values("prompt_id", kind="stable", ignore_index=True)


def _true_pictures(run: Run, annotations: Any, photos: Any) -> Files:
    """Photos of the validation split, which true captions are known of, and their annotations."""
    source = inputs.annotations(run, annotations, "val")
    return {"annotations": source, "photos": inputs.photos(run, photos, "val", source)}


def ceiling(
    run: Run, annotations: Any, photos: Any, detector: Any, n_per_relation: int, seed: int, judged: Any, about: Any
) -> pd.DataFrame:
    """What the detector scores on pictures whose captions are true: table and result ``ceiling``, of which the rows of
    all relations are returned. Empty for 0 captions per relation, and nothing is kept."""
    if not n_per_relation:
        return pd.DataFrame()
    given = _true_pictures(run, annotations, photos)
    options = {"detector": detector, "n_per_relation": n_per_relation, "seed": seed}
    folder, _ = run.stage("ceiling", detect.ceiling, given, heavy=True, **options)
    true, found = pd.read_parquet(folder / "prompts.parquet"), read_detections(folder / "detections.parquet")
    verdicts = evaluation_verdicts.verdicts(true, found, 1, **(judged | {"nothing": "raise"}))
    scores = run.result(evaluation_scores.scores(verdicts), "ceiling", **about)
    scores = scores[scores.metric.isin(MAIN)]
    run.table(scores, "ceiling", "The detector's ceiling: scores of true pictures, with 95 % intervals")
    return scores[scores.relation == "all"].drop(columns="relation")


def second_judge(
    run: Run, judge: Any, images: Files, asked: Path, records: Records, tests: pd.DataFrame, judged: Any
) -> dict[str, pd.DataFrame]:
    """Another judge's verdicts on the first image of each prompt: a detector's, or ``TEMPLATES``; none for None.

    Raises:
        NothingFound: it found nothing in any image.
    """
    second = {}
    for name, folder in images.items() if judge else ():
        given, path = {"images": folder, "prompts": asked}, f"second/{name}.parquet"
        if judge == TEMPLATES:
            found, _ = run.stage(path, glyph_judge.write_matches, given)
        else:
            found, _ = run.stage(path, detect.write_detections, given, heavy=True, detector=judge)
        least = {"threshold": 0.0} if judge == TEMPLATES else {}  # what the templates match, they have judged
        told, first = (table[table.image_index == 0] for table in (read_detections(found), records[name]))
        second[name] = evaluation_verdicts.verdicts(tests, told, first, **(judged | least))
    if second:
        evaluation_verdicts.unfound(second)
    return second


def second_opinion(
    run: Run, records: Records, second: Records, tests: pd.DataFrame, resamples: int, seed: int, about: Any
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """How far the second judge agrees with the first, the change that it sees, and the scores of the images on which
    both say the same: tables and results ``second_opinion``, ``changes_second`` and ``scores_agreed``. Empty without a
    second judge, and nothing is kept."""
    if not second:
        return pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    opinions = pd.concat(
        tables.second_opinion(records[name][records[name].image_index == 0], table).assign(model=name)
        for name, table in second.items()
    )
    told = tables.change_table(second, tests, resamples, seed)
    told = told[(told.relation == "all") & told.metric.isin(["OA", "VISOR_Cond"])].drop(columns="relation")
    alike = {name: tables.agreed(records[name], table) for name, table in second.items()}
    agreed = tables.score_table(alike, tests)
    agreed = agreed[(agreed.relation == "all") & agreed.metric.isin(["OA", "VISOR_Cond"])]
    agreed = agreed.drop(columns=["relation", "prompts"])  # of first images: as many prompts as images
    for table, name, caption in (
        (opinions, "second_opinion", "Two judges on the same images, by model"),
        (told, "changes_second", "The change as the second judge sees it, 95 % intervals"),
        (agreed, "scores_agreed", "Scores of the images on which both judges say the same, 95 % intervals"),
    ):
        run.result(table, name, **about)
        run.table(table, name, caption)
    return opinions, told, agreed


def features(
    run: Run,
    images: Files,
    asked: Path,
    spaces: Mapping[str, Any],
    annotations: Any,
    photos: Any,
    count: int,
    seed: int,
) -> Features:
    """The features of photos and of each model's images, in each space (name: network) that is given one. None for 0
    photos."""
    made = {}
    for name, network in spaces.items() if count else ():
        if None in network.values():
            continue
        given = _true_pictures(run, annotations, photos)
        drawn = list_images(images[next(iter(images))], asked)
        pixels = len(Photos(images[next(iter(images))]).read(drawn.file_name[0]))
        options = {"space": network, "count": count, "resolution": pixels, "seed": seed}
        real, _ = run.stage(f"features/{name}_photos", quality.write_photo_features, given, **options)
        each = {}
        for model, folder in images.items():
            shown = {"images": folder, "prompts": asked}
            each[model], _ = run.stage(f"features/{name}_{model}", quality.write_image_features, shown, space=network)
        made[name] = real, each
    return made


def distances(run: Run, spaces: Features, about: Any) -> dict[str, pd.DataFrame]:
    """:func:`quality.distances` by the space's name, as results ``quality_NAME``."""
    return {
        name: run.result(quality.distances(real, each), f"quality_{name}", **about, space=name)
        for name, (real, each) in spaces.items()
    }


def closeness(run: Run, spaces: Features, about: Any) -> dict[str, pd.DataFrame]:
    """:func:`quality.table` by the space's name, as results ``fidelity_NAME``."""
    made = {}
    for name, (real, each) in spaces.items():
        table = quality.table(load_file(real), {model: load_file(path) for model, path in each.items()})
        made[name] = run.result(table, f"fidelity_{name}", **about, space=name)
    return made
