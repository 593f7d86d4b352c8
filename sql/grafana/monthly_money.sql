-- Revenue40, cost and profit by month, from monthly_metrics.
SELECT m.month::timestamp AS time, sum(m.revenue40) AS revenue40, sum(m.cost) AS cost, sum(m.profit) AS profit
FROM monthly_metrics m
WHERE m.month BETWEEN date_trunc('month', $__timeFrom()::date)::date AND $__timeTo()::date
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY m.month
ORDER BY m.month
