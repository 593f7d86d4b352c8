"""Random RPC calls and direct attacks against an independent model in Python, with the invariants after what is written."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from crm_analytics.crm import CrmClient, CrmError, CrmResult
from crm_analytics.crm.proof import attacks
from crm_analytics_tests.chance import examples
from crm_analytics_tests.crm.conftest import BY_HAND, broken_invariants

AMOUNTS = ("50", "100", "100.00", "250.50", "400", "NaN", "0", "-5", "1.001")
BAD_AMOUNTS = ("NaN", "0", "-5", "1.001")
METHODS = ("card", "online_cashbox", "bank_transfer", "cash")
ROLES = ("client_payment", "supplier_payment", "refund", "shipping_payment", "commission")
PAYMENT_STATUSES = ("planned", "pending", "completed", "failed", "cancelled", None)
ORDER_STATUSES = ("created", "awaiting_payment", "paid", "in_delivery", "delivered", "closed", "cancelled")
LEAD_STATUSES = ("new", "in_progress", "converted", "rejected")
LEAD_MOVES = {
    ("new", "in_progress"),
    ("new", "rejected"),
    ("in_progress", "rejected"),
    ("rejected", "in_progress"),
}
UNKNOWN = uuid.UUID(int=0xDEAD)
REASONS = (None, " ", "agreed with the client", "agreed with the client")


PAYOUT_ROLES = ("supplier_payment", "shipping_payment", "commission")
OPEN = ("planned", "pending")


@dataclass
class Payment:
    order: Any
    direction: str
    role: str
    method: str
    amount: Decimal
    currency: str
    status: str
    reference: str | None
    related: Any = None
    reverses: Any = None
    rebooks: Any = None

    @property
    def money_back(self) -> bool:
        return self.role == "supplier_payment" and self.direction == "incoming"


@dataclass
class Order:
    total: Decimal
    currency: str
    status: str = "created"
    history: list[str] = field(default_factory=lambda: ["created"])

    def move(self, status: str) -> None:
        self.status = status
        self.history.append(status)


class Refused(Exception):
    """The model expects this SQLSTATE."""


class Model:
    """What must happen by the rules of docs/crm-rpc.md, written down without looking at the SQL."""

    def __init__(self, people: dict[Any, str]) -> None:
        self.people = people  # active users only: id -> role
        self.leads: dict[Any, str] = {}
        self.orders: dict[Any, Order] = {}
        self.payments: dict[Any, Payment] = {}
        self.holders: dict[str, Any] = {}  # reference -> the payment that it belongs to

    def actor(self, user: Any) -> str:
        if user not in self.people:
            raise Refused("42501")
        return self.people[user]

    def admin_with_reason(self, role: str, reason: str | None) -> None:
        if role != "admin":
            raise Refused("42501")
        if not reason:
            raise Refused("PT409")

    # -- sums: a reversed payment and its reversal count for nothing ----------------------------------------

    def standing(self, order: Any, *statuses: str) -> list[Payment]:
        reversed_ = {p.reverses for p in self.payments.values()}
        return [
            p
            for id, p in self.payments.items()
            if p.order == order and p.reverses is None and id not in reversed_ and p.status in statuses
        ]

    def _client_money(self, order: Any, role: str, *statuses: str) -> Decimal:
        currency = self.orders[order].currency
        return sum(
            (p.amount for p in self.standing(order, *statuses) if (p.role, p.currency) == (role, currency)),
            Decimal(0),
        )

    def client_paid(self, order: Any) -> Decimal:
        return self._client_money(order, "client_payment", "completed")

    def refunds(self, order: Any) -> Decimal:
        return self._client_money(order, "refund", "completed", *OPEN)

    def net(self, order: Any) -> Decimal:
        return self.client_paid(order) - self._client_money(order, "refund", "completed")

    def payouts(self, order: Any, currency: str) -> Decimal:
        ours = [
            p
            for p in self.standing(order, "completed", *OPEN)
            if p.role in PAYOUT_ROLES and p.currency == currency
        ]
        out = sum((p.amount for p in ours if p.direction == "outgoing"), Decimal(0))
        return out - sum((p.amount for p in ours if p.money_back and p.status == "completed"), Decimal(0))

    # -- leads and orders -----------------------------------------------------------------------------------

    def advance_lead(self, lead: Any, new: str, user: Any) -> None:
        self.actor(user)
        if lead not in self.leads:
            raise Refused("PT404")
        if (self.leads[lead], new) not in LEAD_MOVES:
            raise Refused("PT409")
        self.leads[lead] = new

    def advance_order(self, order: Any, new: str, user: Any, reason: str | None) -> None:
        role = self.actor(user)
        if order not in self.orders:
            raise Refused("PT404")
        needed = BY_HAND.get((self.orders[order].status, new))
        if needed is None:
            raise Refused("PT409")
        if role != "admin" and (needed == "admin" or (new == "cancelled" and self.net(order) > 0)):
            raise Refused("42501")
        if new == "in_delivery" and self.net(order) < self.orders[order].total:
            self.admin_with_reason(role, reason)
        self.orders[order].move(new)

    def change_order(
        self, id: Any, total: Decimal | None, currency: str | None, items: Any, user: Any, reason: str | None
    ) -> None:
        role = self.actor(user)
        if id not in self.orders:
            raise Refused("PT404")
        order = self.orders[id]
        if items is not None and order.status in ("cancelled", "closed") and role != "admin":
            raise Refused("42501")
        total, currency = total or order.total, currency or order.currency
        counts = any(
            p.order == id and p.status not in ("failed", "cancelled") for p in self.payments.values()
        )
        before = Order(order.total, order.currency)
        if (total, currency) != (order.total, order.currency) and counts:
            self.admin_with_reason(role, reason)
            client = [
                p for p in self.standing(id, "completed", *OPEN) if p.role in ("client_payment", "refund")
            ]
            if currency != order.currency and client:
                # equal sums of client payments and refunds are client money, too
                raise Refused("PT409")
            order.currency = currency
            if self.refunds(id) + self.payouts(id, currency) > total:
                order.currency = before.currency
                raise Refused("PT409")
        order.total, order.currency = total, currency
        if (
            total != before.total
            and order.status in ("created", "awaiting_payment")
            and self.net(id) >= total
        ):
            order.move("paid")

    # -- payments -------------------------------------------------------------------------------------------

    def record(self, p: Payment, raw_amount: str, user: Any, reason: str | None) -> tuple[Any, bool] | None:
        """Returns the id of the first payment if this is a repeat, and whether it changed nothing; None if new."""
        role = self.actor(user)
        wrong_way = {"client_payment": "outgoing", "refund": "incoming"}
        if (
            raw_amount in BAD_AMOUNTS
            or wrong_way.get(p.role) == p.direction
            or (p.money_back and p.related is None)
            or self._lacks_reference(p, p.status, p.reference)
        ):
            raise Refused("PT422")
        if p.order not in self.orders or (p.related is not None and p.related not in self.payments):
            raise Refused("PT404")
        if p.role == "refund" and role != "admin":
            raise Refused("42501")
        known = self.holders.get(p.reference or "")
        if known is not None:
            q = self.payments[known]
            facts = ("direction", "role", "method", "amount", "currency")
            if any(getattr(p, name) != getattr(q, name) for name in facts):
                raise Refused("PT409")
            if (p.order, p.related) not in [(b.order, b.related) for b in self._bookings(known)]:
                raise Refused("PT409")
            if p.status == "completed" and q.status in ("failed", "cancelled"):
                raise Refused("PT409")
            if p.status == "completed" != q.status:
                self._move(known, "completed", None, role)
                return known, False
            return known, True
        self._book(p, role, reason)
        return None

    def _lacks_reference(self, p: Payment, status: str, reference: str | None) -> bool:
        provider = p.direction == "incoming" and p.method in ("card", "online_cashbox")
        return provider and status == "completed" and not reference

    def _bookings(self, id: Any) -> Iterator[Payment]:
        """Yields a payment, and what it was before it was booked on the right order."""
        while id is not None:
            yield self.payments[id]
            id = self.payments[id].rebooks

    def _book(self, p: Payment, role: str, reason: str | None) -> None:
        if p.related is not None and self.payments[p.related].order != p.order:
            raise Refused("PT409")
        if p.role in ("client_payment", "refund") and p.currency != self.orders[p.order].currency:
            raise Refused("PT409")
        self._guards(p, p.status)
        counts = p.status in ("completed", *OPEN)
        if p.role == "refund" and counts and self.refunds(p.order) + p.amount > self.client_paid(p.order):
            raise Refused("PT409")
        if p.direction == "outgoing" and p.role != "refund" and counts:
            same = p.currency == self.orders[p.order].currency
            limit = self.net(p.order) if same else Decimal(0)
            if self.payouts(p.order, p.currency) + p.amount > limit:
                self.admin_with_reason(role, reason)
        if p.money_back:
            paid = self.payments[p.related]
            if paid not in self.standing(p.order, "completed"):
                raise Refused("PT409")
            if (paid.role, paid.direction, paid.currency) != ("supplier_payment", "outgoing", p.currency):
                raise Refused("PT409")
            if self._came_back(p.related) + p.amount > paid.amount:
                raise Refused("PT409")

    def _came_back(self, id: Any) -> Decimal:
        standing = self.standing(self.payments[id].order, "completed", *OPEN)
        return sum((p.amount for p in standing if p.money_back and p.related == id), Decimal(0))

    def _guards(self, p: Payment, status: str) -> None:
        order = self.orders[p.order]
        over = order.status in ("closed", "cancelled")
        if over and p.role not in ("client_payment", "refund") and not p.money_back:
            raise Refused("PT409")
        if p.role in ("client_payment", "refund") and p.currency != order.currency:
            raise Refused("PT409")
        if p.direction == "outgoing" and p.role != "refund" and self.net(p.order) <= 0:
            raise Refused("PT409")
        open_refund = p.role == "refund" and p.status in OPEN and status in ("completed", *OPEN)
        if open_refund and p in self.payments.values() and self.refunds(p.order) > self.client_paid(p.order):
            raise Refused("PT409")

    def settle(self, p: Payment) -> None:
        """Applies a completed client payment, or a reversed refund, to its order."""
        order = self.orders[p.order]
        arrives = (p.role, p.reverses is None) in (("client_payment", True), ("refund", False))
        if not arrives or p.status != "completed" or order.status not in ("created", "awaiting_payment"):
            return
        if self.net(p.order) >= order.total:
            order.move("paid")
        elif order.status == "created":
            order.move("awaiting_payment")

    def update_payment(self, payment: Any, new: str, reference: str | None, user: Any) -> bool:
        """Returns whether this repeats what was done before."""
        role = self.actor(user)
        if payment not in self.payments:
            raise Refused("PT404")
        if self.payments[payment].role == "refund" and role != "admin":
            raise Refused("42501")
        return self._move(payment, new, reference, role)

    def _move(self, payment: Any, new: str, reference: str | None, role: str) -> bool:
        p = self.payments[payment]
        if new == p.status and (reference is None or reference == p.reference):
            return True
        allowed = {
            "planned": ("pending", "completed", "failed", "cancelled"),
            "pending": ("completed", "failed", "cancelled"),
        }
        if new != p.status and new not in allowed.get(p.status, ()):
            raise Refused("PT409")
        if reference and ((p.reference and reference != p.reference) or p.status not in OPEN):
            raise Refused("PT409")
        if self._lacks_reference(p, new, reference or p.reference):
            raise Refused("PT422")
        if new in ("pending", "completed") and new != p.status:
            self._guards(p, new)
        if reference and not p.reference:
            if reference in self.holders:
                raise Refused("PT409")
            p.reference = reference
            self.holders[reference] = payment
        p.status = new
        self.settle(p)
        return False

    def reverse(self, payment: Any, reason: str | None, user: Any, rebook: Any) -> bool:
        """Returns whether this repeats what was done before; books under provisional ids (what, payment)."""
        role = self.actor(user)
        if not reason:
            raise Refused("PT422")
        if payment not in self.payments:
            raise Refused("PT404")
        p = self.payments[payment]
        if rebook == p.order:
            raise Refused("PT422")
        if rebook is not None and rebook not in self.orders:
            raise Refused("PT404")
        if role != "admin":
            raise Refused("42501")
        if any(q.reverses == payment for q in self.payments.values()):
            booked = [q.order for q in self.payments.values() if q.rebooks == payment] or [None]
            if booked != [rebook]:
                raise Refused("PT409")
            return True
        if p.reverses is not None or p.status != "completed" or self._came_back(payment) > 0:
            raise Refused("PT409")
        other_way = "outgoing" if p.direction == "incoming" else "incoming"
        mirror = replace(p, direction=other_way, reference=None, related=None, reverses=payment, rebooks=None)
        self.payments["reversal", payment] = mirror
        if p.direction == "incoming" and p.role in ("client_payment", "supplier_payment"):
            self._covered(p.order)
        self.settle(mirror)
        if rebook is not None:
            if p.money_back:
                raise Refused("PT409")
            again = replace(p, order=rebook, related=None, reverses=None, rebooks=payment)
            self._book(again, role, reason)
            self.payments["rebooked", payment] = again
            if p.reference:
                self.holders[p.reference] = ("rebooked", payment)
            self.settle(again)
        return False

    def _covered(self, order: Any) -> None:
        own, net = self.orders[order].currency, self.net(order)
        if self.refunds(order) > self.client_paid(order) or self.payouts(order, own) > net:
            raise Refused("PT409")
        others = {p.currency for p in self.payments.values()} - {own}
        if net <= 0 and any(self.payouts(order, currency) > 0 for currency in others):
            raise Refused("PT409")

    def rename(self, old: Any, new: Any) -> None:
        """Replaces a provisional id by the database's."""
        self.payments[new] = self.payments.pop(old)
        self.holders = {reference: new if id == old else id for reference, id in self.holders.items()}


class Crm(RuleBasedStateMachine):
    """Calls the database and the model side by side; they must agree on every answer and every row."""

    lab: attacks.Lab  # set by the test: hypothesis makes the instances itself
    leads = Bundle("leads")
    orders = Bundle("orders")
    payments = Bundle("payments")

    def __init__(self) -> None:
        super().__init__()
        s = self.lab.sample
        self.users = {"admin": s["admin"], "manager": s["manager"], "left": s["left"], "nobody": None}
        self.model = Model({s["admin"]: "admin", s["manager"]: "manager"})
        self.lab.connection.execute("BEGIN")
        self.written = None

    def teardown(self) -> None:
        self.lab.connection.execute("ROLLBACK")

    def agree(
        self, expectation: Callable[[], Any], rpc: str, **arguments: Any
    ) -> tuple[Any, CrmResult | None]:
        """Returns the model's answer and the database's; both must refuse or both accept."""
        expected, answer, wanted, got = None, None, "accepted", "accepted"
        before = copy.deepcopy(vars(self.model))
        try:
            expected = expectation()
        except Refused as refusal:
            wanted = str(refusal)
            vars(self.model).update(before)
        try:
            with self.lab.connection.transaction():
                self.lab.connection.execute("SET LOCAL ROLE crm_app")
                answer = getattr(CrmClient(self.lab.connection), rpc)(**arguments)
                self.lab.connection.execute("RESET ROLE")
        except CrmError as error:
            got = error.sqlstate
        assert got == wanted, f"{rpc}({arguments}): the database answers {got}, the model {wanted}"
        return expected, answer

    @initialize(target=orders)
    def first_order(self) -> Any:
        return self._order(Decimal("400"), "EUR", self.users["manager"])

    def _order(self, total: Decimal, currency: str, user: Any) -> Any:
        _, answer = self.agree(
            lambda: None, "create_order_safe", customer_id=self.lab.sample["customer"], total_amount=total,
            currency=currency, user_id=user,
        )  # fmt: skip
        assert answer is not None
        order = answer.id
        self.model.orders[order] = Order(total, currency)
        return order

    @rule(target=orders, total=st.sampled_from(("50", "400")), currency=st.sampled_from(("EUR", "USD")))
    def create_order(self, total: str, currency: str) -> Any:
        return self._order(Decimal(total), currency, self.users["manager"])

    @rule(target=leads)
    def create_lead(self) -> Any:
        _, answer = self.agree(
            lambda: None,
            "create_lead_safe",
            source="site",
            full_name="E",
            email=f"{uuid.uuid4()}@example.com",
        )
        assert answer is not None
        lead = answer.id
        self.model.leads[lead] = "new"
        return lead

    @rule(
        lead=leads | st.just(UNKNOWN),
        new=st.sampled_from(LEAD_STATUSES),
        who=st.sampled_from(("admin", "manager", "left", "nobody")),
    )
    def advance_lead(self, lead: Any, new: str, who: str) -> None:
        user = self.users[who]
        self.agree(
            lambda: self.model.advance_lead(lead, new, user), "advance_lead_status_safe", lead_id=lead, new_status=new,
            user_id=user,
        )  # fmt: skip

    @rule(lead=leads)
    def convert_lead(self, lead: Any) -> None:
        expected = self.model.leads[lead]

        def convert() -> None:
            if expected in ("converted", "rejected"):
                raise Refused("PT409")
            self.model.leads[lead] = "converted"

        _, answer = self.agree(
            convert, "create_order_safe", customer_id=None, lead_id=lead, total_amount="50", currency="EUR",
            user_id=self.users["manager"],
        )  # fmt: skip
        if answer is not None:
            self.model.orders[answer.id] = Order(Decimal("50"), "EUR")

    @rule(
        order=orders | st.just(UNKNOWN),
        new=st.sampled_from(ORDER_STATUSES),
        who=st.sampled_from(("admin", "manager", "left", "nobody")),
        reason=st.sampled_from(REASONS),
    )
    def advance_order(self, order: Any, new: str, who: str, reason: str | None) -> None:
        user = self.users[who]
        self.agree(
            lambda: self.model.advance_order(order, new, user, (reason or "").strip()), "advance_order_status_safe",
            order_id=order, new_status=new, user_id=user, reason=reason,
        )  # fmt: skip

    @rule(order=orders, reason=st.sampled_from(REASONS))
    def walk_on(self, order: Any, reason: str | None) -> None:
        """Takes the next legal step as an admin, so that late statuses are reached often."""
        steps = [
            new for (old, new) in BY_HAND if old == self.model.orders[order].status and new != "cancelled"
        ]
        if steps:
            self.advance_order(order, steps[0], "admin", reason)

    @rule(
        order=orders | st.just(UNKNOWN),
        total=st.sampled_from((None, "50", "100", "250.50", "400", "1000")),
        currency=st.sampled_from((None, None, "EUR", "USD")),
        items=st.sampled_from((None, None, [{"model": "Road", "qty": 1}])),
        who=st.sampled_from(("admin", "admin", "manager", "nobody")),
        reason=st.sampled_from(REASONS),
    )
    def change_order(self, order: Any, total: str | None, currency: str | None, items: Any, who: str,
                     reason: str | None) -> None:  # fmt: skip
        user, amount = self.users[who], Decimal(total) if total else None
        self.agree(
            lambda: self.model.change_order(order, amount, currency, items, user, (reason or "").strip()),
            "update_order_safe", order_id=order, total_amount=amount, currency=currency, items=items, user_id=user,
            reason=reason,
        )  # fmt: skip

    @rule(
        target=payments,
        order=orders | st.just(UNKNOWN),
        direction=st.sampled_from(("incoming", "outgoing")),
        role=st.sampled_from(ROLES),
        method=st.sampled_from(METHODS),
        amount=st.sampled_from(AMOUNTS),
        currency=st.sampled_from(("EUR", "EUR", "USD")),
        status=st.sampled_from(PAYMENT_STATUSES),
        reference=st.sampled_from((None, "r1", "r2", " r1 ", "r3", "r4", "r5")),
        related=st.none() | payments,
        who=st.sampled_from(("admin", "admin", "manager", "left", "nobody")),
        reason=st.sampled_from(REASONS),
    )
    def pay(self, order: Any, direction: str, role: str, method: str, amount: str, currency: str, status: str | None,
            reference: str | None, related: Any, who: str, reason: str | None) -> Any:  # fmt: skip
        user = self.users[who]
        payment = Payment(
            order, direction, role, method, Decimal(amount), currency, status or "completed",
            reference.strip() if reference else None, related,
        )  # fmt: skip
        first, answer = self.agree(
            lambda: self.model.record(payment, amount, user, (reason or "").strip()), "record_generic_payment_safe",
            order_id=order, direction=direction, role=role, method=method, amount=amount, currency=currency,
            status=status, external_reference=reference, related_payment_id=related, user_id=user, reason=reason,
        )  # fmt: skip
        if answer is None:
            return UNKNOWN
        found = answer.id
        assert (found, answer.duplicate) == (first or (found, False))
        if first is None:
            self.model.payments[found] = payment
            if payment.reference:
                self.model.holders[payment.reference] = found
            self.model.settle(payment)
        return found

    @rule(
        target=payments,
        order=orders,
        share=st.sampled_from(("50", "400")),
        who=st.sampled_from(("admin", "manager")),
        flow=st.sampled_from(
            (("incoming", "client_payment"), ("incoming", "client_payment"), ("outgoing", "supplier_payment"))
        ),
    )
    def money_flows(self, order: Any, share: str, who: str, flow: tuple[str, str]) -> Any:
        """Books what an order mostly sees, so that orders with money are frequent."""
        direction, role = flow
        return self.pay(
            order=order, direction=direction, role=role, method="cash", amount=share,
            currency=self.model.orders[order].currency, status="completed", reference=None, related=None, who=who,
            reason="agreed",
        )  # fmt: skip

    @rule(target=payments, payment=payments, amount=st.sampled_from(("50", "400")))
    def money_comes_back(self, payment: Any, amount: str) -> Any:
        """Books money back from a supplier, with what a random call would seldom hit."""
        known = self.model.payments.get(payment)
        if known is None:
            return UNKNOWN
        return self.pay(
            order=known.order, direction="incoming", role="supplier_payment", method="cash", amount=amount,
            currency=known.currency, status=None, reference=None, related=payment, who="manager", reason=None,
        )  # fmt: skip

    @rule(
        payment=payments,
        new=st.sampled_from(("pending", "completed", "failed", "cancelled", "planned")),
        reference=st.sampled_from((None, None, "r1", "r6", " r7 ")),
        who=st.sampled_from(("admin", "manager", "nobody")),
    )
    def update_payment(self, payment: Any, new: str, reference: str | None, who: str) -> None:
        user = self.users[who]
        repeat, answer = self.agree(
            lambda: self.model.update_payment(payment, new, reference.strip() if reference else None, user),
            "update_payment_status_safe", payment_id=payment, new_status=new, external_reference=reference,
            user_id=user,
        )  # fmt: skip
        assert answer is None or (answer.id, answer.duplicate) == (payment, repeat)

    @rule(
        target=payments,
        payment=payments,
        reason=st.sampled_from(("wrong order", "wrong order", " ")),
        rebook=st.none() | orders,
        who=st.sampled_from(("admin", "admin", "admin", "manager", "left")),
    )
    def reverse(self, payment: Any, reason: str, rebook: Any, who: str) -> Any:
        user = self.users[who]
        repeat, answer = self.agree(
            lambda: self.model.reverse(payment, reason.strip(), user, rebook), "reverse_payment_safe",
            payment_id=payment, reason=reason, user_id=user, rebook_order_id=rebook,
        )  # fmt: skip
        if answer is None:
            return UNKNOWN
        assert answer.duplicate is repeat
        rebooked = answer.data["rebooked"]
        assert (rebooked is None) == (rebook is None)
        if not repeat:
            self.model.rename(("reversal", payment), answer.id)
            if rebooked:
                self.model.rename(("rebooked", payment), uuid.UUID(rebooked["id"]))
        return uuid.UUID(rebooked["id"]) if rebooked else answer.id

    @rule(attack=st.sampled_from((
        "UPDATE public.orders SET status = 'paid'",
        "UPDATE public.payments SET amount = amount + 1",
        "DELETE FROM public.order_status_events",
        "INSERT INTO public.audit_log (action, entity) VALUES ('x', 'orders')",
        "DELETE FROM public.customers",
        "TRUNCATE public.payments CASCADE",
        "INSERT INTO public.leads (source) VALUES ('direct')",
    )), role=st.sampled_from((None, "crm_app")))  # fmt: skip
    def attack_directly(self, attack: str, role: str | None) -> None:
        self.lab.refused([attack], role=role)

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        run = self.lab.connection.execute
        orders = {
            order: found
            for order, *found in run(
                "SELECT o.id, o.status::text, o.total_amount, o.currency::text, array_agg(e.new_status ORDER BY e.seq)"
                " FROM public.orders o LEFT JOIN public.order_status_events e ON e.order_id = o.id"
                " WHERE o.id = ANY (%s) GROUP BY o.id",
                [list(self.model.orders)],
            )
        }
        assert orders == {
            id: [o.status, o.total, o.currency, o.history] for id, o in self.model.orders.items()
        }
        payments = {
            id: found
            for id, *found in run(
                "SELECT id, order_id, direction::text, amount, status::text, reverses, rebooks, reference_key"
                " FROM public.payments WHERE order_id = ANY (%s)",
                [list(self.model.orders)],
            )
        }
        keys = {id: reference for reference, id in self.model.holders.items()}
        assert payments == {
            id: [p.order, p.direction, p.amount, p.status, p.reverses, p.rebooks, keys.get(id)]
            for id, p in self.model.payments.items()
        }
        leads = dict(
            run("SELECT id, status::text FROM public.leads WHERE id = ANY (%s)", [list(self.model.leads)])
        )
        assert leads == self.model.leads

    @invariant()
    def invariants_hold(self) -> None:
        # after a step that wrote nothing they hold as before
        written = self.lab.run(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_all_tables"
            " WHERE schemaname IN ('public', 'crm_private')"
        )
        if written != self.written:
            self.written = written
            broken = broken_invariants(self.lab.connection)
            assert not broken, json.dumps(broken, indent=1)


@pytest.mark.random
def test_the_database_agrees_with_the_model(lab: attacks.Lab) -> None:
    """Database and model agree after any sequence of calls; a rule that each RPC keeps could break in an odd sequence."""
    Crm.lab = lab
    run_state_machine_as_test(
        Crm,
        settings=settings(examples(40), stateful_step_count=25),
    )
