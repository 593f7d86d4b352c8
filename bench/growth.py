"""Loads of different sizes: what a row costs when there are more of them, and whether memory stays the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from bench.cost import Cost
from bench.environment import JOBS, Environment
from bench.exports import write_exports
from bench.loads import business, load_new, loaded, whole
from bench.table import BenchRow

SECTION = "growth"
SMALL, BIG = 100_000, 3_000_000


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the cost of a row at each size, and the peak memory at the biggest. The biggest is measured once."""
    loaded(environment)
    small, _ = _loaded(environment, SMALL)
    big, peak = _loaded(environment, BIG)
    again, _ = _loaded(environment, SMALL)
    small = min(small, again, key=lambda cost: cost.seconds)
    small_size = business(environment, SMALL)
    for jobs, cost in ((JOBS, environment.cost("load")), (BIG, big)):
        size = business(environment, jobs)
        part = size.jobs / small_size.jobs
        yield BenchRow.of_costs(
            SECTION, f"first load of {size.jobs:,} jobs and {size.payments:,} payments, for each {small_size.jobs:,} jobs",
            cost / part, f"first load of {small_size.jobs:,} jobs and {small_size.payments:,} payments", small,
        )  # fmt: skip
    size = business(environment, BIG)
    what = f"peak memory of the process that loads {size.jobs:,} jobs and {size.payments:,} payments"
    yield BenchRow(SECTION, what, peak, "MB", limit=450)


def _loaded(environment: Environment, jobs: int) -> tuple[Cost, float]:
    """Loads so many jobs with their payments into a new database; returns the cost and the peak memory in MB."""
    size = business(environment, jobs)
    environment.say(f"writing and loading {size.jobs:,} jobs and {size.payments:,} payments")
    landing, database = environment.folder / f"landing_{jobs}", f"growth_{jobs}"
    write_exports(landing, size)
    loads = load_new(environment, database, landing)
    environment.drop(database)
    shutil.rmtree(landing)
    return whole(loads), max(done.peak for done in loads.values())
