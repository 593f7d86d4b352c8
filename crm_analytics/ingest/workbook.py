"""XLSX workbooks as rows of text: visible sheets, within the sheet format's own limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from openpyxl import load_workbook

from crm_analytics.ingest.errors import RefusedFile
from crm_analytics.ingest.sniffing import check_workbook_size

MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384
# What it remarks on (styles, extensions, bad dates) either does not matter here or becomes a cell like `#VALUE!`.
warnings.filterwarnings("ignore", module=r"openpyxl\.")


def cell_text(value: Any) -> str:
    """A cell's value as the text that a CSV export would have.

    Numbers to 15 significant digits (what a spreadsheet shows: 244.60000000000002 is 244.6), whole floats
    without decimals, moments in ISO form to the second, a midnight as its date.
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
            value = value.replace(microsecond=0)
            return value.date().isoformat() if value.time() == time() else value.isoformat(" ")
        case date() | time():
            return value.isoformat()
        case timedelta():
            minutes, seconds = divmod(round(value.total_seconds()), 60)
            return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        case _:
            # Escapes such as _x0000_ and _xD800_ make characters that no database takes.
            return str(value).replace("\x00", "\ufffd").encode(errors="replace").decode()


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever the library meets in a damaged workbook (it raises many kinds of errors) is a refusal."""
    try:
        yield
    except RefusedFile:
        raise
    except Exception as error:
        raise RefusedFile(
            f"{path.name}: the workbook is damaged ({type(error).__name__}: {str(error)[:200]}); copy or export it again, or save it as CSV"
        ) from error


def sheet_names(path: Path) -> list[str]:
    """The names of the visible sheets, in order. Raises RefusedFile."""
    with _refusing(path):
        check_workbook_size(path)
        workbook = load_workbook(path, read_only=True, data_only=True)
        try:
            return [sheet.title for sheet in workbook.worksheets if sheet.sheet_state == "visible"]
        finally:
            workbook.close()


def rows(path: Path, sheet: str) -> Iterator[tuple[int, list[str]]]:
    """The sheet's rows that hold anything: row number from 1, cells as text. Raises RefusedFile."""
    with _refusing(path):
        workbook = load_workbook(path, read_only=True, data_only=True)
        try:
            worksheet = workbook[sheet]
            worksheet.reset_dimensions()  # the declared size may be anything; what is there counts
            for number, row in enumerate(worksheet.iter_rows(values_only=True), start=1):
                if number > MAX_ROWS or len(row) > MAX_COLUMNS:
                    raise RefusedFile(
                        f"{path.name}: sheet {sheet!r} goes beyond {MAX_ROWS:,} rows or {MAX_COLUMNS:,} columns; save it as CSV"
                    )
                cells = [cell_text(value) for value in row]
                if any(cells):
                    yield number, cells
        finally:
            workbook.close()
