"""From export files to raw tables: declarations, reading, cleaning and loading."""
