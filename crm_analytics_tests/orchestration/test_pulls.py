"""Pulls in Dagster: what is asked for when, what an asset tells of them, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import dagster as dg
import pytest
from pydantic import SecretStr
from werkzeug import Response

from crm_analytics.analytics.connectors.workiz import WORKIZ_JOBS, WORKIZ_LEADS
from crm_analytics.core.settings import Settings
from crm_analytics.definitions import build_defs
from crm_analytics.orchestration import retries
from crm_analytics.orchestration.analytics import pulls
from crm_analytics.orchestration.analytics.pulls import PULLED, landing_key
from crm_analytics_tests.analytics.connectors.conftest import identities, read
from crm_analytics_tests.analytics.connectors.workiz_server import TOKEN, Workiz, job, serving
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import Platform

JOBS, LEADS = landing_key(WORKIZ_JOBS), landing_key(WORKIZ_LEADS)
#: A Wednesday.
NOW = datetime(2026, 6, 10, 14, 20, tzinfo=UTC)


@pytest.fixture
def workiz(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workiz]:
    """A service with three jobs, which the platform asks."""
    monkeypatch.setattr("crm_analytics.analytics.connectors.workiz.PACE", 0.0)
    with serving([job(number) for number in range(3)]) as service:
        platform.change(workiz_token=SecretStr(TOKEN), workiz_url=service.url)
        yield service


def tick(platform: Platform, now: datetime) -> list[dg.RunRequest]:
    """Evaluates the sensor as at a time."""
    sensor = platform.defs.get_repository_def().get_sensor_def("pull_connectors")
    context = dg.build_sensor_context(
        instance=platform.instance, definitions=platform.defs, resources=platform.resources
    )
    with mock.patch.object(pulls, "_now", lambda: now):
        return list(sensor.evaluate_tick(context).run_requests or [])


def run(platform: Platform, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """Runs what the sensor requested."""
    assert request.job_name
    config: dict[str, Any] = {
        **request.run_config,
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    return platform.defs.resolve_job_def(request.job_name).execute_in_process(
        instance=platform.instance, tags=request.tags, run_config=config, raise_on_error=False
    )


def asked(requests: list[dg.RunRequest]) -> list[tuple[str | None, str]]:
    return [(request.job_name, request.tags[pulls.WHAT_TAG]) for request in requests]


def test_nothing_is_there_while_all_connectors_are_off(platform: Platform) -> None:
    """Without a secret there is no asset, no job, no sensor and no check of a connector."""
    assert not [
        key for key in platform.defs.resolve_asset_graph().get_all_asset_keys() if key.path[0] == "landing"
    ]
    names = {sensor.name for sensor in platform.defs.get_repository_def().sensor_defs}
    assert "pull_connectors" not in names


def test_pull_is_upstream_of_its_raw_asset(platform: Platform, workiz: Workiz) -> None:
    """The lineage begins at the service, and the loads stay in their job alone."""
    graph = platform.defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey(["raw", "jobs"])).parent_keys == {JOBS}
    assert graph.get(dg.AssetKey(["raw", "calls"])).parent_keys == set()
    refresh = platform.defs.resolve_job_def("refresh").asset_layer.executable_asset_keys
    assert JOBS not in refresh and dg.AssetKey(["raw", "jobs"]) in refresh
    for key in (JOBS, LEADS):
        spec = graph.get(key)
        assert spec.description and spec.group_name == "landing" and spec.kinds


def test_everything_first_then_hourly(platform: Platform, workiz: Workiz) -> None:
    """At first and each Monday everything is pulled, and the recent days once an hour; nothing while a pull runs."""
    first = tick(platform, NOW)
    assert asked(first) == [("pull_workiz_jobs", "everything"), ("pull_workiz_leads", "everything")]
    result = run(platform, first[0])
    assert result.success
    (file,) = (platform.landing / "jobs").iterdir()
    assert identities(file) == ["J00000", "J00001", "J00002"]
    assert file.name.startswith(f"workiz_jobs_{platform.settings.start_month}_open_")
    # the run was created by the clock of this machine
    now = datetime.now(UTC)
    second = [request for request in tick(platform, now) if request.job_name == "pull_workiz_jobs"]
    assert asked(second) == [("pull_workiz_jobs", "recent")]
    assert run(platform, second[0]).success
    assert [r.job_name for r in tick(platform, now)] == ["pull_workiz_leads"]
    later = now.replace(minute=0) + timedelta(hours=1)
    assert asked(tick(platform, later))[0] == ("pull_workiz_jobs", "recent")
    monday = now + timedelta(days=8 - now.weekday())
    assert asked(tick(platform, monday))[0] == ("pull_workiz_jobs", "everything")
    platform.instance.create_run_for_job(
        platform.defs.resolve_job_def("pull_workiz_jobs"), status=dg.DagsterRunStatus.STARTED
    )
    assert [r.job_name for r in tick(platform, monday)] == ["pull_workiz_leads"]


def test_what_an_asset_tells(platform: Platform, workiz: Workiz) -> None:
    """A pull tells its pages, records, days and files; one that finds nothing new is a success as well."""
    request = tick(platform, NOW)[0]
    told = []
    for _ in range(2):
        (event,) = run(platform, request).asset_materializations_for_node("landing__workiz_jobs")
        told.append({name: value.value for name, value in event.metadata.items()})
    assert (told[0]["pages"], told[0]["records"]) == (1, 3)
    assert told[0]["window"] == f"{platform.settings.start_month} and later"
    (file,) = (platform.landing / "jobs").iterdir()
    assert told[0]["files"] == f"jobs/{file.name}"
    assert told[1]["files"] == "none: nothing has changed"


def test_pull_is_loaded(platform: Platform, workiz: Workiz) -> None:
    """A pulled file is news for the sensor of the landing folder like any other."""
    run(platform, tick(platform, NOW)[0])
    context = dg.build_sensor_context(
        instance=platform.instance, definitions=platform.defs, resources=platform.resources
    )
    sensor = platform.defs.get_repository_def().get_sensor_def("load_landing_files")
    (request,) = sensor.evaluate_tick(context).run_requests or []
    assert request.asset_selection == [dg.AssetKey(["raw", "jobs"])]


def test_transient_failure_is_tried_again(
    platform: Platform, workiz: Workiz, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy service is asked again after 30 seconds, for the same days, and that it worked at last is told."""
    workiz.instead = [Response("", 429, headers={"Retry-After": "9999"})]
    now = datetime.now(UTC)
    first = tick(platform, now)[0]
    assert not run(platform, first).success
    # meanwhile the recent days are due
    assert asked(tick(platform, now))[0] == ("pull_workiz_jobs", "recent")
    monkeypatch.setattr(retries, "DELAYS", (0, 0, 0))
    second = tick(platform, now)[0]
    assert second.run_key == (first.run_key or "").removesuffix("1") + "2"
    assert run(platform, second).success


def test_wrong_token_fails_once_a_day(
    platform: Platform, workiz: Workiz, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal doesn't come every hour: it is repeated when the settings were read anew, or the next day."""
    workiz.token = "another"
    now = datetime.now(UTC)

    def jobs_at(moment: datetime) -> list[tuple[str | None, str]]:
        return [pair for pair in asked(tick(platform, moment)) if pair[0] == "pull_workiz_jobs"]

    for what in ("everything", "everything", "recent"):
        (request,) = [r for r in tick(platform, now) if r.job_name == "pull_workiz_jobs"]
        assert request.tags[pulls.WHAT_TAG] == what
        assert not run(platform, request).success
    assert jobs_at(now) == [] and jobs_at(now + timedelta(minutes=1)) == []
    monkeypatch.setattr(pulls, "_LOADED_AT", now + timedelta(minutes=2))
    assert jobs_at(now) == [("pull_workiz_jobs", "everything")]
    workiz.token = TOKEN
    (request,) = [r for r in tick(platform, now) if r.job_name == "pull_workiz_jobs"]
    assert run(platform, request).success


def test_no_event_has_the_token(platform: Platform, workiz: Workiz) -> None:
    """Nothing that Dagster stores of a pull has the token: events, metadata, errors with all that led to them."""
    request = tick(platform, NOW)[0]
    results = [run(platform, request)]
    workiz.instead = [Response(f"<title>{TOKEN}</title>", 400)]
    results.append(run(platform, request))
    platform.change(workiz_url="http://127.0.0.1:1")
    stored = ""
    for result in results:
        stored += "".join(map(repr, platform.instance.all_logs(result.run_id)))
        run_record = platform.instance.get_run_by_id(result.run_id)
        stored += repr(run_record)
    assert "400" in stored and "landing__workiz_jobs" in stored
    assert "api_k3y" not in stored and "odd+signs" not in stored


def test_check_of_the_last_pull(platform: Platform, workiz: Workiz, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull is late after six hours, whether it wrote a file or not; before the first one there is only a warning."""

    def check() -> list[dg.AssetCheckEvaluation]:
        result = platform.defs.resolve_job_def("check_pulls").execute_in_process(instance=platform.instance)
        found = result.get_asset_check_evaluations()
        assert {evaluation.check_name for evaluation in found} == {PULLED}
        return sorted(found, key=lambda evaluation: evaluation.asset_key)

    jobs, _ = check()
    assert not jobs.passed and jobs.severity == dg.AssetCheckSeverity.WARN
    run(platform, tick(platform, NOW)[0])
    jobs, leads = check()
    assert jobs.passed and not leads.passed
    monkeypatch.setattr(pulls, "STALE_HOURS", -1)
    jobs, _ = check()
    assert not jobs.passed and jobs.severity == dg.AssetCheckSeverity.ERROR
    assert "Remedy: see why the newest run of its job failed" in (jobs.description or "")


def crm_analytics(platform: Platform, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the platform's settings in its environment, as `up` gives them to its children."""
    return subprocess.run(
        [sys.executable, "-m", "crm_analytics", *words],
        env={**platform.settings.environment(), "CRM_ANALYTICS_ENV_FILE": os.devnull, **variables},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_pull_by_hand(platform: Platform, workiz: Workiz) -> None:
    """The command does the same as a run, says what it wrote, and is a pull in Dagster, too."""
    listed = crm_analytics(platform, "pull", WORKIZ_TOKEN="")
    assert "workiz_jobs" in listed.stdout and "off: set WORKIZ_TOKEN" in listed.stdout
    done = crm_analytics(platform, "pull", "workiz_jobs", "--from", "2026-01-05")
    assert done.returncode == 0, done.stderr
    (file,) = (platform.landing / "jobs").iterdir()
    assert "workiz_jobs, 2026-01-05 and later: 3 records in 1 page\n" in done.stdout
    assert f"written: jobs/{file.name}" in done.stdout
    assert read(file)[0]["records"] == 3
    event = platform.instance.get_latest_materialization_event(JOBS)
    assert event is not None and event.asset_materialization is not None
    assert event.asset_materialization.metadata["records"].value == 3
    again = crm_analytics(platform, "pull", "workiz_jobs", "--from", "2026-01-05")
    assert "nothing has changed since the last pull, so no file was written" in again.stdout


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        (
            ["workiz_job"],
            {},
            "not pulled: there is no connector 'workiz_job'; accepted: workiz_jobs, workiz_leads",
        ),
        (["workiz_jobs"], {"WORKIZ_TOKEN": ""}, "not pulled: workiz_jobs is off: set WORKIZ_TOKEN"),
        (["workiz_jobs"], {"WORKIZ_TOKEN": "x1y2"}, "not pulled: Workiz does not accept WORKIZ_TOKEN"),
        (["workiz_jobs", "--to", "2026-02-01"], {}, "not pulled: workiz_jobs: the service takes no last day"),
        (["workiz_jobs", "--from", "May"], {}, "'May' is not a day: write it as 2024-10-31"),
        (["--from", "2024-05-01"], {}, "name the connector"),
    ],
)
def test_what_the_command_refuses(
    platform: Platform, workiz: Workiz, words: list[str], variables: dict[str, str], told: str
) -> None:
    """A wrong name, a missing or wrong token and days that can't be had are one sentence each, without a traceback."""
    done = crm_analytics(platform, "pull", *words, **variables)
    assert done.returncode in (1, 2)
    assert told in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert "x1y2" not in done.stdout + done.stderr and TOKEN not in done.stdout + done.stderr


def test_children_get_the_token_and_nobody_sees_it(platform: Platform, workiz: Workiz) -> None:
    """Settings show no secret when they are printed, and children get it."""
    assert TOKEN not in repr(platform.settings) and TOKEN not in json.dumps(
        platform.settings.model_dump(mode="json")
    )
    assert platform.settings.environment()["WORKIZ_TOKEN"] == TOKEN


def test_franchises_have_accounts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for all would load one account's jobs into every franchise: each has its own, and its own assets and jobs."""
    monkeypatch.setenv("WORKIZ_TOKEN", "common")
    monkeypatch.setenv("NORTH_WORKIZ_TOKEN", "of north")
    common = Settings(franchises="north,south")
    north, south = common.of_franchises()
    assert north.workiz_token == SecretStr("of north") and south.workiz_token is None
    defs = build_defs(common)
    keys = {
        key.to_user_string()
        for key in defs.resolve_asset_graph().get_all_asset_keys()
        if "landing" in key.path
    }
    assert keys == {"north/landing/workiz_jobs", "north/landing/workiz_leads"}
    assert [sensor.name for sensor in defs.sensors or [] if "pull" in sensor.name] == [
        "north__pull_connectors"
    ]
    assert common.environment()["NORTH_WORKIZ_TOKEN"] == "of north"
