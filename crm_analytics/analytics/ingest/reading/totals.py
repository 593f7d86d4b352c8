"""Compares a file's own totals with the sum of its records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason

_CENT_FRACTION = Decimal("0.005")
_EXACT = pa.decimal128(38, 6)


@dataclass(frozen=True)
class TotalLine:
    """A line that states a total."""

    record_no: int
    line_no: int
    label: str
    #: None if it has none that can be read.
    amount: Decimal | None
    #: Which records it adds up, as a half-open range counted from the first one; None if it is the sum of none.
    span: tuple[int, int] | None
    #: How many records are between it and the last summary line above it, and their sum.
    above: tuple[int, Decimal]
    #: Whether it begins with a label that is nothing but a total's, and has no date or the label in place of an id.
    plain: bool
    #: Whether it is certainly not a record, unless the file's total contradicts.
    sure: bool = True

    def __str__(self) -> str:
        """Names the line for messages."""
        return f"line {self.line_no}, {self.label}: {dollars(self.amount or Decimal(0))}"


def tolerance(records: int) -> Decimal:
    """Returns by how much a total may differ from the sum of its records, each of which was rounded to the cent."""
    return max(records, 1) * _CENT_FRACTION


def dollars(amount: Decimal) -> str:
    """Formats an amount for messages: to the cent, or to the millionth if it has more decimals."""
    return f"{amount:,.2f}" if amount == round(amount, 2) else f"{amount:,.6f}"


def add_up(amounts: pa.Array | pa.ChunkedArray) -> Decimal:
    """Returns the exact sum of an `exact` column; NULL counts as nothing."""
    found = pc.sum(amounts).as_py()
    return Decimal(0) if found is None else found


def exact(amounts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Returns amounts, which are decimal texts, as numbers."""
    return pc.cast(amounts, _EXACT)


@dataclass(frozen=True)
class Verdict:
    """What a file's own totals say about the sum that is stored from it."""

    #: The total that decides.
    stated: TotalLine
    stored: Decimal
    agrees: bool
    #: Larger totals, of more than the file's records.
    wider: list[TotalLine]

    def warnings(self, header: str, left_out: str) -> list[str]:
        """Returns what a person should know; `header` is the amount's, `left_out` tells what was not accepted."""
        if not self.agrees:
            return [str(self.disagreement(header, left_out))]
        return [
            f"{line}, {dollars((line.amount or Decimal(0)) - self.stored)} more than the records of this file: it adds up"
            " something that the file does not have"
            for line in self.wider
        ]

    def disagreement(self, header: str, left_out: str) -> Reason:
        """Returns why the file's own total is not believed to be what is stored."""
        difference = self.stored - (self.stated.amount or Decimal(0))
        found = (
            f"{self.stated}; sum of the accepted records: {dollars(self.stored)}, "
            f"{dollars(abs(difference))} {'more' if difference > 0 else 'less'}; {left_out}"
        )
        return Reason(
            "total_disagrees",
            header,
            found,
            "a total that is the sum of the records, give or take half a cent for each",
            "correct what was not accepted, or export the file again with all of its records",
        )


def compare(lines: Iterable[TotalLine], stored: Decimal, records: int, rejected: int) -> Verdict | None:
    """Compares the totals of a whole file with the sum of its accepted records; None if it has no total.

    The narrowest total that covers the records decides. Which one that is shows in its amount: it agrees, and wider ones
    are larger. If records were rejected, one that agrees may leave them out, so that only the largest is believed.
    """
    stated = [(line.amount, line) for line in lines if line.amount is not None]
    if not stated:
        return None
    margin = tolerance(records)
    within = [line for amount, line in stated if abs(amount - stored) <= margin]
    larger = sorted(
        ((amount, line) for amount, line in stated if amount > stored + margin), key=lambda pair: pair[0]
    )
    wider = [line for _, line in larger]
    if within and not (wider and rejected):
        return Verdict(within[0], stored, True, wider)
    nearest = wider[0] if wider else max(stated, key=lambda pair: pair[0])[1]
    return Verdict(nearest, stored, False, wider)
