"""Finds a source's header in a file: its row, its delimiter or sheet (or JSON's keys), and which cell is which column."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read, quotable
from crm_analytics.analytics.ingest.reading import workbook
from crm_analytics.analytics.ingest.reading.encoding import (
    DELIMITERS,
    sniff_encoding,
    utf8_blocks,
)
from crm_analytics.analytics.ingest.reading.file_formats import is_workbook
from crm_analytics.analytics.ingest.reading.file_kind import Evidence, weigh
from crm_analytics.analytics.ingest.reading.json_lines import JsonLines, survey
from crm_analytics.analytics.ingest.reading.unpacking import unpacked
from crm_analytics.analytics.ingest.sources.declaration import Source, fold_header
from crm_analytics.analytics.ingest.storage.landing import Content

HEADER_ROWS = 30
HEADER_BYTES = 1 << 18
ENGLISH = "export the file in English"


@dataclass(frozen=True)
class Beginning:
    """The first rows of a sheet, or of a text read with one delimiter; of JSON Lines, the keys as the only row."""

    delimiter: str
    sheet: str | None
    rows: list[list[str]]
    next_lines: list[int]  #: by row, the line (in a sheet, the row) after it
    next_bytes: list[int]  #: by row, the offset after it in the clean UTF-8 text


@dataclass(frozen=True)
class Beginnings:
    """Every way that a file's first rows can be read: every sheet, or a text with every delimiter that is in it."""

    content: Content
    encoding: str  #: `xlsx` for a workbook
    warnings: list[str]
    readings: list[Beginning]
    json_lines: JsonLines | None = None

    @property
    def header_row(self) -> str | None:
        """Returns the row that looks most like a header, as messages quote it; None if all rows are blank.

        That is the first with most cells that have no digit. Its columns may be in another language.
        """
        rows = [
            [cell.strip() for cell in row if cell.strip()]
            for reading in self.readings
            for row in reading.rows
        ]
        best = max(filter(None, rows), key=_labels, default=None)
        if best is None:
            return None
        # a row with digits may be a record with personal data
        text = " | ".join(best)
        return quotable(text, 300) if _labels(best) == len(best) else quotable(text)


def _labels(cells: list[str]) -> int:
    return sum(not any(map(str.isdigit, cell)) for cell in cells)


@dataclass(frozen=True)
class HeaderMatch:
    """A row of cells, matched to a source's columns."""

    cells: list[str]
    positions: dict[str, int]  #: canonical name -> position
    repeated: dict[str, list[str]] = field(default_factory=dict)  #: canonical name -> headers that claim it
    missing: list[str] = field(
        default_factory=list
    )  #: required columns that are not there, with accepted headers

    @property
    def complete(self) -> bool:
        """Returns whether the row can serve as the header."""
        return not self.missing and not self.repeated

    @property
    def unknown(self) -> list[str]:
        """Returns the headers that no column claims."""
        taken = set(self.positions.values())
        return [cell for position, cell in enumerate(self.cells) if position not in taken and cell.strip()]

    @property
    def named_width(self) -> int:
        """Returns how many cells a record must have: those up to the last header that is not blank."""
        return max(number for number, cell in enumerate(self.cells, start=1) if cell.strip())

    @cached_property
    def labels(self) -> list[str]:
        """Returns one distinct label per position: the header as found, numbered if it repeats or is blank."""
        labels: list[str] = []
        seen: set[str] = set()
        for number, cell in enumerate(self.cells, start=1):
            label = cell.strip().strip("\ufeff").strip() or f"(column {number})"
            while label in seen:
                label = f"{label} ({number})"
            seen.add(label)
            labels.append(label)
        return labels


@dataclass(frozen=True)
class Located:
    """A source's header in a file."""

    match: HeaderMatch
    reading: Beginning
    row: int
    evidence: Evidence

    @property
    def fits(self) -> bool:
        """Returns whether a file with this header can be of the source."""
        return self.match.complete and not self.evidence.of_another_kind

    @property
    def preamble(self) -> list[list[str]]:
        """Returns the rows above the header."""
        return self.reading.rows[: self.row]

    @property
    def rows_above(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the rows above the header that are not blank, each with its line (in a sheet, its row)."""
        for number, cells in enumerate(self.preamble):
            if any(cell.strip() for cell in cells):
                after = self.reading.next_lines
                # a row of a text may have several lines
                line = after[number] - 1 if self.reading.sheet else after[number - 1] if number else 1
                yield line, list(cells)

    @property
    def first_line(self) -> int:
        """Returns the line (in a sheet, the row) after the header."""
        return self.reading.next_lines[self.row]

    @property
    def first_byte(self) -> int:
        """Returns the offset after the header in the clean UTF-8 text."""
        return self.reading.next_bytes[self.row]


def read_beginnings(content: Content) -> Beginnings:
    """Reads the first rows of a file with every delimiter, or of every visible sheet, or the keys of JSON Lines.

    Raises RefusedFile.
    """
    try:
        content = unpacked(content)
        if is_workbook(content):
            return Beginnings(
                content, "xlsx", [], [_of_sheet(content, sheet) for sheet in workbook.sheet_names(content)]
            )
        encoding, warnings = sniff_encoding(content)
        start = _start(content, encoding)
        if not start.lstrip().startswith(b"{"):
            return Beginnings(content, encoding, warnings, _of_text(start))
        lines = survey(content, encoding)
        keys = Beginning("", None, [lines.headers], [lines.first_line], [0])
        return Beginnings(content, encoding, warnings, [keys], lines)
    except (OSError, UnicodeError) as error:
        raise RefusedFile(content.name, cannot_be_read(error)) from error


def _of_sheet(content: Content, sheet: str) -> Beginning:
    rows = list(islice(workbook.rows(content, sheet), HEADER_ROWS))
    return Beginning(
        "", sheet, [cells for _, cells in rows], [number + 1 for number, _ in rows], [0] * len(rows)
    )


def _start(content: Content, encoding: str) -> bytes:
    text = b""
    for block in utf8_blocks(content, encoding):
        text += block
        if len(text) >= HEADER_BYTES:
            break
    return text


def _of_text(text: bytes) -> list[Beginning]:
    start = text[:HEADER_BYTES].decode(errors="ignore")
    lines = [line + "\n" for line in start.split("\n")]
    found = []
    # any other delimiter leaves all lines whole, and one reading of whole lines is enough
    for delimiter in [mark for mark in DELIMITERS if mark in start] or DELIMITERS[:1]:
        beginning = Beginning(delimiter, None, [], [], [])
        reader = csv.reader(lines, delimiter=delimiter)
        line = offset = 0
        for row in islice(reader, HEADER_ROWS):
            offset += sum(len(consumed.encode()) for consumed in lines[line : reader.line_num])
            line = reader.line_num
            beginning.rows.append(row)
            beginning.next_lines.append(line + 1)
            beginning.next_bytes.append(min(offset, len(text)))
        found.append(beginning)
    return found


def match_header(source: Source, cells: Sequence[str]) -> HeaderMatch:
    """Matches a row of cells to the source's columns by their folded headers."""
    cells = list(cells)
    folded = [fold_header(cell) for cell in cells]
    owner = source.owners
    claims: dict[str, list[int]] = {}
    for position, header in enumerate(folded):
        if header in owner and header not in source.second_choice:
            claims.setdefault(owner[header], []).append(position)
    for position, header in enumerate(folded):
        if header in source.second_choice:
            first = owner[header]
            claims.setdefault(source.second_choice[header] if first in claims else first, []).append(position)
    missing = [
        f"{column.name} ({', '.join(column.headers)})"
        for column in source.columns
        if column.required and column.name not in claims
    ]
    for group in source.needs_one_of:
        if not any(name in claims for name in group):
            accepted = dict.fromkeys(header for name in group for header in source.column(name).headers)
            missing.append(f"one of {' or '.join(group)} ({', '.join(accepted)})")
    return HeaderMatch(
        cells,
        {name: positions[0] for name, positions in claims.items()},
        {
            name: [cells[position] for position in positions]
            for name, positions in claims.items()
            if len(positions) > 1
        },
        missing,
    )


def find_header(source: Source, rows: Sequence[Sequence[str]]) -> tuple[int, HeaderMatch] | None:
    """Returns the first row that is a complete header, or else the one with most columns; None if no row has any."""
    best: tuple[int, HeaderMatch] | None = None
    for number, row in enumerate(rows):
        if source.owners.keys().isdisjoint(map(fold_header, row)):
            continue
        match = match_header(source, row)
        if match.complete:
            return number, match
        if best is None or len(match.positions) > len(best[1].positions):
            best = number, match
    return best


def best_match(source: Source, beginnings: Beginnings) -> Located | None:
    """Returns what reads best as the source's header, or None if nothing resembles it.

    This is the first sheet with a fitting header, or the delimiter that gives most columns.
    """
    best: Located | None = None
    for reading in beginnings.readings:
        found = find_header(source, reading.rows)
        if found is None:
            continue
        row, match = found
        located = Located(match, reading, row, weigh(source, reading.rows[: row + 1]))
        if best is None or _rank(located) > _rank(best):
            best = located
        if reading.sheet is not None and located.fits:
            break
    return best


def _rank(located: Located) -> tuple[bool, bool, int]:
    return located.fits, located.match.complete, len(located.match.positions)


def locate(source: Source, beginnings: Beginnings) -> Located:
    """Returns the source's header in the file.

    Raises RefusedFile if it is not there, lacks a column, or is that of another kind of file.
    """
    lines = beginnings.json_lines
    if lines is not None and lines.pull is not None and not lines.keys:
        # the service had no record, so its file doesn't tell the fields either
        names = [column.name for column in source.columns]
        beginnings = replace(beginnings, readings=[replace(beginnings.readings[0], rows=[names])])
    found = best_match(source, beginnings)
    if found is None or not found.fits:
        raise RefusedFile(beginnings.content.name, *why_unfit(source, beginnings, found))
    return found


def unread_sheets(source: Source, beginnings: Beginnings, located: Located) -> list[str]:
    """Returns a warning if other sheets of the workbook have a header of the source too, since one sheet is read."""
    if located.reading.sheet is None:
        return []
    others = [
        repr(reading.sheet)
        for reading in beginnings.readings
        if reading is not located.reading
        and (found := find_header(source, reading.rows))
        and found[1].complete
    ]
    if not others:
        return []
    return [
        f"only the sheet {located.reading.sheet!r} was read; similar sheets were not: {', '.join(others)}; "
        "save each sheet as its own file"
    ]


def why_unfit(source: Source, beginnings: Beginnings, found: Located | None) -> list[Reason]:
    """Returns why what reads best as the source's header, if anything does, cannot serve as one."""
    if found is not None:
        return [found.evidence.refusal()] if found.evidence.of_another_kind else list(_faults(found.match))
    header_row = beginnings.header_row
    if header_row is None:
        return [Reason("empty_file", accepted="an export with a header row")]
    required = "; ".join(
        f"{column.name}: {', '.join(column.headers)}" for column in source.columns if column.required
    )
    return [
        Reason(
            "no_header_row",
            found=header_row,
            accepted=f"{source.title} with a header in the first {HEADER_ROWS} rows, which includes {required}",
            remedy=f"{ENGLISH}, with its header row, or move it to the folder of its source",
        )
    ]


def _faults(match: HeaderMatch) -> Iterator[Reason]:
    for name, cells in match.repeated.items():
        found = " and ".join(cells)
        yield Reason("repeated_column", name, found, "one of them", "remove or rename the other")
    if match.missing:
        found = ", ".join(cell.strip() for cell in match.cells if cell.strip())[:600]
        accepted = "; ".join(match.missing)
        yield Reason("missing_columns", None, found, accepted, f"{ENGLISH}, with these columns")
