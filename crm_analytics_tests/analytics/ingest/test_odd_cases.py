"""Odd files and odd records, case by case, on real files: what reading decides.

What loading decides (repeats, conflicts, newer and older exports, unknown jobs) is tested in test_load_records.py and
test_load_order.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics_tests.analytics.ingest.samples import (
    SAMPLES,
    Whole,
    day,
    read,
    read_text,
    utc,
    workbook_bytes,
)

HEADER = "Payment ID,Job #,Amount,Date,Payment Methods\n"
PAYMENTS = HEADER + "P1,1,100.00,2024-11-01,Café\nP2,2,-60.00,2024-11-09,\n"


def amounts(whole: Whole) -> list[tuple[str, str]]:
    return [(row["payment_id"], row["amount"]) for row in whole.rows]


SOUND = [("P1", "100.00"), ("P2", "-60.00")]


def refusal(folder: Path, source: str, content: str | bytes) -> str:
    with pytest.raises(RefusedFile) as refused:
        read_text(folder, source, content)
    message = str(refused.value)
    assert message.startswith("export.csv: ")
    return message


# BOM, CRLF/LF mixed, `;` or tab, quoted newlines, cp1252, UTF-16


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (PAYMENTS.encode(), "utf-8"),
        (PAYMENTS.encode("utf-8-sig"), "utf-8"),
        (PAYMENTS.replace("\n", "\r\n").encode(), "utf-8"),
        (PAYMENTS.replace("\n", "\r\n", 2).encode(), "utf-8"),
        (PAYMENTS.replace("\n", "\r").encode(), "utf-8"),
        (PAYMENTS.removesuffix("\n").encode(), "utf-8"),
        (PAYMENTS.replace(",", ";").encode(), "utf-8"),
        (PAYMENTS.replace(",", "\t").encode(), "utf-8"),
        (PAYMENTS.replace(",", "|").encode(), "utf-8"),
        (("sep=;\n" + PAYMENTS.replace(",", ";")).encode(), "utf-8"),
        (PAYMENTS.encode("utf-16"), "utf-16"),
        (PAYMENTS.encode("utf-16-le"), "utf-16-le"),
        (PAYMENTS.encode("utf-16-be"), "utf-16-be"),
        (PAYMENTS.encode("cp1252"), "cp1252"),
    ],
)
def test_encodings_delimiters_and_line_ends(tmp_path: Path, content: bytes, encoding: str):
    """No encoding, delimiter or line end of ordinary programs changes a value."""
    whole = read_text(tmp_path, "payments", content)
    assert amounts(whole) == SOUND
    assert whole.rows[0]["method"] == "Café"
    assert whole.file.encoding == encoding
    assert [warning for warning in whole.file.warnings if "cp1252" in warning] == whole.file.warnings
    assert bool(whole.file.warnings) == (encoding == "cp1252")


def test_quoted_newlines(tmp_path: Path):
    """A quoted newline belongs to its cell: records are counted, not lines."""
    whole = read_text(
        tmp_path, "payments", HEADER + 'P1,1,100.00,2024-11-01,"a\r\nb, ""c"""\nP2,2,-60.00,2024-11-09,\n'
    )
    assert amounts(whole) == SOUND
    assert whole.rows[0]["method"] == 'a\nb, "c"'
    assert [row["record_no"] for row in whole.rows] == [1, 2]


# unknown, reordered, missing optional columns


def test_unknown_reordered_and_missing_columns(tmp_path: Path):
    """Unknown, reordered and missing optional columns do no harm, since exports change without notice."""
    whole = read_text(tmp_path, "payments", "Tip,DATE,amount_paid,Job Number\n5,2024-11-01,100.00,1\n")
    assert [(row["amount"], row["job_ref"], row["method"], row["status"]) for row in whole.rows] == [
        ("100.00", "1", None, None)
    ]
    assert whole.file.mapping == {"job_number": "Job Number", "paid_at": "DATE", "amount": "amount_paid"}
    assert whole.file.located.match.unknown == ["Tip"]


# required column missing, two columns for one canonical name, HTML page, empty file, unreadable


def test_required_column_missing(tmp_path: Path):
    """A missing column is refused with what is missing, what is accepted and what was found."""
    message = refusal(tmp_path, "payments", "Payment ID,Amount,Date\nP1,1.00,2024-11-01\n")
    assert "missing columns; accepted: one of job_uuid or job_number or job_id (Job UUID" in message
    assert '"Payment ID, Amount, Date": missing columns' in message
    message = refusal(tmp_path, "jobs", "UUID,Job Type,Source\nAB12CD,COD Service,NSA\n")
    assert "missing columns; accepted: created_at (Created, CreatedDate, Created At, created_at)" in message


def test_two_columns_for_one_name(tmp_path: Path):
    """Two columns for one name are refused: choosing one would be a guess about money."""
    message = refusal(tmp_path, "payments", "Job #,Amount,Amount Paid,Date\n1,1.00,2.00,2024-11-01\n")
    assert 'amount "Amount and Amount Paid": repeated column; accepted: one of them' in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty file"),
        (b"\xef\xbb\xbf \r\n\r\n", "empty file"),
        (b"\n" * 1000, "empty file"),
        (b"\r\n<!DOCTYPE html><html><body>Sign in", "web page"),
        (b"a\x00b" + b"x" * 100, "byte 2: nul character in text"),
        (b"Job #,Amount,Date\n1,2,\x81\n", "neither UTF-8 nor valid cp1252"),
        (PAYMENTS.encode("utf-16")[:-1], "neither UTF-8 nor valid utf-16"),
        (
            b"P1,1,100.00,2024-11-01\n",
            '"P1 | 1 | 100.00 | 2024-11-01": no header row; accepted: payments of jobs with a header in the first 30',
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, problem: str):
    """A file that cannot be read is refused as a whole, and the message names what is accepted."""
    message = refusal(tmp_path, "payments", content)
    assert problem in message
    assert "accepted" in message


# a quote that never closes


def test_quote_that_never_closes(tmp_path: Path):
    """A quote that never closes is refused at the record where it opens: the rest would be one cell."""
    message = refusal(tmp_path, "payments", PAYMENTS + 'P3,3,"5.00,2024-11-02,\nP4,4,6.00,2024-11-02,\n')
    assert "line 4, record 3: quote never closes" in message


def test_stray_quote(tmp_path: Path):
    """A stray quote costs its own record, not those after it."""
    whole = read_text(
        tmp_path,
        "payments",
        HEADER
        + 'P0,1,5.00,2024-11-02,"Cash\n'
        + PAYMENTS.split("\n", 1)[1]
        + 'P3,3,7.00,2024-11-02,"a, b"\n',
    )
    assert amounts(whole) == [*SOUND, ("P3", "7.00")]
    assert "line 2: text after a closing quote; accepted: quotes around the whole cell" in whole.reasons


# preamble, `Total`, `Total: …`, `Grand total`


def test_preamble_and_summary_lines(tmp_path: Path):
    """Totals are not records, wherever they are written."""
    content = "Payments of November\n\n" + PAYMENTS + "Total,,40.00,,\nGrand total:,,40.00\n"
    whole = read_text(tmp_path, "payments", content)
    assert amounts(whole) == SOUND
    assert (whole.file.records.read, whole.file.records.summary_lines, whole.file.warnings) == (4, 2, [])


def test_what_only_looks_like_a_summary_line(tmp_path: Path):
    """A record with a date is a record, and a campaign may be called Total something."""
    whole = read_text(
        tmp_path, "payments", "Client,Job #,Amount,Date\nTotal,1,5.00,2024-11-02\n,,,\nTotally Ltd,2,6.00,\n"
    )
    assert len(whole.rows) == 1
    assert whole.file.records.summary_lines == 0
    assert 'line 4: Date "": blank' in whole.reasons
    spend = read_text(
        tmp_path,
        "google_spend",
        "Campaign,Month,Cost\nTotal,2025-10,5.00\nTotal search,2025-10,6.00\nTotal,,11.00\n",
    )
    assert [row["campaign"] for row in spend.rows] == ["Total", "Total search"]
    assert spend.file.records.summary_lines == 1


# missing key


def test_missing_key(tmp_path: Path):
    """A blank id is quarantined; without an id column, the loader makes the key."""
    whole = read_text(tmp_path, "payments", PAYMENTS + ",3,5.00,2024-11-02,\n")
    assert amounts(whole) == SOUND
    assert whole.reasons == 'line 4: Payment ID "": blank; accepted: a value'
    assert whole.rejected[0].key is None
    none = read_text(tmp_path, "payments", "Job #,Amount,Date\n3,5.00,2024-11-02\n3,5.00,2024-11-02\n")
    assert [row["payment_id"] for row in none.rows] == [None, None]
    leads = read_text(tmp_path, "elocals_leads", SAMPLES["elocals_leads"].replace("E2", "null"))
    assert 'Unique ID "null": blank' in leads.reasons


# job number `3504` / `003504`; id in a spreadsheet's scientific notation


def test_padding_and_scientific_notation(tmp_path: Path):
    """Padding is stripped from numbers only; an id that a spreadsheet has rounded is lost, not guessed."""
    header = "Job #,UUID,Job Type,Source,Created\n"
    whole = read_text(
        tmp_path,
        "jobs",
        header
        + "3504,12E345,a,b,2024-11-01\n003504,001234,a,b,2024-11-01\n1.2E+05,AB12CD,a,b,2024-11-01\n7,1.2E+05,a,b,2024-11-01\n",
    )
    assert [(row["job_number"], row["job_id"]) for row in whole.rows] == [
        ("3504", "12E345"),
        ("3504", "001234"),
    ]
    assert whole.rejected[0].key == "AB12CD"
    assert 'line 4: Job # "1.2E+05": id turned into a number by a spreadsheet' in whole.reasons
    assert 'line 5: UUID "1.2E+05": id turned into a number by a spreadsheet' in whole.reasons


def test_ids_in_a_workbook(tmp_path: Path):
    """A spreadsheet's own numbers are whole numbers again; its rounded text is refused."""
    path = tmp_path / "payments.xlsx"
    rows: list[list[object]] = [
        ["Payment ID", "Job #", "Amount", "Date"],
        [71.0, "003504", -20, "2024-11-01"],
        ["1.2E+05", 1, 5, "2024-11-01"],
        [1e21, 1, 5, "2024-11-01"],
    ]
    path.write_bytes(workbook_bytes(rows))
    whole = read(path, "payments")
    assert [(row["payment_id"], row["job_number_ref"], row["amount"]) for row in whole.rows] == [
        ("71", "3504", "-20")
    ]
    assert whole.reasons.count("id turned into a number by a spreadsheet") == 2


# money


def test_money_forms(tmp_path: Path):
    """Every accepted form of money is read to the cent, in quotes if it needs them."""
    forms = ['"$1,234.50"', "(20.00)", "-$20.00", "−20", "20-", "\u00a020.00\u00a0"]
    content = HEADER + "".join(f"P{number},1,{form},2024-11-01,\n" for number, form in enumerate(forms))
    whole = read_text(tmp_path, "payments", content)
    assert [row["amount"] for row in whole.rows] == ["1234.50", "-20.00", "-20.00", "-20", "-20", "20.00"]


@pytest.mark.parametrize(
    ("amount", "code"),
    [
        ('"1.234,50"', "ambiguous_decimal_separator"),
        ("NaN", "not_a_number"),
        ("Infinity", "not_a_number"),
        ("1.005", "too_many_decimals"),
        ("99999999999", "too_large"),
        ("", "blank"),
        ("--", "blank"),
        ("N/A", "blank"),
        ("null", "blank"),
    ],
)
def test_unclear_money_is_quarantined(tmp_path: Path, amount: str, code: str):
    """Unclear money is quarantined, never 0, rounded or guessed; the records around it are loaded."""
    whole = read_text(tmp_path, "payments", PAYMENTS + f"P3,3,{amount},2024-11-02,Cash\n")
    assert amounts(whole) == SOUND
    (rejected,) = whole.rejected
    assert (rejected.as_found[:2], rejected.key) == ((3, 4), "P3")
    (reason,) = rejected.reasons
    assert (reason.code, reason.column, reason.found) == (code, "Amount", amount.strip('"'))
    assert reason.accepted
    assert rejected.as_found.record == {
        "Payment ID": "P3", "Job #": "3", "Amount": amount.strip('"'), "Date": "2024-11-02", "Payment Methods": "Cash",
    }  # fmt: skip


def test_blank_money_is_null_where_it_may_be(tmp_path: Path):
    """Blank money is NULL where it may be blank: a lead without a cost yet is not a free lead."""
    content = "Unique ID,Time,Cost\nE1,2024-11-01,\nE2,2024-11-01,--\nE3,2024-11-01,0\n"
    whole = read_text(tmp_path, "elocals_leads", content)
    assert [row["cost"] for row in whole.rows] == [None, None, "0"]


# dates


def test_numeric_dates_follow_the_declared_order(tmp_path: Path):
    """11/02 is November 2; what is no date in any order is quarantined (for other orders, see test_conventions.py)."""
    whole = read_text(tmp_path, "payments", HEADER + "P1,1,1.00,11/02/2024,\nP2,1,1.00,13/13/2024,\n")
    assert [row["paid_date"] for row in whole.rows] == [day("2024-11-02")]
    assert 'line 3: Date "13/13/2024": not a valid date; accepted: a date' in whole.reasons
    assert "11/15/2024 (month first)" in whole.reasons


def test_offsets_are_converted(tmp_path: Path):
    """The date is the business timezone's, whatever offset the time has."""
    whole = read_text(
        tmp_path,
        "payments",
        HEADER + "P1,1,1.00,2024-11-01T03:30:00Z,\nP2,1,1.00,2024-10-31 23:30:00 -0700,\n",
    )
    assert [(row["paid_at"], row["paid_date"]) for row in whole.rows] == [
        (utc(2024, 11, 1, 3, 30), day("2024-10-31")),
        (utc(2024, 11, 1, 6, 30), day("2024-11-01")),
    ]
    assert whole.file.records.dst_ambiguous == 0


def test_ambiguous_times_are_counted(tmp_path: Path):
    """Ambiguous local times follow a fixed rule, and a warning counts their records."""
    whole = read_text(
        tmp_path,
        "payments",
        HEADER
        + "P1,1,1.00,2024-11-03 01:30:00,\nP2,1,1.00,2024-03-10 02:30:00,\nP3,1,x,2024-03-10 02:30:00,\n",
    )
    assert [row["paid_at"] for row in whole.rows] == [utc(2024, 11, 3, 5, 30), utc(2024, 3, 10, 7, 30)]
    assert whole.file.records.dst_ambiguous == 2
    assert whole.file.warnings[0].startswith(
        "2 records with local times that daylight saving shows twice or skips"
    )


@pytest.mark.parametrize("written", ["2024-02-30", "", "null", "1999-12-31", "2101-01-01", "someday"])
def test_impossible_dates(tmp_path: Path, written: str):
    """An impossible date is quarantined, never replaced by today's and never dropped."""
    whole = read_text(tmp_path, "payments", PAYMENTS + f"P3,3,1.00,{written},\n")
    assert amounts(whole) == SOUND
    assert whole.reasons.startswith(f'line 4: Date "{written}": ')


@pytest.mark.parametrize("zero", ["0000-00-00", "0000-00-00 00:00:00", "00/00/0000"])
@pytest.mark.parametrize("form", ["csv", "xlsx"])
def test_zero_dates(tmp_path: Path, zero: str, form: str):
    """A zero date means no date: NULL where there may be none, and quarantined with that reason where one is needed."""

    def content(text: str) -> str | bytes:
        return workbook_bytes([row.split(",") for row in text.splitlines()]) if form == "xlsx" else text

    header = "UUID,Job Type,Source,Created,Job Date,Job End\n"
    jobs = read_text(
        tmp_path,
        "jobs",
        content(f"{header}A1,a,b,2024-11-01,{zero},{zero}\nA2,a,b,{zero},2024-11-01,2024-11-01\n"),
    )
    assert [(row["job_id"], row["scheduled_at"], row["ended_at"]) for row in jobs.rows] == [
        ("A1", None, None)
    ]
    assert jobs.reasons == f'line 3: Created "{zero}": zero date means no date; accepted: a value'
    payments = read_text(tmp_path, "payments", content(f"{PAYMENTS}P3,3,1.00,{zero},Cash\n"))
    assert amounts(payments) == SOUND
    assert payments.reasons == f'line 4: Date "{zero}": zero date means no date; accepted: a value'
    spend = read_text(tmp_path, "google_spend", content(f"Day,Cost\n2024-11-01,1.00\n{zero},2.00\n"))
    assert [row["amount"] for row in spend.rows] == ["1.00"]
    assert spend.reasons == f'line 3: Day "{zero}": zero date means no date; accepted: the day of the spend'


# cells that a spreadsheet would execute


def test_formulas_are_text(tmp_path: Path):
    """A formula in a CSV file stays text; it is neither computed nor stripped."""
    whole = read_text(
        tmp_path,
        "jobs",
        'UUID,Job Type,Source,Created,Tech\nAB12CD,=1+1,@SUM(A1),2024-11-01,"=HYPERLINK(""x"")"\n',
    )
    row = whole.rows[0]
    assert (row["type"], row["source"], row["technician"]) == ("=1+1", "@SUM(A1)", '=HYPERLINK("x")')


# one bad record never drops the records around it


def test_records_of_another_width(tmp_path: Path):
    """A record with too many or too few cells is quarantined with all of them; the others are loaded."""
    whole = read_text(
        tmp_path, "payments", PAYMENTS + "P3,3,1,000.00,2024-11-02,Cash\nP4,4\nP5,5,2.00,2024-11-02,,,\n"
    )
    assert amounts(whole) == [*SOUND, ("P5", "2.00")]
    assert whole.reasons.split("\n") == [
        'line 4: "6 cells": wrong number of cells; accepted: 5 cells, as in the header',
        'line 5: "2 cells": wrong number of cells; accepted: 5 cells, as in the header',
    ]
    assert whole.rejected[0].as_found.record["(column 6)"] == "Cash"


@pytest.mark.parametrize("ending", ["", ",", ",,"])
def test_header_line_that_ends_with_a_comma(tmp_path: Path, ending: str):
    """Records may lack a last column without a name: otherwise all of them would be refused."""
    whole = read_text(tmp_path, "targets", f"month,target_repairs,\n2025-10,1{ending}\n2025-11,2{ending}\n")
    assert [row["target_repairs"] for row in whole.rows] == [1, 2]
    assert whole.rejected == []
    short = read_text(tmp_path, "targets", "month,target_repairs,,x,\n2025-10,1,,\n2025-11,2,\n")
    assert [rejected.as_found.record_no for rejected in short.rejected] == [2]


def test_all_reasons_of_a_record(tmp_path: Path):
    """A record with several faults has a reason for each, so that one correction is enough."""
    whole = read_text(tmp_path, "payments", HEADER + ",1.2E+05,x,y,\n")
    assert [reason.column for reason in whole.rejected[0].reasons] == [
        "Payment ID",
        "Job #",
        "Amount",
        "Date",
    ]


def test_blank_rows_are_not_records(tmp_path: Path):
    """Blank rows, which spreadsheets export, are neither records nor faults."""
    whole = read_text(tmp_path, "payments", PAYMENTS.replace("P2", ",,,,\n\n , ,\u00a0,,\nP2"))
    assert amounts(whole) == SOUND
    assert [row["record_no"] for row in whole.rows] == [1, 2]
    assert whole.file.records.read == 2


def test_header_without_records(tmp_path: Path):
    """A header without records is loaded with a warning."""
    assert read_text(tmp_path, "payments", HEADER).file.warnings == ["the file has a header but no records"]
