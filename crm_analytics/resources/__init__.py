"""Dagster resources: where the databases and the landing folder are."""
