"""A score in one call: images, or boxes, and their prompts → a table that says how it was judged."""

import html
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import __version__
from ..dataset.names import amount
from ..dataset.prompt_sets import prompts_hash, read_prompts
from ..models.sampling import Pixels
from ..store import files
from ..store.limits import limit
from . import detect, gallery
from .detections import from_corners, positions, read_detections, read_visor_results, record_of
from .images import list_images
from .scores import MAIN, chance, scores
from .statistics import FEWEST, second_opinion
from .tables import with_interval
from .verdicts import THRESHOLD, settings_like, verdicts

DETECTOR = "google/owlvit-base-patch32"  # VISOR's


@dataclass(frozen=True)
class Score:
    """``scores`` with chance beside them, the ``verdicts`` that they come from, and how the images were ``judged``; of
    a folder of images also the folder, and the ``listed`` images."""

    scores: pd.DataFrame
    verdicts: pd.DataFrame
    judged: dict[str, Any]
    folder: Path | None = None
    listed: pd.DataFrame | None = None

    def table(self, relation: str = "all") -> pd.DataFrame:
        """A row for each metric that can be measured: value and interval, counts, and chance."""
        rows = self.scores[self.scores.relation == relation]
        rows = rows[~rows.metric.str.startswith("VISOR_") | rows.value.notna() | (rows.metric == "VISOR_Cond")]
        percent = [with_interval(*row) for row in zip(rows.value, rows.low, rows.high, strict=True)]
        counts = [f"{count:,} of {of:,}" for count, of in zip(rows["count"], rows["of"], strict=True)]
        table = pd.DataFrame({"metric": rows.metric, "percent": percent, "counts": counts})
        return table.assign(chance=list(map(with_interval, rows.chance))).reset_index(drop=True)

    def per_relation(self) -> pd.DataFrame:
        """A row for each relation: its prompts, and OA, VISOR and VISOR_Cond as :meth:`table` has them."""
        rows = []
        for relation in dict.fromkeys(self.scores.relation[self.scores.relation != "all"]):
            table = self.table(relation).set_index("metric")
            cells = {name: f"{table.percent[name]} ({table.counts[name]})" for name in MAIN}
            prompts = self.scores.prompts[self.scores.relation == relation].iloc[0]
            rows.append({"relation": relation, "prompts": prompts, **cells, "chance": table.chance["VISOR_Cond"]})
        return pd.DataFrame(rows)

    def per_pair(self) -> pd.DataFrame:
        """A row for the prompts whose two things share a photo of COCO train2017, and one for those whose never do; no
        row for other prompts than COCO's."""
        rows = []
        for name, part in self.verdicts.groupby("met") if "met" in self.verdicts else ():
            own = Score(scores(part).merge(chances(part), how="left"), part, self.judged).table().set_index("metric")
            cells = {metric: f"{own.percent[metric]} ({own.counts[metric]})" for metric in MAIN}
            rows.append(
                {"things": name, "prompts": part.prompt_id.nunique(), **cells, "chance": own.chance["VISOR_Cond"]}
            )
        return pd.DataFrame(rows)[::-1].reset_index(drop=True)

    def by(self) -> str:
        """Who or what judged: the detector, the threshold, the pairs of boxes and the rules."""
        judged = self.judged
        if file := judged.get("published"):
            return f"verdicts as published in {file['file']} (sha256 {file['sha256'][:12]})"
        detector, file = judged.get("detector") or {"id": "a detector that is not named"}, judged.get("boxes")
        weights = f"sha256 {files.hash_of(detector['files'])[:12]}" if "files" in detector else None
        at = detector.get("commit") or detector.get("revision") or weights
        name = f"{detector['id']}@{at}" if at else detector["id"]
        name += f" ({file['file']}, sha256 {file['sha256'][:12]})" if file else ""
        return f"boxes of {name}, threshold {judged['threshold']}, {judged['pairs']} pair, rules {judged['rules']}"

    def on(self) -> str:
        """On which prompts and images."""
        prompts, images = self.judged["prompts"], self.judged["images"]["number"]
        name, sha256, seed = prompts["name"], prompts["sha256"][:12], self.judged.get("seed")
        text = f"{amount(prompts['number'], 'prompt')} of {name} (sha256 {sha256}), {amount(images, 'image')}"
        return text if seed is None else f"{text}, seed {seed}"

    def how(self) -> str:
        """How the images were judged, in a paragraph."""
        left_out = self.judged["prompts"]["left_out"]
        more = f" Left out for want of a relation: {amount(left_out, 'prompt')} of the set." if left_out else ""
        few = self.scores.low.isna().all()
        ends = f"No intervals: fewer than {FEWEST} prompts" if few else "Intervals: 95 %, over prompts"
        numbers = f"{ends}; chance: relations permuted among the prompts. Nothing of it is drawn, so there is no seed. "
        numbers += f"sr4g_utils {__version__}."
        return f"How it was judged: {self.by()}; {self.on()} ({self.judged['images']['counted']}).{more} {numbers}"

    def cite(self) -> str:
        """One line for a paper or a commit."""
        percent = self.table().set_index("metric").percent
        values = ", ".join(f"{name} {percent[name]}" for name in MAIN)
        return f"{values} ({self.on()}; {self.by()}; sr4g_utils {__version__}, arXiv 2403.00587 and 2212.10015)"

    def to_json(self) -> dict[str, Any]:
        """All of it but the verdicts, as JSON can hold it; null is a score of 0 / 0, or an interval of too few."""
        rows = self.scores.astype(object).where(self.scores.notna(), None)
        pairs = self.per_pair().to_dict("records")
        return {"scores": rows.to_dict("records"), "pairs": pairs, "judged": self.judged, "cite": self.cite()}

    def write(self, folder: str | Path) -> None:
        """Leave scores.csv, scores.parquet, scores.json and verdicts.parquet in a folder; of a folder of images also
        gallery.html, a page with all of them."""
        folder = Path(folder)
        with files.atomic(folder / "scores.csv") as partial:
            self.scores.to_csv(partial, index=False)
        files.write_table(folder / "scores.parquet", self.scores)
        files.write_table(folder / "verdicts.parquet", self.verdicts)
        files.write_json(folder / "scores.json", self.to_json())
        if self.folder is not None and self.listed is not None:
            shown = self.verdicts.merge(self.listed[["prompt_id", "image_index", "caption", "file_name"]])
            page = folder / "gallery.html"
            gallery.write_page(page, {self.folder.resolve().name: (gallery.address(self.folder, page), shown)})

    def __str__(self) -> str:
        pairs = "" if (table := self.per_pair()).empty else f"{table.to_string(index=False)}\n\n"
        how = textwrap.fill(self.how(), 100)
        return f"{self.table().to_string(index=False)}\n\n{pairs}{how}\n\nTo cite: {self.cite()}"

    def _repr_html_(self) -> str:
        tables = [table.to_html(index=False, border=0) for table in (self.table(), self.per_pair()) if len(table)]
        return f"{''.join(tables)}<p>{html.escape(self.how())}</p>"


def of_run(record: Mapping[str, Any]) -> dict[tuple[str, str], Score]:
    """The scores of a run, by set of objects and model, from its record: notebook 04's ``results/scores.json``."""
    table, about = pd.DataFrame(record["rows"]), record["about"]
    numbers = ["value", "low", "high", "chance"]
    table[numbers] = table[numbers].astype(float)  # null where nothing can be measured
    prompts = {"name": "the study", "left_out": 0, **about["prompts"]}
    of_all = {name: about[name] for name in ("detector", "threshold", "pairs", "rules", "seed")}
    scores_of = {}
    for key, rows in table.groupby(["objects", "model"], sort=False):
        drawn = rows[(rows.relation == "all") & (rows.metric == "OA")].iloc[0]
        images = {"number": int(drawn["of"]), "counted": "those of the run"}
        judged = of_all | {"boxes": None, "prompts": prompts | {"number": int(drawn.prompts)}, "images": images}
        scores_of[key] = Score(rows, pd.DataFrame(), judged)
    return scores_of


@dataclass(frozen=True)
class Scores(Score):
    """What several detectors say of the same images: ``scores`` and ``verdicts`` by the column ``detector``, the score
    by ``each``, and ``agreement``: :func:`statistics.second_opinion` of every two of them."""

    each: dict[str, Score] = field(default_factory=dict)  # by the detector's name
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def of(cls, each: Sequence[Score]) -> "Scores":
        names = [one.judged["detector"]["id"] for one in each]
        if len(set(names)) < len(names):
            names = [f"{i} {name}" for i, name in enumerate(names, 1)]
        by = dict(zip(names, each, strict=True))
        opinions = [
            second_opinion(by[first].verdicts, by[second].verdicts).assign(first=first, second=second)
            for first, second in combinations(names, 2)
        ]
        scored, records = (_by(by, part) for part in (lambda one: one.scores, lambda one: one.verdicts))
        judged = {"detectors": [one.judged for one in each]}
        return cls(scored, records, judged, each=by, agreement=pd.concat(opinions, ignore_index=True))

    def table(self, relation: str = "all") -> pd.DataFrame:
        return _by(self.each, lambda one: one.table(relation))

    def per_relation(self) -> pd.DataFrame:
        return _by(self.each, Score.per_relation)

    def how(self) -> str:
        return " ".join(part.how() for part in self.each.values())

    def cite(self) -> str:
        return " | ".join(part.cite() for part in self.each.values())

    def to_json(self) -> dict[str, Any]:
        rows = self.agreement.astype(object).where(self.agreement.notna(), None)
        return {"detectors": [part.to_json() for part in self.each.values()], "agreement": rows.to_dict("records")}

    def write(self, folder: str | Path) -> None:
        """:meth:`Score.write`, agreement.csv, and what is each detector's own in the folders 1, 2, …"""
        super().write(folder)
        for number, one in enumerate(self.each.values(), 1):
            one.write(Path(folder) / str(number))
        with files.atomic(Path(folder) / "agreement.csv") as partial:
            self.agreement.to_csv(partial, index=False)

    def __str__(self) -> str:
        agreement = self.agreement.round(2).to_string(index=False)
        return "\n\n".join([*map(str, self.each.values()), f"How far they agree:\n{agreement}"])

    def _repr_html_(self) -> str:
        agreement = self.agreement.round(2).to_html(index=False, border=0)
        return "".join(part._repr_html_() for part in self.each.values()) + f"<p>How far they agree:</p>{agreement}"


def _by(each: Mapping[str, Score], part: Callable[[Score], pd.DataFrame]) -> pd.DataFrame:
    """A part of each detector's score, under the column ``detector``."""
    table = pd.concat([part(one).assign(detector=name) for name, one in each.items()], ignore_index=True)
    return table[["detector", *table.columns.drop("detector")]]


def judged_line(about: Mapping[str, Any]) -> str:
    """Who judged a run's images, and on which prompts, in a line: of what its results say (``about``)."""
    images = {"number": sum(about["images"].values())}
    of_run = Score(pd.DataFrame(), pd.DataFrame(), {**about, "images": images})
    return f"Judged by {of_run.by()}; {of_run.on()}."


def score(
    images: Any, prompts: Any = None, *, detector: Any = None, threshold: float | Sequence[float] | None = None,
    like: str = "visor", pairs: str | None = None, rules: str | None = None,
    corners: bool = False, per_prompt: int | None = None,
    boxes: str | Path | None = None, batch: int = 64, dtype: str = "float32",
) -> Score:  # fmt: skip
    """OA, VISOR, VISOR_Cond and VISOR_n of images, or of boxes found in them, and how they were judged.

    Args:
        images: PIL images, arrays (h, w, 3; uint8, or floats from 0 to 1) or paths: a list with one for each prompt, or
            a list or dict (by prompt_id) with a list of several for each. Or a folder (:func:`images.list_images`). Or
            boxes: a table, or its file (:func:`detections.read_detections`). Or a file of VISOR's published results.
        prompts: what :func:`prompt_sets.read_prompts` reads: a name, a file, a table, or a list of sentences or of
            (subject, relation, object). A folder made by ``sr4g generate`` holds its own.
        detector: a :class:`models.Source`; by default VISOR's. Of boxes, only what to call it. Of images, a list of
            several gives :class:`Scores`: by each, and how far they agree.
        like: whose threshold, pairs and rules, "visor" or "geneval" (``verdicts.LIKE``).
        threshold, pairs, rules: in place of one of those (as in ``verdicts``); boxes above the threshold count. Of
            several detectors, one threshold for all or one for each.
        corners: the file of boxes has x1, y1, x2, y2.
        per_prompt: how many images a prompt has, where a table of boxes does not tell.
        boxes: a Parquet file to keep the boxes of a folder in; an interrupted call goes on from there. Of several
            detectors, one file each (boxes_1.parquet, …).
        batch, dtype: of the detector.

    Raises:
        ValueError: prompts, images or boxes that cannot be; nothing found at all. ImportError: images are given, and
            what a detector needs is not installed. models.ModelError: the detector does not load.
    """
    if isinstance(detector, list | tuple) or isinstance(threshold, list | tuple):
        options: dict[str, Any] = {"like": like, "pairs": pairs, "rules": rules, "batch": batch, "dtype": dtype}
        options |= {"corners": corners, "per_prompt": per_prompt}
        own_options = _each(images, detector, threshold, boxes)
        by_each = [score(images, prompts, **options, **own) for own in own_options]
        return Scores.of(by_each) if len(by_each) > 1 else by_each[0]
    own = dict(zip(("threshold", "pairs", "rules"), settings_like(like, THRESHOLD, "any", "visor"), strict=True))
    path = Path(images).expanduser() if isinstance(images, str | Path) else None
    if path is not None and not path.exists():
        raise ValueError(f"{path}: no such folder of images or file of boxes")
    table = None if prompts is None else read_prompts(prompts)
    if table is None and not (path and path.is_dir()):
        remedy = "give the prompts, too (prompts=, --prompts)"
        raise ValueError(f"{path or 'images'}: does not say what was asked for; {remedy}")
    file = {"file": path.name, "sha256": files.digest(path)} if path and path.is_file() else None
    if path and _is_published(path):
        if pairs or rules:
            raise ValueError(f"{path}: holds verdicts as published, which pairs and rules cannot change")
        records = read_visor_results(path, table)
        records.attrs["images"] = "those of the file"
        return _score(records, table, prompts, {"published": file})
    listed: pd.DataFrame | int | None = per_prompt
    if file or isinstance(images, pd.DataFrame):
        found = read_detections(path, corners) if path else from_corners(images) if corners else images
        file_record = record_of(path) if path else None
        about = file_record["detector"] if file_record else {"id": str(detector)} if detector else None
    else:
        options = {"detector": detector or DETECTOR, "batch": batch, "dtype": dtype}
        found, listed, table, about = _detected(path or images, table, boxes, options)
    choices = {"threshold": threshold, "pairs": pairs, "rules": rules}
    settings: dict[str, Any] = own | {name: value for name, value in choices.items() if value is not None}
    records = verdicts(table, found, listed, **settings)
    result = _score(records, table, prompts, {"detector": about, "boxes": file, **settings})
    of_folder = path is not None and path.is_dir() and isinstance(listed, pd.DataFrame)
    return replace(result, folder=path, listed=listed) if of_folder else result


def _each(images: Any, detector: Any, threshold: Any, boxes: Any) -> list[dict[str, Any]]:
    """What is each detector's own of the arguments of :func:`score`."""
    detectors, thresholds = (
        list(value) if isinstance(value, list | tuple) else [value] for value in (detector or [None], threshold)
    )
    n = len(detectors)
    path = Path(images).expanduser() if isinstance(images, str | Path) else None
    if n > 1 and (isinstance(images, pd.DataFrame) or (path and path.is_file())):
        raise ValueError(f"detector: {n} are named, but boxes are those of one; score each file by itself")
    thresholds = thresholds * n if len(thresholds) == 1 else thresholds
    if len(thresholds) != n:
        raise ValueError(f"threshold: {len(thresholds)} for {n} detectors; give one, or one for each")
    kept = [boxes and Path(boxes).with_stem(f"{Path(boxes).stem}_{i}") for i in range(1, n + 1)] if n > 1 else [boxes]
    names = ("detector", "threshold", "boxes")
    return [dict(zip(names, own, strict=True)) for own in zip(detectors, thresholds, kept, strict=True)]


def _score(records: pd.DataFrame, table: pd.DataFrame, prompts: Any, by: dict[str, Any]) -> Score:
    name = "prompts.parquet" if prompts is None else Path(prompts).name if isinstance(prompts, str | Path) else "a list"
    number, left_out = int(records.prompt_id.nunique()), table.attrs.get("left_out", 0)
    judged = {
        **by,
        "prompts": {"name": name, "number": number, "sha256": prompts_hash(table), "left_out": left_out},
        "images": {"number": len(records), "counted": records.attrs["images"].removeprefix("images=")},
        "intervals": {"level": 0.95, "over": "prompts", "resamples": 0, "seed": None},
        "version": __version__,
    }
    if "met" in table and table.met.nunique() > 1:
        records = records.assign(met=records.prompt_id.map(table.set_index("prompt_id").met))
    return Score(scores(records).merge(chances(records), how="left"), records, judged)


def chances(records: pd.DataFrame) -> pd.DataFrame:
    """:func:`scores.chance`, its value under the name chance."""
    return chance(records).rename(columns={"value": "chance"})


def _is_published(path: Path) -> bool:
    """Whether a file is one of VISOR's results: an object of images, each with its classes."""
    if path.suffix.lower() != ".json" or path.stat().st_size > limit("prompt_bytes"):
        return False
    value = files.read_json(path)
    first = next(iter(value.values()), None) if isinstance(value, dict) else None
    return isinstance(first, dict) and {"classes", "sra"} <= first.keys()


def _detected(
    images: Any, prompts: pd.DataFrame | None, boxes: str | Path | None, options: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Boxes in a folder of images, or in images in memory; the list of images; their prompts; the detector's record."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(boxes or Path(scratch) / "boxes.parquet")
        try:
            if isinstance(images, Path):
                listed = list_images(images, prompts)
                prompts = read_prompts(images / "prompts.parquet") if prompts is None else prompts
                record = detect.write_detections(path, images, prompts=prompts, **options)
            elif boxes:
                raise ValueError("boxes: are kept of a folder of images only")
            else:
                listed = _listed(images, prompts)
                pixels = listed.pop("image").tolist()
                record = detect.write_boxes(path, listed, lambda row: _pixels(pixels[row.Index]), {}, **options)
        except ModuleNotFoundError as error:
            raise ImportError(files.extra_of(error)) from error
        return read_detections(path), listed, prompts, record["detector"]


def _listed(images: Any, prompts: pd.DataFrame) -> pd.DataFrame:
    """A row of prompt and image for each image that was given."""
    if isinstance(images, Mapping):
        at = positions(pd.Series(list(images)), prompts.prompt_id, "images")
        if (at < 0).any():
            raise ValueError(f"images: {list(images)[int(np.argmin(at))]!r} is the prompt_id of no prompt")
        given = list(zip(at.tolist(), images.values(), strict=True))
    elif len(images) != len(prompts):
        left_out = f" ({n} more name none of our relations)" if (n := prompts.attrs.get("left_out")) else ""
        each = "give one, or a list of several, for each"
        raise ValueError(f"images: {len(images)} for {len(prompts)} prompts{left_out}; {each}")
    else:
        given = list(enumerate(images))
    rows: list[tuple[int, int, Any]] = []
    for row, one in given:
        several = (isinstance(one, Sequence) and not isinstance(one, str)) or np.ndim(one) == 4
        rows += [(row, number, image) for number, image in enumerate(one if several else [one])]
    shown = pd.Series([image for _, _, image in rows], dtype=object)
    table = prompts.iloc[[row for row, _, _ in rows]].reset_index(drop=True)
    return table.assign(image_index=[number for _, number, _ in rows], image=shown)


def pixels_of(images: Any) -> list[Pixels]:
    """Images as uint8 arrays (height, width, 3): PIL images, arrays and paths; or an array or tensor of several, on any
    device, the channels last or first, uint8 or floats from 0 to 1.

    Raises:
        ValueError: an image that is none of these, or with values beyond 0 to 1 (or NaN) where they are floats.
    """
    if hasattr(images, "detach"):  # a tensor
        images = images.detach().cpu().float().numpy() if images.is_floating_point() else images.cpu().numpy()
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    return [_pixels(image) for image in images]


def _pixels(image: Any) -> Pixels:
    from PIL import Image

    from ..dataset.photos import Photos

    if isinstance(image, str | Path):
        path = Path(image).expanduser().absolute()
        return Photos(path.parent).read(path.name)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if hasattr(image, "detach"):
        return pixels_of(image[None])[0]
    array = np.asarray(image)
    if array.dtype.kind == "f" and array.size and array.min() >= -1 / 255 and array.max() <= 256 / 255:
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        kind = f"{type(image).__name__} of {array.dtype} {array.shape}"
        raise ValueError(f"images: an image is a path, a PIL image or an array (height, width, 3) of uint8, not {kind}")
    return array
