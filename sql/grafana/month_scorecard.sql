-- The month so far in one row: actuals, the same days of the month before, and for Repairs and Revenue40 pace,
-- target, attainment, projection and what each remaining day needs.
WITH clock AS (
    SELECT * FROM reporting.month_clock(to_date(${month:sqlstring}, 'YYYY-MM'))
),
chosen AS (
    SELECT m.date, m.leads, m.units, m.repairs, m.calls, m.cost, m.revenue40, m.profit
    FROM clock c
    JOIN daily_metrics m ON m.date >= least(c.previous_month, c.last_complete_day - 13) AND m.date < c.next_month
    WHERE m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
),
totals AS (
    SELECT
        coalesce(sum(d.leads) FILTER (WHERE d.date >= c.month), 0) AS leads,
        coalesce(sum(d.units) FILTER (WHERE d.date >= c.month), 0) AS units,
        coalesce(sum(d.repairs) FILTER (WHERE d.date >= c.month), 0) AS repairs,
        coalesce(sum(d.calls) FILTER (WHERE d.date >= c.month), 0) AS calls,
        coalesce(sum(d.cost) FILTER (WHERE d.date >= c.month), 0) AS cost,
        coalesce(sum(d.revenue40) FILTER (WHERE d.date >= c.month), 0) AS revenue40,
        coalesce(sum(d.profit) FILTER (WHERE d.date >= c.month), 0) AS profit,
        coalesce(sum(d.leads) FILTER (WHERE c.compared @> d.date), 0) AS leads_before,
        coalesce(sum(d.units) FILTER (WHERE c.compared @> d.date), 0) AS units_before,
        coalesce(sum(d.repairs) FILTER (WHERE c.compared @> d.date), 0) AS repairs_before,
        coalesce(sum(d.cost) FILTER (WHERE c.compared @> d.date), 0) AS cost_before,
        coalesce(sum(d.revenue40) FILTER (WHERE c.compared @> d.date), 0) AS revenue40_before,
        coalesce(sum(d.profit) FILTER (WHERE c.compared @> d.date), 0) AS profit_before,
        coalesce(sum(d.repairs) FILTER (WHERE c.recent @> d.date), 0) / 14.0 AS repairs_per_day,
        coalesce(sum(d.revenue40) FILTER (WHERE c.recent @> d.date), 0) / 14.0 AS revenue40_per_day
    FROM (
        SELECT *, daterange(last_complete_day - 13, last_complete_day, '[]') AS recent, daterange(
            previous_month, CASE WHEN is_partial THEN least(previous_month + elapsed, month) ELSE month END
        ) AS compared
        FROM clock
    ) c
    LEFT JOIN chosen d ON true
)
SELECT
    c.as_of,
    c.days - c.elapsed AS days_left,
    s.leads, s.leads_before,
    s.units, s.units_before,
    s.repairs, s.repairs_before,
    t.target_repairs * c.elapsed / c.days::numeric AS repairs_pace,
    t.target_repairs::numeric AS repairs_target,
    ratio(s.repairs, t.target_repairs) AS repairs_attainment,
    s.repairs + CASE WHEN c.elapsed > 0 THEN s.repairs_per_day * (c.days - c.elapsed) END AS repairs_projection,
    ratio(t.target_repairs - least(s.repairs, t.target_repairs), c.days - c.elapsed) AS repairs_needed_per_day,
    s.cost, s.cost_before,
    s.revenue40, s.revenue40_before,
    t.target_revenue40 * c.elapsed / c.days AS revenue40_pace,
    t.target_revenue40 AS revenue40_target,
    ratio(s.revenue40, t.target_revenue40) AS revenue40_attainment,
    s.revenue40 + CASE WHEN c.elapsed > 0 THEN s.revenue40_per_day * (c.days - c.elapsed) END AS revenue40_projection,
    ratio(t.target_revenue40 - least(s.revenue40, t.target_revenue40), c.days - c.elapsed) AS revenue40_needed_per_day,
    s.profit, s.profit_before,
    ratio(s.cost, s.leads) AS cpl,
    ratio(s.cost_before, s.leads_before) AS cpl_before,
    t.target_cpl_max AS cpl_maximum,
    ratio(s.repairs, s.leads) AS conv_l_to_r,
    t.target_conv_l_to_r AS conv_l_to_r_target,
    s.calls
FROM clock c
CROSS JOIN totals s
LEFT JOIN LATERAL reporting.target_of(
    c.month, ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
) t ON true
