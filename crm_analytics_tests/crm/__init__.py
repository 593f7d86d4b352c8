"""Tests of the CRM database, on real PostgreSQL."""
