"""A source added from outside, as README's "Adding a source" tells it: its declaration, its migration, its test."""
