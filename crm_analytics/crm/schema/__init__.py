"""Reads the CRM's schema from the catalog, compares it with what is committed, and writes the SQL that repairs it."""
