"""Which cells of a header row are which columns of a source, and which row is the header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from crm_analytics.analytics.ingest.sources.declaration import Source, fold_header


@dataclass(frozen=True)
class HeaderMatch:
    """How one row of cells reads as a source's header."""

    cells: list[str]
    positions: dict[str, int]  # canonical name -> position
    twice: dict[str, list[str]] = field(default_factory=dict)  # canonical name -> headers that claim it
    missing: list[str] = field(default_factory=list)  # what is needed and not there, as sentences

    @property
    def complete(self) -> bool:
        """Whether the row can serve as the header."""
        return not self.missing and not self.twice

    @property
    def folded(self) -> frozenset[str]:
        """All the row's headers, folded."""
        return frozenset(fold_header(cell) for cell in self.cells)

    @property
    def unknown(self) -> list[str]:
        """The headers that no column claims."""
        taken = set(self.positions.values())
        return [cell for position, cell in enumerate(self.cells) if position not in taken and cell.strip()]

    @property
    def named_width(self) -> int:
        """How many cells a record must have: those up to the last header that is not blank."""
        return max(number for number, cell in enumerate(self.cells, start=1) if cell.strip())

    @cached_property
    def labels(self) -> list[str]:
        """One distinct label for each position: the header as found, numbered where it repeats or is blank."""
        labels: list[str] = []
        seen: set[str] = set()
        for number, cell in enumerate(self.cells, start=1):
            label = cell.strip().strip("\ufeff").strip() or f"(column {number})"
            while label in seen:
                label = f"{label} ({number})"
            seen.add(label)
            labels.append(label)
        return labels


def match_header(source: Source, cells: Sequence[str]) -> HeaderMatch:
    """Match a row to the source's columns by folded names and aliases (`inputs.md`, header matching)."""
    cells = list(cells)
    folded = [fold_header(cell) for cell in cells]
    owner = source.owners
    claims: dict[str, list[int]] = {}
    for position, header in enumerate(folded):
        if header in owner and header not in source.second_choice:
            claims.setdefault(owner[header], []).append(position)
    for position, header in enumerate(folded):
        if header in source.second_choice:
            first = owner[header]
            claims.setdefault(source.second_choice[header] if first in claims else first, []).append(position)
    missing = [
        f"{column.name} (accepted: {', '.join(column.headers)})"
        for column in source.columns
        if column.required and column.name not in claims
    ]
    for group in source.needs_one_of:
        if not any(name in claims for name in group):
            accepted = dict.fromkeys(header for name in group for header in source.column(name).headers)
            missing.append(f"one of {' or '.join(group)} (accepted: {', '.join(accepted)})")
    return HeaderMatch(
        cells,
        {name: positions[0] for name, positions in claims.items()},
        {
            name: [cells[position] for position in positions]
            for name, positions in claims.items()
            if len(positions) > 1
        },
        missing,
    )


def find_header(source: Source, rows: Sequence[Sequence[str]]) -> tuple[int, HeaderMatch] | None:
    """The first row that is a complete header, else the one with most columns; None where no row has any."""
    best: tuple[int, HeaderMatch] | None = None
    for number, row in enumerate(rows):
        match = match_header(source, row)
        if match.complete:
            return number, match
        if match.positions and (best is None or len(match.positions) > len(best[1].positions)):
            best = number, match
    return best
