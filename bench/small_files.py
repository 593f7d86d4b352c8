"""Many small files: what each of them costs, whether it costs more when there are many, and looking for new ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg

from bench.cost import SHORT_ROUNDS, Cost, by_turns, of_rounds
from bench.environment import Environment
from bench.exports import Business, write_small_exports
from bench.loads import loaded
from bench.table import BenchRow
from bench.twins import Twins, typed_rows
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.core.settings import settings
from crm_analytics.orchestration.analytics.automation import load_landing_files
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.jobs import refresh_job

SECTION = "small files"
FILES, RECORDS = 1_000, 100
#: Files are dropped and loaded in so many batches, so that the first can be compared with the last.
BATCHES = 10
LISTED = 10_000
#: When the listed files were written, in seconds since 1970.
WRITTEN = 1_700_000_000


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the lines of small files and of the sensor that looks for them."""
    files = environment.scaled(FILES, least=BATCHES) // BATCHES * BATCHES
    batches: list[list[Cost]] = []
    copies: list[Cost] = []
    for _ in range(SHORT_ROUNDS):
        environment.say(f"loading {files:,} files of {RECORDS} jobs")
        batches.append(_load_batches(environment, files))
        environment.say("one COPY and commit for each")
        copies.append(_copy_each(environment))
        environment.drop("small_files")
    first, last = (of_rounds([turn[n] for turn in batches]) / (files // BATCHES) for n in (0, -1))
    each = of_rounds([sum(turn, Cost(0)) for turn in batches]) / files
    yield BenchRow.of_costs(
        SECTION, f"{files:,} files of {RECORDS} rows: each", each,
        "one COPY of its typed rows with its commit", of_rounds(copies) / files, 5.0,
    )  # fmt: skip
    yield BenchRow.of_costs(
        SECTION, f"each of the last {files // BATCHES}", last, f"each of the first {files // BATCHES}", first, 1.2
    )  # fmt: skip
    full = _into_full_tables(environment)
    yield BenchRow.of_costs(
        SECTION, f"one file of {RECORDS} rows into the big tables", full, f"each of the first {files // BATCHES} files", first
    )  # fmt: skip
    yield _tick(environment)


def _load_batches(environment: Environment, files: int) -> list[Cost]:
    """Drops the files, each with a day's jobs, in batches and loads each batch; returns each batch's cost."""
    landing = environment.folder / "landing_small"
    first = date(2020, 1, 1)
    last = first + timedelta(days=files - 1)
    # a day in two files would make its rows of the older one look as if they had vanished
    jobs = Business(files * RECORDS, 0, first, last, exported=first + timedelta(days=1))
    paths = write_small_exports(landing, jobs, range(files))
    later = landing.rename(environment.folder / "later")
    size = files // BATCHES
    costs = []
    with environment.connect("small_files") as connection:
        environment.checkpoint()
        for start in range(0, files, size):
            for path in paths[start : start + size]:
                path.parent.mkdir(parents=True, exist_ok=True)
                (later / path.relative_to(landing)).rename(path)
            costs.append(environment.measure(partial(_load, connection, landing, size, size * RECORDS)))
    shutil.rmtree(landing)
    shutil.rmtree(later)
    return costs


def _load(connection: psycopg.Connection[Any], landing: Path, files: int, records: int) -> None:
    """Loads so many new files with so many records, each of which makes a row."""
    result = load_source(connection, landing, "jobs", timezone=settings().timezone)
    assert len(result.files) == files and result.totals.inserted == records, result


def _copy_each(environment: Environment) -> Cost:
    """Copies the rows of each file into a twin, and commits."""
    (rows, payments) = typed_rows(environment, "small_files", "small")
    lines = rows.file.read_bytes().splitlines(keepends=True)
    twins = Twins(environment)
    twins.make()
    environment.checkpoint()

    def work() -> None:
        for start in range(0, len(lines), RECORDS):
            twins.copy_in(rows, [b"".join(lines[start : start + RECORDS])])

    cost = environment.measure(work)
    twins.close()
    rows.file.unlink()
    payments.file.unlink()
    return cost


def _into_full_tables(environment: Environment) -> Cost:
    """Loads one file at a time into the tables with the big exports."""
    landing = environment.folder / "landing_small"
    with environment.copy_of(loaded(environment)) as copy, environment.connect(copy) as connection:
        numbers = iter(range(SHORT_ROUNDS))

        def one_file() -> Cost:
            number = next(numbers)
            day = date(2026, 2, 1) + timedelta(days=number)
            jobs = Business(
                RECORDS, 0, day, day, 10_000_000 + number * RECORDS, exported=day + timedelta(days=1)
            )
            write_small_exports(landing, jobs, [0])
            return environment.measure(lambda: _load(connection, landing, 1, RECORDS))

        (cost,) = by_turns(one_file, rounds=SHORT_ROUNDS)
    shutil.rmtree(landing)
    return cost


def _tick(environment: Environment) -> BenchRow:
    """Compares the sensor's look at a folder of loaded files with a look at the folder alone."""
    files = environment.scaled(LISTED)
    landing = environment.folder / "landing_listed"
    environment.say(f"looking for new files among {files:,} loaded ones")
    with environment.connect("listed") as connection:
        _note_as_loaded(connection, landing, files)
        connection.execute("VACUUM ANALYZE raw.source_files")
    config = settings().model_copy(
        update={"analytics_database_url": environment.analytics("listed"), "landing_dir": landing}
    )
    franchise = Franchise(config)
    sensor = load_landing_files(franchise, refresh_job(franchise))
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> Cost:
            context = dg.build_sensor_context(
                instance=instance,
                resources=franchise.resources,
            )
            found: list[dg.SensorExecutionData] = []
            cost = environment.measure(lambda: found.append(sensor.evaluate_tick(context)))
            assert not found[0].run_requests, found
            return cost

        ours, alone = by_turns(tick, lambda: environment.measure(lambda: _list(landing)), rounds=SHORT_ROUNDS)
    environment.drop("listed")
    shutil.rmtree(landing)
    return BenchRow.of_costs(
        SECTION, f"sensor tick over {files:,} loaded files", ours, "listing the folder alone", alone, 3.0
    )


def _list(landing: Path) -> list[tuple[str, int, int]]:
    found = []
    for folder in os.scandir(landing):
        for entry in os.scandir(folder):
            status = entry.stat()
            found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found


def _note_as_loaded(connection: psycopg.Connection[Any], landing: Path, files: int) -> None:
    """Writes files of one job, loads the first, and enters the others into the ledger as if they had been loaded, too."""
    jobs = Business(files, 0, exported=date(1998, 1, 1))
    write_small_exports(landing, replace(jobs, jobs=1), [0])
    _load(connection, landing, 1, 1)
    others = write_small_exports(landing, jobs, range(1, files))
    for path in others:
        # whole seconds
        os.utime(path, (WRITTEN, WRITTEN))
    columns = ", ".join(
        name
        for (name,) in connection.execute(
            "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = 'raw.source_files'::regclass AND attnum > 0"
            " AND attgenerated = '' AND attname NOT IN ('file_id', 'path', 'sha256', 'size_bytes', 'modified_at')"
        )
    )
    found = [(str(path.relative_to(landing)), path.stat()) for path in others]
    connection.execute(
        f"""
        INSERT INTO raw.source_files (path, sha256, size_bytes, modified_at, {columns})
        SELECT f.path, sha256(f.path::bytea), f.size, to_timestamp(f.second), {columns}
        FROM raw.source_files, unnest(%s::text[], %s::bigint[], %s::bigint[]) AS f (path, size, second)
        """.encode(),
        [[name for name, _ in found], [s.st_size for _, s in found], [WRITTEN] * len(found)],
    )
