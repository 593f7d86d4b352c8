-- CRM orders by month of creation and current status.
SELECT to_char(month, 'YYYY-MM') AS month,
    coalesce(sum(orders) FILTER (WHERE status = 'created'), 0) AS created,
    coalesce(sum(orders) FILTER (WHERE status = 'awaiting_payment'), 0) AS awaiting_payment,
    coalesce(sum(orders) FILTER (WHERE status = 'paid'), 0) AS paid,
    coalesce(sum(orders) FILTER (WHERE status = 'in_delivery'), 0) AS in_delivery,
    coalesce(sum(orders) FILTER (WHERE status = 'delivered'), 0) AS delivered,
    coalesce(sum(orders) FILTER (WHERE status = 'closed'), 0) AS closed,
    coalesce(sum(orders) FILTER (WHERE status = 'cancelled'), 0) AS cancelled,
    coalesce(sum(orders) FILTER (WHERE status NOT IN (
        'created', 'awaiting_payment', 'paid', 'in_delivery', 'delivered', 'closed', 'cancelled'
    )), 0) AS other
FROM reporting.orders_by_month
WHERE month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
GROUP BY month
ORDER BY month
