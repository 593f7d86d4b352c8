"""The lock by which a run's worker proves that it lives, and the storage that takes it when a run starts.

The process that executes a run, a worker or a command in a terminal, stores the run's start. The lock belongs to a
session of that process, so it ends with the process, however that ends (docs/decisions/dead-runs.md).
"""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime

import dagster as dg
import psycopg
import sqlalchemy as sa
from dagster_postgres.run_storage import PostgresRunStorage

from crm_analytics.core import locks

#: Seconds between two looks at the session: within them, a lock lost with the server's restart is taken again.
PING = 2
#: The server ends the session of a machine that has vanished after about 10 + 3 * 5 seconds.
KEEPALIVE = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
RUN_ENDS = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)


class WorkerLock:
    """Holds the lock of one run in a session of its own, and takes it again if that session breaks."""

    def __init__(self, url: str, run_id: str) -> None:
        self._url, self._run_id = url, run_id
        self._released = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=[self._take()], name=f"lock of run {run_id}", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        """Ends the session and with it the lock."""
        self._released.set()
        self._thread.join(PING)

    def _take(self) -> psycopg.Connection:
        connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        for name, value in KEEPALIVE.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        lock = locks.run_worker(self._run_id)
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [lock])
        return connection

    def _keep(self, connection: psycopg.Connection) -> None:
        while not self._released.wait(PING):
            with suppress(psycopg.OperationalError):
                if connection.closed:
                    connection = self._take()
                connection.execute("SELECT 1")
        connection.close()


class WatchedRunStorage(PostgresRunStorage):
    """Dagster's runs in PostgreSQL. The process that stores a run's start holds the run's lock until it stores the end."""

    def __init__(self, postgres_url: str) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False)
        self._held: dict[str, WorkerLock] = {}

    def handle_run_event(
        self, run_id: str, event: dg.DagsterEvent, update_timestamp: datetime | None = None
    ) -> None:
        """Stores the run's new status; a started run is locked before anyone can see that it has started."""
        if event.event_type == dg.DagsterEventType.RUN_START:
            self._held[run_id] = WorkerLock(self.postgres_url, run_id)
        super().handle_run_event(run_id, event, update_timestamp)
        if event.event_type in RUN_ENDS and run_id in self._held:
            self._held.pop(run_id).release()

    def worker_lives(self, run_id: str) -> bool:
        """Returns whether a process holds the run's lock."""
        # outside a transaction, so that the lock is released with the statement
        free = sa.text("SELECT pg_try_advisory_xact_lock_shared(hashtextextended(:lock, 0))")
        with self.connect() as connection:
            return not connection.execute(free, {"lock": locks.run_worker(run_id)}).scalar_one()

    def release_all(self) -> None:
        """Releases the locks of runs that this process has not ended."""
        while self._held:
            self._held.popitem()[1].release()
