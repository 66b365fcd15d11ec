"""Reads one large JSON object as a stream, so that neither the file nor its longest list is ever held."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import msgspec

from ..store.limits import check_limit

FEW = 8  # cuts that are tried where records are long: most may lie within one


def _integer(text: str) -> int | float:
    """Python refuses to read thousands of digits; such a number is as good as infinite."""
    return int(text) if len(text) < 400 else float(text)


def _ends_early(data: bytes) -> bool:
    """Is the value that the data starts with cut off? Much faster than to decode it; may be unsure, which is a no: to
    msgspec, half a surrogate pair near the end is cut off, too."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return "truncated" in str(error) and b"\\u" not in data[-16:]
    return False


class JsonStream:
    """Reads one large JSON object key by key, and a list of records a few megabytes at a time, or a record if it is
    larger (up to the limit ``json_value``).

    A list is cut at the last "}, {" in the buffer. Such a cut may lie inside a record or a string, but then what is
    before it is not valid JSON; so a cut is right exactly when what is before it decodes.

    Raises:
        ValueError: from every method, for what is not JSON in UTF-8: one line that names the source and the byte.
    """

    CHUNK = 1 << 18
    _cut = re.compile(rb"\}\s*,\s*(?=\{)")
    _scan = json.JSONDecoder(parse_int=_integer).raw_decode

    def __init__(self, file: Any, source: str) -> None:
        self.file, self.source = file, source
        self.buffer = b""
        self.offset = 0  # of the buffer's first byte in the file

    def each_key(self) -> Iterator[str]:
        """The keys of the outermost object; the caller consumes each value before asking for the next key."""
        self._grow()
        if self.buffer.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.fail("text in UTF-16; save it as UTF-8")
        self._drop(3 if self.buffer.startswith(b"\xef\xbb\xbf") else 0)
        if self._peek() == b"[":
            raise self.fail("a list, as results are, where an object is expected")
        self._take(b"{")
        if self._peek() == b"}":
            return
        while True:
            if self._peek() != b'"':
                raise self.fail(f"invalid JSON: expected a key, found {self.buffer[:1]!r}")
            key = self.value()
            self._take(b":")
            yield key
            if self._take(b",", b"}") == b"}":
                break
        if rest := (self.buffer + self.file.read(self.CHUNK)).strip():
            raise self.fail(f"invalid JSON: text after the end, {rest[:20]!r}")

    def skip(self, key: str) -> None:
        """Leave the next value out, a list some records at a time."""
        if self._peek() != b"[":
            self.value()
            return
        for _ in self.records(key, msgspec.Raw, lambda _, value: value):
            pass

    def value(self) -> Any:
        """The next value, decoded whole."""
        self._peek()
        while (found := self._whole_value(self.buffer)) is None:
            self._grow()
        value, length = found
        self._drop(length)
        return value

    def records(self, key: str, kind: type, mend: Callable[[int, Any], Any]) -> Iterator[list]:
        """The records of a list, decoded as ``kind``, some thousands at a time.

        Where not all of some thousands are of that kind, each of them goes through ``mend``: from its place in the list
        and its value, in Python's own types, to a ``kind``, or to None where it is to be left out.
        """
        if self._peek() != b"[":
            raise self.fail(f"the value of {key!r} must be a list, found {self.buffer[:1]!r}")
        self._drop(1)
        decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        place, ended = 0, False
        while not ended:
            cuts = self._cuts(1 << 12) or self._cuts(1 << 16) or self._cuts(len(self.buffer))[-FEW:]
            found = self._decode(decoder, *cuts.pop()) if cuts else None
            if found is None and (last := self._whole_value(b"[" + self.buffer, -1)) is not None:
                found, ended = last[0], True
                self._drop(last[1] - 1)
            while found is None and cuts:
                found = self._decode(decoder, *cuts.pop())
            if found is None:
                self._grow()
                continue
            typed = bool(found) and isinstance(found[0], kind)
            yield found if typed else [r for r in map(mend, count(place), found) if r is not None]
            place += len(found)
            self.buffer += b"" if ended else self.file.read(self.CHUNK)

    def _cuts(self, within: int) -> list[tuple[int, int]]:
        """Where the records before a cut end and those after it start, of the buffer's last bytes."""
        return [(cut.start() + 1, cut.end()) for cut in self._cut.finditer(self.buffer, len(self.buffer) - within)]

    def _decode(self, decoder: msgspec.json.Decoder, end: int, after: int) -> list | None:
        """The records before a cut, which are then dropped; None where the cut is not between two records."""
        text = b"".join((b"[", memoryview(self.buffer)[:end], b"]"))
        for decode in (decoder.decode, msgspec.json.decode):
            try:
                records = decode(text)
                break
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                continue
        else:  # Python writes NaN and Infinity, which only its own decoder reads
            if (found := self._whole_value(text, -1)) is None or found[1] < len(text):
                return None
            records = found[0]
        self._drop(after)
        return records

    def _whole_value(self, data: bytes, at: int = 0) -> tuple[Any, int] | None:
        """The value that the data starts with and its length in bytes; None where the data ends too early.

        ``at`` is where the data starts, from the buffer's first byte.
        """
        if len(data) > 4 * self.CHUNK and _ends_early(data):
            return None
        text = data.decode("utf-8", "surrogateescape")
        try:
            value, end = self._scan(text)
        except json.JSONDecodeError as error:
            if error.msg.startswith("Unterminated") or error.pos > len(text) - 16:  # 16: a cut number or literal
                return None
            at += len(text[: error.pos].encode(errors="surrogateescape"))
            raise self.fail(f"invalid JSON ({error.msg})", at) from None
        except RecursionError:
            raise self.fail("values nested too deeply", at) from None
        if end == len(text) and not isinstance(value, str | list | dict):
            return None  # a number may go on
        return value, len(text[:end].encode("utf-8", "surrogateescape"))

    def fail(self, problem: str, at: int = 0) -> ValueError:
        """The error that names the byte, ``at`` bytes from the buffer's first."""
        return ValueError(f"{self.source}: {problem} near byte {self.offset + at:,}")

    def _grow(self) -> None:
        """Read on, more each time; whoever needs more than there is has a truncated file."""
        check_limit("json_value", len(self.buffer), f"{self.source}: the bytes of a value near byte {self.offset:,}")
        if not (chunk := self.file.read(max(self.CHUNK, len(self.buffer)))):
            raise self.fail("the JSON ends too early, the file is truncated", len(self.buffer))
        self.buffer += chunk

    def _drop(self, n: int) -> None:
        self.buffer, self.offset = self.buffer[n:], self.offset + n

    def _peek(self) -> bytes:
        """The next byte that is not white space."""
        while not (stripped := self.buffer.lstrip(b" \t\r\n")):
            self._drop(len(self.buffer))
            self._grow()
        self._drop(len(self.buffer) - len(stripped))
        return self.buffer[:1]

    def _take(self, *expected: bytes) -> bytes:
        if (byte := self._peek()) not in expected:
            raise self.fail(f"invalid JSON: expected {' or '.join(e.decode() for e in expected)}, found {byte!r}")
        self._drop(1)
        return byte
