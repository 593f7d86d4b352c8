"""The metrics' side of the analytics database: refresh and reconciliation."""
