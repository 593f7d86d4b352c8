"""The state of the platform at this moment, and what in it needs a person: what `crm-analytics status` tells.

Without a webhook nobody is told otherwise. What the platform does by itself within PATIENCE is shown, but needs nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import LandingUnavailable
from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.analytics.warehouse.freshness import Age, Freshness, freshness, unknown_expectations
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted, listed
from crm_analytics.orchestration.alerts import ALERTS_KEY
from crm_analytics.orchestration.analytics.freshness_checks import FRESH, REMEDY
from crm_analytics.orchestration.failing_ticks import FAILURES, Ticks, automation_names, newest_ticks
from crm_analytics.orchestration.failures import run_failure
from crm_analytics.orchestration.partitions import key_month, months
from crm_analytics.orchestration.retries import will_retry
from crm_analytics.orchestration.worker_lock import WatchedRunStorage

#: The sensors' own retries end after about 13 minutes.
PATIENCE = timedelta(minutes=15)
#: A failed run before that is history, whatever became of its work.
FAILED_WITHIN = timedelta(days=7)
#: Alerts shown.
ALERTS = 5
#: The daemon whose heartbeat is looked at; all of them are threads of one process.
DAEMON = "SENSOR"
#: Checks of what is looked at here, as it is now.
SHOWN_ITSELF = (FRESH, "files_read")
STARTED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class StaleMonth:
    """A month whose metrics are behind the raw tables."""

    month: date
    since: datetime
    causes: str


@dataclass(frozen=True)
class WaitingFile:
    """A file of the landing folder that no run has read yet."""

    path: str
    since: datetime


@dataclass(frozen=True)
class Run:
    """A run that is dead, or has failed."""

    run_id: str
    job: str
    reason: str = ""
    is_repeated: bool = False


@dataclass(frozen=True)
class SentAlert:
    """An alert as it is written down: when, which, and what became of it."""

    at: datetime
    title: str
    outcome: str


@dataclass
class Status:
    """What was found; `to_do` has a sentence for each thing that needs a person."""

    at: datetime
    daemon_runs: bool
    last_refresh: datetime | None = None
    stale_months: list[StaleMonth] = field(default_factory=list)
    #: Path and message of files whose content is not loaded and won't be.
    not_loaded: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[WaitingFile] = field(default_factory=list)
    #: Open records by source.
    quarantine: dict[str, int] = field(default_factory=dict)
    freshness: list[Freshness] = field(default_factory=list)
    #: Started, but without a process.
    dead_runs: list[Run] = field(default_factory=list)
    #: The newest run of their job, and failed.
    failed_runs: list[Run] = field(default_factory=list)
    failing_ticks: list[Ticks] = field(default_factory=list)
    #: Failed checks of severity ERROR, with what they found.
    failing_checks: dict[str, str] = field(default_factory=dict)
    #: The newest first.
    alerts: list[SentAlert] = field(default_factory=list)
    to_do: list[str] = field(default_factory=list)


def status(
    config: Settings,
    connection: psycopg.Connection[Any],
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    now: datetime | None = None,
) -> Status:
    """Looks at the databases and the landing folder; changes nothing.

    Args:
        config: names the landing folder.
        connection: to the analytics database.
        instance: the Dagster instance.
        definitions: of which jobs, sensors, schedules and checks are looked at.
        now: the present moment, by default that of the clock.
    """
    now = now or datetime.now(UTC)
    daemon = instance.get_daemon_statuses([DAEMON]).get(DAEMON)
    found = Status(now, daemon_runs=bool(daemon and daemon.healthy))
    repository = definitions.get_repository_def()
    found.to_do += _look_at_months(found, connection)
    found.to_do += _look_at_files(found, connection, config)
    found.to_do += _look_at_rows(found, connection)
    found.to_do += _look_at_runs(found, instance, repository)
    found.to_do += _look_at_ticks(found, instance, repository)
    found.to_do += _look_at_checks(found, instance, repository)
    found.alerts = _alerts(instance)
    return found


def _look_at_months(found: Status, connection: psycopg.Connection[Any]) -> Iterator[str]:
    row = connection.execute("SELECT max(finished_at) FROM analytics.refresh_log").fetchone()
    found.last_refresh = row[0] if row else None
    found.stale_months = [
        StaleMonth(month, since, causes)
        for month, since, causes in connection.execute(
            "SELECT month, stale_since, causes FROM reporting.month_status WHERE stale_since IS NOT NULL ORDER BY month"
        )
    ]
    known = {key_month(key) for key in months.get_partition_keys(current_time=found.at)}
    for stale in found.stale_months:
        if stale.month not in known:
            remedy = "set an earlier START_MONTH, or correct dates in the future"
            yield f"{stale.month:%Y-%m} has rows but is never computed: {remedy}"
        elif found.at - stale.since > PATIENCE:
            remedy = f"crm-analytics refresh --from {stale.month:%Y-%m} --to {stale.month:%Y-%m} computes it, or says why not"
            yield f"{stale.month:%Y-%m} is stale ({stale.causes}) and nothing computes it: {remedy}"


def _look_at_files(found: Status, connection: psycopg.Connection[Any], config: Settings) -> Iterator[str]:
    landing = landing_of(config)
    if not landing.exists():
        yield landing.missing()
        return
    try:
        listing = landing.scan()
    except LandingUnavailable as error:
        yield str(error)
        return
    found.not_loaded = [
        *((entry.path, str(entry.message)) for entry in landing_folder.unreadable(connection, listing)),
        *((entry.name, entry.message) for entry in listing.unreadable),
    ]
    for path, message in found.not_loaded:
        yield f"{path} is not loaded: {message}"
    for pending in landing_folder.pending(connection, landing, listing=listing):
        since = found.at - timedelta(seconds=pending.file.age())
        found.waiting.append(WaitingFile(pending.name, since))
        if found.at - since > PATIENCE:
            yield f"{pending.name} waits and nothing loads it: crm-analytics refresh loads it, or says why not"


def _look_at_rows(found: Status, connection: psycopg.Connection[Any]) -> Iterator[str]:
    found.quarantine = dict(
        connection.execute(
            "SELECT source, records FROM reporting.quarantined_records ORDER BY source"
        ).fetchall()
    )
    if found.quarantine:
        records = counted(sum(found.quarantine.values()), "record")
        yield (
            f"{records} in quarantine: correct in the tool and export again, or dismiss (crm-analytics psql"
            " analytics -- -c \"SELECT * FROM raw.rejected_rows WHERE status = 'open'\")"
        )
    found.freshness = freshness(connection, SOURCES.values())
    for fresh in found.freshness:
        if fresh.age == Age.SILENT:
            yield f"{fresh.source} is silent: {fresh}. {REMEDY}"
    unknown = unknown_expectations(connection, SOURCES.values())
    if unknown:
        yield (
            f"analytics.source_expectations has limits for {listed(unknown)}, which is no source: write"
            f" {', '.join(SOURCES)}, or delete the row"
        )


def _look_at_runs(
    found: Status, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition
) -> Iterator[str]:
    storage = instance.run_storage
    assert isinstance(storage, WatchedRunStorage)
    for run in instance.get_runs(dg.RunsFilter(statuses=STARTED)):
        if storage.worker_lives(run.run_id):
            continue
        ended = instance.get_run_by_id(run.run_id)
        if ended is None or ended.is_finished:
            continue
        found.dead_runs.append(Run(run.run_id, run.job_name))
        if not found.daemon_runs:
            remedy = "crm-analytics up, or the daemon, marks it as failed and does its work again"
            yield f"run {run.run_id} of {run.job_name} is dead, its process is gone: {remedy}"
    for job in sorted(repository.job_names):
        newest = dg.RunsFilter(job_name=job, statuses=ENDED, updated_after=found.at - FAILED_WITHIN)
        records = instance.get_run_records(newest, limit=1)
        for run in (record.dagster_run for record in records):
            if run.status == dg.DagsterRunStatus.FAILURE:
                failure = run_failure(instance, run.run_id)
                repeated = will_retry(run, failure)
                found.failed_runs.append(Run(run.run_id, job, failure.reason, repeated))
                if not repeated:
                    yield f"the newest run of {job} failed, {run.run_id}: {failure.reason}"


def _look_at_ticks(
    found: Status, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition
) -> Iterator[str]:
    found.failing_ticks = [
        ticks for ticks in newest_ticks(instance, automation_names(repository)) if ticks.fails
    ]
    for ticks in found.failing_ticks:
        yield f"{ticks.kind.lower()} {ticks.name} fails, {FAILURES} ticks in a row: {ticks.reason}"


def _look_at_checks(
    found: Status, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition
) -> Iterator[str]:
    keys = [key for key in repository.asset_graph.asset_check_keys if key.name not in SHOWN_ITSELF]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for key in sorted(latest, key=lambda key: key.to_user_string()):
        record = _concluded(instance, latest[key])
        event = record.event.dagster_event if record and record.event else None
        if event is None:
            continue
        evaluation = event.asset_check_evaluation_data
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            name = f"{key.asset_key.to_user_string()}: {key.name}"
            told = evaluation.description or "its metadata in the Dagster UI says what was found"
            found.failing_checks[name] = told
            yield f"check {name} fails: {told}"


def _concluded(
    instance: dg.DagsterInstance, latest: AssetCheckExecutionRecord
) -> AssetCheckExecutionRecord | None:
    """Returns the latest result; what is only planned may run now, or belong to a run that died."""
    done = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
    if latest.status in done:
        return latest
    history = instance.event_log_storage.get_asset_check_execution_history(latest.key, limit=1, status=done)
    return history[0] if history else None


def _alerts(instance: dg.DagsterInstance) -> list[SentAlert]:
    records = instance.fetch_observations(ALERTS_KEY, limit=ALERTS).records
    return [
        SentAlert(
            datetime.fromtimestamp(record.timestamp, UTC),
            str(observed.metadata["alert"].value),
            str(observed.metadata["outcome"].value),
        )
        for record in records
        if (observed := record.asset_observation)
    ]
