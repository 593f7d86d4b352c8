"""Writes pending months to the lake: one snapshot of PostgreSQL, one commit per table, then what is done is noted.

Whatever is interrupted stays pending, and the next write repeats it, which changes nothing where it was done already
(docs/decisions/lake.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from pyiceberg.manifest import DataFile

from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.errors import LakeError
from crm_analytics.analytics.lake.pending import last_write, pending_months
from crm_analytics.analytics.lake.tables import Lake, Mark
from crm_analytics.core import locks
from crm_analytics.core.database import incarnation

log = logging.getLogger(__name__)

PATIENCE = 600  #: seconds to wait for another write of the same franchise


@dataclass(frozen=True)
class Written:
    """What a write has brought to the lake: the version of each month, and the rows of each table."""

    versions: Mapping[date, int]
    rows: Mapping[str, int]


def write_pending(
    connection: psycopg.Connection[Any],
    lake: Lake,
    *,
    rewrite: bool = False,
    waiting: Callable[[str], None] = log.info,
) -> Written:
    """Writes all pending months that wait for no refresh.

    Args:
        connection: to the franchise's analytics database; an autocommit connection.
        rewrite: write all of history, and take over the franchise whoever wrote it before.
        waiting: receives the name of the session that is writing already.

    Raises:
        LakeError: if another database writes the same franchise, or this one was put back to an earlier state.
        LockHeld: if another write took more than 10 minutes.
    """
    with one_at_a_time(connection, waiting):
        database = incarnation(connection)
        if not rewrite:
            require_own(connection, lake)
        # a lake that is new, or another one than before, has nothing
        if rewrite or not all(lake.mark(dataset.name) for dataset in DATASETS):
            connection.execute("DELETE FROM analytics.lake_months")
        if not any(not month.is_stale for month in pending_months(connection)):
            return Written({}, {})
        number = connection.execute(
            "INSERT INTO analytics.lake_writes DEFAULT VALUES RETURNING write_id"
        ).fetchone()
        assert number is not None
        mark = Mark(number[0], database)
        tables: dict[str, list[DataFile]] = {}
        rows: dict[str, int] = {}
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            versions = {
                entry.month: entry.version for entry in pending_months(connection) if not entry.is_stale
            }
            for dataset in DATASETS:
                schema = dataset.schema(connection)
                table = lake.prepare(dataset.name, schema)
                tables[dataset.name], rows[dataset.name] = [], 0
                for month in versions:
                    # month by month: all of history may be more than memory holds
                    found = dataset.read(connection, lake.franchise, month, schema)
                    tables[dataset.name] += lake.files(table, found)
                    rows[dataset.name] += found.num_rows
        notes = {
            "crm-analytics.franchise": lake.franchise,
            "crm-analytics.write": str(mark),
            "crm-analytics.versions": " ".join(
                f"{month:%Y-%m}={number}" for month, number in versions.items()
            ),
        }
        for name, files in tables.items():
            lake.replace(name, None if rewrite else list(versions), files, mark, notes, take_over=rewrite)
        _note(connection, mark, versions)
        return Written(versions, rows)


def require_own(connection: psycopg.Connection[Any], lake: Lake) -> None:
    """Refuses a lake whose last write of this franchise isn't one of this database's.

    Raises:
        LakeError: if another database wrote it, or this one was put back to an earlier state.
    """
    database, known = incarnation(connection), last_write(connection)
    for dataset in DATASETS:
        mark = lake.mark(dataset.name)
        if mark and (mark.database != database or mark.write_id > known):
            raise LakeError(
                f"the lake's table {dataset.name} has the franchise {lake.franchise} from another database, or from a later"
                " state of this one. If another installation writes the same lake, give each its name in FRANCHISES; if this"
                " database was restored, run: crm-analytics lake --rewrite"
            )


@contextmanager
def one_at_a_time(connection: psycopg.Connection[Any], waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of the franchise's writes.

    Raises:
        LockHeld: after 10 minutes.
    """
    locks.take(connection, locks.LAKE, PATIENCE, waiting)
    try:
        yield
    finally:
        # the session's end releases it where no statement can be sent any more
        if connection.info.transaction_status == TransactionStatus.IDLE:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [locks.LAKE])


def _note(connection: psycopg.Connection[Any], mark: Mark, versions: Mapping[date, int]) -> None:
    """Notes that the lake has these versions: what was refreshed meanwhile stays pending."""
    with connection.transaction():
        connection.execute(
            """
            INSERT INTO analytics.lake_months (month, version, write_id)
            SELECT *, %s FROM unnest(%s::date[], %s::bigint[])
            ON CONFLICT (month) DO UPDATE SET version = excluded.version, write_id = excluded.write_id
            """,
            [mark.write_id, list(versions), list(versions.values())],
        )
        connection.execute(
            "UPDATE analytics.lake_writes SET finished_at = clock_timestamp() WHERE write_id = %s",
            [mark.write_id],
        )
