"""Tells a file's summary lines from its records, block after block."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import InvalidValue, quotable
from crm_analytics.analytics.ingest.reading.csv_records import Block
from crm_analytics.analytics.ingest.reading.header import HeaderMatch
from crm_analytics.analytics.ingest.reading.totals import TotalLine, add_up, exact, tolerance
from crm_analytics.analytics.ingest.sources.declaration import FileFacts, Source, fold_header
from crm_analytics.analytics.ingest.values.column_types import Identifier, Mask, read_decimal, texts_at
from crm_analytics.analytics.ingest.values.patterns import have_only

#: What the label of a total looks like, and one that is nothing but a total's: `Total`, `Grand total: …`.
_LABEL = r"(?i)^\s*((sub|grand)[\s-]*)?totals?\b|\btotals?\s*:?\s*$|^\s*(average|avg\.?|mean)\s*(:.*)?$"
_PLAIN = re.compile(r"\s*(grand\s+)?totals?\s*(:.*)?", re.IGNORECASE | re.DOTALL)
#: The label of a line with the average of the records above it, which is no total.
_AVERAGE = re.compile(r"\s*(average|avg\.?|mean)\s*(:.*)?", re.IGNORECASE | re.DOTALL)
#: The label of a group's total: `Search Total`, `Subtotal`. The group is what precedes.
_OF_GROUP = re.compile(r"\s*(?P<group>.*?)[\s-]*\b((sub|grand)[\s-]*)?totals?\s*:?\s*", re.IGNORECASE)
#: A name that a record of its own rarely has, and the line with the sum of the records above it often has: none, or All.
_NO_NAME = r"(?i)^[\s\x{FEFF}\x{A0}-]*((sum|overall|all(\s\w+)?)\s*:?\s*)?$"
_EMPTY = r"^[\s\x{FEFF}\x{A0}]*$"
_NOTHING = re.compile(r"[\s\ufeff\u00a0-]*")
#: A line can add up the records since any of so many summary lines above it, or since the first record.
_REMEMBERED = 100


def first_texts(block: Block) -> tuple[Mask, dict[int, npt.NDArray[np.intp]]]:
    """Returns which rows are blank and, by position, the rows whose first text is there."""
    rows = np.arange(block.length)
    first: dict[int, npt.NDArray[np.intp]] = {}
    for position, column in enumerate(block.columns):
        if position == 0 and have_only(column, "!", "~"):
            return np.zeros(block.length, dtype=np.bool_), {0: rows}
        empty = pc.match_substring_regex(texts_at(column, rows), _EMPTY).to_numpy(zero_copy_only=False)
        first[position] = rows[~empty]
        rows = rows[empty]
        if not len(rows):
            break
    blank = np.zeros(block.length, dtype=np.bool_)
    blank[[row for row in rows.tolist() if not any(block.extra_cells.get(row, []))]] = True
    return blank, first


@dataclass
class SummaryLines:
    """The summary lines of one file, found block after block.

    `Total`, `Total: …` and `Grand total` without a date are summary lines. Any other label of a total (`Search Total`)
    makes one only if its amount is the sum of records above it, and `Average` only if it is their average; otherwise the
    line is a record, such as one whose name happens to end like this.
    """

    source: Source
    header: HeaderMatch
    facts: FileFacts
    #: Lines that are no records.
    lines: list[TotalLine] = field(default_factory=list)
    #: Lines read as records although they are sums of records above them: only the whole file tells what they are.
    doubtful: list[TotalLine] = field(default_factory=list)
    #: Lines that can be no records, and are not the sums that they should be.
    disagreeing: list[TotalLine] = field(default_factory=list)
    #: Lines whose total cannot be read.
    unread: list[str] = field(default_factory=list)
    #: Records with an amount so far, and their sum; doubtful lines left out.
    _records: int = 0
    _sum: Decimal = Decimal(0)
    #: The same at each place where the records that a later line adds up can begin.
    _marks: list[tuple[int, Decimal]] = field(default_factory=lambda: [(0, Decimal(0))])

    def whole(self) -> list[TotalLine]:
        """Returns the totals of the whole file, once it is read: not those that are sums of a part of its records.

        If records are left that belong to no such part, a plain total above them was meant for the whole file.
        """
        covered = 0
        for start, end in sorted(line.span for line in (*self.lines, *self.doubtful) if line.span):
            covered = max(covered, end) if start <= covered else covered
        return [
            line
            for line in (*self.lines, *(line for line in self.doubtful if line.sure))
            if line.span == (0, self._records) or (line.plain and (not line.span or covered < self._records))
        ]

    @property
    def has_groups(self) -> bool:
        """Returns whether the file states the sums of groups of records."""
        return any(line.span for line in (*self.lines, *self.doubtful))

    def judge(
        self, block: Block, first: dict[int, npt.NDArray[np.intp]], numbers: npt.NDArray[np.int64]
    ) -> Mask:
        """Returns which rows of a block are summary lines, and notes the totals that they state.

        Args:
            block: the block.
            first: by position, the rows whose first text is there.
            numbers: the records' numbers, by row.
        """
        summary = np.zeros(block.length, dtype=np.bool_)
        labels = self._labels(block, first)
        amounts = self._exact_amounts(block) if labels else None
        above, total, done = self._records, self._sum, 0
        for row, position in labels.items():
            if amounts is not None:
                passed = amounts.slice(done, row - done)
                above += len(passed) - passed.null_count
                total += add_up(passed)
            done = row + 1
            line = self._total_line(block, row, position, int(numbers[row]), (above, total))
            group = self._group_of(block, row, position, line)
            if group is None:
                # the next slice begins with this record
                done = row
                continue
            group.append(line)
            unread = line.amount is None and self._stated(block, row) is None
            if unread and re.search(r"\d", found := self._amount_text(block, row)):
                self.unread.append(f"line {line.line_no}, {line.label}: {quotable(found.strip())}")
            summary[row] = group is not self.doubtful
            if line.span:
                self._marks.append((above, total))
                del self._marks[1:-_REMEMBERED]
        return summary

    def pass_over(self, amounts: pa.Array | None, numbers: npt.NDArray[np.int64]) -> None:
        """Adds the records of a block, which are all but its summary lines, to what later lines may be the sum of."""
        doubtful = {line.record_no for line in self.doubtful}
        if amounts is None:
            return
        if doubtful:
            amounts = amounts.filter(pa.array([number not in doubtful for number in numbers.tolist()]))
        self._records += len(amounts) - amounts.null_count
        self._sum += add_up(exact(amounts))

    def _labels(self, block: Block, first: dict[int, npt.NDArray[np.intp]]) -> dict[int, int]:
        """Returns the rows that look like summary lines, ascending, with the position of the label.

        That is the first cell with a text; where a file replaces whole months, any cell, because the rows of a split or
        grouped report have several names before the label.
        """
        found: dict[int, int] = {}
        anywhere = np.arange(block.length)
        places = dict.fromkeys(range(len(block.columns)), anywhere) if self.source.month_totals else first
        for position, rows in places.items():
            texts = texts_at(block.columns[position], rows)
            if have_only(texts, "!", "9"):
                # no label has no letter
                continue
            labeled = pc.match_substring_regex(texts, _LABEL).to_numpy(zero_copy_only=False)
            for row in rows[labeled].tolist():
                found.setdefault(row, position)
        if self.source.month_totals:
            for row, position in self._nameless(block, np.sort(np.concatenate([*first.values()]))).items():
                found.setdefault(row, position)
        return dict(sorted(found.items()))

    def _nameless(self, block: Block, rows: npt.NDArray[np.intp]) -> dict[int, int]:
        """Returns which of these rows have no name in a column where the one above has, and no date of their own."""
        after, before = pa.array(rows[1:]), pa.array(rows[:-1])
        undated = np.ones(len(after), dtype=np.bool_)
        for position in self._date_positions:
            dates = pc.utf8_trim_whitespace(block.columns[position])
            own = dates.take(after)
            no_own = pc.or_(pc.equal(own, dates.take(before)), pc.equal(own, ""))
            undated &= no_own.to_numpy(zero_copy_only=False)
        found: dict[int, int] = {}
        for position in self._name_positions:
            no_name = pc.match_substring_regex(block.columns[position], _NO_NAME)
            nameless, above = (no_name.take(part).to_numpy(zero_copy_only=False) for part in (after, before))
            for row in rows[1:][undated & nameless & ~above].tolist():
                found.setdefault(row, position)
        return found

    def _total_line(
        self, block: Block, row: int, position: int, number: int, above: tuple[int, Decimal]
    ) -> TotalLine:
        label = block.columns[position][row].as_py()
        amount = self._stated(block, row)
        is_average = (
            amount is not None and _AVERAGE.fullmatch(label) is not None and self._averages(amount, *above)
        )
        amount = None if is_average else amount
        span = None if amount is None else self._span(amount, *above)
        group = _OF_GROUP.fullmatch(label)
        before = [column[row - 1].as_py().strip().casefold() for column in block.columns] if row else []
        names_it = group is not None and any(cell.startswith(group["group"].casefold()) for cell in before)
        several = span is not None and span[1] - span[0] > 1
        dated = self._is_dated(block, row, position)
        # an id is never called like that, so a date makes no record of it
        may_be_record = dated and position not in self._id_positions
        is_first = all(_NOTHING.fullmatch(block.columns[left][row].as_py()) for left in range(position))
        return TotalLine(
            number,
            int(block.lines()[row]),
            quotable(label.strip()) or f"no {self.header.labels[position]}",
            amount,
            span,
            (above[0] - self._marks[-1][0], above[1] - self._marks[-1][1]),
            plain=(is_average or _PLAIN.fullmatch(label) is not None) and is_first and not may_be_record,
            sure=group is not None and (several or names_it) and not dated,
        )

    def _group_of(self, block: Block, row: int, position: int, line: TotalLine) -> list[TotalLine] | None:
        """Returns to which of the lists a line belongs; None makes it a record."""
        if line.plain:
            return self.lines
        if line.amount is None:
            return None
        # a record must have a date, if the file has a column for it
        undated = bool(self._date_positions) and not self._is_dated(block, row, position)
        if undated or not self.source.month_totals:
            return self.lines if line.span and (undated or position in self._id_positions) else None
        if "total" in line.label.casefold() and self._lacks_name(block, row, position):
            return self.lines if line.span else self.disagreeing
        if line.span is None or abs(line.amount) <= tolerance(line.span[1] - line.span[0]):
            # so small that it makes no difference
            return None
        return self.doubtful

    def _is_dated(self, block: Block, row: int, label: int) -> bool:
        others = [position for position in self._date_positions if position != label]
        return any(re.search(r"\d", block.columns[position][row].as_py()) for position in others)

    def _lacks_name(self, block: Block, row: int, label: int) -> bool:
        """Returns whether the line has no name where records above it have one."""
        position = self._name_position
        if position in (None, label) or not _NOTHING.fullmatch(block.columns[position][row].as_py()):
            return False
        return self._records > 0 or not all(
            map(_NOTHING.fullmatch, block.columns[position][:row].to_pylist())
        )

    def _span(self, amount: Decimal, records: int, total: Decimal) -> tuple[int, int] | None:
        """Returns the records directly above of which this is the sum: the fewest, if there are several such runs."""
        for start, before in reversed(self._marks):
            if start < records and abs(total - before - amount) <= tolerance(records - start):
                return start, records
        return None

    def _averages(self, amount: Decimal, records: int, total: Decimal) -> bool:
        """Returns whether this is the average, rounded to the cent, of records directly above."""
        return any(
            start < records and abs((total - before) / (records - start) - amount) <= tolerance(1)
            for start, before in self._marks
        )

    @cached_property
    def _name_position(self) -> int | None:
        """The column that names what a record of a month is for."""
        return self.header.positions.get(self.source.key.columns[-1])

    @cached_property
    def _name_positions(self) -> list[int]:
        """The columns that name what a record of a month is for, or which part of it, the name itself first."""
        positions, splits = self.header.positions, self.source.splitting_headers
        named = [positions[name] for name in reversed(self.source.key.columns) if name in positions]
        split = [number for number, cell in enumerate(self.header.cells) if fold_header(cell) in splits]
        return [number for number in dict.fromkeys([*named, *split]) if number not in self._date_positions]

    @cached_property
    def _id_positions(self) -> set[int]:
        positions = self.header.positions.items()
        return {
            position for name, position in positions if isinstance(self.source.column(name).kind, Identifier)
        }

    @cached_property
    def _date_positions(self) -> list[int]:
        positions = self.header.positions
        return [positions[name] for name in sorted(self.source.date_givers & positions.keys())]

    def _exact_amounts(self, block: Block) -> pa.Array | None:
        name = self.source.summed
        if name not in self.header.positions:
            return None
        kind = self.source.column(name).kind_under(self.facts.mapping[name])
        return exact(kind.clean(block.columns[self.header.positions[name]], self.facts.context).values)

    def _stated(self, block: Block, row: int) -> Decimal | None:
        """Returns the amount of a line; None if it has none that can be read."""
        comma = self.facts.context.decimal_comma
        try:
            amount = read_decimal(self._amount_text(block, row), 6, Decimal(10) ** 20, decimal_comma=comma)
        except InvalidValue:
            return None
        micros = "micros" in self.facts.mapping.get(self.source.summed or "", "").casefold()
        return amount.scaleb(-6) if micros and amount is not None else amount

    def _amount_text(self, block: Block, row: int) -> str:
        """Returns the cell of a line that has its amount, empty if the file has no such column."""
        position = self.header.positions.get(self.source.summed or "")
        return "" if position is None else str(block.columns[position][row].as_py())
