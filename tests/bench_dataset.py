"""How fast the dataset is made: `make bench`, or python tests/bench_dataset.py [--boxes TABLE.parquet].

Takes a Parquet box table, builds a file in COCO's official format of train2017's size from it (polygons added to about
450 MB) and measures from both, each in a process of its own and without that process' start and imports:

* ours: to Parquet with every caption (:func:`sr4g_utils.dataset.triplets.build`), on two cores;
* the two ways of tests/bench_peers.py, polars and DuckDB, which write the same rows (a hash of the sorted rows is
  compared), and the same without texts ("numbers only"), which is less than ours writes;
* from JSON, the obvious way: pycocotools and a Python loop over pairs of boxes that collects triplets in a set;
* ours on a file of ten times the images: its peak memory beside that of the first.

The boxes come from a box table (--boxes; default: the shared train2017 table where it is), or are drawn with COCO's
counts.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_peers
import numpy as np
import pyarrow.parquet as pq

if TYPE_CHECKING:  # each measured process imports this module: nothing that not all of them need
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
SIZE = 448_000_000  # bytes of the official instances_train2017.json
IMAGES, BOXES = 118_287, 849_942  # of train2017; crowds apart
GOAL = {"seconds": 6.0, "gigabytes": 2.0, "of the obvious": 15.0, "memory": 2.0, "of polars": 0.7, "of both": 8.0}


def drawn_boxes(rng: np.random.Generator) -> "pd.DataFrame":
    """A table like train2017's: as many images and boxes, their number per image as skewed."""
    import pandas as pd

    per_image = 1 + rng.negative_binomial(0.9, 0.9 / (0.9 + BOXES / IMAGES - 1), IMAGES)
    image = np.repeat(np.arange(1, IMAGES + 1), per_image)
    n = len(image)
    popular = 1 / np.arange(1, 81) ** 0.8
    ids = np.array([i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)])
    w, h = np.exp(rng.normal([4.2, 4.2], 0.9, (n, 2))).clip(2, 480).T.round(2)
    x, y = (rng.random(n) * (640 - w)).round(2), (rng.random(n) * (480 - h)).round(2)
    table = pd.DataFrame({"image_id": image, "category_id": rng.choice(ids, n, p=popular / popular.sum())})
    return table.assign(width=640, height=480, ann_id=np.arange(n), x=x, y=y, w=w, h=h, iscrowd=0)


def write_official(path: Path, table: "pd.DataFrame", copies: int = 1) -> int:
    """The table as an official file with a polygon per box, ``copies`` times under other ids; returns its images."""
    rng = np.random.default_rng(0)
    points = (SIZE - 160 * IMAGES - 150 * len(table)) // len(table) // 16  # x and y take 16 characters
    polygons = [json.dumps((rng.random(2 * points) * 600).round(2).tolist()) for _ in range(1000)]
    images = table.drop_duplicates("image_id")
    step = int(images.image_id.max()) + 1

    def records() -> Iterator[str]:
        for copy in range(copies):
            for i, row in enumerate(table.itertuples()):
                yield (
                    f'{{"segmentation": [{polygons[i % 1000]}], "area": {row.w * row.h / 2:.4f}, "iscrowd": 0, '
                    f'"image_id": {row.image_id + copy * step}, "bbox": [{row.x}, {row.y}, {row.w}, {row.h}], '
                    f'"category_id": {row.category_id}, "id": {i + copy * len(table) + 1}}}'
                )

    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [{"id": 1, "name": "none"}], "images": [')
        rows = ((row, row.image_id + copy * step) for copy in range(copies) for row in images.itertuples())
        file.write(", ".join(
            f'{{"license": 1, "file_name": "{id:012d}.jpg", "height": {row.height}, "width": {row.width}, '
            f'"date_captured": "2013-11-14 17:02:52", "id": {id}}}' for row, id in rows
        ))  # fmt: skip
        file.write('], "annotations": [')
        for i, record in enumerate(records()):
            file.write((", " if i else "") + record)
        file.write(f'], "categories": {json.dumps(categories())}}}')
    return copies * len(images)


def categories() -> list[dict[str, Any]]:
    from sr4g_utils.dataset.boxes import COCO_CATEGORIES

    return [{"supercategory": c.supercategory, "id": c.id, "name": c.name} for c in COCO_CATEGORIES]


def ours(path: str, output: str) -> int:
    from sr4g_utils.dataset import triplets

    return triplets.build(output, path, split="train")


PREDICATES: dict[str, Callable[[Any, Any], bool]] = {
    "to the left of": lambda a, b: a[0] + a[2] / 2 < b[0] + b[2] / 2,
    "to the right of": lambda a, b: a[0] + a[2] / 2 > b[0] + b[2] / 2,
    "above": lambda a, b: a[1] + a[3] / 2 < b[1] + b[3] / 2,
    "below": lambda a, b: a[1] + a[3] / 2 > b[1] + b[3] / 2,
    "inside": lambda a, b: a[0] > b[0] and a[1] > b[1] and a[0] + a[2] < b[0] + b[2] and a[1] + a[3] < b[1] + b[3],
    "surrounding": lambda a, b: PREDICATES["inside"](b, a),
    "overlapping": lambda a, b: min(a[0] + a[2], b[0] + b[2]) > max(a[0], b[0])
    and min(a[1] + a[3], b[1] + b[3]) > max(a[1], b[1]),
    "separated from": lambda a, b: not PREDICATES["overlapping"](a, b),
    "wider than": lambda a, b: a[2] > b[2], "narrower than": lambda a, b: a[2] < b[2],
    "taller than": lambda a, b: a[3] > b[3], "shorter than": lambda a, b: a[3] < b[3],
    "larger than": lambda a, b: a[2] * a[3] > b[2] * b[3], "smaller than": lambda a, b: a[2] * a[3] < b[2] * b[3],
}  # fmt: skip


def obvious(path: str) -> int:
    """The triplets by pycocotools and a loop over the ordered pairs of each image's boxes; nothing is written."""
    from pycocotools.coco import COCO

    coco = COCO(path)
    names = {id: category["name"] for id, category in coco.cats.items()}
    triplets = set()
    for image in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image, iscrowd=False))
        for a, b in itertools.permutations(annotations, 2):
            for phrase, holds in PREDICATES.items():
                if holds(a["bbox"], b["bbox"]):
                    triplets.add((image, names[a["category_id"]], phrase, names[b["category_id"]]))
    return len(triplets)


WAYS: dict[str, tuple[Callable, str, tuple]] = {  # the function, what it needs imported, and its further arguments
    "ours": (ours, "sr4g_utils.dataset.triplets", ()),
    "polars": (bench_peers.with_polars, "polars", ()),
    "DuckDB": (bench_peers.with_duckdb, "duckdb", ()),
    "polars, numbers only": (bench_peers.with_polars, "polars", (False,)),
    "DuckDB, numbers only": (bench_peers.with_duckdb, "duckdb", (False,)),
}


def _child(connection: Any, function: Callable, module: str, arguments: tuple) -> None:
    importlib.import_module(module)
    began, worked = time.perf_counter(), time.process_time()
    n = function(*arguments)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    # not getrusage: it counts what the parent held when it forked
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    connection.send((seconds, worked, n, int(peak[1]) * 1024 / 1e9 if peak else float("nan")))


def measure(function: Callable, module: str, *arguments: Any) -> tuple[float, float, int, float]:
    """Seconds, the cores' seconds, captions and peak memory (GB, whole process) of a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, function, module, arguments))
    process.start()
    there.close()  # so that a child that dies is an end of file here
    measured = here.recv()
    process.join()
    return measured


def digest(path: Path) -> str:
    """A hash of a file's rows, sorted, whatever the order of its rows and columns."""
    import pandas as pd

    text = ["file_name", "subject", "relation", "object", "caption", "objects", "split"]
    hashes = []
    with pq.ParquetFile(path, read_dictionary=text) as file:
        for rows in file.iter_batches(1 << 20, columns=sorted(file.schema_arrow.names)):
            frame = rows.to_pandas()[sorted(rows.schema.names)]
            hashes.append(pd.util.hash_pandas_object(frame, index=False).to_numpy())
    return hashlib.sha256(np.sort(np.concatenate(hashes)).tobytes()).hexdigest()[:16]


def side_by_side(path: Path, folder: Path, turns: dict[str, int]) -> tuple[dict[str, float], dict[str, float], bool]:
    """Measure the ways in turn, each as often as said, and print a row for each.

    Returns:
        Least seconds and peak memory by way, and whether all write the same rows.
    """
    runs: dict[str, list[tuple[float, float, int, float]]] = {name: [] for name in turns}
    outputs = {name: folder / f"{name}.parquet" for name in turns}
    for turn in range(max(turns.values())):
        for name in (name for name, n in turns.items() if turn < n):
            function, module, further = WAYS[name]
            runs[name].append(measure(function, module, str(path), str(outputs[name]), *further))
    seconds = {name: min(run[0] for run in runs[name]) for name in turns}
    memory = {name: max(run[3] for run in runs[name]) for name in turns}
    written = {}
    for name in turns:
        middle = statistics.median(run[0] for run in runs[name])
        worked = min(run[1] for run in runs[name])
        written[name] = (runs[name][0][2], None if WAYS[name][2] else digest(outputs[name]))
        print(f"  {name}: {seconds[name]:.2f} s (median {middle:.2f} of {turns[name]}; a core's {worked:.2f} s), "
              f"{memory[name]:.2f} GB, {seconds[name] / seconds['ours']:.2f} times ours; {written[name][0]:,} rows, "
              f"hash {written[name][1]}, {outputs[name].stat().st_size / 1e6:,.0f} MB", flush=True)  # fmt: skip
    counts, hashes = ({value for value in column if value} for column in zip(*written.values(), strict=True))
    return seconds, memory, len(counts) == len(hashes) == 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("SR4G_SHARED") or ROOT.parent / "shared" / "data") / "coco2017/train2017_boxes.parquet"
    parser.add_argument("--boxes", type=Path, default=shared, help="a box table (Parquet)")
    parser.add_argument("--folder", type=Path, help="for the files, about 7 GB (default: a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way, the best of which counts")
    parser.add_argument("--no-slow", action="store_true", help="leave out the obvious way (minutes)")
    parser.add_argument("--no-tenfold", action="store_true", help="leave out the file of ten times the images")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    import pandas as pd

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, path, boxes = Path(name), Path(name) / "instances_train2017.json", args.boxes
        if not boxes.is_file():
            boxes = folder / "boxes.parquet"
            drawn_boxes(np.random.default_rng(0)).to_parquet(boxes)
        table = pd.read_parquet(boxes)
        images = write_official(path, table)
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("pyarrow", "polars", "duckdb", "orjson"))
        processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        print(f"{images:,} images, {len(table):,} boxes; {processor and processor[1]}, {os.cpu_count()} cores, Python "
              f"{platform.python_version()}, {versions}; process start and imports excluded")  # fmt: skip
        print(f"From {boxes.stat().st_size / 1e6:,.0f} MB of Parquet", flush=True)
        seconds, memory, same = side_by_side(boxes, folder, dict.fromkeys(WAYS, args.repeat))
        met = {
            "Parquet: the same rows": same,
            "Parquet: at most 0.7 of polars' time": seconds["ours"] <= GOAL["of polars"] * seconds["polars"],
            "Parquet: no more memory than DuckDB": memory["ours"] <= memory["DuckDB"],
        }
        print(f"From {path.stat().st_size / 1e6:,.0f} MB of JSON", flush=True)
        turns = {"ours": args.repeat, **dict.fromkeys(("polars", "DuckDB"), (args.repeat + 1) // 2)}
        seconds, memory, same = side_by_side(path, folder, turns)
        faster = min(seconds["polars"], seconds["DuckDB"]) / seconds["ours"]
        met |= {
            "JSON: the same rows": same,
            "JSON: at most 6 s": seconds["ours"] <= GOAL["seconds"],
            "JSON: at most 2 GB": memory["ours"] <= GOAL["gigabytes"],
            "JSON: at least 8 times as fast as either": faster >= GOAL["of both"],
        }
        if not args.no_slow:
            slow, _, n_slow, slow_memory = measure(obvious, "pycocotools.coco", str(path))
            print(f"  pycocotools and a loop with sets: {n_slow:,} captions in {slow:.1f} s, {slow_memory:.2f} GB, "
                  f"{slow / seconds['ours']:.1f} times ours")  # fmt: skip
            met["at least 15 times as fast as the obvious way"] = slow / seconds["ours"] >= GOAL["of the obvious"]
        if not args.no_tenfold:
            images = write_official(path, table, copies=10)
            took, _, n, ten = measure(ours, WAYS["ours"][1], str(path), str(folder / "ours.parquet"))
            print(f"ten times the images ({path.stat().st_size / 1e9:.1f} GB, {images:,}): {n:,} captions in "
                  f"{took:.1f} s, {ten:.2f} GB, {ten / memory['ours']:.2f} times the memory")  # fmt: skip
            met["memory at most doubled"] = ten / memory["ours"] <= GOAL["memory"]
    for goal, reached in met.items():
        print(f"{'reached' if reached else 'MISSED'}: {goal}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
