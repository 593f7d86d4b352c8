"""Reads XLSX workbooks as rows of text: visible sheets, within the limits of the format."""

from __future__ import annotations

import errno
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Literal

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.reading.file_formats import check_workbook_size, damaged_workbook
from crm_analytics.analytics.ingest.storage.landing import Content

MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384
# Its warnings (styles, extensions, bad dates) do not matter here, or the cell becomes text like `#VALUE!`.
warnings.filterwarnings("ignore", module=r"openpyxl\.")


def cell_text(value: Any) -> str:
    """Returns a cell's value as the text that a CSV export would have.

    Numbers have 15 significant digits, as a spreadsheet shows them (244.60000000000002 is 244.6), whole floats have
    no decimals, times are in ISO form to the second, and a midnight is its date.
    """
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case float():
            text = format(value, ".15g")
            return str(int(value)) if "e" in text and value.is_integer() and abs(value) < 1e15 else text
        case datetime():
            if value.year < 9999:
                value += timedelta(microseconds=500_000)
            rounded: datetime = value.replace(microsecond=0)
            return rounded.date().isoformat() if rounded.time() == time() else rounded.isoformat(" ")
        case date():
            return value.isoformat()
        case time():
            return cell_text(datetime.combine(date.min, value) - datetime.min).zfill(len("00:00:00"))
        case timedelta():
            minutes, seconds = divmod(round(value.total_seconds()), 60)
            return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        case _:
            # Escapes such as _x0000_ and _xD800_ make characters that PostgreSQL does not store.
            return str(value).replace("\x00", "\ufffd").encode(errors="replace").decode()


#: What a number format shows literally, and its colors and locales; `[h]` is the number of all hours.
_LITERAL = re.compile(r'"[^"]*"|\\.|_.|\[(?!h+\]|m+\]|s+\])[^\]]*\]', re.IGNORECASE)
#: Year of a spreadsheet's first day -> the day before it, from which a duration of days is counted.
_DAY_ZERO = {1900: datetime(1899, 12, 31), 1904: datetime(1904, 1, 1)}


@lru_cache
def _clock_format(number_format: str) -> Literal["minutes", "seconds"] | None:
    """Returns to what a format shows times; None if it shows dates, or neither."""
    code = _LITERAL.sub("", number_format).casefold()
    if "h" not in code or "y" in code or "d" in code:
        return None
    return "seconds" if "s" in code else "minutes"


def _duration(value: datetime | time | timedelta, clock: str | None) -> datetime | time | timedelta:
    """Returns a duration of more than a day, which is a date of the spreadsheet's first year to the library."""
    if clock and isinstance(value, datetime) and value.year in _DAY_ZERO:
        return value - _DAY_ZERO[value.year]
    return value


@contextmanager
def _refusing(content: Content) -> Iterator[None]:
    """Turns every error of the library, which raises many kinds for damaged workbooks, into a refusal."""
    try:
        yield
    except RefusedFile:
        raise
    except Exception as error:
        # An OSError as the cause means a file that may be readable later; the library raises it for damage, too.
        damage = isinstance(error, OSError) and error.errno in (None, errno.EINVAL)
        raise damaged_workbook(content, error) from (None if damage else error)


def sheet_names(content: Content) -> list[str]:
    """Returns the names of the visible sheets, in order. Raises RefusedFile."""
    with _refusing(content):
        check_workbook_size(content)
        with _open(content, data_only=True) as workbook:
            return [sheet.title for sheet in workbook.worksheets if sheet.sheet_state == "visible"]


#: row number -> position in the row -> formula
Formulas = dict[int, dict[int, str]]


def rows(
    content: Content,
    sheet: str,
    uncomputed: Formulas | None = None,
    shown_to_the_minute: set[int] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yields the sheet's rows that are not blank: row number from 1, and cells as text. Raises RefusedFile.

    A formula without a stored result is blank, or its own text if `uncomputed` has it. `shown_to_the_minute` gets the
    positions of columns with durations that are shown without seconds.
    """
    with _refusing(content), _sheet(content, sheet, data_only=True) as worksheet:
        for number, row in enumerate(worksheet.iter_rows(), start=1):
            if number > MAX_ROWS or len(row) > MAX_COLUMNS:
                accepted = f"at most {MAX_ROWS:,} rows and {MAX_COLUMNS:,} columns"
                reason = Reason("sheet_too_large", None, None, accepted, "save it as CSV")
                raise RefusedFile(content.name, reason, place=f"sheet {sheet!r}, row {number}")
            cells = []
            for position, cell in enumerate(row):
                value = cell.value
                if isinstance(value, datetime | time | timedelta):
                    clock = _clock_format(cell.number_format)
                    value = _duration(value, clock)
                    if (
                        clock == "minutes"
                        and isinstance(value, time | timedelta)
                        and shown_to_the_minute is not None
                    ):
                        shown_to_the_minute.add(position)
                cells.append(cell_text(value))
            for position, formula in uncomputed.get(number, {}).items() if uncomputed else ():
                cells[position] = formula
            if any(cells):
                yield number, cells


def formulas_without_result(content: Content, sheet: str) -> Formulas:
    """Returns the sheet's formulas without a stored result, as programs write them. Raises RefusedFile.

    Reads the sheet only if the workbook has a formula.
    """
    found: Formulas = {}
    with _refusing(content):
        if not _has_formulas(content):
            return {}
        with (
            _sheet(content, sheet, data_only=True) as results,
            _sheet(content, sheet, data_only=False) as formulas,
        ):
            for number, (computed, written) in enumerate(
                zip(results.iter_rows(), formulas.iter_rows(), strict=True), start=1
            ):
                # An array formula's value is an object with a text. A stored result that is an empty text has type `str`.
                here = {
                    position: cell_text(getattr(formula.value, "text", formula.value))
                    for position, (result, formula) in enumerate(zip(computed, written, strict=True))
                    if formula.data_type == "f" and result.value is None and result.data_type != "str"
                }
                if here:
                    found[number] = here
    return found


@contextmanager
def _open(content: Content, *, data_only: bool) -> Iterator[Any]:
    # as long to import as a small CSV file takes to load, and most files are CSV
    from openpyxl import load_workbook

    # Given a path, the library refuses names that do not end like a workbook's.
    with content.open("rb") as file:
        workbook = load_workbook(file, read_only=True, data_only=data_only)
        try:
            yield workbook
        finally:
            workbook.close()


@contextmanager
def _sheet(content: Content, sheet: str, *, data_only: bool) -> Iterator[Any]:
    with _open(content, data_only=data_only) as workbook:
        worksheet = workbook[sheet]
        # The declared size may be wrong.
        worksheet.reset_dimensions()
        yield worksheet


_FORMULA = re.compile(rb"<(\w{1,20}:)?f[\s/>]")


def _has_formulas(content: Content) -> bool:
    with content.open("rb") as file, zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not name.endswith(".xml"):
                continue
            with archive.open(name) as part:
                end = b""
                while block := part.read(1 << 20):
                    if _FORMULA.search(end + block):
                        return True
                    end = block[-24:]
    return False
