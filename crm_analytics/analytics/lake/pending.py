"""What the lake lacks, by the database alone: the pending months, and the newest write."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import psycopg


@dataclass(frozen=True)
class PendingMonth:
    """A month of analytics.lake_pending."""

    month: date
    #: its newest refresh
    version: int
    #: when the first refresh that the lake lacks ended
    since: datetime
    #: waits for another refresh first
    is_stale: bool


def pending_months(connection: psycopg.Connection[Any]) -> list[PendingMonth]:
    """Returns the months that the lake lacks, or has in an older version, in order."""
    return [
        PendingMonth(*row)
        for row in connection.execute(
            "SELECT month, version, since, is_stale FROM analytics.lake_pending ORDER BY month"
        )
    ]


def overdue_months(connection: psycopg.Connection[Any], minutes: int) -> list[PendingMonth]:
    """Returns the months that have been pending for longer than some minutes, in order."""
    return [
        PendingMonth(*row)
        for row in connection.execute(
            """
            SELECT month, version, since, is_stale FROM analytics.lake_pending
            WHERE since < clock_timestamp() - make_interval(mins => %s) ORDER BY month
            """,
            [minutes],
        )
    ]


def last_write(connection: psycopg.Connection[Any]) -> int:
    """Returns the number of the newest write that was begun; 0 if there is none."""
    row = connection.execute("SELECT coalesce(max(write_id), 0) FROM analytics.lake_writes").fetchone()
    assert row is not None
    return int(row[0])
