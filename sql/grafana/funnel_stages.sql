-- Leads, units and repairs over the months of the time range, from monthly_metrics.
SELECT stage.name AS stage, stage.count
FROM (
    SELECT
        coalesce(sum(m.leads), 0) AS leads, coalesce(sum(m.units), 0) AS units,
        coalesce(sum(m.repairs), 0) AS repairs
    FROM monthly_metrics m
    WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
        AND m.source = ANY(ARRAY[${source:sqlstring}]::text[])
        AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
) total
CROSS JOIN LATERAL (
    VALUES (1, 'Leads', total.leads), (2, 'Units', total.units), (3, 'Repairs', total.repairs)
) AS stage (position, name, count)
ORDER BY stage.position
