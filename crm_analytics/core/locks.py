"""Names of all advisory locks, and how a session takes one: with a limit, and naming who holds it.

A lock's key is its hashed name: `hashtextextended(name, 0)`. Python takes those that have a
constant or function here, SQL takes these:

- `analytics:payment_links`: while payments are linked to jobs (raw.lock_links)
- `analytics:source_names`: while names of new sources are noted (analytics.note_source_names)
- `analytics:channel_rules`: while channels' rules and names are checked against the others
  (analytics.one_channel_per_shared_rule, analytics.one_spelling_per_name)
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

#: One migration at a time per database.
MIGRATION = "migration"
#: One write of a franchise, which is a database, to the lake at a time.
LAKE = "analytics:lake"
#: One demo at a time writes CRM activity.
DEMO_ACTIVITY = "crm:demo_activity"


class LockHeld(Exception):
    """Raised when another session kept a lock for too long; the message names it."""


def take(
    connection: psycopg.Connection[Any], lock: str, patience: float, waiting: Callable[[str], None]
) -> None:
    """Takes a lock until the session ends or unlocks it.

    Args:
        connection: an autocommit connection.
        patience: seconds to wait.
        waiting: receives the name of the session that holds the lock, if there is one.

    Raises:
        LockHeld: after `patience` seconds.
    """
    free = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [lock]).fetchone()
    if free and free[0]:
        return
    waiting(holder(connection, lock))
    before = connection.execute("SELECT current_setting('lock_timeout')").fetchone()
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{patience:g}s"])
    try:
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [lock])
    except psycopg.errors.LockNotAvailable as error:
        raise LockHeld(
            f"waited {patience:g} seconds for the lock {lock}: {holder(connection, lock)} holds it. If it is not at work "
            "any more, end it as an administrator: SELECT pg_terminate_backend(<process>);"
        ) from error
    finally:
        # after an interrupt or a lost server the session takes no statement any more
        if connection.info.transaction_status == TransactionStatus.IDLE:
            connection.execute("SELECT set_config('lock_timeout', %s, false)", before)


def holder(connection: psycopg.Connection[Any], lock: str) -> str:
    """Returns the process and role that hold a lock in the connection's database."""
    row = connection.execute(
        """
        SELECT l.pid, a.usename
        FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_database d ON d.oid = l.database
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND d.datname = current_database()
          AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(%s, 0)
        """,
        [lock],
    ).fetchone()
    return f"process {row[0]}, role {row[1]}" if row else "no process any more"


def load(source: str) -> str:
    """Returns the lock of a source's loads: one at a time."""
    return f"analytics:load:{source}"


def pull(connector: str) -> str:
    """Returns the lock of a connector's pulls: one at a time."""
    return f"analytics:pull:{connector}"


def month(month: date) -> str:
    """Returns the lock of a month's metrics: one refresh at a time."""
    return f"analytics:month:{month:%Y-%m}"
