"""A Dagster-orchestrated data platform on PostgreSQL: analytics from export files, and a guarded CRM schema."""
