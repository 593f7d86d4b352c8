-- Open quarantined records by reason; what was found is left out.
SELECT source, reason, records, files, oldest, example_file
FROM reporting.quarantine
ORDER BY records DESC, source, reason
