"""Roles that another login made before the first migration: it administers them for good, so the migration refuses."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.migrations import DriftError, MigrationError, migration_files
from crm_analytics.core.settings import Settings
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.crm.conftest import Connection, rows, run_repairs, shown_statements, value

ROLES = ("crm_rpc", "crm_app", "grafana_reader")


@pytest.fixture
def squatted(own_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Returns a server with a login that may create roles, `squatter`, and another that owns the database `hosted`."""
    with psycopg.connect(own_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE squatter LOGIN CREATEROLE PASSWORD 'x'")
        connection.execute("CREATE ROLE platform LOGIN CREATEROLE PASSWORD 'x'")
        connection.execute("CREATE DATABASE hosted OWNER platform")
    return own_server


def as_login(server: EmbeddedPostgres, login: str, database: str = "crm") -> str:
    return make_conninfo(server.url(database), user=login, password="x")


def refused(url: str, config: Settings | None = None) -> str:
    """Migrates, asserts that nothing but the empty record was made, and returns the message."""
    with pytest.raises(MigrationError) as error:
        migrate_crm(url, config=config)
    with psycopg.connect(url, autocommit=True) as connection:
        assert value(connection, "SELECT to_regclass('public.orders')") is None
    return str(error.value)


def run_remedies(url: str, message: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in shown_statements(message):
            connection.execute(statement.encode())


def test_a_role_that_another_login_made_is_refused(squatted: EmbeddedPostgres) -> None:
    """Whoever made a role beforehand could become crm_rpc after the migration; the shown SQL takes the role away."""
    with psycopg.connect(as_login(squatted, "squatter", "postgres"), autocommit=True) as squatter:
        for role in ROLES:
            squatter.execute(f"CREATE ROLE {role} {'LOGIN' if role == 'grafana_reader' else ''}".encode())
    message = refused(squatted.url("crm"))
    for role in ROLES:
        assert f"squatter administers {role}" in message
    assert "one owner" in message
    run_remedies(squatted.url("crm"), message)
    assert migrate_crm(squatted.url("crm")).pending == ()
    with psycopg.connect(as_login(squatted, "squatter", "postgres"), autocommit=True) as squatter:
        for role in ROLES:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                squatter.execute(f"GRANT {role} TO squatter".encode())


def test_the_owner_may_administer_what_it_made(squatted: EmbeddedPostgres) -> None:
    """A migrating login without superuser rights administers the roles that it made, and no one else may."""
    url = as_login(squatted, "platform", "hosted")
    assert migrate_crm(url).pending == ()
    with psycopg.connect(squatted.url("hosted"), autocommit=True) as boss:
        for role in ROLES:
            boss.execute(f"GRANT {role} TO squatter WITH ADMIN TRUE, SET FALSE, INHERIT FALSE".encode())
        found = manifest.compare(boss).differences
        assert {d.object.split(" granted")[0] for d in found} == {f"member {r} <- squatter" for r in ROLES}
        assert {d.guard for d in found} == {"roles"}
        with pytest.raises(MigrationError, match="squatter administers crm_rpc"):
            migrate_crm(url)
        run_repairs(boss, found)
    assert migrate_crm(url).pending == ()


def test_a_second_owner_is_refused(squatted: EmbeddedPostgres) -> None:
    """All CRM databases of a server have one owner: another one could become crm_rpc in the first one's database."""
    migrate_crm(as_login(squatted, "platform", "hosted"))
    assert "platform administers crm_rpc" in refused(squatted.url("crm"))


def test_the_final_assertion_tests_admin_too(squatted: EmbeddedPostgres) -> None:
    """The migration's own assertion finds who administers a role, for those who run the printed SQL with psql."""
    with psycopg.connect(as_login(squatted, "squatter", "postgres"), autocommit=True) as squatter:
        squatter.execute("CREATE ROLE crm_rpc; CREATE ROLE crm_app; CREATE ROLE grafana_reader")
    with psycopg.connect(squatted.url("crm"), autocommit=True) as connection:
        with pytest.raises(psycopg.Error, match="squatter administers crm_rpc"):
            connection.execute("CREATE SCHEMA crm_private")
            for file in migration_files("crm"):
                connection.execute(f"BEGIN; {file.text()}; COMMIT".encode())
        connection.execute("ROLLBACK")


def test_only_named_roles_get_crm_app(squatted: EmbeddedPostgres) -> None:
    """service_role gets crm_app if CRM_APP_MEMBERS names it, and not otherwise: anybody may have made the role."""
    with psycopg.connect(squatted.url("crm"), autocommit=True) as connection:
        connection.execute('CREATE ROLE service_role; CREATE ROLE "Server One"')
        migrate_crm(squatted.url("crm"))
        assert members(connection) == []
        named = Settings(crm_app_members="service_role, Server One")
        migrate_crm(squatted.url("crm"), config=named)
        assert members(connection) == ['"Server One"', "service_role"]
        assert migrate_crm(squatted.url("crm"), config=named).pending == ()
        # a name that is taken off the list is refused until the role is taken back
        with pytest.raises(
            MigrationError, match=r'"Server One" is a member of crm_app: CRM_APP_MEMBERS does not'
        ) as left:
            migrate_crm(squatted.url("crm"), config=Settings(crm_app_members="service_role"))
        run_remedies(squatted.url("crm"), str(left.value))
        migrate_crm(squatted.url("crm"), config=Settings(crm_app_members="service_role"))
        assert members(connection) == ["service_role"]


def test_a_missing_member_is_named(squatted: EmbeddedPostgres) -> None:
    """A misspelled member is refused by name; else the application would find out that it may call nothing."""
    message = refused(squatted.url("crm"), Settings(crm_app_members="servce_role"))
    assert "CRM_APP_MEMBERS names servce_role, a role that does not exist" in message


def test_a_migration_ends_with_the_drift_check(squatted: EmbeddedPostgres) -> None:
    """A database that is not what the migrations lead to is an error, with the repair, although nothing was pending."""
    migrate_crm(squatted.url("crm"))
    with psycopg.connect(squatted.url("crm"), autocommit=True) as connection:
        connection.execute("ALTER TABLE public.orders DISABLE TRIGGER guard_rows")
        connection.execute("GRANT UPDATE ON public.tasks TO squatter")
    with pytest.raises(DriftError) as found:
        migrate_crm(squatted.url("crm"))
    for part in (
        "trigger public.orders.guard_rows: enabled is D, expected A",
        "squatter can UPDATE public.tasks",
    ):
        assert part in str(found.value)


def members(connection: Connection) -> list[str]:
    return [
        name
        for (name,) in rows(
            connection,
            "SELECT member::regrole::text FROM pg_auth_members WHERE roleid = 'crm_app'::regrole ORDER BY 1",
        )
    ]
