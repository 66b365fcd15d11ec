"""The dataset as an engineer would make it today, measured beside ours: orjson with polars, orjson with DuckDB.

Both write the rows of :func:`sr4g_utils.dataset.triplets.build` (split train, rules ``visor``), in any order. ``texts``
leaves out what is written in words (names, captions, file names, the split): numbers and relations remain.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.dataset.captions import caption
from sr4g_utils.relations import NAMES

# Of the boxes s and o, as both understand it.
OVERLAPPING = "least(s_x2, o_x2) > greatest(s_x, o_x) and least(s_y2, o_y2) > greatest(s_y, o_y)"
HOLDS = {
    "left of": "s_cx < o_cx", "right of": "s_cx > o_cx", "above": "s_cy < o_cy", "below": "s_cy > o_cy",
    "inside": "s_x > o_x and s_y > o_y and s_x2 < o_x2 and s_y2 < o_y2",
    "surrounding": "s_x < o_x and s_y < o_y and s_x2 > o_x2 and s_y2 > o_y2",
    "overlapping": OVERLAPPING, "separated": f"not ({OVERLAPPING})",
    "wider": "s_w > o_w", "narrower": "s_w < o_w", "taller": "s_h > o_h", "shorter": "s_h < o_h",
    "larger": "s_area > o_area", "smaller": "s_area < o_area",
}  # fmt: skip
DERIVED = "x + w as x2, y + h as y2, x + w / 2 as cx, y + h / 2 as cy, w * h as area"


def boxes(path: str) -> pa.Table:
    """The boxes of an official file; crowds apart."""
    import orjson

    kept = [a for a in orjson.loads(Path(path).read_bytes())["annotations"] if not a["iscrowd"]]
    numbers = {name: np.array([a[name] for a in kept], "i4") for name in ("image_id", "category_id", "id", "iscrowd")}
    sides = np.array([a["bbox"] for a in kept], "f8")
    return pa.table({**numbers, **dict(zip("xywh", sides.T.copy(), strict=True))}).rename_columns({"id": "ann_id"})


def captions() -> pa.Table:
    """Every triplet of categories in words."""
    things = COCO_CATEGORIES
    rows = [(s.id, o.id, s.name, r, o.name, caption(s.name, r, o.name)) for s in things for o in things for r in NAMES]
    names = ["subject_id", "object_id", "subject", "relation", "object", "caption"]
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))).cast(
        pa.schema([(name, pa.int32() if name.endswith("id") else pa.string()) for name in names])
    )


def with_polars(path: str, output: str, texts: bool = True) -> int:
    import polars as pl

    source = pl.from_arrow(boxes(path)).lazy() if path.endswith(".json") else pl.scan_parquet(path)
    box = source.filter(pl.col("iscrowd") == 0).select(
        pl.col("image_id", "ann_id").cast(pl.Int64), pl.col("category_id").cast(pl.Int32), *"xywh",
        *map(pl.sql_expr, DERIVED.split(", ")),
    )  # fmt: skip
    key = [pl.col("s_image_id").alias("image_id"), pl.col("s_category_id").alias("subject_id"),
           pl.col("o_category_id").alias("object_id")]  # fmt: skip
    triplets = (
        box.select(pl.all().name.prefix("s_"))
        .join(box.select(pl.all().name.prefix("o_")), left_on="s_image_id", right_on="o_image_id")
        .filter(pl.col("s_ann_id") != pl.col("o_ann_id"))
        .group_by(key)
        .agg(pl.sql_expr(holds).sum().cast(pl.Int32).alias(name) for name, holds in HOLDS.items())
        .unpivot(NAMES, index=["image_id", "subject_id", "object_id"], variable_name="relation", value_name="n_pairs")
        .filter(pl.col("n_pairs") > 0)
    )
    if texts:
        triplets = triplets.join(
            pl.from_arrow(captions()).lazy(), on=["subject_id", "object_id", "relation"]
        ).with_columns(
            pl.format("{}.jpg", pl.col("image_id").cast(pl.String).str.zfill(12)).alias("file_name"),
            objects=pl.lit("seen"), split=pl.lit("train"),
        )  # fmt: skip
    triplets.sink_parquet(output, compression="zstd", compression_level=1, engine="streaming")
    return pq.read_metadata(output).num_rows


def with_duckdb(path: str, output: str, texts: bool = True) -> int:
    import duckdb

    database = duckdb.connect()
    database.execute("set preserve_insertion_order = false")
    source: Any = database.from_arrow(boxes(path)) if path.endswith(".json") else database.read_parquet(path)
    database.register("source", source)
    database.register("captions", captions())
    counts = ", ".join(f'count(*) filter ({holds}) as "{name}"' for name, holds in HOLDS.items())
    counts = counts.replace("s_", "s.").replace("o_", "o.")
    words = "file_name: printf('%012d.jpg', image_id), subject, object, caption, objects: 'seen', split: 'train'"
    words = f", {words}" if texts else ""
    database.execute(f"""
        copy (
            with box as (
                select image_id::bigint as image_id, ann_id, category_id::int as category_id, x, y, w, h, {DERIVED}
                from source where iscrowd = 0
            ), counted as (
                select s.image_id, s.category_id as subject_id, o.category_id as object_id, {counts}
                from box s join box o on s.image_id = o.image_id and s.ann_id <> o.ann_id group by all
            ), triplet as (
                unpivot counted on {", ".join(f'"{name}"' for name in NAMES)} into name relation value n_pairs
            )
            select image_id, subject_id, object_id, relation, n_pairs::int as n_pairs{words}
            from triplet {"join captions using (subject_id, object_id, relation)" if texts else ""} where n_pairs > 0
        ) to '{output}' (format parquet, compression zstd, compression_level 1)
    """)
    return pq.read_metadata(output).num_rows
