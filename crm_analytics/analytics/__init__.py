"""The analytics domain: export files into raw tables, raw tables into metrics."""
