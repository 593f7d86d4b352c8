-- How long unfinished leads and orders have been in their status.
SELECT entity, status, rows, mean_days, longest_days
FROM reporting.age_in_status
ORDER BY entity, position
