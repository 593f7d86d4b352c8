"""Provides a real Dagster instance on PostgreSQL with a fresh analytics database and a landing folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage

from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.core.database import database_url
from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.instance import open_instance
from crm_analytics.orchestration.partitions import range_tags
from crm_analytics_tests.databases import set_today
from crm_analytics_tests.orchestration.webhook import Webhook

JOBS_HEADER = "UUID,Job #,Job Type,Source,Status,Created,Total"
PAYMENTS_HEADER = "Payment ID,Job UUID,Amount,Date,Status"


@pytest.fixture(autouse=True)
def no_instance_of_another_test() -> Iterator[None]:
    """Hides the instance that an earlier test opened: Dagster keeps it in a context variable, alive or not."""
    with set_defs_state_storage(None):
        yield


@dataclass
class Platform:
    """The platform on a real instance: drop files, run, look."""

    instance: dg.DagsterInstance
    settings: Settings

    @property
    def landing(self) -> Path:
        """The landing folder."""
        return self.settings.landing_dir

    @property
    def url(self) -> str:
        """The address of the analytics database."""
        return database_url("analytics", self.settings)

    def change(self, **changes: object) -> None:
        """Goes on with other settings, as a process that starts with other variables would."""
        self.settings = self.settings.model_copy(update=changes)

    @property
    def defs(self) -> dg.Definitions:
        """The production assembly with these settings."""
        from crm_analytics.definitions import build_defs

        return build_defs(self.settings)

    def sensor(self, name: str) -> dg.SensorDefinition:
        """A sensor of the assembly."""
        return self.defs.get_repository_def().get_sensor_def(name)

    def schedule(self, name: str) -> dg.ScheduleDefinition:
        """A schedule of the assembly."""
        return self.defs.get_repository_def().get_schedule_def(name)

    @property
    def resources(self) -> dict[str, Any]:
        """The resources of the assembly, for a tick or a check outside a job."""
        return dict(self.defs.resources or {})

    def drop(self, name: str, header: str, *rows: str) -> Path:
        """Writes an export into the landing folder."""
        path = self.landing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    def run(
        self,
        first: date,
        last: date,
        selection: list[dg.AssetKey] | None = None,
        config: dict[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Runs the job `refresh` for the months first..last."""
        return self.launch(range_tags(first, last), selection, config)

    def launch(
        self, tags: Any, selection: Any = None, config: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Runs the job `refresh` with these tags."""
        return self.defs.resolve_job_def("refresh").execute_in_process(
            instance=self.instance,
            tags=dict(tags),
            asset_selection=list(selection) if selection else None,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **(config or {})},
            raise_on_error=False,
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query on the analytics database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchall()

    def set_today(self, today: str) -> None:
        """Makes the analytics database take a day for today."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            set_today(connection, date.fromisoformat(today))

    def execute(self, sql: str) -> None:
        """Executes a statement on the analytics database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.encode())


@pytest.fixture
def platform(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """Fresh databases and folders on the instance that dagster.yaml describes; files need not settle first."""
    monkeypatch.setattr(LocalFolder, "quiet_seconds", 0)
    landing = tmp_path / "landing"
    landing.mkdir()
    settings = Settings(
        analytics_database_url=new_database("analytics"),
        dagster_postgres_url=new_database("dagster"),
        landing_dir=landing,
        crm_analytics_home=tmp_path / "state",
    )
    with open_instance(settings) as instance:
        yield Platform(instance, settings)


def job_row(
    job_id: str, day: str, type_: str = "COD Service", source: str = "Google", number: str = ""
) -> str:
    """Returns one line of a jobs export."""
    return f"{job_id},{number},{type_},{source},Done,{day},0"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()
