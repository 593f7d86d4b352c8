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

from crm_analytics.assets.crm import crm_assets
from crm_analytics.assets.facts import fact_specs
from crm_analytics.assets.metrics import metrics
from crm_analytics.assets.raw import raw_assets
from crm_analytics.automation.alerts import alert_sensors
from crm_analytics.automation.analytics import analytics_jobs, analytics_schedules, analytics_sensors
from crm_analytics.automation.crm import crm_jobs, crm_schedules
from crm_analytics.automation.maintenance import maintenance_jobs, maintenance_schedules
from crm_analytics.checks.analytics import analytics_checks
from crm_analytics.checks.crm_guards import crm_checks
from crm_analytics.resources.crm import crm_resources
from crm_analytics.resources.database import AnalyticsDatabase
from crm_analytics.resources.landing import LandingFolder


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
