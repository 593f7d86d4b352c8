"""`crm-analytics up` with its daemon, and a file that is dropped while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, PAYMENTS_HEADER, job_row
from crm_analytics_tests.ports import free_port

#: As behind a reverse proxy.
PREFIX = "/dagster"


def test_late_payments_file_is_seen_by_the_next_tick(
    new_database: Callable[..., str], tmp_path: Path
) -> None:
    """A payments file for old jobs corrects its month and recomputes no other; a backfill from the UI is one run.

    The first look at the folder after the file has settled asks for it. On a machine that has time this takes seconds.
    """
    url, port, landing = new_database(), free_port(), tmp_path / "landing"
    environment = {
        **os.environ,
        "ANALYTICS_DATABASE_URL": url,
        "CRM_DATABASE_URL": new_database(),
        "DAGSTER_POSTGRES_URL": new_database(),
        "LANDING_DIR": str(landing),
        "CRM_ANALYTICS_HOME": str(tmp_path / "state"),
        "START_MONTH": "2024-01",
    }
    (landing / "jobs").mkdir(parents=True)
    (landing / "payments").mkdir()
    days = ("2024-10-31", "2024-11-15", "2025-02-03")  # past ones: a future month has no partition
    lines = [job_row(f"JOB{n:03d}", day) for n, day in enumerate(days)]
    (landing / "jobs" / "jobs.csv").write_text("\n".join([JOBS_HEADER, *lines]) + "\n")
    log = (tmp_path / "up.log").open("w")
    program = Path(sys.executable).parent / "crm-analytics"
    telemetry = PROJECT_DIR / ".logs_queue"
    had_telemetry = telemetry.exists()
    up = subprocess.Popen(
        [program, "up", "--port", str(port), "--path-prefix", PREFIX], env=environment, stdout=log, stderr=log
    )
    try:
        wait_for(PATIENCE, lambda: len(monthly(url)) == 3, tmp_path)
        assert monthly(url) == {"2024-10": (0, "0.00"), "2024-11": (0, "0.00"), "2025-02": (0, "0.00")}
        storage = environment["DAGSTER_POSTGRES_URL"]
        marked = log_of_refreshes(url, storage)
        part = landing / "payments" / "late.csv.part"
        part.write_text("\n".join([PAYMENTS_HEADER, "p1,JOB000,100.01,2025-03-01,paid"]) + "\n")
        late = part.rename(landing / "payments" / "late.csv")
        assert f"http://127.0.0.1:{port}{PREFIX} (" in (tmp_path / "up.log").read_text()
        wait_for(PATIENCE, lambda: monthly(url)["2024-10"] == (1, "100.01"), tmp_path)
        assert set(log_of_refreshes(url, storage)[len(marked) :]) == {"2024-10"}
        settled, asked = late.stat().st_ctime + LocalFolder.quiet_seconds, ticks(storage, "SUCCESS")[-1]
        assert not [at for at in ticks(storage, "SKIPPED") if settled < at < asked]
        assert backfill(port, ["2024-09", "2024-10", "2024-11"], tmp_path) == 1
        wait_for(PATIENCE, lambda: statuses_of_unscheduled_runs(storage) == {"SUCCESS"}, tmp_path)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(PATIENCE)
        log.close()
    assert telemetry.exists() == had_telemetry, "`up` leaves no folder of telemetry in the checkout"


def wait_for(seconds: float, condition: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (psycopg.Error, KeyError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError((folder / "up.log").read_text()[-3000:])
        time.sleep(0.5)


def monthly(url: str) -> dict[str, tuple[int, str]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT to_char(month, 'YYYY-MM'), repairs, revenue_gross::text FROM analytics.monthly_metrics"
        )
        return {month: (repairs, revenue) for month, repairs, revenue in rows}


def log_of_refreshes(url: str, storage: str) -> list[str]:
    """Returns the months in the order of their refreshes, without those of a schedule, which may start at any moment."""
    with psycopg.connect(storage) as connection:
        scheduled = [
            run_id
            for (run_id,) in connection.execute(
                "SELECT run_id FROM run_tags WHERE key = 'dagster/schedule_name'"
            )
        ]
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT to_char(month, 'YYYY-MM') FROM analytics.refresh_log"
            " WHERE run_id <> ALL (%s) ORDER BY refresh_id",
            [scheduled],
        )
        return [month for (month,) in rows]


def ticks(url: str, status: str) -> list[float]:
    """Returns when the landing sensor's ticks of this status began, in order."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT extract(epoch FROM timestamp AT TIME ZONE 'UTC')::float FROM job_ticks"
            " WHERE status = %s AND tick_body::json ->> 'job_name' = 'load_landing_files' ORDER BY 1",
            [status],
        )
        return [at for (at,) in rows]


def statuses_of_unscheduled_runs(url: str) -> set[str]:
    """Returns the statuses of runs that a sensor or a person started; a schedule may start one at any moment."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT DISTINCT status FROM runs WHERE NOT EXISTS (SELECT FROM run_tags t"
            " WHERE t.run_id = runs.run_id AND t.key = 'dagster/schedule_name')"
        )
        return {status for (status,) in rows}


BACKFILL = """
mutation($months: [String!]!) {
  launchPartitionBackfill(backfillParams: {
    assetSelection: [{path: ["raw", "jobs"]}, {path: ["analytics", "daily_metrics"]}, {path: ["analytics", "monthly_metrics"]}],
    partitionNames: $months
  }) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
}"""
STATUS = """
query($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
  runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) { ... on Runs { results { status } } }
}"""


def backfill(port: int, months: list[str], folder: Path) -> int:
    """Launches a backfill as the UI does, waits for its success, and returns its number of runs."""
    launched = page(port, BACKFILL, {"months": months}, PREFIX)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    variables = {"id": launched["backfillId"]}
    ask = lambda: page(port, STATUS, variables, PREFIX)  # noqa: E731
    done = lambda: ask()["partitionBackfillOrError"]["status"] == "COMPLETED_SUCCESS"  # noqa: E731
    wait_for(PATIENCE, done, folder)
    return len(ask()["runsOrError"]["results"])


def page(port: int, query: str, variables: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{prefix}/graphql",
        json.dumps({"query": query, "variables": variables or {}}).encode(),
        {"Content-Type": "application/json"},
    )
    answer: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=PATIENCE))["data"]
    return answer
