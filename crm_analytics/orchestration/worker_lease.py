"""The lease by which a run's worker proves that it lives, and the storage that takes it when a run starts.

The process that executes a run, a worker or a command in a terminal, stores the run's start. It renews the lease until
it stores the end, so the lease lapses soon after the process is gone, however it ended and wherever it ran
(docs/decisions/dead-runs.md).
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.runs.schema import KeyValueStoreTable
from dagster_postgres.run_storage import PostgresRunStorage

#: Seconds between two renewals.
RENEWAL = 5
#: Seconds after which a lease that wasn't renewed has lapsed: two renewals in a row may fail.
LAPSE = 15
RUN_ENDS = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)

# Only the database's clock counts, because hosts disagree. Each is one statement in a transaction of its own: behind a
# pooler the next one may come to another session.
_TAKE = sa.text(
    "INSERT INTO kvs (key, value) VALUES (:key, clock_timestamp()::text)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_RENEW = sa.text("UPDATE kvs SET value = clock_timestamp()::text WHERE key = :key")
_HELD = sa.text(
    "SELECT EXISTS (SELECT FROM kvs WHERE key = :key"
    " AND value::timestamptz > clock_timestamp() - make_interval(secs => :lapse))"
)
_log = logging.getLogger("dagster")


class WatchedRunStorage(PostgresRunStorage):
    """Dagster's runs in PostgreSQL. The process that stores a run's start holds the run's lease until the run ends."""

    def __init__(self, postgres_url: str) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False)
        self._renewals: dict[str, threading.Event] = {}

    def handle_run_event(
        self, run_id: str, event: dg.DagsterEvent, update_timestamp: datetime | None = None
    ) -> None:
        """Stores the run's new status; a started run has its lease before anyone can see that it has started."""
        if event.event_type == dg.DagsterEventType.RUN_START:
            self.take_lease(run_id)
        super().handle_run_event(run_id, event, update_timestamp)
        if event.event_type in RUN_ENDS:
            self.end_lease(run_id)

    def take_lease(self, run_id: str) -> None:
        """Takes the lease of a run, and renews it until it ends."""
        with self.connect() as connection:
            connection.execute(_TAKE, {"key": _key(run_id)})
        ended = self._renewals[run_id] = threading.Event()
        name = f"lease of run {run_id}"
        threading.Thread(target=self._renew, args=[run_id, ended], name=name, daemon=True).start()

    def end_lease(self, run_id: str) -> None:
        """Ends the lease of a run that has ended, here or by the monitoring of another process."""
        self._stop_renewing(run_id)
        with self.connect() as connection:
            connection.execute(sa.delete(KeyValueStoreTable).where(KeyValueStoreTable.c.key == _key(run_id)))

    def worker_lives(self, run_id: str) -> bool:
        """Returns whether the run's lease was renewed within LAPSE seconds of the database's clock."""
        with self.connect() as connection:
            return bool(connection.execute(_HELD, {"key": _key(run_id), "lapse": LAPSE}).scalar_one())

    def stop_renewing_all(self) -> None:
        """Lets the leases of runs that this process has not ended lapse."""
        for run_id in list(self._renewals):
            self._stop_renewing(run_id)

    def _stop_renewing(self, run_id: str) -> None:
        if run_id in self._renewals:
            self._renewals.pop(run_id).set()

    def _renew(self, run_id: str, ended: threading.Event) -> None:
        while not ended.wait(RENEWAL):
            try:
                # not self.connect(), which sleeps between its own attempts for longer than a renewal may wait
                with self._engine.connect() as connection:
                    if not connection.execute(_RENEW, {"key": _key(run_id)}).rowcount:
                        _log.warning("Run %s has been ended by another process: its lease is gone", run_id)
                        return
            except sa.exc.SQLAlchemyError as error:
                _log.warning("The lease of run %s isn't renewed: %s", run_id, error)


def _key(run_id: str) -> str:
    return f"crm-analytics/lease/{run_id}"
