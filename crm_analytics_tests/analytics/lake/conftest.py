"""A lake on disk with its own catalog database, and DuckDB as the engine that reads it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.tables import open_lake
from crm_analytics.analytics.lake.write import Written, write_pending
from crm_analytics.core.settings import Settings

DAYS = {"job_facts": "job_date", "daily_metrics": "date", "monthly_metrics": "month"}


@dataclass
class LakeLab:
    """A lake, and what to do with it; every method opens it anew, as another process would."""

    settings: Settings

    def of(self, franchise: str) -> LakeLab:
        """The same lake, as another franchise's processes see it."""
        return LakeLab(self.settings.model_copy(update={"franchise": franchise}))

    def write(self, connection: psycopg.Connection[Any], *, rewrite: bool = False) -> Written:
        """Writes pending months."""
        with open_lake(self.settings) as lake:
            return write_pending(connection, lake, rewrite=rewrite)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks DuckDB; {job_facts} and so on stand for the tables."""
        with open_lake(self.settings) as lake:
            tables = {d.name: f"iceberg_scan('{lake.location(d.name)}')" for d in DATASETS}
        with duckdb.connect(config={"allow_unsigned_extensions": True}) as connection:
            for name in ("avro", "iceberg"):
                package = Path(importlib.import_module(f"duckdb_extension_{name}").__file__ or "").parent
                (extension,) = package.rglob("*.duckdb_extension")
                connection.execute(f"LOAD '{extension}'")
            connection.execute("SET TimeZone = 'UTC'")
            return connection.execute(sql.format(**tables)).fetchall()

    def assert_as(self, connection: psycopg.Connection[Any]) -> None:
        """Asserts that DuckDB reads exactly PostgreSQL's rows of the franchise, in every column of the lake."""
        franchise = self.settings.lake_franchise
        for dataset in DATASETS:
            month = f"date_trunc('month', {DAYS[dataset.name]}::timestamp)::date AS month"
            names = [name for name in dataset.schema(connection).names[2:] if name != "month"]
            query = f"SELECT {month}, {', '.join(names)} FROM "
            ours = connection.execute(f"{query} analytics.{dataset.name}".encode()).fetchall()
            theirs = self.query(
                f"SELECT month, {', '.join(names)} FROM {{{dataset.name}}} WHERE franchise = '{franchise}'"
            )
            assert sorted(map(exact, theirs)) == sorted(map(exact, ours)), dataset.name


def exact(row: tuple[Any, ...]) -> tuple[str, ...]:
    """Makes rows of both engines comparable, without letting a float pass for a decimal."""
    assert not any(isinstance(value, float) for value in row), row
    return tuple(f"{value.normalize():f}" if isinstance(value, Decimal) else repr_of(value) for value in row)


def repr_of(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


@pytest.fixture(scope="session")
def new_lake(
    new_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., LakeLab]:
    """Makes a lake with a folder and a catalog of its own."""

    def make(**changes: Any) -> LakeLab:
        url = str(tmp_path_factory.mktemp("lake"))
        values = {"lake_url": url, "lake_catalog_url": new_database(), **changes}
        return LakeLab(Settings(_env_file=None, **values))

    return make


@pytest.fixture
def lake(new_lake: Callable[..., LakeLab]) -> LakeLab:
    """A lake that nobody has written yet."""
    return new_lake()
