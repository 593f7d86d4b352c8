"""Conventions that an export follows without saying so, judged by its own cells.

The order of numeric dates and the decimal mark are declared for a source, and a duration's hours are hours. Cells that
disprove a convention put the whole file in doubt, because its other cells may have been misread without an error. The
file is then read once more by the other convention, or refused; see docs/decisions/conventions-of-files.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, quotable
from crm_analytics.analytics.ingest.sources.declaration import Column, FileFacts, Source
from crm_analytics.analytics.ingest.values.column_types import (
    CalendarDay,
    Context,
    Duration,
    Kind,
    Money,
    Ratio,
    When,
    trim,
)
from crm_analytics.analytics.ingest.values.dates import (
    CLOCK_WITH_HOURS,
    NUMERIC_DATE,
    DateOrder,
    date_under,
)
from crm_analytics.analytics.ingest.values.patterns import are_whole

#: Durations so long that they were minutes and seconds, if all are whole minutes; else only if one lasts days.
ABSURD, ABSURD_AMONG_SECONDS = 2 * 3600, 24 * 3600
_EXPORT_TOLERANCE = timedelta(days=1)


class ReadDifferently(Exception):
    """Raised where the file has to be read again from its start, in another context."""

    def __init__(self, context: Context, warning: str) -> None:
        super().__init__(warning)
        self.context = context
        self.warning = warning


@dataclass(frozen=True)
class Cells:
    """A column's cells in a block of records."""

    column: Column
    kind: Kind
    header: str
    position: int
    texts: pa.Array
    judged: pa.Array | None  #: the distinct texts that the kind's rule had to judge
    lines: Callable[[], npt.NDArray[np.int64]]

    def example(self, text: str) -> Example:
        """Returns one of the texts with its place."""
        row = pc.index(self.texts, text).as_py()
        return Example(self.header, quotable(text.strip()), int(self.lines()[row]), self.column.personal)


class Example(NamedTuple):
    """A cell that messages quote, unless it is personal."""

    header: str
    text: str
    line: int
    personal: bool

    def __str__(self) -> str:
        return f"the cell in line {self.line}" if self.personal else f"{self.text} in line {self.line}"


@dataclass
class Conventions:
    """Notes the cells of one file while they stream past, and decides how the file is to be read."""

    source: Source
    facts: FileFacts
    #: Positions of a sheet's columns with times that are shown without seconds.
    shown_to_the_minute: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._dates = _Dates(self.source, self.facts)
        self._amounts = _Amounts(self.source, self.facts)
        self._durations = _Durations(self.facts)

    def note(self, cells: Cells) -> None:
        """Notes a column's cells. Raises ReadDifferently, or RefusedFile, if they leave no choice."""
        if isinstance(cells.kind, When | CalendarDay):
            self._dates.note(cells)
        elif isinstance(cells.kind, Money | Ratio):
            self._amounts.note(cells)
        elif isinstance(cells.kind, Duration):
            self._durations.note(cells)

    def conclude(self) -> list[str]:
        """Decides what only all cells together tell; returns warnings. Raises as `note` does."""
        context = self.facts.context
        comma, comma_warning = self._amounts.decide()
        if comma != context.decimal_comma:
            raise ReadDifferently(replace(context, decimal_comma=comma), comma_warning)
        minutes, minutes_warning = self._durations.decide(self.shown_to_the_minute)
        if minutes != context.hours_are_minutes:
            raise ReadDifferently(replace(context, hours_are_minutes=minutes), minutes_warning)
        return [minutes_warning] if minutes_warning else []


class _Dates:
    """The order of numeric dates, which holds for every column of a file: one tool writes one form."""

    def __init__(self, source: Source, facts: FileFacts) -> None:
        context = facts.context
        self.source, self.facts = source, facts
        self.order, self.other = context.date_order, _other(context.date_order)
        #: The file is day first against the declaration, so every date must show that it is.
        self.only_dotted = self.order != source.date_order
        self.limit = context.exported_on + _EXPORT_TOLERANCE if context.export_named else date.max
        #: A date with two readings, which a refusal quotes.
        self.ambiguous: Example | None = None

    def note(self, cells: Cells) -> None:
        """Looks for dates that the order doesn't fit; all others are settled here at little cost."""
        # the pattern takes much longer to compile than a small file's dates to be looked through
        if cells.judged is None or not any(
            pc.any(pc.match_substring(cells.judged, mark)).as_py() for mark in "/.-"
        ):
            return
        parts = pc.extract_regex(cells.judged, NUMERIC_DATE)
        numeric = parts.is_valid()
        texts, parts = cells.judged.filter(numeric), parts.filter(numeric)
        if not len(texts):
            return
        first, second, year = (
            pc.cast(pc.struct_field(parts, name), pa.int32()).to_numpy()
            for name in ("first", "second", "year")
        )
        dotted = pc.equal(pc.struct_field(parts, "mark"), ".").to_numpy(zero_copy_only=False)
        month, day = (first, second) if self.order == "mdy" else (second, first)
        # with zeros there is no date
        ambiguous = (first <= 12) & (second <= 12) & (first != second) & (first * second > 0)
        odd = month > 12
        if _is_month(cells):
            odd |= ambiguous & (month == 1)
        odd |= dotted if self.order == "mdy" else ~dotted & self.only_dotted
        if self._dates_records(cells):
            limit = self.limit.year * 10_000 + self.limit.month * 100 + self.limit.day
            odd |= ambiguous & (year * 10_000 + month * 100 + day > limit)
        if self.ambiguous is None and ambiguous.any():
            self.ambiguous = cells.example(texts[int(np.argmax(ambiguous))].as_py())
        for row in np.flatnonzero(odd).tolist():
            self._judge(cells, texts[row].as_py(), bool(dotted[row]))

    def _dates_records(self, cells: Cells) -> bool:
        """Returns whether the column tells a record's day, which is over when it is exported."""
        return cells.column.name in self.source.date_givers and not _is_month(cells)

    def _judge(self, cells: Cells, text: str, dotted: bool) -> None:
        """Settles what a date means that the order seems not to fit; one that fits neither is just a bad record."""
        readings = self._readings(cells, text)
        here, there = readings.get(self.order), readings.get(self.other)
        disproved_by_dots = dotted and self.order == "mdy"
        if disproved_by_dots and there:
            warning = (
                f"numeric dates were read day first, because {cells.header} has dates with dots, which no American tool"
                f" writes: {cells.example(text)} is {there}"
            )
            raise ReadDifferently(replace(self.facts.context, date_order=self.other), warning)
        late = bool(here and there and here > self.limit and self._dates_records(cells))
        without_dots = self.only_dotted and not dotted
        if readings and (not here or disproved_by_dots or late or without_dots):
            raise self._refusal(cells.example(text), readings, late, without_dots)

    def _readings(self, cells: Cells, text: str) -> dict[DateOrder, date]:
        """Returns the dates that a text can be, by order; those of a column of months are first days."""
        orders: tuple[DateOrder, ...] = ("mdy", "dmy")
        found = {
            order: day
            for order in orders
            if (day := date_under(trim(text), order))
            and cells.kind.accepts(text, replace(self.facts.context, date_order=order))
        }
        first_days = {order: day for order, day in found.items() if day.day == 1}
        return first_days if first_days and _is_month(cells) else found

    def _refusal(
        self, example: Example, readings: dict[DateOrder, date], late: bool, without_dots: bool
    ) -> RefusedFile:
        mdy, dmy = (readings.get(order, "no date") for order in ("mdy", "dmy"))
        found = f"{example} is {mdy} with the month first, {dmy} with the day first"
        if without_dots:
            found += ", and other dates of this file have dots"
        if late:
            found += f", and the file was exported on {self.facts.context.exported_on}"
        elif self.ambiguous and self.ambiguous.text != example.text:
            month_first, day_first = (date_under(self.ambiguous.text, order) for order in ("mdy", "dmy"))
            found += f"; {self.ambiguous} is {month_first} or {day_first}"
        how = "month first" if self.source.date_order == "mdy" else "day first"
        accepted = (
            f"numeric dates that are all {how}, as {self.source.name} declares, and not after the export"
        )
        if self.source.date_order == "mdy":
            accepted += "; or all with dots, which are read day first"
        remedy = (
            "export the dates as YYYY-MM-DD; or if this tool always writes them the other way round, change date_order"
            " in the source's declaration"
        )
        reason = Reason("order_of_day_and_month_in_doubt", example.header, found, accepted, remedy)
        return RefusedFile(self.facts.file, reason)


def _other(order: DateOrder) -> DateOrder:
    return "dmy" if order == "mdy" else "mdy"


def _is_month(cells: Cells) -> bool:
    return isinstance(cells.kind, CalendarDay) and cells.kind.month


#: For pyarrow: an amount with a decimal point.
_PLAIN_WITH_POINT = r"^-?[0-9]+\.[0-9]{1,2}$"
#: A separator before exactly three digits, which may be thousands or a rounding error.
_MAYBE_THOUSANDS = re.compile(r"[^.,]*[.,]\d{3}\D*")


class _Amounts:
    """The decimal mark, which holds for every amount of a file.

    No amount has two readings (1,234 is no amount with a decimal comma, since it has at most two decimals). So nothing is
    misread where a file shows both marks, or where a single amount is out of line: only its record is quarantined.
    """

    def __init__(self, source: Source, facts: FileFacts) -> None:
        self.facts = facts
        context = facts.context
        self.comma = context.decimal_comma
        self.other = replace(context, decimal_comma=not self.comma)
        #: Nothing is left to find out: a cell proves the mark, or all cells of an earlier reading proved the other one.
        self.settled = self.comma != source.decimal_comma
        #: Two of them are a habit, and so is one in a file that is day first.
        self.disproofs: list[Example] = []
        self.objection: Example | None = None

    def note(self, cells: Cells) -> None:
        """Looks for amounts that fit only one of the marks."""
        if self.settled:
            return
        if not self.comma and are_whole(cells.texts, _PLAIN_WITH_POINT).any():
            self.settled = True
            return
        if cells.judged is None:
            return
        for text in cells.judged.filter(pc.match_substring_regex(cells.judged, "[.,]")).to_pylist():
            here, there = (cells.kind.accepts(text, context) for context in (self.facts.context, self.other))
            if here == there:
                continue
            certain = not _MAYBE_THOUSANDS.fullmatch(text)
            if here and certain:
                self.settled = True
                return
            if here and self.objection is None:
                self.objection = cells.example(text)
            elif there and certain and not self.disproofs[1:]:
                example = cells.example(text)
                if not self.disproofs or self.disproofs[0].text != example.text:
                    self.disproofs.append(example)

    def decide(self) -> tuple[bool, str]:
        """Returns whether amounts have a decimal comma, and the warning if this isn't the declaration's."""
        enough = 1 if self.facts.context.date_order == "dmy" else 2
        if self.settled or len(self.disproofs) < enough:
            return self.comma, ""
        disproof, objection = self.disproofs[0], self.objection
        mark, other = ("comma", "point") if self.comma else ("point", "comma")
        if objection is None:
            warning = (
                f"amounts were read with a decimal {other}, because some make no sense with a {mark}, and none requires"
                f" one: {disproof.header} is {disproof}"
            )
            return not self.comma, warning
        reason = Reason(
            "decimal_mark_in_doubt",
            disproof.header,
            found=f"{disproof} can only have a decimal {other}, {objection} only a decimal {mark}",
            accepted=f"amounts that all have a decimal {mark}, or all a decimal {other}",
            remedy="export amounts in one form like 1234.50",
        )
        raise RefusedFile(self.facts.file, reason)


#: For pyarrow: a duration without hours that is no whole number of minutes.
_MINUTES_AND_SECONDS = r"^\s*[0-9]{1,4}:([0-5][1-9]|[1-5]0)\s*$"


class _Durations:
    """Whether a spreadsheet took minutes and seconds (3:25) for hours and minutes (3:25:00)."""

    def __init__(self, facts: FileFacts) -> None:
        self.settled = self.hours_are_minutes = facts.context.hours_are_minutes
        self.absurd = ABSURD
        self.longest = 0
        self.example: Example | None = None
        self.several = False
        self.positions: set[int] = set()

    def note(self, cells: Cells) -> None:
        """Looks at durations with hours: a single one with seconds proves that they are hours."""
        if self.settled or cells.judged is None:
            return
        if pc.any(pc.match_substring_regex(cells.judged, _MINUTES_AND_SECONDS)).as_py():
            self.absurd = ABSURD_AMONG_SECONDS
        parts = pc.extract_regex(cells.judged, CLOCK_WITH_HOURS)
        clocks = parts.is_valid()
        texts, parts = cells.judged.filter(clocks), parts.filter(clocks)
        hours, minutes, seconds = (
            pc.cast(pc.struct_field(parts, name), pa.int32()).to_numpy()
            for name in ("hours", "minutes", "seconds")
        )
        if seconds.any():
            self.settled = True
            return
        lengths = hours * 3600 + minutes * 60
        if not lengths.any():
            return
        self.positions.add(cells.position)
        known = {self.longest, 0}
        self.several |= len(known | set(lengths.tolist())) > 2
        if lengths.max() > self.longest:
            self.longest = int(lengths.max())
            self.example = cells.example(texts[int(lengths.argmax())].as_py())

    def decide(self, shown_to_the_minute: set[int]) -> tuple[bool, str]:
        """Returns whether hours are minutes, and a warning if they are or may be."""
        if self.settled or self.example is None:
            return self.hours_are_minutes, ""
        what = f"the durations of {self.example.header} with hours have no seconds (the longest is {self.example})"
        if self.positions & shown_to_the_minute or self.longest >= self.absurd:
            return True, (
                f"{what}, so they were read as minutes and seconds, which a spreadsheet took for hours and minutes"
            )
        if self.several:
            return False, (
                f"{what}; if a spreadsheet took minutes and seconds for hours and minutes, load the file as it was exported"
            )
        return False, ""
