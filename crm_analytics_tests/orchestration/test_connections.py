"""Dagster's storage behind a pooler that works by transaction, and how many connections a process has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa

from crm_analytics.core.database import sqlalchemy_url
from crm_analytics.orchestration.instance import PooledPostgresStorage, open_instance
from crm_analytics.orchestration.worker_lease import WatchedRunStorage
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row
from crm_analytics_tests.pooler import pooled


@pytest.fixture
def dagster_url(new_database: Callable[..., str]) -> str:
    return new_database("dagster")


@pytest.fixture
def behind(dagster_url: str) -> Iterator[str]:
    """The address of a pooler before Dagster's database."""
    with pooled(dagster_url) as url:
        yield url


def execute(instance: dg.DagsterInstance, statement: sa.TextClause) -> None:
    assert isinstance(instance.run_storage, WatchedRunStorage)
    with instance.run_storage.connect() as connection:
        connection.execute(statement)


def test_the_pooler_gives_every_transaction_another_session(behind: str) -> None:
    """What sessions are needed for fails behind it, as behind PgBouncer: otherwise the tests below would prove nothing."""
    with psycopg.connect(behind, autocommit=True) as connection:
        pids = [connection.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)]
        assert len(set(pids)) == 3
        with connection.transaction():
            inside = {connection.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}
        assert len(inside) == 1
        connection.execute("SELECT pg_advisory_lock(1)")
        assert connection.execute("SELECT pg_advisory_unlock(1)").fetchone() == (False,)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            for _ in range(20):
                connection.execute("SELECT %s::int", [1])


def test_without_prepared_statements_an_application_works_behind_it(behind: str) -> None:
    """What docs/crm.md tells applications to set is enough for psycopg."""
    with psycopg.connect(behind, prepare_threshold=None) as connection:
        for n in range(20):
            assert connection.execute("SELECT %s::int", [n]).fetchone() == (n,)
            connection.commit()


def test_runs_work_behind_a_pooler(platform: Platform, dagster_url: str, behind: str) -> None:
    """A whole refresh of two months stores the same events and metrics as without a pooler."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"), job_row("BBBBBB", "2024-11-02"))

    def stored() -> tuple[list[Any], list[Any]]:
        run = platform.run(date(2024, 10, 1), date(2024, 11, 1))
        assert run.success
        events: dict[str, int] = {}
        for entry in platform.instance.all_logs(run.run_id):
            if entry.dagster_event:
                kind = entry.dagster_event.event_type_value
                events[kind] = events.get(kind, 0) + 1
        return sorted(events.items()), platform.query("SELECT month, jobs FROM analytics.monthly_metrics")

    direct = stored()
    platform.change(dagster_postgres_url=behind)
    with open_instance(platform.settings) as platform.instance:
        again = stored()
    assert dict(again[0])["ASSET_MATERIALIZATION"] == dict(direct[0])["ASSET_MATERIALIZATION"] > 0
    assert again[1] == direct[1] == [(date(2024, 10, 1), 1), (date(2024, 11, 1), 1)]


def test_lease_works_behind_a_pooler(behind: str, dagster_url: str) -> None:
    """A living worker is seen alive through other sessions than its own, and a run that ended isn't."""
    worker, monitor = (PooledPostgresStorage(sqlalchemy_url(url)) for url in (behind, dagster_url))
    assert isinstance(worker.run_storage, WatchedRunStorage)
    assert isinstance(monitor.run_storage, WatchedRunStorage)
    for looks in range(4):
        worker.run_storage.take_lease("a-run")
        assert worker.run_storage.worker_lives("a-run") and monitor.run_storage.worker_lives("a-run")
        worker.run_storage.end_lease("a-run")
        assert not monitor.run_storage.worker_lives("a-run"), looks
    worker.close()
    monitor.close()


def test_only_the_web_servers_statements_are_limited(platform: Platform, behind: str) -> None:
    """The limit is the web server's own, although its transactions come to the sessions of other processes."""
    slow = sa.text("SELECT pg_sleep(0.3)")
    web_server, other = (
        platform.settings.model_copy(update={"dagster_postgres_url": f"{behind} application_name={name}"})
        for name in ("web", "daemon")
    )
    with open_instance(web_server) as web, open_instance(other) as daemon:
        web.optimize_for_webserver(statement_timeout=50, pool_recycle=1, max_overflow=1)
        for _ in range(6):  # more than the pooler has sessions
            assert web.get_runs(limit=1) == []
            with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
                execute(web, slow)
            execute(daemon, slow)


def test_a_process_has_no_more_connections_than_the_settings_allow(
    platform: Platform, dagster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads and instances share a pool: they wait instead of opening more, and those that the settings keep stay open."""
    monkeypatch.setenv("DAGSTER_CONNECTIONS_KEPT", "2")
    monkeypatch.setenv("DAGSTER_CONNECTIONS_MAX", "5")
    platform.change(dagster_postgres_url=dagster_url)
    most, done = 0, threading.Event()

    def open_now() -> int:
        with psycopg.connect(dagster_url) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
        return int(found[0]) if found else 0

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, open_now())

    with open_instance(platform.settings) as instance, open_instance(platform.settings) as second:
        watcher = threading.Thread(target=watch)
        watcher.start()

        def ask(_: int) -> None:
            execute(instance, sa.text("SELECT pg_sleep(0.1)"))
            second.get_runs(limit=1)
            instance.fetch_materializations(dg.AssetKey("a"), limit=1)

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(48)))
        done.set()
        watcher.join()
        deadline = time.monotonic() + 10
        while open_now() != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        # one that is being closed may still be seen beside its successor
        assert most in (5, 6) and open_now() == 2
