"""Expanding macros as Grafana does, refusing everything else, and drawing previews."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from crm_analytics.dashboards.column_formats import DOLLARS
from crm_analytics.dashboards.generate import generated
from crm_analytics.dashboards.queries import query
from crm_analytics.dashboards.tools.expand_macros import expand
from crm_analytics.dashboards.tools.preview import draw, text_of
from crm_analytics_tests.dashboards.conftest import as_reader

START = datetime(2024, 10, 1, tzinfo=UTC)
END = datetime(2024, 10, 31, 20, 30, tzinfo=timezone(timedelta(hours=-4)))


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("$__timeFilter(d)", "d BETWEEN '2024-10-01T00:00:00.000Z' AND '2024-11-01T00:30:00.000Z'"),
        ("$__timeFrom()::date", "'2024-10-01T00:00:00.000Z'::date"),
        ("$__timeTo()", "'2024-11-01T00:30:00.000Z'"),
        ("ARRAY[${many:sqlstring}]", "ARRAY['a','O''Brien']"),
        ("ARRAY[${none:sqlstring}]", "ARRAY[]"),
        ("${one:sqlstring}", "'2024-10'"),
    ],
)
def test_expands_as_grafana_does(sql, expected):
    """Macros expand as in Grafana, so that tests run the same SQL as Grafana."""
    values = {"many": ["a", "O'Brien"], "none": [], "one": "2024-10"}
    assert expand(sql, START, END, values) == expected


@pytest.mark.parametrize(
    "sql",
    ["$source", "${source}", "${source:csv}", "$__timeGroup(d, '1d')", "$__timeFilter(lower(d))", "[[source]]",
     "${unknown:sqlstring}"],
)  # fmt: skip
def test_refuses_what_grafana_would_expand_otherwise(sql):
    """Anything that Grafana would expand in another way is refused."""
    with pytest.raises(ValueError, match=r"not expanded|no variable"):
        expand(sql, START, END, {"source": "Google"})


def test_words_in_a_query_are_plain_names():
    """Only plain names replace words in a query, and each word must occur in it."""
    assert "sum(m.leads) AS leads" in query("monthly_series_by_source", measure="leads")
    for words in ({"measure": "1; DROP TABLE x"}, {"other": "leads"}):
        with pytest.raises(ValueError, match="cannot replace"):
            query("monthly_series_by_source", **words)


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "shown"),
    [
        (Decimal("3884.71"), DOLLARS, 0, "$3,885"),
        (Decimal("1234.5"), DOLLARS, 2, "$1,234.50"),
        (-1200, DOLLARS, 0, "$-1,200"),
        (Decimal("0.3542"), "percentunit", 1, "35.4%"),
        (Decimal("1234.50"), "locale", 2, "1,234.5"),
        (Decimal("12.0"), "locale", 1, "12"),
        (90000, "dtdhms", None, "1 d 01:00:00"),
        (314.7, "dtdhms", None, "00:05:14"),
        (date(2024, 2, 29), "time:YYYY-MM", None, "2024-02"),
    ],
)
def test_previews_format_numbers_as_grafana_does(value, unit, decimals, shown):
    """Numbers look as in Grafana: its own formatter produced these texts (@grafana/data 12.4.0, en-US)."""
    assert text_of(value, unit, decimals) == shown


def test_previews_draw_every_dashboard(sample, new_database, tmp_path):
    """Every dashboard can be drawn for the documentation."""
    readers = {
        "crm-analytics-warehouse": as_reader(sample.url, "analytics"),
        "crm-analytics-crm": as_reader(new_database("crm"), "crm"),
    }
    for file, text in generated().items():
        draw(json.loads(text), readers, tmp_path / f"{file.stem}.png")
    for reader in readers.values():
        reader.close()
    assert {path.stem for path in tmp_path.glob("*.png")} == {file.stem for file in generated()}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
