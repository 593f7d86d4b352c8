"""Column types: each turns a column of text into values by one exact rule, and gives reasons for the cells it refuses.

A cell that matches the type's pattern of plain texts is already clean and passes untouched. The rule itself runs once
for each other distinct text, and a test holds that both give the same values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import InvalidValue, Reason
from crm_analytics.analytics.ingest.values.dates import (
    ACCEPTED_MONTHS,
    DateOrder,
    Moment,
    accepted_dates,
    accepted_days,
    is_zero_date,
    read_call_time,
    read_day,
    read_duration,
    read_moment,
    read_month,
)
from crm_analytics.analytics.ingest.values.patterns import are_whole
from crm_analytics.analytics.ingest.values.timezones import Int64, Zone

ID_LENGTH = 100
#: Labels become keys, and an index entry holds at most 2,700 bytes.
LABEL_LENGTH = 200
TEXT_LENGTH = 1000
MONEY_LIMIT = Decimal(10) ** 8
FIRST_YEAR, LAST_YEAR = 2000, 2100
_FIRST_DAY = (date(FIRST_YEAR, 1, 1) - date(1970, 1, 1)).days
_LAST_DAY = (date(LAST_YEAR, 12, 31) - date(1970, 1, 1)).days
TIMESTAMP = pa.timestamp("us", tz="UTC")
Mask = npt.NDArray[np.bool_]
#: So many texts show whether those of a column repeat. Finding the distinct ones of texts that don't takes as long as
#: matching a pattern with them.
SAMPLE = 256


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule must know besides the cell: time zone, when (an aware time) the file was exported, and its conventions."""

    zone: Zone
    exported_at: datetime
    date_order: DateOrder = "mdy"
    decimal_comma: bool = False
    #: A duration like 3:25:00 has minutes and seconds, which a spreadsheet took for hours and minutes.
    hours_are_minutes: bool = False
    #: The file's name tells when it was exported, which its modification time does less reliably.
    export_named: bool = False

    @property
    def exported_on(self) -> date:
        """Returns the export's local date."""
        return self.exported_at.astimezone(self.zone.timezone).date()


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned column: its values (NULL where blank or refused), and row -> reason where a cell is refused."""

    values: pa.Array
    reasons: dict[int, Reason] = field(default_factory=dict)
    judged: pa.Array | None = None  #: the distinct texts that aren't plain, as they are in the file
    local_date: pa.Array | None = None  #: of a time
    dst_ambiguous: Mask | None = None  #: local times that the clock shows twice or skips

    def spread(self, places: pa.Array, distinct: pa.Array, texts: pa.Array) -> Cleaned:
        """Returns what a column is, of whose distinct texts this is: `texts`, with their places among these."""
        rows = places.to_numpy()
        reasons = {}
        if self.reasons:
            refused = np.flatnonzero(np.isin(rows, list(self.reasons)))
            reasons = {int(row): self.reasons[int(rows[row])] for row in refused}
        return Cleaned(
            texts if self.values is distinct else self.values.take(places),
            reasons,
            self.judged,
            None if self.local_date is None else self.local_date.take(places),
            None if self.dst_ambiguous is None else self.dst_ambiguous[rows],
        )


def trim(text: str) -> str:
    """Returns a cell without white space and invisible characters around it."""
    return text.strip().strip("\ufeff\u200b").strip()


def texts_at(texts: pa.Array, rows: npt.NDArray[np.intp]) -> pa.Array:
    """Returns the texts of these rows, ascending; the column itself if that is all of them, since texts take long to copy."""
    return texts if len(rows) == len(texts) else texts.take(pa.array(rows))


_NO_TEXT = frozenset({"", "null"})
_NO_VALUE = frozenset({"", "null", "--", "n/a"})


class Kind:
    """A type of column: one exact rule, and the pattern of texts that are clean by this rule already."""

    arrow_type: ClassVar[pa.DataType] = pa.string()
    #: Blank cells, which become NULL.
    blank: ClassVar[frozenset[str]] = _NO_VALUE
    plain: ClassVar[str | None] = None
    #: No plain text is longer. In the pattern, a large bound takes longer to compile than a small file to read.
    plain_length: ClassVar[int | None] = None

    def rule(self, text: str, context: Context) -> Any:
        """Returns the value of a trimmed text that is not blank. Raises InvalidValue."""
        raise NotImplementedError

    def accepts(self, text: str, context: Context) -> bool:
        """Returns whether a text that is not blank has a value."""
        try:
            self.rule(trim(text), context)
        except InvalidValue:
            return False
        return True

    def is_blank(self, text: str) -> bool:
        """Returns whether a trimmed text means that there is no value."""
        return text.casefold() in self.blank

    def plain_texts(self, context: Context) -> str | None:
        """Returns the pattern of plain texts, if there is one."""
        return self.plain

    def clean(self, texts: pa.Array, context: Context) -> Cleaned:
        """Cleans a column of texts, none of them NULL; each distinct one once if they repeat much."""
        if len(texts) > SAMPLE and 2 * pc.count_distinct(texts.slice(0, SAMPLE)).as_py() < SAMPLE:
            encoded = texts.dictionary_encode()
            distinct = encoded.dictionary
            return self.clean_each(distinct, context).spread(encoded.indices, distinct, texts)
        return self.clean_each(texts, context)

    def clean_each(self, texts: pa.Array, context: Context) -> Cleaned:
        """Cleans texts, few of which are equal."""
        plain = self.plain_texts(context)
        if plain is None:
            return Cleaned(*self.by_rule(texts, context))
        is_plain = are_whole(texts, plain)
        if self.plain_length is not None:
            is_plain &= pc.binary_length(texts).to_numpy(zero_copy_only=False) <= self.plain_length
        rest = np.flatnonzero(~is_plain)
        if not len(rest):
            return Cleaned(texts)
        cleaned, reasons, judged = self.by_rule(texts_at(texts, rest), context)
        values = (
            cleaned if len(rest) == len(texts) else pc.replace_with_mask(texts, pa.array(~is_plain), cleaned)
        )
        return Cleaned(values, {int(rest[row]): reason for row, reason in reasons.items()}, judged)

    def by_rule(self, texts: pa.Array, context: Context) -> tuple[pa.Array, dict[int, Reason], pa.Array]:
        """Applies the rule once to each distinct text.

        Returns values, row -> reason where a cell is refused, and the distinct texts.
        """
        values, rows, reasons, distinct = self.by_distinct_text(texts, context)
        return pa.array(values, self.arrow_type).take(pa.array(rows)), reasons, distinct

    def by_distinct_text(
        self, texts: pa.Array, context: Context
    ) -> tuple[list[Any], npt.NDArray[np.int32], dict[int, Reason], pa.Array]:
        """Returns the distinct texts' values, each row's place among them, row -> reason, and the distinct texts."""
        encoded = texts.dictionary_encode()
        places = encoded.indices.to_numpy(zero_copy_only=False)
        values: list[Any] = []
        refused: dict[int, Reason] = {}
        for number, text in enumerate(map(trim, encoded.dictionary.to_pylist())):
            try:
                values.append(None if self.is_blank(text) else self.rule(text, context))
            except InvalidValue as error:
                values.append(None)
                refused[number] = error.reason
        reasons = {}
        if refused:
            rows = np.flatnonzero(np.isin(places, list(refused)))
            reasons = {int(row): refused[int(places[row])] for row in rows}
        return values, places, reasons, encoded.dictionary


def _not_longer(text: str, length: int) -> str:
    if len(text) > length:
        raise InvalidValue("too_long", f"at most {length} characters")
    return text


class Text(Kind):
    """Text, trimmed; blank and `null` are NULL."""

    blank = _NO_TEXT
    # A word of four letters may be `null`, and a long text may be too long: the rule decides about those.
    plain = r"^([!-~]{1,3}|[!-~]{5}[!-~]*|[!-~]+( [!-~]+)+)$"
    plain_length = 100

    def rule(self, text: str, context: Context) -> str:
        """See `Kind`."""
        return _not_longer(text, TEXT_LENGTH)


class Label(Kind):
    """A name that is compared or a key: trimmed, inner white space collapsed."""

    blank = _NO_TEXT

    def rule(self, text: str, context: Context) -> str:
        """See `Kind`."""
        return _not_longer(" ".join(_not_longer(text, TEXT_LENGTH).split()), LABEL_LENGTH)


_SPREADSHEET_ID = re.compile(r"\d(?:\.\d+)?E[+-]\d+|\d\.\d+E\d+|\d+\.0+", re.IGNORECASE)


class Identifier(Kind):
    """An id, verbatim but trimmed: `12E345` and all digits are legitimate, `1.2E+05` is refused."""

    blank = _NO_TEXT
    plain = r"^([A-Za-z0-9_-]{1,3}|[0-9]{4}|[A-Za-z0-9_-]{5}[A-Za-z0-9_-]*)$"
    plain_length = 50

    def rule(self, text: str, context: Context) -> str:
        """See `Kind`."""
        if _SPREADSHEET_ID.fullmatch(_not_longer(text, ID_LENGTH)):
            raise InvalidValue(
                "id_turned_into_a_number_by_a_spreadsheet",
                "the id as exported",
                "format the column as text before saving",
            )
        return text


def without_padding(text: str) -> str:
    """Strips zero padding from a job number (`003504` is `3504`); other texts are ids and stay verbatim."""
    return (text.lstrip("0") or "0") if re.fullmatch(r"[0-9]+", text) else text


class JobNumber(Identifier):
    """A job's number: zero padding is stripped from digits."""

    plain = r"^[1-9][0-9]{0,30}$"

    def rule(self, text: str, context: Context) -> str:
        """See `Kind`."""
        return without_padding(super().rule(text, context))


_SIGNS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})
_AMOUNT = re.compile(r"(?P<whole>\d+|\d{1,3}(?:[,\u00a0\u202f]\d{3})+|)(?:\.(?P<cents>\d+))?")
_COMMA_AMOUNT = re.compile(r"(?P<whole>\d+|\d{1,3}(?:[.\u00a0\u202f]\d{3})+|)(?:,(?P<cents>\d+))?")
_MONEY_FORM = re.compile(
    r"(?P<open>\()?\s*(?P<sign>[+-])?\s*\$?\s*(?P<inner>[+-])?\s*(?P<number>[\d.,\u00a0\u202f]+)\s*(?P<after>-)?\s*(?P<close>\))?"
)


def read_decimal(text: str, decimals: int, limit: Decimal, *, decimal_comma: bool = False) -> Decimal | None:
    """Reads an amount or another decimal exactly; a blank one is None. Never rounds, and never reads nothing as 0.

    Accepts a sign before or after the number, parentheses for negative amounts, a dollar sign and thousands separators.
    Raises InvalidValue for anything else, for more decimals than `decimals`, and from `limit` on.
    """
    accepted = (
        f"a number like {'1.234,50' if decimal_comma else '1234.50, $1,234.50, -20 or (20.00)'}, "
        f"at most {decimals} decimals, below {limit:,}"
    )
    text = trim(text)
    if text.casefold() in _NO_VALUE:
        return None
    form = _MONEY_FORM.fullmatch(text.translate(_SIGNS)) if len(text) <= 60 else None
    number = form and (_COMMA_AMOUNT if decimal_comma else _AMOUNT).fullmatch(
        form["number"].strip("\u00a0\u202f")
    )
    if not form or not number or not (number["whole"] or number["cents"]):
        ambiguous = re.fullmatch(r"[^,]*\d\.\d{3},\d+.*|\D*\d+,\d{1,2}\D*", text)
        raise InvalidValue("ambiguous_decimal_separator" if ambiguous else "not_a_number", accepted)
    signs = [form["sign"], form["inner"], form["after"], form["open"]]
    if bool(form["open"]) != bool(form["close"]) or sum(sign is not None for sign in signs) > 1:
        raise InvalidValue("ambiguous_sign", accepted)
    cents = number["cents"] or ""
    if len(cents) > decimals:
        raise InvalidValue("too_many_decimals", accepted)
    value = Decimal((re.sub(r"\D", "", number["whole"]) or "0") + (f".{cents}" if cents else ""))
    if value >= limit:
        raise InvalidValue("too_large", accepted)
    negative = form["open"] or "-" in (form["sign"], form["inner"], form["after"])
    return -value if negative and value else value


def _plain(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")


@dataclass(frozen=True)
class Money(Kind):
    """An amount as exact decimal text, in dollars."""

    decimals: int = 2
    limit: Decimal = MONEY_LIMIT
    #: Whether an amount may be below zero.
    negative: bool = True

    def plain_texts(self, context: Context) -> str:
        """See `Kind`. With a decimal comma, `1.23` is invalid: only whole numbers are plain."""
        cents = "" if context.decimal_comma else rf"(\.[0-9]{{1,{self.decimals}}})?"
        sign = "-?" if self.negative else ""
        return rf"^({sign}[1-9][0-9]{{0,6}}|0){cents}$"

    def rule(self, text: str, context: Context) -> str | None:
        """See `Kind`."""
        value = read_decimal(text, self.decimals, self.limit, decimal_comma=context.decimal_comma)
        if value is not None and value < 0 and not self.negative:
            raise InvalidValue("negative_amount", "an amount from 0 up")
        return _plain(value)


class Dollars(Kind):
    """The currency of a record's amounts: dollars, since amounts of several currencies have no sum."""

    def rule(self, text: str, context: Context) -> str:
        """See `Kind`."""
        if text.casefold() not in ("usd", "us$", "$"):
            raise InvalidValue(
                "not_in_dollars", "USD or blank", "convert the amounts to dollars, or leave these records out"
            )
        return "USD"


class Micros(Kind):
    """Millionths of a dollar (Google's `cost_micros`) as dollars, unrounded decimal text."""

    def rule(self, text: str, context: Context) -> str | None:
        """See `Kind`."""
        if not re.fullmatch(r"-?[0-9]{1,30}", text) or abs(int(text)) >= MONEY_LIMIT * 10**6:
            raise InvalidValue("not_a_number_of_micros", "whole millionths of a dollar like 2520000000")
        return _plain(Decimal(text).scaleb(-6))


class Ratio(Kind):
    """A ratio between 0 and 1 with at most four decimals; `35%` is 0.35."""

    def rule(self, text: str, context: Context) -> str | None:
        """See `Kind`."""
        percent = text.endswith("%")
        try:
            value = read_decimal(
                text.removesuffix("%"),
                2 if percent else 4,
                Decimal(1000),
                decimal_comma=context.decimal_comma,
            )
        except InvalidValue:
            value = Decimal(-1)
        if value is not None and percent:
            value = value / 100
        if value is not None and not 0 <= value <= 1:
            raise InvalidValue("not_a_ratio", "0 to 1 with at most 4 decimals like 0.35, or 35%")
        return _plain(value)


class WholeNumber(Kind):
    """A whole number from 0 up to nine digits."""

    arrow_type = pa.int32()

    def rule(self, text: str, context: Context) -> int:
        """See `Kind`."""
        thousands = "." if context.decimal_comma else ","
        if not re.fullmatch(rf"[0-9]{{1,9}}|[0-9]{{1,3}}([{thousands}][0-9]{{3}}){{1,2}}", text):
            raise InvalidValue("not_a_whole_number", f"a number like 120 or 1{thousands}200")
        return int(text.replace(thousands, ""))


class Duration(Kind):
    """A duration in whole seconds."""

    arrow_type = pa.int32()

    def rule(self, text: str, context: Context) -> int:
        """See `Kind`."""
        return read_duration(text, hours_are_minutes=context.hours_are_minutes)


@dataclass(frozen=True)
class When(Kind):
    """A time in UTC, with its local date. `Zone.to_utc` has the rule for daylight saving time."""

    plain = (
        r"^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[ T]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$"
    )
    without_year: bool = False  #: the weekday and the export's date tell the year

    def clean_each(self, texts: pa.Array, context: Context) -> Cleaned:
        """See `Kind`."""
        as_written, aware, known, reasons, judged = self._read(texts, context)
        utc, dst_ambiguous = context.zone.to_utc(as_written)
        utc = np.where(aware, as_written, utc)
        days = context.zone.local_days(utc)
        outside = known & ((days < _FIRST_DAY) | (days > _LAST_DAY))
        out_of_range = Reason("year_out_of_range", accepted=accepted_dates(context.date_order))
        reasons |= dict.fromkeys(np.flatnonzero(outside).tolist(), out_of_range)
        known &= ~outside
        return Cleaned(
            pa.array(utc.view("datetime64[us]"), TIMESTAMP, mask=~known),
            reasons,
            judged,
            pa.array(days.astype("datetime64[D]"), pa.date32(), mask=~known),
            dst_ambiguous & known & ~aware,
        )

    def _read(
        self, texts: pa.Array, context: Context
    ) -> tuple[Int64, Mask, Mask, dict[int, Reason], pa.Array | None]:
        """Returns microseconds since 1970, whether they are UTC, whether there is a time at all, reasons, judged texts."""
        known = are_whole(texts, self.plain)
        as_written = np.zeros(len(texts), dtype=np.int64)
        aware = np.zeros(len(texts), dtype=np.bool_)
        if known.any():
            try:
                plain = pc.cast(texts.filter(pa.array(known)), pa.timestamp("us"))
                as_written[known] = plain.to_numpy(zero_copy_only=False).astype(np.int64)
            except pa.ArrowInvalid:
                # One of them is a date like April 31, which the rule refuses.
                known[:] = False
        rest = np.flatnonzero(~known)
        if not len(rest):
            return as_written, aware, known, {}, None
        moments, places, refused, judged = self.by_distinct_text(texts_at(texts, rest), context)
        as_written[rest] = np.array([moment.microseconds if moment else 0 for moment in moments], np.int64)[
            places
        ]
        aware[rest] = np.array([bool(moment and moment.aware) for moment in moments])[places]
        known[rest] = np.array([moment is not None for moment in moments])[places]
        reasons = {int(rest[row]): reason for row, reason in refused.items()}
        return as_written, aware, known, reasons, judged

    def is_blank(self, text: str) -> bool:
        """See `Kind`."""
        return super().is_blank(text) or is_zero_date(text)

    def rule(self, text: str, context: Context) -> Moment:
        """See `Kind`."""
        if self.without_year:
            return read_call_time(text, context.date_order, context.exported_on)
        return read_moment(text, context.date_order)


@dataclass(frozen=True)
class CalendarDay(Kind):
    """A date without a time of day, or with `month` a month as its first day."""

    arrow_type = pa.date32()
    month: bool = False

    def is_blank(self, text: str) -> bool:
        """See `Kind`."""
        return super().is_blank(text) or is_zero_date(text)

    def rule(self, text: str, context: Context) -> date:
        """See `Kind`."""
        value = (read_month if self.month else read_day)(text, context.date_order)
        if not FIRST_YEAR <= value.year <= LAST_YEAR:
            accepted = ACCEPTED_MONTHS if self.month else accepted_days(context.date_order)
            raise InvalidValue("year_out_of_range", accepted)
        return value
