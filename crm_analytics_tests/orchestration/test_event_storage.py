"""Dagster's events are stored in batches: the same events as dagster-postgres stores, with fewer statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
from dagster_postgres.event_log import PostgresEventLogStorage

from crm_analytics.core.database import database_url
from crm_analytics.orchestration.event_storage import BatchedEventStorage
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row

JOBS = dg.AssetKey(["raw", "jobs"])
FEBRUARY, MARCH = date(2023, 2, 1), date(2023, 3, 1)


def _dagster(platform: Platform, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url("dagster", platform.settings)) as connection:
        return connection.execute(query.encode()).fetchall()


def _stored(platform: Platform, run_id: str) -> tuple[Counter[Any], list[Any]]:
    """Returns the run's events (types, assets, months, steps) and the assets with their last run, as Dagster has them."""
    events = _dagster(
        platform,
        "SELECT dagster_event_type, asset_key, partition, step_key FROM event_logs"
        f" WHERE run_id = '{run_id}' AND dagster_event_type IS NOT NULL",
    )
    assets = _dagster(
        platform,
        f"SELECT asset_key, last_run_id = '{run_id}', last_materialization::json->'event_log_entry'->>'run_id' = '{run_id}'"
        " FROM asset_keys ORDER BY 1",
    )
    return Counter(events), assets


def test_batches_store_what_dagster_postgres_stores(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UI finds the same events of every asset and month, and the same last run of each asset."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2023-02-03"))
    first = platform.run(FEBRUARY, MARCH)
    ours = _stored(platform, first.run_id)
    assert platform.instance.get_materialized_partitions(JOBS) == {"2023-02", "2023-03"}
    monkeypatch.setattr(BatchedEventStorage, "store_event_batch", PostgresEventLogStorage.store_event_batch)
    second = platform.run(FEBRUARY, MARCH)
    assert first.success and second.success
    assert _stored(platform, second.run_id) == ours
    assert ours[0].total() > 100 and len(ours[1]) > 8


def test_a_check_is_planned_once_and_its_result_replaces_the_plan(platform: Platform) -> None:
    """A run over months leaves one row per check; Dagster alone would plan each check for each month, and forget it."""
    run_id = platform.run(FEBRUARY, MARCH, [JOBS]).run_id
    query = f"SELECT check_name, partition, execution_status FROM asset_check_executions WHERE run_id = '{run_id}' ORDER BY 1, id"
    rows = _dagster(platform, query)
    checks = platform.defs.resolve_asset_graph().asset_check_keys
    names = sorted(key.name for key in checks if key.asset_key == JOBS)
    assert len(names) > 5 and rows == [(name, None, "SUCCEEDED") for name in names]
    # a run of one check stores its plan without a batch
    plan = platform.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED)[0]
    platform.instance.event_log_storage.store_event(plan)
    name = plan.get_dagster_event().asset_check_planned_data.check_name
    assert sorted(_dagster(platform, query)) == sorted([*rows, (name, None, "PLANNED")])


@contextmanager
def _statements(platform: Platform) -> Iterator[list[str]]:
    """Collects what the event log's storage executes."""
    storage = platform.instance.event_log_storage
    assert isinstance(storage, BatchedEventStorage)
    executed: list[str] = []

    def note(*arguments: Any) -> None:
        executed.append(arguments[2])

    sa.event.listen(storage._engine, "before_cursor_execute", note)
    yield executed
    sa.event.remove(storage._engine, "before_cursor_execute", note)


def test_more_months_need_no_more_statements(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two years of months are written with as many statements as two months, and listed no more often."""
    listings: list[object] = []
    list_months = dg.MonthlyPartitionsDefinition.get_partition_keys_in_range

    def note(*arguments: Any, **options: Any) -> Any:
        listings.append(arguments)
        return list_months(*arguments, **options)

    monkeypatch.setattr(dg.MonthlyPartitionsDefinition, "get_partition_keys_in_range", note)
    counts = []
    for last in (date(2023, 2, 1), date(2024, 12, 1)):
        listings.clear()
        with _statements(platform) as executed:
            assert platform.run(date(2023, 1, 1), last, [JOBS]).success
        counts.append((len(executed), len(listings)))
    (statements, lists), more = counts
    assert statements > 10 and lists and more[0] <= statements + 2 and more[1] == lists, counts
