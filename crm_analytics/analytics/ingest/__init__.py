"""Loads export files into the raw tables: declarations, reading, typing, loading."""
