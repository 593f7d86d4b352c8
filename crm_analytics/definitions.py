"""The Definitions: the page from which everything in the platform can be reached.

- Analytics, in `orchestration/analytics/`: `pulls` (services into files), `raw_assets` (files into raw tables), `fact_assets`
  (the rules, in SQL), `metric_assets` (daily and monthly metrics), `checks`, `jobs`, `automation`; `lake`, if there is one.
- CRM, in `orchestration/crm/`: `assets` (migrations and seals), `checks` (the proof), `automation`.
- Operation, in `orchestration/`: `alerts`, `maintenance`.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.alerts import alert_sensor, alerts_sent
from crm_analytics.orchestration.analytics.automation import analytics_automation
from crm_analytics.orchestration.analytics.checks import analytics_checks
from crm_analytics.orchestration.analytics.fact_assets import fact_specs
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.freshness_checks import freshness_checks
from crm_analytics.orchestration.analytics.lake import lake_definitions
from crm_analytics.orchestration.analytics.metric_assets import metrics
from crm_analytics.orchestration.analytics.pulls import after_pulls, pull_definitions
from crm_analytics.orchestration.analytics.raw_assets import raw_assets
from crm_analytics.orchestration.crm.assets import crm_assets
from crm_analytics.orchestration.crm.automation import crm_jobs, crm_schedules, crm_sensors
from crm_analytics.orchestration.crm.checks import crm_checks
from crm_analytics.orchestration.crm.resources import CrmDatabase
from crm_analytics.orchestration.maintenance import maintenance_jobs, maintenance_schedules


def build_defs(
    settings: Settings, loggers: Mapping[str, dg.LoggerDefinition] | None = None
) -> dg.Definitions:
    """Assembles everything for the databases, folders and secrets of `settings`; `loggers` replace Dagster's own."""
    parts = [_franchise(Franchise(config)) for config in settings.of_franchises()]
    if settings.crm_enabled:
        parts.append(_crm(settings))
    if settings.maintenance_enabled:
        parts.append(_maintenance(settings))
    return dg.Definitions.merge(*parts, dg.Definitions(loggers=loggers, executor=dg.in_process_executor))


def _franchise(franchise: Franchise) -> dg.Definitions:
    """Returns what every franchise has; without franchises, the only business."""
    freshness = freshness_checks(franchise)
    return dg.Definitions.merge(
        dg.Definitions(
            assets=[
                *after_pulls(raw_assets(franchise), franchise),
                *fact_specs(franchise),
                metrics(franchise),
                alerts_sent(franchise),
            ],
            asset_checks=[*analytics_checks(franchise), freshness],
            sensors=[alert_sensor(franchise)],
            resources={key: _resource(value) for key, value in franchise.resources.items()},
        ),
        analytics_automation(franchise, freshness),
        pull_definitions(franchise),
        lake_definitions(franchise),
    )


def _crm(settings: Settings) -> dg.Definitions:
    """Returns the CRM, which one code location of an instance has."""
    return dg.Definitions(
        assets=crm_assets,
        asset_checks=crm_checks,
        jobs=crm_jobs,
        schedules=crm_schedules,
        sensors=crm_sensors,
        resources={"crm_database": _resource(CrmDatabase(settings))},
    )


def _maintenance(settings: Settings) -> dg.Definitions:
    """Returns what one code location does for the instance: pruning, and alerts about what is no franchise's."""
    common = Franchise(settings)
    return dg.Definitions(
        assets=[alerts_sent(common)] if common.is_common else [],
        jobs=maintenance_jobs,
        schedules=maintenance_schedules,
        sensors=[alert_sensor(common)] if common.is_common else [],
        resources={"settings": _resource(settings)},
    )


def _resource(value: object) -> dg.ResourceDefinition:
    """Wraps a plain object, so that the UI names its class and says what it is for."""
    kind = type(value)

    def provide(_: dg.InitResourceContext) -> object:
        return value

    provide.__name__, provide.__module__ = kind.__name__, kind.__module__
    return dg.ResourceDefinition(provide, description=(kind.__doc__ or "").split("\n")[0])


defs = build_defs(Settings())
