"""The table on the terminal and in docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.table import BenchRow

INTRODUCTION = """# Benchmarks

Written by `make bench`: the last full run, on a machine with 2 cores. Each line is a ratio measured in one run, so that
it means the same on other machines; a line without a limit is a comparator. The baselines:

- **bare COPY**: the typed rows, ready made, streamed by one `COPY` into empty twins of the raw tables with the same
  indexes and constraints, without triggers; the better of two. Ours starts from the vendors' CSV, and ends with typed,
  deduplicated, linked rows, a ledger, a quarantine and the stale months.
- **best hand-written SQL**: `bench/metrics.py`; the fastest of several ways, each twice, that give exactly our rows.
- **pandas, DuckDB**: `bench/comparators.py`; their jobs, repairs and revenue are checked to be ours.

The server is the embedded PostgreSQL as `make demo` runs it, durability on.
"""


def cells(row: BenchRow) -> list[str]:
    """The row as text: what, value, baseline, ratio, limit, verdict, note."""
    baseline = f"{row.baseline_name}: {_number(row.baseline)} {row.unit}" if row.baseline is not None else "–"
    ratio = f"{row.ratio:.2f}" if row.ratio is not None else "–"
    sign = "≥" if row.higher_is_better else "≤"
    limit = (
        "–"
        if row.limit is None
        else f"{sign} {row.limit:g}" + ("" if row.ratio is not None else f" {row.unit}")
    )
    verdict = {None: "", True: "kept", False: "MISSED"}[row.kept]
    return [row.what, f"{_number(row.value)} {row.unit}", baseline, ratio, limit, verdict, row.note]


HEADERS = ["what", "measured", "baseline", "ratio", "limit", "", "note"]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def print_table(rows: list[BenchRow], console: Console) -> None:
    """All lines, sections apart, missed limits in red."""
    table = Table(*HEADERS, title="benchmarks (2 cores)")
    section = ""
    for row in rows:
        if section and row.section != section:
            table.add_section()
        section = row.section
        table.add_row(*cells(row), style="red" if row.kept is False else "")
    console.print(table)


def write_page(rows: list[BenchRow], scale: float, page: Path) -> None:
    """The same as a page of the documentation."""
    lines = [INTRODUCTION]
    if scale != 1:
        lines.append(
            f"**This was a quick run at {scale:g} of the full size: its ratios are not the project's.**\n"
        )
    section = ""
    for row in rows:
        if row.section != section:
            section = row.section
            lines.append(f"\n## {section}\n\n| {' | '.join(HEADERS)} |\n|---|---:|---|---:|---|---|---|")
        lines.append(f"| {' | '.join(cells(row))} |")
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
