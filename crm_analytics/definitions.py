"""The Definitions: one page from which everything in the platform can be reached.

Analytics: `assets/raw.py` (files into raw tables), `assets/facts.py` (the rules, in SQL), `assets/metrics.py`
(daily and monthly metrics), `checks/analytics.py`, `automation/analytics.py`.
CRM: `assets/crm.py` (migrations), `checks/crm_guards.py` (the proof), `automation/crm.py`.
Operation: `automation/alerts.py`, `automation/maintenance.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from crm_analytics.orchestration.alerts import alert_sensors
from crm_analytics.orchestration.analytics.automation import (
    analytics_jobs,
    analytics_schedules,
    analytics_sensors,
)
from crm_analytics.orchestration.analytics.checks import analytics_checks
from crm_analytics.orchestration.analytics.fact_assets import fact_specs
from crm_analytics.orchestration.analytics.landing_resource import LandingFolder
from crm_analytics.orchestration.analytics.metric_assets import metrics
from crm_analytics.orchestration.analytics.raw_assets import raw_assets
from crm_analytics.orchestration.analytics.resources import AnalyticsDatabase
from crm_analytics.orchestration.crm.assets import crm_assets
from crm_analytics.orchestration.crm.automation import crm_jobs, crm_schedules
from crm_analytics.orchestration.crm.checks import crm_checks
from crm_analytics.orchestration.crm.resources import crm_resources
from crm_analytics.orchestration.maintenance import maintenance_jobs, maintenance_schedules


def build_defs(
    overrides: Mapping[str, Any] | None = None, loggers: Mapping[str, dg.LoggerDefinition] | None = None
) -> dg.Definitions:
    """The production assembly; tests replace resources by name, the command line the console's logger."""
    resources: dict[str, Any] = {
        "analytics": AnalyticsDatabase(),
        "landing": LandingFolder(),
        **crm_resources(),
    }
    return dg.Definitions(
        assets=[*raw_assets, *fact_specs, metrics, *crm_assets],
        asset_checks=[*analytics_checks, *crm_checks],
        jobs=[*analytics_jobs, *crm_jobs, *maintenance_jobs],
        schedules=[*analytics_schedules, *crm_schedules, *maintenance_schedules],
        sensors=[*analytics_sensors, *alert_sensors],
        resources={**resources, **(overrides or {})},
        loggers=loggers,
        executor=dg.in_process_executor,
    )


defs = build_defs()
