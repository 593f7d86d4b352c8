"""Pulls Workiz's jobs in a process of its own that waits for nothing: `DATABASE SERVICE` and the first day as arguments."""

from __future__ import annotations

import json
import resource
import sys
from datetime import date

import psycopg

from crm_analytics.analytics.connectors.client import Clock
from crm_analytics.analytics.connectors.connector import Window
from crm_analytics.analytics.connectors.pull import pull
from crm_analytics.analytics.connectors.workiz import WORKIZ_JOBS
from crm_analytics.core.settings import Settings
from crm_analytics_tests.analytics.connectors.workiz_server import TOKEN


def main(database: str, service: str, first: str) -> None:
    """Pulls, and prints what it did and the most memory that it had, in MB."""
    config = Settings(workiz_token=TOKEN, workiz_url=service)
    with psycopg.connect(database, autocommit=True) as connection:
        result = pull(
            connection,
            WORKIZ_JOBS,
            config,
            Window(date.fromisoformat(first), None),
            clock=Clock(sleep=lambda seconds: None),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"files": result.files, "records": result.records, "megabytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
