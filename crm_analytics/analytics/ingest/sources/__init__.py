"""The sources: one module for each kind of export file, holding all that is particular to it."""
