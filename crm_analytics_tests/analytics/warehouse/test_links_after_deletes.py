"""Linking many payments while statistics call the tables empty, which makes a planner join them row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics_tests.analytics.ingest.landing_folder import JOBS, PAYMENTS, Landing, job, text

Connection = psycopg.Connection[Any]

#: Joined row by row, so many rows take minutes; as it should be, about a second. Cut off after `PATIENCE`.
MANY = 40_000
PATIENCE = "60s"

INSERT_JOBS = """
    INSERT INTO raw.jobs (job_id, job_number, type, source, created_at, job_date)
    SELECT 'J' || n, n, 'COD Service', 'Google', '2024-11-16', '2024-11-16' FROM generate_series(1, %s) n
"""
#: By number, by id, and for a job that doesn't exist.
INSERT_PAYMENTS = """
    INSERT INTO raw.payments (payment_id, job_ref, paid_date, amount)
    SELECT 'P' || n, CASE n %% 4 WHEN 0 THEN '9' || n || '9' WHEN 1 THEN 'J' || n ELSE n::text END, '2024-11-20', 10
    FROM generate_series(1, %s) n
"""
LINKED = "SELECT count(*), count(*) FILTER (WHERE job_id = 'J' || substr(payment_id, 2)) FROM raw.payments"


def reads(connection: Connection) -> int:
    """Returns how many rows of jobs and payments the open transaction has read."""
    (count,) = connection.execute(
        "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
        " WHERE schemaname = 'raw' AND relname IN ('jobs', 'payments')"
    ).fetchone() or (0,)
    return int(count)


@pytest.mark.parametrize(
    ("emptied", "again"),
    [
        (["payments"], [INSERT_PAYMENTS]),
        (["jobs"], [INSERT_JOBS]),
        (["payments", "jobs"], [INSERT_JOBS, INSERT_PAYMENTS]),
        (["payments", "jobs"], [INSERT_PAYMENTS, INSERT_JOBS]),
    ],
    ids=["payments again", "jobs again", "both again", "both again, payments first"],
)
@pytest.mark.parametrize("how", ["DELETE FROM raw.{}", "TRUNCATE raw.{} CASCADE"])
def test_rows_that_come_back_are_linked_at_once(
    analytics: Connection, emptied: list[str], again: list[str], how: str
) -> None:
    """Rows inserted again into tables that were analyzed when empty are linked in a time that grows with their number.

    The statistics that the statement finds have no row of the table, and the statement's triggers join it.
    """
    if "TRUNCATE" in how and emptied == ["jobs"]:
        # takes the payments along
        again = [INSERT_JOBS, INSERT_PAYMENTS]
    for statement in (INSERT_JOBS, INSERT_PAYMENTS):
        analytics.execute(statement.encode(), [MANY])
    for table in emptied:
        analytics.execute(how.format(table).encode())
    analytics.execute("ANALYZE")
    analytics.execute(f"SET statement_timeout = '{PATIENCE}'")
    for statement in again:
        with analytics.transaction():
            analytics.execute(statement.encode(), [MANY])
            assert reads(analytics) < 60 * MANY
    assert analytics.execute(LINKED).fetchone() == (MANY, MANY * 3 // 4)


@pytest.mark.parametrize("how", ["DELETE FROM raw.payments", "TRUNCATE raw.payments"])
def test_payments_loaded_again(analytics: Connection, tmp_path: Path, how: str) -> None:
    """A file loaded again after its rows were removed loads like the first time; an aborted load leaves this state, too."""
    landing = Landing(tmp_path, analytics)
    landing.write("jobs/a.csv", text(JOBS, [job(n, f"J{n}") for n in range(1, MANY + 1)]))
    payments = [(f"P{n}", str(n), "11/16/2024", "10", "", "", "") for n in range(1, MANY + 1)]
    landing.write("payments/a.csv", text(PAYMENTS, payments))
    landing.load("jobs")
    landing.load("payments")
    landing.connection.execute(how.encode())
    landing.connection.execute("ANALYZE")
    landing.connection.execute(f"SET statement_timeout = '{PATIENCE}'")
    assert landing.load_one("payments", force=True).counts.inserted == MANY
    assert landing.rows(LINKED) == [(MANY, MANY)]


def test_payments_that_need_no_new_link_are_left_alone(analytics: Connection) -> None:
    """Payments inserted with their link, as the loader does it, are neither read again nor written again."""
    analytics.execute(INSERT_JOBS.encode(), [1000])
    linked = """
        INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, job_id, paid_date, amount)
        SELECT 'P' || n, 'J' || n, 'J' || n, 'J' || n, '2024-11-20', 10 FROM generate_series(1, 1000) n
    """
    with analytics.transaction():
        analytics.execute(linked.encode())
        found = analytics.execute(
            "SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE schemaname = 'raw' AND relname = 'payments'"
        ).fetchone()
    assert found == (0,)
