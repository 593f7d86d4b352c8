"""How old the newest row of each source is, and whether that is expected: what tells that exports have stopped.

The rows decide, not the runs and not the files: a nightly run without a file, or a new file with old rows, is silence.
Which day the newest one is, reporting.newest_days says, to the dashboards, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any

import psycopg

from crm_analytics.analytics.ingest.sources.declaration import Expectation, Source
from crm_analytics.core.wording import counted


class Age(Enum):
    """What the age of a source's newest row means."""

    FRESH = "fresh"
    LATE = "late"
    SILENT = "silent"
    #: There is no row that could be old, and never was a file: the business may not use the tool.
    EMPTY = "empty"


@dataclass(frozen=True)
class Freshness:
    """The newest day in a source's table, today in the business timezone, and what is expected.

    Attributes:
        was_loaded: whether a file of the source has ever been loaded and not taken back.
    """

    source: str
    newest: date | None
    today: date
    was_loaded: bool
    expectation: Expectation

    @property
    def days(self) -> int | None:
        """The days from the newest row to today."""
        return None if self.newest is None else (self.today - self.newest).days

    @property
    def age(self) -> Age:
        """What the age of the newest row means."""
        if self.days is None and not self.was_loaded:
            return Age.EMPTY
        if self._is_older(self.expectation.error_days):
            return Age.SILENT
        return Age.LATE if self._is_older(self.expectation.warn_days) else Age.FRESH

    def _is_older(self, limit: int | None) -> bool:
        """Returns whether the newest row is older than a limit; rows that are gone are older than any."""
        return limit is not None and (self.days is None or self.days > limit)

    def __str__(self) -> str:
        if self.days is None and not self.was_loaded:
            return "no row yet"
        if self.days is None:
            found = f"no row up to today, {self.today}, although files were loaded"
        else:
            found = f"the newest row is of {self.newest}, {counted(self.days, 'day')} old"
        limits = {Age.SILENT: self.expectation.error_days, Age.LATE: self.expectation.warn_days}
        limit = limits.get(self.age)
        return found if limit is None else f"{found}; expected: {counted(limit, 'day')} at most"


def freshness(connection: psycopg.Connection[Any], sources: Iterable[Source]) -> list[Freshness]:
    """Returns how fresh each source is, by its own expectation or by that in analytics.source_expectations."""
    replaced = {
        source: Expectation(warn, error)
        for source, warn, error in connection.execute(
            "SELECT source, warn_days, error_days FROM analytics.source_expectations"
        )
    }
    found = {
        source: (newest, today, was_loaded)
        for source, newest, today, was_loaded in connection.execute(
            "SELECT source, last_row, analytics.today(), last_loaded_at IS NOT NULL FROM reporting.freshness"
        )
    }
    return [
        Freshness(source.name, *found[source.name], replaced.get(source.name, source.expectation))
        for source in sources
    ]


def unknown_expectations(connection: psycopg.Connection[Any], sources: Iterable[Source]) -> list[str]:
    """Lists the names in analytics.source_expectations that no source has, so that their limits apply to nothing."""
    found = connection.execute(
        "SELECT source FROM analytics.source_expectations WHERE source <> ALL (%s) ORDER BY source",
        [[source.name for source in sources]],
    )
    return [name for (name,) in found]
