"""A file with one mistake of its form: a value changed in JSON, YAML, CSV or Parquet, a member of a zip, a header; or
with bytes changed, as in any file."""

import copy
import csv
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import mutate
import pandas as pd
import pyarrow as pa
import yaml

DEEP: list[Any] = []
for _ in range(2_000):  # lists in lists: more than Python's own reader takes, far less than would harm anything
    DEEP = [DEEP]
ODD = (
    None, "", " ", "x", "0", "-1", "1,5", "nan", "1_0", "a\nb", "dog", "../x", "Ä", "\ud800", "=1+1", True, False, 0, 1,
    -1, 7, 1.5, 1e308, 2**31, 2**63, 10**400, math.nan, math.inf, [], {}, [[]], {"a": 1}, [1, 2, 3, 4], ["dog"], DEEP,
)  # fmt: skip


def damage(random: Random, name: str, data: bytes) -> bytes:
    """The file with one mistake of its form, or with changed bytes."""
    change = FORMS.get(Path(name).suffix)
    if change is None or random.random() < 0.25:
        return mutate.damaged(random, random.choice(["bytes", "bytes", "cut", "encoding"]), data)
    return change(random, data)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or mapping within a value, with every place in it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _tree(random: Random, value: Any) -> Any:
    """The value with one place in it changed, gone, twice, under another name or put elsewhere."""
    value = copy.deepcopy(value)
    if not (places := list(_places(value))):
        return random.choice(ODD)
    holder, key = random.choice(places)
    other, at = random.choice(places)
    match random.choice(["odd", "odd", "odd", "gone", "twice", "moved", "list", "text", "whole"]):
        case "odd":
            holder[key] = random.choice(ODD)
        case "gone":
            del holder[key]
        case "twice" if isinstance(holder, list):
            holder.append(holder[key])
        case "twice":
            holder[random.choice([f"{key} ", str(key).upper(), "x", ""])] = holder.pop(key)
        case "moved":
            holder[key] = copy.deepcopy(other[at])
        case "list":
            holder[key] = [holder[key]]
        case "text":
            holder[key] = str(holder[key])
        case _:
            return random.choice([[value], {"a": value}, *ODD])
    return value


def _json(random: Random, data: bytes) -> bytes:
    return _dumped(_tree(random, json.loads(data)), random)


def _dumped(value: Any, random: Random) -> bytes:
    if value is DEEP or "DEEP" in (text := _text(value)):
        return text.replace('"DEEP"', "[" * 2_000 + "]" * 2_000).encode() if value is not DEEP else b"[" * 2_000
    return text.encode("utf-8", "surrogatepass") if random.random() < 0.2 else _text(value, True).encode()


def _text(value: Any, ascii: bool = False) -> str:
    return json.dumps(_flat(value), ensure_ascii=ascii)


def _flat(value: Any) -> Any:
    """The value with a word in place of ``DEEP``, which Python does not write."""
    if value is DEEP:
        return "DEEP"
    if isinstance(value, dict):
        return {str(key): _flat(item) for key, item in value.items()}
    return [_flat(item) for item in value] if isinstance(value, list) else value


def _lines(random: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines))
    match random.choice(["tree", "tree", "tree", "gone", "twice", "blank"]):
        case "tree":
            lines[at] = _json(random, lines[at]) + b"\n"
        case "gone":
            del lines[at]
        case "twice":
            lines.append(lines[at])
        case _:
            lines.insert(at, random.choice([b"\n", b"  \r\n", b"#\n", b"null\n"]))
    return b"".join(lines)


def _cells(random: Random, data: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    row, column = random.choice(rows), random.randrange(len(rows[0]))
    match random.choice(["cell", "cell", "cell", "column", "row", "twice", "delimiter", "short"]):
        case "cell":
            row[column] = str(random.choice([odd for odd in ODD if odd is not DEEP and odd != "\ud800"]))
        case "column":
            for row in rows:
                del row[column]
        case "row":
            rows.remove(row)
        case "twice":
            rows.append(row)
        case "short":
            del row[column:]
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=random.choice(",,,;\t"), lineterminator=random.choice(["\n", "\r\n"])).writerows(rows)
    return written.getvalue().encode()


def _parquet(random: Random, data: bytes) -> bytes:
    table = pd.read_parquet(io.BytesIO(data))
    name, written = random.choice(list(table)), io.BytesIO()
    match random.choice(["value", "value", "gone", "name", "empty"]):
        case "value":
            cells = table[name].astype(object).tolist()
            cells[random.randrange(len(cells))] = random.choice([None, -1, 0, 1.5, 1e300, math.nan, math.inf, 2**62])
            table[name] = cells if random.random() < 0.6 else pd.Series(list(map(str, cells)), dtype="category")
        case "gone":
            del table[name]
        case "name":
            table = table.rename(columns={name: random.choice(["", name.upper(), "x "])})
        case _:
            table = table[:0]
    try:
        table.to_parquet(written)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):  # such a column has no place in Parquet
        return data[: random.randrange(len(data))]
    return written.getvalue()


def _yaml(random: Random, data: bytes) -> bytes:
    changed = _flat(_tree(random, yaml.safe_load(data)))
    text = yaml.safe_dump(changed, allow_unicode=random.random() < 0.5, default_flow_style=random.choice([None, True]))
    return text.replace("DEEP", "[" * 300 + "]" * 300).encode("utf-8", "surrogatepass")


def _header(random: Random, data: bytes) -> bytes:
    """The header of a safetensors file, and its length."""
    length = int.from_bytes(data[:8], "little")
    header = _dumped(_tree(random, json.loads(data[8 : 8 + length])), random)
    stated = random.choice([len(header)] * 4 + [0, 1 << 40])
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def _archive(random: Random, data: bytes) -> bytes:
    """A zip with a member of another name, twice, not there, or damaged."""
    written, names = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data)).namelist()
    chosen, way = random.choice(names), random.choice(["name", "gone", "twice", "damaged"])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        for name in names:
            inside, own = old.read(name), name == chosen
            if own and way == "damaged":
                inside = damage(random, name, inside)
            if own and way == "name":
                name = random.choice([name.upper(), f"x/{name}", f"x\\{name}", name.replace("/", "\\"), "x"])
            if not (own and way == "gone"):
                new.writestr(name, inside)
            if own and way == "twice":
                new.writestr(f"again/{name}", inside)
    return written.getvalue()


FORMS: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": _json, ".jsonl": _lines, ".csv": _cells, ".parquet": _parquet, ".yaml": _yaml, ".safetensors": _header,
    ".zip": _archive,
}  # fmt: skip
