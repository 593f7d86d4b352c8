"""Where in a file a source's header is: its row, its delimiter or sheet, and where the records begin."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from crm_analytics.analytics.ingest.errors import RefusedFile, shown
from crm_analytics.analytics.ingest.reading import workbook
from crm_analytics.analytics.ingest.reading.encoding import (
    DELIMITERS,
    is_workbook,
    sniff_encoding,
    utf8_blocks,
)
from crm_analytics.analytics.ingest.reading.header import HeaderMatch, find_header
from crm_analytics.analytics.ingest.sources.declaration import Source

HEADER_ROWS = 30
HEADER_BYTES = 1 << 18


@dataclass(frozen=True)
class Beginning:
    """The first rows of a sheet, or of a text read with one delimiter."""

    delimiter: str
    sheet: str | None
    rows: list[list[str]]
    next_lines: list[int]  # by row, the line (of a sheet: the row) behind it
    next_bytes: list[int]  # by row, the offset behind it in the clean UTF-8 text


@dataclass(frozen=True)
class Beginnings:
    """Every way that a file's first rows can be read."""

    path: Path
    encoding: str  # `xlsx` for a workbook
    warnings: list[str]
    readings: list[Beginning]


@dataclass(frozen=True)
class Located:
    """A source's header in a file."""

    match: HeaderMatch
    reading: Beginning
    row: int

    @property
    def preamble(self) -> list[list[str]]:
        """The rows above the header."""
        return self.reading.rows[: self.row]

    @property
    def first_line(self) -> int:
        """The line (of a sheet: the row) behind the header."""
        return self.reading.next_lines[self.row]

    @property
    def first_byte(self) -> int:
        """The offset behind the header in the clean UTF-8 text."""
        return self.reading.next_bytes[self.row]


def read_beginnings(path: Path) -> Beginnings:
    """The first rows of a file, under every delimiter or of every visible sheet. Raises RefusedFile."""
    try:
        if is_workbook(path):
            return Beginnings(
                path, "xlsx", [], [_of_sheet(path, sheet) for sheet in workbook.sheet_names(path)]
            )
        text = sniff_encoding(path)
        warnings = [text.warning] if text.warning else []
        return Beginnings(path, text.encoding, warnings, _of_text(path, text.encoding))
    except (OSError, UnicodeError) as error:
        raise RefusedFile(f"{path.name}: cannot be read ({error}); check the file and its rights") from error


def _of_sheet(path: Path, sheet: str) -> Beginning:
    rows = list(islice(workbook.rows(path, sheet), HEADER_ROWS))
    return Beginning(
        "", sheet, [cells for _, cells in rows], [number + 1 for number, _ in rows], [0] * len(rows)
    )


def _of_text(path: Path, encoding: str) -> list[Beginning]:
    text = b""
    for block in utf8_blocks(path, encoding):
        text += block
        if len(text) >= HEADER_BYTES:
            break
    lines = [line + "\n" for line in text[:HEADER_BYTES].decode(errors="ignore").split("\n")]
    found = []
    for delimiter in DELIMITERS:
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


def best_match(source: Source, beginnings: Beginnings) -> Located | None:
    """What reads best as the source's header: of sheets the first that is complete, of delimiters the one with
    most columns. None where nothing in the file resembles it."""
    best: Located | None = None
    for reading in beginnings.readings:
        found = find_header(source, reading.rows)
        if found is None:
            continue
        row, match = found
        if best is None or _rank(match) > _rank(best.match):
            best = Located(match, reading, row)
        if reading.sheet is not None and match.complete:
            break
    return best


def _rank(match: HeaderMatch) -> tuple[bool, int]:
    return match.complete, len(match.positions)


def locate(source: Source, beginnings: Beginnings) -> Located:
    """The source's header in the file. Raises RefusedFile where it lacks something, or is not there."""
    found = best_match(source, beginnings)
    if found is None or not found.match.complete:
        rows = beginnings.readings[0].rows if beginnings.readings else []
        raise _refusal(beginnings.path, source, found.match if found else None, rows)
    return found


def unread_sheets(source: Source, beginnings: Beginnings, located: Located) -> list[str]:
    """A warning where other sheets of the workbook have a header of the source too: one sheet is read."""
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
        f"only the sheet {located.reading.sheet!r} was read; not read, though they look alike: {', '.join(others)}; "
        "save each sheet as a file of its own"
    ]


def _refusal(
    path: Path, source: Source, match: HeaderMatch | None, first_rows: Sequence[Sequence[str]]
) -> RefusedFile:
    if match is None:
        found = next((row for row in first_rows if any(cell.strip() for cell in row)), None)
        if found is None:
            return RefusedFile(f"{path.name}: the file holds no text; accepted: an export with a header row")
        needed = "; ".join(
            f"{column.name}: {', '.join(column.headers)}" for column in source.columns if column.required
        )
        return RefusedFile(
            f"{path.name}: no header row of {source.title} in the first {HEADER_ROWS} rows; found: "
            f"{shown(' | '.join(found))}; accepted headers include {needed}; "
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
