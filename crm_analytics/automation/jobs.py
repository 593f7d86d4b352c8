"""The analytics jobs: the one that computes, launched whole or for a selection of its assets, and one that only looks."""

from __future__ import annotations

import dagster as dg

from crm_analytics.assets.metrics import DAILY, MONTHLY
from crm_analytics.assets.raw import RAW_KEYS
from crm_analytics.checks.analytics import WINDOWED_CHECKS

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
