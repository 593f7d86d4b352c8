"""Sensors and the schedule, tick by tick on a real instance."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics_tests.analytics.ingest.landing_folder import set_ages
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, PAYMENTS_HEADER, Platform, job_row

NEW_YORK = ZoneInfo("America/New_York")
OCTOBER = date(2024, 10, 1)


def tick(platform: Platform, sensor: str) -> list[dg.RunRequest]:
    """Evaluates a sensor once, as the daemon does."""
    context = dg.build_sensor_context(
        instance=platform.instance, definitions=platform.defs, resources=platform.resources
    )
    return list(platform.sensor(sensor).evaluate_tick(context).run_requests or [])


def launch(platform: Platform, requests: Iterable[dg.RunRequest]) -> None:
    """Runs what a sensor requested."""
    for request in requests:
        assert platform.launch(request.tags, request.asset_selection).success


def months(request: dg.RunRequest) -> tuple[str, str]:
    return (
        request.tags["dagster/asset_partition_range_start"],
        request.tags["dagster/asset_partition_range_end"],
    )


def test_late_file_restates_only_its_month(platform: Platform) -> None:
    """A late file recomputes its month and no other; then the sensors have nothing left to do."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"), job_row("BBBBBB", "2024-03-02"))
    launch(platform, tick(platform, "load_landing_files"))
    requests = tick(platform, "refresh_stale_months")
    assert [months(r) for r in requests] == [("2024-03", "2024-03"), ("2024-10", "2024-10")]
    launch(platform, requests)
    assert tick(platform, "refresh_stale_months") == [] and tick(platform, "load_landing_files") == []

    platform.drop("payments/late.csv", PAYMENTS_HEADER, "p1,AAAAAA,100.01,2024-12-24,paid")
    requests = tick(platform, "load_landing_files")
    assert [key.to_user_string() for key in requests[0].asset_selection or []] == ["raw/payments"]
    launch(platform, requests)
    requests = tick(platform, "refresh_stale_months")
    assert [months(r) for r in requests] == [("2024-10", "2024-10")]
    before = platform.query("SELECT count(*) FROM analytics.refresh_log WHERE month <> '2024-10-01'")
    launch(platform, requests)
    assert platform.query(
        "SELECT repairs, revenue_gross FROM analytics.monthly_metrics WHERE month = '2024-10-01'"
    ) == [(1, Decimal("100.01"))]
    assert platform.query("SELECT count(*) FROM analytics.refresh_log WHERE month <> '2024-10-01'") == before
    assert tick(platform, "refresh_stale_months") == []


def test_neighboring_stale_months_are_one_run(platform: Platform) -> None:
    """Neighboring months are requested as one run; months outside the partitions are left to their check."""
    platform.drop(
        "jobs/a.csv",
        JOBS_HEADER,
        *(job_row(f"JOB{n:03d}", day) for n, day in enumerate(
            ["2019-01-05", "2023-11-05", "2023-12-05", "2024-01-05", "2024-06-05"]
        )),
    )  # fmt: skip
    launch(platform, tick(platform, "load_landing_files"))
    assert [months(r) for r in tick(platform, "refresh_stale_months")] == [
        ("2023-11", "2024-01"),
        ("2024-06", "2024-06"),
    ]


def test_run_key_waits_for_news_after_a_failure(platform: Platform) -> None:
    """The run key changes with news only: the daemon drops a key that it has seen, so a failing refresh does not loop."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    launch(platform, tick(platform, "load_landing_files"))
    first = tick(platform, "refresh_stale_months")[0].run_key
    assert tick(platform, "refresh_stale_months")[0].run_key == first, "nothing changed, so the same key"
    platform.execute("UPDATE raw.jobs SET type = 'INS Service'")
    assert tick(platform, "refresh_stale_months")[0].run_key != first


def test_stale_run_loads_nothing(platform: Platform) -> None:
    """A run for stale months recomputes and checks, and leaves files to the landing sensor."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    launch(platform, tick(platform, "load_landing_files"))
    platform.drop("jobs/half.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-30"))
    for request in tick(platform, "refresh_stale_months"):
        result = platform.launch(request.tags, request.asset_selection)
        names = {check.check_name for check in result.get_asset_check_evaluations()}
        assert names >= {"revenue_adds_up", "daily_adds_up_to_monthly"} and "quarantine" not in names
    assert platform.query("SELECT job_id FROM raw.jobs") == [("AAAAAA",)]
    assert platform.query("SELECT jobs FROM analytics.monthly_metrics") == [(1,)]


def test_content_that_comes_back_is_news(platform: Platform) -> None:
    """Content that comes back is loaded again, although the file looks exactly as it did before."""
    exports = platform.landing.parent
    for day in ("30", "31"):
        (exports / f"{day}.csv").write_text(f"{JOBS_HEADER}\n{job_row('AAAAAA', f'2024-10-{day}')}\n")
    link = platform.landing / "jobs" / "newest.csv"
    link.parent.mkdir()
    keys = []
    for day in ("31", "30", "31"):
        link.unlink(missing_ok=True)
        link.symlink_to(exports / f"{day}.csv")
        requests = tick(platform, "load_landing_files")
        keys += [request.run_key for request in requests]
        assert [r.run_key for r in tick(platform, "load_landing_files")] == keys[-1:], (
            "a failure waits, it does not loop"
        )
        launch(platform, requests)
        assert tick(platform, "load_landing_files") == [], "it was read"
    assert len(keys) == 3 and len(set(keys)) == 3


def test_new_declaration_reads_an_unchanged_folder_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version of a declaration makes every file news: a release that reads more columns must load them."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    requests = tick(platform, "load_landing_files")
    monkeypatch.setitem(SOURCES, "jobs", replace(SOURCES["jobs"], version=SOURCES["jobs"].version + 1))
    assert [r.run_key for r in tick(platform, "load_landing_files")] != [r.run_key for r in requests]


def test_run_keys_name_their_database(platform: Platform, new_database: Callable[..., str]) -> None:
    """A new database gets run keys of its own; files and queue ids look like the old one's, whose keys the daemon knows."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    keys = []
    for url in (platform.url, new_database("analytics")):
        platform.change(analytics_database_url=url)
        for sensor in ("load_landing_files", "refresh_stale_months"):
            requests = tick(platform, sensor)
            keys += [request.run_key for request in requests]
            launch(platform, requests)
    assert len(keys) == 4 and len(set(keys)) == 4


def test_landing_sensor_keeps_its_state_in_the_ledger(platform: Platform) -> None:
    """Changed content is news; a touched file with the same content is not, nor is a refused file until it changes."""
    path = platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    platform.drop("jobs/login.csv", "<!DOCTYPE html><html></html>")
    platform.drop("mystery.csv", "color,shape", "red,round")
    launch(platform, tick(platform, "load_landing_files"))
    assert tick(platform, "load_landing_files") == [], "refused and unrecognized files are reported once"
    later = time.time() + 60
    os.utime(path, (later, later))
    assert tick(platform, "load_landing_files") == []
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-30"))
    platform.drop("jobs/login.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-30"))
    launch(platform, tick(platform, "load_landing_files"))
    assert platform.query("SELECT job_id, job_date::text FROM raw.jobs ORDER BY 1") == [
        ("AAAAAA", "2024-10-30"),
        ("BBBBBB", "2024-10-30"),
    ]
    assert tick(platform, "load_landing_files") == []


def test_growing_file_waits(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that still grows waits: half an export must not be loaded while the other half is being copied."""
    monkeypatch.setattr(LocalFolder, "quiet_seconds", 5.0)
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    ages = set_ages(monkeypatch, {"jobs/a.csv": 4.9})
    assert tick(platform, "load_landing_files") == []
    ages["jobs/a.csv"] = 5.0
    assert len(tick(platform, "load_landing_files")) == 1


def test_runs_leave_growing_files(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that something else started does not load a file that is still being copied either."""
    monkeypatch.setattr(LocalFolder, "quiet_seconds", 0.5)
    platform.drop("jobs/done.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    platform.drop("jobs/growing.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-31"))
    ages = set_ages(monkeypatch, {"jobs/done.csv": 1.0, "jobs/growing.csv": 0.0})
    assert platform.run(OCTOBER, OCTOBER).success
    assert platform.query("SELECT job_id FROM raw.jobs") == [("AAAAAA",)]
    with psycopg.connect(platform.url, autocommit=True) as connection:
        (left,) = landing_folder.not_loaded(connection, platform.landing)
    assert "jobs/growing.csv: changed, or could not be read" in left
    ages["jobs/growing.csv"] = 1.0
    launch(platform, tick(platform, "load_landing_files"))
    assert platform.query("SELECT job_id FROM raw.jobs ORDER BY 1") == [("AAAAAA",), ("BBBBBB",)]
    with psycopg.connect(platform.url, autocommit=True) as connection:
        assert landing_folder.not_loaded(connection, platform.landing) == []


def test_file_that_becomes_readable_is_news(platform: Platform) -> None:
    """A file whose permissions changed gets a new run key; size and time alone would never try it again."""
    path = platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    first = tick(platform, "load_landing_files")[0].run_key
    assert tick(platform, "load_landing_files")[0].run_key == first
    path.chmod(0o640)
    assert tick(platform, "load_landing_files")[0].run_key != first


def test_sensor_and_checks_name_what_cannot_be_read(platform: Platform) -> None:
    """A dangling link is named by the sensor and by a check, although it has no content and so no ledger entry."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    (platform.landing / "jobs" / "moved.csv").symlink_to("/nowhere/moved.csv")
    result = platform.run(OCTOBER, OCTOBER)
    (check,) = [
        evaluation
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.check_name == "files_read" and evaluation.asset_key == dg.AssetKey(["raw", "jobs"])
    ]
    assert not check.passed
    context = dg.build_sensor_context(instance=platform.instance, resources=platform.resources)
    assert 'jobs/moved.csv: "/nowhere/moved.csv": broken link; put back' in str(
        platform.sensor("load_landing_files").evaluate_tick(context).skip_message
    )


def test_missing_landing_folder_is_a_skip_with_a_reason(platform: Platform) -> None:
    """A missing folder skips the tick with the remedy; raising would fill the UI with red ticks."""
    platform.landing.rmdir()
    context = dg.build_sensor_context(instance=platform.instance, resources=platform.resources)
    assert "does not exist" in str(platform.sensor("load_landing_files").evaluate_tick(context).skip_message)


def evaluate_schedule(platform: Platform, at: datetime) -> list[dg.RunRequest]:
    context = dg.build_schedule_context(
        instance=platform.instance, scheduled_execution_time=at, resources=platform.resources
    )
    return list(platform.schedule("nightly_refresh").evaluate_tick(context).run_requests or [])


@pytest.mark.parametrize(
    ("at", "current"),
    [
        (datetime(2024, 11, 30, 3, 15, tzinfo=NEW_YORK), "2024-11"),
        (datetime(2024, 11, 30, 23, 59, tzinfo=NEW_YORK), "2024-11"),  # December in UTC already
        (datetime(2024, 12, 1, 3, 15, tzinfo=NEW_YORK), "2024-12"),
        (datetime(2024, 3, 10, 3, 15, tzinfo=NEW_YORK), "2024-03"),  # the night that has no 02:15
        (datetime(2024, 2, 29, 3, 15, tzinfo=NEW_YORK), "2024-02"),
    ],
)
def test_nightly_refreshes_the_current_month_of_the_business(
    platform: Platform, at: datetime, current: str
) -> None:
    """The nightly run covers the month that it is in local time, from the month's first night on."""
    requests = evaluate_schedule(platform, at)
    assert [months(r) for r in requests] == [(current, current)]
    assert requests[0].asset_selection is None, "the whole graph"


def test_nightly_refreshes_everything_stale(platform: Platform) -> None:
    """The nightly runs recompute every stale month, so that without sensors nothing stays stale longer than a day."""
    for day in ("2024-03-05", "2024-10-31", "2024-12-24"):
        platform.execute(
            "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
            f" VALUES ('J{day}', 'COD Service', 'Google', '{day} 12:00-05', '{day}')"
        )
    requests = evaluate_schedule(platform, datetime(2024, 12, 31, 3, 15, tzinfo=NEW_YORK))
    assert [months(r) for r in requests] == [
        ("2024-12", "2024-12"),
        ("2024-03", "2024-03"),
        ("2024-10", "2024-10"),
    ]
    launch(platform, requests)
    assert platform.query("SELECT count(*) FROM analytics.stale_months") == [(0,)]


def test_schedule_fires_once_a_night_across_clock_changes(platform: Platform) -> None:
    """The schedule fires once on every night, also when the clocks change."""
    from dagster._utils.schedules import schedule_execution_time_iterator

    nightly = platform.schedule("nightly_refresh")
    for start in (datetime(2024, 3, 8, 12, tzinfo=NEW_YORK), datetime(2024, 11, 1, 12, tzinfo=NEW_YORK)):
        times = schedule_execution_time_iterator(
            start.timestamp(), nightly.cron_schedule, nightly.execution_timezone
        )
        fired = [next(times).astimezone(NEW_YORK) for _ in range(4)]
        assert [(t.hour, t.minute) for t in fired] == [(3, 15)] * 4
        assert [t.date() for t in fired] == [start.date() + timedelta(days=n) for n in (1, 2, 3, 4)]


def test_refresh_run_during_open_load_leaves_its_month_queued(platform: Platform) -> None:
    """A refresh during an open load leaves that load's month in the queue, to be refreshed afterwards."""
    platform.drop("jobs/a.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-31"))
    launch(platform, tick(platform, "load_landing_files"))
    with psycopg.connect(platform.url) as loader:
        loader.execute(
            "INSERT INTO raw.payments (payment_id, job_ref, job_id_ref, job_id, paid_date, amount)"
            " VALUES ('p', 'AAAAAA', 'AAAAAA', 'AAAAAA', '2024-12-24', 500)"
        )
        launch(platform, tick(platform, "refresh_stale_months"))
        assert platform.query("SELECT revenue_gross FROM analytics.monthly_metrics") == [(0,)]
    launch(platform, tick(platform, "refresh_stale_months"))
    assert platform.query("SELECT revenue_gross FROM analytics.monthly_metrics") == [(500,)]
    with psycopg.connect(platform.url, autocommit=True) as connection:
        assert refresh(connection, OCTOBER, date(2024, 11, 1))[0].changed_rows == 0
