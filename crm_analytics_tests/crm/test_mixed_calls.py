"""Eight clients call all RPCs at once on the same few rows: no deadlock, and every rule holds afterwards.

`CRM_MIXED_CALLS=100000 pytest crm_analytics_tests/crm/test_mixed_calls.py -s` makes more calls, and prints how they ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import Busy, CrmClient, CrmError
from crm_analytics.crm.schema.catalog import RPC_NAMES
from crm_analytics_tests import chance
from crm_analytics_tests.crm.conftest import add_user, broken_invariants, value
from crm_analytics_tests.crm.conftest import rows as read

CLIENTS = 8
CALLS = int(os.environ.get("CRM_MIXED_CALLS", "4000"))

_PHONES = [f"+1 202 555 01{n:02}" for n in range(60)]
_EMAILS = [f"c{n}@example.com" for n in range(60)]
_NAMES = [f"@c_{n}" for n in range(30)]
_REFERENCES = [f"ref-{n}" for n in range(300)]
_CODES = [f"CODE-{n}" for n in range(20)]


class Rows:
    """The newest few rows of each kind, which all clients share."""

    def __init__(self, people: list[UUID]) -> None:
        self.people = people
        self._newest: dict[str, deque[UUID]] = {
            kind: deque(maxlen=8)
            for kind in ("customers", "leads", "orders", "payments", "documents", "tasks", "shipments")
        }
        self._lock = threading.Lock()

    def add(self, kind: str, id_: Any) -> None:
        row = UUID(str(id_))
        with self._lock:
            if row not in self._newest[kind]:
                self._newest[kind].append(row)

    def any(self, kind: str, dice: Random) -> UUID | None:
        with self._lock:
            return dice.choice(self._newest[kind]) if self._newest[kind] else None


class Calls:
    """Random calls of one client, by the name of the RPC."""

    def __init__(self, rows: Rows, random: Random) -> None:
        self.rows = rows
        self.random = random

    def one_of(self, *values: Any) -> Any:
        return self.random.choice(values)

    def some(self, kind: str) -> Any:
        return self.rows.any(kind, self.random)

    @property
    def who(self) -> Any:
        return self.random.choice(self.rows.people)

    def contact(self) -> dict[str, Any]:
        """Returns one to three contacts."""
        given = {
            "phone": self.random.choice(_PHONES),
            "email": self.random.choice(_EMAILS),
            "contact": self.random.choice(_NAMES),
        }
        return {name: given[name] for name in self.random.sample(sorted(given), self.random.randint(1, 3))}

    def form(self) -> dict[str, Any]:
        return {
            "source": "site",
            "full_name": "Olga",
            "user_id": self.one_of(None, self.who),
            **self.contact(),
        }

    def key(self) -> str | None:
        return self.one_of(None, None, *(f"key-{n}" for n in range(20)))

    def priced(self) -> dict[str, Any]:
        return {"total_amount": self.one_of(10, 20), "currency": self.one_of("EUR", "EUR", "USD")}

    def arguments(self) -> Mapping[str, Callable[[], dict[str, Any]]]:
        """Returns how to make up the arguments of each RPC."""
        some, one_of = self.some, self.one_of
        return {
            "resolve_crm_user": lambda: {
                "provider": "auth", "external_id": one_of(*"abcd"), "email": one_of(None, "ada@example.com", "max@example.com"),
            },
            "create_lead_safe": self.form,
            "advance_lead_status_safe": lambda: {
                "lead_id": some("leads"), "new_status": one_of("in_progress", "rejected"), "user_id": self.who,
                "assigned_to": one_of(None, self.who),
            },
            "create_order_safe": lambda: {
                "customer_id": some("customers"), "lead_id": one_of(None, some("leads")), "user_id": one_of(None, self.who),
                "order_code": one_of(None, None, one_of(*_CODES)), "assigned_manager": one_of(None, self.who),
                "idempotency_key": self.key(), **self.priced(),
            },
            "quick_order_safe": lambda: {"items": [], "idempotency_key": self.key(), **self.form(), **self.priced()},
            "checkout_order_safe": lambda: {
                "customer_id": some("customers"), "items": [], "method": "card", "user_id": self.who,
                "external_reference": one_of(*_REFERENCES), "lead_id": one_of(None, None, some("leads")), **self.priced(),
            },
            "record_generic_payment_safe": lambda: {
                "order_id": some("orders"), "amount": one_of(5, 10, 20), "currency": one_of("EUR", "EUR", "USD"),
                "status": one_of(None, "planned", "pending"), "user_id": self.who, "reason": one_of(None, "r"),
                **one_of({"method": "cash"}, {"method": "card", "external_reference": one_of(*_REFERENCES)}),
                **one_of(
                    {"direction": "incoming", "role": "client_payment"},
                    {"direction": "incoming", "role": "client_payment"},
                    {"direction": "outgoing", "role": "supplier_payment"},
                    {"direction": "outgoing", "role": "refund"},
                ),
            },
            "update_payment_status_safe": lambda: {
                "payment_id": some("payments"), "new_status": one_of("pending", "completed", "failed", "cancelled"),
                "external_reference": one_of(None, *_REFERENCES), "user_id": self.who,
            },
            "reverse_payment_safe": lambda: {
                "payment_id": some("payments"), "reason": "r", "user_id": self.who,
                "rebook_order_id": one_of(None, some("orders")),
            },
            "advance_order_status_safe": lambda: {
                "order_id": some("orders"), "user_id": self.who, "reason": one_of(None, "r"),
                "new_status": one_of("awaiting_payment", "in_delivery", "delivered", "closed", "cancelled"),
            },
            "attach_document_safe": lambda: {
                "document_type": "photo", "storage_url": "s3://x", "uploaded_by": self.who, "order_id": some("orders"),
                "lead_id": some("leads"),
            },
            "replace_document_safe": lambda: {
                "document_id": some("documents"), "storage_url": "s3://y", "user_id": self.who,
            },
            "withdraw_document_safe": lambda: {
                "document_id": some("documents"), "user_id": self.who, "reason": "r",
            },
            "erase_customer_safe": lambda: {
                "customer_id": some("customers"), "user_id": self.who, "reason": "r",
            },
            "create_task_safe": lambda: {
                "title": "t", "created_by": self.who, "order_id": some("orders"), "lead_id": some("leads"),
                "assignee_id": one_of(None, self.who),
            },
            "update_task_safe": lambda: {
                "task_id": some("tasks"), "user_id": self.who, "completed": one_of(True, False),
                "assignee_id": one_of(None, self.who),
            },
            "upsert_shipment_safe": lambda: {
                "order_id": some("orders"), "user_id": self.who, "shipment_id": one_of(None, some("shipments")),
                "tracking_number": one_of(None, "T-1", "T-2"),
            },
            "update_order_safe": lambda: {
                "order_id": some("orders"), "user_id": self.who, "assigned_manager": one_of(None, self.who),
                "bike_url": "https://example.com/b", "total_amount": one_of(None, 5, 10, 20), "reason": one_of(None, "r"),
            },
            "update_lead_safe": lambda: {
                "lead_id": some("leads"), "user_id": self.who, "notes": "n", "assigned_to": one_of(None, self.who),
            },
            "update_customer_safe": lambda: {
                "customer_id": some("customers"), "user_id": self.who,
                **{name: text for name, text in self.contact().items() if name != "contact"},
            },
            "merge_customers_safe": lambda: {
                "customer_id": some("customers"), "merged_into": some("customers"), "user_id": self.who, "reason": "r",
            },
            "create_user_safe": lambda: {
                "name": "n", "email": f"u{self.random.randrange(50)}@example.com", "role": one_of("manager", "admin"),
                "user_id": self.who,
            },
            "update_user_safe": lambda: {
                "crm_user_id": self.who, "user_id": self.who, "name": "n",
                "email": one_of(None, f"u{self.random.randrange(50)}@example.com"),
            },
            # mostly back to what lets people work
            "set_user_active_safe": lambda: {
                "crm_user_id": self.who, "active": one_of(True, True, True, False), "user_id": self.who,
            },
            "set_user_role_safe": lambda: {
                "crm_user_id": self.who, "role": one_of("admin", "admin", "manager"), "user_id": self.who,
            },
            "map_identity_safe": lambda: {
                "provider": "auth", "external_id": one_of(*"abcd"), "crm_user_id": self.who, "user_id": self.who,
            },
            "unmap_identity_safe": lambda: {
                "provider": "auth", "external_id": one_of(*"abcd"), "user_id": self.who,
            },
        }  # fmt: skip


#: What kind of row the id in an RPC's answer names.
_MADE = {
    "create_lead_safe": "leads", "create_order_safe": "orders", "quick_order_safe": "orders",
    "checkout_order_safe": "orders", "record_generic_payment_safe": "payments", "create_task_safe": "tasks",
    "upsert_shipment_safe": "shipments", "attach_document_safe": "documents", "replace_document_safe": "documents",
}  # fmt: skip


def _client(url: str, rows: Rows, name: str, count: int, ended: Counter[str]) -> None:
    dice = chance.generator(name)
    calls = Calls(rows, dice)
    arguments = calls.arguments()
    names = sorted(arguments)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET ROLE crm_app")
        client = CrmClient(connection)
        for _ in range(count):
            rpc = dice.choice(names)
            try:
                answer = getattr(client, rpc)(**arguments[rpc]())
            except Busy as busy:
                # a deadlock names both statements in its detail
                ended[f"{busy.sqlstate} {rpc}: {busy.__cause__}"] += 1
                continue
            except CrmError as refused:
                ended[refused.sqlstate] += 1
                continue
            ended["ok"] += 1
            ended[f"ok {rpc}"] += 1
            if rpc in _MADE:
                rows.add(_MADE[rpc], answer.id)
            if "customer_id" in answer.data:
                rows.add("customers", answer.data["customer_id"])


@pytest.mark.random
def test_eight_clients_at_once(new_database: Callable[..., str]) -> None:
    """Clients that share customers, orders, people, references and contacts never deadlock, and break no rule."""
    url = new_database("crm")
    with psycopg.connect(url, autocommit=True) as connection:
        people = [
            *(add_user(connection, name, "admin") for name in ("Ada", "Alan", "Ann", "Axel")),
            *(add_user(connection, name) for name in ("Max", "Mia", "Moe")),
        ]
        rows = Rows(people)
        for _ in range(4):
            lead = CrmClient(connection).create_lead_safe(**Calls(rows, chance.generator("first")).form())
            rows.add("leads", lead.id)
            rows.add("customers", lead.data["customer_id"])
        assert set(Calls(rows, chance.generator("names")).arguments()) == set(RPC_NAMES)
        ended = [Counter[str]() for _ in range(CLIENTS)]
        started = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(
                pool.map(
                    lambda n: _client(url, rows, f"client {n}", CALLS * chance.TIMES // CLIENTS, ended[n]),
                    range(CLIENTS),
                )
            )
        total = sum(ended, Counter())
        print(f"{time.monotonic() - started:.0f} s: {dict(total)}")
        known = {"42501", "PT404", "PT409", "PT422", "ok", *(f"ok {rpc}" for rpc in RPC_NAMES)}
        assert [end for end in total if end not in known] == []
        assert {rpc for rpc in RPC_NAMES if not total[f"ok {rpc}"]} == set(), (
            "never succeeded: nothing was tried"
        )
        assert value(connection, "SELECT count(*) FROM public.users WHERE active AND role = 'admin'") > 0
        # the views' sums are the rules' sums
        assert read(
            connection,
            "SELECT b.order_id FROM public.orders o JOIN public.order_balance b ON b.order_id = o.id"
            " CROSS JOIN LATERAL crm_private.client_money(o.id, o.currency) m"
            " WHERE (b.client_paid, b.refunded, b.refunds_open, b.paid_out + b.payouts_open)"
            " IS DISTINCT FROM (m.paid, m.refunded, m.refunds_open, crm_private.payouts(o.id, o.currency))",
        ) == []  # fmt: skip
        assert broken_invariants(connection) == {}
