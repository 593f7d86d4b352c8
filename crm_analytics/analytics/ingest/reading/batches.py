"""Turns blocks of cells into batches of cleaned records: skips totals, rejects bad records, stages good ones."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.reading.conventions import Cells, Conventions
from crm_analytics.analytics.ingest.reading.csv_records import Block
from crm_analytics.analytics.ingest.reading.header import HeaderMatch
from crm_analytics.analytics.ingest.reading.parts import settle, with_cells
from crm_analytics.analytics.ingest.reading.second_table import RefusedRow, TableWatch
from crm_analytics.analytics.ingest.reading.summary_lines import SummaryLines, first_texts
from crm_analytics.analytics.ingest.sources.declaration import Columns, FileFacts, Source
from crm_analytics.analytics.ingest.values.dates import is_zero_date
from crm_analytics.core.wording import counted, listed

_BLANK = Reason("blank", accepted="a value")
#: Rejected records that a message about the whole file names.
FEW_REJECTED = 3
_ARROW_TYPES = {
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
}


class AsFound(NamedTuple):
    """A record as it is in the file."""

    record_no: int  #: from 1 after the header
    line_no: int  #: in a workbook, the row
    record: dict[str, str]  #: header as found -> cell


@dataclass(frozen=True)
class Rejected:
    """A record that was not accepted."""

    as_found: AsFound
    key: str | None
    reasons: list[Reason]
    day: date | None  #: in the source's date column, where it can be read


@dataclass(frozen=True)
class Batch:
    """Some records of a file: `rows` has `record_no` (int64) and the source's staged columns, in order."""

    rows: pa.Table
    rejected: list[Rejected]


@dataclass
class Records:
    """The records of one file: cleans block after block, and counts."""

    source: Source
    header: HeaderMatch
    facts: FileFacts
    watch: TableWatch
    judging: bool = True  #: whether cells may disprove the file's conventions
    only_records: bool = False  #: whether there are neither totals nor headers among them, as in JSON Lines
    pulled: bool = False  #: whether a connector wrote the file, and all of it
    read: int = 0
    accepted: int = 0
    summary_lines: int = 0
    duplicates: int = 0  #: repeats that were found while reading, where a file replaces whole months
    dst_ambiguous: int = 0  #: accepted records with a local time that the clock shows twice or skips
    first_rejected: list[str] = field(default_factory=list)  #: the first few, with their lines and reasons
    totals: SummaryLines = field(init=False)
    conventions: Conventions = field(init=False)

    def __post_init__(self) -> None:
        self.totals = SummaryLines(self.source, self.header, self.facts)
        self.conventions = Conventions(self.source, self.facts)

    def clean(self, block: Block) -> Batch:
        """Cleans the cells of a block's records; summary lines are left out, records with reasons rejected.

        Raises SecondTable where another table begins, and ReadDifferently or RefusedFile where the cells disprove a
        convention of the file.
        """
        blank, first = first_texts(block)
        numbers = self._number(blank)
        summary = (
            np.zeros(block.length, dtype=np.bool_)
            if self.only_records
            else self.totals.judge(block, first, numbers)
        )
        self.summary_lines += int(summary.sum())

        kept = np.flatnonzero(~(blank | summary))
        columns, reasons, ambiguous, cells = self._clean_columns(block, kept)
        self.totals.pass_over(columns.get(self.source.summed or ""), numbers[kept])
        derived = self.source.derive(columns, len(kept), self.facts)
        for row, (name, reason) in derived.reasons.items():
            found = reasons.setdefault(row, {})
            found.setdefault(name, self._about(name, reason, block, int(kept[row])))
        rows = self._staged(derived.columns, numbers[kept])
        if self.source.month_totals:
            rows = with_cells(rows, block, kept, self.header, self.source)
        accepted = np.ones(len(kept), dtype=np.bool_)
        accepted[list(reasons)] = False
        accepted &= ~np.isin(kept, list(block.defects))
        if not accepted.all():
            rows = rows.filter(pa.array(accepted))
        self.accepted += rows.num_rows
        self.dst_ambiguous += int((ambiguous & accepted).sum())

        keys = next((columns[name] for name in self.source.key.given_in_files if name in columns), None)
        days = derived.columns.get(self.source.date_column)
        refused = {
            row: self._as_found(block, int(kept[row]), numbers) for row in np.flatnonzero(~accepted).tolist()
        }
        headers: set[int] = set()
        if not self.only_records:
            headers = self.watch.find_repeated_headers(
                block,
                blank | summary,
                len(kept),
                [
                    RefusedRow(row, int(kept[row]), as_found.line_no, list(as_found.record.values()))
                    for row, as_found in refused.items()
                ],
            )
        self.summary_lines += len(headers)
        if self.judging:
            for column in cells:
                self.conventions.note(column)
        rejected = []
        for row, as_found in refused.items():
            if row in headers:
                continue
            if (original := int(kept[row])) in block.defects:
                # The cells of such a record may be in the wrong columns.
                rejected.append(Rejected(as_found, None, [block.defects[original]], None))
                continue
            key, day = (None if column is None else column[row].as_py() for column in (keys, days))
            rejected.append(Rejected(as_found, key, list(reasons[row].values()), day))
        for record in rejected[: FEW_REJECTED - len(self.first_rejected)]:
            why = str(replace(record.reasons[0], accepted=None, remedy=None)).replace('"', "'")
            self.first_rejected.append(f"line {record.as_found.line_no}: {why}")
        return Batch(rows, rejected)

    def _clean_columns(
        self, block: Block, kept: npt.NDArray[np.intp]
    ) -> tuple[Columns, dict[int, dict[str, Reason]], npt.NDArray[np.bool_], list[Cells]]:
        """Returns the cleaned columns, row -> column -> reason, which rows have an ambiguous local time, and the cells."""
        columns: Columns = {}
        reasons: dict[int, dict[str, Reason]] = {}
        ambiguous = np.zeros(len(kept), dtype=np.bool_)
        cells: list[Cells] = []
        # the cells of a defective record may be in the wrong columns, so they are no evidence
        sound = np.flatnonzero(~np.isin(kept, list(block.defects))) if block.defects else None
        for name, position in self.header.positions.items():
            column, texts = self.source.column(name), block.columns[position]
            if len(kept) < block.length:
                texts = texts.take(pa.array(kept))
            header = self.facts.mapping[name]
            kind = column.kind_under(header)
            cleaned = kind.clean(texts, self.facts.context)
            judged, rows = cleaned.judged, kept
            if sound is not None and judged is not None:
                texts, rows = texts.take(pa.array(sound)), kept[sound]
                judged = pc.unique(texts)
            lines = partial(_lines_of, block, rows)
            cells.append(Cells(column, kind, header, position, texts, judged, lines))
            columns[name] = cleaned.values
            if column.date_as:
                columns[column.date_as] = cleaned.local_date
            if cleaned.dst_ambiguous is not None:
                ambiguous |= cleaned.dst_ambiguous
            refused = cleaned.reasons
            if column.not_null and cleaned.values.null_count > len(refused):
                empty = np.flatnonzero(cleaned.values.is_null().to_numpy(zero_copy_only=False))
                refused = dict.fromkeys(empty.tolist(), _BLANK) | refused
            for row, reason in refused.items():
                about = self._about(name, reason, block, int(kept[row]))
                reasons.setdefault(row, {})[name] = about
        return columns, reasons, ambiguous, cells

    def _about(self, name: str, reason: Reason, block: Block, row: int) -> Reason:
        """Completes a reason with the column's header and, unless the column holds personal data, the cell."""
        personal = self.source.column(name).personal
        cell = None if personal else block.columns[self.header.positions[name]][row].as_py()
        if reason.code == "blank" and cell and is_zero_date(cell):
            reason = replace(reason, code="zero_date_means_no_date")
        return reason.about(self.facts.mapping[name], cell)

    def as_found(self, block: Block, wanted: Container[int]) -> list[AsFound]:
        """Returns the block's records of these numbers as they are in the file."""
        blank, _ = first_texts(block)
        numbers = self._number(blank)
        rows = np.flatnonzero(~blank).tolist()
        return [self._as_found(block, row, numbers) for row in rows if int(numbers[row]) in wanted]

    def _number(self, blank: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Returns the numbers of a block's records, by row; a blank row is not a record."""
        numbers = self.read + np.cumsum(~blank)
        self.read += int((~blank).sum())
        return numbers

    def _staged(self, columns: Columns, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """Returns the record numbers and the staged columns, in order; NULL where the file has no such column."""
        arrays = {"record_no": pa.array(numbers, pa.int64())}
        for name, sql_type in self.source.staged_columns.items():
            absent = pa.nulls(len(numbers), _ARROW_TYPES.get(sql_type, pa.string()))
            arrays[name] = columns.get(name, absent)
        return pa.table(arrays)

    def settle(self, tables: list[pa.Table]) -> pa.Table:
        """Returns the records that count of a file that replaces whole months. Raises RefusedFile."""
        rows = pa.concat_tables(tables)
        rejected = self.read - self.summary_lines - self.accepted
        settled = settle(rows, self.totals, rejected, self.left_out(rejected))
        self.accepted = settled.rows.num_rows
        self.duplicates = settled.duplicates
        self.summary_lines += settled.summary_lines
        return settled.rows

    def left_out(self, rejected: int, repeats: int = 0) -> str:
        """Says for messages how many records were not accepted, and why the first ones."""
        named = f" ({'; '.join(self.first_rejected)})" if self.first_rejected else ""
        once = f", {counted(repeats, 'repeat')} counted once" if repeats else ""
        return f"{counted(rejected, 'record')} not accepted{named}{once}"

    def _as_found(self, block: Block, row: int, numbers: npt.NDArray[np.int64]) -> AsFound:
        cells = {
            label: column[row].as_py()
            for label, column in zip(self.header.labels, block.columns, strict=True)
        }
        for number, cell in enumerate(block.extra_cells.get(row, []), start=len(cells) + 1):
            cells[f"(column {number})"] = cell
        return AsFound(int(numbers[row]), int(block.lines()[row]), cells)

    @property
    def probably_cut_off(self) -> bool:
        """Returns whether there are exactly as many records as the tool exports at most."""
        return self.source.suspicious_record_count == self.read and not self.pulled

    def warnings(self) -> list[str]:
        """Returns warnings about the file as a whole, after the last block."""
        found = []
        if self.read == 0:
            found.append(
                "the service had no records to return"
                if self.pulled
                else "the file has a header but no records"
            )
        if self.probably_cut_off:
            found.append(
                f"exactly {self.read:,} records: the export was probably cut off at its limit; "
                "export a shorter period"
            )
        if unread := self.totals.unread:
            found.append(
                f"{'; '.join(unread[:3])}: this total cannot be read, so the sum of the records was not compared with it"
            )
        if headers := self.watch.repeated_headers:
            lines = listed([f"{line:,}" for line in headers])
            found.append(
                f"{counted(len(headers), 'line')} ({lines}) repeated the header, as in files that were put together; they"
                " are counted as summary lines"
            )
        if self.dst_ambiguous:
            found.append(
                f"{counted(self.dst_ambiguous, 'record')} with local times that daylight saving shows twice or skips "
                "(the first of the two is taken; a skipped time moves forward)"
            )
        return found


def _lines_of(block: Block, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    return block.lines()[rows]
