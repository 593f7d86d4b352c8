"""Weighs a file's headers: those that only a source's files have against those that only other kinds of file have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.sources.declaration import Source, fold_header

#: Own headers that a message gives as examples.
MOST_EXAMPLES = 6


@dataclass(frozen=True)
class Evidence:
    """What a file's headers tell about its kind; with neither own nor foreign headers they tell nothing."""

    source: Source
    #: Headers as found that only files of this source have, in the file's order.
    own: list[str]
    #: Headers as found that only other kinds of file have, in the file's order.
    foreign: list[str]
    #: Whether an own header comes before the first foreign one: exports begin with what their rows are.
    own_first: bool

    @property
    def identifies(self) -> bool:
        """Returns whether the file is of the source, wherever it is and whatever its name."""
        difference = len(self.own) - len(self.foreign)
        return difference > 0 or (difference == 0 and self.own_first)

    @property
    def of_another_kind(self) -> bool:
        """Returns whether the file isn't of the source, wherever it is and whatever its name."""
        return bool(self.foreign) and not self.identifies

    def refusal(self) -> Reason:
        """Returns why a file of another kind is not taken for one of the source."""
        source, foreign = self.source, ", ".join(self.foreign)
        examples = ", ".join(source.own_headers[:MOST_EXAMPLES])
        accepted = (
            f"{source.title}, with more headers that only these have ({examples}, …) than of other kinds"
        )
        if self.own:
            accepted += f"; this file has {', '.join(self.own)}"
        remedy = (
            "if it is another kind of file, take it out of the landing folder; otherwise export it with more of its"
            f" own columns, or without {foreign}"
        )
        return Reason("headers_of_another_kind_of_file", found=foreign, accepted=accepted, remedy=remedy)


def weigh(source: Source, rows: Iterable[Sequence[str]]) -> Evidence:
    """Weighs the headers of a file: `rows` are the header and the lines above it, which may have a title."""
    found = {fold_header(cell): cell.strip() for row in rows for cell in row}
    own = {folded: text for folded, text in found.items() if folded in source.folded_own}
    foreign = {folded: text for folded, text in found.items() if folded in source.folded_foreign}
    first = next((folded for folded in found if folded in own or folded in foreign), None)
    return Evidence(source, [*own.values()], [*foreign.values()], first in own)
