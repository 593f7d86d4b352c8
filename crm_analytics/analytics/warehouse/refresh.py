"""Recomputes daily and monthly metrics for a range of months, and reads the queue of stale months.

Both tables change in one transaction (docs/decisions/metrics-in-one-transaction.md), and a change that commits
while a refresh runs stays queued (docs/decisions/incremental-equals-full.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from datetime import date, datetime
from typing import Any, LiteralString

import psycopg

from crm_analytics.analytics.warehouse.revisions import Change, closed_months, record_revisions
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
class QueuedMonth:
    """A month that is queued for a refresh, and the newest entry of the queue that says so."""

    month: date
    newest_id: int


@dataclass(frozen=True)
class Stale:
    """A month that has changed since it was computed: since when, and which tables changed."""

    month: date
    since: datetime
    causes: str


def _write_sql(
    table: LiteralString, key: LiteralString, answer: LiteralString, kept: LiteralString = ""
) -> LiteralString:
    """Returns SQL that makes `table` equal its compute function over the range, and answers with a SELECT.

    It writes only rows that differ; where the range is empty, that is a plain insert. A full join cannot become a nested
    loop, however wrong the statistics of a table are that has just been filled. New rows go in by date, so that a month
    of ten years is on as few pages as a month of one year.

    Args:
        table: daily_metrics or monthly_metrics.
        key: its column with the day or month.
        answer: the SELECT, which may read `difference`: the key, source, segment and measures of each row that differs.
        kept: further columns of `difference`, each with a comma behind it.
    """
    columns = ", ".join(MEASURES)
    computed = ", ".join(f"computed.{name}" for name in MEASURES)
    stored = ", ".join(f"stored.{name}" for name in MEASURES)
    assignments = ", ".join(f"{name} = difference.{name}" for name in MEASURES)
    in_range = f"stored.{key} >= %(start)s AND stored.{key} < %(end)s"
    same_row = " AND ".join(f"stored.{name} = difference.{name}" for name in (key, "source", "segment"))
    return f"""
        WITH difference AS MATERIALIZED (
            SELECT {key}, source, segment, {computed}, {kept}
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
        {answer}
    """


#: Returns, by month, how many rows differed, and the entries of the queue that this answers: those that the statement's
#: snapshot has, which is the one that it computes from.
WRITE_DAILY = _write_sql(
    "daily_metrics",
    "date",
    """
        SELECT month, count(*) FILTER (WHERE entry IS NULL), array_agg(entry) FILTER (WHERE entry IS NOT NULL)
        FROM (
            SELECT analytics.month_of(date) AS month, NULL::bigint AS entry FROM difference
            UNION ALL
            SELECT month, id FROM analytics.stale_months WHERE month >= %(start)s AND month < %(end)s
        ) AS done
        GROUP BY month
    """,
)
#: Returns the rows that differed in closed months, with the measures before and after.
WRITE_MONTHLY = _write_sql(
    "monthly_metrics",
    "month",
    "SELECT month, source, segment, before, after FROM difference WHERE month = ANY (%(closed)s::date[])",
    kept=f"ARRAY[{', '.join(f'coalesce(stored.{name}, 0)' for name in MEASURES)}]::numeric[] AS before,"
    f" ARRAY[{', '.join(f'coalesce(computed.{name}, 0)' for name in MEASURES)}]::numeric[] AS after,",
)


def refresh(
    connection: psycopg.Connection[Any], start: date, end: date, run_id: str | None = None
) -> list[RefreshedMonth]:
    """Recomputes daily_metrics and monthly_metrics for the months of [start, end), in one transaction.

    Takes the months' advisory locks in ascending order, so that two refreshes wait for each other instead of
    overwriting each other. Runs in READ COMMITTED, because a snapshot taken before a lock is granted would be too
    old. Deletes only those entries of the queue that the computation has seen. Waits for open changes of channel
    rules: these have queued only the months that existed when they were made. What it changes in closed months is a
    revision of each.

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
        # Not prepared, so that each range gets its own plan: a month and ten years need different ones.
        written = connection.execute(WRITE_DAILY, window, prepare=False).fetchall()
        changed = {month: rows for month, rows, _ in written if rows}
        # most refreshes change nothing, and need not ask
        closed = closed_months(connection, list(changed)) if changed else []
        differences = connection.execute(
            WRITE_MONTHLY, {**window, "closed": closed}, prepare=False
        ).fetchall()
        answered: dict[date, list[int]] = {month: entries for month, _, entries in written if entries}
        result = [
            RefreshedMonth(month, len(answered.get(month, [])), changed.get(month, 0)) for month in months
        ]
        refresh_ids = _log(connection, result, started[0], run_id)
        entries = [entry for month in answered.values() for entry in month]
        record_revisions(connection, _changes(differences), refresh_ids, entries)
        connection.execute("DELETE FROM analytics.stale_months WHERE id = ANY(%s)", [entries])
        _forget_empty_months(connection, window)
    log.info("refreshed %s months, %s daily rows changed", len(months), sum(changed.values()))
    return result


def _log(
    connection: psycopg.Connection[Any], result: list[RefreshedMonth], started: datetime, run_id: str | None
) -> dict[date, int]:
    """Writes the refresh into analytics.refresh_log; returns the entries' numbers by month."""
    return dict(
        connection.execute(
            """
            INSERT INTO analytics.refresh_log (month, run_id, started_at, finished_at, stale_rows, changed_rows)
            SELECT month, %s, %s, clock_timestamp(), stale_rows, changed_rows
            FROM unnest(%s::date[], %s::int[], %s::int[]) AS done (month, stale_rows, changed_rows)
            RETURNING month, refresh_id
            """,
            [run_id, started, *map(list, zip(*map(astuple, result), strict=True))],
        ).fetchall()
    )


def _changes(differences: list[tuple[Any, ...]]) -> Iterator[Change]:
    """Yields each measure that differs in the rows that `WRITE_MONTHLY` returned."""
    for month, source, segment, before, after in differences:
        for measure, old, new in zip(MEASURES, before, after, strict=True):
            if old != new:
                yield Change(month, source, segment, measure, old, new)


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


def stale_months(connection: psycopg.Connection[Any]) -> list[QueuedMonth]:
    """Returns the queued months, in order."""
    return [
        QueuedMonth(*row)
        for row in connection.execute(
            "SELECT month, max(id) FROM analytics.stale_months GROUP BY month ORDER BY month"
        )
    ]


def stale(connection: psycopg.Connection[Any], month: date | None = None) -> list[Stale]:
    """Returns the stale months in order, or only the one that is asked for, with what people want to know of them."""
    return [
        Stale(*row)
        for row in connection.execute(
            """
            SELECT month, stale_since, causes FROM reporting.month_status
            WHERE stale_since IS NOT NULL AND (%(month)s::date IS NULL OR month = %(month)s) ORDER BY month
            """,
            {"month": month},
        )
    ]
