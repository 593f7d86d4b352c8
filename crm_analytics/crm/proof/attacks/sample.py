"""The rows that attacks are tried on: people, leads, orders, payments and the rest, written through the RPCs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg

from crm_analytics.crm.proof.attacks.lab import Lab

_PERSON = """
    INSERT INTO public.users (name, email, role, active)
    VALUES (%(name)s, %(name)s::text || '@example.com', %(role)s::text::public.user_role_enum, %(active)s) RETURNING id
    """
_CUSTOMER = "(SELECT customer_id FROM public.leads WHERE id = %(lead)s)"
_CALLS = (
    ("", "map_identity_safe('attack', 'm', %(manager)s, %(admin)s)"),
    ("", "map_identity_safe('attack', 'a', %(admin)s, %(admin)s)"),
    ("lead", "create_lead_safe('site', 'A Client', p_phone => '+1 202 555 0100')"),
    ("open_lead", "create_lead_safe('site', 'B Client', p_email => 'b@example.com')"),
    (
        "fresh",
        f"""create_order_safe({_CUSTOMER}, NULL, '[{{"model": "Road 54", "qty": 1}}]', 1000, 'EUR', %(manager)s,
            p_order_code => 'Attack-1', p_idempotency_key => 'attack-1')""",
    ),
    ("paid", "create_order_safe(NULL, %(lead)s, NULL, 1000, 'EUR', %(manager)s)"),
    (
        "payment",
        "record_generic_payment_safe(%(paid)s, 'incoming', 'client_payment', 'card', 1000, 'EUR', 'completed',"
        " 'attack-1', p_user_id => %(manager)s)",
    ),
    (
        "planned",
        "record_generic_payment_safe(%(fresh)s, 'incoming', 'client_payment', 'bank_transfer', 100, 'EUR', 'planned',"
        " 'attack-2', p_user_id => %(manager)s)",
    ),
    (
        "payout",
        "record_generic_payment_safe(%(paid)s, 'outgoing', 'supplier_payment', 'cash', 100, 'EUR',"
        " p_user_id => %(manager)s)",
    ),
    ("raised", f"create_order_safe({_CUSTOMER}, NULL, NULL, 10, 'EUR', %(manager)s)"),
    (
        "mistake",
        "record_generic_payment_safe(%(raised)s, 'incoming', 'client_payment', 'card', 10, 'EUR', 'completed',"
        " 'attack-3', p_user_id => %(manager)s)",
    ),
    ("right", f"create_order_safe({_CUSTOMER}, NULL, NULL, 20, 'EUR', %(manager)s)"),
    ("reversal", "reverse_payment_safe(%(mistake)s, 'wrong order', %(admin)s, %(right)s)"),
    ("dollars", f"create_order_safe({_CUSTOMER}, NULL, NULL, 10, 'USD', %(manager)s)"),
    (
        "part",
        "record_generic_payment_safe(%(dollars)s, 'incoming', 'client_payment', 'cash', 5, 'USD',"
        " p_user_id => %(manager)s)",
    ),
    ("over", f"create_order_safe({_CUSTOMER}, NULL, NULL, 10, 'EUR', %(manager)s)"),
    ("", "advance_order_status_safe(%(over)s, 'cancelled', %(manager)s)"),
    ("document", "attach_document_safe('passport', 'https://example.com/p', %(manager)s, %(paid)s)"),
    ("current", "replace_document_safe(%(document)s, 'https://example.com/q', %(manager)s)"),
    ("task", "create_task_safe('Call', %(manager)s, %(paid)s)"),
    ("", "upsert_shipment_safe(%(paid)s, %(manager)s, p_provider => 'cdek')"),
    ("forgotten", "create_lead_safe('site', 'C Client', p_email => 'forgotten@example.com')"),
    ("", f"erase_customer_safe({_CUSTOMER.replace('lead)s', 'forgotten)s')}, %(admin)s, 'asked')"),
)


def prepare(connection: psycopg.Connection[Any]) -> Lab:
    """Fills an empty migrated database with a row in every table, and returns the lab with their ids by name.

    `left` is an admin who has left, `fresh` an unpaid order with the planned payment `planned`, and `paid` an order
    from `lead` with the completed payment `payment` and the payout `payout`.
    `raised` became paid by `mistake`, which `reversal` took back, and booked on `right`; `dollars` is
    part paid in USD by `part`, and `over` was cancelled. `unknown` is the id of no row, and `missing` is NULL.
    """
    lab = Lab(connection, {"unknown": UUID(int=0xDEAD), "missing": None})
    for name, role, active in (
        ("admin", "admin", True),
        ("manager", "manager", True),
        ("left", "admin", False),
    ):
        lab.sample[name] = lab.run(_PERSON, name=name, role=role, active=active)
    with connection.transaction():
        lab.run("SET LOCAL ROLE crm_app")
        lab.sample |= lab.play(_CALLS)
    lab.sample["customer"] = lab.run(f"SELECT {_CUSTOMER}")
    lab.sample["other_customer"] = lab.run("SELECT customer_id FROM public.leads WHERE id = %(open_lead)s")
    lab.run("SELECT crm_private.seal_audit_safe()")
    return lab
