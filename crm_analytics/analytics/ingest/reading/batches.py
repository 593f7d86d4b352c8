"""Blocks of cells to batches of cleaned records: what is no record, what is refused and why, what is staged."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import shown
from crm_analytics.analytics.ingest.reading.csv_records import Block
from crm_analytics.analytics.ingest.reading.header import HeaderMatch
from crm_analytics.analytics.ingest.sources.declaration import Columns, FileFacts, Source
from crm_analytics.analytics.ingest.values.column_types import read_decimal
from crm_analytics.analytics.ingest.values.dates import Unreadable

_SUMMARY = r"(?i)^\s*(grand\s+)?totals?\s*(:.*)?$"
_EMPTY = r"^[\s\x{FEFF}\x{A0}]*$"
_ARROW_TYPES = {
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
}


@dataclass(frozen=True)
class Rejected:
    """A record that was not accepted."""

    record_no: int
    key: str | None
    reasons: list[str]
    record: dict[str, str]  # header as found -> cell
    day: date | None  # in the source's date column, where it can be read


@dataclass(frozen=True)
class Batch:
    """Some records of a file: `rows` has `record_no` (int64) and the source's staged columns, in order."""

    rows: pa.Table
    rejected: list[Rejected]
    flagged: int  # accepted records with a local time that the clock shows twice or never


@dataclass
class Records:
    """The records of one file: cleans block after block, and counts."""

    source: Source
    header: HeaderMatch
    facts: FileFacts
    read: int = 0
    accepted: int = 0
    summary_lines: int = 0
    flagged: int = 0
    _totals: list[Decimal] = field(default_factory=list)
    _sum: Decimal = Decimal(0)

    def clean(self, block: Block) -> Batch:
        """A block of cells as a batch: summary lines out, columns cleaned, records with reasons rejected."""
        texts, defects = block.columns, block.defects
        blank, summary = self._not_records(block)
        numbers = self._number(blank)
        self.summary_lines += int(summary.sum())
        self._note_totals(block, np.flatnonzero(summary).tolist())

        kept = np.flatnonzero(~(blank | summary))
        if len(kept) < block.length:
            texts = [column.take(pa.array(kept)) for column in texts]
        length = len(kept)
        reasons: dict[int, list[str]] = {}
        columns: Columns = {}
        odd = np.zeros(length, dtype=np.bool_)
        for name, position in self.header.positions.items():
            column, header = self.source.column(name), self.facts.mapping[name]
            cleaned = column.kind_under(header).clean(texts[position], self.facts.context)
            columns[name] = cleaned.values
            if column.date_as:
                columns[column.date_as] = cleaned.local_date
            if cleaned.odd_times is not None:
                odd |= cleaned.odd_times
            bad = dict(cleaned.bad)
            if column.not_null and cleaned.values.null_count > len(bad):
                for empty in np.flatnonzero(cleaned.values.is_null().to_numpy(zero_copy_only=False)).tolist():
                    bad.setdefault(empty, "is blank; accepted: never blank")
            for row, why in bad.items():
                reasons.setdefault(row, []).append(f"{header} {shown(texts[position][row].as_py())} {why}")
        derived = self.source.derive(columns, length, self.facts)
        for row, (header, why) in derived.reasons.items():
            if not any(reason.startswith(f"{header} ") for reason in reasons.get(row, [])):
                reasons.setdefault(row, []).append(f"{header} {why}")
        for row, original in enumerate(kept.tolist()) if defects else ():
            if original in defects:  # what its cells say does not matter then
                reasons[row] = [defects[original]]

        rows = self._staged(derived.columns, numbers[kept])
        rejected: list[Rejected] = []
        if reasons:
            accepted = np.ones(length, dtype=np.bool_)
            accepted[list(reasons)] = False
            rows, odd = rows.filter(pa.array(accepted)), odd & accepted
            keys = next((columns[name] for name in self.source.key.given_in_files if name in columns), None)
            days = derived.columns.get(self.source.date_column)
            lines = block.lines()
            for row, original in ((row, int(kept[row])) for row in sorted(reasons)):
                rejected.append(
                    Rejected(
                        int(numbers[original]),
                        None if keys is None or original in defects else keys[row].as_py(),
                        [f"line {lines[original]}: {reason}" for reason in reasons[row]],
                        self._record(block, original),
                        None if days is None or original in defects else days[row].as_py(),
                    )
                )
        flagged = int(odd.sum())
        self.accepted += rows.num_rows
        self.flagged += flagged
        if self.source.summed:
            amounts = pc.cast(rows[self.source.summed], pa.decimal128(38, 6))
            self._sum += pc.sum(amounts).as_py() or Decimal(0)
        return Batch(rows, rejected, flagged)

    def as_found(self, block: Block, wanted: Container[int]) -> dict[int, dict[str, str]]:
        """The block's records of these numbers as they stand in the file: header as found -> cell as found."""
        blank, _ = self._not_records(block)
        numbers = self._number(blank).tolist()
        rows = np.flatnonzero(~blank).tolist()
        return {numbers[row]: self._record(block, row) for row in rows if numbers[row] in wanted}

    def _number(self, blank: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The numbers of a block's records, by row; blank rows are none."""
        numbers = self.read + np.cumsum(~blank)
        self.read += int((~blank).sum())
        return numbers

    def _staged(self, columns: Columns, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """The staged columns in their order, behind the record numbers; NULL where the file has no such column."""
        arrays = {"record_no": pa.array(numbers, pa.int64())}
        for name, sql_type in self.source.staged_columns.items():
            absent = pa.nulls(len(numbers), _ARROW_TYPES.get(sql_type, pa.string()))
            arrays[name] = columns.get(name, absent)
        return pa.table(arrays)

    def _not_records(self, block: Block) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which rows are blank, and which are summary lines: the first cell that is not blank says Total, and
        no other cell gives the record's date."""
        candidates = np.arange(block.length)
        totals: list[tuple[int, int]] = []
        for position, column in enumerate(block.columns):
            cells = column if len(candidates) == block.length else column.take(pa.array(candidates))
            matches = pc.match_substring_regex(cells, _SUMMARY).to_numpy(zero_copy_only=False)
            totals += [(row, position) for row in candidates[matches].tolist()]
            empty = pc.match_substring_regex(cells, _EMPTY).to_numpy(zero_copy_only=False)
            candidates = candidates[empty & ~matches]
            if not len(candidates):
                break
        blank = np.zeros(block.length, dtype=np.bool_)
        blank[[row for row in candidates.tolist() if not any(block.beyond.get(row, []))]] = True
        summary = np.zeros(block.length, dtype=np.bool_)
        dated = [
            position for name, position in self.header.positions.items() if name in self.source.date_givers
        ]
        for row, position in totals:
            others = [block.columns[other][row].as_py() for other in dated if other != position]
            summary[row] = not any(re.search(r"\d", text) for text in others)
        return blank, summary

    def _note_totals(self, block: Block, rows: Iterable[int]) -> None:
        name = self.source.summed
        if name not in self.header.positions:
            return
        for row in rows:
            text = block.columns[self.header.positions[name]][row].as_py()
            try:
                total = read_decimal(text, 6, Decimal(10) ** 20, decimal_comma=self.source.decimal_comma)
            except Unreadable:
                continue
            if total is not None:
                micros = "micros" in self.facts.mapping[name].casefold()
                self._totals.append(total.scaleb(-6) if micros else total)

    def _record(self, block: Block, row: int) -> dict[str, str]:
        cells = {
            label: column[row].as_py()
            for label, column in zip(self.header.labels, block.columns, strict=True)
        }
        for number, cell in enumerate(block.beyond.get(row, []), start=len(cells) + 1):
            cells[f"(column {number})"] = cell
        return cells

    @property
    def probably_cut_off(self) -> bool:
        """Whether there are exactly as many records as the tool exports at most."""
        return self.source.suspicious_record_count == self.read

    def warnings(self) -> list[str]:
        """What the counts say, after the last block."""
        found = []
        if self.read == 0:
            found.append("the file has a header but no records")
        if self.probably_cut_off:
            found.append(
                f"exactly {self.read:,} records: the export was probably cut off at its limit; "
                "export a shorter period"
            )
        if self.flagged:
            found.append(
                f"{self.flagged} records have local times that daylight saving shows twice or skips "
                "(the first of the two is taken; a skipped time moves forward)"
            )
        if self._totals and self._sum not in self._totals:
            totals = ", ".join(_dollars(total) for total in self._totals)
            found.append(
                f"the file's own total ({totals}) is not the sum of its accepted records ({_dollars(self._sum)}); "
                f"{self.read - self.summary_lines - self.accepted} records were not accepted"
            )
        return found


def _dollars(amount: Decimal) -> str:
    """An amount as messages show it: to the cent, or to the millionth where it has more."""
    return f"{amount:,.2f}" if amount == round(amount, 2) else f"{amount:,.6f}"
