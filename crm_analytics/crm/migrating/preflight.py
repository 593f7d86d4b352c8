"""What would stop the migrations half way on an existing database, found before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from crm_analytics.core.migrations import SqlFile

#: Bytes of an indexed text; an index entry holds 2,700.
INDEXED_BYTES = 2000
SHOWN = 5

_BLANKS = r"'^[[:space:]]+|[[:space:]]+$', '', 'g'"
#: Table, column, the form in which it is indexed.
_INDEXED = (
    ("customers", "phone", "regexp_replace(phone, '[^0-9]', '', 'g')"),
    ("customers", "email", f"regexp_replace(email, {_BLANKS})"),
    ("users", "email", "email"),
    ("payments", "external_reference", f"regexp_replace(external_reference, {_BLANKS})"),
    ("payments", "reference_key", "reference_key"),
)


def obstacles(connection: psycopg.Connection[Any], files: dict[str, SqlFile]) -> list[str]:
    """One sentence with a remedy for everything in the connected database that a migration file would trip over."""
    text = "\n".join(file.text() for file in files.values())
    return [
        *_taken(connection, text),
        *_values(connection, text),
    ]


def _taken(connection: psycopg.Connection[Any], text: str) -> Iterator[str]:
    """Names of relations and schemas that the migrations make."""
    names = set(re.findall(r"^CREATE (?:UNIQUE )?INDEX (\w+) ON public\.", text, re.MULTILINE))
    names |= set(re.findall(r"\bADD CONSTRAINT (\w+) UNIQUE", text)) | {"audit_log_id_seq"}
    tables = re.findall(r"^CREATE TABLE public\.(\w+) \((.*?)^\);", text, re.MULTILINE | re.DOTALL)
    for table, body in tables:
        names |= {table, *re.findall(r"CONSTRAINT (\w+) (?:PRIMARY KEY|UNIQUE)", body)}
    baseline = connection.execute("SELECT to_regclass('public.orders')").fetchone()
    if baseline and baseline[0] is not None:  # what the baseline makes is compared, not refused
        names -= _made_by_the_baseline(tables, text)
    words = {"i": "INDEX", "I": "INDEX", "S": "SEQUENCE", "v": "VIEW", "m": "MATERIALIZED VIEW", "c": "TYPE"}
    for name, kind, table in connection.execute(
        "SELECT c.relname::text, c.relkind::text, x.indrelid::regclass::text FROM pg_class c LEFT JOIN pg_index x"
        " ON x.indexrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s) ORDER BY 1",
        [sorted(names)],
    ):
        word = words.get(kind, "TABLE")
        what = f"{word.lower()} public.{name}" + (f" on {table}" if table else "")
        yield (
            f"{what} exists, and the migrations make something of this name\n"
            f"    ALTER {word} public.{name} RENAME TO {name}_legacy;"
        )
    schemas = re.findall(r"^CREATE SCHEMA (\w+);", text, re.MULTILINE)
    for (name,) in connection.execute(
        "SELECT nspname::text FROM pg_namespace WHERE nspname = ANY (%s)", [schemas]
    ):
        yield f"schema {name} exists, and the migrations make it\n    ALTER SCHEMA {name} RENAME TO {name}_legacy;"
    for (what,) in connection.execute(
        "SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d"
        " WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = 'crm_private'::regnamespace AND d.deptype = 'n'"
        "   AND d.classid IN ('pg_class'::regclass, 'pg_proc'::regclass)"
        "   AND pg_describe_object(d.classid, d.objid, 0) NOT IN ('table crm_private.migration_files',"
        "   'table crm_private.alembic_version') ORDER BY 1"
    ):
        yield (
            f"{what} exists, and the schema crm_private is the migrations' own\n"
            f"    DROP {what}; -- or move it: ALTER {what} SET SCHEMA public;"
        )


def _made_by_the_baseline(tables: list[tuple[str, str]], text: str) -> set[str]:
    adopted = {"users", "customers", "leads", "orders", "documents", "order_status_events", "payments", "shipments", "tasks"}  # fmt: skip
    names = set(adopted)
    for table, body in tables:
        if table in adopted:
            names |= set(re.findall(r"CONSTRAINT (\w+) (?:PRIMARY KEY|UNIQUE)", body))
    baseline, _, _ = text.partition("ALTER TYPE ")  # 0001 comes before every label
    return names | set(re.findall(r"^CREATE (?:UNIQUE )?INDEX (\w+) ON", baseline, re.MULTILINE))


def _values(connection: psycopg.Connection[Any], text: str) -> Iterator[str]:
    """Rows that new keys, checks and indexes would refuse. Most live in columns that a database has before its time."""
    columns = {
        (table, column): type_
        for table, column, type_ in connection.execute(
            "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL) FROM pg_class c JOIN pg_attribute a"
            " ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
        ).fetchall()
    }

    def rows(query: str) -> str:
        found = [str(row[0]) for row in connection.execute(f"{query} ORDER BY 1 LIMIT {SHOWN + 1}".encode())]
        return ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")

    for table, column, form in _INDEXED:
        if columns.get((table, column)) == "text":
            ids = rows(f"SELECT id::text FROM public.{table} WHERE octet_length({form}) > {INDEXED_BYTES}")
            if ids:
                yield (
                    f"{table}.{column} is longer than {INDEXED_BYTES} bytes, too long for an index, in {ids}\n"
                    f"    UPDATE public.{table} SET {column} = left({column}, 200) WHERE octet_length({column}) > {INDEXED_BYTES};"
                )
    if columns.get(("users", "email")) == "text":
        addresses = rows(
            f"SELECT lower(regexp_replace(email, {_BLANKS})) FROM public.users WHERE email IS NOT NULL"
            " GROUP BY 1 HAVING count(*) > 1"
        ) or ("''" if rows("SELECT id::text FROM public.users WHERE btrim(email) = ''") else "")
        if addresses:
            yield (
                f"users.email: several users have {addresses} (case and blanks do not count), or it is blank\n"
                "    UPDATE public.users SET email = NULL WHERE id = …;"
            )
    statuses = re.findall(r"CHECK \(status IN \(([^)]*)\)\)", text)
    if columns.get(("shipments", "status")) == "text" and statuses:
        found = rows(
            f"SELECT DISTINCT status FROM public.shipments WHERE status NOT IN ({statuses[0]})"  # from our own file
        )
        if found:
            yield (
                f"shipments.status is {found}, accepted are {statuses[0]}\n"
                "    UPDATE public.shipments SET status = … WHERE status = …;"
            )
    for table, column in (("order_status_events", "seq"), ("payments", "reference_key")):
        if (table, column) in columns and rows(
            f"SELECT id::text FROM public.{table} WHERE {column} IS NOT NULL"
        ):
            yield (
                f"{table}.{column} has values, and the migrations fill it\n"
                f"    ALTER TABLE public.{table} RENAME COLUMN {column} TO {column}_legacy;"
            )
    keys = re.findall(r"^\s+\('(\w+)', '(\w+)', '(\w+)'\)", text, re.MULTILINE)
    for table, column, target in keys:
        if columns.get((table, column)) != "uuid" or (target, "id") not in columns:
            continue
        query = sql.SQL(
            "SELECT t.id::text FROM public.{0} t WHERE t.{1} IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM public.{2} x WHERE x.id = t.{1})"
        ).format(*map(sql.Identifier, (table, column, target)))
        ids = rows(query.as_string())
        if ids:
            yield (
                f"{table}.{column} names no row of {target} in {ids}\n"
                f"    UPDATE public.{table} t SET {column} = NULL"
                f" WHERE NOT EXISTS (SELECT FROM public.{target} x WHERE x.id = t.{column});"
            )
