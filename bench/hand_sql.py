"""The metrics as a person would write them in SQL for this data: several ways, all into twins in the schema `bench`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any, LiteralString

import psycopg

from crm_analytics.core.months import next_month

Way = Callable[[psycopg.Connection[Any]], None]
MonthsWay = Callable[[psycopg.Connection[Any], date], None]

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
COLUMNS: LiteralString = "source, segment, jobs, units, repairs, leads, cost, revenue_gross"
_INTO_DAILY: LiteralString = f"INSERT INTO bench.daily_metrics (date, {COLUMNS})"
_INTO_MONTHLY: LiteralString = f"INSERT INTO bench.monthly_metrics (month, {COLUMNS})"
_EVERYTHING = {"jobs": "raw.jobs", "payments": "raw.payments", "spend": "raw.google_spend"}


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


def _of_month(folded: str, start: date) -> str:
    """Returns the month's daily metrics as a query."""
    end = next_month(start)
    parts = {
        "jobs": f"(SELECT * FROM raw.jobs WHERE job_date >= '{start}' AND job_date < '{end}')",
        "payments": f"(SELECT * FROM raw.payments WHERE paid_date >= '{start}' AND paid_date < '{end}')",
        "spend": f"(SELECT * FROM raw.google_spend WHERE month = '{start}')",
    }
    paid = "(SELECT p.job_id, sum(p.amount) AS paid FROM {jobs} j JOIN raw.payments p ON p.job_id = j.job_id"
    paid = f"{paid} WHERE p.counts GROUP BY p.job_id)".format(**parts)
    return _DAILY.format(folded=f"({folded.format(paid=paid, **parts)})", **parts)


def _month_anew(folded: str, connection: psycopg.Connection[Any], month: date) -> None:
    """Removes the month's rows and inserts them again."""
    end = next_month(month)
    with connection.transaction():
        connection.execute("DELETE FROM bench.daily_metrics WHERE date >= %s AND date < %s", [month, end])
        _execute(connection, _INTO_DAILY + _of_month(folded, month))
        connection.execute("DELETE FROM bench.monthly_metrics WHERE month = %s", [month])
        daily = f"(SELECT * FROM bench.daily_metrics WHERE date >= '{month}' AND date < '{end}')"
        _execute(connection, _INTO_MONTHLY + _MONTHLY.format(daily=daily))


def _month_difference(folded: str, connection: psycopg.Connection[Any], month: date) -> None:
    """Computes the month into temporary tables, and writes the rows that differ."""
    end = next_month(month)
    with connection.transaction():
        for table, day, query in (
            ("daily_metrics", "date", _of_month(folded, month)),
            ("monthly_metrics", "month", _MONTHLY.format(daily="new_daily_metrics")),
        ):
            stored = (
                f"SELECT {day}, {COLUMNS} FROM bench.{table} WHERE {day} >= '{month}' AND {day} < '{end}'"
            )
            _execute(
                connection, f"CREATE TEMP TABLE new_{table} ({day}, {COLUMNS}) ON COMMIT DROP AS {query}"
            )
            _execute(
                connection,
                f"DELETE FROM bench.{table} t USING ({stored} EXCEPT SELECT * FROM new_{table}) gone"
                f" WHERE (t.{day}, t.source, t.segment) = (gone.{day}, gone.source, gone.segment)",
            )
            _execute(
                connection,
                f"INSERT INTO bench.{table} ({day}, {COLUMNS}) SELECT * FROM new_{table} EXCEPT {stored}",
            )


def _execute(connection: psycopg.Connection[Any], statement: str) -> None:
    connection.execute(statement.encode(), prepare=False)


#: Ways to fill empty twins with everything.
WAYS: dict[str, Way] = {"one statement": _in_one_statement, "temporary tables": _with_temporary_tables}
#: Ways to bring one month of full twins up to date.
MONTHS_WAYS: dict[str, MonthsWay] = {
    "delete and insert": partial(_month_anew, _FOLDED),
    "delete and insert, payments job by job": partial(_month_anew, _FOLDED_BY_JOB),
    "difference, payments job by job": partial(_month_difference, _FOLDED_BY_JOB),
}
