"""Writes to the lake that are killed, come too late or meet others, and what becomes of old files and new columns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.lake import tables
from crm_analytics.analytics.lake.compare import Difference, differences
from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.errors import LakeError
from crm_analytics.analytics.lake.pending import overdue_months, pending_months
from crm_analytics.analytics.lake.tables import Mark, open_lake
from crm_analytics.analytics.lake.write import Written, one_at_a_time, require_own
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics_tests.analytics.lake.conftest import LakeLab
from crm_analytics_tests.analytics.model_comparison import refresh_stale
from crm_analytics_tests.conftest import wait_until_blocked

MAY, JUNE = date(2024, 5, 1), date(2024, 6, 1)
Connection = psycopg.Connection[Any]

#: Kills the process where the name says; what a name is patched with calls the original first, or doesn't.
KILLED = {
    "before it reads": "write, 'pending_months', False",
    "after the files of one table": "tables.Lake, 'files', True",
    "before the first commit": "tables.Lake, 'replace', False",
    "between the tables": "tables.Lake, 'replace', True",
    "after the commits": "write, '_note', False",
}
CHILD = """
import os, signal, sys
import psycopg
from crm_analytics.analytics.lake import tables, write
from crm_analytics.core.settings import Settings

def kill(owner, name, after):
    original = getattr(owner, name)
    def patched(*args, **kwargs):
        if after:
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, patched)

kill({patch})
config = Settings(_env_file=None, lake_url=sys.argv[2], lake_catalog_url=sys.argv[3])
with psycopg.connect(sys.argv[1], autocommit=True) as connection, tables.open_lake(config) as lake:
    write.write_pending(connection, lake)
"""


def put(connection: Connection, job: str, day: date, paid: str = "0.00") -> None:
    """Puts a job and its payment, and refreshes the month."""
    connection.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date) VALUES (%s, 'COD Service', 'Google', %s, %s)"
        " ON CONFLICT (job_id) DO NOTHING",
        [job, day, day],
    )
    connection.execute(
        "INSERT INTO raw.payments (payment_id, job_id_ref, paid_date, amount, status) VALUES (%s, %s, %s, %s, 'Paid')"
        " ON CONFLICT (payment_id) DO UPDATE SET amount = excluded.amount",
        [job, job, day, paid],
    )
    refresh_stale(connection)


def compared(lake: LakeLab, connection: Connection) -> list[Difference]:
    with open_lake(lake.settings) as opened:
        return differences(connection, opened)


def revenue(lake: LakeLab) -> list[tuple[Any, ...]]:
    return lake.query("SELECT franchise, month, sum(paid_total) FROM {job_facts} GROUP BY ALL ORDER BY ALL")


@pytest.mark.parametrize("moment", KILLED)
def test_a_write_that_is_killed_is_repeated_by_the_next_one(
    moment: str, analytics: Connection, analytics_url: str, lake: LakeLab
) -> None:
    """PostgreSQL has committed, the lake hasn't, or not everywhere: the months stay pending until all of it is there."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    put(analytics, "A", MAY, "25.50")
    put(analytics, "B", JUNE, "4.00")
    assert lake.settings.lake_url and lake.settings.lake_catalog_url
    arguments = [analytics_url, lake.settings.lake_url, lake.settings.lake_catalog_url]
    child = CHILD.replace("{patch}", KILLED[moment])
    done = subprocess.run([sys.executable, "-c", child, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [month.month for month in pending_months(analytics)] == [MAY, JUNE]
    assert compared(lake, analytics) == [], "a month that waits is no difference"
    assert overdue_months(analytics, 60) == []
    analytics.execute("UPDATE analytics.refresh_log SET finished_at = finished_at - interval '61 minutes'")
    assert [month.month for month in overdue_months(analytics, 60)] == [MAY, JUNE]
    # another refresh doesn't make the wait look shorter
    put(analytics, "B", JUNE, "5.00")
    assert [month.month for month in overdue_months(analytics, 60)] == [MAY, JUNE]
    lake.write(analytics)
    assert pending_months(analytics) == []
    assert revenue(lake) == [("main", MAY, Decimal("25.50")), ("main", JUNE, Decimal("5.00"))]
    lake.assert_as(analytics)


def test_what_is_not_pending_is_not_written_again(analytics: Connection, lake: LakeLab) -> None:
    """A refresh that confirms its month writes nothing, and neither does a second write."""
    put(analytics, "A", MAY)
    put(analytics, "B", JUNE)
    assert set(lake.write(analytics).versions) == {MAY, JUNE}
    refresh(analytics, MAY, JUNE)
    assert lake.write(analytics).versions == {}
    put(analytics, "B", JUNE, "1.00")
    written = lake.write(analytics)
    assert (set(written.versions), written.rows["job_facts"]) == ({JUNE}, 1)
    version = analytics.execute("SELECT max(refresh_id) FROM analytics.refresh_log").fetchone()
    with open_lake(lake.settings) as opened:
        for dataset in DATASETS:
            snapshot = opened.catalog.load_table(("lake", dataset.name)).current_snapshot()
            assert snapshot is not None and snapshot.summary is not None
            assert snapshot.summary["crm-analytics.versions"] == f"2024-06={version[0] if version else 0}"


def test_a_month_that_lost_its_rows_is_empty_in_the_lake(analytics: Connection, lake: LakeLab) -> None:
    """Removing is a restatement, too."""
    put(analytics, "A", MAY, "10.00")
    put(analytics, "B", JUNE, "4.00")
    lake.write(analytics)
    analytics.execute("DELETE FROM raw.payments; DELETE FROM raw.jobs WHERE job_id = 'A'")
    refresh_stale(analytics)
    lake.write(analytics)
    assert revenue(lake) == [("main", JUNE, Decimal("0.00"))]
    lake.assert_as(analytics)


def test_facts_that_change_where_no_metric_does_reach_the_lake(analytics: Connection, lake: LakeLab) -> None:
    """Two jobs swap their payments: every metric stays as it was, but not what was paid for which job."""
    put(analytics, "A", MAY, "10.00")
    put(analytics, "B", MAY, "20.00")
    lake.write(analytics)
    analytics.execute("UPDATE raw.payments SET job_id = CASE job_id WHEN 'A' THEN 'B' ELSE 'A' END")
    changed = [month.changed_rows for month in refresh(analytics, MAY, JUNE)]
    assert changed == [0]
    lake.write(analytics)
    facts = lake.query("SELECT job_id, paid_total FROM {job_facts} ORDER BY job_id")
    assert facts == [("A", Decimal("20.00")), ("B", Decimal("10.00"))]


def test_a_month_that_waits_for_its_refresh_waits_for_the_lake(analytics: Connection, lake: LakeLab) -> None:
    """Facts are views of the newest rows and metrics are not: in the lake they always agree."""
    put(analytics, "A", MAY, "10.00")
    analytics.execute("UPDATE raw.payments SET amount = 99")
    assert lake.write(analytics).versions == {}
    refresh_stale(analytics)
    lake.write(analytics)
    assert revenue(lake) == [("main", MAY, Decimal("99.00"))]


def test_an_older_write_never_replaces_a_newer_one(analytics: Connection, lake: LakeLab) -> None:
    """A write that was held up, and lost its lock, finds the newer write's mark and leaves the table as it is."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    put(analytics, "A", MAY, "20.00")
    lake.write(analytics)
    with open_lake(lake.settings) as opened:
        newest = opened.mark("job_facts")
        assert newest is not None
        late = Mark(newest.write_id - 1, newest.database)
        with pytest.raises(LakeError, match="came too late"):
            opened.replace("job_facts", [MAY], [], late, {})
    assert revenue(lake) == [("main", MAY, Decimal("20.00"))]


def test_a_commit_that_others_beat_is_tried_again_from_the_start(
    analytics: Connection, lake: LakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer write may come between an older one's look at the table and its commit: then it looks again."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    expire = tables._expire
    newer: list[None] = []

    def meanwhile(table: Any, commit: Any) -> None:
        if not newer:
            newer.append(None)
            put(analytics, "A", MAY, "20.00")
            lake.write(analytics)
        expire(table, commit)

    with open_lake(lake.settings) as opened:
        mark = opened.mark("job_facts")
        assert mark is not None
        monkeypatch.setattr(tables, "_expire", meanwhile)
        with pytest.raises(LakeError, match="came too late"):
            opened.replace("job_facts", [MAY], [], mark, {})
    assert revenue(lake) == [("main", MAY, Decimal("20.00"))]


def test_one_write_of_a_franchise_waits_for_another(
    analytics: Connection, analytics_url: str, lake: LakeLab
) -> None:
    """The second one finds nothing left to do, or what was refreshed meanwhile."""
    put(analytics, "A", MAY, "10.00")
    done: list[Written] = []

    def work() -> None:
        with psycopg.connect(analytics_url, autocommit=True) as connection:
            done.append(lake.write(connection))

    second = threading.Thread(target=work)
    with one_at_a_time(analytics, print):
        second.start()
        wait_until_blocked(analytics, "advisory")
        put(analytics, "B", JUNE, "4.00")
    second.join()
    assert set(done[0].versions) == {MAY, JUNE}


def test_franchises_write_at_once(new_database: Callable[..., str], lake: LakeLab) -> None:
    """Each wins some of the races for a table's next snapshot, and none loses its rows, not even at the first write."""
    names = ["queens", "bronx", "yonkers"]
    urls = {name: new_database("analytics") for name in names}
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with psycopg.connect(urls[name], autocommit=True) as connection:
                for paid in range(1, 6):
                    put(connection, "A", MAY, f"{paid}.00")
                    lake.of(name).write(connection)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert revenue(lake) == [(name, MAY, Decimal("5.00")) for name in sorted(names)]


def test_another_database_does_not_write_the_same_franchise(
    analytics: Connection, new_database: Callable[..., str], lake: LakeLab
) -> None:
    """Two installations that forgot FRANCHISES would replace each other's months; the second one is refused, and told."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    with psycopg.connect(new_database("analytics"), autocommit=True) as other:
        put(other, "B", MAY, "1.00")
        with pytest.raises(LakeError, match="give each its name in FRANCHISES"):
            lake.write(other)
        assert revenue(lake) == [("main", MAY, Decimal("10.00"))]
        lake.write(other, rewrite=True)
        assert revenue(lake) == [("main", MAY, Decimal("1.00"))]
        lake.assert_as(other)
    with open_lake(lake.settings) as opened, pytest.raises(LakeError):
        require_own(analytics, opened)


def test_a_database_that_was_put_back_notices_that_the_lake_is_ahead(
    analytics: Connection, lake: LakeLab
) -> None:
    """The same database at an earlier state has forgotten writes, and their months would stay in the lake for good."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    put(analytics, "B", JUNE, "20.00")
    lake.write(analytics)
    # as a restore to the state between the two
    analytics.execute("DELETE FROM analytics.lake_months WHERE write_id = 2")
    analytics.execute("DELETE FROM analytics.lake_writes WHERE write_id = 2")
    analytics.execute(
        "DELETE FROM raw.payments WHERE payment_id = 'B'; DELETE FROM raw.jobs WHERE job_id = 'B'"
    )
    analytics.execute("TRUNCATE analytics.stale_months")
    analytics.execute("DELETE FROM analytics.refresh_log WHERE month = '2024-06-01'")
    analytics.execute("DELETE FROM analytics.daily_metrics WHERE date >= '2024-06-01'")
    analytics.execute("DELETE FROM analytics.monthly_metrics WHERE month >= '2024-06-01'")
    for _ in range(3):  # trying does not help
        with pytest.raises(LakeError, match="--rewrite"):
            lake.write(analytics)
    with pytest.raises(LakeError, match="--rewrite"):
        compared(lake, analytics)
    lake.write(analytics, rewrite=True)
    assert revenue(lake) == [("main", MAY, Decimal("10.00"))]
    lake.assert_as(analytics)
    assert compared(lake, analytics) == []


def test_a_new_lake_gets_all_of_history(
    analytics: Connection, lake: LakeLab, new_lake: Callable[..., LakeLab]
) -> None:
    """Months that another lake has are not in this one, whatever is noted; until they are, the comparison tells."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    other = new_lake()
    assert {(d.month, d.lake) for d in compared(other, analytics)} == {(MAY, 0)}
    put(analytics, "B", JUNE, "20.00")
    other.write(analytics)
    other.assert_as(analytics)


def test_a_difference_is_found(analytics: Connection, lake: LakeLab) -> None:
    """What was changed behind the refresh's back is named with its month, measure and both values."""
    put(analytics, "A", MAY, "10.00")
    put(analytics, "B", JUNE, "4.00")
    lake.write(analytics)
    analytics.execute("UPDATE analytics.monthly_metrics SET repairs = 7 WHERE month = '2024-05-01'")
    assert compared(lake, analytics) == [Difference("monthly_metrics", MAY, "repairs", 7, 0)]


def test_a_new_column_comes_into_the_lake(analytics: Connection, lake: LakeLab) -> None:
    """Its migration makes every month stale, so that all of history gets it; no declaration needs to be changed."""
    put(analytics, "A", MAY, "10.00")
    lake.write(analytics)
    analytics.execute(
        "ALTER TABLE analytics.monthly_metrics ADD COLUMN tips numeric(12, 2) NOT NULL DEFAULT 1.25"
    )
    analytics.execute("COMMENT ON COLUMN analytics.monthly_metrics.tips IS 'Dollars: tips.'")
    analytics.execute("SELECT analytics.queue_every_month('0009_tips')")
    refresh_stale(analytics)
    lake.write(analytics)
    assert lake.query("SELECT tips FROM {monthly_metrics}") == [(Decimal("1.25"),)]
    with open_lake(lake.settings) as opened:
        assert (
            opened.catalog.load_table(("lake", "monthly_metrics")).schema().find_field("tips").doc
            == "Dollars: tips."
        )
    lake.assert_as(analytics)
    assert compared(lake, analytics) == []


def test_an_amount_without_a_scale_is_refused(analytics: Connection, lake: LakeLab) -> None:
    """Decimal places are never guessed."""
    put(analytics, "A", MAY, "10.00")
    analytics.execute("ALTER TABLE analytics.daily_metrics ADD COLUMN rate numeric")
    with pytest.raises(LakeError, match=r"daily_metrics\.rate is of type numeric"):
        lake.write(analytics)


def test_the_columns_of_the_lake(analytics: Connection) -> None:
    """Nothing about a person gets there: a column of the facts comes into the lake only after somebody has looked here."""
    types = {
        dataset.name: {field.name: str(field.type) for field in dataset.schema(analytics)}
        for dataset in DATASETS
    }
    dollars, cents = "decimal128(18, 4)", "decimal128(14, 2)"
    metrics = {
        "source": "string", "segment": "string", "jobs": "int32", "units": "int32", "repairs": "int32",
        "leads": "int32", "calls": "int32", "cost": cents, "revenue_gross": cents,
        "updated_at": "timestamp[us, tz=UTC]", "revenue40": dollars, "profit": dollars,
    }  # fmt: skip
    key = {"franchise": "string", "month": "date32[day]"}
    assert types == {
        "job_facts": {
            **key, "job_id": "string", "job_date": "date32[day]", "source": "string", "segment": "string",
            "is_unit": "bool", "is_repair": "bool", "repair_rule": "string", "is_lead": "bool",
            "lead_rule": "string", "cost_rule": "string", "lead_cost": "decimal128(18, 2)",
            "paid_total": "decimal128(18, 2)",
        },
        "daily_metrics": {**key, "date": "date32[day]", **metrics},
        "monthly_metrics": {**key, **metrics},
    }  # fmt: skip


def test_odd_texts_arrive_as_they_are(analytics: Connection, lake: LakeLab) -> None:
    """Quotes, commas, line ends, what looks like a number or like nothing: NULL and text are told apart."""
    texts = ['say "hi", twice', "two\nlines", "0012", "t", "NULL", "\\N", "\\.", "naïve ☃", "true"]
    for number, text in enumerate(texts):
        put(analytics, text, MAY, f"{number}.10")
    analytics.execute("UPDATE raw.jobs SET source = job_id")
    refresh_stale(analytics)
    lake.write(analytics)
    assert lake.query("SELECT job_id FROM {job_facts} ORDER BY paid_total") == [(text,) for text in texts]
    lake.assert_as(analytics)


def test_history_and_files_stay_bounded(
    analytics: Connection, lake: LakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old snapshots are forgotten, old metadata and unneeded files removed; what the table needs stays, and the young."""
    monkeypatch.setattr(tables, "KEPT_SNAPSHOTS", 5)
    for paid in range(15):
        put(analytics, "A", MAY, f"{paid}.00")
        lake.write(analytics)
    assert lake.settings.lake_url
    folder = Path(lake.settings.lake_url.removeprefix("file://"))
    with open_lake(lake.settings) as opened:
        table = opened.catalog.load_table(("lake", "job_facts"))
        assert len(table.snapshots()) <= 6
        for snapshot in table.snapshots():
            assert table.scan(snapshot_id=snapshot.snapshot_id).count() == 1, (
                "a reader travels to whole states only"
            )
        files = {path for path in folder.rglob("*") if path.is_file() and "job_facts" in path.parts}
        young = Path(table.location().removeprefix("file://")) / "data" / "young.parquet"
        young.write_bytes(b"of a write that goes on")
        for path in files:
            os.utime(path, (0, 0))
        removed = tables.sweep(opened.catalog, "job_facts", datetime(2020, 1, 1, tzinfo=UTC))
        left = {path for path in folder.rglob("*") if path.is_file() and "job_facts" in path.parts}
        assert removed == len(files - left) > 15
        assert young in left
        assert len([path for path in left if path.suffix == ".parquet"]) <= 7
        assert len([path for path in left if path.name.endswith("metadata.json")]) <= 11
        for snapshot in table.snapshots():
            assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows == 1
    put(analytics, "A", MAY, "77.00")
    lake.write(analytics)
    assert revenue(lake) == [("main", MAY, Decimal("77.00"))]
