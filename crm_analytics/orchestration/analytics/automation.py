"""Starts the analytics runs: sensors for stale months and for the landing folder, and the nightly schedules.

Their state is in the database (the queue and the ledger), not in cursors: a sensor that was off misses nothing. What a
sensor asks for is named by a key that changes with the news; `orchestration/retries.py` decides about further attempts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse.refresh import QueuedMonth, stale_months
from crm_analytics.core.database import incarnation
from crm_analytics.core.months import contiguous
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.jobs import check_freshness_job, check_history_job, refresh_job
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
from crm_analytics.orchestration.partitions import key_month, range_tags
from crm_analytics.orchestration.retries import request

METRICS = [DAILY, MONTHLY]
INTERVAL = 10  #: seconds between a sensor's ticks


def _partitioned(stale: list[QueuedMonth], known: set[date]) -> dict[date, QueuedMonth]:
    return {entry.month: entry for entry in stale if entry.month in known}


def _known(connection: psycopg.Connection[Any], news: list[landing_folder.PendingFile]) -> list[Any]:
    """Returns what decides, besides the files, whether they are news: database, declarations, their last reading."""
    read = connection.execute(
        "SELECT extract(epoch FROM max(finished_at)) FROM raw.source_files WHERE path = ANY(%s)",
        [[file.name for file in news]],
    ).fetchone()
    return [incarnation(connection), landing_folder.declarations_version(), read]


def nightly_refresh(franchise: Franchise, job: dg.UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Returns the schedule that loads and computes every night."""
    metrics = [franchise.key(key) for key in METRICS]

    @dg.schedule(
        cron_schedule="15 3 * * *",
        execution_timezone=franchise.months.timezone,
        job=job,
        name=franchise.name("nightly_refresh"),
        required_resource_keys=franchise.resource_keys,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Nightly, business timezone: loads and refreshes the current month, and recomputes everything stale.",
    )
    def evaluate(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        """Requests the current month through the whole graph, and older stale months through the metrics."""
        at = context.scheduled_execution_time
        known = {key_month(key) for key in franchise.months.get_partition_keys(current_time=at)}
        current = max(known)
        yield dg.RunRequest(run_key=f"nightly:{at:%Y-%m-%d}", tags=range_tags(current, current))
        with franchise.analytics(context).connect() as connection:
            stale = _partitioned(stale_months(connection), known)
        for first, last in contiguous(set(stale) - {current}):
            yield dg.RunRequest(
                run_key=f"nightly:{at:%Y-%m-%d}:{first:%Y-%m}:{last:%Y-%m}",
                asset_selection=metrics,
                tags=range_tags(first, last),
            )

    return evaluate


def refresh_stale_months(franchise: Franchise, job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Returns the sensor that keeps the metrics up to date."""
    metrics = [franchise.key(key) for key in METRICS]

    @dg.sensor(
        job=job,
        name=franchise.name("refresh_stale_months"),
        required_resource_keys=franchise.resource_keys,
        minimum_interval_seconds=INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Recomputes months that late or corrected data made stale: neighbors in one run, nothing else.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        """Requests one run per stretch of stale months, whose key has the newest queue id."""
        known = {key_month(key) for key in franchise.months.get_partition_keys()}
        analytics = franchise.analytics(context)
        with analytics.connect() as connection:
            stale = _partitioned(stale_months(connection), known)
            database = incarnation(connection)
        asked = [
            request(
                context.instance,
                franchise.name(
                    f"stale:{first:%Y-%m}:{last:%Y-%m}:{max(stale[m].newest_id for m in stale if first <= m <= last)}:{database}"
                ),
                f"{first:%Y-%m}" + (f" to {last:%Y-%m}" if last > first else ""),
                timezone=analytics.settings.timezone,
                tags=range_tags(first, last),
                asset_selection=metrics,
            )
            for first, last in contiguous(stale)
        ]
        requests = [answer for answer in asked if isinstance(answer, dg.RunRequest)]
        return requests or dg.SkipReason("\n".join(map(str, asked)) or "no month is stale")

    return evaluate


def load_landing_files(franchise: Franchise, job: dg.UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Returns the sensor that loads files."""

    @dg.sensor(
        job=job,
        name=franchise.name("load_landing_files"),
        required_resource_keys=franchise.resource_keys,
        minimum_interval_seconds=INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Loads new and changed files of the landing folder. A file that still grows waits; a refused one"
        " is not tried again until it changes.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """Requests one run for the sources with news; its key is a hash of the news.

        The hash covers what the ledger knew before: content that comes back is news again, although it looks as it did.
        """
        analytics, landing = franchise.analytics(context), franchise.landing(context)
        folder = landing.landing
        if not folder.exists():
            return dg.SkipReason(folder.missing())
        listing = folder.scan()
        with analytics.connect() as connection:
            news = landing_folder.pending(
                connection, folder, listing=listing, quiet_seconds=folder.quiet_seconds
            )
            known = _known(connection, news) if news else []
        if not news:
            unreadable = "".join(f"; {entry.name}: {entry.message}" for entry in listing.unreadable)
            return dg.SkipReason("no new or changed files" + unreadable)
        current = max(key_month(key) for key in franchise.months.get_partition_keys())
        fingerprint = hashlib.sha256(
            repr([*sorted((pending.name, *pending.file.state) for pending in news), *known]).encode()
        ).hexdigest()
        wanted = {SOURCES[file.source].table.replace(".", "/") for file in news if file.source}
        keys = [key for key in RAW_KEYS if "/".join(key.path) in wanted] or RAW_KEYS[:1]
        names = sorted(file.name for file in news)
        asked = request(
            context.instance,
            franchise.name(f"files:{fingerprint}"),
            names[0] + (f" and {counted(len(names) - 1, 'more file')}" if names[1:] else ""),
            timezone=analytics.settings.timezone,
            tags=range_tags(current, current),
            asset_selection=[franchise.key(key) for key in keys],
        )
        return asked if isinstance(asked, dg.RunRequest) else dg.SkipReason(asked)

    return evaluate


def check_history_nightly(
    franchise: Franchise, job: dg.UnresolvedAssetJobDefinition
) -> dg.ScheduleDefinition:
    """Returns the schedule that checks all months every night."""
    return dg.ScheduleDefinition(
        name=franchise.name("check_history_nightly"),
        job=job,
        # an hour after the refresh, so that its runs have mostly ended
        cron_schedule="15 4 * * *",
        execution_timezone=franchise.months.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Nightly, business timezone: every month's numbers are checked, also those that no run touches.",
    )


def check_freshness_hourly(
    franchise: Franchise, job: dg.UnresolvedAssetJobDefinition
) -> dg.ScheduleDefinition:
    """Returns the schedule that looks how old the newest rows are."""
    return dg.ScheduleDefinition(
        name=franchise.name("check_freshness_hourly"),
        job=job,
        cron_schedule="25 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Hourly: no file starts a run when exports stop, so this looks at the rows.",
    )


def analytics_automation(franchise: Franchise, freshness: dg.AssetChecksDefinition) -> dg.Definitions:
    """Returns a franchise's jobs, and what starts them; `freshness` are the checks that run hourly."""
    refresh = refresh_job(franchise)
    check_history = check_history_job(franchise)
    check_freshness = check_freshness_job(franchise, freshness)
    return dg.Definitions(
        jobs=[refresh, check_history, check_freshness],
        schedules=[
            nightly_refresh(franchise, refresh),
            check_history_nightly(franchise, check_history),
            check_freshness_hourly(franchise, check_freshness),
        ],
        sensors=[refresh_stale_months(franchise, refresh), load_landing_files(franchise, refresh)],
    )
