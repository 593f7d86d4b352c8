"""The months: the one partitions definition that every partitioned asset shares."""

from __future__ import annotations

from datetime import date

import dagster as dg

from crm_analytics.core.months import next_month
from crm_analytics.core.settings import Settings, parse_month, settings

MONTH_FORMAT = "%Y-%m"


def build_months(config: Settings) -> dg.MonthlyPartitionsDefinition:
    """START_MONTH to the current month inclusive (month to date), in the business timezone."""
    return dg.MonthlyPartitionsDefinition(
        start_date=config.start_month.strftime(MONTH_FORMAT),
        fmt=MONTH_FORMAT,
        timezone=config.business_timezone,
        end_offset=1,
    )


months = build_months(settings())


def month_key(month: date) -> str:
    """The partition key of a month."""
    return month.strftime(MONTH_FORMAT)


def key_month(key: str) -> date:
    """The month of a partition key."""
    return parse_month(key)


def range_tags(first: date, last: date) -> dict[str, str]:
    """Run tags that make one run of all months from `first` to `last`, both included."""
    return {
        "dagster/asset_partition_range_start": month_key(first),
        "dagster/asset_partition_range_end": month_key(last),
    }


def window_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[date, date] | None:
    """The half-open range of months [start, end) that the run is about; None when it has no partitions."""
    tags = context.run.tags
    first = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition")
    last = tags.get("dagster/asset_partition_range_end") or tags.get("dagster/partition")
    if not first or not last:
        return None
    return key_month(first), next_month(key_month(last))
