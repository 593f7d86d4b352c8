-- Options of the variable source.
SELECT source FROM reporting.sources ORDER BY source
