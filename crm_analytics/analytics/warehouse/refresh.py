"""Recomputes daily and monthly metrics for a range of months, and reads the queue of stale months.

Both tables change in one transaction (docs/decisions/metrics-in-one-transaction.md), and a change that commits
while a refresh runs stays queued (docs/decisions/incremental-equals-full.md).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date
from typing import Any, LiteralString

import psycopg

from crm_analytics.core import locks
from crm_analytics.core.months import months_between

log = logging.getLogger(__name__)

MEASURES = ("jobs", "units", "repairs", "leads", "calls", "cost", "revenue_gross")


@dataclass(frozen=True)
class RefreshedMonth:
    """The outcome of a refresh for one month."""

    month: date
    stale_rows: int
    changed_rows: int


@dataclass(frozen=True)
class StaleMonth:
    """A month that is queued for a refresh."""

    month: date
    newest_id: int
    entries: int


def _write_sql(table: LiteralString, key: LiteralString) -> LiteralString:
    """Returns SQL that makes `table` equal its compute function over the range, and counts what differed by month.

    Writes only rows that differ; where the range is empty, that is a plain insert. A full join cannot become a nested
    loop, however wrong the statistics of a table are that has just been filled. New rows go in by date, so that a
    month of ten years is on as few pages as a month of one year.
    """
    columns = ", ".join(MEASURES)
    computed = ", ".join(f"computed.{name}" for name in MEASURES)
    stored = ", ".join(f"stored.{name}" for name in MEASURES)
    assignments = ", ".join(f"{name} = difference.{name}" for name in MEASURES)
    in_range = f"stored.{key} >= %(start)s AND stored.{key} < %(end)s"
    same_row = " AND ".join(f"stored.{name} = difference.{name}" for name in (key, "source", "segment"))
    return f"""
        WITH difference AS MATERIALIZED (
            SELECT {key}, source, segment, {computed},
                stored.{key} IS NOT NULL AS is_stored, computed.{key} IS NOT NULL AS is_computed
            FROM (SELECT * FROM analytics.{table} stored WHERE {in_range}) stored
            FULL JOIN analytics.compute_{table}(%(start)s::date, %(end)s::date) computed
                USING ({key}, source, segment)
            WHERE ({stored}) IS DISTINCT FROM ({computed})
        ), gone AS (
            DELETE FROM analytics.{table} stored
            USING difference
            WHERE {in_range} AND {same_row} AND NOT is_computed
        ), changed AS (
            UPDATE analytics.{table} stored
            SET {assignments}, updated_at = now()
            FROM difference
            WHERE {in_range} AND {same_row} AND is_computed
        ), added AS (
            INSERT INTO analytics.{table} ({key}, source, segment, {columns})
            SELECT {key}, source, segment, {columns}
            FROM difference
            WHERE NOT is_stored
            ORDER BY {key}
        )
        SELECT analytics.month_of({key}) AS month, count(*)
        FROM difference
        GROUP BY 1
    """


WRITE_DAILY = _write_sql("daily_metrics", "date")
WRITE_MONTHLY = _write_sql("monthly_metrics", "month")


def refresh(
    connection: psycopg.Connection[Any], start: date, end: date, run_id: str | None = None
) -> list[RefreshedMonth]:
    """Recomputes daily_metrics and monthly_metrics for the months of [start, end), in one transaction.

    Takes the months' advisory locks in ascending order, so that two refreshes wait for each other instead of
    overwriting each other. Runs in READ COMMITTED, because a snapshot taken before a lock is granted would be too
    old. Reads the queue's ids before recomputing and deletes only those afterwards. Waits for open changes of
    channel rules: these have queued only the months that existed when they were made.

    Args:
        connection: to the analytics database, not inside a transaction.
        start: first day of the first month.
        end: first day of the month after the last one.
        run_id: the Dagster run, for analytics.refresh_log.

    Returns:
        One entry per month of the range, in order.
    """
    months = list(months_between(start, end))
    if not months:
        return []
    window = {"start": months[0], "end": end}
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        started = connection.execute("SELECT clock_timestamp()").fetchone()
        assert started is not None
        # one round trip; a function's rows come in order
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) FROM unnest(%s::text[]) AS name",
            [[locks.month(month) for month in months]],
        )
        connection.execute("LOCK TABLE analytics.lead_channels, analytics.channel_aliases IN SHARE MODE")
        queued = connection.execute(
            "SELECT id, month FROM analytics.stale_months WHERE month >= %(start)s AND month < %(end)s",
            window,
        ).fetchall()
        # Not prepared, so that each range gets its own plan: a month and ten years need different ones.
        changed: dict[date, int] = dict(connection.execute(WRITE_DAILY, window, prepare=False).fetchall())
        connection.execute(WRITE_MONTHLY, window, prepare=False)
        connection.execute(
            "DELETE FROM analytics.stale_months WHERE id = ANY(%s)", [[id_ for id_, _ in queued]]
        )
        _forget_empty_months(connection, window)
        stale: dict[date, int] = {}
        for _, month in queued:
            stale[month] = stale.get(month, 0) + 1
        result = [RefreshedMonth(month, stale.get(month, 0), changed.get(month, 0)) for month in months]
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO analytics.refresh_log (month, run_id, started_at, finished_at, stale_rows, changed_rows)"
                " VALUES (%s, %s, %s, clock_timestamp(), %s, %s)",
                [(done.month, run_id, started[0], done.stale_rows, done.changed_rows) for done in result],
            )
    log.info("refreshed %s months, %s daily rows changed", len(months), sum(changed.values()))
    return result


def _forget_empty_months(connection: psycopg.Connection[Any], window: dict[str, date]) -> None:
    """Removes months outside the window from the queue that have neither raw rows nor metrics any more.

    No refresh would ever cover them where no partition does. Holds the month's lock, because a refresh in progress
    may be about to commit metrics for it; a month whose lock is taken is left for the next refresh.
    """
    empty = (
        "NOT (month >= %(start)s AND month < %(end)s)"
        " AND NOT EXISTS (SELECT FROM analytics.every_month() known WHERE known = month)"
    )
    candidates = connection.execute(
        f"SELECT DISTINCT month FROM analytics.stale_months WHERE {empty}", window
    ).fetchall()
    for (month,) in candidates:
        got = connection.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [locks.month(month)]
        ).fetchone()
        if got == (True,):
            connection.execute(
                f"DELETE FROM analytics.stale_months WHERE month = %(month)s AND {empty}",
                {**window, "month": month},
            )


def stale_months(connection: psycopg.Connection[Any]) -> list[StaleMonth]:
    """Returns the queued months, in order."""
    return [
        StaleMonth(*row)
        for row in connection.execute(
            "SELECT month, max(id), count(*) FROM analytics.stale_months GROUP BY month ORDER BY month"
        )
    ]
