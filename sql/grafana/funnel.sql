-- Funnel and unit economics by source or segment over the months of the time range, from monthly_metrics;
-- ratios of sums.
SELECT
    CASE WHEN grouping(m.{by}) = 1 THEN 'Total' ELSE m.{by} END AS {by},
    sum(m.leads) AS leads,
    sum(m.units) AS units,
    sum(m.repairs) AS repairs,
    ratio(sum(m.units), sum(m.leads)) AS conv_l_to_u,
    ratio(sum(m.repairs), sum(m.units)) AS conv_u_to_r,
    ratio(sum(m.repairs), sum(m.leads)) AS conv_l_to_r,
    ratio(sum(m.cost), sum(m.leads)) AS cpl,
    ratio(sum(m.cost), sum(m.repairs)) AS cost_per_repair,
    ratio(sum(m.revenue40), sum(m.leads)) AS revenue40_per_lead,
    sum(m.revenue40) AS revenue40,
    sum(m.cost) AS cost,
    sum(m.profit) AS profit,
    ratio(sum(m.profit), sum(m.revenue40)) AS margin,
    sum(m.calls) AS calls,
    reporting.explain_link(
        array_agg(DISTINCT m.month), array_agg(DISTINCT m.source::text), array_agg(DISTINCT m.segment::text)
    ) AS explain_link
FROM monthly_metrics m
WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY GROUPING SETS ((m.{by}), ())
HAVING count(*) > 0
ORDER BY grouping(m.{by}) DESC, m.{by}
