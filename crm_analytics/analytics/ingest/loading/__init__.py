"""Brings files into the raw tables: landing folder, ledger, staging, merge, late files."""
