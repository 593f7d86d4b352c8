-- Sources whose leads and costs count as 0 because no rule says how to count them.
SELECT source, jobs, first_month, last_month AS last_month_seen
FROM reporting.sources_without_rule
ORDER BY jobs DESC, source
