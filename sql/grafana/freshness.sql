-- The last file and the newest day of every kind of export.
SELECT source, last_file, last_exported_at, last_loaded_at,
    to_char(last_row, 'YYYY-MM-DD') AS last_row, days_behind
FROM reporting.freshness
ORDER BY days_behind DESC NULLS FIRST, source
