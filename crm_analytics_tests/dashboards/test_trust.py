"""The Data trust dashboard: files, quarantine, stale months and reconciliation, counted by hand."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics_tests.dashboards.conftest import as_reader, plus_months
from crm_analytics_tests.dashboards.test_queries import SEGMENTS, Choice, rows

MARCH = date(2024, 3, 1)


@pytest.fixture
def choice() -> Choice:
    return Choice((), SEGMENTS, MARCH, MARCH, MARCH)


@pytest.fixture
def world(analytics):
    """Six files, two quarantined records, four jobs of March 2024 with payments and calls, refreshed."""
    run: Any = analytics.execute
    file = (
        "INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at, exported_at_from,"
        " status, message, records_read, inserted, quarantined, first_date, last_date, run_id, finished_at)"
        " VALUES (%s, %s, %s, 1, now(), %s, 'name', %s, %s, %s, %s, %s, %s, %s, %s, %s)"
    )
    for values in (
        ("jobs", "jobs/old.csv", "1", "2024-03-02", "loaded", None, 3, 3, 0, "2024-03-01", "2024-03-02", "run-1", "2024-03-02 05:00Z"),
        ("jobs", "jobs/new.csv", "2", "2024-03-09", "loaded", None, 2, 1, 1, "2024-03-03", "2024-03-08", "run-2", "2024-03-09 05:00Z"),
        ("calls", "calls/a.csv", "3", "2024-03-05", "refused", "no column from", 0, 0, 0, None, None, "run-2", "2024-03-09 05:01Z"),
        (None, "notes.txt", "4", "2024-03-05", "unrecognized", "fits no source", 0, 0, 0, None, None, None, "2024-03-09 05:02Z"),
        ("payments", "payments/p.csv", "5", "2024-03-05", "refused", "is damaged", 0, 0, 0, None, None, "run-1", "2024-03-05 05:00Z"),
        ("payments", "payments/p.csv", "6", "2024-03-06", "loaded", None, 4, 3, 1, "2024-03-01", "2024-03-05", "run-2", "2024-03-09 05:03Z"),
    ):  # fmt: skip
        run(file, values)
    for file_id, kind, reason, state in (
        (2, "jobs", {"code": "blank", "column": "Created", "found": ""}, "open"),
        (6, "payments", {"code": "not_a_number", "column": "Amount", "found": "x"}, "open"),
        (6, "payments", {"code": "not_a_number", "column": "Amount", "found": "y"}, "dismissed"),
    ):
        run(
            "INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, reasons, record, status)"
            " VALUES (%s, %s, %s, 2, jsonb_build_array(%s::jsonb), '{}', %s)",
            [file_id, kind, 1 if state == "open" else 2, Jsonb(reason), state],
        )
    for number, source in enumerate(("Google", "Angi", "Angi", "Rely")):
        run(
            "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date) VALUES (%s, 'COD Service', %s, %s, %s)",
            [f"j{number}", source, "2024-03-04T12:00Z", "2024-03-04"],
        )
    payments: tuple[tuple[str | None, str, str | None], ...] = (
        ("j0", "150.00", None), ("j1", "60.50", None), ("j1", "99.00", "Failed"), (None, "20.25", None),
    )  # fmt: skip
    for number, (job, amount, status) in enumerate(payments):
        run(
            "INSERT INTO raw.payments (payment_id, job_id_ref, paid_date, amount, status) VALUES (%s, %s, %s, %s, %s)",
            [f"p{number}", job, "2024-03-06", amount, status],
        )
    run(
        "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES ('c', now(), '2024-03-07', 'GoogleAds')"
    )
    refresh(analytics, MARCH, plus_months(MARCH, 1), "run-3")
    return analytics


@pytest.fixture
def grafana(world, analytics_url):
    with as_reader(analytics_url, "analytics") as connection:
        yield connection


def test_freshness_names_the_newest_file_and_the_last_day(grafana, choice):
    """Freshness names the newest file and last day of each source, so that a stopped export shows."""
    found = {row["source"]: row for row in rows(grafana, "freshness", choice)}
    assert set(found) == {
        "jobs", "payments", "calls", "elocals_leads", "proref_leads", "workiz_leads", "google_spend", "targets",
    }  # fmt: skip
    assert (found["jobs"]["last_file"], found["jobs"]["last_row"]) == ("jobs/new.csv", "2024-03-04")
    assert (found["calls"]["last_file"], found["calls"]["last_row"]) == (None, "2024-03-07")
    assert (found["targets"]["last_file"], found["targets"]["days_behind"]) == (None, None)
    (today,) = grafana.execute("SELECT analytics.today()").fetchone()
    assert found["payments"]["days_behind"] == (today - date(2024, 3, 6)).days


def test_files_not_loaded_are_judged_by_their_current_content(grafana, choice):
    """A refused file that a good one replaced isn't listed."""
    assert {(row["path"], row["status"]) for row in rows(grafana, "files_not_loaded", choice)} == {
        ("calls/a.csv", "refused"),
        ("notes.txt", "unrecognized"),
    }
    assert rows(grafana, "recent_files", choice)[0]["path"] == "payments/p.csv"
    assert len(rows(grafana, "recent_files", choice)) == 6


def test_files_are_told_by_who_brought_them(grafana, world, choice):
    """A connector is named; NULL is a person."""
    world.execute(
        "UPDATE raw.source_files SET connector = 'workiz_jobs' WHERE path IN ('jobs/new.csv', 'calls/a.csv')"
    )
    brought = {row["path"]: row["connector"] for row in rows(grafana, "recent_files", choice)}
    assert (brought["jobs/new.csv"], brought["jobs/old.csv"]) == ("workiz_jobs", None)
    refused = {row["path"]: row["connector"] for row in rows(grafana, "files_not_loaded", choice)}
    assert refused == {"calls/a.csv": "workiz_jobs", "notes.txt": None}


def test_leads_of_the_field_service_system_are_shown(grafana, world, choice):
    """By source, for the months of the time range; those in the metrics are counted apart."""
    world.execute(
        """
        INSERT INTO raw.workiz_leads (lead_id, created_at, lead_date, status, source, converted)
        VALUES
            ('1', '2024-03-04', '2024-03-04', 'Open', 'pro referral', true), ('2', '2024-03-04', '2024-03-04', 'Passed', 'Rely', false),
            ('3', '2024-03-31', '2024-03-31', NULL, 'Rely', NULL), ('4', '2024-04-01', '2024-04-01', 'Open', 'Rely', true),
            ('5', '2024-03-04', '2024-03-04', 'Open', 'Yet Unknown', NULL)
        """
    )
    world.execute("UPDATE lead_channels SET lead_rule = 'workiz_leads' WHERE source = 'Rely'")
    found = [tuple(row.values()) for row in rows(grafana, "workiz_leads", choice)]
    assert found == [
        ("Total", 4, 1, 1, 1), ("Pro Referral", 1, 0, 1, 0), ("Rely", 2, 1, 0, 1), ("Yet Unknown", 1, 0, 0, 0),
    ]  # fmt: skip


def test_quarantine_counts_open_records(grafana, choice):
    """Dismissed records aren't counted."""
    found = [(r["source"], r["reason"], r["records"]) for r in rows(grafana, "quarantine_by_reason", choice)]
    assert found == [("jobs", "Created: blank", 1), ("payments", "Amount: not a number", 1)]


def test_summary_and_reconciliation_are_clean_then_find_a_difference(grafana, world, choice):
    """The reconciliation is 0 until a metric is changed without its raw rows, which it shows."""
    (summary,) = rows(grafana, "trust_summary", choice)
    assert {name: summary[name] for name in summary if name != "seconds_since_refresh"} == {
        "stale_months": 0, "quarantined": 2, "refused_files": 1, "unrecognized_files": 1, "sources_without_rule": 1,
        "difference": 0,
    }  # fmt: skip
    assert 0 <= summary["seconds_since_refresh"] < 600
    found = {row["measure"]: row for row in rows(grafana, "reconciliation", choice)}
    for layers in (
        "raw against daily metrics",
        "facts against daily metrics",
        "daily against monthly metrics",
    ):
        assert found[f"Jobs: {layers}"]["expected"] == found[f"Jobs: {layers}"]["found"] == 4
        assert found[f"Calls: {layers}"]["expected"] == 1
    assert found["Payments in dollars: raw against daily metrics"]["expected"] == Decimal("230.75")
    assert found["Gross revenue in dollars: facts against daily metrics"]["expected"] == Decimal("230.75")
    world.execute(
        "UPDATE analytics.daily_metrics SET revenue_gross = revenue_gross + 7.5 WHERE source = 'Google' AND jobs > 0"
    )
    found = {row["measure"]: row["difference"] for row in rows(grafana, "reconciliation", choice)}
    assert found["Payments in dollars: raw against daily metrics"] == Decimal("7.50")
    assert found["Gross revenue in dollars: facts against daily metrics"] == Decimal("7.50")
    assert found["Gross revenue in dollars: daily against monthly metrics"] == Decimal("7.50")
    assert rows(grafana, "trust_summary", choice)[0]["difference"] == Decimal("22.50")


def test_stale_months_appear_and_go(grafana, world, choice):
    """A correction by hand makes its month stale until the next refresh."""
    world.execute("UPDATE raw.payments SET amount = 500 WHERE payment_id = 'p0'")
    (stale,) = rows(grafana, "stale_months", choice)
    assert (stale["month"], stale["causes"]) == ("2024-03", "payments update")
    assert rows(grafana, "last_refreshes", choice)[0]["state"] == "stale"
    refresh(world, MARCH, plus_months(MARCH, 1), "run-4")
    assert rows(grafana, "stale_months", choice) == []
    (last,) = rows(grafana, "last_refreshes", choice)
    assert (last["month"], last["state"], last["run_id"], last["changed_rows"]) == (
        "2024-03",
        "up to date",
        "run-4",
        1,
    )


def test_revisions_are_listed_with_their_causes(grafana, world, choice):
    """A change of a closed month is listed with what it changed, why and by which run."""
    assert rows(grafana, "revisions", choice) == []
    world.execute("UPDATE raw.payments SET amount = 80.50 WHERE payment_id IN ('p0', 'p1')")
    refresh(world, MARCH, plus_months(MARCH, 1), "run-4")
    (found,) = rows(grafana, "revisions", choice)
    assert found.pop("revised_at") is not None
    # Google's job has no longer more than 100 dollars paid; Angi's job has 20 dollars more
    assert found == {
        "month": "2024-03",
        "changes": "repairs -1, revenue_gross -49.50",
        "causes": "payments update by postgres (2 rows)",
        "run_id": "run-4",
    }


def test_revisions_are_annotated_at_their_month_for_what_is_chosen(grafana, world):
    """A revised month has one annotation, where charts have its point, with what changed in the chosen sources and segments."""

    def annotations(*sources: str, segments: tuple[str, ...] = SEGMENTS, start: date = MARCH) -> list[Any]:
        chosen = Choice(sources, segments, MARCH, start, plus_months(start, 1))
        return rows(grafana, "revision_annotations", chosen)

    for run, amount in (("run-4", "80.50"), ("run-5", "90.50")):
        world.execute("UPDATE raw.payments SET amount = %s WHERE payment_id IN ('p0', 'p1')", [amount])
        refresh(world, MARCH, plus_months(MARCH, 1), run)
    (today,) = world.execute("SELECT analytics.today()").fetchone()
    (both,) = annotations("Google", "Angi")
    assert (both["time"], both["tags"]) == (datetime(2024, 3, 1, 12), "revision")
    by = "payments update by postgres (2 rows)"
    assert both["text"].split("\n") == [
        f"Revised {today}: revenue_gross +20.00: {by}",
        f"Revised {today}: repairs -1, revenue_gross -49.50: {by}",
    ]
    (angi,) = annotations("Angi")
    assert angi["text"].startswith(f"Revised {today}: revenue_gross +10.00: ")
    assert annotations("Rely") == annotations() == annotations("Angi", segments=("INS",)) == []
    assert annotations("Angi", start=plus_months(MARCH, 1)) == []


def test_sources_without_a_rule(grafana, choice):
    """Sources without a rule are listed, because their leads and cost count as 0."""
    found = rows(grafana, "sources_without_rule", choice)
    assert [(r["source"], r["jobs"], r["first_month"], r["last_month_seen"]) for r in found] == [
        ("Angi", 2, "2024-03", "2024-03")
    ]


def test_clock_before_the_first_job(analytics_url, analytics, choice):
    """A fresh installation shows empty panels instead of errors."""
    everything = Choice(("Google",), SEGMENTS, MARCH, MARCH, MARCH + timedelta(30))
    with as_reader(analytics_url, "analytics") as connection:
        (row,) = rows(connection, "month_scorecard", everything)
        assert (row["as_of"], row["repairs"], row["repairs_projection"]) == (None, 0, None)
        found = rows(connection, "daily_cumulative_repairs_vs_target", everything)
        assert len(found) == 31
        assert {r["actual"] for r in found} == {None}
        (summary,) = rows(connection, "trust_summary", everything)
        assert summary["seconds_since_refresh"] is None
