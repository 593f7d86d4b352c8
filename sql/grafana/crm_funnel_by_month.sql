-- From lead to delivery by month of the lead, all sources together.
SELECT to_char(month, 'YYYY-MM') AS month, sum(leads) AS leads, sum(orders) AS orders, sum(paid) AS paid,
    sum(delivered) AS delivered
FROM reporting.funnel_by_month_and_source
WHERE month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
GROUP BY month
ORDER BY month
