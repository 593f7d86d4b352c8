"""What people can do something about: a missing extra, and a lake that is ahead of the database."""

from __future__ import annotations

from importlib.util import find_spec

EXTRA_MISSING = (
    "LAKE_URL is set, but the libraries of the lake are not installed: pip install 'crm-analytics[lake]'"
)


class LakeError(Exception):
    """The lake cannot be written or compared until a person does something; the message says what."""


def require_extra() -> None:
    """Refuses to go on without the extra `lake`.

    Raises:
        LakeError: if pyiceberg is not installed.
    """
    if find_spec("pyiceberg") is None:
        raise LakeError(EXTRA_MISSING)
