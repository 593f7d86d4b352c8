-- The last refresh of every month.
SELECT
    to_char(month, 'YYYY-MM') AS month, last_refreshed_at, changed_rows,
    CASE WHEN stale_since IS NULL THEN 'up to date' ELSE 'stale' END AS state,
    run_id
FROM reporting.month_status
WHERE last_refreshed_at IS NOT NULL
ORDER BY month DESC
