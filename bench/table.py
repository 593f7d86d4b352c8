"""One line of the benchmark table, and whether it keeps its limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchRow:
    """One measured line.

    `value` and `baseline` are in `unit` and come from the same run. `limit` bounds their ratio, or `value` itself
    if there is no baseline. A line without a limit is for information and cannot fail.
    """

    section: str
    what: str
    value: float
    unit: str
    baseline_name: str | None = None
    baseline: float | None = None
    limit: float | None = None
    higher_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """`value` / `baseline`; None without a baseline."""
        return self.value / self.baseline if self.baseline else None

    @property
    def kept(self) -> bool | None:
        """Whether the limit is kept; None without a limit."""
        if self.limit is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured >= self.limit if self.higher_is_better else measured <= self.limit
