"""The Definitions: the page from which everything in the platform can be reached.

- Analytics, in `orchestration/analytics/`: `pulls` (services into files), `raw_assets` (files into raw tables), `fact_assets` (the rules, in SQL),
  `metric_assets` (daily and monthly metrics), `checks`, `jobs`, `automation`.
- CRM, in `orchestration/crm/`: `assets` (migrations and seals), `checks` (the proof), `automation`.
- Operation, in `orchestration/`: `alerts`, `maintenance`.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.alerts import alert_sensors, alerts_sent
from crm_analytics.orchestration.analytics.automation import (
    analytics_jobs,
    analytics_schedules,
    analytics_sensors,
)
from crm_analytics.orchestration.analytics.checks import analytics_checks
from crm_analytics.orchestration.analytics.fact_assets import fact_specs
from crm_analytics.orchestration.analytics.freshness_checks import freshness_checks
from crm_analytics.orchestration.analytics.metric_assets import metrics
from crm_analytics.orchestration.analytics.pulls import after_pulls, pull_definitions
from crm_analytics.orchestration.analytics.raw_assets import raw_assets
from crm_analytics.orchestration.analytics.resources import AnalyticsDatabase, LandingFolder
from crm_analytics.orchestration.crm.assets import crm_assets
from crm_analytics.orchestration.crm.automation import crm_jobs, crm_schedules, crm_sensors
from crm_analytics.orchestration.crm.checks import crm_checks
from crm_analytics.orchestration.crm.resources import CrmDatabase
from crm_analytics.orchestration.maintenance import maintenance_jobs, maintenance_schedules


def build_defs(
    settings: Settings, loggers: Mapping[str, dg.LoggerDefinition] | None = None
) -> dg.Definitions:
    """Assembles everything for the databases, folders and secrets of `settings`; `loggers` replace Dagster's own."""
    return dg.Definitions.merge(_platform(settings, loggers), pull_definitions(settings))


def _platform(settings: Settings, loggers: Mapping[str, dg.LoggerDefinition] | None) -> dg.Definitions:
    return dg.Definitions(
        assets=[*after_pulls(raw_assets, settings), *fact_specs, metrics, *crm_assets, alerts_sent],
        asset_checks=[*analytics_checks, freshness_checks, *crm_checks],
        jobs=[*analytics_jobs, *crm_jobs, *maintenance_jobs],
        schedules=[*analytics_schedules, *crm_schedules, *maintenance_schedules],
        sensors=[*analytics_sensors, *crm_sensors, *alert_sensors],
        resources={
            "settings": _resource(settings),
            "analytics": _resource(AnalyticsDatabase(settings)),
            "landing": _resource(LandingFolder(settings.landing_dir)),
            "crm_database": _resource(CrmDatabase(settings)),
        },
        loggers=loggers,
        executor=dg.in_process_executor,
    )


def _resource(value: object) -> dg.ResourceDefinition:
    """Wraps a plain object, so that the UI names its class and says what it is for."""
    kind = type(value)

    def provide(_: dg.InitResourceContext) -> object:
        return value

    provide.__name__, provide.__module__ = kind.__name__, kind.__module__
    return dg.ResourceDefinition(provide, description=(kind.__doc__ or "").split("\n")[0])


defs = build_defs(Settings())
