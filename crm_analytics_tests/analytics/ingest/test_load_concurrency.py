"""Loads that run at once, and loads that are killed: nothing doubles, nothing stays half done, no link is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.loading import ledger, load, load_file
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.loading.results import LoadResult
from crm_analytics.core import locks
from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    JOBS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    job,
    set_ages,
    text,
)
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked


def _at_once(*actions: Callable[[], LoadResult]) -> list[LoadResult]:
    """Runs the actions in threads that start together; raises an error of any of them here."""
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
        thread.join(PATIENCE)
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[number] for number in range(len(actions))]


def _lead_files(landing: Landing, count: int) -> None:
    for day in range(1, count + 1):
        rows = [(f"L{n}", "2025-01-05 10:21:17 -0500", "01:10", str(day), "ok", "") for n in range(50)]
        landing.write(f"elocals_leads/{day:02}.csv", text(ELOCALS, rows), day=day)


def test_two_loads_of_one_source(landing: Landing, analytics_url: str) -> None:
    """Loads of one source wait for each other, so that the sensor's run and a person's don't load a file twice."""
    _lead_files(landing, 6)

    def load() -> LoadResult:
        return load_source(analytics_url, landing.folder, "elocals_leads", timezone=NEW_YORK)

    results = _at_once(load, load)
    assert sorted(len(result.files) for result in results) == [0, 6]
    assert landing.rows("SELECT count(*), sum(records_read) FROM raw.source_files") == [(6, 300)]
    assert landing.rows("SELECT DISTINCT cost::int FROM raw.elocals_leads") == [(6,)]


def test_jobs_and_payments_at_once(landing: Landing, analytics_url: str) -> None:
    """Jobs and payments loaded in two transactions at once find each other; otherwise they would never be linked."""
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
    """Payments wait for jobs that are not committed yet, which their lookup could not see."""
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
    loading.join(PATIENCE)
    assert landing.rows("SELECT job_id FROM raw.payments") == [("A",)]


def test_two_loads_meet_the_same_unrecognized_file(
    landing: Landing, analytics_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two loads may meet the same unrecognized file at once; neither fails over it."""
    landing.write("minutes.csv", "who,what\nAnn,talked\n")
    landing.write("jobs/a.csv", text(JOBS, [job(1, "AAAAAA")]))
    landing.write("payments/a.csv", text(PAYMENTS, [("P1", "1", "11/16/2024", "10", "", "", "")]))
    barrier = threading.Barrier(2)
    original = ledger.identify

    def identify(connection: Any, source: str | None, *arguments: Any) -> int:
        if source is None:  # both have found the file before either has written it
            barrier.wait(PATIENCE)
        return original(connection, source, *arguments)

    monkeypatch.setattr(ledger, "identify", identify)
    results = _at_once(
        lambda: load_source(analytics_url, landing.folder, "jobs", timezone=NEW_YORK),
        lambda: load_source(analytics_url, landing.folder, "payments", timezone=NEW_YORK),
    )
    assert [result.totals.inserted for result in results] == [1, 1]
    assert landing.rows("SELECT status FROM raw.source_files WHERE path = 'minutes.csv'") == [
        ("unrecognized",)
    ]


_KILLED = """
import os, signal, sys
from pathlib import Path
from zoneinfo import ZoneInfo
from crm_analytics.analytics.ingest.loading import load, load_file
original = load_file.merge
seen = 0
def merge(*args):
    global seen
    seen += 1
    result = original(*args)
    if seen == 3:
        print("third file merged, not committed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return result
load_file.merge = merge
load.load_source(sys.argv[1], Path(sys.argv[2]), "elocals_leads", timezone=ZoneInfo("America/New_York"))
"""


def test_killed_between_files(landing: Landing, analytics_url: str) -> None:
    """A kill leaves whole files only, and the next load continues with the rest."""
    _lead_files(landing, 5)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, analytics_url, str(landing.folder)],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).parents[3],
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


_KILLED_IN_COPY = """
import os, signal, sys
from pathlib import Path
from zoneinfo import ZoneInfo
from crm_analytics.analytics.ingest.loading.load import load_source
from psycopg import Copy
original = Copy.write
def write(self, rows):
    original(self, rows)
    self.connection.pgconn.flush()
    print("rows sent, COPY not ended", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
Copy.write = write
load_source(sys.argv[1], Path(sys.argv[2]), "elocals_leads", timezone=ZoneInfo("America/New_York"))
"""


def test_killed_during_copy(landing: Landing, analytics_url: str) -> None:
    """A kill while PostgreSQL takes the rows leaves none of them, and no lock."""
    _lead_files(landing, 1)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_IN_COPY, analytics_url, str(landing.folder)],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert b"rows sent" in killed.stdout
    assert landing.rows("SELECT count(*) FROM raw.source_files") == [(0,)]
    assert landing.rows("SELECT count(*) FROM raw.elocals_leads") == [(0,)]
    assert landing.load_one("elocals_leads").counts.inserted == 50


ROW = ("A", "2025-01-05 10:21:17", "", "1", "", "")


def test_young_file_gets_time_to_settle(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh right after copying a file waits for it, and loads all of it."""
    landing.write("elocals_leads/a.csv", text(ELOCALS, [ROW]), day=1)
    ages = set_ages(monkeypatch, {"elocals_leads/a.csv": 2.0})

    def sleep(seconds: float) -> None:
        ages["elocals_leads/a.csv"] += seconds

    monkeypatch.setattr(load, "time", SimpleNamespace(sleep=sleep))
    lines: list[str] = []
    assert landing.load_one("elocals_leads", quiet_seconds=5, report=lines.append).status == "loaded"
    assert lines[0] == "elocals_leads: waiting 3 s for elocals_leads/a.csv to settle"
    lines.clear()
    ages["elocals_leads/a.csv"] = 2.0
    landing.load("elocals_leads", quiet_seconds=5, report=lines.append)
    assert lines == []


@pytest.mark.parametrize("force", [False, True])
def test_file_that_still_grows_waits(force: bool, landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that still grows is left for a later run: half a copy may read well, too."""
    landing.write("elocals_leads/done.csv", text(ELOCALS, [ROW]), day=1)
    growing = landing.write("elocals_leads/growing.csv", text(ELOCALS, []), day=2)
    loose = landing.write("loose.csv", "Unique", day=2)
    ages = set_ages(
        monkeypatch, {"elocals_leads/done.csv": 4.0, "elocals_leads/growing.csv": 1.0, "loose.csv": 1.0}
    )

    def sleep(seconds: float) -> None:
        ages["elocals_leads/done.csv"] += seconds
        growing.write_text(growing.read_text() + "B,2025-01-05 10:21:17,,1234\n")
        loose.write_text(loose.read_text() + " ID")

    monkeypatch.setattr(load, "time", SimpleNamespace(sleep=sleep))
    files = landing.load("elocals_leads", quiet_seconds=5, force=force).files
    done, waiting = sorted(files, key=lambda file: file.path)
    assert (done.status, waiting.path, waiting.status) == ("loaded", "elocals_leads/growing.csv", "waiting")
    assert "may still be growing" in (waiting.message or "")
    assert landing.rows("SELECT path FROM raw.source_files") == [("elocals_leads/done.csv",)]


def _while_read(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
    """Makes something happen between a file's fingerprint and its reading."""
    original = load_file.open_file

    def open_file(*arguments: Any, **options: Any) -> Any:
        happen()
        return original(*arguments, **options)

    monkeypatch.setattr(load_file, "open_file", open_file)


@pytest.mark.parametrize("fault", ["truncated", "removed", "copied over with its time and size"])
def test_refusal_of_a_file_that_changes_meanwhile_is_not_kept(
    fault: str, landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes while it is read is not refused for good: its content may be fine."""
    good = text(ELOCALS, [ROW])
    path = landing.write("elocals_leads/a.csv", good, day=1)

    def happen() -> None:
        if fault == "removed":
            path.unlink()
            return
        landing.write("elocals_leads/a.csv", "" if fault == "truncated" else "x" * len(good), day=1)

    with monkeypatch.context() as patched:
        _while_read(patched, happen)
        assert landing.load_one("elocals_leads").status == "waiting"
    assert landing.rows("SELECT count(*) FROM raw.source_files") == [(0,)]
    landing.write("elocals_leads/a.csv", good, day=1)
    assert landing.load_one("elocals_leads").counts.inserted == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_disk_error_refuses_nothing(wrapped: bool, landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk error refuses nothing in the ledger; a loaded file keeps its place in the order."""
    landing.write("elocals_leads/2.csv", text(ELOCALS, [ROW]), day=2)
    landing.load("elocals_leads")

    def fail() -> None:
        error = OSError(errno.EIO, "Input/output error")
        if wrapped:
            raise RefusedFile("2.csv", Reason("changed_or_vanished_while_it_was_read")) from error
        raise error

    with monkeypatch.context() as patched:
        _while_read(patched, fail)
        failed = landing.load_one("elocals_leads", force=True)
    assert (failed.status, failed.file_id) == ("refused", 0)
    assert (
        failed.message == '"Input/output error": cannot be read; check that it is there, and its permissions'
    )
    assert landing.rows("SELECT status FROM raw.source_files") == [("loaded",)]
    landing.write(
        "elocals_leads/1.csv", text(ELOCALS, [("A", "2025-01-05 10:21:17", "", "9", "", "")]), day=1
    )
    assert landing.load_one("elocals_leads").counts.superseded == 1


def test_file_that_changes_while_it_is_read_waits(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is overwritten while it is read waits; half of it is never loaded."""
    path = landing.write("elocals_leads/a.csv", text(ELOCALS, []), day=1)
    landing.write(
        "elocals_leads/a.csv", text(ELOCALS, [("A", "2025-01-05 10:21:17", "", "1", "", "")]), day=2
    )

    def grow(*arguments: Any) -> Any:
        path.write_text(path.read_text() + "B,2025-01-05 10:21:17,,1,,\n")
        return original(*arguments)

    original = load_file.merge
    with monkeypatch.context() as patched:
        patched.setattr(load_file, "merge", grow)
        assert landing.load_one("elocals_leads").status == "waiting"
    assert landing.rows("SELECT count(*) FROM raw.source_files") == [(0,)]
    assert landing.load_one("elocals_leads").counts.inserted == 2


def test_a_waiting_load_names_the_lock_holder_and_gives_up(
    landing: Landing, analytics_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forgotten session that holds the load's lock is named, and the wait ends; any login could stop loads silently."""
    monkeypatch.setattr(load, "LOAD_PATIENCE", 1)
    landing.write("jobs/a.csv", text(JOBS, [job(1)]))
    lines = list[str]()
    with psycopg.connect(analytics_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [locks.load("jobs")])
        holder = f"process {other.info.backend_pid}, role {other.info.user}"
        with pytest.raises(locks.LockHeld, match=f"{holder} holds it"):
            load_source(analytics_url, landing.folder, "jobs", timezone=NEW_YORK, report=lines.append)
    assert lines == [f"jobs: waiting for another load of this source: {holder}"]
    assert landing.load("jobs").files[0].status == "loaded"


class Interrupted(BaseException):
    """What a signal handler raises; psycopg knows KeyboardInterrupt only."""


@pytest.mark.parametrize("where", ["in the file", "before it"])
def test_interrupted_load_says_so(landing: Landing, analytics_url: str, where: str) -> None:
    """An interrupt ends a load as an interrupt; an error while tidying up would hide it, and the run would go on."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    landing.write("jobs/a.csv", text(JOBS, [job(1)]))
    held = (
        "LOCK TABLE raw.jobs IN EXCLUSIVE MODE"
        if where == "in the file"
        else (f"SELECT pg_advisory_xact_lock(hashtextextended('{locks.load('jobs')}', 0))")
    )
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with landing.connection.transaction(), pytest.raises(Interrupted):
            landing.connection.execute(held.encode())
            signal.setitimer(signal.ITIMER_REAL, 2)
            load_source(analytics_url, landing.folder, "jobs", timezone=NEW_YORK)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert landing.load("jobs").files[0].status == "loaded", "it holds no lock any more"


WAITING_LOAD = """
import sys
from pathlib import Path
from zoneinfo import ZoneInfo
from crm_analytics.analytics.ingest.loading.load import load_source
load_source(sys.argv[1], Path(sys.argv[2]), "jobs", timezone=ZoneInfo("America/New_York"))
"""


def test_killed_load_gives_up_its_locks_while_it_waits(landing: Landing, analytics_url: str) -> None:
    """The server notices a killed client in the middle of a statement; otherwise the next load would wait for it."""
    landing.write("jobs/a.csv", text(JOBS, [job(1)]))
    with psycopg.connect(analytics_url) as holder:
        holder.execute("LOCK TABLE raw.jobs IN EXCLUSIVE MODE")
        with subprocess.Popen(
            [sys.executable, "-c", WAITING_LOAD, analytics_url, str(landing.folder)]
        ) as loader:
            wait_until_blocked(landing.connection, "relation")
            loader.kill()
        for _ in range(10 * PATIENCE):
            if landing.rows(
                f"SELECT pg_try_advisory_xact_lock(hashtextextended('{locks.load('jobs')}', 0))"
            ) == [(True,)]:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the killed load still holds its lock")
