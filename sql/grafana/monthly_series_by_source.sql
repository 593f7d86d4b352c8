-- One measure by month and source, from monthly_metrics.
SELECT m.month::timestamp AS time, m.source AS metric, sum(m.{measure}) AS {measure}
FROM monthly_metrics m
WHERE m.month BETWEEN date_trunc('month', $__timeFrom()::date)::date AND $__timeTo()::date
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY m.month, m.source
ORDER BY m.month, m.source
