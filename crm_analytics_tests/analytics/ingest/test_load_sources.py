"""Each source's files end up in its table: typed, counted and dated."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

from crm_analytics_tests.analytics.ingest.landing_folder import (
    CALLS,
    ELOCALS,
    JOBS,
    PAYMENTS,
    PROREF,
    Landing,
    job,
    text,
)


def test_jobs(landing: Landing) -> None:
    """Jobs load with all columns, numbers without padding."""
    landing.write("jobs/a.csv", text(JOBS, [job(3504, "A1B2C3"), job("003505", "D4E5F6", Total="-95")]))
    result = landing.load("jobs")
    assert result.totals.inserted == result.totals.records_read == 2
    assert result.months == {date(2024, 11, 1)}
    assert landing.rows(
        "SELECT job_id, job_number, type, source, created_at, scheduled_at, job_date, zip, total FROM raw.jobs"
        " ORDER BY 1"
    ) == [
        (
            "A1B2C3",
            "3504",
            "COD Service",
            "Google",
            datetime(2024, 11, 15, 5, tzinfo=UTC),
            None,
            date(2024, 11, 15),
            "10001",
            Decimal("85.00"),
        ),
        (
            "D4E5F6",
            "3505",
            "COD Service",
            "Google",
            datetime(2024, 11, 15, 5, tzinfo=UTC),
            None,
            date(2024, 11, 15),
            "10001",
            Decimal("-95.00"),
        ),
    ]


def test_payments_find_their_job(landing: Landing) -> None:
    """Payments load with the link to their job, amounts in every form, and whether they count."""
    landing.write("jobs/a.csv", text(JOBS, [job(3504, "A1B2C3")]))
    landing.load("jobs")
    landing.write(
        "payments/a.csv",
        text(
            PAYMENTS,
            [
                ("P1", "003504", "11/16/2024", "$1,234.50", "Cash", "", ""),
                ("P2", "9", "11/17/2024", "(20.00)", "", "Voided", ""),
            ],
        ),
    )
    result = landing.load("payments")
    assert result.totals.inserted == 2
    assert landing.rows(
        "SELECT payment_id, job_id, job_number_ref, paid_date, amount, counts FROM raw.payments ORDER BY 1"
    ) == [
        ("P1", "A1B2C3", "3504", date(2024, 11, 16), Decimal("1234.50"), True),
        ("P2", None, "9", date(2024, 11, 17), Decimal("-20.00"), False),
    ]


def test_calls(landing: Landing) -> None:
    """Calls have no id: equal ones stay apart, and a new export adds only the new ones."""
    row = (
        "Ann",
        "(555) 010-0001",
        "Main",
        "(555) 010-0002",
        "Wed Dec 17th, 03:21PM",
        "GoogleAds",
        "Bob",
        "3 Min 25 Sec",
    )
    landing.write("calls/export_2025-12-18T10_00_00.csv", text(CALLS, [row, row]))
    assert landing.load("calls").totals.inserted == 2
    landing.write("calls/export_2025-12-19T10_00_00.csv", text(CALLS, [row, row, row]))
    totals = landing.load("calls").totals
    assert (totals.inserted, totals.unchanged) == (1, 2)
    assert landing.rows(
        "SELECT call_date, flow, answered, answered_by, duration_seconds, count(DISTINCT call_id) FROM raw.calls"
        " GROUP BY 1, 2, 3, 4, 5"
    ) == [(date(2025, 12, 17), "GoogleAds", True, "Bob", 205, 3)]


def test_leads(landing: Landing) -> None:
    """Leads of both kinds load with date, cost and status."""
    landing.write(
        "elocals_leads/a.csv",
        text(ELOCALS, [("L1", "2025-12-05 10:21:17 -0500", "01:10", "$65.25", "ok", "5550100001")]),
    )
    landing.write(
        "proref_leads/a.csv", text(PROREF, [("R1", "12/06/2025", "Ann", "Ovens", "10001", "Passed")])
    )
    assert landing.load("elocals_leads").totals.inserted == 1
    assert landing.load("proref_leads").totals.inserted == 1
    assert landing.rows("SELECT lead_id, lead_date, cost FROM raw.elocals_leads") == [
        ("L1", date(2025, 12, 5), Decimal("65.25"))
    ]
    assert landing.rows("SELECT lead_id, lead_date, current_status FROM raw.proref_leads") == [
        ("R1", date(2025, 12, 6), "Passed")
    ]


def test_spend_by_day_is_summed_before_rounding(landing: Landing) -> None:
    """Days are summed before rounding, so that thousandths of a dollar are not lost."""
    landing.write(
        "google_spend/a.csv",
        text(
            ("Day", "Campaign", "cost_micros"),
            [
                ("2024-10-01", "Ovens", "5000"),
                ("2024-10-02", "Ovens", "5000"),
                ("2024-10-03", "Ovens", "5000"),
            ],
        ),
        day=1,
    )
    result = landing.load("google_spend")
    assert (result.totals.inserted, result.months) == (3, {date(2024, 10, 1)})
    assert landing.rows("SELECT month, campaign, amount, covered_to, record_no FROM raw.google_spend") == [
        (date(2024, 10, 1), "Ovens", Decimal("0.02"), date(2024, 10, 3), 1)
    ]


def test_targets(landing: Landing) -> None:
    """A target that is not set stays NULL, and a changed one is updated."""
    header = (
        "month",
        "source",
        "segment",
        "target_repairs",
        "target_revenue40",
        "target_conv_l_to_r",
        "target_cpl_max",
    )
    landing.write(
        "targets/a.csv",
        text(
            header,
            [
                ("2024-10", "", "", "120", "50000", "0.35", ""),
                ("2024-10", "Google", "COD", "", "", "", "55.5"),
            ],
        ),
        day=1,
    )
    landing.load("targets")
    landing.write("targets/b.csv", text(header, [("2024-10", "Google", "COD", "30", "", "", "55.5")]), day=2)
    assert landing.load("targets").totals.updated == 1
    assert landing.table("analytics.targets") == [
        (date(2024, 10, 1), "ALL", "ALL", 120, Decimal("50000.00"), Decimal("0.3500"), None, "all"),
        (date(2024, 10, 1), "Google", "COD", 30, None, None, Decimal("55.50"), "google"),
    ]


def test_target_below_zero_is_quarantined(landing: Landing) -> None:
    """A negative target is quarantined, and the file's other targets load; the table's CHECK would refuse them all."""
    header = ("month", "source", "target_revenue40", "target_cpl_max")
    rows = [
        ("2024-10", "", "40000", "55"), ("2024-10", "Google", "", "-1"), ("2024-10", "Rely", "(20.00)", ""),
        ("2024-10", "NSA", "", "−5.50"), ("2024-10", "eLocals", "-0.00", "0"),
    ]  # fmt: skip
    landing.write("targets/a.csv", text(header, rows))
    loaded = landing.load_one("targets")
    assert (loaded.status, loaded.counts.inserted, loaded.counts.quarantined) == ("loaded", 2, 3)
    assert landing.rows(
        "SELECT record_no, reason ->> 'column', reason ->> 'code' FROM raw.rejected_rows,"
        " jsonb_array_elements(reasons) AS reason ORDER BY 1"
    ) == [
        (2, "target_cpl_max", "negative_amount"),
        (3, "target_revenue40", "negative_amount"),
        (4, "target_cpl_max", "negative_amount"),
    ]
