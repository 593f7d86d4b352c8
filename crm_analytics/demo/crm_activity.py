"""Plays the demo's months of an invented bicycle business through the RPCs, refused attempts included."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from crm_analytics.core import locks
from crm_analytics.crm import CrmClient, CrmError

ORDERS_PER_MONTH = 60
#: Seconds that one demo waits for another.
PATIENCE = 300
#: Source of a played seed's last lead, by which a second call recognizes that it has nothing to do.
MARKER = "demo"

_MODELS = (("Road 54", 1850), ("Gravel 56", 2300), ("City 52", 690), ("Trail 29", 1420), ("Cargo", 3900))
_NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eve",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Nora",
]
_SURNAMES = ["Example", "Sample", "Specimen", "Placeholder", "Doe", "Roe"]
_COUNTRIES = ("DE", "FR", "IT", "US", "PL")
_SOURCES = ("site", "telegram", "referral", "marketplace")


@dataclass
class Summary:
    """What was played: rows by kind, refusals by SQLSTATE, orders by status."""

    already_played: bool = False
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    orders_by_status: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """Returns the summary as a few lines to print."""
        if self.already_played:
            lines = ["CRM: this demo was already played; nothing was added."]
        else:
            done = ", ".join(f"{kind} {count}" for kind, count in self.done.items())
            lines = [f"CRM, played through the RPCs: {done}"]
        if self.refused:
            refused = ", ".join(f"{count} with {state}" for state, count in sorted(self.refused.items()))
            lines.append(f"refused, as they must be, by SQLSTATE: {refused}")
        statuses = ", ".join(f"{status} {count}" for status, count in self.orders_by_status.items())
        return "\n".join([*lines, f"orders: {statuses}"])


def play(
    url: str, months: int = 3, seed: int = 1, report: Callable[[str], None] = lambda line: None
) -> Summary:
    """Plays months of business into a migrated CRM database; the same seed is never played twice.

    All rows carry the present time, because the RPCs let no caller choose when something happened.

    Args:
        report: receives who is at it already, if somebody is.

    Raises:
        LockHeld: if another demo did not end in time; the message names its session.
        psycopg.Error: if the database cannot be reached or is not migrated.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        # A second call at the same time waits, and then finds what the first has played.
        locks.take(
            connection,
            locks.DEMO_ACTIVITY,
            PATIENCE,
            lambda who: report(f"waiting for another demo: {who}"),
        )
        with connection.transaction():
            return _played(connection, months, seed)


def _played(connection: psycopg.Connection[Any], months: int, seed: int) -> Summary:
    """Plays a seed that was not played yet, and returns what the database has then."""
    summary = Summary()
    played = connection.execute("SELECT FROM public.leads WHERE source = %s LIMIT 1", [f"{MARKER}-{seed}"])
    if played.fetchone() is None:
        _Business(connection, seed, summary).run(months)
    else:
        summary.already_played = True
    summary.orders_by_status = dict(
        connection.execute(
            "SELECT status::text, count(*) FROM public.orders GROUP BY status ORDER BY status"
        ).fetchall()
    )
    return summary


class _Business:
    """The people of one seed, and what they do."""

    def __init__(self, connection: psycopg.Connection[Any], seed: int, summary: Summary) -> None:
        self.connection = connection
        self.crm = CrmClient(connection)
        self.chance = random.Random(seed)  # noqa: S311 (a demo)
        self.seed = seed
        self.done, self.refused = summary.done, summary.refused
        self.references = 0
        self.admin = self._person("Olga Owner", "admin")
        self.managers = [self._person(name, "manager") for name in ("Mia Manager", "Theo Trader")]

    def run(self, months: int) -> None:
        """Plays the months; a last lead marks the seed as played, in the same transaction."""
        for month in range(1, months + 1):
            for number in range(1, ORDERS_PER_MONTH + 1):
                self._client(month, number)
        self._rare_calls()
        self.crm.create_lead_safe(source=f"{MARKER}-{self.seed}", full_name="Demo Marker", contact="demo")

    def _person(self, name: str, role: str) -> UUID:
        """Creates a user as the tables' owner, as `crm create-admin` does: there is no admin yet to ask."""
        row = self.connection.execute(
            """
            INSERT INTO public.users (name, email, role) VALUES (%s, %s, %s::text::public.user_role_enum)
            RETURNING id
            """,
            [name, f"{name.split()[0].lower()}.demo{self.seed}@example.com", role],
        ).fetchone()
        assert row is not None
        person: UUID = row[0]
        return person

    def _refused(self, rpc: Callable[..., Any], **arguments: Any) -> None:
        """Makes a call that must be refused, and counts it by its SQLSTATE."""
        try:
            rpc(**arguments)
        except CrmError as error:
            self.refused[error.sqlstate] += 1
        else:
            raise AssertionError(f"{rpc} with {arguments} was not refused: a guard is missing")

    def _client(self, month: int, number: int) -> None:
        """A new client: an order from the landing page, or a lead that is rejected or becomes an order."""
        chance, crm, done = self.chance, self.crm, self.done
        manager = chance.choice(self.managers)
        name = f"{chance.choice(_NAMES)} {chance.choice(_SURNAMES)}"
        contact: dict[str, Any] = {
            "full_name": name,
            "email": f"{name.replace(' ', '.').lower()}.{self.seed}.{month}.{number}@example.com",
            "phone": f"+1 202 555 {chance.randrange(100, 200):04d}" if chance.random() < 0.3 else None,
        }
        model, price = chance.choice(_MODELS)
        total = Decimal(price) + chance.randrange(0, 200)
        currency = chance.choices(("EUR", "USD"), (4, 1))[0]
        items = [{"model": model, "qty": 1}]
        way = chance.random()
        done["leads"] += 1
        if way < 0.15:
            order = crm.quick_order_safe(
                source="landing page", items=items, total_amount=total, currency=currency, **contact
            )
        else:
            lead = crm.create_lead_safe(
                source=chance.choice(_SOURCES), country=chance.choice(_COUNTRIES), user_id=manager, **contact
            ).id
            advance = partial(crm.advance_lead_status_safe, lead_id=lead, user_id=manager)
            advance(new_status="in_progress", notes="called back")
            convert = partial(
                crm.create_order_safe,
                customer_id=None,
                lead_id=lead,
                items=items,
                total_amount=total,
                currency=currency,
                user_id=manager,
            )
            if way < 0.30:
                advance(new_status="rejected", notes="no budget")
                self._refused(convert)
                return
            order = convert()
        done["orders"] += 1
        self._order(order.id, total, currency, manager)

    def _order(self, order: UUID, total: Decimal, currency: str, manager: UUID) -> None:
        """Takes an order as far as its fate wants: cancelled, part paid, paid, refunded, delivered or closed."""
        chance, crm, done = self.chance, self.crm, self.done
        advance = partial(crm.advance_order_status_safe, order_id=order)
        pay = partial(crm.record_generic_payment_safe, order_id=order, user_id=manager)
        pay_supplier = partial(
            pay, direction="outgoing", role="supplier_payment", method="bank_transfer", currency="EUR"
        )
        client_pays = partial(
            pay, direction="incoming", role="client_payment", method="card", currency=currency
        )
        fate = chance.random()
        if fate < 0.08:
            advance(new_status="cancelled", user_id=manager, reason="no answer")
            return
        if fate < 0.16:
            self._refused(advance, new_status="paid", user_id=self.admin)
            self._refused(pay_supplier, amount=total / 2)
            return
        deposit = (total / 4).quantize(Decimal(1))
        reference = self._reference()
        client_pays(amount=deposit, external_reference=reference)
        done["client payments"] += 1
        if fate < 0.24:
            return
        if chance.random() < 0.1:
            # The provider reports the payment twice more; the second time with another amount.
            assert client_pays(amount=deposit, external_reference=reference).duplicate
            done["repeated payments"] += 1
            self._refused(client_pays, amount=deposit + 1, external_reference=reference)
        client_pays(amount=total - deposit, external_reference=self._reference())
        done["client payments"] += 1
        payout = (total * Decimal("0.7")).quantize(Decimal("0.01"))
        if currency == "EUR":
            pay_supplier(amount=payout)
        else:
            self._refused(pay_supplier, amount=payout)
            pay_supplier(amount=payout, user_id=self.admin, reason="the supplier is paid in euros")
        done["payouts"] += 1
        invoice = crm.attach_document_safe(
            document_type="invoice",
            storage_url=f"https://files.example.com/{order}.pdf",
            uploaded_by=manager,
            order_id=order,
        )
        done["documents"] += 1
        if done["documents"] % 6 == 0:
            corrected = crm.replace_document_safe(
                document_id=invoice.id,
                storage_url=f"https://files.example.com/{order}-2.pdf",
                user_id=manager,
                reason="wrong address",
            )
            done["replaced documents"] += 1
            self._refused(
                crm.withdraw_document_safe, document_id=invoice.id, user_id=manager, reason="old address"
            )
            if done["replaced documents"] % 2 == 0:
                crm.withdraw_document_safe(
                    document_id=corrected.id, user_id=manager, reason="issued by the accountant"
                )
        task = crm.create_task_safe(
            title="Pack the bicycle", created_by=manager, order_id=order, assignee_id=manager
        ).id
        done["tasks"] += 1
        if fate < 0.34:
            return
        if fate < 0.40:
            refund = partial(
                pay, direction="outgoing", role="refund", method="bank_transfer", currency=currency
            )
            self._refused(refund, amount=total)
            self._refused(refund, amount=total + 1, user_id=self.admin)
            refund(amount=total, user_id=self.admin)
            done["refunds"] += 1
            advance(new_status="cancelled", user_id=self.admin, reason="refunded")
            return
        crm.update_task_safe(task_id=task, user_id=manager, completed=True)
        ship = partial(crm.upsert_shipment_safe, order_id=order, user_id=manager)
        tracking_number = f"EX{chance.randrange(10**8):08d}"
        shipment = ship(provider="cdek", tracking_number=tracking_number).id
        done["shipments"] += 1
        advance(new_status="in_delivery", user_id=manager)
        ship(shipment_id=shipment, status="in_transit")
        if fate < 0.55:
            return
        ship(shipment_id=shipment, status="delivered", client_received=True)
        advance(new_status="delivered", user_id=manager)
        if fate < 0.65:
            self._refused(advance, new_status="closed", user_id=manager)
        else:
            advance(new_status="closed", user_id=self.admin)

    def _rare_calls(self) -> None:
        """One client's two orders, with what people seldom need: each of these calls once."""
        crm, done = self.crm, self.done
        manager, colleague = self.managers
        form = partial(
            crm.quick_order_safe,
            source="landing page",
            full_name="Rita Repeat",
            email=f"rita.repeat.{self.seed}@example.com",
            currency="EUR",
        )
        city = partial(
            form,
            items=[{"model": "City 52", "qty": 1}],
            total_amount=Decimal(690),
            idempotency_key=f"form-{self.seed}",
        )
        order = city().id
        cargo = form(items=[{"model": "Cargo", "qty": 1}], total_amount=Decimal(3900)).id
        # The browser sends the form again.
        assert city().duplicate
        done["leads"] += 2
        done["orders"] += 2
        done["repeated forms"] += 1

        edit = partial(crm.update_order_safe, order_id=order)
        seen = edit(user_id=manager, commission_eur=Decimal(60)).data["version"]
        edit(user_id=manager, assigned_manager=manager, expected_version=seen)
        self._refused(edit, user_id=colleague, assigned_manager=colleague, expected_version=seen)
        done["outdated edits"] += 1
        edit(user_id=manager, clear=("commission_eur",))
        done["cleared fields"] += 1

        pay = partial(
            crm.record_generic_payment_safe,
            direction="incoming",
            role="client_payment",
            amount=Decimal(690),
            currency="EUR",
            user_id=manager,
        )
        transfer = pay(order_id=cargo, method="bank_transfer", external_reference=self._reference())
        crm.reverse_payment_safe(
            payment_id=transfer.id,
            reason="booked on the wrong order",
            user_id=self.admin,
            rebook_order_id=order,
        )
        done["rebooked payments"] += 1
        cash = pay(order_id=order, method="cash")
        done["client payments"] += 2
        crm.reverse_payment_safe(payment_id=cash.id, reason="there was no cash", user_id=self.admin)
        done["reversed payments"] += 1

        # What the application shows as buttons, each order's only one: delivery, and cancellation.
        for ready in (order, cargo):
            [button] = crm.whoami(user_id=manager, order_id=ready)["transitions"]
            crm.advance_order_status_safe(
                order_id=ready, new_status=button["to_status"], user_id=manager, reason="asked by the client"
            )
            done["offered transitions"] += 1

    def _reference(self) -> str:
        """Returns the payment provider's next reference."""
        self.references += 1
        return f"demo-{self.seed}-{self.references}"
