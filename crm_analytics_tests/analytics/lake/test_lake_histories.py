"""Random corrections, refreshes and writes in random order: the lake equals PostgreSQL, as another engine reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.analytics.lake.compare import differences
from crm_analytics.analytics.lake.pending import pending_months
from crm_analytics.analytics.lake.tables import open_lake
from crm_analytics_tests.analytics import test_arrival_histories as arrivals
from crm_analytics_tests.analytics import test_correction_histories as corrections
from crm_analytics_tests.analytics.lake.conftest import LakeLab
from crm_analytics_tests.analytics.model_comparison import assert_metrics, refresh_stale
from crm_analytics_tests.analytics.test_correction_histories import Model, Step
from crm_analytics_tests.chance import examples


@pytest.fixture(scope="module")
def connections(new_database: Callable[..., str]) -> Iterator[list[psycopg.Connection[Any]]]:
    """The databases of two franchises."""
    opened = [psycopg.connect(new_database("analytics"), autocommit=True) for _ in range(2)]
    yield opened
    for connection in opened:
        connection.close()


def compared(lab: LakeLab, connection: psycopg.Connection[Any]) -> list[Any]:
    with open_lake(lab.settings) as lake:
        return differences(connection, lake)


work = st.lists(
    st.tuples(st.integers(0, 1), corrections.bursts, st.booleans(), st.booleans()), min_size=6, max_size=9
)


@examples(4, shrink=False)
@given(fills=st.tuples(corrections.filling, corrections.filling), work=work)
def test_two_franchises_are_in_the_lake_as_in_their_databases(
    connections: list[psycopg.Connection[Any]],
    new_lake: Callable[..., LakeLab],
    fills: tuple[tuple[Step, ...], tuple[Step, ...]],
    work: list[tuple[int, list[Step], bool, bool]],
) -> None:
    """Whatever is changed, refreshed and written when, nothing differs but what waits, and in the end nothing waits.

    Two franchises with the same ids and months are in one lake, and add up there.
    """
    base = new_lake()
    labs = [base.of("queens"), base.of("bronx")]
    models = [Model(), Model()]
    for connection, model, fill in zip(connections, models, fills, strict=True):
        corrections.empty(connection)
        connection.execute(
            "TRUNCATE analytics.lake_months, analytics.lake_writes, analytics.refresh_log CASCADE"
        )
        for step in fill:
            step(connection, model)
        refresh_stale(connection)
    for which, burst, refreshes, writes in work:
        for step in burst:
            step(connections[which], models[which])
        if refreshes:
            refresh_stale(connections[which])
        if writes:
            labs[which].write(connections[which])
            assert all(month.is_stale for month in pending_months(connections[which]))
        assert compared(labs[which], connections[which]) == []
    for lab, connection, model in zip(labs, connections, models, strict=True):
        refresh_stale(connection)
        lab.write(connection)
        assert pending_months(connection) == []
        assert compared(lab, connection) == []
        assert_metrics(connection, model.warehouse())
        lab.assert_as(connection)
    sums = "SELECT coalesce(sum(jobs), 0), coalesce(sum(revenue40), 0), coalesce(sum(profit), 0) FROM "
    ours = [
        connection.execute(f"{sums} analytics.monthly_metrics").fetchone() or () for connection in connections
    ]
    assert base.query(sums + "{monthly_metrics}") == [tuple(map(sum, zip(*ours, strict=True)))]


@examples(3, shrink=False)
@given(
    files=arrivals.arrivals(),
    pauses=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=20, max_size=20),
)
def test_files_in_any_order_are_in_the_lake_as_in_postgresql(
    connections: list[psycopg.Connection[Any]],
    new_lake: Callable[..., LakeLab],
    tmp_path_factory: pytest.TempPathFactory,
    files: list[arrivals.Written],
    pauses: list[tuple[bool, bool]],
) -> None:
    """Late, repeated and conflicting exports restate months; refreshes and writes come when they come."""
    connection, lab = connections[0], new_lake()
    corrections.empty(connection)
    connection.execute(
        "TRUNCATE analytics.lake_months, analytics.lake_writes, analytics.refresh_log, raw.source_files,"
        " raw.rejected_rows, raw.vanished_rows CASCADE"
    )
    landing = tmp_path_factory.mktemp("landing")
    for file, (refreshes, writes) in zip(files, pauses, strict=False):
        arrivals.load(connection, landing, arrivals.into(landing), file)
        if refreshes:
            refresh_stale(connection)
        if writes:
            lab.write(connection)
        assert compared(lab, connection) == []
    refresh_stale(connection)
    lab.write(connection)
    assert pending_months(connection) == []
    assert_metrics(connection, arrivals.model_of(files).warehouse())
    lab.assert_as(connection)
