"""Tests, case by case, which change makes which month stale, and how payments find their job."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

Connection = psycopg.Connection[Any]


def job(
    connection: Connection, job_id: str, day: str, number: str | None = None, type_: str = "COD Service"
) -> None:
    connection.execute(
        "INSERT INTO raw.jobs (job_id, job_number, type, source, created_at, job_date)"
        " VALUES (%s, %s, %s, 'Google', %s, %s)",
        [job_id, number, type_, f"{day} 12:00-05", day],
    )


def payment(
    connection: Connection,
    payment_id: str,
    ref: str,
    day: str,
    amount: str = "150.00",
    status: str = "paid",
    job_id: str | None = None,
) -> None:
    """Inserts a payment as the loader does (job_id looked up already), or by hand (left to the triggers)."""
    connection.execute(
        "INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, job_number_ref, paid_date, amount, status, job_id)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [payment_id, ref, ref, ref.lstrip("0") if ref.isdigit() else None, day, amount, status, job_id],
    )


def stale(connection: Connection) -> list[str]:
    """Returns the months queued since the last call."""
    rows = connection.execute(
        "WITH gone AS (DELETE FROM analytics.stale_months RETURNING month)"
        " SELECT DISTINCT to_char(month, 'YYYY-MM') FROM gone ORDER BY 1"
    ).fetchall()
    return [month for (month,) in rows]


def linked(connection: Connection) -> dict[str, str | None]:
    return dict(connection.execute("SELECT payment_id, job_id FROM raw.payments").fetchall())


def test_job_affects_its_own_month_old_and_new(analytics: Connection) -> None:
    """A job that moves makes both months stale; otherwise both would count it, or neither."""
    job(analytics, "A", "2024-10-31")
    assert stale(analytics) == ["2024-10"]
    analytics.execute("UPDATE raw.jobs SET job_date = '2024-12-01' WHERE job_id = 'A'")
    assert stale(analytics) == ["2024-10", "2024-12"]
    analytics.execute("DELETE FROM raw.jobs")
    assert stale(analytics) == ["2024-12"]


def test_columns_that_no_metric_reads_dirty_nothing(analytics: Connection) -> None:
    """Changes that no metric depends on make nothing stale; otherwise every re-export would restate all of history."""
    job(analytics, "A", "2024-10-31")
    payment(analytics, "p", "A", "2024-11-05")
    stale(analytics)
    analytics.execute(
        "UPDATE raw.jobs SET status = 'Done', technician = 'x', total = 5, type = ' cod  SERVICE'"
    )
    analytics.execute("UPDATE raw.payments SET method = 'cash', paid_at = now(), paid_date = paid_date")
    analytics.execute("UPDATE raw.jobs SET job_date = job_date WHERE false")
    assert stale(analytics) == []
    analytics.execute("UPDATE raw.jobs SET type = 'INS Service'")
    assert stale(analytics) == ["2024-10"]


def test_payment_affects_its_jobs_month_and_not_its_own(analytics: Connection) -> None:
    """A late payment makes only its job's month stale, because revenue belongs to the month of the job."""
    job(analytics, "A", "2024-10-31")
    stale(analytics)
    payment(analytics, "p", "A", "2024-11-05", "0.01", job_id="A")
    assert stale(analytics) == ["2024-10"]
    analytics.execute("UPDATE raw.payments SET amount = 5 WHERE payment_id = 'p'")
    assert stale(analytics) == ["2024-10"]
    analytics.execute("UPDATE raw.payments SET paid_date = '2025-01-01'")  # the cohort does not move
    assert stale(analytics) == []
    analytics.execute("DELETE FROM raw.payments")
    assert stale(analytics) == ["2024-10"]


def test_waiting_payment_affects_its_paid_month_until_the_job_arrives(analytics: Connection) -> None:
    """A job that arrives after its payment changes both months: the paid month loses the orphan, the job's gains it."""
    payment(analytics, "p", "Z", "2024-11-04", "75.00")
    assert stale(analytics) == ["2024-11"]
    analytics.execute("UPDATE raw.payments SET paid_date = '2024-12-04'")
    assert stale(analytics) == ["2024-11", "2024-12"]
    job(analytics, "Z", "2024-08-01")
    assert stale(analytics) == ["2024-08", "2024-12"]
    assert linked(analytics) == {"p": "Z"}
    analytics.execute("DELETE FROM raw.jobs WHERE job_id = 'Z'")
    assert stale(analytics) == ["2024-08", "2024-12"]
    assert linked(analytics) == {"p": None}


def test_job_that_changes_its_number_gains_and_loses_payments(analytics: Connection) -> None:
    """Payments that name a number follow the number, and their paid months change with them."""
    job(analytics, "A", "2024-03-01", number="7")
    payment(analytics, "p7", "007", "2024-05-05")
    payment(analytics, "p8", "8", "2024-06-06")
    assert linked(analytics) == {"p7": "A", "p8": None}
    stale(analytics)
    analytics.execute("UPDATE raw.jobs SET job_number = '8' WHERE job_id = 'A'")
    assert linked(analytics) == {"p7": None, "p8": "A"}
    assert stale(analytics) == ["2024-03", "2024-05", "2024-06"]


def test_number_that_two_jobs_share_links_nothing(analytics: Connection) -> None:
    """A payment that gives only a shared number stays unlinked, since a guess would move money silently; an id links."""
    job(analytics, "A", "2024-03-01", number="7")
    payment(analytics, "p", "7", "2024-05-05")
    assert linked(analytics) == {"p": "A"}
    job(analytics, "B", "2024-04-01", number="7")
    assert linked(analytics) == {"p": None}
    stale(analytics)
    analytics.execute("DELETE FROM raw.jobs WHERE job_id = 'A'")
    assert linked(analytics) == {"p": "B"}
    assert stale(analytics) == ["2024-03", "2024-04", "2024-05"]


def test_job_id_wins_over_a_number(analytics: Connection) -> None:
    """An all-digit reference, which may be an id or a number, means the job with that id, even if it comes later."""
    job(analytics, "A", "2024-03-01", number="123456")
    payment(analytics, "p", "123456", "2024-05-05")
    assert linked(analytics) == {"p": "A"}
    job(analytics, "123456", "2024-04-01", number="9")
    assert linked(analytics) == {"p": "123456"}
    analytics.execute("UPDATE raw.jobs SET job_id = 'C' WHERE job_id = '123456'")
    assert linked(analytics) == {"p": "A"}


@pytest.mark.parametrize("status", ["failed", "Pending", " VOIDED ", "declined"])
def test_payments_that_do_not_count_affect_no_month(analytics: Connection, status: str) -> None:
    """Payments that do not count make nothing stale; one that begins to count changes its month."""
    job(analytics, "A", "2024-10-31")
    stale(analytics)
    payment(analytics, "p", "A", "2024-11-05", status=status)
    assert stale(analytics) == []
    analytics.execute("UPDATE raw.payments SET status = 'paid'")
    assert stale(analytics) == ["2024-10"]


def test_leads_calls_and_spend_affect_their_own_months(analytics: Connection) -> None:
    """Only what metrics read makes months stale: a free eLocals row, a passed lead, a call's answer do not."""
    analytics.execute(
        "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost) VALUES"
        " ('a', now(), '2024-01-05', 10), ('b', now(), '2024-02-05', 0), ('c', now(), '2024-03-05', NULL)"
    )
    assert stale(analytics) == ["2024-01"]
    analytics.execute("UPDATE raw.elocals_leads SET cost = cost + 1, status = 'credited'")
    assert stale(analytics) == ["2024-01", "2024-02"]
    analytics.execute(
        "INSERT INTO raw.proref_leads (lead_id, lead_at, lead_date, current_status) VALUES"
        " ('a', now(), '2024-01-05', 'Passed'), ('b', now(), '2024-02-05', NULL)"
    )
    assert stale(analytics) == ["2024-02"]
    analytics.execute("UPDATE raw.proref_leads SET current_status = 'Won'")
    assert stale(analytics) == ["2024-01"]
    analytics.execute(
        "INSERT INTO raw.calls (call_id, started_at, call_date, flow) VALUES ('a', now(), '2024-04-01', 'eLocals')"
    )
    assert stale(analytics) == ["2024-04"]
    analytics.execute("UPDATE raw.calls SET answered = true, job_ref = '7', duration_seconds = 5")
    assert stale(analytics) == []
    analytics.execute("INSERT INTO raw.google_spend VALUES ('2024-06-01', 'all', 310, '2024-06-30')")
    assert stale(analytics) == ["2024-06"]
    analytics.execute("UPDATE raw.google_spend SET covered_to = '2024-06-15'")
    assert stale(analytics) == ["2024-06"]
    analytics.execute("UPDATE raw.google_spend SET amount = amount")
    assert stale(analytics) == []


def test_channel_rules_and_aliases_affect_every_month(analytics: Connection) -> None:
    """A changed rule makes all of history stale; a rule rewritten as it is makes nothing stale."""
    job(analytics, "A", "2024-01-31")
    job(analytics, "B", "2024-04-30")
    stale(analytics)
    every = ["2024-01", "2024-04"]
    analytics.execute("INSERT INTO analytics.channel_aliases VALUES ('insurance', 'Rely')")
    assert stale(analytics) == every
    analytics.execute("UPDATE analytics.lead_channels SET lead_rule = 'jobs' WHERE source = 'Rely'")
    assert stale(analytics) == every
    analytics.execute("UPDATE analytics.lead_channels SET lead_rule = lead_rule")
    assert stale(analytics) == []
    analytics.execute("DELETE FROM analytics.channel_aliases WHERE alias_folded = 'insurance'")
    assert stale(analytics) == every


def test_truncate_affects_every_month(analytics: Connection) -> None:
    """TRUNCATE makes every month that has metrics stale, because it does not tell which rows it removed."""
    job(analytics, "A", "2024-01-31")
    job(analytics, "B", "2024-03-30")
    stale(analytics)
    analytics.execute("TRUNCATE raw.calls")
    assert stale(analytics) == ["2024-01", "2024-03"]


def test_rules_that_read_a_shared_table_belong_to_one_channel(analytics: Connection) -> None:
    """A second channel with Google's spend is refused, because both would book it."""
    with pytest.raises(psycopg.errors.CheckViolation, match="google_spend can belong to one channel only"):
        analytics.execute(
            "INSERT INTO analytics.lead_channels (source, lead_rule, cost_rule) VALUES ('Bing', 'jobs', 'google_spend')"
        )
    with pytest.raises(psycopg.errors.CheckViolation):
        analytics.execute(
            "INSERT INTO analytics.lead_channels (source, lead_rule, cost_rule) VALUES ('Bing', 'jobs', 'sum_cost')"
        )


def by_hand(connection: Connection, payment_id: str, **values: str | None) -> None:
    """Inserts a payment with the columns that a person knows."""
    columns = ", ".join(values)
    places = ", ".join(["%s"] * len(values))
    connection.execute(
        f"INSERT INTO raw.payments (payment_id, paid_date, amount, {columns}) VALUES (%s, '2024-12-24', 10, {places})",
        [payment_id, *values.values()],
    )


def test_payment_inserted_by_hand_is_linked_by_its_reference(analytics: Connection) -> None:
    """A payment inserted by hand needs job_ref or job_id; the triggers fill the loader's helper columns."""
    job(analytics, "ABC123", "2024-10-05", number="77")
    by_hand(analytics, "by id", job_ref="ABC123")
    by_hand(analytics, "by number", job_ref="0077")
    by_hand(analytics, "itself", job_id="ABC123")
    by_hand(analytics, "number and job", job_ref="999", job_id="ABC123")
    by_hand(analytics, "waiting", job_ref="XYZ789")
    assert linked(analytics) == {
        "by id": "ABC123", "by number": "ABC123", "itself": "ABC123", "number and job": "ABC123", "waiting": None,
    }  # fmt: skip
    job(analytics, "XYZ789", "2024-11-05")
    assert linked(analytics)["waiting"] == "XYZ789"


def test_link_corrected_by_hand_stays(analytics: Connection) -> None:
    """Corrections by hand in SQL are not undone and leave no month wrong."""
    job(analytics, "A", "2024-10-05", number="1")
    job(analytics, "B", "2024-11-05", number="2")
    payment(analytics, "p", "1", "2024-12-24")
    stale(analytics)
    analytics.execute("UPDATE raw.payments SET job_ref = '002'")
    assert linked(analytics) == {"p": "B"}
    assert stale(analytics) == ["2024-10", "2024-11"]
    analytics.execute("UPDATE raw.payments SET job_id = 'A'")
    assert linked(analytics) == {"p": "A"}
    assert stale(analytics) == ["2024-10", "2024-11"]
    analytics.execute("UPDATE raw.jobs SET job_number = '22' WHERE job_id = 'B'")
    analytics.execute("UPDATE raw.payments SET amount = 7")
    assert linked(analytics) == {"p": "A"}, "what else happens does not undo it"
    stale(analytics)
    analytics.execute("UPDATE raw.payments SET job_id = NULL")
    analytics.execute("UPDATE raw.jobs SET job_number = '1' WHERE job_id = 'A'")
    assert linked(analytics) == {"p": None}
    assert stale(analytics) == ["2024-10", "2024-12"]


def test_link_made_by_a_trigger_is_no_correction(analytics: Connection) -> None:
    """A job that changes its id takes its payments along; a payment by number goes on meaning the number."""
    job(analytics, "A", "2024-10-05", number="1")
    payment(analytics, "p", "1", "2024-12-24")
    analytics.execute("UPDATE raw.jobs SET job_id = 'A2'")
    assert linked(analytics) == {"p": "A2"}
    analytics.execute("UPDATE raw.jobs SET job_number = '5'")
    assert linked(analytics) == {"p": None}


def test_months_without_any_row_are_not_noted(analytics: Connection) -> None:
    """One date in the far future does not queue every month until then."""
    job(analytics, "A", "2024-10-05")
    job(analytics, "B", "2099-01-05")
    stale(analytics)
    analytics.execute("INSERT INTO channel_aliases VALUES ('angi', 'Google')")
    assert stale(analytics) == ["2024-10", "2099-01"]


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM raw.payments",
        "UPDATE raw.jobs SET job_date = '2024-11-05'",
        "INSERT INTO channel_aliases VALUES ('angi', 'Google')",
        "TRUNCATE raw.calls",
    ],
)
def test_a_snapshot_older_than_the_locks_is_refused(analytics: Connection, change: str) -> None:
    """Writing at a stricter isolation level is refused: it could not see what committed while it waited."""
    job(analytics, "A", "2024-10-05")
    payment(analytics, "p", "A", "2024-12-24")
    with (
        pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"),
        analytics.transaction(),
    ):
        analytics.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        analytics.execute(change.encode())


def test_payment_deleted_while_its_job_moves(analytics_url: str) -> None:
    """Of two concurrent changes the second sees the first: the month that the job moves to does not keep the payment."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as deleter,
        psycopg.connect(analytics_url, autocommit=True) as mover,
        psycopg.connect(analytics_url, autocommit=True) as watcher,
    ):
        job(mover, "A", "2024-10-05")
        payment(mover, "p", "A", "2024-12-24", job_id="A")
        stale(mover)
        move = threading.Thread(target=mover.execute, args=("UPDATE raw.jobs SET job_date = '2024-12-05'",))
        with deleter.transaction():
            deleter.execute("DELETE FROM raw.payments")
            move.start()
            wait_until_blocked(watcher, "advisory")
        move.join(PATIENCE)
        assert stale(watcher) == ["2024-10", "2024-12"]


def test_two_channels_for_one_shared_rule_at_once(analytics_url: str) -> None:
    """Two rules at once cannot share what only one may have; each alone would be accepted, and both count each row twice."""
    rule = "INSERT INTO lead_channels (source, valid_from, lead_rule, cost_rule) VALUES (%s, '2024-01-01', %s, 'sum_cost')"
    refused: list[Exception] = []

    def insert(connection: Connection) -> None:
        try:
            connection.execute(rule, ["eLocals 3", "elocals_paid"])
        except psycopg.errors.CheckViolation as error:
            refused.append(error)

    with (
        psycopg.connect(analytics_url, autocommit=True) as first,
        psycopg.connect(analytics_url, autocommit=True) as second,
        psycopg.connect(analytics_url, autocommit=True) as watcher,
    ):
        first.execute("DELETE FROM lead_channels WHERE source = 'eLocals'")
        thread = threading.Thread(target=insert, args=(second,))
        with first.transaction():
            first.execute(rule, ["eLocals 2", "elocals_paid"])
            thread.start()
            wait_until_blocked(watcher, "advisory")
        thread.join(PATIENCE)
    assert len(refused) == 1
