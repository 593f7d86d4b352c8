-- CRM leads by month of creation and current status.
SELECT to_char(month, 'YYYY-MM') AS month,
    coalesce(sum(leads) FILTER (WHERE status = 'new'), 0) AS new,
    coalesce(sum(leads) FILTER (WHERE status = 'in_progress'), 0) AS in_progress,
    coalesce(sum(leads) FILTER (WHERE status = 'converted'), 0) AS converted,
    coalesce(sum(leads) FILTER (WHERE status = 'rejected'), 0) AS rejected,
    coalesce(sum(leads) FILTER (WHERE status NOT IN ('new', 'in_progress', 'converted', 'rejected')), 0) AS other
FROM reporting.leads_by_month
WHERE month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
GROUP BY month
ORDER BY month
