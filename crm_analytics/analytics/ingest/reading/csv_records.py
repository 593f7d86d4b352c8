"""CSV text split into records: a fast exact path for clean quoting, a careful one for the rest.

Both see UTF-8 with plain newlines. While every quote is where RFC 4180 wants it, records can be cut by the
parity of quotes and pyarrow splits them. Pieces with a stray quote, or with records of different widths, are
split by the csv module, record by record.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

PIECE = 4 << 20
MAX_RECORD = 16 << 20
RECORDS_PER_BLOCK = 20_000
csv.field_size_limit(MAX_RECORD)


class Unsplittable(Exception):
    """No record can be told from here on: the record (counted from 1 within the data) and its line."""

    def __init__(self, record: int, line: int) -> None:
        super().__init__(f"record {record}, line {line}")
        self.record = record
        self.line = line


class QuoteNeverCloses(Unsplittable):
    """A quote opened in this record and never closed (or not within `MAX_RECORD`)."""


class RecordTooLong(Unsplittable):
    """The record goes beyond `MAX_RECORD`, and no quote is open."""


@dataclass
class Block:
    """Some records as columns of text, as wide as the header."""

    columns: list[pa.Array]
    length: int
    lines: Callable[[], npt.NDArray[np.int64]]  # each record's first line in the file
    defects: dict[int, str] = field(default_factory=dict)  # row -> why it cannot be a record
    beyond: dict[int, list[str]] = field(default_factory=dict)  # row -> cells beyond the header's


def block_of_rows(
    rows: list[list[str]], lines: list[int], width: int, defects: dict[int, str], least: int | None = None
) -> Block:
    """A block of records that were split one by one; too short and too long ones become defects.

    `width` is the header's; `least` are the cells that a record must have (those behind have no header).
    """
    beyond: dict[int, list[str]] = {}
    defects = dict(defects)
    for number, row in enumerate(rows):
        if len(row) == width:
            continue
        found = len(row)
        extra = row[width:]
        if found < width:
            rows[number] = row + [""] * (width - found)
        else:
            rows[number] = row[:width]
        if found < (width if least is None else least) or any(cell.strip() for cell in extra):
            beyond[number] = extra
            defects.setdefault(
                number, f"the record has {found} cells where the header has {width}; accepted: {width}"
            )
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return Block(columns, len(rows), lambda: np.array(lines, dtype=np.int64), defects, beyond)


def split(
    blocks: Iterator[bytes], delimiter: str, width: int, first_line: int, least: int | None = None
) -> Iterator[Block]:
    """The records of the data (what follows the header), in blocks; blank lines are not records.

    Memory is bounded by the size of a piece. `least`: see `block_of_rows`. Raises Unsplittable.
    """
    pending = b""
    line = first_line
    records = 0
    separator = ord(delimiter)
    for block in chain(blocks, [b""]):
        last = not block
        pending += block
        if not pending or (len(pending) < PIECE and not last):
            continue
        buffer = np.frombuffer(pending, dtype=np.uint8)
        quotes = np.flatnonzero(buffer == 34)
        if not _clean(buffer, quotes, separator) or (last and len(quotes) % 2):
            text = _Text(pending, blocks)
            enough = None if last else len(pending)
            for part in _carefully(text, delimiter, width, line, records, least, enough):
                records += part.length
                yield part
            line += text.lines
            pending = text.rest
            continue
        end = len(pending) if last else _last_record_end(pending, quotes)
        if not end:
            if len(pending) > MAX_RECORD:
                problem = QuoteNeverCloses if len(quotes) % 2 else RecordTooLong
                raise problem(records + 1, line)
            continue
        piece, pending = pending[:end], pending[end:]
        inside = quotes[: int(np.searchsorted(quotes, end))]
        result = _fast(piece, inside, delimiter, width, line)
        for part in [result] if result else _carefully(_Text(piece), delimiter, width, line, records, least):
            records += part.length
            yield part
        line += piece.count(b"\n")


def _clean(buffer: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp], separator: int) -> bool:
    """Whether every opening quote begins a cell and every closing one ends it (doubled ones do both)."""
    if not len(quotes):
        return True
    opening, closing = quotes[::2], quotes[1::2]
    before = buffer[opening[opening > 0] - 1]
    after = buffer[closing[closing < len(buffer) - 1] + 1]
    return bool(
        np.all((before == separator) | (before == 10) | (before == 34))
        and np.all((after == separator) | (after == 10) | (after == 34))
    )


def _last_record_end(piece: bytes, quotes: npt.NDArray[np.intp]) -> int:
    """The offset behind the last newline that is outside quotes; 0 where there is none."""
    end = len(piece)
    while True:
        newline = piece.rfind(b"\n", 0, end)
        if newline < 0:
            return 0
        before = int(np.searchsorted(quotes, newline))
        if before % 2 == 0:
            return newline + 1
        end = int(quotes[before - 1])  # inside the cell that this quote opens


def _fast(piece: bytes, quotes: npt.NDArray[np.intp], delimiter: str, width: int, line: int) -> Block | None:
    """The piece split by pyarrow; None where records differ in width."""
    names = [str(number) for number in range(width)]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(piece),
            read_options=pacsv.ReadOptions(use_threads=False, column_names=names, block_size=len(piece) + 1),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                check_utf8=False, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None

    def lines() -> npt.NDArray[np.int64]:
        newlines = np.flatnonzero(np.frombuffer(piece, dtype=np.uint8) == 10)
        ends = np.flatnonzero(
            np.searchsorted(quotes, newlines) % 2 == 0
        )  # the numbers of newlines that end records
        offsets = np.concatenate(([0], newlines[ends] + 1))
        filled = np.diff(np.append(offsets, len(piece) + 1)) > 1
        return (line + np.concatenate(([0], ends + 1)))[filled]

    columns = [column.combine_chunks() for column in table.columns]
    return Block(columns, table.num_rows, lines)


class _Text:
    """Hands lines to the csv module, remembers those of the current record and can take them back."""

    def __init__(self, data: bytes, blocks: Iterator[bytes] | None = None) -> None:
        self._data = data
        self._at = 0
        self._blocks = blocks or iter(())
        self._waiting: deque[str] = deque()
        self._size = 0
        self.record: list[str] = []
        self.lines = 0  # of the records before the current one
        self.handed = 0  # bytes of these records

    def __iter__(self) -> _Text:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._next_line()
        if self._size + len(line) > MAX_RECORD:
            raise _TooLong
        self.record.append(line)
        self._size += len(line)
        return line

    def _next_line(self) -> str:
        end = self._data.find(b"\n", self._at) + 1
        while not end:
            searched = len(self._data) - self._at
            if searched > MAX_RECORD:
                raise _TooLong
            block = next(self._blocks, b"")
            self._data, self._at = self._data[self._at :] + block, 0
            if not block:
                end = len(self._data)
                break
            end = self._data.find(b"\n", searched) + 1
        if end == self._at:
            raise StopIteration
        line = self._data[self._at : end]
        self._at = end
        return line.decode()

    def next_record(self) -> None:
        """Forget the lines of the record that is complete."""
        self.lines += len(self.record)
        self.handed += sum(len(line.encode()) for line in self.record)
        self.record, self._size = [], 0

    def take_back(self) -> None:
        """The current record is its first line alone: the others are handed out again."""
        self._waiting.extendleft(reversed(self.record[1:]))
        del self.record[1:]

    @property
    def rest(self) -> bytes:
        """What was not handed out, or was taken back."""
        return "".join(self._waiting).encode() + self._data[self._at :]


class _TooLong(Exception):
    pass


BAD_QUOTES = (
    "the record's quotes do not fit (text stands beside a quoted cell's end); accepted: a cell with quotes stands in "
    "quotes itself, those inside it doubled"
)


def _carefully(
    text: _Text,
    delimiter: str,
    width: int,
    first_line: int,
    records: int,
    least: int | None,
    enough: int | None = None,
) -> Iterator[Block]:
    """Records split by the csv module, strictly, until `enough` bytes are through or none is left.

    Where a record's quotes do not fit, its first line alone is the bad record and reading goes on with the next
    line, so that its neighbors are kept.
    """
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    defects: dict[int, str] = {}
    more = True
    while more:
        line = first_line + text.lines
        try:
            row = next(reader, None)
        except (csv.Error, _TooLong) as error:
            record = records + len(rows) + 1
            if isinstance(error, _TooLong) and not text.record:
                raise RecordTooLong(record, line) from error
            if isinstance(error, _TooLong) or "unexpected end of data" in str(error):
                raise QuoteNeverCloses(record, line) from error
            text.take_back()
            row = next(csv.reader(text.record, delimiter=delimiter))
            defects[len(rows)] = BAD_QUOTES
        if row:
            rows.append(row)
            numbers.append(line)
        text.next_record()
        more = row is not None and (enough is None or text.handed < enough)
        if rows and (not more or len(rows) >= RECORDS_PER_BLOCK):
            yield block_of_rows(rows, numbers, width, defects, least)
            records += len(rows)
            rows, numbers, defects = [], [], {}
