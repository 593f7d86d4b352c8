"""Sections whose lines depend on our tables run at the smallest scale, with all that they assert about both sides."""

from __future__ import annotations

import pytest

from bench.__main__ import measure
from bench.environment import Environment


@pytest.mark.parametrize("section", ["ingest", "small_files", "metrics", "comparators"])
def test_a_section_measures_both_sides_of_its_lines(environment: Environment, section: str):
    """A section works alone, loads exactly what it says, and gives each line a value and a baseline."""
    if section == "comparators":
        pytest.importorskip("duckdb")
    run = measure(environment, [section], lambda row: None)
    assert run.rows
    for row in run.rows:
        assert row.value > 0, row
        assert row.baseline is None or row.baseline > 0, row
