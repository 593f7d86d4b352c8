"""Defines the assets `landing/<connector>`, of the connectors that are on, and what starts their pulls.

A sensor asks for each pull once an hour, and for everything once a week. It uses the retries of all sensors
(`orchestration/retries.py`): a transient failure is tried again, anything else is not, as it costs the service requests
and people alerts.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from crm_analytics.analytics.connectors.connector import (
    Connector,
    RecordConnector,
    Window,
)
from crm_analytics.analytics.connectors.errors import ConnectorError, TransientError
from crm_analytics.analytics.connectors.pull import PullResult, pull
from crm_analytics.analytics.connectors.registry import CONNECTORS
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import LandingUnavailable, LandingUnreachable
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.asset_metadata import OWNERS, code_references
from crm_analytics.orchestration.failures import run_failure
from crm_analytics.orchestration.retries import request

PULLED = "pulled"
SENSOR = "pull_connectors"
#: Hours without a pull after which the check fails. A pull that finds nothing new writes no file, but is one.
STALE_HOURS = 6
_REMEDY = (
    "Remedy: see why the newest run of its job failed, or whether the sensor pull_connectors and the daemon are on;"
    " crm-analytics pull tries it now."
)
#: The tag that says whether a run pulls everything or the recent days.
WHAT_TAG = "crm-analytics/pull"
EVERYTHING = "everything"
INTERVAL = 30  #: seconds between the sensor's ticks
#: Seconds between two lines about progress in a run's log.
LOG_EVERY = 10.0
#: A pull that failed for good is asked for again when the settings have been read anew.
_LOADED_AT = datetime.now(UTC)


class PullConfig(dg.Config):
    """Which days a pull asks for: the recent ones by default; first and last are written YYYY-MM-DD."""

    first: str = ""
    last: str = ""
    everything: bool = False


def connectors_on(settings: Settings) -> list[Connector]:
    """Returns the connectors whose settings are there."""
    return [connector for connector in CONNECTORS.values() if not connector.missing(settings)]


def landing_key(connector: Connector) -> dg.AssetKey:
    """Returns the key of a connector's asset."""
    return dg.AssetKey(["landing", connector.name])


def job_name(connector: Connector) -> str:
    """Returns the name of the job that pulls."""
    return f"pull_{connector.name}"


def after_pulls(assets: Iterable[dg.AssetsDefinition], franchise: Franchise) -> Iterable[dg.AssetsDefinition]:
    """Returns the raw assets with the pulls that fill their folders upstream of them."""
    upstream: dict[dg.AssetKey, list[dg.AssetKey]] = {}
    for connector in connectors_on(franchise.settings):
        for name in connector.sources:
            if name in SOURCES:
                raw = franchise.key(dg.AssetKey(list(SOURCES[name].table_path)))
                upstream.setdefault(raw, []).append(franchise.key(landing_key(connector)))

    def with_pulls(spec: dg.AssetSpec) -> dg.AssetSpec:
        pulls = upstream.get(spec.key)
        return spec.merge_attributes(deps=pulls) if pulls else spec

    return dg.map_asset_specs(with_pulls, list(assets))


def pull_definitions(franchise: Franchise) -> dg.Definitions:
    """Returns assets, jobs, checks and sensors of a franchise's connectors that are on; nothing if none is."""
    on = connectors_on(franchise.settings)
    if not on:
        return dg.Definitions()
    assets = [_asset(franchise, connector) for connector in on]
    jobs = [
        dg.define_asset_job(
            franchise.name(job_name(connector)),
            selection=dg.AssetSelection.assets(franchise.key(landing_key(connector))),
            description=f"Pulls {connector.title}.",
        )
        for connector in on
    ]
    check = _check(franchise, on)
    check_job = dg.define_asset_job(
        franchise.name("check_pulls"),
        selection=dg.AssetSelection.checks(check),
        description="Looks when each connector was last pulled. Changes nothing.",
    )
    hourly = dg.ScheduleDefinition(
        name=franchise.name("check_pulls_hourly"),
        job=check_job,
        cron_schedule="35 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Hourly: a sensor that is off starts no pull that could fail, so this looks at the last one.",
    )
    return dg.Definitions(
        assets=assets,
        asset_checks=[check],
        jobs=[*jobs, check_job],
        schedules=[hourly],
        sensors=[_sensor(franchise, on, jobs)],
    )


def _check(franchise: Franchise, on: list[Connector]) -> dg.AssetChecksDefinition:
    """Returns the checks `pulled`, which run in one step."""
    limit = counted(STALE_HOURS, "hour")
    specs = [
        dg.AssetCheckSpec(
            PULLED,
            asset=franchise.key(landing_key(connector)),
            description=f"When the last pull succeeded, whether it wrote a file or not: fails after {limit}.",
        )
        for connector in on
    ]

    @dg.multi_asset_check(name=franchise.name("pulled_checks"), specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        for key in sorted(context.selected_asset_check_keys):
            event = context.instance.get_latest_materialization_event(key.asset_key)
            hours = None if event is None else (time.time() - event.timestamp) / 3600
            found = "not pulled yet" if hours is None else f"pulled {hours:.1f} hours ago"
            passed = hours is not None and hours <= STALE_HOURS
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=PULLED,
                passed=passed,
                # before the first pull there is nothing that has stopped
                severity=dg.AssetCheckSeverity.WARN if hours is None else dg.AssetCheckSeverity.ERROR,
                description=found if passed else f"{found}. {_REMEDY}",
            )

    return checks


def _asset(franchise: Franchise, connector: Connector) -> dg.AssetsDefinition:
    @dg.asset(
        key=franchise.key(landing_key(connector)),
        required_resource_keys=franchise.resource_keys,
        description=(
            f"{connector.description}\n\nA pull writes one complete file into the folder of the landing folder that the"
            " loader reads, or none: when the service fails, and when nothing has changed since the last one."
        ),
        metadata=code_references(f"crm_analytics/analytics/connectors/{_module(connector)}.py"),
        group_name=franchise.name("landing"),
        kinds={"api", "file"},
        owners=OWNERS,
        tags={"connector": connector.name},
    )
    def run_pull(context: dg.AssetExecutionContext, config: PullConfig) -> dg.MaterializeResult[Any]:
        analytics = franchise.analytics(context)
        settings = analytics.settings
        written = [0.0]

        def report(text: str) -> None:
            if time.monotonic() - written[0] > LOG_EVERY:
                written[0] = time.monotonic()
                context.log.info(text)

        try:
            with analytics.connect() as connection:
                window = _window(connector, config, settings)
                result = pull(connection, connector, settings, window, report=report)
        except (TransientError, LandingUnreachable):
            raise
        except (ConnectorError, LandingUnavailable) as error:
            # as a failure that no retry helps
            raise dg.Failure(str(error)) from error
        return dg.MaterializeResult(metadata=metadata(result))

    return run_pull


def _module(connector: Connector) -> str:
    return type(connector).__module__.rpartition(".")[2]


def _window(connector: Connector, config: PullConfig, settings: Settings) -> Window | None:
    """Returns the days that a run is configured for; None for the recent ones."""
    if config.first or config.last:
        try:
            first, last = (date.fromisoformat(day) if day else None for day in (config.first, config.last))
        except ValueError:
            raise ConnectorError(
                f"{connector.name}: first and last are days; found: {config.first!r}, {config.last!r}; accepted:"
                " YYYY-MM-DD"
            ) from None
        return Window(first, last)
    if config.everything and isinstance(connector, RecordConnector):
        return connector.everything(settings, datetime.now(settings.timezone).date())
    return None


def metadata(result: PullResult) -> dict[str, Any]:
    """Returns what a pull did, for its asset."""
    covers = result.covers
    return {
        "pages": result.pages,
        "records": result.records,
        **({"window": result.window.words} if result.window else {}),
        **({"covers": f"{covers['by']} from {covers['from']} to {covers['to'] or 'open'}"} if covers else {}),
        "files": "\n".join(result.files) or "none: nothing has changed",
        **({"note": result.note} if result.note else {}),
    }


def record(instance: dg.DagsterInstance, settings: Settings, result: PullResult) -> None:
    """Writes down a pull that was made outside of Dagster, so that its asset is as fresh as it."""
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            Franchise(settings).key(landing_key(CONNECTORS[result.connector])),
            metadata=metadata(result),
            description="pulled on the command line",
        )
    )


def _sensor(franchise: Franchise, on: list[Connector], jobs: list[Any]) -> dg.SensorDefinition:
    @dg.sensor(
        name=franchise.name(SENSOR),
        jobs=jobs,
        minimum_interval_seconds=INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Hourly: pulls the recent days of each connector. Weekly, in the night to Monday, and at first:"
        " everything since START_MONTH.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        """Requests what is due."""
        asked = [_due(context.instance, franchise, connector) for connector in on]
        requests = [answer for answer in asked if isinstance(answer, dg.RunRequest)]
        return requests or dg.SkipReason("\n".join(map(str, asked)))

    return evaluate


def _now() -> datetime:
    return datetime.now(UTC)


def _due(instance: dg.DagsterInstance, franchise: Franchise, connector: Connector) -> dg.RunRequest | str:
    """Returns the request for the connector's next pull, or why there is none now."""
    now = _now().astimezone(franchise.settings.timezone)
    job = franchise.name(job_name(connector))
    step = "__".join(franchise.key(landing_key(connector)).path)
    if instance.get_runs(dg.RunsFilter(job_name=job, statuses=IN_PROGRESS_RUN_STATUSES), limit=1):
        return f"{connector.name}: being pulled"
    monday = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=now.weekday())
    # one that was refused is asked again once a day, and after a restart, which reads the settings anew
    again = f"{now:%Y-%m-%d}:{_LOADED_AT:%Y%m%dT%H%M%S}" if _refused(instance, job) else None
    due: list[tuple[str, str]] = []
    if isinstance(connector, RecordConnector) and not _pulled_everything(instance, job, monday):
        due.append((EVERYTHING, again or f"{now:%Y-%m-%d}"))
    due.append(("recent", again or f"{now:%Y-%m-%dT%H%z}"))
    answer: dg.RunRequest | str = ""
    for what, slot in due:
        config = {"everything": True} if what == EVERYTHING else {}
        answer = request(
            instance,
            franchise.name(f"pull:{connector.name}:{what}:{slot}"),
            connector.name,
            timezone=franchise.settings.timezone,
            tags={WHAT_TAG: what},
            job_name=job,
            run_config={"ops": {step: {"config": config}}},
        )
        if isinstance(answer, dg.RunRequest):
            break
    return answer


def _pulled_everything(instance: dg.DagsterInstance, job: str, since: datetime) -> bool:
    """Returns whether everything was pulled since a moment."""
    pulls = dg.RunsFilter(
        job_name=job,
        tags={WHAT_TAG: EVERYTHING},
        statuses=[dg.DagsterRunStatus.SUCCESS],
        created_after=since.astimezone(UTC),
    )
    return bool(instance.get_runs(pulls, limit=1))


def _refused(instance: dg.DagsterInstance, job: str) -> bool:
    """Returns whether the newest pull failed for a reason that time doesn't mend, such as a wrong token."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    newest = instance.get_runs(dg.RunsFilter(job_name=job, statuses=ended), limit=1)
    return (
        bool(newest)
        and newest[0].status == dg.DagsterRunStatus.FAILURE
        and not run_failure(instance, newest[0].run_id).transient
    )
