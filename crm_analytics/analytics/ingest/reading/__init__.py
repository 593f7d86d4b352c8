"""Opens an export file and yields batches of typed records: detection, encoding, header, cells."""
