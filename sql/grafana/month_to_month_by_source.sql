-- Month to month by source, from monthly_metrics: every measure, and its change against the month before.
-- A partial month is compared with the same number of days of the month before. The totals add up the sources
-- shown; ratios are ratios of sums.
WITH clock AS (
    SELECT * FROM reporting.month_clocks(
    reporting.first_month($__timeFrom()), reporting.last_month($__timeFrom(), $__timeTo())
)
),
actual AS (
    SELECT
        m.month, coalesce(m.source, '') AS source, sum(m.jobs) AS jobs, sum(m.leads) AS leads, sum(m.units) AS units,
        sum(m.repairs) AS repairs, sum(m.calls) AS calls, sum(m.cost) AS cost, sum(m.revenue_gross) AS revenue_gross,
        sum(m.revenue40) AS revenue40, sum(m.profit) AS profit, grouping(m.source) AS is_total
    FROM clock c
    JOIN monthly_metrics m ON m.month = c.month
    WHERE m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
    GROUP BY GROUPING SETS ((m.month, m.source), (m.month))
),
before AS (
    SELECT
        d.month, coalesce(d.source, '') AS source, sum(d.leads) AS leads, sum(d.units) AS units,
        sum(d.repairs) AS repairs, sum(d.calls) AS calls, sum(d.cost) AS cost, sum(d.revenue40) AS revenue40,
        sum(d.profit) AS profit, grouping(d.source) AS is_total
    FROM (
        SELECT c.month, m.source, m.segment, m.leads, m.units, m.repairs, m.calls, m.cost, m.revenue40, m.profit
        FROM clock c
        JOIN monthly_metrics m ON m.month = c.previous_month
        WHERE NOT c.is_partial
        UNION ALL
        SELECT c.month, m.source, m.segment, m.leads, m.units, m.repairs, m.calls, m.cost, m.revenue40, m.profit
        FROM clock c
        JOIN daily_metrics m ON m.date >= c.previous_month AND m.date < least(c.previous_month + c.elapsed, c.month)
        WHERE c.is_partial
    ) d
    WHERE d.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND d.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
    GROUP BY GROUPING SETS ((d.month, d.source), (d.month))
)
SELECT
    to_char(c.month, 'YYYY-MM') AS month,
    CASE WHEN c.is_partial THEN 'days 1–' || c.elapsed ELSE 'whole month' END AS days,
    CASE WHEN is_total = 1 THEN 'Total' ELSE source END AS source,
    coalesce(a.leads, 0) AS leads,
    ratio(a.leads, b.leads) - 1 AS leads_change,
    coalesce(a.units, 0) AS units,
    ratio(a.units, b.units) - 1 AS units_change,
    coalesce(a.repairs, 0) AS repairs,
    ratio(a.repairs, b.repairs) - 1 AS repairs_change,
    coalesce(a.cost, 0) AS cost,
    ratio(a.cost, b.cost) - 1 AS cost_change,
    coalesce(a.revenue40, 0) AS revenue40,
    ratio(a.revenue40, b.revenue40) - 1 AS revenue40_change,
    coalesce(a.profit, 0) AS profit,
    coalesce(a.profit, 0) - coalesce(b.profit, 0) AS profit_change,
    ratio(a.units, a.leads) AS conv_l_to_u,
    ratio(a.repairs, a.leads) AS conv_l_to_r,
    ratio(a.repairs, a.units) AS conv_u_to_r,
    ratio(a.cost, a.leads) AS cpl,
    ratio(ratio(a.cost, a.leads), ratio(b.cost, b.leads)) - 1 AS cpl_change,
    coalesce(a.revenue_gross, 0) AS revenue_gross,
    coalesce(a.jobs, 0) AS jobs,
    coalesce(a.calls, 0) AS calls,
    reporting.explain_link(
        ARRAY[c.month], CASE WHEN is_total = 1 THEN ARRAY[${source:sqlstring}]::text[] ELSE ARRAY[source] END,
        ARRAY[${segment:sqlstring}]::text[]
    ) AS explain_link
FROM actual a
FULL JOIN before b USING (month, source, is_total)
JOIN clock c USING (month)
ORDER BY c.month DESC, is_total DESC, source
