"""Repairs: break something, run the shown SQL once in the shown order, and the check passes.

These tests have a server of their own, because roles belong to the whole server. Each case runs twice: by a superuser
who is not the owner, in a transaction that is rolled back, and as it is shown by the tables' owner, a CREATEROLE login
without superuser rights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics.crm.schema.repairs import writer_repair
from crm_analytics_tests.crm.conftest import Connection, run_repairs

ROLES = (
    '"MyRole"',
    '"user"',
    '"App-Login"',
    '"a to b: SELECT"',
    "anon",
    "authenticated",
    "service_role",
    "mid",
)


@pytest.fixture(scope="module")
def hosted(module_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Returns a server with a migrated template `crm` that belongs to the login `platform`."""
    with psycopg.connect(module_server.url("crm"), autocommit=True) as connection:
        connection.execute("CREATE ROLE platform LOGIN CREATEROLE PASSWORD 'x'")
        connection.execute("ALTER DATABASE crm OWNER TO platform")
    login = make_conninfo(module_server.url("crm"), user="platform", password="x")
    with psycopg.connect(login, autocommit=True) as connection:
        for role in ROLES:
            connection.execute(f"CREATE ROLE {role}; GRANT {role} TO platform WITH INHERIT FALSE".encode())
    migrate_crm(login)
    return module_server


@pytest.fixture
def clone(hosted: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    """Returns the URL of one fresh clone of the template by login: `platform`, or the server's superuser."""
    name = f"repair_{next(_numbers)}"
    with psycopg.connect(hosted.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE crm OWNER platform".encode())
        yield (
            lambda login: (
                hosted.url(name)
                if login == "superuser"
                else make_conninfo(hosted.url(name), user="platform", password="x")
            )
        )
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


_numbers = itertools.count(1)

RPC = "public.advance_order_status_safe(uuid, text, uuid, text, text, integer)"
EVIL = "CREATE FUNCTION public.evil(x anyelement) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'; "
EVIL_CAST = (
    "CREATE FUNCTION public.evil_json(x public.{0}) RETURNS {1} LANGUAGE sql IMMUTABLE AS 'SELECT NULL::{1}';"
    " CREATE CAST (public.{0} AS {1}) WITH FUNCTION public.evil_json"
)
RENAMED = (
    "DROP FUNCTION public.set_user_active_safe; CREATE FUNCTION public.set_user_active_safe(p_other uuid, p_active"
    " boolean, p_user_id uuid) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'"
)
#: What the owner himself can break.
BY_THE_OWNER = (
    # privileges
    "GRANT SELECT ON public.orders TO crm_app WITH GRANT OPTION",
    "GRANT UPDATE ON public.orders TO anon WITH GRANT OPTION; SET ROLE anon; GRANT UPDATE ON public.orders TO authenticated",
    'GRANT UPDATE ON public.orders TO "MyRole"; GRANT DELETE ON public.tasks TO "user"; GRANT INSERT ON public.leads TO "App-Login"',
    'GRANT INSERT ON public.tasks TO "a to b: SELECT"',
    "GRANT UPDATE ON public.payments TO crm_rpc",
    "GRANT ALL ON SEQUENCE public.audit_log_id_seq TO mid",
    "REVOKE USAGE ON SCHEMA crm_private FROM crm_rpc; REVOKE ALL ON public.audit_log FROM crm_rpc, crm_app",
    "REVOKE USAGE ON SCHEMA public FROM crm_app",
    'REVOKE SELECT ON public.audit_log FROM crm_rpc; GRANT SELECT ("session_user") ON public.audit_log TO crm_app',
    # roles
    "ALTER ROLE crm_rpc LOGIN", "ALTER ROLE crm_app CREATEROLE NOINHERIT",
    "ALTER ROLE crm_rpc SET search_path = public",
    "ALTER ROLE crm_rpc IN DATABASE {database} SET search_path = public",
    'GRANT crm_rpc TO "MyRole"', "GRANT crm_rpc TO platform WITH INHERIT TRUE",
    "GRANT crm_rpc TO mid WITH ADMIN OPTION; SET ROLE mid; GRANT crm_rpc TO anon",
    "GRANT crm_app TO anon", "GRANT crm_app TO mid; GRANT mid TO authenticated",
    "GRANT crm_app TO mid; GRANT mid TO service_role; GRANT service_role TO anon",
    "GRANT crm_rpc TO platform WITH SET TRUE; GRANT CREATE ON SCHEMA public TO crm_rpc;"
    " ALTER TABLE public.payments OWNER TO crm_rpc",
    "GRANT crm_rpc TO platform WITH SET TRUE; GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;"
    " ALTER TABLE public.audit_log OWNER TO crm_rpc; ALTER SEQUENCE crm_private.order_code_seq OWNER TO crm_rpc;"
    " CREATE TABLE public.\"Theirs\" (); ALTER TABLE public.\"Theirs\" OWNER TO crm_rpc",
    # settings
    "ALTER DATABASE {database} SET standard_conforming_strings = off",
    # keys, indexes, columns, sequences
    "ALTER TABLE public.orders DROP CONSTRAINT orders_pkey CASCADE",
    "ALTER TABLE public.users DROP CONSTRAINT users_pkey CASCADE",
    "ALTER TABLE public.tasks ADD COLUMN planted integer GENERATED ALWAYS AS (length(title)) STORED",
    "ALTER TABLE public.tasks ADD COLUMN planted integer GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE public.tasks ADD COLUMN planted serial",
    "ALTER TABLE public.tasks ADD COLUMN planted text NOT NULL",
    'ALTER TABLE public.tasks ADD COLUMN "Evil.Col" uuid NOT NULL DEFAULT md5(random()::text)::uuid',
    EVIL + "CREATE DOMAIN public.dom AS integer CHECK (public.evil(VALUE)); ALTER TABLE public.tasks ADD COLUMN planted public.dom",
    EVIL + "CREATE DOMAIN public.dom AS integer DEFAULT 7; ALTER TABLE public.tasks ADD COLUMN planted public.dom NOT NULL",
    'CREATE UNIQUE INDEX "Evil.Idx" ON public.orders (bike_url)',
    "CREATE INDEX planted ON public.orders ((lower(bike_url)))",
    "ALTER TABLE public.orders DROP COLUMN total_amount CASCADE",
    "ALTER TABLE public.payments DROP COLUMN reference_key",
    "DROP VIEW IF EXISTS reporting.tasks_by_month; ALTER TABLE public.tasks ALTER COLUMN status DROP EXPRESSION",
    "DROP VIEW IF EXISTS reporting.tasks_by_month; ALTER TABLE public.tasks DROP COLUMN status;"
    " ALTER TABLE public.tasks ADD COLUMN status text GENERATED ALWAYS AS ('open') STORED",
    "ALTER TABLE public.audit_log ALTER COLUMN id DROP IDENTITY",
    "ALTER TABLE public.audit_log ALTER COLUMN id SET GENERATED BY DEFAULT",
    "DROP VIEW public.order_balance, public.customer_overview; DROP FUNCTION public.find_orders_by_code;"
    " ALTER TABLE public.orders ALTER COLUMN currency TYPE text USING currency::text",
    "DROP SEQUENCE crm_private.order_code_seq", "ALTER SEQUENCE crm_private.order_code_seq INCREMENT BY 5 CYCLE",
    "ALTER TABLE public.tasks ADD CONSTRAINT \"Evil.Check\" CHECK (title <> 'x')",
    # functions, triggers, rules, policies, casts
    EVIL_CAST.format("payment_role_enum", "json"), EVIL_CAST.format("orders", "jsonb"),
    RENAMED, "CREATE PROCEDURE crm_private.planted(INOUT x integer) LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION public.create_lead_safe() RETURNS void LANGUAGE sql AS 'SELECT'",
    "CREATE AGGREGATE crm_private.planted(integer) (SFUNC = int4pl, STYPE = integer)",
    "DROP FUNCTION crm_private.trimmed CASCADE", "DROP FUNCTION crm_private.phone_digits CASCADE",
    "DROP FUNCTION crm_private.guard_rows CASCADE", "DROP FUNCTION crm_private.client_money, crm_private.audit_chain_hash",
    f"DROP FUNCTION {RPC}",
    "DROP FUNCTION crm_private.broken_seals; CREATE FUNCTION crm_private.broken_seals() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    f"GRANT crm_rpc TO platform WITH SET TRUE; SET ROLE crm_rpc; GRANT EXECUTE ON FUNCTION {RPC} TO PUBLIC;"
    f" GRANT EXECUTE ON FUNCTION {RPC} TO anon WITH GRANT OPTION; SET ROLE anon; GRANT EXECUTE ON FUNCTION {RPC} TO mid;"
    " RESET ROLE; REVOKE crm_rpc FROM platform",
    f"GRANT crm_rpc TO platform WITH INHERIT TRUE, SET TRUE; ALTER FUNCTION {RPC} OWNER TO platform; REVOKE crm_rpc FROM platform",
    f"GRANT crm_rpc TO platform WITH INHERIT TRUE, SET TRUE; ALTER FUNCTION {RPC} SECURITY INVOKER; REVOKE crm_rpc FROM platform",
    "GRANT crm_rpc TO platform WITH SET TRUE; GRANT CREATE ON SCHEMA crm_private TO crm_rpc;"
    " ALTER FUNCTION crm_private.trimmed OWNER TO crm_rpc; REVOKE crm_rpc FROM platform; REVOKE CREATE ON SCHEMA crm_private FROM crm_rpc",
    'CREATE TRIGGER "Evil.Trig" BEFORE INSERT ON public.tasks FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
    'CREATE RULE "Evil.Rule" AS ON INSERT TO public.leads DO ALSO NOTHING',
    'CREATE POLICY "Evil.Policy" ON public.users TO "MyRole" USING (true)',
    "ALTER TABLE public.orders DISABLE TRIGGER USER", "ALTER TABLE public.users DISABLE ROW LEVEL SECURITY",
    # relations
    'CREATE TABLE crm_private."Planted" (id serial PRIMARY KEY, t text UNIQUE CHECK (t <> \'\')); '
    'GRANT ALL ON crm_private."Planted" TO anon; CREATE VIEW crm_private.planted_view AS SELECT * FROM crm_private."Planted"',
    "CREATE TABLE public.shadow () INHERITS (public.payments)",
    "ALTER TABLE public.order_status_transitions DISABLE TRIGGER USER;"
    " DELETE FROM public.order_status_transitions WHERE from_status = 'paid';"
    " INSERT INTO public.order_status_transitions VALUES ('created', 'closed', 'manager')",
)  # fmt: skip
#: Only a superuser can break these; the owner can repair them.
BY_A_SUPERUSER = ("ALTER TABLE public.orders DISABLE TRIGGER ALL",)


@pytest.mark.parametrize("statement", [*BY_THE_OWNER, *BY_A_SUPERUSER], ids=lambda text: text[:70])
def test_the_shown_sql_repairs_in_one_round(clone: Callable[[str], str], statement: str) -> None:
    """The shown SQL repairs at the first attempt; else following a failed check would take several rounds, or fail.

    The superuser runs it in a transaction that is rolled back, then the owner for good.
    """

    def damage(connection: Connection) -> None:
        if statement not in BY_A_SUPERUSER:
            connection.execute("SET SESSION AUTHORIZATION platform")
        connection.execute(statement.format(database=connection.info.dbname).encode())
        connection.execute("RESET SESSION AUTHORIZATION")

    try:
        with psycopg.connect(clone("superuser"), autocommit=True) as boss:
            with boss.transaction(force_rollback=True):
                damage(boss)
                _repair(boss)
            damage(boss)
        with psycopg.connect(clone("platform"), autocommit=True) as owner:
            _repair(owner)
    finally:
        _restore_roles(clone("superuser"))


def _repair(connection: Connection) -> None:
    """Does all that the checks show."""
    found = manifest.compare(connection).differences
    assert found
    run_repairs(connection, found)
    if writers := manifest.unexpected_writers(connection):
        for writer in writers:
            connection.execute(writer_repair(writer).encode())
        assert manifest.unexpected_writers(connection) == []
        assert manifest.compare(connection).differences == ()


def _restore_roles(url: str) -> None:
    """Restores the roles, which outlive the clone: a failed repair must not break the tests after it."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "ALTER ROLE crm_rpc NOLOGIN INHERIT NOCREATEROLE", "ALTER ROLE crm_app NOLOGIN INHERIT NOCREATEROLE",
            "ALTER ROLE crm_rpc RESET ALL",
            *(f"REVOKE crm_rpc FROM {role} GRANTED BY platform CASCADE" for role in ('"MyRole"', "mid", "anon", "platform")),
            *(f"REVOKE crm_app FROM {role} GRANTED BY platform CASCADE" for role in ("mid", "anon")),
            "REVOKE mid FROM authenticated GRANTED BY platform", "REVOKE mid FROM service_role GRANTED BY platform",
            "REVOKE service_role FROM anon GRANTED BY platform", "REVOKE pg_write_all_data FROM mid",
        ):  # fmt: skip
            connection.execute(statement.encode())


WRITERS = (
    "GRANT UPDATE (notes) ON public.leads TO mid; GRANT mid TO service_role",
    'GRANT INSERT ON public.orders TO PUBLIC; GRANT DELETE ON public.tasks TO "MyRole"',
    "GRANT pg_write_all_data TO mid; GRANT mid TO service_role",
)


@pytest.mark.parametrize("statement", WRITERS)
def test_the_shown_sql_takes_the_privilege_from_a_writer(clone: Callable[[str], str], statement: str) -> None:
    """The shown SQL stops a role that can write, whether it has the grant itself or through a membership."""
    try:
        with psycopg.connect(clone("superuser"), autocommit=True) as connection:
            connection.execute(statement.encode())
            connection.execute("REVOKE ALL ON public.documents FROM PUBLIC")
            writers = manifest.unexpected_writers(connection)
            assert writers
            for writer in writers:
                connection.execute(writer_repair(writer).encode())
            assert manifest.unexpected_writers(connection) == []
    finally:
        _restore_roles(clone("superuser"))


def test_a_restore_without_owners_and_privileges_is_repaired_in_one_round(
    hosted: EmbeddedPostgres, clone: Callable[[str], str]
) -> None:
    """One run of the shown SQL repairs a restore by `pg_dump -O -x`, which leaves hundreds of differences."""
    with psycopg.connect(clone("superuser"), autocommit=True) as connection:
        connection.execute("SET SESSION AUTHORIZATION platform")
        # such a restore gives everything to the login, and grants nothing to other roles
        connection.execute("GRANT crm_rpc TO platform WITH INHERIT TRUE, SET TRUE")
        connection.execute(
            """
            DO $$ DECLARE what record; BEGIN
              FOR what IN SELECT oid::regprocedure AS name FROM pg_proc WHERE proowner = 'crm_rpc'::regrole LOOP
                EXECUTE format('ALTER FUNCTION %s OWNER TO platform', what.name);
              END LOOP;
              FOR what IN SELECT oid::regprocedure AS name FROM pg_proc WHERE proowner = 'platform'::regrole LOOP
                EXECUTE format('REVOKE ALL ON FUNCTION %s FROM crm_app, crm_rpc', what.name);
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', what.name);
              END LOOP;
              FOR what IN SELECT oid::regclass AS name, relkind FROM pg_class
                          WHERE relowner = 'platform'::regrole AND relkind IN ('r', 'S') LOOP
                EXECUTE format('REVOKE ALL ON %s %s FROM crm_app, crm_rpc',
                               CASE what.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, what.name);
              END LOOP;
              REVOKE ALL ON SCHEMA public, crm_private FROM crm_app, crm_rpc;
            END $$
            """
        )
        connection.execute("REVOKE crm_rpc FROM platform")
    with psycopg.connect(clone("platform"), autocommit=True) as connection:
        found = manifest.compare(connection).differences
        assert len(found) > 200
        run_repairs(connection, found)
