-- One annotation per refresh, over the time that it took.
SELECT min(started_at) AS time, max(finished_at) AS timeend,
    'Months refreshed: ' || count(*) || ', daily rows changed: ' || sum(changed_rows) AS text,
    'refresh' AS tags
FROM refresh_log
WHERE $__timeFilter(finished_at)
GROUP BY coalesce(run_id, finished_at::text)
ORDER BY time
