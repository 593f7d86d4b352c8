"""The declarations, and how headers match them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.ingest.reading.header import find_header, match_header
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.declaration import Source, fold_header
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics_tests.analytics.ingest.landing_folder import local_file


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_no_header_names_two_columns(source: Source):
    """No header is accepted for two columns of a source."""
    accepted = Counter(
        folded for column in source.columns for folded in {fold_header(header) for header in column.headers}
    )
    assert [
        header for header, count in accepted.items() if count > 1 and header not in source.second_choice
    ] == []


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_canonical_names_are_accepted(source: Source):
    """Canonical names are accepted as headers."""
    for column in source.columns:
        assert match_header(source, [column.name]).positions == {column.name: 0}


@pytest.mark.parametrize(
    ("source", "column", "headers"),
    [
        ("jobs", "job_id", "UUID,Job UUID,job_id,Job ID"),
        ("jobs", "job_number", "Job #,Job Number,SerialId"),
        ("jobs", "type", "Job Type,JobType,Type"),
        ("jobs", "source", "Source,JobSource,Lead Source,Ad Source"),
        ("jobs", "status", "Status,Job Status"),
        ("jobs", "created_at", "Created,CreatedDate,Created At"),
        ("jobs", "scheduled_at", "Job Date,JobDateTime,Scheduled"),
        ("jobs", "ended_at", "Job End,JobEndDateTime"),
        ("payments", "payment_id", "Payment ID,Transaction ID"),
        ("payments", "job_number", "Job #"),
        ("payments", "job_id", "Job ID"),
        ("payments", "job_uuid", "Job UUID"),
        ("payments", "paid_at", "Date,Payment Date,Payment Received Date,Paid At"),
        ("payments", "amount", "Amount,Amount Paid,Payment Amount"),
        ("payments", "method", "Payment Methods,Method,Payment Type"),
        ("payments", "status", "Status,Payment Status"),
        ("elocals_leads", "lead_id", "Unique ID,Call ID,Lead ID"),
        ("elocals_leads", "lead_at", "Time,Call Date Time,Date,Created"),
        ("elocals_leads", "cost", "Cost,Call Cost,Lead Price"),
        ("elocals_leads", "status", "Status"),
        ("proref_leads", "lead_id", "Unique ID,Call ID,Lead ID"),
        ("proref_leads", "lead_at", "Time,Call Date Time,Date,Created"),
        ("proref_leads", "current_status", "Current Status"),
        ("google_spend", "month", "Month"),
        ("google_spend", "day", "Day,Date"),
        ("google_spend", "amount", "Amount,Cost,Spend,cost_micros"),
    ],
)
def test_aliases(source: str, column: str, headers: str):
    """Every alias is accepted in any spelling; a lost one would refuse every file that has it."""
    for header in headers.split(","):
        for spelling in (header, f"\ufeff{header.upper()}\u00a0", header.replace(" ", "_")):
            assert match_header(SOURCES[source], [spelling]).positions == {column: 0}


def test_headers_that_only_look_alike():
    """Headers that only look alike are not taken: other costs, other amounts, other statuses."""
    unknown = [
        "Cost",
        "Amount Paid",
        "Amount Due",
        "Sub-Status",
        "Payment Methods",
        "Conversion Date",
        "Created By",
    ]
    assert match_header(SOURCES["jobs"], unknown).positions == {}
    assert match_header(SOURCES["elocals_leads"], ["Current Status"]).positions == {}
    assert match_header(SOURCES["calls"], ["From", "To", "Job"]).positions == {}
    assert match_header(SOURCES["google_spend"], ["Cost / conv.", "Avg. cost"]).positions == {}


def test_freshness_view_has_every_source(analytics: psycopg.Connection[Any]) -> None:
    """The dashboards show of every export how fresh it is."""
    shown = [source for (source,) in analytics.execute("SELECT source FROM reporting.freshness")]
    assert sorted(shown) == sorted(SOURCES)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_newest_day_is_told_by_the_declared_columns(
    source: Source, analytics: psycopg.Connection[Any]
) -> None:
    """SQL knows the day of a row from the table, Python from the declaration: the two mean the same column."""
    days = analytics.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND atttypid = 'date'::regtype"
        " ORDER BY attnum",
        [source.table],
    ).fetchall()
    assert days[0] == (source.date_column,)
    covered = source.month_totals.covered_to if source.month_totals else None
    assert [name for (name,) in days if name == "covered_to"] == ([covered] if covered else [])


def test_module_of_each_source_has_its_name() -> None:
    """The asset's link to the code, and a person, find the declaration by the source's name."""
    folder = PROJECT_DIR / "crm_analytics/analytics/ingest/sources"
    others = {"__init__", "declaration", "other_kinds", "registry"}
    assert {path.stem for path in folder.glob("*.py")} - others == set(SOURCES)
    assert all((PROJECT_DIR / "sql/analytics" / source.migration).is_file() for source in SOURCES.values())


def test_leads_of_the_jobs_tool_are_not_jobs(tmp_path: Path) -> None:
    """Its exports of leads and of jobs share many headers; a file is told by those that only its kind has."""
    header = "Lead #,Status,Source,Client,City,Job Type,Phone,Created,Estimates,Converted Lead total,UUID"
    path = tmp_path / "export_export (23).csv"
    path.write_text(f"{header}\n17,Open,Google,Ann,Troy,COD Service,,Fri Nov 15 2024,,,A1B2C3\n")
    assert detect_source(local_file(path, tmp_path)).name == "workiz_leads"
    jobs_header = header.replace("Lead #", "Job #").replace("Converted Lead total", "Total")
    path.write_text(f"{jobs_header}\n17,Open,Google,Ann,Troy,COD Service,,Fri Nov 15 2024,,85,A1B2C3\n")
    assert detect_source(local_file(path, tmp_path)).name == "jobs"


def test_header_row_is_the_first_complete_one():
    """The first complete row is the header, not a title above it or data below."""
    rows = [
        ["Report of Amount", "Date"],
        ["Amount"],
        ["Job #", "Amount", "Date"],
        ["Job #", "Amount", "Date", "Status"],
    ]
    found = find_header(SOURCES["payments"], rows)
    assert found is not None
    assert found[0] == 2
    assert found[1].labels == ["Job #", "Amount", "Date"]


def test_labels_are_distinct():
    """Repeated and blank headers get labels of their own, so that no cell hides another in the quarantine."""
    match = match_header(SOURCES["payments"], ["Note", "Note", "", " Note", "Amount"])
    assert match.labels == ["Note", "Note (2)", "(column 3)", "Note (4)", "Amount"]
