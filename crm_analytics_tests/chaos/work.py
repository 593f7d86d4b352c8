"""The process that loads every source and refreshes (arguments: landing folder, `together` or `stepwise`)."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg

from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.warehouse.refresh import refresh, stale_months
from crm_analytics.core.database import database_url
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import settings


def main(landing: str, way: str) -> None:
    """Loads and refreshes as a command does (all months together) or as sensors do (each stale month, after each source)."""
    config = settings()
    url = database_url("analytics", config)
    for source in SOURCES:
        load_source(url, Path(landing), source, timezone=config.timezone)
        if way == "stepwise":
            _refresh_stale(url)
    with psycopg.connect(url, autocommit=True) as connection:
        if stale := stale_months(connection):
            refresh(connection, config.start_month, next_month(stale[-1].month))


def _refresh_stale(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for stale in stale_months(connection):
            refresh(connection, stale.month, next_month(stale.month))


if __name__ == "__main__":
    main(*sys.argv[1:])
