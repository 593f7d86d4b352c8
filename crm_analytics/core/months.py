"""Reads and calculates with months; a month is the date of its first day."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any


def parse_month(value: Any) -> date:
    """Returns the first day of the month that `2024-10`, `2024-10-01` or a date names.

    Raises:
        ValueError: for anything else; the message says what is accepted.
    """
    if isinstance(value, date):
        return value.replace(day=1)
    match = re.fullmatch(r"(\d{4})-(\d{2})(?:-01)?", str(value).strip())
    if not match or not 1 <= int(match[2]) <= 12:
        raise ValueError(f"{value!r} is not a month: write it as YYYY-MM, e.g. 2024-10")
    return date(int(match[1]), int(match[2]), 1)


def next_month(month: date) -> date:
    """Returns the following month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def end_of_month(month: date) -> date:
    """Returns the month's last day."""
    return month.replace(day=monthrange(month.year, month.month)[1])


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
