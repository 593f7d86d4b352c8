"""Tests of the dashboards: their JSON, their queries, their role."""
