"""Rows that vanish from later exports are kept and reported (docs/decisions/landing-is-the-archive.md)."""

from __future__ import annotations

from typing import Any

from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse.check_queries import vanished_sql
from crm_analytics_tests.analytics.ingest.landing_folder import (
    CALLS,
    ELOCALS,
    JOBS,
    PAYMENTS,
    Landing,
    job,
    text,
)


def _lead(key: str, day: int = 5, cost: str = "10") -> tuple[str, ...]:
    return (key, f"2025-01-{day:02} 10:21:17 -0500", "01:10", cost, "ok", "")


def _leads(*leads: tuple[str, ...]) -> str:
    return text(ELOCALS, leads)


def _reported(landing: Landing, source: str) -> list[tuple[Any, ...]]:
    return landing.rows(vanished_sql(SOURCES[source]))


def test_a_row_that_a_newer_export_of_its_dates_lacks_is_kept_and_reported(landing: Landing) -> None:
    """Rows outside of the newer export's dates are not reported."""
    landing.write(
        "elocals_leads/1.csv",
        _leads(_lead("before", 4), _lead("A", 5), _lead("gone", 6), _lead("B", 7), _lead("after", 8)),
        day=1,
    )
    assert landing.load_one("elocals_leads").warnings == []
    landing.write("elocals_leads/2.csv", _leads(_lead("A", 5), _lead("B", 7)), day=2)
    (warning,) = landing.load_one("elocals_leads").warnings
    assert warning == (
        "1 row of older exports from 2025-01-05 to 2025-01-07 is not in this one; kept, and listed in"
        " raw.vanished_rows"
    )
    assert _reported(landing, "elocals_leads") == [("gone", "2025-01-06", "elocals_leads/2.csv")]
    assert landing.rows("SELECT count(*) FROM raw.elocals_leads") == [(5,)]


def test_a_row_that_comes_back_is_forgotten(landing: Landing) -> None:
    """The report shows the present state."""
    for day, leads in enumerate((("A", "B", "C"), ("A", "B"), ("A", "C", "B")), start=1):
        landing.write(f"elocals_leads/{day}.csv", _leads(*map(_lead, leads)), day=day)
        landing.load("elocals_leads")
        assert [key for key, *_ in _reported(landing, "elocals_leads")] == (["C"] if day == 2 else [])


def test_a_row_deleted_or_dismissed_by_hand_is_reported_no_more(landing: Landing) -> None:
    """Not even when the next export lacks it too."""
    landing.write("elocals_leads/1.csv", _leads(*map(_lead, "ABCDEF")), day=1)
    landing.load("elocals_leads")
    landing.write("elocals_leads/2.csv", _leads(*map(_lead, "ABCD")), day=2)
    landing.load("elocals_leads")
    assert [key for key, *_ in _reported(landing, "elocals_leads")] == ["E", "F"]
    landing.connection.execute("DELETE FROM raw.elocals_leads WHERE lead_id = 'E'")
    landing.connection.execute("UPDATE raw.vanished_rows SET dismissed_at = now() WHERE row_key = 'F'")
    landing.write("elocals_leads/3.csv", _leads(*map(_lead, "ABCD"), _lead("G", 8)), day=3)
    landing.load("elocals_leads")
    assert _reported(landing, "elocals_leads") == []


def test_a_selection_is_not_taken_for_an_export_of_everything(landing: Landing) -> None:
    """A file with at most half of the known rows of its dates is no evidence."""
    landing.write("elocals_leads/1.csv", _leads(*map(_lead, "ABCDE")), day=1)
    landing.load("elocals_leads")
    landing.write("elocals_leads/2.csv", _leads(*map(_lead, "AB")), day=2)
    assert landing.load_one("elocals_leads").warnings == []
    assert _reported(landing, "elocals_leads") == []


def test_quarantined_records_have_not_vanished(landing: Landing) -> None:
    """They are in the file, by key or by number, and the older version counts."""
    landing.write("jobs/1.csv", text(JOBS, [job(n, f"AAAAA{n}") for n in range(1, 6)]), day=1)
    landing.load("jobs")
    rows = [job(1, "AAAAA1"), job(2, "AAAAA2", Total="NaN"), job(3, "AAAAA3"), job(4, "AAAAA4")]
    landing.write("jobs/2.csv", text(JOBS, rows), day=2)
    landing.load("jobs")
    assert [key for key, *_ in _reported(landing, "jobs")] == ["AAAAA5"]
    landing.write("jobs/3.csv", text(JOBS[:1] + JOBS[2:], [(row[0], *row[2:]) for row in rows]), day=3)
    (file,) = landing.load("jobs").files
    assert file.counts.quarantined == 1
    assert [key for key, *_ in _reported(landing, "jobs")] == ["AAAAA5"]


def test_a_late_older_file_reports_nothing_and_forgets_nothing(landing: Landing) -> None:
    """Rows may be younger than an old export."""
    landing.write("elocals_leads/1.csv", _leads(*map(_lead, "ABCD")), day=2)
    landing.load("elocals_leads")
    landing.write("elocals_leads/2.csv", _leads(*map(_lead, "ABC")), day=3)
    landing.load("elocals_leads")
    landing.write("elocals_leads/0.csv", _leads(*map(_lead, "ABD")), day=1)
    assert landing.load_one("elocals_leads").warnings == []
    assert [key for key, *_ in _reported(landing, "elocals_leads")] == ["D"]


def test_a_payment_without_id_whose_amount_was_corrected_is_reported(landing: Landing) -> None:
    """Its key is made of its values, so the old row and the corrected one would both count unseen."""
    header = PAYMENTS[1:]

    def payment(number: int, amount: str) -> tuple[str, ...]:
        return (str(number), "11/20/2024", amount, "Cash", "Paid", "")

    landing.write(
        "payments/1.csv", text(header, [payment(1, "80"), payment(2, "90"), payment(3, "70")]), day=1
    )
    landing.load("payments")
    landing.write(
        "payments/2.csv", text(header, [payment(1, "85"), payment(2, "90"), payment(3, "70")]), day=2
    )
    (warning,) = landing.load_one("payments").warnings
    assert warning.startswith("1 row of older exports")
    ((key, _, _),) = _reported(landing, "payments")
    assert landing.rows("SELECT amount::text FROM raw.payments WHERE payment_id = %s", [key]) == [("80.00",)]


def test_an_export_cut_off_at_its_limit_proves_nothing(landing: Landing) -> None:
    """Calls beyond the limit were not exported."""

    def call(number: int) -> tuple[str, ...]:
        minute = f"{number // 60 % 12 + 1:02}:{number % 60:02}PM"
        return (
            "A",
            f"({number % 900 + 100}) 555-0100",
            "B",
            "(212) 555-0199",
            f"Wed Jan 1st, {minute}",
            "",
            "",
            "1 Min",
        )

    landing.write("calls/1.csv", text(CALLS, [call(n) for n in range(5003)]), day=2)
    landing.load("calls")
    landing.write("calls/2.csv", text(CALLS, [call(n) for n in range(5000)]), day=3)
    landing.load("calls")
    assert landing.rows("SELECT count(*) FROM raw.calls") == [(5003,)]
    assert _reported(landing, "calls") == []


def test_a_target_missing_from_the_newest_sheet_is_reported(landing: Landing) -> None:
    """The target stays in force until a file changes it, which a person must see."""
    header = ("month", "source", "segment", "target_repairs")
    rows = [
        ("2025-01", "ALL", "ALL", "90"),
        ("2025-01", "Google", "ALL", "30"),
        ("2025-02", "ALL", "ALL", "95"),
    ]
    landing.write("targets/1.csv", text(header, rows), day=1)
    landing.load("targets")
    landing.write("targets/2.csv", text(header, [rows[0], rows[2]]), day=2)
    landing.load("targets")
    assert [key for key, *_ in _reported(landing, "targets")] == ["2025-01, google, ALL"]
