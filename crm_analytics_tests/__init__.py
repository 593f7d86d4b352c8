"""Tests against real PostgreSQL: one embedded server per test run, one fresh database per test."""
