"""The command line: everything that a person types, and everything that prints."""
