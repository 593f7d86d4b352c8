"""DuckDB and pandas on the same exports, for the same daily numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import duckdb
import pandas as pd
import psycopg
import sqlalchemy as sa

from bench.cost import Cost, by_turns
from bench.environment import Environment
from bench.exports import Exports
from bench.loads import TABLES, business, landing, loaded
from bench.table import BenchRow
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.database import sqlalchemy_url
from crm_analytics.core.months import next_month

SECTION = "comparators"
#: Rows that pandas inserts: a million would take longer than the rest of the benchmark.
INSERTED = 50_000
CHANNELS = {
    "google": ("Google", "jobs"), "googleads": ("Google", "jobs"), "elocals": ("eLocals", "own"),
    "pro referral": ("Pro Referral", "own"), "rely": ("Rely", "units"), "nsa": ("NSA", "units"),
    "liberty": ("Liberty", "units"), "retention": ("Retention", "jobs"),
}  # fmt: skip

_DUCKDB = """
WITH paid AS (
    SELECT "Job #" AS number, sum("Amount") AS paid
    FROM read_csv($payments, header = true, types = {'Amount': 'DECIMAL(12,2)'})
    WHERE lower(trim("Status")) NOT IN ('failed', 'pending', 'voided', 'declined') GROUP BY 1
), jobs AS (
    SELECT strptime("Created", '%a %b %d %Y')::date AS day, lower(trim(coalesce("Source", ''))) AS source,
        lower(trim("Job Type")) AS type, coalesce(p.paid, 0) AS paid
    FROM read_csv($jobs, header = true, parallel = false, quote = '"',
        types = {'UUID': 'VARCHAR', 'Created': 'VARCHAR'}) j
    LEFT JOIN paid p ON p.number = j."Job #"
)
SELECT day, source, CASE WHEN regexp_matches(type, '\\bcod\\b') THEN 'COD'
    WHEN regexp_matches(type, '\\bins\\b') THEN 'INS' ELSE 'OTHER' END AS segment,
    count(*) AS jobs, count(*) FILTER (WHERE type IN ('cod service', 'ins service')) AS units,
    count(*) FILTER (WHERE type IN ('cod repair', 'ins repair') OR (type = 'cod service' AND paid > 100)) AS repairs,
    sum(paid) AS revenue_gross
FROM jobs GROUP BY ALL
"""


def rows(environment: Environment) -> Iterator[BenchRow]:
    """Yields the lines, after checking that each comparator's jobs, repairs and revenue equal ours."""
    database = loaded(environment)
    size = business(environment)
    with environment.connect(database) as connection:
        if "metrics" not in environment.costs:
            end = next_month(size.last.replace(day=1))
            environment.note("metrics", environment.measure(lambda: refresh(connection, size.first, end)))
        answer = _answer(connection)
    jobs_file, payments_file = (next((landing(environment) / table).iterdir()) for table in TABLES)
    exports = Exports(jobs_file, payments_file)
    frames: list[pd.DataFrame] = []

    def read() -> None:
        frames[:] = _read(exports)

    def checked(name: str, compute: Callable[[], list[Any]]) -> Callable[[], Cost]:
        def work() -> Cost:
            found: list[Any] = []
            cost = environment.measure(lambda: found.extend(compute()))
            assert tuple(found) == answer, f"{name}: {found}, ours: {answer}"
            return cost

        return work

    environment.say("DuckDB and pandas on the same CSVs")
    in_duckdb, reading, grouping = by_turns(
        checked("DuckDB", lambda: _duckdb(exports)),
        lambda: environment.measure(read),
        checked("pandas", lambda: _groupby(*frames)),
    )
    ours = environment.cost("load") + environment.cost("metrics")
    yield BenchRow.of_costs(
        SECTION, "from CSVs to daily metrics", ours, "DuckDB in memory, nothing stored", in_duckdb, 12.0
    )
    yield BenchRow.of_costs(
        SECTION, "from CSVs to daily metrics", ours, "pandas read_csv and groupby", reading + grouping
    )
    yield BenchRow.of_costs(
        SECTION, "daily and monthly metrics, computed in PostgreSQL", environment.cost("metrics"),
        "pandas groupby on frames in memory", grouping,
    )  # fmt: skip
    environment.say("pandas to_sql")
    inserted = min(INSERTED, size.jobs)
    frame = frames[0].head(inserted)
    (to_sql,) = by_turns(lambda: _to_sql(environment, database, frame))
    yield BenchRow.of_costs(
        SECTION, f"load of {inserted:,} jobs from the CSV", environment.cost("load jobs") / (size.jobs / inserted),
        "pandas to_sql of the frame, without reading the CSV", to_sql,
        note=f"ours: that part of the load of {size.jobs:,}; same indexes",
    )  # fmt: skip


def _answer(connection: psycopg.Connection[Any]) -> tuple[int, int, Decimal]:
    """Returns our jobs, repairs and revenue, without the payments whose job is unknown: the comparators join them away."""
    found = connection.execute(
        """
        SELECT sum(jobs), sum(repairs),
            sum(revenue_gross) - (SELECT coalesce(sum(amount), 0) FROM analytics.orphan_payments)
        FROM analytics.daily_metrics
        """
    ).fetchone()
    assert found is not None
    return int(found[0]), int(found[1]), found[2]


def _duckdb(exports: Exports) -> list[Any]:
    with duckdb.connect() as connection:
        connection.execute("SET threads = 2")
        result = connection.execute(
            _DUCKDB, {"jobs": str(exports.jobs), "payments": str(exports.payments)}
        ).fetchall()
    return [
        sum(row[3] for row in result),
        sum(row[5] for row in result),
        sum((row[6] for row in result), Decimal(0)),
    ]


def _read(exports: Exports) -> list[pd.DataFrame]:
    jobs = pd.read_csv(
        exports.jobs,
        usecols=["Job #", "UUID", "Job Type", "Source", "Status", "Created"],
        dtype={"UUID": str},
    )
    jobs["Created"] = pd.to_datetime(jobs["Created"], format="%a %b %d %Y")
    payments = pd.read_csv(exports.payments, usecols=["Job #", "Status", "Amount"], dtype={"Amount": str})
    payments["cents"] = (payments["Amount"].str.replace(".", "", regex=False)).astype("int64")
    return [jobs, payments]


def _groupby(jobs: pd.DataFrame, payments: pd.DataFrame) -> list[Any]:
    counted = payments[~payments["Status"].str.casefold().isin(["failed", "pending", "voided", "declined"])]
    paid = counted.groupby("Job #")["cents"].sum()
    kind = jobs["Job Type"].str.casefold()
    source = jobs["Source"].fillna("").str.casefold()
    total = jobs["Job #"].map(paid).fillna(0).astype("int64")
    frame = pd.DataFrame(
        {
            "day": jobs["Created"],
            "source": source.map({name: channel for name, (channel, _) in CHANNELS.items()}).fillna(
                source.str.title()
            ),
            "segment": kind.map({text: _segment(text) for text in kind.unique()}),
            "jobs": 1,
            "units": kind.isin(["cod service", "ins service"]).astype(int),
            "repairs": (
                kind.isin(["cod repair", "ins repair"]) | ((kind == "cod service") & (total > 10_000))
            ).astype(int),
            "cents": total,
        }
    )
    daily = frame.groupby(["day", "source", "segment"], observed=True).sum()
    frame["day"] = frame["day"].dt.to_period("M")
    frame.groupby(["day", "source", "segment"], observed=True).sum()
    return [int(daily["jobs"].sum()), int(daily["repairs"].sum()), Decimal(int(daily["cents"].sum())) / 100]


def _segment(text: str) -> str:
    words = re.findall(r"\w+", text)
    return "COD" if "cod" in words else "INS" if "ins" in words else "OTHER"


def _to_sql(environment: Environment, database: str, frame: pd.DataFrame) -> Cost:
    with environment.connect(database) as connection:
        connection.execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench")
        connection.execute("CREATE TABLE bench.jobs (LIKE raw.jobs INCLUDING ALL)")
    named = pd.DataFrame(
        {
            "job_id": frame["UUID"],
            "job_number": frame["Job #"].astype(str),
            "type": frame["Job Type"],
            "source": frame["Source"],
            "status": frame["Status"],
            "created_at": frame["Created"],
            "job_date": frame["Created"].dt.date,
        }
    )
    engine = sa.create_engine(sqlalchemy_url(environment.analytics(database), "postgresql+psycopg"))

    def work() -> None:
        with engine.begin() as connection:
            named.to_sql(
                "jobs", connection, schema="bench", if_exists="append", index=False, chunksize=10_000
            )

    environment.checkpoint()
    cost = environment.measure(work)
    engine.dispose()
    return cost
