"""The rows that attacks are tried on: people, leads, orders, payments and the rest, written through the RPCs."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import psycopg

from crm_analytics.crm.proof.attacks.lab import Lab


def prepare(connection: psycopg.Connection[Any]) -> Lab:
    """Fills an empty migrated database with a row in every table, and returns the lab with their ids by name.

    `left` is an admin who has left, `fresh` an unpaid order with the planned payment `planned`, and `paid` an order
    from the lead `lead` with the completed payment `payment`. `unknown` is the id of no row, and `missing` is NULL.
    """
    lab = Lab(connection, {})
    crm = lab.client
    people = {
        name: lab.run(
            """
            INSERT INTO public.users (name, email, role, active)
            VALUES (%(name)s, %(name)s || '@example.com', %(role)s::text::public.user_role_enum, %(active)s)
            RETURNING id
            """,
            name=name,
            role=role,
            active=active,
        )
        for name, role, active in (
            ("admin", "admin", True),
            ("manager", "manager", True),
            ("left", "admin", False),
        )
    }
    admin, manager = people["admin"], people["manager"]
    with connection.transaction():
        connection.execute("SET LOCAL ROLE crm_app")
        crm.map_identity_safe(provider="attack", external_id="m", crm_user_id=manager, user_id=admin)
        lead = crm.create_lead_safe(source="site", full_name="A Client", phone="+1 202 555 0100").id
        open_lead = crm.create_lead_safe(source="site", full_name="B Client", email="b@example.com").id
        customer = lab.run("SELECT customer_id FROM public.leads WHERE id = %(lead)s", lead=lead)
        order = partial(
            crm.create_order_safe, customer_id=customer, total_amount=1000, currency="EUR", user_id=manager
        )
        fresh, paid = order(items=[{"model": "Road 54"}]).id, order(lead_id=lead).id
        pay = partial(
            crm.record_generic_payment_safe,
            direction="incoming",
            role="client_payment",
            currency="EUR",
            user_id=manager,
        )
        payment = pay(order_id=paid, method="card", amount=1000, external_reference="attack-1").id
        planned = pay(
            order_id=fresh,
            method="bank_transfer",
            amount=100,
            status="planned",
            external_reference="attack-2",
        ).id
        crm.attach_document_safe(
            document_type="passport", storage_url="https://example.com/p", uploaded_by=manager, order_id=paid
        )
        task = crm.create_task_safe(title="Call", created_by=manager, order_id=paid).id
        crm.upsert_shipment_safe(order_id=paid, user_id=manager, provider="cdek")
    connection.execute("SELECT crm_private.seal_audit_safe()")
    lab.sample = {
        **people, "customer": customer, "lead": lead, "open_lead": open_lead, "fresh": fresh, "paid": paid,
        "payment": payment, "planned": planned, "task": task, "unknown": UUID(int=0xDEAD), "missing": None,
    }  # fmt: skip
    return lab
