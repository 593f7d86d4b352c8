"""The business scenarios 1 to 9 and their typical sequences, through the RPCs: exactly the rows that each must leave."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden
from crm_analytics_tests.crm.conftest import Connection, pay, rows, value

pytestmark = pytest.mark.rolled_back

SYSTEM = UUID("00000000-0000-0000-0000-000000000001")
ITEMS = [{"model": "Gravel 54", "qty": 1}]


def counts(crm: Connection) -> dict[str, int]:
    """Returns the number of rows per table, without the system user and its audit row."""
    tables = (
        "customers", "leads", "orders", "payments", "documents", "tasks", "shipments", "order_status_events",
        "user_identity_map",
    )  # fmt: skip
    return {t: n for t in tables if (n := value(crm, f"SELECT count(*) FROM public.{t}"))}


def audit(crm: Connection, since: int = 0) -> list[tuple[Any, ...]]:
    return rows(
        crm,
        "SELECT actor_id, action, entity, entity_id FROM public.audit_log WHERE id > %s ORDER BY id",
        since,
    )


def last_audit(crm: Connection) -> int:
    return value(crm, "SELECT max(id) FROM public.audit_log")


def events(crm: Connection, order: CrmResult) -> list[tuple[Any, ...]]:
    return rows(
        crm,
        "SELECT seq, old_status, new_status, changed_by FROM public.order_status_events WHERE order_id = %s ORDER BY seq",
        order.id,
    )


def test_1_lead_arrives(crm: Connection, client: CrmClient) -> None:
    """A form on the site leaves a new lead with its contact and its customer."""
    before = last_audit(crm)
    lead = client.create_lead_safe(
        source="site", full_name="Olga Example", phone="+1 (555) 010-0100", email="Olga@Example.com",
        bike_url="https://example.com/bike/1", customer_comment="for commuting", estimated_budget_eur=1500,
    )  # fmt: skip
    assert counts(crm) == {"customers": 1, "leads": 1}
    assert rows(
        crm,
        "SELECT source, contact, status::text, customer_id, bike_url, customer_comment, estimated_budget_eur,"
        " assigned_to, updated_at >= created_at FROM public.leads WHERE id = %s",
        lead.id,
    ) == [
        ("site", "+1 (555) 010-0100, olga@example.com", "new", UUID(lead.data["customer_id"]),
         "https://example.com/bike/1", "for commuting", 1500, None, True)
    ]  # fmt: skip
    customer = UUID(lead.data["customer_id"])
    assert rows(crm, "SELECT id, full_name, phone, email, preferred_channel::text FROM public.customers") == [
        (customer, "Olga Example", "+1 (555) 010-0100", "olga@example.com", "telegram")
    ]
    contacts = dict(rows(crm, "SELECT kind, id FROM public.customer_contacts"))
    assert audit(crm, before) == [
        (SYSTEM, "create", "customers", customer),
        (SYSTEM, "create", "customer_contacts", contacts["email"]),
        (SYSTEM, "create", "customer_contacts", contacts["phone"]),
        (SYSTEM, "create", "leads", lead.id),
    ]
    assert rows(crm, "SELECT kind, key, customer_id FROM public.customer_contacts ORDER BY kind") == [
        ("email", "olga@example.com", customer),
        ("phone", "15550100100", customer),
    ]


@pytest.mark.parametrize(
    "again",
    [
        {"phone": "001 555 0100100"},
        {"phone": "+1-555-010-0100", "email": "other@example.com"},
        {"email": " OLGA@example.COM "},
    ],
)
def test_1_known_customer_is_found(crm: Connection, client: CrmClient, again: dict[str, str]) -> None:
    """A person who writes again stays one customer."""
    first = client.create_lead_safe(
        source="site", full_name="Olga Example", phone="+1 555 010 0100", email="olga@example.com"
    )
    second = client.create_lead_safe(source="telegram", full_name="O. Example", **again)  # type: ignore[arg-type]
    assert second.data["customer_id"] == first.data["customer_id"]
    assert counts(crm) == {"customers": 1, "leads": 2}


def test_1_russian_eight_is_seven(crm: Connection, client: CrmClient) -> None:
    """8 916… and +7 916… are one phone, so one customer."""
    first = client.create_lead_safe(source="avito", full_name="Ivan Example", phone="8 (916) 555-01-23")
    second = client.create_lead_safe(source="site", full_name="Ivan Example", phone="+7 916 555 0123")
    assert second.data["customer_id"] == first.data["customer_id"]


def test_2_operator_works_on_lead(crm: Connection, client: CrmClient, manager: UUID, admin: UUID) -> None:
    """Taking a lead records who took it, when, and the notes."""
    lead = client.create_lead_safe(source="telegram", full_name="Olga Example", contact="@olga")
    before = last_audit(crm)
    client.advance_lead_status_safe(
        lead_id=lead.id, new_status="in_progress", user_id=manager, notes="wants blue"
    )
    assert rows(
        crm, "SELECT status::text, assigned_to, notes, updated_at > created_at FROM public.leads"
    ) == [("in_progress", manager, "wants blue", True)]
    client.advance_lead_status_safe(
        lead_id=lead.id, new_status="rejected", user_id=manager, notes="too dear", assigned_to=admin
    )
    assert rows(crm, "SELECT status::text, assigned_to, notes FROM public.leads") == [
        ("rejected", admin, "wants blue\ntoo dear")
    ]
    assert audit(crm, before) == [
        (manager, "status_change", "leads", lead.id),
        (manager, "status_change", "leads", lead.id),
    ]
    assert rows(
        crm,
        "SELECT payload ->> 'old', payload ->> 'new' FROM public.audit_log WHERE id > %s ORDER BY id",
        before,
    ) == [("new", "in_progress"), ("in_progress", "rejected")]


def test_3_order_from_lead(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """An order from a lead keeps the lead and its customer, and has its first event."""
    lead = client.create_lead_safe(
        source="site", full_name="Olga Example", email="olga@example.com", bike_url="https://example.com/b/1"
    )
    client.advance_lead_status_safe(lead_id=lead.id, new_status="in_progress", user_id=manager)
    before = last_audit(crm)
    order = client.create_order_safe(
        customer_id=None, lead_id=lead.id, items=ITEMS, total_amount=Decimal("1234.50"), currency="EUR",
        user_id=manager,
    )  # fmt: skip
    assert rows(
        crm,
        "SELECT order_code, lead_id, customer_id, items, total_amount, currency::text, final_price_eur, status::text,"
        " created_by, updated_by, assigned_manager, bike_url FROM public.orders WHERE id = %s",
        order.id,
    ) == [
        (order.data["order_code"], lead.id, UUID(lead.data["customer_id"]), ITEMS, Decimal("1234.50"), "EUR",
         Decimal("1234.50"), "created", manager, manager, manager, "https://example.com/b/1")
    ]  # fmt: skip
    assert order.data["order_code"]
    assert events(crm, order) == [(1, None, "created", manager)]
    assert rows(crm, "SELECT status::text FROM public.leads") == [("converted",)]
    assert audit(crm, before) == [
        (manager, "create", "orders", order.id),
        (manager, "status_change", "leads", lead.id),
    ]
    with pytest.raises(Conflict) as refused:
        client.create_order_safe(
            customer_id=None, lead_id=lead.id, total_amount=1, currency="EUR", user_id=manager
        )
    assert refused.value.detail["orders"] == [str(order.id)]


def test_4_client_pays(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A confirmed payment makes the order paid and keeps its provider's reference."""
    before = last_audit(crm)
    payment = pay(client, order, manager, 1000, "prov-1", method="online_cashbox")
    assert payment.data == {
        "id": str(payment.id), "duplicate": False, "order_id": str(order.id), "payment_status": "completed",
        "order_status": "paid", "total_amount": Decimal("1000.00"), "currency": "EUR",
        "client_paid": Decimal("1000.00"), "overpaid": 0,
    }  # fmt: skip
    assert rows(
        crm,
        "SELECT order_id, amount, currency::text, direction::text, role::text, method::text, status::text,"
        " external_reference, reference_key, created_by FROM public.payments",
    ) == [
        (order.id, Decimal("1000.00"), "EUR", "incoming", "client_payment", "online_cashbox", "completed", "prov-1",
         "prov-1", manager)
    ]  # fmt: skip
    assert events(crm, order) == [(1, None, "created", manager), (2, "created", "paid", manager)]
    assert value(crm, "SELECT status::text FROM public.orders") == "paid"
    assert audit(crm, before) == [
        (manager, "create", "payments", payment.id),
        (manager, "status_change", "orders", order.id),
    ]
    before = last_audit(crm)
    again = pay(client, order, manager, Decimal("1000.00"), "  prov-1 ", method="online_cashbox")
    assert again.duplicate and again.id == payment.id
    assert counts(crm)["payments"] == 1
    assert audit(crm, before) == []


def test_5_payout_and_refund(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Payouts follow the client's money, and only admins refund."""
    supplier = {"direction": "outgoing", "role": "supplier_payment"}
    refund = {"direction": "outgoing", "role": "refund"}
    with pytest.raises(Conflict) as refused:
        pay(client, order, manager, 700, **supplier)
    assert refused.value.detail["rule"] == "payout_after_payment"
    assert "payments" not in counts(crm)
    pay(client, order, manager, 1000)
    pay(client, order, manager, 700, **supplier)
    with pytest.raises(Forbidden) as forbidden:
        pay(client, order, manager, 100, **refund)
    assert forbidden.value.detail["rule"] == "role"
    booked = pay(client, order, admin, 100, **refund)
    assert rows(
        crm,
        "SELECT direction::text, role::text, amount, status::text, created_by FROM public.payments ORDER BY created_at",
    ) == [
        ("incoming", "client_payment", Decimal("1000.00"), "completed", manager),
        ("outgoing", "supplier_payment", Decimal("700.00"), "completed", manager),
        ("outgoing", "refund", Decimal("100.00"), "completed", admin),
    ]
    assert audit(crm)[-1] == (admin, "create", "payments", booked.id)
    assert value(crm, "SELECT status::text FROM public.orders") == "paid"


def test_6_manager_moves_order(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """Every status change has an event and an audit row, and only an admin closes an order."""
    pay(client, order, manager, 1000)
    before = last_audit(crm)
    client.advance_order_status_safe(
        order_id=order.id, new_status="in_delivery", user_id=manager, reason="handed over", notes="box 2"
    )
    client.advance_order_status_safe(order_id=order.id, new_status="delivered", user_id=manager)
    with pytest.raises(Forbidden):
        client.advance_order_status_safe(order_id=order.id, new_status="closed", user_id=manager)
    client.advance_order_status_safe(order_id=order.id, new_status="closed", user_id=admin)
    assert events(crm, order)[2:] == [
        (3, "paid", "in_delivery", manager),
        (4, "in_delivery", "delivered", manager),
        (5, "delivered", "closed", admin),
    ]
    assert rows(crm, "SELECT reason, notes FROM public.order_status_events WHERE seq = 3") == [
        ("handed over", "box 2")
    ]
    assert rows(crm, "SELECT status::text, updated_by, updated_at > created_at FROM public.orders") == [
        ("closed", admin, True)
    ]
    assert audit(crm, before) == [
        (actor, "status_change", "orders", order.id) for actor in (manager, manager, admin)
    ]


def test_7_document(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A document has its order, its uploader and its audit row."""
    document = client.attach_document_safe(
        document_type="passport", storage_url="s3://crm/passport.pdf", uploaded_by=manager, order_id=order.id
    )
    assert rows(
        crm,
        "SELECT id, order_id, lead_id, type::text, file_url, uploaded_by, uploaded_at IS NOT NULL FROM public.documents",
    ) == [(document.id, order.id, None, "passport", "s3://crm/passport.pdf", manager, True)]
    assert audit(crm)[-1] == (manager, "create", "documents", document.id)


def test_8_task(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID) -> None:
    """A task names who gave it to whom until when, and can be completed."""
    task = client.create_task_safe(
        title="Pack the bike",
        created_by=manager,
        order_id=order.id,
        assignee_id=admin,
        description="two boxes",
    )
    assert rows(
        crm,
        "SELECT id, order_id, title, description, assigned_to, due_at, created_by, status FROM public.tasks",
    ) == [(task.id, order.id, "Pack the bike", "two boxes", admin, None, manager, "open")]
    client.update_task_safe(task_id=task.id, user_id=admin, completed=True)
    assert rows(crm, "SELECT status, completed, title FROM public.tasks") == [("done", True, "Pack the bike")]
    assert audit(crm)[-2:] == [
        (manager, "create", "tasks", task.id),
        (admin, "update", "tasks", task.id),
    ]


def test_9_identity(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """A signed-in person acts as one user, even after a change of address."""
    with pytest.raises(Forbidden):
        client.resolve_crm_user(provider="auth", external_id="a-1", email="nobody@example.com")
    assert client.resolve_crm_user(provider="auth", external_id="a-1", email="MAX@example.com").id == manager
    assert rows(crm, "SELECT provider, external_id, crm_user_id FROM public.user_identity_map") == [
        ("auth", "a-1", manager)
    ]
    other = crm.execute(
        "INSERT INTO public.users (name, email) VALUES ('Eve', 'eve@example.com') RETURNING id"
    ).fetchone()
    assert other is not None
    # Once mapped, the address no longer matters.
    assert client.resolve_crm_user(provider="auth", external_id="a-1", email="eve@example.com").id == manager
    assert counts(crm) == {"user_identity_map": 1}


def test_sequence_quick_order_of_a_guest(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """A guest's lead, customer, order and payment are connected."""
    order = client.quick_order_safe(
        source="landing", full_name="Guest Example", items=ITEMS, total_amount=900, currency="EUR",
        phone="+1 555 010 0177",
    )  # fmt: skip
    pay(client, order, manager, 900, "prov-9", method="card")
    assert counts(crm) == {
        "customers": 1, "leads": 1, "orders": 1, "payments": 1, "order_status_events": 2,
    }  # fmt: skip
    assert rows(
        crm,
        "SELECT o.status::text, o.created_by, l.status::text, l.customer_id = o.customer_id, c.full_name, p.status::text"
        " FROM public.orders o JOIN public.leads l ON l.id = o.lead_id JOIN public.customers c ON c.id = o.customer_id"
        " JOIN public.payments p ON p.order_id = o.id",
    ) == [("paid", SYSTEM, "converted", True, "Guest Example", "completed")]
    assert events(crm, order) == [(1, None, "created", SYSTEM), (2, "created", "paid", manager)]
    assert [(action, entity) for _, action, entity, _ in audit(crm) if entity != "users"] == [
        ("create", "customers"),
        ("create", "customer_contacts"),
        ("create", "leads"),
        ("create", "orders"),
        ("status_change", "leads"),
        ("create", "payments"),
        ("status_change", "orders"),
    ]


def test_sequence_checkout(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """A checkout leaves one order with its payment, even if the shop repeats the call."""
    customer = UUID(
        client.create_lead_safe(source="shop", full_name="Olga", email="olga@example.com").data["customer_id"]
    )
    wanted: dict[str, Any] = {
        "customer_id": customer, "items": ITEMS, "total_amount": Decimal("450.25"), "currency": "USD",
        "method": "online_cashbox", "external_reference": "chk-1", "user_id": manager,
    }  # fmt: skip
    done = client.checkout_order_safe(**wanted)
    assert done.data["status"] == "paid"
    assert rows(
        crm,
        "SELECT id, status::text, total_amount, currency::text, final_price_eur, created_by FROM public.orders",
    ) == [(done.id, "paid", Decimal("450.25"), "USD", None, manager)]
    assert rows(crm, "SELECT id, order_id, amount, created_by FROM public.payments") == [
        (UUID(done.data["payment_id"]), done.id, Decimal("450.25"), manager)
    ]
    assert events(crm, done) == [(1, None, "created", manager), (2, "created", "paid", manager)]
    before = last_audit(crm)
    again = client.checkout_order_safe(**wanted)
    assert (again.id, again.duplicate, again.data["payment_id"]) == (done.id, True, done.data["payment_id"])
    with pytest.raises(Conflict) as refused:
        client.checkout_order_safe(**{**wanted, "total_amount": 451})
    assert refused.value.detail["field"] == "amount"
    assert (audit(crm, before), counts(crm)["orders"]) == ([], 1)


def test_sequence_admin_refund_after_cancellation(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """The money of a cancelled order can go back, and no more than that."""
    pay(client, order, manager, 1000)
    with pytest.raises(Forbidden):
        client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=manager)
    client.advance_order_status_safe(order_id=order.id, new_status="cancelled", user_id=admin)
    refund = {"direction": "outgoing", "role": "refund"}
    with pytest.raises(Conflict) as refused:
        pay(client, order, admin, Decimal("1000.01"), **refund)
    assert refused.value.detail["accepted"] == Decimal("1000.00")
    assert pay(client, order, admin, 1000, **refund).data["client_paid"] == 0
    assert value(crm, "SELECT status::text FROM public.orders") == "cancelled"


def test_shipment_is_followed(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """News of one parcel, reported twice, updates one shipment."""
    first = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, provider="cdek", tracking_number="T-1", status="shipped"
    )
    again = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, provider="cdek", tracking_number=" T-1 ", status="delivered",
        client_received=True,
    )  # fmt: skip
    assert again.id == first.id
    assert rows(
        crm,
        "SELECT order_id, provider::text, tracking_number, status, client_received, created_by FROM public.shipments",
    ) == [(order.id, "cdek", "T-1", "delivered", True, manager)]
    assert audit(crm)[-2:] == [
        (manager, "create", "shipments", first.id),
        (manager, "update", "shipments", first.id),
    ]
