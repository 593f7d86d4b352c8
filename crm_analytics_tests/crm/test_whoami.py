"""whoami: who acts, and where they may move an order, exactly as advance_order_status_safe decides when it is called."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, NotFound
from crm_analytics_tests.crm.conftest import Connection, add_user, pay
from crm_analytics_tests.crm.test_rpc_orders import ORDER_STATUSES, SYSTEM, bring_to

CENT = Decimal("0.01")


pytestmark = pytest.mark.rolled_back


def ask(crm: Connection, **arguments: Any) -> dict[str, Any]:
    """Asks as the application, in a read-only transaction, as on a replica."""
    with crm.transaction(force_rollback=True):
        crm.execute("SET LOCAL ROLE crm_app; SET LOCAL transaction_read_only = on")
        return CrmClient(crm).whoami(**arguments)


def past_the_guard(crm: Connection, table: str, statement: str, *parameters: Any) -> None:
    """Runs a statement without the guard of a table, which makes what adopted orders may be like."""
    crm.execute(f"ALTER TABLE public.{table} DISABLE TRIGGER guard_rows".encode())
    crm.execute(statement.encode(), parameters)
    crm.execute(f"ALTER TABLE public.{table} ENABLE ALWAYS TRIGGER guard_rows".encode())


def _refunded(amount: Any) -> Callable[..., None]:
    def play(crm: Connection, client: CrmClient, order: CrmResult, admin: UUID) -> None:
        pay(client, order, admin, 1000)
        pay(client, order, admin, amount, direction="outgoing", role="refund")

    return play


def _reversed(crm: Connection, client: CrmClient, order: CrmResult, admin: UUID) -> None:
    payment = pay(client, order, admin, 1000)
    client.reverse_payment_safe(payment_id=payment.id, reason="x", user_id=admin)


def _paid(amount: Any, **changed: Any) -> Callable[..., None]:
    def play(crm: Connection, client: CrmClient, order: CrmResult, admin: UUID) -> None:
        pay(client, order, admin, amount, **changed)

    return play


def _in_dollars(crm: Connection, client: CrmClient, order: CrmResult, admin: UUID) -> None:
    past_the_guard(
        crm,
        "payments",
        "INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, created_by)"
        " VALUES (%s, 'incoming', 'client_payment', 'cash', 5, 'USD', 'completed', %s)",
        order.id,
        admin,
    )


def _without_total(crm: Connection, client: CrmClient, order: CrmResult, admin: UUID) -> None:
    pay(client, order, admin, 1000)
    past_the_guard(crm, "orders", "UPDATE public.orders SET total_amount = NULL WHERE id = %s", order.id)


#: What an order of 1000 EUR may hold.
MONEY: dict[str, Callable[..., None]] = {
    "nothing": lambda *_: None,
    "a planned payment": _paid(1000, status="planned"),
    "all but a cent": _paid(1000 - CENT),
    "the total": _paid(1000),
    "more than the total": _paid(1500),
    "the total less a refunded cent": _refunded(CENT),
    "nothing after a refund": _refunded(1000),
    "nothing after a reversal": _reversed,
    "money in another currency": _in_dollars,
    "money, but no total": _without_total,
}


@pytest.mark.parametrize("money", MONEY)
def test_whoami_tells_what_a_call_would_do(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID, money: str
) -> None:
    """In every status, for every role and money, each transition is told if and only if the call makes it, reason included."""

    def made(actor: UUID, status: str, reason: str | None) -> bool:
        try:
            with crm.transaction(force_rollback=True):
                crm.execute("SET LOCAL ROLE crm_app")
                client.advance_order_status_safe(
                    order_id=order.id, new_status=status, user_id=actor, reason=reason
                )
        except (Conflict, Forbidden):
            return False
        return True

    MONEY[money](crm, client, order, admin)
    for old in ORDER_STATUSES:
        past_the_guard(crm, "orders", "UPDATE public.orders SET status = %s WHERE id = %s", old, order.id)
        told: dict[UUID, dict[str, Any]] = {}
        for actor in (manager, admin):
            answer = ask(crm, user_id=actor, order_id=order.id)
            assert answer["order_status"] == old
            told[actor] = {move["to_status"]: move for move in answer["transitions"]}
            for new in ORDER_STATUSES:
                assert made(actor, new, "a reason") == (new in told[actor]), (old, new)
                assert made(actor, new, None) == (
                    new in told[actor] and not told[actor][new]["reason_required"]
                ), (old, new)
        assert {s for s, move in told[admin].items() if move["required_role"] == "manager"} == set(
            told[manager]
        )


@pytest.mark.parametrize(
    ("status", "refund", "for_managers", "for_admins"),
    [
        ("created", None, {"awaiting_payment": False, "cancelled": False}, {}),
        ("awaiting_payment", None, {"cancelled": False}, {}),
        ("paid", None, {"in_delivery": False}, {"cancelled": False}),
        ("paid", CENT, {}, {"in_delivery": True, "cancelled": False}),
        ("in_delivery", None, {"delivered": False}, {"cancelled": False}),
        ("delivered", None, {}, {"closed": False}),
        ("closed", None, {}, {}),
        ("cancelled", None, {}, {}),
    ],
)
def test_transitions_by_hand(
    crm: Connection,
    client: CrmClient,
    order: CrmResult,
    manager: UUID,
    admin: UUID,
    status: str,
    refund: Decimal | None,
    for_managers: dict[str, bool],
    for_admins: dict[str, bool],
) -> None:
    """The transitions of an order on its usual way, with the role that each needs and whether it needs a reason."""
    bring_to(client, order, status, admin)
    if refund is not None:
        pay(client, order, admin, refund, direction="outgoing", role="refund")

    def told(actor: UUID) -> dict[tuple[str, str], bool]:
        transitions = ask(crm, user_id=actor, order_id=order.id)["transitions"]
        return {(move["to_status"], move["required_role"]): move["reason_required"] for move in transitions}

    managers = {(new, "manager"): reason for new, reason in for_managers.items()}
    assert told(manager) == managers
    assert told(admin) == managers | {(new, "admin"): reason for new, reason in for_admins.items()}


def test_the_actor_is_told(crm: Connection, admin: UUID) -> None:
    """Without an order, whoami tells the actor alone: id, name, role, and that they are active."""
    assert ask(crm, user_id=admin) == {
        "id": str(admin), "name": "Ada", "role": "admin", "active": True, "order_id": None, "order_status": None,
        "transitions": None,
    }  # fmt: skip


def test_refusals(crm: Connection, order: CrmResult, manager: UUID) -> None:
    """A missing, unknown or inactive actor is 42501, as for every call, whatever the order; then an unknown order is PT404."""
    gone = add_user(crm, "Gone", active=False)
    for actor in (None, uuid4(), gone, SYSTEM):
        for order_id in (None, order.id, uuid4()):
            with pytest.raises(Forbidden) as forbidden:
                ask(crm, user_id=actor, order_id=order_id)
            detail = forbidden.value.detail
            assert (detail["rule"], detail["found"]) == ("actor", actor and str(actor))
    missing = uuid4()
    with pytest.raises(NotFound) as not_found:
        ask(crm, user_id=manager, order_id=missing)
    assert (not_found.value.detail["field"], not_found.value.detail["found"]) == ("p_order_id", str(missing))
