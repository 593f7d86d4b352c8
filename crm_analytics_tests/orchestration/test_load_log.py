"""A run's log has a line for each file, in few messages."""

from __future__ import annotations

from datetime import date

import dagster as dg
import psycopg

from crm_analytics.analytics.ingest.loading.results import FileResult
from crm_analytics.core.database import database_url
from crm_analytics.orchestration.analytics.load_log import LoadLog
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, Platform, job_row

FILES = 40


def test_many_files_make_few_messages(platform: Platform) -> None:
    """Every file has its line in the order in which it was loaded, but not an event of its own."""
    for number in range(FILES):
        platform.drop(f"jobs/{number:02}.csv", JOBS_HEADER, job_row(f"AAAA{number:02}", "2023-02-03"))
    run = platform.run(date(2023, 2, 1), date(2023, 2, 1), [dg.AssetKey(["raw", "jobs"])])
    with psycopg.connect(database_url("dagster", platform.settings)) as connection:
        messages = [
            message
            for (message,) in connection.execute(
                "SELECT event::json ->> 'user_message' FROM event_logs"
                " WHERE run_id = %s AND dagster_event_type IS NULL AND step_key = 'raw__jobs' ORDER BY id",
                [run.run_id],
            )
        ]
    lines = [line for message in messages for line in message.splitlines()]
    assert [line.partition(":")[0] for line in lines] == [f"jobs/{number:02}.csv" for number in range(FILES)]
    assert all(line.endswith(": records read 1, inserted 1") for line in lines), lines
    assert 1 < len(messages) < FILES


def test_what_comes_next_is_said_at_once() -> None:
    """Who watches a run sees what it waits for or reads, after all that was before; nothing is held back at the end."""
    messages: list[str] = []
    log = LoadLog(messages.append)
    for name in "abc":
        log.conclude(FileResult(name, "waiting", "not yet"))
    assert messages == ["waiting: a: not yet"]
    log.report("reading 100 MB")
    assert messages[1:] == ["waiting: b: not yet\nwaiting: c: not yet", "reading 100 MB"]
    log.conclude(FileResult("d", "waiting", "not yet"))
    log.flush()
    log.flush()
    assert messages[3:] == ["waiting: d: not yet"]
