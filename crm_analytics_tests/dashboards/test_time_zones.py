"""Dashboards in a viewer's own time zone: the months that were chosen count, and are shown by their names."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from crm_analytics.dashboards.tools.expand_macros import expand
from crm_analytics.dashboards.tools.lint import queries_of
from crm_analytics_tests.dashboards.conftest import LEAP, Sample, as_reader, plus_months
from crm_analytics_tests.dashboards.test_queries import BOARDS, SEGMENTS

#: From 12 hours behind UTC to 14 ahead, with halves and quarters of hours, and changes of the clock.
ZONES = (
    "Etc/GMT+12", "America/New_York", "America/St_Johns", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe",
    "Pacific/Chatham", "Pacific/Kiritimati",
)  # fmt: skip
#: Ends of ranges: Grafana's own, one that was typed, and a midnight.
ENDS = (timedelta(milliseconds=1), timedelta(seconds=1), timedelta(0))
MONTHLY = sorted(
    {
        (source["uid"], f"{board['title']}: {where}", sql)
        for board in BOARDS
        for where, source, sql in queries_of(board)
        if "$__timeFrom()" in sql
    }
)


def midnight(day: date, zone: str) -> datetime:
    """Returns the day's first moment in a zone."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)


@pytest.fixture(scope="module")
def readers(sample: Sample, new_database: Any) -> Iterator[dict[str, psycopg.Connection[Any]]]:
    """Connections as grafana_reader: to the sample, with a revision of each month, and to a CRM with a lead in each."""
    crm = new_database("crm")
    with psycopg.connect(crm, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.leads DISABLE TRIGGER guard_rows")
        connection.execute(
            "INSERT INTO public.leads (source, created_at)"
            " SELECT 'site', at FROM generate_series(timestamptz '2024-01-15Z', now(), interval '1 month') AS at"
        )
    with psycopg.connect(sample.url, autocommit=True) as owner:
        owner.execute(
            """
            WITH revised AS (
                INSERT INTO analytics.revisions (month, refresh_id)
                SELECT DISTINCT ON (month) month, refresh_id FROM analytics.refresh_log ORDER BY month, refresh_id
                RETURNING revision_id
            )
            INSERT INTO analytics.revision_changes (revision_id, source, segment, measure, old, new)
            SELECT revision_id, %s, 'COD', 'repairs', 1, 2 FROM revised
            """,
            [sample.sources[0]],
        )
        with as_reader(sample.url, "analytics") as one, as_reader(crm, "crm") as other:
            yield {"crm-analytics-warehouse": one, "crm-analytics-crm": other}
        owner.execute("DELETE FROM analytics.revision_changes")
        owner.execute("DELETE FROM analytics.revisions")


def answer(
    connection: psycopg.Connection[Any], sql: str, sample: Sample, start: datetime, end: datetime
) -> list[tuple[Any, ...]]:
    """Returns what Grafana would get for a time range."""
    variables = {
        "source": sample.sources, "segment": SEGMENTS, "month": f"{sample.month:%Y-%m}",
        "metric": "repairs", "dagster_url": "x",
    }  # fmt: skip
    return connection.execute(expand(sql, start, end, variables).encode()).fetchall()


@pytest.mark.parametrize(
    ("uid", "sql"), [(uid, sql) for uid, _, sql in MONTHLY], ids=[name for _, name, _ in MONTHLY]
)
def test_whole_months_count_in_every_time_zone(
    readers: dict[str, psycopg.Connection[Any]], sample: Sample, uid: str, sql: str
) -> None:
    """Months chosen in New York are the same months as in UTC: no neighbor is added, none is lost."""
    connection = readers[uid]
    seen = 0
    for first, after in (
        (LEAP, plus_months(LEAP, 1)),
        (date(2024, 1, 1), date(2025, 1, 1)),
        (plus_months(sample.month, -2), sample.month),
        (plus_months(sample.month, -9), plus_months(sample.month, 1)),
    ):
        wanted = answer(connection, sql, sample, midnight(first, "UTC"), midnight(after, "UTC") - ENDS[0])
        seen += len(wanted)
        for zone in ("UTC", *ZONES):
            for end in ENDS:
                found = answer(connection, sql, sample, midnight(first, zone), midnight(after, zone) - end)
                assert found == wanted, (zone, first, after, end)
    assert seen or "orders" in sql or "money" in sql


@pytest.mark.parametrize(
    ("start", "end", "months"),
    [
        # whole months in UTC, New York, Kiritimati, and 12 hours behind UTC
        ("2024-11-01T00:00:00Z", "2024-11-30T23:59:59.999Z", ("2024-11", "2024-11")),
        ("2024-11-01T04:00:00Z", "2025-01-01T04:59:59.999Z", ("2024-11", "2024-12")),
        ("2024-10-31T10:00:00Z", "2024-11-30T09:59:59Z", ("2024-11", "2024-11")),
        ("2024-11-01T12:00:00Z", "2024-12-01T12:00:00Z", ("2024-11", "2024-11")),
        # one day, the first of a month
        ("2024-10-31T10:00:00Z", "2024-11-01T09:59:59.999Z", ("2024-11", "2024-11")),
        # moments that are midnight nowhere: the last six months, until now
        ("2024-05-31T23:07:11.123Z", "2024-12-01T03:07:11.123Z", ("2024-05", "2024-12")),
        # days in the middle of months
        ("2024-10-15T04:00:00Z", "2024-11-20T04:59:59.999Z", ("2024-10", "2024-11")),
    ],
)
@pytest.mark.parametrize("database", ["analytics", "crm"])
def test_bounds(new_database: Any, database: str, start: str, end: str, months: tuple[str, str]) -> None:
    """A range's bounds are the months that its viewer sees in the picker."""
    with psycopg.connect(new_database(database)) as connection:
        connection.execute("SET timezone = 'Asia/Tokyo'")
        found = connection.execute(
            "SELECT to_char(reporting.first_month(%s), 'YYYY-MM'), to_char(reporting.last_month(%s, %s), 'YYYY-MM')",
            [start, start, end],
        ).fetchone()
    assert found == months


def test_no_date_becomes_another_one(readers: dict[str, psycopg.Connection[Any]], sample: Sample) -> None:
    """Grafana shows a date as its midnight in UTC, which is the day before in New York; texts stay what they are."""
    times = 0
    for board in BOARDS:
        for where, source, sql in queries_of(board):
            variables = {
                "source": sample.sources, "segment": SEGMENTS, "month": f"{sample.month:%Y-%m}",
                "metric": "repairs", "dagster_url": "x",
            }  # fmt: skip
            text = expand(sql, midnight(LEAP, "UTC"), datetime.now(UTC), variables)
            cursor = readers[source["uid"]].execute(text.encode())
            assert cursor.description
            for place, column in enumerate(cursor.description):
                if column.type_display == "date":
                    # the axis of this panel is the day of the month, and the panel leaves out the date
                    assert column.name in ("date", "as_of"), (board["title"], where, column.name)
                elif column.type_display == "timestamp":
                    for row in cursor.fetchall():
                        times += 1
                        for zone in ZONES:
                            shown = row[place].replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
                            assert (shown.year, shown.month) == (row[place].year, row[place].month)
    assert times
