"""Dagster's event log in PostgreSQL, which stores the events of a batch with a few statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._serdes import serialize_value
from dagster_postgres.event_log import PostgresEventLogStorage

CHECK_PLANNED = dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
#: A run begins with an event per planned check and per asset and month; each asset then has an event per month.
BATCHED = {
    CHECK_PLANNED,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_MATERIALIZATION,
}


class BatchedEventStorage(PostgresEventLogStorage):
    """Dagster's events in PostgreSQL; dagster-postgres stores planned events one by one, with several statements each."""

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Stores the events of a batch and what Dagster derives from them, in one transaction."""
        if not {event.dagster_event_type for event in events} <= BATCHED:
            super().store_event_batch(events)
            return
        insert = sa.insert(SqlEventLogStorageTable).returning(
            SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
        )
        with self.index_transaction() as connection:
            ids = connection.execute(insert, [self._event_to_row(event) for event in events]).scalars()
            stored = dict(zip(ids, events, strict=True))
            checks = {i: event for i, event in stored.items() if event.dagster_event_type == CHECK_PLANNED}
            assets = {i: event for i, event in stored.items() if i not in checks}
            self._store_asset_event_tags(connection, list(assets.values()), list(assets))
            # as in dagster-postgres, the last one of each asset
            last = {event.get_dagster_event().asset_key: i for i, event in assets.items()}
            for i in last.values():
                self._store_asset_event(connection, assets[i], i)
            self._plan_checks(connection, checks)

    def _store_asset_check_evaluation_planned(self, event: dg.EventLogEntry, event_id: int | None) -> None:
        with self.index_connection() as connection:
            self._plan_checks(connection, {event_id: event})

    def _plan_checks(self, connection: sa.Connection, planned: Mapping[int | None, dg.EventLogEntry]) -> None:
        """Stores each planned check as one row, which its result replaces.

        No check here has partitions: its result is one for all months of the run. Dagster would plan it for each month
        nevertheless, and never look at these rows again.
        """
        rows: list[dict[str, Any]] = []
        for event_id, event in planned.items():
            check = event.get_dagster_event().asset_check_planned_data
            rows.append(
                {
                    "asset_key": check.asset_key.to_string(),
                    "check_name": check.check_name,
                    "run_id": event.run_id,
                    "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
                    "evaluation_event": serialize_value(event),
                    "evaluation_event_timestamp": self._event_to_row(event)["timestamp"],
                    "evaluation_event_storage_id": event_id,
                }
            )
        if rows:
            connection.execute(sa.insert(AssetCheckExecutionsTable), rows)
