"""Compares a CRM database with the committed manifests.

`manifest.json` is what the migrations lead to, `baseline.json` what they start from. What a deployment may add (plain
columns, enum labels, plain indexes, readers) is an allowed extra: it is reported and never fails.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from crm_analytics.core.migrations import migration_files
from crm_analytics.core.settings import Settings
from crm_analytics.crm.schema.allowed_extras import objection
from crm_analytics.crm.schema.catalog import CRM_TABLES, RPC_NAMES, Manifest, collect, kind_of, plain_names
from crm_analytics.crm.schema.renames import Renames
from crm_analytics.crm.schema.repairs import Repairs

#: Passed on, beside what is defined here.
__all__ = ["CRM_TABLES", "RPC_NAMES", "Manifest", "collect"]

MANIFEST_FILE = Path(__file__).with_name("manifest.json")
BASELINE_FILE = Path(__file__).with_name("baseline.json")
#: What a platform or a deployment has beyond the migrations although it touches the CRM: by object, the facts that it
#: must have (owner and hash of its source above all), any of several, and why it may stay.
ALLOWED_FILE = Path(__file__).with_name("allowed_objects.json")
#: What adoption compares, by kind.
ADOPTED_KINDS = (
    "table", "type", "column", "constraint", "index", "inheritance", "label", "sequence", "row_security", "trigger",
    "rule", "policy", "cast", "function", "view", "event_trigger", "publication", "subscription", "reference", "exposed",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One object that is not as expected: `problem` is a sentence, `repair` the SQL that puts it right."""

    object: str
    guard: str
    problem: str
    repair: str


@dataclass(frozen=True)
class Comparison:
    """What differs (this fails), and what a deployment has beyond the manifest (this is only reported)."""

    differences: tuple[Difference, ...]
    allowed_extras: tuple[str, ...]

    def of(self, guard: str) -> tuple[Difference, ...]:
        """Returns the differences of one guard (see `GUARDS`)."""
        return tuple(difference for difference in self.differences if difference.guard == guard)


#: Every guard that a check of its own watches, with what its being broken means.
GUARDS: Mapping[str, str] = {
    **{
        f"triggers_{table}": f"The triggers and rules on {table}: without them rows can be written past the RPCs."
        for table in CRM_TABLES
    },
    "triggers_elsewhere": "Triggers and rules on helper tables.",
    "functions": "RPCs, guard functions, helpers, casts: source, owner, SECURITY DEFINER, search_path, signature.",
    "function_grants": "Who may call the functions: only crm_app.",
    "table_grants": "Who may touch tables, columns, sequences and schemas: only crm_rpc writes.",
    "row_security": "Row level security flags and policies: without a policy an RPC silently touches nothing.",
    "constraints": "Primary, foreign and unique keys and CHECKs.",
    "unique_indexes": "Indexes that keep references, emails and numbers unique.",
    "columns": "Tables, columns, defaults, sequences, enum labels, ownership, inheritance.",
    "roles": "Attributes, members and administrators of crm_rpc, crm_app, grafana_reader: crm_rpc passes every guard.",
    "views": "Views over CRM tables: those of the migrations, unchanged, and no others.",
    "surface": "What else touches CRM objects or runs as their owner: event triggers, publications, foreign keys, open tables.",
    "settings": "Settings of the database or of all roles that change what the functions mean.",
    "transitions": "The table of legal order status transitions.",
    "payout_limits": "The table of payouts that need no admin, in currencies that are not the order's.",
}

_GUARD_OF_KIND = {
    "table": "columns", "column": "columns", "sequence": "columns", "label": "columns", "inheritance": "columns",
    "view": "views", "event_trigger": "surface", "publication": "surface", "subscription": "surface",
    "reference": "surface", "exposed": "surface", "parameter": "settings", "maintain": "table_grants", "type": "columns", "possession": "roles", "constraint": "constraints", "index": "unique_indexes",
    "policy": "row_security", "cast": "functions", "setting": "settings", "row_security": "row_security",
    "function": "functions", "role": "roles", "member": "roles", "transition": "transitions",
    "payout_limit": "payout_limits",
}  # fmt: skip


def _read(file: Path) -> Manifest:
    content = json.loads(file.read_text(encoding="utf-8"))
    return Manifest(content["objects"], content["definitions"])


@cache
def expected() -> Manifest:
    """Returns the committed manifest of a migrated database."""
    return _read(MANIFEST_FILE)


@cache
def allowed_objects() -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Returns the committed allow-list: by object, the facts that it may have."""
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for entry in json.loads(ALLOWED_FILE.read_text(encoding="utf-8")):
        entries.setdefault(entry["object"], []).append(entry["facts"])
    return entries


@cache
def baseline() -> Manifest:
    """Returns the committed manifest of a database that has the baseline alone (`ADOPTED_KINDS` of it)."""
    return _read(BASELINE_FILE)


def diff(wanted: Manifest, found: Manifest) -> Comparison:
    """Compares two manifests; every difference names its object, what was found, and the SQL that repairs it.

    The differences are in the order in which to run their repairs.
    """
    renames = Renames.between(wanted, found)
    settled = renames.settled()
    repairs = Repairs(wanted, settled)

    def repair(key: str) -> str:
        if (sql := renames.repair(key)) is not None:
            return sql
        after = renames.after(key)
        if wanted.objects.get(after) == settled.objects.get(after):
            return "-- goes with a rename above"
        sql = repairs.sql(after)
        return renames.suggestion(key, sql) or sql

    def rank(difference: Difference) -> tuple[int, int]:
        key = difference.object
        return (-1, 0) if renames.repair(key) is not None else repairs.rank(renames.after(key))

    differences: list[Difference] = []
    extras: list[str] = []
    for key in sorted({*wanted.objects, *found.objects}):
        want, have = wanted.objects.get(key), found.objects.get(key)
        if want == have:
            continue
        if have is None:
            problem = f"{key} is missing"
            if key in renames.certain:
                problem += f"; {renames.certain[key]} has its form"
        elif want is None:
            reason = objection(key, have)
            if reason is None and renames.present(key):
                continue
            if reason is None or _is_allowed(key, have):
                extras.append(key)
                continue
            problem = f"{key} is not expected here" + (f": {reason}" if reason else "")
        else:
            problem = f"{key}: " + "; ".join(
                f"{fact} is {_shown(have.get(fact), found)}, expected {_shown(want.get(fact), found)}"
                for fact in sorted({*want, *have})
                if want.get(fact) != have.get(fact)
            )
        differences.append(Difference(key, guard_of(key), problem, repair(key)))
    differences.sort(key=rank)
    return Comparison(tuple(differences), tuple(extras))


def compare(
    connection: psycopg.Connection[Any],
    kinds: Collection[str] | None = None,
    config: Settings | None = None,
) -> Comparison:
    """Compares the connected database (or its objects of some kinds) with the committed manifest.

    Args:
        config: the settings that name the members of crm_app; the environment's by default.
    """
    wanted = expected()
    if kinds is not None:
        objects = {key: facts for key, facts in wanted.objects.items() if kind_of(key) in kinds}
        wanted = Manifest(objects, wanted.definitions)
    return diff(wanted, collect(connection, kinds, config=config))


def _is_allowed(key: str, have: Mapping[str, Any]) -> bool:
    """Tells whether the allow-list names the object as it is, or the object that it belongs to."""
    if have.get("parent") in allowed_objects():
        return True
    return any(facts.items() <= have.items() for facts in allowed_objects().get(key, ()))


def guard_of(key: str) -> str:
    """Returns the entry of `GUARDS` that an object of the manifest belongs to."""
    kind, name = key.split(" ", 1)
    if kind in ("trigger", "rule"):
        table = name.split(".")[1]
        ours = name.startswith("public.") and table in CRM_TABLES
        return f"triggers_{table}" if ours else "triggers_elsewhere"
    if kind == "grant":
        return "function_grants" if name.startswith("function ") else "table_grants"
    return _GUARD_OF_KIND[kind]


def _shown(value: Any, found: Manifest) -> str:
    if isinstance(value, str):
        return found.owner if value == "$owner" else value
    return "nothing" if value is None else json.dumps(value)


#: Non-superusers that can write a CRM table, by whatever way (grant, column grant, inherited role).
_WRITERS = """
WITH writer AS (
    SELECT c.oid, c.relacl, c.relowner, format('%%I.%%I', n.nspname, c.relname) AS table_name,
           r.oid AS role_oid, r.rolname, array_agg(p.privilege ORDER BY p.privilege) AS privileges
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN pg_roles r
    CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p(privilege)
    WHERE ((n.nspname = 'public' AND c.relname = ANY (%(tables)s)) OR n.nspname = 'crm_private')
      AND c.relkind IN ('r', 'p') AND NOT r.rolsuper AND r.rolname NOT LIKE 'pg\\_%%' AND r.rolname <> 'crm_rpc'
      AND r.oid <> c.relowner
      AND CASE WHEN p.privilege IN ('DELETE', 'TRUNCATE', 'TRIGGER') THEN has_table_privilege(r.oid, c.oid, p.privilege)
          ELSE has_any_column_privilege(r.oid, c.oid, p.privilege) END
    GROUP BY c.oid, n.nspname, r.oid, r.rolname
)
SELECT w.table_name, w.rolname::text AS role_name, quote_ident(w.rolname) AS role, w.privileges, (
    SELECT coalesce(array_agg(DISTINCT h.holder), '{}') FROM (
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS holder
        FROM (SELECT * FROM aclexplode(coalesce(w.relacl, acldefault('r', w.relowner)))
              UNION ALL SELECT x.* FROM pg_attribute t, aclexplode(t.attacl) x
                          WHERE t.attrelid = w.oid AND NOT t.attisdropped) a
        WHERE a.privilege_type = ANY (w.privileges) AND (a.grantee = 0 OR pg_has_role(w.role_oid, a.grantee, 'USAGE'))
        UNION ALL SELECT 'pg_write_all_data' WHERE pg_has_role(w.role_oid, 'pg_write_all_data', 'USAGE')) h) AS through
FROM writer w ORDER BY 1, 2
"""


def unexpected_writers(connection: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Returns the roles that can write a CRM table, besides crm_rpc, the tables' owner and superusers.

    Grants alone do not tell: a role may inherit the privilege, or have it on one column. `through` names the roles
    that hold it; `repairs.writer_repair` takes it away.
    """
    with plain_names(connection), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_WRITERS, {"tables": list(CRM_TABLES)}).fetchall()


def read_baseline(scratch: psycopg.Connection[Any]) -> Manifest:
    """Reads what the first migration alone makes, in a scratch database, which stays as it was.

    Its schemas are dropped on the way, and come back by a rollback: never on a database that anyone uses.
    """
    with scratch.transaction(force_rollback=True):
        scratch.execute(
            "DROP SCHEMA IF EXISTS public, crm_private CASCADE; CREATE SCHEMA public; CREATE SCHEMA crm_private"
        )
        scratch.execute(migration_files("crm")[0].text().encode())
        return collect(scratch, ADOPTED_KINDS)


def write_manifests(scratch: psycopg.Connection[Any]) -> Mapping[Path, Manifest]:
    """Commits what the migrations make of a scratch database (after a new migration, for review)."""
    written = {MANIFEST_FILE: collect(scratch), BASELINE_FILE: read_baseline(scratch)}
    for path, content in written.items():
        path.write_text(content.to_json(), encoding="utf-8")
    return written
