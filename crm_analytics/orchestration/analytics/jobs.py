"""The analytics jobs: the one that computes, launched whole or for a selection of its assets, and one that only looks."""

from __future__ import annotations

import dagster as dg

from crm_analytics.orchestration.analytics.checks import WINDOWED_CHECKS
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS

refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.assets(*RAW_KEYS, DAILY, MONTHLY),
    description="Load every new file, then recompute the months: the whole analytics graph with its checks."
    " Sensors launch parts of it.",
)

check_history_job = dg.define_asset_job(
    "check_history",
    selection=dg.AssetSelection.checks(*WINDOWED_CHECKS),
    description="The checks that otherwise look at their run's months only, over all months. Changes nothing.",
)
