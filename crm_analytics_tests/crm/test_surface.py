"""The drift check covers the whole database: what touches the CRM's objects or runs as their owner, wherever it is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.conftest import PATIENCE, PG_VERSION
from crm_analytics_tests.crm.conftest import Connection, run_repairs, value


@pytest.fixture(scope="module")
def crm(new_database: Callable[..., str]) -> Iterator[Connection]:
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        yield connection


@dataclass(frozen=True)
class Planted:
    """Something that a person or a platform added: the objects that the check must name, and their guard."""

    sql: str
    guard: str
    objects: tuple[str, ...]
    since: int = 16


DEFINER = "LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.orders'"
PLANTED = {
    "a function of the owner in another schema": Planted(
        f"CREATE SCHEMA other; CREATE FUNCTION other.peek() RETURNS bigint {DEFINER}",
        "functions", ("function other.peek()", "grant function other.peek() to $owner: EXECUTE",
                      "grant function other.peek() to PUBLIC: EXECUTE"),
    ),
    "a function of a role that may call the RPCs": Planted(
        f"CREATE ROLE server; GRANT crm_app TO server; CREATE FUNCTION public.peek() RETURNS bigint {DEFINER};"
        " ALTER FUNCTION public.peek() OWNER TO server",
        "functions", ("function public.peek()",),
    ),
    "a view": Planted("CREATE VIEW public.all_orders AS SELECT * FROM public.orders", "views", ("view public.all_orders",)),
    "a view of a view": Planted(
        "CREATE SCHEMA other; CREATE VIEW other.a AS SELECT * FROM public.orders; CREATE VIEW other.b AS SELECT * FROM other.a",
        "views", ("view other.a", "view other.b"),
    ),
    "a materialized view": Planted(
        "CREATE MATERIALIZED VIEW public.copy AS SELECT * FROM public.customers", "views", ("view public.copy",)
    ),
    "a changed reporting view": Planted(
        "CREATE OR REPLACE VIEW reporting.money_by_month AS SELECT NULL::date AS month, NULL::text AS currency,"
        " 0::numeric AS money_in, 0::numeric AS money_out, 0::bigint AS payments",
        "views", ("view reporting.money_by_month",),
    ),
    "a reporting view with another column": Planted(
        "DROP VIEW reporting.leads_by_month; CREATE VIEW reporting.leads_by_month AS SELECT 1 AS x",
        "views", ("view reporting.leads_by_month",),
    ),
    "a lost reporting view": Planted("DROP VIEW reporting.leads_by_month", "views", ("view reporting.leads_by_month",)),
    "a reporting view that everybody reads": Planted(
        "GRANT SELECT ON reporting.money_by_month TO PUBLIC", "table_grants",
        ("grant view reporting.money_by_month to PUBLIC: SELECT",),
    ),
    "an event trigger": Planted(
        "CREATE FUNCTION public.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        " CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION public.watch()",
        "surface", ("event_trigger watch",),
    ),
    "a login trigger": Planted(
        "CREATE FUNCTION public.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        " CREATE EVENT TRIGGER watch ON login EXECUTE FUNCTION public.watch()",
        "surface", ("event_trigger watch",), since=17,
    ),
    "a publication of a table": Planted(
        "CREATE PUBLICATION leak FOR TABLE public.payments", "surface", ("publication leak of public.payments",)
    ),
    "a publication of a schema": Planted(
        "CREATE PUBLICATION leak FOR TABLES IN SCHEMA crm_private", "surface",
        ("publication leak of crm_private.migration_files",),
    ),
    "a publication of everything": Planted(
        "CREATE PUBLICATION leak FOR ALL TABLES", "surface", ("publication leak of public.users",)
    ),
    "a subscription": Planted(
        # without a publisher, so as it leaves the catalog when it has asked one for its tables
        "CREATE SUBSCRIPTION feed CONNECTION 'dbname=none' PUBLICATION theirs WITH (connect = false);"
        " INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate) SELECT oid, t::regclass, 'r' FROM pg_subscription,"
        " unnest(ARRAY['public.payments', 'public.tasks']) t WHERE subname = 'feed'",
        "surface", ("subscription feed into public.payments", "subscription feed into public.tasks"),
    ),
    "MAINTAIN": Planted(
        "GRANT MAINTAIN ON public.orders TO pg_monitor", "table_grants", ("maintain table public.orders to pg_monitor",), since=17
    ),
    "pg_maintain": Planted(
        "CREATE ROLE keeper; GRANT pg_maintain TO keeper", "table_grants", ("maintain pg_maintain to keeper",), since=17
    ),
    "a column's collation": Planted(
        "ALTER TABLE public.orders ALTER COLUMN bike_url TYPE text COLLATE \"C\"", "columns", ("column public.orders.bike_url",)
    ),
    "a key without a valid index": Planted(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.orders_order_code_key'::regclass",
        "constraints", ("constraint public.orders.orders_order_code_key",),
    ),
    "a key whose index is not unique": Planted(
        "UPDATE pg_index SET indisunique = false WHERE indexrelid = 'public.payments_reference_key_key'::regclass",
        "constraints", ("constraint public.payments.payments_reference_key_key",),
    ),
    "an open table": Planted(
        "CREATE ROLE anon; CREATE TABLE public.notes (note text); GRANT SELECT ON public.notes TO anon",
        "surface", ("exposed public.notes",),
    ),
    "an open table in another schema of the web": Planted(
        "CREATE ROLE authenticator; ALTER ROLE authenticator SET pgrst.db_schemas = 'public, api'; CREATE SCHEMA api;"
        " CREATE TABLE api.notes (note text); GRANT SELECT ON api.notes TO PUBLIC",
        "surface", ("exposed api.notes",),
    ),
    "an open legacy table": Planted(
        "CREATE TABLE public.audit_log_legacy (note text); GRANT ALL ON public.audit_log_legacy TO PUBLIC",
        "surface", ("exposed public.audit_log_legacy",),
    ),
    "a foreign key to our rows": Planted(
        "CREATE TABLE public.notes (order_id uuid REFERENCES public.orders)", "surface",
        ("reference public.notes.notes_order_id_fkey",),
    ),
    "a rule that writes to our rows": Planted(
        "CREATE TABLE public.notes (note text);"
        " CREATE RULE sneak AS ON INSERT TO public.notes DO ALSO DELETE FROM public.orders",
        "triggers_elsewhere", ("rule public.notes.sneak",),
    ),
    "our trigger on another table": Planted(
        "CREATE TABLE public.notes (id uuid); CREATE TRIGGER forge AFTER INSERT ON public.notes FOR EACH ROW"
        " EXECUTE FUNCTION crm_private.audit_owner_write()",
        "triggers_elsewhere", ("trigger public.notes.forge",),
    ),
    "a setting that skips foreign keys": Planted(
        "CREATE ROLE sneak; GRANT SET ON PARAMETER session_replication_role TO sneak", "settings",
        ("parameter session_replication_role to sneak",),
    ),
    "an operator that looks like a built-in one": Planted(
        "CREATE SCHEMA s; CREATE FUNCTION s.never(public.order_status_enum, public.order_status_enum) RETURNS boolean"
        " LANGUAGE sql IMMUTABLE AS 'SELECT true'; CREATE OPERATOR s.<> (FUNCTION = s.never,"
        " LEFTARG = public.order_status_enum, RIGHTARG = public.order_status_enum);"
        " ALTER TABLE public.order_status_transitions DROP CONSTRAINT order_status_transitions_check,"
        " ADD CONSTRAINT order_status_transitions_check CHECK (from_status OPERATOR(s.<>) to_status AND to_status <> 'paid');"
        " SET LOCAL search_path = s, pg_catalog",
        "constraints", ("constraint public.order_status_transitions.order_status_transitions_check",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", [what for what, planted in PLANTED.items() if planted.since <= PG_VERSION])
def test_what_touches_the_crm_is_found_and_its_remedy_removes_it(crm: Connection, what: str) -> None:
    """Whatever reads, writes or runs beside the manifest is red, and the shown SQL takes it away in one round."""
    planted = PLANTED[what]
    with crm.transaction(force_rollback=True):
        crm.execute(planted.sql.encode())
        found = manifest.compare(crm).differences
        assert set(planted.objects) <= {d.object for d in found}
        assert planted.guard in {d.guard for d in found if d.object in planted.objects}
        crm.execute("SET LOCAL search_path = pg_catalog")
        run_repairs(crm, found)


HARMLESS = (
    "CREATE SCHEMA app; CREATE TABLE app.notes (note text); GRANT ALL ON app.notes TO PUBLIC",
    "CREATE ROLE anon; CREATE TABLE public.notes (note text); GRANT SELECT ON public.notes TO anon;"
    " ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY",
    "CREATE TABLE public.notes (note text); GRANT SELECT ON public.notes TO pg_monitor",
    "CREATE SCHEMA app; CREATE TABLE app.a (x int); CREATE VIEW app.v AS SELECT * FROM app.a",
    "CREATE ROLE other; CREATE FUNCTION public.theirs() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';"
    " ALTER FUNCTION public.theirs() OWNER TO other",
    "CREATE SCHEMA app; CREATE TABLE app.a (x int); CREATE PUBLICATION theirs FOR TABLE app.a",
)


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_does_not_touch_the_crm_is_nobodys_business(crm: Connection, statement: str) -> None:
    """Others' objects count only if they touch ours; a check that is red for every other table would be switched off."""
    with crm.transaction(force_rollback=True):
        crm.execute(statement.encode())
        found = manifest.compare(crm)
    assert (found.differences, found.allowed_extras) == ((), ())


WATCH = "\nBEGIN\n  NOTIFY pgrst, 'reload schema';\nEND "
#: What Supabase has beside an application's tables, in short: roles, schemas, a watching trigger of the platform,
#: functions of the login `postgres`, and a publication for changes that browsers listen to.
SUPABASE_LIKE = f"""
CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS; CREATE ROLE authenticator LOGIN NOINHERIT;
GRANT anon, authenticated, service_role TO authenticator;
CREATE ROLE supabase_admin SUPERUSER; CREATE ROLE supabase_auth_admin;
CREATE SCHEMA auth AUTHORIZATION supabase_auth_admin; CREATE SCHEMA extensions; CREATE SCHEMA pgbouncer;
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text); ALTER TABLE auth.users OWNER TO supabase_auth_admin;
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS 'SELECT NULL::uuid';
CREATE FUNCTION extensions.pgrst_ddl_watch() RETURNS event_trigger LANGUAGE plpgsql AS $${WATCH}$$;
ALTER FUNCTION extensions.pgrst_ddl_watch() OWNER TO supabase_admin;
CREATE EVENT TRIGGER pgrst_ddl_watch ON ddl_command_end EXECUTE FUNCTION extensions.pgrst_ddl_watch();
ALTER EVENT TRIGGER pgrst_ddl_watch OWNER TO supabase_admin;
CREATE FUNCTION pgbouncer.get_auth(p_usename text) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT 1::text';
ALTER FUNCTION pgbouncer.get_auth(text) OWNER TO platform;
CREATE PUBLICATION supabase_realtime;
ALTER DEFAULT PRIVILEGES FOR ROLE platform IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE platform IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE platform IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
"""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the committed allow-list by one for the stand-ins: hashes are of their sources."""
    entries = {
        "event_trigger pgrst_ddl_watch": [
            {"owner": "supabase_admin", "function_owner": "supabase_admin", "source": sha(WATCH)}
        ],
        "function pgbouncer.get_auth(p_usename text)": [{"owner": "$owner", "source": sha("SELECT 1::text")}],
    }
    monkeypatch.setattr(manifest, "allowed_objects", lambda: entries)


def test_a_platform_like_supabase_is_clean_by_its_allow_list(
    own_server: EmbeddedPostgres, allow: None
) -> None:
    """A platform's own objects pass by owner and source; the same names with another source or owner are red."""
    with psycopg.connect(own_server.url("crm"), autocommit=True) as boss:
        boss.execute(
            "CREATE ROLE platform LOGIN CREATEROLE PASSWORD 'x'; ALTER DATABASE crm OWNER TO platform"
        )
        boss.execute(SUPABASE_LIKE.encode())
        assert migrate_crm(make_conninfo(own_server.url("crm"), user="platform", password="x")).pending == ()
        found = manifest.compare(boss)
        assert found.differences == ()
        assert {
            "event_trigger pgrst_ddl_watch",
            "function pgbouncer.get_auth(p_usename text)",
        } <= set(found.allowed_extras)
        changes = {
            "CREATE OR REPLACE FUNCTION extensions.pgrst_ddl_watch() RETURNS event_trigger LANGUAGE plpgsql AS"
            " 'BEGIN DELETE FROM public.orders; END'": {"event_trigger pgrst_ddl_watch"},
            "ALTER EVENT TRIGGER pgrst_ddl_watch OWNER TO postgres": {"event_trigger pgrst_ddl_watch"},
            "CREATE OR REPLACE FUNCTION pgbouncer.get_auth(p_usename text) RETURNS text LANGUAGE sql"
            " SECURITY DEFINER AS 'SELECT 2::text'": {"function pgbouncer.get_auth(p_usename text)"},
            "ALTER PUBLICATION supabase_realtime ADD TABLE public.orders": {
                "publication supabase_realtime of public.orders"
            },
        }
        for statement, objects in changes.items():
            with boss.transaction(force_rollback=True):
                boss.execute(statement.encode())
                assert {d.object for d in manifest.compare(boss).differences} == objects, statement


def test_a_subscription_is_seen_its_rows_are_refused_and_its_remedy_ends_it(
    own_server: EmbeddedPostgres,
) -> None:
    """Rows that another database sends pass neither the guards nor the check, although they come without any call."""
    with psycopg.connect(own_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE elsewhere")
    migrate_crm(own_server.url("crm"))
    with (
        psycopg.connect(own_server.url("elsewhere"), autocommit=True) as sender,
        psycopg.connect(own_server.url("crm"), autocommit=True) as connection,
    ):
        sender.execute(
            "CREATE TABLE public.tasks (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), title text)"
        )
        sender.execute("CREATE PUBLICATION theirs FOR TABLE public.tasks")
        sender.execute("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
        try:
            connection.execute(
                sql.SQL(
                    "CREATE SUBSCRIPTION feed CONNECTION {} PUBLICATION theirs WITH (create_slot = false, copy_data = false)"
                ).format(sql.Literal(own_server.url("elsewhere")))
            )
            sender.execute("INSERT INTO public.tasks (title) VALUES ('planted')")
            deadline = time.monotonic() + PATIENCE
            while not value(connection, "SELECT apply_error_count FROM pg_stat_subscription_stats"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert value(connection, "SELECT count(*) FROM public.tasks") == 0
            found = manifest.compare(connection).differences
            assert [(d.object, d.guard) for d in found] == [
                ("subscription feed into public.tasks", "surface")
            ]
            run_repairs(connection, found)
            assert value(connection, "SELECT count(*) FROM pg_subscription") == 0
        finally:
            for change in ("ALTER {} DISABLE", "ALTER {} SET (slot_name = NONE)", "DROP {}"):
                with suppress(psycopg.errors.UndefinedObject):
                    connection.execute(change.format("SUBSCRIPTION feed").encode())
            # its sender goes a moment later
            deadline = time.monotonic() + PATIENCE
            while value(sender, "SELECT active FROM pg_replication_slots WHERE slot_name = 'feed'"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            sender.execute("SELECT pg_drop_replication_slot('feed')")


def test_the_committed_allow_list_names_owner_and_source() -> None:
    """Every entry pins who owns the object and what it does, and says why it may stay; a name alone can be taken."""
    entries = manifest.allowed_objects()
    assert entries
    for key, alternatives in entries.items():
        for facts in alternatives:
            assert facts["owner"], key
            assert len(facts["source"]) == 64, key
            if key.startswith("event_trigger "):
                assert facts["function_owner"], key


def test_the_comparison_only_reads(crm: Connection) -> None:
    """The whole comparison changes nothing, so that it may run every five minutes in production."""
    with crm.transaction():
        crm.execute("SET TRANSACTION READ ONLY")
        assert manifest.compare(crm).differences == ()
