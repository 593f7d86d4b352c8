"""Deletes old runs of checks, old check results, and the event logs and output of old runs.

Of each check the latest result stays, with its run. Materializations stay forever, with their runs: they are the
lineage and the history of the data.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from crm_analytics.core.database import connect
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.instance import output_folder

KEPT_DAYS = 90
#: The CRM's guards are checked every five minutes: these runs would soon be most of the database.
CHECKS_KEPT_DAYS = 7
#: Runs deleted in one transaction.
BATCH = 200
#: Types of events that stay forever: what happened to assets, and how runs began and ended. Check results have an age
#: of their own.
KEPT_EVENTS = (
    "ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION", "ASSET_MATERIALIZATION_PLANNED",
    "ASSET_CHECK_EVALUATION_PLANNED", "PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED",
    "STEP_FAILURE",
)  # fmt: skip

#: Ended runs with check results, but without the latest one of any check. A check that was planned last and never
#: finished has two latest ones: what the UI shows now, and what was found last.
_RUNS_WITH_CHECKS = """
WITH latest AS (
    SELECT max(id) AS id FROM asset_check_executions GROUP BY asset_key, check_name
    UNION
    SELECT max(id) FROM asset_check_executions WHERE execution_status <> 'PLANNED' GROUP BY asset_key, check_name
), checked AS (
    SELECT run_id FROM asset_check_executions
    EXCEPT SELECT x.run_id FROM latest JOIN asset_check_executions x ON x.id = latest.id
)
SELECT r.run_id FROM checked JOIN runs r ON r.run_id = checked.run_id
WHERE r.status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND r.update_timestamp < %(before)s
    -- the events of checks have no asset_key
    AND %(checks_only)s = NOT EXISTS (SELECT FROM event_logs e WHERE e.run_id = r.run_id AND e.asset_key IS NOT NULL)
"""


@dataclass(frozen=True)
class Pruned:
    """How much was deleted."""

    check_runs: int
    results: int
    events: int
    outputs: int

    def __str__(self) -> str:
        return (
            f"deleted {counted(self.check_runs, 'run')} of checks, {counted(self.results, 'check result')} of other "
            f"runs, {counted(self.events, 'event')} and the output of {counted(self.outputs, 'run')}"
        )


def prune_all(config: Settings, days: int = KEPT_DAYS, check_days: int = CHECKS_KEPT_DAYS) -> Pruned:
    """Deletes everything that is older than `days`, and runs that only checked when they are older than `check_days`."""
    return Pruned(
        prune_check_runs(config, check_days),
        prune_check_results(config, days),
        prune_event_logs(config, days),
        prune_compute_logs(config, days),
    )


def prune_check_runs(config: Settings, days: int) -> int:
    """Deletes runs that ended more than `days` days ago and did nothing but check; returns how many.

    Their events, results and output go with them. A run with the latest result of a check stays.
    """
    deleted = 0
    for connection, run_ids in _batches(config, days, checks_only=True):
        # first, because a run that is gone can't be asked for its output
        for run_id in run_ids:
            shutil.rmtree(output_folder(config) / run_id, ignore_errors=True)
        for table in ("asset_check_executions", "event_logs", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_id = ANY (%s)".encode(), [run_ids])
        deleted += len(run_ids)
    return deleted


def prune_check_results(config: Settings, days: int) -> int:
    """Deletes the check results of other runs that ended more than `days` days ago; returns how many.

    The runs and their materializations stay, and the latest result of each check.
    """
    deleted = 0
    for connection, run_ids in _batches(config, days, checks_only=False):
        deleted += connection.execute(
            "DELETE FROM asset_check_executions WHERE run_id = ANY (%s)", [run_ids]
        ).rowcount
        connection.execute(
            "DELETE FROM event_logs WHERE run_id = ANY (%s) AND dagster_event_type LIKE 'ASSET_CHECK_%%'",
            [run_ids],
        )
    return deleted


def prune_event_logs(config: Settings, days: int) -> int:
    """Deletes events of runs that ended more than `days` days ago, except KEPT_EVENTS; returns how many."""
    with suppress(psycopg.errors.UndefinedTable), connect("dagster", config) as connection:
        return connection.execute(
            """
            DELETE FROM event_logs e USING runs r
            WHERE r.run_id = e.run_id AND r.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
                AND r.update_timestamp < %s AND e.asset_key IS NULL
                AND NOT coalesce(e.dagster_event_type, '') = ANY (%s)
            """,
            [_cutoff(days), list(KEPT_EVENTS)],
        ).rowcount
    return 0  # Dagster has not run yet


def prune_compute_logs(config: Settings, days: int) -> int:
    """Deletes what runs that ended more than `days` days ago have printed; returns the number of those runs."""
    folder = output_folder(config)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    ended: list[tuple[str]] = []
    with suppress(psycopg.errors.UndefinedTable), connect("dagster", config) as connection:
        ended = connection.execute(
            """
            SELECT run_id FROM runs
            WHERE run_id = ANY (%s) AND status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND update_timestamp < %s
            """,
            [names, _cutoff(days)],
        ).fetchall()
    for (run_id,) in ended:
        shutil.rmtree(folder / run_id)
    return len(ended)


def _batches(
    config: Settings, days: int, *, checks_only: bool
) -> Iterator[tuple[psycopg.Connection[Any], list[str]]]:
    """Yields old runs with checks, each batch in a transaction of its own: the UI sees a run whole or not at all."""
    with suppress(psycopg.errors.UndefinedTable), connect("dagster", config, autocommit=True) as connection:
        found = connection.execute(
            _RUNS_WITH_CHECKS, {"before": _cutoff(days), "checks_only": checks_only}
        ).fetchall()
        for start in range(0, len(found), BATCH):
            with connection.transaction():
                yield connection, [run_id for (run_id,) in found[start : start + BATCH]]


def _cutoff(days: int) -> datetime:
    """Returns the time before which a run is old, in UTC without an offset, as Dagster stores it."""
    return (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None)
