"""Where an audit row comes from: login, network address and application, and which logins are expected to write."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import Settings
from crm_analytics.crm import CrmClient
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import invariants
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.crm.conftest import Connection, add_user, rows, value

_NAME = "logins_are_expected"


@pytest.fixture
def crm_url(own_server: EmbeddedPostgres) -> str:
    """Returns the URL of a fresh, migrated CRM database; members of crm_app are drift to the other tests' databases."""
    migrate_crm(own_server.url("crm"))
    return own_server.url("crm")


@pytest.fixture
def login(crm: Connection, crm_url: str) -> Iterator[str]:
    """Creates a login of its own for this database, and returns its name."""
    name = f"app_{value(crm, 'SELECT oid FROM pg_database WHERE datname = current_database()')}"
    crm.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'")
    yield name
    crm.execute(f"DROP ROLE {name}")


def _a_lead(crm_url: str, login: str) -> None:
    url = make_conninfo(crm_url, user=login, password="test", application_name="the shop")
    with psycopg.connect(url, autocommit=True) as connection:
        CrmClient(connection).create_lead_safe(source="site", full_name="Olga", contact="@olga")


def _unexpected(crm: Connection, expected: str) -> tuple[str, ...]:
    return invariants.check(crm, frozenset({_NAME}), expected)[_NAME].examples


def test_an_audit_row_names_its_origin(crm: Connection, crm_url: str, login: str) -> None:
    """An audit row tells which login wrote it, from where, with which application and in which transaction."""
    crm.execute(f"GRANT crm_app TO {login}")
    _a_lead(crm_url, login)
    [(user, address, application, transaction)] = rows(
        crm,
        'SELECT DISTINCT "session_user", client_address::text, application_name, transaction_id::text::bigint'
        " FROM public.audit_log WHERE entity IN ('leads', 'customers', 'customer_contacts')",
    )
    assert (user, address, application) == (login, "127.0.0.1/32", "the shop")
    assert 0 < transaction < value(crm, "SELECT pg_current_xact_id()::text::bigint")


def test_members_of_crm_app_are_expected_however_indirect(crm: Connection, crm_url: str, login: str) -> None:
    """A login that got crm_app through another role is expected, as PostgREST's is; others are named with their rows."""
    crm.execute(f"CREATE ROLE {login}_group; GRANT crm_app TO {login}_group; GRANT {login}_group TO {login}")
    _a_lead(crm_url, login)
    assert _unexpected(crm, "") == ()
    crm.execute(f"DROP ROLE {login}_group")
    [example] = _unexpected(crm, "")
    assert example.startswith(f"{login}: 3 audit rows since")
    assert "create of leads, from 127.0.0.1/32 (the shop)" in example
    assert _unexpected(crm, f"another, {login}") == ()


def test_the_owner_is_expected_only_where_it_has_to_write(crm: Connection) -> None:
    """The owner adopts rows and writes users and customers; an RPC that it calls itself shows, superuser or not."""
    add_user(crm, "Max")
    crm.execute("INSERT INTO public.customers (full_name) VALUES ('By hand')")
    crm.execute("SELECT crm_private.seal_audit_safe()")
    assert _unexpected(crm, "") == ()
    CrmClient(crm).create_lead_safe(source="site", full_name="Olga", contact="@olga")
    owner = value(crm, "SELECT session_user::text")
    assert [example.split(":")[0] for example in _unexpected(crm, "")] == [owner]
    assert _unexpected(crm, owner) == ()


@pytest.mark.parametrize(("action", "entity"), [("erased", "payments"), ("adopted", "leads")])
def test_the_owner_cannot_hide_behind_an_action(crm: Connection, action: str, entity: str) -> None:
    """A row that the owner forges is not expected because it calls itself an erasure or an adopted one."""
    crm.execute("ALTER TABLE public.audit_log DISABLE TRIGGER guard_rows")
    crm.execute(
        "INSERT INTO public.audit_log (action, entity, entity_id, payload) VALUES (%s, %s, gen_random_uuid(), '{}')",
        [action, entity],
    )
    crm.execute("ALTER TABLE public.audit_log ENABLE ALWAYS TRIGGER guard_rows")
    [example] = _unexpected(crm, "")
    assert f"{action} of {entity}" in example


def test_only_the_embedded_login_is_expected_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CRM on a server of its own expects nobody but crm_app's members; the embedded server has one login only."""
    monkeypatch.delenv("CRM_EXPECTED_LOGINS")
    assert Settings(crm_database_url="postgresql://host/crm").crm_expected_logins == ""
    assert Settings(crm_database_url=None).crm_expected_logins == "postgres"


def test_every_trigger_but_one_is_always() -> None:
    """Only the trigger that a restore must skip is not ENABLE ALWAYS, and the manifest says why."""
    triggers = {k: f for k, f in manifest.expected().objects.items() if k.startswith("trigger ")}
    others = {key: facts for key, facts in triggers.items() if facts["enabled"] != "A"}
    assert set(others) == {"trigger public.audit_log.audit_origin"}
    assert "data-only restore" in others["trigger public.audit_log.audit_origin"]["why_not_always"]
