"""Loads a source: every new or changed landing file, whole, in export order, one transaction per file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from zoneinfo import ZoneInfo

import psycopg

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.loading.file_identity import read_content
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.ledger import Reading
from crm_analytics.analytics.ingest.loading.load_file import FileLoader
from crm_analytics.analytics.ingest.loading.queries import Connection, drop_temporary, takes_statements
from crm_analytics.analytics.ingest.loading.results import FileResult, LoadResult, describe
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import Landing
from crm_analytics.analytics.ingest.storage.places import Place, landing_at
from crm_analytics.core import locks
from crm_analytics.core.database import end_with_client

Report = Callable[[str], None]
#: Seconds to wait for another load of the same source, which may be reading years of files.
LOAD_PATIENCE = 3600


def load_source(
    connection_or_url: Connection | str,
    landing: Place,
    source: str,
    *,
    timezone: ZoneInfo,
    run_id: str | None = None,
    force: bool = False,
    quiet_seconds: float = 0,
    report: Report = lambda message: None,
    concluded: Callable[[FileResult], None] | None = None,
) -> LoadResult:
    """Loads every new or changed landing file of a source (docs/decisions/whole-file-loads.md).

    Files apply in the order (export time, path), each in its own transaction, so that a kill leaves whole files.
    A file that comes late, after newer ones, changes only what these left open. A file that cannot be read is
    refused in the ledger and does not stop the others. One load of a source runs at a time; others wait.

    Args:
        connection_or_url: an idle connection to the analytics database, or its URL.
        landing: the landing folder.
        source: a name in `registry.SOURCES`.
        timezone: the business timezone.
        run_id: the Dagster run, for the ledger.
        force: read loaded files again too.
        quiet_seconds: a file that was touched within so many seconds may still be growing. It gets this time to
            settle; if it has not, it is not loaded (status `waiting`).
        report: takes progress messages, one line each.
        concluded: takes what became of each file, which `report` takes as a line otherwise.

    Raises:
        FileNotFoundError: if the landing folder does not exist.
        LandingUnavailable: if it is not on this machine, and does not answer as it should; files loaded before stay
            loaded.
        ValueError: if the database's dates are in another timezone.
        psycopg.Error: if the database fails; files loaded before stay loaded.
    """
    landing = landing_at(landing)
    with open_session(connection_or_url) as connection, only_load_of(connection, source, report):
        refuse_other_timezone(connection, timezone)
        found = settled(connection, landing, source, force, quiet_seconds, report)
        quiet: list[PendingFile] = []
        growing: list[PendingFile] = []
        for pending in found:
            (quiet if pending.file.age() >= quiet_seconds else growing).append(pending)
        _record_unrecognized(connection, quiet, timezone, run_id)
        result = LoadResult(source)

        def conclude(file: FileResult) -> None:
            result.files.append(file)
            if concluded is not None:
                concluded(file)
            else:
                report(describe(file))

        for entry in landing.scan().unreadable:
            if entry.source == source:
                conclude(FileResult(entry.name, "refused", entry.message))
        for pending in growing:
            if pending.source == source:
                message = (
                    f"touched less than {quiet_seconds:g} s ago, so it may still be growing; the first run after it has"
                    " settled loads it"
                )
                conclude(FileResult(pending.name, "waiting", message))
        loader = FileLoader(connection, SOURCES[source], landing, timezone, run_id, report, may_lock=True)
        try:
            loader.load([pending.file for pending in quiet if pending.source == source], conclude)
            return result
        finally:
            loader.close()


@contextmanager
def trial(connection: Connection) -> Iterator[None]:
    """Gives a transaction that is rolled back, in which no table is analyzed: a rollback wouldn't restore its statistics."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL crm_analytics.trial = on"
        )
        yield


def load_in_trial(
    connection: Connection, landing: Place, files: list[PendingFile], *, timezone: ZoneInfo
) -> list[FileResult]:
    """Loads files inside the caller's `trial`, source by source; the caller holds the locks of these sources' loads."""
    results: list[FileResult] = []
    for source in SOURCES.values():
        own = [pending.file for pending in files if pending.source == source.name]
        if own:
            loader = FileLoader(connection, source, landing_at(landing), timezone, None, lambda message: None)
            loader.load(own, results.append)
            # the next source's have other columns
            drop_temporary(connection)
    return results


def try_file(
    connection: Connection, landing: Place, file: PendingFile, *, timezone: ZoneInfo
) -> tuple[FileResult, list[tuple[int, int, str | None, list[dict[str, str]]]]]:
    """Loads a file in a transaction that is rolled back.

    Returns its result, and the record number, line, key and reasons of each quarantined record.
    """
    assert file.source is not None
    with (
        open_session(connection) as session,
        only_load_of(session, file.source, lambda message: None),
        trial(session),
    ):
        (result,) = load_in_trial(session, landing, [file], timezone=timezone)
        rejected = session.execute(
            "SELECT record_no, line_no, row_key, reasons FROM raw.rejected_rows WHERE file_id = %s ORDER BY record_no",
            [result.file_id],
        ).fetchall()
        return result, rejected


def settled(
    connection: Connection, landing: Landing, source: str, force: bool, quiet_seconds: float, report: Report
) -> list[PendingFile]:
    """Returns the pending files, after those of this source that were just touched had time to settle."""
    found = landing_folder.pending(connection, landing, only=source, include_loaded=force)
    young = [
        pending.file for pending in found if pending.source == source and pending.file.age() < quiet_seconds
    ]
    if not young:
        return found
    seconds = quiet_seconds - min(file.age() for file in young)
    others = f" and {len(young) - 1} more" if len(young) > 1 else ""
    report(f"{source}: waiting {seconds:.0f} s for {young[0].name}{others} to settle")
    time.sleep(seconds + 0.1)
    return landing_folder.pending(connection, landing, only=source, include_loaded=force)


def _record_unrecognized(
    connection: Connection, found: list[PendingFile], timezone: ZoneInfo, run_id: str | None
) -> None:
    """Writes files that no source recognizes into the ledger, once for each content."""
    for pending in found:
        if pending.source is not None:
            continue
        try:
            content = read_content(pending.file, timezone)
        except OSError:
            # gone, or not readable by this user: the next run sees
            continue
        version = landing_folder.declarations_version()
        with connection.transaction():
            file_id = ledger.identify(connection, None, content, version)
            ledger.see_unrecognized_again(connection, file_id)
            reading = Reading("unrecognized", version, pending.message, run_id=run_id)
            ledger.conclude(connection, file_id, reading)


@contextmanager
def open_session(connection_or_url: Connection | str) -> Iterator[Connection]:
    """Gives a connection in autocommit mode, so that transactions begin where they are meant."""
    if isinstance(connection_or_url, str):
        with psycopg.connect(connection_or_url, autocommit=True) as connection:
            end_with_client(connection)
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
def only_load_of(
    connection: Connection, source: str, report: Report, patience: float | None = None
) -> Iterator[None]:
    """Holds the source's advisory lock in the session, across the files' transactions.

    Raises:
        LockHeld: another load kept it for `patience` seconds, or else `LOAD_PATIENCE`; the message names its process.
    """
    lock = locks.load(source)
    locks.take(
        connection,
        lock,
        LOAD_PATIENCE if patience is None else patience,
        lambda who: report(f"{source}: waiting for another load of this source: {who}"),
    )
    try:
        yield
    finally:
        if takes_statements(connection):
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [lock])


def refuse_other_timezone(connection: Connection, timezone: ZoneInfo) -> None:
    """Refuses to mix dates of two timezones in one table (docs/decisions/business-timezone.md)."""
    row = connection.execute("SELECT timezone FROM analytics.business").fetchone()
    if row is not None and row[0] != timezone.key:
        raise ValueError(
            f"this database's dates are in {row[0]}, but BUSINESS_TIMEZONE is {timezone.key}. "
            f"Set BUSINESS_TIMEZONE={row[0]}, or load the landing folder into a new database."
        )
