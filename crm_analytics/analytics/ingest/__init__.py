"""From export files to raw tables: declarations, reading, cleaning, loading. Imports no Dagster."""
