"""Notebook 04's steps, from files to files: images, boxes, verdicts, the ceiling, other judges, quality."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from ..dataset import inputs, prompt_sets, prompts
from ..dataset.photos import Photos
from ..models import sampling
from ..relations import SYMMETRIC
from ..store.files import read_table, write_table
from ..store.run import Run
from . import detect, figures, generate, glyph_judge, judges, outlines, quality, statistics, tables
from . import gallery as evaluation_gallery
from . import scores as evaluation_scores
from . import verdicts as evaluation_verdicts
from .detections import read_detections
from .images import list_images

Files = dict[str, Path]  # by the model's name
Features = dict[str, tuple[Path, Files]]  # by the space's name: of photos, and of each model's images
Records = Mapping[str, pd.DataFrame]  # verdicts (visor.verdicts) by the model's name


def write_prompts(
    run: Run, source: Any, objects: Sequence[str], per_relation: int | None, seed: int
) -> tuple[Path, dict[str, Any]]:
    """The prompts to test, and their numbers: of a prompt set or file (:func:`prompt_sets.read_prompts`), or for None
    the study's own, as notebook 02 leaves them."""
    if source is None:
        prompt_file = run.read("prompts.parquet")
    else:
        prompt_file, _ = run.stage("prompts_given.parquet", prompt_sets.write_given_prompts, source=source)
    files = {"prompts": prompt_file}
    drawn: dict[str, Any] = {"objects": objects, "per_relation": per_relation, "seed": seed}
    return run.stage("prompts_test.parquet", prompts.write_test_prompts, files, **drawn)


def prompts_about(source: Any, drawn: Mapping[str, int], prompts: pd.DataFrame) -> dict[str, Any]:
    """What a result says of its prompts: the set's or file's name, how many, of which objects, and their hash."""
    name = "the study" if source is None else Path(str(source)).name
    sha256 = prompt_sets.prompts_hash(prompts)
    return {"name": name, "number": len(prompts), "drawn": dict(drawn), "sha256": sha256}


def draw(
    run: Run, models: Mapping[str, Mapping[str, Any]], prompt_file: Path, options: Mapping[str, Any], dtype: str,
    place: str = "images",
) -> tuple[Files, dict[str, Any]]:  # fmt: skip
    """The folder of each model's images and the record of how they came about: drawn here (in ``place`` of the run),
    given as ``images``, or the outlines of ``boxes`` in their place."""
    folders, about = {}, {}
    for name, spec in models.items():
        if "boxes" in spec:
            inputs = {"prompts": prompt_file, "boxes": Path(spec["boxes"]).resolve()}
            folders[name], about[name] = run.stage(f"outlines/{name}", outlines.write_outlines, inputs)
            continue
        if "images" in spec:
            folders[name], about[name] = run.read(spec["images"]), {"images": Path(spec["images"]).name}
            continue
        files = {"prompts": prompt_file} | {key: run.read(spec[key]) for key in ("unet", "lora") if key in spec}
        config = {"model": spec["model"], "sampling": sampling.of_model(name, spec, options), "dtype": dtype}
        folders[name], about[name] = run.stage(f"{place}/{name}", generate.write_images, files, heavy=True, **config)
    return folders, about


def find(
    run: Run, images: Files, prompt_file: Path, detector: Any, place: str = "detections"
) -> tuple[Files, dict[str, Any] | None]:
    """The boxes of a detector, or of ``judges.TEMPLATES``, in each model's images (in ``place`` of the run), and the
    record of the detector."""
    boxes, about = {}, None
    for name, folder in images.items():
        files, path = {"images": folder, "prompts": prompt_file}, f"{place}/{name}.parquet"
        if not outlines.of_images({name: folder}):
            boxes[name], own = run.stage(path, outlines.copy_boxes, {"outlines": folder})
            about = about or own
        elif detector == judges.TEMPLATES:
            boxes[name], _ = run.stage(path, glyph_judge.write_matches, files)
        else:
            boxes[name], about = run.stage(path, detect.write_detections, files, heavy=True, detector=detector)
    return boxes, about and about["detector"]


def judge(run: Run, images: Files, prompt_file: Path, boxes: Files, place: str = "", **judged: Any) -> Records:
    """The verdict on every image (in ``place`` of the run); options of :func:`verdicts.verdicts`."""
    records = {}
    for name, folder in images.items():
        files = {"prompts": prompt_file, "detections": boxes[name], "images": folder}
        path, _ = run.stage(f"{place}verdicts_{name}.parquet", tables.write_verdicts, files, **judged)
        records[name] = read_table(path)
    return records


def judge_again(
    run: Run, others: Sequence[judges.Judge], images: Files, prompt_file: Path, judged: Any
) -> tuple[dict[str, dict[str, pd.DataFrame]], dict[str, Records]]:
    """The boxes and the verdicts of other judges on all images, by the judge's name and the model's. NothingFound: one
    of them found nothing in any image."""
    boxes, records = {}, {}
    for other in others if outlines.of_images(images) else ():
        files, _ = find(run, outlines.of_images(images), prompt_file, other.source, f"{other.folder}detections")
        how = {**judged, "threshold": other.threshold}
        records[other.name] = judge(run, outlines.of_images(images), prompt_file, files, other.folder, **how)
        evaluation_verdicts.unfound(records[other.name])
        boxes[other.name] = {name: read_detections(path) for name, path in files.items()}
    return boxes, records


def write_absent(path: str | Path, prompts: str | Path, seed: int) -> int:
    """A stage: the prompts with the object of another one in place of their own. Returns how many; none where fewer
    than three names are asked for in all."""
    table, random = read_table(prompts), np.random.default_rng(seed)
    names = np.unique(table[["subject", "object"]].to_numpy(str))
    table = table if len(names) > 2 else table.iloc[:0]
    others = [np.setdiff1d(names, own) for own in table[["subject", "object"]].to_numpy(str)]
    write_table(path, table.assign(object=[random.choice(names_left) for names_left in others]))
    return len(table)


def absent(
    run: Run, images: Files, prompt_file: Path, boxes: Mapping[str, Mapping[str, pd.DataFrame]],
    named: Sequence[judges.Judge], seed: int, about: Any,
) -> pd.DataFrame:  # fmt: skip
    """False-positive rate: how often each judge finds an object that is not in the prompt; beside OA, at VISOR's
    threshold and at its own: table and result ``absent``; ``boxes`` by the judge's name and the model's. Columns judge,
    model, threshold, OA, absent (percent of the images) with low and high, and images. Empty where there are too few
    names, and nothing is kept."""
    others, count = run.stage("prompts_absent.parquet", write_absent, {"prompts": prompt_file}, seed=seed)
    rows, shown = [], outlines.of_images(images) if count else {}
    for i, one in enumerate(named):
        others_boxes, _ = find(run, shown, others, one.source, f"{one.folder if i else ''}absent")
        limits = {one.threshold} | ({evaluation_verdicts.THRESHOLD} if one.source != judges.TEMPLATES else set())
        for (model, found), least in product(others_boxes.items(), sorted(limits)):
            listed = list_images(images[model], others)
            pair = (read_table(prompt_file), boxes[one.name][model]), (read_table(others), read_detections(found))
            own, other = (evaluation_verdicts.verdicts(*of, listed, least, nothing="record") for of in pair)
            counts = (other.n_object > 0).groupby(other.prompt_id).agg(["sum", "size"]).to_numpy(float)
            low, high = (100 * end[0] for end in statistics.ratio(counts[:, :1], counts[:, 1:]))
            shares = {"OA": 100 * own.both_found.mean(), "absent": 100 * (other.n_object > 0).mean()}
            row = {"judge": one.name, "model": model, "threshold": least, **shares, "low": low, "high": high}
            rows.append(row | {"images": len(own)})
    if not rows:
        return pd.DataFrame()
    table = run.result(pd.DataFrame(rows), "absent", **about)
    return run.table(table, "absent", "How often a name is found that the prompt does not say, with 95 % intervals")


def gallery(run: Run, images: Files, prompt_file: Path) -> Path:
    """The page ``gallery.html`` with every image and its verdict (after :func:`judge`)."""
    page, verdicts = run.folder / "artifacts" / "gallery.html", run.folder / "artifacts"
    inputs = {"prompts": prompt_file} | {f"images_{name}": folder for name, folder in images.items()}
    inputs |= {f"verdicts_{name}": verdicts / f"verdicts_{name}.parquet" for name in images}
    seen_from = {name: evaluation_gallery.address(folder, page) for name, folder in images.items()}
    path, _ = run.stage(page.name, evaluation_gallery.write_gallery, inputs, seen_from=seen_from)
    return path


def sheet(images: Files, drawn: Records, records: Records, chosen: pd.Series) -> pd.DataFrame:
    """A row for the first image of each chosen prompt and model, side by side: verdict, heading and image."""
    rows = []
    for name, listed in drawn.items():
        first = listed[listed.prompt_id.isin(chosen) & (listed.image_index == 0)]
        shown_images = [Photos(images[name]).read(file) for file in first.file_name]
        shown = pd.DataFrame({"heading": name + ": " + first.caption, "picture": shown_images})
        rows.append(first[["prompt_id", "image_index"]].join(shown).merge(records[name]))
    return pd.concat(rows).sort_values("prompt_id", kind="stable", ignore_index=True)


def before_after(images: Files, drawn: Records, by: judges.Judged, tests: pd.DataFrame, columns: int = 6) -> Figure:
    """The first prompt of each relation that has a direction (of all, if none has), as each model draws it first: a
    line for each model, ``columns`` prompts in it, with what most judges say."""
    directed = tests[~tests.relation.isin(SYMMETRIC)]
    chosen = (directed if len(directed) else tests).drop_duplicates("relation").prompt_id
    columns = min(columns, len(chosen))
    verdicts = {name: judges.counts(by, name).assign(n_subject=0, n_object=0) for name in drawn}  # and no boxes
    lines = [
        sheet(images, {name: drawn[name]}, verdicts, chosen[start : start + columns])
        for start in range(0, len(chosen) // columns * columns, columns)
        for name in drawn
    ]
    rows = pd.concat(lines, ignore_index=True)
    return figures.contact_sheet(rows, rows.picture, columns)


def _true_photos(run: Run, annotations: Any, photos: Any) -> Files:
    """Photos of the validation split, which true captions are known of, and their annotations."""
    source = inputs.annotations(run, annotations, "val")
    return {"annotations": source, "photos": inputs.photos(run, photos, "val", source)}


def ceiling(
    run: Run, annotations: Any, photos: Any, named: Sequence[judges.Judge], n_per_relation: int, seed: int, judged: Any,
    about: Any,
) -> pd.DataFrame:  # fmt: skip
    """What each judge scores on photos with true captions: table and result ``ceiling``, of which the rows of all
    relations are returned. Empty for 0 captions per relation, and nothing is kept."""
    if not n_per_relation:
        return pd.DataFrame()
    files = _true_photos(run, annotations, photos)
    options = {"detector": named[0].source, "n_per_relation": n_per_relation, "seed": seed}
    folder, _ = run.stage("ceiling", detect.ceiling, files, heavy=True, **options)
    rows = []
    for i, one in enumerate(named):
        path = folder / "detections.parquet"
        if one.source == judges.TEMPLATES:
            true = {"prompts": folder / "prompts.parquet", "photos": files["photos"]}
            path, _ = run.stage(f"{one.folder}ceiling.parquet", glyph_judge.write_true_matches, true)
        elif i:
            options |= {"detector": one.source}
            path = run.stage(f"{one.folder}ceiling", detect.ceiling, files, heavy=True, **options)[0] / path.name
        how = judged | {"threshold": one.threshold, "nothing": "raise"}
        verdicts = evaluation_verdicts.verdicts(read_table(folder / "prompts.parquet"), read_detections(path), 1, **how)
        rows.append(evaluation_scores.scores(verdicts).assign(judge=one.name))
    scores = pd.concat(rows, ignore_index=True).set_index("judge").reset_index()
    scores = run.result(scores, "ceiling", **about)
    scores = scores[scores.metric.isin(evaluation_scores.MAIN)]
    run.table(scores, "ceiling", "Each judge's ceiling: scores of photos with true captions, with 95 % intervals")
    return scores[scores.relation == "all"].drop(columns="relation")


def second_opinion(run: Run, by: judges.Judged, tests: pd.DataFrame, about: Any) -> Iterator[pd.DataFrame]:
    """How far every two judges agree, and the scores of the images on which all say the same: tables and results
    ``second_opinion`` (of the judges ``first`` and ``second``) and ``scores_agreed``, one by one. None if there is one
    judge."""
    opinions = [
        statistics.second_opinion(by[first][model], by[second][model]).assign(model=model, first=first, second=second)
        for first, second in combinations(by, 2)
        for model in by[first]
        if model in by[second]
    ]
    if not opinions:
        return
    agreed = tables.score_table(judges.agreed(by), tests)
    agreed = agreed[(agreed.relation == "all") & agreed.metric.isin(evaluation_scores.MAIN)].drop(columns="relation")
    agreed = agreed.reset_index(drop=True)
    opinion = pd.concat(opinions, ignore_index=True).set_index(["first", "second", "model"]).reset_index()
    for table, name, caption in (
        (opinion, "second_opinion", "Every two judges on the same images, by model"),
        (agreed, "scores_agreed", "Scores of the images on which all judges say the same, 95 % intervals"),
    ):
        yield run.table(run.result(table, name, **about), name, caption)


def whose_gain(
    run: Run, by: judges.Judged, tests: pd.DataFrame, resamples: int, seed: int, about: Any
) -> Iterator[pd.DataFrame]:
    """:func:`judges.whose_gain` of each model after the first, as table and result ``whose_gain_NAME``, one by one.
    None if there is one judge."""
    names = [name for name in next(iter(by.values())) if all(name in models for models in by.values())]
    for model in names[1:]:
        table = judges.whose_gain(by, tests, names[0], model, resamples, seed).assign(judge=next(iter(by)))
        if len(table):
            run.result(table, name := f"whose_gain_{model}", **about)
            yield run.table(table, name, f"Whose gain is it? {model}, points, 95 % intervals")


def by_threshold(
    run: Run, boxes: Mapping[str, Mapping[str, pd.DataFrame]], by: judges.Judged, tests: pd.DataFrame, judged: Any,
    named: Sequence[judges.Judge],
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """:func:`tables.by_threshold` of each judge, by its name; kept as one table."""
    scored = {
        judge.name: tables.by_threshold(
            tests, boxes[judge.name], by[judge.name], **{**judged, "threshold": judge.threshold}
        )
        for judge in named
        if judge.name in by
    }
    together = pd.concat(scored, names=["judge"]).reset_index(level="judge")
    run.table(together, "by_threshold", "Scores against the judge's threshold, by judge and model, 95 % intervals")
    return scored


def features(
    run: Run, images: Files, prompt_file: Path, spaces: Mapping[str, Any], annotations: Any, photos: Any, count: int,
    seed: int,
) -> Features:  # fmt: skip
    """The features of photos and of each model's images, in each space (name: network) that is given one. None for 0
    photos."""
    by_space, images = {}, outlines.of_images(images)
    for name, space in spaces.items() if count and images else ():
        if None in space.values():
            continue
        files, folder = _true_photos(run, annotations, photos), next(iter(images.values()))
        pixels = len(Photos(folder).read(list_images(folder, prompt_file).file_name[0]))
        options = {"space": space, "count": count, "resolution": pixels, "seed": seed}
        real, _ = run.stage(f"features/{name}_photos", quality.write_photo_features, files, **options)
        drawn = {}
        for model, folder in images.items():
            files, path = {"images": folder, "prompts": prompt_file}, f"features/{name}_{model}"
            drawn[model], _ = run.stage(path, quality.write_image_features, files, space=space)
        by_space[name] = real, drawn
    return by_space


def distances(run: Run, spaces: Features, about: Any) -> dict[str, pd.DataFrame]:
    """:func:`quality.distances` by the space's name, as results ``quality_NAME``."""
    return {
        name: run.result(quality.distances(real, drawn), f"quality_{name}", **about, space=name)
        for name, (real, drawn) in spaces.items()
    }


def closeness(run: Run, spaces: Features, about: Any) -> dict[str, pd.DataFrame]:
    """:func:`quality.table` by the space's name, as results ``fidelity_NAME``."""
    by_space = {}
    for name, (real, drawn) in spaces.items():
        table = quality.table(load_file(real), {model: load_file(path) for model, path in drawn.items()})
        by_space[name] = run.result(table, f"fidelity_{name}", **about, space=name)
    return by_space
