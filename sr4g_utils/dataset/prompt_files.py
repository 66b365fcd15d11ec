"""Files of prompts as people have them: bytes to rows. :mod:`sr4g_utils.dataset.prompt_sets` knows what a row says.

A file is read as it was meant, or refused in one line that names the file, the row and the remedy.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..store.limits import check_limit
from ..store.settings import in_words

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
WRITTEN = ("prompt_id", "subject", "relation", "object", "caption")  # stay as they are written: 007, 1e5, NA
EACH = 1000  # rows between two looks at how many cells there are
_UNNAMED = "unnamed column"
AS_UTF8 = "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
_OTHERS = {  # what a file of another kind starts with
    b"PK\x03\x04": f"is a spreadsheet or another zip file; {AS_UTF8}",
    b"\xd0\xcf\x11\xe0": f"is an old spreadsheet; {AS_UTF8}",
    b"\xff\xfe": f"is UTF-16; {AS_UTF8}",
    b"\xfe\xff": f"is UTF-16; {AS_UTF8}",
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"PAR1": "is Parquet; let its name end in .parquet",
}
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # JSON for half of a surrogate pair


def read_rows(path: Path) -> pd.DataFrame | dict[int, Any]:
    """The rows of a file by their number in it, counted from 1 with the header (Parquet: from 1, without).

    Returns:
        Of Parquet, CSV and TSV a table: columns of ``WRITTEN`` as text without spaces around, ``prompt_id`` as whole
        numbers where all are written so, further columns as pandas reads them. Of JSON and JSON Lines the values, of
        ``.txt`` the lines that are not empty.

    Raises:
        ValueError: not such a file; it names the file, the row and the remedy.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: prompts are read from {', '.join(SUFFIXES)}; save it as one of them")
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in (".csv", ".tsv"):
        return _typed(read_cells(path))
    text = read_text(path)
    lines = numbered(text)
    return lines if suffix == ".txt" else _json(path, text, lines)


def _parquet(path: Path) -> pd.DataFrame:
    cells = 0
    with suppress(pa.ArrowException, OSError):  # what is wrong is said below
        cells = (about := pq.read_metadata(path)).num_rows * about.num_columns
    check_limit("cells", cells, f"{path}: its rows times columns")
    try:
        table = pd.read_parquet(path)
        if table.index.names != [None]:  # prompt_id, it may be
            table = table.reset_index()
    except Exception as error:  # Arrow's are of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as Parquet ({reason}); write it again") from None
    return table.set_axis(range(1, len(table) + 1))


def read_text(path: Path) -> str:
    """A text in UTF-8, without byte order marks. ValueError: it is none, or is empty; it names file, row and remedy."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no regular file; save what it holds as one")
    try:
        check_limit("prompt_bytes", path.stat().st_size, f"{path}: its bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    for start, what in _OTHERS.items():
        if data.startswith(start):
            raise ValueError(f"{path}: {what}")
    try:
        text = data.decode().replace("\ufeff", "")  # byte order marks, also of files put together
    except UnicodeDecodeError as error:
        row, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(f"{path}: row {row}: the byte 0x{byte:02x} is not UTF-8; {AS_UTF8}") from None
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: row {row}: holds a NUL, so it is UTF-16 or no text at all; {AS_UTF8}")
    if not text.strip():
        raise ValueError(f"{path}: is empty")
    return text


def numbered(text: str) -> dict[int, str]:
    """The lines that are not empty by their number, without spaces around them."""
    return {row: line.strip() for row, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()}


def read_cells(path: Path) -> pd.DataFrame:
    """A CSV as a spreadsheet saves it, with ``,``, ``;`` or tabs: every cell as text, without spaces around it.

    The index is the row's number in the file; rows without a value are left out.

    Raises:
        ValueError: not such a file; it names the file, the row and the remedy.
    """
    text = re.sub(r"\Asep=.(?=[\r\n])", "", read_text(path))  # a spreadsheet's own line
    delimiter = max(",;\t", key=re.split("[\r\n]", text.lstrip(), maxsplit=1)[0].count)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    names: list[str] = []
    rows: dict[int, list[str]] = {}
    try:
        for number, record in enumerate(records, 1):
            cells = [cell.strip() for cell in record]
            if any(cells) and not names:
                check_limit("cells", len(cells), f"{path}: its columns")
                names = _header(f"{path}: row {number}", cells)
            elif any(cells):  # spreadsheets leave rows of commas
                if len(rows) % EACH == 0:
                    check_limit("cells", len(names) * (len(rows) + 1), f"{path}: its rows times columns")
                rows[number] = _cells(f"{path}: row {number}", cells, len(names))
    except csv.Error as error:
        where = f"{path}: line {records.line_num}"
        raise ValueError(f"{where}: not readable ({error}); check its quotation marks") from None
    if not names:
        raise ValueError(f"{path}: is empty")
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=names, dtype=object)
    return table.loc[:, [not name.startswith(_UNNAMED) or table[name].astype(bool).any() for name in names]]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """What is not prompts' own as pandas reads it, and ids that are all written as whole numbers as numbers."""
    if further := [str(name) for name in table if name not in WRITTEN]:
        plain = io.StringIO(table[further].to_csv(index=False))
        table[further] = pd.read_csv(plain, skip_blank_lines=False).set_axis(table.index)
    if "prompt_id" in table and len(table) and table.prompt_id.str.fullmatch(r"(0|-?[1-9][0-9]{0,17})(\.0+)?").all():
        table["prompt_id"] = table.prompt_id.str.partition(".")[0].astype("int64")  # pandas may write 7 as 7.0
    return table


def _header(where: str, cells: list[str]) -> list[str]:
    names = [name.lower() if name.lower() in WRITTEN else name for name in cells]
    names = [name or f"{_UNNAMED} {i}" for i, name in enumerate(names, 1)]  # pandas writes its index without a name
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise ValueError(f"{where}: the column {twice!r} occurs twice; name one of them otherwise")
    return names


def _cells(where: str, cells: list[str], wanted: int) -> list[str]:
    """As many cells as the header has; what a row has too many of must be empty."""
    if any(cells[wanted:]):
        remedy = "put quotation marks around values that hold the delimiter"
        raise ValueError(f"{where}: has {len(cells)} values, but the header names {wanted} columns; {remedy}")
    return cells[:wanted] + [""] * (wanted - len(cells))


def _json(path: Path, text: str, lines: Mapping[int, str]) -> dict[int, Any]:
    """The values of a JSON list, or of JSON Lines whatever their file is called."""
    first = next(iter(lines.values()))
    several = len(lines) > 1 and first.startswith("{") and first.endswith("}")
    if first.startswith("[") or (path.suffix.lower() == ".json" and not several):
        values = parsed(text, str(path))
        if not isinstance(values, list):
            kind = in_words(type(values))
            raise ValueError(f"{path}: expected a list of prompts, found {kind}; write [{{...}}, ...], a prompt each")
        rows = dict(enumerate(values, 1))
    else:
        rows = {row: parsed(line, f"{path}: row {row}") for row, line in lines.items()}
    for row, value in rows.items() if _HALF.search(text) else ():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            half = "half a character (\\ud800 to \\udfff)"
            raise ValueError(f"{path}: row {row}: holds {half}; write all of it") from None
    return rows


def parsed(text: str, where: str) -> Any:
    """The value of a JSON text. ValueError: it is none, or nested too deeply; it says where."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
