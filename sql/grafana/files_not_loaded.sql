-- Files of the landing folder whose current content is not loaded.
SELECT path, connector, status, message, first_seen_at, run_id
FROM reporting.files
WHERE is_current AND status IN ('refused', 'unrecognized')
ORDER BY first_seen_at DESC, path
