"""A process for test_feed.py that consumes the change feed until it is killed.

`python -m crm_analytics_tests.crm.feed_consumer SOURCE TARGET`
"""

from __future__ import annotations

import sys
import time
from typing import Any

import psycopg

from crm_analytics.crm.feed import Change, consume

#: Without a unique key, so that a change that was applied twice shows.
TABLE = "CREATE TABLE applied (position bigint, audit_id bigint, payload_hash text)"


def apply(target: psycopg.Connection[Any], change: Change) -> None:
    target.execute(
        "INSERT INTO applied VALUES (%s, %s, %s)", [change.position, change.audit_id, change.payload_hash]
    )
    time.sleep(0.001)


def _main(source_url: str, target_url: str) -> None:
    with (
        psycopg.connect(source_url, autocommit=True) as source,
        psycopg.connect(target_url, autocommit=True) as target,
    ):
        source.execute("SET ROLE crm_app")
        print("ready", flush=True)
        while True:
            if not consume(source, target, "test", apply, limit=50):
                time.sleep(0.01)


if __name__ == "__main__":
    _main(*sys.argv[1:])
