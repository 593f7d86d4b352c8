"""The manifest of the catalog: equal to the committed one on every server, and every difference comes with its repair."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics.crm.schema.catalog import CRM_TYPES
from crm_analytics_tests.crm.conftest import Connection, run_repairs


@pytest.fixture(scope="module")
def crm(new_database: Callable[..., str]) -> Iterator[Connection]:
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        yield connection


def test_the_committed_manifest_is_what_the_migrations_make(crm: Connection) -> None:
    """manifest.json is current; else a new migration would fail every check in production. `crm-analytics crm manifest` writes it."""
    found = manifest.collect(crm)
    comparison = manifest.diff(manifest.expected(), found)
    assert [difference.problem for difference in comparison.differences] == []
    assert comparison.allowed_extras == ()
    assert found.sha256() == manifest.expected().sha256()


def test_the_committed_baseline_is_what_the_first_migration_makes(crm: Connection) -> None:
    """baseline.json is current; else adoption would accept tables that the later migrations do not expect."""
    before = manifest.collect(crm)
    found = manifest.read_baseline(crm)
    assert found.objects == manifest.baseline().objects
    assert found.definitions == manifest.baseline().definitions
    assert manifest.collect(crm) == before, "the scratch database stays as it was"


def test_every_crm_table_and_rpc_is_in_the_manifest(crm: Connection) -> None:
    """Every table, type and RPC is in the manifest; a misspelled name in the scope would leave one unwatched."""
    objects = manifest.expected().objects
    for table in manifest.CRM_TABLES:
        assert f"table public.{table}" in objects
        assert objects[f"row_security public.{table}"]["enabled"] is True
    for name in CRM_TYPES:
        assert f"type public.{name}" in objects
    for rpc in manifest.RPC_NAMES:
        assert len([key for key in objects if key.startswith(f"function public.{rpc}(")]) == 1
    assert {manifest.guard_of(key) for key in objects} <= set(manifest.GUARDS)


def test_collecting_leaves_no_setting_behind(crm: Connection) -> None:
    """Reading the catalog restores the search_path; else a check would change what later statements mean."""
    with crm.transaction():
        crm.execute("SET LOCAL search_path = public, pg_temp")
        manifest.collect(crm)
        row = crm.execute("SHOW search_path").fetchone()
    assert row == ("public, pg_temp",)


def test_a_database_that_is_not_migrated_differs(new_database: Callable[..., str]) -> None:
    """Everything is missing from an empty database, in words; else a wrong address would end in a traceback."""
    with psycopg.connect(new_database()) as connection:
        found = manifest.compare(connection)
    assert {"table public.orders is missing", "type public.currency_enum is missing"} <= {
        difference.problem for difference in found.differences
    }
    assert len(found.differences) > 600


def test_the_login_does_not_matter(own_server: EmbeddedPostgres) -> None:
    """An owner without superuser rights, with Supabase's roles and default grants, has the same manifest as a superuser."""
    with psycopg.connect(own_server.url("crm"), autocommit=True) as connection:
        connection.execute("CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS")
        connection.execute("CREATE ROLE platform LOGIN CREATEROLE PASSWORD 'x'")
        connection.execute("GRANT service_role TO platform WITH ADMIN OPTION")
        connection.execute("ALTER DATABASE crm OWNER TO platform")
        for what in ("TABLES", "FUNCTIONS", "SEQUENCES"):
            connection.execute(
                f"ALTER DEFAULT PRIVILEGES FOR ROLE platform GRANT ALL ON {what} TO anon, authenticated, service_role"
            )
    login = make_conninfo(own_server.url("crm"), user="platform", password="x")
    migrate_crm(login)
    with psycopg.connect(login, autocommit=True) as connection:
        found = manifest.compare(connection)
        assert [difference.problem for difference in found.differences] == []
        assert manifest.unexpected_writers(connection) == []
        assert {key.split(" ")[0] for key in found.allowed_extras} <= {"member"}


ALLOWED_EXTRAS = (
    ("ALTER TABLE public.orders ADD COLUMN legacy_note text", "column public.orders.legacy_note"),
    ("CREATE INDEX legacy_idx ON public.orders (created_at)", "index public.orders.legacy_idx"),
    ("GRANT SELECT ON public.orders TO pg_monitor", "grant table public.orders to pg_monitor: SELECT"),
    ("GRANT grafana_reader TO pg_monitor", None),
    (
        "ALTER TABLE public.orders ADD COLUMN source text NOT NULL DEFAULT 'it''s'",
        "column public.orders.source",
    ),
    (
        "ALTER TABLE public.orders ADD COLUMN at timestamptz DEFAULT now()",
        "column public.orders.at",
    ),
    (
        "ALTER TABLE public.orders ADD COLUMN tags varchar(9)[] DEFAULT '{}'",
        "column public.orders.tags",
    ),
)


@pytest.mark.parametrize(("statement", "key"), ALLOWED_EXTRAS)
def test_what_a_deployment_adds_is_reported_and_does_not_fail(
    crm: Connection, statement: str, key: str | None
) -> None:
    """Plain columns, plain indexes, readers and callers of a deployment are reported, and nothing fails."""
    with crm.transaction(force_rollback=True):
        crm.execute(statement)
        found = manifest.compare(crm)
    assert found.differences == ()
    assert len(found.allowed_extras) == 1
    assert key is None or found.allowed_extras == (key,)


#: What breaks a guard, the only check that must fail, and the object that it must name.
BROKEN = (
    ("ALTER TABLE public.orders DISABLE TRIGGER guard_rows", "triggers_orders", "trigger public.orders.guard_rows"),
    ("DROP TRIGGER guard_truncate ON public.payments", "triggers_payments", "trigger public.payments.guard_truncate"),
    (
        "CREATE TRIGGER planted BEFORE INSERT ON public.tasks FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "triggers_tasks",
        "trigger public.tasks.planted",
    ),
    ("CREATE RULE planted AS ON INSERT TO public.leads DO ALSO NOTHING", "triggers_leads", "rule public.leads.planted"),
    ("DROP POLICY crm_rpc_all ON public.orders", "row_security", "policy public.orders.crm_rpc_all"),
    ("CREATE POLICY planted ON public.users USING (true)", "row_security", "policy public.users.planted"),
    ("ALTER TABLE public.users DISABLE ROW LEVEL SECURITY", "row_security", "row_security public.users"),
    ("GRANT UPDATE ON public.orders TO crm_app", "table_grants", "grant table public.orders to crm_app: UPDATE"),
    ("REVOKE INSERT ON public.payments FROM crm_rpc", "table_grants", "grant table public.payments to crm_rpc: INSERT"),
    ("GRANT UPDATE (amount) ON public.payments TO crm_rpc", "table_grants", "grant column public.payments.amount to crm_rpc: UPDATE"),
    ("ALTER TABLE public.payments DROP CONSTRAINT payments_reference_key_key", "constraints", "constraint public.payments.payments_reference_key_key"),
    ("ALTER TABLE public.payments DROP CONSTRAINT chk_amount_positive", "constraints", "constraint public.payments.chk_amount_positive"),
    ("DROP INDEX public.users_email_folded_key", "unique_indexes", "index public.users.users_email_folded_key"),
    ("ALTER TABLE public.orders ALTER COLUMN status SET DEFAULT 'paid'", "columns", "column public.orders.status"),
    ("CREATE TABLE public.shadow () INHERITS (public.payments)", "columns", "inheritance public.shadow inherits public.payments"),
    ("ALTER TABLE public.orders ADD COLUMN planted integer DEFAULT length(pg_catalog.query_to_xml('SELECT 1', true, true, '')::text)", "columns", "column public.orders.planted"),
    ("ALTER TABLE public.orders ADD COLUMN planted text NOT NULL", "columns", "column public.orders.planted"),
    ("CREATE UNIQUE INDEX planted ON public.orders (bike_url)", "unique_indexes", "index public.orders.planted"),
    ("GRANT USAGE ON SEQUENCE public.audit_log_id_seq TO pg_monitor", "table_grants", "grant sequence public.audit_log_id_seq to pg_monitor: USAGE"),
    ("CREATE DOMAIN public.planted AS integer CHECK (VALUE > 0); ALTER TABLE public.orders ADD COLUMN planted public.planted", "columns", "column public.orders.planted"),
    ("CREATE FUNCTION public.planted(public.payment_role_enum) RETURNS json LANGUAGE sql AS 'SELECT NULL::json';"
     " CREATE CAST (public.payment_role_enum AS json) WITH FUNCTION public.planted", "functions", "cast public.payment_role_enum AS json"),
    ("CREATE ROLE anon; CREATE ROLE servers; GRANT crm_app TO servers; GRANT servers TO anon", "roles", None),
    ("ALTER ROLE crm_rpc LOGIN", "roles", "role crm_rpc"),
    ("GRANT crm_rpc TO pg_monitor", "roles", None),
    ("GRANT crm_app TO pg_monitor", "roles", None),
    ("GRANT crm_rpc TO pg_monitor WITH ADMIN TRUE, SET FALSE, INHERIT FALSE", "roles", None),
    ("GRANT crm_app TO pg_monitor WITH ADMIN TRUE, SET FALSE, INHERIT FALSE", "roles", None),
    ("GRANT grafana_reader TO pg_monitor WITH ADMIN TRUE, SET FALSE, INHERIT FALSE", "roles", None),
)  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "guard", "key"), BROKEN, ids=[statement[:60] for statement, _, _ in BROKEN]
)
def test_a_broken_guard_is_named_and_its_repair_repairs_it(
    crm: Connection, statement: str, guard: str, key: str | None
) -> None:
    """One check fails, names the object, and its SQL repairs it; else the reader would have to find out how."""
    with crm.transaction(force_rollback=True):
        crm.execute(statement)
        found = manifest.compare(crm).differences
        assert {difference.guard for difference in found} == {guard}
        if key is not None:
            assert [difference.object for difference in found] == [key]
        for difference in found:
            assert difference.object in difference.problem
        run_repairs(crm, found)


FUNCTION = "public.advance_order_status_safe(uuid, text, uuid, text, text, integer)"
BROKEN_FUNCTIONS = (
    f"ALTER FUNCTION {FUNCTION} RESET search_path",
    f"ALTER FUNCTION {FUNCTION} SECURITY INVOKER",
    f"ALTER FUNCTION {FUNCTION} OWNER TO CURRENT_USER",
    f"DROP FUNCTION {FUNCTION}",
    "CREATE OR REPLACE FUNCTION crm_private.guard_rows() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    f"GRANT EXECUTE ON FUNCTION {FUNCTION} TO PUBLIC",
    "DELETE FROM public.order_status_transitions WHERE from_status = 'created'",
    "UPDATE public.payout_limits SET manager_limit = 1e9",
)


@pytest.mark.parametrize("statement", BROKEN_FUNCTIONS)
def test_a_changed_function_or_row_is_repaired_by_what_the_check_shows(
    new_database: Callable[..., str], statement: str
) -> None:
    """A function that lost its SET clause, owner or body is found and repaired, and so are transitions and limits.

    These repairs commit, so each runs on a clone.
    """
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        if table := re.search(r"public\.(order_status_transitions|payout_limits)", statement):
            connection.execute(f"ALTER TABLE {table[0]} DISABLE TRIGGER USER".encode())
        connection.execute(statement)
        found = manifest.compare(connection).differences
        assert found
        run_repairs(connection, found)


def test_roles_that_can_write_are_found_however_they_got_it(crm: Connection) -> None:
    """Roles that can write by inheritance or through a column grant are found; grants alone do not show them."""
    with crm.transaction(force_rollback=True):
        crm.execute(
            "CREATE ROLE writers_parent; CREATE ROLE writers_child; GRANT writers_parent TO writers_child"
        )
        crm.execute("GRANT UPDATE (notes) ON public.leads TO writers_parent")
        found = manifest.unexpected_writers(crm)
    assert [(w["role_name"], w["table_name"], w["privileges"]) for w in found] == [
        ("writers_child", "public.leads", ["UPDATE"]),
        ("writers_parent", "public.leads", ["UPDATE"]),
    ]
    assert manifest.unexpected_writers(crm) == []


def test_a_member_of_pg_write_all_data_is_named_and_reaches_the_audit_sequence_only(crm: Connection) -> None:
    """A member of pg_write_all_data is named, and can change nothing but the audit log's sequence, as docs/crm.md says."""
    with crm.transaction(force_rollback=True):
        crm.execute("CREATE ROLE writes_all; GRANT pg_write_all_data TO writes_all")
        found = manifest.unexpected_writers(crm)
        assert {w["role_name"] for w in found} == {"writes_all"}
        assert {tuple(w["through"]) for w in found} == {("pg_write_all_data",)}
        crm.execute("SET LOCAL ROLE writes_all")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is refused"), crm.transaction():
            crm.execute("INSERT INTO public.audit_log DEFAULT VALUES")
        crm.execute("SELECT setval('public.audit_log_id_seq', 1000000)")


def test_both_server_versions_have_the_same_manifest() -> None:
    """PostgreSQL 16 has the same manifests as 18: the tests of the committed files run again on that version."""
    if os.environ.get("PG", "18") != "18":
        pytest.skip("this is the other version's run")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("CRM_ANALYTICS", "PYTEST_", "EMBEDDED"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", __file__, "-k", "test_the_committed"],
        env={**environment, "PG": "16"}, cwd=PROJECT_DIR, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
