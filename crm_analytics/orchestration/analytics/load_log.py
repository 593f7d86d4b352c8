"""Writes to a run's log what a load does: a message for all files that a second concludes."""

from __future__ import annotations

import time
from collections.abc import Callable

from crm_analytics.analytics.ingest.loading.results import FileResult, describe

INTERVAL = 1.0  #: seconds


class LoadLog:
    """Passes on what a load reports, as few messages: Dagster takes as long to store one as a load for some records."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._lines: list[str] = []
        self._written = float("-inf")

    def report(self, message: str) -> None:
        """Writes what the load is about to do at once, because it may take long, after the files before it."""
        self.flush()
        self._log(message)

    def conclude(self, file: FileResult) -> None:
        """Notes what became of a file; it is written now or with files that follow within a second."""
        self._lines.append(describe(file))
        if time.monotonic() - self._written >= INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Writes what is noted."""
        if self._lines:
            self._log("\n".join(self._lines))
            self._lines.clear()
            self._written = time.monotonic()
