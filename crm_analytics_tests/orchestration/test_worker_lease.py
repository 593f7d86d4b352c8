"""How a run's worker proves that it lives, and what the launcher makes of that."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.launcher import WorkerStatus

from crm_analytics.orchestration import launcher, worker_lease
from crm_analytics.orchestration.worker_lease import WatchedRunStorage
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import Platform

RUN = dg.DagsterRun("refresh")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def health(platform: Platform) -> WorkerStatus:
    return platform.instance.run_launcher.check_run_worker_health(RUN).status


def storage_of(platform: Platform) -> WatchedRunStorage:
    assert isinstance(platform.instance.run_storage, WatchedRunStorage)
    return platform.instance.run_storage


def query(platform: Platform, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(platform.settings.dagster_postgres_url or "", autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenths of seconds for seconds."""
    monkeypatch.setattr(worker_lease, "RENEWAL", worker_lease.RENEWAL / 10)
    monkeypatch.setattr(worker_lease, "LAPSE", worker_lease.LAPSE / 10)


@pytest.mark.parametrize("fails", [False, True])
def test_run_has_its_lease_while_it_executes(platform: Platform, fails: bool) -> None:
    """A run in a terminal has its lease from its start to its end, whatever the end, and leaves nothing behind."""
    seen: list[Any] = []

    @dg.asset
    def table() -> None:
        context = dg.AssetExecutionContext.get()
        run = platform.instance.get_run_by_id(context.run_id)
        seen.append((run and run.status.value, storage_of(platform).worker_lives(context.run_id)))
        assert not fails

    result = dg.materialize([table], instance=platform.instance, raise_on_error=False)
    assert result.success is not fails
    assert seen == [("STARTED", True)]
    assert not storage_of(platform).worker_lives(result.run_id)
    assert query(platform, "SELECT key FROM kvs WHERE key LIKE '%lease%'") == []


def test_monitoring_asks_the_launcher(platform: Platform) -> None:
    """dagster.yaml names the launcher, which offers the health check that Dagster's monitoring asks for."""
    assert isinstance(platform.instance.run_launcher, launcher.WatchedRunLauncher)
    assert platform.instance.run_launcher.supports_check_run_worker_health
    assert platform.instance.run_monitoring_enabled


HOLDER = """
import sys, time
from crm_analytics.orchestration.instance import PooledPostgresStorage
PooledPostgresStorage(sys.argv[1]).run_storage.take_lease(sys.argv[2])
print("held", flush=True)
time.sleep(600)
"""


def test_killed_worker_is_failed_after_two_looks(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease lapses after its process; one look is not enough, because a living worker may be about to renew it."""
    url = platform.settings.dagster_postgres_url or ""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, RUN.run_id], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert health(platform) == WorkerStatus.RUNNING
        holder.kill()
    killed = time.monotonic()
    until(lambda: not storage_of(platform).worker_lives(RUN.run_id))
    assert time.monotonic() - killed > worker_lease.LAPSE - worker_lease.RENEWAL - 1
    assert health(platform) == WorkerStatus.RUNNING
    monkeypatch.setattr(launcher, "PATIENCE", 0)
    assert health(platform) == WorkerStatus.FAILED


@pytest.mark.usefixtures("fast")
def test_living_worker_renews_its_lease(platform: Platform) -> None:
    """A lease is held for as long as its process lives, however often it would have lapsed."""
    storage = storage_of(platform)
    storage.take_lease(RUN.run_id)
    deadline = time.monotonic() + 2 * worker_lease.LAPSE
    while time.monotonic() < deadline:
        assert storage.worker_lives(RUN.run_id)
        time.sleep(0.05)
    storage.stop_renewing_all()
    until(lambda: not storage.worker_lives(RUN.run_id))


@pytest.mark.usefixtures("fast")
def test_lease_that_lapsed_is_renewed_before_the_second_look(platform: Platform) -> None:
    """A database that was away, or a machine that slept, fails no living worker."""
    assert worker_lease.RENEWAL < launcher.PATIENCE
    storage = storage_of(platform)
    storage.take_lease(RUN.run_id)
    # the connections break, and the database's clock has gone on meanwhile
    query(
        platform,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    query(platform, "UPDATE kvs SET value = (now() - interval '1 hour')::text WHERE key LIKE '%lease%'")
    assert health(platform) == WorkerStatus.RUNNING
    until(lambda: storage.worker_lives(RUN.run_id))
    assert health(platform) == WorkerStatus.RUNNING
    storage.end_lease(RUN.run_id)


@pytest.mark.usefixtures("fast")
def test_lease_of_a_run_that_another_process_ended_stays_gone(platform: Platform) -> None:
    """A worker that was taken for dead and works on renews nothing: the run has ended."""
    storage = storage_of(platform)
    storage.take_lease(RUN.run_id)
    query(platform, "DELETE FROM kvs WHERE key LIKE '%lease%'")
    deadline = time.monotonic() + 3 * worker_lease.RENEWAL
    while time.monotonic() < deadline:
        assert not storage.worker_lives(RUN.run_id)
        time.sleep(0.05)


def test_only_the_clock_of_the_database_counts(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on a host whose clock is wrong by an hour lives; its time zone doesn't matter either."""
    storage = storage_of(platform)
    monkeypatch.setattr(time, "time", lambda: 3600.0)
    storage.take_lease(RUN.run_id)
    query(
        platform,
        f"ALTER DATABASE \"{query(platform, 'SELECT current_database()')[0][0]}\" SET timezone = 'Asia/Tokyo'",
    )
    query(
        platform,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert storage.worker_lives(RUN.run_id)
    storage.end_lease(RUN.run_id)
