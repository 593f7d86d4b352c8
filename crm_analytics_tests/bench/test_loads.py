"""Loads that are measured: all records become rows, and one that doesn't end is cut off."""

from __future__ import annotations

import pytest

from bench.environment import Environment
from bench.exports import write_exports
from bench.loads import CutOff, business, landing, load, load_new


def test_a_load_that_does_not_end_is_cut_off(environment: Environment):
    """A load was once endless after TRUNCATE and ANALYZE; the benchmark must say so instead of waiting for it."""
    with pytest.raises(CutOff, match="the load of jobs didn't end"):
        load(environment, "cut_off", landing(environment), "jobs", patience=0.01)


def test_both_decades_load_into_the_same_tables(environment: Environment):
    """The second load adds as many new rows as the first: its numbers, ids and days are others."""
    first = business(environment)
    loads = [load_new(environment, "both", landing(environment))]
    write_exports(environment.folder / "before", first.decade_before())
    loads.append(load_new(environment, "both", environment.folder / "before"))
    assert [done["jobs"].counts["inserted"] for done in loads] == [first.jobs, first.jobs]
    assert [done["payments"].counts["inserted"] for done in loads] == [first.payments, first.payments]
