"""Attacks through the RPCs, as data: calls that the application may make and the functions must refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crm_analytics.crm.proof.attacks.lab import Lab, register


def payment(
    flow: str = "'incoming', 'client_payment'",
    amount: str = "10",
    *,
    order: str = "fresh",
    method: str = "cash",
    currency: str = "EUR",
    user: str = "manager",
    reference: str = "NULL",
) -> str:
    """Returns the call that books a payment; `order` and `user` are names in the sample, `flow` direction and role."""
    return (
        f"record_generic_payment_safe(%({order})s, {flow}, '{method}', {amount}, '{currency}',"
        f" p_external_reference => {reference}, p_user_id => %({user})s)"
    )


def moves(order: str, user: str, *statuses: str) -> list[str]:
    """Returns the calls by which a user tries to give an order these statuses."""
    return [
        f"advance_order_status_safe(%({order})s, '{status}', %({user})s, 'a reason')" for status in statuses
    ]


def assignments(assignee: str) -> list[str]:
    """Returns the calls that give work to an assignee."""
    return [
        f"create_task_safe('x', %(manager)s, %(fresh)s, p_assignee_id => {assignee})",
        f"update_order_safe(%(fresh)s, %(manager)s, p_assigned_manager => {assignee})",
    ]


#: Every call that needs a user.
_BY_A_USER = (
    "advance_order_status_safe(%(fresh)s, 'cancelled', {user})",
    "advance_lead_status_safe(%(open_lead)s, 'in_progress', {user})",
    "record_generic_payment_safe(%(fresh)s, 'incoming', 'client_payment', 'cash', 10, 'EUR', p_user_id => {user})",
    "update_payment_status_safe(%(planned)s, 'completed', {user})",
    "attach_document_safe('invoice', 'https://example.com/i', {user}, %(fresh)s)",
    "replace_document_safe(%(document)s, 'https://example.com/i', {user})",
    "withdraw_document_safe(%(document)s, {user}, 'x')",
    "create_task_safe('x', {user}, %(fresh)s)",
    "update_task_safe(%(task)s, {user}, true)",
    "upsert_shipment_safe(%(paid)s, {user})",
    "create_user_safe('x', 'x@example.com', 'admin', {user})",
    "update_customer_safe(%(customer)s, {user})",
    "merge_customers_safe(%(customer)s, %(other_customer)s, {user}, 'x')",
    "update_user_safe(%(left)s, {user}, 'x')",
    "set_user_active_safe(%(left)s, true, {user})",
    "set_user_role_safe(%(left)s, 'manager', {user})",
    "map_identity_safe('x', 'x', %(admin)s, {user})",
    "unmap_identity_safe('attack', 'm', {user})",
    "reverse_payment_safe(%(mistake)s, 'x', {user})",
    "erase_customer_safe(%(customer)s, {user}, 'asked')",
    "whoami({user})",
)
_ERASED = "(SELECT customer_id FROM public.leads WHERE id = %(forgotten)s)"
_NO_AMOUNTS = ("'NaN'", "'Infinity'", "'-Infinity'", "0", "-1", "0.001", "NULL")
_NO_TOTALS = ("'NaN'", "'Infinity'", "0", "-1", "10.001")
_NO_ITEMS = tuple(
    f"'[{item}]'"
    for item in ('{"qty": 1}', '{"model": " ", "qty": 1}', '{"model": "A"}', '{"model": "A", "qty": "1"}',
                 '{"model": "A", "qty": 0}', '{"model": "A", "qty": 1.5}', '"A"', "null")
)  # fmt: skip
REFUND = "'outgoing', 'refund'"
TO_SUPPLIER, FROM_SUPPLIER = "'outgoing', 'supplier_payment'", "'incoming', 'supplier_payment'"
#: A call that creates an order, without its end; the sample has one with the number and the idempotency key attack-1.
_ORDER = "create_order_safe(%(customer)s, NULL, NULL, 500, 'EUR', %(manager)s"

#: Name, guards, description, and the calls that must be refused, by SQLSTATE.
REFUSED_CALLS: tuple[tuple[str, tuple[str, ...], str, Mapping[str, Sequence[str]]], ...] = (
    (
        "no_actor",
        ("functions",),
        "Acts as no user, an unknown user, or one who has left, through every RPC that needs a user.",
        {
            "42501": [
                call.format(user=user) for user in ("NULL", "%(unknown)s", "%(left)s") for call in _BY_A_USER
            ]
        },
    ),
    (
        "impossible_amounts",
        ("functions",),
        "Books NaN (which is greater than every number), infinity, zero, negative amounts and fractions of a cent.",
        {
            "PT422": [
                *(payment(amount=amount) for amount in _NO_AMOUNTS),
                *(
                    f"create_order_safe(%(customer)s, NULL, NULL, {total}, 'EUR', %(manager)s)"
                    for total in _NO_TOTALS
                ),
            ]
        },
    ),
    (
        "wrong_roles_and_directions",
        ("functions",),
        "Books client money that goes out, refunds that come in, an unknown currency or order, and a provider's payment"
        " without its reference.",
        {
            "PT422": [
                payment("'outgoing', 'client_payment'"),
                payment("'incoming', 'refund'", user="admin"),
                payment("'incoming', 'supplier_payment'"),
                payment(currency="BTC"),
                payment(method="card"),
            ],
            "PT404": [payment(order="unknown")],
        },
    ),
    (
        "payout_before_money",
        ("functions",),
        "Pays the supplier although the client has paid nothing.",
        {
            "PT409": [
                payment(f"'outgoing', '{role}'")
                for role in ("supplier_payment", "shipping_payment", "commission")
            ]
        },
    ),
    (
        "payouts_beyond_client_money",
        ("functions", "payout_limits"),
        "Pays out more than the client's money as a manager, in one payment or two, or a cent in another currency; as an"
        " admin without a reason; gets back from a supplier more than was paid, or from nobody.",
        {
            "42501": [
                payment(TO_SUPPLIER, "1000.01", order="paid"),
                payment(TO_SUPPLIER, "900.01", order="paid"),
                payment("'outgoing', 'commission'", "0.01", order="paid", currency="USD"),
                payment("'outgoing', 'shipping_payment'", "0.01", order="paid", currency="RUB"),
                payment(TO_SUPPLIER, "0.01", order="dollars"),
            ],
            "PT409": [
                payment(TO_SUPPLIER, "1000.01", order="paid", user="admin"),
                payment("'outgoing', 'shipping_payment'", "0.01", order="paid", currency="RUB", user="admin"),
                f"{payment(FROM_SUPPLIER, '100.01', order='paid')[:-1]}, p_related_payment_id => %(payout)s)",
                f"{payment(FROM_SUPPLIER, '1', order='paid')[:-1]}, p_related_payment_id => %(payment)s)",
            ],
            "PT422": [payment(FROM_SUPPLIER, order="paid")],
        },
    ),
    (
        "cheaper_after_payment",
        ("functions",),
        "Lowers the price of an order with a payment, or delivers one that isn't paid, as a manager, or as an admin"
        " without a reason or below what was paid out.",
        {
            "42501": [
                "update_order_safe(%(paid)s, %(manager)s, p_total_amount => 1, p_reason => 'x')",
                "update_order_safe(%(fresh)s, %(manager)s, p_currency => 'RUB', p_reason => 'x')",
                "advance_order_status_safe(%(raised)s, 'in_delivery', %(manager)s, 'x')",
                "update_order_safe(%(over)s, %(manager)s, p_commission_eur => 1)",
            ],
            "PT409": [
                "update_order_safe(%(paid)s, %(admin)s, p_total_amount => 999, p_reason => ' ')",
                "update_order_safe(%(paid)s, %(admin)s, p_total_amount => 99.99, p_reason => 'x')",
                "update_order_safe(%(paid)s, %(admin)s, p_currency => 'USD', p_reason => 'x')",
                "advance_order_status_safe(%(raised)s, 'in_delivery', %(admin)s)",
            ],
        },
    ),
    (
        "reversals",
        ("functions",),
        "Reverses a payment as a manager, or without a reason; a reversal; one whose money was paid out; an open one; and"
        " rebooks one where it cannot be.",
        {
            "42501": ["reverse_payment_safe(%(payment)s, 'x', %(manager)s)"],
            "PT422": [
                "reverse_payment_safe(%(payment)s, ' ', %(admin)s)",
                "reverse_payment_safe(%(payment)s, 'x', %(admin)s, %(paid)s)",
            ],
            "PT404": [
                "reverse_payment_safe(%(unknown)s, 'x', %(admin)s)",
                "reverse_payment_safe(%(payment)s, 'x', %(admin)s, %(unknown)s)",
            ],
            "PT409": [
                "reverse_payment_safe(%(payment)s, 'x', %(admin)s)",
                "reverse_payment_safe(%(planned)s, 'x', %(admin)s)",
                "reverse_payment_safe(%(reversal)s, 'x', %(admin)s)",
                "reverse_payment_safe(%(mistake)s, 'x', %(admin)s, %(fresh)s)",
                "reverse_payment_safe(%(payout)s, 'x', %(admin)s, %(fresh)s)",
            ],
        },
    ),
    (
        "refund_by_manager",
        ("functions",),
        "Refunds as a manager, or more than the client paid as an admin.",
        {
            "42501": [payment(REFUND, order="paid")],
            "PT409": [payment(REFUND, "1000.01", order="paid", user="admin")],
        },
    ),
    (
        "reused_reference",
        ("functions",),
        "Uses a reference again for another amount, order or method: it must be refused, never booked.",
        {
            "PT409": [
                payment(amount="999", order="paid", method="card", reference="'attack-1'"),
                payment(amount="1000", order="fresh", method="card", reference="'attack-1'"),
                payment(amount="1000", order="paid", method="cash", reference="'  attack-1 '"),
                """checkout_order_safe(NULL, '[{"model": "other", "qty": 1}]', 1000, 'EUR', 'card', 'attack-1', %(manager)s, %(lead)s)""",
            ]
        },
    ),
    (
        "invisible_differences",
        ("functions", "function_grants"),
        "Repeats a reference or an order number with something that nobody sees: it must be the same one, or refused.",
        {
            "PT409": [
                payment(
                    amount="999", order="paid", method="card", reference="chr(8203) || 'attack-1' || chr(160)"
                ),
                f"{_ORDER}, p_order_code => 'ATTACK-1')",
                f"{_ORDER}, p_order_code => 'attack-1' || chr(8203))",
            ],
            "PT422": [
                payment(
                    amount="1000", order="paid", method="card", reference="'attack' || chr(8203) || '-1'"
                ),
                f"{_ORDER}, p_order_code => 'attack' || chr(173) || '-1')",
            ],
        },
    ),
    (
        "reused_idempotency_key",
        ("functions",),
        "Uses an idempotency key again for a call with another customer, amount or order number.",
        {
            "PT409": [
                f"{_ORDER}, p_order_code => 'attack-1', p_idempotency_key => 'attack-1')",
                _ORDER.replace("500", "501") + ", p_idempotency_key => 'attack-1')",
                f"{_ORDER}, p_idempotency_key => ' attack-1', p_commission_eur => 1)",
            ]
        },
    ),
    (
        "illegal_transitions",
        ("functions", "transitions"),
        "Skips, undoes or claims statuses; does as a manager what only an admin may.",
        {
            "PT409": [
                *moves("fresh", "admin", "created", "paid", "in_delivery", "delivered", "closed"),
                *moves("paid", "admin", "created", "awaiting_payment", "paid", "delivered", "closed"),
                "advance_lead_status_safe(%(open_lead)s, 'converted', %(admin)s)",
            ],
            "42501": moves("paid", "manager", "cancelled"),
        },
    ),
    (
        "erased_customer_comes_back",
        ("functions",),
        "Gives a customer whose personal data was erased a name again, or merges another one into them.",
        {
            "PT409": [
                f"update_customer_safe({_ERASED}, %(manager)s, p_full_name => 'Known again')",
                f"merge_customers_safe(%(customer)s, {_ERASED}, %(admin)s, 'one person')",
            ]
        },
    ),
    (
        "wrong_assignees",
        ("functions",),
        "Gives work to a user who does not exist, or who has left.",
        {"PT404": assignments("%(unknown)s"), "PT409": assignments("%(left)s")},
    ),
    (
        "missing_ids",
        ("functions",),
        "Leaves out the id of the row that a call is about.",
        {
            "PT422": [
                payment(order="missing"),
                "advance_order_status_safe(NULL, 'cancelled', %(manager)s)",
                "update_payment_status_safe(NULL, 'failed', %(manager)s)",
            ]
        },
    ),
    (
        "endless_values",
        ("functions",),
        "Stores more than a row should hold: notes above 16 KiB, items and snapshots above 256 KiB; items without a model"
        " or a quantity; addresses that a browser would run.",
        {
            "PT422": [
                *(
                    f"advance_lead_status_safe(%(open_lead)s, 'in_progress', %(manager)s, {text})"
                    for text in ("repeat('x', 16385)", "repeat('я', 8193)")
                ),
                "update_lead_safe(%(open_lead)s, %(manager)s, p_bike_snapshot => to_jsonb(repeat('x', 262144)))",
                "upsert_shipment_safe(%(paid)s, %(manager)s, p_ruspost_status => to_jsonb(repeat('x', 262144)))",
                *(
                    f"update_order_safe(%(fresh)s, %(manager)s, p_items => {items})"
                    for items in (
                        "jsonb_build_array(jsonb_build_object('model', repeat('x', 262144), 'qty', 1))",
                        *_NO_ITEMS,
                    )
                ),
                *(
                    f"attach_document_safe('invoice', '{address}', %(manager)s, %(fresh)s)"
                    for address in (
                        "javascript:alert(1)",
                        "http://example.com/i",
                        "//example.com/i",
                        "data:,x",
                    )
                ),
            ]
        },
    ),
    (
        "lost_update",
        ("functions",),
        "Changes a row that somebody else has changed since it was read; empties what a row must have.",
        {
            "PT409": [
                "update_task_safe(%(task)s, %(manager)s, true, p_expected_version => 99)",
                "update_lead_safe(%(open_lead)s, %(manager)s, p_expected_version => 99)",
                "update_payment_status_safe(%(planned)s, 'completed', %(manager)s, p_expected_version => 99)",
            ],
            "PT422": [
                "update_task_safe(%(task)s, %(manager)s, p_clear => '{title}')",
                "update_lead_safe(%(open_lead)s, %(manager)s, p_clear => '{contact}')",
            ],
        },
    ),
    (
        "history_of_documents",
        ("functions",),
        "Replaces or withdraws a document that was replaced already.",
        {
            "PT409": [
                "replace_document_safe(%(document)s, 'x', %(manager)s)",
                "withdraw_document_safe(%(document)s, %(manager)s, 'x')",
            ],
            "PT404": [
                "replace_document_safe(%(unknown)s, 'x', %(manager)s)",
                "withdraw_document_safe(%(unknown)s, %(manager)s, 'x')",
            ],
            "PT422": ["withdraw_document_safe(%(document)s, %(manager)s, ' ')"],
        },
    ),
    (
        "manager_makes_admins",
        ("functions",),
        "Makes an admin, reactivates one who left, takes over one's address or login, or merges customers, as a manager;"
        " acts with an unknown login.",
        {
            "42501": [
                "create_user_safe('x', 'x@example.com', 'admin', %(manager)s)",
                "update_user_safe(%(admin)s, %(manager)s, p_email => 'x@example.com')",
                "set_user_active_safe(%(left)s, true, %(manager)s)",
                "set_user_role_safe(%(manager)s, 'admin', %(manager)s)",
                "map_identity_safe('x', 'x', %(admin)s, %(manager)s)",
                "unmap_identity_safe('attack', 'm', %(manager)s)",
                "merge_customers_safe(%(customer)s, %(other_customer)s, %(manager)s, 'x')",
                "resolve_crm_user('attack', 'unknown')",
                "erase_customer_safe(%(customer)s, %(manager)s, 'asked')",
            ]
        },
    ),
)


REFUSED_CALLS += (
    (
        "no_admin_left",
        ("functions",),
        "Takes an admin's own rights or last login, or changes the system user, as the only admin.",
        {
            "PT409": [
                "set_user_active_safe(%(admin)s, false, %(admin)s)",
                "set_user_role_safe(%(admin)s, 'manager', %(admin)s)",
                "unmap_identity_safe('attack', 'a', %(admin)s)",
                "set_user_role_safe('00000000-0000-0000-0000-000000000001', 'admin', %(admin)s)",
                "update_user_safe('00000000-0000-0000-0000-000000000001', %(admin)s, p_email => 'x@example.com')",
            ]
        },
    ),
    (
        "stolen_contact",
        ("functions", "unique_indexes"),
        "Gives a customer the phone of another one.",
        {"PT409": ["update_customer_safe(%(other_customer)s, %(manager)s, p_phone => '0012025550100')"]},
    ),
)


def _register(name: str, guards: Sequence[str], description: str, calls: Mapping[str, Sequence[str]]) -> None:
    def run(lab: Lab) -> None:
        for sqlstate, refused in calls.items():
            lab.refused([f"SELECT public.{call}" for call in refused], "crm_app", (sqlstate,))

    register(name, description, guards, run)


for _row in REFUSED_CALLS:
    _register(*_row)
