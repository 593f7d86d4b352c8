"""The page: what a line says, what it leaves out, and when it says that a limit is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import SECTIONS
from bench.cost import Cost
from bench.report import EXPLANATIONS, Run, cells, write_page
from bench.table import BenchRow

LOAD = BenchRow.of_costs("ingest", "load", Cost(14, 9, 3), "bare COPY", Cost(28, 23, 1), 0.7, note="a note")
MEMORY = BenchRow("ingest", "memory", 460, "MB", limit=450)
PANEL = BenchRow("Grafana panels", "a panel", 12.5, "ms", limit=50)


def test_a_line_shows_both_sides_with_their_cpu():
    """Wall-clock time alone would not tell a slow side from a busy machine."""
    assert cells(LOAD) == [
        "load", "14 s", "9 + 3", "bare COPY", "28 s", "23 + 1", "0.50 (CPU 0.50)", "≤ 0.7", "kept", "a note",
    ]  # fmt: skip


def test_short_times_are_in_milliseconds_on_both_sides():
    """Two units in one line would be compared wrongly; the ratio has none."""
    row = BenchRow.of_costs("small files", "file", Cost(0.9, 0.002, 0.001), "COPY", Cost(0.3), 2)
    assert cells(row)[1:6] == ["900 ms", "2 + 1", "COPY", "300 ms", "0 + 0"]
    assert (row.ratio, row.cpu_ratio, row.kept) == (pytest.approx(3), None, False)


def test_a_limit_without_a_baseline_bounds_the_value():
    """Memory and panels have a limit in their own unit."""
    assert cells(MEMORY)[7:9] == ["≤ 450 MB", "MISSED"]
    assert cells(PANEL)[7:9] == ["≤ 50 ms", "kept"]


def test_rates_must_reach_their_limit():
    """More calls per second are better, so the limit is the least ratio."""
    row = BenchRow("CRM RPCs", "calls", 200, "calls/s", "INSERT", 1000, 0.25, higher_is_better=True)
    assert cells(row)[6:9] == ["0.20", "≥ 0.25", "MISSED"]


def test_the_page_has_a_table_with_its_words_for_each_section(tmp_path: Path):
    """Each section says what its lines are compared with; columns that a section doesn't use are left out."""
    page = tmp_path / "page.md"
    write_page(Run([LOAD, MEMORY, PANEL], 1, 840, 7_400_000_000), page)
    text = page.read_text()
    assert "This run took 14 minutes, and 7 GB of disk space" in text
    assert f"## ingest\n\n{EXPLANATIONS['ingest']}\n\n| what | ours | CPU | compared with |" in text
    assert (
        "\n| what | ours | limit |  |\n|---|---:|---|---|\n| a panel | 12.50 ms | ≤ 50 ms | kept |\n" in text
    )
    assert "behind" in text


def test_a_quick_run_says_that_it_proves_nothing(tmp_path: Path):
    """A page of a small run must not be taken for the project's."""
    page = tmp_path / "page.md"
    write_page(Run([LOAD], 0.05, 60, 0), page)
    assert "**A quick run at 0.05 of the full size" in page.read_text()


def test_every_section_is_explained():
    """A section without words would have no page."""
    assert len(EXPLANATIONS) == len(SECTIONS)
