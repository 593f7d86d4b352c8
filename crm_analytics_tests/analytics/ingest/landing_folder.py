"""A landing folder for tests: files in the real formats, with chosen export times."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.loading.results import FileResult, LoadResult
from crm_analytics.analytics.ingest.storage.landing import LandingFile
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder

NEW_YORK = ZoneInfo("America/New_York")
JOBS = ("Job #", "UUID", "Job Type", "Source", "Status", "Created", "Job Date", "Tech", "Zip Code", "Total")
PAYMENTS = ("Payment ID", "Job #", "Date", "Amount", "Payment Methods", "Status", "Confirmation code")
CALLS = ("From", "From number", "To", "To number", "Time", "Flow", "Answered", "Duration")
ELOCALS = ("Unique ID", "Time", "Duration", "Cost", "Status", "Caller ID")
PROREF = ("Lead ID", "Date", "Customer", "Category", "ZIP", "Current Status")


def text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a CSV file's text."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return target.getvalue()


def job(number: int | str, uuid: str = "", **changes: str) -> tuple[str, ...]:
    """Returns a row under `JOBS`."""
    values = {
        "Job #": str(number),
        "UUID": uuid,
        "Job Type": "COD Service",
        "Source": "Google",
        "Status": "Done",
        "Created": "Fri Nov 15 2024",
        "Job Date": "",
        "Tech": "Ann",
        "Zip Code": "10001",
        "Total": "85",
    }
    return tuple(
        (values | {name.replace("_", " "): value for name, value in changes.items()})[c] for c in JOBS
    )


def set_ages(monkeypatch: pytest.MonkeyPatch, ages: dict[str, float]) -> dict[str, float]:
    """Gives files ages in seconds by name, instead of those that a busy machine makes; returns them to be changed."""
    monkeypatch.setattr(LandingFile, "age", lambda file: ages[file.name])
    return ages


def record_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Returns a list to which every further call of a function adds its positional arguments."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(owner, name)

    def recorded(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, recorded)
    return calls


def record_statements(connection: psycopg.Connection[Any]) -> list[str]:
    """Returns a list to which every further statement of the connection adds itself, without BEGIN and COMMIT."""
    statements: list[str] = []

    class Recording(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            statements.append(text_of(query))
            return super().execute(query, *arguments, **options)

        def copy(self, statement: Any, *arguments: Any, **options: Any) -> Any:
            statements.append(text_of(statement))
            return super().copy(statement, *arguments, **options)

    connection.cursor_factory = Recording
    return statements


def text_of(statement: Any) -> str:
    """Returns a statement, in whatever form it is executed, as one line of text."""
    if isinstance(statement, bytes):
        statement = statement.decode()
    text = statement.as_string() if isinstance(statement, sql.Composable) else statement
    return " ".join(text.split())


def write_export(folder: Path, name: str, content: str | bytes, *, day: int | None = None) -> Path:
    """Writes a file below a folder; `day` sets its modification time to that day of January 2025, 12:00 UTC."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if day is not None:
        moment = datetime(2025, 1, day, 12, tzinfo=UTC).timestamp()
        os.utime(path, (moment, moment))
    return path


def local_file(path: Path, landing: Path) -> LandingFile:
    """Returns a file of a landing folder on this machine."""
    found = LocalFolder(landing).find(path.relative_to(landing).as_posix())
    assert found is not None
    return found


class Landing:
    """A landing folder under `folder`, and a connection to the database into which it loads."""

    def __init__(self, folder: Path, connection: psycopg.Connection[Any]) -> None:
        self.folder = folder / "landing"
        self.folder.mkdir()
        self.connection = connection

    def write(self, name: str, content: str | bytes, *, day: int | None = None) -> Path:
        """Writes a file into the folder, as `write_export` does."""
        return write_export(self.folder, name, content, day=day)

    def load(self, source: str, **options: Any) -> LoadResult:
        """Loads one source."""
        return load_source(self.connection, self.folder, source, timezone=NEW_YORK, **options)

    def load_one(self, source: str, **options: Any) -> FileResult:
        """Loads one source of which exactly one file is new."""
        (file,) = self.load(source, **options).files
        return file

    def rows(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Returns what a query finds."""
        return self.connection.execute(query, parameters).fetchall()

    def table(self, name: str) -> list[tuple[Any, ...]]:
        """Returns a table's rows, sorted, without file, record and time of the change."""
        columns = ", ".join(
            f'"{column}"'
            for (column,) in self.rows(
                "SELECT column_name FROM information_schema.columns WHERE table_schema || '.' || table_name = %s"
                " AND column_name NOT IN ('file_id', 'record_no', 'updated_at') ORDER BY ordinal_position",
                [name],
            )
        )
        return self.rows(f"SELECT {columns} FROM {name} ORDER BY 1, 2")
