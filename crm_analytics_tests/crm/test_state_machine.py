"""Random RPC calls and direct attacks against an independent model in Python, with the invariants after each step."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import psycopg
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
from crm_analytics.crm.proof import attacks, invariants
from crm_analytics_tests.chance import examples

AMOUNTS = ("50", "100", "100.00", "250.50", "400", "NaN", "0", "-5", "1.001")
BAD_AMOUNTS = ("NaN", "0", "-5", "1.001")
METHODS = ("card", "online_cashbox", "bank_transfer", "cash")
ROLES = ("client_payment", "supplier_payment", "refund", "shipping_payment", "commission")
PAYMENT_STATUSES = ("planned", "pending", "completed", "failed", "cancelled", None)
ORDER_STATUSES = ("created", "awaiting_payment", "paid", "in_delivery", "delivered", "closed", "cancelled")
LEAD_STATUSES = ("new", "in_progress", "converted", "rejected")
#: Which transitions people may make, and with which role (docs/crm-rpc.md).
BY_PEOPLE = {
    ("created", "awaiting_payment"): "manager",
    ("created", "cancelled"): "manager",
    ("awaiting_payment", "cancelled"): "manager",
    ("paid", "in_delivery"): "manager",
    ("paid", "cancelled"): "admin",
    ("in_delivery", "delivered"): "manager",
    ("in_delivery", "cancelled"): "admin",
    ("delivered", "closed"): "admin",
}
LEAD_MOVES = {
    ("new", "in_progress"),
    ("new", "rejected"),
    ("in_progress", "rejected"),
    ("rejected", "in_progress"),
}
UNKNOWN = uuid.UUID(int=0xDEAD)


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

    def actor(self, user: Any) -> str:
        if user not in self.people:
            raise Refused("42501")
        return self.people[user]

    def client_paid(self, order: Any) -> Decimal:
        return self._sum(order, "client_payment", ("completed",))

    def net(self, order: Any) -> Decimal:
        return self.client_paid(order) - self._sum(order, "refund", ("completed",))

    def open_refunds(self, order: Any) -> Decimal:
        return self._sum(order, "refund", ("completed", "pending", "planned"))

    def _sum(self, order: Any, role: str, statuses: tuple[str, ...]) -> Decimal:
        return sum(
            (
                p.amount
                for p in self.payments.values()
                if p.order == order and p.role == role and p.status in statuses
            ),
            Decimal(0),
        )

    def advance_lead(self, lead: Any, new: str, user: Any) -> None:
        self.actor(user)
        if lead not in self.leads:
            raise Refused("PT404")
        if (self.leads[lead], new) not in LEAD_MOVES:
            raise Refused("PT409")
        self.leads[lead] = new

    def advance_order(self, order: Any, new: str, user: Any) -> None:
        role = self.actor(user)
        if order not in self.orders:
            raise Refused("PT404")
        needed = BY_PEOPLE.get((self.orders[order].status, new))
        if needed is None:
            raise Refused("PT409")
        if role != "admin" and (needed == "admin" or (new == "cancelled" and self.net(order) > 0)):
            raise Refused("42501")
        self.orders[order].move(new)

    def record(self, p: Payment, raw_amount: str, user: Any) -> Any:
        """Returns the id of the first payment if this is a repeat, None if it is new (the caller adds it)."""
        role = self.actor(user)
        wrong_way = {"client_payment": "outgoing", "refund": "incoming", "supplier_payment": "incoming"}
        provider = (
            p.direction == "incoming" and p.status == "completed" and p.method in ("card", "online_cashbox")
        )
        if (
            raw_amount in BAD_AMOUNTS
            or wrong_way.get(p.role) == p.direction
            or (provider and not p.reference)
        ):
            raise Refused("PT422")
        if p.order not in self.orders:
            raise Refused("PT404")
        if p.role == "refund" and role != "admin":
            raise Refused("42501")
        for known, q in self.payments.items():
            if p.reference and q.reference == p.reference:
                same = ("order", "direction", "role", "method", "amount", "currency")
                if any(getattr(p, name) != getattr(q, name) for name in same):
                    raise Refused("PT409")
                if p.status == "completed" != q.status:
                    raise Refused("PT409")
                return known
        if p.role in ("client_payment", "refund") and p.currency != self.orders[p.order].currency:
            raise Refused("PT409")
        self._guards(p, adds=True)
        return None

    def _guards(self, p: Payment, adds: bool) -> None:
        order = self.orders[p.order]
        if order.status in ("closed", "cancelled") and p.role not in ("client_payment", "refund"):
            raise Refused("PT409")
        if p.direction == "outgoing" and p.role != "refund" and self.net(p.order) <= 0:
            raise Refused("PT409")
        counts = p.role == "refund" and p.status in ("completed", "pending", "planned")
        if counts and adds and self.open_refunds(p.order) + p.amount > self.client_paid(p.order):
            raise Refused("PT409")

    def settle(self, p: Payment) -> None:
        """Applies a completed client payment to its order."""
        order = self.orders[p.order]
        if (
            p.role != "client_payment"
            or p.status != "completed"
            or order.status not in ("created", "awaiting_payment")
        ):
            return
        if self.net(p.order) >= order.total:
            order.move("paid")
        elif order.status == "created" and self.net(p.order) > 0:
            order.move("awaiting_payment")

    def update_payment(self, payment: Any, new: str, user: Any) -> None:
        role = self.actor(user)
        if payment not in self.payments:
            raise Refused("PT404")
        p = self.payments[payment]
        if p.role == "refund" and role != "admin":
            raise Refused("42501")
        allowed = {
            "planned": ("pending", "completed", "failed", "cancelled"),
            "pending": ("completed", "failed", "cancelled"),
        }
        if new not in allowed.get(p.status, ()):
            raise Refused("PT409")
        if new in ("pending", "completed"):
            self._guards(p, adds=False)
        p.status = new
        self.settle(p)


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

    def teardown(self) -> None:
        self.lab.connection.execute("ROLLBACK")

    def agree(
        self, expectation: Callable[[], Any], rpc: str, **arguments: Any
    ) -> tuple[Any, CrmResult | None]:
        """Returns the model's answer and the database's; both must refuse or both accept."""
        expected, answer, wanted, got = None, None, "accepted", "accepted"
        try:
            expected = expectation()
        except Refused as refusal:
            wanted = str(refusal)
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
    )
    def advance_order(self, order: Any, new: str, who: str) -> None:
        user = self.users[who]
        self.agree(
            lambda: self.model.advance_order(order, new, user), "advance_order_status_safe", order_id=order,
            new_status=new, user_id=user,
        )  # fmt: skip

    @rule(order=orders)
    def walk_on(self, order: Any) -> None:
        """Takes the next legal step as an admin, so that late statuses are reached often."""
        steps = [
            new for (old, new) in BY_PEOPLE if old == self.model.orders[order].status and new != "cancelled"
        ]
        if steps:
            self.advance_order(order, steps[0], "admin")

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
        who=st.sampled_from(("admin", "admin", "manager", "left", "nobody")),
    )
    def pay(self, order: Any, direction: str, role: str, method: str, amount: str, currency: str, status: str | None,
            reference: str | None, who: str) -> Any:  # fmt: skip
        user = self.users[who]
        payment = Payment(
            order, direction, role, method, Decimal(amount), currency, status or "completed",
            reference.strip() if reference else None,
        )  # fmt: skip
        first, answer = self.agree(
            lambda: self.model.record(payment, amount, user), "record_generic_payment_safe", order_id=order,
            direction=direction, role=role, method=method, amount=amount, currency=currency, status=status,
            external_reference=reference, user_id=user,
        )  # fmt: skip
        if answer is None:
            return UNKNOWN
        found = answer.id
        assert answer.duplicate is (first is not None)
        if first is not None:
            assert found == first
        else:
            self.model.payments[found] = payment
            self.model.settle(payment)
        return found

    @rule(
        target=payments,
        order=orders,
        share=st.sampled_from(("50", "400")),
        who=st.sampled_from(("admin", "manager")),
    )
    def client_pays(self, order: Any, share: str, who: str) -> Any:
        return self.pay(
            order=order, direction="incoming", role="client_payment", method="cash", amount=share,
            currency=self.model.orders[order].currency, status="completed", reference=None, who=who,
        )  # fmt: skip

    @rule(
        payment=payments,
        new=st.sampled_from(("pending", "completed", "failed", "cancelled", "planned")),
        who=st.sampled_from(("admin", "manager", "nobody")),
    )
    def update_payment(self, payment: Any, new: str, who: str) -> None:
        user = self.users[who]
        known = self.model.payments.get(payment)
        if known and known.method in ("card", "online_cashbox") and not known.reference:
            return  # completing these asks for the reference: test_rpc_payments covers it
        self.agree(
            lambda: self.model.update_payment(payment, new, user), "update_payment_status_safe", payment_id=payment,
            new_status=new, user_id=user,
        )  # fmt: skip

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
            order: (status, history)
            for order, status, history in run(
                "SELECT o.id, o.status::text, array_agg(e.new_status ORDER BY e.seq) FROM public.orders o"
                " LEFT JOIN public.order_status_events e ON e.order_id = o.id WHERE o.id = ANY (%s) GROUP BY o.id",
                [list(self.model.orders)],
            )
        }
        assert orders == {id: (o.status, o.history) for id, o in self.model.orders.items()}
        payments = {
            id: (order, amount, status)
            for id, order, amount, status in run(
                "SELECT id, order_id, amount, status::text FROM public.payments WHERE order_id = ANY (%s)",
                [list(self.model.orders)],
            )
        }
        assert payments == {id: (p.order, p.amount, p.status) for id, p in self.model.payments.items()}
        leads = dict(
            run("SELECT id, status::text FROM public.leads WHERE id = ANY (%s)", [list(self.model.leads)])
        )
        assert leads == self.model.leads

    @invariant()
    def invariants_hold(self) -> None:
        broken = {
            name: r.examples for name, r in invariants.evaluate(self.lab.connection).items() if not r.holds
        }
        assert not broken, json.dumps(broken, indent=1)


@pytest.fixture(scope="module")
def lab(new_database: Callable[..., str]) -> Iterator[attacks.Lab]:
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        yield attacks.prepare(connection)


@pytest.mark.random
def test_the_database_agrees_with_the_model(lab: attacks.Lab) -> None:
    """Database and model agree after any sequence of calls; a rule that each RPC keeps could break in an odd sequence."""
    Crm.lab = lab
    run_state_machine_as_test(
        Crm,
        settings=settings(examples(40), stateful_step_count=25),
    )
