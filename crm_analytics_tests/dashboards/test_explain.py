"""The Explain dashboard: its numbers as grafana_reader, the links that lead to it, and what it doesn't show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg
import pytest

from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.values.column_types import Identifier, Label, Text
from crm_analytics.analytics.warehouse.explain import METRICS, RATIOS
from crm_analytics.dashboards.panels import EXPLAIN
from crm_analytics.dashboards.queries import query
from crm_analytics.dashboards.tools.expand_macros import expand
from crm_analytics.dashboards.tools.lint import panels_of
from crm_analytics.dashboards.tools.panel_fields import properties_of
from crm_analytics_tests.analytics.ingest.landing_folder import Landing, text
from crm_analytics_tests.analytics.model_comparison import refresh_stale
from crm_analytics_tests.chance import generator
from crm_analytics_tests.dashboards.conftest import Sample, as_reader, moment, plus_months
from crm_analytics_tests.dashboards.test_queries import (
    BOARDS,
    SEGMENTS,
    Choice,
    choices,
    rows,
    run,
    same,
    total,
)

Connection = psycopg.Connection[Any]


@pytest.mark.parametrize("metric", METRICS)
def test_a_number_and_its_rows_are_those_of_the_model(
    grafana: Connection, sample: Sample, metric: str
) -> None:
    """The rows, the files and what is stored give the model's number, for every kind of choice."""
    for choice in choices(sample).values():
        chosen = Choice(
            choice.sources, choice.segments, choice.month, choice.time_from, choice.time_to, metric
        )
        expected = getattr(total(sample, choice, choice.month, plus_months(choice.month, 1)), metric)
        (found,) = rows(grafana, "explain_months", chosen)
        assert found["month"] == f"{choice.month:%Y-%m}"
        assert same(found["explained"], expected) and same(found["stored"], expected), (choice, found)
        assert found["stale_since"] is None and not found["difference"]
        counted = rows(grafana, "explain_rows", chosen)
        assert len(counted) == found["rows"] < 1000
        files = rows(grafana, "explain_files", chosen)
        assert sum(row["rows"] for row in files) == found["rows"]
        for listed in (counted, files):
            sums = {
                part: sum((row["amount"] for row in listed if row["part"] == part), Decimal(0))
                for part in ("whole", "numerator", "denominator")
            }
            if metric not in RATIOS:
                assert same(sums["whole"], expected)
            elif expected is not None:
                assert same(Fraction(sums["numerator"]) / Fraction(sums["denominator"]), expected)


def test_a_stale_month_shows_both_numbers(analytics: Connection, analytics_url: str) -> None:
    """While a month is stale, its rows and what is stored differ, and the row says since when and why."""
    analytics.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
        " VALUES ('A', 'COD Repair', 'Google', now(), '2024-10-05'), ('B', 'COD Repair', 'Google', now(), '2024-11-05')"
    )
    analytics.execute("UPDATE raw.jobs SET zip = '10001' WHERE job_id = 'B'")
    analytics.execute("UPDATE raw.jobs SET type = 'INS Repair' WHERE job_id = 'B'")
    statement = expand(
        query("explain_months"),
        moment(date(2024, 10, 1)),
        moment(date(2024, 12, 1)),
        {"source": ["Google"], "segment": SEGMENTS, "month": ["2024-10", "2024-11"], "metric": "repairs"},
    )
    with as_reader(analytics_url, "analytics") as reader:
        found = reader.execute(statement.encode()).fetchall()
    assert [(row[0], int(row[1]), int(row[2]), int(row[3]), row[6]) for row in found] == [
        ("Total", 2, 2, 0, "jobs insert, jobs update"),
        ("2024-11", 1, 1, 0, "jobs insert, jobs update"),
        ("2024-10", 1, 1, 0, "jobs insert"),
    ]
    assert all(row[5] is not None for row in found)


def test_rows_have_no_personal_data(grafana: Connection, sample: Sample) -> None:
    """Rows have ids, dates, amounts, files and rules. A call's id is a hash of telephone numbers, which could be guessed."""
    everything = choices(sample)["all, current month"]
    for metric, kinds in {"calls": {"call"}, "profit": {"payment", "lead", "spend"}, "jobs": {"job"}}.items():
        closed = Choice(
            everything.sources, SEGMENTS, plus_months(sample.month, -1), sample.month, sample.month, metric
        )
        found = rows(grafana, "explain_rows", closed)
        assert {row["kind"] for row in found} == kinds
        assert {row["kind"] for row in found if row["id"] is None} == kinds & {"call"}
        assert set(found[0]) == {
            "part", "counted_on", "kind", "id", "source", "segment", "amount", "rule", "file", "record_no",
        }  # fmt: skip


MARK = "Jane Roe"
#: One row of an export at least for each kind of contribution. All other columns with text have the mark.
MARKED: dict[str, list[dict[str, str]]] = {
    "jobs": [
        {"job_id": "JOB001", "type": "COD Service", "source": "Google", "created_at": "2024-10-05"},
        {"job_id": "JOB002", "type": "INS Repair", "source": "Rely", "created_at": "2024-10-05"},
        {"job_id": "JOB003", "source": "Angi", "created_at": "2024-10-05"},
    ],
    "payments": [
        {"payment_id": "P1", "job_uuid": "JOB001", "paid_at": "2024-10-05", "amount": "120.00"},
        {"payment_id": "P2", "paid_at": "2024-10-06", "amount": "-5.00"},
    ],
    "calls": [{"started_at": "2024-10-05 10:00", "duration_seconds": "60", "flow": "Google"}],
    "elocals_leads": [{"lead_id": "L1", "lead_at": "2024-10-05", "cost": "65.25"}],
    "proref_leads": [{"lead_id": "R1", "lead_at": "2024-10-05"}],
    "workiz_leads": [{"lead_id": "W1", "created_at": "2024-10-05", "source": "Thumbtack"}],
    "google_spend": [{"month": "2024-10", "amount": "310.00"}],
    "targets": [{"month": "2024-10", "segment": "ALL", "target_repairs": "3"}],
}


def test_words_quote_no_text_of_exports(analytics: Connection, analytics_url: str, tmp_path: Path) -> None:
    """Whatever people type into a column, only sources and the ids of rows come out: types and statuses may be names, too."""
    landing = Landing(tmp_path, analytics)
    for source in SOURCES.values():
        rows_of = [
            {
                column.name: given.get(
                    column.name, MARK if isinstance(column.kind, Text | Label | Identifier) else ""
                )
                for column in source.columns
            }
            for given in MARKED[source.name]
        ]
        names = [name for name in rows_of[0] if any(row[name] for row in rows_of)]
        headers = [source.column(name).headers[0] for name in names]
        landing.write(
            f"{source.name}/a.csv", text(headers, [[row[name] for name in names] for row in rows_of])
        )
        loaded = landing.load_one(source.name)
        assert loaded.counts.inserted == len(rows_of), loaded
        marked = landing.rows(f"SELECT t::text FROM {source.table} t")
        assert all(MARK.casefold() in row.casefold() for (row,) in marked), marked
    analytics.execute(
        "INSERT INTO lead_channels (source, lead_rule, cost_rule) VALUES ('Thumbtack', 'workiz_leads', 'none')"
    )
    refresh_stale(analytics)
    shown = []
    with as_reader(analytics_url, "analytics") as reader:
        for metric in METRICS:
            shown += reader.execute(
                "SELECT e.kind, e::text FROM reporting.explain("
                " '{2024-10-01}', %s, ARRAY(SELECT DISTINCT source FROM monthly_metrics), %s) e",
                [metric, list(SEGMENTS)],
            ).fetchall()
    assert {kind for kind, _ in shown} == {"job", "payment", "lead", "call", "spend"}
    assert [row for _, row in shown if MARK.casefold() in row.casefold()] == []
    assert any("COD Service with 120.00 paid" in row for _, row in shown)
    assert any("lead of Thumbtack in the field-service system with another" in row for _, row in shown)


# -- links --------------------------------------------------------------------------------------------------------


def address(url: str, row: Mapping[str, Any], variables: Mapping[str, str | Sequence[str]]) -> str:
    """Returns the address that Grafana makes of a data link, for a row of the panel and the dashboard's variables."""

    def value(match: re.Match[str]) -> str:
        name, form = match[1], match[2]
        if name.startswith("__data.fields."):
            assert form == "raw", "another form would encode what is encoded already"
            return str(row[name.removeprefix("__data.fields.")])
        assert form == "queryparam"
        given = variables[name]
        values = [given] if isinstance(given, str) else given
        return "&".join(f"var-{name}={quote(one, safe='')}" for one in values)

    return re.sub(r"\$\{([\w.]+):(\w+)\}", value, url)


def explained(grafana: Connection, link: str) -> Any:
    """Follows a link to the Explain dashboard, and returns the number that its rows add up to."""
    parts = urlsplit(link)
    assert parts.path == f"/d/{EXPLAIN}"
    chosen: dict[str, list[str]] = {"month": [], "source": [], "segment": [], "metric": []}
    for name, value in parse_qsl(parts.query, strict_parsing=True):
        chosen[name.removeprefix("var-")].append(value)
    (metric,) = chosen.pop("metric")
    start = moment(date(2024, 1, 1))
    statement = expand(query("explain_months"), start, start, {**chosen, "metric": metric})
    found = grafana.execute(statement.encode()).fetchall()
    assert len(found) == (1 if len(chosen["month"]) == 1 else len(chosen["month"]) + 1)
    return found[0][2]


def linked(sample: Sample, grafana: Connection) -> Iterator[tuple[str, str, Any, str]]:
    """Yields every cell that links to its explanation: panel, column, value, address."""
    everything = choices(sample)["all, current month"]
    for choice in (everything, choices(sample)["many sources"]):
        variables = {
            "source": choice.sources, "segment": choice.segments, "month": f"{choice.month:%Y-%m}",
        }  # fmt: skip
        for board in BOARDS:
            for panel in panels_of(board):
                links = {
                    column: link["url"]
                    for column, own in properties_of(panel).items()
                    for link in own.get("links", [])
                    if link["url"].startswith("/d/")
                }
                if not links:
                    continue
                names, found = run(grafana, panel["targets"][0]["rawSql"], choice)
                for cells in found:
                    row = dict(zip(names, cells, strict=True))
                    for column, url in links.items():
                        where = f"{board['title']}: {panel['title']}"
                        yield where, column, row[column], address(url, row, variables)


def test_links_lead_to_the_number_that_was_clicked(grafana: Connection, sample: Sample) -> None:
    """A link from any cell leads to rows that add up to that cell: of its month or months, source and segment."""
    cells = list(linked(sample, grafana))
    panels = {where for where, *_ in cells}
    assert {where.split(": ")[0] for where in panels} == {
        "Executive", "Month to month by source", "Daily cumulative against target", "Funnel and unit economics",
        "Data trust",
    }  # fmt: skip
    assert {column for _, column, *_ in cells} == set(METRICS)
    chosen = generator(f"links {sample.today}").sample(cells, 150)
    # of each panel and column, one at least
    chosen += {(where, column): (where, column, value, link) for where, column, value, link in cells}.values()
    for where, column, value, link in chosen:
        assert same(explained(grafana, link), value), (where, column, link)


def test_names_survive_the_way_through_an_address(analytics: Connection) -> None:
    """Names with characters that mean something in an address arrive as they are."""
    strange = ["AT&T 100%", "O'Brien #1 + sons", "a=b?c/d", "Café", "%41"]
    row = analytics.execute(
        "SELECT reporting.explain_link(ARRAY['2024-10-01'::date, '2024-11-01'], %s, '{COD}')", [strange]
    ).fetchone()
    assert row
    found = parse_qsl(row[0], strict_parsing=True)
    assert [value for name, value in found if name == "var-source"] == sorted(strange)
    assert [value for name, value in found if name == "var-month"] == ["2024-10", "2024-11"]
    assert [value for name, value in found if name == "var-segment"] == ["COD"]


def test_the_column_of_links_is_hidden() -> None:
    """Tables hide the column that their links are made of, by both names that Grafana has had for it."""
    hidden = [
        properties_of(panel)["explain_link"]
        for board in BOARDS
        for panel in panels_of(board)
        if "explain_link" in properties_of(panel)
    ]
    assert len(hidden) == 5
    assert all(own == {"custom.hidden": True, "custom.hideFrom.viz": True} for own in hidden)


def test_at_most_a_thousand_rows(analytics: Connection, analytics_url: str) -> None:
    """A big month doesn't drown the browser: a thousand rows are shown, and all of them counted."""
    analytics.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
        " SELECT 'J' || n, 'COD Repair', 'Google', now(), '2024-10-05' FROM generate_series(1, 1001) n"
    )
    choice = Choice(("Google",), SEGMENTS, date(2024, 10, 1), date(2024, 10, 1), date(2024, 11, 1), "jobs")
    with as_reader(analytics_url, "analytics") as reader:
        assert len(rows(reader, "explain_rows", choice)) == 1000
        (found,) = rows(reader, "explain_months", choice)
    assert found["rows"] == found["explained"] == 1001
