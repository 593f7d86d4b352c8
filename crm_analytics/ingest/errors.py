"""The refusals of the ingest package: each message is whole in itself."""

from __future__ import annotations


class RefusedFile(Exception):
    """A file that cannot be read; `str(error)` names the file, the place, what was found, what is accepted."""


class UnrecognisedFile(RefusedFile):
    """A file whose source cannot be told from its folder, its name or its header."""
