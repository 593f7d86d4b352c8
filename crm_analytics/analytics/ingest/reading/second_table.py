"""Finds a second table below the header: its rows mean something else, so they are never read by position."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from crm_analytics.analytics.ingest.errors import Reason, quotable
from crm_analytics.analytics.ingest.reading.csv_records import Block
from crm_analytics.analytics.ingest.reading.header import HeaderMatch, match_header
from crm_analytics.analytics.ingest.sources.declaration import Source, fold_header
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.values.column_types import Mask

_DIGIT = re.compile(r"\d")


class SecondTable(Exception):
    """A line where another table begins."""

    accepted: ClassVar[str] = "one table per file, below one header"
    remedy: ClassVar[str] = (
        "save each table as its own file; if the line belongs to a cell, put quotes around the cell"
    )

    def __init__(self, line: int, found: str) -> None:
        self.line = line
        self.reason = Reason("another_table", None, quotable(found), self.accepted, self.remedy)
        super().__init__(f"line {line}: {self.reason}")


class RefusedRow(NamedTuple):
    """A row that is not accepted as a record, and may be something else."""

    place: int  #: among the rows that are neither blank nor summary lines
    row: int  #: in the block
    line: int
    cells: list[str]


@dataclass
class _Beginning:
    """What may be the title or the header of another table, until the rows after it tell."""

    line: int
    text: str
    has_row: bool  #: there is a row of several cells


@dataclass
class TableWatch:
    """Watches the rows below the header, block after block.

    Another header begins another table, unless it is the same one without a title of its own: then files were
    concatenated, and the table goes on. A title, or a row of labels, begins one after a blank row or a total, if rows
    follow: footers end the file. A title of several words in the first of many columns needs no blank row.

    Only rows that are not accepted as records are looked at: every source has a required column of dates or amounts,
    where a header has neither.
    """

    source: Source
    header: HeaderMatch
    lines_in_cells: bool  #: a newline inside a cell is one in the file, which is not so in a workbook
    repeated_headers: list[int] = field(default_factory=list)  #: their lines
    _beginning: _Beginning | None = None
    _before: tuple[Block, Mask] | None = None

    def __post_init__(self) -> None:
        self._own = _folded(self.header.cells)
        self._needed = [
            position
            for name, position in self.header.positions.items()
            if self.source.column(name).required and self.source.column(name).not_null
        ]
        self._known = frozenset().union(*(source.owners for source in SOURCES.values()))

    def find_repeated_headers(
        self, block: Block, skipped: Mask, records: int, refused: Iterable[RefusedRow]
    ) -> set[int]:
        """Returns the places of rows that repeat the header.

        Args:
            block: the next block.
            skipped: its rows that are blank or summary lines.
            records: how many are neither.
            refused: those of them that are not accepted, in order.

        Raises:
            SecondTable: where another table begins.
        """
        repeated: set[int] = set()
        after = 0
        for candidate in refused:
            if candidate.place > after:
                self._see_record()
            after = candidate.place + 1
            if self._repeats_header(candidate):
                repeated.add(candidate.place)
                self.repeated_headers.append(candidate.line)
            else:
                self._see_refused(candidate, block, skipped)
        if records > after:
            self._see_record()
        if block.length:
            self._before = block, skipped
        return repeated

    def _see_record(self) -> None:
        if self._beginning:
            raise SecondTable(self._beginning.line, self._beginning.text)

    def _repeats_header(self, candidate: RefusedRow) -> bool:
        """Returns whether this is the header once more. Raises SecondTable if it is another one, or has a title."""
        first = fold_header(candidate.cells[0])
        if first != self._own[0] and all(
            _DIGIT.search(candidate.cells[position]) for position in self._needed
        ):
            # a bad record, of which there may be many
            return False
        folded = _folded(candidate.cells)
        same = folded == self._own
        if not same and not self._is_header(folded, candidate.cells):
            return False
        if self._beginning or not same:
            begins = self._beginning or candidate
            text = self._beginning.text if self._beginning else _shown(candidate.cells)
            raise SecondTable(begins.line, text)
        return True

    def _is_header(self, folded: list[str], cells: list[str]) -> bool:
        """Returns whether a row is a source's complete header, or has the first or most of this file's headers."""
        filled = [header for header in folded if header]
        if len(filled) < 2:
            return False
        if folded[0] == self._own[0] != "":
            return True
        if 2 * sum(header in self._own for header in filled) >= max(4, len(filled)):
            return True
        if sum(header in self._known for header in filled) < 2:
            return False
        matches = (match_header(source, cells) for source in SOURCES.values())
        return any(match.complete and len(match.positions) > 1 for match in matches)

    def _see_refused(self, candidate: RefusedRow, block: Block, skipped: Mask) -> None:
        filled = [cell for cell in candidate.cells if cell.strip()]
        if self._beginning is None:
            title = len(filled) == 1 and any(map(str.isalpha, filled[0]))
            labels = len(filled) > 1 and not any(map(_DIGIT.search, filled))
            if (title and self._is_alone(candidate, block)) or (
                (title or labels) and self._after_gap(candidate, block, skipped)
            ):
                self._beginning = _Beginning(candidate.line, _shown(candidate.cells), labels)
        elif len(filled) > 1:
            if self._beginning.has_row:
                raise SecondTable(self._beginning.line, self._beginning.text)
            self._beginning.has_row = True

    def _is_alone(self, candidate: RefusedRow, block: Block) -> bool:
        """Returns whether several words are in the first of many columns, and the row has all cells of a record."""
        words = len(candidate.cells[0].split()) > 1
        return words and len(self._own) > 3 and candidate.row not in block.defects

    def _after_gap(self, candidate: RefusedRow, block: Block, skipped: Mask) -> bool:
        """Returns whether a blank row, an empty line or a summary line comes directly before the row."""
        row = candidate.row - 1
        if row < 0:
            if self._before is None:
                return False
            block, skipped = self._before
            row = block.length - 1
        if skipped[row]:
            return True
        lines = 1
        if self.lines_in_cells:
            cells = [column[row].as_py() for column in block.columns] + block.extra_cells.get(row, [])
            lines += sum(cell.count("\n") for cell in cells)
        return candidate.line - int(block.lines()[row]) > lines


def _folded(cells: list[str]) -> list[str]:
    """Returns the headers as they are compared, without blank ones at the end."""
    folded = [fold_header(cell) for cell in cells]
    while folded and not folded[-1]:
        folded.pop()
    return folded


def _shown(cells: list[str]) -> str:
    return " | ".join(cell.strip() for cell in cells if cell.strip())
