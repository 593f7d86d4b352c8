"""Loading the big exports, compared with a bare COPY of the same typed rows into the same indexed tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from bench.environment import Environment, child, timed
from bench.exports import write_exports, write_reexport
from bench.table import BenchRow

SECTION = "ingest"
DATABASE = "ten_years"
CHANGED = 200
TABLES: tuple[LiteralString, ...] = ("jobs", "payments")


def loaded(environment: Environment) -> psycopg.Connection[Any]:
    """Connects to the database with the big exports, which the first section that needs it loads and times."""
    fresh = DATABASE not in environment.databases
    connection = environment.connect(DATABASE)
    if fresh:
        environment.say(f"writing exports of {environment.jobs:,} jobs and {environment.payments:,} payments")
        write_exports(environment.landing, environment.jobs, environment.payments)
        for source in TABLES:
            environment.say(f"loading {source}")
            connection.execute("CHECKPOINT")
            before = environment.cpu()
            report = child(
                "bench.load_child", environment.analytics(DATABASE), str(environment.landing), source
            )
            environment.seconds[f"cpu load {source}"] = report["cpu"] + environment.cpu() - before
            assert report["statuses"] == ["loaded"], report
            assert report["counts"]["inserted"] == report["counts"]["records_read"], report
            environment.seconds[f"load {source}"] = report["seconds"]
            environment.seconds[f"memory {source}"] = report["peak_mb"]
        connection.execute("VACUUM ANALYZE raw.jobs, raw.payments")
    return connection


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the ingest lines."""
    with loaded(environment) as connection:
        ours = sum(environment.seconds[f"load {table}"] for table in TABLES)
        bare = {table: _bare_copy(environment, connection, table) for table in TABLES}
        environment.seconds["bare copy jobs"] = bare["jobs"]
        size = f"{environment.jobs:,} jobs and {environment.payments:,} payments"
        yield BenchRow(
            SECTION, f"load exports of {size}", ours, "s", "bare COPY of the typed rows, same indexes", sum(bare.values()),
            limit=3.0, note=_details(environment, bare),
        )  # fmt: skip
        peak = max(environment.seconds[f"memory {table}"] for table in TABLES)
        yield BenchRow(SECTION, "peak memory of the loading process", peak, "MB", limit=600)
        yield from _again(environment, connection, sum(bare.values()))


def _details(environment: Environment, bare: dict[str, float]) -> str:
    parts = [
        f"{table} {environment.seconds[f'load {table}']:.1f} : {bare[table]:.1f} s (CPU"
        f" {environment.seconds[f'cpu load {table}']:.1f} : {environment.seconds[f'cpu copy {table}']:.1f} s)"
        for table in TABLES
    ]
    return ", ".join(parts)


def _bare_copy(environment: Environment, connection: psycopg.Connection[Any], table: LiteralString) -> float:
    """Returns the better time of two COPYs of the table's rows into an empty twin without triggers."""
    environment.say(f"bare COPY of {table}")
    file = environment.folder / f"{table}.copy"
    columns = ", ".join(
        name
        for (name,) in connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'raw' AND table_name = %s"
            " AND is_generated = 'NEVER' ORDER BY ordinal_position",
            [table],
        )
    )
    with file.open("wb") as out, connection.cursor().copy(f"COPY raw.{table} ({columns}) TO STDOUT") as copy:
        for data in copy:
            out.write(data)
    connection.execute("CREATE SCHEMA IF NOT EXISTS bench")
    connection.execute(f"CREATE TABLE bench.{table} (LIKE raw.{table} INCLUDING ALL)")
    if table == "payments":
        connection.execute("ALTER TABLE bench.payments ADD FOREIGN KEY (job_id) REFERENCES bench.jobs")

    def run() -> float:
        connection.execute("TRUNCATE bench.payments" if table == "payments" else "TRUNCATE bench.jobs")
        connection.execute("CHECKPOINT")
        before = environment.cpu() + time.process_time()
        seconds = timed(lambda: _copy_in(connection, f"COPY bench.{table} ({columns}) FROM STDIN", file))
        environment.seconds[f"cpu copy {table}"] = environment.cpu() + time.process_time() - before
        return seconds

    best = min(run(), run())
    file.unlink()
    return best


def _copy_in(connection: psycopg.Connection[Any], statement: str, file: Path) -> None:
    with (
        connection.transaction(),
        file.open("rb") as data,
        connection.cursor().copy(statement.encode()) as copy,
    ):
        while chunk := data.read(1 << 20):
            copy.write(chunk)


def _again(environment: Environment, connection: psycopg.Connection[Any], bare: float) -> Iterator[BenchRow]:
    """Loads the same files again, and then a re-export with few changes."""
    connection.execute("DROP SCHEMA bench CASCADE")
    for path in environment.landing.rglob("*.csv"):
        # only the hash can tell now that the file is the same
        path.touch()
    seconds = 0.0
    for source in TABLES:
        environment.say(f"loading {source} again")
        report = child("bench.load_child", environment.analytics(DATABASE), str(environment.landing), source)
        assert "loaded" not in report["statuses"], report
        seconds += report["seconds"]
    yield BenchRow(
        SECTION,
        "the same files again, touched: recognized by their hash",
        seconds,
        "s",
        "bare COPY of the rows",
        bare,
        limit=1.0,
    )
    path, months = write_reexport(environment.landing, environment.jobs, CHANGED)
    environment.say(f"loading a re-export with {CHANGED} changed rows")
    connection.execute("TRUNCATE analytics.stale_months")
    connection.execute("CHECKPOINT")
    before = environment.cpu()
    report = child("bench.load_child", environment.analytics(DATABASE), str(environment.landing), "jobs")
    cpu = report["cpu"] + environment.cpu() - before
    assert report["counts"]["updated"] == CHANGED, report
    stale = {month for (month,) in connection.execute("SELECT DISTINCT month FROM analytics.stale_months")}
    assert stale == months, f"stale: {sorted(stale)}, touched: {sorted(months)}"
    yield BenchRow(
        SECTION, f"a re-export of {environment.jobs:,} jobs with {CHANGED} changed", report["seconds"], "s",
        "bare COPY of the jobs", environment.seconds["bare copy jobs"], limit=1.0,
        note=f"exactly the {len(months)} changed months became stale; peak {report['peak_mb']:.0f} MB;"
        f" CPU {cpu:.1f} : {environment.seconds['cpu copy jobs']:.1f} s",
    )  # fmt: skip
    path.unlink()
    connection.execute("VACUUM ANALYZE raw.jobs, raw.payments")
