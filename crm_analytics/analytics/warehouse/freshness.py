"""How old the newest row of each source is, and whether that is expected: what tells that exports have stopped.

The rows decide, not the runs and not the files: a nightly run without a file, or a new file with old rows, is silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any

import psycopg
from psycopg import sql

from crm_analytics.analytics.ingest.sources.declaration import Expectation, Source
from crm_analytics.core.wording import counted


class Age(Enum):
    """What the age of a source's newest row means."""

    FRESH = "fresh"
    LATE = "late"
    SILENT = "silent"
    #: There is no row that could be old: the business may not use the tool.
    EMPTY = "empty"


@dataclass(frozen=True)
class Freshness:
    """The newest day in a source's table, today in the business timezone, and what is expected."""

    source: str
    newest: date | None
    today: date
    expectation: Expectation

    @property
    def days(self) -> int | None:
        """The days from the newest row to today."""
        return None if self.newest is None else (self.today - self.newest).days

    @property
    def age(self) -> Age:
        """What the age of the newest row means."""
        if self.days is None:
            return Age.EMPTY
        if _older(self.days, self.expectation.error_days):
            return Age.SILENT
        return Age.LATE if _older(self.days, self.expectation.warn_days) else Age.FRESH

    def __str__(self) -> str:
        if self.days is None:
            return "no row yet"
        found = f"the newest row is of {self.newest}, {counted(self.days, 'day')} old"
        limits = {Age.SILENT: self.expectation.error_days, Age.LATE: self.expectation.warn_days}
        limit = limits.get(self.age)
        return found if limit is None else f"{found}; expected: {counted(limit, 'day')} at most"


def _older(days: int, limit: int | None) -> bool:
    return limit is not None and days > limit


def freshness(connection: psycopg.Connection[Any], sources: Iterable[Source]) -> list[Freshness]:
    """Returns how fresh each source is, by its own expectation or by that in analytics.source_expectations."""
    replaced = {
        source: Expectation(warn, error)
        for source, warn, error in connection.execute(
            "SELECT source, warn_days, error_days FROM analytics.source_expectations"
        )
    }
    return [
        Freshness(source.name, *_newest(connection, source), replaced.get(source.name, source.expectation))
        for source in sources
    ]


def unknown_expectations(connection: psycopg.Connection[Any], sources: Iterable[Source]) -> list[str]:
    """Lists the names in analytics.source_expectations that no source has, so that their limits apply to nothing."""
    found = connection.execute(
        "SELECT source FROM analytics.source_expectations WHERE source <> ALL (%s) ORDER BY source",
        [[source.name for source in sources]],
    )
    return [name for (name,) in found]


def _newest(connection: psycopg.Connection[Any], source: Source) -> tuple[date | None, date]:
    """Returns the newest day and today. A row of the future, such as a mistyped year, would hide silence: it is left out.

    Of a month's total the last day that it covers counts, at most today.
    """
    newest = "max({day})" if source.month_totals is None else "max(least({covered_to}, analytics.today()))"
    query = sql.SQL(
        f"SELECT (SELECT {newest} FROM {{table}} WHERE {{day}} <= analytics.today()), analytics.today()"
    ).format(**{name: source.fragments[name] for name in ("day", "covered_to", "table")})
    found = connection.execute(query).fetchone()
    assert found is not None
    return found[0], found[1]
