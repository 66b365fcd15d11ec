"""Is it rare? How often real captions say where things are: the paper's hypothesis, counted (notebook 02)."""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.statistics import ratio
from ..relations import BY_NAME, NAMES
from ..store.files import digest, shipped
from ..store.limits import check_unpacked
from ..store.run import Result, Run

WORDS: dict[str, Any] = shipped("words.yaml")
ANY = "any of the 14"
FORMS = "captions are COCO's JSON or zip, a TSV, or a text with one a line"
SAMPLE = 21  # hits of each relation and wording that were read


def read_captions(path: str | Path) -> pd.DataFrame:
    """Captions of photos: a row each, with ``photo`` (captions of one photo share it) and ``caption``.

    Reads COCO's ``captions_*.json`` (or the official zip with ``annotations/captions_train2017.json``), Conceptual
    Captions' TSV (caption, address), Flickr8k's ``token.txt`` (photo#number, caption), and text with a caption a line.

    Raises:
        ValueError: the file is missing, or has no caption.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {FORMS}")
    try:
        rows = _captions(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not readable as captions ({why:.200}); {FORMS}") from None
    if not rows:
        raise ValueError(f"{path}: has no caption")
    return pd.DataFrame(rows, columns=["photo", "caption"])


def _captions(path: Path) -> list[tuple[Any, str]]:
    """The photo (or a number in its place) and the text of each caption of a file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            about = archive.getinfo("annotations/captions_train2017.json")
            check_unpacked(about.compress_size, about.file_size, f"{path}:{about.filename}")
            text = archive.read(about).decode()
    else:
        text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".json", ".zip"):
        return [(record["image_id"], str(record["caption"])) for record in json.loads(text)["annotations"]]
    lines = [line.split("\t") for line in text.split("\n") if line.strip()]
    by_photo = all(len(line) == 2 and re.search(r"#\d+$", line[0]) for line in lines)
    return [(line[0].rpartition("#")[0], line[1]) if by_photo else (i, line[0]) for i, line in enumerate(lines)]


@cache
def pattern(relation: str, wording: str) -> re.Pattern:
    """What finds a relation's ``own`` words, those of our captions, or the ``others``."""
    words = [BY_NAME[relation].phrase] if wording == "own" else WORDS[relation]["others"]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def hits(captions: pd.DataFrame) -> pd.DataFrame:
    """Which captions say each relation: a Boolean column for each (relation, wording); ``others`` without the own."""
    columns: dict[tuple[str, str], pd.Series] = {}
    for relation in NAMES:
        own, others = (captions.caption.str.contains(pattern(relation, wording)) for wording in ("own", "others"))
        columns |= {(relation, "own"): own, (relation, "others"): others & ~own}
    return pd.DataFrame(columns)


def count(sources: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many captions of each source say each relation, and any of the 14.

    Returns:
        A row for each source, relation and wording (``own`` words of our captions, or ``all`` with the others):
        captions, hits, percent with ``low`` and ``high`` (95 %, over photos), share_of_pair (percent of the hits of
        it and its opposite), ``read`` and ``true`` (hits read by hand, and those that do place one thing by another:
        ``data/words.yaml``), and ``placed``: by these, percent of the captions that do.
    """
    rows = []
    for source, captions in sources.items():
        hit, size = hits(captions), captions.groupby("photo").size().to_numpy(float)
        for wording, kinds in {"own": ["own"], "all": ["own", "others"]}.items():
            says = pd.DataFrame({name: hit[name][kinds].any(axis=1) for name in NAMES})
            says[ANY] = says.any(axis=1)
            n = says.sum()
            per_photo = says.groupby(captions.photo.to_numpy()).sum().to_numpy(float)
            low, high = ratio(per_photo, np.broadcast_to(size[:, None], per_photo.shape))
            placed = {name: _placed(name, hit[name].sum(), kinds) / len(captions) for name in NAMES}
            for i, name in enumerate(says):
                names = NAMES if name == ANY else [name]
                read = np.sum([WORDS[relation]["read"][kind] for relation in names for kind in kinds], axis=0)
                pair = n[[name, BY_NAME[name].opposite]].sum() if name != ANY else 0
                rows.append(
                    {
                        "source": source, "relation": name, "wording": wording, "captions": len(captions),
                        "hits": int(n[name]), "percent": 100 * n[name] / len(captions), "low": 100 * low[i],
                        "high": 100 * high[i], "share_of_pair": 100 * n[name] / pair if pair else None,
                        "read": int(read[0]), "true": int(read[1]),
                        "placed": 100 * np.sum([placed[relation] for relation in names]),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _placed(relation: str, found: pd.Series, kinds: Sequence[str]) -> float:
    """Of the hits of each wording, the share that was true of those read."""
    read = WORDS[relation]["read"]
    return float(sum(found[kind] * read[kind][1] / read[kind][0] for kind in kinds if read[kind][0]))


def sample(sources: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The hits that were read: of each relation and wording the first ``SAMPLE`` by the SHA-256 of their caption."""
    parts = []
    for source, captions in sources.items():
        hit = hits(captions)
        for relation, wording in hit:
            rows = captions[hit[relation, wording]]
            parts.append(rows.assign(source=source, relation=relation, wording=wording))
    every = pd.concat(parts)
    every["order"] = [hashlib.sha256(caption.encode()).hexdigest() for caption in every.caption]
    return every.sort_values("order").groupby(["relation", "wording"], sort=False).head(SAMPLE).drop(columns="order")


def caption_words(run: Run, captions: Mapping[str, str | Path]) -> Result:
    """:func:`count` of some files, by the source's name, beside what a ``coco`` run recorded of other sources."""
    recorded, about = run.recorded("caption_words")
    if not captions:
        return recorded, about
    paths = {name: run.read(path) for name, path in captions.items()}
    counted = count({name: read_captions(path) for name, path in paths.items()})
    table = pd.concat([recorded[~recorded.source.isin(list(paths))], counted], ignore_index=True)
    about = {"sources": about["sources"] | {name: digest(path) for name, path in paths.items()}}
    return run.result(table, "caption_words", **about), about
