"""Ingest of the big exports against a bare COPY of the same typed rows into the same indexed tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from bench.environment import Ground, child, timed
from bench.exports import write_exports, write_reexport
from bench.table import BenchRow

SECTION = "ingest"
DATABASE = "ten_years"
CHANGED = 200
TABLES: tuple[LiteralString, ...] = ("jobs", "payments")


def loaded(ground: Ground) -> psycopg.Connection[Any]:
    """A connection to the database with the big exports, loaded (and timed) by whichever section needs it first."""
    fresh = DATABASE not in ground.databases
    connection = ground.connect(DATABASE)
    if fresh:
        ground.say(f"writing exports of {ground.jobs:,} jobs and {ground.payments:,} payments")
        write_exports(ground.landing, ground.jobs, ground.payments)
        for source in TABLES:
            ground.say(f"loading {source}")
            connection.execute("CHECKPOINT")
            before = ground.cpu()
            report = child("bench.load_child", ground.analytics(DATABASE), str(ground.landing), source)
            ground.seconds[f"cpu load {source}"] = report["cpu"] + ground.cpu() - before
            assert report["statuses"] == ["loaded"], report
            assert report["counts"]["inserted"] == report["counts"]["records_read"], report
            ground.seconds[f"load {source}"] = report["seconds"]
            ground.seconds[f"memory {source}"] = report["peak_mb"]
        connection.execute("VACUUM ANALYZE raw.jobs, raw.payments")
    return connection


def rows(ground: Ground) -> Iterator[BenchRow]:
    """The ingest lines of the table."""
    with loaded(ground) as connection:
        ours = sum(ground.seconds[f"load {table}"] for table in TABLES)
        bare = {table: _bare_copy(ground, connection, table) for table in TABLES}
        ground.seconds["bare copy jobs"] = bare["jobs"]
        size = f"{ground.jobs:,} jobs and {ground.payments:,} payments"
        yield BenchRow(
            SECTION, f"load exports of {size}", ours, "s", "bare COPY of the typed rows, same indexes", sum(bare.values()),
            limit=3.0, note=_details(ground, bare),
        )  # fmt: skip
        peak = max(ground.seconds[f"memory {table}"] for table in TABLES)
        yield BenchRow(SECTION, "peak memory of the loading process", peak, "MB", limit=600)
        yield from _again(ground, connection, sum(bare.values()))


def _details(ground: Ground, bare: dict[str, float]) -> str:
    parts = [
        f"{table} {ground.seconds[f'load {table}']:.1f} : {bare[table]:.1f} s (CPU"
        f" {ground.seconds[f'cpu load {table}']:.1f} : {ground.seconds[f'cpu copy {table}']:.1f} s)"
        for table in TABLES
    ]
    return ", ".join(parts)


def _bare_copy(ground: Ground, connection: psycopg.Connection[Any], table: LiteralString) -> float:
    """The better of two COPYs of the table's own rows into an empty twin: its indexes and constraints, no triggers."""
    ground.say(f"bare COPY of {table}")
    file = ground.folder / f"{table}.copy"
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
        before = ground.cpu() + time.process_time()
        seconds = timed(lambda: _copy_in(connection, f"COPY bench.{table} ({columns}) FROM STDIN", file))
        ground.seconds[f"cpu copy {table}"] = ground.cpu() + time.process_time() - before
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


def _again(ground: Ground, connection: psycopg.Connection[Any], bare: float) -> Iterator[BenchRow]:
    """The same files again, and a re-export with few changes."""
    connection.execute("DROP SCHEMA bench CASCADE")
    for path in ground.landing.rglob("*.csv"):
        path.touch()  # so that only its hash can tell that it is the same
    seconds = 0.0
    for source in TABLES:
        ground.say(f"loading {source} again")
        report = child("bench.load_child", ground.analytics(DATABASE), str(ground.landing), source)
        assert "loaded" not in report["statuses"], report
        seconds += report["seconds"]
    yield BenchRow(
        SECTION,
        "the same files again, touched: known by their hash",
        seconds,
        "s",
        "bare COPY of the rows",
        bare,
        limit=1.0,
    )
    path, months = write_reexport(ground.landing, ground.jobs, CHANGED)
    ground.say(f"loading a re-export with {CHANGED} changed rows")
    connection.execute("TRUNCATE analytics.stale_months")
    connection.execute("CHECKPOINT")
    before = ground.cpu()
    report = child("bench.load_child", ground.analytics(DATABASE), str(ground.landing), "jobs")
    cpu = report["cpu"] + ground.cpu() - before
    assert report["counts"]["updated"] == CHANGED, report
    stale = {month for (month,) in connection.execute("SELECT DISTINCT month FROM analytics.stale_months")}
    assert stale == months, f"stale: {sorted(stale)}, touched: {sorted(months)}"
    yield BenchRow(
        SECTION, f"a re-export of {ground.jobs:,} jobs with {CHANGED} changed", report["seconds"], "s",
        "bare COPY of the jobs", ground.seconds["bare copy jobs"], limit=1.0,
        note=f"stale afterwards: exactly the {len(months)} months touched; peak {report['peak_mb']:.0f} MB;"
        f" CPU {cpu:.1f} : {ground.seconds['cpu copy jobs']:.1f} s",
    )  # fmt: skip
    path.unlink()
    connection.execute("VACUUM ANALYZE raw.jobs, raw.payments")
