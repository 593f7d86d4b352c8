"""XLSX workbooks as rows of text: visible sheets, within the sheet format's own limits."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from openpyxl import load_workbook

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading.encoding import check_workbook_size

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
            rounded: datetime = value.replace(microsecond=0)
            return rounded.date().isoformat() if rounded.time() == time() else rounded.isoformat(" ")
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


Formulas = dict[int, dict[int, str]]  # row number -> position in the row -> formula


def rows(path: Path, sheet: str, uncomputed: Formulas | None = None) -> Iterator[tuple[int, list[str]]]:
    """The sheet's rows that hold anything: row number from 1, cells as text. Raises RefusedFile.

    A formula without a result is blank, or itself where it stands in `uncomputed`.
    """
    with _refusing(path), _sheet(path, sheet, data_only=True) as worksheet:
        for number, row in enumerate(worksheet.iter_rows(values_only=True), start=1):
            if number > MAX_ROWS or len(row) > MAX_COLUMNS:
                raise RefusedFile(
                    f"{path.name}: sheet {sheet!r} goes beyond {MAX_ROWS:,} rows or {MAX_COLUMNS:,} columns; save it as CSV"
                )
            cells = [cell_text(value) for value in row]
            for position, formula in uncomputed.get(number, {}).items() if uncomputed else ():
                cells[position] = formula
            if any(cells):
                yield number, cells


def formulas_without_result(path: Path, sheet: str) -> Formulas:
    """The sheet's formulas that were never computed (a program wrote them). Raises RefusedFile.

    The sheet is read for this only if the workbook has any formula at all.
    """
    found: Formulas = {}
    with _refusing(path):
        if not _has_formulas(path):
            return {}
        with (
            _sheet(path, sheet, data_only=True) as results,
            _sheet(path, sheet, data_only=False) as formulas,
        ):
            for number, (computed, written) in enumerate(
                zip(results.iter_rows(), formulas.iter_rows(), strict=True), start=1
            ):
                here = {
                    position: cell_text(
                        getattr(formula.value, "text", formula.value)
                    )  # an array's is an object
                    for position, (result, formula) in enumerate(zip(computed, written, strict=True))
                    # a result that is an empty text says that it is a text
                    if formula.data_type == "f" and result.value is None and result.data_type != "str"
                }
                if here:
                    found[number] = here
    return found


@contextmanager
def _sheet(path: Path, sheet: str, *, data_only: bool) -> Iterator[Any]:
    workbook = load_workbook(path, read_only=True, data_only=data_only)
    try:
        worksheet = workbook[sheet]
        worksheet.reset_dimensions()  # the declared size may be anything; what is there counts
        yield worksheet
    finally:
        workbook.close()


_FORMULA = re.compile(rb"<(\w{1,20}:)?f[\s/>]")


def _has_formulas(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
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
