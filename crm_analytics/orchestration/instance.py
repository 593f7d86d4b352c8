"""The Dagster instance that dagster.yaml names: storage in PostgreSQL, files under the state folder, batched events.

It asks the settings for the database and the folder, so that every Dagster command works without a variable set
(docs/decisions/pooled-dagster-storage.md).
"""

from __future__ import annotations

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
from crm_analytics.orchestration.worker_lock import WatchedRunStorage

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


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` whose three storages keep a connection each, checked before every use."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        # in place of those that it has made, and with their tables
        self._run_storage: WatchedRunStorage = WatchedRunStorage(postgres_url)
        self._event_log_storage: BatchedEventStorage = BatchedEventStorage(
            postgres_url, should_autocreate_tables=False
        )
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
        """Closes the kept connections."""
        self._run_storage.release_all()
        for storage in self._storages:
            storage._engine.dispose()

    @classmethod
    def config_type(cls) -> Any:
        """Returns what dagster.yaml may set for the storage."""
        return {"postgres_url": dg.Field(str, is_required=False)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> PooledPostgresStorage:
        """Opens the given address, or the one in the settings; starts the embedded server if there is none."""
        return cls(config_value.get("postgres_url") or storage_url(Settings()), inst_data)


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


def storage_url(config: Settings) -> str:
    """Returns the address of Dagster's own database as SQLAlchemy takes it."""
    return sqlalchemy_url(database_url("dagster", config))


def output_folder(config: Settings) -> Path:
    """Returns the folder that holds what runs print, a folder for each run."""
    return config.crm_analytics_home / "dagster" / "storage"


def _local_files(config: Settings) -> Mapping[str, Any]:
    return InstanceRef.config_defaults(str(output_folder(config).parent))
