"""Loading the big exports, compared with bare ways of bringing the same rows, already typed, into the same tables."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.cost import ROUNDS, Cost
from bench.environment import Environment
from bench.exports import write_exports, write_reexport
from bench.loads import (
    DATABASE,
    TABLES,
    CutOff,
    business,
    first_load,
    landing,
    load,
    load_new,
    whole,
)
from bench.table import BenchRow
from bench.twins import Twins, TypedRows, typed_rows

SECTION = "ingest"
CHANGED = 200
#: A reload that takes so many times as long as the first load is cut off. One that never ends was a bug once.
PATIENCE = 3.0


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the ingest lines."""
    cut_off = ""
    for turn in range(ROUNDS):
        cut_off = _round(environment, DATABASE if turn == 0 else "ten_years_again")
    environment.drop("ten_years_again")
    shutil.rmtree(_landing_before(environment))
    size = business(environment)
    bare = environment.cost("bare COPY")
    yield BenchRow.of_costs(
        SECTION, f"first load, {size.jobs:,} jobs and {size.payments:,} payments", environment.cost("load"),
        "bare COPY of the typed rows into the same tables", bare, 0.7,
    )  # fmt: skip
    yield BenchRow.of_costs(
        SECTION, "the same", environment.cost("load"),
        "heap COPY of the typed rows, then indexes and foreign key", environment.cost("heap COPY"), 2.0,
    )  # fmt: skip
    yield BenchRow(SECTION, "peak memory of the loading process", max(environment.peaks), "MB", limit=450)
    yield BenchRow.of_costs(
        SECTION, "second load of the same size into full tables", environment.cost("second load"),
        "bare COPY into full twins", environment.cost("bare COPY into full"), 1.5,
    )  # fmt: skip
    yield BenchRow.of_costs(
        SECTION, f"a re-export of {size.jobs:,} jobs with {CHANGED} changed", environment.cost("re-export"),
        "bare COPY of the jobs", environment.cost("bare COPY of jobs"), 0.5,
        note="exactly the changed months became stale",
    )  # fmt: skip
    yield BenchRow.of_costs(
        SECTION, "reload after TRUNCATE and ANALYZE", environment.cost("reload"),
        "first load", environment.cost("load"), 1.5, note=cut_off,
    )  # fmt: skip
    yield BenchRow.of_costs(
        SECTION, "the same files again, touched: recognized by their hash", environment.cost("touched"),
        "SHA-256 of the files alone", environment.cost("hash"), 3.0,
    )  # fmt: skip


def _round(environment: Environment, database: str) -> str:
    """Measures everything once and notes it; leaves the database with the first load. Says whether the reload was cut off."""
    first_load(environment, database)
    first = typed_rows(environment, database, "first")
    environment.say("bare COPY")
    twins = Twins(environment)
    twins.make()
    copies = {rows.table: twins.copy(rows) for rows in first}
    environment.note("bare COPY of jobs", copies["jobs"])
    environment.note("bare COPY", copies["jobs"] + copies["payments"])
    twins.vacuum()
    _second_load(environment, database, twins)
    environment.say("heap COPY, then indexes")
    twins.make(indexed=False)
    environment.note("heap COPY", twins.copy_then_index(first))
    twins.close()
    _remove(first)
    _reexport(environment, database)
    _touch(environment, database)
    return _reload(environment, database)


def _second_load(environment: Environment, database: str, twins: Twins) -> None:
    """Loads other exports of the same size into full tables, and their typed rows into full twins."""
    folder = _landing_before(environment)
    with environment.copy_of(database) as copy:
        environment.say("loading them into full tables")
        environment.note("second load", whole(load_new(environment, copy, folder)))
        second = typed_rows(environment, copy, "second", of_last_file=True)
    environment.say("bare COPY into full twins")
    jobs, payments = (twins.copy(rows) for rows in second)
    environment.note("bare COPY into full", jobs + payments)
    _remove(second)


def _landing_before(environment: Environment) -> Path:
    """Returns the landing folder with the exports of the ten years before, which the first round writes."""
    folder = environment.folder / "landing_before"
    if not folder.exists():
        environment.say("writing exports of the ten years before")
        write_exports(folder, business(environment).decade_before())
    return folder


def _reexport(environment: Environment, database: str) -> None:
    path, months = write_reexport(landing(environment), business(environment), CHANGED)
    environment.say(f"loading a re-export with {CHANGED} changed rows")
    with environment.copy_of(database) as copy, environment.connect(copy) as connection:
        connection.execute("TRUNCATE analytics.stale_months")
        done = load(environment, copy, landing(environment), "jobs")
        assert done.counts["updated"] == CHANGED, done
        stale = {
            month for (month,) in connection.execute("SELECT DISTINCT month FROM analytics.stale_months")
        }
        assert stale == months, f"stale: {sorted(stale)}, touched: {sorted(months)}"
    environment.note("re-export", done.cost)
    environment.peaks.append(done.peak)
    path.unlink()


def _touch(environment: Environment, database: str) -> None:
    """Loads the same files again, when only their hash can tell that they are the same."""
    files = sorted(landing(environment).rglob("*.csv"))
    for path in files:
        path.touch()
    environment.say("loading the same files again")
    loads = [load(environment, database, landing(environment), source) for source in TABLES]
    assert not any(done.statuses for done in loads), loads
    environment.note("touched", loads[0].cost + loads[1].cost)
    environment.note("hash", environment.measure(lambda: [_sha256(path) for path in files]))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _reload(environment: Environment, database: str) -> str:
    """Loads the exports into tables that statistics say are empty."""
    environment.say("loading again after TRUNCATE and ANALYZE")
    patience = max(PATIENCE * environment.cost("load").seconds, 30.0)
    with environment.copy_of(database) as copy:
        with environment.connect(copy) as connection:
            connection.execute("TRUNCATE raw.payments, raw.jobs")
            connection.execute("ANALYZE raw.payments, raw.jobs")
        try:
            loads = load_new(environment, copy, landing(environment), force=True, patience=patience)
        except CutOff as error:
            environment.note("reload", Cost(patience))
            return str(error)
    environment.note("reload", whole(loads))
    return ""


def _remove(files: list[TypedRows]) -> None:
    for rows in files:
        rows.file.unlink()
