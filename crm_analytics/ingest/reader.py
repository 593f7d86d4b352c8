"""One export file, opened: its source, export time, header, and its cleaned records in batches."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.ingest import derive, splitting, workbook
from crm_analytics.ingest.cleaning import Context, read_decimal
from crm_analytics.ingest.errors import RefusedFile, UnrecognisedFile
from crm_analytics.ingest.headers import HeaderMatch, find_header
from crm_analytics.ingest.moments import Unreadable
from crm_analytics.ingest.sniffing import DELIMITERS, is_workbook, sniff_encoding, utf8_blocks
from crm_analytics.ingest.sources import SOURCES, Source
from crm_analytics.ingest.zones import zone

__all__ = [
    "Batch",
    "OpenFile",
    "RefusedFile",
    "Rejected",
    "UnrecognisedFile",
    "export_time",
    "open_file",
    "recognise",
]

HEADER_ROWS = 30
HEADER_BYTES = 1 << 18
SHOWN = 80
_EXPORT_TIME = re.compile(
    r"(?<!\d)(\d{4})-(\d{2})-(\d{2})T(\d{2})[_:-](\d{2})[_:-](\d{2})(?:\.(\d{1,9}))?(Z)?", re.IGNORECASE
)
_SUMMARY = r"(?i)^\s*(grand\s+)?totals?\s*(:.*)?$"
_EMPTY = r"^[\s\x{FEFF}\x{A0}]*$"


@dataclass(frozen=True)
class Rejected:
    """A record that was not accepted."""

    record_no: int
    key: str | None
    reasons: list[str]
    record: dict[str, str]  # header as found -> cell


@dataclass(frozen=True)
class Batch:
    """Some records of a file: `rows` has `record_no` (int64) and the source's staged columns, in order."""

    rows: pa.Table
    rejected: list[Rejected]
    flagged: int  # accepted records with a local time that the clock shows twice or never


@dataclass
class OpenFile:
    """A file whose header is understood. `batches()` reads it, once; the counts are complete after the last."""

    source: Source
    path: Path
    encoding: str
    delimiter: str
    mapping: dict[str, str]
    unknown_columns: list[str]
    warnings: list[str]
    header: HeaderMatch
    facts: derive.FileFacts
    sheet: str | None = None
    header_line: int = 0
    data_offset: int = 0  # of the data behind the header, in bytes of clean UTF-8
    records_read: int = 0
    summary_lines: int = 0
    flagged: int = 0
    _totals: list[Decimal] = field(default_factory=list)
    _sum: Decimal = Decimal(0)

    def batches(self) -> Iterator[Batch]:
        """The cleaned records. Raises RefusedFile where the rest cannot be read (a quote that never closes)."""
        tables: list[pa.Table] = []
        accepted = 0
        try:
            for block in self._blocks():
                batch = self._clean(block)
                accepted += batch.rows.num_rows
                if self.source.complete is None:
                    yield batch
                elif batch.rows.num_rows or batch.rejected:
                    tables.append(batch.rows)
                    yield Batch(batch.rows.slice(0, 0), batch.rejected, batch.flagged)
        except splitting.QuoteNeverCloses as error:
            raise RefusedFile(
                f"{self.path.name}: line {error.line}: a quote opens in record {error.record} and "
                "never closes; accepted: quotes in pairs; export the file again (it may have been cut off), or "
                "mend the quote and keep the new file"
            ) from error
        except (OSError, UnicodeError) as error:
            raise RefusedFile(
                f"{self.path.name}: changed or vanished while it was read ({error}); load it again"
            ) from error
        if self.source.complete is not None:
            tables, warnings = self.source.complete(tables, self.facts)
            self.warnings += warnings
            yield from (Batch(table, [], 0) for table in tables)
        self._warn_at_the_end(accepted)

    def _warn_at_the_end(self, accepted: int) -> None:
        if self.records_read == 0:
            self.warnings.append("the file has a header but no records")
        if self.source.suspicious_record_count == self.records_read:
            self.warnings.append(
                f"exactly {self.records_read:,} records: the export was probably cut off at its limit; "
                "export a shorter period"
            )
        if self.flagged:
            self.warnings.append(
                f"{self.flagged} records have local times that daylight saving shows twice or skips "
                "(the first of the two is taken; a skipped time moves forward)"
            )
        if self._totals and self._sum not in self._totals:
            found = ", ".join(_dollars(total) for total in self._totals)
            self.warnings.append(
                f"the file's own total ({found}) is not the sum of its accepted records ({_dollars(self._sum)}); "
                f"{self.records_read - self.summary_lines - accepted} records were not accepted"
            )

    def _blocks(self) -> Iterator[splitting.Block]:
        width = len(self.header.cells)
        if self.sheet is None:
            data = _behind(utf8_blocks(self.path, self.encoding), self.data_offset)
            yield from splitting.split(data, self.delimiter, width, self.header_line)
            return
        found = (row for row in workbook.rows(self.path, self.sheet) if row[0] >= self.header_line)
        while part := list(islice(found, splitting.RECORDS_PER_BLOCK)):
            rows = [cells + [""] * (width - len(cells)) for _, cells in part]
            yield splitting.block_of_rows(rows, [number for number, _ in part], width, {})

    def _clean(self, block: splitting.Block) -> Batch:
        """A block of cells as a batch: summary lines out, columns cleaned, records with reasons rejected."""
        texts, defects = block.columns, block.defects
        blank, summary = self._not_records(block)
        numbers = self.records_read + np.cumsum(~blank)
        self.records_read += int((~blank).sum())
        self.summary_lines += int(summary.sum())
        self._note_totals(block, np.flatnonzero(summary))

        kept = np.flatnonzero(~(blank | summary))
        if len(kept) < block.length:
            texts = [column.take(pa.array(kept)) for column in texts]
        length = len(kept)
        reasons: dict[int, list[str]] = {}
        columns: derive.Columns = {}
        odd = np.zeros(length, dtype=np.bool_)
        for name, position in self.header.positions.items():
            column, header = self.source.column(name), self.mapping[name]
            cleaned = column.kind_under(header).clean(texts[position], self.facts.context)
            columns[name] = cleaned.values
            if column.date_as:
                columns[column.date_as] = cleaned.local_date
            if cleaned.odd_times is not None:
                odd |= cleaned.odd_times
            bad = dict(cleaned.bad)
            if column.filled and cleaned.values.null_count > len(bad):
                for empty in np.flatnonzero(cleaned.values.is_null().to_numpy(zero_copy_only=False)).tolist():
                    bad.setdefault(empty, "is blank; accepted: never blank")
            for row, why in bad.items():
                reasons.setdefault(row, []).append(f"{header} {_shown(texts[position][row].as_py())} {why}")
        keys = next((columns[name] for name in self.source.record_key if name in columns), None)
        derived = self.source.derive(columns, length, self.facts)
        for row, (header, why) in derived.reasons.items():
            if not any(reason.startswith(f"{header} ") for reason in reasons.get(row, [])):
                reasons.setdefault(row, []).append(f"{header} {why}")
        for row, original in enumerate(kept.tolist()) if defects else ():
            if original in defects:  # what its cells say does not matter then
                reasons[row] = [defects[original]]

        names = ["record_no"]
        arrays = [pa.array(numbers[kept], pa.int64())]
        for name, sql_type in self.source.staged_columns:
            names.append(name)
            arrays.append(
                derived.columns.get(name, pa.nulls(length, _ARROW_TYPES.get(sql_type, pa.string())))
            )
        rows = pa.table(arrays, names=names)
        rejected: list[Rejected] = []
        if reasons:
            lines = block.lines()
            accepted = np.ones(length, dtype=np.bool_)
            accepted[list(reasons)] = False
            rows, odd = rows.filter(pa.array(accepted)), odd & accepted
            for row, original in ((row, int(kept[row])) for row in sorted(reasons)):
                place = f"line {lines[original]}: "
                rejected.append(
                    Rejected(
                        int(numbers[original]),
                        None if keys is None or original in defects else keys[row].as_py(),
                        [place + reason for reason in reasons[row]],
                        self._record(block, original),
                    )
                )
        flagged = int(odd.sum())
        self.flagged += flagged
        if self.source.summed:
            amounts = pc.cast(rows[self.source.summed], pa.decimal128(38, 6))
            self._sum += pc.sum(amounts).as_py() or Decimal(0)
        return Batch(rows, rejected, flagged)

    def _not_records(self, block: splitting.Block) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
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
        dated = [position for name, position in self.header.positions.items() if name in _DATED]
        for row, position in totals:
            others = [block.columns[other][row].as_py() for other in dated if other != position]
            summary[row] = not any(re.search(r"\d", text) for text in others)
        return blank, summary

    def _note_totals(self, block: splitting.Block, rows: Sequence[int] | npt.NDArray[np.intp]) -> None:
        name = self.source.summed
        if name not in self.header.positions:
            return
        for row in rows:
            text = block.columns[self.header.positions[name]][int(row)].as_py()
            try:
                total = read_decimal(text, 6, Decimal(10) ** 20, decimal_comma=self.source.decimal_comma)
            except Unreadable:
                continue
            if total is not None:
                micros = "micros" in self.mapping[name].casefold()
                self._totals.append(total.scaleb(-6) if micros else total)

    def _record(self, block: splitting.Block, row: int) -> dict[str, str]:
        cells = {
            label: column[row].as_py()
            for label, column in zip(self.header.labels, block.columns, strict=True)
        }
        for number, cell in enumerate(block.beyond.get(row, []), start=len(cells) + 1):
            cells[f"(column {number})"] = cell
        return cells


_DATED = {"created_at", "paid_at", "started_at", "lead_at", "month", "day"}
_ARROW_TYPES = {
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
}


def _shown(text: str) -> str:
    """A cell as messages quote it."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def _dollars(amount: Decimal) -> str:
    """An amount as messages show it: to the cent, or to the millionth where it has more."""
    return f"{amount:,.2f}" if amount == round(amount, 2) else f"{amount:,.6f}"


def _behind(blocks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """The blocks without the first `offset` bytes."""
    for block in blocks:
        if offset >= len(block):
            offset -= len(block)
            continue
        yield block[offset:]
        offset = 0


@dataclass(frozen=True)
class _Beginning:
    """The first rows of a text file under one delimiter: cells, first line, and where the data behind begins."""

    delimiter: str
    rows: list[list[str]]
    next_lines: list[int]
    offsets: list[int]


def _beginnings(path: Path, encoding: str) -> list[_Beginning]:
    text = b""
    for block in utf8_blocks(path, encoding):
        text += block
        if len(text) >= HEADER_BYTES:
            break
    lines = [line + "\n" for line in text[:HEADER_BYTES].decode(errors="ignore").split("\n")]
    found = []
    for delimiter in DELIMITERS:
        consumed = 0
        rows: list[list[str]] = []
        next_lines: list[int] = []
        offsets: list[int] = []
        reader = csv.reader(lines, delimiter=delimiter)
        offset = 0
        for row in islice(reader, HEADER_ROWS):
            offset += sum(len(line.encode()) for line in lines[consumed : reader.line_num])
            consumed = reader.line_num
            rows.append(row)
            next_lines.append(consumed + 1)
            offsets.append(min(offset, len(text)))
        found.append(_Beginning(delimiter, rows, next_lines, offsets))
    return found


def _best(
    source: Source, candidates: Sequence[list[list[str]]], *, sheets: bool
) -> tuple[int, int, HeaderMatch] | None:
    """The candidate and row that read best as the source's header.

    Of sheets the first that is complete; of delimiters the one with most columns.
    """
    best: tuple[int, int, HeaderMatch] | None = None
    for number, rows in enumerate(candidates):
        found = find_header(source, rows)
        if found is None:
            continue
        rank = (found[1].complete, len(found[1].positions))
        if best is None or rank > (best[2].complete, len(best[2].positions)):
            best = number, *found
        if sheets and found[1].complete:
            break
    return best


def _refuse_header(
    path: Path, source: Source, match: HeaderMatch | None, first_rows: list[list[str]]
) -> RefusedFile:
    if match is None:
        found = next((row for row in first_rows if any(cell.strip() for cell in row)), None)
        if found is None:
            return RefusedFile(f"{path.name}: the file holds no text; accepted: an export with a header row")
        needed = "; ".join(
            f"{column.name}: {', '.join(column.headers)}" for column in source.columns if column.present
        )
        return RefusedFile(
            f"{path.name}: no header row of {source.title} in the first {HEADER_ROWS} rows; found: "
            f"{_shown(' | '.join(found))}; accepted headers include {needed}; "
            f"export the file with its header row, or move it to the folder of its source"
        )
    faults = [
        f"two columns for {name}: {' and '.join(repr(cell) for cell in cells)} (accepted: one of them; remove or "
        "rename the other)"
        for name, cells in match.twice.items()
    ]
    faults += [f"column missing: {sentence}" for sentence in match.missing]
    found_headers = ", ".join(cell.strip() for cell in match.cells if cell.strip())
    return RefusedFile(
        f"{path.name}: {'; '.join(faults)}; found: {found_headers[:600]}; export the file with these columns"
    )


def _first_rows_of_sheets(path: Path) -> tuple[list[str], list[list[tuple[int, list[str]]]]]:
    sheets = workbook.sheet_names(path)
    return sheets, [list(islice(workbook.rows(path, sheet), HEADER_ROWS)) for sheet in sheets]


def open_file(path: Path, source: Source, *, exported_at: datetime, timezone: ZoneInfo) -> OpenFile:
    """Open an export file of a known source and understand its header.

    `exported_at` is aware; `timezone` is the business time zone. Raises RefusedFile where the file cannot be
    read or its header lacks what the source needs.
    """
    try:
        return _open_file(path, source, exported_at, timezone)
    except OSError as error:
        raise RefusedFile(f"{path.name}: cannot be read ({error}); check the file and its rights") from error


def _open_file(path: Path, source: Source, exported_at: datetime, timezone: ZoneInfo) -> OpenFile:
    context = Context(zone(timezone), exported_at.astimezone(UTC), source.date_order, source.decimal_comma)
    warnings: list[str] = []
    if is_workbook(path):
        sheets, parts = _first_rows_of_sheets(path)
        encoding = "xlsx"
        candidates = [[cells for _, cells in part] for part in parts]
    else:
        text = sniff_encoding(path)
        warnings += [text.warning] if text.warning else []
        beginnings = _beginnings(path, text.encoding)
        encoding, candidates = text.encoding, [beginning.rows for beginning in beginnings]
    best = _best(source, candidates, sheets=encoding == "xlsx")
    if best is None or not best[2].complete:
        raise _refuse_header(path, source, best and best[2], candidates[0] if candidates else [])
    number, row, header = best
    mapping = {name: header.labels[position] for name, position in header.positions.items()}
    facts = derive.FileFacts(path.name, mapping, candidates[number][:row], context)
    opened = OpenFile(source, path, encoding, "", mapping, header.unknown, warnings, header, facts)
    if encoding == "xlsx":
        opened.sheet, opened.header_line = sheets[number], parts[number][row][0] + 1
    else:
        beginning = beginnings[number]
        opened.delimiter = beginning.delimiter
        opened.header_line, opened.data_offset = beginning.next_lines[row], beginning.offsets[row]
    if source.check is not None:
        source.check(facts)
    return opened


def export_time(path: Path, timezone: ZoneInfo) -> tuple[datetime, str]:
    """When the file was exported, in UTC, and where that is from: `name` or `mtime`.

    A full date-time in the file's name (with `Z` it is UTC, else business time), else the modification time.
    """
    for match in _EXPORT_TIME.finditer(path.name):
        *parts, fraction, utc = match.groups()
        try:
            year, month, day, hour, minute, second = (int(part) for part in parts)
            microsecond = int((fraction or "0").ljust(6, "0")[:6])
            zone_ = UTC if utc else timezone
            named = datetime(year, month, day, hour, minute, second, microsecond, zone_)
        except ValueError:
            continue
        return named.astimezone(UTC), "name"
    return datetime.fromtimestamp(path.stat().st_mtime, UTC), "mtime"


def recognise(path: Path, landing: Path) -> Source:
    """The source of a landing file: by its folder, else by its name, else by its header.

    Raises UnrecognisedFile where none or several sources fit, RefusedFile where the file cannot be read.
    """
    folders = path.relative_to(landing).parts[:-1] if path.is_relative_to(landing) else ()
    if folders:
        if folders[0] in SOURCES:
            return SOURCES[folders[0]]
        raise UnrecognisedFile(
            f"{'/'.join(folders)}/{path.name}: the folder {folders[0]!r} is no source; accepted: "
            f"{', '.join(SOURCES)}; move the file into one of these, or directly into the landing folder"
        )
    named = [
        source
        for source in SOURCES.values()
        if any(re.search(pattern, _words(path.stem)) for pattern in source.filename_patterns)
    ]
    if len(named) == 1:
        return named[0]
    fitting = _fitting_sources(path)
    if len(fitting) == 1:
        return fitting[0]
    accepted = f"move it into the folder of its source ({', '.join(SOURCES)})"
    if not fitting:
        raise UnrecognisedFile(
            f"{path.name}: neither its name nor its header tells the source of this file; {accepted}"
        )
    raise UnrecognisedFile(
        f"{path.name}: its header fits several sources ({', '.join(source.name for source in fitting)}); {accepted}"
    )


def _words(stem: str) -> str:
    """A file's name as words, for its patterns."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)).casefold().strip()


def _fitting_sources(path: Path) -> list[Source]:
    """The sources whose header the file has, with none of the headers that are foreign to them."""
    sheets = is_workbook(path)
    if sheets:
        candidates = [[cells for _, cells in part] for part in _first_rows_of_sheets(path)[1]]
    else:
        candidates = [beginning.rows for beginning in _beginnings(path, sniff_encoding(path).encoding)]
    fitting = []
    for source in SOURCES.values():
        best = _best(source, candidates, sheets=sheets)
        if best and best[2].complete and not best[2].folded & source.foreign_headers:
            fitting.append(source)
    return fitting
