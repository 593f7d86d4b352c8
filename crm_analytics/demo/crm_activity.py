"""The demo's months of an invented bicycle business, played through the RPCs, refused attempts included."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from crm_analytics.core import locks
from crm_analytics.crm.client import CrmClient
from crm_analytics.crm.errors import CrmError

ORDERS_PER_MONTH = 60
MARKER = "demo"  # source of the played leads: a second call of the same seed finds them and plays nothing

_MODELS = (("Road 54", 1850), ("Gravel 56", 2300), ("City 52", 690), ("Trail 29", 1420), ("Cargo", 3900))
_NAMES = (
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
)
_SURNAMES = ("Example", "Sample", "Specimen", "Placeholder", "Doe", "Roe")
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
        """A few lines for people."""
        if self.already_played:
            head = "CRM: this demo has been played already; nothing was added."
        else:
            head = "CRM, played through the RPCs: " + ", ".join(
                f"{n} {what}" for what, n in self.done.items()
            )
        refused = ", ".join(f"{n} x {state}" for state, n in sorted(self.refused.items()))
        statuses = ", ".join(f"{status} {n}" for status, n in self.orders_by_status.items())
        return "\n".join(
            [head, *([f"refused as they must be: {refused}"] if refused else []), f"orders: {statuses}"]
        )


def play(url: str, months: int = 3, seed: int = 1) -> Summary:
    """Play `months` of business into a migrated CRM database; the same seed is never played twice.

    The rows carry the present time: the RPCs do not let anybody choose when something happened.

    Raises:
        psycopg.Error: if the database cannot be reached or is not migrated.
    """
    with psycopg.connect(url) as connection:
        # whoever comes second waits, and then finds what the first has played
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [locks.DEMO_ACTIVITY])
        summary = Summary()
        if connection.execute(
            "SELECT 1 FROM public.leads WHERE source = %s LIMIT 1", [_marker(seed)]
        ).fetchone():
            summary.already_played = True
        else:
            _Business(connection, random.Random(seed), seed, summary).run(months)  # noqa: S311 (a demo)
        summary.orders_by_status = dict(
            connection.execute(
                "SELECT status::text, count(*) FROM public.orders GROUP BY status ORDER BY status"
            ).fetchall()
        )
        return summary


def _marker(seed: int) -> str:
    return f"{MARKER}-{seed}"


class _Business:
    def __init__(
        self, connection: psycopg.Connection[Any], chance: random.Random, seed: int, summary: Summary
    ) -> None:
        self.connection = connection
        self.crm = CrmClient(connection)
        self.chance = chance
        self.seed = seed
        self.summary = summary
        self.references = 0
        self.admin = self._person("Olga Owner", "admin")
        self.managers = [self._person(name, "manager") for name in ("Mia Manager", "Theo Trader")]

    def run(self, months: int) -> None:
        """A closing lead marks the seed as played, in the same transaction."""
        for month in range(1, months + 1):
            for number in range(1, ORDERS_PER_MONTH + 1):
                self._client(month, number)
        self.crm.create_lead_safe(source=_marker(self.seed), full_name="Demo Marker", contact="demo")

    def _person(self, name: str, role: str) -> UUID:
        """The very first people are the owner's to create, as with `crm create-admin`."""
        email = f"{name.split()[0].lower()}.demo{self.seed}@example.com"
        row = self.connection.execute(
            "INSERT INTO public.users (name, email, role) VALUES (%s, %s, %s::text::public.user_role_enum) RETURNING id",
            [name, email, role],
        ).fetchone()
        assert row is not None
        person: UUID = row[0]
        return person

    def _tried(self, rpc: str, **arguments: Any) -> None:
        """A call that must be refused, counted by its SQLSTATE."""
        try:
            with self.connection.transaction():
                getattr(self.crm, rpc)(**arguments)
        except CrmError as error:
            self.summary.refused[error.sqlstate] += 1
        else:
            raise AssertionError(f"{rpc}({arguments}) was not refused: a guard is missing")

    def _client(self, month: int, number: int) -> None:
        chance, crm, done = self.chance, self.crm, self.summary.done
        manager = chance.choice(self.managers)
        person = f"{chance.choice(_NAMES)} {chance.choice(_SURNAMES)}"
        contact: dict[str, Any] = {
            "full_name": person,
            "email": f"{person.replace(' ', '.').lower()}.{self.seed}.{month}.{number}@example.com",
            "phone": f"+1 202 555 {chance.randrange(100, 200):04d}" if chance.random() < 0.3 else None,
        }
        model, price = chance.choice(_MODELS)
        total = Decimal(price) + chance.randrange(0, 200)
        currency = chance.choices(("EUR", "USD"), (4, 1))[0]
        items = [{"model": model, "quantity": 1}]
        way = chance.random()
        if way < 0.15:
            order = crm.quick_order_safe(
                source="landing page", items=items, total_amount=total, currency=currency, **contact
            ).id
            done["leads"] += 1
        else:
            lead = crm.create_lead_safe(
                source=chance.choice(_SOURCES), country=chance.choice(_COUNTRIES), user_id=manager, **contact
            )
            done["leads"] += 1
            crm.advance_lead_status_safe(
                lead_id=lead.id, new_status="in_progress", user_id=manager, notes="called back"
            )
            if way < 0.30:
                crm.advance_lead_status_safe(
                    lead_id=lead.id, new_status="rejected", user_id=manager, notes="no budget"
                )
                self._tried("create_order_safe", customer_id=None, lead_id=lead.id, total_amount=total,
                            currency=currency, user_id=manager)  # fmt: skip
                return
            order = crm.create_order_safe(
                customer_id=None,
                lead_id=lead.id,
                items=items,
                total_amount=total,
                currency=currency,
                user_id=manager,
            ).id
        done["orders"] += 1
        self._order(order, total, currency, manager)

    def _order(self, order: UUID, total: Decimal, currency: str, manager: UUID) -> None:
        chance, crm, done = self.chance, self.crm, self.summary.done
        fate = chance.random()
        if fate < 0.08:
            crm.advance_order_status_safe(
                order_id=order, new_status="cancelled", user_id=manager, reason="no answer"
            )
            return
        if fate < 0.16:
            self._tried("advance_order_status_safe", order_id=order, new_status="paid", user_id=self.admin)
            self._tried("record_generic_payment_safe", order_id=order, direction="outgoing", role="supplier_payment",
                        method="bank_transfer", amount=total / 2, currency="EUR", user_id=manager)  # fmt: skip
            return
        deposit = (total / 4).quantize(Decimal(1))
        payment = self._client_pays(order, deposit, currency, manager)
        if fate < 0.24:
            return
        if chance.random() < 0.1:  # the provider calls twice; the second time with another amount
            again = self._client_pays(order, deposit, currency, manager, reference=payment)
            assert again == payment
            self._tried("record_generic_payment_safe", order_id=order, direction="incoming", role="client_payment",
                        method="card", amount=deposit + 1, currency=currency, user_id=manager,
                        external_reference=payment)  # fmt: skip
        self._client_pays(order, total - deposit, currency, manager)
        crm.record_generic_payment_safe(
            order_id=order, direction="outgoing", role="supplier_payment", method="bank_transfer",
            amount=(total * Decimal("0.7")).quantize(Decimal("0.01")), currency="EUR", user_id=manager,
        )  # fmt: skip
        done["payouts"] += 1
        crm.attach_document_safe(
            document_type="invoice",
            storage_url=f"https://files.example.com/{order}.pdf",
            uploaded_by=manager,
            order_id=order,
        )
        done["documents"] += 1
        task = crm.create_task_safe(
            title="Pack the bicycle", created_by=manager, order_id=order, assignee_id=manager
        )
        done["tasks"] += 1
        if fate < 0.34:
            return
        if fate < 0.40:
            self._refund(order, total, currency, manager)
            return
        crm.update_task_safe(task_id=task.id, user_id=manager, completed=True)
        shipment = crm.upsert_shipment_safe(
            order_id=order,
            user_id=manager,
            provider="cdek",
            tracking_number=f"EX{chance.randrange(10**8):08d}",
        )
        done["shipments"] += 1
        crm.advance_order_status_safe(order_id=order, new_status="in_delivery", user_id=manager)
        crm.upsert_shipment_safe(
            order_id=order, user_id=manager, shipment_id=shipment.id, status="in_transit"
        )
        if fate < 0.55:
            return
        crm.upsert_shipment_safe(
            order_id=order, user_id=manager, shipment_id=shipment.id, status="delivered", client_received=True
        )
        crm.advance_order_status_safe(order_id=order, new_status="delivered", user_id=manager)
        if fate < 0.65:
            self._tried("advance_order_status_safe", order_id=order, new_status="closed", user_id=manager)
            return
        crm.advance_order_status_safe(order_id=order, new_status="closed", user_id=self.admin)

    def _client_pays(
        self, order: UUID, amount: Decimal, currency: str, manager: UUID, reference: str | None = None
    ) -> str:
        """An incoming card payment; returns its provider's reference."""
        if reference is None:
            self.references += 1
            reference = f"demo-{self.seed}-{self.references}"
        result = self.crm.record_generic_payment_safe(
            order_id=order, direction="incoming", role="client_payment", method="card", amount=amount,
            currency=currency, user_id=manager, external_reference=reference,
        )  # fmt: skip
        self.summary.done["repeated payments" if result.data["duplicate"] else "client payments"] += 1
        return reference

    def _refund(self, order: UUID, total: Decimal, currency: str, manager: UUID) -> None:
        refund: dict[str, Any] = {
            "order_id": order, "direction": "outgoing", "role": "refund", "method": "bank_transfer", "currency": currency,
        }  # fmt: skip
        self._tried("record_generic_payment_safe", **refund, amount=total, user_id=manager)
        self._tried("record_generic_payment_safe", **refund, amount=total + 1, user_id=self.admin)
        self.crm.record_generic_payment_safe(**refund, amount=total, user_id=self.admin)
        self.summary.done["refunds"] += 1
        self.crm.advance_order_status_safe(
            order_id=order, new_status="cancelled", user_id=self.admin, reason="refunded"
        )
