-- The rows of one number in the chosen months, the first 1,000.
SELECT
    e.part, to_char(e.day, 'YYYY-MM-DD') AS counted_on, e.kind, e.id, e.source, e.segment, e.amount, e.rule, e.file,
    e.record_no
FROM reporting.explain(
    ARRAY(SELECT to_date(m, 'YYYY-MM') FROM unnest(ARRAY[${month:sqlstring}]::text[]) AS m), ${metric:sqlstring},
    ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
) AS e
ORDER BY e.part DESC, e.day, e.source, e.segment, e.kind, e.id
LIMIT 1000
