"""Defines the lake's assets `lake/…`, their checks, and what starts them; nothing of it without LAKE_URL."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import dagster as dg

from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.errors import LakeError, require_extra
from crm_analytics.analytics.lake.pending import PendingMonth, overdue_months, pending_months
from crm_analytics.core.database import incarnation
from crm_analytics.core.locks import LockHeld
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.asset_metadata import OWNERS
from crm_analytics.orchestration.retries import request

KEYS = {dataset.name: dg.AssetKey(["lake", dataset.name]) for dataset in DATASETS}
NOTHING_WAITS, SAME = "nothing_waits", "same_as_postgresql"
LONGEST_WAIT = 60  #: minutes
SAMPLE = 10
INTERVAL = 30  #: seconds between the sensor's ticks
REMEDY = "Remedy: look at the last run of the job lake, or write the lake by hand: crm-analytics lake"
DESCRIPTIONS = {
    "job_facts": "One row per job, without names and addresses: what counts as what, and what was paid for it.",
    "daily_metrics": "Metrics by day, source and segment, without ratios: divide after adding up.",
    "monthly_metrics": "Metrics by month, source and segment, without ratios: divide after adding up.",
}


class LakeConfig(dg.Config):
    """How the lake is written: only what is pending, or all of history, whoever wrote it before."""

    rewrite: bool = False


def lake_definitions(franchise: Franchise) -> dg.Definitions:
    """Returns a franchise's assets, checks, jobs, schedules and sensors of the lake; none of them without LAKE_URL."""
    if franchise.settings.lake_url is None:
        return dg.Definitions()
    assets, checks = _assets(franchise), _checks(franchise)
    write = dg.define_asset_job(
        franchise.name("lake"),
        selection=dg.AssetSelection.assets(*_keys(franchise).values()),
        description="Writes the months that changed since the last time to the lake, and compares it with PostgreSQL.",
    )
    look = dg.define_asset_job(
        franchise.name("check_lake"),
        selection=dg.AssetSelection.checks(checks),
        description="Compares the whole lake with PostgreSQL, and looks what waits. Changes nothing.",
    )
    waits = dg.define_asset_job(
        franchise.name("check_lake_queue"),
        selection=dg.AssetSelection.checks(_queue_key(franchise)),
        description="Looks whether a month waits for the lake for too long. Changes nothing.",
    )
    return dg.Definitions(
        assets=[assets],
        asset_checks=[checks],
        jobs=[write, look, waits],
        schedules=[
            dg.ScheduleDefinition(
                name=franchise.name("check_lake_queue_hourly"),
                job=waits,
                cron_schedule="35 * * * *",
                execution_timezone="UTC",
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description="Hourly: a lake that is not written starts no run by itself, so this looks at what waits.",
            ),
            dg.ScheduleDefinition(
                name=franchise.name("check_lake_nightly"),
                job=look,
                cron_schedule="45 4 * * *",
                execution_timezone=franchise.months.timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description="Nightly, business timezone: the whole lake is compared, also months that no write touches.",
            ),
        ],
        sensors=[_sensor(franchise, write)],
    )


def _keys(franchise: Franchise) -> dict[str, dg.AssetKey]:
    """Returns the keys of the franchise's part of the lake's tables, by the tables' names."""
    return {name: franchise.key(key) for name, key in KEYS.items()}


def _assets(franchise: Franchise) -> dg.AssetsDefinition:
    keys = _keys(franchise)

    @dg.multi_asset(
        name=franchise.name("lake"),
        specs=[
            dg.AssetSpec(
                key,
                deps=[franchise.key(dg.AssetKey(["analytics", name]))],
                description=f"{DESCRIPTIONS[name]} An Apache Iceberg table of all franchises, for any engine"
                " (docs/decisions/lake.md).",
                group_name=franchise.name("lake"),
                kinds={"iceberg"},
                owners=OWNERS,
            )
            for name, key in keys.items()
        ],
        required_resource_keys=franchise.resource_keys,
    )
    def lake(context: dg.AssetExecutionContext, config: LakeConfig) -> Iterator[dg.MaterializeResult[Any]]:
        """Writes all pending months of the franchise in one commit per table."""
        analytics = franchise.analytics(context)
        with _clear_failures():
            require_extra()
            from crm_analytics.analytics.lake.tables import open_lake
            from crm_analytics.analytics.lake.write import write_pending

            with analytics.connect() as connection, open_lake(analytics.settings) as opened:
                written = write_pending(
                    connection, opened, rewrite=config.rewrite, waiting=_tell_who_writes(context)
                )
                locations = {name: opened.location(name) for name in keys}
        stretch = (
            f"{min(written.versions):%Y-%m} to {max(written.versions):%Y-%m}" if written.versions else "none"
        )
        context.log.info(f"{counted(len(written.versions), 'month')} written ({stretch})")
        for name, key in keys.items():
            metadata: dict[str, Any] = {
                "months_in_run": len(written.versions),
                "rows_in_run": written.rows.get(name, 0),
                "months": stretch,
                "metadata_location": str(locations[name]),
            }
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)

    return lake


def _checks(franchise: Franchise) -> dg.AssetChecksDefinition:
    keys, queue = _keys(franchise), _queue_key(franchise)
    specs = [
        dg.AssetCheckSpec(
            SAME,
            asset=key,
            description="In every month that waits for nothing, the lake has as many rows as PostgreSQL, and the same sum of"
            " each measure. Remedy: crm-analytics lake --rewrite",
        )
        for key in keys.values()
    ] + [
        dg.AssetCheckSpec(
            NOTHING_WAITS,
            asset=queue.asset_key,
            description=f"No month waits for the lake for more than {LONGEST_WAIT} minutes. {REMEDY}",
        )
    ]

    @dg.multi_asset_check(
        name=franchise.name("lake_checks"),
        specs=specs,
        can_subset=True,
        required_resource_keys=franchise.resource_keys,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        analytics = franchise.analytics(context)
        wanted = context.selected_asset_check_keys
        with analytics.connect() as connection:
            if queue in wanted:
                waiting = pending_months(connection)
                yield _queue_result(
                    queue, waiting, overdue_months(connection, LONGEST_WAIT), analytics.settings
                )
            compared = {key for key in wanted if key.name == SAME}
            if not compared:
                return
            with _clear_failures():
                require_extra()
                from crm_analytics.analytics.lake.compare import differences
                from crm_analytics.analytics.lake.tables import open_lake

                with open_lake(analytics.settings) as opened:
                    found = differences(connection, opened, _tell_who_writes(context))
        for name, key in keys.items():
            if dg.AssetCheckKey(key, SAME) in compared:
                mine = [difference for difference in found if difference.table == name]
                lines = [
                    f"{d.month:%Y-%m} {d.measure}: {d.lake}, PostgreSQL has {d.postgresql}" for d in mine
                ]
                yield dg.AssetCheckResult(
                    asset_key=key,
                    check_name=SAME,
                    passed=not mine,
                    metadata={"found": len(mine)},
                    description="; ".join(lines[:SAMPLE]) or None,
                )

    return checks


def _queue_key(franchise: Franchise) -> dg.AssetCheckKey:
    """Returns the check of the queue, which is one for all tables: they are written together."""
    return dg.AssetCheckKey(_keys(franchise)["monthly_metrics"], NOTHING_WAITS)


def _queue_result(
    key: dg.AssetCheckKey, waiting: list[PendingMonth], overdue: list[PendingMonth], settings: Settings
) -> dg.AssetCheckResult:
    since = min((month.since for month in waiting), default=None)
    told = (
        f"{counted(len(waiting), 'month')} waiting for the lake since {since.astimezone(settings.timezone):%Y-%m-%d %H:%M}"
        if since
        else "nothing waits for the lake"
    )
    return dg.AssetCheckResult(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=not overdue,
        metadata={"waiting": len(waiting), "overdue": len(overdue)},
        description=f"{told}. {REMEDY}" if overdue else told,
    )


def _sensor(franchise: Franchise, job: Any) -> dg.SensorDefinition:
    @dg.sensor(
        job=job,
        name=franchise.name("write_lake"),
        required_resource_keys=franchise.resource_keys,
        minimum_interval_seconds=INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Writes refreshed months to the lake. What is pending is in the database: nothing gets lost while this"
        " is off, or the lake away, which is asked again every hour.",
    )
    def write_lake(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """Requests a run for all pending months; its key has their versions and the hour."""
        analytics = franchise.analytics(context)
        with analytics.connect() as connection:
            pending = [month for month in pending_months(connection) if not month.is_stale]
            database = incarnation(connection)
        if not pending:
            return dg.SkipReason("no month is pending")
        versions = hashlib.sha256(repr([(m.month, m.version) for m in pending]).encode()).hexdigest()[:16]
        hour = datetime.now(analytics.settings.timezone)
        asked = request(
            context.instance,
            franchise.name(f"lake:{versions}:{hour:%Y-%m-%dT%H}:{database}"),
            f"the lake's {counted(len(pending), 'month')}",
            timezone=analytics.settings.timezone,
            tags={},
        )
        return asked if isinstance(asked, dg.RunRequest) else dg.SkipReason(asked)

    return write_lake


def _tell_who_writes(context: Any) -> Any:
    return lambda holder: context.log.info(f"waiting for another write of the lake: {holder}")


@contextmanager
def _clear_failures() -> Iterator[None]:
    """Makes failures that a person can do something about one sentence."""
    try:
        yield
    except (LakeError, LockHeld) as error:
        raise dg.Failure(str(error)) from error
