-- From lead to delivery by month of the lead and source: how many leads came how far, and the mean time of each step.
SELECT to_char(month, 'YYYY-MM') AS month, source, leads, orders, paid, delivered,
    round(orders::numeric / leads, 4) AS lead_to_order,
    round(paid::numeric / nullif(orders, 0), 4) AS order_to_paid,
    round(delivered::numeric / nullif(paid, 0), 4) AS paid_to_delivered,
    round(seconds_to_order / nullif(timed_orders, 0) / 86400, 1) AS days_to_order,
    round(seconds_to_paid / nullif(timed_paid, 0) / 86400, 1) AS days_to_paid,
    round(seconds_to_delivered / nullif(timed_delivered, 0) / 86400, 1) AS days_to_delivered
FROM reporting.funnel_by_month_and_source
WHERE month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
ORDER BY month DESC, leads DESC, source
