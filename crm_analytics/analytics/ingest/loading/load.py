"""Loading a source: every new or changed landing file, whole, in export order, one transaction a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import errors

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.late_files import NewerFiles, NewerKeys
from crm_analytics.analytics.ingest.loading.ledger import Content, Counts, Entry, Reading
from crm_analytics.analytics.ingest.loading.merge import Merged, UnknownNewerValues, merge
from crm_analytics.analytics.ingest.loading.plans import PLANS, Plan
from crm_analytics.analytics.ingest.loading.staging import stage
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, export_time, open_file
from crm_analytics.core import locks

Connection = psycopg.Connection[Any]
Report = Callable[[str], None]

LARGE = 20_000_000  #: bytes of a file whose reading is announced
WORK_MEM = "128MB"  #: joins of a million staged records; PostgreSQL's default of 4 MB spills them to disk


@dataclass
class FileResult:
    """What became of one file in one run."""

    path: str  #: below the landing folder
    status: str  #: loaded, refused, same_content, or waiting (it may still be growing, or changed while it was read)
    message: str | None = None
    file_id: int = 0  #: ledger entry; 0 while there is none
    counts: Counts = field(default_factory=Counts)
    warnings: list[str] = field(default_factory=list)
    changed_by_month: dict[date, int] = field(default_factory=dict)


@dataclass
class LoadResult:
    """What a run did for one source."""

    source: str
    files: list[FileResult] = field(default_factory=list)

    @property
    def months(self) -> set[date]:
        """Months (first days) in which rows were inserted, updated or removed."""
        return set(self.rows_by_month)

    @property
    def rows_by_month(self) -> dict[date, int]:
        """How many rows were inserted, updated or removed, by month (a row that moved counts in both)."""
        total: dict[date, int] = {}
        for file in self.files:
            for month, rows in file.changed_by_month.items():
                total[month] = total.get(month, 0) + rows
        return dict(sorted(total.items()))

    @property
    def totals(self) -> Counts:
        """The files' counts added up."""
        return sum((file.counts for file in self.files), Counts())

    @property
    def refused(self) -> list[FileResult]:
        """The files that could not be read."""
        return [file for file in self.files if file.status == "refused"]


def load_source(
    connection_or_url: Connection | str,
    landing: Path,
    source: str,
    *,
    timezone: ZoneInfo,
    run_id: str | None = None,
    force: bool = False,
    quiet_seconds: float = 0,
    report: Report = lambda message: None,
) -> LoadResult:
    """Load every new or changed landing file of a source (architecture, decisions 3 and 8).

    Files apply in the order (export time, path), each in its own transaction, so that a kill leaves whole files.
    A file that comes late, after newer ones, changes only what these left open. A file that cannot be read is
    refused in the ledger and does not stop the others. One load of a source runs at a time; others wait.

    Args:
        connection_or_url: an idle connection to the analytics database, or its URL.
        landing: the landing folder.
        source: one of `sources.SOURCES`.
        timezone: the business timezone.
        run_id: the Dagster run, for the ledger.
        force: read loaded files again too.
        quiet_seconds: a file that was touched within so many seconds may still be growing. It gets this time to
            settle; if it has not, it is not loaded (status `waiting`).
        report: takes progress messages, one line each.

    Raises:
        FileNotFoundError: if the landing folder does not exist.
        ValueError: if the database's dates are in another timezone.
        psycopg.Error: if the database fails; files loaded before stay loaded.
    """
    plan = PLANS[source]
    with _session(connection_or_url) as connection, _only_load_of(connection, source, report):
        _refuse_other_timezone(connection, timezone)
        found = _settled(connection, landing, source, force, quiet_seconds, report)
        quiet: list[PendingFile] = []
        growing: list[PendingFile] = []
        for file in found:
            (quiet if file.age() >= quiet_seconds else growing).append(file)
        _record_unrecognized(connection, quiet, timezone, run_id)
        result = LoadResult(source)

        def conclude(file: FileResult) -> None:
            result.files.append(file)
            report(describe(file))

        for entry in landing_folder.scan(landing).unreadable:
            if entry.source == source:
                conclude(FileResult(entry.name, "refused", entry.message))
        for file in growing:
            if file.source == source:
                message = (
                    f"{file.name}: touched less than {quiet_seconds:g} s ago, so it may still be growing; the first run"
                    " after it has settled loads it"
                )
                conclude(FileResult(file.name, "waiting", message))
        run = _Run(connection, landing, plan, timezone, run_id, report)
        try:
            run.load([file for file in quiet if file.source == source], conclude)
            return result
        finally:
            run.close()


def record_unrecognized(
    connection: Connection, landing: Path, *, timezone: ZoneInfo, run_id: str | None = None
) -> list[PendingFile]:
    """Write files that no source recognizes into the ledger, once for each content; returns the new ones."""
    found = landing_folder.pending(connection, landing)
    return _record_unrecognized(connection, found, timezone, run_id)


def try_file(
    connection: Connection, landing: Path, file: PendingFile, *, timezone: ZoneInfo
) -> tuple[FileResult, list[tuple[int, str | None, list[str]]]]:
    """What loading this file now would do: its result, and record number, key and reasons of the quarantined.

    Everything happens in a transaction that is rolled back.
    """
    assert file.source is not None
    with (
        _session(connection) as session,
        _only_load_of(session, file.source, lambda message: None),
        session.transaction(force_rollback=True),
    ):
        run = _Run(session, landing, PLANS[file.source], timezone, None, lambda message: None)
        results: list[FileResult] = []
        run.load([file], results.append)
        (result,) = results
        rejected = session.execute(
            "SELECT record_no, row_key, reasons FROM raw.rejected_rows WHERE file_id = %s ORDER BY record_no",
            [result.file_id],
        ).fetchall()
        return result, [(number, key, reasons) for number, key, reasons in rejected]


def _settled(
    connection: Connection, landing: Path, source: str, force: bool, quiet_seconds: float, report: Report
) -> list[PendingFile]:
    """The pending files, after those of this source that were just touched had time to settle."""
    found = landing_folder.pending(connection, landing, only=source, include_loaded=force)
    young = [file for file in found if file.source == source and file.age() < quiet_seconds]
    if not young:
        return found
    seconds = quiet_seconds - min(file.age() for file in young)
    others = f" and {len(young) - 1} more" if len(young) > 1 else ""
    report(f"{source}: waiting {seconds:.0f} s for {young[0].name}{others} to settle")
    time.sleep(seconds + 0.1)
    return landing_folder.pending(connection, landing, only=source, include_loaded=force)


def _record_unrecognized(
    connection: Connection, found: list[PendingFile], timezone: ZoneInfo, run_id: str | None
) -> list[PendingFile]:
    unrecognized = [file for file in found if file.source is None]
    for file in unrecognized:
        try:
            content = _content(file, timezone)
        except OSError:
            continue  # gone, or not readable by this user: the next run sees
        version = landing_folder.declarations_version()
        with connection.transaction():
            file_id = ledger.identify(connection, None, content, version)
            ledger.see_unrecognized_again(connection, file_id, content.modified_at)
            ledger.close_replaced(connection, content.path, file_id)
            reading = Reading("unrecognized", version, file.message, run_id=run_id)
            ledger.conclude(connection, file_id, reading)
    return unrecognized


def _content(file: PendingFile, timezone: ZoneInfo) -> Content:
    exported_at, exported_at_from = export_time(file.path, timezone)
    sha256 = landing_folder.fingerprint(file.path)
    return Content(file.name, sha256, file.size, file.modified_at, exported_at, exported_at_from)


@contextmanager
def _session(connection_or_url: Connection | str) -> Iterator[Connection]:
    """A connection in autocommit mode: transactions are begun where they are meant."""
    if isinstance(connection_or_url, str):
        with psycopg.connect(connection_or_url, autocommit=True) as connection:
            yield connection
        return
    connection = connection_or_url
    before = connection.autocommit
    if not before:
        connection.autocommit = True
    try:
        yield connection
    finally:
        if not before and not connection.closed:
            connection.autocommit = before


@contextmanager
def _only_load_of(connection: Connection, source: str, report: Report) -> Iterator[None]:
    """The source's advisory lock, held by the session across the files' transactions."""
    lock = [locks.load(source)]
    row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", lock).fetchone()
    if not (row and row[0]):
        report(f"{source}: waiting for another load of this source to end")
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", lock)
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", lock)


def _refuse_other_timezone(connection: Connection, timezone: ZoneInfo) -> None:
    """Dates in two timezones would lie side by side in one table (architecture, decision 13)."""
    row = connection.execute("SELECT timezone FROM analytics.business").fetchone()
    if row is not None and row[0] != timezone.key:
        raise ValueError(
            f"this database's dates are in {row[0]}, but BUSINESS_TIMEZONE is {timezone.key}. "
            f"Set BUSINESS_TIMEZONE={row[0]}, or load the landing folder into a new database."
        )


class _FileChanged(Exception):
    """The file changed while it was read."""


#: what lies at a path now comes after whatever lay there before
_LAST = datetime.max.replace(tzinfo=UTC)


_DATED_BACK = (
    "its modification time is before that of the content which it replaced here; it counts as the newer one, because"
    " it replaced it"
)


@dataclass(frozen=True)
class _Reading:
    """A file to be read: its content, with its export time in the order, and its ledger entry if it has one."""

    file: PendingFile
    content: Content
    entry: Entry | None
    dated_back: bool  #: its modification time is before that of the content which it replaces

    @property
    def order(self) -> ledger.Order:
        """Its place in the order."""
        return (self.content.exported_at, self.content.path, _LAST)


@dataclass
class _Run:
    """One run's state: the source's ledger entries, and the newer keys once a late file needs them."""

    connection: Connection
    landing: Path
    plan: Plan
    timezone: ZoneInfo
    run_id: str | None
    report: Report

    def __post_init__(self) -> None:
        mine = (self.plan.source.name, None)
        self.entries = {
            entry.file_id: entry for entry in ledger.entries(self.connection) if entry.source in mine
        }
        self.newer_keys = NewerKeys(self.connection, self.landing, self.plan, self.timezone, self.report)

    def close(self) -> None:
        """Leave the session as it was."""
        if not self.connection.broken:
            self.newer_keys.drop()

    def load(self, files: list[PendingFile], conclude: Callable[[FileResult], None]) -> None:
        """Load the files in their order; copies of what counts already first, since late files may need them."""
        reading: list[_Reading] = []
        for file in files:
            try:
                item = self._identify(file)
            except FileNotFoundError:
                continue  # removed since the folder was listed
            except OSError as error:
                conclude(_cannot_read(file, error))
                continue
            copy = self._conclude_copy(item)
            if copy is not None:
                conclude(copy)
            else:
                reading.append(item)
        for item in sorted(reading, key=lambda item: item.order):
            conclude(self._conclude_copy(item) or self._load_file(item))

    def _identify(self, file: PendingFile) -> _Reading:
        """The file's content and its place in the order.

        The export time is frozen when a content is first seen, until other content of its path was loaded after it.
        It is never before that of the content which it replaces: contents of one path apply as they came.
        """
        content = _content(file, self.timezone)
        here = [entry for entry in self.entries.values() if entry.path == content.path]
        entry = next((entry for entry in here if entry.sha256 == content.sha256), None)
        placed = [other for other in here if other.counts_in_order]
        exported_at = content.exported_at
        if entry is not None and all(other.first_seen_at <= entry.first_seen_at for other in placed):
            exported_at = entry.exported_at
        own = exported_at
        exported_at = max([own, *(other.exported_at for other in placed)])
        returned = entry is not None and (
            entry.exported_at != exported_at
            or any(other.first_seen_at > entry.first_seen_at for other in here)
        )
        content = replace(content, exported_at=exported_at, returned=returned)
        return _Reading(file, content, entry, own < exported_at)

    def _conclude_copy(self, item: _Reading) -> FileResult | None:
        """Note content that counts already under another path, and after which nothing else was exported.

        None if the file has to be read.
        """
        content, entry = item.content, item.entry
        if entry is not None and entry.status == "loaded" and not content.returned:
            return None
        placed = [other for other in self.entries.values() if other.counts_in_order]
        twins = [
            other
            for other in placed
            if other.status == "loaded" and other.sha256 == content.sha256 and other is not entry
        ]
        if not twins:
            return None
        twin = max(twins, key=lambda other: other.order)
        if any(twin.order < other.order < item.order and other.sha256 != content.sha256 for other in placed):
            return None
        message = f"{content.path}: the same content as {twin.path}, which is loaded"
        reading = Reading("same_content", self.plan.source.version, message, twin.file_id, run_id=self.run_id)
        return self._conclude_without_rows(content, reading)

    def _load_file(self, item: _Reading) -> FileResult:
        content, entry = item.content, item.entry
        newer = self.newer_keys.after(
            item.order, entry.file_id if entry else None, content.path, self.entries.values()
        )
        try:
            with self.connection.transaction():
                result = self._load_rows(item, newer)
        except (
            _FileChanged,
            RefusedFile,
            UnknownNewerValues,
            OSError,
            errors.DataError,
            errors.IntegrityError,
            errors.ProgramLimitExceeded,
        ) as error:
            return self._not_loaded(item, newer, error)
        self._remember(result.file_id)
        return result

    def _not_loaded(self, item: _Reading, newer: NewerFiles, error: Exception) -> FileResult:
        """Refuse a content only for what it says itself: not for what was read while it changed, or could not be."""
        content = item.content
        if isinstance(error, _FileChanged) or not item.file.is_unchanged(self.landing):
            message = f"{content.path}: changed while it was read; it is loaded when it has settled"
            return FileResult(content.path, "waiting", message)
        fault = error if isinstance(error, OSError) else error.__cause__
        if isinstance(fault, OSError):
            return _cannot_read(item.file, fault)
        if isinstance(error, UnknownNewerValues):
            return self._refuse(content, _unknowable(content, newer, error))
        if isinstance(error, psycopg.Error):
            return self._refuse(content, _refused_by_database(content, error))
        return self._refuse(content, str(error))

    def _load_rows(self, item: _Reading, newer: NewerFiles) -> FileResult:
        file, content = item.file, item.content
        source = self.plan.source
        connection = self.connection
        if file.size > LARGE:
            self.report(f"{content.path}: reading {file.size / 1_000_000:,.0f} MB")
        connection.execute(f"SET LOCAL work_mem = '{WORK_MEM}'")
        opened = open_file(file.path, source, exported_at=content.exported_at, timezone=self.timezone)
        file_id = ledger.identify(connection, source.name, content, source.version)
        ledger.close_replaced(connection, content.path, file_id)
        dismissed = _forget_quarantine(connection, file_id)
        staged = stage(connection, opened, self.plan, file_id)
        merged = merge(connection, staged, file_id, newer)
        _dismiss_again(connection, file_id, dismissed)
        merged.counts.records_read = opened.records_read
        merged.counts.summary_lines = opened.summary_lines
        if not file.is_unchanged(self.landing):
            raise _FileChanged
        warnings = [
            *([_DATED_BACK] if item.dated_back else []),
            *opened.warnings,
            *merged.warnings,
            *_column_warnings(connection, opened, file_id, merged),
        ]
        ledger.conclude(
            connection,
            file_id,
            _reading_of(opened, merged, warnings, self.run_id),
        )
        return FileResult(
            content.path, "loaded", None, file_id, merged.counts, warnings, merged.changed_by_month
        )

    def _refuse(self, content: Content, message: str) -> FileResult:
        reading = Reading("refused", self.plan.source.version, message, run_id=self.run_id)
        return self._conclude_without_rows(content, reading)

    def _conclude_without_rows(self, content: Content, reading: Reading) -> FileResult:
        with self.connection.transaction():
            file_id = ledger.identify(
                self.connection, self.plan.source.name, content, self.plan.source.version
            )
            ledger.close_replaced(self.connection, content.path, file_id)
            _forget_quarantine(self.connection, file_id)
            ledger.conclude(self.connection, file_id, reading)
        self._remember(file_id)
        return FileResult(content.path, reading.status, reading.message, file_id)

    def _remember(self, file_id: int) -> None:
        (self.entries[file_id],) = ledger.entries(self.connection, file_id)


def _cannot_read(file: PendingFile, error: OSError) -> FileResult:
    """What cannot be read now may be readable later: the ledger says nothing about it, and the next run tries again."""
    message = f"{file.name}: cannot be read ({error.strerror or error}); check the file and its rights"
    return FileResult(file.name, "refused", message)


def _forget_quarantine(connection: Connection, file_id: int) -> list[tuple[int, str | None, str, Any]]:
    """Remove what an earlier reading of this file quarantined; returns what a person had dismissed of it."""
    dismissed = connection.execute(
        "SELECT record_no, note, record::text, closed_at FROM raw.rejected_rows"
        " WHERE file_id = %s AND status = 'dismissed'",
        [file_id],
    ).fetchall()
    connection.execute("DELETE FROM raw.rejected_rows WHERE file_id = %s", [file_id])
    return dismissed


def _dismiss_again(
    connection: Connection, file_id: int, dismissed: list[tuple[int, str | None, str, Any]]
) -> None:
    """A record that a person dismissed stays so when its file is read again."""
    for record_no, note, record, closed_at in dismissed:
        connection.execute(
            "UPDATE raw.rejected_rows SET status = 'dismissed', note = %s, closed_at = %s"
            " WHERE file_id = %s AND record_no = %s AND record = %s::jsonb",
            [note, closed_at, file_id, record_no, record],
        )


def _column_warnings(connection: Connection, opened: OpenFile, file_id: int, merged: Merged) -> list[str]:
    """Columns that other files of the source have and this one has not, where that matters."""
    source = opened.source
    with_column = {
        name
        for (name,) in connection.execute(
            "SELECT DISTINCT jsonb_object_keys(mapping) FROM raw.source_files"
            " WHERE source = %s AND status = 'loaded' AND file_id <> %s",
            [source.name, file_id],
        )
    }
    warnings = []
    optional = {name for name, _ in source.staged_columns} - {
        "job_id",
        "job_number",
        "payment_id",
        "month",
        "day",
    }
    missing = sorted((with_column & optional) - set(opened.mapping))
    if missing and merged.counts.updated:
        warnings.append(
            f"no column for {', '.join(missing)}, which other exports have: rows that this file updates have none now"
        )
    if source.name == "payments":
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM raw.source_files WHERE source = %s AND status = 'loaded' AND file_id <> %s"
            " AND records_read > 0 AND (mapping ? 'payment_id') <> %s)",
            [source.name, file_id, "payment_id" in opened.mapping],
        ).fetchone()
        if row and row[0]:
            here, there = ("a", "none") if "payment_id" in opened.mapping else ("no", "one")
            warnings.append(
                f"this export has {here} payment id column and others have {there}: a payment that is in both counts"
                " twice; export all payments in one form"
            )
    return warnings


def _reading_of(opened: OpenFile, merged: Merged, warnings: list[str], run_id: str | None) -> Reading:
    return Reading(
        status="loaded",
        declaration_version=opened.source.version,
        encoding=opened.encoding,
        delimiter=opened.delimiter or None,
        mapping=opened.mapping,
        unknown_columns=opened.unknown_columns,
        warnings=warnings,
        counts=merged.counts,
        first_date=merged.first_date,
        last_date=merged.last_date,
        run_id=run_id,
    )


def _unknowable(content: Content, newer: NewerFiles, error: UnknownNewerValues) -> str:
    missing = ", ".join(entry.path for entry in newer.lost[:5]) + (", …" if len(newer.lost) > 5 else "")
    return (
        f"{content.path}: exported {content.exported_at:%Y-%m-%d %H:%M} UTC, before files that are loaded already, of"
        f" which {len(newer.lost)} cannot be read again ({missing}): whether these said something newer about"
        f" {error.records:,} of its records (e.g. {error.example}) cannot be told. Put them back into the landing"
        " folder, under any name in this source's folder, and load again with force"
    )


def _refused_by_database(content: Content, error: psycopg.Error) -> str:
    detail = error.diag.message_detail
    return (
        f"{content.path}: the database does not take it: {error.diag.message_primary or error}"
        + (f" ({detail})" if detail else "")
        + ". Nothing of the file was loaded; correct the value in the export, or report this: such a record should"
        " have been quarantined"
    )


def describe(result: FileResult) -> str:
    """One line for people: what became of a file."""
    if result.message is not None:
        return f"{result.status.replace('_', ' ')}: {result.message}"
    counts = vars(result.counts)
    parts = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return f"{result.path}: {', '.join(parts) or 'no records'}" + "".join(
        f"; {warning}" for warning in result.warnings
    )
