"""Opens an export file and yields batches of typed records: source, format, header, cells, conventions, totals."""
