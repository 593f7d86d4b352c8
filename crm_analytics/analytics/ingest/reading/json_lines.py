"""Reads JSON Lines, one object per line: its keys are the headers, and its values become the texts of cells.

The keys may differ from line to line, so the file is read twice: once for all keys, and then for the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.reading.csv_records import (
    MAX_RECORD,
    PIECE,
    RECORDS_PER_BLOCK,
    Block,
    LazyColumns,
    RecordTooLong,
)
from crm_analytics.analytics.ingest.reading.encoding import utf8_blocks
from crm_analytics.analytics.ingest.reading.pull_line import (
    Pull,
    damaged_line,
    read_pull,
    require_records,
)
from crm_analytics.analytics.ingest.storage.landing import Content

#: A sheet has fewer columns in practice, and an object whose keys are data has more.
MAX_KEYS = 2000
#: A number with more zeros than this in front or behind stays as it was written, for a rule to refuse.
_MOST_ZEROS = 30

_ONE_OBJECT = "one JSON object per line"
_NOT_AN_OBJECT = Reason("not_a_json_object", accepted=_ONE_OBJECT)
_REPEATED_KEY = Reason("repeated_key", accepted="each key once in an object")


class _Number(str):
    """A number, as it was written."""

    __slots__ = ()


class _Refused(ValueError):
    """Raised for a line that is no record."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code)
        self.reason = reason


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Refused(_REPEATED_KEY)
    return found


def _no_number(name: str) -> NoReturn:
    # NaN and Infinity, which are no JSON
    raise _Refused(_NOT_AN_OBJECT)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats, parse_float=_Number, parse_int=_Number, parse_constant=_no_number
)


def _read(line: bytes) -> dict[str, Any]:
    """Returns a line's object. Raises _Refused."""
    try:
        value = _DECODER.decode(line.decode())
    except _Refused:
        raise
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _Refused(_NOT_AN_OBJECT)
    return value


def cell_text(value: Any) -> str:
    """Returns a value as the text that a CSV export would have.

    Texts and numbers as they are written, a list of them joined by commas, a list of objects with names as these names;
    anything else as JSON.
    """
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _Number():
            return _plain(value)
        case str():
            return _storable(value)
        case list():
            return _storable(_joined(value))
    return _storable(_as_json(value))


def _plain(number: str) -> str:
    """Returns a number without an exponent, unless that would take many zeros."""
    if "e" not in number and "E" not in number:
        return number
    try:
        value = Decimal(number)
    except InvalidOperation:
        return number
    return format(value, "f") if abs(value.adjusted()) <= _MOST_ZEROS else number


def _storable(text: str) -> str:
    """Returns a text without what PostgreSQL doesn't store: NUL and halves of characters, which JSON can escape."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def _joined(values: list[Any]) -> str:
    found = [value for value in values if value is not None]
    if found and all(isinstance(value, dict) for value in found):
        found = [value.get("name", value.get("Name")) for value in found]
    if all(isinstance(value, str) for value in found):
        return ", ".join(_plain(value) if isinstance(value, _Number) else value for value in found)
    return _as_json(values)


def _as_json(value: Any) -> str:
    match value:
        case _Number():
            return str(value)
        case dict():
            return (
                "{" + ", ".join(f"{_as_json(key)}: {_as_json(inner)}" for key, inner in value.items()) + "}"
            )
        case list():
            return "[" + ", ".join(map(_as_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class _Line(NamedTuple):
    number: int  #: in the file, from 1
    text: bytes
    ended: bool  #: by a newline


def _lines(content: Content, encoding: str) -> Iterator[_Line]:
    """Yields the lines that aren't blank. Raises RecordTooLong."""
    pending, number = b"", 0
    for block in utf8_blocks(content, encoding):
        *lines, pending = (pending + block).split(b"\n")
        for text in lines:
            number += 1
            if len(text) > MAX_RECORD:
                raise RecordTooLong(number, number)
            if text.strip():
                yield _Line(number, text, ended=True)
        if len(pending) > MAX_RECORD:
            raise RecordTooLong(number + 1, number + 1)
    if pending.strip():
        yield _Line(number + 1, pending, ended=False)


@dataclass(frozen=True)
class JsonLines:
    """What the whole file tells before its records are read."""

    content: Content
    encoding: str
    keys: list[str]  #: of all records, in the order in which they first come
    pull: Pull | None
    first_line: int  #: of the records

    @property
    def headers(self) -> list[str]:
        """Returns the keys as the cells of a header."""
        return list(map(_storable, self.keys))

    def blocks(self, needed: Iterable[int] | None) -> Iterator[Block]:
        """Yields the records; `needed` are positions of keys that are used for every record, None: all."""
        records: list[dict[str, Any]] = []
        numbers: list[int] = []
        defects: dict[int, Reason] = {}
        size = 0
        needed = range(len(self.keys)) if needed is None else sorted(needed)
        for line in _lines(self.content, self.encoding):
            if line.number < self.first_line:
                continue
            try:
                record = _read(line.text)
            except _Refused as refused:
                # the quarantine has the line in the first column
                record = {self.keys[0]: line.text.decode()}
                defects[len(records)] = refused.reason
            records.append(record)
            numbers.append(line.number)
            size += len(line.text)
            if size >= PIECE or len(records) >= RECORDS_PER_BLOCK:
                yield self._block(records, numbers, defects, needed)
                records, numbers, defects, size = [], [], {}, 0
        if records:
            yield self._block(records, numbers, defects, needed)

    def _block(
        self,
        records: list[dict[str, Any]],
        numbers: list[int],
        defects: dict[int, Reason],
        needed: Iterable[int],
    ) -> Block:
        lines = np.array(numbers, dtype=np.int64)
        columns = LazyColumns(len(self.keys), _columns_of(self.keys, records), needed)
        return Block(columns, len(records), lambda: lines, defects)


def _columns_of(
    keys: list[str], records: list[dict[str, Any]]
) -> Callable[[Iterable[int]], dict[int, pa.Array]]:
    def make(positions: Iterable[int]) -> dict[int, pa.Array]:
        return {
            position: pa.array([cell_text(record.get(keys[position])) for record in records], pa.string())
            for position in positions
        }

    return make


def survey(content: Content, encoding: str) -> JsonLines:
    """Reads a file once, for its keys and what its first line says.

    Raises:
        RefusedFile: if it is cut off, has other records than were pulled, too many keys, or no object at all.
    """
    keys: dict[str, None] = {}
    pull: Pull | None = None
    first, records = 1, 0
    try:
        for line in _lines(content, encoding):
            try:
                record = _read(line.text)
            except _Refused as refused:
                if not line.ended and (keys or pull or not records):
                    raise _cut_off(content, line) from refused
                records += 1
                continue
            if not records and pull is None:
                try:
                    pull = read_pull(record)
                except ValueError as error:
                    raise damaged_line(content) from error
                if pull is not None:
                    first = line.number + 1
                    continue
            records += 1
            keys.update(dict.fromkeys(record))
            if len(keys) > MAX_KEYS:
                raise _too_many_keys(content, line)
    except RecordTooLong as error:
        raise RefusedFile(content.name, error.reason, place=f"line {error.line}") from error
    if pull is not None:
        require_records(content, pull, records)
    if records and not keys:
        remedy = "export the file again as JSON Lines or CSV"
        reason = Reason("not_json_lines", accepted=_ONE_OBJECT, remedy=remedy)
        raise RefusedFile(content.name, reason, place=f"line {first}")
    return JsonLines(content, encoding, list(keys), pull, first)


def _cut_off(content: Content, line: _Line) -> RefusedFile:
    reason = Reason(
        "last_line_cut_off",
        found=f"{len(line.text):,} bytes without an end",
        accepted=f"{_ONE_OBJECT}, the last one complete, too",
        remedy="copy, export or pull the file again",
    )
    return RefusedFile(content.name, reason, place=f"line {line.number}")


def _too_many_keys(content: Content, line: _Line) -> RefusedFile:
    reason = Reason(
        "too_many_keys",
        found=f"more than {MAX_KEYS:,} different keys up to this line",
        accepted="objects with the same keys, as the columns of a table",
        remedy="export the records with a key for each column, and data only in the values",
    )
    return RefusedFile(content.name, reason, place=f"line {line.number}")
