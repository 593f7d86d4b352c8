"""Short forms for the statements of a load."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql

from crm_analytics.analytics.ingest.sources.declaration import Source

Connection = psycopg.Connection[Any]


def execute(
    connection: Connection, source: Source, statement: LiteralString, **parts: Any
) -> psycopg.Cursor[Any]:
    """Executes a statement whose `{names}` are the source's SQL fragments, other SQL, or values."""
    composed = {
        name: part if isinstance(part, sql.Composable) else sql.Literal(part) for name, part in parts.items()
    }
    return connection.execute(sql.SQL(statement).format(**source.fragments, **composed))


def fetch_row(
    connection: Connection, source: Source, statement: LiteralString, **parts: Any
) -> tuple[Any, ...]:
    """Returns the only row of a query; see `execute`."""
    row = execute(connection, source, statement, **parts).fetchone()
    assert row is not None
    return tuple(row)


def fetch_value(connection: Connection, source: Source, statement: LiteralString, **parts: Any) -> Any:
    """Returns the only value of a query; see `execute`."""
    return fetch_row(connection, source, statement, **parts)[0]


def create_temporary(
    connection: Connection, source: Source, name: LiteralString, query: LiteralString, **parts: Any
) -> None:
    """Makes a temporary table of a query's rows, for the rest of the transaction; see `execute`."""
    statement: LiteralString = (
        "DROP TABLE IF EXISTS pg_temp.{name}; CREATE TEMP TABLE {name} ON COMMIT DROP AS " + query
    )
    execute(connection, source, statement, name=sql.Identifier(name), **parts)
