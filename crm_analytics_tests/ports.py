"""Ports for servers that tests start."""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import suppress

#: Below the ports that the kernel gives to connections, from another place for each process.
_candidates = itertools.count(20_000 + os.getpid() * 7 % 10_000)


def free_port() -> int:
    """Returns a port that is free, and that nothing else is likely to take before the server does."""
    for port in _candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def listens(port: int) -> bool:
    """Returns whether a server of this machine takes connections on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
