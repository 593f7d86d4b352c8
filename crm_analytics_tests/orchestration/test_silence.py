"""What is told when nothing happens: exports that stop, and sensors and schedules that start no runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime

import dagster as dg
import pytest
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.scheduler.instigation import InstigatorStatus

from crm_analytics.orchestration.alerts import ALERTS_KEY
from crm_analytics.orchestration.crm.resources import CrmDatabase
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row
from crm_analytics_tests.orchestration.daemon import Daemon, running
from crm_analytics_tests.orchestration.webhook import Webhook

OCTOBER = date(2024, 10, 1)
ANALYTICS_SENSORS = ("load_landing_files", "refresh_stale_months")


@pytest.fixture
def watched(platform: Platform, webhook: Webhook, new_database: Callable[..., str]) -> Platform:
    """The platform with a webhook, and with a CRM."""
    platform.change(alert_webhook_url=webhook.url, crm_database_url=new_database("crm"))
    return platform


@pytest.fixture
def daemon(watched: Platform) -> Iterator[Daemon]:
    with running(watched) as started:
        yield started


def check_freshness(platform: Platform) -> dict[str, tuple[bool, str]]:
    """Runs the hourly job; returns whether each source is fresh, and what is said of it."""
    result = platform.defs.resolve_job_def("check_freshness").execute_in_process(
        instance=platform.instance, raise_on_error=False
    )
    assert result.success
    return {
        check.asset_key.path[-1]: (check.passed, str(check.description))
        for check in result.get_asset_check_evaluations()
    }


def sent(platform: Platform) -> list[tuple[str, str]]:
    """Returns what is written down about the alerts, the oldest first: title and outcome."""
    records = platform.instance.fetch_observations(ALERTS_KEY, limit=100, ascending=True).records
    metadata = [record.asset_observation.metadata for record in records if record.asset_observation]
    return [(str(values["alert"].value), str(values["outcome"].value)) for values in metadata]


def test_stopped_exports_turn_the_check_red_and_are_told_once_and_so_is_their_return(
    watched: Platform, daemon: Daemon, webhook: Webhook
) -> None:
    """Seven days without new jobs are a warning at most; after that one alert is sent, and one when jobs come again.

    A run that loads nothing doesn't help, nor does a new file with old rows.
    """
    watched.drop("jobs/1.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-20"))
    watched.set_today("2024-10-23")
    daemon.tick()
    assert watched.run(OCTOBER, OCTOBER).success
    assert check_freshness(watched)["jobs"] == (True, "the newest row is of 2024-10-20, 3 days old")
    watched.set_today("2024-10-27")
    assert not check_freshness(watched)["jobs"][0]
    daemon.tick()
    assert webhook.texts == []

    watched.set_today("2024-10-28")
    watched.drop("jobs/2.csv", JOBS_HEADER, job_row("BBBBBB", "2024-10-19"))
    assert watched.run(OCTOBER, OCTOBER).success
    passed, told = check_freshness(watched)["jobs"]
    assert not passed
    assert told.startswith("the newest row is of 2024-10-20, 8 days old; expected: 7 days at most. Remedy: ")
    daemon.tick(2)
    check_freshness(watched)
    daemon.tick()
    (text,) = webhook.texts
    assert text.startswith(f"*Check failed: raw/jobs: fresh*\n{told}\n")

    watched.drop("jobs/3.csv", JOBS_HEADER, job_row("CCCCCC", "2024-10-28"))
    assert watched.run(OCTOBER, OCTOBER).success
    daemon.tick(2)
    assert webhook.texts[1:] == [webhook.texts[-1]]
    assert webhook.texts[1].startswith(
        "*Check recovered: raw/jobs: fresh*\nthe newest row is of 2024-10-28, 0 days old\n"
    )
    assert sent(watched) == [
        ("Check failed: raw/jobs: fresh", "sent"),
        ("Check recovered: raw/jobs: fresh", "sent"),
    ]


def test_expectations_can_be_replaced_and_rows_of_the_future_hide_nothing(watched: Platform) -> None:
    """Limits in analytics.source_expectations replace the declared ones; a mistyped year doesn't make a source fresh.

    A source without rows isn't late: the business may not use it. Of spend, the last day that it covers counts.
    """
    watched.execute(
        """
        INSERT INTO raw.jobs (job_id, created_at, job_date) VALUES ('A', now(), '2024-10-01'), ('B', now(), '2042-10-01');
        INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date) VALUES ('A', now(), '2024-10-01');
        INSERT INTO raw.google_spend (month, amount, covered_to) VALUES ('2024-08-01', 1, '2024-08-31');
        INSERT INTO analytics.targets (month, source, segment, target_repairs) VALUES
            ('2024-10-01', 'ALL', 'ALL', 1), ('2025-01-01', 'ALL', 'ALL', 1);
        """
    )
    watched.set_today("2024-10-16")
    late = "the newest row is of 2024-10-01, 15 days old"
    found = check_freshness(watched)
    assert found["jobs"][1].startswith(f"{late}; expected: 7 days at most")
    assert found["elocals_leads"][1].startswith(f"{late}; expected: 14 days at most")
    assert found["google_spend"][1].startswith("the newest row is of 2024-08-31, 46 days old; expected: 45")
    assert found["targets"] == (True, late)
    assert found["calls"] == (True, "no row yet")
    watched.execute(
        "INSERT INTO analytics.source_expectations VALUES ('jobs', 15, 20), ('elocals_leads', NULL, NULL), ('google_spend', 45, NULL)"
    )
    shown = dict(
        watched.query("SELECT source, days_behind FROM reporting.freshness WHERE days_behind IS NOT NULL")
    )
    assert shown == {"jobs": 15, "elocals_leads": 15, "google_spend": 46, "targets": 15}
    found = check_freshness(watched)
    assert found["jobs"] == (True, late) and found["elocals_leads"] == (True, late)
    assert found["google_spend"][1].endswith("analytics.source_expectations.")


def test_emptied_table_is_silence(watched: Platform) -> None:
    """Without a row, a source passes only while no file of it was loaded: rows that are gone tell of no silence.

    Nor do rows that are all in the future. Limits that are off stay off.
    """
    watched.drop("jobs/1.csv", JOBS_HEADER, job_row("AAAAAA", "2024-10-20"))
    watched.set_today("2024-10-21")
    assert watched.run(OCTOBER, OCTOBER).success
    watched.execute("DELETE FROM raw.jobs")
    found = check_freshness(watched)
    assert not found["jobs"][0]
    assert found["jobs"][1].startswith(
        "no row up to today, 2024-10-21, although files were loaded; expected: 7 days at most. Remedy: "
    )
    assert found["payments"] == (True, "no row yet")
    watched.execute(
        "INSERT INTO raw.jobs (job_id, created_at, job_date) VALUES ('B', now(), '2042-10-01');"
        "INSERT INTO analytics.source_expectations VALUES ('jobs', 3, NULL)"
    )
    assert not check_freshness(watched)["jobs"][0]
    watched.execute("UPDATE analytics.source_expectations SET warn_days = NULL")
    assert check_freshness(watched)["jobs"][0]


def test_sensor_that_raises_three_times_is_told_once_and_so_is_that_it_works_again(
    watched: Platform, daemon: Daemon, webhook: Webhook
) -> None:
    """Two failures in a row pass untold. The third is told, though alerts can't read the broken database either."""
    daemon.tick()
    watched.execute("ALTER TABLE raw.source_files RENAME TO source_files_gone")
    daemon.tick(2)
    watched.execute("ALTER TABLE raw.source_files_gone RENAME TO source_files")
    daemon.tick(2)
    assert webhook.texts == []
    watched.execute("ALTER TABLE raw.source_files RENAME TO source_files_gone")
    daemon.tick(6)
    for text, sensor in zip(sorted(webhook.texts), ANALYTICS_SENSORS, strict=True):
        assert text.startswith(f"*Sensor fails: {sensor}*\n3 ticks in a row, the last one: ")
        assert "missing: table raw.source_files" in text
    watched.execute("ALTER TABLE raw.source_files_gone RENAME TO source_files")
    daemon.tick(3)
    assert sorted(webhook.texts[2:]) == [
        f"*Works again: {sensor}*\nIts newest tick did not fail." for sensor in ANALYTICS_SENSORS
    ]
    assert sorted(sent(watched)) == [
        (f"{what}: {sensor}", "sent")
        for what in ("Sensor fails", "Works again")
        for sensor in ANALYTICS_SENSORS
    ]


def test_schedule_that_fails_three_nights_is_told(
    watched: Platform, daemon: Daemon, webhook: Webhook
) -> None:
    """A schedule that cannot ask for its runs is told after the third night, once: it reads the queue of stale months."""
    watched.execute("ALTER TABLE analytics.stale_months RENAME TO stale_months_gone")

    def told(what: str) -> list[str]:
        return [text for text in webhook.texts if text.startswith(f"*{what}: nightly_refresh*\n")]

    def night(day: int) -> None:
        daemon.schedules(datetime(2024, 11, day, 12, tzinfo=UTC))
        daemon.tick(2)

    daemon.schedules(datetime(2024, 11, 1, 12, tzinfo=UTC))  # from then on it is due
    for day, alerts in ((2, 0), (3, 0), (4, 1), (5, 1)):
        night(day)
        assert len(told("Schedule fails")) == alerts, day
    assert "missing: table analytics.stale_months" in told("Schedule fails")[0]
    watched.execute("ALTER TABLE analytics.stale_months_gone RENAME TO stale_months")
    night(6)
    assert len(told("Works again")) == 1


def test_sensor_that_is_turned_off_is_no_news(watched: Platform, daemon: Daemon, webhook: Webhook) -> None:
    """It doesn't work again, and is told again if it fails when it is on again."""

    def turn(status: InstigatorStatus) -> None:
        (state,) = [s for s in watched.instance.all_instigator_state() if s.name == "number_crm_changes"]
        watched.instance.update_instigator_state(state.with_status(status))

    with broken_crm(dg.Failure("the CRM is away")):
        daemon.tick(4)
        turn(InstigatorStatus.STOPPED)
        daemon.tick(2)
        told = "*Sensor fails: number_crm_changes*\n3 ticks in a row, the last one: the CRM is away"
        assert webhook.texts == [told]
        turn(InstigatorStatus.RUNNING)
        daemon.tick(2)
        assert webhook.texts == [told, told]


def test_code_server_that_was_away_says_nothing_about_a_sensor(
    watched: Platform, daemon: Daemon, webhook: Webhook
) -> None:
    """An upgrade stops the code server for a minute: no sensor fails for that, and none works again for it."""
    with broken_crm(DagsterUserCodeUnreachableError("away")):
        daemon.tick(5)
    assert webhook.texts == []
    with broken_crm(dg.Failure("the CRM is away")):
        daemon.tick(4)
    assert [text.split("\n")[0] for text in webhook.texts] == ["*Sensor fails: number_crm_changes*"]
    with broken_crm(DagsterUserCodeUnreachableError("away")):
        daemon.tick(3)
    assert len(webhook.texts) == 1
    daemon.tick(2)
    assert [text.split("\n")[0] for text in webhook.texts[1:]] == ["*Works again: number_crm_changes*"]


def test_sensor_that_takes_too_long_fails(watched: Platform, daemon: Daemon, webhook: Webhook) -> None:
    """Dagster calls the code server unreachable then, too, but a sensor that never ends starts no runs: it is told."""
    message = "The sensor tick timed out due to taking longer than 60 seconds to execute the sensor function."
    with broken_crm(DagsterUserCodeUnreachableError(message)):
        daemon.tick(4)
    assert webhook.texts == [f"*Sensor fails: number_crm_changes*\n3 ticks in a row, the last one: {message}"]


@contextmanager
def broken_crm(error: Exception) -> Iterator[None]:
    """Makes number_crm_changes raise."""
    with pytest.MonkeyPatch.context() as patch:

        def fail(_: object) -> None:
            raise error

        patch.setattr(CrmDatabase, "connection", fail)
        yield
