"""Sections whose lines depend on our tables run at the smallest scale, with all that they assert about both sides."""

from __future__ import annotations

import pytest

from bench.__main__ import measure
from bench.environment import Environment


def check(environment: Environment, *sections: str) -> None:
    """Measures the sections and looks at their lines."""
    run = measure(environment, sections, lambda row: None)
    assert {row.section for row in run.rows} == {section.replace("_", " ") for section in sections}
    for row in run.rows:
        assert row.value > 0, row
        assert row.baseline is None or row.baseline > 0, row


@pytest.mark.parametrize("section", ["ingest", "small_files", "metrics"])
def test_a_section_measures_both_sides_of_its_lines(environment: Environment, section: str):
    """A section works alone, loads exactly what it says, and gives each line a value and a baseline."""
    check(environment, section)


def test_other_tools_find_the_same_after_other_sections(environment: Environment):
    """The comparators' numbers come from the files; no section may leave other rows in the database that it shares."""
    check(environment, "small_files", "metrics", "comparators")
