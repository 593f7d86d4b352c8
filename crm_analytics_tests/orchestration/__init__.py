"""Tests of the Dagster layer: definitions, checks, sensors, schedules, commands, and all of it running together."""
