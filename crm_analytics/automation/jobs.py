"""The one analytics job; automation launches it whole or for a selection of its assets."""

from __future__ import annotations

import dagster as dg

from crm_analytics.assets.metrics import DAILY, MONTHLY
from crm_analytics.assets.raw import RAW_KEYS

refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.assets(*RAW_KEYS, DAILY, MONTHLY),
    description="Load every new file, then recompute the months: the whole analytics graph with its checks."
    " Sensors launch parts of it.",
)
