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


_RANGE = '"October 1, 2025 - October 31, 2025"\n'
_PAID = "Payment ID;Job #;Amount;Date\n"
#: Files that a load takes, corrects, doubts, takes by half or refuses.
_FILES = {
    "google_spend/groups.csv": _RANGE + "Group,Campaign,Cost\nA,x,3\nA,y,2\nA Total,,5\nB,z,1\nB Total,,1\n",
    "google_spend/wrong subtotal.csv": _RANGE + "Group,Campaign,Cost\nA,x,3\nA,y,2\nA Total,,6\n",
    "google_spend/two totals.csv": _RANGE + "Campaign,Cost\nx,3\ny,2\nTotal: Campaigns,5\nTotal: Account,7\n",
    "google_spend/repeats.csv": _RANGE + "Campaign,Cost\nx,3\nx,3\ny,2\nTotal,5\n",
    "google_spend/devices.csv": _RANGE + "Device,Campaign,Cost\na,x,3\nb,x,3\n",
    "google_spend/unknown split.csv": _RANGE + "Promotion,Campaign,Cost\na,x,3\nb,x,3\n",
    "google_spend/ids.csv": _RANGE + "Campaign,Campaign ID,Cost\nx,1,3\nx,2,3\nx,3,abc\n",
    "google_spend/nameless.csv": _RANGE + "Campaign,Cost\nx,3\ny,2\n,5\n",
    "google_spend/comma.csv": _RANGE + "Campaign\tCost\nx\t1.200,50\ny\t3,25\nTotal\t1.203,75\n",
    "google_spend/tables.csv": _RANGE + "Campaign,Cost\nx,3\n\nBing report\nCampaign,Cost\ny,2\n",
    "google_spend/twice.csv": "Month,Campaign,Cost\n2025-10,x,3\nMonth,Campaign,Cost\n2025-11,y,2\n",
    "google_spend/months.csv": "Month,Cost\n01/10/2025,3\n01/11/2025,2\n",
    "google_spend/bank.csv": "Date,Description,Amount\n2025-10-01,x,3\n",
    "payments/dots.csv": _PAID + "A;1;120,50;05.11.2025 14:05\nB;2;80;25.11.2025\nTotal;;200,50;\n",
    "payments/slashes.csv": _PAID + "A;1;120;05/11/2025\nB;2;80;25/11/2025\n",
    "payments/mixed.csv": _PAID + "A;1;120;05.11.2025\nB;2;80;11/05/2025\n",
    "payments/repeats.csv": _PAID + "A;1;5;2025-11-05\nA;1;5.00;2025-11-05\nTotal;;10;\n",
    "payments/conflict.csv": _PAID + "A;1;5;2025-11-05\nA;1;6;2025-11-05\nB;1;x;0000-00-00\nTotal;;11;2025-11-30\n",
    "payments/unread total.csv": _PAID + "A;1;5;2025-11-05\nTotal;;EUR 5;\n",
    "payments/reordered.csv": _PAID + "A;1;5;2025-11-05\nPayment ID;Amount;Job #;Date\nB;6;1;2025-11-05\n",
    "calls/hours.csv": "From number,To number,Time,Flow,Duration\n5,6,11/3/2025 9:00,x,3:25:00\n5,6,11/3/2025 9:00,x,75:10:00\n",
    "jobs/leads.csv": "Lead #,Status,Source,Job Type,Created,UUID\n1,new,Google,COD,2025-11-05,A\n",
    "jobs/zero.csv": "Job #,UUID,Job Type,Source,Created,Job Date\n1,A,COD,Google,2025-11-05,0000-00-00\n",
    "targets/same.csv": "month,source,target_repairs\n2025-11,Google,1\n2025-11,google,1\n2025-12,Elsewhere,1\n",
    "Oct.csv": "Month,Amount\n2025-10,3\n",
    "lists.csv": "Lead ID,Date,Cost\n1,2025-10-01,3\n",
}  # fmt: skip


@pytest.mark.parametrize("name", _FILES)
def test_says_what_a_load_does(landing: Landing, name: str) -> None:
    """The dry run refuses, quarantines, counts and warns as the load does, with a database and without."""
    path = landing.write(name, _FILES[name])
    reports = [
        examine(path, timezone=NEW_YORK, landing=landing.folder, connection=connection)
        for connection in (None, landing.connection)
    ]
    landing.load(name.split("/")[0] if "/" in name else "jobs")
    ((status, message, warnings, quarantined, duplicates, summary_lines),) = landing.rows(
        "SELECT status, message, warnings, quarantined, duplicates, summary_lines FROM raw.source_files"
    )
    for report in reports:
        assert report.refusal == (message if status in ("refused", "unrecognized") else None)
        if report.refusal is None:
            assert report.file
            assert (len(report.quarantined), report.duplicates) == (quarantined, duplicates)
            assert report.file.records.summary_lines == summary_lines
    alone, tried = reports
    assert tried.refusal or tried.warnings == warnings
    # what only the table tells is a warning of the load alone
    assert set(alone.warnings) <= set(warnings)


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
