"""The CRM half in Dagster: the schema asset, the guard checks and their schedules."""
