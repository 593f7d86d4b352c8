"""The dry run says what a load would do, and writes nothing."""

from __future__ import annotations

import io
from datetime import date
from pathlib import Path

import pytest
from rich.console import Console

from crm_analytics.analytics.ingest.dry_run import check_files, examine
from crm_analytics.analytics.ingest.loading.ledger import Counts
from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    JOBS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    job,
    text,
)

LEADS = [
    ("A", "2025-01-05 10:21:17 -0500", "01:10", "10", "ok", ""),
    ("A", "2025-01-05 10:21:17 -0500", "01:10", "11", "ok", ""),
    ("B", "2025-02-05 10:21:17 -0500", "01:10", "1.234,50", "ok", ""),
    ("C", "2025-02-05 10:21:17 -0500", "01:10", "5", "ok", ""),
    ("C", "2025-02-05 10:21:17 -0500", "01:10", "5.00", "ok", ""),
]


def _printed(paths: list[Path]) -> tuple[bool, str]:
    target = io.StringIO()
    good = check_files(paths, console=Console(file=target, width=200), timezone=NEW_YORK)
    return good, target.getvalue()


def test_without_a_database(tmp_path: Path) -> None:
    """Without it a user would have to load a file to learn what is wrong with it."""
    path = tmp_path / "leads cost Elocals October.csv"
    path.write_text(text(ELOCALS, LEADS))
    report = examine(path, timezone=NEW_YORK)
    assert report.source == "elocals_leads"
    assert report.mapping["cost"] == "Cost"
    assert report.months == {date(2025, 2, 1): 1}
    assert (report.records_read, report.duplicates) == (5, 1)
    assert [(row.record_no, row.key) for row in report.quarantined] == [(1, "A"), (2, "A"), (3, "B")]
    good, printed = _printed([path])
    assert good
    for expected in ("elocals_leads", "lead_id", "Unique ID", "2025-02 (1)", "1.234,50", "different values"):
        assert expected in printed


def test_refused_file(tmp_path: Path) -> None:
    """Without it `crm-analytics check` would end well on a file that cannot be loaded."""
    bad, good = tmp_path / "elocals.csv", tmp_path / "jobs.csv"
    bad.write_text("Unique ID,Cost\nA,1\n")
    good.write_text(text(JOBS, [job(1, "AAAAAA")]))
    fine, printed = _printed([bad, good])
    assert not fine
    assert "would be refused" in printed and "lead_at" in printed and "source jobs" in printed


def test_with_a_database_nothing_is_written(landing: Landing) -> None:
    """Without it a dry run could leave rows, ledger entries or quarantined records behind."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [*LEADS[3:4], LEADS[0]]), day=1)
    landing.load("elocals_leads")
    path = landing.write("elocals_leads/2.csv", text(ELOCALS, LEADS), day=2)
    before = [landing.table(name) for name in ("raw.elocals_leads", "raw.source_files", "raw.rejected_rows")]
    report = examine(path, timezone=NEW_YORK, connection=landing.connection)
    assert report.database == Counts(records_read=5, unchanged=1, duplicates=1, quarantined=3)
    assert [row.record_no for row in report.quarantined] == [1, 2, 3]
    assert before == [
        landing.table(name) for name in ("raw.elocals_leads", "raw.source_files", "raw.rejected_rows")
    ]


def test_subfolders_of_the_landing_folder(landing: Landing) -> None:
    """Without it the dry run would judge a file by its name where the load goes by its source's folder."""
    rows = [("P1", "7", "11/16/2024", "10", "Cash", "", "")]
    path = landing.write("payments/2024/all jobs.csv", text(PAYMENTS, rows))
    assert examine(path, timezone=NEW_YORK).source == "payments"
    odd = landing.write("old payments/jobs/a.csv", text(PAYMENTS, rows))
    assert "is no source" in (examine(odd, timezone=NEW_YORK, landing=landing.folder).refusal or "")
    landing.load("payments")
    report = examine(path, timezone=NEW_YORK, landing=landing.folder, connection=landing.connection)
    assert (report.source, report.refusal, report.warnings) == ("payments", None, [])
    assert report.database == Counts(records_read=1, unchanged=1)


@pytest.mark.parametrize("header", [PAYMENTS, PAYMENTS[1:]])
def test_equal_payments(header: tuple[str, ...], tmp_path: Path) -> None:
    """Without it the dry run would call equal payments duplicates where no id says so."""
    row = ("P1", "7", "11/16/2024", "10", "Cash", "", "")[len(PAYMENTS) - len(header) :]
    path = tmp_path / "payments.csv"
    path.write_text(text(header, [row, row]))
    report = examine(path, timezone=NEW_YORK)
    assert report.duplicates == (1 if header is PAYMENTS else 0)
    assert report.quarantined == []
