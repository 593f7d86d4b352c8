-- One annotation per revised month, with its newest five revisions, as far as they concern the selection.
SELECT r.month + interval '12 hours' AS time, string_agg(r.text, E'\n' ORDER BY r.age) AS text, 'revision' AS tags
FROM (
    SELECT v.month, row_number() OVER (PARTITION BY v.month ORDER BY v.revised_at DESC, v.revision_id DESC) AS age,
        concat_ws(
            ': ', 'Revised ' || to_char(v.revised_at AT TIME ZONE b.timezone, 'YYYY-MM-DD'), c.changes, v.causes
        ) AS text
    FROM reporting.revisions v
    CROSS JOIN business b
    CROSS JOIN LATERAL reporting.changes_of(
        v.revision_id, ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
    ) AS c (changes)
    WHERE v.month BETWEEN reporting.first_month($__timeFrom())
        AND reporting.last_month($__timeFrom(), $__timeTo())
        AND c.changes IS NOT NULL
) r
WHERE r.age <= 5
GROUP BY r.month
ORDER BY r.month
