"""The catalog as a manifest: every object that the guards rest on, by name, as the connected database has it.

It is the same on PostgreSQL 16 and 18 and whoever owns the tables: the owner is written `$owner`, NOT NULL
constraints (rows of their own since 18) and the MAINTAIN privilege (new in 17) are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

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
_SCOPE = """
WITH owner AS (
    SELECT nspowner AS oid FROM pg_namespace WHERE nspname = 'crm_private'
), scope AS (
    SELECT c.*, format('%%I.%%I', n.nspname, c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (n.nspname = 'crm_private' AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))
       OR (n.nspname = 'public' AND c.relname = ANY (%(tables)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))
), routines AS (
    SELECT p.*, n.nspname, format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'crm_private'
       OR (n.nspname = 'public' AND p.proname = ANY (%(rpcs)s))
       OR p.proowner = to_regrole('crm_rpc')
), sequences AS (
    SELECT c.*, format('%%I.%%I', n.nspname, c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND (n.nspname = 'crm_private' OR EXISTS (
        SELECT FROM pg_depend d JOIN scope s ON s.oid = d.refobjid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
), our_types AS (
    -- types whose casts run inside the RPCs, as crm_rpc: row types, and the columns' types that are not built in
    SELECT t.oid FROM pg_type t WHERE t.oid >= 16384 AND (
        t.oid IN (SELECT reltype FROM scope)
        OR t.oid IN (SELECT a.atttypid FROM pg_attribute a JOIN scope s ON s.oid = a.attrelid WHERE a.attnum > 0))
)
"""

_ROLE = """CASE WHEN {0} = 0 THEN 'PUBLIC' WHEN {0} = (SELECT oid FROM owner) THEN '$owner'
    ELSE quote_ident(pg_get_userbyid({0})) END"""


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
        SELECT s.name || '.' || quote_ident(a.attname), jsonb_build_object('type', format_type(a.atttypid, a.atttypmod),
            'built_in_type', a.atttypid < 16384,
            'not_null', a.attnotnull, 'generated', a.attgenerated, 'identity', a.attidentity,
            'default', pg_get_expr(d.adbin, d.adrelid)),
            NULL
        FROM scope s JOIN pg_attribute a ON a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = s.oid AND d.adnum = a.attnum
        WHERE s.relkind IN ('r', 'p')""",
    "constraint": """
        SELECT s.name || '.' || quote_ident(c.conname), jsonb_build_object('definition', pg_get_constraintdef(c.oid),
            'validated', c.convalidated, 'system_triggers', (SELECT jsonb_agg(DISTINCT t.tgenabled)
                FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgisinternal)),
            format('ALTER TABLE %%s DROP CONSTRAINT IF EXISTS %%I; ALTER TABLE %%1$s ADD CONSTRAINT %%2$I %%3$s;',
                s.name, c.conname, pg_get_constraintdef(c.oid))
        FROM scope s JOIN pg_constraint c ON c.conrelid = s.oid WHERE c.contype <> 'n'""",
    "index": """
        SELECT s.name || '.' || quote_ident(i.relname), jsonb_build_object('definition', pg_get_indexdef(i.oid),
            'unique', x.indisunique, 'usable', x.indisvalid AND x.indisready AND x.indislive,
            'plain', x.indexprs IS NULL AND x.indpred IS NULL),
            format('DROP INDEX IF EXISTS %%I.%%I; %%s;', n.nspname, i.relname, pg_get_indexdef(i.oid))
        FROM scope s JOIN pg_index x ON x.indrelid = s.oid JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_namespace n ON n.oid = i.relnamespace
        WHERE NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid AND c.conrelid = s.oid)""",
    "trigger": """
        SELECT s.name || '.' || quote_ident(t.tgname), jsonb_build_object('definition', pg_get_triggerdef(t.oid),
            'enabled', t.tgenabled),
            format('DROP TRIGGER IF EXISTS %%I ON %%s; %%s;', t.tgname, s.name, pg_get_triggerdef(t.oid))
                || CASE t.tgenabled WHEN 'A' THEN format(' ALTER TABLE %%s ENABLE ALWAYS TRIGGER %%I;', s.name, t.tgname)
                   ELSE '' END
        FROM scope s JOIN pg_trigger t ON t.tgrelid = s.oid WHERE NOT t.tgisinternal""",
    "rule": """
        SELECT s.name || '.' || quote_ident(r.rulename), jsonb_build_object('definition', pg_get_ruledef(r.oid),
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
        SELECT s.name || '.' || quote_ident(p.polname), jsonb_build_object('command', p.polcmd, 'permissive', p.polpermissive,
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
            CASE WHEN prokind <> 'a' THEN pg_get_functiondef(oid) || ';' END
        FROM routines""",
    "sequence": f"""
        SELECT name, jsonb_build_object('owner', {_role("relowner")}, 'increment', q.seqincrement, 'cycle', q.seqcycle,
            'identity', EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = sequences.oid AND d.deptype = 'i')),
            NULL
        FROM sequences JOIN pg_sequence q ON q.seqrelid = sequences.oid""",
    "cast": """
        SELECT format_type(c.castsource, NULL) || ' AS ' || format_type(c.casttarget, NULL),
            jsonb_build_object('context', c.castcontext, 'method', c.castmethod,
                'function', nullif(c.castfunc, 0)::regprocedure::text), NULL
        FROM pg_cast c WHERE c.castsource IN (SELECT oid FROM our_types) OR c.casttarget IN (SELECT oid FROM our_types)""",
    "label": """
        SELECT quote_ident(n.nspname) || '.' || quote_ident(t.typname) || ' ' || quote_literal(e.enumlabel), '{}'::jsonb,
            format('ALTER TYPE %%I.%%I ADD VALUE IF NOT EXISTS %%L;', n.nspname, t.typname, e.enumlabel)
        FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE n.nspname IN ('public', 'crm_private')
          AND EXISTS (SELECT FROM scope s JOIN pg_attribute a ON a.attrelid = s.oid WHERE a.atttypid = t.oid)""",
    "grant": f"""
        SELECT g.object || ' to ' || g.grantee || ': ' || g.privilege_type,
            jsonb_build_object('grant_option', bool_or(g.is_grantable)), NULL
        FROM (
            SELECT 'table ' || s.name AS object, {_role("a.grantee")} AS grantee, a.privilege_type, a.is_grantable
            FROM scope s, aclexplode(coalesce(s.relacl, acldefault('r', s.relowner))) a
            UNION SELECT 'column ' || s.name || '.' || quote_ident(c.attname), {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM scope s JOIN pg_attribute c ON c.attrelid = s.oid AND NOT c.attisdropped, aclexplode(c.attacl) a
            UNION SELECT 'sequence ' || s.name, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM sequences s, aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) a
            UNION SELECT 'function ' || r.name, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM routines r, aclexplode(coalesce(r.proacl, acldefault('f', r.proowner))) a
            UNION SELECT 'schema ' || n.nspname, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
            WHERE n.nspname = 'crm_private' OR (n.nspname = 'public' AND (a.privilege_type = 'CREATE'
                OR a.grantee IN (to_regrole('crm_rpc'), to_regrole('crm_app'))) AND a.grantee <> n.nspowner
                AND a.grantee IS DISTINCT FROM (SELECT oid FROM owner))
        ) g WHERE g.privilege_type <> 'MAINTAIN' GROUP BY g.object, g.grantee, g.privilege_type""",
    "role": """
        SELECT rolname::text, jsonb_build_object('superuser', rolsuper, 'inherit', rolinherit, 'create_role', rolcreaterole,
            'create_database', rolcreatedb, 'login', rolcanlogin, 'replication', rolreplication,
            'bypass_row_security', rolbypassrls, 'settings', (SELECT jsonb_agg(c ORDER BY c)
                FROM pg_db_role_setting s, unnest(s.setconfig) AS c
                WHERE s.setrole = r.oid AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())))),
            NULL
        FROM pg_roles r WHERE rolname IN ('crm_rpc', 'crm_app')""",
    "setting": """
        -- what changes the meaning of our functions' text, or keeps the RPCs from running
        SELECT split_part(c, '=', 1), jsonb_build_object('value', split_part(c, '=', 2),
            'every_database', s.setdatabase = 0), NULL
        FROM pg_db_role_setting s, unnest(s.setconfig) AS c
        WHERE s.setrole = 0 AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
          AND (split_part(c, '=', 1) LIKE 'plpgsql.%%' OR split_part(c, '=', 1) IN ('standard_conforming_strings',
            'backslash_quote', 'transform_null_equals', 'array_nulls', 'session_replication_role', 'row_security',
            'default_transaction_isolation', 'default_transaction_read_only', 'session_preload_libraries',
            'local_preload_libraries', 'check_function_bodies', 'quote_all_identifiers'))""",
    "member": f"""
        SELECT quote_ident(pg_get_userbyid(m.roleid)) || ' <- ' || {_role("m.member")} || ' granted by ' || {_role("m.grantor")},
            jsonb_build_object('inherit', bool_or(m.inherit_option), 'set', bool_or(m.set_option), 'web', (
                SELECT jsonb_agg(r.rolname ORDER BY r.rolname) FROM pg_roles r
                WHERE r.rolname IN ('anon', 'authenticated') AND pg_has_role(r.oid, m.member, 'MEMBER'))), NULL
        FROM pg_auth_members m
        WHERE 'crm_rpc' IN (pg_get_userbyid(m.roleid), pg_get_userbyid(m.member))
           OR pg_get_userbyid(m.member) = 'crm_app'
           OR pg_get_userbyid(m.roleid) = 'crm_app'
        GROUP BY m.roleid, m.member, m.grantor""",
    "possession": """
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid), '{}'::jsonb, NULL
        FROM pg_shdepend d
        WHERE d.deptype = 'o' AND d.refclassid = 'pg_authid'::regclass AND d.refobjid = to_regrole('crm_rpc')
          AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND d.classid <> 'pg_proc'::regclass""",
}


@dataclass(frozen=True)
class Manifest:
    """Facts by object (`"<kind> <name>"`) and the SQL that creates an object, where the catalog can say it."""

    objects: Mapping[str, Mapping[str, Any]]
    definitions: Mapping[str, str] = field(default_factory=dict)
    owner: str = "CURRENT_USER"  # who `$owner` is in the database that was read, quoted
    database: str = ""  # its name, quoted

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


def collect(connection: psycopg.Connection[Any], kinds: Collection[str] | None = None) -> Manifest:
    """The manifest of the connected database (or its objects of some kinds). Reads only; leaves no setting behind.

    Raises:
        psycopg.Error: if a catalog cannot be read.
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
        where = cursor.execute(
            "SELECT quote_ident(pg_get_userbyid(nspowner)), quote_ident(current_database()) FROM pg_namespace WHERE nspname = 'crm_private'"
        ).fetchone()
    return Manifest(objects, definitions, *(where or ()))


@contextmanager
def _plain_names(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """An empty search_path inside, so that every name the catalog functions print is qualified."""
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
