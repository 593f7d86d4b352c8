"""Calculates with months; a month is the date of its first day."""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Iterator
from datetime import date


def next_month(month: date) -> date:
    """Returns the following month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def end_of_month(month: date) -> date:
    """Returns the month's last day."""
    return month.replace(day=calendar.monthrange(month.year, month.month)[1])


def months_between(start: date, end: date) -> Iterator[date]:
    """Yields the months of the half-open range [start, end)."""
    month = start.replace(day=1)
    while month < end:
        yield month
        month = next_month(month)


def contiguous(months: Iterable[date]) -> list[tuple[date, date]]:
    """Returns the months as stretches of neighbors, (first, last) with both included, in order."""
    runs: list[tuple[date, date]] = []
    for month in sorted(set(months)):
        if runs and next_month(runs[-1][1]) == month:
            runs[-1] = (runs[-1][0], month)
        else:
            runs.append((month, month))
    return runs
