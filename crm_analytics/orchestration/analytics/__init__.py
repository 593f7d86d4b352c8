"""The analytics half in Dagster: raw, fact and metric assets with their checks and automation."""
