"""What must work: a guard, grant or policy too many breaks it, and a guard that refuses everything is no guard."""

from __future__ import annotations

from crm_analytics.crm.proof.attacks.calls import FROM_SUPPLIER, REFUND, TO_SUPPLIER, payment
from crm_analytics.crm.proof.attacks.lab import Lab, attack
from crm_analytics.crm.schema.catalog import CRM_TABLES, CRM_VIEWS

#: Ways of an order that use every legal transition, each by the role that it needs.
_WAYS = (
    ("manager cancelled",),
    ("manager awaiting_payment", "manager cancelled"),
    # Cancelling an order that holds client money would need an admin anyway, so it is refunded first.
    ("manager paid", "admin refunded", "admin cancelled"),
    ("manager paid", "manager in_delivery", "admin refunded", "admin cancelled"),
    ("manager paid", "manager in_delivery", "manager delivered", "admin closed"),
)
_PAYMENTS = {"paid": payment(order="order"), "refunded": payment(REFUND, order="order", user="admin")}
_PAID_BY_CARD = (
    "record_generic_payment_safe(%(order)s, 'incoming', 'client_payment', 'card', 300, 'EUR', 'completed', 'day-2',"
    " p_user_id => %(manager)s)"
)
_ORDER = "create_order_safe(NULL, %(lead)s, NULL, 500, 'EUR', %(manager)s, p_idempotency_key => 'day-1')"
_QUICK_ORDER = (
    """quick_order_safe('site', 'D', '[{"model": "Gravel", "qty": 1}]', 70, 'USD', '+1 202 555 0101',"""
    " p_idempotency_key => 'day-2')"
)
_WRONG_ORDER = payment(amount="5", order="order", method="card", reference="'day-4'")
_CHECKOUT = """checkout_order_safe(%(customer)s, '[{"model": "City", "qty": 2}]', 80, 'EUR', 'online_cashbox', 'day-3', %(manager)s)"""
#: Calls that are repeated at the end of the day, and whose result they must return again.
_REPEATED = {"rest": _PAID_BY_CARD, "order": _ORDER, "quick": _QUICK_ORDER, "checkout": _CHECKOUT}
#: Every RPC at least once, and an order all its way, with the names under which later calls know the rows.
_DAY = (
    ("", "resolve_crm_user('attack', 'm')"),
    ("lead", "create_lead_safe('site', 'C', p_email => 'c@example.com', p_user_id => %(manager)s)"),
    ("", "advance_lead_status_safe(%(lead)s, 'in_progress', %(manager)s, 'called')"),
    ("", "update_lead_safe(%(lead)s, %(manager)s, p_notes => 'wants a 56')"),
    ("", "update_customer_safe(%(customer)s, %(manager)s, p_country => 'US', p_email => 'a@example.com')"),
    ("", "create_lead_safe('telegram', 'C', p_email => 'c@example.com', p_contact => '@c')"),
    ("order", _ORDER),
    ("", "update_order_safe(%(order)s, %(manager)s, p_assigned_manager => %(manager)s)"),
    (
        "part",
        "record_generic_payment_safe(%(order)s, 'incoming', 'client_payment', 'cash', 200, 'EUR', 'planned', 'day-1',"
        " p_user_id => %(manager)s)",
    ),
    ("", "update_payment_status_safe(%(part)s, 'completed', %(manager)s)"),
    ("rest", _PAID_BY_CARD),
    ("", payment("'outgoing', 'supplier_payment'", "250", order="order", method="bank_transfer")),
    (
        "dollars",
        payment("'outgoing', 'shipping_payment'", "9", order="order", currency="USD", user="admin")[:-1]
        + ", p_reason => 'paid in dollars')",
    ),
    ("payout", payment(TO_SUPPLIER, "100", order="order")),
    ("", f"{payment(FROM_SUPPLIER, '40', order='order')[:-1]}, p_related_payment_id => %(payout)s)"),
    ("invoice", "attach_document_safe('invoice', 'u', %(manager)s, %(order)s)"),
    ("corrected", "replace_document_safe(%(invoice)s, 'orders/1/invoice.pdf', %(manager)s)"),
    ("", "withdraw_document_safe(%(corrected)s, %(manager)s, 'wrong client')"),
    ("", "attach_document_safe('passport', 'u', %(manager)s, NULL, %(lead)s)"),
    ("task", "create_task_safe('Pack', %(manager)s, %(order)s, %(lead)s)"),
    ("", "update_task_safe(%(task)s, %(manager)s, true)"),
    ("shipment", "upsert_shipment_safe(%(order)s, %(manager)s, p_provider => 'cdek')"),
    ("", "upsert_shipment_safe(%(order)s, %(manager)s, %(shipment)s, p_status => 'shipped')"),
    ("", "upsert_shipment_safe(%(order)s, %(manager)s, %(shipment)s, p_ruspost_status => '[]')"),
    ("", "advance_order_status_safe(%(order)s, 'in_delivery', %(admin)s)"),
    ("", "advance_order_status_safe(%(order)s, 'delivered', %(admin)s)"),
    ("", "advance_order_status_safe(%(order)s, 'closed', %(admin)s)"),
    ("", payment(REFUND, order="order", method="bank_transfer", user="admin")),
    ("quick", _QUICK_ORDER),
    ("wrong", _WRONG_ORDER),
    ("", "reverse_payment_safe(%(wrong)s, 'wrong order', %(admin)s, %(raised)s)"),
    ("", "update_order_safe(%(raised)s, %(admin)s, p_total_amount => 20, p_reason => 'a bell')"),
    ("", "update_order_safe(%(raised)s, %(admin)s, p_total_amount => 5, p_reason => 'no bell')"),
    ("checkout", _CHECKOUT),
    ("user", "create_user_safe('New', 'new@example.com', 'manager', %(admin)s)"),
    ("", "map_identity_safe('attack', 'new', %(user)s, %(admin)s)"),
    ("", "map_identity_safe('attack', 'new', %(user)s, %(admin)s)"),
    ("", "resolve_crm_user('attack', 'by mail', 'New@example.com')"),
    ("", "unmap_identity_safe('attack', 'new', %(admin)s)"),
    ("", "update_user_safe(%(user)s, %(admin)s, 'Newer', 'newer@example.com')"),
    ("", "set_user_role_safe(%(user)s, 'admin', %(admin)s)"),
    ("", "set_user_active_safe(%(user)s, false, %(admin)s)"),
    ("", "merge_customers_safe(%(other_customer)s, %(customer)s, %(admin)s, 'one person')"),
    ("", "update_customer_safe(%(other_customer)s, %(manager)s, p_country => 'CA')"),
    ("", "erase_customer_safe(%(customer)s, %(admin)s, 'asked')"),
)


@attack("transitions", "functions")
def every_transition(lab: Lab) -> None:
    """Makes every legal transition with the least role that may; where an admin is needed, a manager is refused."""
    for way in _WAYS:
        with lab.role("crm_app"):
            ids = lab.play([("order", "create_order_safe(%(customer)s, NULL, NULL, 10, 'EUR', %(manager)s)")])
            for step in way:
                role, status = step.split()
                call = _PAYMENTS.get(status, f"advance_order_status_safe(%(order)s, '{status}', %({role})s)")
                if role == "admin":
                    lab.refused([f"SELECT public.{call.replace('%(admin)s', '%(manager)s')}"], **ids)
                lab.run(f"SELECT public.{call}", **ids)
                if status != "refunded":
                    _expect_status(lab, ids["order"], status)


def work_a_day(lab: Lab) -> None:
    """Does what the application does every day, as the current role."""
    ids = lab.play(_DAY)
    _expect_status(lab, ids["order"], "closed")
    for name, call in _REPEATED.items():
        again = lab.run(f"SELECT public.{call}", **ids)
        lab.expect((again["id"], again["duplicate"]), (ids[name], True), f"a repeated call: {call}")


def _expect_status(lab: Lab, order: str, status: str) -> None:
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


@attack("payout_limits", "row_security", "table_grants", "functions")
def raised_payout_limit(lab: Lab) -> None:
    """Raises a payout limit as a migration does: managers then pay out in that currency as much, and no cent more."""
    limits = "public.payout_limits"
    lab.run(f"ALTER TABLE {limits} DISABLE TRIGGER guard_rows")
    lab.run(f"UPDATE {limits} SET manager_limit = 50 WHERE currency = 'USD'")
    lab.run(f"ALTER TABLE {limits} ENABLE ALWAYS TRIGGER guard_rows")
    with lab.role("crm_app"):
        lab.run(f"SELECT public.{payment(TO_SUPPLIER, '50', order='paid', currency='USD')}")
        beyond = payment(TO_SUPPLIER, "0.01", order="paid", currency="USD")
        lab.refused([f"SELECT public.{beyond}"], "crm_app")


@attack("row_security", "table_grants")
def app_reads(lab: Lab) -> None:
    """Reads as crm_app, which must see every row of the tables that it may read."""
    for table in CRM_TABLES:
        query = f"SELECT count(*) FROM public.{table}"
        count = lab.run(query)
        with lab.role("crm_app"):
            lab.expect(lab.run(query), count or "some", f"rows of {table} for crm_app")
    with lab.role("crm_app"):
        lab.expect(
            lab.run("SELECT count(*) FROM public.changes_after(0, 3)"), 3, "changes in the feed for crm_app"
        )


@attack("functions", "function_grants", "columns", "row_security")
def app_searches(lab: Lab) -> None:
    """Reads the views and searches as crm_app, which must find the rows, and asks whoami, which knows only active users."""
    number = lab.run("SELECT order_code FROM public.orders WHERE id = %(fresh)s")
    with lab.role("crm_app"):
        for view in CRM_VIEWS:
            lab.expect(
                lab.run(f"SELECT count(*) > 0 FROM public.{view}"), True, f"rows of {view} for crm_app"
            )
        for search, given in (
            ("customers_by_phone", "+1 (202) 555-0100"),
            ("customers_by_email", "B@example.com"),
            ("customers_by_name", "a cli"),
            ("orders_by_code", number),
        ):
            found = lab.run(f"SELECT count(*) FROM public.find_{search}(%(given)s)", given=given)
            lab.expect(found, 1, f"rows that find_{search} finds for crm_app")
        moves = lab.run("SELECT jsonb_array_length(transitions) FROM public.whoami(%(manager)s, %(fresh)s)")
        lab.expect(moves, 2, "transitions of a new order for a manager")
    # The message, because a call that may not refuse ends with the same SQLSTATE.
    lab.refused(["SELECT FROM public.whoami(%(left)s)"], "crm_app", saying="not an active CRM user")


@attack("functions", "function_grants", "table_grants", "row_security")
def sealing(lab: Lab) -> None:
    """Seals the audit log as the owner; new rows continue the chain, and crm_app cannot seal."""
    lab.play([("", "create_lead_safe('site', 'S', p_contact => '@s')")])
    before = lab.run("SELECT max(seq) FROM public.audit_seals")
    lab.expect(lab.run("SELECT crm_private.seal_audit_safe()")["id"], before + 1, "the newest seal")
    lab.refused(["SELECT crm_private.seal_audit_safe()"], role="crm_app", saying="permission denied")
