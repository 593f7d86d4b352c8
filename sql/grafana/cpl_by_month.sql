-- Cost per lead and per repair by month, from monthly_metrics, with the maximum where one is set for this selection.
SELECT m.month + interval '12 hours' AS time,
    ratio(sum(m.cost), sum(m.leads)) AS cpl,
    (SELECT t.target_cpl_max FROM reporting.target_of(
        m.month, ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
    ) t) AS cpl_maximum,
    ratio(sum(m.cost), sum(m.repairs)) AS cost_per_repair
FROM monthly_metrics m
WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY m.month
ORDER BY m.month
