"""The worked example of the metrics, to the cent: by the reference model, and by real files through the warehouse."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.warehouse.refresh import refresh, stale_months
from crm_analytics.core.months import next_month
from crm_analytics_tests.analytics import reference_model
from crm_analytics_tests.analytics.model_comparison import assert_equal, assert_metrics, refresh_stale, stored
from crm_analytics_tests.analytics.reference_model import (
    SEED_ALIASES,
    SEED_CHANNELS,
    ElocalsLead,
    Job,
    Measures,
    Payment,
    Spend,
    Warehouse,
)

NEW_YORK = ZoneInfo("America/New_York")
OCTOBER, NOVEMBER, DECEMBER = date(2024, 10, 1), date(2024, 11, 1), date(2024, 12, 1)

EXAMPLE = Warehouse(
    jobs=(
        Job("AAAAA1", "101", "COD Service", "Google", "Done", date(2024, 10, 31)),
        Job("BBBBB2", "102", "COD Service", "eLocals", "Done", date(2024, 10, 31)),
        Job("CCCCC3", "103", "INS Service", "Rely", "Done", date(2024, 11, 1)),
    ),
    payments=(
        Payment("P1", "AAAAA1", date(2024, 10, 31), Decimal("100.00"), "Paid"),
        Payment("P2", "AAAAA1", date(2024, 11, 5), Decimal("0.01"), "Paid"),
        Payment("P3", "BBBBB2", date(2024, 11, 2), Decimal("150.00"), "Paid"),
        Payment("P4", "BBBBB2", date(2024, 11, 9), Decimal("-60.00"), "Paid"),
        Payment("P5", "CCCCC3", date(2024, 11, 3), Decimal("500.00"), "Paid"),
        Payment("P6", None, date(2024, 11, 4), Decimal("75.00"), "Paid"),
    ),
    elocals_leads=(
        ElocalsLead("L1", date(2024, 10, 31), Decimal("65.25")),
        ElocalsLead("L2", date(2024, 10, 31), Decimal("0.00")),
    ),
    google_spend=(Spend(OCTOBER, "all", Decimal("310.00"), date(2024, 10, 31)),),
    channels=SEED_CHANNELS,
    aliases=SEED_ALIASES,
)

#: The answers of the design's worked example, by hand.
MONTHLY = {
    (OCTOBER, "Google", "COD"): Measures(1, 1, 1, 1, 0, Decimal(0), Decimal("100.01")),
    (OCTOBER, "Google", "OTHER"): Measures(cost=Decimal("310.00")),
    (OCTOBER, "eLocals", "COD"): Measures(1, 1, 0, 0, 0, Decimal(0), Decimal("90.00")),
    (OCTOBER, "eLocals", "OTHER"): Measures(leads=1, cost=Decimal("65.25")),
    (NOVEMBER, "Rely", "INS"): Measures(1, 1, 0, 1, 0, Decimal(0), Decimal("500.00")),
    (NOVEMBER, "Unattributed", "OTHER"): Measures(revenue_gross=Decimal("75.00")),
}

# The files: A is created at 23:30 local time, which is November in UTC. Payments name jobs by number, padded too.
JOBS = """\
Job #,UUID,Job Type,Source,Status,Created
103,CCCCC3,INS Service,Rely,Done,2024-11-01 08:00:00
102,BBBBB2,COD Service,eLocals,Done,2024-10-31 09:15:00
101,AAAAA1,COD Service,Google,Done,2024-10-31T23:30:00-04:00
"""
PAYMENTS = """\
Payment ID,Job #,Status,Payment Methods,Amount,Date
P1,101,Paid,Cash,100.00,Thu Oct 31 2024
P3,00102,Paid,Cash,150.00,Sat Nov 02 2024
P4,102,Paid,Cash,-60.00,Sat Nov 09 2024
P5,103,Paid,Check,"$500.00",Sun Nov 03 2024
P6,999,Paid,Cash,75.00,Mon Nov 04 2024
"""
LATE_PAYMENT = "Payment ID,Job #,Status,Payment Methods,Amount,Date\nP2,101,Paid,Cash,0.01,Tue Nov 05 2024\n"
JOB_Z = "Job #,UUID,Job Type,Source,Status,Created\n999,ZZZZZ9,COD Service,NSA,Done,Tue Dec 03 2024\n"
ELOCALS = """\
Unique ID,Time,Duration,Cost,Status,Caller ID
L1,2024-10-31 10:21:17 -0400,03:25,$65.25,Billed,(212) 555-0101
L2,2024-10-31 11:00:00 -0400,00:12,$0.00,Not billed,(212) 555-0102
"""
SPEND = "Month,Amount\n2024-10,310.00\n"


def test_reference_model_gives_the_worked_example() -> None:
    """The reference model gives the answers worked out by hand, so it does not share a misreading with the SQL."""
    daily = reference_model.daily_metrics(EXAMPLE)
    assert reference_model.monthly_metrics(daily) == MONTHLY
    assert daily[date(2024, 11, 4), "Unattributed", "OTHER"].revenue_gross == Decimal("75.00")
    google = {day: row for (day, source, part), row in daily.items() if (source, part) == ("Google", "OTHER")}
    assert {row.cost for row in google.values()} == {Decimal("10.00")}
    assert min(google) == OCTOBER
    assert max(google) == date(2024, 10, 31)
    assert reference_model.monthly_metrics(daily)[OCTOBER, "Google", "COD"].revenue40 == Decimal("40.004")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("COD Installation", "COD"), ("Installation", "OTHER"), ("INS Repair", "INS"), ("ins/cod visit", "COD"),
        (None, "OTHER"), ("Encoding service", "OTHER"),
    ],
)  # fmt: skip
def test_reference_model_reads_words_not_substrings(given: str | None, expected: str) -> None:
    """An installation is not insured."""
    assert reference_model.segment(given) == expected


def test_reference_model_spreads_spend_to_the_cent() -> None:
    """The days of a month add up to its spend exactly."""
    days = reference_model.daily_spend([Spend(NOVEMBER, "all", Decimal("100.00"), date(2024, 11, 7))])
    # 100/7 = 14.2857…: running totals 14.29 28.57 42.86 57.14 71.43 85.71 100.00
    assert list(days.values()) == [
        Decimal(text) for text in ["14.29", "14.28", "14.29", "14.28", "14.29", "14.28", "14.29"]
    ]


class Files:
    """A landing folder whose files are exported one after the other, loaded as they come."""

    def __init__(self, folder: Path, connection: psycopg.Connection[Any]) -> None:
        self.folder = folder
        self.connection = connection
        self.exports = 0

    def arrive(self, source: str, content: str) -> None:
        self.exports += 1
        path = self.folder / source / f"export_2024-12-{self.exports:02}T08_00_00.000Z.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        result = load_source(self.connection, self.folder, source, timezone=NEW_YORK)
        assert [(file.status, file.counts.quarantined) for file in result.files] == [("loaded", 0)], result

    def stale(self) -> set[date]:
        return {stale.month for stale in stale_months(self.connection)}


@pytest.fixture
def files(tmp_path: Path, analytics: psycopg.Connection[Any]) -> Files:
    """The example's files, loaded but for the late payment and job Z; metrics up to date."""
    arrived = Files(tmp_path, analytics)
    arrived.arrive("payments", PAYMENTS)
    arrived.arrive("jobs", JOBS)
    arrived.arrive("elocals_leads", ELOCALS)
    arrived.arrive("google_spend", SPEND)
    refresh_stale(analytics)
    return arrived


def test_the_warehouse_gives_the_worked_example(files: Files, analytics: psycopg.Connection[Any]) -> None:
    """The warehouse gives the answers worked out by hand, from real files."""
    files.arrive("payments", LATE_PAYMENT)
    refresh_stale(analytics)
    assert_equal(stored(analytics, "monthly_metrics", "month"), MONTHLY)
    assert_metrics(analytics, EXAMPLE)


def test_a_late_payment_makes_its_jobs_month_stale_and_no_other(
    files: Files, analytics: psycopg.Connection[Any]
) -> None:
    """A cent paid in November makes October's job a repair, and only October is recomputed."""
    before = stored(analytics, "monthly_metrics", "month")[OCTOBER, "Google", "COD"]
    assert (before["repairs"], before["revenue_gross"]) == (0, Decimal("100.00")), "100.00 is not a repair"
    assert files.stale() == set()
    files.arrive("payments", LATE_PAYMENT)
    assert files.stale() == {OCTOBER}


def test_the_arrival_of_a_job_moves_its_waiting_payment(
    files: Files, analytics: psycopg.Connection[Any]
) -> None:
    """A payment that waited for its job counts once, with the job."""
    files.arrive("jobs", JOB_Z)
    assert files.stale() == {NOVEMBER, DECEMBER}
    refresh(analytics, NOVEMBER, next_month(DECEMBER))
    monthly = stored(analytics, "monthly_metrics", "month")
    assert (NOVEMBER, "Unattributed", "OTHER") not in monthly
    z = monthly[DECEMBER, "NSA", "COD"]
    assert (z["jobs"], z["units"], z["leads"], z["repairs"], z["revenue_gross"]) == (
        1,
        1,
        1,
        0,
        Decimal("75.00"),
    )
    assert (z["conv_l_to_r"], z["revenue40"]) == (0, Decimal("30.00"))


def test_the_same_exports_again_make_nothing_stale(files: Files) -> None:
    """A file delivered again makes no month stale."""
    files.arrive("jobs", JOBS.replace("\n", "\r\n"))
    files.arrive("payments", PAYMENTS.replace("00102", "102"))
    files.arrive("google_spend", SPEND.replace("310.00", '"310.00"'))
    assert files.stale() == set()
