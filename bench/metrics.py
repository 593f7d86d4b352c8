"""Computing the metrics, compared with the best SQL that a person would write by hand for the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from functools import partial
from typing import Any

import psycopg

from bench.cost import MANY_ROUNDS, Cost, by_turns
from bench.environment import Environment
from bench.hand_sql import COLUMNS, MONTHS_WAYS, WAYS, MonthsWay, Way
from bench.loads import business, loaded
from bench.table import BenchRow
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.months import next_month

SECTION = "metrics"
CHANGED_MONTH = date(2025, 6, 1)
ONE_YEAR = "one_year"

_SPEND = """
INSERT INTO raw.google_spend (month, campaign, amount, covered_to)
SELECT m::date, 'all', 3100.00 + extract(month FROM m), (m + interval '1 month' - interval '1 day')::date
FROM generate_series(%s::timestamp, %s::timestamp, interval '1 month') AS m
"""


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the metrics lines."""
    database = loaded(environment)
    years = business(environment)
    start, end = years.first, next_month(years.last.replace(day=1))
    with environment.connect(database) as connection:
        connection.execute(_SPEND, [years.first, years.last])
        environment.say("computing the metrics of ten years")
        ours, *by_hand = by_turns(
            partial(_refresh_all, environment, connection, start, end),
            *(partial(_hand, environment, connection, way) for way in WAYS.values()),
        )
        environment.note("metrics", ours)
        best, name = _fastest(by_hand, WAYS)
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
    # on a copy, because other sections compare the big database with its files
    with environment.copy_of(database) as copy:
        yield from _one_month(environment, copy)


def _one_month(environment: Environment, database: str) -> Iterator[BenchRow]:
    """Yields the lines of a month in which one payment changed."""
    environment.say("computing one changed month")
    ours, short, *by_hand = by_turns(
        partial(_changed, environment, database, _refresh_month),
        partial(_changed, environment, ONE_YEAR, _refresh_month),
        *(partial(_changed, environment, database, way) for way in MONTHS_WAYS.values()),
        rounds=MANY_ROUNDS,
    )
    for way in MONTHS_WAYS.values():
        _changed(environment, database, way)
        with environment.connect(database) as connection:
            _refresh_month(connection, CHANGED_MONTH)
            _assert_same(connection)
    yield BenchRow.of_costs(
        SECTION, "one changed month, ten years of history", ours, "one year of history", short, 1.3
    )
    best, name = _fastest(by_hand, MONTHS_WAYS)
    yield BenchRow.of_costs(
        SECTION, "one changed month, ten years of history", ours, f"best hand-written SQL for one month ({name})", best, 2.0
    )  # fmt: skip


def _fastest(costs: list[Cost], names: Iterable[str]) -> tuple[Cost, str]:
    return min(zip(costs, names, strict=True), key=lambda pair: pair[0].seconds)


def _refresh_all(
    environment: Environment, connection: psycopg.Connection[Any], start: date, end: date
) -> Cost:
    connection.execute("TRUNCATE analytics.daily_metrics, analytics.monthly_metrics")
    environment.checkpoint()
    return environment.measure(lambda: refresh(connection, start, end))


def _hand(environment: Environment, connection: psycopg.Connection[Any], way: Way) -> Cost:
    """Measures one hand-written way into empty twins of the metric tables, which must then equal ours."""
    connection.execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench")
    for table in ("daily_metrics", "monthly_metrics"):
        connection.execute(f"CREATE TABLE bench.{table} (LIKE analytics.{table} INCLUDING ALL)".encode())
    environment.checkpoint()
    cost = environment.measure(lambda: way(connection))
    _assert_same(connection)
    return cost


def _changed(environment: Environment, database: str, compute: MonthsWay) -> Cost:
    """Measures how long it takes to compute a month in which one payment changed; on a connection of its own, as every run."""
    with environment.connect(database) as connection:
        changed = connection.execute(
            "UPDATE raw.payments SET amount = amount + 1 WHERE payment_id = (SELECT min(p.payment_id) FROM raw.payments p"
            " JOIN raw.jobs j USING (job_id) WHERE p.counts AND j.job_date >= %s AND j.job_date < %s)",
            [CHANGED_MONTH, next_month(CHANGED_MONTH)],
        ).rowcount
        assert changed == 1
        return environment.measure(lambda: compute(connection, CHANGED_MONTH))


def _refresh_month(connection: psycopg.Connection[Any], month: date) -> None:
    refresh(connection, month, next_month(month))


def _assert_same(connection: psycopg.Connection[Any]) -> None:
    for table, day in (("daily_metrics", "date"), ("monthly_metrics", "month")):
        columns = f"{day}, {COLUMNS}, revenue40, cpl"
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
