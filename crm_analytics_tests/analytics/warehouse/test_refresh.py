"""Tests of the refresh: ranges, the queue, and concurrency by two connections with barriers instead of sleeps."""

from __future__ import annotations

import threading
from datetime import date
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from crm_analytics.analytics.warehouse.refresh import WRITE_DAILY, WRITE_MONTHLY, refresh, stale_months
from crm_analytics.core import migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics_tests.analytics.held_refresh import refresh_held
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

Connection = psycopg.Connection[Any]
OCTOBER, NOVEMBER, DECEMBER = date(2024, 10, 1), date(2024, 11, 1), date(2024, 12, 1)


def insert_job(connection: Connection, job_id: str, day: str) -> None:
    connection.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date) VALUES (%s, 'COD Service', 'Google', %s, %s)",
        [job_id, f"{day} 12:00-05", day],
    )


def insert_payment(connection: Connection, payment_id: str, job_id: str, amount: str) -> None:
    connection.execute(
        "INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, job_id, paid_date, amount)"
        " VALUES (%s, %s, %s, %s, '2024-12-24', %s)",
        [payment_id, job_id, job_id, job_id, amount],
    )


def monthly(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT to_char(month, 'YYYY-MM'), source, segment, jobs, units, repairs, leads, revenue_gross::text"
        " FROM monthly_metrics ORDER BY 1, 2, 3"
    ).fetchall()


def test_refresh_empties_its_months_queue_and_logs(analytics: Connection) -> None:
    """A refresh empties its months' queue and logs each month, so that every number has a run behind it."""
    insert_job(analytics, "A", "2024-10-31")
    insert_job(analytics, "B", "2024-12-01")
    insert_payment(analytics, "p", "A", "100.01")
    done = refresh(analytics, OCTOBER, DECEMBER, run_id="run-1")
    assert [(m.month, m.changed_rows) for m in done] == [(OCTOBER, 1), (NOVEMBER, 0)]
    assert done[0].stale_rows >= 1
    assert [entry.month for entry in stale_months(analytics)] == [DECEMBER]
    assert monthly(analytics) == [("2024-10", "Google", "COD", 1, 1, 1, 1, "100.01")]
    logged = analytics.execute(
        "SELECT month, run_id, changed_rows FROM refresh_log ORDER BY month"
    ).fetchall()
    assert logged == [(OCTOBER, "run-1", 1), (NOVEMBER, "run-1", 0)]


def test_refresh_of_unchanged_months_writes_nothing(analytics: Connection) -> None:
    """A refresh of unchanged months writes nothing, so that updated_at remains the time of the last change."""
    insert_job(analytics, "A", "2024-10-31")
    refresh(analytics, OCTOBER, NOVEMBER)
    before = analytics.execute("SELECT updated_at, xmin::text FROM daily_metrics").fetchall()
    assert refresh(analytics, OCTOBER, NOVEMBER)[0].changed_rows == 0
    assert analytics.execute("SELECT updated_at, xmin::text FROM daily_metrics").fetchall() == before


def refresh_counted(url: str, start: date, end: date) -> dict[str, tuple[int, int, int]]:
    """Refreshes on a connection of its own; returns how many rows it inserted, updated and deleted in each table."""
    with psycopg.connect(url, autocommit=True) as connection, connection.transaction():
        refresh(connection, start, end)
        rows = connection.execute(
            "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_xact_user_tables"
            " WHERE relname IN ('daily_metrics', 'monthly_metrics')"
        ).fetchall()
    return {name: (inserted, updated, deleted) for name, inserted, updated, deleted in rows}


def test_only_rows_that_differ_are_written(analytics: Connection, analytics_url: str) -> None:
    """An empty range is inserted; later a refresh inserts, updates and deletes just the rows that differ."""
    for number in range(1, 10):
        insert_job(analytics, f"J{number}", f"2024-10-{number:02}")
        insert_job(analytics, f"K{number}", f"2024-11-{number:02}")
    empty = refresh_counted(analytics_url, OCTOBER, DECEMBER)
    assert empty == {"daily_metrics": (18, 0, 0), "monthly_metrics": (2, 0, 0)}
    insert_payment(analytics, "p", "J3", "500.00")
    analytics.execute("UPDATE raw.jobs SET job_date = '2024-10-20' WHERE job_id = 'J5'")
    before = analytics.execute("SELECT date, xmin::text, updated_at FROM daily_metrics").fetchall()
    changed = refresh_counted(analytics_url, OCTOBER, DECEMBER)
    assert changed == {"daily_metrics": (1, 1, 1), "monthly_metrics": (0, 1, 0)}
    logged = analytics.execute("SELECT changed_rows FROM refresh_log ORDER BY refresh_id DESC LIMIT 2")
    assert logged.fetchall() == [(0,), (3,)]
    after = analytics.execute("SELECT date, xmin::text, updated_at FROM daily_metrics").fetchall()
    different = {day.isoformat() for day, *_ in set(before) ^ set(after)}
    assert different == {"2024-10-03", "2024-10-05", "2024-10-20"}


def test_new_rows_are_stored_by_date(analytics: Connection) -> None:
    """The days of a long range lie one after the other, so that a month is read from few pages, however long the history."""
    analytics.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
        " SELECT 'J' || i, 'COD Service', 'S' || i % 7, now(), '2024-12-30'::date - i % 365 FROM generate_series(1, 2000) i"
    )
    # grouped by hash, as the planner does it with many rows
    analytics.execute("SET enable_sort = off")
    refresh(analytics, date(2024, 1, 1), date(2025, 1, 1))
    for table, key in (("daily_metrics", "date"), ("monthly_metrics", "month")):
        stored = [day for (day,) in analytics.execute(f"SELECT {key} FROM {table} ORDER BY ctid".encode())]
        assert stored == sorted(stored)
        assert len(set(stored)) < len(stored)


def test_wrong_statistics_cannot_make_a_nested_loop_of_the_comparison(analytics: Connection) -> None:
    """After a first load, statistics may still say that the tables are empty; the comparison is a full join all the same."""
    for statement in (WRITE_DAILY, WRITE_MONTHLY):
        window = {"start": OCTOBER, "end": DECEMBER, "closed": []}
        plan = analytics.execute("EXPLAIN " + statement, window, prepare=False)
        text = "\n".join(row[0] for row in plan)
        assert "Full Join" in text
        assert "Conflict" not in text, "each row would be looked up before it is inserted"


def test_an_owner_without_superuser_migrates_and_refreshes(
    server: EmbeddedPostgres, analytics_url: str
) -> None:
    """A refresh needs no more rights than those of the database's owner, who has run the migrations."""
    name = "owner_" + analytics_url.rpartition("/")[2]
    with psycopg.connect(server.url("postgres"), autocommit=True) as superuser:
        superuser.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'".encode())
        superuser.execute(f"CREATE DATABASE {name} OWNER {name}".encode())
    url = make_conninfo(server.url(name), user=name, password="test")
    migrations.migrate("analytics", url=url)
    with psycopg.connect(url, autocommit=True) as owner:
        insert_job(owner, "A", "2024-10-31")
        assert refresh(owner, OCTOBER, NOVEMBER)[0].changed_rows == 1
        insert_payment(owner, "p", "A", "500.00")
        assert refresh(owner, OCTOBER, NOVEMBER)[0].changed_rows == 1
        assert monthly(owner) == [("2024-10", "Google", "COD", 1, 1, 1, 1, "500.00")]
        assert stale_months(owner) == []


def test_rows_without_any_measure_disappear(analytics: Connection) -> None:
    """A row whose measures are all zero disappears: deleted jobs take their rows along."""
    insert_job(analytics, "A", "2024-10-31")
    refresh(analytics, OCTOBER, NOVEMBER)
    analytics.execute("DELETE FROM raw.jobs")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert analytics.execute("SELECT count(*) FROM daily_metrics").fetchone() == (0,)
    assert monthly(analytics) == []


def test_change_that_commits_during_a_refresh_stays_queued(analytics_url: str) -> None:
    """A payment that commits between the computation and the emptying of the queue stays queued: no lost update."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as first,
        psycopg.connect(analytics_url, autocommit=True) as loader,
        psycopg.connect(analytics_url, autocommit=True) as watcher,
    ):
        insert_job(first, "A", "2024-10-31")
        # daily metrics are computed, the queue is not emptied
        with refresh_held(first, watcher, OCTOBER):
            insert_payment(loader, "p", "A", "500.00")
        assert monthly(first)[0][-1] == "0.00"
        assert [entry.month for entry in stale_months(loader)] == [OCTOBER]
        refresh(first, OCTOBER, NOVEMBER)
        assert monthly(first) == [("2024-10", "Google", "COD", 1, 1, 1, 1, "500.00")]
        assert stale_months(first) == []


def test_refresh_waits_for_open_changes_of_rules(analytics_url: str) -> None:
    """A refresh waits for an open change of rules, which has queued only the months that existed when it was made."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as editor,
        psycopg.connect(analytics_url, autocommit=True) as loader,
        psycopg.connect(analytics_url, autocommit=True) as refresher,
    ):
        insert_job(loader, "A", "2024-10-31")
        thread = threading.Thread(target=refresh, args=(refresher, OCTOBER, DECEMBER))
        with editor.transaction():
            editor.execute("INSERT INTO channel_aliases VALUES ('angi', 'Retention')")
            loader.execute(
                "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
                " VALUES ('B', 'COD Service', 'Angi', '2024-11-02 12:00-05', '2024-11-02')"
            )
            thread.start()
            wait_until_blocked(loader, "relation")
        thread.join(PATIENCE)
        refresh(refresher, OCTOBER, DECEMBER)
        assert [row[:2] for row in monthly(loader)] == [("2024-10", "Google"), ("2024-11", "Retention")]
        assert stale_months(loader) == []


def test_a_month_that_has_become_empty_leaves_the_queue(analytics: Connection) -> None:
    """A month that is empty after a correction leaves the queue, although no partition covers it."""
    insert_job(analytics, "A", "2099-01-05")
    insert_job(analytics, "B", "2024-12-05")
    analytics.execute("UPDATE raw.jobs SET job_date = '2024-10-05' WHERE job_id = 'A'")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert [entry.month for entry in stale_months(analytics)] == [DECEMBER]


def test_an_empty_month_that_is_being_refreshed_stays_queued(analytics_url: str) -> None:
    """A month stays queued while another refresh works on it, which may commit metrics of rows that are gone by now."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as first,
        psycopg.connect(analytics_url, autocommit=True) as other,
        psycopg.connect(analytics_url, autocommit=True) as watcher,
    ):
        insert_job(first, "A", "2024-10-31")
        with first.transaction():
            refresh(first, OCTOBER, NOVEMBER)
            watcher.execute("DELETE FROM raw.jobs")
            refresh(other, DECEMBER, date(2025, 1, 1))
        assert [entry.month for entry in stale_months(other)] == [OCTOBER]
        refresh(first, OCTOBER, NOVEMBER)
        assert monthly(first) == []


def test_uncommitted_change_is_neither_counted_nor_forgotten(analytics_url: str) -> None:
    """A load's entry in the queue survives a refresh that runs before the load commits."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as refresher,
        psycopg.connect(analytics_url, autocommit=True) as loader,
    ):
        insert_job(refresher, "A", "2024-10-31")
        with loader.transaction():
            insert_payment(loader, "p", "A", "500.00")
            refresh(refresher, OCTOBER, NOVEMBER)
            assert monthly(refresher)[0][-1] == "0.00"
        assert [entry.month for entry in stale_months(refresher)] == [OCTOBER]
        refresh(refresher, OCTOBER, NOVEMBER)
        assert monthly(refresher)[0][-1] == "500.00"


def test_two_refreshes_at_once_wait_for_each_other(analytics_url: str) -> None:
    """The second of two refreshes sees what committed while it waited; a snapshot from before the lock would be too old."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as first,
        psycopg.connect(analytics_url, autocommit=True) as second,
        psycopg.connect(analytics_url, autocommit=True) as watcher,
    ):
        insert_job(first, "A", "2024-10-31")
        thread = threading.Thread(target=refresh, args=(second, OCTOBER, DECEMBER))
        with first.transaction():
            refresh(first, OCTOBER, NOVEMBER)
            thread.start()
            wait_until_blocked(watcher, "advisory")
            insert_payment(watcher, "p", "A", "500.00")
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert monthly(watcher) == [("2024-10", "Google", "COD", 1, 1, 1, 1, "500.00")]
        assert stale_months(watcher) == []


def test_opposite_ranges_do_not_deadlock(analytics_url: str) -> None:
    """Refreshes of overlapping ranges do not deadlock, because they take the months' locks in ascending order."""
    errors: list[Exception] = []
    barrier = threading.Barrier(2)

    def work(start: date, end: date) -> None:
        try:
            with psycopg.connect(analytics_url, autocommit=True) as connection:
                for _ in range(15):
                    barrier.wait(PATIENCE)
                    refresh(connection, start, end)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    with psycopg.connect(analytics_url, autocommit=True) as connection:
        for month in range(1, 13):
            insert_job(connection, f"J{month}", f"2024-{month:02d}-15")
    threads = [
        threading.Thread(target=work, args=(date(2024, 1, 1), date(2024, 12, 1))),
        threading.Thread(target=work, args=(date(2024, 6, 1), date(2025, 1, 1))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []


def test_long_and_short_ranges_add_payments_up_alike(analytics: Connection) -> None:
    """Facts are the same for short ranges and ranges over a year, whose payments are added up in another way."""
    analytics.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date) SELECT 'J' || i, (ARRAY['COD Service', 'INS"
        " Service', 'COD Repair'])[1 + i % 3], 'Google', now(), '2022-01-01'::date + i * 3 FROM generate_series(0, 399) i"
    )
    analytics.execute(
        "INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, job_id, paid_date, amount, status) SELECT 'p' || i,"
        " 'J' || i % 390, 'J' || i % 390, 'J' || i % 390, '2022-06-01', 40 + i % 90, (ARRAY['paid', 'failed', NULL])[1 + i % 3]"
        " FROM generate_series(0, 899) i"
    )
    whole = "SELECT * FROM job_facts_between('2022-01-01', '2025-05-01')"
    parts = (
        "SELECT f.* FROM generate_series('2022-01-01'::date, '2025-04-01', '1 month') m,"
        " job_facts_between(m::date, (m + interval '1 month')::date) f"
    )
    different = analytics.execute(
        f"(({whole}) EXCEPT ({parts})) UNION ALL (({parts}) EXCEPT ({whole}))".encode()
    ).fetchall()
    totals = analytics.execute(
        f"SELECT count(*), sum(paid_total), count(*) FILTER (WHERE is_repair) FROM ({whole}) f".encode()
    ).fetchone()
    by_hand = analytics.execute(
        "SELECT sum(amount) FROM raw.payments WHERE status IS DISTINCT FROM 'failed'"
    ).fetchone()
    assert different == []
    assert totals is not None and by_hand is not None
    assert totals[0] == 400 and totals[1] == by_hand[0] and 133 < totals[2] < 400
