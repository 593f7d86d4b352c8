"""The refusals of the ingest package, each message whole in itself, and how messages quote cells."""

from __future__ import annotations


class RefusedFile(Exception):
    """A file that cannot be read; `str(error)` names the file, the place, what was found, what is accepted."""


class UnrecognizedFile(RefusedFile):
    """A file whose source cannot be told from its folder, its name or its header."""


_SHOWN = 80


def shown(text: str) -> str:
    """A cell as messages quote it: long ones cut."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
