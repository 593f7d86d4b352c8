"""Calls that went through a spreadsheet: durations turned from mm:ss into hh:mm, seconds dropped, rows sorted."""

from __future__ import annotations

import io
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from crm_analytics_tests.analytics.ingest.landing_folder import Landing
from crm_analytics_tests.analytics.ingest.samples import Whole, read, read_text

HEADER = ("From", "From number", "To", "To number", "Time", "Flow", "Answered", "Job ID", "Duration")
EXPORTED = """\
From,From number,To,To number,Time,Flow,Answered,Job ID,Duration
A,(999) 999-0001,B,(999) 999-0002,2025-11-03 09:00:00,GoogleAds,Eve,,3:25
A,(999) 999-0003,B,(999) 999-0002,2025-11-03 09:05:00,GoogleAds,Eve,,75:10
"""
#: 3:25 is three hours and 25 minutes to a spreadsheet, and 75:10 more than three days.
HOURS = [(time(3, 25), "h:mm"), (timedelta(days=3, hours=3, minutes=10), "[hh]:mm:ss")]


def workbook(*durations: tuple[object, str]) -> bytes:
    """Returns the export as a spreadsheet saves it, with these durations and their number formats."""
    book = Workbook()
    sheet: Any = book.active
    sheet.append(HEADER)
    for number, (value, number_format) in enumerate(durations):
        at = datetime(2025, 11, 3, 9, 5 * number)
        sheet.append(
            [
                "A",
                f"(999) 999-000{2 * number + 1}",
                "B",
                "(999) 999-0002",
                at,
                "GoogleAds",
                "Eve",
                None,
                value,
            ]
        )
        sheet.cell(sheet.max_row, len(HEADER)).number_format = number_format
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def csv(
    *durations: str, times: tuple[str, ...] = ("11/3/2025 9:00", "11/3/2025 9:05"), delimiter: str = ","
) -> str:
    """Returns the export as a spreadsheet saves it as CSV, with these durations."""
    rows = [
        (
            "A",
            f"(999) 999-000{2 * number + 1}",
            "B",
            "(999) 999-0002",
            times[number % len(times)],
            "GoogleAds",
            "Eve",
            "",
            cell,
        )
        for number, cell in enumerate(durations)
    ]
    return "".join(delimiter.join(row) + "\n" for row in (HEADER, *rows))


def seconds(whole: Whole) -> list[int | None]:
    return [row["duration_seconds"] for row in whole.rows]


CALLS = [("(999) 999-0001", 205), ("(999) 999-0003", 4510)]


@pytest.mark.parametrize("first", ["export", "spreadsheet"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("calls_saved_in_excel.xlsx", workbook(*HOURS)),
        ("calls.xlsx", workbook(HOURS[0], (timedelta(days=3, hours=3, minutes=10), "h:mm"))),
        ("calls.csv", csv("3:25", "75:10:00")),
        ("calls.csv", csv("03:25:00", "75:10:00")),
        (
            "calls.csv",
            csv("03:25", "75:10:00", times=("03.11.2025 09:00", "03.11.2025 09:05"), delimiter=";"),
        ),
    ],
)
def test_saved_in_a_spreadsheet(landing: Landing, first: str, name: str, content: bytes | str) -> None:
    """A spreadsheet's copy of an export brings no other calls and no other durations, whichever comes first."""
    spreadsheet_day, export_day = (6, 5) if first == "export" else (5, 6)
    landing.write(f"calls/{name}", content, day=spreadsheet_day)
    landing.write("calls/calls_as_exported.csv", EXPORTED, day=export_day)
    totals = landing.load("calls").totals
    assert (totals.inserted, totals.updated, totals.unchanged) == (2, 0, 2)
    assert landing.rows("SELECT from_number, duration_seconds FROM raw.calls ORDER BY 1") == CALLS


@pytest.mark.parametrize(
    "number", ["+1 (999) 999-0001", "+19999990001", "19999990001", "999.999.0001", "9999990001"]
)
def test_a_number_in_another_form(landing: Landing, number: str) -> None:
    """A spreadsheet takes +19999990001 for a number, and a tool can change its form: the calls stay the same ones."""
    landing.write("calls/a.csv", EXPORTED, day=5)
    landing.write("calls/b.csv", EXPORTED.replace("(999) 999-0001", number), day=6)
    assert landing.load("calls").totals.inserted == 2
    other = EXPORTED.replace("(999) 999-0001", "(999) 999-0009").replace("(999) 999-0003", "Anonymous")
    landing.write(
        "calls/c.csv", other + other.splitlines()[-1].replace("Anonymous", "Restricted") + "\n", day=7
    )
    assert landing.load("calls").totals.inserted == 3


def test_reading_hours_as_minutes_is_a_warning(landing: Landing) -> None:
    """The ledger says that durations were read otherwise than they are written, and why."""
    landing.write("calls/calls.xlsx", workbook(*HOURS))
    landing.load("calls")
    assert landing.rows("SELECT warnings FROM raw.source_files") == [
        (
            [
                "the durations of Duration with hours have no seconds (the longest is 75:10:00 in line 3), so they were"
                " read as minutes and seconds, which a spreadsheet took for hours and minutes"
            ],
        )
    ]


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([(time(0, 45), "h:mm"), (time(0, 0), "h:mm")], [45, 0]),  # short, but shown without seconds
        ([(time(0, 45), "hh:mm;@"), (time(1, 2), "h:mm:ss")], [45, 62]),
        ([(time(0, 3, 25), "h:mm"), (time(0, 45), "h:mm")], [205, 2700]),  # these are real durations
        ([(time(0, 3, 25), "mm:ss"), (timedelta(hours=1, minutes=15, seconds=10), "[h]:mm:ss")], [205, 4510]),
        ([("3 Min 25 Sec", "General"), ("75:10", "@")], [205, 4510]),
        ([(205, "General"), (4510, "0")], [205, 4510]),
    ],
)
def test_durations_of_a_workbook(
    tmp_path: Path, durations: list[tuple[object, str]], expected: list[int]
) -> None:
    """A duration that its cell shows without seconds is read as minutes and seconds, unless it has seconds."""
    path = tmp_path / "calls.xlsx"
    path.write_bytes(workbook(*durations))
    assert seconds(read(path, "calls")) == expected


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        (["1:15:10", "3:25", "2:00:00"], [4510, 205, 7200]),  # seconds prove hours
        (["2:00:00"], [120]),
        (["3:25", "2:10:00"], [205, 7800]),  # a spreadsheet adds seconds only from 24 hours on
        (["1:59:00"], [7140]),
        (["3:25", "75:10"], [205, 4510]),
        (["5 Hours 3 Min", "2 Min"], [18180, 120]),  # no spreadsheet changes words
        (["14400", "60"], [14400, 60]),
    ],
)
def test_durations_of_a_text_file(tmp_path: Path, durations: list[str], expected: list[int]) -> None:
    """Hours without a single second are minutes if a conversation can't have lasted so long."""
    assert seconds(read_text(tmp_path, "calls", csv(*durations))) == expected


def test_durations_that_may_be_either(tmp_path: Path) -> None:
    """Durations that are whole minutes and possible are taken as they are, with a warning."""
    whole = read_text(tmp_path, "calls", csv("0:45:00", "1:10:00"))
    assert seconds(whole) == [2700, 4200]
    assert whole.file.warnings == [
        "the durations of Duration with hours have no seconds (the longest is 1:10:00 in line 3); if a spreadsheet took"
        " minutes and seconds for hours and minutes, load the file as it was exported"
    ]


def test_calls_of_one_minute(landing: Landing) -> None:
    """Calls of the same numbers and minute keep their keys in a file that is sorted otherwise or lacks the seconds."""
    calls = [
        ("A", "1", "B", "2", "2025-11-03 09:00:50", "GoogleAds", "Eve", "", "0:20"),
        ("A", "1", "B", "2", "2025-11-03 09:00:10", "eLocals", "Ann", "", "0:30"),
        ("A", "1", "B", "2", "2025-11-03 09:01:00", "eLocals", "Ann", "", "0:20"),
    ]
    lines = [",".join(row) + "\n" for row in (HEADER, *calls)]
    landing.write("calls/a.csv", "".join(lines), day=5)
    assert landing.load("calls").totals.inserted == 3
    landing.write("calls/b.csv", "".join([lines[0], *lines[:0:-1]]), day=6)
    assert landing.load("calls").totals.unchanged == 3
    landing.write(
        "calls/c.csv", "".join(lines).replace("09:00:50", "09:00").replace("09:00:10", "09:00"), day=7
    )
    totals = landing.load("calls").totals
    assert (totals.inserted, totals.updated, totals.unchanged) == (0, 2, 1)
    flows = landing.rows("SELECT flow, count(*), sum(duration_seconds) FROM raw.calls GROUP BY 1")
    assert sorted(flows) == [("GoogleAds", 1, 20), ("eLocals", 2, 50)]


def test_duration_that_changes(landing: Landing) -> None:
    """A corrected duration updates its call instead of adding another one."""
    landing.write("calls/a.csv", EXPORTED, day=5)
    landing.write("calls/b.csv", EXPORTED.replace("3:25", "3:26"), day=6)
    totals = landing.load("calls").totals
    assert (totals.inserted, totals.updated, totals.unchanged) == (2, 1, 1)
