"""Defines the raw assets and the targets: one asset per source, which loads its export files whole."""

from typing import Any

import dagster as dg

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.loading.results import LoadResult
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.core.months import months_between
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.load_log import LoadLog
from crm_analytics.orchestration.analytics.resources import POOL
from crm_analytics.orchestration.asset_metadata import (
    OWNERS,
    add_by_month,
    definition_metadata,
    table_metadata,
)
from crm_analytics.orchestration.partitions import key_month, month_key, window_of

#: Of the only business.
RAW_KEYS = [dg.AssetKey(list(source.table_path)) for source in SOURCES.values()]

LOADING = (
    "\n\nA run loads every new or changed file of the landing folder for this source **whole**, whatever months it touches;"
    " the run's months decide only what is reported, and other months touched are reported too. Files already loaded are"
    " skipped by content. `force: true` reads everything again. The ledger is `raw.source_files`, the quarantine"
    " `raw.rejected_rows`."
)


class LoadConfig(dg.Config):
    """How a raw asset loads; `force` reads files again whose content is loaded already."""

    force: bool = False


def raw_assets(franchise: Franchise) -> list[dg.AssetsDefinition]:
    """Returns the assets of all sources."""
    return [build_raw_asset(franchise, source) for source in SOURCES.values()]


def build_raw_asset(franchise: Franchise, source: Source) -> dg.AssetsDefinition:
    """Returns the asset that loads one source's files into its table."""
    schema, table = source.table_path

    @dg.asset(
        key=franchise.key(dg.AssetKey([schema, table])),
        partitions_def=franchise.months,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=franchise.name(POOL),
        required_resource_keys=franchise.resource_keys,
        description=source.description + LOADING,
        metadata={
            **definition_metadata(
                schema,
                table,
                f"crm_analytics/analytics/ingest/sources/{source.name}.py",
                f"sql/analytics/{source.migration}",
            ),
        },
        group_name=franchise.name("raw" if schema == "raw" else "metrics"),
        kinds={"postgres", "csv", "table"},
        owners=OWNERS,
        tags={"source": source.name},
    )
    def load(context: dg.AssetExecutionContext, config: LoadConfig) -> dg.MaterializeResult[Any]:
        analytics, landing = franchise.analytics(context), franchise.landing(context)
        log = LoadLog(context.log.info)
        folder = landing.existing()
        with analytics.connect() as connection:
            try:
                result = load_source(
                    connection,
                    folder,
                    source.name,
                    timezone=analytics.settings.timezone,
                    run_id=context.run_id,
                    force=config.force,
                    quiet_seconds=folder.quiet_seconds,
                    report=log.report,
                    concluded=log.conclude,
                )
            finally:
                log.flush()
            columns = table_metadata(connection, schema, table)
            rows = _rows_by_month(connection, source)
        _report_months(context, franchise, result, rows, columns)
        uri = folder.below(source.name).uri
        return dg.MaterializeResult(metadata={"dagster/uri": uri, **_files_metadata(result)})

    return load


def _rows_by_month(connection: Any, source: Source) -> dict[Any, int]:
    return dict(
        connection.execute(
            f"SELECT analytics.month_of({source.date_column}), count(*) FROM {source.table} GROUP BY 1"
        ).fetchall()
    )


def _report_months(
    context: dg.AssetExecutionContext,
    franchise: Franchise,
    result: LoadResult,
    rows: dict[Any, int],
    columns: dict[str, Any],
) -> None:
    """Reports row counts of the run's months, and a materialization of each month that files touched outside them."""
    window = window_of(context)
    inside = set(months_between(*window)) if window else set()
    add_by_month(
        context,
        context.asset_key,
        {month: {"dagster/partition_row_count": rows.get(month, 0)} for month in inside},
    )
    if inside:
        add_by_month(context, context.asset_key, {max(inside): columns})
    known = {key_month(key) for key in franchise.months.get_partition_keys()}
    for month in sorted((set(result.months) & known) - inside):
        context.log_event(
            dg.AssetMaterialization(
                context.asset_key,
                partition=month_key(month),
                metadata={"dagster/partition_row_count": rows.get(month, 0)},
            )
        )


def _files_metadata(result: LoadResult) -> dict[str, Any]:
    """Returns the numbers of files and records; kept small, because a ranged run copies them to every month's event."""
    totals = result.totals
    return {
        "files_loaded": sum(file.status == "loaded" for file in result.files),
        "files_refused": len(result.refused),
        "files_waiting": sum(file.status == "waiting" for file in result.files),
        "records_quarantined": totals.quarantined,
        "records_changed": totals.inserted + totals.updated,
    }
