"""Computing the metrics, compared with the best SQL that a person would write by hand for the same rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import date
from typing import Any, LiteralString

import psycopg

from bench.environment import Environment, timed
from bench.exports import FIRST, LAST
from bench.ingest import DATABASE, loaded
from bench.table import BenchRow
from crm_analytics.analytics.warehouse.refresh import MEASURES, refresh
from crm_analytics.core.months import next_month

SECTION = "metrics"
CHANGED_MONTH = date(2025, 6, 1)
START, END = FIRST, date(LAST.year + 1, 1, 1)

_SPEND = """
INSERT INTO raw.google_spend (month, campaign, amount, covered_to)
SELECT m::date, 'all', 3100.00 + extract(month FROM m), (m + interval '1 month' - interval '1 day')::date
FROM generate_series(%s::timestamp, %s::timestamp, interval '1 month') AS m
"""

# Written by hand for this data: one pass over each big table, rows folded to (day, source, type) before any rule
# applies, and channel rules without periods of validity.
_PAID: LiteralString = """
SELECT job_id, sum(amount) AS paid FROM raw.payments WHERE counts AND job_id IS NOT NULL GROUP BY job_id
"""
_FOLDED: LiteralString = """
SELECT j.job_date, j.source_folded, j.type_folded, count(*) AS jobs,
    count(*) FILTER (WHERE p.paid > 100) AS over_100, coalesce(sum(p.paid), 0) AS revenue
FROM raw.jobs j LEFT JOIN {paid} p ON p.job_id = j.job_id
GROUP BY j.job_date, j.source_folded, j.type_folded
"""
_DAILY: LiteralString = """
INSERT INTO bench.daily_metrics (date, source, segment, jobs, units, repairs, leads, cost, revenue_gross)
SELECT date, source, segment, sum(jobs), sum(units), sum(repairs), sum(leads), sum(cost), sum(revenue)
FROM (
    SELECT f.job_date AS date,
        coalesce(a.source, n.shown, CASE f.source_folded WHEN '' THEN 'Unattributed' ELSE f.source_folded END) AS source,
        CASE WHEN f.type_folded ~ '\\mcod\\M' THEN 'COD' WHEN f.type_folded ~ '\\mins\\M' THEN 'INS' ELSE 'OTHER' END
            AS segment,
        f.jobs, CASE WHEN f.type_folded IN ('cod service', 'ins service') THEN f.jobs ELSE 0 END AS units,
        CASE WHEN f.type_folded IN ('cod repair', 'ins repair') THEN f.jobs
             WHEN f.type_folded = 'cod service' THEN f.over_100 ELSE 0 END AS repairs,
        CASE WHEN c.lead_rule = 'jobs' THEN f.jobs
             WHEN c.lead_rule = 'units' AND f.type_folded IN ('cod service', 'ins service') THEN f.jobs ELSE 0 END
            AS leads,
        0::numeric AS cost, f.revenue
    FROM {folded} f
    LEFT JOIN analytics.channel_aliases a ON a.alias_folded = f.source_folded
    LEFT JOIN analytics.source_names n ON n.folded = f.source_folded
    LEFT JOIN analytics.lead_channels c ON c.source = a.source
    UNION ALL
    SELECT paid_date, 'Unattributed', 'OTHER', 0, 0, 0, 0, 0, sum(amount)
    FROM raw.payments WHERE counts AND job_id IS NULL GROUP BY paid_date
    UNION ALL
    SELECT s.month + k - 1, 'Google', 'OTHER', 0, 0, 0, 0,
        round(s.amount * k / n.days, 2) - round(s.amount * (k - 1) / n.days, 2), 0
    FROM raw.google_spend s CROSS JOIN LATERAL (SELECT s.covered_to - s.month + 1 AS days) n
    CROSS JOIN LATERAL generate_series(1, n.days) AS k
) parts
GROUP BY date, source, segment
HAVING (sum(jobs), sum(leads), sum(cost), sum(revenue)) <> (0, 0, 0, 0)
"""
_MONTHLY: LiteralString = """
INSERT INTO bench.monthly_metrics (month, source, segment, jobs, units, repairs, leads, cost, revenue_gross)
SELECT date_trunc('month', date)::date, source, segment, sum(jobs), sum(units), sum(repairs), sum(leads), sum(cost),
    sum(revenue_gross)
FROM bench.daily_metrics GROUP BY 1, 2, 3
"""


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the metrics lines."""
    with loaded(environment) as connection:
        connection.execute(_SPEND, [START, LAST])
        environment.say("computing the metrics of ten years")
        before = environment.cpu()
        ours = min(_refresh_all(connection), _refresh_all(connection))
        cpu = (environment.cpu() - before) / 2
        environment.seconds["metrics"] = ours
        by_hand = {
            name: min(_hand(connection, name), _hand(connection, name))
            for name in ("one statement", "temporary tables")
        }
        before = environment.cpu()
        _hand(connection, "one statement")
        cpu_by_hand = environment.cpu() - before
        _assert_same(connection)
        best = min(by_hand, key=lambda name: by_hand[name])
        yield BenchRow(
            SECTION, "daily and monthly metrics of ten years, one run", ours, "s", f"best hand-written SQL ({best})",
            by_hand[best], limit=2.0, note=f"{_count(connection)} daily rows, equal in both; CPU {cpu:.1f} : {cpu_by_hand:.1f} s",
        )  # fmt: skip
        unchanged = timed(lambda: refresh(connection, START, END))
        yield BenchRow(
            SECTION,
            "the same when nothing changed",
            unchanged,
            "s",
            "best hand-written SQL, from nothing",
            by_hand[best],
        )
        connection.execute("VACUUM ANALYZE")
    with environment.connect("one_year") as one_year:
        _copy_last_year(environment, one_year)
        refresh(one_year, date(LAST.year, 1, 1), END)
        one_year.execute("VACUUM ANALYZE")
    # taking turns, so that other work on the machine affects both alike
    pairs = [(_one_month(environment, DATABASE), _one_month(environment, "one_year")) for _ in range(12)]
    long, short = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    yield BenchRow(SECTION, "one changed month, ten years of history", long * 1000, "ms", limit=400)
    yield BenchRow(
        SECTION, "one changed month: ten years of history compared with one", long * 1000, "ms", "one year of history", short * 1000,
        limit=1.5,
    )  # fmt: skip


def _refresh_all(connection: psycopg.Connection[Any]) -> float:
    connection.execute("TRUNCATE analytics.daily_metrics, analytics.monthly_metrics")
    connection.execute("CHECKPOINT")
    return timed(lambda: refresh(connection, START, END))


def _hand(connection: psycopg.Connection[Any], how: str) -> float:
    """Times one hand-written way into empty twins of the metric tables."""
    connection.execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench")
    for table in ("daily_metrics", "monthly_metrics"):
        connection.execute(f"CREATE TABLE bench.{table} (LIKE analytics.{table} INCLUDING ALL)")
    connection.execute("CHECKPOINT")

    def one_statement() -> None:
        with connection.transaction():
            connection.execute(_DAILY.format(folded=f"({_FOLDED.format(paid=f'({_PAID})')})"))
            connection.execute(_MONTHLY)

    def temporary_tables() -> None:
        """Lets parallel workers help: CREATE TABLE AS may use them, INSERT ... SELECT may not."""
        with connection.transaction():
            connection.execute(f"CREATE TEMP TABLE paid ON COMMIT DROP AS {_PAID}")
            connection.execute("ANALYZE paid")
            connection.execute(f"CREATE TEMP TABLE folded ON COMMIT DROP AS {_FOLDED.format(paid='paid')}")
            connection.execute(_DAILY.format(folded="folded"))
            connection.execute(_MONTHLY)

    return timed(one_statement if how == "one statement" else temporary_tables)


def _assert_same(connection: psycopg.Connection[Any]) -> None:
    for table, day in (("daily_metrics", "date"), ("monthly_metrics", "month")):
        columns = ", ".join((day, "source", "segment", *MEASURES, "revenue40", "cpl"))
        difference = connection.execute(
            f"SELECT count(*) FROM ((SELECT {columns} FROM analytics.{table} EXCEPT SELECT {columns} FROM bench.{table})"
            f" UNION ALL (SELECT {columns} FROM bench.{table} EXCEPT SELECT {columns} FROM analytics.{table})) d"
        ).fetchone()
        assert difference == (0,), f"{table}: {difference} rows differ from the hand-written SQL's"


def _count(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT count(*) FROM analytics.daily_metrics").fetchone()
    assert row is not None
    return f"{row[0]:,}"


def _one_month(environment: Environment, database: str) -> float:
    """Returns the seconds to recompute a month in which one payment changed its sign.

    Uses its own connection, as every run does.
    """
    with environment.connect(database) as connection:
        changed = connection.execute(
            "UPDATE raw.payments SET amount = -amount WHERE payment_id = (SELECT min(p.payment_id) FROM raw.payments p"
            " JOIN raw.jobs j USING (job_id) WHERE p.counts AND j.job_date >= %s AND j.job_date < %s)",
            [CHANGED_MONTH, next_month(CHANGED_MONTH)],
        ).rowcount
        assert changed == 1
        seconds = timed(lambda: refresh(connection, CHANGED_MONTH, next_month(CHANGED_MONTH)))
        waiting = connection.execute("SELECT FROM analytics.stale_months WHERE month = %s", [CHANGED_MONTH])
        assert waiting.fetchone() is None
    return seconds


def _copy_last_year(environment: Environment, one_year: psycopg.Connection[Any]) -> None:
    """Copies the last year's rows of the big database into an empty one."""
    environment.say("copying the last year alone")
    with environment.connect("ten_years") as source:
        for table, columns, condition in (
            ("jobs", "job_id, job_number, type, source, created_at, job_date", f"job_date >= '{LAST.year}-01-01'"),
            ("payments", "payment_id, job_number_ref, paid_date, amount, status", f"paid_date >= '{LAST.year}-01-01'"),
            ("google_spend", "month, campaign, amount, covered_to", f"month >= '{LAST.year}-01-01'"),
        ):  # fmt: skip
            read = f"COPY (SELECT {columns} FROM raw.{table} WHERE {condition}) TO STDOUT"
            write = f"COPY raw.{table} ({columns}) FROM STDIN"
            with source.cursor().copy(read.encode()) as out, one_year.cursor().copy(write.encode()) as into:
                for data in out:
                    into.write(data)
    one_year.execute("VACUUM ANALYZE")
