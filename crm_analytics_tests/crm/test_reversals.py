"""Payouts within client money, money back from suppliers, and payments that are taken back or moved to the right order."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics.crm.proof import invariants
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, pay, rows, value

pytestmark = pytest.mark.rolled_back

REFUND: dict[str, Any] = {"direction": "outgoing", "role": "refund"}
SUPPLIER: dict[str, Any] = {"direction": "outgoing", "role": "supplier_payment"}
BACK: dict[str, Any] = {"direction": "incoming", "role": "supplier_payment"}
PAYOUTS = ("supplier_payment", "shipping_payment", "commission")


@pytest.fixture
def other(client: CrmClient, manager: UUID) -> CrmResult:
    """Creates another order, of 500 EUR."""
    return client.quick_order_safe(
        source="site", full_name="Ivan", items=[], total_amount=500, currency="EUR", phone="5550101", user_id=manager
    )  # fmt: skip


def status(crm: Connection, order: CrmResult) -> str:
    return value(crm, "SELECT status::text FROM public.orders WHERE id = %s", order.id)


def reverse(client: CrmClient, payment: CrmResult, admin: UUID, rebook: CrmResult | None = None) -> CrmResult:
    return client.reverse_payment_safe(
        payment_id=payment.id,
        reason="a mistake",
        user_id=admin,
        rebook_order_id=rebook.id if rebook else None,
    )


# -- payouts ----------------------------------------------------------------------------------------------------


def test_payouts_stay_within_the_client_money(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """All payouts of an order together stay within its client money; more needs an admin and a reason, which is kept."""
    pay(client, order, manager, 600)
    pay(client, order, admin, 100, **REFUND)
    pay(client, order, manager, 200, **SUPPLIER)
    pay(client, order, manager, 100, direction="outgoing", role="shipping_payment", status="planned")
    pay(client, order, manager, 100, direction="outgoing", role="commission", status="pending")
    pay(client, order, manager, 9, direction="outgoing", role="commission", status="failed")
    pay(client, order, manager, 50, direction="incoming", role="commission")  # makes no room
    for role in PAYOUTS:
        for state in ("planned", "pending", "completed"):
            with pytest.raises(Forbidden) as refused:
                pay(client, order, manager, Decimal("100.01"), direction="outgoing", role=role, status=state)
            assert {k: refused.value.detail[k] for k in ("rule", "payouts", "limit")} == {
                "rule": "payouts_within_client_money", "payouts": 400, "limit": 500,
            }  # fmt: skip
    for reason in (None, " "):
        with pytest.raises(Conflict) as conflict:
            pay(client, order, admin, Decimal("100.01"), **SUPPLIER, reason=reason)
        assert conflict.value.detail["field"] == "p_reason"
    pay(client, order, manager, 100, **SUPPLIER)
    beyond = pay(client, order, admin, 700, **SUPPLIER, reason=" the next order pays ")
    assert (
        value(crm, "SELECT payload ->> 'reason' FROM public.audit_log WHERE entity_id = %s", beyond.id)
        == "the next order pays"
    )
    # a refund may put the order below its payouts, and what was booked can then be completed
    pay(client, order, admin, 400, **REFUND)
    planned = value(crm, "SELECT id FROM public.payments WHERE status = 'planned'")
    client.update_payment_status_safe(payment_id=planned, new_status="completed", user_id=manager)
    assert broken_invariants(crm) == {}


def test_payouts_in_another_currency_have_a_limit(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A cent of client money opens no payout in another currency; a migration can let managers pay up to a limit."""
    pay(client, order, manager, Decimal("0.01"))
    with pytest.raises(Forbidden) as refused:
        pay(client, order, manager, Decimal("0.01"), **SUPPLIER, currency="RUB")
    assert refused.value.detail["limit"] == 0
    pay(client, order, admin, 5000, **SUPPLIER, currency="RUB", reason="the supplier wants roubles")
    crm.execute(
        "ALTER TABLE public.payout_limits DISABLE TRIGGER guard_rows;"
        "UPDATE public.payout_limits SET manager_limit = 100 WHERE currency = 'USD';"
        "ALTER TABLE public.payout_limits ENABLE ALWAYS TRIGGER guard_rows"
    )
    pay(client, order, manager, 60, **SUPPLIER, currency="USD")
    with pytest.raises(Forbidden) as refused:
        pay(client, order, manager, 41, **SUPPLIER, currency="USD")
    assert (refused.value.detail["payouts"], refused.value.detail["limit"]) == (60, 100)
    pay(client, order, manager, 40, **SUPPLIER, currency="USD")
    assert broken_invariants(crm) == {}


@pytest.mark.parametrize("later", [0, 1000])
def test_a_payout_is_judged_by_the_limit_that_it_was_booked_under(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, later: int
) -> None:
    """A limit that is lowered later turns no honest payout red, and one that is raised no wrong payout green."""

    def limit(amount: int) -> None:
        crm.execute(
            "ALTER TABLE public.payout_limits DISABLE TRIGGER guard_rows;"
            f"UPDATE public.payout_limits SET manager_limit = {amount} WHERE currency = 'USD';"
            "ALTER TABLE public.payout_limits ENABLE ALWAYS TRIGGER guard_rows".encode()
        )

    pay(client, order, manager, 500)
    limit(100)
    honest = pay(client, order, manager, 100, **SUPPLIER, currency="USD")
    limit(later)
    assert broken_invariants(crm) == {}
    crm.execute("ALTER TABLE public.payments DISABLE TRIGGER USER")
    crm.execute("UPDATE public.payments SET amount = 101 WHERE id = %s", [honest.id])
    name = "payouts_within_client_money"
    assert invariants.evaluate(crm, frozenset({name}))[name].offenders == 1


# -- money back from a supplier ---------------------------------------------------------------------------------


def test_money_back_from_a_supplier(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Money back makes room for payouts once it is there, and is at most what that supplier payment was."""
    pay(client, order, manager, 500)
    payout = pay(client, order, manager, 500, **SUPPLIER)
    back = pay(client, order, manager, 300, **BACK, related_payment_id=payout.id, status="pending")
    with pytest.raises(Forbidden):
        pay(client, order, manager, 1, **SUPPLIER)
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, Decimal("200.01"), **BACK, related_payment_id=payout.id)
    assert (refused.value.detail["rule"], refused.value.detail["accepted"]) == ("money_back", 200)
    client.update_payment_status_safe(payment_id=back.id, new_status="completed", user_id=manager)
    pay(client, order, manager, 300, **SUPPLIER)
    pay(client, order, manager, 200, **BACK, related_payment_id=payout.id)
    # it comes after the end, too
    client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=admin)
    second = value(crm, "SELECT id FROM public.payments WHERE amount = 300 AND direction = 'outgoing'")
    pay(client, order, manager, 300, **BACK, related_payment_id=second)
    assert broken_invariants(crm) == {}


def test_money_comes_back_only_from_a_payout(
    client: CrmClient, order: CrmResult, other: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Money back names a completed supplier payment in its currency, of its order, that was not reversed."""
    client_payment = pay(client, order, manager, 500)
    theirs = pay(client, other, manager, 500)
    wrong = [
        client_payment,
        theirs,
        pay(client, order, manager, 10, **SUPPLIER, status="planned"),
        pay(client, order, admin, 10, **SUPPLIER, currency="USD", reason="x"),
        pay(client, order, manager, 10, direction="outgoing", role="commission"),
        pay(client, order, manager, 10, **SUPPLIER),
    ]
    reverse(client, wrong[-1], admin)
    for payment in wrong:
        with pytest.raises(Conflict):
            pay(client, order, manager, 5, **BACK, related_payment_id=payment.id)
    with pytest.raises(Invalid):
        pay(client, order, manager, 5, **BACK)


# -- reversals --------------------------------------------------------------------------------------------------


def test_reversal_subtracts_everywhere(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A reversal mirrors its payment and subtracts in every sum; the status stays, and the delivery waits."""
    payment = pay(client, order, manager, 1000, "r-1", method="card")
    done = reverse(client, payment, admin)
    assert done.data == {
        "id": str(done.id), "duplicate": False, "order_id": str(order.id), "payment_status": "completed",
        "order_status": "paid", "total_amount": Decimal("1000.00"), "currency": "EUR", "client_paid": 0, "overpaid": 0,
        "reverses": str(payment.id), "rebooked": None,
    }  # fmt: skip
    assert rows(
        crm,
        "SELECT direction::text, role::text, method::text, amount, currency::text, status::text, reverses, created_by,"
        " external_reference FROM public.payments WHERE id = %s",
        done.id,
    ) == [("outgoing", "client_payment", "card", 1000, "EUR", "completed", payment.id, admin, None)]
    assert (
        value(crm, "SELECT payload ->> 'reason' FROM public.audit_log WHERE entity_id = %s", done.id)
        == "a mistake"
    )
    assert status(crm, order) == "paid"
    with pytest.raises(Forbidden):
        client.advance_order_status_safe(order_id=order.id, new_status="in_delivery", user_id=manager)
    with pytest.raises(Conflict):
        pay(client, order, manager, 1, **SUPPLIER)
    with pytest.raises(Conflict):
        pay(client, order, admin, 1, **REFUND)
    assert rows(crm, "SELECT money_in, money_out, payments FROM reporting.money_by_month") == [(0, 0, 1)]
    # its provider's repeat still finds it, and a repeated reversal finds the reversal
    assert pay(client, order, manager, 1000, "r-1", method="card").id == payment.id
    again = reverse(client, payment, admin)
    assert (again.id, again.duplicate) == (done.id, True)
    # no client money: no admin needed
    assert broken_invariants(crm) == {}


def test_who_may_reverse_what(
    client: CrmClient, order: CrmResult, other: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Only an admin reverses, with a reason, and only completed payments that are no reversals."""
    payment = pay(client, order, manager, 10)
    for actor, reason, id, rebook, error in (
        (uuid4(), " ", uuid4(), None, Forbidden),  # actor, input, existence, role, in this order
        (manager, " ", uuid4(), None, Invalid),
        (manager, "x", uuid4(), None, NotFound),
        (manager, "x", payment.id, order.id, Invalid),
        (manager, "x", payment.id, uuid4(), NotFound),
        (manager, "x", payment.id, None, Forbidden),
    ):
        with pytest.raises(error):
            client.reverse_payment_safe(payment_id=id, reason=reason, user_id=actor, rebook_order_id=rebook)
    reversal = reverse(client, payment, admin)
    with pytest.raises(Conflict) as refused:
        reverse(client, reversal, admin)
    assert refused.value.detail["rule"] == "reversal"
    with pytest.raises(Conflict) as refused:
        reverse(client, payment, admin, other)
    assert (refused.value.detail["rule"], refused.value.detail["id"]) == ("reversed", str(reversal.id))
    for state in ("planned", "pending", "failed", "cancelled"):
        with pytest.raises(Conflict) as refused:
            reverse(client, pay(client, order, manager, 10, status=state), admin)
        assert refused.value.detail["rule"] == "payment_transition"


def test_a_reversal_leaves_nothing_uncovered(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A client payment is not reversed from under refunds or payouts, nor money back from under payouts."""
    first, second = pay(client, order, manager, 100), pay(client, order, manager, 50)

    def refused(payment: CrmResult) -> dict[str, Any]:
        with pytest.raises(Conflict) as caught:
            reverse(client, payment, admin)
        return caught.value.detail

    refund = pay(client, order, admin, 51, **REFUND, status="planned")
    assert refused(first)["rule"] == "covered"
    client.update_payment_status_safe(payment_id=refund.id, new_status="cancelled", user_id=admin)
    payout = pay(client, order, manager, 51, **SUPPLIER)
    assert refused(first)["payouts"] == {"EUR": 51}
    back = pay(client, order, manager, 1, **BACK, related_payment_id=payout.id)
    assert refused(payout)["rule"] == "money_back"
    reverse(client, first, admin)  # 50 paid in, 51 - 1 paid out
    assert refused(back)["rule"] == "covered"
    assert refused(second)["rule"] == "covered"
    dollars = pay(client, order, admin, 5, **SUPPLIER, currency="USD", reason="x")
    again = pay(client, order, manager, 1)
    reverse(client, back, admin)
    reverse(client, payout, admin)
    reverse(client, second, admin)
    assert refused(again)["payouts"] == {"USD": 5}
    reverse(client, dollars, admin)
    reverse(client, again, admin)


def test_a_reversed_refund_is_client_money_again(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A refund booked by mistake is taken back; if the total is then reached, the order is paid in the same call."""
    pay(client, order, manager, 600)
    refund = pay(client, order, admin, 100, **REFUND)
    assert pay(client, order, manager, 400).data["order_status"] == "awaiting_payment"
    done = reverse(client, refund, admin)
    assert (done.data["order_status"], done.data["client_paid"]) == ("paid", 1000)
    assert status(crm, order) == "paid"
    assert broken_invariants(crm) == {}


@pytest.mark.parametrize("flow", [SUPPLIER, {"direction": "incoming", "role": "commission"}, REFUND])
def test_what_else_is_reversed(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID, flow: dict[str, Any]
) -> None:
    """Payouts, fees and refunds are reversed too, also on a cancelled order; payouts then have their room back."""
    pay(client, order, manager, 100)
    payment = pay(client, order, admin, 100, **flow)
    client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=admin)
    reverse(client, payment, admin)
    assert rows(crm, "SELECT money_in, money_out FROM reporting.money_by_month") == [(100, 0)]
    assert broken_invariants(crm) == {}


# -- booking again on the right order ---------------------------------------------------------------------------


def test_rebooking_moves_payment_and_reference(
    crm: Connection, client: CrmClient, order: CrmResult, other: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A payment booked on the wrong order is moved in one call, with its reference: repeats return the new payment."""
    payment = pay(client, order, manager, 500, " r-1", method="card")
    done = reverse(client, payment, admin, other)
    new = done.data["rebooked"]
    assert (new["order_id"], new["order_status"], new["client_paid"]) == (str(other.id), "paid", 500)
    assert (status(crm, order), status(crm, other)) == ("awaiting_payment", "paid")
    assert rows(
        crm,
        "SELECT id::text, external_reference, reference_key, rebooks FROM public.payments WHERE reference_key = 'r-1'",
    ) == [(new["id"], "r-1", "r-1", payment.id)]
    # the provider repeats its message with the order that it knows; people, with the right one
    for where in (order, other):
        again = pay(client, where, manager, 500, "r-1", method="card")
        assert (str(again.id), again.duplicate, again.data["order_id"]) == (new["id"], True, str(other.id))
    with pytest.raises(Conflict):
        pay(client, order, manager, 501, "r-1", method="card")
    repeat = reverse(client, payment, admin, other)
    assert (repeat.id, repeat.duplicate, repeat.data["rebooked"]["id"]) == (done.id, True, new["id"])
    with pytest.raises(Conflict):
        reverse(client, payment, admin)
    assert broken_invariants(crm) == {}


def test_rebooking_twice(
    crm: Connection, client: CrmClient, order: CrmResult, other: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A payment moved to yet another wrong order is moved on; its provider's repeat still finds where it is now."""
    payment = pay(client, order, manager, 5, "r-1")
    third = client.quick_order_safe(
        source="site", full_name="Eva", items=[], total_amount=5, currency="EUR", phone="5550102", user_id=manager
    )  # fmt: skip
    second = reverse(client, payment, admin, other).data["rebooked"]["id"]
    done = client.reverse_payment_safe(
        payment_id=UUID(second), reason="again", user_id=admin, rebook_order_id=third.id
    )
    found = {str(pay(client, where, manager, 5, "r-1").id) for where in (order, other, third)}
    assert found == {done.data["rebooked"]["id"]}
    assert broken_invariants(crm) == {}


def test_rebooking_is_all_or_nothing(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """What the right order refuses leaves the payment where it was."""
    dollars = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=9, currency="USD", phone="5550101", user_id=manager
    )  # fmt: skip
    payment = pay(client, order, manager, 9, "r-1")
    before = rows(crm, "SELECT * FROM public.payments ORDER BY id")
    with pytest.raises(Conflict) as refused:
        reverse(client, payment, admin, dollars)
    assert refused.value.detail["rule"] == "currency"
    assert rows(crm, "SELECT * FROM public.payments ORDER BY id") == before


def test_a_repeated_checkout_finds_its_payment_on_the_right_order(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A checkout whose payment was moved is still repeated safely: it returns its order and the new payment."""
    wanted: dict[str, Any] = {
        "customer_id": UUID(order.data["customer_id"]), "items": [{"model": "A", "qty": 1}], "total_amount": 10,
        "currency": "EUR", "method": "card", "external_reference": "c-1", "user_id": manager, "idempotency_key": "k-1",
    }  # fmt: skip
    first = client.checkout_order_safe(**wanted)
    moved = client.reverse_payment_safe(
        payment_id=UUID(first.data["payment_id"]), reason="x", user_id=admin, rebook_order_id=order.id
    )
    for key in ("k-1", None, "k-2"):
        again = client.checkout_order_safe(**{**wanted, "idempotency_key": key})
        assert (again.id, again.duplicate) == (first.id, True)
        assert again.data["payment_id"] == moved.data["rebooked"]["id"]
