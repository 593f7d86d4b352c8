"""Files apply in the order of their export, in whatever order they arrive (docs/decisions/late-files.md)."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics_tests.analytics.ingest.landing_folder import ELOCALS, JOBS, PAYMENTS, Landing, job, text

SPEND = ("Month", "Campaign", "Amount")


def _lead(key: str, cost: str) -> tuple[str, ...]:
    return (key, "2025-01-05 10:21:17 -0500", "01:10", cost, "ok", "")


#: Per source: files by day of export, and what the tables say then, worked out by hand.
EXPORTS: dict[str, tuple[dict[int, str], str, list[tuple[Any, ...]]]] = {
    "elocals_leads": (
        {
            1: text(ELOCALS, [_lead("A", "10"), _lead("B", "20"), _lead("D", "1")]),
            2: text(ELOCALS, [_lead("A", "11"), _lead("C", "30")]),
            # B: a conflict, so the older version counts; D: not readable, so the older version counts
            3: text(ELOCALS, [_lead("A", "12"), _lead("B", "21"), _lead("B", "22"), _lead("D", "1.234,50")]),
            4: text(ELOCALS, [_lead("C", "31"), _lead("C", "31"), _lead("E", "5")]),
        },
        "SELECT lead_id, cost FROM raw.elocals_leads ORDER BY 1",
        [
            ("A", Decimal("12.00")),
            ("B", Decimal("20.00")),
            ("C", Decimal("31.00")),
            ("D", Decimal("1.00")),
            ("E", Decimal("5.00")),
        ],
    ),
    "google_spend": (
        {
            1: text(
                SPEND, [("2024-10", "Ovens", "100"), ("2024-10", "Fridges", "50"), ("2024-09", "Ovens", "9")]
            ),
            2: text(SPEND, [("2024-10", "Ovens", "110"), ("2024-11", "Ovens", "7")]),
            3: text(SPEND, [("2024-10", "Ovens 2", "111"), ("2024-12", "Ovens", "3")]),
        },
        "SELECT month, campaign, amount FROM raw.google_spend ORDER BY 1, 2",
        [
            (date(2024, 9, 1), "Ovens", Decimal("9.00")),
            (date(2024, 10, 1), "Ovens 2", Decimal("111.00")),
            (date(2024, 11, 1), "Ovens", Decimal("7.00")),
            (date(2024, 12, 1), "Ovens", Decimal("3.00")),
        ],
    ),
    "google_spend with quarantined records": (
        {
            1: text(
                SPEND, [("2024-10", "Brand", "1"), ("2024-10", "Generic", "NaN"), ("2024-10", "Old", "5")]
            ),
            2: text(
                SPEND,
                [
                    ("2024-10", "Brand", "1000"),
                    ("2024-10", "Generic", "3000"),
                    ("2024-11", "Brand", "7"),
                    ("2024-09", "Brand", "1"),
                    ("2024-09", "Generic", "2.0.0"),
                ],
            ),
            3: text(
                SPEND,
                [
                    ("2024-10", "Brand", "1100"),
                    ("2024-10", "Generic", "3.000,50"),
                    ("2024-12", "Brand", "3"),
                    ("2024-09", "Brand", "--"),
                    ("2024-09", "Generic", "4"),
                ],
            ),
            4: text(
                SPEND, [("2024-11", "Brand", "8"), ("no month", "Generic", "9"), ("2024-12", "New", "4")]
            ),
        },
        "SELECT month, campaign, amount, complete_month FROM raw.google_spend ORDER BY 1, 2",
        [
            # no file has all of September: of each campaign the newest record that could be read counts
            (date(2024, 9, 1), "Brand", Decimal("1.00"), False),
            (date(2024, 9, 1), "Generic", Decimal("4.00"), False),
            (date(2024, 10, 1), "Brand", Decimal("1000.00"), True),
            (date(2024, 10, 1), "Generic", Decimal("3000.00"), True),
            (date(2024, 11, 1), "Brand", Decimal("7.00"), True),
            (date(2024, 12, 1), "Brand", Decimal("3.00"), True),
        ],
    ),
    "jobs": (
        {
            1: text(
                JOBS[:1] + JOBS[2:],
                [("1", *job(1)[2:]), ("2", *job(2)[2:])],
            ),
            2: text(JOBS, [job(1, "AAAAAA", Status="Booked"), job(3, "CCCCCC")]),
            3: text(JOBS[:1] + JOBS[2:], [("0001", *job(1, Status="Gone")[2:]), ("4", *job(4)[2:])]),
            4: text(JOBS, [job(3, "CCCCCC", Status="Gone"), job(4, "DDDDDD")]),
        },
        "SELECT job_id, job_number, status FROM raw.jobs ORDER BY 2",
        [
            ("AAAAAA", "1", "Gone"),
            ("2", "2", "Done"),
            ("CCCCCC", "3", "Gone"),
            ("DDDDDD", "4", "Done"),
        ],
    ),
}


@pytest.mark.parametrize("exports", EXPORTS)
def test_any_order_of_arrival_gives_the_same_table(exports: str, landing: Landing) -> None:
    """Every order of arrival gives the table that was worked out by hand."""
    files, query, expected = EXPORTS[exports]
    source = exports.split()[0]
    arrivals = list(itertools.permutations(files)) if len(files) == 3 else _some(list(files))
    for arrival in arrivals:
        landing.connection.execute(f"TRUNCATE raw.{source}, raw.source_files, raw.rejected_rows CASCADE")
        for path in landing.folder.rglob("*.csv"):
            path.unlink()
        for day in arrival:
            landing.write(f"{source}/{day}.csv", files[day], day=day)
            landing.load_one(source)
        assert landing.rows(query) == expected, arrival
        _adds_up(landing)
        again = landing.load(source, force=True)
        assert len(again.files) == len(files)
        assert (again.totals.inserted, again.totals.updated, again.months) == (0, 0, set()), arrival
        assert landing.rows(query) == expected


def _some(days: list[int]) -> list[tuple[int, ...]]:
    """Returns every fourth of the 24 orders of four files, and the last one."""
    orders = list(itertools.permutations(days))
    return [*orders[::4], orders[-1]]


def _adds_up(landing: Landing) -> None:
    """Asserts that the quarantine has as many records as the ledger says."""
    assert not landing.rows(
        "SELECT f.path FROM raw.source_files f WHERE f.quarantined <>"
        " (SELECT count(*) FROM raw.rejected_rows r WHERE r.file_id = f.file_id)"
    )


def _by_number(*numbers: int) -> str:
    return text(JOBS[:1] + JOBS[2:], [(str(number), *job(number)[2:]) for number in numbers])


def test_late_jobs_with_one_number_are_not_taken_for_the_job_of_a_newer_file(landing: Landing) -> None:
    """Two late jobs that share a number both load, although a newer file without UUIDs has that number."""
    landing.write("jobs/2.csv", _by_number(1), day=2)
    landing.load("jobs")
    landing.write("jobs/1.csv", text(JOBS, [job(1, "BBBBBB"), job(1, "DDDDDD"), job(2, "EEEEEE")]), day=1)
    late = landing.load_one("jobs")
    assert (late.counts.inserted, late.counts.superseded) == (3, 0)
    # in their turn, the newer file's record would have been quarantined: the check shared_job_numbers lists the three
    assert landing.rows("SELECT job_id FROM raw.jobs WHERE job_number = '1' ORDER BY 1") == [
        ("1",),
        ("BBBBBB",),
        ("DDDDDD",),
    ]


@pytest.mark.parametrize("arrival", [(1, 2, 3), (2, 1, 3), (2, 3, 1), (3, 2, 1)])
def test_number_that_went_from_one_job_to_another(arrival: tuple[int, ...], landing: Landing) -> None:
    """A number that passed to another job stays with it; a late file must not delete the job that has it now."""
    files = {
        1: text(JOBS, [job(2, "BBBBBB")]),
        2: text(JOBS, [job(4, "BBBBBB")]),
        3: _by_number(2),
    }
    for day in arrival:
        landing.write(f"jobs/{day}.csv", files[day], day=day)
        landing.load_one("jobs")
    expected = [("2", "2"), ("BBBBBB", "4")]
    assert landing.rows("SELECT job_id, job_number FROM raw.jobs ORDER BY 1") == expected
    assert landing.load("jobs", force=True).months == set()
    assert landing.rows("SELECT job_id, job_number FROM raw.jobs ORDER BY 1") == expected


@pytest.mark.parametrize("arrival", [(1, 2, 3), (1, 3, 2), (3, 1, 2)])
def test_job_known_by_number_whose_number_changed_later(arrival: tuple[int, ...], landing: Landing) -> None:
    """A job known by its first number is the job with the UUID; it must not count twice."""
    files = {
        1: _by_number(2),
        2: text(JOBS, [job(2, "BBBBBB")]),
        3: text(JOBS, [job(4, "BBBBBB")]),
    }
    for day in arrival:
        landing.write(f"jobs/{day}.csv", files[day], day=day)
        landing.load_one("jobs")
    assert landing.rows("SELECT job_id, job_number FROM raw.jobs ORDER BY 1") == [("BBBBBB", "4")]


def test_quarantine_closes_by_number_only_without_uuids(landing: Landing) -> None:
    """A UUID of digits is not taken for another job's number when quarantined records close."""
    bad = {"Total": "NaN"}
    landing.write("jobs/1.csv", text(JOBS, [job(1, "123456", **bad), job(2, "234567", **bad)]), day=1)
    numbers = text(JOBS[:1] + JOBS[2:], [(n, *job(n, **bad)[2:]) for n in ("345678", "456789")])
    landing.write("jobs/2.csv", numbers, day=2)
    landing.write("jobs/3.csv", text(JOBS, [job(123456, "AAAAAA"), job(345678, "BBBBBB")]), day=3)
    landing.write("jobs/4.csv", _by_number(234567, 456789), day=4)
    landing.load("jobs")
    assert landing.rows("SELECT row_key, note FROM raw.rejected_rows ORDER BY 1") == [
        ("123456", None),
        ("234567", None),
        ("345678", "accepted from a newer export: jobs/3.csv"),
        ("456789", "accepted from a newer export: jobs/4.csv"),
    ]
    landing.write("jobs/5.csv", text(JOBS, [job(9, "123456")]), day=5)
    landing.load("jobs")
    assert landing.rows("SELECT note FROM raw.rejected_rows WHERE row_key = '123456'") == [
        ("accepted from a newer export: jobs/5.csv",)
    ]


def test_quarantine_of_a_late_file_is_closed_at_once(landing: Landing) -> None:
    """A late file's bad record is closed if a newer export has the key in good order."""
    landing.write("elocals_leads/2.csv", text(ELOCALS, [_lead("A", "10")]), day=2)
    landing.load("elocals_leads")
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "NaN"), _lead("B", "NaN")]), day=1)
    landing.load("elocals_leads")
    assert landing.rows("SELECT row_key, status FROM raw.rejected_rows ORDER BY 1") == [
        ("A", "closed"),
        ("B", "open"),
    ]


def test_quarantine_closes_when_a_newer_export_brings_the_key(landing: Landing) -> None:
    """A bad record closes when a newer export brings its key; otherwise the list would only grow."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "NaN"), _lead("B", "NaN")]), day=1)
    landing.load("elocals_leads")
    landing.write("elocals_leads/2.csv", text(ELOCALS, [_lead("A", "10")]), day=2)
    landing.load("elocals_leads")
    assert landing.rows("SELECT row_key, status, note FROM raw.rejected_rows ORDER BY 1") == [
        ("A", "closed", "accepted from a newer export: elocals_leads/2.csv"),
        ("B", "open", None),
    ]


def test_quarantine_closes_when_its_path_gets_new_content(landing: Landing) -> None:
    """A corrected file closes the bad records of its old content."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [("", "2025-01-05 10:00:00", "", "1", "", "")]), day=1)
    landing.load("elocals_leads")
    assert landing.rows("SELECT row_key, status FROM raw.rejected_rows") == [(None, "open")]
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "10")]), day=2)
    landing.load("elocals_leads")
    assert landing.rows("SELECT status, note FROM raw.rejected_rows") == [
        ("closed", "the file has new content")
    ]


@pytest.mark.parametrize("content", ["copy", "refused", "unrecognized", "older"])
def test_quarantine_closes_whatever_the_new_content_is(content: str, landing: Landing) -> None:
    """New content of any kind closes the old records, which are in no file any more."""
    good = text(ELOCALS, [_lead("A", "10")])
    landing.write("leads cost Elocals.csv", text(ELOCALS, [_lead("B", "NaN"), _lead("A", "9")]), day=2)
    landing.write("elocals_leads/b.csv", good, day=3)
    landing.load("elocals_leads")
    new = {"copy": good, "refused": "Unique ID,Cost\n", "unrecognized": "who,what\nAnn,talked\n"}
    if content == "unrecognized":  # its name does not say what it is
        landing.connection.execute("UPDATE raw.source_files SET path = 'x.csv' WHERE path LIKE 'leads%'")
        (landing.folder / "leads cost Elocals.csv").rename(landing.folder / "x.csv")
    name = "x.csv" if content == "unrecognized" else "leads cost Elocals.csv"
    bad = text(ELOCALS, [_lead("C", "NaN")])
    landing.write(name, new.get(content, bad), day=1 if content == "older" else 4)
    landing.load("elocals_leads")
    assert landing.rows("SELECT row_key, status, note FROM raw.rejected_rows WHERE row_key = 'B'") == [
        ("B", "closed", "the file has new content")
    ]
    # the present content is what has to be corrected
    left = landing.rows("SELECT row_key, status FROM raw.rejected_rows WHERE row_key = 'C'")
    assert left == ([("C", "open")] if content == "older" else [])


def test_late_file_whose_newer_file_is_gone(landing: Landing) -> None:
    """A late file is refused if a newer file that is gone may have confirmed other values."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "10")]), day=1)
    newer = landing.write("elocals_leads/3.csv", text(ELOCALS, [_lead("A", "10"), _lead("C", "5")]), day=3)
    landing.load("elocals_leads")
    content = newer.read_bytes()
    newer.unlink()
    landing.write(
        "elocals_leads/2.csv", text(ELOCALS, [_lead("A", "99"), _lead("B", "7"), _lead("C", "9")]), day=2
    )
    refused = landing.load_one("elocals_leads")
    assert refused.status == "refused"
    assert "(elocals_leads/3.csv) into the landing folder" in (refused.message or "")
    assert landing.load("elocals_leads").files == []  # not tried again by itself
    landing.write("elocals_leads/put back under another name.csv", content, day=9)
    landing.load("elocals_leads", force=True)
    assert landing.rows("SELECT lead_id, cost FROM raw.elocals_leads ORDER BY 1") == [
        ("A", Decimal("10.00")),
        ("B", Decimal("7.00")),
        ("C", Decimal("5.00")),
    ]


def test_late_file_is_loaded_if_lost_files_leave_no_doubt(landing: Landing) -> None:
    """Lost files don't stop a late one whose records differ from none of the rows."""
    landing.write("elocals_leads/today.csv", text(ELOCALS, [_lead("A", "10")]), day=2)
    landing.load("elocals_leads")
    landing.write("elocals_leads/today.csv", text(ELOCALS, [_lead("A", "10"), _lead("B", "20")]), day=3)
    landing.load("elocals_leads")
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "99"), _lead("Z", "1")]), day=1)
    late = landing.load_one("elocals_leads")
    assert (late.status, late.counts.superseded, late.counts.inserted) == ("loaded", 1, 1)


def test_force_reads_again_and_keeps_the_order(landing: Landing) -> None:
    """A forced reload applies the files in order, so that it may stop after any of them."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "10"), _lead("B", "20")]), day=1)
    landing.write("elocals_leads/2.csv", text(ELOCALS, [_lead("A", "11")]), day=2)
    landing.load("elocals_leads")
    # a mistake by hand
    landing.connection.execute("UPDATE raw.elocals_leads SET cost = 0")
    first, second = landing.load("elocals_leads", force=True).files
    assert (first.counts.superseded, first.counts.updated) == (1, 1)
    assert second.counts.updated == 1
    assert landing.rows("SELECT lead_id, cost FROM raw.elocals_leads ORDER BY 1") == [
        ("A", Decimal("11.00")),
        ("B", Decimal("20.00")),
    ]
    assert landing.rows("SELECT count(*) FROM raw.source_files") == [(2,)]


def test_newer_declaration_reads_files_again(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corrected reading rule reaches the files for which it was corrected; dismissed records stay dismissed."""
    landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "10"), _lead("B", "NaN")]), day=1)
    landing.load("elocals_leads")
    landing.connection.execute("UPDATE raw.rejected_rows SET status = 'dismissed', note = 'known'")
    monkeypatch.setitem(SOURCES, "elocals_leads", replace(SOURCES["elocals_leads"], version=2))
    again = landing.load_one("elocals_leads")
    assert (again.status, again.counts.unchanged, again.counts.quarantined) == ("loaded", 1, 1)
    assert landing.rows("SELECT declaration_version FROM raw.source_files") == [(2,)]
    assert landing.rows("SELECT status, note FROM raw.rejected_rows") == [("dismissed", "known")]
    assert landing.load("elocals_leads").files == []


def test_order_of_files_with_one_time_is_their_path(landing: Landing) -> None:
    """Exports of the same moment apply in the order of their paths, the same in every run."""
    landing.write("elocals_leads/b.csv", text(ELOCALS, [_lead("A", "2")]), day=1)
    landing.load("elocals_leads")
    landing.write("elocals_leads/a.csv", text(ELOCALS, [_lead("A", "1")]), day=1)
    assert landing.load_one("elocals_leads").counts.superseded == 1
    assert landing.rows("SELECT cost FROM raw.elocals_leads") == [(Decimal("2.00"),)]


def test_export_time_in_the_name_decides(landing: Landing) -> None:
    """The time in the name counts before the modification time, which a copied folder loses."""
    landing.write("elocals_leads/x 2025-12-16T13_58_55.706Z.csv", text(ELOCALS, [_lead("A", "2")]), day=1)
    landing.write("elocals_leads/y 2025-12-15T13_58_55.706Z.csv", text(ELOCALS, [_lead("A", "1")]), day=2)
    older, newer = landing.load("elocals_leads").files
    assert (older.path[14], newer.path[14]) == ("y", "x")
    assert landing.rows("SELECT cost FROM raw.elocals_leads") == [(Decimal("2.00"),)]


def test_late_payments_keep_their_links(landing: Landing) -> None:
    """A payment that only a late file has is linked to its job."""
    landing.write("jobs/a.csv", text(JOBS, [job(1, "AAAAAA")]), day=1)
    landing.load("jobs")
    landing.write("payments/2.csv", text(PAYMENTS, [("P1", "1", "11/16/2024", "10", "", "", "")]), day=2)
    landing.load("payments")
    rows = [("P1", "2", "11/16/2024", "11", "", "", ""), ("P2", "1", "11/17/2024", "5", "", "", "")]
    landing.write("payments/1.csv", text(PAYMENTS, rows), day=1)
    late = landing.load_one("payments")
    assert (late.counts.superseded, late.counts.inserted) == (1, 1)
    assert landing.rows("SELECT payment_id, job_id, amount FROM raw.payments ORDER BY 1") == [
        ("P1", "AAAAAA", Decimal("10.00")),
        ("P2", "AAAAAA", Decimal("5.00")),
    ]


def test_copied_folder_is_not_loaded_again(landing: Landing, tmp_path: Path) -> None:
    """New modification times alone load nothing again."""
    path = landing.write("elocals_leads/1.csv", text(ELOCALS, [_lead("A", "10")]), day=1)
    landing.load("elocals_leads")
    os.utime(path, (2e9, 2e9))
    assert landing.load("elocals_leads").files == []
    assert landing.rows(
        "SELECT count(*), extract(epoch FROM max(modified_at)), extract(year FROM max(exported_at))::int"
        " FROM raw.source_files"
    ) == [(1, Decimal("2000000000.000000"), 2025)]
