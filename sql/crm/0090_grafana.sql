-- What Grafana may see of the CRM: the role grafana_reader (server.sql), and views without customers' data. They belong to the
-- tables' owner, so row level security does not empty them; the tables themselves stay closed to the reader.

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS 'What dashboards show of the CRM: counts, sums and audit entries without customers'' data.';

CREATE VIEW reporting.leads_by_month AS
SELECT date_trunc('month', l.created_at AT TIME ZONE 'UTC')::date AS month, l.status::text AS status, count(*) AS leads
FROM public.leads l
GROUP BY 1, 2;
COMMENT ON VIEW reporting.leads_by_month IS 'Leads by month of creation (UTC) and present status.';
COMMENT ON COLUMN reporting.leads_by_month.month IS 'First day of the month.';
COMMENT ON COLUMN reporting.leads_by_month.status IS 'Present status.';
COMMENT ON COLUMN reporting.leads_by_month.leads IS 'Number of leads.';

CREATE VIEW reporting.orders_by_month AS
SELECT date_trunc('month', o.created_at AT TIME ZONE 'UTC')::date AS month, o.status::text AS status, count(*) AS orders
FROM public.orders o
GROUP BY 1, 2;
COMMENT ON VIEW reporting.orders_by_month IS 'Orders by month of creation (UTC) and present status.';
COMMENT ON COLUMN reporting.orders_by_month.month IS 'First day of the month.';
COMMENT ON COLUMN reporting.orders_by_month.status IS 'Present status.';
COMMENT ON COLUMN reporting.orders_by_month.orders IS 'Number of orders.';

-- Only what is unfinished has an age worth watching; an adopted row may be dated at infinity, and then has none.
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
    SELECT 'lead', l.status::text, array_position(enum_range(l.status), l.status),
        coalesce((
            SELECT max(u.created_at) FROM public.audit_log u
            WHERE u.entity = 'leads' AND u.entity_id = l.id AND u.action = 'status_change'
        ), l.created_at)
    FROM public.leads l
    WHERE l.status::text NOT IN ('converted', 'rejected')
) a
GROUP BY a.entity, a.status, a.position;
COMMENT ON VIEW reporting.age_in_status IS 'Unfinished leads and orders by status, and how long they have stood in it.';
COMMENT ON COLUMN reporting.age_in_status.entity IS 'lead or order.';
COMMENT ON COLUMN reporting.age_in_status.status IS 'Present status.';
COMMENT ON COLUMN reporting.age_in_status.position IS 'The status''s place in its enum, for sorting.';
COMMENT ON COLUMN reporting.age_in_status.rows IS 'How many.';
COMMENT ON COLUMN reporting.age_in_status.mean_days IS 'Mean time since they entered the status, in days.';
COMMENT ON COLUMN reporting.age_in_status.longest_days IS 'The longest such time, in days.';

CREATE VIEW reporting.money_by_month AS
SELECT date_trunc('month', p.created_at AT TIME ZONE 'UTC')::date AS month, p.currency::text AS currency,
    coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'incoming'), 0) AS money_in,
    coalesce(sum(p.amount) FILTER (WHERE p.direction::text = 'outgoing'), 0) AS money_out,
    count(*) AS payments
FROM public.payments p
WHERE p.status::text = 'completed'
GROUP BY 1, 2;
COMMENT ON VIEW reporting.money_by_month IS 'Completed payments by month of booking (UTC) and currency.';
COMMENT ON COLUMN reporting.money_by_month.month IS 'First day of the month.';
COMMENT ON COLUMN reporting.money_by_month.currency IS 'Currency; nothing is converted.';
COMMENT ON COLUMN reporting.money_by_month.money_in IS 'Sum of incoming payments.';
COMMENT ON COLUMN reporting.money_by_month.money_out IS 'Sum of outgoing payments, refunds included.';
COMMENT ON COLUMN reporting.money_by_month.payments IS 'Number of payments.';

CREATE VIEW reporting.audit_entries AS
SELECT a.id AS audit_id, a.created_at AS at, a.action, a.entity, a.entity_id::text AS entity_id, u.name AS actor,
    a.id <= coalesce((SELECT max(s.last_audit_id) FROM public.audit_seals s), 0) AS sealed
FROM public.audit_log a
LEFT JOIN public.users u ON u.id = a.actor_id;
COMMENT ON VIEW reporting.audit_entries IS 'The audit trail without the rows'' contents.';
COMMENT ON COLUMN reporting.audit_entries.audit_id IS 'Number of the entry.';
COMMENT ON COLUMN reporting.audit_entries.at IS 'When it was written.';
COMMENT ON COLUMN reporting.audit_entries.action IS 'What was done.';
COMMENT ON COLUMN reporting.audit_entries.entity IS 'To which table.';
COMMENT ON COLUMN reporting.audit_entries.entity_id IS 'To which row.';
COMMENT ON COLUMN reporting.audit_entries.actor IS 'Which CRM user did it; NULL where the table owner wrote directly.';
COMMENT ON COLUMN reporting.audit_entries.sealed IS 'Whether the hash chain covers it.';

GRANT USAGE ON SCHEMA reporting TO grafana_reader;
GRANT SELECT ON reporting.leads_by_month, reporting.orders_by_month, reporting.age_in_status, reporting.money_by_month,
    reporting.audit_entries TO grafana_reader;
