-- One measure by month and source, from monthly_metrics.
SELECT m.month + interval '12 hours' AS time, m.source AS metric, sum(m.{measure}) AS {measure}
FROM monthly_metrics m
WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY m.month, m.source
ORDER BY m.month, m.source
