"""Loads of exports, each in a process of its own whose startup doesn't count, and the database that sections share."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

from bench.cost import Cost
from bench.environment import JOBS, PAYMENTS_PER_JOB, Environment, report_of, run
from bench.exports import Business, write_exports

#: The database with the big exports loaded.
DATABASE = "ten_years"
TABLES: tuple[LiteralString, ...] = ("jobs", "payments")


@dataclass(frozen=True)
class Load:
    """What loading one source cost and did. `peak` is the process's memory in MB."""

    cost: Cost
    peak: float
    statuses: list[str]
    counts: dict[str, int]


class CutOff(Exception):
    """A load that didn't end in the time that it was given."""


def load(
    environment: Environment,
    database: str,
    landing: Path,
    source: str,
    *,
    force: bool = False,
    patience: float | None = None,
) -> Load:
    """Loads a source's new files of a landing folder, all of them with `force`.

    Raises:
        CutOff: if it takes longer than `patience` seconds.
    """
    url = environment.analytics(database)
    environment.checkpoint()
    before = environment.server_cpu()
    try:
        output = run("-m", "bench.load_child", url, str(landing), source, str(force), patience=patience)
    except subprocess.TimeoutExpired as error:
        raise CutOff(f"the load of {source} didn't end in {patience:.0f} s") from error
    report = report_of(output)
    cost = Cost(report["seconds"], environment.server_cpu() - before, report["cpu"])
    return Load(cost, report["peak_mb"], report["statuses"], report["counts"])


def load_new(
    environment: Environment,
    database: str,
    landing: Path,
    *,
    force: bool = False,
    patience: float | None = None,
) -> dict[str, Load]:
    """Loads exports of both sources, every record of which makes a row; returns each source's load.

    Raises:
        CutOff: if one of them takes longer than `patience` seconds.
    """
    loads = {
        source: load(environment, database, landing, source, force=force, patience=patience)
        for source in TABLES
    }
    for done in loads.values():
        assert done.statuses == ["loaded"], done
        assert done.counts["inserted"] == done.counts["records_read"], done
    return loads


def whole(loads: dict[str, Load]) -> Cost:
    """Returns what both sources cost together."""
    return loads["jobs"].cost + loads["payments"].cost


def business(environment: Environment, jobs: int = JOBS) -> Business:
    """Returns so many jobs with their payments, at the run's scale."""
    return Business(environment.scaled(jobs), environment.scaled(round(jobs * PAYMENTS_PER_JOB)))


def landing(environment: Environment) -> Path:
    """Returns the landing folder with the big exports, which the first section that needs them writes."""
    folder = environment.folder / "landing"
    if not folder.exists():
        size = business(environment)
        environment.say(f"writing exports of {size.jobs:,} jobs and {size.payments:,} payments")
        write_exports(folder, size)
    return folder


def first_load(environment: Environment, database: str) -> None:
    """Loads the big exports into a new database and notes the cost, as `load` and `load jobs`; then VACUUM and ANALYZE."""
    folder = landing(environment)
    environment.say("loading them into empty tables")
    loads = load_new(environment, database, folder)
    environment.note("load", whole(loads))
    environment.note("load jobs", loads["jobs"].cost)
    environment.peaks.append(max(done.peak for done in loads.values()))
    with environment.connect(database) as connection:
        connection.execute("VACUUM ANALYZE raw.jobs, raw.payments")


def loaded(environment: Environment) -> str:
    """Returns the name of the database with the big exports, which the first section that needs it loads."""
    if DATABASE not in environment.databases:
        first_load(environment, DATABASE)
    return DATABASE
