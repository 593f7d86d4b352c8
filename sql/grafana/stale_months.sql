-- Months whose metrics don't match the raw tables yet.
SELECT to_char(month, 'YYYY-MM') AS month, stale_since, causes, last_refreshed_at
FROM reporting.month_status
WHERE stale_since IS NOT NULL
ORDER BY month DESC
