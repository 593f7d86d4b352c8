"""One line of the benchmark table, and whether it keeps its limit."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cost import Cost


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
    #: What `value` and `baseline` are the wall-clock time of.
    cost: Cost | None = None
    baseline_cost: Cost | None = None

    @classmethod
    def of_costs(
        cls,
        section: str,
        what: str,
        cost: Cost,
        baseline_name: str,
        baseline: Cost,
        limit: float | None = None,
        *,
        note: str = "",
    ) -> BenchRow:
        """Returns the line that compares the wall-clock times of two costs, in milliseconds if they are short."""
        factor, unit = (1000, "ms") if min(cost.seconds, baseline.seconds) < 0.5 else (1, "s")
        return cls(
            section, what, cost.seconds * factor, unit, baseline_name, baseline.seconds * factor, limit,
            note=note, cost=cost, baseline_cost=baseline,
        )  # fmt: skip

    @property
    def ratio(self) -> float | None:
        """`value` / `baseline`; None without a baseline."""
        return self.value / self.baseline if self.baseline else None

    @property
    def cpu_ratio(self) -> float | None:
        """The ratio of both sides' CPU seconds; None if they weren't measured or are too few to compare."""
        if self.cost is None or self.baseline_cost is None or self.baseline_cost.cpu <= 0:
            return None
        return self.cost.cpu / self.baseline_cost.cpu

    @property
    def kept(self) -> bool | None:
        """Whether the limit is kept; None without a limit."""
        if self.limit is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured >= self.limit if self.higher_is_better else measured <= self.limit
