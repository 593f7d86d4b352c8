"""The jobs that people and automation launch."""

from __future__ import annotations

import dagster as dg

from crm_analytics.assets.metrics import DAILY, MONTHLY
from crm_analytics.assets.raw import raw_assets
from crm_analytics.partitions import months

RAW_KEYS = [asset.key for asset in raw_assets]

refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.assets(*RAW_KEYS, DAILY, MONTHLY),
    partitions_def=months,
    description="Load every new file, then recompute the months: the whole analytics graph with its checks.",
)
load_job = dg.define_asset_job(
    "load",
    selection=dg.AssetSelection.assets(*RAW_KEYS),
    partitions_def=months,
    description="Load new and changed landing files; months that they make stale are refreshed by the sensor.",
)
recompute_job = dg.define_asset_job(
    "recompute",
    selection=dg.AssetSelection.assets(DAILY, MONTHLY),
    partitions_def=months,
    description="Recompute daily and monthly metrics of the months from what is loaded.",
)
