"""Reads tables, columns with comments, keys and indexes of the analytics database from its catalog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg


@dataclass(frozen=True)
class Column:
    """A column: its type as PostgreSQL writes it, and its comment."""

    name: str
    type: str
    nullable: bool
    default: str | None
    generated: bool
    comment: str | None


@dataclass(frozen=True)
class Relation:
    """A table or view with its columns, constraints (definitions) and indexes (definitions)."""

    schema: str
    name: str
    is_view: bool
    comment: str | None
    columns: tuple[Column, ...]
    constraints: tuple[str, ...]
    indexes: tuple[str, ...]


def columns(connection: psycopg.Connection[Any], schema: str, table: str) -> tuple[Column, ...]:
    """Returns the columns of a table or view, in order."""
    return tuple(
        Column(*row)
        for row in connection.execute(
            """
            SELECT a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
                CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END,
                a.attgenerated <> '', col_description(a.attrelid, a.attnum)
            FROM pg_attribute a
            LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum
            """,
            [schema, table],
        )
    )


def relations(connection: psycopg.Connection[Any], *schemas: str) -> list[Relation]:
    """Returns every table and view of the schemas, in the order of their creation."""
    found = connection.execute(
        """
        SELECT n.nspname, c.relname, c.relkind = 'v', obj_description(c.oid, 'pg_class'),
            ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
                  WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f', 'c')
                  ORDER BY array_position(ARRAY['p', 'u', 'f', 'c'], k.contype::text), k.conname),
            ARRAY(SELECT regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE (UNIQUE )?INDEX (\\S+) ON \\S+ USING (\\S+)', '\\2: \\1\\3')
                  FROM pg_index i
                  WHERE i.indrelid = c.oid AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)
                  ORDER BY 1)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'v')
          AND c.relname NOT IN ('alembic_version', 'migration_files')
        ORDER BY array_position(%s, n.nspname::text), c.oid
        """,
        [list(schemas), list(schemas)],
    ).fetchall()
    return [
        Relation(
            schema,
            name,
            is_view,
            comment,
            columns(connection, schema, name),
            tuple(constraints),
            tuple(indexes),
        )
        for schema, name, is_view, comment, constraints, indexes in found
    ]
