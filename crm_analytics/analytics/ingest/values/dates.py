"""Exact rules that read one text as a date, a time, a month or a duration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import lru_cache
from typing import Literal

from crm_analytics.analytics.ingest.errors import InvalidValue

DateOrder = Literal["mdy", "dmy"]
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

#: For pyarrow: the beginning of a text with a date whose month and day only an order tells apart.
NUMERIC_DATE = (
    r"^[\s\x{A0}\x{200B}\x{FEFF}]*(?P<first>\d{1,2})(?P<mark>[/.-])(?P<second>\d{1,2})[/.-](?P<year>\d{4})"
)
#: For pyarrow: a duration with hours, minutes and seconds.
CLOCK_WITH_HOURS = r"^[\s\x{A0}]*(?P<hours>\d{1,4}):(?P<minutes>\d{1,4}):(?P<seconds>[0-5]\d)[\s\x{A0}]*$"
ACCEPTED_DAYS = "a date from 2000 to 2100 like 2024-11-15, Fri Nov 15 2024, Nov 15, 2024 or {numeric}"
ACCEPTED_TIMES = "with or without a time like 10:30:00 or 10:30 AM and an offset like -0500 or Z"
ACCEPTED_MONTHS = "a month from 2000 to 2100 like 2024-11, 2024-11-01, Nov 2024 or 11/2024"
ACCEPTED_DURATIONS = "3 Min 25 Sec, 3:25 (minutes and seconds), 1:03:25 or whole seconds"
ACCEPTED_CALL_TIMES = (
    "a time like Wed Dec 17th, 03:21PM with the weekday of one of the five years up to the export of {exported_on}, "
    "or a full date and time"
)


@dataclass(frozen=True, slots=True)
class Moment:
    """Microseconds since 1970: in UTC where the text has an offset (`aware`), otherwise by the local wall clock."""

    microseconds: int
    aware: bool


_TIME = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,9}))?)?(?:\s*(?P<half>[ap])\.?m\.?)?"
_OFFSET = r"(?P<offset>z|utc|gmt|(?:utc|gmt)?\s*[+-]\d{2}:?\d{2})"
_TAIL = re.compile(rf"(?:[\s,]*T|[\s,]+){_TIME}(?:\s*{_OFFSET})?(?:\s*\([^()]*\))?", re.IGNORECASE)
_WEEKDAY = r"(?:(?P<weekday>mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_MONTH = r"(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_ORDINAL = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})",
        r"(?P<year>\d{4})/(?P<month>\d{1,2})/(?P<day>\d{1,2})",
        rf"{_WEEKDAY}{_MONTH}\s+{_ORDINAL},?\s+(?P<year>\d{{4}})",
        rf"{_WEEKDAY}{_ORDINAL}[\s-]+{_MONTH},?[\s-]+(?P<year>\d{{4}})",
        r"(?P<first>\d{1,2})[/.-](?P<second_>\d{1,2})[/.-](?P<year>\d{4})",
    )
)
_CALL_TIME = re.compile(
    rf"(?P<weekday>mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+{_MONTH}\s+{_ORDINAL},?\s+(?P<time>{_TIME})",
    re.IGNORECASE,
)
_MONTH_FORMS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<year>\d{4})-(?P<month>\d{1,2})",
        r"(?P<month>\d{1,2})/(?P<year>\d{4})",
        rf"{_MONTH},?[\s-]+(?P<year>\d{{4}})",
        rf"(?P<year>\d{{4}})\s+{_MONTH}",
    )
)
_DURATION_WORDS = re.compile(
    r"(?:(?P<hours>\d{1,4})\s*h(?:ou)?r?s?)?\s*(?:(?P<minutes>\d{1,5})\s*min(?:ute)?s?)?"
    r"\s*(?:(?P<seconds>\d{1,6})\s*sec(?:ond)?s?)?",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"(?:(?P<hours>\d{1,4}):)?(?P<minutes>\d{1,4}):(?P<seconds>[0-5]\d)")


def accepted_days(order: DateOrder) -> str:
    """Returns the accepted forms of a date, with numeric dates in the declared order."""
    numeric = "11/15/2024 (month first)" if order == "mdy" else "15/11/2024 (day first)"
    return ACCEPTED_DAYS.format(numeric=numeric)


def accepted_dates(order: DateOrder) -> str:
    """Returns the accepted forms of a date with or without a time of day."""
    return f"{accepted_days(order)}, {ACCEPTED_TIMES}"


def _month_number(text: str) -> int:
    return int(text) if text.isdigit() else MONTHS.index(text[:3].lower()) + 1


@lru_cache(maxsize=4096)
def _read_date(text: str, order: DateOrder) -> tuple[date, int] | None:
    """Returns the date at the start of the text and where it ends, or None if there is no such date."""
    for pattern in _DATES:
        match = pattern.match(text)
        if not match:
            continue
        found = match.groupdict()
        if "first" in found:
            first, second = int(found["first"]), int(found["second_"])
            month, day = (first, second) if order == "mdy" else (second, first)
        else:
            month, day = _month_number(found["month"]), int(found["day"])
        try:
            value = date(int(found["year"]), month, day)
        except ValueError:
            return None
        weekday = found.get("weekday")
        if weekday and WEEKDAYS.index(weekday.lower()) != value.weekday():
            return None
        return value, match.end()
    return None


def _read_time(match: re.Match[str]) -> time | None:
    hour, half = int(match["hour"]), (match["half"] or "").lower()
    if half and not 1 <= hour <= 12:
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    fraction = int((match["fraction"] or "0").ljust(6, "0")[:6])
    try:
        return time(hour, int(match["minute"]), int(match["second"] or 0), fraction)
    except ValueError:
        return None


def _read_offset(text: str | None) -> timezone | None:
    """Returns the offset as a timezone, or None without one. Raises ValueError for an impossible offset."""
    if not text:
        return None
    digits = re.sub(r"[^0-9+-]", "", text)
    if not digits:
        return UTC
    shift = timedelta(hours=int(digits[1:3]), minutes=int(digits[3:5]))
    return timezone(-shift if digits[0] == "-" else shift)


def date_under(text: str, order: DateOrder) -> date | None:
    """Returns the date at the start of a trimmed text, under an order of numeric dates."""
    found = _read_date(text, order)
    return found[0] if found else None


def read_moment(text: str, order: DateOrder) -> Moment:
    """Reads a date with or without a time of day and an offset; a date alone is its local midnight.

    Numeric dates follow the declared order, which is never guessed row by row. A weekday must fit the date.
    Raises InvalidValue.
    """
    found = _read_date(text, order)
    if found:
        day, end = found
        rest = text[end:]
        if not rest:
            return Moment(
                (datetime(day.year, day.month, day.day, tzinfo=UTC) - _EPOCH) // _MICROSECOND, False
            )
        tail = _TAIL.fullmatch(rest)
        clock = _read_time(tail) if tail else None
        if tail and clock is not None:
            try:
                offset = _read_offset(tail["offset"])
                value = datetime.combine(day, clock, offset or UTC)
                return Moment((value - _EPOCH) // _MICROSECOND, offset is not None)
            except (ValueError, OverflowError):
                pass
    raise InvalidValue("not_a_valid_date", accepted_dates(order))


def read_day(text: str, order: DateOrder) -> date:
    """Reads a date without a time of day. Raises InvalidValue."""
    found = _read_date(text, order)
    if not found or found[1] != len(text):
        raise InvalidValue("not_a_valid_date", accepted_days(order))
    return found[0]


def read_month(text: str, order: DateOrder) -> date:
    """Reads a month, or the month of a full date, as its first day. Raises InvalidValue."""
    for pattern in _MONTH_FORMS:
        match = pattern.fullmatch(text)
        if match and 1 <= (month := _month_number(match["month"])) <= 12 and match["year"] != "0000":
            return date(int(match["year"]), month, 1)
    found = _read_date(text, order)
    if not found or found[1] != len(text):
        raise InvalidValue("not_a_month", ACCEPTED_MONTHS)
    return found[0].replace(day=1)


def read_call_time(text: str, order: DateOrder, exported_on: date) -> Moment:
    """Reads a call's time; its weekday and the export's local date tell the year of one without a year.

    Among the export's year and the four before it, at most one fits: a date falls on the same weekday again after
    five years at the earliest. A date after the export never fits. Raises InvalidValue.
    """
    accepted = ACCEPTED_CALL_TIMES.format(exported_on=exported_on)
    match = _CALL_TIME.fullmatch(text)
    if not match:
        try:
            return read_moment(text, order)
        except InvalidValue as error:
            raise InvalidValue("not_a_call_time", accepted) from error
    clock = _read_time(match)
    month, day, weekday = _month_number(match["month"]), int(match["day"]), match["weekday"].lower()
    for year in range(exported_on.year, exported_on.year - 5, -1):
        try:
            value = date(year, month, day)
        except ValueError:
            continue
        if clock is not None and value <= exported_on and value.weekday() == WEEKDAYS.index(weekday[:3]):
            return Moment((datetime.combine(value, clock, UTC) - _EPOCH) // _MICROSECOND, False)
    raise InvalidValue("weekday_fits_no_recent_year", accepted)


def read_duration(text: str, *, hours_are_minutes: bool = False) -> int:
    """Reads a duration in seconds. Raises InvalidValue.

    With `hours_are_minutes`, 3:25:00 is what a spreadsheet made of 3:25, three minutes and 25 seconds.
    """
    if text.isascii() and text.isdigit() and len(text) <= 7:
        return int(text)
    match = _CLOCK.fullmatch(text) or _DURATION_WORDS.fullmatch(text)
    if not match or not text:
        raise InvalidValue("not_a_duration", ACCEPTED_DURATIONS)
    hours, minutes, seconds = (int(match[part] or 0) for part in ("hours", "minutes", "seconds"))
    if hours_are_minutes and match.re is _CLOCK and match["hours"]:
        hours, minutes, seconds = 0, hours, minutes
    return hours * 3600 + minutes * 60 + seconds


#: Zeros, as databases write them, or day 0 of a spreadsheet; or only a midnight, which is day 0 in a workbook.
_ZERO_DATE = re.compile(
    r"(?:0000([-/.])00?\1(?:00?)|00?([-/.])00?\2(?:0000)|0000-00|00/0000"
    r"|1900-01-00|0?1/00?/1900|1899-12-30|12/30/1899)?"
    r"(?:(?:^|[\sT]+)00?:00(?::00(?:\.0+)?)?\s*Z?)?"
)


def is_zero_date(text: str) -> bool:
    """Returns whether the text is a date of zeros, which databases and spreadsheets write where there is no date."""
    return bool(text) and _ZERO_DATE.fullmatch(text.strip()) is not None
