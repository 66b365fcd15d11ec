"""The dataset's description in Croissant 1.1, with the Responsible-AI fields: what dataset search and loaders read.

What is true of every run is in ``data``, ``card.txt`` and ``croissant.json``; counts, files and columns come from the
Parquet files.
"""

import json
from collections.abc import Collection
from pathlib import Path
from string import Template
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import __version__
from ..store import files


def write_card(
    path: str | Path, train: str | Path, val: str | Path, *, source: str, rules: str, held_out: Collection[str]
) -> None:
    """A stage: the dataset card, with the counts of both triplet files."""
    counts = []
    for split, file in (("train", train), ("validation", val)):
        images = pq.read_table(file, columns=["image_id"])["image_id"]
        counts.append(f"| {split} | {len(images):,} | {len(images.unique()):,} |")
    licence, terms = licence_of(source)
    names = ", ".join(map(files.markdown, held_out))
    fields = {"source": files.markdown(source), "rules": rules, "held_out": names, "counts": "\n".join(counts)}
    fields["columns"] = "\n".join(f"| {name} | {meaning} |" for name, meaning in COLUMNS.items())
    card = Template((files.DATA / "card.txt").read_text(encoding="utf-8"))
    files.write_text(path, card.substitute(**fields, licence=licence, terms=terms))


COCO, MINIATURE = "COCO annotations", "the miniature world"  # what captions are made from
LICENCES = {  # as the Hub writes them, and their terms
    COCO: ("cc-by-4.0", "COCO's annotations are under CC BY 4.0; its photos keep their own terms and are not part of "
           "this data set."),
    MINIATURE: ("apache-2.0", "The layouts are drawn by this project, under Apache-2.0."),
}  # fmt: skip


def licence_of(source: str) -> tuple[str, str]:
    """The licence of captions by what they are made from, and its terms in a sentence."""
    unknown = "The annotations are not the project's: whoever passes this on names their licence."
    return LICENCES.get(source, ("other", unknown))


COLUMNS = {  # what a column of a triplet file means
    "image_id": "the annotated image's id",
    "file_name": "the annotated image's file",
    "subject": "name of the category that stands in the relation",
    "relation": "one of the 14 relations",
    "object": "name of the category that it stands in the relation to",
    "caption": "the triplet as a sentence",
    "n_pairs": "how many pairs of boxes of the image show the triplet",
    "subject_id": "the subject's category id",
    "object_id": "the object's category id",
    "objects": "seen, mixed or unseen: how many of the two categories are held out of the unseen split's fine-tuning",
    "split": "train or val",
}


def write_croissant(path: str | Path, train: str | Path, val: str | Path, *, source: str, rules: str) -> int:
    """A stage: ``croissant.json`` for the two triplet files beside it. Returns the number of rows that it describes.

    Args:
        source: what the captions were made from, in words.
        rules: the rule set that wrote them.
    """
    parts = {"train": Path(train), "val": Path(val)}
    rows = {split: pq.read_metadata(file).num_rows for split, file in parts.items()}
    about = json.loads((files.DATA / "croissant.json").read_text(encoding="utf-8"))
    about |= {
        "version": __version__,
        "license": about["license"] if source == COCO else licence_of(source)[1],
        "description": f"{sum(rows.values()):,} captions with explicit spatial relations, made from {source} with the "
        f"{rules} rules: one row per distinct (image, subject, relation, object).",
        "distribution": [_file(split, file) for split, file in parts.items()],
        "recordSet": [_records(split, file, rows[split]) for split, file in parts.items()],
    }
    files.write_json(path, about)
    return sum(rows.values())


def _file(split: str, path: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": f"{split}-file", "name": path.name,
        "description": f"the captions of the {split} images", "contentUrl": path.name,
        "contentSize": f"{path.stat().st_size} B", "encodingFormat": "application/x-parquet",
        "sha256": files.digest(path),
    }  # fmt: skip


def _records(split: str, path: Path, rows: int) -> dict[str, Any]:
    about = {"@type": "cr:RecordSet", "@id": split, "name": split}
    fields = [_field(split, column) for column in pq.read_schema(path)]
    return {**about, "description": f"{rows:,} captions of the {split} images", "field": fields}


def _field(split: str, column: pa.Field) -> dict[str, Any]:
    return {
        "@type": "cr:Field", "@id": f"{split}/{column.name}", "name": column.name,
        "description": COLUMNS[column.name],
        "dataType": "sc:Integer" if pa.types.is_integer(column.type) else "sc:Text",
        "source": {"fileObject": {"@id": f"{split}-file"}, "extract": {"column": column.name}},
    }  # fmt: skip
