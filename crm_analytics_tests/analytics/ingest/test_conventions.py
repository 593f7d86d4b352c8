"""Order of dates and decimal mark: a file that disproves the declared ones is read by its own, or refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics_tests.analytics.ingest.landing_folder import NEW_YORK, Landing
from crm_analytics_tests.analytics.ingest.samples import Whole, day, read, read_text, utc, workbook_bytes

DAY_FIRST = """\
Payment ID;Job #;Amount;Date;Payment Methods
D1;1001;120;05.11.2025;Card
D2;1002;80;25.11.2025;Card
D3;1003;1.234,50;06.11.2025;Card
D4;1004;12,50;07.11.2025 14:05;Card
D5;1005;95;12.11.2025;Card
"""
NAME = "payments/payments_2025-12-01T08_00_00.csv"
LOADED = [
    ("D1", date(2025, 11, 5), Decimal("120.00")),
    ("D2", date(2025, 11, 25), Decimal("80.00")),
    ("D3", date(2025, 11, 6), Decimal("1234.50")),
    ("D4", date(2025, 11, 7), Decimal("12.50")),
    ("D5", date(2025, 11, 12), Decimal("95.00")),
]
#: Declared day first, which none of our sources is.
EUROPEAN = replace(SOURCES["payments"], date_order="dmy", decimal_comma=True)


def payments(*dates: str, amount: str = "10") -> str:
    """Returns an export of payments with these dates."""
    rows = [f'P{number},1,"{amount}",{day}\n' for number, day in enumerate(dates, start=1)]
    return "Payment ID,Job #,Amount,Date\n" + "".join(rows)


def amounts(*written: str) -> str:
    """Returns an export of payments with these amounts."""
    rows = [f'P{number},1,"{amount}",2025-11-05\n' for number, amount in enumerate(written, start=1)]
    return "Payment ID,Job #,Amount,Date\n" + "".join(rows)


def paid(whole: Whole) -> list[str]:
    return [str(row["paid_date"]) for row in whole.rows]


def read_amounts(whole: Whole) -> list[str]:
    return [row["amount"] for row in whole.rows]


def refusal(folder: Path, content: str, source: str | Source = "payments", **options: Any) -> str:
    with pytest.raises(RefusedFile) as refused:
        read_text(folder, source, content, **options)
    return str(refused.value)


# the order of dates


def test_day_first_payments_with_decimal_commas(landing: Landing) -> None:
    """Dates with dots and amounts with commas load as what they are, and warnings in the ledger say why."""
    landing.write(NAME, DAY_FIRST)
    file = landing.load_one("payments")
    assert landing.rows("SELECT payment_id, paid_date, amount FROM raw.payments ORDER BY 1") == LOADED
    assert landing.rows("SELECT paid_at FROM raw.payments WHERE payment_id = 'D4'") == [
        (datetime(2025, 11, 7, 14, 5, tzinfo=ZoneInfo("America/New_York")),)
    ]
    assert (file.counts.inserted, file.counts.quarantined) == (5, 0)
    assert file.changed_by_month == {date(2025, 11, 1): 5}
    ((warnings,),) = landing.rows("SELECT warnings FROM raw.source_files")
    assert warnings == file.warnings
    assert warnings == [
        "numeric dates were read day first, because Date has dates with dots, which no American tool writes: 05.11.2025"
        " in line 2 is 2025-11-05",
        "amounts were read with a decimal comma, because some make no sense with a point, and none requires one:"
        " Amount is 1.234,50 in line 4",
    ]


def test_dry_run_reads_the_same(landing: Landing) -> None:
    """The dry run comes to the same reading, with a database and without one."""
    path = landing.write(NAME, DAY_FIRST)
    for connection in (None, landing.connection):
        report = examine(path, timezone=NEW_YORK, landing=landing.folder, connection=connection)
        assert report.months == {date(2025, 11, 1): 5}
        assert (report.refusal, report.quarantined, len(report.warnings)) == (None, [], 2)


def test_late_file_meets_the_same_reading(landing: Landing) -> None:
    """A day-first file that is read again for a late one has the same keys, which contain dates and amounts."""
    header, *rows = DAY_FIRST.splitlines()
    newer = "\n".join(line.split(";", 1)[1] for line in (header, *rows))
    landing.write(NAME, newer)
    assert landing.load("payments").totals.inserted == 5
    older = "Job #,Amount,Date,Payment Methods\n1003,1234.50,2025-11-06,Card\n1009,7.00,2025-11-06,Card\n"
    landing.write("payments/payments_2025-11-30T08_00_00.csv", older)
    totals = landing.load("payments").totals
    assert (totals.superseded, totals.inserted) == (1, 1)


def test_a_reading_given_up_leaves_nothing_behind(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the end of a long file tells the order, what was staged and quarantined before is forgotten."""
    monkeypatch.setattr(csv_records, "PIECE", 1 << 12)
    rows = [f"P{number};7;1,5;2025-11-{number % 28 + 1:02};Card" for number in range(500)]
    rows += ["B1;7;x;2025-11-01;Card", "B2;7;7,25;30.11.2025;Card"]
    landing.write(NAME, "Payment ID;Job #;Amount;Date;Payment Methods\n" + "\n".join(rows))
    counts = landing.load_one("payments").counts
    assert (counts.records_read, counts.inserted, counts.quarantined) == (502, 501, 1)
    assert landing.rows("SELECT row_key, line_no FROM raw.rejected_rows") == [("B1", 502)]
    assert landing.rows("SELECT sum(amount), min(amount), max(paid_date) FROM raw.payments") == [
        (Decimal("757.25"), Decimal("1.50"), date(2025, 11, 30))
    ]


def test_record_that_cannot_be_month_first(landing: Landing) -> None:
    """One such record refuses the file with both readings: the others are in the wrong month if it is right."""
    landing.write("payments/a.csv", payments("05/11/2025", "25/11/2025", "06/11/2025"))
    file = landing.load_one("payments")
    assert (file.status, landing.rows("SELECT count(*) FROM raw.payments")) == ("refused", [(0,)])
    assert file.message == (
        'Date "25/11/2025 in line 3 is no date with the month first, 2025-11-25 with the day first; 05/11/2025 in line 2 is'
        ' 2025-05-11 or 2025-11-05": order of day and month in doubt; accepted: numeric dates that are all month first,'
        " as payments declares, and not after the export; or all with dots, which are read day first; export the dates"
        " as YYYY-MM-DD; or if this tool always writes them the other way round, change date_order in the source's"
        " declaration"
    )


@pytest.mark.parametrize(
    "dates",
    [
        ("11/25/2025", "25/11/2025"),  # two tools, or a slip: 05/11/2025 would be a guess
        ("25-11-2025 14:05", "05-11-2025"),
        ("2025-11-05", "25/11/2025"),
        ("05.11.2025", "11.25.2025"),  # with dots, but not day first
        ("11.25.2025",),
        ("05.11.2025", "06/11/2025"),  # with dots and without
        ("11/25/2025", "05.11.2025"),
    ],
)
def test_dates_that_do_not_agree(tmp_path: Path, dates: tuple[str, ...]) -> None:
    """Dates that show no one order refuse the file, in whatever order they come."""
    for written in (dates, dates[::-1]):
        assert "order of day and month in doubt" in refusal(tmp_path, payments(*written))


@pytest.mark.parametrize(
    "bad",
    ["13/45/2025", "00/05/2025", "00.00.0000", "13.45.2025", "31.02.2025", "25/11/2025 25:61", "25/11/25"],
)
def test_a_bad_date_is_no_evidence(tmp_path: Path, bad: str) -> None:
    """A date that is impossible in both orders is quarantined alone; its neighbors follow the declared order."""
    whole = read_text(tmp_path, "payments", payments("11/05/2025", bad, "11/25/2025"))
    assert (paid(whole), len(whole.rejected)) == (["2025-11-05", "2025-11-25"], 1)
    assert whole.file.warnings == []


def test_cells_of_a_defective_record_are_no_evidence(tmp_path: Path) -> None:
    """Cells of a record that is too long may be in the wrong columns, so they prove nothing."""
    content = payments("11/05/2025", "11/25/2025") + "P3,1,10,25.11.2025,extra,cells\n"
    whole = read_text(tmp_path, "payments", content)
    assert (paid(whole), len(whole.rejected)) == (["2025-11-05", "2025-11-25"], 1)


@pytest.mark.parametrize(
    ("dates", "refused"),
    [
        (["11/05/2025", "11/30/2025"], False),
        (["12/02/2025"], False),  # a day after the export: clocks and time zones differ
        (["12/03/2025"], True),
        (["05/11/2025", "12/11/2025 10:00"], True),  # 5 and 12 November
        (["12/12/2025", "12/13/2025"], False),  # these have one reading
        (["2025-12-11"], False),
        (["Thu Dec 11 2025"], False),
    ],
)
def test_dates_after_the_export(tmp_path: Path, dates: list[str], refused: bool) -> None:
    """A date with two readings that is after the export disproves the order, if the file's name tells the export."""
    options: dict[str, Any] = {"exported_at": utc(2025, 12, 1, 13), "export_named": True}
    content = payments(*dates)
    if refused:
        message = refusal(tmp_path, content, **options)
        assert "order of day and month in doubt" in message
        assert "and the file was exported on 2025-12-01" in message
    else:
        assert read_text(tmp_path, "payments", content, **options).rejected == []
    by_modification_time = read_text(tmp_path, "payments", content, exported_at=utc(2025, 12, 1, 13))
    assert by_modification_time.rejected == []


def test_only_the_column_that_dates_the_record_is_over(tmp_path: Path) -> None:
    """A job may be scheduled after the export; it cannot be created after it."""
    header = "UUID,Job Type,Source,Created,Job Date\n"
    options: dict[str, Any] = {"exported_at": utc(2025, 12, 1, 13), "export_named": True}
    whole = read_text(tmp_path, "jobs", header + "A,COD Service,NSA,11/05/2025,12/11/2025\n", **options)
    assert [row["job_date"] for row in whole.rows] == [day("2025-11-05")]
    message = refusal(tmp_path, header + "A,COD Service,NSA,12/11/2025,11/05/2025\n", "jobs", **options)
    assert (
        'Created "12/11/2025 in line 2 is 2025-12-11 with the month first, 2025-11-12 with the day first'
        in message
    )


def test_columns_share_the_evidence(tmp_path: Path) -> None:
    """One tool writes one form: a date with dots in another column settles the order for all of them."""
    header = "UUID,Job Type,Source,Created,Job Date\n"
    whole = read_text(tmp_path, "jobs", header + "A,COD Service,NSA,05.11.2025 09:00,06.11.2025\n")
    assert [(row["job_date"], row["scheduled_at"]) for row in whole.rows] == [
        (day("2025-11-05"), utc(2025, 11, 6, 5))
    ]
    mixed = refusal(tmp_path, header + "A,COD Service,NSA,05/11/2025,06.11.2025\n", "jobs")
    assert "2025-11-05 with the day first, and other dates of this file have dots" in mixed
    iso = read_text(tmp_path, "jobs", header + "A,COD Service,NSA,2025-11-05,06.11.2025\n")
    assert [row["scheduled_at"] for row in iso.rows] == [utc(2025, 11, 6, 5)]


def test_dotted_dates_after_the_export(tmp_path: Path) -> None:
    """Day first is no more believed than month first: dates after the export refuse it, too."""
    options: dict[str, Any] = {"exported_at": utc(2025, 6, 1, 13), "export_named": True}
    message = refusal(tmp_path, payments("05.04.2025", "05.11.2025"), **options)
    assert "05.11.2025 in line 3 is 2025-05-11 with the month first, 2025-11-05 with the day first" in message


def test_source_that_declares_day_first(tmp_path: Path) -> None:
    """A declared day-first order is judged in the same way, and dots agree with it."""
    whole = read_text(tmp_path, EUROPEAN, payments("05.11.2025", "25/11/2025", "06/11/2025"))
    assert paid(whole) == ["2025-11-05", "2025-11-25", "2025-11-06"]
    assert whole.file.warnings == []
    message = refusal(tmp_path, payments("05/11/2025", "11/25/2025"), EUROPEAN)
    assert "11/25/2025 in line 3 is 2025-11-25 with the month first, no date with the day first" in message
    assert "numeric dates that are all day first, as payments declares" in message


def test_workbook_whose_dates_a_spreadsheet_read_by_half(tmp_path: Path) -> None:
    """A spreadsheet that reads dates month first leaves the others as text, which disproves those it read."""
    path = tmp_path / "payments.xlsx"
    rows: list[list[object]] = [
        ["Payment ID", "Job #", "Amount", "Date"],
        ["P1", 1, 5, datetime(2025, 5, 11)],
        ["P2", 1, 5, "25/11/2025"],
    ]
    path.write_bytes(workbook_bytes(rows))
    with pytest.raises(
        RefusedFile,
        match=r"25/11/2025 in line 3 is no date with the month first, 2025-11-25 with the day first",
    ):
        read(path, "payments")
    path.write_bytes(workbook_bytes(rows[:2]))
    assert paid(read(path, "payments")) == ["2025-05-11"]


def test_column_of_months(tmp_path: Path) -> None:
    """A column of months has first days: 01/10/2025 is October 1, not January 10."""
    spend = "Month,Amount\n{},5.00\n"
    whole = read_text(tmp_path, "google_spend", spend.format("10/01/2025"))
    assert [row["month"] for row in whole.rows] == [day("2025-10-01")]
    message = refusal(tmp_path, spend.format("01/10/2025"), "google_spend")
    assert "01/10/2025 in line 2 is no date with the month first, 2025-10-01 with the day first" in message
    dotted = read_text(tmp_path, "google_spend", spend.format("01.10.2025"))
    assert [row["month"] for row in dotted.rows] == [day("2025-10-01")]
    # plans are for the future
    options: dict[str, Any] = {"exported_at": utc(2025, 6, 1), "export_named": True}
    targets = read_text(tmp_path, "targets", "month,target_repairs\n12/01/2025,120\n", **options)
    assert [row["month"] for row in targets.rows] == [day("2025-12-01")]


def test_range_with_dots_above_the_header(tmp_path: Path) -> None:
    """A report's range with dots is day first: 05.10.2025 - 05.10.2025 is a day of October."""
    content = "Report\n05.10.2025 - 05.10.2025\nCampaign,Cost\nOvens,5.00\n"
    whole = read_text(tmp_path, "google_spend", content)
    assert [row["month"] for row in whole.rows] == [day("2025-10-01")]


# the decimal mark


def test_amounts_that_agree_on_a_comma(tmp_path: Path) -> None:
    """Amounts that can only have a decimal comma, and none that cannot: the point separates thousands, exactly."""
    whole = read_text(tmp_path, "payments", amounts("12,50", "1.234", "1.234,5", "-7", "1.234.567,00"))
    assert read_amounts(whole) == ["12.50", "1234", "1234.5", "-7", "1234567.00"]
    assert whole.rejected == []
    assert whole.file.warnings[0].startswith("amounts were read with a decimal comma")


def test_all_amounts_of_a_file_share_the_mark(tmp_path: Path) -> None:
    """Ratios and the file's own total have the mark of its amounts."""
    header = "month;target_repairs;target_revenue40;target_conv_l_to_r;target_cpl_max\n"
    whole = read_text(tmp_path, "targets", header + "2025-11;1.200;40.000,00;0,35;55,5\n2025-12;;;12,5%;\n")
    assert [(row["target_repairs"], row["target_revenue40"], row["target_conv_l_to_r"]) for row in whole.rows] == [
        (1200, "40000.00", "0.35"), (None, None, "0.125"),
    ]  # fmt: skip
    total = read_text(tmp_path, "payments", amounts("12,50", "1.234,50") + 'Total,,"1.247,00",\n')
    assert len(total.file.warnings) == 1
    assert total.file.records.summary_lines == 1


@pytest.mark.parametrize(
    ("written", "accepted"),
    [
        (["12.50", "12,50", "1.234,50"], ["12.50"]),  # others prove the point
        (["$1,234.50", "12,50", "1.234,50"], ["1234.50"]),
        (["10", "1.234,50", "20"], ["10", "20"]),  # a single one may be a slip
        (["10", "12,50", "12,50"], ["10"]),
        (["1,234", "10"], ["1234", "10"]),
        (["1.234", "10"], ["10"]),  # 1234, or a rounding error: never guessed
        (["1,234", "12,50"], ["1234"]),
    ],
)
def test_amounts_out_of_line_are_quarantined_alone(
    tmp_path: Path, written: list[str], accepted: list[str]
) -> None:
    """No amount has two readings, so nothing else is misread where some don't fit the declared mark."""
    whole = read_text(tmp_path, "payments", amounts(*written))
    assert read_amounts(whole) == accepted
    assert len(whole.rejected) == len(written) - len(accepted)


def test_amounts_that_contradict_each_other(tmp_path: Path) -> None:
    """Commas as decimal marks and as thousands separators in one file refuse it: 1,234 would be a guess."""
    message = refusal(tmp_path, amounts("12,50", "7,25", "1,234"))
    assert (
        '"12,50 in line 2 can only have a decimal comma, 1,234 in line 4 only a decimal point": decimal mark in doubt'
        in message
    )


def test_one_amount_is_enough_in_a_day_first_file(tmp_path: Path) -> None:
    """A file that shows dates day first isn't American, so one decimal comma is no slip."""
    content = "Payment ID;Job #;Amount;Date\nP1;1;12,50;05.11.2025\nP2;1;10;06.11.2025\n"
    assert read_amounts(read_text(tmp_path, "payments", content)) == ["12.50", "10"]


def test_source_that_declares_a_comma(tmp_path: Path) -> None:
    """A declared comma is judged alike: points alone prove a decimal point, both marks cost the records with points."""
    declared = replace(SOURCES["payments"], decimal_comma=True)
    points = read_text(tmp_path, declared, amounts("12.50", "7.25", "1,234", "10"))
    assert read_amounts(points) == ["12.50", "7.25", "1234", "10"]
    assert points.file.warnings[0].startswith("amounts were read with a decimal point")
    both = read_text(tmp_path, declared, amounts("12.50", "7.25", "12,50"))
    assert (read_amounts(both), len(both.rejected)) == (["12.50"], 2)
    assert "decimal mark in doubt" in refusal(tmp_path, amounts("12.50", "7.25", "1.234"), declared)


# with what else a file may have


def test_day_first_records_above_the_header(tmp_path: Path) -> None:
    """A record above the header is found under either order, so that none is lost above a sorted header."""
    header, *rows = DAY_FIRST.splitlines()
    message = refusal(tmp_path, "\n".join([rows[1], header, rows[0]]))
    assert "line 1: record above the header" in message


def test_dates_above_the_header_are_no_evidence(tmp_path: Path) -> None:
    """What a report says about itself above its header doesn't put its records in doubt."""
    content = "Payments,,,25/11/2025\nMade,,,05.11.2025\n" + payments("11/05/2025")
    whole = read_text(tmp_path, "payments", content)
    assert (paid(whole), whole.file.warnings) == (["2025-11-05"], [])


def test_second_table_with_other_dates(tmp_path: Path) -> None:
    """Another table below the first is named as such, not its dates."""
    content = payments("11/05/2025") + "\nRefunds of the month\nPaid,Job,Sum,On\nP9,1,10,25/11/2025\n"
    assert "another table" in refusal(tmp_path, content)
