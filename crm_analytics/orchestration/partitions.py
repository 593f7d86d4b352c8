"""The months: the one partitions definition that all partitioned assets of a business share (docs/decisions/months-as-partitions.md)."""

from __future__ import annotations

from datetime import date

import dagster as dg

from crm_analytics.core.months import next_month, parse_month
from crm_analytics.core.settings import Settings

MONTH_FORMAT = "%Y-%m"


def months_of(settings: Settings) -> dg.MonthlyPartitionsDefinition:
    """Returns START_MONTH to the current month inclusive (month to date), in the business timezone."""
    return dg.MonthlyPartitionsDefinition(
        start_date=f"{settings.start_month:%Y-%m}",
        fmt=MONTH_FORMAT,
        timezone=settings.business_timezone,
        end_offset=1,
    )


def month_key(month: date) -> str:
    """Returns the partition key of a month."""
    return month.strftime(MONTH_FORMAT)


def key_month(key: str) -> date:
    """Returns the month of a partition key."""
    return parse_month(key)


def range_tags(first: date, last: date) -> dict[str, str]:
    """Returns the tags that make one run of all months from `first` to `last`, both included."""
    return {
        "dagster/asset_partition_range_start": month_key(first),
        "dagster/asset_partition_range_end": month_key(last),
    }


def window_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[date, date] | None:
    """Returns the half-open range of months [start, end) of the run; None when it has no partitions."""
    tags = context.run.tags
    first = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition")
    last = tags.get("dagster/asset_partition_range_end") or tags.get("dagster/partition")
    if not first or not last:
        return None
    return key_month(first), next_month(key_month(last))
