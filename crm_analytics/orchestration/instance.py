"""The Dagster instance that dagster.yaml names: storage in PostgreSQL, files under the state folder, batched events.

It asks the settings for the database and the folder, so that every Dagster command works without a variable set
(docs/decisions/pooled-dagster-storage.md).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import ConfigurableClassData
from dagster_postgres.storage import DagsterPostgresStorage

from crm_analytics.core.database import database_url, sqlalchemy_url
from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics.orchestration.event_storage import BatchedEventStorage
from crm_analytics.orchestration.worker_lease import WatchedRunStorage

EVENT_BATCH_SIZE = 1000


class PlatformInstance(dg.DagsterInstance):
    """A Dagster instance with its local files in the state folder, which writes a step's events together."""

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        """Returns what dagster.yaml may set for this class: nothing."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        """Returns Dagster's defaults for the state folder; `base_dir`, often a temporary DAGSTER_HOME, is ignored."""
        return _local_files(Settings())

    @property
    def python_log_level(self) -> str | None:
        """Returns the least level of the messages that runs print and store; events are stored at every level."""
        return Settings().run_log_level

    def _get_event_batch_size(self) -> int:
        """Replaces the variable DAGSTER_EVENT_BATCH_SIZE, which every process would need."""
        return EVENT_BATCH_SIZE

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Limits the web server's statements; its pool is that of the settings, as in every process.

        Dagster would make pools of its own, whose sessions begin with SET: behind a pooler that works by transaction, it
        would limit other processes' statements.

        Args:
            statement_timeout: milliseconds.
            pool_recycle: ignored.
            max_overflow: ignored.
        """
        storage = self.run_storage
        assert isinstance(storage, WatchedRunStorage)
        limit_statements(storage._engine, statement_timeout)


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` whose three storages share the process's pool of connections.

    No statement needs the session of the one before it, so a pooler may stand between
    (docs/decisions/pooled-dagster-storage.md).

    Args:
        postgres_url: as SQLAlchemy takes it.
        kept: connections that stay open once they were needed.
        at_most: connections at a time; who needs another one waits for it.
    """

    def __init__(
        self,
        postgres_url: str,
        inst_data: ConfigurableClassData | None = None,
        *,
        kept: int = 1,
        at_most: int = 20,
    ) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        # in place of those that it has made, and with their tables
        self._run_storage: WatchedRunStorage = WatchedRunStorage(postgres_url)
        self._event_log_storage: BatchedEventStorage = BatchedEventStorage(
            postgres_url, should_autocreate_tables=False
        )
        self._engine = _pool(postgres_url, kept, at_most)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = self._engine

    def close(self) -> None:
        """Closes the kept connections."""
        self._run_storage.stop_renewing_all()
        self._engine.dispose()

    @classmethod
    def config_type(cls) -> Any:
        """Returns what dagster.yaml may set for the storage."""
        return {"postgres_url": dg.Field(str, is_required=False)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> PooledPostgresStorage:
        """Opens the given address, or the one in the settings; starts the embedded server if there is none."""
        config = Settings()
        return cls(
            config_value.get("postgres_url") or storage_url(config),
            inst_data,
            kept=config.dagster_connections_kept,
            at_most=config.dagster_connections_max,
        )


def open_instance(config: Settings) -> dg.DagsterInstance:
    """Opens the instance that dagster.yaml describes, with the database and the state folder of `config`."""
    files = _local_files(config)
    storage = yaml.safe_dump({"postgres_url": storage_url(config)})
    ref = InstanceRef.from_dir(str(PROJECT_DIR))._replace(
        local_artifact_storage_data=files["local_artifact_storage"],
        compute_logs_data=files["compute_logs"],
        storage_data=ConfigurableClassData(__name__, PooledPostgresStorage.__name__, storage),
    )
    return dg.DagsterInstance.from_ref(ref)


#: The pools of this process. A run's worker opens Dagster's instance twice, a code server for every tick of a sensor.
_pools: weakref.WeakValueDictionary[tuple[str, int, int], sa.Engine] = weakref.WeakValueDictionary()


def _pool(url: str, kept: int, at_most: int) -> sa.Engine:
    engine = _pools.get((url, kept, at_most))
    if engine is None:
        engine = _pools[url, kept, at_most] = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=kept,
            max_overflow=at_most - kept,
            pool_recycle=3600,
            pool_pre_ping=True,  # a restarted server costs a ping, not a run
        )
    return engine


def limit_statements(engine: sa.Engine, milliseconds: int) -> None:
    """Lets the server cancel every statement of an engine that takes longer, in whatever session it runs."""

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def limited(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        # psycopg2 sends both at once, which makes them one transaction
        return f"SET LOCAL statement_timeout = {milliseconds}; {statement}", parameters


def storage_url(config: Settings) -> str:
    """Returns the address of Dagster's own database as SQLAlchemy takes it."""
    return sqlalchemy_url(database_url("dagster", config))


def output_folder(config: Settings) -> Path:
    """Returns the folder that holds what runs print, a folder for each run."""
    return config.crm_analytics_home / "dagster" / "storage"


def _local_files(config: Settings) -> Mapping[str, Any]:
    return InstanceRef.config_defaults(str(output_folder(config).parent))
