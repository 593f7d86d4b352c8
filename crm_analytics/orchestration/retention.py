"""Deletes the event logs and the output of old runs from Dagster's database and folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg

from crm_analytics.core.database import connect
from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.instance import output_folder

#: Types of events that stay forever: what happened to assets, and how runs began and ended.
KEPT_EVENTS = (
    "ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION", "ASSET_MATERIALIZATION_PLANNED",
    "ASSET_CHECK_EVALUATION_PLANNED", "PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED",
    "STEP_FAILURE",
)  # fmt: skip


def prune_event_logs(config: Settings, days: int) -> int:
    """Deletes events of runs that ended more than `days` days ago, except KEPT_EVENTS; returns how many.

    Materializations, check results and the runs themselves are never removed.
    """
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


def _cutoff(days: int) -> datetime:
    """Returns the time before which a run is old, in UTC without an offset, as Dagster stores it."""
    return (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None)
