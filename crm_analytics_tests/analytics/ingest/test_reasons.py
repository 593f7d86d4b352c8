"""Reasons as data: their text, which Python and SQL render alike, and what the quarantine stores."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, quotable
from crm_analytics_tests.analytics.ingest.landing_folder import CALLS, ELOCALS, Landing, text

REASONS = {
    'Amount "12 bucks": not a number; accepted: 1234.50': Reason(
        "not_a_number", "Amount", "12 bucks", "1234.50"
    ),
    'Payment ID "": blank; accepted: a value': Reason("blank", "Payment ID", "", "a value"),
    "From number: too long; accepted: at most 1000 characters": Reason(
        "too_long", "From number", accepted="at most 1000 characters"
    ),
    '"6 cells": wrong number of cells; accepted: 5 cells': Reason(
        "wrong_number_of_cells", found="6 cells", accepted="5 cells"
    ),
    "empty file": Reason("empty_file"),
    "damaged workbook; save it as CSV": Reason("damaged_workbook", remedy="save it as CSV"),
    r'Notes "a \"b\"\n\t\\ \u0001 é €": blank; accepted: x; y': Reason(
        "blank", "Notes", 'a "b"\n\t\\ \x01 é €', "x", "y"
    ),
}


@pytest.mark.parametrize(("expected", "reason"), REASONS.items())
def test_python_and_sql_render_the_same_text(expected: str, reason: Reason, landing: Landing):
    """The rule is written in both languages; if they differed, the panel and the command line would disagree."""
    assert str(reason) == expected
    rendered = landing.connection.execute("SELECT raw.reason_text(%s)", [Jsonb(reason.as_dict())]).fetchone()
    assert rendered == (expected,)
    assert Reason(**reason.as_dict()) == reason


def test_refused_file_names_file_place_and_every_reason():
    """The message is complete by itself, because it is all that the ledger and the alerts show."""
    refused = RefusedFile("a.csv", Reason("empty_file"), Reason("web_page"), place="line 4")
    assert str(refused) == "a.csv: line 4: empty file; web page"
    assert refused.why == "line 4: empty file; web page"
    assert str(RefusedFile("a.csv", Reason("empty_file"))) == "a.csv: empty file"


def test_long_cells_are_cut():
    """A reason gives the length of a cell that it cuts, which tells what is wrong with it."""
    assert quotable("x" * 80) == "x" * 80
    assert quotable("x" * 1234) == f"{'x' * 80}… (1,234 characters)"


@pytest.mark.parametrize("reasons", [[], {}, "blank", [{"column": "Amount"}], ["blank"]])
def test_quarantine_takes_only_reasons(reasons: object, landing: Landing):
    """A record without a reason, or with one that has no code, never enters the quarantine."""
    landing.write("calls/1.csv", text(CALLS, []))
    landing.load("calls")
    with pytest.raises(psycopg.errors.CheckViolation, match="rejected_rows_reasons"):
        landing.connection.execute(
            "INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, reasons, record)"
            " SELECT file_id, 'calls', 1, 2, %s, '{}' FROM raw.source_files",
            [Jsonb(reasons)],
        )


def test_personal_data_is_left_out(landing: Landing):
    """A reason about a telephone number or a name names the column only; the record itself has the cell."""
    number = "5" * 1001
    landing.write(
        "calls/1.csv",
        text(CALLS, [("Ann", number, "", "(555) 010-0199", "2024-11-02 10:00", "", "Tess", "x")]),
    )
    landing.load("calls")
    ((line, reasons, record),) = landing.rows("SELECT line_no, reasons, record FROM raw.rejected_rows")
    assert line == 2
    assert reasons == [
        {"code": "too_long", "column": CALLS[1], "accepted": "at most 1000 characters"},
        Reason("not_a_duration", CALLS[-1], "x", reasons[1]["accepted"]).as_dict(),
    ]
    assert record[CALLS[1]] == number


def test_personal_data_is_left_out_of_conflicts(landing: Landing):
    """Two records of a lead with different callers conflict without quoting the numbers; other columns are quoted."""
    rows = [("A", "2025-01-05 10:21:17", "", cost, "", f"(555) 010-01{cost}") for cost in ("10", "11")]
    landing.write("elocals_leads/1.csv", text(ELOCALS, rows))
    landing.load("elocals_leads")
    conflict = {"code": "conflicting_records", "accepted": "identical records, or one"}
    expected = [conflict | {"column": "Cost", "found": "10.00 | 11.00"}, conflict | {"column": "Caller ID"}]
    assert landing.rows("SELECT reasons FROM raw.rejected_rows") == [(expected,), (expected,)]
