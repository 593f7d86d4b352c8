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

from crm_analytics.core import locks
from crm_analytics.orchestration import launcher, worker_lock
from crm_analytics.orchestration.worker_lock import WatchedRunStorage, WorkerLock
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import Platform


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def health(platform: Platform, run: dg.DagsterRun) -> WorkerStatus:
    return platform.instance.run_launcher.check_run_worker_health(run).status


def storage_of(platform: Platform) -> WatchedRunStorage:
    assert isinstance(platform.instance.run_storage, WatchedRunStorage)
    return platform.instance.run_storage


@pytest.mark.parametrize("fails", [False, True])
def test_run_is_locked_while_it_executes(platform: Platform, fails: bool) -> None:
    """A run in a terminal holds its lock from its start to its end, whatever the end."""
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
    until(lambda: not storage_of(platform).worker_lives(result.run_id))


def test_monitoring_asks_the_launcher(platform: Platform) -> None:
    """dagster.yaml names the launcher, which offers the health check that Dagster's monitoring asks for."""
    assert isinstance(platform.instance.run_launcher, launcher.WatchedRunLauncher)
    assert platform.instance.run_launcher.supports_check_run_worker_health
    assert platform.instance.run_monitoring_enabled


HOLDER = """
import sys, time
from crm_analytics.orchestration.worker_lock import WorkerLock
WorkerLock(sys.argv[1], sys.argv[2])
print("held", flush=True)
time.sleep(600)
"""


def test_killed_worker_is_failed_after_two_looks(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock ends with its process; one look is not enough, because a living worker may be about to take it again."""
    run = dg.DagsterRun("refresh")
    url = platform.settings.dagster_postgres_url or ""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, run.run_id], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert health(platform, run) == WorkerStatus.RUNNING
        holder.kill()
    until(lambda: not storage_of(platform).worker_lives(run.run_id))
    assert health(platform, run) == WorkerStatus.RUNNING
    monkeypatch.setattr(launcher, "PATIENCE", 0)
    assert health(platform, run) == WorkerStatus.FAILED


def test_lock_lost_with_its_session_is_taken_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of the database fails no living worker: it has its lock again before it is looked at twice."""
    assert worker_lock.PING * 2 < launcher.PATIENCE
    monkeypatch.setattr(worker_lock, "PING", 0.2)
    run = dg.DagsterRun("refresh")
    url = platform.settings.dagster_postgres_url or ""
    lock = WorkerLock(url, run.run_id)
    with psycopg.connect(url, autocommit=True) as connection:
        holder = (
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        )
        (before,) = connection.execute(holder).fetchall()
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", before)
        assert health(platform, run) == WorkerStatus.RUNNING
        until(lambda: storage_of(platform).worker_lives(run.run_id))
        assert connection.execute(holder).fetchall() != [before]
        assert health(platform, run) == WorkerStatus.RUNNING
        monkeypatch.setattr(launcher, "PATIENCE", 0)
        lock.release()
        until(lambda: not storage_of(platform).worker_lives(run.run_id))


def test_machine_that_vanishes_loses_its_lock(platform: Platform) -> None:
    """The server ends a silent session soon; by default a lock would outlive its machine by two hours."""
    lock = WorkerLock(platform.settings.dagster_postgres_url or "", "a-run")
    lock.release()
    with lock._take() as connection:
        found = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in worker_lock.KEEPALIVE]
    assert found == [(value,) for value in worker_lock.KEEPALIVE.values()]


def test_locks_have_the_names_of_their_runs() -> None:
    """Two runs never share a lock."""
    assert locks.run_worker("a") != locks.run_worker("b")
