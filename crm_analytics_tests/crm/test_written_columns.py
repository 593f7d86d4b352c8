"""Every column of the baseline can be written through the RPCs, or is listed here with the reason why not.

Nobody may write the tables directly, so a column without an RPC is frozen for ever after the adoption.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from crm_analytics.crm import CrmClient
from crm_analytics.crm.schema import manifest
from crm_analytics_tests.crm.conftest import Connection, rows

_ONCE = "given by its default when the row is made, and never changed"
#: Column of the baseline -> why no RPC sets it.
FROZEN = {
    **{f"{table}.id": _ONCE for table in (
        "users", "customers", "leads", "orders", "documents", "order_status_events", "payments", "shipments", "tasks"
    )},
    **{f"{table}.created_at": _ONCE for table in (
        "users", "customers", "leads", "orders", "order_status_events", "payments", "shipments", "tasks"
    )},
    "documents.uploaded_at": _ONCE,
}  # fmt: skip


def work(client: CrmClient, admin: UUID) -> None:
    """Makes calls that give every column that an RPC can write a value that is not its default."""
    user = client.create_user_safe(name="Eve", email="eve@example.com", role="admin", user_id=admin).id
    client.set_user_active_safe(crm_user_id=user, active=False, user_id=admin)
    snapshot = {"model": "Road 54"}
    lead = client.create_lead_safe(
        source="site", full_name="Olga", phone="555 0100", email="o@example.com", country="LV",
        preferred_channel="email", bike_url="https://example.com/b", bike_snapshot=snapshot, customer_comment="blue",
        estimated_budget_eur=900, user_id=admin,
    )  # fmt: skip
    client.advance_lead_status_safe(lead_id=lead.id, new_status="in_progress", user_id=admin)
    order = client.create_order_safe(
        customer_id=None, lead_id=lead.id, items=[], total_amount=Decimal(10), currency="EUR", user_id=admin,
        order_code="A-1", commission_eur=1, assigned_manager=admin,
    ).id  # fmt: skip
    paid = client.record_generic_payment_safe(
        order_id=order, direction="incoming", role="client_payment", method="card", amount=10, currency="EUR",
        external_reference="r-1", user_id=admin,
    )  # fmt: skip
    client.record_generic_payment_safe(
        order_id=order, direction="outgoing", role="refund", method="cash", amount=1, currency="EUR",
        related_payment_id=paid.id, user_id=admin,
    )  # fmt: skip
    client.attach_document_safe(document_type="photo", storage_url="x", uploaded_by=admin, order_id=order)
    task = client.create_task_safe(
        title="t", created_by=admin, order_id=order, description="d", assignee_id=admin,
        due_at=datetime(2030, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    client.update_task_safe(task_id=task.id, user_id=admin, completed=True)
    client.upsert_shipment_safe(
        order_id=order, user_id=admin, provider="ruspost", tracking_number="T-1", status="shipped",
        estimated_delivery_date=datetime(2030, 1, 1, tzinfo=UTC).date(), warehouse_received=True,
        warehouse_photos_received=True, client_received=True, ruspost_status={"code": 8},
        ruspost_last_update=datetime(2030, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def test_every_baseline_column_is_written_by_an_rpc_or_frozen_for_a_reason(
    crm: Connection, client: CrmClient, admin: UUID
) -> None:
    """After calls with every argument, each column of the baseline has a value that its default does not give."""
    columns = {
        key.removeprefix("column public."): facts
        for key, facts in manifest.baseline().objects.items()
        if key.startswith("column public.")
    }
    assert len(columns) > 70
    assert set(FROZEN) <= set(columns)
    admins_own = rows(crm, "SELECT id FROM public.users")
    work(client, admin)
    written = set()
    for name, facts in columns.items():
        table, column = name.split(".")
        if "(" in (facts["default"] or ""):
            continue  # a computed default looks like a written value
        old = [row[0] for row in admins_own] if table == "users" else []
        if rows(
            crm,
            f"SELECT FROM public.{table} WHERE {column} IS DISTINCT FROM ({facts['default'] or 'NULL'}) AND id <> ALL (%s)",
            old,
        ):
            written.add(name)
    assert sorted(set(columns) - written) == sorted(FROZEN)


def test_carriers_answer_is_kept_with_its_time(crm: Connection, client: CrmClient, admin: UUID) -> None:
    """A carrier's answer is kept as it came; without a time of its own it has the time of the call."""
    order = client.quick_order_safe(
        source="s", full_name="n", items=[], total_amount=1, currency="EUR", phone="555 0100", user_id=admin
    ).id
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    answer = {"operations": [{"type": 8, "at": "2026-03-01"}]}
    parcel = client.upsert_shipment_safe(
        order_id=order, user_id=admin, ruspost_status=answer, ruspost_last_update=at
    ).id
    query = "SELECT ruspost_status, ruspost_last_update FROM public.shipments"
    assert rows(crm, query) == [(answer, at)]
    client.upsert_shipment_safe(order_id=order, user_id=admin, shipment_id=parcel, status="customs")
    assert rows(crm, query) == [(answer, at)]
    client.upsert_shipment_safe(order_id=order, user_id=admin, shipment_id=parcel, ruspost_status=[])
    [(kept, when)] = rows(crm, query)
    assert kept == []
    assert when > at
