-- The newest changes of closed months.
SELECT to_char(month, 'YYYY-MM') AS month, revised_at, changes, causes, run_id
FROM reporting.revisions
ORDER BY revised_at DESC, month DESC
LIMIT 100
