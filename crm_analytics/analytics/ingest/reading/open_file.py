"""One export file, opened: its header understood, its cleaned records in batches. What the loader reads with."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa

from crm_analytics.analytics.ingest.errors import RefusedFile, UnrecognizedFile
from crm_analytics.analytics.ingest.reading import csv_records as splitting
from crm_analytics.analytics.ingest.reading import workbook
from crm_analytics.analytics.ingest.reading.batches import Batch, Records, Rejected
from crm_analytics.analytics.ingest.reading.encoding import utf8_blocks
from crm_analytics.analytics.ingest.reading.locating import Located, locate, read_beginnings, unread_sheets
from crm_analytics.analytics.ingest.reading.source_detection import export_time, recognize
from crm_analytics.analytics.ingest.sources.declaration import FileFacts, Source, fold_header
from crm_analytics.analytics.ingest.values.column_types import Context
from crm_analytics.analytics.ingest.values.timezones import zone

__all__ = [
    "Batch",
    "OpenFile",
    "RefusedFile",
    "Rejected",
    "UnrecognizedFile",
    "export_time",
    "open_file",
    "recognize",
]


@dataclass
class OpenFile:
    """A file whose header is understood. `batches()` reads it, once; counts and warnings are complete after it."""

    path: Path
    encoding: str  # `xlsx` for a workbook
    warnings: list[str]
    located: Located
    records: Records

    @property
    def source(self) -> Source:
        """The source that the file was opened as."""
        return self.records.source

    @property
    def delimiter(self) -> str:
        """The delimiter; empty for a workbook."""
        return self.located.reading.delimiter

    @property
    def sheet(self) -> str | None:
        """The sheet of a workbook."""
        return self.located.reading.sheet

    @property
    def mapping(self) -> dict[str, str]:
        """Canonical column name -> header as found."""
        return self.records.facts.mapping

    @property
    def unknown_columns(self) -> list[str]:
        """The headers that no column of the source claims."""
        return self.located.match.unknown

    @property
    def records_read(self) -> int:
        """Accepted and rejected records and summary lines, so far."""
        return self.records.read

    @property
    def summary_lines(self) -> int:
        """Lines with the file's own totals, so far."""
        return self.records.summary_lines

    @property
    def flagged(self) -> int:
        """Accepted records with a local time that the clock shows twice or never, so far."""
        return self.records.flagged

    @property
    def probably_cut_off(self) -> bool:
        """Whether the export probably ended at the tool's limit, known after the last batch."""
        return self.records.probably_cut_off

    def batches(self) -> Iterator[Batch]:
        """The cleaned records. Raises RefusedFile where the rest cannot be read (a quote that never closes).

        A source that completes its records only at the end of the file gives its rows then.
        """
        complete, facts = self.source.complete, self.records.facts
        tables: list[pa.Table] = []
        try:
            for block in self._blocks():
                batch = self.records.clean(block)
                if complete is not None:
                    tables.append(batch.rows)
                    batch = Batch(batch.rows.slice(0, 0), batch.rejected, batch.flagged)
                yield batch
        except splitting.QuoteNeverCloses as error:
            raise RefusedFile(
                f"{self.path.name}: line {error.line}: a quote opens in record {error.record} and "
                "never closes; accepted: quotes in pairs; export the file again (it may have been cut off), or "
                "mend the quote and keep the new file"
            ) from error
        except splitting.RecordTooLong as error:
            raise RefusedFile(
                f"{self.path.name}: line {error.line}: record {error.record} is longer than "
                f"{splitting.MAX_RECORD:,} bytes; accepted: records of at most that; shorten the cell, or export "
                "the file without its column"
            ) from error
        except (OSError, UnicodeError) as error:
            raise RefusedFile(
                f"{self.path.name}: changed or vanished while it was read ({error}); load it again"
            ) from error
        if complete is not None:
            tables, warnings = complete(tables, facts)
            self.warnings += warnings
            yield from (Batch(table, [], 0) for table in tables)
        self.warnings += self.records.warnings()

    def as_found(self, wanted: Container[int]) -> Iterator[dict[int, dict[str, str]]]:
        """Records of these numbers as they stand in the file, which is read once more: number -> header -> cell.

        For what only a comparison of cleaned records finds; raises RefusedFile where the file has changed.
        """
        again = Records(self.source, self.located.match, self.records.facts)
        try:
            for block in self._blocks():
                yield again.as_found(block, wanted)
        except (splitting.Unsplittable, OSError, UnicodeError) as error:
            raise RefusedFile(
                f"{self.path.name}: changed or vanished while it was read ({error}); load it again"
            ) from error

    def _blocks(self) -> Iterator[splitting.Block]:
        width, first_line = len(self.located.match.cells), self.located.first_line
        if self.sheet is None:
            data = _behind(utf8_blocks(self.path, self.encoding), self.located.first_byte)
            yield from splitting.split(
                data, self.delimiter, width, first_line, self.located.match.named_width
            )
            return
        uncomputed = workbook.formulas_without_result(self.path, self.sheet)
        used = {position: self.mapping[name] for name, position in self.located.match.positions.items()}
        found = (row for row in workbook.rows(self.path, self.sheet, uncomputed) if row[0] >= first_line)
        while part := list(islice(found, splitting.RECORDS_PER_BLOCK)):
            rows = [cells + [""] * (width - len(cells)) for _, cells in part]
            defects = {
                row: f"{used[position]} is a formula without a stored result; accepted: values, or formulas that were "
                "computed: open the workbook in a spreadsheet program, save it there, and keep that file"
                for row, (number, _) in enumerate(part)
                for position in uncomputed.get(number, ())
                if position in used
            }
            yield splitting.block_of_rows(rows, [number for number, _ in part], width, defects)


def _behind(blocks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """The blocks without the first `offset` bytes."""
    for block in blocks:
        if offset >= len(block):
            offset -= len(block)
            continue
        yield block[offset:]
        offset = 0


def open_file(path: Path, source: Source, *, exported_at: datetime, timezone: ZoneInfo) -> OpenFile:
    """Open an export file of a known source and understand its header.

    `exported_at` is aware; `timezone` is the business time zone. Raises RefusedFile where the file cannot be
    read or its header lacks what the source needs.
    """
    beginnings = read_beginnings(path)
    located = locate(source, beginnings)
    header = located.match
    mapping = {name: header.labels[position] for name, position in header.positions.items()}
    context = Context(zone(timezone), exported_at.astimezone(UTC), source.date_order, source.decimal_comma)
    unknown = {fold_header(cell): cell.strip() for cell in header.unknown}
    facts = FileFacts(path.name, mapping, located.preamble, context, unknown)
    if source.check is not None:
        source.check(facts)
    warnings = beginnings.warnings + unread_sheets(source, beginnings, located)
    return OpenFile(path, beginnings.encoding, warnings, located, Records(source, header, facts))
