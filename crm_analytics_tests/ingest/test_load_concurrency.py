"""Loads at once, and loads that are killed: nothing doubled, nothing half, no link lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.ingest import loader
from crm_analytics.ingest.loader import LoadResult, load_source
from crm_analytics_tests.ingest.landing_folder import (
    ELOCALS,
    JOBS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    job,
    text,
)


def _at_once(*actions: Callable[[], LoadResult]) -> list[LoadResult]:
    """Run the actions in threads that start together; an action's error is raised here."""
    barrier = threading.Barrier(len(actions))
    results: dict[int, Any] = {}

    def run(number: int, action: Callable[[], LoadResult]) -> None:
        barrier.wait()
        try:
            results[number] = action()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[number] for number in range(len(actions))]


def _lead_files(landing: Landing, count: int) -> None:
    for day in range(1, count + 1):
        rows = [(f"L{n}", "2025-01-05 10:21:17 -0500", "01:10", str(day), "ok", "") for n in range(50)]
        landing.write(f"elocals_leads/{day:02}.csv", text(ELOCALS, rows), day=day)


def test_two_loads_of_one_source(landing: Landing, analytics_url: str) -> None:
    """Without it the sensor's run and a person's would load a file twice."""
    _lead_files(landing, 6)

    def load() -> LoadResult:
        return load_source(analytics_url, landing.folder, "elocals_leads", timezone=NEW_YORK)

    results = _at_once(load, load)
    assert sorted(len(result.files) for result in results) == [0, 6]
    assert landing.rows("SELECT count(*), sum(records_read) FROM raw.source_files") == [(6, 300)]
    assert landing.rows("SELECT DISTINCT cost::int FROM raw.elocals_leads") == [(6,)]


def test_jobs_and_payments_at_once(landing: Landing, analytics_url: str) -> None:
    """Without it jobs and payments that arrive in two transactions at once would miss each other for good."""
    for _ in range(5):
        landing.connection.execute(
            "TRUNCATE raw.jobs, raw.payments, raw.source_files, raw.rejected_rows, raw.vanished_rows"
        )
        landing.write("jobs/a.csv", text(JOBS, [job(n, f"JOB{n:03}") for n in range(1, 301)]))
        rows = [(f"P{n}", str(n), "11/16/2024", "10", "", "", "") for n in range(1, 301)]
        landing.write("payments/a.csv", text(PAYMENTS, rows))
        _at_once(
            lambda: load_source(analytics_url, landing.folder, "jobs", timezone=NEW_YORK),
            lambda: load_source(analytics_url, landing.folder, "payments", timezone=NEW_YORK),
        )
        assert landing.rows(
            "SELECT count(*) FROM raw.payments WHERE job_id = 'JOB' || lpad(job_number_ref, 3, '0')"
        ) == [(300,)]


def test_payments_load_waits_for_uncommitted_jobs(landing: Landing, analytics_url: str) -> None:
    """Without it the window between a load's look-up of jobs and these jobs' commit would lose the link."""
    landing.write("payments/a.csv", text(PAYMENTS, [("P1", "7", "11/16/2024", "10", "", "", "")]))
    with psycopg.connect(analytics_url) as other:
        other.execute(
            "INSERT INTO raw.jobs (job_id, job_number, created_at, job_date) VALUES ('A', '7', now(), now())"
        )
        loading = threading.Thread(
            target=load_source,
            args=(analytics_url, landing.folder, "payments"),
            kwargs={"timezone": NEW_YORK},
        )
        loading.start()
        loading.join(1)
        assert loading.is_alive()
        other.commit()
    loading.join(30)
    assert landing.rows("SELECT job_id FROM raw.payments") == [("A",)]


_KILLED = """
import os, signal, sys
from pathlib import Path
from zoneinfo import ZoneInfo
from crm_analytics.ingest import merging, loader
seen = 0
def merge(*args):
    global seen
    seen += 1
    result = merging.merge(*args)
    if seen == 3:
        print("third file merged, not committed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return result
loader.merge = merge
loader.load_source(sys.argv[1], Path(sys.argv[2]), "elocals_leads", timezone=ZoneInfo("America/New_York"))
"""


def test_killed_between_files(landing: Landing, analytics_url: str) -> None:
    """Without it a power cut would leave half a file in the table, or lose the files after it."""
    _lead_files(landing, 5)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, analytics_url, str(landing.folder)],
        capture_output=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert landing.rows("SELECT count(*) FROM raw.source_files") == [(2,)]
    assert landing.rows("SELECT count(*), min(cost)::int, max(cost)::int FROM raw.elocals_leads") == [
        (50, 2, 2)
    ]
    assert [file.path[-6:] for file in landing.load("elocals_leads").files] == ["03.csv", "04.csv", "05.csv"]
    assert landing.rows("SELECT count(*), min(cost)::int, max(cost)::int FROM raw.elocals_leads") == [
        (50, 5, 5)
    ]


def test_file_that_changes_while_it_is_read_waits(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a file half overwritten would be loaded as if it were an export."""
    path = landing.write("elocals_leads/a.csv", text(ELOCALS, []), day=1)
    landing.write(
        "elocals_leads/a.csv", text(ELOCALS, [("A", "2025-01-05 10:21:17", "", "1", "", "")]), day=2
    )

    def grow(connection: Any, *arguments: Any) -> Any:
        path.write_text(path.read_text() + "B,2025-01-05 10:21:17,,1,,\n")
        return original(connection, *arguments)

    original = loader.merge
    with monkeypatch.context() as patched:
        patched.setattr(loader, "merge", grow)
        assert landing.load_one("elocals_leads").status == "waiting"
    assert landing.rows("SELECT count(*) FROM raw.source_files") == [(0,)]
    assert landing.load_one("elocals_leads").counts.inserted == 2
