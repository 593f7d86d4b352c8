"""Finds what would stop the migrations halfway on an existing database, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg

from crm_analytics.core.wording import listed
from crm_analytics.crm.migrating.forms import form
from crm_analytics.crm.schema.catalog import Manifest, kind_of
from crm_analytics.crm.schema.manifest import baseline, expected

#: Bytes of an indexed text; an index entry holds 2,700.
INDEXED_BYTES = 2000
SHOWN = 5
#: Schemas that the migrations create besides crm_private, which they may find.
SCHEMAS = ("reporting",)

#: Table, column, helper of the migrations (or an expression) that makes the form in which it is indexed.
INDEXED = (
    ("customers", "phone", "regexp_replace(phone, '[^0-9]', '', 'g')"),
    ("customers", "full_name", "full_name"),
    ("customers", "email", "trimmed"),
    ("users", "email", "email"),
    ("payments", "external_reference", "reference_key"),
    ("orders", "order_code", "order_code_key"),
)
#: Columns that the migrations fill themselves.
_FILLED = (
    "order_status_events.seq",
    "payments.reference_key",
    "payments.reverses",
    "payments.rebooks",
    "orders.order_code_key",
)


def obstacles(
    connection: psycopg.Connection[Any],
    found: Manifest,
    adopting: bool,
    moved: Sequence[str] = (),
) -> list[str]:
    """Returns a sentence with its remedy for everything that a migration file would trip over.

    Args:
        found: the catalog of the connected database.
        adopting: whether it has the baseline's objects; their names may then be taken.
        moved: tables that adoption takes out of the way, with their indexes.
    """
    if wrong := list(_encoding(connection)):
        return wrong  # the checks of values need it
    return [
        *_owner(connection),
        *_taken_names(connection, adopting, moved),
        *_columns(connection, found),
        *_values(connection, found),
    ]


def _encoding(connection: psycopg.Connection[Any]) -> Iterator[str]:
    for database, encoding in connection.execute(
        """
        SELECT quote_ident(datname), pg_encoding_to_char(encoding) FROM pg_database
        WHERE datname = current_database() AND pg_encoding_to_char(encoding) <> 'UTF8'
        """
    ):
        yield (
            f"database {database}: encoding is {encoding}, expected UTF8, in which references can be compared; create "
            "another one, and restore the dump of this one into it\n"
            f"    CREATE DATABASE {database}_utf8 ENCODING 'UTF8' TEMPLATE template0;"
        )


def _owner(connection: psycopg.Connection[Any]) -> Iterator[str]:
    for owner, login in connection.execute(
        """
        SELECT quote_ident(pg_get_userbyid(nspowner)), quote_ident(current_user) FROM pg_namespace
        WHERE nspname = 'crm_private' AND pg_get_userbyid(nspowner) <> current_user
        """
    ):
        yield (
            f"schema crm_private: owner is {owner}, expected {login}; migrate as {owner}, or give it away\n"
            f"    ALTER SCHEMA crm_private OWNER TO {login};"
        )


def _taken_names(connection: psycopg.Connection[Any], adopting: bool, moved: Sequence[str]) -> Iterator[str]:
    """Finds relations and schemas with the names of those that the migrations create."""
    names = [
        key.rpartition(".")[2]
        for key, facts in expected().objects.items()
        if " public." in key
        and (
            kind_of(key) in ("table", "index", "sequence")
            or (kind_of(key) == "constraint" and facts["kind"] in "pu")
        )
        and not (adopting and key in baseline().objects)
    ]
    for what, rename in connection.execute(
        """
        SELECT concat_ws(' on ', lower(kind) || ' public.' || quote_ident(name), on_table),
            format('ALTER %%s public.%%I RENAME TO %%I', kind, name, name || '_legacy')
                || coalesce('; REVOKE ALL ON public.' || quote_ident(name || '_legacy') || ' FROM ' || readers, '')
        FROM (
            SELECT c.relname AS name, x.indrelid::regclass AS on_table, (
                SELECT string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
                    ELSE quote_ident(pg_get_userbyid(a.grantee)) END, ', ')
                FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner AND c.relkind IN ('r', 'v', 'm', 'p', 'f')
            ) AS readers, CASE c.relkind WHEN 'i' THEN 'INDEX'
                WHEN 'I' THEN 'INDEX' WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END AS kind
            FROM pg_class c LEFT JOIN pg_index x ON x.indexrelid = c.oid
            WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(names)s)
              AND coalesce(x.indrelid, c.oid) <> ALL (%(moved)s::text[]::regclass[])
              -- the comparison has a key of the CRM's own tables dropped
              AND NOT EXISTS (SELECT FROM pg_constraint k
                WHERE k.conindid = c.oid AND k.conrelid::regclass::text = ANY (%(ours)s))
        ) taken
        UNION ALL
        SELECT 'schema ' || nspname, format('ALTER SCHEMA %%I RENAME TO %%I', nspname, nspname || '_legacy')
        FROM pg_namespace WHERE nspname = ANY (%(schemas)s)
        ORDER BY 1
        """,
        {
            "names": names,
            "schemas": list(SCHEMAS),
            "moved": [f"public.{name}" for name in moved],
            "ours": [
                key.partition(" ")[2] for key in baseline().objects if adopting and kind_of(key) == "table"
            ],
        },
    ):
        yield f"{what} exists, and the migrations create something of this name\n    {rename};"


def takes_the_place(facts: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Tells whether a column takes the place of one that the migrations fill (generated or NOT NULL), or is generated."""
    return bool(facts["generated"] or later["generated"] or later["not_null"]) and facts != later


def _columns(connection: psycopg.Connection[Any], found: Manifest) -> Iterator[str]:
    """Finds columns that the migrations fill themselves."""
    for key, facts in found.objects.items():
        later = expected().objects.get(key)
        if kind_of(key) != "column" or later is None or key in baseline().objects:
            continue
        table, _, column = key.removeprefix("column ").rpartition(".")
        if takes_the_place(facts, later) or (
            f"{table}.{column}".removeprefix("public.") in _FILLED
            and connection.execute(
                f"SELECT FROM {table} WHERE {column} IS NOT NULL LIMIT 1".encode()
            ).rowcount
        ):
            rename = f"ALTER TABLE {table} RENAME COLUMN {column} TO {column}_legacy;"
            # harmless under the new name too; a virtual column is dropped, for it has no values
            remedy = found.removals[key] + ("" if facts["generated"] == "v" else f" {rename}")
            yield f"{key} exists, and the migrations fill it themselves\n    {remedy.strip()}"


def _expression(indexed: str, column: str) -> str:
    return form(indexed, column) if indexed in ("trimmed", "reference_key", "order_code_key") else indexed


def _values(connection: psycopg.Connection[Any], found: Manifest) -> Iterator[str]:
    """Finds rows that new keys, checks and indexes would refuse; most are in columns that exist before their time."""

    def rows(query: str) -> str:
        shown = [str(row[0]) for row in connection.execute(f"{query} ORDER BY 1 LIMIT {SHOWN + 1}".encode())]
        return listed(shown, SHOWN)

    def exists(table: str, *columns: str) -> bool:
        keys = [f"column {table}.{column}" for column in columns]
        return all(
            key in found.objects and found.objects[key]["type"] == expected().objects[key]["type"]
            for key in keys
        )

    for name, column, indexed in INDEXED:
        table = f"public.{name}"
        if exists(table, column) and (
            ids := rows(
                f"SELECT id::text FROM {table} WHERE octet_length({_expression(indexed, column)}) > {INDEXED_BYTES}"
            )
        ):
            yield (
                f"{name}.{column} is longer than {INDEXED_BYTES} bytes, too long for an index, in {ids}\n"
                f"    UPDATE {table} SET {column} = left({column}, 200) WHERE octet_length({column}) > {INDEXED_BYTES};"
            )
    if exists("public.users", "email") and (
        addresses := rows(
            f"""
            SELECT CASE folded WHEN '' THEN '(blank)' ELSE folded END
            FROM (SELECT coalesce(lower({form("trimmed", "email")}), '') AS folded FROM public.users WHERE email IS NOT NULL) u
            GROUP BY folded HAVING count(*) > 1 OR folded = ''
            """
        )
    ):
        yield (
            f"users.email: several users have {addresses} (case and blanks do not count), or it is blank\n"
            "    UPDATE public.users SET email = NULL WHERE id = …;"
        )
    for key, facts in expected().objects.items():
        if kind_of(key) != "constraint" or facts == baseline().objects.get(key):
            continue
        table, target = facts["parent"].removeprefix("table "), facts["references"]
        if not exists(table, *facts["columns"]) or (target and not exists(target, "id")):
            continue
        columns = ", ".join(facts["columns"])
        check = facts["definition"].removeprefix("CHECK ")
        if facts["kind"] == "c" and (
            values := rows(f"SELECT DISTINCT concat_ws(', ', {columns}) FROM {table} WHERE NOT {check}")
        ):
            yield (
                f"{table}.{columns} is {values}, accepted is {facts['definition']}\n"
                f"    UPDATE {table} SET {columns} = … WHERE {columns} = …;"
            )
        missing = f"WHERE NOT EXISTS (SELECT FROM {target} x WHERE x.id = t.{columns})"
        if target and (ids := rows(f"SELECT id::text FROM {table} t {missing} AND {columns} IS NOT NULL")):
            yield (
                f"{table}.{columns} names no row of {target} in {ids}\n"
                f"    UPDATE {table} t SET {columns} = NULL {missing};"
            )
