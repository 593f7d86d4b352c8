"""The contents of the analytics database as they can be compared: without clocks, run ids and counted ids."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
from psycopg import sql

#: Columns that say when or by which run something was written.
CLOCKS = (
    "updated_at", "first_seen_at", "finished_at", "rejected_at", "closed_at", "noted_at", "dismissed_at", "applied_at",
    "run_id",
)  # fmt: skip
#: Columns with the number of a file, compared by the file's path and content.
FILES = ("file_id", "same_as")
#: How often months were computed, and what each time changed, which a kill may change.
LOGS = ("refresh_log", "revisions", "revision_changes", "revision_causes")

Rows = Counter[tuple[Any, ...]]


def contents(connection: psycopg.Connection[Any]) -> dict[str, Rows]:
    """Returns the rows of every table in raw and analytics."""
    columns: dict[tuple[str, str], list[str]] = {}
    for schema, table, column in connection.execute(
        """
        SELECT table_schema, table_name, column_name
        FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
        WHERE table_schema IN ('raw', 'analytics') AND table_type = 'BASE TABLE' AND NOT table_name = ANY (%s)
            AND NOT column_name = ANY (%s) AND (is_identity = 'NO' OR column_name = ANY (%s))
        ORDER BY table_schema, table_name, ordinal_position
        """,
        [list(LOGS), list(CLOCKS), list(FILES)],
    ).fetchall():
        columns.setdefault((schema, table), []).append(column)
    return {
        f"{schema}.{table}": Counter(
            connection.execute(
                sql.SQL("SELECT {} FROM {} t").format(
                    sql.SQL(", ").join(map(_readable, names)), sql.Identifier(schema, table)
                )
            ).fetchall()
        )
        for (schema, table), names in columns.items()
    }


def _readable(column: str) -> sql.Composable:
    name = sql.Identifier("t", column)
    if column not in FILES:
        return sql.SQL("{}::text").format(name)
    file = "(SELECT f.path || ' ' || f.sha256 FROM raw.source_files f WHERE f.file_id = {})"
    return sql.SQL(file).format(name)


def differences(found: dict[str, Rows], expected: dict[str, Rows], most: int = 3) -> list[str]:
    """Says which tables differ, each with a few of the rows that are missing and surplus."""
    lines = []
    for table in sorted(found.keys() | expected.keys()):
        here, there = found.get(table, Rows()), expected.get(table, Rows())
        for what, rows in (("missing", there - here), ("surplus", here - there)):
            if rows:
                some = "; ".join(str(row) for row in list(rows)[:most])
                lines.append(f"{table}: {rows.total()} rows {what}, e.g. {some}")
    return lines
