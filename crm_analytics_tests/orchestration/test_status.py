"""`crm-analytics status`: what it finds in a platform that is well, and in one where everything needs a person."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest
from dagster._core.utils import make_new_run_id

from crm_analytics.cli.status import to_json, to_lines
from crm_analytics.orchestration.status import Status, status
from crm_analytics.orchestration.worker_lease import WatchedRunStorage
from crm_analytics_tests.analytics.ingest.landing_folder import set_ages
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row
from crm_analytics_tests.orchestration.daemon import running

OCTOBER = date(2024, 10, 1)
NEW_YORK = ZoneInfo("America/New_York")
MINUTES = timedelta(minutes=1)


def look(platform: Platform, later: timedelta = timedelta(0)) -> Status:
    """Returns the status as it will be when so much time has passed."""
    with psycopg.connect(platform.url, autocommit=True) as connection:
        return status(
            platform.settings, connection, platform.instance, platform.defs, datetime.now(UTC) + later
        )


def loaded(platform: Platform) -> Platform:
    """Loads a job of October 20 and computes its month, on October 21."""
    platform.set_today("2024-10-21")
    platform.drop("jobs/good.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-20"))
    assert platform.run(OCTOBER, OCTOBER).success
    return platform


def command(platform: Platform, *options: str) -> tuple[int, str]:
    """Runs `crm-analytics status` in a process of its own; returns its exit code and what it printed."""
    done = subprocess.run(
        [Path(sys.executable).parent / "crm-analytics", "status", *options],
        env=platform.settings.environment(), text=True, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_nothing_needs_a_person_when_all_is_well(platform: Platform) -> None:
    """The command says so with exit code 0, and shows the last refresh and the newest rows."""
    loaded(platform)
    code, printed = command(platform)
    lines = printed.splitlines()
    assert code == 0 and lines[-1] == "nothing needs a person"
    assert "stale months     none" in lines
    assert "  jobs           2024-10-20  fresh, 1 day old" in lines
    assert "  calls          –           empty" in lines
    code, printed = command(platform, "--json")
    found = json.loads(printed)
    assert code == 0 and not found["needs_a_person"] and not found["daemon_runs"]
    assert found["freshness"][0] == {
        "source": "jobs", "state": "fresh", "newest": "2024-10-20", "days": 1, "warn_days": 3, "error_days": 7,
    }  # fmt: skip
    assert datetime.now(UTC) - datetime.fromisoformat(found["last_refresh"]) < timedelta(seconds=PATIENCE)


def test_what_the_platform_does_by_itself_needs_nobody_for_a_quarter_of_an_hour(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale month and a new file are shown at once, and need a person when nothing has come of them."""
    loaded(platform)
    platform.execute("UPDATE raw.jobs SET type = 'INS Service'")
    platform.drop("jobs/new.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-20"))
    ages = set_ages(monkeypatch, {"jobs/good.csv": 0, "jobs/new.csv": 14 * 60})
    found = look(platform, 14 * MINUTES)
    assert [stale.month for stale in found.stale_months] == [OCTOBER]
    assert [file.path for file in found.waiting] == ["jobs/new.csv"]
    assert found.to_do == []
    ages["jobs/new.csv"] = 16 * 60
    stale, waiting = look(platform, 16 * MINUTES).to_do
    assert stale.startswith(
        "2024-10 is stale (jobs update) and nothing computes it: crm-analytics refresh --from 2024-10 "
    )
    assert (
        waiting == "jobs/new.csv waits and nothing loads it: crm-analytics refresh loads it, or says why not"
    )


def test_files_rows_and_expectations_that_need_a_person(platform: Platform) -> None:
    """Refused files, quarantined records, silence and a misspelled expectation come with their remedies; exit code 1."""
    loaded(platform)
    platform.drop("jobs/login.csv", "<!DOCTYPE html><html><body>Sign in</body></html>")
    platform.drop("jobs/bad.csv", JOBS_HEADER, job_row("CCCCCC", "soon"))
    assert platform.run(OCTOBER, OCTOBER).success
    platform.execute("INSERT INTO analytics.source_expectations VALUES ('job', 1, 2)")
    platform.set_today("2024-10-28")
    refused, quarantine, silent, unknown = look(platform).to_do
    assert refused.startswith("jobs/login.csv is not loaded: ")
    assert quarantine.startswith("1 record in quarantine: correct in the tool and export again, or dismiss")
    assert silent.startswith(
        "jobs is silent: the newest row is of 2024-10-20, 8 days old; expected: 7 days at most."
    )
    assert unknown.startswith(
        "analytics.source_expectations has limits for job, which is no source: write jobs, payments"
    )
    code, printed = command(platform)
    assert code == 1
    assert "not loaded       jobs/login.csv" in printed and "quarantine       jobs 1" in printed
    assert printed.splitlines()[-5] == "needs a person"


def test_dead_runs_need_a_person_only_without_the_daemon(platform: Platform) -> None:
    """A started run without a lease is dead. The daemon repeats its work; without it somebody has to start one."""
    storage = platform.instance.run_storage
    assert isinstance(storage, WatchedRunStorage)
    run = dg.DagsterRun("refresh", run_id=make_new_run_id(), status=dg.DagsterRunStatus.STARTED)
    storage.add_run(run)
    found = look(platform)
    assert [dead.run_id for dead in found.dead_runs] == [run.run_id]
    assert found.to_do == [
        f"run {run.run_id} of refresh is dead, its process is gone: crm-analytics up, or the daemon, marks it as failed"
        " and does its work again"
    ]


def test_failed_runs_sensors_and_checks_need_a_person(
    platform: Platform, new_database: Callable[..., str]
) -> None:
    """The newest run of a job that failed, a sensor that fails three ticks in a row, and a check of severity ERROR."""
    loaded(platform)
    platform.change(crm_database_url=new_database())
    with running(platform) as daemon:
        daemon.tick(3)
    platform.execute("UPDATE analytics.daily_metrics SET revenue_gross = revenue_gross + 1")
    for job in ("check_history", "crm_seal"):
        failing = platform.defs.resolve_job_def(job)
        assert not failing.execute_in_process(instance=platform.instance, raise_on_error=False).success
    found = look(platform)
    assert [run.job for run in found.failed_runs] == ["check_history", "crm_seal"]
    assert [ticks.name for ticks in found.failing_ticks] == ["number_crm_changes"]
    assert list(found.failing_checks) == [
        "analytics/daily_metrics: metrics_equal_facts", "analytics/daily_metrics: revenue_adds_up",
        "analytics/monthly_metrics: daily_adds_up_to_monthly",
    ]  # fmt: skip
    assert [text.split(":")[0].split(",")[0] for text in found.to_do] == [
        "the newest run of check_history failed",
        "the newest run of crm_seal failed",
        "sensor number_crm_changes fails",
        "check analytics/daily_metrics",
        "check analytics/daily_metrics",
        "check analytics/monthly_metrics",
    ]
    assert set(to_json(found)["failing_checks"]) == set(found.failing_checks)
    assert "failing ticks    number_crm_changes" in to_lines(found, NEW_YORK)
