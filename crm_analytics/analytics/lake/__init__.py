"""The open lake: each refreshed month of all franchises in Apache Iceberg tables, for any engine (docs/decisions/lake.md)."""
