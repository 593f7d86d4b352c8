"""The state of the platform at this moment, and what in it needs a person: what `crm-analytics status` tells.

Without a webhook nobody is told otherwise. What the platform does by itself within PATIENCE is shown, but needs nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
from crm_analytics.analytics.warehouse.refresh import Stale, stale
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted, listed
from crm_analytics.orchestration.alerts import ALERTS_KEY
from crm_analytics.orchestration.analytics.checks import windowed_checks
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.freshness_checks import FRESH, REMEDY
from crm_analytics.orchestration.analytics.jobs import CHECK_HISTORY
from crm_analytics.orchestration.check_results import check_name, fails
from crm_analytics.orchestration.failing_ticks import FAILURES, Ticks, automation_names, newest_ticks
from crm_analytics.orchestration.failures import run_failure
from crm_analytics.orchestration.partitions import key_month
from crm_analytics.orchestration.retries import outlook, will_retry
from crm_analytics.orchestration.worker_lease import WatchedRunStorage

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
WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING]
STARTED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class WaitingFile:
    """A file of the landing folder that no run has read yet."""

    path: str
    since: datetime


@dataclass(frozen=True)
class Run:
    """A run that waits, is dead, or has failed."""

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
    stale_months: list[Stale] = field(default_factory=list)
    #: Path and message of files whose content is not loaded and won't be.
    not_loaded: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[WaitingFile] = field(default_factory=list)
    #: Open records by source.
    quarantine: dict[str, int] = field(default_factory=dict)
    freshness: list[Freshness] = field(default_factory=list)
    #: Queued or starting.
    waiting_runs: list[Run] = field(default_factory=list)
    #: Started, but without a process.
    dead_runs: list[Run] = field(default_factory=list)
    #: The newest run of their job, and failed.
    failed_runs: list[Run] = field(default_factory=list)
    failing_ticks: list[Ticks] = field(default_factory=list)
    #: Failed checks of severity ERROR, with what they found.
    failing_checks: dict[str, str] = field(default_factory=dict)
    #: Checks whose newest run ended before it came to them.
    checks_not_run: list[str] = field(default_factory=list)
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

    What it tells of the analytics database is one moment's: it is read in one snapshot.

    Args:
        config: names the landing folder.
        connection: to the analytics database, not inside a transaction.
        instance: the Dagster instance.
        definitions: of which jobs, sensors, schedules and checks are looked at.
        now: the present moment, by default that of the clock.
    """
    now = now or datetime.now(UTC)
    daemon = instance.get_daemon_statuses([DAEMON]).get(DAEMON)
    found = Status(now, daemon_runs=bool(daemon and daemon.healthy))
    repository = definitions.get_repository_def()
    franchise = Franchise(config)
    with connection.transaction(force_rollback=True):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found.to_do += _look_at_months(found, franchise, connection)
        found.to_do += _look_at_files(found, connection, config)
        found.to_do += _look_at_rows(found, connection, config)
    found.to_do += _look_at_runs(found, instance, repository)
    found.to_do += _look_at_ticks(found, instance, repository)
    found.to_do += _look_at_checks(found, franchise, instance, repository)
    found.alerts = _alerts(instance, franchise)
    return found


def _look_at_months(
    found: Status, franchise: Franchise, connection: psycopg.Connection[Any]
) -> Iterator[str]:
    row = connection.execute("SELECT max(finished_at) FROM analytics.refresh_log").fetchone()
    found.last_refresh = row[0] if row else None
    found.stale_months = stale(connection)
    known = {key_month(key) for key in franchise.months.get_partition_keys(current_time=found.at)}
    for behind in found.stale_months:
        month = f"{behind.month:%Y-%m}"
        if behind.month not in known:
            remedy = "set an earlier START_MONTH, or correct dates in the future"
            yield f"{month} has rows but is never computed: {remedy}"
        elif found.at - behind.since > PATIENCE:
            command = franchise.settings.command(f"refresh --from {month} --to {month}")
            yield f"{month} is stale ({behind.causes}) and nothing computes it: {command} computes it, or says why not"


def _look_at_files(found: Status, connection: psycopg.Connection[Any], config: Settings) -> Iterator[str]:
    landing = landing_of(config)
    try:
        listing = landing.scan()
        waiting = landing_folder.pending(connection, landing, listing=listing, read_only=True)
    except LandingUnavailable as error:
        yield str(error)
        return
    except OSError as error:
        # the scan's own sentence, or what the system says
        yield error.strerror or str(error)
        return
    found.not_loaded = [
        *((entry.path, str(entry.message)) for entry in landing_folder.unreadable(connection, listing)),
        *((entry.name, entry.message) for entry in listing.unreadable),
    ]
    for path, message in found.not_loaded:
        yield f"{path} is not loaded: {message}"
    for pending in waiting:
        since = found.at - timedelta(seconds=pending.file.age())
        found.waiting.append(WaitingFile(pending.name, since))
        if found.at - since > PATIENCE:
            yield f"{pending.name} waits and nothing loads it: {config.command('refresh')} loads it, or says why not"


def _look_at_rows(found: Status, connection: psycopg.Connection[Any], config: Settings) -> Iterator[str]:
    found.quarantine = dict(
        connection.execute(
            "SELECT source, records FROM reporting.quarantined_records ORDER BY source"
        ).fetchall()
    )
    if found.quarantine:
        records = counted(sum(found.quarantine.values()), "record")
        psql = config.command("psql analytics")
        yield (
            f"{records} in quarantine: correct in the tool and export again, or dismiss ({psql}"
            " -- -c \"SELECT * FROM raw.rejected_rows WHERE status = 'open'\")"
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
    yield from _waiting_runs(found, instance)
    yield from _dead_runs(found, instance)
    for job in sorted(repository.job_names):
        newest = dg.RunsFilter(job_name=job, statuses=ENDED, updated_after=found.at - FAILED_WITHIN)
        for record in instance.get_run_records(newest, limit=1):
            run = record.dagster_run
            if run.status != dg.DagsterRunStatus.FAILURE:
                continue
            failure = run_failure(instance, run.run_id)
            repeated = will_retry(run, failure)
            found.failed_runs.append(Run(run.run_id, job, failure.reason, repeated))
            told = f"the newest run of {job} failed, {run.run_id}: {failure.reason}\n"
            if not repeated:
                yield told + (outlook(run, failure) or "Remove the cause, then start it again.")
            elif found.at - record.update_timestamp > PATIENCE:
                yield (
                    told
                    + "Nothing has repeated it: start the daemon, or turn on the sensor that asked for it."
                )


def _waiting_runs(found: Status, instance: dg.DagsterInstance) -> Iterator[str]:
    for record in instance.get_run_records(dg.RunsFilter(statuses=WAITING)):
        run = record.dagster_run
        found.waiting_runs.append(Run(run.run_id, run.job_name))
        if found.at - record.update_timestamp <= PATIENCE:
            continue
        if not found.daemon_runs:
            remedy = "crm-analytics up, or the daemon, starts it or does its work again"
        elif run.status == dg.DagsterRunStatus.QUEUED:
            remedy = (
                "it waits for others, of which three may load or compute: cancel those that hang, in the UI"
            )
        else:
            remedy = "the daemon should have started it or marked it as failed: restart the daemon"
        yield f"run {run.run_id} of {run.job_name} is {run.status.value.lower()} and does not start: {remedy}"


def _dead_runs(found: Status, instance: dg.DagsterInstance) -> Iterator[str]:
    storage = instance.run_storage
    assert isinstance(storage, WatchedRunStorage)
    for record in instance.get_run_records(dg.RunsFilter(statuses=STARTED)):
        run = record.dagster_run
        if storage.worker_lives(run.run_id):
            continue
        ended = instance.get_run_by_id(run.run_id)
        if ended is None or ended.is_finished:
            continue
        found.dead_runs.append(Run(run.run_id, run.job_name))
        if not found.daemon_runs:
            remedy = "crm-analytics up, or the daemon, marks it as failed and does its work again"
        elif found.at - _last_sign(instance, record) > PATIENCE:
            remedy = "the daemon should have marked it as failed: restart the daemon"
        else:
            continue
        yield f"run {run.run_id} of {run.job_name} is dead, its process is gone: {remedy}"


def _last_sign(instance: dg.DagsterInstance, record: dg.RunRecord) -> datetime:
    """Returns when a run wrote its last event: it lived until then at least."""
    events = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    return datetime.fromtimestamp(events[0].timestamp, UTC) if events else record.update_timestamp


def _look_at_ticks(
    found: Status, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition
) -> Iterator[str]:
    found.failing_ticks = [
        ticks for ticks in newest_ticks(instance, automation_names(repository)) if ticks.fails
    ]
    for ticks in found.failing_ticks:
        what = f"{ticks.kind.lower()} {ticks.name} fails, {FAILURES} ticks in a row"
        yield f"{what}: {ticks.reason}\nIt works again by itself when the cause is removed."


def _look_at_checks(
    found: Status,
    franchise: Franchise,
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
) -> Iterator[str]:
    keys = [key for key in repository.asset_graph.asset_check_keys if key.name not in SHOWN_ITSELF]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    whole_history = _whole_history(instance, franchise)
    not_run: dict[str, list[str]] = {}
    for key in sorted(latest, key=lambda key: key.to_user_string()):
        name = check_name(key)
        if latest[key].status == AssetCheckExecutionRecordStatus.PLANNED:
            not_run.setdefault(latest[key].run_id, []).append(name)
        results = [_evaluation(_concluded(instance, latest[key])), whole_history.get(key)]
        failed = [result for result in results if result and fails(result)]
        if failed:
            told = failed[0].description or "its metadata in the Dagster UI says what was found"
            found.failing_checks[name] = told
            until = f"\nThe next run of {franchise.name(CHECK_HISTORY)} tells whether it passes again."
            yield f"check {name} fails: {told}{until if whole_history.get(key) in failed else ''}"
    for record in instance.get_run_records(dg.RunsFilter(run_ids=list(not_run))) if not_run else []:
        run, names = record.dagster_run, not_run[record.dagster_run.run_id]
        if run.is_finished:
            found.checks_not_run += names
            if found.at - record.update_timestamp > PATIENCE:
                why = f"run {run.run_id} of {run.job_name} ended before it came to them"
                remedy = f"the next run of {run.job_name} that succeeds runs them"
                yield f"{counted(len(names), 'check')} did not run ({listed(names)}), because {why}: {remedy}"


def _whole_history(
    instance: dg.DagsterInstance, franchise: Franchise
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Returns what check_history found when it ran last.

    Its checks otherwise cover their run's months: they pass when other months are right, and the wrong ones still wrong.
    """
    ended = dg.RunsFilter(job_name=franchise.name(CHECK_HISTORY), statuses=ENDED)
    found, windowed = {}, windowed_checks(franchise)
    for record in instance.get_run_records(ended, limit=1):
        kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
        for entry in instance.all_logs(record.dagster_run.run_id, of_type=kind):
            result = entry.get_dagster_event().asset_check_evaluation_data
            if result.asset_check_key in windowed:
                found[result.asset_check_key] = result
    return found


def _evaluation(record: AssetCheckExecutionRecord | None) -> dg.AssetCheckEvaluation | None:
    event = record.event.dagster_event if record and record.event else None
    return event.asset_check_evaluation_data if event else None


def _concluded(
    instance: dg.DagsterInstance, latest: AssetCheckExecutionRecord
) -> AssetCheckExecutionRecord | None:
    """Returns the latest result; what is only planned may run now, or belong to a run that died."""
    done = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
    if latest.status in done:
        return latest
    history = instance.event_log_storage.get_asset_check_execution_history(latest.key, limit=1, status=done)
    return history[0] if history else None


def _alerts(instance: dg.DagsterInstance, franchise: Franchise) -> list[SentAlert]:
    records = instance.fetch_observations(franchise.key(ALERTS_KEY), limit=ALERTS).records
    return [
        SentAlert(
            datetime.fromtimestamp(record.timestamp, UTC),
            str(observed.metadata["alert"].value),
            str(observed.metadata["outcome"].value),
        )
        for record in records
        if (observed := record.asset_observation)
    ]
