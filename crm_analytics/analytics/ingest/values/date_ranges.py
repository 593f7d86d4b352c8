"""Reads the date range of a report from the lines above its header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date

from crm_analytics.analytics.ingest.errors import InvalidValue
from crm_analytics.analytics.ingest.values.dates import DateOrder, read_day, read_month
from crm_analytics.core.months import end_of_month

Range = tuple[date, date]


class ConflictingRanges(ValueError):
    """The lines give more than one range; the message has them all."""


_NAMES = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_MONTH = rf"(?:{_NAMES})\b\.?"
_DAY_OF_MONTH = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"\d{4}"
_DAY = (
    rf"(?:\d{{4}}-\d{{1,2}}-\d{{1,2}}|\d{{4}}/\d{{1,2}}/\d{{1,2}}|{_WEEKDAY}{_MONTH}\s+{_DAY_OF_MONTH},?\s+{_YEAR}"
    rf"|{_WEEKDAY}{_DAY_OF_MONTH}[\s-]+{_MONTH},?[\s-]+{_YEAR}|\d{{1,2}}[/.-]\d{{1,2}}[/.-]{_YEAR})"
)
_CLOCK = r"(?:[\sT]\d{1,2}:\d{2}(?::\d{2})?)?"
_TO = r"[\s,]*(?:-|–|—|_|\.\.|\b(?:to|through|thru|until|end)\b(?:\s+date)?:?)[\s,]*"
_BEFORE, _AFTER = r"(?<![^\W_])(?<![/.-])", r"(?![^\W_]|/|[.-]\d)"
#: The United States write no dots, so the day comes first.
_DOTTED = re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}")


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(_BEFORE + text + _AFTER, re.IGNORECASE)


#: From the first day to the last; an end may lack a month or a year that the other has.
_RANGES = (
    _pattern(rf"(?P<from>{_DAY}){_CLOCK}{_TO}(?P<to>{_DAY}){_CLOCK}"),
    _pattern(
        rf"(?P<month>{_MONTH})\s+(?P<first>{_DAY_OF_MONTH}){_TO}(?P<month_to>{_MONTH})?\s*(?P<last>{_DAY_OF_MONTH})"
        rf",?\s+(?P<year>{_YEAR})"
    ),
    _pattern(
        rf"(?P<first>{_DAY_OF_MONTH})(?:\s+(?P<month>{_MONTH}))?{_TO}(?P<last>{_DAY_OF_MONTH})\s+(?P<month_to>{_MONTH})"
        rf",?\s+(?P<year>{_YEAR})"
    ),
    _pattern(
        rf"(?P<month>{_MONTH})(?:,?\s+(?P<year>{_YEAR}))?{_TO}(?P<month_to>{_MONTH}),?\s+(?P<year_to>{_YEAR})"
    ),
)
_ONE_DAY = _pattern(_DAY + _CLOCK)
_ONE_MONTH = _pattern(rf"(?:(?:{_MONTH}),?[\s-]+{_YEAR}|{_YEAR}\s+{_MONTH}|{_YEAR}-\d{{2}}|\d{{2}}/{_YEAR})")
#: A line that is nothing but a month.
_MONTH_LINE = re.compile(
    rf"(?:(?:month|period|date range)\W*)?\(?(?P<month>{_ONE_MONTH.pattern})\)?", re.IGNORECASE
)
_MADE = re.compile(
    r"\b(?:created|generated|exported|downloaded|printed|updated|run on|as of)\b", re.IGNORECASE
)


def read_range(lines: Iterable[str], order: DateOrder, *, months: bool) -> Range | None:
    """Returns the first and the last day of the report; None if no line has a range.

    A range counts wherever it is in a line, a single day where it is the whole line.

    Args:
        lines: those above the header.
        order: of numeric dates.
        months: whether a month alone is a range, too, in the title or as a whole line. Around a range, it says the same.

    Raises:
        ConflictingRanges: if the lines give different ranges.
    """
    ranges: list[Range] = []
    named: list[Range] = []
    written = (line.strip() for line in lines)
    for number, line in enumerate(line for line in written if line and not line.startswith("sep=")):
        found = list(_ranges_in(line, order))
        ranges += found
        if months and not found:
            named += _months_in(line, order, is_title=number == 0)
    for first, last in named:
        if not any(first <= start and end <= last for start, end in ranges):
            ranges.append((first, last))
    distinct = list(dict.fromkeys(ranges))
    if len(distinct) > 1:
        raise ConflictingRanges(" and ".join(f"{first} to {last}" for first, last in distinct))
    return distinct[0] if distinct else None


def _ranges_in(line: str, order: DateOrder) -> Iterator[Range]:
    """Yields the ranges in a line, or the single day that it is."""
    rest = line
    for pattern in _RANGES:
        for match in pattern.finditer(rest):
            ends = _ends(match.groupdict(), order)
            if ends and ends[0] <= ends[1]:
                yield ends
        rest = pattern.sub(" ", rest)
    if _ONE_DAY.fullmatch(line):
        day = _day(re.sub(_CLOCK + "$", "", line), order)
        if day:
            yield day, day


def _ends(found: dict[str, str | None], order: DateOrder) -> Range | None:
    if found.get("from"):
        first, last = _day(found["from"], order), _day(found["to"], order)
        return (first, last) if first and last else None
    if "first" not in found:
        first = _month(f"{found['month']} {found['year'] or found['year_to']}", order)
        last = _month(f"{found['month_to']} {found['year_to']}", order)
        return (first, end_of_month(last)) if first and last else None
    month, month_to = found["month"] or found["month_to"], found["month_to"] or found["month"]
    first = _day(f"{month} {found['first']}, {found['year']}", order)
    last = _day(f"{month_to} {found['last']}, {found['year']}", order)
    return (first, last) if first and last else None


def _months_in(line: str, order: DateOrder, *, is_title: bool) -> Iterator[Range]:
    """Yields the months that a title names, or the one that a line is."""
    if is_title and not _MADE.search(line):
        texts = _ONE_MONTH.findall(_ONE_DAY.sub(" ", line))
    else:
        whole = _MONTH_LINE.fullmatch(line)
        texts = [whole["month"]] if whole else []
    for text in texts:
        if first := _month(text, order):
            yield first, end_of_month(first)


def _day(text: str | None, order: DateOrder) -> date | None:
    try:
        return read_day(text or "", "dmy" if _DOTTED.fullmatch(text or "") else order)
    except InvalidValue:
        return None


def _month(text: str, order: DateOrder) -> date | None:
    try:
        return read_month(text, order)
    except InvalidValue:
        return None
