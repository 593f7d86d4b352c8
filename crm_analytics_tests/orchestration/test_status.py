"""`crm-analytics status`: what it finds in a platform that is well, and in one where everything needs a person."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.utils import make_new_run_id
from dagster._daemon.types import DaemonHeartbeat

from crm_analytics.analytics.ingest.storage.landing import Listing
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.cli.status import to_json, to_lines
from crm_analytics.orchestration.alerts import ALERTS_KEY
from crm_analytics.orchestration.retries import RUN_KEY_TAG, WORK_TAG
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


def daemon_lives(platform: Platform) -> None:
    """Makes the daemon give a sign of life now."""
    now = datetime.now(UTC).timestamp()
    platform.instance.add_daemon_heartbeat(DaemonHeartbeat(now, "SENSOR", make_new_run_id()))


def add_run(platform: Platform, status: dg.DagsterRunStatus, tags: dict[str, str] | None = None) -> str:
    """Stores a run of `refresh` that no process executes; returns its id."""
    code = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="crm_analytics.definitions"))
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(code, "__repository__"), "refresh")
    run = dg.DagsterRun(
        "refresh", run_id=make_new_run_id(), status=status, tags=tags or {}, remote_job_origin=origin
    )
    platform.instance.run_storage.add_run(run)
    return run.run_id


def test_runs_that_a_running_daemon_leaves_alone_need_a_person(platform: Platform) -> None:
    """The daemon starts, fails and repeats runs by itself. What it hasn't touched for a quarter of an hour, it won't."""
    loaded(platform)
    daemon_lives(platform)
    queued = add_run(platform, dg.DagsterRunStatus.QUEUED)
    starting = add_run(platform, dg.DagsterRunStatus.STARTING)
    dead = add_run(platform, dg.DagsterRunStatus.STARTED)
    found = look(platform, 14 * MINUTES)
    assert found.daemon_runs and found.to_do == []
    assert {run.run_id for run in found.waiting_runs} == {queued, starting}
    assert [run.run_id for run in found.dead_runs] == [dead]
    lines = to_lines(found, NEW_YORK)
    assert "daemon           runs" in lines and f"dead runs        {dead} (refresh)" in lines
    assert sorted(look(platform, 16 * MINUTES).to_do) == sorted(
        [
            f"run {queued} of refresh is queued and does not start: it waits for others, of which three may load or"
            " compute: cancel those that hang, in the UI",
            f"run {starting} of refresh is starting and does not start: the daemon should have started it or marked it"
            " as failed: restart the daemon",
            f"run {dead} of refresh is dead, its process is gone: the daemon should have marked it as failed: restart"
            " the daemon",
        ]
    )


def test_run_that_waits_without_a_daemon(platform: Platform) -> None:
    """Nothing starts it then, and the remedy is to start what does."""
    run_id = add_run(platform, dg.DagsterRunStatus.QUEUED)
    assert look(platform).to_do == []
    assert look(platform, 16 * MINUTES).to_do == [
        f"run {run_id} of refresh is queued and does not start: crm-analytics up, or the daemon, starts it or does its"
        " work again"
    ]


def test_run_of_a_long_load_that_died_just_now_is_left_to_the_daemon(platform: Platform) -> None:
    """A run is not dead for as long as it has run: its last event is a sign of life."""
    daemon_lives(platform)
    run_id = add_run(platform, dg.DagsterRunStatus.STARTED)
    later = datetime.now(UTC) + 20 * MINUTES
    with freeze_time(later):
        run = platform.instance.get_run_by_id(run_id)
        platform.instance.report_engine_event("still at it", run)
    found = look(platform, 21 * MINUTES)
    assert [dead.run_id for dead in found.dead_runs] == [run_id] and found.to_do == []


def test_failed_run_that_a_sensor_repeats_needs_a_person_only_if_nothing_does(platform: Platform) -> None:
    """The platform repeats what a killed worker left; when that hasn't come for a quarter of an hour, somebody must look."""
    tags = {WORK_TAG: "files:abc", RUN_KEY_TAG: "files:abc:1"}
    run_id = add_run(platform, dg.DagsterRunStatus.STARTED, tags)
    run = platform.instance.get_run_by_id(run_id)
    assert run
    platform.instance.report_run_failed(run, "killed")
    found = look(platform, 14 * MINUTES)
    assert found.to_do == []
    (failed,) = to_json(found)["failed_runs"]
    assert failed == {
        "run_id": run_id, "job": "refresh", "reason": "the run's worker is gone: killed", "is_repeated": True,
    }  # fmt: skip
    assert look(platform, 16 * MINUTES).to_do == [
        f"the newest run of refresh failed, {run_id}: the run's worker is gone: killed\nNothing has repeated it: start"
        " the daemon, or turn on the sensor that asked for it."
    ]


def test_checks_that_a_failed_run_did_not_come_to(platform: Platform) -> None:
    """What they found before says nothing about now, so they read neither passed nor failed: they did not run."""
    loaded(platform)
    assert look(platform).checks_not_run == []
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object) -> None:
            raise ValueError("a defect")

        patch.setattr("crm_analytics.orchestration.analytics.metric_assets.refresh", fail)
        failed = platform.run(OCTOBER, OCTOBER)
    assert not failed.success
    found = look(platform)
    assert {
        "analytics/daily_metrics: metrics_equal_facts", "analytics/monthly_metrics: daily_adds_up_to_monthly",
    } <= set(found.checks_not_run)  # fmt: skip
    assert not any(name.startswith("raw/jobs") for name in found.checks_not_run)
    (run,) = found.to_do
    assert run.startswith(f"the newest run of refresh failed, {failed.run_id}: ")
    assert run.endswith("a defect\nRemove the cause, then start it again.")
    _, checks = look(platform, 16 * MINUTES).to_do
    assert checks.startswith(f"{len(found.checks_not_run)} checks did not run (analytics/")
    assert checks.endswith(
        f", …), because run {failed.run_id} of refresh ended before it came to them: the next run of refresh that"
        " succeeds runs them"
    )
    assert f"checks not run   {found.checks_not_run[0]}, " in "\n".join(to_lines(found, NEW_YORK))
    assert to_json(found)["checks_not_run"] == found.checks_not_run
    assert platform.run(OCTOBER, OCTOBER).success
    assert look(platform, 16 * MINUTES).checks_not_run == []


def test_check_of_months_is_told_by_the_run_over_all_of_them(platform: Platform) -> None:
    """A run of November turns the check green; October, which the nightly job found wrong, is wrong all the same."""
    loaded(platform)
    platform.execute("UPDATE analytics.daily_metrics SET revenue_gross = revenue_gross + 1")

    def check_history() -> bool:
        job = platform.defs.resolve_job_def("check_history")
        return job.execute_in_process(instance=platform.instance, raise_on_error=False).success

    assert not check_history()
    november = date(2024, 11, 1)
    assert platform.run(november, november).success
    found = look(platform)
    assert "analytics/daily_metrics: metrics_equal_facts" in found.failing_checks
    (told,) = (
        text for text in found.to_do if text.startswith("check analytics/daily_metrics: metrics_equal")
    )
    assert told.endswith("\nThe next run of check_history tells whether it passes again.")
    assert platform.run(OCTOBER, OCTOBER).success and check_history()
    assert look(platform).to_do == []


def test_landing_folder_that_is_missing_or_forbidden_needs_a_person(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ends the command: the other parts are told as well."""
    loaded(platform)
    original = os.scandir

    def forbidden(path: str) -> Any:
        if str(path) == str(platform.landing):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", forbidden)
        found = look(platform)
    assert found.to_do == [
        f"the landing folder {platform.landing} cannot be listed (Permission denied): give this user permission to read it"
    ]
    assert found.freshness
    shutil.rmtree(platform.landing)
    code, printed = command(platform)
    assert code == 1
    assert printed.splitlines()[-2:] == [
        "needs a person",
        f"- the landing folder {platform.landing} does not exist: create it, or set LANDING_DIR",
    ]


def test_status_changes_nothing(platform: Platform) -> None:
    """Not even the time of a file that was copied over itself is noted, and the file is told as before."""
    loaded(platform)
    path = platform.drop("jobs/login.csv", "<!DOCTYPE html><html><body>Sign in</body></html>")
    assert platform.run(OCTOBER, OCTOBER).success
    before = platform.query("SELECT xmin::text, * FROM raw.source_files ORDER BY file_id")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert [name for name, _ in look(platform).not_loaded] == ["jobs/login.csv"]
    assert platform.query("SELECT xmin::text, * FROM raw.source_files ORDER BY file_id") == before


def test_status_is_of_one_moment(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while it looks is told next time: its parts never contradict each other."""
    original = LocalFolder.scan

    def meanwhile(landing: LocalFolder) -> Listing:
        platform.execute("INSERT INTO analytics.source_expectations VALUES ('job', 1, 2)")
        return original(landing)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "scan", meanwhile)
        assert look(platform).to_do == []
    assert len(look(platform).to_do) == 1


def test_alerts_are_shown_the_newest_first(platform: Platform) -> None:
    """The last five, with the local time, for people; with UTC for programs."""
    sent = [datetime(2024, 10, day, 23, 30, tzinfo=UTC) for day in range(1, 7)]
    for at in sent:
        with freeze_time(at):
            platform.instance.report_runless_asset_event(
                dg.AssetObservation(ALERTS_KEY, metadata={"alert": f"Alert {at.day}", "outcome": "sent"})
            )
    found = look(platform)
    lines = to_lines(found, ZoneInfo("Europe/Berlin"))
    start = lines.index("alerts, the newest first") + 1
    assert lines[start : start + 6] == [
        *(f"  2024-10-0{day + 1} 01:30  Alert {day} (sent)" for day in (6, 5, 4, 3, 2)),
        "",
    ]
    assert to_json(found)["alerts"][0] == {
        "at": "2024-10-06T23:30:00+00:00", "title": "Alert 6", "outcome": "sent",
    }  # fmt: skip


def test_json_has_every_part(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs find each part under its name, with times in UTC, and nothing that JSON cannot write."""
    loaded(platform)
    platform.execute("UPDATE raw.jobs SET type = 'INS Service'")
    platform.drop("jobs/new.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-20"))
    set_ages(monkeypatch, {"jobs/good.csv": 0, "jobs/new.csv": 60})
    queued = add_run(platform, dg.DagsterRunStatus.QUEUED)
    found = look(platform)
    told = json.loads(json.dumps(to_json(found)))
    assert set(told) == {
        "at", "needs_a_person", "to_do", "daemon_runs", "last_refresh", "stale_months", "files_not_loaded",
        "files_waiting", "quarantine", "freshness", "waiting_runs", "dead_runs", "failed_runs",
        "failing_sensors_and_schedules", "failing_checks", "checks_not_run", "alerts",
    }  # fmt: skip
    (month,) = told["stale_months"]
    assert (month["month"], month["causes"]) == ("2024-10", "jobs update")
    assert datetime.fromisoformat(month["since"]).utcoffset() == timedelta(0)
    (file,) = told["files_waiting"]
    assert file["path"] == "jobs/new.csv"
    assert datetime.fromisoformat(told["at"]) - datetime.fromisoformat(file["since"]) == MINUTES
    assert told["waiting_runs"] == [{"run_id": queued, "job": "refresh"}]
    assert not told["needs_a_person"] and told["to_do"] == []


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
