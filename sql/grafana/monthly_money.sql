-- Revenue40, cost and profit by month, from monthly_metrics.
SELECT m.month + interval '12 hours' AS time,
    sum(m.revenue40) AS revenue40, sum(m.cost) AS cost, sum(m.profit) AS profit
FROM monthly_metrics m
WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY m.month
ORDER BY m.month
