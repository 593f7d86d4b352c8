"""`crm-analytics up` whose exports stop: the running daemon tells of silence, and that it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import psycopg
import pytest

from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.databases import set_today
from crm_analytics_tests.orchestration.test_dead_runs import Served, launch
from crm_analytics_tests.orchestration.webhook import Webhook

RENAME = "ALTER TABLE raw.{} RENAME TO {}"


@pytest.fixture
def up(new_database: Callable[..., str], tmp_path: Path, webhook: Webhook) -> Iterator[Served]:
    served = Served(new_database, tmp_path)
    served.environment["ALERT_WEBHOOK_URL"] = webhook.url
    yield served
    if served.process and served.process.poll() is None:
        served.kill_everything()


def test_silence_is_told_by_the_running_daemon(up: Served, webhook: Webhook) -> None:
    """Exports that stop and a sensor that fails are told once each, and so is their end: nothing has to be set up."""

    def told(what: str) -> int:
        return sum(text.startswith(f"*{what}*") for text in webhook.texts)

    with psycopg.connect(up.analytics, autocommit=True) as connection:
        set_today(connection, date(2024, 11, 1))
        up.start()
        up.drop("A")
        up.wait(lambda: up.loaded("A"), PATIENCE)
        # its first tick begins with what happens from then on
        ticked = (
            "SELECT FROM job_ticks WHERE tick_body::json ->> 'job_name' = 'alerts' AND status = 'SKIPPED'"
        )
        up.wait(lambda: up.query(up.dagster, ticked), PATIENCE)
        set_today(connection, date(2024, 11, 8))
        checks = launch(up, "check_freshness")
        up.wait(lambda: up.status(checks) == "SUCCESS", PATIENCE)
        connection.execute(RENAME.format("source_files", "gone").encode())
        up.wait(lambda: told("Sensor fails: load_landing_files"), PATIENCE)
        connection.execute(RENAME.format("gone", "source_files").encode())
        up.wait(lambda: told("Works again: load_landing_files"), PATIENCE)
        set_today(connection, date(2024, 11, 1))
        up.drop("B")
        up.wait(lambda: told("Check recovered: raw/jobs: fresh"), PATIENCE)
    for what in ("Check failed: raw/jobs: fresh", "Sensor fails: load_landing_files"):
        assert told(what) == 1
