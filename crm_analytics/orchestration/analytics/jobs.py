"""Defines the analytics jobs: one that loads and computes, and two that only check."""

from __future__ import annotations

import dagster as dg

from crm_analytics.orchestration.analytics.checks import windowed_checks
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS

#: Of the only business.
CHECK_HISTORY = "check_history"


def refresh_job(franchise: Franchise) -> dg.UnresolvedAssetJobDefinition:
    """Returns the job that loads and computes."""
    return dg.define_asset_job(
        franchise.name("refresh"),
        selection=dg.AssetSelection.assets(*map(franchise.key, [*RAW_KEYS, DAILY, MONTHLY])),
        description="Loads every new file, then recomputes the months: the whole analytics graph with its checks."
        " Sensors launch parts of it.",
    )


def check_history_job(franchise: Franchise) -> dg.UnresolvedAssetJobDefinition:
    """Returns the job that only checks."""
    return dg.define_asset_job(
        franchise.name(CHECK_HISTORY),
        selection=dg.AssetSelection.checks(*windowed_checks(franchise)),
        description="Runs over all months the checks that otherwise cover their run's months. Changes nothing.",
    )


def check_freshness_job(
    franchise: Franchise, checks: dg.AssetChecksDefinition
) -> dg.UnresolvedAssetJobDefinition:
    """Returns the job that runs the checks."""
    return dg.define_asset_job(
        franchise.name("check_freshness"),
        selection=dg.AssetSelection.checks(checks),
        description="Looks how old the newest row of every source is. Changes nothing.",
    )
