"""The rules of the payment RPCs, and the order in which they are checked."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmError, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics_tests.crm.conftest import Connection, add_user, pay, rows, value

pytestmark = pytest.mark.rolled_back

REFUND: dict[str, Any] = {"direction": "outgoing", "role": "refund"}
SUPPLIER: dict[str, Any] = {"direction": "outgoing", "role": "supplier_payment"}
TOO_LONG = "x" * 256


def status(crm: Connection, order: CrmResult) -> str:
    return value(crm, "SELECT status::text FROM public.orders WHERE id = %s", order.id)


def nothing_written(crm: Connection, before: int) -> bool:
    return value(crm, "SELECT max(id) FROM public.audit_log") == before


@pytest.mark.parametrize("who", ["nobody", "unknown", "inactive", "system"])
def test_actor_is_an_active_user(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, who: str
) -> None:
    """Payments are booked by active users only: not by no user, a former employee or the system user."""
    actor = {
        "nobody": None,
        "unknown": uuid4(),
        "inactive": add_user(crm, "Gone", active=False),
        "system": UUID("00000000-0000-0000-0000-000000000001"),
    }[who]
    with pytest.raises(Forbidden) as refused:
        pay(client, order, actor, 1)
    assert refused.value.detail["rule"] == "actor"
    assert rows(crm, "SELECT * FROM public.payments") == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"direction": "sideways"}, "p_direction"),
        ({"direction": "outgoing"}, "p_direction"),
        ({"role": "refund"}, "p_direction"),
        ({"role": "supplier_payment"}, "p_related_payment_id"),
        ({"role": "bonus"}, "p_role"),
        ({"method": None}, "p_method"),
        ({"currency": "GBP"}, "p_currency"),
        ({"status": "done"}, "p_status"),
        ({"order_id": None}, "p_order_id"),
        ({"amount": None}, "p_amount"),
        ({"amount": Decimal("1.005")}, "p_amount"),
        ({"method": "card"}, "p_external_reference"),
        ({"method": "online_cashbox", "external_reference": " \t\n"}, "p_external_reference"),
    ],
)
def test_input(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, changed: dict[str, Any], field: str
) -> None:
    """An impossible argument is refused with its name, what was found and what is accepted."""
    with pytest.raises(Invalid) as refused:
        pay(client, order, manager, 1, **changed) if "amount" not in changed else pay(
            client, order, manager, changed["amount"]
        )
    assert refused.value.detail["field"] == field
    assert set(refused.value.detail) == {"rule", "field", "found", "accepted"}
    assert rows(crm, "SELECT * FROM public.payments") == []


@pytest.mark.parametrize("direction", ["incoming", "outgoing"])
@pytest.mark.parametrize("role", ["shipping_payment", "commission"])
def test_shipping_and_commission_go_either_way(
    client: CrmClient, order: CrmResult, manager: UUID, direction: str, role: str
) -> None:
    """Shipping payments and commissions go either way, such as a fee from the client or a commission to a partner."""
    pay(client, order, manager, 100)
    booked = pay(client, order, manager, 5, direction=direction, role=role)
    assert booked.data["client_paid"] == 100


def test_order_of_checks(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """record_generic_payment_safe checks actor, input, existence, role, replay, state, in this order."""
    nobody = uuid4()
    missing: dict[str, Any] = {"order_id": uuid4()}
    with pytest.raises(Forbidden):  # actor before input
        pay(client, order, nobody, -1, **missing)
    with pytest.raises(Invalid):  # input before existence
        pay(client, order, manager, -1, **missing)
    with pytest.raises(NotFound):  # existence before role
        pay(client, order, manager, 1, **REFUND, **missing)
    with pytest.raises(NotFound) as lost:
        pay(client, order, manager, 1, related_payment_id=uuid4())
    assert lost.value.detail["field"] == "p_related_payment_id"
    pay(client, order, admin, 1000)
    pay(client, order, admin, 10, "back-1", **REFUND)
    client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=admin)
    with pytest.raises(Forbidden):  # role before state (too much) and before replay
        pay(client, order, manager, 5000, **REFUND)
    with pytest.raises(Forbidden):
        pay(client, order, manager, 10, "back-1", **REFUND)
    # Replay before state: the payment of a cancelled order comes back.
    assert pay(client, order, admin, 10, "back-1", **REFUND).duplicate


def test_part_payments_reach_the_total(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Part payments add up to the total, and an overpayment shows in the answer."""
    assert pay(client, order, manager, Decimal("0.01")).data["order_status"] == "awaiting_payment"
    assert pay(client, order, manager, Decimal("999.98")).data["order_status"] == "awaiting_payment"
    done = pay(client, order, manager, Decimal("50.01"))
    assert (done.data["order_status"], done.data["client_paid"], done.data["overpaid"]) == (
        "paid",
        Decimal("1050.00"),
        Decimal("50.00"),
    )
    assert rows(crm, "SELECT seq, new_status, reason FROM public.order_status_events ORDER BY seq") == [
        (1, "created", "created"),
        (2, "awaiting_payment", "payment"),
        (3, "paid", "payment"),
    ]


def test_refund_before_the_total_counts_against_it(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Refunded money does not count toward the total; an order could otherwise become paid without money."""
    pay(client, order, manager, 600)
    pay(client, order, admin, 200, **REFUND)
    assert pay(client, order, manager, 400).data["order_status"] == "awaiting_payment"
    assert pay(client, order, manager, 200).data["order_status"] == "paid"


@pytest.mark.parametrize("state", ["planned", "pending", "failed", "cancelled"])
def test_only_completed_money_counts(client: CrmClient, order: CrmResult, manager: UUID, state: str) -> None:
    """Only completed payments pay an order or open it for payouts."""
    assert pay(client, order, manager, 1000, status=state, method="card").data["order_status"] == "created"
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 1, **SUPPLIER)
    assert refused.value.detail["rule"] == "payout_after_payment"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"direction": "outgoing", "role": "commission"}, "direction"),
        ({"role": "commission"}, "role"),
        ({"method": "cash"}, "method"),
        ({"amount": Decimal("100.01")}, "amount"),
        ({"currency": "USD"}, "currency"),
    ],
)
def test_repeat_with_other_facts(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, changed: dict[str, Any], field: str
) -> None:
    """A repeated reference with another fact is a Conflict that names the field."""
    first = pay(client, order, manager, 100, "r-1")
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, **{"amount": 100, "reference": "r-1", **changed})
    assert (refused.value.detail["field"], refused.value.detail["id"]) == (field, str(first.id))
    assert nothing_written(crm, before)


def test_repeat_on_another_order_and_with_another_relation(
    client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A reference of one order is refused on another order, and with another related payment."""
    other = client.quick_order_safe(
        source="s",
        full_name="n",
        items=[],
        total_amount=100,
        currency="EUR",
        phone="5550101",
        user_id=manager,
    )
    first = pay(client, order, manager, 100, "r-1")
    with pytest.raises(Conflict) as refused:
        pay(client, other, manager, 100, "r-1")
    assert refused.value.detail["field"] == "order_id"
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 100, "r-1", related_payment_id=first.id)
    assert refused.value.detail["field"] == "related_payment_id"


def test_repeat_by_another_user_and_with_another_status(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A repeat by another user returns the first payment, and one that confirms it completes it."""
    stored = pay(client, order, manager, 1000, "r-1", status="pending")
    assert pay(client, order, admin, 1000, "r-1", status="pending").duplicate
    completed = pay(client, order, admin, 1000, " r-1")
    assert (completed.id, completed.duplicate, completed.data["order_status"]) == (stored.id, False, "paid")
    for state in (None, "pending"):
        again = pay(client, order, manager, 1000, "r-1", status=state)
        assert (again.id, again.duplicate, again.data["payment_status"]) == (stored.id, True, "completed")
    assert rows(crm, "SELECT created_by, status::text FROM public.payments") == [(manager, "completed")]
    assert rows(
        crm, "SELECT actor_id, action FROM public.audit_log WHERE entity = 'payments' ORDER BY id"
    ) == [(manager, "create"), (admin, "status_change")]


def test_completing_by_reference_obeys_the_rules_of_completing(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """An open payment completed by its reference meets the rules for completing it, not those of a mere repeat."""
    pay(client, order, manager, 100)
    refund = pay(client, order, admin, 100, "back-1", **REFUND, status="pending")
    with pytest.raises(Forbidden):
        pay(client, order, manager, 100, "back-1", **REFUND)
    payout = pay(client, order, manager, 50, "out-1", **SUPPLIER, status="planned")
    assert pay(client, order, admin, 100, "back-1", **REFUND).id == refund.id
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 50, "out-1", **SUPPLIER)
    assert refused.value.detail["rule"] == "payout_after_payment"
    assert pay(client, order, manager, 50, "out-1", **SUPPLIER, status="planned").id == payout.id


def test_payments_without_reference_are_all_booked(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Payments without a reference are all booked, even if they are equal: two cash payments are two payments."""
    for reference in (None, "", "  "):
        pay(client, order, manager, 100, reference, method="cash")
    assert rows(crm, "SELECT DISTINCT count(*), external_reference FROM public.payments GROUP BY 2") == [
        (3, None)
    ]


def test_refunds_stay_within_what_was_paid(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Completed, pending and planned refunds together stay within what the client paid."""
    with pytest.raises(Conflict):
        pay(client, order, admin, 1, **REFUND)
    pay(client, order, manager, 100)
    pay(client, order, admin, 40, **REFUND, status="planned")
    pending = pay(client, order, admin, 30, **REFUND, status="pending")
    pay(client, order, admin, 20, **REFUND)
    with pytest.raises(Conflict) as refused:
        pay(client, order, admin, Decimal("10.01"), **REFUND)
    assert refused.value.detail["accepted"] == 10
    pay(client, order, admin, 10, **REFUND)
    # Completing a reserved refund needs no new room; a failed one returns its room.
    client.update_payment_status_safe(payment_id=pending.id, new_status="failed", user_id=admin)
    assert pay(client, order, admin, 30, **REFUND).data["client_paid"] == 40


def test_payout_ends_with_the_client_money(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """No supplier is paid after all money went back to the client."""
    pay(client, order, manager, 100)
    pay(client, order, admin, 1, **SUPPLIER, currency="USD", reason="paid in dollars")
    pay(client, order, admin, 100, **REFUND)
    for role in ("supplier_payment", "shipping_payment", "commission"):
        with pytest.raises(Conflict):
            pay(client, order, manager, 1, direction="outgoing", role=role)


@pytest.mark.parametrize("end", ["cancelled", "closed"])
def test_after_the_end(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID, end: str
) -> None:
    """After the end late money is booked without reopening the order, admins may refund, and all else is refused."""
    pay(client, order, manager, 1000)
    planned = pay(client, order, manager, 7, **SUPPLIER, status="planned")
    for step in ("in_delivery", "delivered", "closed") if end == "closed" else ("cancelled",):
        client.advance_order_status_safe(order_id=order.id, new_status=step, user_id=admin)
    assert pay(client, order, manager, 5).data["order_status"] == end
    assert pay(client, order, admin, 5, **REFUND).data["order_status"] == end
    for changed in (
        SUPPLIER,
        {"role": "shipping_payment"},
        {"role": "commission", "direction": "outgoing"},
    ):
        with pytest.raises(Conflict) as refused:
            pay(client, order, manager, 1, **changed)
        assert refused.value.detail["rule"] == "order_over"
    with pytest.raises(Conflict):
        client.update_payment_status_safe(payment_id=planned.id, new_status="completed", user_id=manager)
    client.update_payment_status_safe(payment_id=planned.id, new_status="cancelled", user_id=manager)
    assert status(crm, order) == end


def test_currency_is_the_orders(client: CrmClient, order: CrmResult, manager: UUID, admin: UUID) -> None:
    """Client payments and refunds have the order's currency; 1000 roubles must not pay an order of 1000 euros."""
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 1000, currency="RUB")
    assert refused.value.detail == {
        "rule": "currency", "field": "currency", "found": "RUB", "accepted": "EUR", "id": str(order.id),
    }  # fmt: skip
    pay(client, order, manager, 10)
    with pytest.raises(Conflict):
        pay(client, order, admin, 1, **REFUND, currency="USD")


def test_related_payment_is_of_the_same_order(client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A related payment belongs to the same order."""
    other = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=9, currency="EUR", phone="5550101", user_id=manager
    )
    theirs = pay(client, other, manager, 9)
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 1, related_payment_id=theirs.id)
    assert refused.value.detail["rule"] == "related_payment"


ALLOWED = {("planned", s) for s in ("pending", "completed", "failed", "cancelled")} | {
    ("pending", s) for s in ("completed", "failed", "cancelled")
}
STATUSES = ("planned", "pending", "completed", "failed", "cancelled")


def test_payment_transitions(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A payment moves by its rules: failed and completed ones are final, and a repeat is no move."""
    for old in STATUSES:
        for new in STATUSES:
            payment = pay(client, order, manager, 1, status=old)
            try:
                moved = client.update_payment_status_safe(
                    payment_id=payment.id, new_status=new, user_id=manager
                )
                assert moved.duplicate == (old == new)
            except Conflict as refused:
                assert refused.detail["rule"] == "payment_transition"
                moved = None
            assert (moved is not None) == ((old, new) in ALLOWED or old == new), (old, new)
            found = value(crm, "SELECT status::text FROM public.payments WHERE id = %s", payment.id)
            assert found == (new if moved else old)


@pytest.mark.parametrize("state", STATUSES)
def test_a_status_delivered_twice(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, state: str
) -> None:
    """A status delivered twice changes nothing; a first reference is stored while the payment is open, never another."""

    def again(reference: str | None) -> CrmResult:
        return client.update_payment_status_safe(
            payment_id=payment.id, new_status=state, user_id=manager, external_reference=reference
        )

    payment = pay(client, order, manager, 1, status=state)
    before = value(crm, "SELECT max(id) FROM public.audit_log")
    assert (again(None).id, again(None).duplicate) == (payment.id, True)
    assert nothing_written(crm, before)
    if state in ("planned", "pending"):
        assert not again(" r-1").duplicate
        assert again("r-1").duplicate and again(None).duplicate
        assert value(crm, "SELECT payload -> 'changes' -> 'reference_key' ->> 'new' FROM public.audit_log ORDER BY id DESC LIMIT 1") == "r-1"  # fmt: skip
    with pytest.raises(Conflict) as refused:
        again("r-2")
    assert refused.value.detail["rule"] == "reference_fixed"


def test_completing_a_planned_payment_pays_the_order(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Completing a planned payment moves the order and keeps or takes its reference."""
    payment = pay(client, order, manager, 1000, status="planned", method="card")
    with pytest.raises(Invalid) as refused:
        client.update_payment_status_safe(payment_id=payment.id, new_status="completed", user_id=manager)
    assert refused.value.detail["field"] == "p_external_reference"
    done = client.update_payment_status_safe(
        payment_id=payment.id, new_status="completed", user_id=manager, external_reference=" r-1 "
    )
    assert (done.id, done.data["order_status"], done.duplicate) == (payment.id, "paid", False)
    assert rows(crm, "SELECT external_reference, reference_key, status::text FROM public.payments") == [
        ("r-1", "r-1", "completed")
    ]
    assert pay(client, order, manager, 1000, "r-1", method="card").duplicate


def test_a_reference_is_never_changed_or_taken(client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A payment's reference never changes, and no other payment can take it."""
    first = pay(client, order, manager, 1, "r-1")
    second = pay(client, order, manager, 1, "r-2", status="pending")
    third = pay(client, order, manager, 1, status="pending")
    for payment, reference, rule, holder in (
        (second, "r-3", "reference_fixed", second),
        (third, " r-1", "reference_taken", first),
    ):
        with pytest.raises(Conflict) as refused:
            client.update_payment_status_safe(
                payment_id=payment.id, new_status="completed", user_id=manager, external_reference=reference
            )
        assert (refused.value.detail["rule"], refused.value.detail["id"]) == (rule, str(holder.id))


def test_refund_and_payout_rules_hold_when_completed_later(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """The rules for refunds and payouts hold again when a planned payment is completed."""
    pay(client, order, manager, 100)
    payout = pay(client, order, manager, 50, **SUPPLIER, status="planned")
    refund = pay(client, order, admin, 100, **REFUND, status="pending")
    with pytest.raises(Forbidden):
        client.update_payment_status_safe(payment_id=refund.id, new_status="completed", user_id=manager)
    done = client.update_payment_status_safe(payment_id=refund.id, new_status="completed", user_id=admin)
    assert done.data["client_paid"] == 0
    with pytest.raises(Conflict) as refused:
        client.update_payment_status_safe(payment_id=payout.id, new_status="completed", user_id=manager)
    assert refused.value.detail["rule"] == "payout_after_payment"


def test_payout_is_not_even_announced_without_client_money(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A planned payout does not become pending once the client's money went back; pending means sent to the bank."""
    pay(client, order, manager, 100)
    payout = pay(client, order, manager, 50, **SUPPLIER, status="planned")
    pay(client, order, admin, 100, **REFUND)
    with pytest.raises(Conflict) as refused:
        client.update_payment_status_safe(payment_id=payout.id, new_status="pending", user_id=manager)
    assert refused.value.detail["rule"] == "payout_after_payment"


@pytest.mark.parametrize("over", ["failed", "cancelled"])
def test_remedy_for_the_reference_of_a_failed_payment(
    client: CrmClient, order: CrmResult, manager: UUID, over: str
) -> None:
    """The remedy for the reference of a failed payment is a new reference, because failed payments are final."""
    pay(client, order, manager, 100, "r-1", status=over)
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 100, "r-1")
    assert refused.value.detail["accepted"] == over
    assert refused.value.hint == "That payment is final. Use a new reference for a new attempt."


def test_unknown_payment(client: CrmClient, manager: UUID) -> None:
    """An unknown payment is NotFound."""
    with pytest.raises(NotFound):
        client.update_payment_status_safe(payment_id=uuid4(), new_status="completed", user_id=manager)


def test_refused_calls_change_nothing_inside_a_transaction(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A refused call leaves the caller's transaction usable and nothing of itself in it."""
    with crm.transaction():
        pay(client, order, manager, 10, "r-1")
        with pytest.raises(CrmError):
            pay(client, order, manager, 11, "r-1")
        pay(client, order, manager, 12, "r-2")
    assert rows(crm, "SELECT amount FROM public.payments ORDER BY amount") == [(10,), (12,)]


def test_money_is_never_a_float(client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """The client refuses floats; 0.1 + 0.2 must not be booked."""
    with pytest.raises(TypeError, match="pass a Decimal"):
        pay(client, order, manager, 0.3)


def test_reference_is_not_too_long(client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A reference that is too long is Invalid, not an error of the index."""
    longest = "я" * 255
    assert pay(client, order, manager, 1, longest).id == pay(client, order, manager, 1, f" {longest} ").id
    pending = pay(client, order, manager, 1, status="pending")
    for call in (
        lambda: pay(client, order, manager, 1, TOO_LONG),
        lambda: client.update_payment_status_safe(
            payment_id=pending.id, new_status="completed", user_id=manager, external_reference=TOO_LONG
        ),
        lambda: client.checkout_order_safe(
            customer_id=UUID(order.data["customer_id"]), items=[], total_amount=1, currency="EUR", method="card",
            external_reference=TOO_LONG, user_id=manager,
        ),
    ):  # fmt: skip
        with pytest.raises(Invalid) as refused:
            call()
        assert refused.value.detail["field"] == "p_external_reference"
        assert refused.value.detail["accepted"] == "at most 255 characters"


def test_errors_show_the_beginning_of_long_arguments(
    client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Errors show the first 200 characters of an argument; a label of three megabytes must not fill the logs."""
    with pytest.raises(Invalid) as refused:
        pay(client, order, manager, 1, role="b" * 3_000_000)
    assert refused.value.detail["found"] == "b" * 200 + "…"
    assert len(refused.value.message) < 300
    with pytest.raises(Invalid) as refused:
        pay(client, order, manager, 1, role="b" * 200)
    assert refused.value.detail["found"] == "b" * 200


def test_checkout_repeated_with_something_else(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A repeated checkout with another basket or customer is a Conflict, not the first order."""
    wanted: dict[str, Any] = {
        "customer_id": UUID(order.data["customer_id"]), "items": [{"model": "A", "qty": 1}], "total_amount": 10,
        "currency": "EUR", "method": "card", "external_reference": "c-1", "user_id": manager,
    }  # fmt: skip
    first = client.checkout_order_safe(**wanted)
    with pytest.raises(Invalid) as invalid:
        client.checkout_order_safe(**{**wanted, "customer_id": None})
    assert invalid.value.detail["field"] == "p_customer_id"
    with pytest.raises(Conflict) as refused:
        client.checkout_order_safe(**{**wanted, "items": [{"model": "B", "qty": 1}]})
    assert refused.value.detail == {
        "rule": "reference_taken", "field": "p_items", "found": '[{"qty": 1, "model": "B"}]', "accepted": '[{"qty": 1, "model": "A"}]',
        "id": value(crm, "SELECT id::text FROM public.payments WHERE reference_key = 'c-1'"),
    }  # fmt: skip
    # What happened to the order since does not make the repeat a different one.
    client.update_order_safe(
        order_id=first.id, user_id=manager, items=[{"model": "A", "qty": 1, "color": "blue"}]
    )
    assert client.checkout_order_safe(**wanted).duplicate
