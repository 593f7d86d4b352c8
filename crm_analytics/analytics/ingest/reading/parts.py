"""Tells parts of an amount from repeats of it, in files that replace whole months.

Several records with one key are an amount that the report splits further, or one that it repeats. Adding up repeats
counts money twice, and collapsing parts loses it, so a file that leaves it open is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.reading.csv_records import Block
from crm_analytics.analytics.ingest.reading.header import HeaderMatch
from crm_analytics.analytics.ingest.reading.summary_lines import SummaryLines
from crm_analytics.analytics.ingest.reading.totals import TotalLine, add_up, compare, dollars, exact
from crm_analytics.analytics.ingest.sources.declaration import Source, fold_header
from crm_analytics.analytics.ingest.values.column_types import Mask
from crm_analytics.core.wording import counted, listed

_SEPARATOR, _SHOWN_SEPARATOR = "\x1f", "\u241f"
#: Columns that a batch has besides the staged ones, until its file is settled: the cells of a record that no column
#: claims, and those of them that are known to split an amount.
_OTHER_CELLS, _DIMENSIONS = "(other cells)", "(dimensions)"


@dataclass(frozen=True)
class Settled:
    """The records that count, and how many others there were."""

    rows: pa.Table
    duplicates: int
    summary_lines: int


def with_cells(
    rows: pa.Table, block: Block, kept: npt.NDArray[np.intp], header: HeaderMatch, source: Source
) -> pa.Table:
    """Adds to a batch what tells its records apart besides the columns of the source."""
    others = _unclaimed(header)
    splitting = [number for number in others if fold_header(header.cells[number]) in source.splitting_headers]
    for name, positions in ((_OTHER_CELLS, others), (_DIMENSIONS, splitting)):
        columns = (block.columns[number].take(pa.array(kept)) for number in positions)
        cells = [
            pc.replace_substring(pc.utf8_trim_whitespace(c), _SEPARATOR, _SHOWN_SEPARATOR) for c in columns
        ]
        rows = rows.append_column(name, _joined(cells, len(kept)))
    return rows


def without_cells(rows: pa.Table) -> pa.Table:
    """Returns a batch with nothing but the staged columns."""
    return rows.drop_columns([_OTHER_CELLS, _DIMENSIONS])


def _unclaimed(header: HeaderMatch) -> list[int]:
    claimed = set(header.positions.values())
    return [number for number in range(len(header.cells)) if number not in claimed]


def _joined(texts: list[pa.Array], length: int) -> pa.Array:
    if not texts:
        return pa.array([""] * length, pa.string())
    return pc.binary_join_element_wise(*texts, _SEPARATOR, null_handling="replace", null_replacement="")


@dataclass(frozen=True)
class _Records:
    """The records of a file, compared with each other."""

    rows: pa.Table
    amounts: pa.ChunkedArray
    #: By record, the number of its key with all cells, and of its key with the cells that are known to split it.
    contents: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]

    @cached_property
    def costly(self) -> Mask:
        """Which records have an amount; others change no sum, however they are read."""
        costly: Mask = pc.not_equal(self.amounts, 0).to_numpy()
        return costly

    def total(self, which: Mask) -> Decimal:
        """Returns the sum of these records."""
        return add_up(self.amounts.filter(pa.array(which)))

    def distinct(self, which: Mask) -> Mask:
        """Returns these records without those that are identical with an earlier one."""
        chosen = np.flatnonzero(which)
        _, first = np.unique(self.contents[chosen], return_index=True)
        found = np.zeros(len(which), dtype=np.bool_)
        found[chosen[first]] = True
        return found

    def unexplained(self, which: Mask) -> Mask:
        """Returns which of these records differ from another with their key, but in no cell that is known to split."""
        distinct = np.flatnonzero(self.distinct(which) & self.costly)
        _, group, size = np.unique(self.parts[distinct], return_inverse=True, return_counts=True)
        found = np.zeros(len(which), dtype=np.bool_)
        found[distinct] = size[group] > 1
        return found


def settle(rows: pa.Table, totals: SummaryLines, rejected: int, left_out: str) -> Settled:
    """Decides what a file's records with one key are, and which of the lines in doubt are records.

    The file's own total decides where there is one. Without it, records that a known column tells apart are parts,
    identical ones are repeats, and any others refuse the file.

    Args:
        rows: all batches of the file, with cells.
        totals: its summary lines.
        rejected: how many records were rejected.
        left_out: the same in words.

    Raises:
        RefusedFile: if the file's total is not the sum of its records, or if only a total could tell the sum.
    """
    source, facts = totals.source, totals.facts
    assert source.summed is not None
    header = facts.mapping[source.summed]
    records = _compared(rows, source)
    everything = np.ones(rows.num_rows, dtype=np.bool_)
    doubtful = pa.array([line.record_no for line in totals.doubtful], pa.int64())
    certain = ~pc.is_in(rows["record_no"], doubtful).to_numpy()
    if totals.disagreeing:
        raise RefusedFile(facts.file, _no_subtotal(header, totals.disagreeing[0], left_out))

    verdict = None
    for base in (certain, everything):
        for chosen in (base, records.distinct(base)):
            agreed = compare(totals.whole(), records.total(chosen), int(chosen.sum()), rejected)
            if agreed and agreed.agrees:
                return _settled(records, base, chosen)
            if base is certain:
                verdict = agreed
    chosen = records.distinct(certain)
    repeats = int((certain & ~chosen & records.costly).sum())
    if verdict is None:
        unsure = [line for line in totals.doubtful if not line.sure]
        if unsure:
            raise RefusedFile(facts.file, _total_or_record(header, unsure[0], records, certain))
        if records.unexplained(certain).any() or (repeats and not _are_copies(records, chosen, totals)):
            raise RefusedFile(facts.file, _parts_or_repeats(records, certain, totals))
        return _settled(records, certain, chosen)
    once = f", {counted(repeats, 'repeat')} counted once" if repeats else ""
    reasons = [verdict.disagreement(header, left_out + once)]
    if repeats or records.unexplained(certain).any():
        reasons.append(_parts_or_repeats(records, certain, totals))
    raise RefusedFile(facts.file, *reasons)


def _are_copies(records: _Records, once: Mask, totals: SummaryLines) -> bool:
    """Returns whether repeats count once: the file has no totals, or is several copies of a file with its total."""
    plain = [line for line in totals.lines if line.plain]
    verdicts = [compare([line], records.total(once), int(once.sum()), 0) for line in plain]
    return not totals.has_groups or (bool(plain) and all(verdict and verdict.agrees for verdict in verdicts))


def _compared(rows: pa.Table, source: Source) -> _Records:
    """Numbers what tells the records apart: equal numbers are equal texts."""
    amounts = exact(rows[source.summed])
    key = [pc.cast(rows[name], pa.string()) for name in source.key.record_columns]
    contents = [*key, pc.cast(amounts, pa.string()), rows[_OTHER_CELLS]]
    parts = [*key, rows[_DIMENSIONS]]
    numbers = (
        _joined(texts, rows.num_rows).combine_chunks().dictionary_encode().indices.to_numpy()
        for texts in (contents, parts)
    )
    return _Records(rows, amounts, *numbers)


def _settled(records: _Records, base: Mask, chosen: Mask) -> Settled:
    rows = without_cells(records.rows).filter(pa.array(chosen))
    return Settled(rows, int(base.sum() - chosen.sum()), int((~base).sum()))


def _no_subtotal(header: str, line: TotalLine, left_out: str) -> Reason:
    assert line.amount is not None
    records, total = line.above
    difference = total - line.amount
    return Reason(
        "subtotal_disagrees",
        header,
        f"{line}; sum of the {counted(records, 'record')} above it: {dollars(total)}, {dollars(abs(difference))}"
        f" {'more' if difference > 0 else 'less'}; {left_out}",
        "a subtotal that is the sum of the records above it, give or take half a cent for each",
        "correct the records or the subtotal, or export the file again without subtotals",
    )


def _total_or_record(header: str, line: TotalLine, records: _Records, certain: Mask) -> Reason:
    assert line.amount is not None and line.span is not None
    without = records.total(certain)
    above = counted(line.span[1] - line.span[0], "record")
    return Reason(
        "total_or_record",
        header,
        f"{line}, which is also the sum of {above} above it; the file's sum is {dollars(without)} if the line is a total"
        f" and {dollars(without + line.amount)} if it is a record",
        "a file whose last line is its total, which decides",
        "add that line, or remove this one if it is a total",
    )


def _parts_or_repeats(records: _Records, certain: Mask, totals: SummaryLines) -> Reason:
    """Describes the first records of which nothing tells whether they are parts or repeats, and both sums of the file."""
    source, which = totals.source, records.unexplained(certain)
    if not which.any():
        which = certain & records.costly & ~records.distinct(certain)
    (first, *_) = np.flatnonzero(which)
    same = np.flatnonzero(certain & (records.parts == records.parts[first]))
    rows = records.rows.take(pa.array(same)).to_pylist()
    numbers = listed([row["record_no"] for row in rows])
    cells = zip(*(row[_OTHER_CELLS].split(_SEPARATOR) for row in rows), strict=True)
    labels = [totals.header.labels[number] for number in _unclaimed(totals.header)]
    differing = [label for label, found in zip(labels, cells, strict=False) if len(set(found)) > 1]
    if len({Decimal(row[source.summed]) for row in rows}) > 1:
        differing.append(totals.facts.mapping[source.summed or ""])
    least, most = _one_of_each(records, certain)
    once = dollars(least) if least == most else f"from {dollars(least)} to {dollars(most)}"
    part = source.key.columns[-1]
    known = ", ".join(source.month_totals.splits[:4]) if source.month_totals else ""
    return Reason(
        "parts_or_repeats",
        None,
        f"{counted(len(rows), 'record')} of {_named(rows[0], source)} (records {numbers}) "
        + (f"that differ in {', '.join(differing)}" if differing else "that are identical")
        + f"; the file's sum is {dollars(records.total(certain))} if such records are parts, {once} if they repeat one"
        " another",
        f"one record for each {part} and date, records that a column like {known} tells apart,"
        " or a total that agrees with one of these sums",
        "export the file with its total line, or without the columns that split it",
    )


def _one_of_each(records: _Records, certain: Mask) -> tuple[Decimal, Decimal]:
    """Returns the least and the greatest sum of the records if one of each part counts."""
    chosen = pa.table({"part": records.parts, "amount": records.amounts}).filter(pa.array(certain))
    found = chosen.group_by("part").aggregate([("amount", "min"), ("amount", "max")])
    return add_up(found["amount_min"]), add_up(found["amount_max"])


def _named(row: dict[str, Any], source: Source) -> str:
    """Names the key of a record: its narrowest date, and its texts."""
    key = {name: row[name] for name in source.key.record_columns if row[name]}
    dates = [
        f"{value:%Y-%m}" if name == source.date_column else f"{value}"
        for name, value in key.items()
        if isinstance(value, date)
    ]
    return ", ".join([*dates[:1], *(value for value in key.values() if isinstance(value, str))])
