"""Files whose structure changes: a second table below the header, a header that repeats, records above the header."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.values.column_types import CalendarDay, Micros, Money, When, WholeNumber
from crm_analytics_tests.analytics.ingest.landing_folder import Landing
from crm_analytics_tests.analytics.ingest.samples import SAMPLES, read, read_text, workbook_bytes

STACKED = """\
Aug 2025 Google campaign performance,,,,,,
"August 1, 2025 - August 31, 2025",,,,,,
Campaign,Campaign state,Campaign type,Clicks,Avg. CPC,Cost,Conversions
Alpha PMX,Enabled,Performance Max,1000,0.80,800.00,40
Beta Search,Enabled,Search,200,1.50,300.00,10
,,,,,,
Aug 2025 Bing Campaign Performance,,,,,,
Campaign name,Campaign type,Clicks,CTR,Avg. CPC,Spend,CPA
Gamma Search,Search,500,0.40%,0.60,300.00,30.00
"""
HEADER = "Payment ID,Job #,Amount,Date,Payment Methods\n"
ONE = HEADER + "P1,1,100.00,2024-11-01,Cash\n"
WIDE = "Month,Campaign,Clicks,Cost\n2025-08,Alpha,1,800.00\n"
GOOGLE = SAMPLES["google_spend"].replace("\r\n", "\n")


def as_workbook(text: str) -> bytes:
    """Returns the same rows as a workbook, empty lines as empty rows."""
    return workbook_bytes([list(row) for row in csv.reader(io.StringIO(text))])


def refusal(folder: Path, source: str, content: str | bytes) -> str:
    with pytest.raises(RefusedFile) as refused:
        read_text(folder, source, content)
    return str(refused.value)


def test_table_of_another_tool_below_the_first(landing: Landing):
    """Bing's table below Google's is neither added to Google's spend nor quarantined row by row: the file is refused."""
    reason = (
        '"Aug 2025 Bing Campaign Performance": another table; accepted: one table per file, below one header; save each'
        " table as its own file; if the line belongs to a cell, put quotes around the cell"
    )
    landing.write("google_spend/stacked.csv", STACKED, day=5)
    landing.write("google_spend/stacked.xlsx", as_workbook(STACKED), day=6)
    first, only = STACKED.split(",,,,,,\nAug 2025 Bing")[0], "google_spend/first table.csv"
    landing.write(only, first, day=7)
    results = {file.path: file for file in landing.load("google_spend").files}
    assert results["google_spend/stacked.csv"].message == f"line 7: {reason}"
    assert results["google_spend/stacked.xlsx"].message == f"sheet 'Sheet 1', row 7: {reason}"
    assert (results[only].status, results[only].counts.inserted, results[only].warnings) == ("loaded", 2, [])
    assert landing.rows("SELECT sum(amount) FROM raw.google_spend") == [(1100,)]
    assert landing.rows("SELECT count(*) FROM raw.rejected_rows") == [(0,)]


@pytest.mark.parametrize("form", ["csv", "xlsx"])
@pytest.mark.parametrize(
    ("source", "content", "line", "found"),
    [
        # another title, the same columns, no header
        ("payments", ONE + "\nRefunds\nP2,2,60.00,2024-11-02,Cash\n", 4, "Refunds"),
        ("payments", ONE + ",,,,\nRefunds,,,,\nP2,2,60.00,2024-11-02,Cash\n", 4, "Refunds"),
        ("google_spend", WIDE + "Bing Ads,,,\n2025-08,Gamma,5,300.00\n", 3, "Bing Ads"),
        ("google_spend", WIDE + "Total,,,800.00\nBing,,,\n2025-08,Gamma,5,300.00\n", 4, "Bing"),
        # the same header under another title
        ("google_spend", GOOGLE + GOOGLE.replace("October", "November"), 8, "Campaign report"),
        ("payments", ONE + "\nOld account\n\n" + ONE, 4, "Old account"),
        # another header: the same columns in another order, one more column, another source's, no source's
        ("payments", ONE + "Job #,Payment ID,Date,Amount\n2,P2,2024-11-02,60.00\n", 3, "Job # | Payment ID | Date | Amount"),
        ("payments", ONE + HEADER.replace("Date", "Tip,Date") + "P2,2,60.00,5.00,2024-11-02,Cash\n", 3, "Payment ID | Job # | Amount | Tip | Date | Payment Methods"),
        ("payments", ONE + "Lead ID,Time,Cost\nE1,2024-11-02,60.00\n", 3, "Lead ID | Time | Cost"),
        ("google_spend", WIDE + "Lead ID,Date,Current Status\nL1,2024-11-02,Open\n", 3, "Lead ID | Date | Current Status"),
        ("google_spend", "August 2025\nCampaign,Cost\nAlpha,800.00\nCampaign,Jul 2025\nAlpha,700.00\n", 4, "Campaign | Jul 2025"),
        ("payments", ONE + "\nTechnician,Jobs\nTess,5\n", 4, "Technician | Jobs"),
        ("jobs", SAMPLES["jobs"].replace("\r\n", "\n") + "\nBy technician\nTech,Jobs,Revenue\nTess,1,244.60\n", 8, "By technician"),
        ("calls", SAMPLES["calls"].replace("\r\n", "\n") + "\nMissed calls\n2025-12-17 10:00,(555) 010-0100\n2025-12-18 10:00,(555) 010-0101\n", 5, "Missed calls"),
    ],
)  # fmt: skip
def test_second_tables(tmp_path: Path, source: str, content: str, line: int, found: str, form: str):
    """A title or another header below the header refuses the file, and the message says where and what it is."""
    message = refusal(tmp_path, source, as_workbook(content) if form == "xlsx" else content)
    if form == "xlsx" and source == "jobs":
        # in a text, three records of the sample have two lines each
        line = 6
    place = f"line {line}" if form == "csv" else f"sheet 'Sheet 1', row {line}"
    assert message.startswith(f'export.csv: {place}: "{found}": another table; accepted: one table per file')


@pytest.mark.parametrize("form", ["csv", "xlsx"])
@pytest.mark.parametrize(
    ("below", "quarantined", "summary_lines"),
    [
        ("Total,,100.00,,\n", 0, 1),
        ("\nTotal,,100.00,,\n\nGenerated by Ann on 2024-12-01\n", 1, 1),
        ("\nGenerated by Ann on 2024-12-01\nCurrency: USD, Timezone: New York\n", 2, 0),
        ("\nNote,all amounts are gross\n", 1, 0),
        ("\n\n\nP2,2,60.00,2024-11-02,Cash\n", 0, 0),
        # records with little in them
        ("P3,,,,\nP2,2,60.00,2024-11-02,Cash\n", 1, 0),
        ("\n,3,x,2024-11-02,\nP2,2,60.00,2024-11-02,Cash\n", 1, 0),
        ("\n12\nP2,2,60.00,2024-11-02,Cash\n", 1, 0),
    ],
)
def test_what_is_no_second_table(tmp_path: Path, below: str, quarantined: int, summary_lines: int, form: str):
    """Because of totals, footers, blank rows and broken records, no other record is lost."""
    content = ONE + below
    whole = read_text(tmp_path, "payments", as_workbook(content) if form == "xlsx" else content)
    assert [row["payment_id"] for row in whole.rows] == (["P1", "P2"] if "P2" in below else ["P1"])
    assert (len(whole.rejected), whole.file.records.summary_lines) == (quarantined, summary_lines)


def test_cell_that_was_broken_into_lines(tmp_path: Path):
    """The lines of a cell without quotes are quarantined, and no other record is lost."""
    below = "the second line of a note\nand its last line,x,y\nP2,2,60.00,2024-11-02,Cash\n"
    whole = read_text(tmp_path, "payments", ONE + below)
    assert [row["payment_id"] for row in whole.rows] == ["P1", "P2"]
    assert len(whole.rejected) == 2


@pytest.mark.parametrize("source", SAMPLES)
def test_header_that_repeats(tmp_path: Path, source: str):
    """Files that were put together have the header once more: the table goes on, and the line is counted."""
    header, _, records = SAMPLES[source].partition("\r\n")
    title = ""
    if source == "google_spend":
        title, dates, header, records = SAMPLES[source].split("\r\n", 3)
        title += f"\r\n{dates}\r\n"
    once = read_text(tmp_path, source, f"{title}{header}\r\n{records}")
    content = f"{title}{header}\r\n{records}\ufeff{header},\r\n{records}\r\n{header}\r\n"
    twice = read_text(tmp_path, source, content)
    without_number = [{k: v for k, v in row.items() if k != "record_no"} for row in once.rows]
    # records of spend that repeat count once
    times = 1 if source == "google_spend" else 2
    assert [
        {k: v for k, v in row.items() if k != "record_no"} for row in twice.rows
    ] == without_number * times
    assert len(twice.rejected) == 2 * len(once.rejected)
    assert twice.file.records.summary_lines == 2 * once.file.records.summary_lines + 2
    assert "repeated the header, as in files that were put together" in twice.file.warnings[0]


def test_header_that_repeats_in_the_ledger(landing: Landing):
    """The repeated header is a summary line in the ledger, whose counts add up, and a warning names its line."""
    landing.write("payments/a.csv", ONE + HEADER + "P2,2,60.00,2024-11-02,Cash\nP3,3,x,2024-11-02,Cash\n")
    result = landing.load_one("payments")
    counts = result.counts
    assert (counts.records_read, counts.inserted, counts.quarantined, counts.summary_lines) == (4, 2, 1, 1)
    assert result.warnings == [
        "1 line (3) repeated the header, as in files that were put together; they are counted as summary lines"
    ]
    assert landing.rows("SELECT line_no, record->>'Payment ID' FROM raw.rejected_rows") == [(5, "P3")]


@pytest.mark.parametrize("piece", range(20, 140, 7))
def test_second_table_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int):
    """A title at the end of one piece and its table in the next are found, wherever the file is cut."""
    monkeypatch.setattr(csv_records, "PIECE", piece)
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.encoding.BLOCK", piece)
    for gap in ("\n", ",,,,\n", '"Total",,100.00,,\n'):
        below = f"{gap}Refunds\nP2,2,60.00,2024-11-02,Cash\n"

        assert refusal(tmp_path, "payments", ONE + below).startswith('export.csv: line 4: "Refunds"')
    noted = ONE.replace("Cash", '"two\n\nlines"')
    whole = read_text(tmp_path, "payments", noted + "Refunds\nP2,2,60.00,2024-11-02,Cash\n" + HEADER)
    assert [row["payment_id"] for row in whole.rows] == ["P1", "P2"]
    assert whole.file.records.watch.repeated_headers == [7]


@pytest.mark.parametrize("size", range(1, 6))
def test_second_table_across_blocks_of_a_workbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    """A second table is found in a workbook, too, where blank rows are only gaps between row numbers."""
    monkeypatch.setattr(csv_records, "RECORDS_PER_BLOCK", size)
    message = refusal(tmp_path, "google_spend", as_workbook(STACKED))
    assert 'row 7: "Aug 2025 Bing Campaign Performance": another table' in message
    content = ONE + "Refunds\nP2,2,60.00,2024-11-02,Cash\n" + HEADER
    whole = read_text(tmp_path, "payments", as_workbook(content))
    assert [row["payment_id"] for row in whole.rows] == ["P1", "P2"]
    assert whole.file.records.watch.repeated_headers == [5]


@pytest.mark.parametrize("form", ["csv", "xlsx"])
@pytest.mark.parametrize(
    ("source", "content", "reason"),
    [
        ("payments", "Payments\nP0,1,5.00,2024-11-01,\n" + ONE, "2: record above the header; accepted: the header above all records; move the header row to the top"),
        ("payments", '"Two\nlines"\n\nP0,1,5.00,2024-11-01,\n' + ONE, "4: record above the header"),
        ("google_spend", "August 2025,,\nAlpha,Search,800.00\nCampaign,Campaign type,Cost\nBeta,Search,300.00\n", "2: record above the header"),
        ("payments", "Payment ID,Amount,Date\nP0,5.00,2024-11-01\n\n" + ONE, '1: "Payment ID | Amount | Date": another table'),
        ("payments", "Month,Campaign,Cost\n2024-11,A,5.00\n\n" + ONE, '1: "Month | Campaign | Cost": another table'),
    ],
)  # fmt: skip
def test_records_above_the_header(tmp_path: Path, source: str, content: str, reason: str, form: str):
    """A header that was sorted into its records, or that comes after another table, does not lose what is above it."""
    if form == "xlsx" and "Two" in content:
        reason = reason.replace("4: ", "3: ")
    message = refusal(tmp_path, source, as_workbook(content) if form == "xlsx" else content)
    place = "line " if form == "csv" else "sheet 'Sheet 1', row "
    assert message.startswith(f"export.csv: {place}{reason}")


@pytest.mark.parametrize(
    "above",
    [
        "Payments\nNovember 2024\n\n",
        "Payments,,,,\nTotal,,100.00,,\n\n",
        "Filter,Status: all\nMethod,Amount\nCash,100.00\n\n",
        "Payment,report,of,all,methods\n",
        "sep=,\n",
    ],
)
def test_what_may_be_above_the_header(tmp_path: Path, above: str):
    """Titles, filters, totals and small summaries above the header do no harm."""
    assert [row["amount"] for row in read_text(tmp_path, "payments", above + ONE).rows] == ["100.00"]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_no_header_can_be_a_record(source: Source):
    """A header below the header is found because it is no record: it has no date or number where each record needs one."""
    kinds: tuple[type[Any], ...] = (CalendarDay, Micros, Money, When, WholeNumber)
    assert any(
        column.required and column.not_null and isinstance(column.kind, kinds) for column in source.columns
    )


def test_sample_exports_have_one_table(tmp_path: Path):
    """No sample of a real export is taken for two tables, as text or as a workbook."""
    for source, text in SAMPLES.items():
        assert read_text(tmp_path, source, text).file.records.watch.repeated_headers == []
        path = tmp_path / "export.xlsx"
        path.write_bytes(as_workbook(text))
        assert read(path, source).rows
