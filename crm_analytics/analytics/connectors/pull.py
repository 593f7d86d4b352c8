"""Pulls: what a connector returns becomes one complete file in the landing folder, or none at all."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import psycopg

from crm_analytics.analytics.connectors.client import Clock
from crm_analytics.analytics.connectors.connector import (
    Connector,
    FileConnector,
    Reading,
    RecordConnector,
    Window,
)
from crm_analytics.analytics.connectors.errors import ConnectorError, TransientError
from crm_analytics.analytics.connectors.spool import OLDEST, SUFFIX, Spool, remove
from crm_analytics.analytics.ingest.storage.landing import Landing
from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.core import locks
from crm_analytics.core.settings import Settings

Report = Callable[[str], None]
#: Seconds to wait for another pull of the same connector, which may be reading years.
PATIENCE = 3600
#: The key of a pulled file's first line, which is no record.
HEADER = "crm_analytics_pull"


@dataclass(frozen=True)
class PullResult:
    """What a pull did; a pull that found nothing new succeeded, too."""

    connector: str
    #: None for finished files, which have no days.
    window: Window | None
    pages: int
    records: int
    #: The files written, below the landing folder.
    files: tuple[str, ...] = ()
    #: What people should know about it.
    note: str | None = None
    covers: dict[str, str | None] | None = field(default=None)


@dataclass(frozen=True)
class _Pulled:
    """A file of an earlier pull: its name, and the days and the moment that this tells."""

    name: str
    first: str
    moment: datetime


def pull(
    connection: psycopg.Connection[Any],
    connector: Connector,
    config: Settings,
    window: Window | None = None,
    *,
    clock: Clock | None = None,
    report: Report = lambda message: None,
) -> PullResult:
    """Asks a service for a window, and publishes the file after the last page.

    One pull of a connector runs at a time; others wait. A pull that was killed leaves a spool, from which the next pull
    of the same window goes on. Nothing is written when the records equal those of the last file.

    Args:
        connection: an autocommit connection to the analytics database, for the lock and the ledger.
        connector: one that is on.
        config: the settings.
        window: the days; those of the hourly pulls by default. Finished files have none.
        clock: of all waiting.
        report: takes progress messages, one line each.

    Raises:
        ConnectorError: if a setting is missing, or the service refuses or answers with something else.
        TransientError: if it may help to pull again later.
        LockHeld: another pull kept the lock for `PATIENCE` seconds.
    """
    clock = clock or Clock()
    connector.require_on(config)
    landing = landing_of(config)
    if not landing.exists():
        raise ConnectorError(landing.missing())
    with _only_pull_of(connection, connector.name, report):
        for source in connector.sources:
            landing.sweep(source, f"{connector.name}_")
        if isinstance(connector, RecordConnector):
            window = window or connector.recent(clock.now().astimezone(config.timezone).date())
            return _pull_records(connection, connector, config, window, landing, clock, report)
        if isinstance(connector, FileConnector):
            if window is not None:
                raise ConnectorError(f"{connector.name} takes no days: its files are fetched once each")
            return _pull_files(connector, config, landing, clock, report)
    raise TypeError(f"{type(connector).__name__} is no kind of connector that a pull knows")


def _pull_records(
    connection: psycopg.Connection[Any],
    connector: RecordConnector,
    config: Settings,
    window: Window,
    landing: Landing,
    clock: Clock,
    report: Report,
) -> PullResult:
    _refuse_days(connector, window)
    folder = spools(config)
    _remove_old_spools(folder, connector, clock.now())
    spool = Spool(folder / f"{connector.name}_{window}{SUFFIX}", clock.now())
    try:
        if spool.resume is not None:
            report(f"{connector.name}: going on after page {spool.pages} of a pull that was interrupted")
        reading = _read_all(connector, config, window, spool, clock, report)
        covers = None if reading.covers is None else reading.covers.as_dict()
        earlier = _earlier(connector, landing)
        last = max(earlier, key=lambda file: file.moment, default=None)
        sha256, records, pages = spool.sha256(), spool.records, spool.pages
        # names are to the second, and a clock may go back: an earlier file is never replaced
        moment = spool.began.astimezone(UTC).replace(microsecond=0)
        if last is not None:
            moment = max(moment, last.moment + timedelta(seconds=1))
        header = {
            "connector": connector.name,
            "covers": covers,
            "pulled_at": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
            "records": records,
            "sha256": sha256,
        }
        files: tuple[str, ...] = ()
        if last is None or _is_news(connection, connector, landing, last, header, window):
            name = f"{connector.name}_{window}_{moment:%Y-%m-%dT%H_%M_%SZ}.jsonl.gz"
            _require_lock(connection, connector.name)
            _publish(landing, f"{connector.source}/{name}", lambda file: _write(file, header, spool.lines()))
            files = (f"{connector.source}/{name}",)
    except BaseException:
        spool.close()
        raise
    spool.discard()
    return PullResult(connector.name, window, pages, records, files, reading.note, covers)


def _read_all(
    connector: RecordConnector, config: Settings, window: Window, spool: Spool, clock: Clock, report: Report
) -> Reading:
    """Brings all pages into the spool."""
    pages = connector.pages(connector.client(config, clock), window, spool.resume)
    try:
        page = next(pages)
        while True:
            added = spool.add(page, connector.identity, clock.now())
            report(f"{connector.name}: {spool.records:,} records in {spool.pages:,} pages")
            page = pages.send(added)
    except StopIteration as end:
        assert isinstance(end.value, Reading)
        return end.value


def _pull_files(
    connector: FileConnector, config: Settings, landing: Landing, clock: Clock, report: Report
) -> PullResult:
    names = {source: set(_names(landing, source)) for source in connector.sources}
    written = []
    for file in connector.files(config, lambda source, name: name in names[source], clock):
        content = file.content()
        _publish(landing, f"{file.source}/{file.name}", partial(_write_bytes, content))
        names[file.source].add(file.name)
        written.append(f"{file.source}/{file.name}")
        report(f"{connector.name}: {file.source}/{file.name}")
    return PullResult(connector.name, None, len(written), len(written), tuple(written))


def spools(config: Settings) -> Path:
    """Returns the folder of unfinished pulls, in the state folder: a network drive is no place for a database."""
    folder = config.crm_analytics_home / "pulls"
    return folder / config.franchise if config.franchise else folder


def _refuse_days(connector: RecordConnector, window: Window) -> None:
    if window.last is not None and not connector.takes_last_day:
        raise ConnectorError(f"{connector.name}: the service takes no last day; leave out --to")
    if window.first is not None and window.last is not None and window.first > window.last:
        raise ConnectorError(f"{connector.name}: --from {window.first} is after --to {window.last}")


def _remove_old_spools(folder: Path, connector: RecordConnector, now: datetime) -> None:
    """Removes spools of this connector that nobody will go on from, e.g. of yesterday's window."""
    for path in folder.glob(f"{connector.name}_*{SUFFIX}"):
        if datetime.fromtimestamp(path.stat().st_mtime, UTC) < now - OLDEST:
            remove(path)


def _names(landing: Landing, source: str) -> list[str]:
    """Returns the names of the files in a source's folder."""
    folder = landing.below(source)
    return [file.name for file in folder.scan().files] if folder.exists() else []


def _publish(landing: Landing, name: str, write: Callable[[BinaryIO], None]) -> None:
    """Puts a file into the landing folder. Raises ConnectorError where it can't be written."""
    try:
        landing.publish(name, write)
    except OSError as error:
        raise ConnectorError(
            f"{landing}/{name} can't be written ({error.strerror}): give this user permission to write there, or free some"
            " space"
        ) from error


def _earlier(connector: RecordConnector, landing: Landing) -> list[_Pulled]:
    """Returns the files of earlier pulls, as far as they are in the landing folder."""
    day = r"(?:\d{4}-\d\d-\d\d|open)"
    pattern = re.compile(
        rf"{re.escape(connector.name)}_({day})_{day}_(\d{{4}}-\d\d-\d\dT\d\d_\d\d_\d\dZ)\.jsonl\.gz"
    )
    found = (pattern.fullmatch(name) for name in _names(landing, connector.source))
    return [
        _Pulled(match[0], match[1], datetime.strptime(match[2], "%Y-%m-%dT%H_%M_%SZ").replace(tzinfo=UTC))
        for match in found
        if match
    ]


def _is_news(
    connection: psycopg.Connection[Any],
    connector: RecordConnector,
    landing: Landing,
    last: _Pulled,
    header: dict[str, Any],
    window: Window,
) -> bool:
    """Returns whether a pull tells anything that its last file doesn't.

    Other records do. So does a window that begins earlier, since a file proves what has vanished in its window. And after
    a later export of the source, loaded in between, the same records are news again.
    """
    before = read_header(landing, f"{connector.source}/{last.name}")
    if before is None or before.get("sha256") != header["sha256"]:
        return True
    first = "" if window.first is None else window.first.isoformat()
    if first < ("" if last.first == "open" else last.first) or (header["covers"] and not before["covers"]):
        return True
    later = connection.execute(
        "SELECT EXISTS (SELECT FROM raw.source_files WHERE source = %s AND status = 'loaded' AND exported_at > %s)",
        [connector.source, last.moment],
    ).fetchone()
    return later == (True,)


def read_header(landing: Landing, name: str) -> dict[str, Any] | None:
    """Returns what the first line of a pulled file says; None if it says nothing."""
    listed = landing.find(name)
    if listed is None:
        return None
    try:
        with listed.content.open("rb") as file, gzip.open(file) as lines:
            found = json.loads(lines.readline())
    except (OSError, EOFError, ValueError):
        return None
    header = found.get(HEADER) if isinstance(found, dict) else None
    return header if isinstance(header, dict) else None


def _write(file: BinaryIO, header: dict[str, Any], lines: Iterator[bytes]) -> None:
    # without a time and a name inside, the same records give the same bytes
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(json.dumps({HEADER: header}).encode() + b"\n")
        for line in lines:
            packed.write(line)


def _write_bytes(content: bytes, file: BinaryIO) -> None:
    file.write(content)


@contextmanager
def _only_pull_of(connection: psycopg.Connection[Any], name: str, report: Report) -> Iterator[None]:
    lock = locks.pull(name)
    locks.take(
        connection, lock, PATIENCE, lambda who: report(f"{name}: waiting for another pull of it: {who}")
    )
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [lock])


def _require_lock(connection: psycopg.Connection[Any], name: str) -> None:
    """Makes sure that this pull is still the only one. Raises TransientError if the database is gone, and the lock with it."""
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        lost = True
    else:
        lost = False
    if lost:
        raise TransientError(f"{name}: the connection to the analytics database broke; nothing was written")
