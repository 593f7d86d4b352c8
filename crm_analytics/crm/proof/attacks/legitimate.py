"""What must work, because a guard that refuses everything is no guard: a guard, grant or policy too many breaks it."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from crm_analytics.crm.proof.attacks.lab import Lab, attack
from crm_analytics.crm.proof.manifest import CRM_TABLES

#: Ways of an order that use every legal transition, each by the role that it needs; `paid` and `refunded` are payments.
_WAYS = (
    (("cancelled", "manager"),),
    (("awaiting_payment", "manager"), ("cancelled", "manager")),
    # Cancelling an order that holds client money would need an admin anyway, so it is refunded first.
    (("paid", "manager"), ("refunded", "admin"), ("cancelled", "admin")),
    (("paid", "manager"), ("in_delivery", "manager"), ("refunded", "admin"), ("cancelled", "admin")),
    (("paid", "manager"), ("in_delivery", "manager"), ("delivered", "manager"), ("closed", "admin")),
)


@attack("transitions", "functions")
def every_transition(lab: Lab) -> None:
    """Makes every legal transition with the least role that may; where an admin is needed, a manager is refused."""
    crm, manager = lab.client, lab.sample["manager"]
    for way in _WAYS:
        with lab.role("crm_app"):
            order = crm.create_order_safe(
                customer_id=lab.sample["customer"], total_amount=10, currency="EUR", user_id=manager
            ).id
            pay = partial(
                crm.record_generic_payment_safe, order_id=order, method="cash", amount=10, currency="EUR"
            )
            for status, role in way:
                user = lab.sample[role]
                if status == "refunded":
                    pay(direction="outgoing", role="refund", user_id=user)
                    continue
                if status == "paid":
                    pay(direction="incoming", role="client_payment", user_id=user)
                else:
                    if role == "admin":
                        advance = (
                            f"SELECT public.advance_order_status_safe(%(order)s, '{status}', %(manager)s)"
                        )
                        lab.refused([advance], order=order)
                    crm.advance_order_status_safe(order_id=order, new_status=status, user_id=user)
                _expect_status(lab, order, status)


def work_a_day(lab: Lab) -> None:
    """Takes an order all its way, and calls every RPC at least once, as the current role."""
    crm, sample = lab.client, lab.sample
    admin, manager = sample["admin"], sample["manager"]
    crm.resolve_crm_user(provider="attack", external_id="m")
    lead = crm.create_lead_safe(source="site", full_name="C", email="c@example.com", user_id=manager).id
    crm.advance_lead_status_safe(lead_id=lead, new_status="in_progress", user_id=manager, notes="called")
    crm.update_lead_safe(lead_id=lead, user_id=manager, notes="wants a 56")
    crm.update_customer_safe(customer_id=sample["customer"], user_id=manager, country="US")
    order = crm.create_order_safe(
        customer_id=None, lead_id=lead, total_amount=500, currency="EUR", user_id=manager
    ).id
    crm.update_order_safe(order_id=order, user_id=manager, assigned_manager=manager)
    pay = partial(crm.record_generic_payment_safe, order_id=order, currency="EUR", user_id=manager)
    client_pays = partial(pay, direction="incoming", role="client_payment")
    part = client_pays(method="cash", amount=200, status="planned", external_reference="day-1").id
    crm.update_payment_status_safe(payment_id=part, new_status="completed", user_id=manager)
    first, again = (client_pays(method="card", amount=300, external_reference="day-2") for _ in range(2))
    lab.expect((again.id, again.duplicate), (first.id, True), "a repeated payment")
    _expect_status(lab, order, "paid")
    pay(direction="outgoing", role="supplier_payment", method="bank_transfer", amount=250)
    attach = partial(crm.attach_document_safe, storage_url="u", uploaded_by=manager)
    attach(document_type="invoice", order_id=order)
    attach(document_type="passport", lead_id=lead)
    task = crm.create_task_safe(title="Pack", created_by=manager, order_id=order, lead_id=lead).id
    crm.update_task_safe(task_id=task, user_id=manager, completed=True)
    shipment = crm.upsert_shipment_safe(order_id=order, user_id=manager, provider="cdek").id
    crm.upsert_shipment_safe(order_id=order, user_id=manager, shipment_id=shipment, status="shipped")
    for status in ("in_delivery", "delivered", "closed"):
        crm.advance_order_status_safe(order_id=order, new_status=status, user_id=admin)
        _expect_status(lab, order, status)
    crm.record_generic_payment_safe(
        order_id=order, direction="outgoing", role="refund", method="bank_transfer", amount=10, currency="EUR",
        user_id=admin,
    )  # fmt: skip
    crm.quick_order_safe(
        source="site", full_name="D", phone="+1 202 555 0101", items=[{"model": "Gravel"}], total_amount=70,
        currency="USD",
    )  # fmt: skip
    crm.checkout_order_safe(
        customer_id=sample["customer"], items=[{"model": "City"}], total_amount=80, currency="EUR",
        method="online_cashbox", external_reference="day-3", user_id=manager,
    )  # fmt: skip
    user = crm.create_user_safe(name="New", email="new@example.com", role="manager", user_id=admin).id
    for _ in range(2):
        crm.map_identity_safe(provider="attack", external_id="new", crm_user_id=user, user_id=admin)
    crm.resolve_crm_user(provider="attack", external_id="by mail", email="New@example.com")
    crm.set_user_active_safe(crm_user_id=user, active=False, user_id=admin)


def _expect_status(lab: Lab, order: UUID, status: str) -> None:
    # Qualified names, because hostile_search_path works a day as well.
    query = "SELECT status::pg_catalog.text FROM public.orders WHERE id OPERATOR(pg_catalog.=) %(order)s"
    lab.expect(
        lab.run(query, order=order), status, "the order's status (did an update silently touch nothing?)"
    )


@attack("functions", "function_grants", "table_grants", "row_security", "columns", "transitions")
def working_day(lab: Lab) -> None:
    """Does what the application does every day: it must work as crm_app, and must reach the rows."""
    with lab.role("crm_app"):
        work_a_day(lab)


@attack("row_security", "table_grants")
def app_reads(lab: Lab) -> None:
    """Reads as crm_app, which must see every row of the tables that it may read."""
    for table in CRM_TABLES:
        count = lab.run(f"SELECT count(*) FROM public.{table}")
        with lab.role("crm_app"):
            lab.expect(
                lab.run(f"SELECT count(*) FROM public.{table}"),
                count or "some",
                f"rows of {table} for crm_app",
            )


@attack("functions", "function_grants", "table_grants", "row_security")
def sealing(lab: Lab) -> None:
    """Seals the audit log as the owner; new rows continue the chain, and crm_app cannot seal."""
    lab.client.create_lead_safe(source="site", full_name="S", contact="@s")
    before = lab.run("SELECT max(seq) FROM public.audit_seals")
    seal = lab.run("SELECT crm_private.seal_audit_safe()")
    lab.expect(seal["id"], before + 1, "the newest seal")
    lab.refused(["SELECT crm_private.seal_audit_safe()"], role="crm_app", saying="permission denied")
