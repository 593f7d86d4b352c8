"""The rules of the RPCs for people, documents, tasks and shipments."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Forbidden, Invalid, NotFound
from crm_analytics.crm.proof import invariants
from crm_analytics.crm.schema.catalog import READ_NAMES, RPC_NAMES
from crm_analytics_tests.crm.conftest import Connection, rows, value

pytestmark = pytest.mark.rolled_back

SYSTEM = UUID("00000000-0000-0000-0000-000000000001")


def test_admin_rpcs_are_for_admins(client: CrmClient, manager: UUID, admin: UUID) -> None:
    """A manager cannot create users, activate them or map their logins."""
    for actor in (manager, None):
        for call in (
            lambda who: client.create_user_safe(
                name="Eve", email="eve@example.com", role="admin", user_id=who
            ),
            lambda who: client.set_user_active_safe(crm_user_id=admin, active=False, user_id=who),
            lambda who: client.map_identity_safe(
                provider="auth", external_id="1", crm_user_id=admin, user_id=who
            ),
            lambda who: client.set_user_role_safe(crm_user_id=admin, role="manager", user_id=who),
            lambda who: client.update_user_safe(crm_user_id=admin, user_id=who, email="eve@example.com"),
        ):
            with pytest.raises(Forbidden):
                call(actor)


def test_user_is_created_once(crm: Connection, client: CrmClient, admin: UUID) -> None:
    """One address makes one account, whatever its case."""
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


def test_deactivated_user_can_no_longer_act(
    crm: Connection, client: CrmClient, admin: UUID, manager: UUID
) -> None:
    """A deactivated user cannot act, and the last admin cannot be deactivated."""
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


def test_user_is_edited(crm: Connection, client: CrmClient, admin: UUID, manager: UUID) -> None:
    """Admins change a user's name and address; the trail has both, and an address has one user."""
    client.update_user_safe(crm_user_id=manager, user_id=admin, name=" Maxim ", email="Maxim@Example.com ")
    assert rows(crm, "SELECT name, email FROM public.users WHERE id = %s", manager) == [
        ("Maxim", "maxim@example.com")
    ]
    assert rows(
        crm, "SELECT actor_id, payload -> 'changes' FROM public.audit_log ORDER BY id DESC LIMIT 1"
    ) == [
        (admin, {"name": {"old": "Max", "new": "Maxim"}, "email": {"old": "max@example.com", "new": "maxim@example.com"}})
    ]  # fmt: skip
    assert client.update_user_safe(crm_user_id=manager, user_id=admin, name=" ").data["name"] == "Maxim"
    with pytest.raises(Conflict) as refused:
        client.update_user_safe(crm_user_id=manager, user_id=admin, email="ADA@example.com")
    assert (refused.value.detail["rule"], refused.value.detail["id"]) == ("unique_email", str(admin))
    with pytest.raises(Invalid):
        client.update_user_safe(crm_user_id=manager, user_id=admin, email="x")
    with pytest.raises(Forbidden):
        client.update_user_safe(crm_user_id=manager, user_id=manager, name="Boss")
    with pytest.raises(NotFound):
        client.update_user_safe(crm_user_id=uuid4(), user_id=admin)
    with pytest.raises(Conflict):
        client.update_user_safe(crm_user_id=SYSTEM, user_id=admin, name="x")


def test_role_is_changed(crm: Connection, client: CrmClient, admin: UUID, manager: UUID) -> None:
    """Admins make admins and managers of others, never of themselves or of the system user."""
    assert client.set_user_role_safe(crm_user_id=manager, role="admin", user_id=admin).data["role"] == "admin"
    client.set_user_role_safe(crm_user_id=admin, role="manager", user_id=manager)
    audit = value(crm, "SELECT max(id) FROM public.audit_log")
    client.set_user_role_safe(crm_user_id=admin, role="manager", user_id=manager)
    assert value(crm, "SELECT max(id) FROM public.audit_log") == audit
    with pytest.raises(Forbidden):
        client.set_user_role_safe(crm_user_id=admin, role="admin", user_id=admin)
    for who in (manager, SYSTEM):
        with pytest.raises(Conflict):
            client.set_user_role_safe(crm_user_id=who, role="manager", user_id=manager)
    with pytest.raises(Invalid):
        client.set_user_role_safe(crm_user_id=admin, role="boss", user_id=manager)
    with pytest.raises(NotFound):
        client.set_user_role_safe(crm_user_id=uuid4(), role="admin", user_id=manager)


def test_identity_is_unmapped(crm: Connection, client: CrmClient, admin: UUID, manager: UUID) -> None:
    """An unmapped identity is nobody's until it is mapped again, to anyone; an admin keeps an own one."""
    wanted: dict[str, Any] = {"provider": "auth", "external_id": "1", "user_id": admin}
    client.map_identity_safe(crm_user_id=manager, **wanted)
    with pytest.raises(Forbidden):
        client.unmap_identity_safe(provider="auth", external_id="1", user_id=manager)
    assert client.unmap_identity_safe(**{**wanted, "provider": " auth "}).id == manager
    with pytest.raises(Forbidden):
        client.resolve_crm_user(provider="auth", external_id="1")
    with pytest.raises(NotFound):
        client.unmap_identity_safe(**wanted)
    with pytest.raises(Invalid):
        client.unmap_identity_safe(**{**wanted, "external_id": " "})
    client.map_identity_safe(crm_user_id=admin, **wanted)
    with pytest.raises(Conflict):
        client.unmap_identity_safe(**wanted)
    client.map_identity_safe(crm_user_id=admin, **{**wanted, "external_id": "2"})
    client.unmap_identity_safe(**wanted)
    assert rows(
        crm, "SELECT action, entity_id = %s FROM public.audit_log WHERE entity = 'user_identity_map' ORDER BY id", admin
    ) == [
        ("map_identity", False), ("unmap_identity", False), ("map_identity", True), ("map_identity", True),
        ("unmap_identity", True),
    ]  # fmt: skip
    found = invariants.evaluate(crm, frozenset({"identities_equal_their_audit_rows"}))
    assert all(result.holds for result in found.values())


def test_address_with_blanks_is_the_same_address(crm: Connection, client: CrmClient, admin: UUID) -> None:
    """Blanks around an address do not matter, even if the owner wrote them into the table."""
    user = value(
        crm, "INSERT INTO public.users (name, email) VALUES ('Eve', ' Eve@example.com ') RETURNING id"
    )
    assert client.resolve_crm_user(provider="auth", external_id="1", email="eve@example.com").id == user
    with pytest.raises(Conflict) as refused:
        client.create_user_safe(name="Eve", email="eve@example.com", role="manager", user_id=admin)
    assert refused.value.detail["id"] == str(user)


def test_identifiers_are_not_too_long(
    client: CrmClient, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """An identifier that is too long for its index is Invalid, not an error of the index."""
    longest, too_long = "я" * 255, "x" * 256
    client.map_identity_safe(provider=longest, external_id=longest, crm_user_id=manager, user_id=admin)
    client.upsert_shipment_safe(order_id=order.id, user_id=manager, tracking_number=longest)
    for call, field in (
        (lambda: client.resolve_crm_user(provider=too_long, external_id="1"), "p_provider"),
        (lambda: client.resolve_crm_user(provider="auth", external_id=too_long), "p_external_id"),
        (
            lambda: client.map_identity_safe(
                provider="auth", external_id=too_long, crm_user_id=manager, user_id=admin
            ),
            "p_external_id",
        ),
        (
            lambda: client.upsert_shipment_safe(order_id=order.id, user_id=manager, tracking_number=too_long),
            "p_tracking_number",
        ),
    ):
        with pytest.raises(Invalid) as refused:
            call()
        assert refused.value.detail["field"] == field
        assert refused.value.detail["accepted"] == "at most 255 characters"


def test_identity_is_never_remapped(crm: Connection, client: CrmClient, admin: UUID, manager: UUID) -> None:
    """A mapped identity stays with its user; the trail would otherwise name the wrong person."""
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
    """An edit of a customer changes only the given fields; addresses are objects."""
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
    for name in ("billing_address", "delivery_details"):
        for scalar in (42, "street", [1], None):
            with pytest.raises(Invalid) as invalid:
                client.update_customer_safe(customer_id=customer, user_id=manager, **{name: Jsonb(scalar)})  # type: ignore[arg-type]
            assert (invalid.value.detail["field"], invalid.value.detail["accepted"]) == (
                f"p_{name}",
                "a JSON object",
            )
    with pytest.raises(NotFound):
        client.update_customer_safe(customer_id=uuid4(), user_id=manager)


def test_document_belongs_to_an_order_or_a_lead(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """A document belongs to an existing order or lead."""
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
    """A task can be postponed, completed, reopened and handed on; its status follows completed."""
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


@pytest.mark.parametrize("infinite", ["infinity", "-infinity"])
def test_times_are_finite(crm: Connection, order: CrmResult, manager: UUID, infinite: str) -> None:
    """Infinite times and dates are refused; programs that compute with them would fail."""
    for call, field in (
        ("create_task_safe(p_title => 't', p_created_by => %(who)s, p_due_at => %(at)s)", "p_due_at"),
        ("update_task_safe(p_task_id => %(who)s, p_user_id => %(who)s, p_due_at => %(at)s)", "p_due_at"),
        (
            "upsert_shipment_safe(p_order_id => %(order)s, p_user_id => %(who)s, p_estimated_delivery_date => %(at)s)",
            "p_estimated_delivery_date",
        ),
    ):
        with pytest.raises(errors.Error) as refused, crm.transaction():
            crm.execute(f"SELECT public.{call}", {"who": manager, "order": order.id, "at": infinite})
        assert refused.value.sqlstate == "PT422"
        assert json.loads(refused.value.diag.message_detail or "")["field"] == field


def test_parcel_is_found_without_its_carrier(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """News of a parcel without its carrier finds the parcel by its number."""
    parcel = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, tracking_number="T-1", provider="cdek"
    )
    moved = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, tracking_number="T-1", status="customs"
    )
    assert moved.id == parcel.id
    assert rows(crm, "SELECT provider::text, status FROM public.shipments") == [("cdek", "customs")]


def test_shipment_rules(crm: Connection, client: CrmClient, order: CrmResult, manager: UUID) -> None:
    """A parcel stays with its order, and one carrier's number is not another's."""
    first = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, tracking_number="T-1", provider="rusbid"
    )
    second = client.upsert_shipment_safe(
        order_id=order.id, user_id=manager, tracking_number="T-1", provider="cdek",
        estimated_delivery_date=date(2026, 4, 1),
    )  # fmt: skip
    assert first.id != second.id
    again = client.upsert_shipment_safe(order_id=order.id, user_id=manager, tracking_number="T-1")
    assert again.id in (first.id, second.id)
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
    """The client has every RPC with all its arguments."""
    found = {
        name: set(arguments)
        for name, arguments in rows(
            crm,
            "SELECT proname, proargnames FROM pg_proc WHERE proowner = 'crm_rpc'::regrole"
            " AND pronamespace = 'public'::regnamespace AND provolatile = 'v'",
        )
    }
    methods = {name: getattr(CrmClient, name) for name in dir(CrmClient) if not name.startswith("_")}
    assert {
        name: {f"p_{argument}" for argument in method.__annotations__ if argument != "return"}
        for name, method in methods.items()
        if name not in READ_NAMES
    } == found
    assert set(found) == set(RPC_NAMES)
    assert set(methods) - set(found) == set(READ_NAMES)
