-- What Grafana may see of the CRM: the role grafana_reader (server.sql), and views without customers' data. The views
-- belong to the tables' owner, so that row level security does not empty them; the tables stay closed to the reader.

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS
    'What dashboards show of the CRM: counts, sums and audit entries without customers'' data.';

-- comments the columns of a view, one "    column: meaning" per line
CREATE FUNCTION pg_temp.describe(relation regclass, meanings text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    meaning text[];
BEGIN
    FOR meaning IN SELECT regexp_matches(meanings, '^ {4}(\w+): (.+)$', 'gn') LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', relation, meaning[1], meaning[2]);
    END LOOP;
END $$;

-- A dashboard's time range begins and ends at midnights of the viewer's time zone, which isn't known here: only that
-- zones are up to 14 hours ahead of UTC or 12 behind it, in steps of 15 minutes.
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
    coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'incoming'), 0) AS money_in,
    coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'outgoing'), 0) AS money_out,
    count(*) AS payments
FROM public.payments p
WHERE p.status::text = 'completed'
GROUP BY 1, 2;
COMMENT ON VIEW reporting.money_by_month IS 'Completed payments by month of booking (UTC) and currency.';
SELECT pg_temp.describe('reporting.money_by_month', $$
    month: First day of the month.
    currency: Currency; nothing is converted.
    money_in: Sum of incoming payments.
    money_out: Sum of outgoing payments, refunds included.
    payments: Number of payments.
$$);

CREATE VIEW reporting.audit_entries AS
SELECT a.id AS audit_id, a.created_at AS at, a.action, a.entity, a.entity_id::text AS entity_id, u.name AS actor,
    a.id <= coalesce((SELECT max(s.last_audit_id) FROM public.audit_seals s), 0) AS sealed
FROM public.audit_log a
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
    reporting.audit_entries TO grafana_reader;
