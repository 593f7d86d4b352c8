"""Computing the metrics, compared with the best SQL that a person would write by hand for the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from typing import Any, LiteralString

import psycopg

from bench.cost import SHORT_ROUNDS, Cost, by_turns
from bench.environment import Environment
from bench.loads import business, loaded
from bench.table import BenchRow
from crm_analytics.analytics.warehouse.refresh import MEASURES, refresh
from crm_analytics.core.months import next_month

SECTION = "metrics"
CHANGED_MONTH = date(2025, 6, 1)
ONE_YEAR = "one_year"

_SPEND = """
INSERT INTO raw.google_spend (month, campaign, amount, covered_to)
SELECT m::date, 'all', 3100.00 + extract(month FROM m), (m + interval '1 month' - interval '1 day')::date
FROM generate_series(%s::timestamp, %s::timestamp, interval '1 month') AS m
"""

# Written by hand for this data: one pass over each big table, rows folded to (day, source, type) before any rule
# applies, and channel rules without periods of validity. {jobs}, {payments} and {spend} are the raw tables, or the part
# of them that one month needs.
_PAID: LiteralString = """
SELECT job_id, sum(amount) AS paid FROM raw.payments WHERE counts AND job_id IS NOT NULL GROUP BY job_id
"""
_FOLDED: LiteralString = """
SELECT j.job_date, j.source_folded, j.type_folded, count(*) AS jobs,
    count(*) FILTER (WHERE p.paid > 100) AS over_100, coalesce(sum(p.paid), 0) AS revenue
FROM {jobs} j LEFT JOIN {paid} p ON p.job_id = j.job_id
GROUP BY j.job_date, j.source_folded, j.type_folded
"""
#: The same with one look at the index for each job, which pays off for few of them.
_FOLDED_BY_JOB: LiteralString = """
SELECT j.job_date, j.source_folded, j.type_folded, count(*) AS jobs,
    count(*) FILTER (WHERE p.paid > 100) AS over_100, coalesce(sum(p.paid), 0) AS revenue
FROM {jobs} j
CROSS JOIN LATERAL (SELECT sum(amount) AS paid FROM raw.payments WHERE counts AND job_id = j.job_id) p
GROUP BY j.job_date, j.source_folded, j.type_folded
"""
_DAILY: LiteralString = """
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
    FROM {payments} p WHERE counts AND job_id IS NULL GROUP BY paid_date
    UNION ALL
    SELECT s.month + k - 1, 'Google', 'OTHER', 0, 0, 0, 0,
        round(s.amount * k / n.days, 2) - round(s.amount * (k - 1) / n.days, 2), 0
    FROM {spend} s CROSS JOIN LATERAL (SELECT s.covered_to - s.month + 1 AS days) n
    CROSS JOIN LATERAL generate_series(1, n.days) AS k
) parts
GROUP BY date, source, segment
HAVING (sum(jobs), sum(leads), sum(cost), sum(revenue)) <> (0, 0, 0, 0)
"""
_MONTHLY: LiteralString = """
SELECT date_trunc('month', date)::date, source, segment, sum(jobs), sum(units), sum(repairs), sum(leads), sum(cost),
    sum(revenue_gross)
FROM {daily} d GROUP BY 1, 2, 3
"""
_COLUMNS: LiteralString = "source, segment, jobs, units, repairs, leads, cost, revenue_gross"
_INTO_DAILY: LiteralString = f"INSERT INTO bench.daily_metrics (date, {_COLUMNS})"
_INTO_MONTHLY: LiteralString = f"INSERT INTO bench.monthly_metrics (month, {_COLUMNS})"
_EVERYTHING = {"jobs": "raw.jobs", "payments": "raw.payments", "spend": "raw.google_spend"}


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the metrics lines."""
    database = loaded(environment)
    years = business(environment)
    start, end = years.first, next_month(years.last.replace(day=1))
    with environment.connect(database) as connection:
        connection.execute("DELETE FROM raw.google_spend")
        connection.execute(_SPEND, [years.first, years.last])
        environment.say("computing the metrics of ten years")
        hand = {
            "one statement": partial(_in_one_statement, connection),
            "temporary tables": partial(_with_temporary_tables, connection),
        }
        ours, *by_hand = by_turns(
            partial(_refresh_all, environment, connection, start, end),
            *(partial(_hand, environment, connection, way) for way in hand.values()),
        )
        environment.note("metrics", ours)
        _assert_same(connection)
        best, name = _fastest(by_hand, list(hand))
        yield BenchRow.of_costs(
            SECTION, "daily and monthly metrics of ten years, one run", ours,
            f"best hand-written SQL ({name})", best, 1.15, note=f"{_count(connection)} daily rows, equal in both",
        )  # fmt: skip
        (unchanged,) = by_turns(lambda: environment.measure(lambda: refresh(connection, start, end)))
        yield BenchRow.of_costs(
            SECTION, "the same when nothing changed", unchanged, "best hand-written SQL, from nothing", best
        )
        connection.execute("VACUUM ANALYZE")
    _copy_last_year(environment, database, years.last.year)
    environment.say("computing one changed month")
    month = {
        "delete and insert": partial(_month_anew, _FOLDED),
        "delete and insert, payments job by job": partial(_month_anew, _FOLDED_BY_JOB),
        "difference, payments job by job": partial(_month_difference, _FOLDED_BY_JOB),
    }
    ours, short, *by_hand = by_turns(
        partial(_changed, environment, database, _refresh_month),
        partial(_changed, environment, ONE_YEAR, _refresh_month),
        *(partial(_changed, environment, database, way) for way in month.values()),
        rounds=SHORT_ROUNDS,
    )
    with environment.connect(database) as connection:
        _refresh_month(connection)
        for way in month.values():
            way(connection)
            _assert_same(connection)
    yield BenchRow.of_costs(
        SECTION, "one changed month, ten years of history", ours, "one year of history", short, 1.3
    )
    best, name = _fastest(by_hand, list(month))
    yield BenchRow.of_costs(
        SECTION, "one changed month, ten years of history", ours, f"best hand-written SQL for one month ({name})", best, 2.0
    )  # fmt: skip


def _fastest(costs: list[Cost], names: list[str]) -> tuple[Cost, str]:
    return min(zip(costs, names, strict=True), key=lambda pair: pair[0].seconds)


def _refresh_all(
    environment: Environment, connection: psycopg.Connection[Any], start: date, end: date
) -> Cost:
    connection.execute("TRUNCATE analytics.daily_metrics, analytics.monthly_metrics")
    environment.checkpoint()
    return environment.measure(lambda: refresh(connection, start, end))


def _hand(environment: Environment, connection: psycopg.Connection[Any], way: Callable[[], None]) -> Cost:
    """Measures one hand-written way into empty twins of the metric tables."""
    connection.execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench")
    for table in ("daily_metrics", "monthly_metrics"):
        connection.execute(f"CREATE TABLE bench.{table} (LIKE analytics.{table} INCLUDING ALL)".encode())
    environment.checkpoint()
    return environment.measure(way)


def _in_one_statement(connection: psycopg.Connection[Any]) -> None:
    folded = f"({_FOLDED.format(paid=f'({_PAID})', **_EVERYTHING)})"
    with connection.transaction():
        _execute(connection, _INTO_DAILY + _DAILY.format(folded=folded, **_EVERYTHING))
        _execute(connection, _INTO_MONTHLY + _MONTHLY.format(daily="bench.daily_metrics"))


def _with_temporary_tables(connection: psycopg.Connection[Any]) -> None:
    """Lets parallel workers help: CREATE TABLE AS may use them, INSERT ... SELECT may not."""
    with connection.transaction():
        _execute(connection, f"CREATE TEMP TABLE paid ON COMMIT DROP AS {_PAID}")
        _execute(connection, "ANALYZE paid")
        _execute(
            connection,
            f"CREATE TEMP TABLE folded ON COMMIT DROP AS {_FOLDED.format(paid='paid', **_EVERYTHING)}",
        )
        _execute(connection, _INTO_DAILY + _DAILY.format(folded="folded", **_EVERYTHING))
        _execute(connection, _INTO_MONTHLY + _MONTHLY.format(daily="bench.daily_metrics"))


def _changed(
    environment: Environment, database: str, compute: Callable[[psycopg.Connection[Any]], None]
) -> Cost:
    """Measures how long it takes to compute a month in which one payment changed; on a connection of its own, as every run."""
    with environment.connect(database) as connection:
        changed = connection.execute(
            "UPDATE raw.payments SET amount = amount + 1 WHERE payment_id = (SELECT min(p.payment_id) FROM raw.payments p"
            " JOIN raw.jobs j USING (job_id) WHERE p.counts AND j.job_date >= %s AND j.job_date < %s)",
            [CHANGED_MONTH, next_month(CHANGED_MONTH)],
        ).rowcount
        assert changed == 1
        return environment.measure(lambda: compute(connection))


def _refresh_month(connection: psycopg.Connection[Any]) -> None:
    refresh(connection, CHANGED_MONTH, next_month(CHANGED_MONTH))


def _of_month(folded: str) -> str:
    """Returns the month's daily metrics as a query."""
    start, end = CHANGED_MONTH, next_month(CHANGED_MONTH)
    parts = {
        "jobs": f"(SELECT * FROM raw.jobs WHERE job_date >= '{start}' AND job_date < '{end}')",
        "payments": f"(SELECT * FROM raw.payments WHERE paid_date >= '{start}' AND paid_date < '{end}')",
        "spend": f"(SELECT * FROM raw.google_spend WHERE month = '{start}')",
    }
    paid = "(SELECT p.job_id, sum(p.amount) AS paid FROM {jobs} j JOIN raw.payments p ON p.job_id = j.job_id"
    paid = f"{paid} WHERE p.counts GROUP BY p.job_id)".format(**parts)
    return _DAILY.format(folded=f"({folded.format(paid=paid, **parts)})", **parts)


def _month_anew(folded: str, connection: psycopg.Connection[Any]) -> None:
    """Removes the month's rows and inserts them again."""
    with connection.transaction():
        window = [CHANGED_MONTH, next_month(CHANGED_MONTH)]
        connection.execute("DELETE FROM bench.daily_metrics WHERE date >= %s AND date < %s", window)
        _execute(connection, _INTO_DAILY + _of_month(folded))
        connection.execute("DELETE FROM bench.monthly_metrics WHERE month = %s", [CHANGED_MONTH])
        daily = (
            f"(SELECT * FROM bench.daily_metrics WHERE date >= '{CHANGED_MONTH}' AND date < '{window[1]}')"
        )
        _execute(connection, _INTO_MONTHLY + _MONTHLY.format(daily=daily))


def _month_difference(folded: str, connection: psycopg.Connection[Any]) -> None:
    """Computes the month into temporary tables, and writes the rows that differ."""
    start, end = CHANGED_MONTH, next_month(CHANGED_MONTH)
    with connection.transaction():
        for table, day, query in (
            ("daily_metrics", "date", _of_month(folded)),
            ("monthly_metrics", "month", _MONTHLY.format(daily="new_daily_metrics")),
        ):
            stored = (
                f"SELECT {day}, {_COLUMNS} FROM bench.{table} WHERE {day} >= '{start}' AND {day} < '{end}'"
            )
            _execute(
                connection, f"CREATE TEMP TABLE new_{table} ({day}, {_COLUMNS}) ON COMMIT DROP AS {query}"
            )
            _execute(
                connection,
                f"DELETE FROM bench.{table} t USING ({stored} EXCEPT SELECT * FROM new_{table}) gone"
                f" WHERE (t.{day}, t.source, t.segment) = (gone.{day}, gone.source, gone.segment)",
            )
            _execute(
                connection,
                f"INSERT INTO bench.{table} ({day}, {_COLUMNS}) SELECT * FROM new_{table} EXCEPT {stored}",
            )


def _execute(connection: psycopg.Connection[Any], statement: str) -> None:
    connection.execute(statement.encode(), prepare=False)


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


def _copy_last_year(environment: Environment, database: str, year: int) -> None:
    """Copies the last year's rows of the big database into an empty one, and computes its metrics."""
    environment.say("copying the last year alone")
    since = f"{year}-01-01"
    with environment.connect(database) as source, environment.connect(ONE_YEAR) as one_year:
        for table, columns, day in (
            ("jobs", "job_id, job_number, type, source, created_at, job_date", "job_date"),
            ("payments", "payment_id, job_number_ref, paid_date, amount, status", "paid_date"),
            ("google_spend", "month, campaign, amount, covered_to", "month"),
        ):
            read = f"COPY (SELECT {columns} FROM raw.{table} WHERE {day} >= '{since}') TO STDOUT"
            write = f"COPY raw.{table} ({columns}) FROM STDIN"
            with source.cursor().copy(read.encode()) as out, one_year.cursor().copy(write.encode()) as into:
                for data in out:
                    into.write(data)
        one_year.execute("VACUUM ANALYZE")
        refresh(one_year, date(year, 1, 1), date(year + 1, 1, 1))
        one_year.execute("VACUUM ANALYZE")
