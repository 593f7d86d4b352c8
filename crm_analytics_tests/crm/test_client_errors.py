"""The client's exceptions: which ones an application meets, and which calls it may simply repeat."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import (
    Busy,
    CrmClient,
    CrmError,
    CrmResult,
    Forbidden,
    Invalid,
    Malformed,
    WrongIsolation,
)
from crm_analytics.crm.generate import REFERENCE_FILE
from crm_analytics_tests.crm.conftest import Connection, pay, value


@pytest.mark.parametrize(
    ("changed", "sqlstate"),
    [
        ({"order_id": "abc"}, "22P02"),
        ({"amount": "abc"}, "22P02"),
        ({"amount": "1e200000"}, "22003"),
        ({"external_reference": "a\x00b"}, None),
    ],
)
def test_values_of_another_type(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, changed: Any, sqlstate: str | None
) -> None:
    """A value that is none of its argument's type is Malformed, which is Invalid, and is not worth repeating."""
    arguments = {"amount": 1, **changed}
    if sqlstate is None:
        with pytest.raises(psycopg.DataError):  # the driver refuses it, before the database sees it
            pay(client, order, manager, **arguments)
        return
    with pytest.raises(Malformed) as refused:
        pay(client, order, manager, **arguments)
    assert isinstance(refused.value, Invalid)
    assert (refused.value.sqlstate, refused.value.retryable) == (sqlstate, False)
    assert value(crm, "SELECT count(*) FROM public.payments") == 0


@pytest.mark.parametrize(("due", "sqlstate"), [("tomorrow-ish", "22007"), ("2026-02-31", "22008")])
def test_times_that_are_none(client: CrmClient, manager: UUID, due: str, sqlstate: str) -> None:
    """A text that is no time, or no day of the calendar, is Malformed."""
    with pytest.raises(Malformed) as refused:
        client.create_task_safe(title="t", created_by=manager, due_at=due)  # type: ignore[arg-type]
    assert refused.value.sqlstate == sqlstate


@pytest.mark.parametrize(("setting", "sqlstate"), [("lock_timeout", "55P03"), ("statement_timeout", "57014")])
def test_a_call_that_waited_too_long_may_be_repeated(
    crm_url: str, crm: Connection, order: CrmResult, manager: UUID, setting: str, sqlstate: str
) -> None:
    """A call that waited longer than the session allows is Busy and retryable, and works once the other is done."""
    with psycopg.connect(crm_url) as other:
        other.execute("SELECT")  # the payment stays uncommitted
        pay(CrmClient(other), order, manager, 1)
        crm.execute(f"SET {setting} = '100ms'")
        with pytest.raises(Busy) as refused:
            pay(CrmClient(crm), order, manager, 2)
        assert (refused.value.sqlstate, refused.value.retryable) == (sqlstate, True)
        other.rollback()
        crm.execute(f"SET {setting} = 0")
    assert pay(CrmClient(crm), order, manager, 2).data["client_paid"] == Decimal(2)


def test_a_deadlock_may_be_repeated(crm_url: str, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """Of two transactions that wait for each other one gets Busy, and repeating all of it works."""
    other = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=9, currency="EUR", phone="555 0199", user_id=manager
    )
    barrier = threading.Barrier(2)

    def transaction(first: CrmResult, second: CrmResult) -> list[CrmError]:
        met: list[CrmError] = []
        for attempt in range(2):
            try:
                with psycopg.connect(crm_url) as connection:
                    connection.execute("SET deadlock_timeout = '10ms'")
                    pay(CrmClient(connection), first, manager, 1)
                    if attempt == 0:
                        barrier.wait(timeout=30)
                    pay(CrmClient(connection), second, manager, 1)
                return met
            except CrmError as error:
                met.append(error)
        return met

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(transaction, order, other), pool.submit(transaction, other, order)
        met = one.result() + two.result()
    assert [(error.sqlstate, error.retryable) for error in met] == [("40P01", True)]


def test_isolation_above_read_committed(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A transaction above READ COMMITTED gets WrongIsolation, which repeating does not help."""
    with pytest.raises(WrongIsolation) as refused, crm.transaction():
        crm.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pay(client, order, manager, 1)
    assert not refused.value.retryable
    assert "READ COMMITTED" in (refused.value.hint or "")


def test_a_refusal_by_the_rules_is_final(client: CrmClient, order: CrmResult) -> None:
    """Refusals by the rules are not retryable; a worker would repeat them for ever."""
    with pytest.raises(Forbidden) as refused:
        pay(client, order, None, 1)
    assert not refused.value.retryable


def test_the_reference_explains_every_code() -> None:
    """The reference page has every SQLSTATE that the client maps by a rule of its own, with the exception's name."""
    page = REFERENCE_FILE.read_text(encoding="utf-8")
    for error in (Busy, Malformed, WrongIsolation):
        for sqlstate in error.sqlstates:
            rows = [line for line in page.splitlines() if f"`{sqlstate}`" in line and error.__name__ in line]
            assert len(rows) == 1, sqlstate
