-- The last file and the last day of every kind of export.
SELECT source, last_file, last_exported_at, last_loaded_at, last_row, days_behind
FROM reporting.freshness
ORDER BY days_behind DESC NULLS FIRST, source
