"""A blind questionnaire for people: one HTML file with questions about photos or about generated images.

The page shows no boxes, no verdict and no model. The key to the questions is in the file, encoded so that nobody
reads it by accident; :mod:`answers` joins it with people's answers.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from PIL import Image

from ..dataset import triplets
from ..dataset.boxes import BoxTable
from ..dataset.captions import caption
from ..dataset.photos import Photos
from ..dataset.prompt_files import read_text
from ..evaluation.images import list_images
from ..relations import NAMES
from ..store.files import write_text
from .margins import margin

TEMPLATE = Path(__file__).with_name("kit.html")
LONGEST_SIDE = 640  # pixels of an embedded image
SMALL = 384  # pixels: a smaller image is embedded without loss, since the page enlarges it
REPEATED = 0.1  # of the questions are asked twice, for self-agreement
CANDIDATES = 5_000  # pairs of boxes among which a kit of photos chooses
PER_PHOTO = 4  # pairs of one photo at most: a crowded one has hundreds
STRATA = ("true, near a border", "true, far from it", "false, near a border", "false, far from it")


class Question(msgspec.Struct, kw_only=True):
    """A question in a kit's key: of a generated image, or of a photo."""

    item: str
    repeat_of: str | None = None
    model: str | None = None
    prompt_id: int | float | str | None = None
    image_index: int | None = None
    image_id: int | None = None
    subject: str
    relation: str
    object: str
    stratum: str | None = None
    share: float | None = None


KEY = Question.__struct_fields__


def of_images(
    folders: Mapping[str, str | Path], prompts: str | Path | None, per_relation: int, seed: int
) -> pd.DataFrame:
    """Questions about generated images: ``per_relation`` of each relation, spread evenly over the models.

    Args:
        folders: each model's folder of images (:func:`images.list_images`), by the model's name.
        prompts: the prompts, where the images were made elsewhere.

    Returns:
        Columns model, prompt_id, image_index, subject, relation, object, folder and file_name.
    """
    tables = [list_images(folder, prompts).assign(model=name, folder=str(folder)) for name, folder in folders.items()]
    images = pd.concat(tables, ignore_index=True).sample(frac=1, random_state=seed)
    turn = images.groupby(["relation", "model"]).cumcount()  # every model's first image before any second one
    chosen = images.assign(turn=turn).sort_values("turn", kind="stable").groupby("relation").head(per_relation)
    columns = ["model", "prompt_id", "image_index", "subject", "relation", "object", "folder", "file_name"]
    return chosen[columns].reset_index(drop=True)


def of_photos(table: BoxTable, photos: str | Path, per_relation: int, seed: int, rules: str) -> pd.DataFrame:
    """Questions about photos: captions that are true under the rules, and false ones; near a border and far from it.

    The questions are about categories with exactly one box in the photo, so that it is clear which things are meant,
    and about at most ``PER_PHOTO`` pairs per photo. For each relation the pairs fall into four strata: true or false
    under the rules, and nearer to a border than half of them or farther (:func:`margins.margin`). Each stratum gives
    a quarter of the questions if it has that many pairs. Its ``share`` of all pairs is the weight of its answers.

    Returns:
        Columns image_id, subject, relation, object, stratum, share, folder, file_name, width and height.

    Raises:
        ValueError: no annotated photo is there, or none has two categories with one box each.
    """
    rng = np.random.default_rng(seed)
    s, o = _single_pairs(table, photos)
    mixed = rng.permutation(len(s))
    turn = pd.Series(table.image[s[mixed]]).groupby(table.image[s[mixed]]).cumcount().to_numpy()
    chosen = mixed[turn < PER_PHOTO][:CANDIDATES]
    s, o = s[chosen], o[chosen]
    size = np.stack([table.width, table.height], axis=1)[table.image[s]]
    true = triplets.holds(table, s, o, rules)
    far = margin(table.xywh(s), table.xywh(o), rules, size)
    tables = []
    for i, relation in enumerate(NAMES):
        stratum = np.where(true[:, i], 0, 2)
        for verdict in (True, False):
            side = true[:, i] == verdict
            rank = pd.Series(far[side, i]).rank(method="first").to_numpy()
            stratum[side] += rank > side.sum() / 2
        quarters = [per_relation // 4 + (k < per_relation % 4) for k in range(4)]
        take = np.concatenate([rng.permutation(np.flatnonzero(stratum == k))[:n] for k, n in enumerate(quarters)])
        share = np.bincount(stratum, minlength=len(STRATA)) / len(stratum)
        image, name = table.image[s[take]], np.array(table.names)[table.category]
        tables.append(pd.DataFrame({
            "image_id": table.image_id[image], "subject": name[s[take]], "relation": relation, "object": name[o[take]],
            "stratum": np.array(STRATA)[stratum[take]], "share": share[stratum[take]], "folder": str(photos),
            "file_name": [table.file_name[int(k)].as_py() for k in image], "width": table.width[image],
            "height": table.height[image],
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _single_pairs(table: BoxTable, photos: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of every ordered pair of boxes that are the only ones of their category in a photo that is there."""
    names = table.file_name.to_pylist()
    here = np.array([content != "" for content in Photos(photos).contents(names)])
    run = table.image.astype(np.int64) * len(table.names) + table.category
    _, where, count = np.unique(run, return_inverse=True, return_counts=True)
    kept = (count[where] == 1) & here[table.image]
    rows, single = np.flatnonzero(kept), table.rows(kept)
    if not len(single):
        raise ValueError(f"{photos}: holds no photo of these annotations in which a category has one box only")
    parts = [(rows[s[s != o]], rows[o[s != o]]) for _, s, o, _ in triplets.pairs(single)]
    subject, object = (np.concatenate(side) for side in zip(*parts, strict=True))
    if not len(subject):
        raise ValueError(f"{photos}: no photo of these annotations shows two categories with one box each")
    return subject, object


def write(path: str | Path, questions: pd.DataFrame, seed: int) -> dict[str, int]:
    """Write the questionnaire: the questions in random order, a tenth of them asked again later on.

    ``questions``: from :func:`of_images` or :func:`of_photos`; there must be one, else ValueError. Returns the numbers
    of questions, of repeated ones among them, and of images.
    """
    if not len(questions):
        raise ValueError("kit: there is no question to ask; are there images of spatial prompts?")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(questions))
    n_again = max(round(REPEATED * len(questions)), 1)
    early = order[: max(len(order) // 2, 1)]  # so that half of the questions lie between the two
    again = rng.permutation(early)[:n_again]
    late = rng.permutation(np.concatenate([order[len(early) :], -1 - again]))
    pictures: dict[str, str] = {}
    items, key = [], []
    for k in np.concatenate([early, late]).tolist():
        row, repeated = (k, False) if k >= 0 else (-1 - k, True)
        question = questions.iloc[row]
        name = _id("p", f"{question.folder}/{question.file_name}")
        if name not in pictures:
            pictures[name] = _embedded(question)
        parts = [question[part] for part in ("folder", "file_name", "subject", "relation", "object")]
        ids = [_id("q", "|".join(map(str, [*parts, copy]))) for copy in (False, True)]
        items.append({"id": ids[repeated], "picture": name, "question": ask(question)})
        about = {column: question[column] for column in KEY if column in question}
        key.append({"item": ids[repeated], "repeat_of": ids[0] if repeated else None, **about})
    text = json.dumps(key, default=lambda number: number.item(), ensure_ascii=False)  # numpy's numbers
    encoded = base64.b64encode(text.encode()).decode()
    data = {"kit": _id("k", text), "items": items, "pictures": pictures, "key": encoded}
    page = TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))
    write_text(path, page)
    return {"questions": len(items), "repeated": n_again, "pictures": len(pictures)}


def ask(question: Any) -> str:
    """The question in words: "Does the picture show a dog to the left of a cat?"."""
    return f"Does the picture show {caption(question.subject, question.relation, question.object)}?"


def _id(letter: str, text: str) -> str:
    """A name that says nothing of image or model; with a letter first, so that no spreadsheet reads it as a number."""
    return letter + hashlib.sha256(text.encode()).hexdigest()[:11]


def _embedded(question: Any) -> str:
    size = (question.width, question.height) if "width" in question else None
    image = Image.fromarray(Photos(question.folder).read(question.file_name, size))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    kind, buffer = "PNG" if max(image.size) < SMALL else "JPEG", io.BytesIO()
    image.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_key(path: str | Path) -> tuple[str, pd.DataFrame]:
    """A kit's name and its key: a row per question, with those columns of ``KEY`` that the kit has. Raises ValueError
    if the file is no kit."""
    text = read_text(Path(path))
    start, end = '<script id="data" type="application/json">', "</script>"
    try:
        data = json.loads(text.split(start)[1].split(end)[0])
        key = json.loads(base64.b64decode(data["key"]))
        if not (isinstance(data["kit"], str) and msgspec.convert(key, list[Question])):
            raise ValueError("it has no name or no question")
        return data["kit"], pd.DataFrame(key, columns=[name for name in KEY if name in key[0]])
    except (IndexError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a kit written by `sr4g kit` ({error!r:.200})") from None
