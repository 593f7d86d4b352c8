"""What loading did: to the table, to each file, and for the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from crm_analytics.analytics.ingest.loading.ledger import Counts


@dataclass
class Merged:
    """What merging one file did to the table."""

    counts: Counts
    #: Rows inserted, updated or removed.
    changed_by_month: dict[date, int] = field(default_factory=dict)
    first_date: date | None = None
    last_date: date | None = None
    warnings: list[str] = field(default_factory=list)
    #: Whether the table's statistics are new already.
    analyzed: bool = False

    def note_changes(self, month: date, rows: int) -> None:
        """Adds rows that changed to those of their month."""
        self.changed_by_month[month] = self.changed_by_month.get(month, 0) + rows


@dataclass
class FileResult:
    """What became of one file in one run."""

    #: Below the landing folder.
    path: str
    #: loaded, refused, same_content, withdrawn (a person took it back), or waiting (it may still be growing, or changed
    #: while it was read).
    status: str
    message: str | None = None
    #: Ledger entry; 0 while there is none.
    file_id: int = 0
    counts: Counts = field(default_factory=Counts)
    warnings: list[str] = field(default_factory=list)
    changed_by_month: dict[date, int] = field(default_factory=dict)


@dataclass
class LoadResult:
    """What a run did for one source."""

    source: str
    files: list[FileResult] = field(default_factory=list)

    @property
    def months(self) -> set[date]:
        """The months (first days) in which rows were inserted, updated or removed."""
        return {month for file in self.files for month in file.changed_by_month}

    @property
    def totals(self) -> Counts:
        """The files' counts added up."""
        return sum((file.counts for file in self.files), Counts())

    @property
    def refused(self) -> list[FileResult]:
        """The files that could not be read."""
        return [file for file in self.files if file.status == "refused"]


def describe(result: FileResult) -> str:
    """Returns one line for people: what became of a file."""
    if result.message is not None:
        return f"{result.status.replace('_', ' ')}: {result.path}: {result.message}"
    counts = vars(result.counts)
    parts = [f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count]
    return f"{result.path}: {', '.join(parts) or 'no records'}" + "".join(
        f"; {warning}" for warning in result.warnings
    )
