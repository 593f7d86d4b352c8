-- The aggregates that Grafana reads: daily and monthly metrics by source and segment, and monthly targets.

CREATE TABLE analytics.daily_metrics (
    date date NOT NULL,
    source varchar NOT NULL,
    segment varchar NOT NULL CHECK (segment IN ('COD', 'INS', 'OTHER')),
    jobs int NOT NULL DEFAULT 0,
    units int NOT NULL DEFAULT 0,
    repairs int NOT NULL DEFAULT 0,
    leads int NOT NULL DEFAULT 0,
    calls int NOT NULL DEFAULT 0,
    cost numeric(14,2) NOT NULL DEFAULT 0,
    revenue_gross numeric(14,2) NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    revenue40 numeric GENERATED ALWAYS AS (revenue_gross * 0.40) STORED,
    profit numeric GENERATED ALWAYS AS (revenue_gross * 0.40 - cost) STORED,
    conv_l_to_u numeric GENERATED ALWAYS AS (units::numeric / nullif(leads, 0)) STORED,
    conv_l_to_r numeric GENERATED ALWAYS AS (repairs::numeric / nullif(leads, 0)) STORED,
    conv_u_to_r numeric GENERATED ALWAYS AS (repairs::numeric / nullif(units, 0)) STORED,
    cpl numeric GENERATED ALWAYS AS (cost / nullif(leads, 0)) STORED,
    CONSTRAINT daily_metrics_pkey PRIMARY KEY (date, source, segment)
);
CREATE INDEX daily_metrics_source ON analytics.daily_metrics (source, segment, date);
COMMENT ON TABLE analytics.daily_metrics IS 'Metrics by day, source and segment. A row exists exactly where some measure is not zero. Written by the refresh, restated when late data arrives.';
COMMENT ON COLUMN analytics.daily_metrics.date IS 'The day (local date).';
COMMENT ON COLUMN analytics.daily_metrics.source IS 'Channel name, after channel_aliases; Unattributed where there is none.';
COMMENT ON COLUMN analytics.daily_metrics.segment IS 'COD, INS or OTHER; leads and cost that come without a job are OTHER unless the channel says otherwise.';
COMMENT ON COLUMN analytics.daily_metrics.updated_at IS 'When these numbers last changed.';
COMMENT ON COLUMN analytics.daily_metrics.jobs IS 'Jobs of the day, canceled ones included.';
COMMENT ON COLUMN analytics.daily_metrics.units IS 'Jobs that are units (COD Service, INS Service).';
COMMENT ON COLUMN analytics.daily_metrics.repairs IS 'Jobs that are repairs.';
COMMENT ON COLUMN analytics.daily_metrics.leads IS 'Leads by the channel rule in force.';
COMMENT ON COLUMN analytics.daily_metrics.calls IS 'Calls of this source''s flows; segment OTHER.';
COMMENT ON COLUMN analytics.daily_metrics.cost IS 'Dollars paid for the leads.';
COMMENT ON COLUMN analytics.daily_metrics.revenue_gross IS 'Dollars: counted payments of the day''s jobs, whenever they were paid; orphan payments by the day paid.';
COMMENT ON COLUMN analytics.daily_metrics.revenue40 IS 'Dollars: 40 % of revenue_gross, what is left after technician and fixed costs; unrounded.';
COMMENT ON COLUMN analytics.daily_metrics.profit IS 'Dollars: revenue40 less cost.';
COMMENT ON COLUMN analytics.daily_metrics.conv_l_to_u IS 'Units per lead; NULL without leads. By segment only where leads have one: compare by source.';
COMMENT ON COLUMN analytics.daily_metrics.conv_l_to_r IS 'Repairs per lead; NULL without leads.';
COMMENT ON COLUMN analytics.daily_metrics.conv_u_to_r IS 'Repairs per unit; NULL without units.';
COMMENT ON COLUMN analytics.daily_metrics.cpl IS 'Dollars of cost per lead; NULL without leads.';

CREATE TABLE analytics.monthly_metrics (
    month date NOT NULL CHECK (extract(day FROM month) = 1),
    source varchar NOT NULL,
    segment varchar NOT NULL CHECK (segment IN ('COD', 'INS', 'OTHER')),
    jobs int NOT NULL DEFAULT 0,
    units int NOT NULL DEFAULT 0,
    repairs int NOT NULL DEFAULT 0,
    leads int NOT NULL DEFAULT 0,
    calls int NOT NULL DEFAULT 0,
    cost numeric(14,2) NOT NULL DEFAULT 0,
    revenue_gross numeric(14,2) NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    revenue40 numeric GENERATED ALWAYS AS (revenue_gross * 0.40) STORED,
    profit numeric GENERATED ALWAYS AS (revenue_gross * 0.40 - cost) STORED,
    conv_l_to_u numeric GENERATED ALWAYS AS (units::numeric / nullif(leads, 0)) STORED,
    conv_l_to_r numeric GENERATED ALWAYS AS (repairs::numeric / nullif(leads, 0)) STORED,
    conv_u_to_r numeric GENERATED ALWAYS AS (repairs::numeric / nullif(units, 0)) STORED,
    cpl numeric GENERATED ALWAYS AS (cost / nullif(leads, 0)) STORED,
    CONSTRAINT monthly_metrics_pkey PRIMARY KEY (month, source, segment)
);
CREATE INDEX monthly_metrics_source ON analytics.monthly_metrics (source, segment, month);
COMMENT ON TABLE analytics.monthly_metrics IS 'Metrics by month, source and segment: sums of daily_metrics, written in the same transaction. Ratios are of the sums, never averages.';
COMMENT ON COLUMN analytics.monthly_metrics.month IS 'First day of the month.';
COMMENT ON COLUMN analytics.monthly_metrics.source IS 'Channel name, after channel_aliases; Unattributed where there is none.';
COMMENT ON COLUMN analytics.monthly_metrics.segment IS 'COD, INS or OTHER; leads and cost that come without a job are OTHER unless the channel says otherwise.';
COMMENT ON COLUMN analytics.monthly_metrics.updated_at IS 'When these numbers last changed.';
COMMENT ON COLUMN analytics.monthly_metrics.jobs IS 'Jobs of the month, canceled ones included.';
COMMENT ON COLUMN analytics.monthly_metrics.units IS 'Jobs that are units (COD Service, INS Service).';
COMMENT ON COLUMN analytics.monthly_metrics.repairs IS 'Jobs that are repairs.';
COMMENT ON COLUMN analytics.monthly_metrics.leads IS 'Leads by the channel rule in force.';
COMMENT ON COLUMN analytics.monthly_metrics.calls IS 'Calls of this source''s flows; segment OTHER.';
COMMENT ON COLUMN analytics.monthly_metrics.cost IS 'Dollars paid for the leads.';
COMMENT ON COLUMN analytics.monthly_metrics.revenue_gross IS 'Dollars: counted payments of the month''s jobs, whenever they were paid; orphan payments by the day paid.';
COMMENT ON COLUMN analytics.monthly_metrics.revenue40 IS 'Dollars: 40 % of revenue_gross, what is left after technician and fixed costs; unrounded.';
COMMENT ON COLUMN analytics.monthly_metrics.profit IS 'Dollars: revenue40 less cost.';
COMMENT ON COLUMN analytics.monthly_metrics.conv_l_to_u IS 'Units per lead; NULL without leads. By segment only where leads have one: compare by source.';
COMMENT ON COLUMN analytics.monthly_metrics.conv_l_to_r IS 'Repairs per lead; NULL without leads.';
COMMENT ON COLUMN analytics.monthly_metrics.conv_u_to_r IS 'Repairs per unit; NULL without units.';
COMMENT ON COLUMN analytics.monthly_metrics.cpl IS 'Dollars of cost per lead; NULL without leads.';

CREATE VIEW analytics.daily_by_source AS
SELECT date, source, sum(jobs)::int AS jobs, sum(units)::int AS units, sum(repairs)::int AS repairs, sum(leads)::int AS leads, sum(calls)::int AS calls,
    sum(cost) AS cost, sum(revenue_gross) AS revenue_gross, sum(revenue40) AS revenue40, sum(profit) AS profit,
    sum(units)::numeric / nullif(sum(leads), 0) AS conv_l_to_u, sum(repairs)::numeric / nullif(sum(leads), 0) AS conv_l_to_r,
    sum(repairs)::numeric / nullif(sum(units), 0) AS conv_u_to_r, sum(cost) / nullif(sum(leads), 0) AS cpl,
    max(updated_at) AS updated_at
FROM analytics.daily_metrics
GROUP BY date, source;
COMMENT ON VIEW analytics.daily_by_source IS 'daily_metrics over all segments: the level at which ratios mean something for every channel.';
COMMENT ON COLUMN analytics.daily_by_source.date IS 'The day.';
COMMENT ON COLUMN analytics.daily_by_source.source IS 'Channel name.';
COMMENT ON COLUMN analytics.daily_by_source.jobs IS 'Jobs of the day, canceled ones included.';
COMMENT ON COLUMN analytics.daily_by_source.units IS 'Jobs that are units (COD Service, INS Service).';
COMMENT ON COLUMN analytics.daily_by_source.repairs IS 'Jobs that are repairs.';
COMMENT ON COLUMN analytics.daily_by_source.leads IS 'Leads by the channel rule in force.';
COMMENT ON COLUMN analytics.daily_by_source.calls IS 'Calls of this source''s flows.';
COMMENT ON COLUMN analytics.daily_by_source.cost IS 'Dollars paid for the leads.';
COMMENT ON COLUMN analytics.daily_by_source.revenue_gross IS 'Dollars: counted payments of the day''s jobs, whenever they were paid; orphan payments by the day paid.';
COMMENT ON COLUMN analytics.daily_by_source.revenue40 IS 'Dollars: 40 % of revenue_gross, what is left after technician and fixed costs; unrounded.';
COMMENT ON COLUMN analytics.daily_by_source.profit IS 'Dollars: revenue40 less cost.';
COMMENT ON COLUMN analytics.daily_by_source.conv_l_to_u IS 'Units per lead; NULL without leads.';
COMMENT ON COLUMN analytics.daily_by_source.conv_l_to_r IS 'Repairs per lead; NULL without leads.';
COMMENT ON COLUMN analytics.daily_by_source.conv_u_to_r IS 'Repairs per unit; NULL without units.';
COMMENT ON COLUMN analytics.daily_by_source.cpl IS 'Dollars of cost per lead; NULL without leads.';
COMMENT ON COLUMN analytics.daily_by_source.updated_at IS 'When these numbers last changed.';

CREATE VIEW analytics.monthly_by_source AS
SELECT month, source, sum(jobs)::int AS jobs, sum(units)::int AS units, sum(repairs)::int AS repairs, sum(leads)::int AS leads, sum(calls)::int AS calls,
    sum(cost) AS cost, sum(revenue_gross) AS revenue_gross, sum(revenue40) AS revenue40, sum(profit) AS profit,
    sum(units)::numeric / nullif(sum(leads), 0) AS conv_l_to_u, sum(repairs)::numeric / nullif(sum(leads), 0) AS conv_l_to_r,
    sum(repairs)::numeric / nullif(sum(units), 0) AS conv_u_to_r, sum(cost) / nullif(sum(leads), 0) AS cpl,
    max(updated_at) AS updated_at
FROM analytics.monthly_metrics
GROUP BY month, source;
COMMENT ON VIEW analytics.monthly_by_source IS 'monthly_metrics over all segments: the level at which ratios mean something for every channel.';
COMMENT ON COLUMN analytics.monthly_by_source.month IS 'First day of the month.';
COMMENT ON COLUMN analytics.monthly_by_source.source IS 'Channel name.';
COMMENT ON COLUMN analytics.monthly_by_source.jobs IS 'Jobs of the month, canceled ones included.';
COMMENT ON COLUMN analytics.monthly_by_source.units IS 'Jobs that are units (COD Service, INS Service).';
COMMENT ON COLUMN analytics.monthly_by_source.repairs IS 'Jobs that are repairs.';
COMMENT ON COLUMN analytics.monthly_by_source.leads IS 'Leads by the channel rule in force.';
COMMENT ON COLUMN analytics.monthly_by_source.calls IS 'Calls of this source''s flows.';
COMMENT ON COLUMN analytics.monthly_by_source.cost IS 'Dollars paid for the leads.';
COMMENT ON COLUMN analytics.monthly_by_source.revenue_gross IS 'Dollars: counted payments of the month''s jobs, whenever they were paid; orphan payments by the day paid.';
COMMENT ON COLUMN analytics.monthly_by_source.revenue40 IS 'Dollars: 40 % of revenue_gross, what is left after technician and fixed costs; unrounded.';
COMMENT ON COLUMN analytics.monthly_by_source.profit IS 'Dollars: revenue40 less cost.';
COMMENT ON COLUMN analytics.monthly_by_source.conv_l_to_u IS 'Units per lead; NULL without leads.';
COMMENT ON COLUMN analytics.monthly_by_source.conv_l_to_r IS 'Repairs per lead; NULL without leads.';
COMMENT ON COLUMN analytics.monthly_by_source.conv_u_to_r IS 'Repairs per unit; NULL without units.';
COMMENT ON COLUMN analytics.monthly_by_source.cpl IS 'Dollars of cost per lead; NULL without leads.';
COMMENT ON COLUMN analytics.monthly_by_source.updated_at IS 'When these numbers last changed.';

CREATE TABLE analytics.targets (
    month date NOT NULL CHECK (month BETWEEN '2000-01-01' AND '2100-12-01' AND extract(day FROM month) = 1),
    source varchar NOT NULL DEFAULT 'ALL' CHECK (source <> ''),
    segment varchar NOT NULL DEFAULT 'ALL' CHECK (segment IN ('ALL', 'COD', 'INS', 'OTHER')),
    target_repairs int CHECK (target_repairs >= 0),
    target_revenue40 numeric(14,2) CHECK (target_revenue40 >= 0 AND target_revenue40 <> 'NaN'),
    target_conv_l_to_r numeric(6,4) CHECK (target_conv_l_to_r >= 0 AND target_conv_l_to_r <> 'NaN'),
    target_cpl_max numeric(10,2) CHECK (target_cpl_max >= 0 AND target_cpl_max <> 'NaN'),
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT targets_pkey PRIMARY KEY (month, source, segment)
);
COMMENT ON TABLE analytics.targets IS 'Monthly targets, compared with actuals in Grafana. NULL is not set, which is not 0.';
COMMENT ON COLUMN analytics.targets.month IS 'First day of the month.';
COMMENT ON COLUMN analytics.targets.source IS 'Channel name, or ALL for the whole business; an ALL target is compared only with unfiltered actuals.';
COMMENT ON COLUMN analytics.targets.segment IS 'COD, INS, OTHER, or ALL.';
COMMENT ON COLUMN analytics.targets.target_repairs IS 'Repairs in the month.';
COMMENT ON COLUMN analytics.targets.target_revenue40 IS 'Dollars of revenue40 in the month.';
COMMENT ON COLUMN analytics.targets.target_conv_l_to_r IS 'Repairs per lead, e.g. 0.3500.';
COMMENT ON COLUMN analytics.targets.target_cpl_max IS 'Most dollars per lead.';
COMMENT ON COLUMN analytics.targets.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN analytics.targets.record_no IS 'Record in that file.';
COMMENT ON COLUMN analytics.targets.updated_at IS 'When the row was last changed by a load.';

CREATE TABLE analytics.refresh_log (
    refresh_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month date NOT NULL,
    run_id text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    stale_rows int NOT NULL,
    changed_rows int NOT NULL
);
CREATE INDEX refresh_log_month ON analytics.refresh_log (month, finished_at);
COMMENT ON TABLE analytics.refresh_log IS 'One row for each month of each refresh.';
COMMENT ON COLUMN analytics.refresh_log.refresh_id IS 'Number of the entry.';
COMMENT ON COLUMN analytics.refresh_log.month IS 'First day of the month refreshed.';
COMMENT ON COLUMN analytics.refresh_log.run_id IS 'The Dagster run, if one did it.';
COMMENT ON COLUMN analytics.refresh_log.started_at IS 'Start of the refresh, before it waited for locks.';
COMMENT ON COLUMN analytics.refresh_log.finished_at IS 'End of the refresh.';
COMMENT ON COLUMN analytics.refresh_log.stale_rows IS 'Entries of the stale-months queue that it answered.';
COMMENT ON COLUMN analytics.refresh_log.changed_rows IS 'Rows of daily_metrics of this month that it wrote or removed; 0 confirms the month.';

CREATE FUNCTION analytics.compute_daily_metrics(p_from date, p_to date)
RETURNS TABLE (
    date date, source text, segment text, jobs int, units int, repairs int, leads int, calls int,
    cost numeric, revenue_gross numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT m.date, m.source, m.segment, sum(m.jobs)::int, sum(m.units)::int, sum(m.repairs)::int,
        sum(m.leads)::int, sum(m.calls)::int, sum(m.cost), sum(m.revenue_gross)
    FROM (
        SELECT f.job_date AS date, f.source, f.segment, count(*) AS jobs, count(*) FILTER (WHERE f.is_unit) AS units,
            count(*) FILTER (WHERE f.is_repair) AS repairs, count(*) FILTER (WHERE f.is_lead) AS leads, 0 AS calls,
            sum(f.lead_cost) AS cost, sum(f.paid_total) AS revenue_gross
        FROM analytics.job_facts_between(p_from, p_to) f
        GROUP BY f.job_date, f.source, f.segment
        UNION ALL
        SELECT f.lead_date, f.source, f.segment, 0, 0, 0, count(*), 0, sum(f.cost), 0
        FROM analytics.lead_facts_between(p_from, p_to) f
        WHERE f.origin <> 'jobs' -- counted above; the planner drops that branch
        GROUP BY f.lead_date, f.source, f.segment
        UNION ALL
        SELECT f.call_date, f.source, f.segment, 0, 0, 0, 0, count(*), 0, 0
        FROM analytics.call_facts_between(p_from, p_to) f
        GROUP BY f.call_date, f.source, f.segment
        UNION ALL
        SELECT f.date, f.source, f.segment, 0, 0, 0, 0, 0, f.cost, 0
        FROM analytics.daily_spend_between(p_from, p_to) f
        UNION ALL
        SELECT f.paid_date, f.source, f.segment, 0, 0, 0, 0, 0, 0, sum(f.amount)
        FROM analytics.orphan_payments_between(p_from, p_to) f
        GROUP BY f.paid_date, f.source, f.segment
    ) m
    GROUP BY m.date, m.source, m.segment
    HAVING (sum(m.jobs), sum(m.leads), sum(m.calls), sum(m.cost), sum(m.revenue_gross)) <> (0, 0, 0, 0, 0)
$$;
COMMENT ON FUNCTION analytics.compute_daily_metrics(date, date) IS 'What daily_metrics must hold for the days [p_from, p_to): the facts added up.';

CREATE FUNCTION analytics.compute_monthly_metrics(p_from date, p_to date)
RETURNS TABLE (
    month date, source text, segment text, jobs int, units int, repairs int, leads int, calls int,
    cost numeric, revenue_gross numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT analytics.month_of(d.date), d.source, d.segment, sum(d.jobs)::int, sum(d.units)::int, sum(d.repairs)::int,
        sum(d.leads)::int, sum(d.calls)::int, sum(d.cost), sum(d.revenue_gross)
    FROM analytics.daily_metrics d
    WHERE d.date >= p_from AND d.date < p_to
    GROUP BY analytics.month_of(d.date), d.source, d.segment
$$;
COMMENT ON FUNCTION analytics.compute_monthly_metrics(date, date) IS 'What monthly_metrics must hold for the months of [p_from, p_to): daily_metrics added up.';
