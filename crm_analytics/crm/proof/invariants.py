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

#: How many offending ids are shown; the count is always complete.
ID_CAP = 20

_HISTORY = (
    "Find out who wrote past the RPCs (audit_log.session_user, server log). Then correct the rows in one transaction "
    "that disables the table's guard and enables it ALWAYS again."
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

#: The contacts in customers' own columns, by the form in which they are compared, with the customer who must have them.
#: Texts that are no phone or address, which only adopted rows have, belong to nobody.
_CONTACTS = """
    SELECT id, coalesce(merged_into, id) AS holder, 'email' AS kind,
        lower(regexp_replace(email, '^[[:space:]]+|[[:space:]]+$', '', 'g')) AS key
    FROM public.customers
    WHERE regexp_replace(email, '^[[:space:]]+|[[:space:]]+$', '', 'g') ~ '^[^@[:space:]]+@[^@[:space:]]+$'
        AND length(email) <= 255
    UNION ALL
    SELECT id, coalesce(merged_into, id), 'phone', CASE
        WHEN international THEN digits
        WHEN digits ~ '^8[0-9]{10}$' THEN '7' || substr(digits, 2)
        ELSE digits END
    FROM (
        SELECT id, merged_into, before ~ '^[^0-9+]*([+]|00)' AS international,
            regexp_replace(regexp_replace(before, '[^0-9]', '', 'g'), CASE
                WHEN before ~ '^[^0-9]*00' THEN '^00' ELSE '^$' END, '') AS digits
        FROM (SELECT *, split_part(regexp_replace(phone, '[дД][оО][бБ]|[eE][xX][tT]', '|'), '|', 1) AS before
              FROM public.customers) c
    ) phone
    WHERE length(digits) BETWEEN 5 AND 255"""

#: Shared by all queries: payments and events since the guards, money per order, users who ever were admins.
_COMMON = """
WITH adopted AS MATERIALIZED (
    SELECT entity, entity_id FROM public.audit_log WHERE action = 'adopt'
), new_payment AS (
    SELECT p.* FROM public.payments p
    WHERE NOT EXISTS (SELECT FROM adopted a WHERE a.entity = 'payments' AND a.entity_id = p.id)
), money AS (
    SELECT p.order_id,
        -- By direction too: adopted rows include client payments that went out, and refunds that came in.
        coalesce(sum(p.amount) FILTER (WHERE p.role = 'client_payment' AND p.direction = 'incoming'
            AND p.status = 'completed'), 0) AS client,
        coalesce(sum(p.amount) FILTER (WHERE p.role = 'refund' AND p.direction = 'outgoing'
            AND p.status = 'completed'), 0) AS refunded,
        coalesce(sum(p.amount) FILTER (WHERE p.role = 'refund' AND p.direction = 'outgoing'
            AND p.status IN ('completed', 'pending', 'planned')), 0) AS refunds
    FROM public.payments p JOIN public.orders o ON o.id = p.order_id AND o.currency = p.currency
    WHERE p.amount <> 'NaN' GROUP BY p.order_id
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
        "an order became paid only when completed client payments reached its total",
        """
        SELECT e.order_id::text AS id, format('total %s, client paid %s', o.total_amount, coalesce(m.client, 0))
            AS detail
        FROM new_event e JOIN public.orders o ON o.id = e.order_id LEFT JOIN money m ON m.order_id = o.id
        WHERE e.new_status = 'paid' AND (o.total_amount IS NULL OR coalesce(m.client, 0) < o.total_amount)
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
        """
        SELECT p.id::text, format('%s %s %s of order %s', p.role, p.amount, p.currency, p.order_id) AS detail
        FROM new_payment p LEFT JOIN money m ON m.order_id = p.order_id
        WHERE p.direction = 'outgoing' AND p.role <> 'refund' AND p.status = 'completed'
          AND coalesce(m.client, 0) <= 0
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
        "a payment provider's reference belongs to one payment, forever",
        """
        SELECT p.id::text, format('reference %s, key %s', p.external_reference, p.reference_key) AS detail
        FROM (SELECT q.*, count(*) OVER (PARTITION BY q.reference) AS holders FROM (
                  SELECT *, nullif(regexp_replace(external_reference, '^[[:space:]]+|[[:space:]]+$', '', 'g'), '') AS reference
                  FROM public.payments) q) p
        WHERE (p.reference_key IS DISTINCT FROM p.reference OR (p.reference IS NOT NULL AND p.holders > 1))
          AND p.id IN (SELECT id FROM new_payment)
           OR p.reference_key IS DISTINCT FROM p.reference AND p.status = 'completed'  -- completed since the adoption
          AND p.id IN (SELECT entity_id FROM public.audit_log WHERE entity = 'payments' AND action = 'status_change')
        """,
    ),
    Invariant(
        "provider_payments_have_references",
        "a completed incoming payment by online_cashbox or card has its provider's reference",
        """
        SELECT p.id::text, format('%s %s by %s', p.amount, p.currency, p.method) AS detail
        FROM new_payment p WHERE p.direction = 'incoming' AND p.status = 'completed'
          AND p.method IN ('online_cashbox', 'card') AND p.reference_key IS NULL
        """,
    ),
    Invariant(
        "payments_are_well_formed",
        "amounts are positive and finite; direction fits the role; client money has the order's currency",
        """
        SELECT p.id::text, format('%s %s %s %s', p.direction, p.role, p.amount, p.currency) AS detail
        FROM new_payment p LEFT JOIN public.orders o ON o.id = p.order_id
        WHERE o.id IS NULL OR p.amount <= 0 OR p.amount = 'NaN'
           OR (p.role = 'client_payment' AND p.direction <> 'incoming')
           OR (p.role IN ('refund', 'supplier_payment') AND p.direction <> 'outgoing')
           OR (p.role IN ('client_payment', 'refund') AND p.status = 'completed'
               AND p.currency IS DISTINCT FROM o.currency)
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
        "the phone and e-mail address of every customer lead to that customer, or to the one it was merged into",
        f"""
        SELECT c.id::text, format('%s %s belongs to %s', c.kind, c.key, coalesce(k.customer_id::text, 'nobody'))
            AS detail
        FROM ({_CONTACTS}) c LEFT JOIN public.customer_contacts k ON k.kind = c.kind AND k.key = c.key
        WHERE k.customer_id IS DISTINCT FROM c.holder
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
        "seals_are_intact",
        "every seal continues the one before it, and covers its audit rows unchanged",
        """
        SELECT s.seq::text AS id, format('seal %s over audit rows up to %s', s.seq, s.last_audit_id) AS detail
        FROM (SELECT seal.*, lag(seal.seq, 1, 0::bigint) OVER w AS before_seq,
                  lag(last_audit_id, 1, 0::bigint) OVER w AS after_id,
                  lag(hash, 1, repeat('0', 64)) OVER w AS before_hash
              FROM public.audit_seals seal WINDOW w AS (ORDER BY seal.seq)) s
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows, encode(sha256(convert_to(
                s.before_hash || coalesce(string_agg(encode(sha256(convert_to(jsonb_build_array(
                    l.id, l.actor_id, l.action, l.entity, l.entity_id, l.payload, l."session_user", l.transaction_id,
                    to_char(l.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'))::text, 'UTF8')), 'hex'),
                '' ORDER BY l.id), ''), 'UTF8')), 'hex') AS hash
            FROM public.audit_log l WHERE l.id > s.after_id AND l.id <= s.last_audit_id) f
        WHERE s.seq <> s.before_seq + 1 OR s.previous_hash <> s.before_hash OR s.hash <> f.hash
           OR s.row_count <> f.rows
        """,
        "The audit log was changed after it was sealed. Compare it with a backup from before. audit_log and audit_seals "
        "are evidence: keep them as they are, and start a new chain only when the matter is settled.",
    ),
)


@contextmanager
def snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Opens one REPEATABLE READ READ ONLY snapshot in which row security raises an error instead of filtering rows."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute("SET LOCAL row_security = off")
        # Most audit images are written in UTC, and are then equal as text.
        connection.execute("SET LOCAL TimeZone = 'UTC'")
        yield


def check(connection: psycopg.Connection[Any], only: frozenset[str] | None = None) -> Mapping[str, Result]:
    """Evaluates every invariant (or those named) in one snapshot; the connection must not be in a transaction.

    Raises:
        psycopg.Error: if a query cannot run. Nothing is known then, so the caller must not report success.
    """
    with snapshot(connection):
        return evaluate(connection, only)


def evaluate(connection: psycopg.Connection[Any], only: frozenset[str] | None = None) -> Mapping[str, Result]:
    """Evaluates the invariants inside the caller's transaction (tests roll their damage back)."""
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
