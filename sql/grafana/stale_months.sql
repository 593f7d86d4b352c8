-- Months whose metrics don't say yet what the raw tables say.
SELECT month, stale_since, causes, last_refreshed_at
FROM reporting.month_status
WHERE stale_since IS NOT NULL
ORDER BY month DESC
