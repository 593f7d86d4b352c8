"""Compares the warehouse's metric tables with the reference model, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg

from crm_analytics.analytics.warehouse.refresh import refresh, stale_months
from crm_analytics.core.months import next_month
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics.reference_model import (
    EXACT_GENERATED,
    MEASURES,
    RATIOS,
    Metrics,
    Warehouse,
    folded,
    rounded,
)

Table = dict[reference_model.Key, dict[str, Any]]
COLUMNS = (*MEASURES, *EXACT_GENERATED, *RATIOS)


def stored(connection: psycopg.Connection[Any], table: str, day: str) -> Table:
    """Returns a metric table by (day, source, segment)."""
    rows = connection.execute(f"SELECT {day}, source, segment, {', '.join(COLUMNS)} FROM analytics.{table}")
    return {(row[0], row[1], row[2]): dict(zip(COLUMNS, row[3:], strict=True)) for row in rows}


def folded_keys(table: Mapping[reference_model.Key, Any]) -> dict[reference_model.Key, Any]:
    """Returns the table with folded names of sources, of which no two may be spellings of one."""
    result = {(day, folded(source), segment): row for (day, source, segment), row in table.items()}
    assert len(result) == len(table), sorted({source for _, source, _ in table})
    return result


def assert_equal(found: Table, expected: Metrics) -> None:
    """Compares every key and column: counts and money to the cent, ratios to every digit stored (at least 12).

    How a source is spelled depends on which row came first, so names are compared folded.
    """
    found, expected = folded_keys(found), folded_keys(expected)
    assert set(found) == set(expected), {
        "missing": sorted(set(expected) - set(found)),
        "surplus": sorted(set(found) - set(expected)),
    }
    for key, measures in expected.items():
        row = found[key]
        exact = (*MEASURES, *EXACT_GENERATED)
        assert {name: row[name] for name in exact} == {name: getattr(measures, name) for name in exact}, key
        for name in RATIOS:
            ratio: Fraction | None = getattr(measures, name)
            value: Decimal | None = row[name]
            if ratio is None or value is None:
                assert ratio is value, (key, name)
                continue
            places = -int(value.as_tuple().exponent)
            assert places >= 12, (key, name, value)
            assert value == rounded(ratio, places), (key, name)


def assert_metrics(connection: psycopg.Connection[Any], warehouse: Warehouse) -> None:
    """Asserts that daily_metrics and monthly_metrics equal those of the reference model."""
    daily = reference_model.daily_metrics(warehouse)
    assert_equal(stored(connection, "daily_metrics", "date"), daily)
    assert_equal(stored(connection, "monthly_metrics", "month"), reference_model.monthly_metrics(daily))


def assert_metrics_equal_facts(connection: psycopg.Connection[Any]) -> None:
    """Asserts that the metrics, computed by groups, equal the facts added up one by one: all measures, leads by rule."""
    differences = "SELECT * FROM analytics.daily_differences('-infinity', 'infinity')"
    assert connection.execute(differences).fetchall() == []
    by_groups = connection.execute(
        """
        SELECT c.lead_rule, sum(d.leads)
        FROM analytics.daily_metrics d
        JOIN analytics.channel_rules c
            ON c.source = d.source AND analytics.in_force(d.date, c.valid_from, c.valid_to)
        WHERE d.leads > 0
        GROUP BY c.lead_rule
        ORDER BY c.lead_rule
        """
    ).fetchall()
    assert by_groups == connection.execute(
        "SELECT lead_rule, count(*) FROM analytics.lead_facts GROUP BY lead_rule ORDER BY lead_rule"
    ).fetchall()  # fmt: skip


def refresh_stale(connection: psycopg.Connection[Any]) -> None:
    """Refreshes each stale month alone, as the sensor would, and nothing else."""
    for stale in stale_months(connection):
        refresh(connection, stale.month, next_month(stale.month))


def assert_every_way_agrees(
    connection: psycopg.Connection[Any], warehouse: Warehouse, first: date, last: date
) -> None:
    """Asserts that every way to refresh gives the tables of the reference model.

    The ways: stale months only, everything again, one range from nothing, month by month from nothing.

    Args:
        connection: to the analytics database.
        warehouse: what its raw tables hold.
        first: first month that may hold data.
        last: last month that may hold data.
    """
    refresh_stale(connection)
    assert stale_months(connection) == []
    assert_metrics(connection, warehouse)
    assert_metrics_equal_facts(connection)
    assert sum(month.changed_rows for month in refresh(connection, first, next_month(last))) == 0
    connection.execute("TRUNCATE analytics.daily_metrics, analytics.monthly_metrics")
    refresh(connection, first, next_month(last))
    assert_metrics(connection, warehouse)
    connection.execute("TRUNCATE analytics.daily_metrics, analytics.monthly_metrics")
    month = first
    while month <= last:
        refresh(connection, month, next_month(month))
        month = next_month(month)
    assert_metrics(connection, warehouse)
