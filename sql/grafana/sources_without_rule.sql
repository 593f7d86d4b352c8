-- Sources whose leads and costs count as 0 because no rule says how to count them.
SELECT s.source, s.jobs, to_char(s.first_month, 'YYYY-MM') AS first_month,
    to_char(s.last_month, 'YYYY-MM') AS last_month_seen,
    (
        SELECT reporting.explain_link(
            array_agg(DISTINCT m.month), ARRAY[s.source::text], array_agg(DISTINCT m.segment::text)
        )
        FROM monthly_metrics m
        WHERE m.source = s.source AND m.jobs > 0
    ) AS explain_link
FROM reporting.sources_without_rule s
ORDER BY s.jobs DESC, s.source
