-- Leads of the field-service system over the months of the time range, by their own source, whatever the filters.
SELECT
    CASE WHEN grouping(w.source) = 1 THEN 'Total' ELSE w.source END AS source, sum(w.leads) AS crm_leads,
    sum(w.passed) AS passed, sum(w.converted) AS converted, sum(w.counted) AS counted
FROM reporting.workiz_leads w
WHERE w.month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
GROUP BY GROUPING SETS ((w.source), ())
HAVING count(*) > 0
ORDER BY grouping(w.source) DESC, w.source
