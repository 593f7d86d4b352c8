-- What Grafana may see of the CRM: the role grafana_reader (server.sql), and views without customers' data. The views
-- belong to the tables' owner, so that row level security does not empty them; the tables stay closed to the reader.

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS
    'What dashboards show of the CRM: counts, sums and audit entries without customers'' data.';

-- comments the columns of a view, one "    column: meaning" per line
CREATE FUNCTION pg_temp.describe(relation regclass, meanings text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    meaning text[];
BEGIN
    FOR meaning IN SELECT regexp_matches(meanings, '^ {4}(\w+): (.+)$', 'gn') LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', relation, meaning[1], meaning[2]);
    END LOOP;
END $$;

-- A dashboard's time range begins and ends at midnights of the viewer's time zone, which isn't known here: only that
-- zones are up to 14 hours ahead of UTC or 12 behind it, in steps of 15 minutes.
-- No search_path: the reader's query, in which PostgreSQL inlines them, runs with the reader's rights.
CREATE FUNCTION reporting.first_month(p_from timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT date_trunc(
        'month',
        p_from AT TIME ZONE 'UTC' + interval '14 hours' * (extract(epoch FROM p_from) % 900 = 0)::int
    )::date
$$;
COMMENT ON FUNCTION reporting.first_month IS
    'The month in which a time range begins, as its viewer sees it. A month''s first midnight in any time zone is that '
    'month; other moments count in UTC.';

CREATE FUNCTION reporting.last_month(p_from timestamptz, p_to timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(reporting.first_month(p_from), date_trunc(
        'month',
        p_to AT TIME ZONE 'UTC' - interval '12 hours 1 second' * ((extract(epoch FROM p_to) + 1) % 900 <= 1)::int
    )::date)
$$;
COMMENT ON FUNCTION reporting.last_month IS
    'The month in which a time range ends, as its viewer sees it. A month''s last midnight in any time zone, or the '
    'second before it, is that month; other moments count in UTC. Never before the first month.';

CREATE VIEW reporting.leads_by_month AS
SELECT date_trunc('month', l.created_at AT TIME ZONE 'UTC')::date AS month, l.status::text AS status, count(*) AS leads
FROM public.leads l
GROUP BY 1, 2;
COMMENT ON VIEW reporting.leads_by_month IS 'Leads by month of creation (UTC) and current status.';
SELECT pg_temp.describe('reporting.leads_by_month', $$
    month: First day of the month.
    status: Current status.
    leads: Number of leads.
$$);

CREATE VIEW reporting.orders_by_month AS
SELECT date_trunc('month', o.created_at AT TIME ZONE 'UTC')::date AS month, o.status::text AS status, count(*) AS orders
FROM public.orders o
GROUP BY 1, 2;
COMMENT ON VIEW reporting.orders_by_month IS 'Orders by month of creation (UTC) and current status.';
SELECT pg_temp.describe('reporting.orders_by_month', $$
    month: First day of the month.
    status: Current status.
    orders: Number of orders.
$$);

-- Only unfinished work has an age worth watching; an adopted row may be dated at infinity, and then has none.
CREATE VIEW reporting.age_in_status AS
SELECT a.entity, a.status, a.position, count(*) AS rows,
    round(avg(extract(epoch FROM now() - CASE WHEN isfinite(a.since) THEN a.since END)) / 86400, 1) AS mean_days,
    round(max(extract(epoch FROM now() - CASE WHEN isfinite(a.since) THEN a.since END)) / 86400, 1) AS longest_days
FROM (
    SELECT 'order' AS entity, o.status::text AS status, array_position(enum_range(o.status), o.status) AS position,
        coalesce((
            SELECT max(e.created_at) FROM public.order_status_events e WHERE e.order_id = o.id
        ), o.created_at) AS since
    FROM public.orders o
    WHERE o.status::text NOT IN ('closed', 'cancelled')
    UNION ALL
    -- named here as well: a restored dump prints these columns under other names otherwise, and would look changed
    SELECT 'lead' AS entity, l.status::text AS status, array_position(enum_range(l.status), l.status) AS position,
        coalesce((
            SELECT max(u.created_at) FROM public.audit_log u
            WHERE u.entity = 'leads' AND u.entity_id = l.id AND u.action = 'status_change'
        ), l.created_at) AS since
    FROM public.leads l
    WHERE l.status::text NOT IN ('converted', 'rejected')
) a
GROUP BY a.entity, a.status, a.position;
COMMENT ON VIEW reporting.age_in_status IS 'Unfinished leads and orders by status, and how long they have been in it.';
SELECT pg_temp.describe('reporting.age_in_status', $$
    entity: lead or order.
    status: Current status.
    position: The status's place in its enum, for sorting.
    rows: Number of leads or orders.
    mean_days: Mean time since they entered the status, in days.
    longest_days: The longest such time, in days.
$$);

CREATE VIEW reporting.money_by_month AS
SELECT date_trunc('month', p.created_at AT TIME ZONE 'UTC')::date AS month, p.currency::text AS currency,
    coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'incoming' AND p.reverses IS NULL), 0)
    - coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'outgoing' AND p.reverses IS NOT NULL), 0) AS money_in,
    coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'outgoing' AND p.reverses IS NULL), 0)
    - coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'incoming' AND p.reverses IS NOT NULL), 0) AS money_out,
    count(*) FILTER (WHERE p.reverses IS NULL) AS payments
FROM public.payments p
WHERE p.status::text = 'completed'
GROUP BY 1, 2;
COMMENT ON VIEW reporting.money_by_month IS 'Completed payments by month of booking (UTC) and currency.';
SELECT pg_temp.describe('reporting.money_by_month', $$
    month: First day of the month.
    currency: Currency; nothing is converted.
    money_in: Sum of incoming payments, less those reversed in the month.
    money_out: Sum of outgoing payments, refunds included, less those reversed in the month.
    payments: Number of payments, without reversals.
$$);

-- An adopted order may be past a step without an event that tells when: it counts, and has no time.
CREATE VIEW reporting.funnel_by_month_and_source AS
SELECT date_trunc('month', l.created_at AT TIME ZONE 'UTC')::date AS month, l.source,
    count(*) AS leads, count(o.lead_id) AS orders,
    count(*) FILTER (WHERE o.was_paid) AS paid, count(*) FILTER (WHERE o.was_delivered) AS delivered,
    sum(extract(epoch FROM o.ordered_at - l.created_at)) AS seconds_to_order,
    count(o.ordered_at) AS timed_orders,
    sum(extract(epoch FROM o.paid_at - o.ordered_at)) AS seconds_to_paid, count(o.paid_at) AS timed_paid,
    sum(extract(epoch FROM o.delivered_at - o.paid_at)) AS seconds_to_delivered,
    count(o.delivered_at - o.paid_at) AS timed_delivered
FROM public.leads l
LEFT JOIN (
    SELECT x.lead_id, bool_or(e.was_paid) AS was_paid, bool_or(e.was_delivered) AS was_delivered,
        min(e.ordered_at) AS ordered_at, min(e.paid_at) AS paid_at, min(e.delivered_at) AS delivered_at
    FROM public.orders x
    JOIN (
        SELECT s.order_id,
            bool_or(s.new_status IN ('paid', 'in_delivery', 'delivered', 'closed')) AS was_paid,
            bool_or(s.new_status IN ('delivered', 'closed')) AS was_delivered,
            min(s.created_at) FILTER (WHERE s.seq = 1 AND s.reason = 'created') AS ordered_at,
            min(s.created_at) FILTER (WHERE s.new_status = 'paid' AND s.reason IS DISTINCT FROM 'adopted') AS paid_at,
            min(s.created_at)
                FILTER (WHERE s.new_status = 'delivered' AND s.reason IS DISTINCT FROM 'adopted') AS delivered_at
        FROM public.order_status_events s
        GROUP BY s.order_id
    ) e ON e.order_id = x.id
    WHERE x.lead_id IS NOT NULL
    GROUP BY x.lead_id
) o ON o.lead_id = l.id
WHERE isfinite(l.created_at)
GROUP BY 1, 2;
COMMENT ON VIEW reporting.funnel_by_month_and_source IS
    'How many leads became an order, paid and delivered, by month of the lead''s creation (UTC) and source.';
SELECT pg_temp.describe('reporting.funnel_by_month_and_source', $$
    month: First day of the month.
    source: Where the lead came from.
    leads: Number of leads.
    orders: Leads from which an order was made.
    paid: Leads with an order that was paid.
    delivered: Leads with an order that was delivered.
    seconds_to_order: Sum of the times from a lead to its first order.
    timed_orders: Number of these times.
    seconds_to_paid: Sum of the times from an order to its full payment.
    timed_paid: Number of these times.
    seconds_to_delivered: Sum of the times from full payment to delivery.
    timed_delivered: Number of these times.
$$);

CREATE VIEW reporting.client_money_by_month AS
SELECT m.*, sum(m.client_paid - m.refunded - m.paid_out) OVER (PARTITION BY m.currency ORDER BY m.month) AS held
FROM (
    SELECT date_trunc('month', p.created_at AT TIME ZONE 'UTC')::date AS month, p.currency::text AS currency,
        coalesce(sum(CASE p.direction::text WHEN 'incoming' THEN p.amount ELSE -p.amount END)
            FILTER (WHERE p.role::text = 'client_payment'
                AND (p.direction::text = 'incoming') = (p.reverses IS NULL)), 0) AS client_paid,
        coalesce(sum(CASE p.direction::text WHEN 'outgoing' THEN p.amount ELSE -p.amount END)
            FILTER (WHERE p.role::text = 'refund'
                AND (p.direction::text = 'outgoing') = (p.reverses IS NULL)), 0) AS refunded,
        coalesce(sum(CASE p.direction::text WHEN 'outgoing' THEN p.amount ELSE -p.amount END)
            FILTER (WHERE p.role::text = 'supplier_payment' OR p.role::text IN ('shipping_payment', 'commission')
                AND (p.direction::text = 'outgoing') = (p.reverses IS NULL)), 0) AS paid_out
    FROM public.payments p
    WHERE p.status::text = 'completed' AND p.amount <> 'NaN' AND isfinite(p.created_at)
    GROUP BY 1, 2
) m;
COMMENT ON VIEW reporting.client_money_by_month IS
    'Clients'' money by month of booking (UTC) and currency: received, refunded, paid out, and what is left of it.';
SELECT pg_temp.describe('reporting.client_money_by_month', $$
    month: First day of the month.
    currency: Currency; nothing is converted.
    client_paid: Completed client payments, less those reversed in the month.
    refunded: Completed refunds, less those reversed in the month.
    paid_out: Completed payments to suppliers, for shipping and commissions, less what came back.
    held: What is left at the end of the month of all money until then.
$$);

CREATE VIEW reporting.audit_entries AS
SELECT a.id AS audit_id, a.created_at AS at, a.action, a.entity, a.entity_id::text AS entity_id, u.name AS actor,
    coalesce(p.position <= (SELECT max(s.last_position) FROM public.audit_seals s), false) AS sealed
FROM public.audit_log a
LEFT JOIN public.audit_positions p ON p.audit_id = a.id
LEFT JOIN public.users u ON u.id = a.actor_id;
COMMENT ON VIEW reporting.audit_entries IS 'The audit trail without the rows'' contents.';
SELECT pg_temp.describe('reporting.audit_entries', $$
    audit_id: Number of the entry.
    at: When it was written.
    action: What was done.
    entity: Table of the changed row.
    entity_id: Id of the changed row.
    actor: CRM user who did it; NULL if the table owner wrote directly.
    sealed: Whether the hash chain covers it.
$$);

-- the owner's default privileges may have given the views to the web's roles, and a view shows its owner's rows
SELECT crm_private.revoke_others(ARRAY['crm_rpc', 'crm_app', 'grafana_reader']);

GRANT USAGE ON SCHEMA reporting TO grafana_reader;
GRANT SELECT ON reporting.leads_by_month, reporting.orders_by_month, reporting.age_in_status, reporting.money_by_month,
    reporting.funnel_by_month_and_source, reporting.client_money_by_month, reporting.audit_entries TO grafana_reader;
