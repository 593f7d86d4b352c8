"""What a process of test_feed.py does until it is killed: it consumes the change feed."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
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


def consume_until_killed(source_url: str, target_url: str, ready: Connection) -> None:
    """Says when it begins."""
    with (
        psycopg.connect(source_url, autocommit=True) as source,
        psycopg.connect(target_url, autocommit=True) as target,
    ):
        source.execute("SET ROLE crm_app")
        ready.send("ready")
        while True:
            if not consume(source, target, "test", apply, limit=50):
                time.sleep(0.01)
