"""How records of one file become rows, where only the database can tell: repeats, conflicts, keys, months."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from crm_analytics.analytics.ingest.loading import staging
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.reading import csv_records
from crm_analytics_tests.analytics.ingest.landing_folder import (
    CALLS,
    ELOCALS,
    JOBS,
    PAYMENTS,
    Landing,
    job,
    text,
)


def _lead(key: str, cost: str, status: str = "ok") -> tuple[str, ...]:
    return (key, "2025-01-05 10:21:17 -0500", "01:10", cost, status, "")


def test_identical_records_collapse(landing: Landing) -> None:
    """Identical records with one key count once."""
    landing.write(
        "elocals_leads/a.csv", text(ELOCALS, [_lead("A", "10"), _lead("B", "5"), _lead("A", "$10.00")])
    )
    counts = landing.load_one("elocals_leads").counts
    assert (counts.inserted, counts.duplicates, counts.quarantined) == (2, 1, 0)
    assert landing.rows("SELECT lead_id, record_no FROM raw.elocals_leads ORDER BY 1") == [("A", 1), ("B", 2)]


def test_repeats_in_different_batches_collapse(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that comes back in a later batch is found, too."""
    monkeypatch.setattr(csv_records, "PIECE", 60)
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.encoding.BLOCK", 200)
    rows = [*(_lead(f"L{number}", "1") for number in range(20)), _lead("L0", "1")]
    landing.write("elocals_leads/a.csv", text(ELOCALS, rows))
    counts = landing.load_one("elocals_leads").counts
    assert (counts.inserted, counts.duplicates, counts.quarantined) == (20, 1, 0)


def test_moments_keep_their_fractions(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of many records go to the database without fractions only where none of them has one."""
    monkeypatch.setattr(staging, "FEW", 1)
    for name, second in (("a", "17"), ("b", "17.250")):
        moments = [f"2025-01-05 10:21:{second} -0500", "2025-01-05 10:21:18 -0500"]
        rows = [(f"{name}{row}", moment, "01:10", "1", "ok", "") for row, moment in enumerate(moments)]
        landing.write(f"elocals_leads/{name}.csv", text(ELOCALS, rows))
    landing.load("elocals_leads")
    found = landing.rows(
        "SELECT lead_id, extract(microseconds FROM lead_at) FROM raw.elocals_leads ORDER BY 1"
    )
    assert found == [("a0", 17_000_000), ("a1", 18_000_000), ("b0", 17_250_000), ("b1", 18_000_000)]


def test_keys_whose_hashes_are_equal(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different keys may have equal hashes by chance: only the database's answer makes them repeats."""
    monkeypatch.setattr(staging, "_hashes", lambda keys: np.zeros(len(keys), np.int64))
    landing.write("elocals_leads/a.csv", text(ELOCALS, [_lead("A", "10"), _lead("B", "5")]))
    counts = landing.load_one("elocals_leads").counts
    assert (counts.inserted, counts.duplicates, counts.quarantined) == (2, 0, 0)


def test_conflicting_records_are_all_quarantined(landing: Landing) -> None:
    """Records with one key and different values are quarantined, all of them; none is picked by chance."""
    rows = [_lead("A", "10"), _lead("A", "10"), _lead("A", "11", "late"), _lead("B", "5")]
    landing.write("elocals_leads/a.csv", text(ELOCALS, rows))
    counts = landing.load_one("elocals_leads").counts
    assert (counts.inserted, counts.duplicates, counts.quarantined) == (1, 0, 3)
    found = landing.rows(
        "SELECT record_no, row_key, reasons, record ->> 'Cost' FROM raw.rejected_rows ORDER BY 1"
    )
    assert [(number, key, cost) for number, key, _, cost in found] == [
        (1, "A", "10"),
        (2, "A", "10"),
        (3, "A", "11"),
    ]
    conflict = {"code": "conflicting_records", "accepted": "identical records, or one"}
    for _, _, reasons, _ in found:
        assert reasons == [
            conflict | {"column": "Cost", "found": "10.00 | 11.00"},
            conflict | {"column": "Status", "found": "late | ok"},
        ]


def test_conflicting_records_are_quarantined_as_found(landing: Landing) -> None:
    """The quarantine has the cells as found, by header, so that a person finds them in the file."""
    first = ("A", "2025-01-05 10:21:17 -0500", "01:10", "$1,000.5", " ok", "", "a, note")
    second = ("A", "01/05/2025 10:21:17 AM", "", "(1)", "null", "555", "é")
    rows = [("",) * 7, ("Total", *[""] * 6), first, ("B", *first[1:]), ("",) * 7, second]
    landing.write("elocals_leads/a.csv", text((*ELOCALS, "Notes"), rows), day=9)
    assert landing.load_one("elocals_leads").counts.quarantined == 2
    found = landing.rows("SELECT record_no, line_no, record FROM raw.rejected_rows ORDER BY 1")
    header = (*ELOCALS, "Notes")
    assert found == [
        (2, 4, dict(zip(header, first, strict=True))),
        (4, 7, dict(zip(header, second, strict=True))),
    ]


def test_number_that_names_several_jobs(landing: Landing) -> None:
    """A number that names several jobs changes none of them; the record is quarantined."""
    landing.write("jobs/1.csv", text(JOBS, [job(7, "AAAAAA"), job(7, "BBBBBB"), job(8, "CCCCCC")]), day=1)
    landing.load("jobs")
    landing.write(
        "jobs/2.csv",
        text(JOBS[:1] + JOBS[2:], [("7", *job(7)[2:]), ("0008", *job(8, Status="Gone")[2:])]),
        day=2,
    )
    counts = landing.load_one("jobs").counts
    assert (counts.updated, counts.quarantined) == (1, 1)
    assert landing.rows("SELECT record ->> 'Created' FROM raw.rejected_rows") == [("Fri Nov 15 2024",)]
    assert landing.rows("SELECT row_key, line_no, raw.reason_text(reasons -> 0) FROM raw.rejected_rows") == [
        (
            "7",
            2,
            'Job # "7 (2 rows: AAAAAA, BBBBBB)": names several rows; accepted: one that names one job, or an export'
            " with the column UUID",
        )
    ]
    assert landing.rows("SELECT status FROM raw.jobs WHERE job_id = 'CCCCCC'") == [("Gone",)]


def test_job_known_by_number_gets_its_uuid(landing: Landing) -> None:
    """The first export with UUIDs renames jobs known by number, and their payments follow."""
    landing.write("payments/1.csv", text(PAYMENTS, [("P1", "7", "11/16/2024", "10", "", "", "")]), day=1)
    landing.load("payments")
    landing.write("jobs/1.csv", text(JOBS[:1] + JOBS[2:], [("7", *job(7)[2:]), ("8", *job(8)[2:])]), day=1)
    landing.load("jobs")
    assert landing.rows("SELECT job_id FROM raw.payments") == [("7",)]
    landing.write("jobs/2.csv", text(JOBS, [job("007", "AAAAAA"), job(9, "CCCCCC")]), day=2)
    result = landing.load_one("jobs")
    assert (result.counts.updated, result.counts.inserted) == (1, 1)
    assert landing.rows("SELECT job_id, job_number, file_id FROM raw.jobs ORDER BY 2") == [
        ("AAAAAA", "7", result.file_id),
        ("8", "8", result.file_id - 1),
        ("CCCCCC", "9", result.file_id),
    ]
    assert landing.rows("SELECT job_id FROM raw.payments") == [("AAAAAA",)]


def test_job_known_under_both_names_becomes_one(landing: Landing) -> None:
    """A job whose number comes later is merged with the row known by that number."""
    landing.write("jobs/1.csv", text(JOBS, [job("", "AAAAAA")]), day=1)
    landing.write("jobs/2.csv", text(JOBS[:1] + JOBS[2:], [("7", *job(7)[2:])]), day=2)
    landing.load("jobs")
    assert landing.rows("SELECT count(*) FROM raw.jobs") == [(2,)]
    landing.write("jobs/3.csv", text(JOBS, [job(7, "AAAAAA")]), day=3)
    assert landing.load_one("jobs").counts.updated == 1
    assert landing.rows("SELECT job_id, job_number FROM raw.jobs") == [("AAAAAA", "7")]


def test_payments_before_their_jobs_are_linked_when_these_arrive(landing: Landing) -> None:
    """A job links the payments that waited for it."""
    landing.write("payments/1.csv", text(PAYMENTS, [("P1", "7", "11/16/2024", "10", "", "", "")]))
    landing.load("payments")
    landing.write("jobs/1.csv", text(JOBS, [job(7, "AAAAAA")]))
    landing.load("jobs")
    assert landing.rows("SELECT job_id FROM raw.payments") == [("AAAAAA",)]


def test_payments_without_an_id_column(landing: Landing) -> None:
    """Equal payments of one day stay apart, and a new export of them doubles none."""
    header = PAYMENTS[1:]
    row = ("7", "11/16/2024", "10", "Cash", "", "")
    landing.write("payments/1.csv", text(header, [row, row]), day=1)
    assert landing.load_one("payments").counts.inserted == 2
    landing.write(
        "payments/2.csv", text(header, [row, row, ("0007", *row[1:]), ("7", "11/17/2024", *row[2:])]), day=2
    )
    counts = landing.load_one("payments").counts
    assert (counts.inserted, counts.unchanged) == (2, 2)
    assert landing.rows(
        "SELECT paid_date, count(*), sum(amount) FROM raw.payments GROUP BY 1 ORDER BY 1"
    ) == [
        (date(2024, 11, 16), 3, Decimal("30.00")),
        (date(2024, 11, 17), 1, Decimal("10.00")),
    ]


def test_unchanged_rows_make_nothing_stale(landing: Landing) -> None:
    """Unchanged rows keep their provenance and make no month stale."""
    jobs = [job(number, f"JOB{number:03}") for number in range(1, 101)]
    landing.write("jobs/1.csv", text(JOBS, jobs), day=1)
    landing.load("jobs")
    landing.connection.execute("TRUNCATE analytics.stale_months")
    before = landing.rows(
        "SELECT job_id, file_id, record_no, updated_at FROM raw.jobs WHERE job_id <> 'JOB005'"
    )
    changed = [job(5, "JOB005", Created="Mon Dec 2 2024") if row[0] == "5" else row for row in reversed(jobs)]
    landing.write("jobs/2.csv", text(JOBS, changed), day=2)
    result = landing.load_one("jobs")
    assert (result.counts.updated, result.counts.unchanged) == (1, 99)
    assert result.changed_by_month == {date(2024, 11, 1): 1, date(2024, 12, 1): 1}
    assert landing.rows("SELECT DISTINCT month FROM analytics.stale_months ORDER BY 1") == [
        (date(2024, 11, 1),),
        (date(2024, 12, 1),),
    ]
    assert before == landing.rows(
        "SELECT job_id, file_id, record_no, updated_at FROM raw.jobs WHERE job_id <> 'JOB005'"
    )


def test_rows_that_vanish_are_kept(landing: Landing) -> None:
    """Rows that a later export lacks stay: an export of one month says nothing about the others."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "10"), _lead("B", "20")]), day=1)
    landing.write("elocals_leads/2.csv", text(ELOCALS, [_lead("B", "20")]), day=2)
    landing.load("elocals_leads")
    assert landing.rows("SELECT lead_id FROM raw.elocals_leads ORDER BY 1") == [("A",), ("B",)]


def test_one_bad_record_leaves_its_neighbors(landing: Landing) -> None:
    """One bad record is quarantined, and its neighbors load."""
    rows = [_lead("A", "10"), _lead("B", "1.234,50"), _lead("C", "30"), ("Total", "", "", "40", "", "")]
    landing.write("elocals_leads/1.csv", text(ELOCALS, rows))
    result = landing.load_one("elocals_leads")
    counts = result.counts
    assert (counts.records_read, counts.inserted, counts.quarantined, counts.summary_lines) == (4, 2, 1, 1)
    ((number, key, record, reason),) = landing.rows(
        "SELECT record_no, row_key, record, reasons -> 0 FROM raw.rejected_rows"
    )
    assert (number, key, record["Cost"]) == (2, "B", "1.234,50")
    assert (reason["column"], reason["found"]) == ("Cost", "1.234,50")


def test_full_calls_export_warns(landing: Landing) -> None:
    """An export of exactly 5,000 calls warns that it was probably cut off."""
    rows = [
        ("", f"(555) 010-{number:04}", "", "(555) 010-0002", "Wed Dec 17th, 03:21PM", "", "", "5 Sec")
        for number in range(5000)
    ]
    landing.write("calls/export_2025-12-18T10_00_00.csv", text(CALLS, rows))
    (warning,) = landing.load_one("calls").warnings
    assert "5,000" in warning and "cut off" in warning
    assert landing.rows("SELECT warnings FROM raw.source_files") == [([warning],)]


def test_ledger_records_how_a_file_was_read(landing: Landing) -> None:
    """The ledger has how a file was read, and which column was taken for what."""
    landing.write(
        "elocals_leads/a.csv", text((*ELOCALS, "Mood"), [(*_lead("A", "10"), "x")]).replace(",", ";"), day=3
    )
    landing.load("elocals_leads", run_id="run-1")
    assert landing.rows(
        "SELECT source, path, size_bytes > 0, exported_at_from, exported_at::date, status, delimiter,"
        " mapping ->> 'cost', unknown_columns, first_date, last_date, run_id, declaration_version FROM raw.source_files"
    ) == [
        (
            "elocals_leads",
            "elocals_leads/a.csv",
            True,
            "mtime",
            date(2025, 1, 3),
            "loaded",
            ";",
            "Cost",
            ["Duration", "Mood"],
            date(2025, 1, 5),
            date(2025, 1, 5),
            "run-1",
            1,
        )
    ]


def test_column_that_a_newer_export_lacks(landing: Landing) -> None:
    """A column that others have and this file lacks causes a warning: failed payments would count without it."""
    landing.write(
        "payments/1.csv", text(PAYMENTS, [("P1", "7", "11/16/2024", "10", "Cash", "Failed", "")]), day=1
    )
    landing.load("payments")
    landing.write("payments/2.csv", text(PAYMENTS[:5], [("P1", "7", "11/16/2024", "10", "Cash")]), day=2)
    (warning,) = landing.load_one("payments").warnings
    assert warning.startswith("no column for confirmation_code, status, which other exports have")


def test_payments_with_and_without_ids_warn(landing: Landing) -> None:
    """Exports with and without payment ids cause a warning: a payment in both would count twice."""
    row = ("P1", "7", "11/16/2024", "10", "Cash", "", "")
    landing.write("payments/1.csv", text(PAYMENTS, [row]), day=1)
    assert landing.load_one("payments").warnings == []
    landing.write("payments/2.csv", text(PAYMENTS[1:], [row[1:]]), day=2)
    (warning,) = landing.load_one("payments").warnings
    assert "counts twice" in warning


SPEND = ("Month", "Campaign", "Amount")


def test_newer_spend_replaces_the_whole_month(landing: Landing) -> None:
    """A newer report replaces the month, so that a renamed campaign counts once."""
    rows = [("2024-10", "Ovens", "100"), ("2024-10", "Fridges", "50"), ("2024-11", "Ovens", "7")]
    landing.write("google_spend/1.csv", text(SPEND, rows), day=1)
    landing.load("google_spend")
    rows = [("2024-10", "Cooking", "100"), ("2024-10", "Fridges", "50"), ("2024-11", "Ovens", "8")]
    landing.write("google_spend/2.csv", text(SPEND, rows), day=2)
    result = landing.load_one("google_spend")
    counts = result.counts
    assert (counts.inserted, counts.updated, counts.unchanged) == (1, 1, 1)
    assert result.changed_by_month == {date(2024, 10, 1): 2, date(2024, 11, 1): 1}
    assert result.warnings == ["2024-10: removed 1 campaign of an older file, not in this one"]
    assert landing.rows("SELECT month, campaign, amount FROM raw.google_spend ORDER BY 1, 2") == [
        (date(2024, 10, 1), "Cooking", Decimal("100.00")),
        (date(2024, 10, 1), "Fridges", Decimal("50.00")),
        (date(2024, 11, 1), "Ovens", Decimal("8.00")),
    ]


@pytest.mark.parametrize(
    ("source", "header", "row"),
    [
        ("google_spend", SPEND, ("2024-10", "{}", "5")),
        ("targets", ("month", "source", "target_repairs"), ("2024-10", "{}", "5")),
        ("jobs", JOBS, job(1, "AAAAAA", Source="{}")),
        ("calls", CALLS, ("", "1", "", "2", "Wed Dec 17th, 03:21PM", "{}", "", "1 Min")),
    ],
)
def test_long_name_that_is_a_key(
    source: str, header: tuple[str, ...], row: tuple[str, ...], landing: Landing
) -> None:
    """A name too long for an index is quarantined; it stops neither its file nor the metrics."""
    name = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))  # does not compress
    rows = [[cell.format(text) for cell in row] for text in (name, "Google")]
    landing.write(f"{source}/2025-12-18T10_00_00.csv", text(header, rows))
    result = landing.load_one(source)
    assert (result.status, result.counts.inserted, result.counts.quarantined) == ("loaded", 1, 1)
    ((reason,),) = landing.rows("SELECT reasons -> 0 FROM raw.rejected_rows")
    assert "(1,000 characters)" in reason["found"] and reason["accepted"] == "at most 200 characters"


@pytest.mark.parametrize(
    "generic",
    [
        [("2024-10", "Generic", "3.000,50")],
        [("Octember", "Generic", "3000")],
        [("2024-10", "Generic")],
    ],
)
def test_unreadable_spend_leaves_the_older_month(generic: list[tuple[str, ...]], landing: Landing) -> None:
    """A month with unreadable records does not replace one that another file has complete."""
    landing.write(
        "google_spend/1.csv",
        text(SPEND, [("2024-10", "Brand", "1000"), ("2024-10", "Generic", "3000")]),
        day=1,
    )
    landing.load("google_spend")
    landing.write("google_spend/2.csv", text(SPEND, [("2024-10", "Brand", "1100"), *generic]), day=2)
    result = landing.load_one("google_spend")
    assert (result.counts.superseded, result.counts.quarantined, result.changed_by_month) == (
        1,
        len(generic),
        {},
    )
    assert result.warnings == [
        "2024-10: this file has quarantined records of the month, so the month stays as in the file that"
        " has it complete; correct the records, or export the month again"
    ]
    assert landing.rows("SELECT campaign, amount FROM raw.google_spend ORDER BY 1") == [
        ("Brand", Decimal("1000.00")),
        ("Generic", Decimal("3000.00")),
    ]


def test_partly_unreadable_spend(landing: Landing) -> None:
    """What can be read of a month counts, with a warning, until a file has the complete month."""
    landing.write(
        "google_spend/1.csv", text(SPEND, [("2024-10", "Brand", "1"), ("2024-10", "Generic", "NaN")]), day=1
    )
    result = landing.load_one("google_spend")
    assert result.warnings == ["2024-10: incomplete, because this file has quarantined records of the month"]
    assert landing.rows("SELECT campaign, amount, complete_month FROM raw.google_spend") == [
        ("Brand", 1, False)
    ]
    landing.write("google_spend/2.csv", text(SPEND, [("2024-10", "Brand", "1")]), day=2)
    result = landing.load_one("google_spend")
    assert (result.counts.updated, result.warnings) == (1, [])
    assert landing.rows("SELECT campaign, amount, complete_month FROM raw.google_spend") == [
        ("Brand", 1, True)
    ]


def test_other_timezone_is_refused(landing: Landing) -> None:
    """A load in another timezone is refused: one table would mix dates of both."""
    landing.write("elocals_leads/a.csv", text(ELOCALS, [_lead("A", "10")]))
    with pytest.raises(ValueError, match="BUSINESS_TIMEZONE"):
        load_source(landing.connection, landing.folder, "elocals_leads", timezone=ZoneInfo("America/Chicago"))
