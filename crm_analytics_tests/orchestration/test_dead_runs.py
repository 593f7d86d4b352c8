"""`crm-analytics up` whose processes are killed or interrupted while they load, and its limits on runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from crm_analytics.cli.serving import FAREWELL
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, job_row
from crm_analytics_tests.orchestration.test_end_to_end import page
from crm_analytics_tests.ports import free_port

PROGRAM = Path(sys.executable).parent / "crm-analytics"
#: Seconds in which a file has to be loaded after a kill or a restart.
PROMISED = 120
#: The advisory lock that a load of jobs waits for in these databases.
HANGING = 4711
#: Seconds between two looks of the daemon into the queue.
DEQUEUE_INTERVAL = 5
#: Seconds between two looks of the daemon at the workers.
POLL_INTERVAL = 10


class Served:
    """`crm-analytics up` on databases and folders of its own."""

    def __init__(self, new_database: Callable[..., str], folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.analytics, self.dagster = new_database("analytics"), new_database("dagster")
        self.environment = {
            **os.environ,
            "ANALYTICS_DATABASE_URL": self.analytics,
            "CRM_DATABASE_URL": new_database("crm"),
            "DAGSTER_POSTGRES_URL": self.dagster,
            "LANDING_DIR": str(folder / "landing"),
            "CRM_ANALYTICS_HOME": str(folder / "state"),
            "START_MONTH": "2024-10",
        }
        (folder / "landing" / "jobs").mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        with psycopg.connect(self.analytics, autocommit=True) as connection:
            connection.execute(
                f"""
                CREATE FUNCTION public.hang() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN PERFORM pg_advisory_xact_lock({HANGING}); RETURN NULL; END $$;
                CREATE TRIGGER hang AFTER INSERT ON raw.jobs EXECUTE FUNCTION public.hang()
                """.encode()
            )

    def start(self) -> None:
        self.process = self.run("up", "--port", str(self.port))

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts a command of the platform, whose output goes to the log."""
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen([PROGRAM, *words], env=self.environment, stdout=log, stderr=log)

    def drop(self, name: str) -> None:
        """Drops an export with one job, which was written long ago."""
        path = self.folder / "landing" / "jobs" / f"{name}.csv"
        path.write_text(f"{JOBS_HEADER}\n{job_row(f'JOB{name}', '2024-10-31')}\n")
        os.utime(path, (time.time() - 60, time.time() - 60))

    def query(self, url: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(sql.encode(), values).fetchall()

    def loaded(self, name: str) -> bool:
        return bool(self.query(self.analytics, "SELECT FROM raw.jobs WHERE job_id = %s", f"JOB{name}"))

    def status(self, run_id: str) -> str:
        return str(self.query(self.dagster, "SELECT status FROM runs WHERE run_id = %s", run_id)[0][0])

    def runs(self) -> list[str]:
        """Returns the ids of the runs that loads belong to, the newest first."""
        sql = "SELECT run_id FROM runs WHERE pipeline_name = 'refresh' ORDER BY id DESC"
        return [run_id for (run_id,) in self.query(self.dagster, sql)]

    def worker(self, run_id: str) -> psutil.Process:
        """Returns the process that executes a run, as the run's events name it."""
        events = self.query(self.dagster, "SELECT event FROM event_logs WHERE run_id = %s", run_id)
        (pid,) = {found[1] for (event,) in events if (found := re.search(r"for run \(pid: (\d+)\)", event))}
        return psutil.Process(int(pid))

    def code_server(self) -> psutil.Process | None:
        for process in self.processes():
            with suppress(psutil.Error):
                if "grpc" in process.cmdline():
                    return process
        return None

    def processes(self) -> list[psutil.Process]:
        assert self.process
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        """Kills the command itself, and nothing that it started."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def kill_everything(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert self.process
        self.process.wait()

    def wait(self, condition: Callable[[], Any], seconds: float = PROMISED) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            log = (self.folder / "log").read_text()
            states = self.query(
                self.dagster, "SELECT pipeline_name, status, create_timestamp::text FROM runs ORDER BY id"
            )
            assert time.monotonic() < deadline, f"{log[-3000:]}\n{states}"
            time.sleep(0.3)

    @contextmanager
    def hanging_loads(self) -> Iterator[None]:
        """Lets loads hang in the middle: they have written their rows, and have to wait for us before they go on."""
        with psycopg.connect(self.analytics) as connection:
            connection.execute(f"SELECT pg_advisory_xact_lock({HANGING})")
            yield

    def wait_until_loading(self) -> str:
        """Waits until a load hangs; returns its run."""
        blocked = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = %s"
        self.wait(lambda: self.query(self.analytics, blocked, HANGING))
        loading = (
            "SELECT DISTINCT run_id FROM runs JOIN event_logs USING (run_id) WHERE status = 'STARTED'"
            " AND step_key = 'raw__jobs' AND dagster_event_type = 'STEP_START'"
        )
        ((run,),) = self.query(self.dagster, loading)
        return str(run)


@pytest.fixture
def up(new_database: Callable[..., str], tmp_path: Path) -> Iterator[Served]:
    served = Served(new_database, tmp_path)
    yield served
    if served.process and served.process.poll() is None:
        served.kill_everything()


def test_killed_load_is_done_again_by_itself(up: Served) -> None:
    """Whatever is killed during a load, its file is loaded once, within two minutes and without help."""
    up.drop("A")
    with up.hanging_loads():
        refresh = up.run("refresh")
        run = up.wait_until_loading()
        refresh.kill()
        refresh.wait()
        up.start()
        up.wait(lambda: up.status(run) == "FAILURE")
    up.wait(lambda: up.loaded("A"))

    with up.hanging_loads():
        up.drop("B")
        run = up.wait_until_loading()
        up.worker(run).kill()
        up.wait(lambda: up.status(run) == "FAILURE", 30)
    up.wait(lambda: up.loaded("B"))

    with up.hanging_loads():
        up.drop("C")
        run = up.wait_until_loading()
        killed = up.code_server()
        assert killed is not None
        killed.kill()
        at = time.monotonic()
        up.wait(lambda: up.code_server() not in (None, killed))
        up.wait(lambda: time.monotonic() - at > 3 * POLL_INTERVAL)
        assert up.status(run) == "STARTED", "an orphaned worker lives and works on"
    up.wait(lambda: up.status(run) == "SUCCESS")
    assert up.loaded("C")

    with up.hanging_loads():
        up.drop("D")
        run = up.wait_until_loading()
        up.kill_everything()
    assert not up.loaded("D") and up.status(run) == "STARTED"
    up.start()
    up.wait(lambda: up.loaded("D"))
    assert up.status(run) == "FAILURE"

    with up.hanging_loads():
        up.drop("E")
        run = up.wait_until_loading()
        left = up.processes()
        up.kill()
        up.wait(lambda: not any(map(lives, left)), 2 * FAREWELL)
        assert up.status(run) == "FAILURE", "what `up` leaves behind when it is killed ends by itself"
    ledger = up.query(
        up.analytics, "SELECT path, count(*) FROM raw.source_files WHERE status = 'loaded' GROUP BY 1"
    )
    assert sorted(ledger) == [(f"jobs/{name}.csv", 1) for name in "ABCD"]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


LAUNCH = """
mutation($job: String!, $assets: [AssetKeyInput!], $tags: [ExecutionTag!]) {
  launchRun(executionParams: {
    selector: {repositoryName: "__repository__", repositoryLocationName: "crm_analytics.definitions",
               jobName: $job, assetSelection: $assets},
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""


def launch(up: Served, job: str, assets: list[str] | None = None) -> str:
    """Launches a run as the UI does; returns its id."""
    tags = [
        {"key": f"dagster/asset_partition_range_{end}", "value": "2024-10"}
        for end in ("start", "end")
        if assets
    ]
    keys = [{"path": asset.split("/")} for asset in assets] if assets else None
    launched = page(up.port, LAUNCH, {"job": job, "assets": keys, "tags": tags})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def test_checks_run_while_loads_hang_and_an_interrupt_ends_them(up: Served) -> None:
    """Three hanging loads hold up a fourth, however it was started, but no checks; Ctrl+C ends what doesn't end by itself."""
    up.start()
    with up.hanging_loads():
        up.drop("A")
        loads = [up.wait_until_loading()]
        loads += [launch(up, "refresh", ["raw/jobs"]) for _ in range(3)]
        up.wait(lambda: [up.status(run) for run in loads[:3]] == ["STARTED"] * 3)
        checks = launch(up, "crm_guards")
        up.wait(lambda: up.status(checks) not in ("QUEUED", "NOT_STARTED"))
        ((waited,),) = up.query(
            up.dagster,
            "SELECT extract(epoch FROM max(timestamp) - min(timestamp))::float FROM event_logs"
            " WHERE run_id = %s AND dagster_event_type IN ('PIPELINE_ENQUEUED', 'PIPELINE_STARTING')",
            checks,
        )
        # one interval, on a machine that has time
        assert 0 < waited < 6 * DEQUEUE_INTERVAL
        up.wait(lambda: up.status(checks) == "SUCCESS")
        assert [up.status(run) for run in loads] == ["STARTED"] * 3 + ["QUEUED"]
        assert up.process
        up.process.send_signal(signal.SIGINT)
        time.sleep(1)
        up.process.send_signal(signal.SIGINT)
        up.process.wait(3 * FAREWELL)
        assert [up.status(run) for run in loads] == ["FAILURE"] * 3 + ["QUEUED"]
        *_, last = (up.folder / "log").read_text().splitlines()
        assert last == "stopped; if runs were interrupted, the next start does their work again"
        told = "SELECT count(*) FROM run_tags WHERE key = 'dagster/failure_reason' AND value = 'UNEXPECTED_TERMINATION'"
        assert up.query(up.dagster, told) == [(3,)], "each worker has stored that it was interrupted"
    up.start()
    up.wait(lambda: up.loaded("A"))
