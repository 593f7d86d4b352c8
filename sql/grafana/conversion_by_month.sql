-- Conversions by month, from monthly_metrics; ratios of sums, with the target where one is set for this selection.
SELECT m.month + interval '12 hours' AS time,
    ratio(sum(m.units), sum(m.leads)) AS conv_l_to_u,
    ratio(sum(m.repairs), sum(m.units)) AS conv_u_to_r,
    ratio(sum(m.repairs), sum(m.leads)) AS conv_l_to_r,
    (SELECT t.target_conv_l_to_r FROM reporting.target_of(
        m.month, ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
    ) t) AS conv_l_to_r_target
FROM monthly_metrics m
WHERE m.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
    AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
GROUP BY m.month
ORDER BY m.month
