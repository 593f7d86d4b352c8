"""How long Dagster's event logs and the output of its runs are kept. They grow for ever otherwise."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import psycopg

from crm_analytics.core.settings import Settings

#: Runs' event-log types that stay for ever: what happened to assets, and the runs' own beginning and end.
KEPT_EVENTS = (
    "ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION", "ASSET_MATERIALIZATION_PLANNED",
    "ASSET_CHECK_EVALUATION_PLANNED", "PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED",
    "STEP_FAILURE",
)  # fmt: skip


def prune_event_logs(config: Settings, days: int) -> int:
    """Delete event-log rows of runs that ended more than `days` days ago, except KEPT_EVENTS; returns how many.

    Event logs grow for ever otherwise. Materializations, checks and the runs themselves are never removed.
    """
    assert config.dagster_postgres_url
    cutoff = datetime.now(UTC) - timedelta(days=days)
    with psycopg.connect(config.dagster_postgres_url) as connection:
        if connection.execute("SELECT to_regclass('event_logs')").fetchone() == (None,):
            return 0  # Dagster has not run yet
        return connection.execute(
            "DELETE FROM event_logs e USING runs r WHERE r.run_id = e.run_id"
            " AND r.status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND r.update_timestamp < %s"
            " AND e.asset_key IS NULL AND NOT coalesce(e.dagster_event_type, '') = ANY (%s)",
            [cutoff.replace(tzinfo=None), list(KEPT_EVENTS)],
        ).rowcount


def prune_compute_logs(config: Settings, days: int) -> int:
    """Delete what runs that ended more than `days` days ago have printed; returns of how many runs."""
    assert config.dagster_postgres_url
    folder = config.crm_analytics_home / "dagster"
    cutoff = datetime.now(UTC) - timedelta(days=days)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    with psycopg.connect(config.dagster_postgres_url) as connection:
        if connection.execute("SELECT to_regclass('runs')").fetchone() == (None,):
            return 0  # Dagster has not run yet
        ended = connection.execute(
            "SELECT run_id FROM runs WHERE run_id = ANY (%s) AND status IN ('SUCCESS', 'FAILURE', 'CANCELED')"
            " AND update_timestamp < %s",
            [names, cutoff.replace(tzinfo=None)],
        ).fetchall()
    for (run_id,) in ended:
        shutil.rmtree(folder / run_id)
    return len(ended)
