"""Defines `analytics/daily_metrics` and `analytics/monthly_metrics`, which one step computes together."""

from collections.abc import Iterable
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
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.months_plot import months_plot
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
from crm_analytics.orchestration.analytics.resources import POOL
from crm_analytics.orchestration.asset_metadata import (
    OWNERS,
    add_by_month,
    definition_metadata,
    table_metadata,
)
from crm_analytics.orchestration.partitions import window_of

#: Of the only business.
DAILY = dg.AssetKey(["analytics", "daily_metrics"])
MONTHLY = dg.AssetKey(["analytics", "monthly_metrics"])

RESTATEMENT = (
    "\n\n**Restatement**: late or corrected data put their months into `analytics.stale_months`, and the sensor"
    " `refresh_stale_months` recomputes just those. Trust that queue, not Dagster's staleness marks."
)


def _metadata(franchise: Franchise, table: str) -> dict[str, Any]:
    return {
        **definition_metadata(
            "analytics",
            table,
            "sql/analytics/0004_metrics.sql",
            "crm_analytics/analytics/warehouse/refresh.py",
        ),
        "dagster/column_lineage": column_lineage(franchise, table),
    }


def metrics(franchise: Franchise) -> dg.AssetsDefinition:
    """Returns the step that computes both tables."""
    daily, monthly = franchise.key(DAILY), franchise.key(MONTHLY)

    def spec(key: dg.AssetKey, description: str, deps: Iterable[dg.AssetKey]) -> dg.AssetSpec:
        return dg.AssetSpec(
            key,
            deps=deps,
            description=description + RESTATEMENT,
            metadata=_metadata(franchise, key.path[-1]),
            group_name=franchise.name("metrics"),
            kinds={"postgres", "table"},
            owners=OWNERS,
            partitions_def=franchise.months,
        )

    # the raw assets too, because Dagster orders a run by executable dependencies only, and facts are views
    loaded = [franchise.key(key) for key in RAW_KEYS if key.path[0] == "raw"]
    facts = [fact.key for fact in fact_specs(franchise)]

    @dg.multi_asset(
        name=franchise.name("metrics"),
        specs=[
            spec(daily, "Metrics by day, source and segment: the facts added up.", [*loaded, *facts]),
            spec(
                monthly,
                "Metrics by month, source and segment: sums of `daily_metrics`, written in the same transaction.",
                [daily],
            ),
        ],
        partitions_def=franchise.months,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=franchise.name(POOL),
        required_resource_keys=franchise.resource_keys,
    )
    def compute(context: dg.AssetExecutionContext) -> Any:
        """Recomputes both tables for the run's whole range of months in one transaction (docs/decisions/metrics-in-one-transaction.md)."""
        window = window_of(context)
        if window is None:
            raise dg.Failure("metrics are computed for months: launch with a month or a range")
        start, end = window
        with franchise.analytics(context).connect() as connection:
            done = refresh(connection, start, end, context.run_id)
            for table, key in (("daily_metrics", daily), ("monthly_metrics", monthly)):
                counts = _rows_by_month(connection, table, start, end)
                add_by_month(
                    context,
                    key,
                    {
                        month: {
                            "dagster/partition_row_count": rows,
                            "explain": _explain_command(franchise, month),
                        }
                        for month, rows in counts.items()
                    },
                )
                # on the last month only: metadata of a ranged result would be copied to every month
                last = done[-1].month
                add_by_month(context, key, {last: table_metadata(connection, "analytics", table)})
            add_by_month(context, monthly, {last: {"plot": months_plot(connection)}})
            revisions = revisions_of(connection, context.run_id)
        changed = sum(month.changed_rows for month in done)
        context.log.info(f"{counted(len(done), 'month')} recomputed, {counted(changed, 'daily row')} changed")
        in_run: dict[str, Any] = {"changed_daily_rows_in_run": changed}
        yield dg.MaterializeResult(asset_key=daily, metadata=in_run)
        in_run["revisions_in_run"] = len(revisions)
        if revisions:
            largest = f"{revisions[0].month:%Y-%m}: {revisions[0].changes} ({revisions[0].causes})"
            in_run["largest_revision_in_run"] = largest
            context.log.info(f"{counted(len(revisions), 'closed month')} revised, the largest {largest}")
        yield dg.MaterializeResult(asset_key=monthly, metadata=in_run)

    return compute


def _explain_command(franchise: Franchise, month: date) -> dg.MarkdownMetadataValue:
    """Returns how to see the rows behind a number of this month."""
    command = franchise.settings.command(f"explain {month:%Y-%m} repairs")
    return dg.MetadataValue.md(
        f"`{command}` prints the rows behind a number; its `--help` has the metrics, and"
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
