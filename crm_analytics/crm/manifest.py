"""The catalogue manifest: every object that the guards rest on, by name, and how a database differs from it.

The committed manifest (`manifest.json`) is what the migrations lead to. It is the same on PostgreSQL 16 and 18
and whoever owns the tables: the owner is written `$owner`, NOT NULL constraints (rows of their own since 18)
and the MAINTAIN privilege (new in 17) are left out. What a deployment may add (plain columns, enum labels,
plain indexes, readers) stands in `tolerated` and never fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

MANIFEST_FILE = Path(__file__).with_name("manifest.json")

#: Tables of the CRM in `public`; every one of them has a guard trigger.
CRM_TABLES = (
    "audit_log",
    "audit_seals",
    "customers",
    "documents",
    "leads",
    "order_status_events",
    "order_status_transitions",
    "orders",
    "payments",
    "shipments",
    "tasks",
    "user_identity_map",
    "users",
)
#: The safe RPCs that applications call (crm.md, "Safe RPCs").
RPC_NAMES = (
    "resolve_crm_user",
    "create_lead_safe",
    "advance_lead_status_safe",
    "create_order_safe",
    "quick_order_safe",
    "checkout_order_safe",
    "record_generic_payment_safe",
    "update_payment_status_safe",
    "advance_order_status_safe",
    "attach_document_safe",
    "create_task_safe",
    "update_task_safe",
    "upsert_shipment_safe",
    "update_order_safe",
    "update_lead_safe",
    "update_customer_safe",
    "create_user_safe",
    "set_user_active_safe",
    "map_identity_safe",
)
#: Roles whose grants must be exactly the expected ones; other roles may read, and nothing more.
CRM_ROLES = ("$owner", "crm_rpc", "crm_app", "PUBLIC")

_SCOPE = """
WITH owner AS (
    SELECT nspowner AS oid FROM pg_namespace WHERE nspname = 'crm_private'
), scope AS (
    SELECT c.*, n.nspname || '.' || c.relname AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (n.nspname = 'crm_private' AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))
       OR (n.nspname = 'public' AND c.relname = ANY (%(tables)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))
), routines AS (
    SELECT p.*, n.nspname, n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')'
        AS name
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'crm_private'
       OR (n.nspname = 'public' AND p.proname = ANY (%(rpcs)s))
       OR p.proowner = to_regrole('crm_rpc')
), sequences AS (
    SELECT c.*, n.nspname || '.' || c.relname AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND (n.nspname = 'crm_private' OR EXISTS (
        SELECT FROM pg_depend d JOIN scope s ON s.oid = d.refobjid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
)
"""

_ROLE = """CASE WHEN {0} = 0 THEN 'PUBLIC' WHEN {0} = (SELECT oid FROM owner) THEN '$owner'
    ELSE pg_get_userbyid({0})::text END"""


def _role(expression: str) -> str:
    return _ROLE.format(expression)


#: kind -> query giving (name, facts, definition): `definition` is the SQL that creates the object, for repairs.
_SECTIONS: Mapping[str, str] = {
    "table": f"""
        SELECT name, jsonb_build_object('owner', {_role("relowner")}, 'kind', relkind, 'persistence', relpersistence)
            AS facts, NULL AS definition
        FROM scope""",
    "row_security": """
        SELECT name, jsonb_build_object('enabled', relrowsecurity, 'forced', relforcerowsecurity), NULL
        FROM scope WHERE relkind IN ('r', 'p')""",
    "column": """
        SELECT s.name || '.' || a.attname, jsonb_build_object('type', format_type(a.atttypid, a.atttypmod),
            'not_null', a.attnotnull, 'generated', a.attgenerated, 'identity', a.attidentity,
            'default', pg_get_expr(d.adbin, d.adrelid)),
            NULL
        FROM scope s JOIN pg_attribute a ON a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = s.oid AND d.adnum = a.attnum
        WHERE s.relkind IN ('r', 'p')""",
    "constraint": """
        SELECT s.name || '.' || c.conname, jsonb_build_object('definition', pg_get_constraintdef(c.oid),
            'validated', c.convalidated, 'system_triggers', (SELECT jsonb_agg(DISTINCT t.tgenabled)
                FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgisinternal)),
            format('ALTER TABLE %%s DROP CONSTRAINT IF EXISTS %%I; ALTER TABLE %%1$s ADD CONSTRAINT %%2$I %%3$s;',
                s.name, c.conname, pg_get_constraintdef(c.oid))
        FROM scope s JOIN pg_constraint c ON c.conrelid = s.oid WHERE c.contype <> 'n'""",
    "index": """
        SELECT s.name || '.' || i.relname, jsonb_build_object('definition', pg_get_indexdef(i.oid),
            'unique', x.indisunique, 'usable', x.indisvalid AND x.indisready AND x.indislive,
            'plain', x.indexprs IS NULL AND x.indpred IS NULL),
            format('DROP INDEX IF EXISTS %%I.%%I; %%s;', n.nspname, i.relname, pg_get_indexdef(i.oid))
        FROM scope s JOIN pg_index x ON x.indrelid = s.oid JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_namespace n ON n.oid = i.relnamespace
        WHERE NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid AND c.conrelid = s.oid)""",
    "trigger": """
        SELECT s.name || '.' || t.tgname, jsonb_build_object('definition', pg_get_triggerdef(t.oid),
            'enabled', t.tgenabled),
            format('DROP TRIGGER IF EXISTS %%I ON %%s; %%s;', t.tgname, s.name, pg_get_triggerdef(t.oid))
                || CASE t.tgenabled WHEN 'A' THEN format(' ALTER TABLE %%s ENABLE ALWAYS TRIGGER %%I;', s.name, t.tgname)
                   ELSE '' END
        FROM scope s JOIN pg_trigger t ON t.tgrelid = s.oid WHERE NOT t.tgisinternal""",
    "rule": """
        SELECT s.name || '.' || r.rulename, jsonb_build_object('definition', pg_get_ruledef(r.oid),
            'enabled', r.ev_enabled), pg_get_ruledef(r.oid)
        FROM scope s JOIN pg_rewrite r ON r.ev_class = s.oid WHERE r.rulename <> '_RETURN'""",
    "view": """
        SELECT s.name, jsonb_build_object('definition', pg_get_viewdef(s.oid)),
            format('CREATE OR REPLACE VIEW %%s AS %%s', s.name, pg_get_viewdef(s.oid))
        FROM scope s WHERE s.relkind IN ('v', 'm')""",
    "inheritance": """
        SELECT c.oid::regclass || ' inherits ' || p.oid::regclass, '{}'::jsonb, NULL
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
        WHERE (c.oid IN (SELECT oid FROM scope) OR p.oid IN (SELECT oid FROM scope)) AND c.relkind IN ('r', 'f', 'p')""",
    "policy": f"""
        SELECT s.name || '.' || p.polname, jsonb_build_object('command', p.polcmd, 'permissive', p.polpermissive,
            'roles', (SELECT jsonb_agg(r ORDER BY r) FROM (SELECT {_role("o")} AS r FROM unnest(p.polroles) AS o) x),
            'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid)),
            format('DROP POLICY IF EXISTS %%I ON %%s; CREATE POLICY %%1$I ON %%2$s AS %%3$s FOR %%4$s TO %%5$s',
                p.polname, s.name, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                    WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                (SELECT string_agg(CASE o WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(o)) END, ', ')
                    FROM unnest(p.polroles) AS o))
                || coalesce(format(' USING (%%s)', pg_get_expr(p.polqual, p.polrelid)), '')
                || coalesce(format(' WITH CHECK (%%s)', pg_get_expr(p.polwithcheck, p.polrelid)), '') || ';'
        FROM scope s JOIN pg_policy p ON p.polrelid = s.oid""",
    "function": f"""
        SELECT name, jsonb_build_object('source', encode(sha256(convert_to(prosrc, 'UTF8')), 'hex'),
            'owner', {_role("proowner")}, 'settings', (SELECT jsonb_agg(c ORDER BY c) FROM unnest(proconfig) AS c),
            'security_definer', prosecdef, 'language', (SELECT lanname FROM pg_language WHERE oid = prolang),
            'volatility', provolatile, 'strict', proisstrict, 'kind', prokind,
            'arguments', pg_get_function_arguments(oid), 'result', pg_get_function_result(oid)),
            pg_get_functiondef(oid) || ';'
        FROM routines WHERE prokind IN ('f', 'p')""",
    "sequence": f"""
        SELECT name, jsonb_build_object('owner', {_role("relowner")}, 'increment', q.seqincrement, 'cycle', q.seqcycle),
            NULL
        FROM sequences JOIN pg_sequence q ON q.seqrelid = oid""",
    "label": """
        SELECT n.nspname || '.' || t.typname || ' ' || quote_literal(e.enumlabel), '{}'::jsonb,
            format('ALTER TYPE %%I.%%I ADD VALUE IF NOT EXISTS %%L;', n.nspname, t.typname, e.enumlabel)
        FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE n.nspname IN ('public', 'crm_private')
          AND EXISTS (SELECT FROM scope s JOIN pg_attribute a ON a.attrelid = s.oid WHERE a.atttypid = t.oid)""",
    "grant": f"""
        SELECT g.object || ' to ' || g.grantee || ': ' || g.privilege_type, jsonb_build_object('grant_option', g.is_grantable),
            NULL
        FROM (
            SELECT 'table ' || s.name AS object, {_role("a.grantee")} AS grantee, a.privilege_type, a.is_grantable
            FROM scope s, aclexplode(coalesce(s.relacl, acldefault('r', s.relowner))) a
            UNION SELECT 'column ' || s.name || '.' || c.attname, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM scope s JOIN pg_attribute c ON c.attrelid = s.oid, aclexplode(c.attacl) a
            UNION SELECT 'sequence ' || s.name, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM sequences s, aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) a
            UNION SELECT 'function ' || r.name, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM routines r, aclexplode(coalesce(r.proacl, acldefault('f', r.proowner))) a
            UNION SELECT 'schema ' || n.nspname, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
            WHERE n.nspname = 'crm_private' OR (n.nspname = 'public' AND (a.privilege_type = 'CREATE'
                OR a.grantee IN (to_regrole('crm_rpc'), to_regrole('crm_app'))) AND a.grantee <> n.nspowner
                AND a.grantee IS DISTINCT FROM (SELECT oid FROM owner))
        ) g WHERE g.privilege_type <> 'MAINTAIN'""",
    "role": """
        SELECT rolname::text, jsonb_build_object('superuser', rolsuper, 'inherit', rolinherit, 'create_role', rolcreaterole,
            'create_database', rolcreatedb, 'login', rolcanlogin, 'replication', rolreplication,
            'bypass_row_security', rolbypassrls, 'settings', (SELECT jsonb_agg(c ORDER BY c)
                FROM pg_db_role_setting s, unnest(s.setconfig) AS c
                WHERE s.setrole = r.oid AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())))),
            NULL
        FROM pg_roles r WHERE rolname IN ('crm_rpc', 'crm_app')""",
    "member": f"""
        SELECT pg_get_userbyid(m.roleid) || ' <- ' || {_role("m.member")} || ' granted by ' || {_role("m.grantor")},
            jsonb_build_object('inherit', m.inherit_option, 'set', m.set_option), NULL
        FROM pg_auth_members m
        WHERE 'crm_rpc' IN (pg_get_userbyid(m.roleid), pg_get_userbyid(m.member))
           OR pg_get_userbyid(m.member) = 'crm_app'
           OR (pg_get_userbyid(m.roleid) = 'crm_app')""",
    "possession": """
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid), '{}'::jsonb, NULL
        FROM pg_shdepend d
        WHERE d.deptype = 'o' AND d.refclassid = 'pg_authid'::regclass AND d.refobjid = to_regrole('crm_rpc')
          AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND d.classid <> 'pg_proc'::regclass""",
}


@dataclass(frozen=True)
class Manifest:
    """Facts by object (`"<kind> <name>"`) and the SQL that creates an object, where the catalogue can say it."""

    objects: Mapping[str, Mapping[str, Any]]
    definitions: Mapping[str, str] = field(default_factory=dict)

    def sha256(self) -> str:
        """Hash of the facts alone: the same on every deployment that has what the migrations lead to."""
        return hashlib.sha256(json.dumps(self.objects, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`: sorted, one object per line, so that a change reads well in a diff."""
        parts = []
        for title, entries in (("objects", self.objects), ("definitions", self.definitions)):
            lines = [
                f"    {json.dumps(key)}: {json.dumps(entries[key], sort_keys=True)}"
                for key in sorted(entries)
            ]
            parts.append(f"  {json.dumps(title)}: {{\n" + ",\n".join(lines) + "\n  }")
        return "{\n" + ",\n".join(parts) + "\n}\n"


@dataclass(frozen=True)
class Difference:
    """One object that is not as expected: `problem` is a sentence, `repair` the SQL that puts it right."""

    object: str
    guard: str
    problem: str
    repair: str


@dataclass(frozen=True)
class Comparison:
    """What differs (fails), and what a deployment has beyond the manifest (reported, never fails)."""

    differences: tuple[Difference, ...]
    tolerated: tuple[str, ...]

    def of(self, guard: str) -> tuple[Difference, ...]:
        """The differences of one guard (see `GUARDS`)."""
        return tuple(difference for difference in self.differences if difference.guard == guard)


#: Every guard that a check of its own watches, with what its being broken means.
GUARDS: Mapping[str, str] = {
    **{
        f"triggers_{table}": f"The triggers and rules on {table}: without them rows can be written past the RPCs."
        for table in CRM_TABLES
    },
    "triggers_elsewhere": "Triggers and rules on helper tables.",
    "functions": "The RPCs, guard functions and helpers: source, owner, SECURITY DEFINER, search_path, signature.",
    "function_grants": "Who may call the functions: crm_app and nobody else.",
    "table_grants": "Who may touch tables, columns, sequences and schemas: only crm_rpc writes.",
    "row_security": "Row level security flags and policies: without a policy an RPC silently touches nothing.",
    "constraints": "Primary, foreign and unique keys and CHECKs.",
    "unique_indexes": "Indexes that keep references, emails and numbers unique.",
    "columns": "Tables, columns, defaults, sequences, enum labels, ownership, inheritance.",
    "roles": "Attributes and memberships of crm_rpc and crm_app: a member of crm_rpc passes every guard.",
    "transitions": "The table of legal order status transitions.",
}

_GUARD_OF_KIND = {
    "table": "columns", "column": "columns", "sequence": "columns", "label": "columns", "inheritance": "columns",
    "view": "columns", "possession": "roles", "constraint": "constraints", "index": "unique_indexes",
    "policy": "row_security", "row_security": "row_security", "function": "functions", "role": "roles", "member": "roles",
    "transition": "transitions",
}  # fmt: skip


def collect(connection: psycopg.Connection[Any], kinds: Collection[str] | None = None) -> Manifest:
    """The manifest of the connected database (or its objects of some kinds). Reads only; leaves no setting behind.

    Raises:
        psycopg.Error: if a catalogue cannot be read.
    """
    objects: dict[str, Mapping[str, Any]] = {}
    definitions: dict[str, str] = {}
    parameters = {"tables": list(CRM_TABLES), "rpcs": list(RPC_NAMES)}
    with _plain_names(connection), connection.cursor() as cursor:
        for kind, query in _SECTIONS.items():
            if kinds is not None and kind not in kinds:
                continue
            for name, facts, definition in cursor.execute(_SCOPE + query, parameters):
                objects[f"{kind} {name}"] = facts
                if definition is not None:
                    definitions[f"{kind} {name}"] = definition
        if kinds is None or "transition" in kinds:
            objects.update(_transitions(cursor))
    return Manifest(objects, definitions)


@contextmanager
def _plain_names(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """An empty search_path inside, so that every name the catalogue functions print is qualified."""
    with connection.transaction():
        row = connection.execute("SELECT current_setting('search_path')").fetchone()
        assert row is not None
        connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
        yield
        connection.execute("SELECT set_config('search_path', %s, true)", row)


def _transitions(cursor: psycopg.Cursor[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of order_status_transitions: data by its nature, a guard by its effect."""
    row = cursor.execute("SELECT to_regclass('public.order_status_transitions')").fetchone()
    if row and row[0] is not None:
        for old, new, role in cursor.execute(
            "SELECT from_status::text, to_status::text, required_role::text FROM ONLY public.order_status_transitions"
        ).fetchall():
            yield f"transition {old} -> {new}", {"required_role": role}


@cache
def expected() -> Manifest:
    """The committed manifest."""
    content = json.loads(MANIFEST_FILE.read_text(encoding="utf-8"))
    return Manifest(content["objects"], content["definitions"])


def diff(wanted: Manifest, found: Manifest) -> Comparison:
    """Compare two manifests; every difference names its object, what was found, and the SQL that repairs it."""
    differences: list[Difference] = []
    tolerated: list[str] = []
    for key in sorted({*wanted.objects, *found.objects}):
        want, have = wanted.objects.get(key), found.objects.get(key)
        if want == have:
            continue
        if want is None and have is not None and _tolerable(key, have):
            tolerated.append(key)
            continue
        if want is not None and have is not None:
            parts = [
                f"{fact} is {_shown(have.get(fact))}, expected {_shown(want.get(fact))}"
                for fact in sorted({*want, *have})
                if want.get(fact) != have.get(fact)
            ]
            problem = f"{key}: " + "; ".join(parts)
        elif have is None:
            problem = f"{key} is missing"
        else:
            problem = f"{key} is not expected here"
        differences.append(Difference(key, guard_of(key), problem, _repair(key, want, have, wanted)))
    return Comparison(tuple(differences), tuple(tolerated))


def compare(connection: psycopg.Connection[Any], kinds: Collection[str] | None = None) -> Comparison:
    """The connected database (or its objects of some kinds) against the committed manifest."""
    wanted = expected()
    if kinds is not None:
        objects = {key: facts for key, facts in wanted.objects.items() if key.split(" ")[0] in kinds}
        wanted = Manifest(objects, wanted.definitions)
    return diff(wanted, collect(connection, kinds))


def guard_of(key: str) -> str:
    """Which entry of `GUARDS` an object of the manifest belongs to."""
    kind, name = key.split(" ", 1)
    if kind in ("trigger", "rule"):
        table = name.split(".")[1]
        return (
            f"triggers_{table}"
            if name.startswith("public.") and table in CRM_TABLES
            else "triggers_elsewhere"
        )
    if kind == "grant":
        return "function_grants" if name.startswith("function ") else "table_grants"
    return _GUARD_OF_KIND[kind]


def _tolerable(key: str, facts: Mapping[str, Any]) -> bool:
    """Whether an object beyond the manifest is harmless: it runs no code as crm_rpc and lets nobody write."""
    kind, name = key.split(" ", 1)
    match kind:
        case "label":
            return True
        case "column":
            return facts["default"] is None and not facts["generated"] and not facts["identity"]
        case "index":
            return bool(facts["plain"])
        case "grant":
            privilege = name.rsplit(": ", 1)[1]
            grantee = name.rsplit(": ", 1)[0].rsplit(" to ", 1)[1]
            if name.startswith("schema public"):
                return grantee not in ("crm_rpc", "crm_app") and (grantee, privilege) != ("PUBLIC", "CREATE")
            return (
                grantee not in CRM_ROLES
                and privilege in ("SELECT", "USAGE")
                and not name.startswith("function ")
            )
        case "member":
            # PostgreSQL gives a CREATEROLE login, not a superuser, an admin-only membership that cannot be
            # revoked; without SET and INHERIT it opens nothing. Members of crm_app are the deployment's choice.
            admin_only = name.startswith("crm_rpc <- $owner ") and not facts["inherit"] and not facts["set"]
            return admin_only or (
                name.startswith("crm_app <- ") and not name.startswith("crm_app <- crm_rpc ")
            )
        case _:
            return False


def _shown(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def _repair(
    key: str, want: Mapping[str, Any] | None, have: Mapping[str, Any] | None, wanted: Manifest
) -> str:
    """SQL, for the owner or a superuser, that makes the object as the manifest wants it."""
    kind, name = key.split(" ", 1)
    match kind:
        case "trigger":
            return wanted.definitions[key] if want else f"DROP TRIGGER {_last(name)} ON {_rest(name)};"
        case "rule":
            return wanted.definitions[key] if want else f"DROP RULE {_last(name)} ON {_rest(name)};"
        case "policy":
            return wanted.definitions[key] if want else f"DROP POLICY {_last(name)} ON {_rest(name)};"
        case "constraint":
            if not want:
                return f"ALTER TABLE {_rest(name)} DROP CONSTRAINT {_last(name)};"
            if have and have["definition"] == want["definition"] and have["validated"] == want["validated"]:
                return f"ALTER TABLE {_rest(name)} ENABLE TRIGGER ALL; {_always(_rest(name), wanted)}"
            return wanted.definitions[key]
        case "index":
            return wanted.definitions[key] if want else f"DROP INDEX {name.split('.')[0]}.{_last(name)};"
        case "view":
            return wanted.definitions[key] if want else f"DROP VIEW {name};"
        case "label":
            return wanted.definitions[key]
        case "function":
            return _repair_function(key, name, want, have, wanted)
        case "table" if want and have:
            return _repair_table(name, want, have)
        case "row_security" if want:
            enabled, forced = "ENABLE" if want["enabled"] else "DISABLE", "" if want["forced"] else "NO "
            return f"ALTER TABLE {name} {enabled} ROW LEVEL SECURITY, {forced}FORCE ROW LEVEL SECURITY;"
        case "column" if have:
            return _repair_column(name, want, have)
        case "inheritance":
            child, parent = name.split(" inherits ")
            return f"ALTER TABLE {child} NO INHERIT {parent}; -- then look at the rows of {child}"
        case "grant":
            return _repair_grant(name, want)
        case "role" if want:
            flags = {
                "superuser": "SUPERUSER", "inherit": "INHERIT", "create_role": "CREATEROLE", "login": "LOGIN",
                "create_database": "CREATEDB", "replication": "REPLICATION", "bypass_row_security": "BYPASSRLS",
            }  # fmt: skip
            words = " ".join(word if want[fact] else f"NO{word}" for fact, word in flags.items())
            create = "" if have else f"CREATE ROLE {name}; "
            return f"{create}ALTER ROLE {name} {words}; ALTER ROLE {name} RESET ALL;"
        case "member":
            role, rest = name.split(" <- ")
            member, grantor = (part.replace("$owner", "CURRENT_USER") for part in rest.split(" granted by "))
            return f"REVOKE {role} FROM {member} GRANTED BY {grantor};"
        case "transition":
            return _repair_transition(name, want, wanted)
        case "possession":
            return f"-- crm_rpc owns functions and nothing else. Give it away: ALTER {name} OWNER TO CURRENT_USER;"
        case _:
            return f"-- {kind} {name}: restore it from a backup; its definition is in the migrations under sql/crm."


def _last(name: str) -> str:
    return sql.Identifier(name.rsplit(".", 1)[1]).as_string()


def _rest(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _repair_function(
    key: str, name: str, want: Mapping[str, Any] | None, have: Mapping[str, Any] | None, wanted: Manifest
) -> str:
    if want is None:
        return f"DROP FUNCTION {name};"
    steps = []
    if want["owner"] == "crm_rpc":
        # Works for a superuser and for the owner of the schema alike; the membership ends with the transaction.
        schema = name.split(".")[0]
        steps = [
            "GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;",
            f"GRANT CREATE ON SCHEMA {schema} TO crm_rpc;",
        ]
        if have and have["owner"] != "crm_rpc":
            steps.append(f"ALTER FUNCTION {name} OWNER TO crm_rpc;")
        if have and (have["result"] != want["result"] or have["arguments"] != want["arguments"]):
            steps.append(f"DROP FUNCTION {name};")
        steps += [
            "SET LOCAL ROLE crm_rpc;",
            wanted.definitions[key],
            f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC;",
        ]
        for grant in wanted.objects:
            if grant.startswith(f"grant function {name} to ") and not grant.endswith(" to crm_rpc: EXECUTE"):
                repair = _repair_grant(grant.split(" ", 1)[1], wanted.objects[grant])
                # inside SET ROLE the current user is crm_rpc; the owner is who has logged in
                steps.append(repair.replace("TO CURRENT_USER", "TO SESSION_USER"))
        steps += [
            "RESET ROLE;",
            f"REVOKE CREATE ON SCHEMA {schema} FROM crm_rpc;",
            "REVOKE crm_rpc FROM CURRENT_USER;",
        ]
    else:
        steps = [wanted.definitions[key]]
        if have and have["owner"] != want["owner"]:
            steps.append(f"ALTER FUNCTION {name} OWNER TO CURRENT_USER;")
    return "BEGIN;\n" + "\n".join(steps) + "\nCOMMIT;"


def _repair_table(name: str, want: Mapping[str, Any], have: Mapping[str, Any]) -> str:
    steps = []
    if have["owner"] != want["owner"]:
        steps.append(f"ALTER TABLE {name} OWNER TO CURRENT_USER;")
    if have["persistence"] != want["persistence"]:
        steps.append(f"ALTER TABLE {name} SET LOGGED;")
    return " ".join(steps) or f"-- {name} is another kind of relation: restore the table from a backup."


def _repair_column(name: str, want: Mapping[str, Any] | None, have: Mapping[str, Any]) -> str:
    table, column = _rest(name), _last(name)
    if want is None:
        return f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT;"
    changes = []
    if have["type"] != want["type"]:
        changes.append(f"TYPE {want['type']}")
    if have["default"] != want["default"] and not want["generated"]:
        changes.append("DROP DEFAULT" if want["default"] is None else f"SET DEFAULT {want['default']}")
    if have["not_null"] != want["not_null"]:
        changes.append("SET NOT NULL" if want["not_null"] else "DROP NOT NULL")
    if not changes:
        return f"-- {name}: see its definition in the migrations under sql/crm."
    return f"ALTER TABLE {table} " + ", ".join(f"ALTER COLUMN {column} {change}" for change in changes) + ";"


def _repair_grant(name: str, want: Mapping[str, Any] | None) -> str:
    target, privilege = name.rsplit(": ", 1)
    what, grantee = target.rsplit(" to ", 1)
    grantee = "CURRENT_USER" if grantee == "$owner" else grantee
    if grantee != "CURRENT_USER" and grantee != "PUBLIC":
        grantee = sql.Identifier(grantee).as_string() if not grantee.isidentifier() else grantee
    if what.startswith("column "):
        table, column = what.removeprefix("column ").rsplit(".", 1)
        what, privilege = f"TABLE {table}", f"{privilege} ({column})"
    else:
        kind, rest = what.split(" ", 1)
        what = f"{kind.upper()} {rest}"
    if want is None:
        return f"REVOKE {privilege} ON {what} FROM {grantee};"
    repair = f"GRANT {privilege} ON {what} TO {grantee}"
    return repair + (" WITH GRANT OPTION;" if want["grant_option"] and grantee != "CURRENT_USER" else ";")


def _repair_transition(name: str, want: Mapping[str, Any] | None, wanted: Manifest) -> str:
    old, new = name.split(" -> ")
    table = "public.order_status_transitions"
    steps = [
        "BEGIN; -- the guard of this table refuses every write: it is down for this one transaction",
        f"ALTER TABLE {table} DISABLE TRIGGER USER;",
        f"DELETE FROM {table} WHERE from_status = '{old}' AND to_status = '{new}';",
    ]
    if want is not None:
        role = "NULL" if want["required_role"] is None else f"'{want['required_role']}'"
        steps.append(
            f"INSERT INTO {table} (from_status, to_status, required_role) VALUES ('{old}', '{new}', {role});"
        )
    return "\n".join([*steps, _always(table, wanted), "COMMIT;"])


def _always(table: str, wanted: Manifest) -> str:
    """Sets the expected enabled state of every trigger of a table: `ENABLE TRIGGER ALL` takes ALWAYS away."""
    words = {"A": "ENABLE ALWAYS", "O": "ENABLE", "R": "ENABLE REPLICA", "D": "DISABLE"}
    return " ".join(
        f"ALTER TABLE {table} {words[facts['enabled']]} TRIGGER {_last(key)};"
        for key, facts in sorted(wanted.objects.items())
        if key.startswith(f"trigger {table}.")
    )


#: Non-superusers that can write a CRM table, by whatever way (grant, column grant, inherited role).
_WRITERS = """
SELECT n.nspname || '.' || c.relname AS table_name, r.rolname::text AS role_name,
       array_agg(p.privilege ORDER BY p.privilege) AS privileges
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN pg_roles r
CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p(privilege)
WHERE ((n.nspname = 'public' AND c.relname = ANY (%(tables)s)) OR n.nspname = 'crm_private') AND c.relkind IN ('r', 'p')
  AND NOT r.rolsuper AND r.rolname NOT LIKE 'pg\\_%%' AND r.rolname <> 'crm_rpc'
  AND r.oid <> c.relowner
  AND CASE WHEN p.privilege IN ('DELETE', 'TRUNCATE', 'TRIGGER') THEN has_table_privilege(r.oid, c.oid, p.privilege)
      ELSE has_any_column_privilege(r.oid, c.oid, p.privilege) END
GROUP BY 1, 2 ORDER BY 1, 2
"""


def unexpected_writers(connection: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Roles besides crm_rpc, the tables' owner and superusers that can write a CRM table (crm.md, tier A).

    Grants alone do not tell: a role may inherit the privilege, or have it on one column.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_WRITERS, {"tables": list(CRM_TABLES)}).fetchall()


def write_manifest(connection: psycopg.Connection[Any], path: Path = MANIFEST_FILE) -> Manifest:
    """Make the connected database's catalogue the committed one (after a new migration, for review)."""
    manifest = collect(connection)
    path.write_text(manifest.to_json(), encoding="utf-8")
    return manifest
