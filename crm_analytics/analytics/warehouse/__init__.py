"""Refreshes the metrics from the facts, and checks and documents the analytics database."""
