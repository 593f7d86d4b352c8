"""Opens an export file for the loader: matches its header to the source, and yields batches of cleaned records."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pyarrow as pa

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records, workbook
from crm_analytics.analytics.ingest.reading.batches import AsFound, Batch, Records
from crm_analytics.analytics.ingest.reading.conventions import ReadDifferently
from crm_analytics.analytics.ingest.reading.encoding import utf8_blocks
from crm_analytics.analytics.ingest.reading.header import Located, locate, read_beginnings, unread_sheets
from crm_analytics.analytics.ingest.reading.json_lines import JsonLines
from crm_analytics.analytics.ingest.reading.parts import without_cells
from crm_analytics.analytics.ingest.reading.pull_line import Pull, require_coverage
from crm_analytics.analytics.ingest.reading.second_table import SecondTable, TableWatch
from crm_analytics.analytics.ingest.sources.declaration import FileFacts, Source, fold_header
from crm_analytics.analytics.ingest.storage.landing import Content
from crm_analytics.analytics.ingest.values.column_types import Context
from crm_analytics.analytics.ingest.values.timezones import zone


@dataclass
class OpenFile:
    """A file whose header is matched. `batches()` reads it, once; `records` and `warnings` are complete after that."""

    content: Content
    encoding: str  #: `xlsx` for a workbook
    warnings: list[str]
    located: Located
    records: Records
    json_lines: JsonLines | None = None

    @property
    def pull(self) -> Pull | None:
        """Returns what the connector that wrote the file says of it; None if a person exported it."""
        return self.json_lines.pull if self.json_lines else None

    @property
    def source(self) -> Source:
        """Returns the source that the file was opened as."""
        return self.records.source

    @property
    def delimiter(self) -> str:
        """Returns the delimiter, empty for a workbook and for JSON Lines."""
        return self.located.reading.delimiter

    @property
    def sheet(self) -> str | None:
        """Returns the sheet, if the file is a workbook."""
        return self.located.reading.sheet

    @property
    def mapping(self) -> dict[str, str]:
        """Returns canonical column name -> header as found."""
        return self.records.facts.mapping

    def batches(self) -> Iterator[Batch]:
        """Yields the cleaned records. Raises RefusedFile if the rest cannot be read: a quote that never closes, another table.

        The rows of a file that replaces whole months come in its last batch, because only the whole file shows which of
        them are parts and which are repeats. Raises ReadDifferently if the batches so far were misread; the next call
        starts again and yields the right ones.
        """
        tables: list[pa.Table] = []
        try:
            with self._refusing():
                for block in self._blocks():
                    batch = self.records.clean(block)
                    if self.source.month_totals:
                        tables.append(batch.rows)
                        batch = Batch(without_cells(batch.rows.slice(0, 0)), batch.rejected)
                    yield batch
            self.warnings += self.records.conventions.conclude()
        except ReadDifferently as other:
            self.warnings.append(other.warning)
            facts = replace(self.records.facts, context=other.context)
            self.records = self._unread_records(facts)
            self.refuse_records_above()
            raise
        if self.source.month_totals and tables:
            rows = self.records.settle(tables)
            if self.source.complete is not None:
                rows, warnings = self.source.complete(rows, self.records.facts)
                self.warnings += warnings
            yield Batch(rows, [])
        self.warnings += self.records.warnings()

    def all_batches(self) -> list[Batch]:
        """Returns the cleaned records of the whole file, and reads it again if it was misread."""
        while True:
            try:
                return list(self.batches())
            except ReadDifferently:
                continue

    def as_found(self, wanted: Container[int]) -> Iterator[list[AsFound]]:
        """Reads the file once more and yields the records of these numbers as they are in it.

        For faults that only a comparison of cleaned records finds. Raises RefusedFile if the file has changed.
        """
        again = self._unread_records(self.records.facts)
        with self._refusing():
            for block in self._blocks():
                yield again.as_found(block, wanted)

    def refuse_records_above(self) -> None:
        """Raises RefusedFile if a row above the header is a record or another header: sorting moves headers down."""
        match, facts = self.located.match, self.records.facts
        width = len(match.cells)
        for line, cells in self.located.rows_above:
            if self.sheet is not None:
                cells = cells + [""] * (width - len(cells))
            row = csv_records.block_of_rows([cells], [line], width, {}, match.named_width)
            records = self._unread_records(facts, judging=False)
            with self._refusing():
                if records.clean(row).rows.num_rows:
                    raise RefusedFile(self.content.name, RECORD_ABOVE, place=self._place(line))

    def _unread_records(self, facts: FileFacts, *, judging: bool = True) -> Records:
        """Returns the records before any is read."""
        return _unread_records(self.source, self.located, facts, self.json_lines, judging=judging)

    def _place(self, line: int) -> str:
        return f"line {line}" if self.sheet is None else f"sheet {self.sheet!r}, row {line}"

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except csv_records.Unsplittable as error:
            place = f"line {error.line}, record {error.record}"
            raise RefusedFile(self.content.name, error.reason, place=place) from error
        except SecondTable as error:
            raise RefusedFile(self.content.name, error.reason, place=self._place(error.line)) from error
        except (OSError, UnicodeError) as error:
            reason = Reason("changed_or_vanished_while_it_was_read", found=str(error), remedy="load it again")
            raise RefusedFile(self.content.name, reason) from error

    def _blocks(self) -> Iterator[csv_records.Block]:
        """Yields the file's records as text."""
        match = self.located.match
        if self.sheet is not None:
            return self._sheet_blocks(self.sheet)
        # the first column tells blank rows and totals; where a file replaces whole months, every cell may matter
        needed = None if self.source.month_totals else frozenset({0, *match.positions.values()})
        if self.json_lines is not None:
            return self.json_lines.blocks(needed)
        start = self.located.first_byte
        data = _after(utf8_blocks(self.content, self.encoding, plain=start), start)
        splitter = csv_records.Splitter(
            self.delimiter, len(match.cells), self.located.first_line, match.named_width, needed
        )
        return splitter.split(data)

    def _sheet_blocks(self, sheet: str) -> Iterator[csv_records.Block]:
        width = len(self.located.match.cells)
        uncomputed = workbook.formulas_without_result(self.content, sheet)
        headers = {position: self.mapping[name] for name, position in self.located.match.positions.items()}
        rows = workbook.rows(self.content, sheet, uncomputed, self.records.conventions.shown_to_the_minute)
        records = (row for row in rows if row[0] >= self.located.first_line)
        while part := list(islice(records, csv_records.RECORDS_PER_BLOCK)):
            defects = {
                row: UNCOMPUTED.about(headers[position], formula)
                for row, (number, _) in enumerate(part)
                for position, formula in uncomputed.get(number, {}).items()
                if position in headers
            }
            numbers = [number for number, _ in part]
            cells = [cells + [""] * (width - len(cells)) for _, cells in part]
            yield csv_records.block_of_rows(cells, numbers, width, defects)


UNCOMPUTED = Reason(
    "formula_without_a_stored_result",
    accepted="values, or formulas that were computed",
    remedy="open the workbook in a spreadsheet program, save it there, and keep that file",
)
RECORD_ABOVE = Reason(
    "record_above_the_header",
    accepted="the header above all records",
    remedy="move the header row to the top, or export the file again",
)


def _unread_records(
    source: Source, located: Located, facts: FileFacts, lines: JsonLines | None, *, judging: bool = True
) -> Records:
    """Returns a file's records before any is read."""
    watch = TableWatch(source, located.match, lines_in_cells=located.reading.sheet is None)
    pulled = lines is not None and lines.pull is not None
    return Records(
        source, located.match, facts, watch, judging, only_records=lines is not None, pulled=pulled
    )


def _after(blocks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """Yields the blocks without the first `offset` bytes."""
    for block in blocks:
        if offset >= len(block):
            offset -= len(block)
            continue
        yield block[offset:]
        offset = 0


def open_file(
    content: Content, source: Source, *, exported_at: datetime, timezone: ZoneInfo, export_named: bool = False
) -> OpenFile:
    """Opens an export file of a known source and matches its header.

    `exported_at` is aware, and `export_named` says whether the file's name tells it; `timezone` is the business timezone.
    Raises RefusedFile if the file cannot be read, or if its header lacks what the source needs.
    """
    beginnings = read_beginnings(content)
    located = locate(source, beginnings)
    header = located.match
    mapping = {name: header.labels[position] for name, position in header.positions.items()}
    context = Context(
        zone(timezone),
        exported_at.astimezone(UTC),
        source.date_order,
        source.decimal_comma,
        export_named=export_named,
    )
    unknown = {fold_header(cell): cell.strip() for cell in header.unknown}
    facts = FileFacts(content.name, mapping, located.preamble, context, unknown)
    if source.check is not None:
        source.check(facts)
    warnings = beginnings.warnings + unread_sheets(source, beginnings, located)
    lines = beginnings.json_lines
    records = _unread_records(source, located, facts, lines)
    opened = OpenFile(beginnings.content, beginnings.encoding, warnings, located, records, lines)
    if opened.pull is not None:
        require_coverage(content, opened.pull, source)
    opened.refuse_records_above()
    return opened
