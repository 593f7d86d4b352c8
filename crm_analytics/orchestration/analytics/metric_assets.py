"""Defines `analytics/daily_metrics` and `analytics/monthly_metrics`, which one step computes together."""

from datetime import date
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.analytics.warehouse.revisions import revisions_of
from crm_analytics.core.months import months_between
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.column_lineage import column_lineage
from crm_analytics.orchestration.analytics.fact_assets import fact_specs
from crm_analytics.orchestration.analytics.months_plot import months_plot
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
from crm_analytics.orchestration.analytics.resources import POOL, AnalyticsDatabase
from crm_analytics.orchestration.asset_metadata import (
    OWNERS,
    add_by_month,
    definition_metadata,
    table_metadata,
)
from crm_analytics.orchestration.partitions import months, window_of

DAILY = dg.AssetKey(["analytics", "daily_metrics"])
MONTHLY = dg.AssetKey(["analytics", "monthly_metrics"])

RESTATEMENT = (
    "\n\n**Restatement**: late or corrected data put their months into `analytics.stale_months`, and the sensor"
    " `refresh_stale_months` recomputes just those. Trust that queue, not Dagster's staleness marks."
)


def _metadata(table: str) -> dict[str, Any]:
    return {
        **definition_metadata(
            "analytics",
            table,
            "sql/analytics/0004_metrics.sql",
            "crm_analytics/analytics/warehouse/refresh.py",
        ),
        "dagster/column_lineage": column_lineage(table),
    }


@dg.multi_asset(
    name="metrics",
    specs=[
        dg.AssetSpec(
            DAILY,
            # the raw assets too, because Dagster orders a run by executable dependencies only, and facts are views
            deps=[*(key for key in RAW_KEYS if key.path[0] == "raw"), *(spec.key for spec in fact_specs)],
            description="Metrics by day, source and segment: the facts added up." + RESTATEMENT,
            metadata=_metadata("daily_metrics"),
            group_name="metrics",
            kinds={"postgres", "table"},
            owners=OWNERS,
            partitions_def=months,
        ),
        dg.AssetSpec(
            MONTHLY,
            deps=[DAILY],
            description="Metrics by month, source and segment: sums of `daily_metrics`, written in the same transaction."
            + RESTATEMENT,
            metadata=_metadata("monthly_metrics"),
            group_name="metrics",
            kinds={"postgres", "table"},
            owners=OWNERS,
            partitions_def=months,
        ),
    ],
    partitions_def=months,
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=POOL,
)
def metrics(context: dg.AssetExecutionContext, analytics: dg.ResourceParam[AnalyticsDatabase]) -> Any:
    """Recomputes both tables for the run's whole range of months in one transaction (docs/decisions/metrics-in-one-transaction.md)."""
    window = window_of(context)
    if window is None:
        raise dg.Failure("metrics are computed for months: launch with a month or a range")
    start, end = window
    with analytics.connect() as connection:
        done = refresh(connection, start, end, context.run_id)
        for table, key in (("daily_metrics", DAILY), ("monthly_metrics", MONTHLY)):
            counts = _rows_by_month(connection, table, start, end)
            add_by_month(
                context,
                key,
                {
                    month: {"dagster/partition_row_count": rows, "explain": _explain_command(month)}
                    for month, rows in counts.items()
                },
            )
            # on the last month only: metadata of a ranged result would be copied to every month
            last = done[-1].month
            add_by_month(context, key, {last: table_metadata(connection, "analytics", table)})
        add_by_month(context, MONTHLY, {last: {"plot": months_plot(connection)}})
        revisions = revisions_of(connection, context.run_id)
    changed = sum(month.changed_rows for month in done)
    context.log.info(f"{counted(len(done), 'month')} recomputed, {counted(changed, 'daily row')} changed")
    in_run: dict[str, Any] = {"changed_daily_rows_in_run": changed}
    yield dg.MaterializeResult(asset_key=DAILY, metadata=in_run)
    in_run["revisions_in_run"] = len(revisions)
    if revisions:
        largest = f"{revisions[0].month:%Y-%m}: {revisions[0].changes} ({revisions[0].causes})"
        in_run["largest_revision_in_run"] = largest
        context.log.info(f"{counted(len(revisions), 'closed month')} revised, the largest {largest}")
    yield dg.MaterializeResult(asset_key=MONTHLY, metadata=in_run)


def _explain_command(month: date) -> dg.MarkdownMetadataValue:
    """Returns how to see the rows behind a number of this month."""
    return dg.MetadataValue.md(
        f"`crm-analytics explain {month:%Y-%m} repairs` prints the rows behind a number; its `--help` has the metrics, and"
        " how to ask for one source, segment or day."
    )


def _rows_by_month(connection: psycopg.Connection[Any], table: str, start: Any, end: Any) -> dict[Any, int]:
    key = "date" if table == "daily_metrics" else "month"
    counted = connection.execute(
        f"SELECT analytics.month_of({key}), count(*) FROM analytics.{table}"
        f" WHERE {key} >= %s AND {key} < %s GROUP BY 1",
        [start, end],
    ).fetchall()
    return {**dict.fromkeys(months_between(start, end), 0), **dict(counted)}
