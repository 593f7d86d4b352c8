-- Funnel and unit economics by source over the months of the time range, from monthly_metrics; ratios of sums.
SELECT
    CASE WHEN grouping(m.source) = 1 THEN 'Total' ELSE m.source END AS source,
    sum(m.leads) AS leads,
    sum(m.units) AS units,
    sum(m.repairs) AS repairs,
    sum(m.units) / nullif(sum(m.leads), 0)::numeric AS conv_l_to_u,
    sum(m.repairs) / nullif(sum(m.units), 0)::numeric AS conv_u_to_r,
    sum(m.repairs) / nullif(sum(m.leads), 0)::numeric AS conv_l_to_r,
    sum(m.cost) / nullif(sum(m.leads), 0) AS cpl,
    sum(m.cost) / nullif(sum(m.repairs), 0) AS cost_per_repair,
    sum(m.revenue40) / nullif(sum(m.leads), 0) AS revenue40_per_lead,
    sum(m.revenue40) AS revenue40,
    sum(m.cost) AS cost,
    sum(m.profit) AS profit,
    sum(m.profit) / nullif(sum(m.revenue40), 0) AS margin,
    sum(m.calls) AS calls
FROM monthly_metrics m
WHERE m.month BETWEEN date_trunc('month', $__timeFrom()::date)::date AND $__timeTo()::date
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY GROUPING SETS ((m.source), ())
HAVING count(*) > 0
ORDER BY grouping(m.source) DESC, m.source
