"""Describes the analytics assets in the UI: their table, code, columns and number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import dagster as dg
import psycopg
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator

from crm_analytics.analytics.warehouse import catalog
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.orchestration.partitions import month_key

OWNERS = ["team:data"]


def definition_metadata(schema: str, table: str, *code: str) -> dict[str, Any]:
    """Returns what is known before a run: the table's name and the files that have its rules."""
    return {"dagster/table_name": f"{schema}.{table}", **code_references(*code)}


def code_references(*code: str) -> dict[str, Any]:
    """Returns the links to files of the project."""
    references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = [
        dg.LocalFileCodeReference(file_path=str(PROJECT_DIR / path), line_number=1) for path in code
    ]
    return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references)}


def table_metadata(connection: psycopg.Connection[Any], schema: str, table: str) -> dict[str, Any]:
    """Returns the table's columns as in the catalog, and its number of rows."""
    columns = [
        dg.TableColumn(
            name=column.name,
            type=column.type,
            description=column.comment,
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in catalog.columns(connection, schema, table)
    ]
    count = connection.execute(f'SELECT count(*) FROM "{schema}"."{table}"').fetchone()
    assert count is not None
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/row_count": count[0],
    }


def add_by_month(
    context: dg.AssetExecutionContext, key: dg.AssetKey, metadata: Mapping[date, Mapping[str, Any]]
) -> None:
    """Adds metadata to the events of some of the run's months.

    Dagster's own `add_asset_metadata` takes one month, and lists all months of the run to find it among them.
    """
    step = context.get_step_execution_context()
    known = dict(step._metadata_accumulator.per_output_metadata)
    for month, values in metadata.items():
        handle = AssetMetadataHandle(asset_key=key, partition_key=month_key(month))
        known[handle] = {**known.get(handle, {}), **values}
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=known)
