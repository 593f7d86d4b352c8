"""Why a pull failed: for good, or for now."""

from __future__ import annotations


class ConnectorError(Exception):
    """A pull that cannot succeed as things are: one sentence that names what, found, accepted and the remedy."""


class TransientError(ConnectorError):
    """A pull that may succeed later without any change, because the service is busy, down or out of reach."""
