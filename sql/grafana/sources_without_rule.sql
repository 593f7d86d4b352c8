-- Sources whose leads and costs count as 0 because no rule says how to count them.
SELECT source, jobs, to_char(first_month, 'YYYY-MM') AS first_month,
    to_char(last_month, 'YYYY-MM') AS last_month_seen
FROM reporting.sources_without_rule
ORDER BY jobs DESC, source
