"""Opening and reading files: formats, headers, source detection, export times, workbooks, coverage of spend."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pyarrow.csv as pacsv
import pytest

from crm_analytics.analytics.ingest.errors import RefusedFile, UnrecognizedFile
from crm_analytics.analytics.ingest.reading import csv_records, header
from crm_analytics.analytics.ingest.reading.open_file import UNCOMPUTED, open_file
from crm_analytics.analytics.ingest.reading.source_detection import detect_source, export_time
from crm_analytics.analytics.ingest.reading.workbook import cell_text
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics_tests.analytics.ingest.landing_folder import local_file, record_calls
from crm_analytics_tests.analytics.ingest.samples import (
    EXPORTED_AT,
    JOBS_HEADER,
    NEW_YORK,
    SAMPLES,
    csv_text,
    day,
    jobs_row,
    read,
    read_text,
    utc,
    workbook_bytes,
)


def test_only_rows_with_a_header_are_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of all rows, read with all delimiters, only those that have one of the source's headers are matched to it.

    Matching every row of every reading took as long as reading a small file does.
    """
    matched = record_calls(monkeypatch, header, "match_header")
    names = ["Payment ID", "Job #", "Client", "Amount", "Date"]
    records = [[f"P{n}", f"{n}", "a; b | c\td", "1.00", "Fri Dec 19 2025"] for n in range(100)]
    assert len(read_text(tmp_path, "payments", csv_text([names, *records])).rows) == 100
    assert [cells for _, cells in matched] == [names]


def test_cells_without_a_use_are_made_only_for_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the 44 columns of a jobs export 11 are read; making cells of the others as well took twice as long."""
    made: list[int] = []
    open_csv = pacsv.open_csv

    def counted(*arguments: Any, convert_options: pacsv.ConvertOptions, **options: Any) -> Any:
        made.append(len(convert_options.include_columns))
        return open_csv(*arguments, convert_options=convert_options, **options)

    monkeypatch.setattr(csv_records.pacsv, "open_csv", counted)
    assert len(read_text(tmp_path, "jobs", SAMPLES["jobs"]).rows) == 3
    assert made == [11]
    made.clear()
    (rejected,) = read_text(tmp_path, "jobs", csv_text([JOBS_HEADER, jobs_row(total="x")])).rejected
    assert [*rejected.as_found.record] == JOBS_HEADER
    assert made == [11, 33]


def test_jobs_export(tmp_path: Path):
    """The real 44-column export is read: what its columns mean, cells with newlines, a zero-padded number."""
    whole = read_text(tmp_path, "jobs", SAMPLES["jobs"])
    assert whole.rejected == []
    assert whole.rows == [
        {
            "record_no": 1,
            "job_id": "AB12CD",
            "job_number": "3504",
            "type": "COD Service",
            "source": "Google",
            "status": "Done",
            "created_at": utc(2025, 12, 18, 5),
            "scheduled_at": utc(2025, 12, 19, 5),
            "ended_at": None,
            "job_date": day("2025-12-18"),
            "technician": "Tess Example",
            "zip": "01234",
            "total": "244.6",
        },
        whole.rows[1],
        whole.rows[2],
    ]
    assert [
        (row["job_id"], row["job_number"], row["type"], row["source"], row["total"]) for row in whole.rows
    ] == [
        ("AB12CD", "3504", "COD Service", "Google", "244.6"),
        ("12E345", "3505", "INS Service", "Google", "-95"),
        ("123456", "3506", "Warranty", None, None),
    ]
    assert whole.rows[1]["created_at"] == utc(2024, 11, 15, 15, 30)
    assert whole.file.mapping["scheduled_at"] == "Job Date"
    assert whole.file.mapping["created_at"] == "Created"
    assert "Cost" in whole.file.located.match.unknown
    assert (whole.file.encoding, whole.file.delimiter) == ("utf-8", ",")


def test_payments_export(tmp_path: Path):
    """Payments keep the job as given and as what it may be; refunds are negative."""
    whole = read_text(tmp_path, "payments", SAMPLES["payments"])
    columns = (
        "payment_id",
        "job_ref",
        "job_id_ref",
        "job_number_ref",
        "amount",
        "status",
        "confirmation_code",
    )
    assert [tuple(row[name] for name in columns) for row in whole.rows] == [
        ("P1", "003504", None, "3504", "100.00", "paid", "C1"),
        ("P2", "3504", None, "3504", "-20.00", "refunded", None),
        ("P3", "9999", None, "9999", "1234.50", "pending", "C3"),
    ]
    assert [(row["paid_at"], row["paid_date"]) for row in whole.rows] == [
        (utc(2025, 12, 19, 5), day("2025-12-19")),
        (utc(2025, 12, 19, 20, 5), day("2025-12-19")),
        (utc(2025, 12, 19, 20, 5), day("2025-12-19")),
    ]


@pytest.mark.parametrize(
    ("header", "cell", "expected"),
    [
        ("Job UUID", "123456", ("123456", "123456", None)),
        ("Job #", "003504", ("003504", None, "3504")),
        ("Job ID", "AB12CD", ("AB12CD", "AB12CD", None)),
        ("Job ID", "003504", ("003504", "003504", "3504")),
        ("Job ID", "000", ("000", "000", "0")),
        ("Job ID", "", (None, None, None)),
    ],
)
def test_job_references_of_payments(tmp_path: Path, header: str, cell: str, expected: tuple[str | None, ...]):
    """A Job UUID is a UUID, a Job # a number, and a Job ID may be both: else payments go to the wrong job or to none."""
    whole = read_text(tmp_path, "payments", f"{header},Amount,Date\n{cell},1.00,2024-11-01\n")
    row = whole.rows[0]
    assert (row["job_ref"], row["job_id_ref"], row["job_number_ref"]) == expected
    assert row["payment_id"] is None


def test_calls_export(tmp_path: Path):
    """Calls have times without a year, durations in words, and a name in Answered."""
    whole = read_text(tmp_path, "calls", SAMPLES["calls"])
    assert whole.rows == [
        {
            "record_no": 1,
            "started_at": utc(2025, 12, 17, 20, 21),
            "call_date": day("2025-12-17"),
            "from_number": "(555) 010-0100",
            "to_number": "(555) 010-0199",
            "flow": "eLocals",
            "answered": True,
            "answered_by": "Tess",
            "duration_seconds": 205,
            "job_ref": "AB12CD",
        },
        {
            "record_no": 2,
            "started_at": utc(2025, 12, 18, 5, 5),
            "call_date": day("2025-12-18"),
            "from_number": "(555) 010-0101",
            "to_number": "(555) 010-0199",
            "flow": None,
            "answered": False,
            "answered_by": None,
            "duration_seconds": 45,
            "job_ref": None,
        },
    ]


def test_calls_export_at_its_limit(tmp_path: Path):
    """An export of exactly 5,000 rows is probably cut off, which only the warning shows."""
    line = "(555) 010-0100,(555) 010-0199,2025-12-17 10:00,45 Sec\n"
    header = "From number,To number,Time,Duration\n"
    assert "cut off" in read_text(tmp_path, "calls", header + line * 5000).file.warnings[0]
    assert read_text(tmp_path, "calls", header + line * 4999).file.warnings == []


def test_leads_exports(tmp_path: Path):
    """eLocals times have an offset and costs a dollar sign; Pro Referral's status may be blank."""
    elocals = read_text(tmp_path, "elocals_leads", SAMPLES["elocals_leads"])
    assert [(row["lead_id"], row["lead_at"], row["lead_date"], row["cost"], row["status"], row["caller_number"]) for row in elocals.rows] == [
        ("E1", utc(2025, 12, 5, 15, 21, 17), day("2025-12-05"), "65.25", "Billable", "(555) 010-0100"),
        ("E2", utc(2025, 12, 6, 7, 30), day("2025-12-06"), "0.00", "Credited", "(555) 010-0101"),
    ]  # fmt: skip
    proref = read_text(tmp_path, "proref_leads", SAMPLES["proref_leads"])
    assert [(row["lead_id"], row["lead_date"], row["current_status"], row["zip"]) for row in proref.rows] == [
        ("L1", day("2025-12-05"), "Passed", "01234"),
        ("L2", day("2025-12-06"), None, "01235"),
    ]


def test_targets_file(tmp_path: Path):
    """A blank source or segment means the whole business; a target that is not set is NULL, not 0."""
    whole = read_text(tmp_path, "targets", SAMPLES["targets"] + "2026-01,Google,Maybe,1,,,\n")
    assert [tuple(row.values())[1:] for row in whole.rows] == [
        (day("2025-12-01"), "ALL", "ALL", 120, "40000.00", "0.35", "55"),
        (day("2025-12-01"), "Google", "COD", 30, None, None, None),
    ]
    assert 'line 4: segment "Maybe": not a segment; accepted: ALL, COD, INS, OTHER' in whole.reasons


def spend(whole) -> list[tuple[object, ...]]:
    return [
        tuple(row[name] for name in ("month", "day", "campaign", "amount", "covered_to"))
        for row in whole.rows
    ]


def test_google_report_with_a_date_range(tmp_path: Path):
    """Title, date range and totals are not records; the range gives the month and the covered days."""
    whole = read_text(tmp_path, "google_spend", SAMPLES["google_spend"])
    assert spend(whole) == [
        (day("2025-10-01"), None, "Fridges", "2520.00", day("2025-10-31")),
        (day("2025-10-01"), None, "Ovens", "0.50", day("2025-10-31")),
    ]
    assert (whole.file.records.read, whole.file.records.summary_lines, whole.file.warnings) == (4, 2, [])


def test_google_report_over_several_months_without_dates(tmp_path: Path):
    """A report over several months without dates is refused: its spend cannot be split by month."""
    content = SAMPLES["google_spend"].replace("October 31", "November 30")
    with pytest.raises(
        RefusedFile, match=r'"2025-10-01 to 2025-11-30": several months and no date column; accepted: '
    ):
        read_text(tmp_path, "google_spend", content)
    with pytest.raises(
        RefusedFile, match="no month; accepted: a column Month, Day or Date, or a line above the header"
    ):
        read_text(tmp_path, "google_spend", content.split("\r\n", 2)[2])


def test_google_coverage_of_months(tmp_path: Path):
    """The month of the export is covered up to the export's day, other months to their end."""
    content = "Month,Amount\n2025-11,310.00\nDec 2025,99.5\n"
    assert spend(read_text(tmp_path, "google_spend", content)) == [
        (day("2025-11-01"), None, "all", "310.00", day("2025-11-30")),
        (day("2025-12-01"), None, "all", "99.5", day("2025-12-20")),
    ]


def test_google_report_exported_before_its_range_ends(tmp_path: Path):
    """A report covers no day after its export, even if its date range does."""
    content = SAMPLES["google_spend"].replace("October", "December")
    assert {row[-1] for row in spend(read_text(tmp_path, "google_spend", content))} == {day("2025-12-20")}


def test_google_coverage_of_days(tmp_path: Path):
    """A file by day covers its last month up to its last day, and warns of a first month that starts late."""
    content = "Day,Campaign,Cost\n2025-10-30,A,1.00\n2025-10-31,A,2.00\n2025-11-04,B,3.00\n"
    whole = read_text(tmp_path, "google_spend", content)
    assert spend(whole) == [
        (day("2025-10-01"), day("2025-10-30"), "A", "1.00", day("2025-10-31")),
        (day("2025-10-01"), day("2025-10-31"), "A", "2.00", day("2025-10-31")),
        (day("2025-11-01"), day("2025-11-04"), "B", "3.00", day("2025-11-04")),
    ]
    assert "begins on 2025-10-30" in whole.file.warnings[0]


def test_google_dates_that_are_months(tmp_path: Path):
    """A `Date` column with only firsts of months is monthly: else each month would be covered for one day."""
    whole = read_text(tmp_path, "google_spend", "Date,Amount\n2025-10-01,310.00\n2025-11-01,300.00\n")
    assert spend(whole) == [
        (day("2025-10-01"), None, "all", "310.00", day("2025-10-31")),
        (day("2025-11-01"), None, "all", "300.00", day("2025-11-30")),
    ]
    assert whole.file.warnings == []


def test_google_micros(tmp_path: Path):
    """Millionths of API exports stay unrounded for the sum."""
    content = "campaign.name,segments.date,metrics.cost_micros\nA,2025-10-02,1005000\nA,2025-10-03,1\n"
    assert [row["amount"] for row in read_text(tmp_path, "google_spend", content).rows] == [
        "1.005000",
        "0.000001",
    ]


def test_jobs_without_uuids_go_by_number(tmp_path: Path):
    """A jobs file without a UUID column has NULL ids; one with the column refuses a blank one."""
    rest = "Job Type,Source,Created"
    whole = read_text(
        tmp_path, "jobs", f"Job #,{rest}\n003504,COD Service,NSA,2024-11-01\n,COD Service,NSA,2024-11-01\n"
    )
    assert [(row["job_id"], row["job_number"]) for row in whole.rows] == [(None, "3504")]
    assert 'line 3: Job # "": blank; accepted: the job\'s id' in whole.reasons
    both = read_text(tmp_path, "jobs", f"Job #,UUID,{rest}\n3504,,COD Service,NSA,2024-11-01\n")
    assert 'line 2: UUID "": blank; accepted: the job\'s id' in both.reasons


def test_job_id_beside_a_uuid_is_the_number(tmp_path: Path):
    """`Job ID` alone is the id; next to a UUID column it is the number."""
    rest = "Job Type,Source,Created"
    alone = read_text(tmp_path, "jobs", f"Job ID,{rest}\n003504,COD Service,NSA,2024-11-01\n").rows[0]
    assert (alone["job_id"], alone["job_number"]) == ("003504", None)
    beside = read_text(
        tmp_path, "jobs", f"Job ID,UUID,{rest}\n003504,AB12CD,COD Service,NSA,2024-11-01\n"
    ).rows[0]
    assert (beside["job_id"], beside["job_number"]) == ("AB12CD", "3504")


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_detected_by_its_header(tmp_path: Path, source: str):
    """Exactly one source fits each header, because users drop files with meaningless names."""
    path = tmp_path / "export_export (23).csv"
    path.write_text(SAMPLES[source])
    assert detect_source(local_file(path, tmp_path)).name == source
    path = path.rename(tmp_path / "Book1.xlsx")
    path.write_bytes(workbook_bytes([line.split(",") for line in SAMPLES[source].splitlines()]))
    assert detect_source(local_file(path, tmp_path)).name == source


BARE_HEADERS = {
    "jobs": "UUID,Job Type,Source,Created",
    "payments": "Job ID,Date,Amount",
    "calls": "Caller number,Called number,Time,Duration",
    "elocals_leads": "Lead ID,Date,Cost",
    "proref_leads": "Lead ID,Date,Current Status",
    "google_spend": "Month,Amount",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("leads cost Elocals October.csv", "elocals_leads"),
        ("ProReferral leads.csv", "proref_leads"),
        ("pro_referral-2025.csv", "proref_leads"),
        ("google_spend_2025.csv", "google_spend"),
        ("Google Ads report.csv", "google_spend"),
        ("jobs-2025-12-16T13_58_55.706Z.csv", "jobs"),
        ("Payments.csv", "payments"),
        ("calls.csv", "calls"),
    ],
)
def test_source_is_detected_by_name(tmp_path: Path, name: str, expected: str):
    """A telling name is enough for columns that any list may have; without it, they tell nothing."""
    path = tmp_path / name
    path.write_text(f"{BARE_HEADERS[expected]}\n")
    assert detect_source(local_file(path, tmp_path)).name == expected
    path = path.rename(tmp_path / "export.csv")
    with pytest.raises(UnrecognizedFile, match="a name that tells the source, or headers that only"):
        detect_source(local_file(path, tmp_path))


@pytest.mark.parametrize("source", ["payments", "google_spend"])
def test_name_is_not_enough_without_the_columns(tmp_path: Path, source: str):
    """A name that tells a source doesn't make up for missing columns, but the message says which they are."""
    path = tmp_path / f"{source}.csv"
    path.write_text("Date,Note\n10/01/2025,x\n")
    message = (
        f'^{source}.csv: "{source}": name tells this source but the header does not fit; .*missing columns'
    )
    with pytest.raises(UnrecognizedFile, match=message):
        detect_source(local_file(path, tmp_path))


def test_source_is_detected_by_folder(tmp_path: Path):
    """The folder decides before the name; deeper folders are the user's."""
    path = tmp_path / "payments" / "2025" / "jobs.csv"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert detect_source(local_file(path, tmp_path)).name == "payments"


def test_unrecognized_files(tmp_path: Path):
    """A file that fits no source or several is refused, and the message names the folders it can go to."""
    (tmp_path / "invoices").mkdir()
    for path, content, message in (
        (
            tmp_path / "data.csv",
            "a,b\n1,2\n",
            r'"a \| b": neither name nor header tells the source; move it into the folder of its source',
        ),
        (
            tmp_path / "invoices" / "jobs.csv",
            SAMPLES["jobs"],
            '"invoices": unknown source folder; accepted: jobs, payments',
        ),
        (
            tmp_path / "all.csv",
            "Category,Lead ID,Date,Current Status,Cost,Caller Name\nOven,1,10/01/2025,Open,5,Ann\n",
            '"elocals_leads, proref_leads": header fits several sources',
        ),
    ):
        path.write_text(content)
        with pytest.raises(UnrecognizedFile, match=message):
            detect_source(local_file(path, tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("export 2025-12-16T13_58_55.706Z.csv", datetime(2025, 12, 16, 13, 58, 55, 706000, UTC)),
        ("2025-12-16T13-58-55.csv", datetime(2025, 12, 16, 18, 58, 55, tzinfo=UTC)),
        ("jobs_2025-07-16t13:58:55z (2).xlsx", datetime(2025, 7, 16, 13, 58, 55, tzinfo=UTC)),
    ],
)
def test_export_time_in_the_name(tmp_path: Path, name: str, expected: datetime):
    """A date-time in the name beats the copy's modification time; without Z it is business time."""
    (tmp_path / name).touch()
    assert export_time(local_file(tmp_path / name, tmp_path), NEW_YORK) == (expected, "name")


@pytest.mark.parametrize("name", ["jobs 2025-12-16.csv", "2025-13-16T13_58_55Z.csv", "2025-12-16T13_58.csv"])
def test_export_time_from_the_file(tmp_path: Path, name: str):
    """A date alone or an impossible time in the name does not count."""
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    assert export_time(local_file(tmp_path / name, tmp_path), NEW_YORK) == (
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        "mtime",
    )


def test_workbook_of_jobs(tmp_path: Path):
    """The first fitting sheet is read: numbers to 15 digits, ids that are numbers, dates as dates."""
    header = ["Job #", "UUID", "Job Type", "Source", "Created", "Total"]
    path = tmp_path / "jobs.xlsx"
    path.write_bytes(
        workbook_bytes(
            [header, [1, "HIDDEN", "COD Service", "Google", datetime(2025, 1, 1), 1]],
            [["Notes"], ["Job # of last year"]],
            [
                ["Jobs export"],
                [],
                header,
                [3504.0, "AB12CD", "COD Service", "Google", datetime(2025, 12, 18, 10, 30), 0.1 + 0.2],
                ["003505", 123456, "Warranty", "Google", date(2025, 12, 18), 244.60000000000002],
                [None, None, None, None, None, None],
                [3506, "12E345", "COD Service", None, "12/18/2025 3:05 PM", 12.345],
                [3507, "AB12CE", "COD Service", "Google", 45611.4375, 1],
                ["Total", None, None, None, None, 244.9],
            ],
            [header, [2, "SECOND", "COD Service", "Google", datetime(2025, 1, 1), 1]],
            hidden=[0],
        )
    )
    whole = read(path, "jobs")
    assert [(row["job_number"], row["job_id"], row["created_at"], row["total"]) for row in whole.rows] == [
        ("3504", "AB12CD", utc(2025, 12, 18, 15, 30), "0.3"),
        ("3505", "123456", utc(2025, 12, 18, 5), "244.6"),
    ]
    assert 'line 7: Total "12.345": too many decimals' in whole.reasons
    assert 'line 8: Created "45611.4375": not a valid date' in whole.reasons
    assert (whole.file.sheet, whole.file.encoding, whole.file.records.summary_lines) == ("Sheet 3", "xlsx", 1)
    assert whole.file.warnings == [
        "only the sheet 'Sheet 3' was read; similar sheets were not: 'Sheet 4'; save each sheet as its own file"
    ]


def test_workbook_with_formulas_that_were_never_computed(tmp_path: Path):
    """A formula without a result is refused: blank would mean something else in a cost or a target's source."""
    path = tmp_path / "targets.xlsx"
    path.write_bytes(
        workbook_bytes(
            [
                ["month", "source", "target_repairs", "note"],
                ["2025-10", '="Goo"&"gle"', 1, "=1+1"],
                ["2025-10", "eLocals", 2, "=2+2"],
                ["=DATE(2025,11,1)", "Google", "=1+2", None],
                ["=DATE(2025,12,1)", "=B2", "=C4", None],
                ["Total", None, "=SUM(C2:C4)", None],
            ]
        )
    )
    whole = read(path, "targets")
    assert [(row["source"], row["target_repairs"]) for row in whole.rows] == [("eLocals", 2)]
    assert whole.file.records.summary_lines == 1
    assert [(rejected.as_found.line_no, *rejected.reasons) for rejected in whole.rejected] == [
        (2, UNCOMPUTED.about("source", '="Goo"&"gle"')),
        (4, UNCOMPUTED.about("target_repairs", "=1+2")),
        (5, UNCOMPUTED.about("target_repairs", "=C4")),
    ]
    assert whole.rejected[0].as_found.record == {
        "month": "2025-10",
        "source": '="Goo"&"gle"',
        "target_repairs": "1",
        "note": "=1+1",
    }


def test_workbook_with_computed_formulas(tmp_path: Path):
    """Stored results of formulas are read; one may be an empty text."""
    cells = [["month", "source", "target_repairs"], ["2025-10", '=IF(TRUE,"","x")', "=1+2"]]
    computed = {
        b'<c r="B2"><f>IF(TRUE,"","x")</f><v /></c>': b'<c r="B2" t="str"><f>IF(TRUE,"","x")</f><v></v></c>',
        b'<c r="C2"><f>1+2</f><v /></c>': b'<c r="C2"><f>1+2</f><v>3</v></c>',
    }
    path = tmp_path / "targets.xlsx"
    with zipfile.ZipFile(io.BytesIO(workbook_bytes(cells))) as written, zipfile.ZipFile(path, "w") as saved:
        for name in written.namelist():
            part = written.read(name)
            if name == "xl/worksheets/sheet1.xml":
                for before, after in computed.items():
                    assert before in part
                    part = part.replace(before, after)
            saved.writestr(name, part)
    whole = read(path, "targets")
    assert [(row["source"], row["target_repairs"]) for row in whole.rows] == [("ALL", 3)]
    assert whole.rejected == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (True, "TRUE"),
        (244.60000000000002, "244.6"),
        (3504.0, "3504"),
        (123456789012.0, "123456789012"),
        (1e22, "1e+22"),
        (datetime(2025, 12, 18, 10, 29, 59, 999_900), "2025-12-18 10:30:00"),
        (datetime(2025, 12, 18), "2025-12-18"),
        (time(3, 25), "03:25:00"),
        (timedelta(hours=26, minutes=3), "26:03:00"),
        ("a\x00b\ud800", "a\ufffdb?"),
    ],
)
def test_spreadsheet_cells_as_text(value: object, expected: str):
    """Numbers and dates of a spreadsheet read as its CSV export would."""
    assert cell_text(value) == expected


def test_workbook_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A workbook that would unpack to more than the limit is refused before it fills the memory."""
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.file_formats.MAX_UNCOMPRESSED", 1000)
    path = tmp_path / "jobs.xlsx"
    path.write_bytes(workbook_bytes([["x"]]))
    with pytest.raises(
        RefusedFile,
        match=r'bytes unpacked": workbook too large; accepted: at most 1,000 bytes; save it as CSV',
    ):
        read(path, "jobs")


def test_sheet_with_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows after the format's limit are refused: damaged row numbers would make a sheet endless."""
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.workbook.MAX_ROWS", 2)
    path = tmp_path / "targets.xlsx"
    path.write_bytes(workbook_bytes([["month", "target_repairs"], ["2025-10", 1], ["2025-11", 2]]))
    with pytest.raises(
        RefusedFile, match=r"sheet 'Sheet 1', row 3: sheet too large; accepted: at most 2 rows"
    ):
        read(path, "targets")


def test_unreadable_file(tmp_path: Path):
    """A folder, or a file that is gone, is refused like any other."""
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(RefusedFile, match="cannot be read"):
            open_file(path, SOURCES["jobs"], exported_at=EXPORTED_AT, timezone=NEW_YORK)


def test_file_that_vanishes_while_it_is_read(tmp_path: Path):
    """A file that vanishes while it is read is refused without a traceback, since users move files at any time."""
    path = tmp_path / "jobs.csv"
    path.write_text(SAMPLES["jobs"])
    file = open_file(path, SOURCES["jobs"], exported_at=EXPORTED_AT, timezone=NEW_YORK)
    path.unlink()
    with pytest.raises(RefusedFile, match="changed or vanished while it was read"):
        list(file.batches())


def test_another_timezone(tmp_path: Path):
    """Local times and dates are the business timezone's."""
    row = read_text(
        tmp_path,
        "payments",
        "Job #,Amount,Date\n1,1.00,2024-11-01T03:00:00Z\n",
        timezone=ZoneInfo("Asia/Tokyo"),
    ).rows[0]
    assert (row["paid_at"], row["paid_date"]) == (utc(2024, 11, 1, 3), day("2024-11-01"))
    row = read_text(
        tmp_path, "payments", "Job #,Amount,Date\n1,1.00,2024-11-01\n", timezone=ZoneInfo("Asia/Tokyo")
    ).rows[0]
    assert (row["paid_at"], row["paid_date"]) == (utc(2024, 10, 31, 15), day("2024-11-01"))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_many_pieces_read_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str):
    """Record numbers, line numbers and counts continue from batch to batch, whatever ends a line; cells stay the same."""
    rows = [
        jobs_row(number=str(number), uuid=f"U{number:05}", total="1.00" if number % 50 else "x")
        for number in range(1, 501)
    ]
    content = csv_text([JOBS_HEADER, *rows])
    one = read_text(tmp_path, "jobs", content)
    monkeypatch.setattr(csv_records, "PIECE", 5000)
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.encoding.BLOCK", 1111)
    many = read_text(tmp_path, "jobs", content.replace("\r\n", "\n").replace("\n", ending))
    assert (many.rows, many.rejected) == (one.rows, one.rejected)
    assert (
        len(
            list(
                open_file(
                    tmp_path / "export.csv", SOURCES["jobs"], exported_at=EXPORTED_AT, timezone=NEW_YORK
                ).batches()
            )
        )
        > 10
    )
    # The header takes one line and each record two, because of its notes: record 50 begins in line 100.
    assert many.rejected[0].as_found[:2] == (50, 100)
    assert str(many.rejected[0].reasons[0]).startswith('Total "x": not a number')


@pytest.mark.parametrize("source", SOURCES)
def test_batches_copy_into_typed_columns(tmp_path: Path, new_database: Callable[..., str], source: str):
    """PostgreSQL reads every staged value that pyarrow writes as the column's type."""
    declared = SOURCES[source]
    path = tmp_path / "x.csv"
    path.write_text(SAMPLES[source])
    file = open_file(path, declared, exported_at=EXPORTED_AT, timezone=NEW_YORK)
    columns = ", ".join(f"{name} {kind}" for name, kind in declared.staged_columns.items())
    with psycopg.connect(new_database()) as connection:
        connection.execute(f"CREATE TEMP TABLE staged (record_no bigint, {columns})")
        total = 0
        for batch in file.batches():
            pacsv.write_csv(batch.rows, tmp_path / "staged.csv")
            with connection.cursor().copy("COPY staged FROM STDIN (FORMAT csv, HEADER)") as copy:
                copy.write((tmp_path / "staged.csv").read_bytes())
            for staged in batch.rows.to_pylist():
                total += 1
                found = connection.execute(
                    "SELECT * FROM staged WHERE record_no = %s", [staged["record_no"]]
                ).fetchone()
                assert found is not None
                for (name, kind), value in zip(declared.staged_columns.items(), found[1:], strict=True):
                    text = staged[name]
                    expected = text if not kind.startswith("numeric") or text is None else type(value)(text)
                    assert value == expected, name
        assert total == file.records.read - file.records.summary_lines


def test_declared_decimal_comma_is_used(tmp_path: Path):
    """A source may declare European amounts; by default none does."""
    european = replace(SOURCES["payments"], decimal_comma=True, date_order="dmy")
    row = read_text(tmp_path, european, "Job #;Amount;Date\n1;1.234,50;03.02.2024\n").rows[0]
    assert (row["amount"], row["paid_date"]) == ("1234.50", day("2024-02-03"))
