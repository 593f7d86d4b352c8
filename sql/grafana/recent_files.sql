-- The most recently read files, and what became of their records.
SELECT finished_at, path, source, connector, status, records_read, inserted, updated, unchanged, duplicates, superseded,
    quarantined, summary_lines, warnings, run_id
FROM reporting.files
ORDER BY finished_at DESC, path
LIMIT 100
