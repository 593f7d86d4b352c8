"""What must be true of the CRM's rows: one named query per rule, all in one read-only snapshot.

The queries restate the rules on their own; they read none from the functions that they check. Rows older than the
guards are exempt from some of them, because adoption does not rewrite history (docs/decisions/adoption.md): the
migration gave each of those rows one audit row `adopt`. A row without any audit row was written past the RPCs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from crm_analytics.core.migrations import SEARCH_PATH
from crm_analytics.core.settings import settings

#: How many offending ids are shown; the count is always complete.
ID_CAP = 20

_HISTORY = (
    "Find out who wrote past the RPCs (audit_log.session_user, server log). Then correct the rows in one transaction "
    "that disables the table's guard and enables it ALWAYS again."
)
_EVIDENCE = (
    "The audit log was changed after it was numbered or sealed. Compare it with a backup from before. audit_log, "
    "audit_positions and audit_seals are evidence: keep them as they are, and start a new chain only when the matter "
    "is settled."
)


@dataclass(frozen=True)
class Invariant:
    """One rule over all rows; its query returns an `id` (text) and a `detail` for every row that breaks it."""

    name: str
    rule: str
    query: str
    remedy: str = _HISTORY


@dataclass(frozen=True)
class Result:
    """How many rows break one invariant, with the first of them as examples."""

    invariant: Invariant
    offenders: int
    examples: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Tells whether no row breaks the invariant."""
        return self.offenders == 0


#: Tables whose rows are all audited.
AUDITED_TABLES = (
    "customer_contacts", "customers", "documents", "leads", "orders", "payments", "shipments", "tasks", "users",
)  # fmt: skip

#: Code points that are removed at the ends of references and order numbers, and never inside, as a bracket expression.
#: A test compares them with the database's own list, which is crm_private.blank_characters().
BLANKS = (
    "\x01-\x20\x7f-\u00a0\u00ad\u034f\u061c\u115f-\u1160\u1680\u17b4-\u17b5\u180b-\u180f\u2000-\u200f"
    "\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UPPER, _LOWER = "'ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "'abcdefghijklmnopqrstuvwxyz'"


def _comparable(column: str) -> str:
    """Returns the comparable form of a reference, restated: NFKC, trimmed, single spaces alone inside; else NULL."""
    bare = f"regexp_replace(normalize({column}, NFKC), '^[{BLANKS}]+|[{BLANKS}]+$', '', 'g')"
    return f"CASE WHEN {bare} ~ '^[^{BLANKS}]' AND replace({bare}, ' ', '') !~ '[{BLANKS}]' AND {bare} !~ '  ' THEN {bare} END"


#: The net client money of an order (i.order_id) in a currency (i.currency), before an audit row (i.id).
_NET_BEFORE = """
    SELECT coalesce(sum(CASE p.role WHEN 'refund' THEN -p.signed ELSE p.signed END), 0) AS amount
    FROM history p
    WHERE p.order_id = i.order_id AND p.currency::text = i.currency AND p.completed_at < i.id
      AND (p.role::text, p.flow) IN (('client_payment', 'incoming'), ('refund', 'outgoing'))
    """
#: The legal transitions, restated, with the least role that may make each.
_LEGAL = """
    (VALUES
        ('created', 'awaiting_payment', 'manager'),
        ('created', 'cancelled', 'manager'),
        ('created', 'paid', 'manager'),
        ('awaiting_payment', 'cancelled', 'manager'),
        ('awaiting_payment', 'paid', 'manager'),
        ('paid', 'in_delivery', 'manager'),
        ('paid', 'cancelled', 'admin'),
        ('in_delivery', 'delivered', 'manager'),
        ('in_delivery', 'cancelled', 'admin'),
        ('delivered', 'closed', 'admin')
    ) AS legal(old_status, new_status, required_role)
    """
_BUSINESS_ROWS = " UNION ALL ".join(
    f"SELECT '{table}' AS entity, id FROM public.{table}" for table in AUDITED_TABLES
)

_IMAGES = " UNION ALL ".join(
    f"SELECT '{table}' AS entity, id, to_jsonb(t) AS row FROM public.{table} t" for table in AUDITED_TABLES
)
#: The columns of one row (r.row) that differ from its audit image (a.row). Timestamps are compared as instants,
#: because their text depends on the time zone of the session that wrote them. A column that was added after the image
#: is missing from it; it differs unless it is NULL or has a default.
_CHANGED_COLUMNS = """
    SELECT coalesce(n.key, i.key) AS key
    FROM jsonb_each(r.row) n FULL JOIN jsonb_each(a.row) i ON i.key = n.key
    LEFT JOIN pg_attribute c ON c.attrelid = to_regclass('public.' || r.entity) AND c.attname = coalesce(n.key, i.key)
    WHERE CASE WHEN n.value IS NULL OR i.value IS NULL
               THEN coalesce(n.value, i.value) <> 'null' AND NOT (n.value IS NOT NULL AND (c.atthasdef OR c.atthasmissing))
               WHEN c.atttypid = 'timestamptz'::regtype
               THEN (n.value #>> '{}')::timestamptz IS DISTINCT FROM (i.value #>> '{}')::timestamptz
               ELSE n.value <> i.value END"""

#: The contacts in customers' own columns, by the form in which they are compared. Those of merged customers are earlier
#: contacts of somebody else. Texts that are no phone or address, which only adopted rows have, belong to nobody.
_CONTACTS = f"""
    SELECT id, merged_into, 'email' AS kind, lower(bare) AS key
    FROM (SELECT *, regexp_replace(email, '^[{BLANKS}]+|[{BLANKS}]+$', '', 'g') AS bare FROM public.customers) c
    WHERE bare ~ '^[^@{BLANKS}]+@[^@{BLANKS}]+$' AND length(bare) <= 255
    UNION ALL
    SELECT id, merged_into, 'phone', CASE
        WHEN international THEN digits
        WHEN digits ~ '^8[0-9]{{10}}$' THEN '7' || substr(digits, 2)
        ELSE digits END
    FROM (
        SELECT id, merged_into, before ~ '^[^0-9+]*([+]|00)' AS international,
            regexp_replace(regexp_replace(before, '[^0-9]', '', 'g'), CASE
                WHEN before ~ '^[^0-9]*00' THEN '^00' ELSE '^$' END, '') AS digits
        FROM (SELECT *, split_part(regexp_replace(phone, '[дД][оО][бБ]|[eE][xX][tT]', '|'), '|', 1) AS before
              FROM public.customers) c
    ) phone
    WHERE length(digits) BETWEEN 5 AND 255"""

#: Shared by all queries: payments and events since the guards, the history of payments and orders as the audit log has
#: it, money per order, users who ever were admins.
_COMMON = """
WITH adopted AS MATERIALIZED (
    SELECT entity, entity_id FROM public.audit_log WHERE action = 'adopt'
), new_payment AS (
    SELECT p.* FROM public.payments p
    WHERE NOT EXISTS (SELECT FROM adopted a WHERE a.entity = 'payments' AND a.entity_id = p.id)
), ledger AS NOT MATERIALIZED (
    SELECT p.*, EXISTS (SELECT FROM public.payments r WHERE r.reverses = p.id) AS reversed,
        -- A reversal goes the other way than the payment that it takes back, and subtracts where that one adds.
        CASE WHEN p.reverses IS NULL THEN p.amount ELSE -p.amount END AS signed,
        CASE WHEN p.reverses IS NULL THEN p.direction::text
            WHEN p.direction = 'incoming' THEN 'outgoing' ELSE 'incoming' END AS flow
    FROM public.payments p WHERE p.amount <> 'NaN'
), history AS NOT MATERIALIZED (
    -- When each was booked, completed and ended, as places in the audit log: the order's lock keeps them in order.
    SELECT p.*, h.booked_at, h.completed_at, h.ended_at
    FROM ledger p CROSS JOIN LATERAL (
        SELECT min(l.id) AS booked_at,
            min(l.id) FILTER (WHERE l.payload -> 'row' ->> 'status' = 'completed') AS completed_at,
            min(l.id) FILTER (WHERE l.payload -> 'row' ->> 'status' IN ('failed', 'cancelled')) AS ended_at
        FROM public.audit_log l WHERE l.entity = 'payments' AND l.entity_id = p.id
    ) h
), order_image AS NOT MATERIALIZED (
    SELECT l.id, l.entity_id AS order_id, l.actor_id, l.action, l.payload ->> 'old' AS old_status,
        l.payload ->> 'new' AS new_status, l.payload ->> 'reason' AS reason, l.payload -> 'changes' AS changes,
        (l.payload -> 'row' ->> 'total_amount')::numeric AS total, l.payload -> 'row' ->> 'currency' AS currency
    FROM public.audit_log l WHERE l.entity = 'orders'
), money AS (
    SELECT p.order_id,
        -- By flow too: adopted rows include client payments that went out, and refunds that came in.
        coalesce(sum(p.signed) FILTER (WHERE p.role = 'client_payment' AND p.flow = 'incoming'
            AND p.status = 'completed'), 0) AS client,
        coalesce(sum(p.signed) FILTER (WHERE p.role = 'refund' AND p.flow = 'outgoing'
            AND p.status = 'completed'), 0) AS refunded,
        coalesce(sum(p.signed) FILTER (WHERE p.role = 'refund' AND p.flow = 'outgoing'
            AND p.status IN ('completed', 'pending', 'planned')), 0) AS refunds
    FROM ledger p JOIN public.orders o ON o.id = p.order_id AND o.currency = p.currency
    GROUP BY p.order_id
), event AS (
    SELECT e.*, lag(e.new_status) OVER w AS before_status, lag(e.seq) OVER w AS before_seq,
        row_number() OVER w AS position, lead(e.id) OVER w IS NULL AS is_last,
        max(e.seq) FILTER (WHERE e.reason = 'adopted') OVER (PARTITION BY e.order_id) AS adopted_seq
    FROM public.order_status_events e
    WHERE e.order_id IS NOT NULL OR e.seq IS NOT NULL  -- adopted events without an order have neither
    WINDOW w AS (PARTITION BY e.order_id ORDER BY e.seq)
), new_event AS (
    SELECT * FROM event WHERE adopted_seq IS NULL OR seq > adopted_seq
), was_admin AS (
    SELECT id FROM public.users WHERE role = 'admin'
    -- Roles are audited: a user who is not an admin now may have been one when it mattered.
    UNION SELECT entity_id FROM public.audit_log WHERE entity = 'users' AND payload -> 'row' ->> 'role' = 'admin'
)
"""

INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "status_is_last_event",
        "orders.status equals the new_status of the order's last event",
        """
        SELECT o.id::text, format('status %s, last event %s', o.status, coalesce(e.new_status, 'none')) AS detail
        FROM public.orders o LEFT JOIN event e ON e.order_id = o.id AND e.is_last
        WHERE o.status::text IS DISTINCT FROM e.new_status
        """,
    ),
    Invariant(
        "event_numbers_have_no_gap",
        "order_status_events.seq counts 1, 2, 3 … within each order",
        """
        SELECT e.order_id::text AS id, format('seq %s at position %s', e.seq, e.position) AS detail
        FROM event e WHERE e.order_id IS NOT NULL AND e.seq IS DISTINCT FROM e.position
        """,
    ),
    Invariant(
        "events_follow_each_other",
        "an event's old_status is the new_status of the event before it; an order starts as created",
        """
        SELECT e.id::text, format('order %s seq %s: %s after %s', e.order_id, e.seq, e.old_status, e.before_status)
            AS detail
        FROM new_event e
        WHERE e.old_status IS DISTINCT FROM e.before_status
           OR (e.before_status IS NULL AND e.new_status IS DISTINCT FROM 'created')
        """,
    ),
    Invariant(
        "transitions_are_legal",
        "every status change is a legal transition, by a role that may make it",
        f"""
        SELECT e.id::text, format('order %s: %s -> %s by %s', e.order_id, e.old_status, e.new_status, e.changed_by)
            AS detail
        FROM new_event e LEFT JOIN {_LEGAL} USING (old_status, new_status)
        WHERE e.old_status IS NOT NULL AND (legal.new_status IS NULL
            OR (legal.required_role = 'admin' AND e.changed_by NOT IN (SELECT id FROM was_admin)))
        """,
    ),
    Invariant(
        "paid_means_paid",
        "an order became paid only when its net client money had reached the total that it had then",
        f"""
        SELECT i.order_id::text AS id, format('audit row %s: total %s, net client money %s', i.id, i.total, net.amount)
            AS detail
        FROM order_image i CROSS JOIN LATERAL ({_NET_BEFORE}) net
        WHERE i.action = 'status_change' AND i.new_status = 'paid'
          AND NOT coalesce(net.amount >= i.total AND net.amount > 0, false)
        """,
    ),
    Invariant(
        "delivery_follows_the_money",
        "an order went in_delivery when its net client money was at least its total, or by an admin with a reason",
        f"""
        SELECT i.order_id::text AS id, format('audit row %s: total %s, net client money %s, by %s', i.id, i.total,
            net.amount, i.actor_id) AS detail
        FROM order_image i CROSS JOIN LATERAL ({_NET_BEFORE}) net
        WHERE i.action = 'status_change' AND i.new_status = 'in_delivery'
          AND NOT coalesce(net.amount >= i.total, false)
          AND (i.actor_id NOT IN (SELECT id FROM was_admin) OR i.reason IS NULL)
        """,
    ),
    Invariant(
        "totals_change_by_admins_once_paid",
        "total and currency of an order with open or completed payments changed only by an admin with a reason",
        """
        SELECT i.order_id::text AS id, format('audit row %s: %s by %s', i.id, i.changes, i.actor_id) AS detail
        FROM order_image i
        WHERE i.action = 'update' AND i.changes ?| ARRAY['total_amount', 'currency']
          AND EXISTS (SELECT FROM history p WHERE p.order_id = i.order_id AND p.booked_at < i.id
                      AND coalesce(p.ended_at > i.id, true))
          AND (i.actor_id NOT IN (SELECT id FROM was_admin) OR i.reason IS NULL)
        """,
    ),
    Invariant(
        "full_payment_moves_the_order",
        "an order whose total is paid (net of refunds) no longer waits for payment",
        """
        SELECT o.id::text, format('status %s, total %s, net %s', o.status, o.total_amount, m.client - m.refunded)
            AS detail
        FROM public.orders o JOIN money m ON m.order_id = o.id
        WHERE o.status IN ('created', 'awaiting_payment') AND m.client - m.refunded >= o.total_amount
          AND o.id IN (SELECT order_id FROM new_payment WHERE role = 'client_payment' AND status = 'completed')
        """,
    ),
    Invariant(
        "payouts_follow_client_money",
        "money other than refunds went out only for orders whose client had paid",
        f"""
        SELECT p.id::text, format('%s %s %s of order %s', p.role, p.amount, p.currency, p.order_id) AS detail
        FROM history p JOIN new_payment USING (id)
        LEFT JOIN LATERAL (SELECT * FROM order_image WHERE order_id = p.order_id AND order_image.id < p.booked_at
            ORDER BY order_image.id DESC LIMIT 1) o ON true
        CROSS JOIN LATERAL (
            SELECT * FROM (SELECT p.order_id, p.booked_at AS id, o.currency) i CROSS JOIN LATERAL ({_NET_BEFORE}) n
        ) net
        WHERE p.direction = 'outgoing' AND p.role <> 'refund' AND p.status = 'completed' AND p.reverses IS NULL
          AND coalesce(net.amount, 0) <= 0
        """,
    ),
    Invariant(
        "payouts_within_client_money",
        "payouts were booked within net client money (in another currency: its limit then), or by an admin with a reason",
        f"""
        SELECT p.id::text, format('%s %s %s of order %s by %s: payouts %s before, net client money %s', p.role, p.amount,
            p.currency, p.order_id, p.created_by, before.payouts, net.amount) AS detail
        FROM history p JOIN new_payment USING (id)
        JOIN public.audit_log booking ON booking.id = p.booked_at
        LEFT JOIN LATERAL (SELECT * FROM order_image WHERE order_id = p.order_id AND order_image.id < p.booked_at
            ORDER BY order_image.id DESC LIMIT 1) o ON true
        CROSS JOIN LATERAL (
            SELECT * FROM (SELECT p.order_id, p.booked_at AS id, o.currency) i CROSS JOIN LATERAL ({_NET_BEFORE}) n
        ) net
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CASE q.flow WHEN 'outgoing' THEN q.signed ELSE -q.signed END), 0) AS payouts
            FROM history q
            WHERE q.order_id = p.order_id AND q.currency = p.currency
              AND q.role IN ('supplier_payment', 'shipping_payment', 'commission')
              AND CASE q.flow WHEN 'outgoing' THEN q.booked_at < p.booked_at AND coalesce(q.ended_at > p.booked_at, true)
                  ELSE q.role = 'supplier_payment' AND q.completed_at < p.booked_at END
        ) before
        WHERE p.flow = 'outgoing' AND p.role IN ('supplier_payment', 'shipping_payment', 'commission')
          AND p.reverses IS NULL AND booking.payload -> 'row' ->> 'status' IN ('planned', 'pending', 'completed')
          AND before.payouts + p.amount > CASE
              WHEN p.currency::text = o.currency THEN net.amount
              -- what payout_limits had then: a later change makes no honest payout wrong, and no wrong one honest
              ELSE coalesce((booking.payload ->> 'payout_limit')::numeric, 0) END
          AND (p.created_by NOT IN (SELECT id FROM was_admin) OR booking.payload ->> 'reason' IS NULL)
        """,
    ),
    Invariant(
        "refunds_within_the_paid_sum",
        "refunds (completed, pending, planned) of an order are at most what its client paid",
        """
        SELECT m.order_id::text AS id, format('refunds %s, client paid %s', m.refunds, m.client) AS detail
        FROM money m WHERE m.refunds > m.client
          AND m.order_id IN (SELECT order_id FROM new_payment
                             WHERE role = 'refund' AND status IN ('completed', 'pending', 'planned'))
        """,
    ),
    Invariant(
        "reversals_mirror_their_payments",
        "a reversal is an admin's, with a reason, of a completed payment: same facts, opposite direction, never reversed; "
        "what books a reversed payment again has the same facts on another order",
        """
        SELECT r.id::text, format('%s reverses %s, books %s again', r.id, r.reverses, r.rebooks) AS detail
        FROM new_payment r LEFT JOIN public.payments p ON p.id = coalesce(r.reverses, r.rebooks)
        LEFT JOIN public.audit_log l ON l.entity = 'payments' AND l.entity_id = r.id AND l.action = 'create'
        WHERE coalesce(r.reverses, r.rebooks) IS NOT NULL AND (p.id IS NULL
            OR (r.role, r.method, r.amount, r.currency, r.status) IS DISTINCT FROM
               (p.role, p.method, p.amount, p.currency, p.status)
            OR r.status <> 'completed' OR p.reverses IS NOT NULL
            OR (r.reverses IS NOT NULL) = (r.direction = p.direction)
            OR (r.reverses IS NOT NULL) = (r.order_id IS DISTINCT FROM p.order_id)
            OR (r.rebooks IS NOT NULL AND NOT EXISTS (SELECT FROM public.payments b WHERE b.reverses = p.id))
            OR r.created_by NOT IN (SELECT id FROM was_admin) OR l.payload ->> 'reason' IS NULL)
        """,
    ),
    Invariant(
        "money_back_was_paid_out",
        "money back from a supplier is at most the completed supplier payment that it names, of its order and currency",
        """
        SELECT b.id::text, format('%s %s back from payment %s', b.amount, b.currency, b.related_payment_id) AS detail
        FROM (SELECT p.*, sum(p.amount) OVER (PARTITION BY p.related_payment_id) AS back
              FROM ledger p JOIN new_payment USING (id)
              WHERE p.role = 'supplier_payment' AND p.direction = 'incoming' AND p.reverses IS NULL
                AND p.status IN ('planned', 'pending', 'completed') AND NOT p.reversed) b
        LEFT JOIN ledger s ON s.id = b.related_payment_id AND s.role = 'supplier_payment' AND s.direction = 'outgoing'
            AND s.status = 'completed' AND s.order_id = b.order_id AND s.currency = b.currency AND NOT s.reversed
        WHERE s.id IS NULL OR b.back > s.amount
        """,
    ),
    Invariant(
        "refunds_by_admins",
        "every refund was registered by an admin",
        """
        SELECT p.id::text, format('refund by %s', coalesce(p.created_by::text, 'no user')) AS detail
        FROM new_payment p WHERE p.role = 'refund'
          AND (p.created_by IS NULL OR p.created_by NOT IN (SELECT id FROM was_admin))
        """,
    ),
    Invariant(
        "references_are_unique",
        "a payment provider's reference belongs to one payment, forever, however it is written",
        f"""
        SELECT p.id::text, format('reference %s, key %s', p.external_reference, p.reference_key) AS detail
        FROM (SELECT q.*, count(*) OVER (PARTITION BY q.reference) AS holders FROM (
                  SELECT *, {_comparable("external_reference")} AS reference,
                      external_reference ~ '[^{BLANKS}]' AS given
                  FROM public.payments p
                  -- A payment that is booked on another order now has given its reference to that booking.
                  WHERE NOT EXISTS (SELECT FROM public.payments n WHERE n.rebooks = p.id AND p.reference_key IS NULL)
              ) q) p
        WHERE (p.reference_key IS DISTINCT FROM p.reference OR (p.reference IS NOT NULL AND p.holders > 1)
               OR p.given AND p.reference IS NULL)
          AND p.id IN (SELECT id FROM new_payment)
           OR (p.reference_key IS DISTINCT FROM p.reference OR p.given AND p.reference IS NULL)
          AND p.status = 'completed'  -- completed since the adoption
          AND p.id IN (SELECT entity_id FROM public.audit_log WHERE entity = 'payments' AND action = 'status_change')
        """,
    ),
    Invariant(
        "order_numbers_are_unique",
        "an order number belongs to one order, regardless of case and of invisible characters",
        f"""
        SELECT o.id::text, format('number %s, key %s', o.order_code, o.order_code_key) AS detail
        FROM (SELECT q.*, count(*) OVER (PARTITION BY q.number) AS holders FROM (
                  SELECT *, translate({_comparable("order_code")}, {_UPPER}, {_LOWER}) AS number FROM public.orders) q) o
        -- An adopted order may lack a key: an older one has it, or its number has none.
        WHERE CASE WHEN EXISTS (SELECT FROM adopted a WHERE a.entity = 'orders' AND a.entity_id = o.id)
                   THEN coalesce(o.order_code_key <> o.number, o.order_code_key IS NULL AND o.holders = 1
                       AND o.number IS NOT NULL, true)
                   ELSE o.order_code_key IS DISTINCT FROM o.number OR o.number IS NULL OR o.holders > 1 END
        """,
    ),
    Invariant(
        "provider_payments_have_references",
        "a completed incoming payment by online_cashbox or card has its provider's reference",
        """
        SELECT p.id::text, format('%s %s by %s', p.amount, p.currency, p.method) AS detail
        FROM new_payment p WHERE p.direction = 'incoming' AND p.status = 'completed'
          AND p.method IN ('online_cashbox', 'card') AND p.reference_key IS NULL AND p.reverses IS NULL
          AND NOT EXISTS (SELECT FROM public.payments n WHERE n.rebooks = p.id)
        """,
    ),
    Invariant(
        "payments_are_well_formed",
        "amounts are positive and finite; direction fits the role; client money has the order's currency",
        """
        SELECT p.id::text, format('%s %s %s %s', p.direction, p.role, p.amount, p.currency) AS detail
        FROM new_payment p LEFT JOIN public.orders o ON o.id = p.order_id LEFT JOIN ledger h ON h.id = p.id
        WHERE o.id IS NULL OR p.amount <= 0 OR p.amount = 'NaN'
           OR (p.role = 'client_payment' AND h.flow <> 'incoming' AND p.reverses IS NULL)
           OR (p.role = 'refund' AND h.flow <> 'outgoing' AND p.reverses IS NULL)
           OR (p.role IN ('client_payment', 'refund') AND p.status = 'completed'
               -- An order's currency changes only when its client money was reversed.
               AND p.reverses IS NULL AND NOT h.reversed AND p.currency IS DISTINCT FROM o.currency)
        """,
    ),
    Invariant(
        "new_rows_have_actors",
        "every row written since the guards names the user who wrote it",
        """
        SELECT id::text, format('%s without %s', entity, actor) AS detail FROM (
            SELECT 'orders' AS entity, id, 'created_by' AS actor FROM public.orders WHERE created_by IS NULL
            UNION ALL SELECT 'payments', id, 'created_by' FROM public.payments WHERE created_by IS NULL
            UNION ALL SELECT 'documents', id, 'uploaded_by' FROM public.documents WHERE uploaded_by IS NULL
            UNION ALL SELECT 'tasks', id, 'created_by' FROM public.tasks WHERE created_by IS NULL
            UNION ALL SELECT 'shipments', id, 'created_by' FROM public.shipments WHERE created_by IS NULL
        ) r WHERE NOT EXISTS (SELECT FROM adopted a WHERE a.entity = r.entity AND a.entity_id = r.id)
        UNION ALL SELECT e.id::text, 'event without changed_by' FROM new_event e WHERE e.changed_by IS NULL
        UNION ALL SELECT l.id::text, format('audit row of %s without actor_id', l.entity) FROM public.audit_log l
                  -- The owner's own writes to users and customers have a session_user instead.
                  WHERE l.actor_id IS NULL AND l.entity NOT IN ('users', 'customers', 'customer_contacts')
        """,
    ),
    Invariant(
        "replacements_keep_their_order",
        "a document that replaces another belongs to the same order or lead, and is no older",
        """
        SELECT d.id::text, format('replaces %s of another order or lead, or a newer one', d.replaces) AS detail
        FROM public.documents d LEFT JOIN public.documents o ON o.id = d.replaces
        WHERE d.replaces IS NOT NULL AND (o.id IS NULL OR o.id = d.id OR d.uploaded_at < o.uploaded_at
            OR (d.order_id, d.lead_id) IS DISTINCT FROM (o.order_id, o.lead_id))
        """,
    ),
    Invariant(
        "converted_leads_have_orders",
        "a lead is converted exactly when an order was made from it",
        """
        SELECT l.id::text, format('status %s, orders %s', l.status, count(o.id)) AS detail
        FROM public.leads l LEFT JOIN public.orders o ON o.lead_id = l.id
        WHERE NOT EXISTS (SELECT FROM adopted a WHERE a.entity = 'leads' AND a.entity_id = l.id)
        GROUP BY l.id, l.status HAVING (l.status = 'converted') <> (count(o.id) > 0)
        """,
    ),
    Invariant(
        "every_row_is_audited",
        "every business row has an audit row of its creation or adoption",
        f"""
        SELECT r.id::text, format('%s has no audit row of its creation', r.entity) AS detail
        FROM ({_BUSINESS_ROWS}) r
        WHERE NOT EXISTS (SELECT FROM public.audit_log l WHERE l.entity = r.entity AND l.entity_id = r.id
                          AND l.action IN ('adopt', 'create'))
        """,
    ),
    Invariant(
        "audited_rows_exist",
        "every row in the audit log still exists",
        f"""
        SELECT DISTINCT l.entity_id::text AS id, format('%s is gone', l.entity) AS detail
        FROM public.audit_log l
        WHERE l.entity IN ({", ".join(f"'{table}'" for table in AUDITED_TABLES)}) AND l.entity_id IS NOT NULL
          AND l.action <> 'adopted'  -- an older application could delete rows
          AND NOT EXISTS (SELECT FROM ({_BUSINESS_ROWS}) r WHERE r.entity = l.entity AND r.id = l.entity_id)
        """,
    ),
    Invariant(
        "rows_equal_their_newest_audit_image",
        "every business row equals the image in its newest audit row",
        f"""
        SELECT r.id::text, format('%s differs from audit row %s in %s', r.entity, a.id, (
                SELECT string_agg(key, ', ' ORDER BY key) FROM ({_CHANGED_COLUMNS}) changed)) AS detail
        FROM ({_IMAGES}) r JOIN (
            SELECT DISTINCT ON (entity, entity_id) entity, entity_id, id, payload -> 'row' AS row
            FROM public.audit_log WHERE entity_id IS NOT NULL ORDER BY entity, entity_id, id DESC
        ) a ON a.entity = r.entity AND a.entity_id = r.id
        WHERE a.row IS NULL OR (r.row <> a.row AND EXISTS ({_CHANGED_COLUMNS}))
        """,
    ),
    Invariant(
        "events_equal_their_audit_rows",
        "every event since the guards has its audit row, with the same statuses, actor, time, transaction, reason and notes",
        """
        SELECT coalesce(e.id, a.order_id)::text AS id, format('order %s: event %s of %s, audit row %s of %s',
                coalesce(e.order_id, a.order_id), coalesce(e.seq::text, 'missing'), e.new_status,
                coalesce(a.id::text, 'missing'), a.new_status) AS detail
        FROM (SELECT *, row_number() OVER (PARTITION BY order_id ORDER BY seq) AS place FROM event
              WHERE order_id IS NOT NULL AND (adopted_seq IS NULL OR seq >= adopted_seq)) e
        FULL JOIN (
            SELECT l.id, l.entity_id AS order_id, l.actor_id, l.transaction_id, CASE l.action WHEN 'adopt'
                    THEN l.created_at
                    ELSE (l.payload #>> CASE l.action WHEN 'create' THEN '{row,created_at}' ELSE '{row,updated_at}'
                        END::text[])::timestamptz END AS created_at,
                l.payload ->> 'old' AS old_status,
                coalesce(l.payload ->> 'new', l.payload -> 'row' ->> 'status') AS new_status,
                CASE l.action WHEN 'adopt' THEN 'adopted' WHEN 'create' THEN 'created'
                    ELSE l.payload ->> 'reason' END AS reason,
                l.payload ->> 'notes' AS notes, l.action,
                row_number() OVER (PARTITION BY l.entity_id ORDER BY l.id) AS place
            FROM public.audit_log l
            WHERE l.entity = 'orders' AND l.action IN ('adopt', 'create', 'status_change')
        ) a ON a.order_id = e.order_id AND a.place = e.place
        WHERE e.id IS NULL OR a.id IS NULL
           OR (e.new_status, e.changed_by, e.created_at, e.transaction_id, e.reason, e.notes)
              IS DISTINCT FROM (a.new_status, a.actor_id, a.created_at, a.transaction_id, a.reason, a.notes)
           OR (e.old_status IS DISTINCT FROM a.old_status AND a.action <> 'adopt')
        """,
    ),
    Invariant(
        "identities_equal_their_audit_rows",
        "every identity is mapped to the user that the audit row of its newest mapping names, unless it was unmapped",
        """
        SELECT coalesce(m.crm_user_id, a.crm_user_id)::text AS id,
            format('%s %s is mapped to %s, by audit row %s to %s', coalesce(m.provider, a.provider),
                coalesce(m.external_id, a.external_id), coalesce(m.crm_user_id::text, 'no user'),
                coalesce(a.id::text, 'missing'), a.crm_user_id) AS detail
        FROM public.user_identity_map m
        FULL JOIN (
            SELECT * FROM (
                SELECT DISTINCT ON (l.payload -> 'row' ->> 'provider', l.payload -> 'row' ->> 'external_id')
                    l.id, l.action, (l.payload -> 'row' ->> 'created_at')::timestamptz AS created_at,
                    l.payload -> 'row' ->> 'provider' AS provider,
                    l.payload -> 'row' ->> 'external_id' AS external_id,
                    (l.payload -> 'row' ->> 'crm_user_id')::uuid AS crm_user_id
                FROM public.audit_log l WHERE l.entity = 'user_identity_map'
                ORDER BY l.payload -> 'row' ->> 'provider', l.payload -> 'row' ->> 'external_id', l.id DESC
            ) newest WHERE action <> 'unmap_identity'
        ) a ON a.provider = m.provider AND a.external_id = m.external_id
        WHERE (m.crm_user_id, m.created_at) IS DISTINCT FROM (a.crm_user_id, a.created_at)
        """,
    ),
    Invariant(
        "contacts_agree_with_customers",
        "the phone and e-mail address of every customer lead to that customer; those of a merged one to anybody",
        f"""
        SELECT c.id::text, format('%s %s belongs to %s', c.kind, c.key, coalesce(k.customer_id::text, 'nobody'))
            AS detail
        FROM ({_CONTACTS}) c LEFT JOIN public.customer_contacts k ON k.kind = c.kind AND k.key = c.key
        WHERE CASE
              WHEN c.merged_into IS NULL THEN k.customer_id IS DISTINCT FROM c.id
              -- An earlier contact may have changed hands, and have been erased there.
              ELSE k.customer_id IS NULL AND NOT EXISTS (SELECT FROM public.customer_erasures) END
          -- Adopted customers may share a contact: the oldest has it.
          AND NOT (k.customer_id IS NOT NULL AND EXISTS (
              SELECT FROM adopted a WHERE a.entity = 'customers' AND a.entity_id = c.id)
              AND EXISTS (SELECT FROM adopted a WHERE a.entity = 'customer_contacts' AND a.entity_id = k.id))
        """,
        "If both customers are one person, merge them (merge_customers_safe). Otherwise find out who wrote past the RPCs.",
    ),
    Invariant(
        "merged_customers_hold_nothing",
        "merges were made by admins, lead to a customer who is not merged, and left no lead, order or contact behind",
        """
        SELECT c.id::text, format('merged into %s by %s, with %s rows left', c.merged_into,
                coalesce(m.actor_id::text, 'nobody'), r.rows) AS detail
        FROM public.customers c JOIN public.customers w ON w.id = c.merged_into
        LEFT JOIN LATERAL (
            SELECT l.actor_id FROM public.audit_log l
            WHERE l.entity = 'customers' AND l.entity_id = c.id AND l.action = 'merge' ORDER BY l.id DESC LIMIT 1) m ON true
        CROSS JOIN LATERAL (
            SELECT (SELECT count(*) FROM public.leads WHERE customer_id = c.id)
                + (SELECT count(*) FROM public.orders WHERE customer_id = c.id)
                + (SELECT count(*) FROM public.customer_contacts WHERE customer_id = c.id) AS rows) r
        WHERE w.merged_into IS NOT NULL OR r.rows > 0 OR m.actor_id IS NULL OR m.actor_id NOT IN (SELECT id FROM was_admin)
        """,
    ),
    Invariant(
        "positions_have_no_gap",
        "audit_positions counts 1, 2, 3 …, and each position belongs to an audit row",
        """
        SELECT p."position"::text AS id, format('audit row %s, after position %s', p.audit_id, p.before) AS detail
        FROM (SELECT *, lag("position", 1, 0::bigint) OVER (ORDER BY "position") AS before
              FROM public.audit_positions) p
        LEFT JOIN public.audit_log l ON l.id = p.audit_id
        WHERE p."position" <> p.before + 1 OR l.id IS NULL
        """,
        _EVIDENCE,
    ),
    Invariant(
        "changes_are_numbered",
        "no audit row waits for its position for three hours, and no transaction that could hold one stays open as long",
        """
        SELECT 'audit row ' || l.id AS id, format('%s of %s, written %s', l.action, l.entity, l.created_at) AS detail
        FROM public.audit_log l
        WHERE l.created_at < clock_timestamp() - interval '3 hours' AND l.action <> 'adopted'
          AND NOT EXISTS (SELECT FROM public.audit_positions p WHERE p.audit_id = l.id)
        UNION ALL
        SELECT 'prepared transaction ' || x.gid, format('of %s, prepared %s', x.owner, x.prepared)
        FROM pg_prepared_xacts x
        WHERE x.database = current_database() AND x.prepared < clock_timestamp() - interval '3 hours'
        UNION ALL
        SELECT 'session ' || s.pid, format('of %s (%s, %s), in a transaction that writes since %s',
            s.usename, s.application_name, coalesce(s.client_addr::text, 'local'), s.xact_start)
        FROM pg_stat_activity s
        WHERE s.datname = current_database() AND s.backend_xid IS NOT NULL
          AND s.xact_start < clock_timestamp() - interval '3 hours'
        """,
        "Audit rows: start crm_seal, which numbers all that is committed; if it fails, its error says why. Transactions: "
        "their rows are neither sealed nor in the change feed before they end. End the session "
        "(SELECT pg_terminate_backend(pid)), COMMIT PREPARED or ROLLBACK PREPARED.",
    ),
    Invariant(
        "erased_rows_are_registered",
        "an audit row without its salt was emptied by an erasure that recorded the hash of what is left",
        """
        SELECT p."position"::text AS id, format('audit row %s (%s of %s %s) has no salt, and %s', l.id, l.action,
            l.entity, l.entity_id, coalesce('differs from what the erasure ' || e.id || ' left', 'no erasure names it'))
            AS detail
        FROM public.audit_positions p JOIN public.audit_log l ON l.id = p.audit_id
        LEFT JOIN (
            SELECT DISTINCT ON (x.key) x.key::bigint AS audit_id, e.id, x.value AS hash
            FROM public.audit_log e CROSS JOIN jsonb_each_text(e.payload -> 'audit_rows') x
            WHERE e.entity = 'customers' AND e.action = 'erased' ORDER BY x.key, e.id DESC
        ) e ON e.audit_id = l.id
        WHERE p.salt IS NULL AND (l.client_address IS NOT NULL
            OR e.hash IS DISTINCT FROM encode(sha256(convert_to(l.payload::text, 'UTF8')), 'hex'))
        """,
        _EVIDENCE,
    ),
    Invariant(
        "erasures_hold",
        "every erased customer is in the register with the admin who did it, and has no name, contacts or addresses",
        """
        SELECT coalesce(r.customer_id, a.entity_id)::text AS id,
            format('register: %s, audit row: %s', coalesce(r.actor_id::text, 'missing'), coalesce(a.id::text, 'missing'))
            AS detail
        FROM (SELECT *, row_number() OVER (PARTITION BY customer_id ORDER BY id) AS place
              FROM public.customer_erasures) r
        FULL JOIN (
            SELECT *, row_number() OVER (PARTITION BY entity_id ORDER BY id) AS place FROM public.audit_log
            WHERE entity = 'customers' AND action = 'erased' AND payload ? 'audit_rows'
        ) a ON a.entity_id = r.customer_id AND a.place = r.place
        WHERE r.actor_id IS DISTINCT FROM a.actor_id OR r.transaction_id IS DISTINCT FROM a.transaction_id
           OR r.actor_id NOT IN (SELECT id FROM was_admin)
        UNION ALL
        SELECT c.id::text, 'has personal data' FROM public.customers c
        WHERE c.id IN (SELECT customer_id FROM public.customer_erasures)
          AND (c.full_name <> '[erased]' OR num_nonnulls(c.phone, c.email, c.billing_address, c.delivery_details) > 0)
        UNION ALL
        SELECT k.customer_id::text, 'has a contact' FROM public.customer_contacts k
        WHERE k.customer_id IN (SELECT customer_id FROM public.customer_erasures) AND k.key NOT LIKE '[erased]%'
        """,
        "If personal data came back, call erase_customer_safe again. Otherwise find out who wrote past the RPCs.",
    ),
    Invariant(
        "logins_are_expected",
        "audit rows were written by logins that are members of crm_app or are named in CRM_EXPECTED_LOGINS; the tables' "
        "owner only adopted rows, erased customers and wrote to users and customers",
        """
        WITH RECURSIVE member AS (
            SELECT oid FROM pg_roles WHERE rolname = 'crm_app'
            UNION SELECT m.member FROM pg_auth_members m JOIN member ON member.oid = m.roleid
            -- who only administers the role, as the login that made it, does not act with it
            WHERE m.inherit_option OR m.set_option
        ), expected AS (
            SELECT r.rolname::text AS login FROM pg_roles r JOIN member ON member.oid = r.oid
            UNION SELECT btrim(login)
            FROM string_to_table(current_setting('crm_analytics.expected_logins', true), ',') AS login
        )
        SELECT l."session_user" AS id, format('%s audit rows since %s, the last is %s: %s of %s, from %s (%s)', count(*),
            min(l.created_at), max(l.id), (array_agg(l.action ORDER BY l.id DESC))[1],
            (array_agg(l.entity ORDER BY l.id DESC))[1],
            coalesce((array_agg(l.client_address ORDER BY l.id DESC))[1]::text, 'a local socket'),
            (array_agg(l.application_name ORDER BY l.id DESC))[1]) AS detail
        FROM public.audit_log l
        WHERE l."session_user" NOT IN (SELECT login FROM expected)
          AND NOT (l."session_user" = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'public.orders'::regclass)
              AND (l.action = 'adopt' OR (l.action = 'adopted' AND l.payload ? 'adopted')
                  OR (l.action = 'erased' AND l.entity NOT IN ('orders', 'payments', 'users')) OR (l.actor_id IS NULL AND l.entity IN ('users', 'customers', 'customer_contacts'))))
        GROUP BY l."session_user"
        """,
        "Find out who used this login. If it belongs to a trusted server, grant it crm_app or name it in "
        "CRM_EXPECTED_LOGINS; a login that has been dropped since belongs there too. Otherwise treat it as a break-in.",
    ),
    Invariant(
        "seals_are_intact",
        "every seal continues the one before it, and covers its audit rows unchanged",
        """
        SELECT s.seq::text AS id, format('seal %s over positions up to %s', s.seq, s.last_position) AS detail
        FROM (SELECT seal.*, lag(seal.seq, 1, 0::bigint) OVER w AS before_seq,
                  lag(last_position, 1, 0::bigint) OVER w AS after_position,
                  lag(hash, 1, repeat('0', 64)) OVER w AS before_hash
              FROM public.audit_seals seal WINDOW w AS (ORDER BY seal.seq)) s
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows, encode(sha256(convert_to(
                s.before_hash || coalesce(string_agg(encode(sha256(convert_to(jsonb_build_array(
                    p."position", l.id, l.actor_id, l.action, l.entity, l.entity_id, l."session_user", l.transaction_id,
                    l.application_name, to_char(l.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
                    encode(coalesce(sha256(p.salt || convert_to(
                        jsonb_build_array(l.payload, l.client_address)::text, 'UTF8')), p.payload_hash), 'hex'))::text,
                    'UTF8')), 'hex'),
                '' ORDER BY p."position"), ''), 'UTF8')), 'hex') AS hash
            FROM public.audit_positions p JOIN public.audit_log l ON l.id = p.audit_id
            WHERE p."position" > s.after_position AND p."position" <= s.last_position) f
        WHERE s.seq <> s.before_seq + 1 OR s.previous_hash <> s.before_hash OR s.hash <> f.hash
           OR s.row_count <> f.rows OR s.row_count <> s.last_position - s.after_position
        """,
        _EVIDENCE,
    ),
)


@contextmanager
def snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Opens one REPEATABLE READ READ ONLY snapshot in which row security raises an error instead of filtering rows."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute("SET LOCAL row_security = off")
        # a function in another schema that fits better than PostgreSQL's own would run as this login
        connection.execute(f"SET LOCAL search_path = {SEARCH_PATH}")
        # Most audit images are written in UTC, and are then equal as text.
        connection.execute("SET LOCAL TimeZone = 'UTC'")
        yield


def check(
    connection: psycopg.Connection[Any],
    only: frozenset[str] | None = None,
    expected_logins: str | None = None,
) -> Mapping[str, Result]:
    """Evaluates every invariant (or those named) in one snapshot; the connection must not be in a transaction.

    Args:
        expected_logins: logins that may call the RPCs besides the members of crm_app, separated by commas; the
            setting CRM_EXPECTED_LOGINS by default.

    Raises:
        psycopg.Error: if a query cannot run. Nothing is known then, so the caller must not report success.
    """
    with snapshot(connection):
        return evaluate(connection, only, expected_logins)


def evaluate(
    connection: psycopg.Connection[Any],
    only: frozenset[str] | None = None,
    expected_logins: str | None = None,
) -> Mapping[str, Result]:
    """Evaluates the invariants inside the caller's transaction (tests roll their damage back)."""
    if expected_logins is None:
        expected_logins = settings().crm_expected_logins
    connection.execute("SELECT set_config('crm_analytics.expected_logins', %s, true)", [expected_logins])
    results = {}
    for invariant in INVARIANTS:
        if only is None or invariant.name in only:
            rows = connection.execute(
                f"""
                {_COMMON} SELECT id, detail, count(*) OVER () FROM ({invariant.query}) offender
                ORDER BY id LIMIT {ID_CAP}
                """
            ).fetchall()
            examples = tuple(f"{id_}: {detail}" for id_, detail, _ in rows)
            results[invariant.name] = Result(invariant, rows[0][2] if rows else 0, examples)
    return results
