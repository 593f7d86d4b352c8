"""Turns the text of a cell into a value: column types, dates, timezones."""
