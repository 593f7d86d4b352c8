"""Keeps the garbage collector away from modules that a command imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Keeps the collector away from what the block imports, which lasts as long as the process.

    It would go through all of it again and again and find nothing: a fifth of a refresh with nothing new.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
