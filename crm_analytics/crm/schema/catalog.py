"""Reads the catalog of a CRM database as a manifest: every object that the guards depend on, by name.

The manifest is the same on PostgreSQL 16 and 18, and for every owner: the owner is written `$owner`; NOT NULL
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

from crm_analytics.core.settings import Settings, settings

#: The CRM's tables in `public`; each has a guard trigger.
CRM_TABLES = (
    "audit_log",
    "audit_positions",
    "audit_seals",
    "customer_contacts",
    "customer_erasures",
    "customers",
    "documents",
    "leads",
    "order_status_events",
    "order_status_transitions",
    "orders",
    "payments",
    "payout_limits",
    "shipments",
    "tasks",
    "user_identity_map",
    "users",
)
#: The CRM's enum types in `public`.
CRM_TYPES = (
    "currency_enum",
    "document_type_enum",
    "lead_status_enum",
    "order_status_enum",
    "payment_direction_enum",
    "payment_method_enum",
    "payment_role_enum",
    "payment_status_enum",
    "preferred_channel_enum",
    "shipment_provider_enum",
    "user_role_enum",
)
#: The safe RPCs that applications call; docs/crm-rpc.md describes them.
RPC_NAMES = (
    "resolve_crm_user",
    "create_lead_safe",
    "advance_lead_status_safe",
    "create_order_safe",
    "quick_order_safe",
    "checkout_order_safe",
    "record_generic_payment_safe",
    "update_payment_status_safe",
    "reverse_payment_safe",
    "advance_order_status_safe",
    "attach_document_safe",
    "replace_document_safe",
    "withdraw_document_safe",
    "create_task_safe",
    "update_task_safe",
    "upsert_shipment_safe",
    "update_order_safe",
    "update_lead_safe",
    "update_customer_safe",
    "merge_customers_safe",
    "create_user_safe",
    "update_user_safe",
    "set_user_active_safe",
    "set_user_role_safe",
    "map_identity_safe",
    "unmap_identity_safe",
    "erase_customer_safe",
)
#: The views that applications read.
CRM_VIEWS = ("order_balance", "order_timeline", "customer_overview", "open_tasks")
#: Functions that applications call to read, and which change nothing.
READ_NAMES = (
    "find_customers_by_phone",
    "find_customers_by_email",
    "find_customers_by_name",
    "find_orders_by_code",
    "changes_after",
    "whoami",
)
TRANSITIONS = "public.order_status_transitions"
PAYOUT_LIMITS = "public.payout_limits"
#: Kinds whose objects are rows: data by their nature, guards by their effect.
ROWS_OF = {"transition": TRANSITIONS, "payout_limit": PAYOUT_LIMITS}
_COLUMNS_OF = {
    "transition": ("from_status", "to_status", "required_role"),
    "payout_limit": ("currency", "manager_limit"),
}
#: What the queries below read from: the CRM's relations, routines, sequences and types, by their qualified names. Views
#: belong to it wherever they are, if they read the CRM's relations or call its routines, by way of others, too; and so do
#: routines that run as the owner, or as someone who may call the RPCs.
_SCOPE = """
WITH RECURSIVE owner AS (
    SELECT r.oid, quote_ident(r.rolname) AS name FROM pg_roles r LEFT JOIN pg_namespace n ON n.nspname = 'crm_private'
    WHERE CASE WHEN %(by_login)s THEN r.rolname = current_user ELSE r.oid = n.nspowner END
), routines AS (
    SELECT p.*, n.nspname,
        format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'crm_private'
       OR (n.nspname = 'public' AND p.proname = ANY (%(rpcs)s))
       OR p.proowner = to_regrole('crm_rpc')
       OR (p.prosecdef AND p.oid >= 16384 AND (p.proowner = (SELECT oid FROM owner)
           OR (NOT (SELECT rolsuper FROM pg_roles WHERE oid = p.proowner)
               AND pg_has_role(p.proowner, to_regrole('crm_app')::oid, 'USAGE'))))
), by_name AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (n.nspname IN ('crm_private', 'reporting')
        OR (n.nspname = 'public' AND c.relname = ANY (%(tables)s)))
), touching AS (
    SELECT r.ev_class AS oid FROM pg_depend d
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    WHERE (d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM by_name))
       OR (d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM routines))
    UNION
    SELECT r.ev_class FROM touching t JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
), scope AS (
    SELECT c.*, format('%%I.%%I', n.nspname, c.relname) AS name, format('%%s %%I.%%I',
        CASE WHEN c.relkind IN ('v', 'm') THEN 'view' ELSE 'table' END, n.nspname, c.relname) AS key
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid IN (SELECT oid FROM by_name) OR (c.relkind IN ('v', 'm') AND c.oid IN (SELECT oid FROM touching))
), sequences AS (
    SELECT * FROM (
        SELECT c.*, format('%%I.%%I', n.nspname, c.relname) AS name, (
            SELECT s.key FROM pg_depend d JOIN scope s ON s.oid = d.refobjid
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') LIMIT 1) AS parent
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S') s
    WHERE parent IS NOT NULL OR relnamespace = to_regnamespace('crm_private')
), our_types AS (
    -- types whose casts run inside the RPCs, as crm_rpc: row types, and the columns' types that are not built in
    SELECT t.oid FROM pg_type t WHERE t.oid >= 16384 AND (
        t.oid IN (SELECT reltype FROM scope)
        OR t.oid IN (SELECT a.atttypid FROM pg_attribute a JOIN scope s ON s.oid = a.attrelid WHERE a.attnum > 0))
)
"""


def _role(oid: str) -> str:
    return f"""CASE WHEN {oid} = 0 THEN 'PUBLIC' WHEN {oid} = (SELECT oid FROM owner) THEN '$owner'
        ELSE quote_ident(pg_get_userbyid({oid})) END"""


#: kind -> query of (name, facts, definition, removal). `parent` among the facts is the key of the object that it comes
#: and goes with. `definition` is the SQL that creates the object; `removal` removes it, or makes a column harmless.
_SECTIONS: Mapping[str, str] = {
    "table": f"""
        SELECT name, jsonb_build_object('owner', {_role("relowner")}, 'kind', relkind, 'persistence', relpersistence),
            NULL,
            format('DROP %%s %%s; -- it is not part of the CRM: look at it first',
                CASE relkind WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, name)
        FROM scope WHERE relkind NOT IN ('v', 'm')""",
    "type": f"""
        SELECT format('%%I.%%I', n.nspname, t.typname), jsonb_build_object('owner', {_role("t.typowner")}),
            format('CREATE TYPE %%I.%%I AS ENUM (%%s);', n.nspname, t.typname, (
                SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
                FROM pg_enum e WHERE e.enumtypid = t.oid)),
            NULL
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE n.nspname = 'public' AND t.typname = ANY (%(types)s) AND t.typtype = 'e'""",
    "row_security": """
        SELECT name, jsonb_build_object('parent', key, 'enabled', relrowsecurity, 'forced', relforcerowsecurity),
            format('ALTER TABLE %%s %%s ROW LEVEL SECURITY, %%s ROW LEVEL SECURITY;', name,
                CASE WHEN relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END,
                CASE WHEN relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END),
            format('ALTER TABLE %%s NO FORCE ROW LEVEL SECURITY;', name)
        FROM scope WHERE relkind IN ('r', 'p')""",
    "column": """
        SELECT s.name || '.' || quote_ident(a.attname), jsonb_build_object('parent', s.key,
                'type', x.type, 'built_in_type', a.atttypid < 16384, 'not_null', a.attnotnull,
                'generated', a.attgenerated, 'identity', a.attidentity, 'default', x.expression),
            concat(format('ALTER TABLE %%s ADD COLUMN %%I %%s', s.name, a.attname, x.type),
                CASE WHEN a.attgenerated <> '' THEN ' GENERATED ALWAYS AS (' || x.expression || ') STORED'
                    WHEN a.attidentity = 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
                    WHEN a.attidentity = 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY'
                    ELSE ' DEFAULT ' || x.expression END,
                CASE WHEN NOT a.attnotnull THEN ';'
                    WHEN d.oid IS NOT NULL OR a.attidentity <> '' THEN ' NOT NULL;'
                    ELSE format(E';\\n-- fill it, then: ALTER TABLE %%s ALTER COLUMN %%I SET NOT NULL;', s.name, a.attname)
                    END),
            CASE WHEN a.attgenerated = 'v'  -- it has no values, and its expression cannot be dropped
                THEN format('ALTER TABLE %%s DROP COLUMN %%I;', s.name, a.attname)
                ELSE format(concat_ws(' ',
                    CASE WHEN a.attgenerated <> '' THEN 'ALTER TABLE %%1$s ALTER COLUMN %%2$I DROP EXPRESSION;'
                        WHEN a.attidentity <> '' THEN 'ALTER TABLE %%1$s ALTER COLUMN %%2$I DROP IDENTITY;'
                        WHEN d.oid IS NOT NULL THEN 'ALTER TABLE %%1$s ALTER COLUMN %%2$I DROP DEFAULT;' END,
                    CASE WHEN a.attnotnull THEN 'ALTER TABLE %%1$s ALTER COLUMN %%2$I DROP NOT NULL;' END,
                    CASE WHEN a.atttypid >= 16384
                        THEN 'ALTER TABLE %%1$s ALTER COLUMN %%2$I TYPE text USING %%2$I::text;' END),
                    s.name, a.attname) END
        FROM scope s JOIN pg_attribute a ON a.attrelid = s.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = s.oid AND d.adnum = a.attnum
        CROSS JOIN LATERAL (
            SELECT pg_get_expr(d.adbin, d.adrelid) AS expression,
                concat_ws(' COLLATE ', format_type(a.atttypid, a.atttypmod),
                    CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation END) AS type) x
        WHERE s.relkind IN ('r', 'p')""",
    "constraint": """
        SELECT s.name || '.' || quote_ident(c.conname), jsonb_build_object('parent', s.key, 'kind', c.contype,
                'definition', pg_get_constraintdef(c.oid), 'validated', c.convalidated, 'columns', (
                    SELECT jsonb_agg(quote_ident(a.attname) ORDER BY k.place)
                    FROM unnest(c.conkey) WITH ORDINALITY AS k (number, place)
                    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number),
                'references', nullif(c.confrelid, 0)::regclass::text, 'index', (
                    SELECT jsonb_build_object('unique', x.indisunique, 'immediate', x.indimmediate,
                        'usable', x.indisvalid AND x.indisready AND x.indislive)
                    FROM pg_index x WHERE x.indexrelid = c.conindid AND c.contype IN ('p', 'u', 'x')), 'system_triggers', (
                    SELECT jsonb_agg(DISTINCT t.tgenabled)
                    FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgisinternal)),
            format('ALTER TABLE %%s DROP CONSTRAINT IF EXISTS %%I; ALTER TABLE %%1$s ADD CONSTRAINT %%2$I %%3$s;',
                s.name, c.conname, pg_get_constraintdef(c.oid)),
            format('ALTER TABLE %%s DROP CONSTRAINT %%I;', s.name, c.conname)
        FROM scope s JOIN pg_constraint c ON c.conrelid = s.oid WHERE c.contype <> 'n'""",
    "index": """
        SELECT s.name || '.' || quote_ident(i.relname), jsonb_build_object('parent', s.key,
                'definition', pg_get_indexdef(i.oid), 'unique', x.indisunique,
                'usable', x.indisvalid AND x.indisready AND x.indislive,
                'plain', x.indexprs IS NULL AND x.indpred IS NULL),
            format('DROP INDEX IF EXISTS %%I.%%I; %%s;', n.nspname, i.relname, pg_get_indexdef(i.oid)),
            format('DROP INDEX %%I.%%I;', n.nspname, i.relname)
        FROM scope s JOIN pg_index x ON x.indrelid = s.oid JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_namespace n ON n.oid = i.relnamespace
        WHERE NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid AND c.conrelid = s.oid)""",
    "trigger": """
        SELECT s.name || '.' || quote_ident(t.tgname), jsonb_build_object('parent', s.key,
                'definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled, 'why_not_always',
                CASE WHEN t.tgenabled <> 'A' THEN obj_description(t.oid, 'pg_trigger') END),
            format('DROP TRIGGER IF EXISTS %%I ON %%s; %%s;', t.tgname, s.name, pg_get_triggerdef(t.oid))
                || CASE t.tgenabled WHEN 'A'
                    THEN format(' ALTER TABLE %%s ENABLE ALWAYS TRIGGER %%I;', s.name, t.tgname)
                    ELSE format(' COMMENT ON TRIGGER %%I ON %%s IS %%L;', t.tgname, s.name,
                        obj_description(t.oid, 'pg_trigger')) END,
            format('DROP TRIGGER %%I ON %%s;', t.tgname, s.name)
        FROM scope s JOIN pg_trigger t ON t.tgrelid = s.oid WHERE NOT t.tgisinternal
        UNION ALL
        SELECT t.tgrelid::regclass || '.' || quote_ident(t.tgname), jsonb_build_object(
                'definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled),
            NULL, format('DROP TRIGGER %%I ON %%s;', t.tgname, t.tgrelid::regclass)
        FROM pg_trigger t
        WHERE NOT t.tgisinternal AND t.tgfoid IN (SELECT oid FROM routines) AND t.tgrelid NOT IN (SELECT oid FROM scope)""",
    "rule": """
        SELECT s.name || '.' || quote_ident(r.rulename), jsonb_build_object('parent', s.key,
                'definition', pg_get_ruledef(r.oid), 'enabled', r.ev_enabled),
            pg_get_ruledef(r.oid),
            format('DROP RULE %%I ON %%s;', r.rulename, s.name)
        FROM scope s JOIN pg_rewrite r ON r.ev_class = s.oid WHERE r.rulename <> '_RETURN'
        UNION ALL
        SELECT r.ev_class::regclass || '.' || quote_ident(r.rulename), jsonb_build_object(
                'definition', pg_get_ruledef(r.oid), 'enabled', r.ev_enabled),
            NULL, format('DROP RULE %%I ON %%s;', r.rulename, r.ev_class::regclass)
        FROM pg_rewrite r
        WHERE r.rulename <> '_RETURN' AND r.ev_class NOT IN (SELECT oid FROM scope) AND EXISTS (
            SELECT FROM pg_depend d WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM scope))""",
    "view": f"""
        SELECT s.name, jsonb_build_object('owner', {_role("s.relowner")}, 'kind', s.relkind,
                'options', (SELECT jsonb_agg(o ORDER BY o) FROM unnest(s.reloptions) AS o),
                'source', encode(sha256(convert_to(pg_get_viewdef(s.oid), 'UTF8')), 'hex'), 'columns', (
                    SELECT jsonb_agg(format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)
                    FROM pg_attribute a WHERE a.attrelid = s.oid AND a.attnum > 0)),
            format('CREATE OR REPLACE VIEW %%s%%s AS%%s', s.name,
                ' WITH (' || array_to_string(s.reloptions, ', ') || ')', E'\n' || pg_get_viewdef(s.oid)),
            format('DROP %%s IF EXISTS %%s CASCADE; -- it is not part of the CRM: look at it first',
                CASE s.relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END, s.name)
        FROM scope s WHERE s.relkind IN ('v', 'm')""",
    "inheritance": """
        SELECT c.oid::regclass || ' inherits ' || p.oid::regclass, jsonb_build_object('parent', coalesce(
                (SELECT key FROM scope WHERE oid = p.oid), (SELECT key FROM scope WHERE oid = c.oid))),
            NULL,
            format(CASE WHEN c.relispartition THEN 'ALTER TABLE %%2$s DETACH PARTITION %%1$s;'
                ELSE 'ALTER TABLE %%1$s NO INHERIT %%2$s;' END || ' -- then look at the rows of %%1$s',
                c.oid::regclass, p.oid::regclass)
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
        WHERE c.relkind IN ('r', 'f', 'p') AND EXISTS (SELECT FROM scope WHERE oid IN (c.oid, p.oid))""",
    "policy": f"""
        SELECT s.name || '.' || quote_ident(p.polname), jsonb_build_object('parent', s.key, 'command', p.polcmd,
                'permissive', p.polpermissive,
                'roles', (
                    SELECT jsonb_agg(r ORDER BY r) FROM (SELECT {_role("o")} AS r FROM unnest(p.polroles) AS o) x),
                'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid)),
            format('DROP POLICY IF EXISTS %%I ON %%s; CREATE POLICY %%1$I ON %%2$s AS %%3$s FOR %%4$s TO %%5$s',
                p.polname, s.name, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                    WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                (SELECT string_agg(CASE o WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(o)) END, ', ')
                    FROM unnest(p.polroles) AS o))
                || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
                || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '') || ';',
            format('DROP POLICY %%I ON %%s;', p.polname, s.name)
        FROM scope s JOIN pg_policy p ON p.polrelid = s.oid""",
    "function": f"""
        SELECT name, jsonb_build_object('parent', format('schema %%I', nspname),
                'source', encode(sha256(convert_to(coalesce(pg_get_function_sqlbody(oid), prosrc), 'UTF8')), 'hex'),
                'owner', {_role("proowner")}, 'settings', (SELECT jsonb_agg(c ORDER BY c) FROM unnest(proconfig) AS c),
                'security_definer', prosecdef, 'language', (SELECT lanname FROM pg_language WHERE oid = prolang),
                'volatility', provolatile, 'strict', proisstrict, 'kind', prokind,
                'arguments', pg_get_function_arguments(oid), 'result', pg_get_function_result(oid)),
            CASE WHEN prokind <> 'a' THEN pg_get_functiondef(oid) || ';' END,
            format('DROP ROUTINE %%s;', name)
        FROM routines""",
    "sequence": f"""
        SELECT name, jsonb_build_object('owner', {_role("relowner")}, 'increment', q.seqincrement, 'cycle', q.seqcycle,
                -- whoever may write all data may set a sequence to its end, and then every RPC fails
                'has_room', CASE WHEN has_sequence_privilege(sequences.oid, 'USAGE, SELECT')
                    THEN coalesce(pg_sequence_last_value(sequences.oid), 0) < q.seqmax / 2 END, 'column', (
                    SELECT quote_ident(a.attname) FROM pg_depend d JOIN pg_attribute a
                        ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = sequences.oid AND d.deptype IN ('a', 'i')),
                'parent', coalesce(parent, 'schema crm_private'), 'identity', EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = sequences.oid AND d.deptype = 'i')),
            NULL,
            format('DROP SEQUENCE IF EXISTS %%s;', name)
        FROM sequences JOIN pg_sequence q ON q.seqrelid = sequences.oid""",
    "cast": """
        SELECT format_type(c.castsource, NULL) || ' AS ' || format_type(c.casttarget, NULL),
            jsonb_build_object('context', c.castcontext, 'method', c.castmethod,
                'function', nullif(c.castfunc, 0)::regprocedure::text),
            NULL,
            format('DROP CAST (%%s AS %%s);', format_type(c.castsource, NULL), format_type(c.casttarget, NULL))
        FROM pg_cast c WHERE EXISTS (SELECT FROM our_types WHERE oid IN (c.castsource, c.casttarget))""",
    "label": """
        SELECT format('%%I.%%I %%L', n.nspname, t.typname, e.enumlabel),
            jsonb_build_object('parent', format('type %%I.%%I', n.nspname, t.typname)),
            format('ALTER TYPE %%I.%%I ADD VALUE IF NOT EXISTS %%L;', n.nspname, t.typname, e.enumlabel),
            NULL
        FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE (n.nspname = 'public' AND t.typname = ANY (%(types)s)) OR (n.nspname IN ('public', 'crm_private')
          AND EXISTS (SELECT FROM scope s JOIN pg_attribute a ON a.attrelid = s.oid WHERE a.atttypid = t.oid))""",
    "grant": f"""
        SELECT coalesce('column ' || g.table_name || '.' || g.column_name, g.parent)
                || ' to ' || g.grantee || ': ' || g.privilege_type,
            jsonb_build_object('parent', g.parent, 'column', g.column_name, 'grantee', g.grantee,
                'privilege', g.privilege_type, 'grant_option', bool_or(g.is_grantable)),
            NULL, NULL
        FROM (
            SELECT s.key AS parent, s.name AS table_name, NULL AS column_name, {_role("a.grantee")} AS grantee,
                a.privilege_type, a.is_grantable
            FROM scope s, aclexplode(coalesce(s.relacl, acldefault('r', s.relowner))) a
            UNION SELECT s.key, s.name, quote_ident(c.attname), {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM scope s JOIN pg_attribute c ON c.attrelid = s.oid AND NOT c.attisdropped, aclexplode(c.attacl) a
            UNION SELECT 'sequence ' || s.name, NULL, NULL, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM sequences s, aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) a
            UNION SELECT 'function ' || r.name, NULL, NULL, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM routines r, aclexplode(coalesce(r.proacl, acldefault('f', r.proowner))) a
            UNION SELECT 'schema ' || n.nspname, NULL, NULL, {_role("a.grantee")}, a.privilege_type, a.is_grantable
            FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
            WHERE n.nspname IN ('crm_private', 'reporting') OR (n.nspname = 'public' AND (a.privilege_type = 'CREATE'
                OR a.grantee IN (to_regrole('crm_rpc'), to_regrole('crm_app'))) AND a.grantee <> n.nspowner
                AND a.grantee IS DISTINCT FROM (SELECT oid FROM owner))
        ) g
        WHERE g.privilege_type <> 'MAINTAIN'
        GROUP BY g.parent, g.table_name, g.column_name, g.grantee, g.privilege_type""",
    "role": """
        SELECT rolname::text, jsonb_build_object('superuser', rolsuper, 'inherit', rolinherit,
                'create_role', rolcreaterole, 'create_database', rolcreatedb, 'login', rolcanlogin,
                'replication', rolreplication,
                -- Grafana's role has settings of its own, which only its maker may set (server.sql)
                'bypass_row_security', rolbypassrls, 'settings', (SELECT jsonb_agg(c ORDER BY c)
                    FROM pg_db_role_setting s, unnest(s.setconfig) AS c
                    WHERE s.setrole = r.oid AND r.rolname <> 'grafana_reader'
                      AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())))),
            NULL,
            format('ALTER ROLE %%I RESET ALL; ALTER ROLE %%1$I IN DATABASE %%I RESET ALL;', rolname, current_database())
        FROM pg_roles r WHERE rolname IN ('crm_rpc', 'crm_app', 'grafana_reader')""",
    "setting": """
        -- what changes the meaning of our functions' text, or keeps the RPCs from running
        SELECT split_part(c, '=', 1),
            jsonb_build_object('value', split_part(c, '=', 2), 'every_database', s.setdatabase = 0),
            NULL,
            format('ALTER %%s RESET %%s;', CASE s.setdatabase WHEN 0 THEN 'ROLE ALL'
                ELSE 'DATABASE ' || quote_ident(current_database()) END, split_part(c, '=', 1))
        FROM pg_db_role_setting s, unnest(s.setconfig) AS c
        WHERE s.setrole = 0 AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
          AND (split_part(c, '=', 1) LIKE 'plpgsql.%%' OR split_part(c, '=', 1) IN ('standard_conforming_strings',
            'backslash_quote', 'transform_null_equals', 'array_nulls', 'session_replication_role', 'row_security',
            'default_transaction_isolation', 'default_transaction_read_only', 'session_preload_libraries',
            'local_preload_libraries', 'check_function_bodies', 'quote_all_identifiers'))""",
    "member": f"""
        SELECT role || ' <- ' || member || ' granted by ' || grantor, jsonb_build_object('role', role, 'member', member,
                'grantor', grantor, 'inherit', bool_or(inherit_option), 'set', bool_or(set_option),
                'admin', bool_or(admin_option), 'superuser', superuser, 'named', named, 'web', web),
            NULL,
            concat_ws(E'\\n', format('REVOKE %%s FROM %%s GRANTED BY %%s CASCADE;', role, login, login_grantor),
                (SELECT string_agg(
                    format('-- or, if %%s is the role of a trusted server: REVOKE %%1$s FROM %%I;', member, w), E'\\n')
                    FROM jsonb_array_elements_text(web) AS w WHERE w <> member))
        FROM (
            SELECT quote_ident(pg_get_userbyid(m.roleid)) AS role, {_role("m.member")} AS member,
                {_role("m.grantor")} AS grantor, quote_ident(pg_get_userbyid(m.member)) AS login,
                quote_ident(pg_get_userbyid(m.grantor)) AS login_grantor, m.inherit_option, m.set_option,
                m.admin_option, l.rolsuper AS superuser, CASE pg_get_userbyid(m.roleid)
                    WHEN 'crm_app' THEN l.rolname = ANY (%(app_members)s)
                    WHEN 'grafana_reader' THEN l.rolname = ANY (%(reader_admins)s) ELSE false END AS named, (
                    SELECT jsonb_agg(r.rolname ORDER BY r.rolname) FROM pg_roles r
                    WHERE r.rolname IN ('anon', 'authenticated') AND pg_has_role(r.oid, m.member, 'MEMBER')) AS web
            FROM pg_auth_members m JOIN pg_roles l ON l.oid = m.member
            WHERE 'crm_rpc' IN (pg_get_userbyid(m.roleid), pg_get_userbyid(m.member))
               OR 'crm_app' IN (pg_get_userbyid(m.roleid), pg_get_userbyid(m.member))
               OR 'grafana_reader' = pg_get_userbyid(m.roleid)
        ) m GROUP BY role, member, grantor, login, login_grantor, superuser, named, web""",
    "possession": """
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid), '{}'::jsonb, NULL, NULL
        FROM pg_shdepend d
        WHERE d.deptype = 'o' AND d.refclassid = 'pg_authid'::regclass AND d.refobjid = to_regrole('crm_rpc')
          AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND d.classid <> 'pg_proc'::regclass""",
    "maintain": f"""
        -- a rule instead of grants, because the privilege is new in 17: nobody has it but the owner
        SELECT s.key || ' to ' || {_role("a.grantee")}, '{{}}'::jsonb, NULL, format('REVOKE MAINTAIN ON %%s FROM %%s CASCADE;',
            s.name, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
        FROM scope s, aclexplode(s.relacl) a WHERE a.privilege_type = 'MAINTAIN' AND a.grantee <> s.relowner
        UNION
        SELECT 'pg_maintain to ' || quote_ident(r.rolname), '{{}}'::jsonb, NULL, format(
            'REVOKE pg_maintain FROM %%I GRANTED BY %%I CASCADE;', r.rolname, pg_get_userbyid(m.grantor))
        FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
        WHERE m.roleid = to_regrole('pg_maintain') AND NOT r.rolsuper AND r.oid <> (SELECT oid FROM owner)""",
    "event_trigger": f"""
        -- they run with the rights of whoever changes the schema: at a migration, the owner's
        SELECT quote_ident(e.evtname), jsonb_build_object('owner', {_role("e.evtowner")}, 'event', e.evtevent,
                'tags', to_jsonb(e.evttags), 'enabled', e.evtenabled, 'function', p.oid::regprocedure::text,
                'function_owner', {_role("p.proowner")}, 'source', encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex')),
            NULL, format('DROP EVENT TRIGGER %%I;', e.evtname)
        FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid""",
    "publication": f"""
        SELECT format('%%I of %%s', p.pubname, s.name), jsonb_build_object('owner', {_role("p.pubowner")}), NULL,
            CASE WHEN p.puballtables THEN format('DROP PUBLICATION IF EXISTS %%I; -- it publishes every table', p.pubname)
                WHEN r.prrelid IS NOT NULL THEN format('ALTER PUBLICATION %%I DROP TABLE %%s;', p.pubname, s.name)
                -- once per schema: the second time there is nothing left to drop
                ELSE format('DO $drop$ BEGIN ALTER PUBLICATION %%I DROP TABLES IN SCHEMA %%s; '
                    'EXCEPTION WHEN undefined_object THEN NULL; END $drop$;', p.pubname, s.relnamespace::regnamespace) END
        FROM pg_publication p JOIN scope s ON s.relkind IN ('r', 'p')
        LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = s.oid
        LEFT JOIN pg_publication_namespace n ON n.pnpubid = p.oid AND n.pnnspid = s.relnamespace
        WHERE p.puballtables OR r.oid IS NOT NULL OR n.oid IS NOT NULL""",
    "subscription": f"""
        -- without its slot, which may be out of reach; once per subscription: the second time there is nothing left to drop
        SELECT format('%%I into %%s', u.subname, s.name), jsonb_build_object('owner', {_role("u.subowner")}), NULL,
            format('DO $drop$ BEGIN ALTER SUBSCRIPTION %%1$I DISABLE; ALTER SUBSCRIPTION %%1$I SET (slot_name = NONE); '
                'DROP SUBSCRIPTION %%1$I; EXCEPTION WHEN undefined_object THEN NULL; END $drop$; '
                '-- its slot stays on the publisher: drop it there', u.subname)
        FROM pg_subscription_rel r JOIN pg_subscription u ON u.oid = r.srsubid JOIN scope s ON s.oid = r.srrelid""",
    "reference": """
        SELECT c.conrelid::regclass || '.' || quote_ident(c.conname),
            jsonb_build_object('source', pg_get_constraintdef(c.oid)), NULL,
            format('ALTER TABLE %%s DROP CONSTRAINT %%I;', c.conrelid::regclass, c.conname)
        FROM pg_constraint c
        WHERE c.contype = 'f' AND c.confrelid IN (SELECT oid FROM scope) AND c.conrelid NOT IN (SELECT oid FROM scope)""",
    "exposed": """
        -- tables that a web API serves to anyone, because nothing chooses the rows
        SELECT name, jsonb_build_object('to', jsonb_agg(grantee ORDER BY grantee)), NULL,
            format('REVOKE ALL ON %%s FROM %%s; -- or: ALTER TABLE %%1$s ENABLE ROW LEVEL SECURITY;',
                name, string_agg(grantee, ', ' ORDER BY grantee))
        FROM (
            SELECT DISTINCT c.oid::regclass::text AS name,
                CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END AS grantee
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
            WHERE c.relkind IN ('r', 'p', 'f', 'm') AND NOT c.relrowsecurity AND c.oid NOT IN (SELECT oid FROM scope)
              AND (n.nspname = 'public' OR n.nspname IN (
                SELECT btrim(x) FROM pg_db_role_setting s, unnest(s.setconfig) AS e,
                    unnest(string_to_array(split_part(e, '=', 2), ',')) AS x
                WHERE s.setrole = to_regrole('authenticator') AND e LIKE 'pgrst.db_schemas=%%'))
              AND NOT EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        ) t WHERE grantee IN ('PUBLIC', 'anon', 'authenticated') GROUP BY name""",
    "parameter": """
        SELECT parname || ' to ' || grantee, '{}'::jsonb, NULL,
            format('REVOKE ALL ON PARAMETER %%s FROM %%s CASCADE;', parname, grantee)
        FROM (
            SELECT DISTINCT p.parname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS grantee
            FROM pg_parameter_acl p CROSS JOIN LATERAL aclexplode(p.paracl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
            WHERE r.rolsuper IS NOT TRUE AND p.parname IN ('session_replication_role', 'allow_system_table_mods',
                'session_preload_libraries', 'shared_preload_libraries', 'dynamic_library_path', 'ignore_system_indexes')
        ) g""",
    "transition": f"""
        SELECT from_status || ' -> ' || to_status, jsonb_build_object('required_role', required_role),
            format('INSERT INTO {TRANSITIONS} (from_status, to_status, required_role)'
                ' VALUES (%%L, %%L, %%L);', from_status, to_status, required_role),
            format('DELETE FROM {TRANSITIONS} WHERE from_status = %%L AND to_status = %%L;',
                from_status, to_status)
        FROM ({{rows}}) t""",
    "payout_limit": f"""
        SELECT currency::text, jsonb_build_object('manager_limit', manager_limit::text),
            format('INSERT INTO {PAYOUT_LIMITS} (currency, manager_limit) VALUES (%%L, %%L);', currency, manager_limit),
            format('DELETE FROM {PAYOUT_LIMITS} WHERE currency = %%L;', currency)
        FROM ({{rows}}) t""",
}

#: What is read beside the objects, in the same form: the owner's name, and tables that may be ours under another name,
#: with their columns and types: those that are not ours by name, and all private ones.
_OWNER, _STRAY = "$owner", "stray"
_BESIDE: Mapping[str, str] = {
    _OWNER: "SELECT name, NULL::jsonb, NULL, NULL FROM owner",
    _STRAY: """
        SELECT format('%%I.%%I', n.nspname, c.relname),
            jsonb_agg(jsonb_build_array(quote_ident(a.attname), format_type(a.atttypid, a.atttypmod))), NULL, NULL
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relkind IN ('r', 'p') AND (c.oid NOT IN (SELECT oid FROM by_name) OR n.nspname = 'crm_private')
          AND a.attnum > 0 AND NOT a.attisdropped
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND c.relpersistence <> 't'
        GROUP BY n.nspname, c.relname""",
}


@dataclass(frozen=True)
class Manifest:
    """Facts by object (`"<kind> <name>"`), and SQL that creates or removes it, where the catalog can give it."""

    objects: Mapping[str, Mapping[str, Any]]
    definitions: Mapping[str, str] = field(default_factory=dict)
    #: Of the database that was read, not committed: SQL that removes an object, and the quoted name of `$owner`.
    removals: Mapping[str, str] = field(default_factory=dict)
    owner: str = "CURRENT_USER"
    #: Tables of which one may be ours, renamed, with their columns and types.
    strays: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)

    def sha256(self) -> str:
        """Hashes the facts alone: equal on every deployment that has what the migrations lead to."""
        return hashlib.sha256(json.dumps(self.objects, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the text of a committed manifest: sorted, one object per line, so that a diff reads well."""
        parts = []
        for title, entries in (("objects", self.objects), ("definitions", self.definitions)):
            lines = [
                f"    {json.dumps(key)}: {json.dumps(entries[key], sort_keys=True)}"
                for key in sorted(entries)
            ]
            parts.append(f"  {json.dumps(title)}: {{\n" + ",\n".join(lines) + "\n  }")
        return "{\n" + ",\n".join(parts) + "\n}\n"


def kind_of(key: str) -> str:
    """Returns the kind of an object of a manifest."""
    return key.split(" ", 1)[0]


def collect(
    connection: psycopg.Connection[Any],
    kinds: Collection[str] | None = None,
    *,
    by_login: bool = False,
    config: Settings | None = None,
) -> Manifest:
    """Reads the manifest of the connected database, or its objects of some kinds. Leaves no setting behind.

    Args:
        kinds: which kinds; all by default.
        by_login: whether `$owner` is the login of this connection, not the owner of crm_private.
        config: the settings that name the members of crm_app; the environment's by default.

    Raises:
        psycopg.Error: if a catalog cannot be read.
    """
    objects, definitions, removals = dict[str, Any](), dict[str, str](), dict[str, str]()
    owner, strays = "CURRENT_USER", dict[str, frozenset[tuple[str, str]]]()
    config = config or settings()
    parameters = {
        "app_members": list(config.crm_app_member_names),
        # a franchise's owner administers its own reader only
        "reader_admins": []
        if config.franchise_names
        else [login for login in (config.login("analytics"),) if login],
        "tables": list(CRM_TABLES),
        "types": list(CRM_TYPES),
        "rpcs": [*RPC_NAMES, *READ_NAMES],
        "by_login": by_login,
    }
    with plain_names(connection):
        sections = {kind: query for kind, query in _SECTIONS.items() if kinds is None or kind in kinds}
        for kind in ROWS_OF.keys() & sections.keys():
            if rows := _rows(connection, kind):
                sections[kind] = sections[kind].format(rows=rows)
            else:
                del sections[kind]
        # in one statement, which finds what is in the scope once
        parts = [
            f"SELECT '{kind}', s.* FROM ({query}\n) AS s (name, facts, definition, removal)"
            for kind, query in {**sections, **_BESIDE}.items()
        ]
        for kind, name, facts, definition, removal in connection.execute(
            _SCOPE + " UNION ALL ".join(parts), parameters
        ):
            key = f"{kind} {name}"
            if kind == _OWNER:
                owner = name
                continue
            if kind == _STRAY:
                strays[f"table {name}"] = frozenset(map(tuple, facts))
                continue
            objects[key] = facts
            if definition is not None:
                definitions[key] = definition
            if removal is not None:
                removals[key] = removal
    return Manifest(objects, definitions, removals, owner, strays)


def _rows(connection: psycopg.Connection[Any], kind: str) -> str | None:
    """Returns the query of a table's rows, also while a column has another name; None if columns or table are missing."""
    table, wanted = ROWS_OF[kind], _COLUMNS_OF[kind]
    columns = [
        name
        for (name,) in connection.execute(
            "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
            " AND NOT attisdropped ORDER BY attnum",
            [table],
        )
    ]
    others = iter([name for name in columns if name not in wanted])
    present = [name if name in columns else next(others, None) for name in wanted]
    if None in present:
        return None
    named = ", ".join(f"{now} AS {name}" for now, name in zip(present, wanted, strict=True))
    return f"SELECT {named.replace('%', '%%')} FROM ONLY {table}"


@contextmanager
def plain_names(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Empties the search_path inside, so that the catalog functions qualify every name that they print."""
    with connection.transaction():
        row = connection.execute("SELECT current_setting('search_path')").fetchone()
        assert row is not None
        connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
        yield
        connection.execute("SELECT set_config('search_path', %s, true)", row)
