"""Tables of detected boxes: read and checked, ours, others', and VISOR's published results.

This module matches detector labels to prompted names, and ids to prompts.
"""

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from ..dataset.names import amount
from ..dataset.prompt_files import AS_UTF8, parsed, read_text
from ..dataset.prompt_sets import NEEDED, check_prompts, others
from ..models.names import readings
from ..relations import BY_NAME, NAMES, judge
from ..store.files import say
from ..store.limits import NOTABLE, check_limit, check_loss, limit
from ..store.settings import in_words

BEHAVIOUR = 1  # raised by hand when the same detector gives other boxes; boxes of another behaviour are made again
DETECTION_COLUMNS = ("prompt_id", "image_index", "label", "score", "x", "y", "w", "h")
CORNERS = ("x1", "y1", "x2", "y2")  # of a box, left and top, right and bottom, where a file has them
EDGES = dict(zip(("xmin", "ymin", "xmax", "ymax"), CORNERS, strict=True))  # what others call them
Number = Int[np.ndarray, "_"]
SAY_SO = "say so (corners=True, in a command --corners)"
AS_CORNERS = f"name them {', '.join(CORNERS)} and {SAY_SO}"
AS_MANY = "say how many (score: per_prompt= or --per-prompt; verdicts: images=, a number or a table of them)"
MANY, FAR = 20, 1.2  # boxes from which their form can be told; parts of an image that no box in it reaches
_NUMBERS = ["score", "x", "y", "w", "h", "image_index"]


def read_detections(path: Path | str, corners: bool = False) -> pd.DataFrame:
    """A table of boxes from a Parquet, CSV, JSON (list of records or of columns) or JSON Lines file, checked.

    Columns: prompt_id, image_index (from 0), label (a category name), score in [0, 1], and x, y, w, h: the box in
    pixels of its image, origin at the top left (or, with ``corners``, x1, y1, x2, y2). Further columns are kept.

    Raises:
        ValueError: unreadable file, missing column, or a value that cannot be; file, column and row are named.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"):
        raise ValueError(f"{path}: detections are read from .parquet, .csv, .tsv, .json, .jsonl or .ndjson")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `sr4g detect` writes detections")
    _check_size(path)
    try:
        if suffix == ".parquet":
            table = pd.read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            table = _csv(path)
        else:
            text = StringIO(path.read_text(encoding="utf-8-sig"))
            exact = {"dtype": False, "precise_float": True}
            table = pd.read_json(text, lines=suffix != ".json", **exact)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8; {AS_UTF8}") from None
    except (ValueError, OSError, TypeError, AttributeError) as error:  # Arrow's errors are of the first two kinds
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as detections ({why})") from error
    table = _with_our_names(table)
    table.attrs |= {"source": str(path)} | ({"detector": True} if record_of(path) else {})  # for later messages
    table = check_detections(from_corners(table) if corners else table, str(path))
    if "detector" not in table.attrs:
        again = table.duplicated(list(DETECTION_COLUMNS)).mean() if len(table) else 0.0
        if again >= NOTABLE:
            say(f"WARNING: {path}: {again:.0%} of the boxes are there twice; was the file appended to? write it anew")
    return table


def _check_size(path: Path) -> None:
    """Raise ValueError where a file of boxes is larger than its limit."""
    if path.suffix.lower() != ".parquet":
        check_limit("box_bytes", path.stat().st_size, f"{path}: its bytes")
        return
    rows = 0
    with suppress(pa.ArrowException, OSError):  # a damaged file is named by who reads it
        rows = pq.read_metadata(path).num_rows
    check_limit("annotations", rows, f"{path}: its number of boxes")


def _with_our_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the names of columns that it means: in small letters, corners as ``CORNERS``, none as index."""
    if any(name in DETECTION_COLUMNS for name in table.index.names):
        table = table.reset_index()
    ours = {*DETECTION_COLUMNS, *CORNERS, *EDGES, "width", "height"}
    small = {name: str(name).strip().lower() for name in table}
    meant = {name: EDGES.get(low, low) for name, low in small.items() if low in ours}
    return table.rename(columns={name: new for name, new in meant.items() if name == new or new not in table})


def _csv(path: Path) -> pd.DataFrame:
    """A CSV, also as a spreadsheet saves it: with semicolons or tabs, decimal commas, capitals and empty rows."""
    with path.open(encoding="utf-8-sig") as file:
        header, first = file.readline(), file.readline()
    delimiter = max(",;\t", key=header.count)
    decimal = "," if delimiter != "," and re.search(r"\d,\d", first) else "."
    table = pd.read_csv(path, encoding="utf-8-sig", sep=delimiter, decimal=decimal, skipinitialspace=True)
    table = table.loc[:, [not (name.startswith("Unnamed: ") and table[name].isna().all()) for name in table]]
    return table.dropna(how="all")


def record_of(path: Path) -> dict[str, Any] | None:
    """The record of a file of boxes that was made here."""
    try:
        return json.loads((pq.read_schema(path).metadata or {})[b"sr4g"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def from_corners(table: pd.DataFrame) -> pd.DataFrame:
    """The table with x, y, w, h in place of ``CORNERS``."""
    if missing := [name for name in CORNERS if name not in table]:
        raise ValueError(f"{source_of(table)}: the column {missing[0]!r} is missing; corners are {', '.join(CORNERS)}")
    x1, y1, x2, y2 = (pd.to_numeric(table[name], errors="coerce") for name in CORNERS)
    return table.drop(columns=[*CORNERS]).assign(x=x1, y=y1, w=x2 - x1, h=y2 - y1)


def check_detections(table: pd.DataFrame, source: str = "detections") -> pd.DataFrame:
    """The table itself, when it is one of detections; see :func:`read_detections`."""
    if missing := [name for name in DETECTION_COLUMNS if name not in table]:
        found = [name for name in table if str(name).lower() in (*CORNERS, *EDGES)]
        hint = f"; {', '.join(found)} look like corners: {SAY_SO}"
        needed = f"needed are {', '.join(DETECTION_COLUMNS)}{hint * bool(found)}"
        raise ValueError(f"{source}: the column {missing[0]!r} is missing; {needed}")
    if twice := [name for name in DETECTION_COLUMNS if list(table).count(name) > 1]:
        raise ValueError(f"{source}: the column {twice[0]!r} occurs twice")
    for name in (*_NUMBERS, *({"width", "height"} & set(table))):
        if not pd.api.types.is_any_real_numeric_dtype(table[name]) and len(table):
            text = pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()
            example = table[name][text].iloc[0] if text.any() else table[name].iloc[0]
            raise ValueError(f"{source}: column {name!r} must hold numbers, found such as {example!r:.60}")
    numbers = table[_NUMBERS].astype(np.float64)  # missing ones become NaN
    score, index = numbers.score, numbers.image_index
    wrong = {
        "a value is missing": table[list(DETECTION_COLUMNS)].isna().any(axis=1),
        "a number is infinite": ~np.isfinite(numbers).all(axis=1),
        "the score is not in [0, 1]": (score < 0) | (score > 1),
        "width or height is negative": (numbers.w < 0) | (numbers.h < 0),
        "image_index is not a whole number from 0": (index < 0) | (index % 1 != 0),
        "the label is not a name": _others(table.label, str),
        "the prompt_id is neither a text nor a number": _others(table.prompt_id, (str, int, float, np.number)),
    }
    for problem, rows in wrong.items():
        if np.any(rows):
            row = int(np.flatnonzero(rows)[0])
            values = table.iloc[row][list(DETECTION_COLUMNS)].to_dict()
            raise ValueError(f"{source}: row {row}: {problem} ({values})")
    _check_pixels(table, source)
    return table


def _check_pixels(table: pd.DataFrame, source: str) -> None:
    """Say that boxes hardly are x, y, width and height in pixels. ValueError: most are not."""
    x, y, w, h = (table[name].to_numpy(np.float64) for name in "xywh")
    small, beyond = (x <= 1) & (y <= 1) & (w <= 1) & (h <= 1), np.zeros(len(table), bool)
    if {"width", "height"} <= set(table) and "detector" not in table.attrs:  # detectors do not stop at the border
        width, height = table.width.to_numpy(float), table.height.to_numpy(float)
        beyond = ((x + w > FAR * width) & (width > 0)) | ((y + h > FAR * height) & (height > 0))
    inner = (x > 0) & (y > 0) & ~small
    alike = len(np.unique(np.stack([x, y, w, h])[:, inner], axis=1).T) if 2 * inner.sum() > len(table) else 0
    corners = np.full(len(table), alike >= MANY and bool(((w > x) & (h > y))[inner].all()))
    are_corners = f"are they corners? {AS_CORNERS}"
    or_copies = "or of a copy of another size, or thousandths? write them in pixels of width and height"
    for what, rows, remedy in (
        ("lie in one pixel", small, "are they shares of the image? multiply x, w by its width and y, h by its height"),
        ("reach far beyond their image", beyond, f"{are_corners}, {or_copies}"),
        ("have w above x and h above y", corners, are_corners),
    ):
        number, share = int(rows.sum()), rows.mean() if len(rows) else 0.0
        problem = f"{source}: {number:,} of {len(table):,} boxes {what}; {remedy}"
        if share > limit("allow_loss"):
            raise ValueError(f"{problem}; if they are right, SR4G_ALLOW_LOSS=1 takes them")
        if number and share >= NOTABLE:
            say(f"WARNING: {problem}")


def source_of(table: pd.DataFrame) -> str:
    """What to call a table in a message: the file that it was read from."""
    return table.attrs.get("source", "detections")


def _others(column: pd.Series, kinds: type | tuple[type, ...]) -> np.ndarray:
    """The rows whose value is of another kind."""
    if _numeric(column) or isinstance(column.dtype, pd.StringDtype):
        return np.full(len(column), _numeric(column) and kinds is str)
    return np.array([not isinstance(value, kinds) for value in column.to_numpy(object)], bool)


def positions(ids: pd.Series, prompts: pd.Series, source: str = "detections") -> Number:
    """The row of ``prompts`` (prompt ids, each once) that each id means; -1 where it means none.

    Text and numbers are compared as numbers: "7", "007", "7.0", 7 and 7.0 are one id. Text and text must be equal.

    Raises:
        ValueError: there are ids, and none is one of the prompts'.
    """
    if len({_numeric(ids), _numeric(prompts)}) == 1:
        at = pd.Index(prompts).get_indexer(pd.Index(ids))
    else:
        index = pd.Index(_keys(prompts))
        if index.has_duplicates:
            first, second = prompts[index == index[index.duplicated()][0]].iloc[:2]
            same = f"the prompts {first!r} and {second!r} have the same one"
            raise ValueError(f"{source}: prompt_id is a number, and {same}")
        at = index.get_indexer(pd.Index(_keys(ids)))
    if len(ids) and not (at >= 0).any():
        kinds = [f"{'numbers' if _numeric(c) else 'text'} such as {c.iloc[0]!s}" for c in (ids, prompts)]
        held = f"it holds {kinds[0]}, the prompts have {kinds[1]}; are these the prompts that were drawn?"
        raise ValueError(f"{source}: no prompt_id is one of the prompts': {held}")
    return at


def _numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _keys(ids: pd.Series) -> np.ndarray:
    """Ids as text, whole numbers without leading zeros and decimals."""
    codes, values = pd.factorize(ids.astype(object))
    return np.array([re.sub(r"^0*(\d+)(\.0*)?$", r"\1", str(value)) for value in values], object)[codes]


FROM_0 = "image_index counts from 0"
FROM_1 = "give the prompts a column prompt_id that counts from 1"


def from_0(ids: Collection[Any]) -> bool:
    """Do the ids of prompts count from 0?"""
    return set(map(str, ids)) == set(map(str, range(len(ids))))


def check_ids(prompts: pd.DataFrame, ids: pd.Series, at: Number, source: str, records: str) -> None:
    """Say that ids are of another list: some are no prompt's, and some prompts have none. ValueError: most have none.

    Alone neither means it: one may score some of the prompts, and a model may draw none of a prompt's things.
    """
    strange, rest = at < 0, others(prompts)
    known = {*prompts.prompt_id.astype(str), *rest}
    if strange.any() and from_0(known) and str(len(known)) in (keys := set(_keys(ids))) and "0" not in keys:
        raise ValueError(f"{source}: prompt_id counts from 1 to {len(known)}, the prompts' from 0; {FROM_1}")
    if strange.any() and rest:
        strange[strange] = pd.Index(_keys(pd.Series([*rest]))).get_indexer(pd.Index(_keys(ids[strange]))) < 0
    bare = len(prompts) - len(np.unique(at[at >= 0]))
    if number := int(strange.sum()):
        reason = f"without {records}"
        cause = f"and {number:,} of {len(ids):,} {records} have a prompt_id that is none of theirs, such as "
        cause += f"{ids[strange].iloc[0]}: are these the prompts that were drawn?"
        check_loss(source, {reason: bare}, len(prompts), "prompts", {reason: cause})


LEAST = 0.75  # minimum share of prompts with a box before the number of images per prompt is inferred


def scored_images(
    prompts: pd.DataFrame, table: pd.DataFrame, at: Number, images: int | pd.DataFrame | None
) -> tuple[Number, Number, Number, str]:
    """All images that are scored (prompt's row and number, sorted), each box's place among them, and who says so."""
    index = table.image_index.to_numpy(np.int64)
    if isinstance(images, pd.DataFrame):
        (prompt, number), how = _listed(prompts, images), "the listed images"
    else:
        per_prompt = _each(len(prompts), at, index, source_of(table)) if images is None else images
        if per_prompt < 1 or per_prompt % 1:
            raise ValueError(f"images={per_prompt}: a prompt has at least one image, a whole number of them")
        if (at >= 0).any() and (least := index[at >= 0].min()):
            say(f"WARNING: {source_of(table)}: no box has an image_index below {least}; {FROM_0}")
        prompt, number = np.repeat(np.arange(len(prompts)), per_prompt), np.tile(np.arange(per_prompt), len(prompts))
        how = f"images={per_prompt} per prompt"
        if images is None:
            bare = len(prompts) - len(np.unique(at[at >= 0]))
            how += ", by the largest image_index" + f"; {bare:,} prompts without any box count" * bool(bare)
    stride = int(number.max()) + 1
    image = pd.Index(prompt * stride + number).get_indexer(pd.Index(np.where(index < stride, at * stride + index, -1)))
    if (beyond := table[(at >= 0) & ((image < 0) | (index >= stride))]).size:
        row, scored = beyond.iloc[0], f"{how.partition(',')[0]} are scored; {AS_MANY}; {FROM_0}"
        raise ValueError(f"{source_of(table)}: prompt {row.prompt_id} has image_index {row.image_index}, but {scored}")
    return prompt, number, image, how


def _each(prompts: int, at: Number, index: Number, source: str) -> int:
    """How many images a prompt has, as far as a table of boxes can tell: not, if many prompts or images have no box."""
    boxes = pd.DataFrame({"at": at, "index": index})[at >= 0].drop_duplicates()
    seen = boxes["index"].value_counts()
    per_prompt = int(seen.index.max()) + 1 if len(seen) else 0
    fewest = 0 if len(seen) < per_prompt else seen.min()
    if not len(seen) or fewest < LEAST * seen.max() or boxes["at"].nunique() < LEAST * prompts:
        counts = f"{boxes['at'].nunique():,} of {prompts:,} prompts have a box, and one image_index below {per_prompt} "
        counts += f"has boxes of {fewest:,}, another of {seen.max() if len(seen) else 0:,}"
        raise ValueError(
            f"{source}: the table does not tell how many images a prompt has: {counts}; {AS_MANY}; {FROM_0}"
        )
    if bare := prompts - boxes["at"].nunique():
        without = f"{bare:,} of {prompts:,} prompts have no box: each counts as {amount(per_prompt, 'image')} in which "
        without += "nothing was found, where VISOR's script counts the images of its file only"
        remedy = "if they were not drawn, leave them out of the prompts"
        say(f"WARNING: {source}: {without}; {remedy}")
    say(f"{source}: {amount(per_prompt, 'image')} per prompt, by the largest image_index; if there are more, {AS_MANY}")
    return per_prompt


def _listed(prompts: pd.DataFrame, images: pd.DataFrame) -> tuple[Number, Number]:
    """The prompt's row and the number of each image in a table of images, sorted."""
    if missing := [name for name in ("prompt_id", "image_index") if name not in images]:
        raise ValueError(f"images: the column {missing[0]!r} is missing; an image has prompt_id and image_index")
    at = positions(images.prompt_id, prompts.prompt_id, "images")
    listed = pd.DataFrame({"at": at, "number": pd.to_numeric(images.image_index, errors="coerce").to_numpy(float)})
    listed = listed[at >= 0].sort_values(["at", "number"], ignore_index=True)
    wrong = ~((listed.number >= 0) & (listed.number < 2**31) & (listed.number % 1 == 0))
    for problem, rows in {"whole number from 0": wrong, "number of one image only": listed.duplicated()}.items():
        if rows.any():
            row = listed[rows].iloc[0]
            id = prompts.prompt_id.iloc[int(row["at"])]
            raise ValueError(f"images: prompt {id} has image_index {row.number:g}, no {problem}")
    if not len(listed):
        raise ValueError("images: the table is empty, so there is nothing to score")
    return listed["at"].to_numpy(np.int64), listed.number.to_numpy(np.int64)


def read_visor_results(path: Path | str, prompts: pd.DataFrame) -> pd.DataFrame:
    """Records from a file of VISOR's published results, for :func:`scores`, :func:`compare` and :func:`chance`.

    The format of microsoft/VISOR's ``results_*.json``: ``{"<unique_id>_<n>": {"classes": [...], "centroid": [[x, y],
    ...], "recall": 0..2, "sra": 0|1, "text": ...}}``. As in its ``visor.py``, both objects are found when their names
    are among the classes, and an image is correct when they are and ``sra`` is 1; ``recall`` is not used. Columns of
    projective relations are judged from the centroids (some pair); the others are False: no boxes are published.

    Args:
        prompts: columns prompt_id (the unique_id), subject, relation, object. Images of other prompts are left out, as
            VISOR leaves out its "and" and single-object prompts.

    Raises:
        ValueError: not a file of that format (file, image and field are named), or no image of these prompts.
    """
    path, everything = Path(path), prompts
    prompts = check_prompts(prompts, "prompts", NEEDED, name_files=False)[list(NEEDED)]
    images = parsed(read_text(path), str(path))
    if not isinstance(images, dict):
        raise ValueError(f"{path}: expected an object of images by '<unique_id>_<n>', found {in_words(type(images))}")
    keys = [key.rpartition("_") for key in images]
    for key, (unique_id, _, index) in zip(images, keys, strict=True):
        if not (unique_id and index.isdecimal()):
            raise ValueError(f"{path}: image {key!r} is not named '<unique_id>_<n>'")
    ids = pd.Series([unique_id for unique_id, _, _ in keys], dtype=object)
    at = positions(ids, prompts.prompt_id, str(path))
    check_ids(everything, ids, at, str(path), "images")
    first: dict[tuple[int, int], str] = {}
    for row, (_, _, index), key in zip(at.tolist(), keys, images, strict=True):
        if row >= 0 and (other := first.setdefault((row, int(index)), key)) != key:
            image = f"image {int(index)} of prompt {prompts.prompt_id.iloc[row]}"
            raise ValueError(f"{path}: {other!r} and {key!r} are both {image}, VISOR's script counts both; keep one")
    prompted = prompts.to_dict("records")
    classes = {name for image in images.values() for name in _names(image)}
    meant = readings(classes, {*prompts.subject, *prompts.object})
    rows = [
        _published(prompted[row], int(index), image, meant, f"{path}: image {key!r}")
        for row, (_, _, index), (key, image) in zip(at, keys, images.items(), strict=True)
        if row >= 0
    ]
    if not rows:
        raise ValueError(f"{path}: holds no image")
    return pd.DataFrame(rows)


def _names(image: Any) -> list[str]:
    classes = image.get("classes") if isinstance(image, dict) else None
    return [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []


def _published(prompt: dict, index: int, image: Any, meant: Mapping[str, str], source: str) -> dict[str, Any]:
    """The record of one published image; ``meant``: which prompted name each class means."""
    if not isinstance(image, dict):
        raise ValueError(f"{source}: expected an object, found {in_words(type(image))}")
    kinds: dict[str, Any] = {"classes": list, "centroid": list, "sra": (int, float)}
    for field, kind in kinds.items():
        if not isinstance(image.get(field), kind):
            raise ValueError(f"{source}: the field {field!r} is missing or of the wrong type ({image.get(field)!r})")
    classes, centroid, sra = image["classes"], image["centroid"], image["sra"]
    if len(classes) != len(centroid):
        raise ValueError(f"{source}: {len(classes)} classes but {len(centroid)} centroids")
    if sra not in (0, 1):
        raise ValueError(f"{source}: 'sra' must be 0 or 1, found {sra!r}")
    if len(_names(image)) < len(classes):
        raise ValueError(f"{source}: a class is not a name ({classes!r})")
    s, o = ([i for i, name in enumerate(classes) if meant.get(name) == prompt[role]] for role in ("subject", "object"))
    points = np.zeros((len(classes), 4))  # a centroid is a box without extent
    try:
        points[:, :2] = np.array(centroid, np.float64).reshape(len(classes), 2)
    except (TypeError, ValueError):
        raise ValueError(f"{source}: 'centroid' must hold an x and a y for each class, found {centroid!r}") from None
    holds = np.any(judge(points[np.repeat(s, len(o)).astype(int)], points[np.tile(o, len(s)).astype(int)]), axis=0)
    counts = {"image_index": index, "n_subject": len(s), "n_object": len(o)}
    relations = {name: bool(holds[i]) and BY_NAME[name].family == "projective" for i, name in enumerate(NAMES)}
    return prompt | counts | {"both_found": bool(s and o), "correct": bool(s and o and sra)} | relations
