"""Inputs as accidents leave them: each ends in a right result or in one clear line, never in a traceback.

    python tests/mutate.py --number 5000                      # of every part
    python tests/mutate.py prompts --number 500 --seed 3

A part is a function under :func:`part`. It makes an input in an empty folder with a random generator, has it read, and
asserts that the result is right; a ValueError counts as a refusal, which is one line that names a file.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sr4g_utils.dataset.captions import caption
from sr4g_utils.dataset.prompt_sets import check_prompts, read_prompts, write_given_prompts
from sr4g_utils.evaluation import scores, verdicts
from sr4g_utils.evaluation.detections import DETECTION_COLUMNS, read_detections
from sr4g_utils.evaluation.images import list_images
from sr4g_utils.relations import NAMES

SECONDS = 20.0  # that one case may take; the slowest takes a tenth of one on an idle core
PARTS: dict[str, Callable[[random.Random, Path], None]] = {}


def part(case: Callable[[random.Random, Path], None]) -> Callable[[random.Random, Path], None]:
    """Register a function as the part of its name."""
    return PARTS.setdefault(case.__name__, case)


def numbers(all_of_them: int) -> pytest.MarkDecorator:
    """How many cases a test takes: 50 in `make test`, and all in `make test-all`."""
    return pytest.mark.parametrize("number", [50, pytest.param(all_of_them, marks=pytest.mark.slow("many cases"))])


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise in the block when it has taken longer. What a library does in C ends first."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, number: int, seed: int = 0) -> Counter[str]:
    """How many of ``number`` cases ended right and how many were refused.

    Raises:
        AssertionError: one that did neither; it says which case, so that ``run(name, 1, seed)`` can be stepped through.
    """
    ends: Counter[str] = Counter()
    for i in range(number):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch).resolve()
            try:
                with within(SECONDS):
                    PARTS[name](random.Random(f"{name} {seed} {i}"), folder)
                ends["right"] += 1
            except ValueError as error:
                told, kind = str(error), type(error)
                ours = kind is ValueError or kind.__module__.startswith("sr4g_utils")
                assert ours, f"{name}, seed {seed}, case {i}: {traceback.format_exc()}"
                assert told and "\n" not in told, f"{name}, seed {seed}, case {i}: not one line: {told!r}"
                names = (str(folder), folder.name, *(path.name for path in folder.rglob("*")))
                assert any(file in told for file in names), f"{name}, seed {seed}, case {i}: names no file: {told!r}"
                ends["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{name}, seed {seed}, case {i}: {traceback.format_exc()}") from error
    return ends


# ------------------------------------------------------------------------------------------------------------ prompts
WORDS = ("dog", "cat", "wine glass", "hair drier", "tv", "café table", "naïve cow", "N/A sign", "null", "Ärmel")
IDS = ("7", "007", "1e5", "1.0", "a-b", "x_1", "NA", "Straße")
ODD: tuple[Any, ...] = (
    "", " ", None, 5, 1.5, float("nan"), True, [], {}, {"a": [1]}, "5", "a\nb", "a,b", 'a "b"', "\t", "near", 10**30,
    "\ud800", "x" * 200_000, "\u2028", "=1+1",
)  # fmt: skip


@part
def prompts(random: random.Random, folder: Path) -> None:
    """A prompt file of some form, written in one of many honest ways, and then perhaps damaged."""
    rows = _rows(random)
    form = random.choice(list(FORMS))
    damage = random.choice(["none", "none", "value", "column", "bytes", "bytes", "cut", "encoding", "suffix", "twice"])
    written = [dict(row) for row in rows]
    if damage == "value":
        random.choice(written)[random.choice(list(rows[0]))] = random.choice(ODD)
    elif damage == "column":
        _change_a_column(random, written)
    elif damage == "twice":
        written.append(random.choice(written))
    try:
        suffix, data = FORMS[form](random, written)
    except (ValueError, OverflowError, ArithmeticError, TypeError):  # such a value has no place in a file of that form
        return
    if damage in ("bytes", "cut", "encoding"):
        data = damaged(random, damage, data)
    if damage == "suffix":
        suffix = random.choice([".csv", ".json", ".txt", ".parquet", ".tsv", ".jsonl", ".xlsx", ""])
    path = folder / f"prompts{suffix.upper() if random.random() < 0.3 else suffix}"
    path.write_bytes(data)
    try:
        table = read_prompts(path)
    except ValueError as error:
        assert damage != "none", f"a right file was refused: {error}"
        raise
    check_prompts(table, "read")
    assert len(table) and table.prompt_id.astype(str).is_unique and set(table.relation) <= set(NAMES)
    write_given_prompts(folder / "again.parquet", source=path)
    pd.testing.assert_frame_equal(read_prompts(folder / "again.parquet"), table)
    if damage in ("none", "value"):
        assert len(table) + table.attrs.get("left_out", 0) == len(rows)
    if damage == "none" and "lines" not in form:
        for name in ("prompt_id", "subject", "relation", "object", "caption"):
            assert list(table[name].astype(str)) == [str(row[name]) for row in rows]


def _rows(random: random.Random) -> list[dict[str, Any]]:
    number = random.randint(1, 6)
    ids: list[Any] = random.sample(IDS, number) if random.random() < 0.5 else random.sample(range(100), number)
    rows = []
    for id in ids:
        (subject, object), relation = random.sample(WORDS, 2), random.choice(NAMES[:4])
        row = {"prompt_id": id, "subject": subject, "relation": relation, "object": object}
        row |= {"caption": caption(subject, relation, object), "note": random.choice(["", "x", "3", "a b"])}
        rows.append(row)
    return rows


def _change_a_column(random: random.Random, rows: list[dict[str, Any]]) -> None:
    name, new = random.choice(list(rows[0])), random.choice([None, "subject", "objects", "Relation", "", " caption "])
    for row in rows:
        value = row.pop(name)
        if new is not None:
            row[new] = value


def damaged(random: random.Random, damage: str, data: bytes) -> bytes:
    """A file with some bytes changed, cut short, or in another encoding."""
    if damage == "cut":
        return data[: random.randrange(len(data))]
    if damage == "encoding":
        other = random.choice(["cp1252", "utf-16", "utf-16-le", "utf-32"])
        return data.decode("utf-8", "replace").encode(other, "replace")
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at, new = random.randrange(len(changed)), random.choice([0, 9, 10, 13, 34, 44, 59, 91, 123, 128, 255, 92])
        changed[at : at + random.randint(0, 1)] = bytes([new])
    return bytes(changed)


def _delimited(random: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    end, delimiter = random.choice(["\n", "\r\n", "\r"]), random.choice(",,;\t")
    space = random.choice(["", " ", "\u00a0 "])
    names = list(rows[0])
    quoting = random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow([random.choice([str.upper, str])(name) if name != "note" else name for name in names])
    for row in rows:
        writer.writerow([f"{space}{'' if row.get(name) is None else row.get(name)}{space}" for name in names])
        if random.random() < 0.2:
            writer.writerow([""] * len(names))
    return random.choice([".csv", ".tsv"]), _marked(random, written.getvalue())


def _marked(random: random.Random, text: str) -> bytes:
    return text.encode(random.choice(["utf-8", "utf-8-sig"]))


def _json(random: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    text = json.dumps(rows, indent=random.choice([None, 1]), ensure_ascii=random.random() < 0.5)
    return ".json", _marked(random, text)


def _json_lines(random: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    shown = [json.dumps({**row, "more": "a\u2028b"}, ensure_ascii=random.random() < 0.5) for row in rows]
    suffix = random.choice([".jsonl", ".ndjson", ".json" if len(rows) > 1 else ".jsonl"])
    return suffix, _marked(random, random.choice(["\n", "\r\n", "\n\n"]).join(shown))


def _parquet(random: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    written = io.BytesIO()
    pd.DataFrame(rows).to_parquet(written)
    return ".parquet", written.getvalue()


def _spatial_lines(random: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    case = random.choice([str, str.capitalize, str.upper])
    return ".txt", _marked(random, "\n".join(case(f"{row.get('caption')}{random.choice(['', '.'])}") for row in rows))


def _geneval_lines(random: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    shown = []
    for row in rows:
        first, second = ({"class": row.get(name), "count": 1} for name in ("object", "subject"))
        include = [first, {**second, "position": [row.get("relation"), 0]}]
        shown.append(json.dumps({"tag": "position", "include": include, "prompt": row.get("caption")}))
    return ".jsonl", _marked(random, "\n".join(shown))


FORMS = {
    "csv": _delimited, "json": _json, "jsonl": _json_lines, "parquet": _parquet,
    "T2I-CompBench's lines": _spatial_lines, "GenEval's lines": _geneval_lines,
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- images
LAYOUTS = ("{id}_{n}", "{id}/samples/{n:04}", "samples/{text}_{n:06}", "{id}/{id}_{n}", "shard/{id}_{n}")
LITTER = (
    ".ipynb_checkpoints/7_0.png", ".Trash-1000/files/7_0.png", "@eaDir/7_0.png/THUMB.png", "Thumbs.db", ".DS_Store",
    "__MACOSX/._7_0.png", "$RECYCLE.BIN/S-1/x.png", "._7_0.png", "notes.txt", ".hidden_3.png", "record.json",
)  # fmt: skip


@part
def images(random: random.Random, folder: Path) -> None:
    """A folder of images in some published layout, with what lies about in real folders, and then perhaps a mistake."""
    rows = [{**row, "caption": row["caption"].replace("/", " ")} for row in _rows(random)]
    everything = pd.DataFrame(rows).drop_duplicates("caption", ignore_index=True)
    drawn = everything.iloc[min(random.randint(0, 1), len(everything) - 1) :].reset_index(drop=True)
    left_out = everything[~everything.prompt_id.isin(drawn.prompt_id)]
    drawn.attrs["others"] = "\n".join(f"{row.prompt_id}\t{row.caption}" for row in left_out.itertuples())
    layout, number, first = random.choice(LAYOUTS), random.randint(1, 3), random.choice([0, 1, 100])
    top, blank = random.choice(["", "model/"]), random.choice([" ", "_"])

    def name(row: Any, n: int) -> str:
        file = layout.format(id=row.prompt_id, n=first + n, text=row.caption.replace(" ", blank))
        return top + file + random.choice([".png", ".JPG", ".webp"])

    expected = {row.prompt_id: [name(row, n) for n in range(number)] for row in drawn.itertuples()}
    others = [name(row, n) for row in left_out.itertuples() for n in range(number)]
    litter = [top + file for file in random.sample(LITTER, random.randint(0, 3))]
    grids = {"{id}/s": f"{top}{drawn.prompt_id[0]}/grid.png", "samples": f"{top}{drawn.caption[0]}-grid-00000.png"}
    litter += [grid for start, grid in grids.items() if layout.startswith(start)]
    files = [file for own in expected.values() for file in own]
    mistake = random.choice(["", _mistake(random, files, [str(id) for id in drawn.prompt_id], first, number)])
    for file in [*files, *others, *litter, *filter(None, [mistake])]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    if random.random() < 0.3:
        (folder / "loop").symlink_to(random.choice([folder, folder.parent]), target_is_directory=True)
    try:
        listed = list_images(folder, drawn)
    except ValueError as error:
        assert mistake, f"a right folder was refused: {error}"
        raise
    assert not mistake, f"{mistake} was not seen"
    assert list(listed.file_name) == files and list(listed.image_index) == [*range(number)] * len(expected)
    assert listed.attrs == {"without_images": 0, "left_out_images": len(others)}


def _mistake(random: random.Random, files: list[str], ids: list[str], first: int, number: int) -> str:
    """A file that does not belong there."""
    wrong = [str(Path(files[0]).with_suffix(".bmp")), f"other/{ids[0]}_{first}.png"]
    wrong += ["nobody_0.png", "nobody/samples/0.png", "without a number.png"]
    if len(ids) > 1:
        wrong.append(str(Path(files[0]).with_name(f"{ids[0]}_{first + number}.png")))  # one prompt has one more
    return random.choice(wrong)


# --------------------------------------------------------------------------------------------------------- detections
ASKED = pd.DataFrame({"prompt_id": range(7, 19), "relation": ["left of", "above", "separated"] * 4}).assign(
    subject=["wine glass", "dog", "hot dog", "couch"] * 3, object=["dog", "tv", "couch", "wine glass"] * 3
)
Change = Callable[[random.Random, pd.DataFrame], pd.DataFrame]


def _put(columns: str, *values: Any) -> Change:
    """One value of one of the columns becomes another."""

    def change(random: random.Random, boxes: pd.DataFrame) -> pd.DataFrame:
        column = random.choice(columns.split())
        cells = boxes[column].astype(object).tolist()
        cells[random.randrange(len(cells))] = random.choice(values)
        return boxes.assign(**{column: pd.Series(cells, dtype=object if column == "label" else None).to_numpy()})

    return change


def _spelt(random: random.Random, boxes: pd.DataFrame) -> pd.DataFrame:
    others = {"tv": "television", "couch": "sofa"}
    ways = [str.upper, str.title, lambda s: s.replace(" ", "_"), lambda s: s.replace(" ", "-"), lambda s: f" {s} "]
    return boxes.assign(label=[random.choice([*ways, lambda s: others.get(s, s)])(name) for name in boxes.label])


def _of_others(random: random.Random, boxes: pd.DataFrame) -> pd.DataFrame:
    ids = boxes.prompt_id[:3].map(lambda id: type(id)(77_777))
    return pd.concat([boxes, boxes[:3].assign(prompt_id=ids)], ignore_index=True)


HARMLESS: dict[str, Change] = {
    "spelt otherwise": _spelt,
    "shuffled": lambda random, boxes: boxes.sample(frac=1, random_state=random.randrange(99), ignore_index=True),
    "ids as text": lambda random, boxes: boxes.assign(prompt_id=boxes.prompt_id.astype(str)),
    "ids as floats": lambda random, boxes: boxes.assign(prompt_id=boxes.prompt_id.astype(float)),
    "ids with zeros": lambda random, boxes: boxes.assign(prompt_id=boxes.prompt_id.astype(str).str.zfill(6)),
    "numbers of images as floats": lambda random, boxes: boxes.assign(image_index=boxes.image_index.astype(float)),
    "columns in another order": lambda random, boxes: boxes[random.sample(list(boxes), len(boxes.columns))],
    "more columns": lambda random, boxes: boxes.assign(image=3, at="x", is_subject=False, area=1.5),
    "boxes of others": _of_others,
    "weak boxes": lambda random, boxes: pd.concat([boxes, boxes.assign(score=0.02)], ignore_index=True),
}
HARMFUL: dict[str, Change] = {
    "no such column": lambda random, boxes: boxes.drop(columns=random.choice(list(boxes))),
    "a missing value": _put("score x w label prompt_id", None),
    "infinite": _put("x y w h", float("inf"), float("-inf")), "negative size": _put("w h", -1.0),
    "a score beyond 1": _put("score", 1.5, -0.1, 90.0), "half an image": _put("image_index", 0.5, -1),
    "an image too many": _put("image_index", 2, 10**9, 10**15),
    "no names": _put("label", 17, 3.5, ["dog"], {"name": "dog"}),
    "numbers as text": lambda random, boxes: boxes.assign(score=boxes.score.astype(str)),
    "foreign ids": lambda random, boxes: boxes.assign(prompt_id=boxes.prompt_id + 10_000),
    "foreign labels": lambda random, boxes: boxes.assign(label="Hund"),
    "nothing": lambda random, boxes: boxes[:0], "all weak": lambda random, boxes: boxes.assign(score=0.05),
}  # fmt: skip


def _boxes() -> pd.DataFrame:
    """Boxes of two images of every prompt; half of the images obey."""
    rows = []
    for p, i in itertools.product(ASKED.itertuples(), range(2)):
        for name, score, x in ((p.subject, 0.9, 0.0), (p.object, 0.8, 20.0 - 40 * i)):
            rows.append((p.prompt_id, i, name, score, x, 3.0, 8.0, 8.0))
    return pd.DataFrame(rows, columns=list(DETECTION_COLUMNS))


def _scored(boxes: pd.DataFrame) -> dict[str, float]:
    """Counts, not percentages: they must be equal."""
    return scores.scores(verdicts.verdicts(ASKED, boxes, 2)).groupby("metric", sort=False)["count"].sum().to_dict()


@part
def detections(random: random.Random, folder: Path) -> None:
    """A table of boxes, written in one of many honest ways, or with one mistake, or damaged."""
    boxes, harm = _boxes(), random.choice([*[None] * len(HARMFUL), "bytes", *HARMFUL])
    if harm in HARMFUL:
        boxes = HARMFUL[harm](random, boxes)
    else:
        ids = [name for name in HARMLESS if name.startswith("ids")]
        for name in random.sample([random.choice(ids), *(name for name in HARMLESS if name not in ids)], 2):
            boxes = HARMLESS[name](random, boxes)
    rows = boxes.to_dict("records")
    form = random.choice([".json", "columns", ".jsonl"] + [".parquet"] * (harm != "no names"))
    path = folder / f"boxes{'.json' if form == 'columns' else form}"
    if form == ".parquet":
        boxes.to_parquet(path)
    elif form == ".jsonl":
        path.write_bytes(_marked(random, "\n".join(map(json.dumps, rows))))
    else:
        columns = {name: [row[name] for row in rows] for name in boxes}
        path.write_bytes(_marked(random, json.dumps(columns if form == "columns" else rows)))
    if harm == "bytes":
        path.write_bytes(damaged(random, random.choice(["bytes", "cut", "encoding"]), path.read_bytes()))
    try:
        found = _scored(read_detections(path))
    except ValueError as error:
        assert harm, f"a right table was refused: {error}"
        raise ValueError(str(error)) from error  # NothingFound is one
    assert harm in (None, "bytes"), f"{harm} was not seen"
    assert harm or found == _scored(_boxes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--number", type=int, default=500, help="of cases in each part (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.parts or PARTS:
        print(f"{name}: {dict(run(name, args.number, args.seed))}")


if __name__ == "__main__":
    main()
