"""The results as a table on the terminal and as docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.table import BenchRow

INTRODUCTION = """# Benchmarks

`make bench` writes this page after a full run; this run used a machine with 2 cores. Each line compares two
measurements of one run, so its ratio holds on other machines, too. A line without a limit is for information.

The baselines:

- **bare COPY**: one `COPY` streams the same rows, already typed, into empty twins of the raw tables with the same
  indexes and constraints but without triggers; the better of two attempts. Our load starts from the vendors' CSV files
  and also types, deduplicates and links the rows, keeps the ledger and the quarantine, and notes the stale months.
- **best hand-written SQL**: the fastest of several ways in `bench/metrics.py`, each tried twice. They must produce
  exactly our rows.
- **pandas, DuckDB**: `bench/comparators.py`. Their jobs, repairs and revenue must equal ours.

The server is the embedded PostgreSQL with the settings of `make demo`, which keep it durable.
"""


def cells(row: BenchRow) -> list[str]:
    """Returns the row's cells as text, in the order of `HEADERS`."""
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
    """Prints all lines, with a rule between sections and missed limits in red."""
    table = Table(*HEADERS, title="benchmarks (2 cores)")
    section = ""
    for row in rows:
        if section and row.section != section:
            table.add_section()
        section = row.section
        table.add_row(*cells(row), style="red" if row.kept is False else "")
    console.print(table)


def write_page(rows: list[BenchRow], scale: float, page: Path) -> None:
    """Writes the same lines as a page of the documentation."""
    lines = [INTRODUCTION]
    if scale != 1:
        lines.append(
            f"**A quick run at {scale:g} of the full size: its ratios don't represent the project.**\n"
        )
    section = ""
    for row in rows:
        if row.section != section:
            section = row.section
            lines.append(f"\n## {section}\n\n| {' | '.join(HEADERS)} |\n|---|---:|---|---:|---|---|---|")
        lines.append(f"| {' | '.join(cells(row))} |")
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
