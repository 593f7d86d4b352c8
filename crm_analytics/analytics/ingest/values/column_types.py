"""Kinds of columns: each cleans a whole column of text by one exact rule, and names the cells it refuses.

A kind has one scalar rule. Cells that match its `plain` pattern are by that rule already clean and pass
untouched; the rule itself is asked once for each other distinct text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.values.dates import (
    DateOrder,
    Moment,
    Unreadable,
    accepted_dates,
    read_call_time,
    read_day,
    read_duration,
    read_moment,
    read_month,
)
from crm_analytics.analytics.ingest.values.timezones import Zone

ID_LENGTH = 100
LABEL_LENGTH = 200  # labels become keys, and an index entry holds 2,700 bytes at most
TEXT_LENGTH = 1000
MONEY_LIMIT = Decimal(10) ** 8
FIRST_YEAR, LAST_YEAR = 2000, 2100
_FIRST_DAY = (date(FIRST_YEAR, 1, 1) - date(1970, 1, 1)).days
_LAST_DAY = (date(LAST_YEAR, 12, 31) - date(1970, 1, 1)).days
TIMESTAMP = pa.timestamp("us", tz="UTC")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule needs to know beyond the cell: the time zone, the order of dates, when the file was exported."""

    zone: Zone
    exported_at: datetime
    date_order: DateOrder = "mdy"
    decimal_comma: bool = False

    @property
    def exported_on(self) -> date:
        """The export's local date."""
        return self.exported_at.astimezone(self.zone.timezone).date()


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned column: values (NULL where blank or refused), row -> why refused, and what comes with it."""

    values: pa.Array
    bad: dict[int, str] = field(default_factory=dict)
    local_date: pa.Array | None = None
    odd_times: Mask | None = None  # local times that the clock shows twice or never


class Kind(Protocol):
    """A kind of column."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """The cleaned column of a column of (not NULL) texts."""


def _trim(text: str) -> str:
    return text.strip().strip("\ufeff\u200b").strip()


def _is_blank(text: str, words: frozenset[str]) -> bool:
    return text.casefold() in words


_NO_TEXT = frozenset({"", "null"})
_NO_VALUE = frozenset({"", "null", "--", "n/a"})
_SPREADSHEET_ID = re.compile(r"\d(?:\.\d+)?E[+-]\d+|\d\.\d+E\d+|\d+\.0+", re.IGNORECASE)


def by_distinct(
    texts: pa.Array, rule: Callable[[str], Any], kind: pa.DataType
) -> tuple[pa.Array, dict[int, str]]:
    """Ask the rule once for each distinct text; refused cells are NULL and listed with the rule's message."""
    encoded = texts.dictionary_encode()
    values: list[Any] = []
    refused: dict[int, str] = {}
    for number, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            values.append(rule(text))
        except Unreadable as error:
            values.append(None)
            refused[number] = str(error)
    cleaned = pa.array(values, kind).take(encoded.indices)
    if not refused:
        return cleaned, {}
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.isin(indices, list(refused)))
    return cleaned, {int(row): refused[int(indices[row])] for row in rows}


def by_pattern(texts: pa.Array, plain: str, rule: Callable[[str], str | None]) -> Cleaned:
    """Texts that match `plain` pass untouched; every other distinct one goes through the rule."""
    is_plain = pc.match_substring_regex(texts, plain)
    rest = np.flatnonzero(~is_plain.to_numpy(zero_copy_only=False))
    if not len(rest):
        return Cleaned(texts)
    cleaned, bad = by_distinct(texts.take(pa.array(rest)), rule, pa.string())
    values = pc.replace_with_mask(texts, pc.invert(is_plain), cleaned)
    return Cleaned(values, {int(rest[row]): why for row, why in bad.items()})


def _text(text: str) -> str | None:
    text = _trim(text)
    return None if _is_blank(text, _NO_TEXT) else _not_longer(text, TEXT_LENGTH)


def _not_longer(text: str, length: int) -> str:
    if len(text) > length:
        raise Unreadable(f"has {len(text)} characters; accepted: at most {length}")
    return text


def _label(text: str) -> str | None:
    found = _text(text)
    return found and _not_longer(" ".join(found.split()), LABEL_LENGTH)


def _identifier(text: str) -> str | None:
    found = _text(text)
    if found is None:
        return None
    if len(found) > ID_LENGTH:
        raise Unreadable(f"has {len(found)} characters; accepted: an id of at most {ID_LENGTH}")
    if _SPREADSHEET_ID.fullmatch(found):
        raise Unreadable(
            "is an id that a spreadsheet has turned into a number; accepted: the id as exported "
            "(format the column as text before saving)"
        )
    return found


def without_padding(text: str) -> str:
    """A job number without zero padding; other texts are ids and stay verbatim (`003504` is `3504`)."""
    return (text.lstrip("0") or "0") if re.fullmatch(r"[0-9]+", text) else text


def _number(text: str) -> str | None:
    found = _identifier(text)
    return found and without_padding(found)


# Words of four letters may be `null`, and long texts may be too long: those are left to the rule.
_PLAIN_TEXT = r"^([!-~]{1,3}|[!-~]{5,100}|[!-~]{1,50}( [!-~]{1,50}){1,9})$"
_PLAIN_ID = r"^([A-Za-z0-9_-]{1,3}|[0-9]{4}|[A-Za-z0-9_-]{5,50})$"
_PLAIN_NUMBER = r"^[1-9][0-9]{0,30}$"


class Text:
    """Text, trimmed; blank and `null` are NULL."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""
        return by_pattern(texts, _PLAIN_TEXT, _text)


class Label:
    """A name that is compared or a key: trimmed, inner white space collapsed."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""
        return Cleaned(*by_distinct(texts, _label, pa.string()))


class Identifier:
    """An id, verbatim but trimmed: `12E345` and all digits are legitimate, `1.2E+05` is refused."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""
        return by_pattern(texts, _PLAIN_ID, _identifier)


class JobNumber:
    """A job's number: zero padding is stripped from digits."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""
        return by_pattern(texts, _PLAIN_NUMBER, _number)


_SIGNS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})
_AMOUNT = re.compile(r"(?P<whole>\d+|\d{1,3}(?:[,\u00a0\u202f]\d{3})+|)(?:\.(?P<cents>\d+))?")
_COMMA_AMOUNT = re.compile(r"(?P<whole>\d+|\d{1,3}(?:[.\u00a0\u202f]\d{3})+|)(?:,(?P<cents>\d+))?")
_MONEY_FORM = re.compile(
    r"(?P<open>\()?\s*(?P<sign>[+-])?\s*\$?\s*(?P<inner>[+-])?\s*(?P<number>[\d.,\u00a0\u202f]+)\s*(?P<after>-)?\s*(?P<close>\))?"
)


def read_decimal(text: str, decimals: int, limit: Decimal, *, decimal_comma: bool = False) -> Decimal | None:
    """Money or another decimal, exactly; NULL where blank. Never rounds, never makes 0 of nothing.

    Implements the money rows of `inputs.md`: signs before, after or as brackets, the dollar sign, thousands
    separators. Raises Unreadable for everything else, and where there are more decimals or digits than allowed.
    """
    accepted = (
        f"accepted: like {'1.234,50' if decimal_comma else '1234.50, $1,234.50, -20 or (20.00)'}, "
        f"at most {decimals} decimals, below {limit:,}"
    )
    text = _trim(text)
    if _is_blank(text, _NO_VALUE):
        return None
    form = _MONEY_FORM.fullmatch(text.translate(_SIGNS)) if len(text) <= 60 else None
    number = form and (_COMMA_AMOUNT if decimal_comma else _AMOUNT).fullmatch(
        form["number"].strip("\u00a0\u202f")
    )
    if not form or not number or not (number["whole"] or number["cents"]):
        ambiguous = re.fullmatch(r"[^,]*\d\.\d{3},\d+.*|\D*\d+,\d{1,2}\D*", text)
        problem = (
            "is ambiguous (which of the point and the comma is the decimal?)"
            if ambiguous
            else "is not a number"
        )
        raise Unreadable(f"{problem}; {accepted}")
    signs = [form["sign"], form["inner"], form["after"], form["open"]]
    if bool(form["open"]) != bool(form["close"]) or sum(sign is not None for sign in signs) > 1:
        raise Unreadable(f"has unclear signs; {accepted}")
    cents = number["cents"] or ""
    if len(cents) > decimals:
        raise Unreadable(f"has more than {decimals} decimals; {accepted}")
    value = Decimal((re.sub(r"\D", "", number["whole"]) or "0") + (f".{cents}" if cents else ""))
    if value >= limit:
        raise Unreadable(f"is absurdly large; {accepted}")
    negative = form["open"] or "-" in (form["sign"], form["inner"], form["after"])
    return -value if negative and value else value


def _plain(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")


@dataclass(frozen=True)
class Money:
    """An amount as exact decimal text, in dollars."""

    decimals: int = 2
    limit: Decimal = MONEY_LIMIT

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""

        def rule(text: str) -> str | None:
            return _plain(read_decimal(text, self.decimals, self.limit, decimal_comma=context.decimal_comma))

        # With a decimal comma, `1.23` is a fault: nothing but whole numbers is plain.
        cents = "" if context.decimal_comma else rf"(\.[0-9]{{1,{self.decimals}}})?"
        return by_pattern(texts, rf"^(-?[1-9][0-9]{{0,6}}|0){cents}$", rule)


class Micros:
    """Millionths of a dollar (Google's `cost_micros`) as dollars, unrounded decimal text."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""

        def rule(text: str) -> str | None:
            text = _trim(text)
            if _is_blank(text, _NO_VALUE):
                return None
            if not re.fullmatch(r"-?[0-9]{1,30}", text) or abs(int(text)) >= MONEY_LIMIT * 10**6:
                raise Unreadable("is not a number of micros; accepted: whole millionths like 2520000000")
            return _plain(Decimal(text).scaleb(-6))

        return Cleaned(*by_distinct(texts, rule, pa.string()))


class Ratio:
    """A ratio between 0 and 1 with at most four decimals; `35%` is 0.35."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""

        def rule(text: str) -> str | None:
            text = _trim(text)
            percent = text.endswith("%")
            try:
                value = read_decimal(text.removesuffix("%"), 2 if percent else 4, Decimal(1000))
            except Unreadable:
                value = Decimal(-1)
            if value is not None and percent:
                value = value / 100
            if value is not None and not 0 <= value <= 1:
                raise Unreadable("is not a ratio; accepted: 0 to 1 with at most 4 decimals like 0.35, or 35%")
            return _plain(value)

        return Cleaned(*by_distinct(texts, rule, pa.string()))


class WholeNumber:
    """A whole number from 0 up to nine digits."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""

        def rule(text: str) -> int | None:
            text = _trim(text)
            if _is_blank(text, _NO_VALUE):
                return None
            if not re.fullmatch(r"[0-9]{1,9}|[0-9]{1,3}(,[0-9]{3}){1,2}", text):
                raise Unreadable("is not a whole number; accepted: like 120 or 1,200")
            return int(text.replace(",", ""))

        return Cleaned(*by_distinct(texts, rule, pa.int32()))


class Duration:
    """A duration in whole seconds."""

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""

        def rule(text: str) -> int | None:
            text = _trim(text)
            return None if _is_blank(text, _NO_VALUE) else read_duration(text)

        return Cleaned(*by_distinct(texts, rule, pa.int32()))


_PLAIN_MOMENT = (
    r"^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[ T]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$"
)


@dataclass(frozen=True)
class When:
    """A moment: UTC, with its local date beside it. Local times follow the DST rule of `Zone.to_utc`."""

    without_year: bool = False  # the year comes from the weekday and the export date

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""
        is_plain = pc.match_substring_regex(texts, _PLAIN_MOMENT)
        plain = is_plain.to_numpy(zero_copy_only=False)
        local = np.zeros(len(texts), dtype=np.int64)
        try:
            read = pc.cast(texts.filter(is_plain), pa.timestamp("us"))
            local[plain] = read.to_numpy(zero_copy_only=False).astype(np.int64)
        except pa.ArrowInvalid:  # a 31st of April among them: the rule finds it
            plain = np.zeros(len(texts), dtype=np.bool_)
        known = plain.copy()
        aware = np.zeros(len(texts), dtype=np.bool_)
        bad: dict[int, str] = {}
        rest = np.flatnonzero(~plain)
        if len(rest):
            moments, refused = by_distinct(
                texts.take(pa.array(rest)), lambda text: self._rule(text, context), _MOMENT
            )
            bad = {int(rest[row]): why for row, why in refused.items()}
            local[rest] = moments.field("microseconds").fill_null(0).to_numpy(zero_copy_only=False)
            aware[rest] = moments.field("aware").fill_null(False).to_numpy(zero_copy_only=False)
            known[rest] = moments.is_valid().to_numpy(zero_copy_only=False)
        utc, odd = context.zone.to_utc(local)
        utc = np.where(aware, local, utc)
        days = context.zone.local_days(utc)
        for row in np.flatnonzero(known & ((days < _FIRST_DAY) | (days > _LAST_DAY))):
            known[row] = False
            bad[int(row)] = (
                f"is outside the years {FIRST_YEAR} to {LAST_YEAR}; accepted: {accepted_dates(context.date_order)}"
            )
        missing = ~known
        return Cleaned(
            pa.array(utc, mask=missing).cast(pa.timestamp("us")).cast(TIMESTAMP),
            bad,
            pa.array(days.astype(np.int32), mask=missing).cast(pa.date32()),
            odd & known & ~aware,
        )

    def _rule(self, text: str, context: Context) -> dict[str, int | bool] | None:
        text = _trim(text)
        if _is_blank(text, _NO_VALUE):
            return None
        moment: Moment
        if self.without_year:
            moment = read_call_time(text, context.date_order, context.exported_on)
        else:
            moment = read_moment(text, context.date_order)
        return {"microseconds": moment.microseconds, "aware": moment.aware}


_MOMENT = pa.struct([("microseconds", pa.int64()), ("aware", pa.bool_())])


@dataclass(frozen=True)
class CalendarDay:
    """A date without a time, or with `month` a month as its first day."""

    month: bool = False

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""

        def rule(text: str) -> date | None:
            text = _trim(text)
            if _is_blank(text, _NO_VALUE):
                return None
            value = (read_month if self.month else read_day)(text, context.date_order)
            if not FIRST_YEAR <= value.year <= LAST_YEAR:
                raise Unreadable(f"is outside the years {FIRST_YEAR} to {LAST_YEAR}")
            return value

        return Cleaned(*by_distinct(texts, rule, pa.date32()))
