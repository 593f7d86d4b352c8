"""Rules of the RPCs for people, documents, tasks and shipments."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics_tests.crm.conftest import Connection, rows, value

SYSTEM = UUID("00000000-0000-0000-0000-000000000001")


@pytest.fixture
def crm(crm_in_transaction: Connection) -> Connection:
    """These tests need one connection and no clock: a rolled back transaction is much faster than a database."""
    return crm_in_transaction


def test_admin_rpcs_are_for_admins(client: CrmClient, manager: UUID, admin: UUID) -> None:
    """Without it a manager could make himself an admin, or an account act as somebody else."""
    for actor in (manager, None):
        for call in (
            lambda who: client.create_user_safe(
                name="Eve", email="eve@example.com", role="admin", user_id=who
            ),
            lambda who: client.set_user_active_safe(crm_user_id=admin, active=False, user_id=who),
            lambda who: client.map_identity_safe(
                provider="auth", external_id="1", crm_user_id=admin, user_id=who
            ),
        ):
            with pytest.raises(Forbidden):
                call(actor)


def test_user_is_created_once(crm: Connection, client: CrmClient, admin: UUID) -> None:
    """Without it one person could have two accounts, differing in the case of the address."""
    user = client.create_user_safe(name=" Eve ", email="Eve@Example.com ", role="manager", user_id=admin)
    assert rows(crm, "SELECT name, email, role::text, active FROM public.users WHERE id = %s", user.id) == [
        ("Eve", "eve@example.com", "manager", True)
    ]
    assert rows(crm, "SELECT actor_id, action FROM public.audit_log WHERE entity_id = %s", user.id) == [
        (admin, "create")
    ]
    with pytest.raises(Conflict) as refused:
        client.create_user_safe(name="E", email="EVE@example.com", role="manager", user_id=admin)
    assert refused.value.detail["id"] == str(user.id)
    for changed, field in (
        ({"role": "boss"}, "p_role"),
        ({"email": "x"}, "p_email"),
        ({"name": ""}, "p_name"),
    ):
        with pytest.raises(Invalid) as invalid:
            client.create_user_safe(
                **{"name": "n", "email": "n@example.com", "role": "manager", "user_id": admin, **changed}  # type: ignore[arg-type]
            )
        assert invalid.value.detail["field"] == field


def test_deactivated_user_acts_no_more(
    crm: Connection, client: CrmClient, admin: UUID, manager: UUID
) -> None:
    """Without it a dismissed employee would keep his rights, or the last admin lock everybody out."""
    client.resolve_crm_user(provider="auth", external_id="1", email="max@example.com")
    assert client.set_user_active_safe(crm_user_id=manager, active=False, user_id=admin).id == manager
    with pytest.raises(Forbidden):
        client.create_task_safe(title="t", created_by=manager)
    with pytest.raises(Forbidden):
        client.resolve_crm_user(provider="auth", external_id="1")
    with pytest.raises(Forbidden):
        client.resolve_crm_user(provider="auth", external_id="2", email="max@example.com")
    audit = value(crm, "SELECT max(id) FROM public.audit_log")
    client.set_user_active_safe(crm_user_id=manager, active=False, user_id=admin)
    assert value(crm, "SELECT max(id) FROM public.audit_log") == audit
    client.set_user_active_safe(crm_user_id=manager, active=True, user_id=admin)
    for who in (admin, SYSTEM):
        with pytest.raises(Conflict):
            client.set_user_active_safe(crm_user_id=who, active=False, user_id=admin)
    with pytest.raises(NotFound):
        client.set_user_active_safe(crm_user_id=uuid4(), active=False, user_id=admin)
    with pytest.raises(Invalid):
        client.set_user_active_safe(crm_user_id=manager, active=None, user_id=admin)  # type: ignore[arg-type]


def test_identity_is_never_remapped(crm: Connection, client: CrmClient, admin: UUID, manager: UUID) -> None:
    """Without it an account could be handed from one user to another, and the trail lie."""
    wanted: dict[str, Any] = {"provider": " auth ", "external_id": "1", "user_id": admin}
    for _ in range(2):
        assert client.map_identity_safe(crm_user_id=manager, **wanted).id == manager
    with pytest.raises(Conflict) as refused:
        client.map_identity_safe(crm_user_id=admin, **wanted)
    assert refused.value.detail["id"] == str(manager)
    with pytest.raises(Conflict):
        client.map_identity_safe(
            crm_user_id=SYSTEM, **{**wanted, "external_id": "2"}
        )  # the system user is inactive
    assert rows(crm, "SELECT provider, crm_user_id FROM public.user_identity_map") == [("auth", manager)]
    assert value(crm, "SELECT count(*) FROM public.audit_log WHERE action = 'map_identity'") == 1
    for blank in ({"provider": " "}, {"external_id": None}):
        with pytest.raises(Invalid):
            client.resolve_crm_user(**{"provider": "auth", "external_id": "1", **blank})  # type: ignore[arg-type]


def test_customer_edits(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """Without it an address for the invoice could not be kept, or an edit wipe the phone."""
    customer = UUID(order.data["customer_id"])
    client.update_customer_safe(
        customer_id=customer, user_id=manager, email="OLGA@example.com", billing_address={"city": "Riga"},
        delivery_details={"door": 4}, preferred_channel="email", country="LV",
    )  # fmt: skip
    assert rows(
        crm,
        "SELECT full_name, phone, email, billing_address, delivery_details, preferred_channel::text, country FROM public.customers",
    ) == [
        ("Olga Example", "+1 555 010 0100", "olga@example.com", {"city": "Riga"}, {"door": 4}, "email", "LV")
    ]
    assert set(value(crm, "SELECT payload -> 'changes' FROM public.audit_log ORDER BY id DESC LIMIT 1")) == {
        "email", "billing_address", "delivery_details", "preferred_channel", "country",
    }  # fmt: skip
    with pytest.raises(Invalid):
        client.update_customer_safe(customer_id=customer, user_id=manager, phone="1")
    with pytest.raises(NotFound):
        client.update_customer_safe(customer_id=uuid4(), user_id=manager)


def test_document_belongs_to_an_order_or_a_lead(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Without it files would hang in the air."""
    base: dict[str, Any] = {"document_type": "contract", "storage_url": "s3://x", "uploaded_by": manager}
    lead = client.create_lead_safe(source="s", full_name="n", phone="555 0100")
    client.attach_document_safe(**base, lead_id=lead.id)
    assert rows(crm, "SELECT order_id, lead_id FROM public.documents") == [(None, lead.id)]
    with pytest.raises(Forbidden):
        client.attach_document_safe(**{**base, "uploaded_by": None, "document_type": "x"})
    for changed, field in (
        ({"document_type": "selfie"}, "p_document_type"), ({"storage_url": " "}, "p_storage_url"), ({}, "p_order_id"),
    ):  # fmt: skip
        with pytest.raises(Invalid) as invalid:
            client.attach_document_safe(**{**base, **changed})
        assert invalid.value.detail["field"] == field
    for missing in ("order_id", "lead_id"):
        with pytest.raises(NotFound):
            client.attach_document_safe(**base, **{missing: uuid4()})  # type: ignore[arg-type]


def test_task_life(crm: Connection, client: CrmClient, manager: UUID) -> None:
    """Without it a task could not be put off, reopened or handed on, or its status and completed differ."""
    due = datetime(2026, 3, 1, 12, tzinfo=UTC)
    task = client.create_task_safe(title=" Call ", created_by=manager, due_at=due)
    assert rows(crm, "SELECT title, due_at, status FROM public.tasks") == [("Call", due, "open")]
    for completed, expected in ((True, "done"), (None, "done"), (False, "open")):
        moved = client.update_task_safe(task_id=task.id, user_id=manager, completed=completed)
        assert moved.data["status"] == expected
    with pytest.raises(Invalid):
        client.create_task_safe(title="", created_by=manager)
    for call in (
        lambda: client.update_task_safe(task_id=uuid4(), user_id=manager),
        lambda: client.create_task_safe(title="t", created_by=manager, order_id=uuid4()),
        lambda: client.create_task_safe(title="t", created_by=manager, lead_id=uuid4()),
    ):
        with pytest.raises(NotFound):
            call()


def test_shipment_rules(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """Without it a parcel could move to another order, or two carriers' numbers be mixed up."""
    first = client.upsert_shipment_safe(order_id=order.id, user_id=manager, tracking_number="T-1")
    second = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, tracking_number="T-1", provider="cdek",
        estimated_delivery_date=date(2026, 4, 1),
    )  # fmt: skip
    assert first.id != second.id
    assert client.upsert_shipment_safe(order_id=order.id, user_id=manager).id not in (first.id, second.id)
    client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, shipment_id=first.id, status="customs", warehouse_received=True
    )
    assert rows(
        crm,
        "SELECT provider::text, status, warehouse_received, client_received, tracking_number FROM public.shipments WHERE id = %s",
        first.id,
    ) == [("rusbid", "customs", True, False, "T-1")]
    other = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=1, currency="EUR", phone="5550101", user_id=manager
    )
    with pytest.raises(Conflict) as conflict:
        client.upsert_shipment_safe(order_id=other.id, user_id=manager, shipment_id=first.id)
    assert conflict.value.detail["rule"] == "shipment_order"
    for changed, field in (({"status": "flying"}, "p_status"), ({"provider": "owl"}, "p_provider")):
        with pytest.raises(Invalid) as invalid:
            client.upsert_shipment_safe(order_id=order.id, user_id=manager, **changed)  # type: ignore[arg-type]
        assert invalid.value.detail["field"] == field
    with pytest.raises(NotFound):
        client.upsert_shipment_safe(order_id=uuid4(), user_id=manager)
    with pytest.raises(NotFound):
        client.upsert_shipment_safe(order_id=order.id, user_id=manager, shipment_id=uuid4())


def test_client_has_every_rpc(crm: Connection) -> None:
    """Without it a new RPC, or a renamed argument, would be missing from the client."""
    found = {
        name: set(arguments)
        for name, arguments in rows(
            crm,
            "SELECT proname, proargnames FROM pg_proc WHERE proowner = 'crm_rpc'::regrole AND pronamespace = 'public'::regnamespace",
        )
    }
    methods = {name: getattr(CrmClient, name) for name in dir(CrmClient) if not name.startswith("_")}
    assert {
        name: {f"p_{argument}" for argument in method.__annotations__ if argument != "return"}
        for name, method in methods.items()
    } == found
    assert len(found) == 19
