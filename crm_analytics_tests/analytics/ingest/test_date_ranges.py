"""The date range of a report: which lines above the header give it, and what happens if they differ."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.values.date_ranges import ConflictingRanges, read_range
from crm_analytics_tests.analytics.ingest.landing_folder import Landing
from crm_analytics_tests.analytics.ingest.samples import day, read_text, workbook_bytes

TITLED = """\
Campaign report (Aug 1, 2025 - Aug 31, 2025)
All time
Campaign,Campaign state,Campaign type,Bid strategy type,Budget,Clicks,Impr.,Cost,Conversions,Conv. value
Search — Fridge Repair,Enabled,Search,Maximize conversions,"$107.00",420,"15,000","$3,200.00",44.00,0.00
Brand,Paused,Search,Manual CPC,$20.00,12,300,$18.40,2,0
"Total: All campaigns", , , , ,432,"15,300","$3,218.40",46,0
"""
ROWS = "Campaign,Cost\nA,1.00\n"
DAYS = "Day,Campaign,Cost\n2025-08-01,A,1.00\n2025-08-04,A,1.00\n"


def test_range_in_the_title(landing: Landing):
    """A title with the range gives the month, and `All time` below it changes nothing."""
    landing.write("google_spend/aug.csv", TITLED)
    result = landing.load_one("google_spend")
    assert (result.status, result.warnings, result.counts.summary_lines) == ("loaded", [], 1)
    assert landing.rows(
        "SELECT month, campaign, amount, covered_to FROM raw.google_spend ORDER BY campaign"
    ) == [
        (date(2025, 8, 1), "Brand", Decimal("18.40"), date(2025, 8, 31)),
        (date(2025, 8, 1), "Search — Fridge Repair", Decimal("3200.00"), date(2025, 8, 31)),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "Campaign report: Aug 1, 2025 - Aug 31, 2025",
        "CAMPAIGN_PERFORMANCE_REPORT (Aug 1, 2025-Aug 31, 2025)",
        "Campaign report (August 2025)",
        "Aug 2025 campaign performance",
        "Campaign report 2025-08",
        "Aug 1–31, 2025",
        "August 1 - 31, 2025",
        "Aug 1 – Aug 31, 2025",
        "Campaign report, August 1st to August 31st, 2025, USD",
        "1 - 31 Aug 2025",
        "1 Aug 2025 – 31 Aug 2025",
        "Friday, August 1, 2025 - Sunday, August 31, 2025",
        "Report 2025-08-01 to 2025-08-31",
        "report_2025-08-01_2025-08-31",
        "2025-08-01 00:00:00 - 2025-08-31 23:59:59",
        "From, 2025-08-01, To, 2025-08-31",
        "Start date: 8/1/2025, End date: 8/31/2025",
        "08/01/2025-08/31/2025",
        "01.08.2025 - 31.08.2025",
    ],
)  # fmt: skip
def test_forms_of_a_range(line: str):
    """A range or a month is found in any usual form, with words around it."""
    assert read_range([line, "All time"], "mdy", months=True) == (day("2025-08-01"), day("2025-08-31"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Aug 1 - Sep 30, 2025", ("2025-08-01", "2025-09-30")),
        ("Jul - Sep 2025", ("2025-07-01", "2025-09-30")),
        ("Dec 2024 to Feb 2025", ("2024-12-01", "2025-02-28")),
        ("Dec 20, 2024 - Jan 5, 2025", ("2024-12-20", "2025-01-05")),
        ("August 5, 2025", ("2025-08-05", "2025-08-05")),
        ("05.08.2025 - 05.10.2025", ("2025-08-05", "2025-10-05")),
    ],
)
def test_ranges_that_are_no_month(line: str, expected: tuple[str, str]):
    """Ends are exact, also where an end lacks its month or year."""
    assert read_range([line], "mdy", months=True) == tuple(map(day, expected))


@pytest.mark.parametrize(
    "lines",
    [
        ["All time"],
        ["Campaign report", "Account 123-456-7890", "", "Currency: USD"],
        ["Report generated September 3, 2025"],
        ["Report downloaded September 2025"],
        ["Marketing 2025", "Maytag 2025", "Q3 2025", "2025"],
        ["Campaign report", "Campaign name contains May 2025"],
        ["Aug 31, 2025 - Aug 1, 2025"],
        ["Aug 1, 2025 - Aug 32, 2025"],
        ["13/45/2025 - 14/45/2025"],
    ],
)
def test_lines_without_a_range(lines: list[str]):
    """Times of creation, filters and impossible dates give no month: a guess would put spend into a wrong one."""
    assert read_range(lines, "mdy", months=True) is None


@pytest.mark.parametrize(
    "lines",
    [
        ["Aug 2025 campaign performance", "August 1, 2025 - August 31, 2025"],
        ["Campaign report (Aug 1, 2025 - Aug 31, 2025)", "Aug 1–31, 2025", "August 2025"],
        ["Report generated September 3, 2025", "August 1, 2025 - August 31, 2025"],
    ],
)
def test_lines_that_agree(lines: list[str]):
    """Two lines that give the same range in different forms don't conflict."""
    assert read_range(lines, "mdy", months=True) == (day("2025-08-01"), day("2025-08-31"))


def test_month_around_a_shorter_range():
    """The title's month goes with a range inside it, which is exact."""
    lines = ["Aug 2025 campaign performance", "Aug 1–20, 2025"]
    assert read_range(lines, "mdy", months=True) == (day("2025-08-01"), day("2025-08-20"))


@pytest.mark.parametrize(
    "lines",
    [
        ["Campaign report (Aug 1, 2025 - Aug 31, 2025)", "September 1, 2025 - September 30, 2025"],
        ["August 1, 2025 - August 31, 2025, compared to September 1, 2025 - September 30, 2025"],
        ["Aug 2025 campaign performance", "Sep 1–30, 2025"],
        ["Aug 2025 compared to Sep 2025 and others, Aug 2025"],
    ],
)
def test_lines_that_differ(lines: list[str]):
    """Different ranges are an error that has them all."""
    with pytest.raises(ConflictingRanges) as error:
        read_range(lines, "mdy", months=True)
    assert {"2025-08-01 to 2025-08-31", "2025-09-01 to 2025-09-30"} <= set(str(error.value).split(" and "))


@pytest.mark.parametrize("rows", [ROWS, DAYS])
@pytest.mark.parametrize("form", ["csv", "xlsx"])
def test_report_with_two_ranges_is_refused(tmp_path: Path, rows: str, form: str):
    """A report whose lines give different ranges is refused, with both of them."""
    content: str | bytes = f'"Report (Aug 1–31, 2025)"\n"September 1, 2025 - September 30, 2025"\n{rows}'
    if form == "xlsx":
        lines = [["Report (Aug 1–31, 2025)"], ["September 1, 2025 - September 30, 2025"]]
        content = workbook_bytes([*lines, *(line.split(",") for line in rows.splitlines())])
    with pytest.raises(RefusedFile) as refusal:
        read_text(tmp_path, "google_spend", content)
    assert str(refusal.value) == (
        'export.csv: "2025-08-01 to 2025-08-31 and 2025-09-01 to 2025-09-30": different date ranges; accepted: one date'
        " range above the header; remove the line that is wrong, or export the report without a comparison"
    )


def test_month_in_the_title_of_a_report_by_day(tmp_path: Path):
    """Where records have days, the title's month doesn't say how far they go."""
    for title in ("Aug 2025 report\n", "Sep 2025 report\n", ""):
        rows = read_text(tmp_path, "google_spend", title + DAYS).rows
        assert {row["covered_to"] for row in rows} == {day("2025-08-04")}


@pytest.mark.parametrize("title", ["December 1, 9999 - December 31, 9999", "May 1 - May 31, 1999"])
def test_year_in_the_title_that_cannot_be_right(title: str, tmp_path: Path):
    """It is refused with a reason: the month after December 9999 doesn't exist."""
    with pytest.raises(RefusedFile, match=r'"(9999|1999)-.*": year out of range; accepted: '):
        read_text(
            tmp_path,
            "google_spend",
            f'Campaign report\n"{title}"\nCampaign,Campaign status,Cost\nA,Enabled,5.00\n',
        )


def test_title_with_several_months_and_no_dates(tmp_path: Path):
    """A title over several months is refused like a range over several months."""
    with pytest.raises(RefusedFile, match=r'"2025-07-01 to 2025-09-30": several months and no date column'):
        read_text(tmp_path, "google_spend", "Campaign report Jul - Sep 2025\n" + ROWS)


def test_report_without_a_readable_range(tmp_path: Path):
    """The lines above the header are shown where none of them gives a month: day first, or all time."""
    for line in ("21/08/2025 - 31/08/2025", "All time"):
        with pytest.raises(RefusedFile, match=f'"Report \\| {line}": no month; accepted: a column Month'):
            read_text(tmp_path, "google_spend", f"Report\n{line}\n{ROWS}")
