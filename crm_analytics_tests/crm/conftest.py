"""Fixtures of the CRM tests: a migrated database per test, a client on it, and the people who act."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import CrmClient, CrmResult
from crm_analytics_tests.conftest import PATIENCE

Connection = psycopg.Connection[Any]


@pytest.fixture
def crm_url(new_database: Callable[..., str]) -> str:
    """Returns the URL of a fresh, migrated CRM database."""
    return new_database("crm")


@pytest.fixture
def crm(crm_url: str) -> Iterator[Connection]:
    """Opens an autocommit connection to a fresh, migrated CRM database, as its owner (a superuser)."""
    with psycopg.connect(crm_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def shared_crm_url(new_database: Callable[..., str]) -> str:
    """Returns the URL of one migrated database, for tests that leave nothing behind."""
    return new_database("crm")


@pytest.fixture
def crm_in_transaction(shared_crm_url: str) -> Iterator[Connection]:
    """Opens a connection in a transaction that is rolled back, for tests that need no second one."""
    with psycopg.connect(shared_crm_url, autocommit=True) as connection:
        connection.execute("BEGIN")
        yield connection
        connection.execute("ROLLBACK")


@pytest.fixture
def client(crm: Connection) -> CrmClient:
    """Returns the RPCs on the connection of `crm`."""
    return CrmClient(crm)


def add_user(connection: Connection, name: str, role: str = "manager", active: bool = True) -> UUID:
    """Creates a CRM user as the tables' owner, like the first admin."""
    row = connection.execute(
        "INSERT INTO public.users (name, email, role, active) VALUES (%s, %s, %s, %s) RETURNING id",
        [name, f"{name.lower()}@example.com", role, active],
    ).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def admin(crm: Connection) -> UUID:
    """Creates an active admin, Ada."""
    return add_user(crm, "Ada", "admin")


@pytest.fixture
def manager(crm: Connection) -> UUID:
    """Creates an active manager, Max."""
    return add_user(crm, "Max")


@pytest.fixture
def order(client: CrmClient, manager: UUID) -> CrmResult:
    """Creates an order of 1000 EUR for a customer who called."""
    return client.quick_order_safe(
        source="site",
        full_name="Olga Example",
        items=[{"model": "Gravel 54", "qty": 1}],
        total_amount=1000,
        currency="EUR",
        phone="+1 555 010 0100",
        user_id=manager,
    )


def wait_for_lock(watcher: Connection, session: Connection, call: Future[Any]) -> None:
    """Returns when a session waits for a lock, with a call that is not done."""
    deadline = time.monotonic() + PATIENCE
    while not value(
        watcher,
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s",
        session.info.backend_pid,
    ):
        assert time.monotonic() < deadline and not call.done()


def pay(
    client: CrmClient,
    order: CrmResult,
    actor: UUID | None,
    amount: Any,
    reference: str | None = None,
    **changed: Any,
) -> CrmResult:
    """Books a completed client payment by bank transfer in EUR; `changed` replaces arguments."""
    arguments: dict[str, Any] = {
        "order_id": order.id,
        "direction": "incoming",
        "role": "client_payment",
        "method": "bank_transfer",
        "amount": amount,
        "currency": "EUR",
        "external_reference": reference,
        "user_id": actor,
    }
    return client.record_generic_payment_safe(**{**arguments, **changed})


def rows(connection: Connection, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Returns the rows of a query."""
    return connection.execute(query.encode(), parameters).fetchall()


def value(connection: Connection, query: str, *parameters: Any) -> Any:
    """Returns the single value of a query."""
    return rows(connection, query, *parameters)[0][0]
