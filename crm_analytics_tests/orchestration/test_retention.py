"""What is pruned from Dagster's database, and that what stays is whole: results, histories, runs, alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Status
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.cli import execute_query

from crm_analytics.orchestration import alerts, retention
from crm_analytics.orchestration.instance import output_folder
from crm_analytics.orchestration.retention import (
    prune_all,
    prune_check_results,
    prune_check_runs,
    prune_compute_logs,
    prune_event_logs,
)
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row

OCTOBER = date(2024, 10, 1)
SCHEMA = dg.AssetKey(["crm", "schema"])
DRIFT = dg.AssetCheckKey(SCHEMA, "manifest_drift")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def crm(platform: Platform, new_database: Callable[..., str]) -> Platform:
    """The platform with a migrated CRM, whose guards are checked."""
    platform.change(crm_database_url=new_database("crm"))
    return platform


@pytest.fixture
def storage(platform: Platform) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to Dagster's database."""
    with psycopg.connect(platform.settings.dagster_postgres_url or "", autocommit=True) as connection:
        yield connection


def check_guards(platform: Platform) -> str:
    """Runs the job `crm_guards`, and returns the id of the run."""
    job = platform.defs.resolve_job_def("crm_guards")
    return job.execute_in_process(instance=platform.instance, run_config=QUIET).run_id


def age(storage: psycopg.Connection[Any], run_id: str, days: int) -> None:
    """Lets a run have ended so many days ago."""
    storage.execute(
        "UPDATE runs SET update_timestamp = update_timestamp - make_interval(days => %s) WHERE run_id = %s",
        [days, run_id],
    )


def rows(storage: psycopg.Connection[Any], run_id: str) -> dict[str, int]:
    """Counts what the tables have of a run."""
    tables = ("runs", "run_tags", "event_logs", "asset_check_executions")
    counts = {}
    for table in tables:
        row = storage.execute(f"SELECT count(*) FROM {table} WHERE run_id = %s".encode(), [run_id]).fetchone()
        assert row
        counts[table] = row[0]
    return counts


def history(platform: Platform, key: dg.AssetCheckKey) -> list[str]:
    """Returns the runs in the history of a check, the latest first, as the UI reads them."""
    records = platform.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    return [record.run_id for record in records]


def test_old_runs_of_checks_leave_nothing_behind(crm: Platform, storage: psycopg.Connection[Any]) -> None:
    """Of five old runs the latest stays whole; younger ones stay too. Everything else of the old ones is gone."""
    old = [check_guards(crm) for _ in range(5)]
    for run_id in old:
        age(storage, run_id, 10)
    assert all((output_folder(crm.settings) / run_id).is_dir() for run_id in old)
    whole = rows(storage, old[-1])
    assert whole["asset_check_executions"] == 33 and whole["event_logs"] > 50
    # the latest results of every check are in the last run, old as it is
    assert prune_check_runs(crm.settings, days=7) == 4
    assert [rows(storage, run_id) for run_id in old] == [dict.fromkeys(whole, 0)] * 4 + [whole]
    assert [(output_folder(crm.settings) / run_id).exists() for run_id in old] == [False] * 4 + [True]
    assert history(crm, DRIFT) == [old[-1]]
    young = [check_guards(crm) for _ in range(2)]
    assert prune_check_runs(crm.settings, days=7) == 1
    assert history(crm, DRIFT) == young[::-1]
    assert prune_check_runs(crm.settings, days=7) == 0


def test_latest_result_of_each_check_stays(crm: Platform, storage: psycopg.Connection[Any]) -> None:
    """A check that ran only long ago keeps its result, although the others ran since; so does one that never finished."""
    first = check_guards(crm)
    guard = dg.AssetCheckKey(SCHEMA, "guard_roles")
    only = crm.defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_check_selection={DRIFT}, asset_selection=set()
    )
    second = only.execute_in_process(instance=crm.instance, run_config=QUIET).run_id
    # a run that died: planned, never evaluated
    dead = crm.instance.create_run_for_job(job_def=only)
    crm.instance.report_run_failed(dead)
    third = dead.run_id
    for run_id in (first, second, third):
        age(storage, run_id, 10)
    assert prune_check_runs(crm.settings, days=7) == 0
    assert history(crm, guard) == [first]
    assert history(crm, DRIFT) == [third, second, first]
    latest = crm.instance.event_log_storage.get_latest_asset_check_execution_by_key([guard, DRIFT])
    assert {key: record.status for key, record in latest.items()} == {
        guard: Status.SUCCEEDED,
        DRIFT: Status.PLANNED,
    }


def test_running_runs_and_materializations_are_never_pruned(
    crm: Platform, storage: psycopg.Connection[Any]
) -> None:
    """A run that loads keeps itself and its materializations; it loses only results that later ones replace."""
    crm.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    loads = [crm.run(OCTOBER, OCTOBER).run_id for _ in range(2)]
    guards = [check_guards(crm) for _ in range(2)]
    for run_id in (*loads, *guards):
        age(storage, run_id, 100)
    storage.execute("UPDATE runs SET status = 'STARTED' WHERE run_id = %s", [guards[0]])
    materializations = storage.execute(
        "SELECT id FROM event_logs WHERE dagster_event_type LIKE 'ASSET_MATERIALIZATION%' ORDER BY id"
    ).fetchall()
    before = {run_id: rows(storage, run_id) for run_id in (*loads, *guards)}
    assert prune_check_runs(crm.settings, days=1) == 0
    assert prune_check_results(crm.settings, days=101) == 0, "younger results of loads are kept"
    assert prune_check_results(crm.settings, days=90) == before[loads[0]]["asset_check_executions"] > 0
    after = {run_id: rows(storage, run_id) for run_id in (*loads, *guards)}
    assert after[loads[0]]["asset_check_executions"] == 0 and after[loads[0]]["runs"] == 1
    assert {run_id: after[run_id] for run_id in (loads[1], *guards)} == {
        run_id: before[run_id] for run_id in (loads[1], *guards)
    }
    prune_event_logs(crm.settings, days=90)
    assert (
        materializations
        == storage.execute(
            "SELECT id FROM event_logs WHERE dagster_event_type LIKE 'ASSET_MATERIALIZATION%' ORDER BY id"
        ).fetchall()
    )
    assert crm.instance.get_materialized_partitions(dg.AssetKey(["raw", "jobs"])) == {"2024-10"}


def test_pruning_deletes_the_output_of_old_runs(platform: Platform, storage: psycopg.Connection[Any]) -> None:
    """Pruning deletes the output of old runs, and keeps that of younger ones."""
    old, young = (platform.run(OCTOBER, OCTOBER, [dg.AssetKey(["raw", "jobs"])]).run_id for _ in range(2))
    folder = output_folder(platform.settings)
    assert (folder / old).is_dir(), "where the instance keeps them"
    age(storage, old, 10)
    (folder / "dagster.yaml").touch()
    assert prune_compute_logs(platform.settings, days=5) == 1
    assert not (folder / old).exists() and (folder / young).is_dir()
    assert (folder / "dagster.yaml").exists(), "only the output of runs is deleted"
    assert prune_compute_logs(platform.settings, days=5) == 0


def test_old_events_are_deleted(platform: Platform, storage: psycopg.Connection[Any]) -> None:
    """Old runs lose the details of their steps, and keep how they began and ended, and what they materialized."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    run_id = platform.run(OCTOBER, OCTOBER).run_id
    assert prune_event_logs(platform.settings, days=1) == 0, "young runs are kept"
    age(storage, run_id, 10)
    about_assets = "SELECT count(*) FROM event_logs WHERE asset_key IS NOT NULL"
    before = storage.execute(about_assets).fetchone()
    assert prune_event_logs(platform.settings, days=5) > 0
    assert storage.execute(about_assets).fetchone() == before
    record = platform.instance.get_run_record_by_id(run_id)
    assert record is not None and record.dagster_run.is_success


def test_many_runs_are_deleted_in_small_transactions(
    crm: Platform, storage: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pruning of a long history holds no locks for long, and what it did before a stop stays done."""
    monkeypatch.setattr(retention, "BATCH", 2)
    old = [check_guards(crm) for _ in range(6)]
    for run_id in old:
        age(storage, run_id, 10)
    storage.execute(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF (SELECT count(*) FROM runs) < 3 THEN RAISE ''stopped''; END IF; RETURN OLD; END'"
    )
    storage.execute("CREATE TRIGGER stop BEFORE DELETE ON runs FOR EACH ROW EXECUTE FUNCTION stop()")
    with pytest.raises(psycopg.Error, match="stopped"):
        prune_check_runs(crm.settings, days=7)
    left = [run_id for run_id in old if rows(storage, run_id)["runs"]]
    assert len(left) == 2 and all(rows(storage, run_id)["event_logs"] > 50 for run_id in left)


def test_pages_of_checks_are_whole_after_pruning(crm: Platform, storage: psycopg.Connection[Any]) -> None:
    """The UI's own queries find a run for every result that they show, and an evaluation for every finished one."""
    old = [check_guards(crm) for _ in range(3)]
    for run_id in old:
        age(storage, run_id, 10)
    young = check_guards(crm)
    prune_all(crm.settings)
    answer = ask(crm, HISTORY)
    assert answer["assetCheckExecutions"] == [
        {
            "runId": young,
            "status": "SUCCEEDED",
            "evaluation": {"success": True},
            "run": {"runId": young, "status": "SUCCESS"},
        }
    ]
    assert [run["runId"] for run in answer["runsOrError"]["results"]] == [young]


def test_page_of_a_run_that_lost_its_results_still_opens(
    crm: Platform, storage: psycopg.Connection[Any]
) -> None:
    """An old load's page opens as a young one's does, although later results have replaced its own."""
    old, young = (crm.run(OCTOBER, OCTOBER).run_id for _ in range(2))
    age(storage, old, 100)
    prune_all(crm.settings)
    assert rows(storage, old)["asset_check_executions"] == 0
    page, other = (ask(crm, RUN % run_id)["runOrError"] for run_id in (old, young))
    # Dagster gives a run's assets in no order
    for found in (page, other):
        found["assets"].sort(key=lambda asset: asset["key"]["path"])
    assert page == other
    assert page["status"] == "SUCCESS" and {"key": {"path": ["raw", "jobs"]}} in page["assets"]


def test_alerts_go_on_after_pruning(
    crm: Platform, storage: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that was waiting to be sent is still sent, and one that goes on isn't sent again."""
    sent: list[str] = []
    monkeypatch.setattr(alerts, "post", lambda _, message: sent.append(message["text"]))
    crm.change(alert_webhook_url="https://hooks.example.com/x")

    def tick(cursor: str | None) -> str:
        context = dg.build_sensor_context(instance=crm.instance, cursor=cursor, resources=crm.resources)
        crm.sensor("alerts").evaluate_tick(context)
        assert context.cursor
        return context.cursor

    cursor = tick(None)
    with psycopg.connect(crm.settings.crm_database_url or "", autocommit=True) as connection:
        connection.execute("DROP INDEX public.users_email_folded_key")
    for _ in range(3):
        age(storage, check_guards(crm), 10)
    assert prune_check_runs(crm.settings, days=7) == 2
    cursor = tick(cursor)
    (text,) = sent
    assert "Check failed: crm/schema: manifest_drift" in text
    age(storage, check_guards(crm), 10)
    prune_check_runs(crm.settings, days=7)
    tick(cursor)
    assert len(sent) == 1


HISTORY = """
{
  assetCheckExecutions(assetKey: {path: ["crm", "schema"]}, checkName: "manifest_drift", limit: 25) {
    runId status evaluation { success } run { runId status }
  }
  runsOrError { ... on Runs { results { runId } } }
}
"""
RUN = """
{ runOrError(runId: "%s") { ... on Run { status assets { key { path } } assetChecks { name } } } }
"""


def ask(platform: Platform, query: str) -> Any:
    """Returns what Dagster's UI would get for a query."""
    with WorkspaceProcessContext(platform.instance, workspace_load_target=None) as context:
        answer = execute_query(context, query)
    assert "errors" not in answer, answer
    return answer["data"]
