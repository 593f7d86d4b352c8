"""Defines the analytics jobs: one that loads and computes, and one that only checks."""

from __future__ import annotations

import dagster as dg

from crm_analytics.orchestration.analytics.checks import WINDOWED_CHECKS
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS

refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.assets(*RAW_KEYS, DAILY, MONTHLY),
    description="Loads every new file, then recomputes the months: the whole analytics graph with its checks."
    " Sensors launch parts of it.",
)

check_history_job = dg.define_asset_job(
    "check_history",
    selection=dg.AssetSelection.checks(*WINDOWED_CHECKS),
    description="Runs over all months the checks that otherwise cover their run's months. Changes nothing.",
)
