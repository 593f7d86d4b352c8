-- The files that the chosen months' rows of one number came from.
SELECT e.part, e.file, count(*) AS rows, sum(e.amount) AS amount
FROM reporting.explain(
    ARRAY(SELECT to_date(m, 'YYYY-MM') FROM unnest(ARRAY[${month:sqlstring}]::text[]) AS m), ${metric:sqlstring},
    ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
) AS e
GROUP BY e.part, e.file
ORDER BY e.part DESC, abs(sum(e.amount)) DESC, e.file
