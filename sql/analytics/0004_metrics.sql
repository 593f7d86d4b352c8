-- The aggregates that Grafana reads: daily and monthly metrics by source and segment, and monthly targets.
-- Both levels are written in one transaction: docs/decisions/metrics-in-one-transaction.md.

CREATE TABLE analytics.daily_metrics (
    date date NOT NULL,
    source varchar NOT NULL,
    segment varchar NOT NULL CONSTRAINT known_segment CHECK (segment IN ('COD', 'INS', 'OTHER')),
    jobs int NOT NULL DEFAULT 0,
    units int NOT NULL DEFAULT 0,
    repairs int NOT NULL DEFAULT 0,
    leads int NOT NULL DEFAULT 0,
    calls int NOT NULL DEFAULT 0,
    cost numeric(14, 2) NOT NULL DEFAULT 0,
    revenue_gross numeric(14, 2) NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    revenue40 numeric GENERATED ALWAYS AS (analytics.revenue40(revenue_gross)) STORED,
    profit numeric GENERATED ALWAYS AS (analytics.revenue40(revenue_gross) - cost) STORED,
    conv_l_to_u numeric GENERATED ALWAYS AS (analytics.ratio(units, leads)) STORED,
    conv_l_to_r numeric GENERATED ALWAYS AS (analytics.ratio(repairs, leads)) STORED,
    conv_u_to_r numeric GENERATED ALWAYS AS (analytics.ratio(repairs, units)) STORED,
    cpl numeric GENERATED ALWAYS AS (analytics.ratio(cost, leads)) STORED,
    CONSTRAINT daily_metrics_pkey PRIMARY KEY (date, source, segment)
);
CREATE INDEX daily_metrics_source ON analytics.daily_metrics (source, segment, date);
COMMENT ON TABLE analytics.daily_metrics IS
    'Metrics by day, source and segment. A row exists exactly where some measure is not zero. Written by the refresh, '
    'restated when late data arrives.';

-- the same columns, with a month instead of a day
CREATE TABLE analytics.monthly_metrics (LIKE analytics.daily_metrics INCLUDING ALL EXCLUDING INDEXES);
ALTER TABLE analytics.monthly_metrics RENAME COLUMN date TO month;
ALTER TABLE analytics.monthly_metrics
    ADD PRIMARY KEY (month, source, segment),
    ADD CHECK (extract(day FROM month) = 1);
CREATE INDEX monthly_metrics_source ON analytics.monthly_metrics (source, segment, month);
COMMENT ON TABLE analytics.monthly_metrics IS
    'Metrics by month, source and segment: sums of daily_metrics, written in the same transaction. Ratios are of the '
    'sums, never averages.';

CREATE VIEW analytics.daily_by_source AS
SELECT
    date, source, sum(jobs)::int AS jobs, sum(units)::int AS units, sum(repairs)::int AS repairs,
    sum(leads)::int AS leads, sum(calls)::int AS calls, sum(cost) AS cost, sum(revenue_gross) AS revenue_gross,
    sum(revenue40) AS revenue40, sum(profit) AS profit,
    analytics.ratio(sum(units), sum(leads)) AS conv_l_to_u, analytics.ratio(sum(repairs), sum(leads)) AS conv_l_to_r,
    analytics.ratio(sum(repairs), sum(units)) AS conv_u_to_r, analytics.ratio(sum(cost), sum(leads)) AS cpl,
    max(updated_at) AS updated_at
FROM analytics.daily_metrics
GROUP BY date, source;
COMMENT ON VIEW analytics.daily_by_source IS
    'daily_metrics over all segments: the level at which ratios are meaningful for every channel.';

CREATE VIEW analytics.monthly_by_source AS
SELECT
    month, source, sum(jobs)::int AS jobs, sum(units)::int AS units, sum(repairs)::int AS repairs,
    sum(leads)::int AS leads, sum(calls)::int AS calls, sum(cost) AS cost, sum(revenue_gross) AS revenue_gross,
    sum(revenue40) AS revenue40, sum(profit) AS profit,
    analytics.ratio(sum(units), sum(leads)) AS conv_l_to_u, analytics.ratio(sum(repairs), sum(leads)) AS conv_l_to_r,
    analytics.ratio(sum(repairs), sum(units)) AS conv_u_to_r, analytics.ratio(sum(cost), sum(leads)) AS cpl,
    max(updated_at) AS updated_at
FROM analytics.monthly_metrics
GROUP BY month, source;
COMMENT ON VIEW analytics.monthly_by_source IS
    'monthly_metrics over all segments: the level at which ratios are meaningful for every channel.';

SELECT analytics.describe(
    '{analytics.daily_metrics, analytics.monthly_metrics, analytics.daily_by_source, analytics.monthly_by_source}', $$
    date: The day (local date).
    month: First day of the month.
    source: Name of the source, by analytics.spellings; Unattributed if there is none.
    segment: COD, INS or OTHER; leads and cost that come without a job are OTHER unless the channel says otherwise.
    jobs: Jobs created, canceled ones included.
    units: Jobs that are units, by analytics.is_unit.
    repairs: Jobs that are repairs, by analytics.is_repair.
    leads: Leads by the channel rule in force.
    calls: Calls of this source's flows; segment OTHER.
    cost: Dollars paid for the leads.
    revenue_gross: Dollars: counted payments of these jobs, whenever they were paid; orphan payments by the day paid.
    updated_at: When these numbers last changed.
    revenue40: Dollars: revenue_gross by analytics.revenue40; unrounded.
    profit: Dollars: revenue40 minus cost.
    conv_l_to_u: Units per lead; NULL without leads. By segment only if leads have one: compare by source.
    conv_l_to_r: Repairs per lead; NULL without leads.
    conv_u_to_r: Repairs per unit; NULL without units.
    cpl: Dollars of cost per lead; NULL without leads.
$$);

CREATE TABLE analytics.targets (
    month date NOT NULL CHECK (month BETWEEN '2000-01-01' AND '2100-12-01' AND extract(day FROM month) = 1),
    source varchar NOT NULL DEFAULT 'ALL' CHECK (source <> ''),
    segment varchar NOT NULL DEFAULT 'ALL' CHECK (segment IN ('ALL', 'COD', 'INS', 'OTHER')),
    target_repairs int CHECK (target_repairs >= 0),
    target_revenue40 numeric(14, 2) CHECK (target_revenue40 >= 0 AND target_revenue40 <> 'NaN'),
    target_conv_l_to_r numeric(6, 4) CHECK (target_conv_l_to_r >= 0 AND target_conv_l_to_r <> 'NaN'),
    target_cpl_max numeric(10, 2) CHECK (target_cpl_max >= 0 AND target_cpl_max <> 'NaN'),
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now(),
    source_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(source)) STORED CHECK (source_folded <> ''),
    CONSTRAINT targets_pkey PRIMARY KEY (month, source_folded, segment)
);
COMMENT ON TABLE analytics.targets IS
    'Monthly targets, compared with actuals in Grafana. NULL means not set, which is different from 0.';
SELECT analytics.describe('{analytics.targets}', $$
    month: First day of the month.
    source: The source as given, in any of its spellings, or ALL for the whole business; an ALL target is compared
        only with unfiltered actuals.
    segment: COD, INS, OTHER, or ALL.
    target_repairs: Repairs in the month.
    target_revenue40: Dollars of revenue40 in the month.
    target_conv_l_to_r: Repairs per lead, e.g. 0.3500.
    target_cpl_max: Maximum dollars per lead.
    file_id: raw.source_files entry that last changed the row; NULL for a row written by hand.
    record_no: Record in that file.
    updated_at: When a load last changed the row.
    source_folded: The source in the form in which analytics.spellings has it; all for the whole business.
$$);

CREATE VIEW analytics.target_names AS
SELECT
    t.month, t.source_folded, t.segment, t.source_folded = 'all' AS is_whole_business,
    CASE WHEN t.source_folded = 'all' THEN 'ALL' ELSE analytics.source_name(s.source, t.source_folded) END AS name
FROM analytics.targets t
LEFT JOIN analytics.spellings s ON s.folded = t.source_folded;
COMMENT ON VIEW analytics.target_names IS
    'The name of the source that each target is for, found as that of a job is. An alias that comes later counts at '
    'once.';
SELECT analytics.describe('{analytics.target_names}', $$
    month: The target's month.
    source_folded: The target's source.
    segment: The target's segment.
    is_whole_business: Whether it is for the whole business.
    name: Name of the source, as metrics show it; ALL for the whole business.
$$);

CREATE VIEW analytics.targets_without_source AS
SELECT t.month, t.source_folded, t.segment, t.name
FROM analytics.target_names t
WHERE NOT t.is_whole_business
    AND NOT EXISTS (SELECT FROM analytics.monthly_metrics m WHERE m.source = t.name)
    -- loaded, but not computed yet
    AND NOT EXISTS (
        SELECT
        FROM raw.jobs j
        LEFT JOIN analytics.spellings s ON s.folded = j.source_folded
        WHERE analytics.source_name(s.source, j.source_folded) = t.name
    )
    AND NOT EXISTS (
        SELECT
        FROM raw.calls k
        LEFT JOIN analytics.spellings s ON s.folded = k.flow_folded
        WHERE analytics.source_name(s.source, k.flow_folded) = t.name
    )
    -- before the first metrics, a channel may have leads only; without jobs, there is nothing to compare with
    AND CASE
        WHEN EXISTS (SELECT FROM analytics.monthly_metrics) THEN true
        ELSE EXISTS (SELECT FROM raw.jobs)
            AND NOT EXISTS (SELECT FROM analytics.lead_channels c WHERE c.source = t.name)
    END;
COMMENT ON VIEW analytics.targets_without_source IS
    'Targets whose source has no numbers in any month: probably misspelled.';
SELECT analytics.describe('{analytics.targets_without_source}', $$
    month: The target's month.
    source_folded: The target's source.
    segment: The target's segment.
    name: Name of the source, as metrics would show it.
$$);

CREATE VIEW analytics.conflicting_targets AS
SELECT month, name, segment, string_agg(source_folded, ', ' ORDER BY source_folded) AS spellings
FROM analytics.target_names
GROUP BY month, name, segment, is_whole_business
HAVING count(*) > 1;
COMMENT ON VIEW analytics.conflicting_targets IS
    'Months and segments with several targets for one source, under different spellings. None of them is used.';
SELECT analytics.describe('{analytics.conflicting_targets}', $$
    month: The targets' month.
    name: Name of their source, as metrics show it.
    segment: The targets' segment.
    spellings: The sources of the targets, as source_folded has them.
$$);

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
SELECT analytics.describe('{analytics.refresh_log}', $$
    refresh_id: Number of the entry.
    month: First day of the month refreshed.
    run_id: The Dagster run that did it; NULL if none did.
    started_at: Start of the refresh, before it waited for locks.
    finished_at: End of the refresh.
    stale_rows: Entries of the stale-months queue that it answered.
    changed_rows: Rows of daily_metrics of this month that it wrote or removed; 0 confirms the month.
$$);

-- Jobs of one day, source and type are alike for every rule, once it is known how many of them are repairs: the other
-- rules are asked once per group instead of once per job.
CREATE FUNCTION analytics.compute_daily_metrics(p_from date, p_to date)
RETURNS TABLE (
    date date, source text, segment text, jobs int, units int, repairs int, leads int, calls int,
    cost numeric, revenue_gross numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        m.date, m.source, m.segment, sum(m.jobs)::int, sum(m.units)::int, sum(m.repairs)::int,
        sum(m.leads)::int, sum(m.calls)::int, sum(m.cost), sum(m.revenue_gross)
    FROM (
        SELECT
            g.job_date AS date, n.source, analytics.segment_of(g.type_folded) AS segment, g.jobs,
            CASE WHEN analytics.is_unit(g.type_folded) THEN g.jobs ELSE 0 END AS units, g.repairs,
            CASE WHEN c.lead_rule IS NOT NULL THEN g.jobs ELSE 0 END AS leads, 0 AS calls,
            coalesce(g.jobs * c.cost_per_lead, 0) AS cost, coalesce(g.paid, 0) AS revenue_gross
        FROM (
            SELECT
                j.job_date, j.source_folded, j.type_folded, count(*)::int AS jobs,
                (count(*) FILTER (WHERE analytics.is_repair(j.type_folded, j.paid)))::int AS repairs,
                sum(j.paid) AS paid
            FROM analytics.jobs_with_payments_between(p_from, p_to) j
            GROUP BY j.job_date, j.source_folded, j.type_folded
        ) g
        LEFT JOIN analytics.spellings s ON s.folded = g.source_folded
        CROSS JOIN LATERAL (SELECT analytics.source_name(s.source, g.source_folded) AS source) n
        LEFT JOIN LATERAL analytics.channel_of(g.job_date, n.source, g.type_folded) c ON true
        UNION ALL
        SELECT f.lead_date, f.source, f.segment, 0, 0, 0, count(*)::int, 0, sum(f.cost), 0
        FROM analytics.lead_facts_between(p_from, p_to) f
        -- jobs are counted above; the planner drops that branch
        WHERE f.origin <> 'jobs'
        GROUP BY f.lead_date, f.source, f.segment
        UNION ALL
        SELECT f.call_date, f.source, f.segment, 0, 0, 0, 0, count(*)::int, 0, 0
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
COMMENT ON FUNCTION analytics.compute_daily_metrics IS
    'What daily_metrics must hold for the days [p_from, p_to): raw rows in groups, to which the rules of the facts '
    'apply, added up.';

CREATE FUNCTION analytics.compute_monthly_metrics(p_from date, p_to date)
RETURNS TABLE (
    month date, source text, segment text, jobs int, units int, repairs int, leads int, calls int,
    cost numeric, revenue_gross numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        analytics.month_of(d.date), d.source, d.segment, sum(d.jobs)::int, sum(d.units)::int, sum(d.repairs)::int,
        sum(d.leads)::int, sum(d.calls)::int, sum(d.cost), sum(d.revenue_gross)
    FROM analytics.daily_metrics d
    WHERE d.date >= p_from AND d.date < p_to
    GROUP BY analytics.month_of(d.date), d.source, d.segment
$$;
COMMENT ON FUNCTION analytics.compute_monthly_metrics IS
    'What monthly_metrics must hold for the months of [p_from, p_to): daily_metrics added up.';

-- From the facts, row by row, and not from compute_daily_metrics: what is stored is judged by another way than the one
-- that computed it.
CREATE FUNCTION analytics.daily_differences(p_from date, p_to date)
RETURNS TABLE (
    date date, source text, segment text, jobs bigint, units bigint, repairs bigint, leads bigint, calls bigint,
    cost numeric, revenue_gross numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        m.date, m.source, m.segment, sum(m.jobs), sum(m.units), sum(m.repairs), sum(m.leads), sum(m.calls),
        sum(m.cost), sum(m.revenue_gross)
    FROM (
        SELECT date, source, segment, jobs, units, repairs, leads, calls, cost, revenue_gross
        FROM analytics.daily_metrics
        WHERE date >= p_from AND date < p_to
        UNION ALL
        SELECT
            f.job_date, f.source, f.segment, -1, -f.is_unit::int, -f.is_repair::int, -f.is_lead::int, 0, -f.lead_cost,
            -f.paid_total
        FROM analytics.job_facts_between(p_from, p_to) f
        UNION ALL
        SELECT f.lead_date, f.source, f.segment, 0, 0, 0, -1, 0, -f.cost, 0
        FROM analytics.lead_facts_between(p_from, p_to) f
        -- jobs are counted above; the planner drops that branch
        WHERE f.origin <> 'jobs'
        UNION ALL
        SELECT f.call_date, f.source, f.segment, 0, 0, 0, 0, -1, 0, 0
        FROM analytics.call_facts_between(p_from, p_to) f
        UNION ALL
        SELECT f.date, f.source, f.segment, 0, 0, 0, 0, 0, -f.cost, 0
        FROM analytics.daily_spend_between(p_from, p_to) f
        UNION ALL
        SELECT f.paid_date, f.source, f.segment, 0, 0, 0, 0, 0, 0, -f.amount
        FROM analytics.orphan_payments_between(p_from, p_to) f
    ) m
    GROUP BY m.date, m.source, m.segment
    HAVING (
        sum(m.jobs), sum(m.units), sum(m.repairs), sum(m.leads), sum(m.calls), sum(m.cost), sum(m.revenue_gross)
    ) <> (0, 0, 0, 0, 0, 0, 0)
$$;
COMMENT ON FUNCTION analytics.daily_differences IS
    'In which rows daily_metrics differs from the facts, and by how much: stored minus facts, added up one by one.';

CREATE FUNCTION analytics.monthly_differences(p_from date, p_to date)
RETURNS TABLE (
    month date, source text, segment text, jobs bigint, units bigint, repairs bigint, leads bigint, calls bigint,
    cost numeric, revenue_gross numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        m.month, m.source, m.segment, sum(m.jobs), sum(m.units), sum(m.repairs), sum(m.leads), sum(m.calls),
        sum(m.cost), sum(m.revenue_gross)
    FROM (
        SELECT month, source, segment, jobs, units, repairs, leads, calls, cost, revenue_gross
        FROM analytics.monthly_metrics
        WHERE month >= p_from AND month < p_to
        UNION ALL
        SELECT month, source, segment, -jobs, -units, -repairs, -leads, -calls, -cost, -revenue_gross
        FROM analytics.compute_monthly_metrics(p_from, p_to)
    ) m
    GROUP BY m.month, m.source, m.segment
    HAVING (
        sum(m.jobs), sum(m.units), sum(m.repairs), sum(m.leads), sum(m.calls), sum(m.cost), sum(m.revenue_gross)
    ) <> (0, 0, 0, 0, 0, 0, 0)
$$;
COMMENT ON FUNCTION analytics.monthly_differences IS
    'In which rows monthly_metrics differs from daily_metrics, and by how much: stored minus added up.';
