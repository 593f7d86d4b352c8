"""Fixtures of the CRM tests: a migrated database per test, a client on it, the people who act, and a second server."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.crm import CrmClient, CrmResult
from crm_analytics.crm.proof import attacks, invariants
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.conftest import PATIENCE, PG_VERSION

Connection = psycopg.Connection[Any]

#: The legal transitions of orders that people make, restated, with the least role that may.
BY_HAND = {
    ("created", "awaiting_payment"): "manager",
    ("created", "cancelled"): "manager",
    ("awaiting_payment", "cancelled"): "manager",
    ("paid", "in_delivery"): "manager",
    ("paid", "cancelled"): "admin",
    ("in_delivery", "delivered"): "manager",
    ("in_delivery", "cancelled"): "admin",
    ("delivered", "closed"): "admin",
}


@pytest.fixture
def crm_url(new_database: Callable[..., str]) -> str:
    """Returns the URL of a fresh, migrated CRM database."""
    return new_database("crm")


@pytest.fixture(scope="session")
def shared_crm_url(new_database: Callable[..., str]) -> str:
    """Returns the URL of one migrated database, for tests that leave nothing behind."""
    return new_database("crm")


@pytest.fixture
def crm(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Opens an autocommit connection to a fresh, migrated CRM database, as its owner (a superuser).

    A test marked `rolled_back` gets a transaction on a shared database instead, which is much faster, unless it opens
    a second connection (to `crm_url`).
    """
    marked = request.node.get_closest_marker("rolled_back") is not None
    rolled_back = marked and "crm_url" not in request.fixturenames
    url = request.getfixturevalue("shared_crm_url" if rolled_back else "crm_url")
    with psycopg.connect(url, autocommit=True) as connection:
        if rolled_back:
            connection.execute("BEGIN")
        yield connection
        if rolled_back:
            connection.execute("ROLLBACK")


@pytest.fixture(scope="module")
def lab(new_database: Callable[..., str]) -> Iterator[attacks.Lab]:
    """Opens a database with the sample of the attacks, for the tests of a module, which roll back what they do."""
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        yield attacks.prepare(connection)


@contextmanager
def new_server(version: int = PG_VERSION) -> Iterator[EmbeddedPostgres]:
    """Starts a server with the databases that a state folder has; it is gone afterwards."""
    options = {
        "fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_prepared_transactions": "5",
        "wal_level": "logical",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="crm_tests_") as folder:
        server = EmbeddedPostgres(Path(folder), version, options).start()
        try:
            yield server
        finally:
            server.stop()
            server.release()


@pytest.fixture(scope="session")
def second_server() -> Iterator[EmbeddedPostgres]:
    """Starts one more server for all tests about roles, which belong to a whole server; `own_server` lends it."""
    with new_server() as server:
        yield server


@contextmanager
def lent(server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Lends a server with an empty database `crm`, and takes the databases and roles away that are there afterwards."""
    try:
        yield server
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            for (name,) in rows(
                connection,
                "SELECT quote_ident(datname) FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'",
            ):
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            connection.execute("CREATE DATABASE crm")
            roles = [
                name
                for (name,) in rows(
                    connection, "SELECT quote_ident(rolname) FROM pg_roles WHERE oid >= 16384"
                )
            ]
            if roles:
                connection.execute(f"DROP OWNED BY {', '.join(roles)}".encode())
                connection.execute(f"DROP ROLE {', '.join(roles)}".encode())


@pytest.fixture
def own_server(second_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Lends the second server to one test: nobody else sees its roles."""
    with lent(second_server) as server:
        yield server


@pytest.fixture(scope="module")
def module_server(second_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Lends the second server to the tests of a module."""
    with lent(second_server) as server:
        yield server


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


def broken_invariants(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Returns examples for each invariant that does not hold; in a transaction, of what that one has written, too."""
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    found = (invariants.check if idle else invariants.evaluate)(connection)
    return {name: result.examples for name, result in found.items() if not result.holds}


def run_repairs(connection: Connection, found: Sequence[manifest.Difference]) -> None:
    """Runs the SQL that the drift check shows, and asserts that nothing is left to repair.

    In a transaction, which the test rolls back, the SQL runs without its own BEGIN and COMMIT.
    """
    in_transaction = connection.info.transaction_status != TransactionStatus.IDLE
    for difference in found:
        repair = difference.repair
        if in_transaction:
            repair = re.sub(r"^(BEGIN|COMMIT);$", "", repair, flags=re.M)
        try:
            connection.execute(repair.encode())
        except psycopg.Error as error:
            raise AssertionError(f"{difference.problem}\n{difference.repair}\n{error}") from error
    assert [f"{d.problem} {d.repair}" for d in manifest.compare(connection).differences] == []


def shown_statements(message: str) -> list[str]:
    """Returns the SQL that a refusal shows: its indented lines."""
    return [line.strip() for line in message.splitlines() if line.startswith("    ")]
