"""Describes the analytics assets in the UI: their table, code, columns and number of rows."""

from __future__ import annotations

from typing import Any

import dagster as dg
import psycopg

from crm_analytics.analytics.warehouse import catalog
from crm_analytics.core.settings import PROJECT_DIR

OWNERS = ["team:data"]


def definition_metadata(schema: str, table: str, *code: str) -> dict[str, Any]:
    """Returns what is known before a run: the table's name and the files that have its rules."""
    references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = [
        dg.LocalFileCodeReference(file_path=str(PROJECT_DIR / path), line_number=1) for path in code
    ]
    return {
        "dagster/table_name": f"{schema}.{table}",
        "dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references),
    }


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
