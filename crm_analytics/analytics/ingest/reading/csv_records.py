"""Splits CSV text into records: on a fast path where quoting is clean, carefully elsewhere.

Lines of the UTF-8 text end with a newline, which may have a carriage return before it; cells get plain newlines. While
every quote is where RFC 4180 wants it, the parity of quotes tells where records end, and pyarrow splits them. The csv
module splits pieces with a stray quote or with records of different widths, record by record.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.reading.encoding import with_plain_newlines
from crm_analytics.core.wording import counted

PIECE = 3 << 20
MAX_RECORD = 16 << 20
RECORDS_PER_BLOCK = 20_000
csv.field_size_limit(MAX_RECORD)
# pyarrow's own allocator soon gives memory back to the kernel, and a tenth of the reader's time went into getting it anew
pa.set_memory_pool(pa.system_memory_pool())


class Unsplittable(Exception):
    """Where the next record ends cannot be told: the record (from 1 after the header) and its line in the file."""

    reason: ClassVar[Reason]

    def __init__(self, record: int, line: int) -> None:
        super().__init__(f"record {record}, line {line}")
        self.record = record
        self.line = line


class QuoteNeverCloses(Unsplittable):
    """A quote opens in this record and does not close, or not within `MAX_RECORD`."""

    reason = Reason(
        "quote_never_closes",
        accepted="quotes in pairs",
        remedy="export the file again (it may have been cut off), or close the quote and keep the new file",
    )


class RecordTooLong(Unsplittable):
    """The record is longer than `MAX_RECORD`, and no quote is open."""

    reason = Reason(
        "record_too_long",
        accepted=f"at most {MAX_RECORD:,} bytes",
        remedy="shorten the cell, or export the file without its column",
    )


class LazyColumns:
    """A piece's columns by position. Those that the source has no use for are made only if a message needs them.

    Making all 44 columns of an export takes nearly twice as long as making the eleven that matter.
    """

    def __init__(
        self, width: int, make: Callable[[Iterable[int]], dict[int, pa.Array]], needed: Iterable[int]
    ) -> None:
        self._width, self._make = width, make
        self._made = make(needed)

    def __len__(self) -> int:
        return self._width

    def __getitem__(self, position: int) -> pa.Array:
        if position not in self._made:
            self._made |= self._make(set(range(self._width)) - self._made.keys())
        return self._made[position]

    def __iter__(self) -> Iterator[pa.Array]:
        return (self[position] for position in range(self._width))


@dataclass
class Block:
    """Some records as columns of text, as wide as the header."""

    columns: list[pa.Array] | LazyColumns
    length: int
    lines: Callable[[], npt.NDArray[np.int64]]  #: the line in the file where each record begins
    defects: dict[int, Reason] = field(default_factory=dict)  #: row -> why it is not a record
    extra_cells: dict[int, list[str]] = field(default_factory=dict)  #: row -> cells after the header's last


def block_of_rows(
    rows: list[list[str]], lines: list[int], width: int, defects: dict[int, Reason], least: int | None = None
) -> Block:
    """Makes a block of records that were split one by one; records that are too short or too long become defects.

    Args:
        rows: the records' cells; they are brought to the header's width.
        lines: where each record begins.
        width: the header's.
        defects: row -> why it is not a record.
        least: how many cells a record must have, if the header's last ones are blank.
    """
    extra_cells: dict[int, list[str]] = {}
    defects = dict(defects)
    for number, row in enumerate(rows):
        if len(row) == width:
            continue
        found, extra = len(row), row[width:]
        rows[number] = row[:width] + [""] * (width - found)
        if found < (width if least is None else least) or any(cell.strip() for cell in extra):
            extra_cells[number] = extra
            accepted = f"{counted(width, 'cell')}, as in the header"
            reason = Reason("wrong_number_of_cells", found=counted(found, "cell"), accepted=accepted)
            defects.setdefault(number, reason)
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    first_lines = np.array(lines, dtype=np.int64)
    return Block(columns, len(rows), lambda: first_lines, defects, extra_cells)


def _clean(buffer: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp], separator: int) -> bool:
    """Returns whether every opening quote begins a cell and every closing one ends it (a doubled quote does both)."""
    if not len(quotes):
        return True
    opening, closing = quotes[::2], quotes[1::2]
    before = buffer[opening[opening > 0] - 1]
    after = buffer[closing[closing < len(buffer) - 1] + 1]
    return bool(
        np.all((before == separator) | (before == 10) | (before == 34))
        and np.all((after == separator) | (after == 10) | (after == 34) | (after == 13))
    )


def _without_returns(texts: pa.Array) -> pa.Array:
    """Returns a column's cells with plain newlines."""
    data = texts.buffers()[2]
    if data is None or not (np.frombuffer(data, dtype=np.uint8) == 13).any():
        return texts
    return pc.replace_substring(texts, "\r\n", "\n")


def _last_record_end(piece: bytes, quotes: npt.NDArray[np.intp]) -> int:
    """Returns the offset after the last newline outside quotes, 0 without one."""
    end = len(piece)
    while True:
        newline = piece.rfind(b"\n", 0, end)
        if newline < 0:
            return 0
        before = int(np.searchsorted(quotes, newline))
        if before % 2 == 0:
            return newline + 1
        # The newline is inside the cell that this quote opens.
        end = int(quotes[before - 1])


class _Text:
    """Hands lines to the csv module, remembers those of the current record, and can take them back."""

    def __init__(self, data: bytes, blocks: Iterator[bytes] | None = None) -> None:
        self._data = data
        self._at = 0
        self._blocks = blocks or iter(())
        self._waiting: deque[str] = deque()
        self._size = 0
        self.record: list[str] = []
        #: lines and bytes of the records before the current one
        self.lines = 0
        self.handed = 0

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
        """Forgets the lines of the record, which is complete."""
        self.lines += len(self.record)
        self.handed += sum(len(line.encode()) for line in self.record)
        self.record, self._size = [], 0

    def take_back(self) -> None:
        """Reduces the current record to its first line; the other lines are handed out again."""
        self._waiting.extendleft(reversed(self.record[1:]))
        del self.record[1:]

    @property
    def rest(self) -> bytes:
        """Returns what was not handed out, or was taken back."""
        return "".join(self._waiting).encode() + self._data[self._at :]


class _TooLong(Exception):
    pass


BAD_QUOTES = Reason(
    "text_after_a_closing_quote", accepted="quotes around the whole cell, and doubled quotes inside it"
)


@dataclass
class Splitter:
    """Splits the data after the header into blocks of records, and knows where in the file it is."""

    delimiter: str
    width: int  #: the header's
    line: int  #: the next record's first line
    least: int | None = None  #: see `block_of_rows`
    needed: frozenset[int] | None = None  #: positions of columns that are used for every record; None: all
    records: int = 0

    def split(self, blocks: Iterator[bytes]) -> Iterator[Block]:
        """Yields the records; blank lines are not records. Raises Unsplittable.

        Memory is bounded by the size of a piece.
        """
        pending = b""
        for block in chain(blocks, [b""]):
            last = not block
            pending += block
            if not pending or (len(pending) < PIECE and not last):
                continue
            buffer = np.frombuffer(pending, dtype=np.uint8)
            quotes = np.flatnonzero(buffer == 34)
            if not _clean(buffer, quotes, ord(self.delimiter)) or (last and len(quotes) % 2):
                pending = with_plain_newlines(pending)
                text = _Text(pending, map(with_plain_newlines, blocks))
                yield from self._carefully(text, None if last else len(pending))
                pending = text.rest
                continue
            end = len(pending) if last else _last_record_end(pending, quotes)
            if not end:
                if len(pending) > MAX_RECORD:
                    problem = QuoteNeverCloses if len(quotes) % 2 else RecordTooLong
                    raise problem(self.records + 1, self.line)
                continue
            piece, pending = memoryview(pending)[:end], pending[end:]
            result = self._fast(piece, quotes[: int(np.searchsorted(quotes, end))])
            if result is None:
                yield from self._carefully(_Text(with_plain_newlines(bytes(piece))))
                continue
            self.records += result.length
            self.line += int(np.count_nonzero(buffer[:end] == 10))
            yield result

    def _fast(self, piece: memoryview, quotes: npt.NDArray[np.intp]) -> Block | None:
        """Splits the piece with pyarrow; returns None if its records differ in width."""
        names = [str(number) for number in range(self.width)]

        def make(positions: Iterable[int]) -> dict[int, pa.Array]:
            wanted = [names[position] for position in positions]
            table = pacsv.open_csv(
                pa.BufferReader(piece),
                read_options=pacsv.ReadOptions(
                    use_threads=False, column_names=names, block_size=len(piece) + 1
                ),
                parse_options=pacsv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    check_utf8=False,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                    include_columns=wanted,
                ),
            ).read_all()
            return {int(name): _without_returns(table[name].combine_chunks()) for name in table.column_names}

        needed = range(self.width) if self.needed is None else sorted(self.needed)
        try:
            columns = LazyColumns(self.width, make, needed)
        except pa.ArrowInvalid:
            return None
        line = self.line

        @cache
        def lines() -> npt.NDArray[np.int64]:
            text = np.append(np.frombuffer(piece, dtype=np.uint8), np.uint8(10))
            newlines = np.flatnonzero(text[:-1] == 10)
            # Which of the newlines are outside quotes and end a record.
            ends = np.flatnonzero(np.searchsorted(quotes, newlines) % 2 == 0)
            offsets = np.concatenate(([0], newlines[ends] + 1))
            filled = (text[offsets] != 10) & (text[offsets] != 13)
            first_lines: npt.NDArray[np.int64] = (line + np.concatenate(([0], ends + 1)))[filled]
            return first_lines

        return Block(columns, len(columns[needed[0]]), lines)

    def _carefully(self, text: _Text, enough: int | None = None) -> Iterator[Block]:
        """Splits records with the csv module, strictly, until `enough` bytes are read or none is left.

        If a record's quotes do not match, only its first line is the defect. Reading goes on with the next line, which
        keeps the records after it.
        """
        reader = csv.reader(text, delimiter=self.delimiter, strict=True)
        rows: list[list[str]] = []
        numbers: list[int] = []
        defects: dict[int, Reason] = {}
        more = True
        while more:
            line = self.line + text.lines
            try:
                row = next(reader, None)
            except (csv.Error, _TooLong) as error:
                record = self.records + len(rows) + 1
                if isinstance(error, _TooLong) and not text.record:
                    raise RecordTooLong(record, line) from error
                if isinstance(error, _TooLong) or "unexpected end of data" in str(error):
                    raise QuoteNeverCloses(record, line) from error
                text.take_back()
                row = next(csv.reader(text.record, delimiter=self.delimiter))
                defects[len(rows)] = BAD_QUOTES
            if row:
                rows.append(row)
                numbers.append(line)
            text.next_record()
            more = row is not None and (enough is None or text.handed < enough)
            if rows and (not more or len(rows) >= RECORDS_PER_BLOCK):
                self.records += len(rows)
                yield block_of_rows(rows, numbers, self.width, defects, self.least)
                rows, numbers, defects = [], [], {}
        self.line += text.lines
