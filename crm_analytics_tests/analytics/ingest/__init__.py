"""Tests of reading, cleaning and loading export files."""
