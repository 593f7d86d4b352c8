"""Dagster's PostgreSQL storage with kept connections: named in dagster.yaml, used by every Dagster process.

dagster-postgres opens and closes a connection for every event. A run of 120 months over nine assets writes some
thousands of them, and the connections take most of its bookkeeping. Only the webserver keeps one by itself.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from dagster._serdes import ConfigurableClassData
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` whose three storages keep a connection each, checked before every use."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data)
        self._storages = (self._run_storage, self._event_log_storage, self._schedule_storage)
        for storage in self._storages:
            storage._engine = sa.create_engine(
                postgres_url,
                isolation_level="AUTOCOMMIT",
                pool_size=1,
                max_overflow=20,
                pool_recycle=3600,
                pool_pre_ping=True,  # a restarted server costs a ping, not a run
            )

    def close(self) -> None:
        """Close the kept connections."""
        for storage in self._storages:
            storage._engine.dispose()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> PooledPostgresStorage:
        """As Dagster builds it from dagster.yaml."""
        return cls(
            pg_url_from_config(config_value), config_value.get("should_autocreate_tables", True), inst_data
        )
