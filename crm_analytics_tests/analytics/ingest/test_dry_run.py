"""The dry run reports what a load would do, and writes nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.loading.ledger import Counts
from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    text,
)

LEADS = [
    ("A", "2025-01-05 10:21:17 -0500", "01:10", "10", "ok", ""),
    ("A", "2025-01-05 10:21:17 -0500", "01:10", "11", "ok", ""),
    ("B", "2025-02-05 10:21:17 -0500", "01:10", "1.234,50", "ok", ""),
    ("C", "2025-02-05 10:21:17 -0500", "01:10", "5", "ok", ""),
    ("C", "2025-02-05 10:21:17 -0500", "01:10", "5.00", "ok", ""),
]


def test_without_a_database(tmp_path: Path) -> None:
    """Without a database, the dry run reads the file alone and reports what is wrong with it."""
    path = tmp_path / "leads cost Elocals October.csv"
    path.write_text(text(ELOCALS, LEADS))
    report = examine(path, timezone=NEW_YORK)
    assert report.file and report.file.source.name == "elocals_leads"
    assert report.file.mapping["cost"] == "Cost"
    assert report.months == {date(2025, 2, 1): 1}
    assert (report.file.records.read, report.duplicates) == (5, 1)
    assert [(row.record_no, row.line_no, row.key) for row in report.quarantined] == [
        (1, None, "A"),
        (2, None, "A"),
        (3, 4, "B"),
    ]
    codes = [reason.code for row in report.quarantined for reason in row.reasons]
    assert codes == ["conflicting_records", "conflicting_records", "ambiguous_decimal_separator"]


def test_refused_file(tmp_path: Path) -> None:
    """A file that cannot be loaded has a refusal, and nothing else is reported of it."""
    path = tmp_path / "elocals.csv"
    path.write_text("Unique ID,Cost\nA,1\n")
    report = examine(path, timezone=NEW_YORK)
    assert "missing columns; accepted: lead_at" in (report.refusal or "")
    assert (report.file, report.quarantined) == (None, [])


def test_with_a_database_nothing_is_written(landing: Landing) -> None:
    """With a database, the dry run leaves no rows, ledger entries or quarantined records there."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [*LEADS[3:4], LEADS[0]]), day=1)
    landing.load("elocals_leads")
    path = landing.write("elocals_leads/2.csv", text(ELOCALS, LEADS), day=2)
    before = [landing.table(name) for name in ("raw.elocals_leads", "raw.source_files", "raw.rejected_rows")]
    report = examine(path, timezone=NEW_YORK, connection=landing.connection)
    assert report.database == Counts(records_read=5, unchanged=1, duplicates=1, quarantined=3)
    assert [(row.record_no, row.line_no) for row in report.quarantined] == [(1, 2), (2, 3), (3, 4)]
    assert [str(reason).split(";")[0] for row in report.quarantined for reason in row.reasons] == [
        'Cost "10.00 | 11.00": conflicting records',
        'Cost "10.00 | 11.00": conflicting records',
        'Cost "1.234,50": ambiguous decimal separator',
    ]
    assert before == [
        landing.table(name) for name in ("raw.elocals_leads", "raw.source_files", "raw.rejected_rows")
    ]


def test_subfolders_of_the_landing_folder(landing: Landing) -> None:
    """The dry run goes by the source's folder, as the load does, before the file's name."""
    rows = [("P1", "7", "11/16/2024", "10", "Cash", "", "")]
    path = landing.write("payments/2024/all jobs.csv", text(PAYMENTS, rows))
    report = examine(path, timezone=NEW_YORK)
    assert report.file and report.file.source.name == "payments"
    odd = landing.write("old payments/jobs/a.csv", text(PAYMENTS, rows))
    assert "unknown source folder" in (examine(odd, timezone=NEW_YORK, landing=landing.folder).refusal or "")
    landing.load("payments")
    report = examine(path, timezone=NEW_YORK, landing=landing.folder, connection=landing.connection)
    assert report.file and report.file.source.name == "payments"
    assert (report.refusal, report.warnings) == (None, [])
    assert report.database == Counts(records_read=1, unchanged=1)


@pytest.mark.parametrize("header", [PAYMENTS, PAYMENTS[1:]])
def test_equal_payments(header: tuple[str, ...], tmp_path: Path) -> None:
    """Equal payments are duplicates only if they have an id."""
    row = ("P1", "7", "11/16/2024", "10", "Cash", "", "")[len(PAYMENTS) - len(header) :]
    path = tmp_path / "payments.csv"
    path.write_text(text(header, [row, row]))
    report = examine(path, timezone=NEW_YORK)
    assert report.duplicates == (1 if header is PAYMENTS else 0)
    assert report.quarantined == []


def test_targets_of_one_source_in_two_spellings(tmp_path: Path) -> None:
    """Two spellings of a source are one target's key, as for a load: different targets are a conflict, equal ones one."""
    path = tmp_path / "targets.csv"
    path.write_text(
        "month,source,segment,target_repairs\n2026-11,google,ALL,10\n2026-11,Google,ALL,12\n2026-11,Rely,ALL,3\n"
    )
    report = examine(path, timezone=NEW_YORK)
    assert [row.record_no for row in report.quarantined] == [1, 2]
    assert [str(reason) for row in report.quarantined for reason in row.reasons] == [
        'month, source, segment "2026-11-01, google, ALL": conflicting records; accepted: identical records, or one'
    ] * 2
