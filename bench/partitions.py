"""Ten million jobs with their payments: raw tables as they are, beside the same tables in hash partitions.

No part of a full run, because filling both takes minutes and 20 GB: `python -m bench partitions`. What it found is in
docs/decisions/no-hash-partitions.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread

import psycopg

from bench.cost import Cost, by_turns
from bench.environment import Environment
from bench.loads import load
from bench.table import BenchRow
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import SQL_DIR

SECTION = "hash partitions"
JOBS, PAYMENTS = 10_000_000, 15_000_000
PARTITIONS = 16
PLAIN, PARTITIONED = "plain", "partitioned"
#: A month of ten years, evenly filled.
MONTH = date(2025, 6, 1)
#: Records of a day's new export, and of a re-export of the last weeks in which one in fifty changed.
NEW, AGAIN = 10_000, 100_000

_FIRST_DAY, _DAYS = "date '2016-01-01'", 3653
_JOB_ID = "md5('job ' || n)::uuid::text"
_DAY = f"{_FIRST_DAY} + (n * {_DAYS} / %(jobs)s)::int"

_FILL = f"""
SET session_replication_role = replica;
INSERT INTO raw.jobs (job_id, job_number, type, source, status, created_at, job_date, technician, zip, total, file_id, record_no)
SELECT {_JOB_ID}, n::text, (ARRAY['COD Service', 'Warranty', 'Service Call', 'Home Warranty'])[1 + n %% 4],
    (ARRAY['Google', 'eLocals', 'Angi', 'Pro Referral', 'Yelp'])[1 + n %% 5], 'Done',
    ({_DAY})::timestamp AT TIME ZONE 'America/New_York', {_DAY}, 'Technician ' || n %% 6, (10001 + n %% 90)::text,
    85.5 + n %% 700, 1, n
FROM generate_series(0::bigint, %(jobs)s - 1) AS n;
INSERT INTO raw.payments (payment_id, job_ref, job_number_ref, job_id, paid_date, amount, method, status, file_id, record_no)
SELECT 'PAY-' || m, n::text, n::text, {_JOB_ID}, {_DAY}, 20 + m %% 400, 'Credit card', 'Paid', 2, m
FROM generate_series(0::bigint, %(payments)s - 1) AS m, LATERAL (SELECT m * %(jobs)s / %(payments)s AS n) AS job;
"""
#: Foreign keys first, then indexes, then the primary keys that they need.
_KEYS_AND_INDEXES = """
SELECT 1 AS step, format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid IN ('raw.jobs'::regclass, 'raw.payments'::regclass) AND contype = 'f' AND conparentid = 0
UNION ALL
SELECT 2, 'DROP INDEX ' || indexrelid::regclass, replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ')
FROM pg_index WHERE indrelid IN ('raw.jobs'::regclass, 'raw.payments'::regclass) AND NOT indisprimary
UNION ALL
SELECT 3, format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid IN ('raw.jobs'::regclass, 'raw.payments'::regclass) AND contype = 'p'
ORDER BY step
"""
#: Jobs as an export has them, in which one in fifty has another source.
_EXPORT = f"""
COPY (
    SELECT n AS "Job #", {_JOB_ID} AS "UUID", to_char({_DAY}, 'Mon DD YYYY') AS "Created",
        (ARRAY['COD Service', 'Warranty', 'Service Call', 'Home Warranty'])[1 + n %% 4] AS "Job Type",
        CASE WHEN n %% 50 = %(changed)s THEN 'Facebook'
            ELSE (ARRAY['Google', 'eLocals', 'Angi', 'Pro Referral', 'Yelp'])[1 + n %% 5] END AS "Job Source",
        'Done' AS "Status", 'Technician ' || n %% 6 AS "Tech", (10001 + n %% 90) AS "Zip", 85.5 + n %% 700 AS "Job Total"
    FROM generate_series(%(first)s::bigint, %(first)s + %(records)s - 1) AS n
) TO STDOUT (FORMAT csv, HEADER)
"""


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields how long each piece of work takes in plain tables, and in hash partitions (theirs)."""
    size = {"jobs": environment.scaled(JOBS), "payments": environment.scaled(PAYMENTS)}
    _create_partitioned(environment)
    environment.analytics(PLAIN)
    environment.say(f"filling {size['jobs']:,} jobs and {size['payments']:,} payments, twice")
    for database in (PLAIN, PARTITIONED):
        _fill(environment, database, size)
    numbers = count(1)
    works: dict[str, Callable[[str], Cost]] = {
        f"load of {NEW:,} new jobs": partial(_load, environment, size, NEW, size["jobs"], numbers),
        f"load of {AGAIN:,} known jobs, one in 50 changed": partial(
            _load, environment, size, AGAIN, size["jobs"] - AGAIN, numbers
        ),
        "refresh of one month": partial(_refresh, environment, MONTH, next_month(MONTH)),
        "refresh of one year": partial(_refresh, environment, date(2025, 1, 1), date(2026, 1, 1)),
        "VACUUM of jobs of which one in ten is dead, two sessions": partial(_vacuum, environment),
    }
    for what, work in works.items():
        environment.say(what)
        yield _row(what, *by_turns(partial(work, PLAIN), partial(work, PARTITIONED), rounds=3))


def _row(what: str, plain: Cost, partitioned: Cost) -> BenchRow:
    return BenchRow.of_costs(SECTION, what, plain, f"the same in {PARTITIONS} hash partitions", partitioned)


def _create_partitioned(environment: Environment) -> None:
    """Creates the analytics database from its own migrations, with both tables partitioned by their primary keys."""
    environment.analytics("bench_roles")  # makes what belongs to the server
    with psycopg.connect(environment.create(PARTITIONED), autocommit=True) as connection:
        for file in [
            *sorted((SQL_DIR / "analytics").glob("0*.sql")),
            *sorted((SQL_DIR / "analytics").glob("server.sql")),
        ]:
            connection.execute(_partitioned(file).encode())


def _partitioned(file: Path) -> str:
    text = file.read_text()
    for table, key in (("raw.jobs", "job_id"), ("raw.payments", "payment_id")):
        text, found = re.subn(
            rf"(CREATE TABLE {re.escape(table)} \(\n(?:    .*\n)+\));",
            rf"\1 PARTITION BY HASH ({key});\n"
            + "".join(
                f"CREATE TABLE {table}_{n} PARTITION OF {table} FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {n});\n"
                for n in range(PARTITIONS)
            ),
            text,
        )
        assert found == (file.name == "0001_raw.sql"), f"{file.name} makes {table} {found} times"
    return text


def _fill(environment: Environment, database: str, size: dict[str, int]) -> None:
    """Fills both tables without their keys and indexes, and makes these again: one by one would take an hour."""
    with psycopg.connect(environment.server.url(database), autocommit=True) as connection:
        objects = connection.execute(_KEYS_AND_INDEXES).fetchall()
        for _, dropped, _ in objects:
            connection.execute(dropped)
        psycopg.ClientCursor(connection).execute(_FILL.encode(), size)
        for _, _, made in reversed(objects):
            connection.execute(made)
        connection.execute("VACUUM ANALYZE raw.jobs, raw.payments")


def _load(
    environment: Environment,
    size: dict[str, int],
    records: int,
    first: int,
    numbers: Iterator[int],
    database: str,
) -> Cost:
    """Loads an export of `records` jobs from number `first` on; new ones get numbers that no export had before."""
    number = next(numbers)
    landing = environment.folder / f"partitions_{number}"
    path = landing / "jobs" / f"export_export_2026-02-{1 + number:02}T05_04_11.706Z.csv"
    path.parent.mkdir(parents=True)
    if first >= size["jobs"]:
        first += number * records
    values = {**size, "records": records, "first": first, "changed": number}
    with (
        psycopg.connect(environment.server.url(database)) as connection,
        path.open("wb") as file,
        psycopg.ClientCursor(connection).copy(_EXPORT.encode(), values) as lines,
    ):
        for line in lines:
            file.write(line)
    done = load(environment, database, landing, "jobs")
    assert done.statuses == ["loaded"], done
    return done.cost


def _refresh(environment: Environment, start: date, end: date, database: str) -> Cost:
    with psycopg.connect(environment.server.url(database), autocommit=True) as connection:
        connection.execute("TRUNCATE analytics.daily_metrics, analytics.monthly_metrics")
        environment.checkpoint()
        return environment.measure(lambda: refresh(connection, start, end))


def _vacuum(environment: Environment, database: str) -> Cost:
    """Vacuums the jobs by two sessions, each half of the partitions; plain tables have work for one only."""
    url = environment.server.url(database)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE raw.jobs SET record_no = record_no + 1 WHERE job_number::bigint % 10 = 0")
        tables = [
            table
            for (table,) in connection.execute(
                "SELECT relid::regclass::text FROM pg_partition_tree('raw.jobs') WHERE isleaf"
            )
        ] or ["raw.jobs"]
    environment.checkpoint()

    def vacuum(half: list[str]) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for table in half:
                connection.execute(f"VACUUM (PARALLEL 0) {table}".encode())

    def both() -> None:
        sessions = [Thread(target=vacuum, args=(tables[n::2],)) for n in range(2)]
        for session in sessions:
            session.start()
        for session in sessions:
            session.join()

    return environment.measure(both)
