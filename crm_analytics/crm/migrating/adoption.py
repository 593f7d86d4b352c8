"""Adoption of an existing CRM database: its catalog is compared with the baseline, then stamped. Never blindly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from crm_analytics.core.migrations import MigrationError, SqlFile, migration_files, record_applied
from crm_analytics.crm.migrating.preflight import obstacles
from crm_analytics.crm.schema.allowed_extras import objection
from crm_analytics.crm.schema.catalog import RPC_NAMES, collect
from crm_analytics.crm.schema.repairs import defuse_column, parts

BASELINE = "0001"
LABELS = "0002"
EXPAND = "0003"
PROBE = "crm_baseline_probe"  # scratch schema for the comparison, always rolled back

TABLES = (
    "users", "customers", "leads", "orders", "documents", "order_status_events", "payments", "shipments", "tasks",
)  # fmt: skip
#: Every compared object of one schema: kind, table (or type), name, definition. Names of the schema are in
#: the definitions; NOT NULL constraints belong to their columns (PostgreSQL 18 lists them apart).
_CATALOGUE = """
SELECT 'type', t.typname::text, '', 'ENUM'
FROM pg_type t WHERE t.typnamespace = %(schema)s::regnamespace AND t.typtype = 'e'
UNION ALL
SELECT 'table', c.relname::text, '', concat_ws(' ',
    CASE c.relkind WHEN 'r' THEN 'TABLE' ELSE 'relkind ' || c.relkind::text END,
    CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' END, CASE WHEN c.relispartition THEN 'PARTITION' END,
    CASE WHEN EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) THEN 'WITH INHERITANCE' END)
FROM pg_class c
WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s) AND c.relkind NOT IN ('i', 'c')
UNION ALL
SELECT 'column', c.relname::text, a.attname::text, concat_ws(' ',
    format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
    CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
    CASE WHEN a.attidentity <> '' THEN 'IDENTITY' END,
    CASE WHEN a.attgenerated <> '' THEN 'GENERATED ' || pg_get_expr(d.adbin, d.adrelid)
         ELSE 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s) AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', c.relname::text, k.conname::text, pg_get_constraintdef(k.oid)
FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid
WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s) AND k.contype IN ('p', 'u', 'f', 'c', 'x')
UNION ALL
SELECT 'index', c.relname::text, i.relname::text,
    pg_get_indexdef(x.indexrelid) || CASE WHEN x.indisvalid THEN '' ELSE ' -- INVALID' END
FROM pg_class c JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY (%(tables)s)
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x'))
"""

#: What may act on our tables or clash with our names: what it is, and the SQL that removes it.
_LEGACY = """
SELECT 'function ' || p.oid::regprocedure, 'DROP ROUTINE ' || p.oid::regprocedure
FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%(functions)s)
UNION ALL
SELECT format('trigger %%I on %%s', t.tgname, t.tgrelid::regclass), format('DROP TRIGGER %%I ON %%s', t.tgname, t.tgrelid::regclass)
FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgrelid = ANY (%(relations)s::regclass[])
UNION ALL
SELECT format('rule %%I on %%s', r.rulename, r.ev_class::regclass), format('DROP RULE %%I ON %%s', r.rulename, r.ev_class::regclass)
FROM pg_rewrite r WHERE r.ev_class = ANY (%(relations)s::regclass[])
UNION ALL
SELECT format('policy %%I on %%s', p.polname, p.polrelid::regclass), format('DROP POLICY %%I ON %%s', p.polname, p.polrelid::regclass)
FROM pg_policy p WHERE p.polrelid = ANY (%(relations)s::regclass[])
UNION ALL
SELECT format('forced row level security on %%s', c.oid::regclass), format('ALTER TABLE %%s NO FORCE ROW LEVEL SECURITY', c.oid::regclass)
FROM pg_class c WHERE c.relforcerowsecurity AND c.oid = ANY (%(relations)s::regclass[])
UNION ALL
SELECT format('cast (%%s AS %%s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
    format('DROP CAST (%%s AS %%s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL))
FROM pg_cast c JOIN pg_type t ON t.oid IN (c.castsource, c.casttarget)
WHERE t.oid IN (SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = ANY (%(relations)s::regclass[]) AND a.atttypid >= 16384
                UNION SELECT k.reltype FROM pg_class k WHERE k.oid = ANY (%(relations)s::regclass[]))
ORDER BY 2
"""

Catalog = dict[tuple[str, str, str], str]


@dataclass(frozen=True)
class AdoptionReport:
    """What adoption found. `adopted` is False for an empty database and for one that is migrated already."""

    adopted: bool = False
    tolerated: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    duplicate_references: int = 0
    unreal_prices: int = 0

    def lines(self) -> list[str]:
        """The report for people, one finding a line."""
        if not self.adopted:
            return [f"replaced {found}" for found in self.replaced]
        lines = ["adopted an existing database: its catalog equals the baseline"]
        lines += [f"tolerated: {found}" for found in self.tolerated]
        lines += [f"replaced {found}" for found in self.replaced]
        if self.duplicate_references:
            lines.append(
                f"{self.duplicate_references} payment(s) repeat an older payment's external reference: "
                "their reference_key stays NULL"
            )
        if self.unreal_prices:
            lines.append(
                f"{self.unreal_prices} order(s) have the price NaN: their total_amount stays NULL; "
                "give each its total with update_order_safe"
            )
        return lines


class AdoptionError(MigrationError):
    """The existing database differs from the baseline; the message is the diff with the SQL that mends it."""


def prepare(connection: psycopg.Connection[Any], *, replace_legacy: bool = False) -> AdoptionReport:
    """Compare an existing, unstamped database with the baseline and stamp it at 0001 (crm.md, Migrations 1).

    Runs inside the migration lock, in the caller's transaction. An empty database and a migrated one are left
    as they are. Extra labels, columns and indexes are tolerated and reported.

    Args:
        replace_legacy: drop functions of our names, and triggers, rules and policies on our tables, instead
            of refusing them.

    Raises:
        AdoptionError: anything missing or different, naming each object, what was found and the remedy.
    """
    if connection.execute(
        "SELECT 1 FROM crm_private.migration_files WHERE version = %s", [BASELINE]
    ).fetchone():
        return AdoptionReport()
    connection.execute("SET LOCAL search_path = pg_catalog")  # so that definitions come out qualified
    files = {file.version: file for file in migration_files("crm")}
    with connection.transaction(force_rollback=True):
        expected, expanded = _baseline(connection, files)
    found = _catalog(connection, "public")
    ours = {key: text for key, text in found.items() if key[0] != "type" or key in expected}
    problems = obstacles(connection, files)
    if ours:
        problems += _differences(expected, expanded, ours) + _foreign_owners(connection)
        problems += _objections(connection, {*expected, *expanded})
    legacy = connection.execute(
        _LEGACY,
        {
            "functions": list(RPC_NAMES),
            "relations": [f"public.{name}" for kind, name, _ in found if kind == "table"],
        },
    ).fetchall()
    if legacy and not replace_legacy:
        problems += [f"{what} is in the way\n    {remedy};" for what, remedy in legacy]
        problems.append("to let the migration drop functions, triggers, rules and policies: --replace-legacy")
    if problems:
        raise AdoptionError(
            "this database is not the CRM that the migrations start from. Nothing was changed. Found:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )
    for _, remedy in sorted(legacy, key=lambda found: found[1].startswith("DROP ROUTINE")):
        try:
            connection.execute(remedy)  # triggers first: they hold their functions
        except psycopg.Error as error:
            detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
            raise AdoptionError(
                f"--replace-legacy cannot run {remedy}: {error.diag.message_primary}{detail}. Nothing was changed."
                " Remove or change by hand what depends on it, then migrate again."
            ) from error
    replaced = tuple(what for what, _ in legacy)
    if not ours:
        return AdoptionReport(replaced=replaced)
    report = AdoptionReport(
        adopted=True,
        tolerated=tuple(_tolerated(connection, expected, expanded, ours, files[LABELS])),
        replaced=replaced,
        duplicate_references=_duplicate_references(connection),
        unreal_prices=_unreal_prices(connection),
    )
    _stamp(connection, files[BASELINE])
    return report


def _catalog(connection: psycopg.Connection[Any], schema: str) -> Catalog:
    rows = connection.execute(_CATALOGUE, {"schema": schema, "tables": list(TABLES)}).fetchall()
    return {
        (kind, name, part): text.replace(f"{schema}.", "public.").strip() for kind, name, part, text in rows
    }


def _baseline(
    connection: psycopg.Connection[Any], files: dict[str, SqlFile]
) -> tuple[Catalog, dict[tuple[str, str, str], str]]:
    """The baseline's catalog and the columns that the expand step adds, both as this very server sees them."""
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(PROBE)))
    connection.execute(files[BASELINE].text().replace("public.", f"{PROBE}.").encode())
    baseline = _catalog(connection, PROBE)
    for statement in re.findall(
        r"^ALTER TABLE public\.\w+ ADD COLUMN .*;$", files[EXPAND].text(), re.MULTILINE
    ):
        connection.execute(statement.replace("public.", f"{PROBE}.").encode())
    for statement in re.findall(
        r"^ALTER TABLE public\.\w+ ALTER COLUMN \w+ SET DEFAULT .*;$", files[EXPAND].text(), re.MULTILINE
    ):
        if "_enum" not in statement:  # a label that 0002 is still to add
            connection.execute(statement.replace("public.", f"{PROBE}.").encode())
    return baseline, {key: text for key, text in _catalog(connection, PROBE).items() if key not in baseline}


def _differences(expected: Catalog, expanded: Catalog, found: Catalog) -> list[str]:
    problems = []
    for key in sorted(expected):
        if key not in found:
            problems.append(f"{_name(key)} is missing\n    {_create(key, expected[key])}")
        elif found[key] != expected[key]:
            problems.append(_different(key, expected[key], found[key]))
    for key in sorted(set(found) - set(expected)):
        kind, table, name = key
        if kind == "column" and key in expanded:
            without_default = expanded[key].split(" DEFAULT ")[0]
            if found[key] not in (expanded[key], without_default):
                problems.append(_different(key, expanded[key], found[key]))
        elif kind == "constraint" and not any(
            name == f"{table}_{column}_fkey" and table == owner for _, owner, column in expanded
        ):
            problems.append(
                f"{_name(key)} is not in the baseline: {found[key]}\n    ALTER TABLE public.{table} DROP CONSTRAINT {name};"
            )
    return problems


def _name(key: tuple[str, str, str]) -> str:
    kind, table, name = key
    return f"{kind} {table}.{name}" if name else f"{kind} public.{table}"


def _different(key: tuple[str, str, str], expected: str, found: str) -> str:
    return f"{_name(key)} differs\n    expected: {expected}\n    found:    {found}\n    {_alter(key, expected, found)}"


def _create(key: tuple[str, str, str], definition: str) -> str:
    kind, table, name = key
    return {
        "type": f"CREATE TYPE public.{table} AS ENUM ();",
        "table": "create it as in sql/crm/0001_baseline.sql",
        "column": f"ALTER TABLE public.{table} ADD COLUMN {name} {definition};",
        "constraint": f"ALTER TABLE public.{table} ADD CONSTRAINT {name} {definition};",
        "index": f"{definition};",
    }[kind]


def _alter(key: tuple[str, str, str], expected: str, found: str) -> str:
    kind, table, name = key
    if kind == "constraint":
        return f"ALTER TABLE public.{table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {expected};"
    if kind == "index":
        return f"DROP INDEX public.{name}; {expected};"
    if kind != "column" or "GENERATED" in expected + found:
        return "rename it, and let the migration make its own"
    column = f"ALTER TABLE public.{table} ALTER COLUMN {name}"
    wanted_type, _, wanted_default = expected.replace(" NOT NULL", "").partition(" DEFAULT ")
    found_type, _, found_default = found.replace(" NOT NULL", "").partition(" DEFAULT ")
    steps = []
    if wanted_type != found_type:
        steps.append(f"{column} TYPE {wanted_type} USING {name}::{wanted_type};")
    if (" NOT NULL" in expected) != (" NOT NULL" in found):
        steps.append(f"{column} {'SET' if ' NOT NULL' in expected else 'DROP'} NOT NULL;")
    if wanted_default != found_default:
        steps.append(
            f"{column} SET DEFAULT {wanted_default};" if wanted_default else f"{column} DROP DEFAULT;"
        )
    return " ".join(steps)


def _objections(connection: psycopg.Connection[Any], known: set[tuple[str, str, str]]) -> list[str]:
    """Extra columns and indexes that would stop the RPCs, or run code in them: tier A would refuse them for ever."""
    problems = []
    for key, facts in collect(connection, ("column", "index")).objects.items():
        kind, name = key.split(" ", 1)
        table, last = parts(name)
        if (kind, table.removeprefix("public."), last.strip('"')) in known or not table.startswith("public."):
            continue
        reason = objection(key, facts)
        if reason is not None:
            remedy = defuse_column(table, last, facts) if kind == "column" else f"DROP INDEX public.{last};"
            problems.append(f"{kind} {name.removeprefix('public.')} cannot stay: {reason}\n    {remedy}")
    return problems


def _foreign_owners(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        """
        SELECT 'TABLE', c.relname::text, pg_get_userbyid(c.relowner)::text, CURRENT_USER::text FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s) AND c.relowner <> CURRENT_USER::regrole
        UNION ALL
        SELECT 'TYPE', t.typname::text, pg_get_userbyid(t.typowner)::text, CURRENT_USER::text FROM pg_type t
        WHERE t.typnamespace = 'public'::regnamespace AND t.typtype = 'e' AND t.typowner <> CURRENT_USER::regrole
          AND t.oid IN (SELECT a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s))
        ORDER BY 1, 2
        """,
        {"tables": list(TABLES)},
    )
    return [
        f"{kind.lower()} public.{name} belongs to {owner}, the migration runs as {login}: run it as {owner}, or\n"
        f'    ALTER {kind} public.{name} OWNER TO "{login}";'
        for kind, name, owner, login in rows
    ]


def _tolerated(
    connection: psycopg.Connection[Any],
    expected: Catalog,
    expanded: Catalog,
    found: Catalog,
    labels: SqlFile,
) -> list[str]:
    extras = [
        f"{'existing' if key in expanded else 'extra'} {_name(key)}"
        for key in sorted(set(found) - set(expected))
        if key[0] in ("column", "index")
    ]
    known = set(
        re.findall(r"^ALTER TYPE public\.(\w+) ADD VALUE IF NOT EXISTS '(\w+)'", labels.text(), re.MULTILINE)
    )
    rows = connection.execute(
        "SELECT t.typname::text, e.enumlabel::text FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid"
        " WHERE t.typnamespace = 'public'::regnamespace AND t.typname = ANY (%s) ORDER BY 1, e.enumsortorder",
        [[name for kind, name, _ in expected if kind == "type"]],
    )
    return extras + [f"extra label {label} of {name}" for name, label in rows if (name, label) not in known]


def _duplicate_references(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        """
        SELECT COALESCE(sum(n - 1), 0) FROM (
          SELECT count(*) AS n FROM public.payments
          WHERE regexp_replace(external_reference, '^[[:space:]]+|[[:space:]]+$', '', 'g') <> ''
          GROUP BY regexp_replace(external_reference, '^[[:space:]]+|[[:space:]]+$', '', 'g')) r
        """
    ).fetchone()
    return int(row[0]) if row else 0


def _unreal_prices(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM public.orders WHERE final_price_eur = 'NaN'").fetchone()
    return int(row[0]) if row else 0


def _stamp(connection: psycopg.Connection[Any], baseline: SqlFile) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS crm_private.alembic_version (version_num varchar(32) NOT NULL,"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.execute("INSERT INTO crm_private.alembic_version VALUES (%s)", [baseline.version])
    record_applied(connection, "crm", baseline)
