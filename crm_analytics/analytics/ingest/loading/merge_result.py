"""What a merge did to its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from crm_analytics.analytics.ingest.loading.ledger import Counts


@dataclass
class Merged:
    """What a merge did to the table."""

    counts: Counts
    #: Rows inserted, updated or removed.
    changed_by_month: dict[date, int] = field(default_factory=dict)
    first_date: date | None = None
    last_date: date | None = None
    warnings: list[str] = field(default_factory=list)

    def note_changes(self, month: date, rows: int) -> None:
        """Adds rows that changed to those of their month."""
        self.changed_by_month[month] = self.changed_by_month.get(month, 0) + rows
