-- Actual months against their targets, from monthly_metrics and targets. Every month with metrics or a target.
WITH actual AS (
    SELECT m.month, sum(m.leads) AS leads, sum(m.repairs) AS repairs, sum(m.cost) AS cost, sum(m.revenue40) AS revenue40
    FROM monthly_metrics m
    WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
        AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
    GROUP BY m.month
)
SELECT
    to_char(c.month, 'YYYY-MM') AS month,
    CASE WHEN c.is_partial THEN 'days 1–' || c.elapsed ELSE 'whole month' END AS days,
    coalesce(a.repairs, 0) AS repairs,
    t.target_repairs,
    ratio(coalesce(a.repairs, 0), t.target_repairs) AS repairs_attainment,
    coalesce(a.revenue40, 0) AS revenue40,
    t.target_revenue40,
    ratio(coalesce(a.revenue40, 0), t.target_revenue40) AS revenue40_attainment,
    ratio(a.repairs, a.leads) AS conv_l_to_r,
    t.target_conv_l_to_r,
    ratio(a.cost, a.leads) AS cpl,
    t.target_cpl_max,
    reporting.explain_link(
        ARRAY[c.month], ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
    ) AS explain_link
FROM reporting.month_clocks(
    reporting.first_month($__timeFrom()), reporting.last_month($__timeFrom(), $__timeTo())
) AS c
LEFT JOIN actual a ON a.month = c.month
LEFT JOIN LATERAL reporting.target_of(
    c.month, ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
) t ON true
WHERE a.month IS NOT NULL OR t.month IS NOT NULL
ORDER BY c.month DESC
