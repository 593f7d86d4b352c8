"""A real Dagster instance on PostgreSQL, a fresh analytics database and a landing folder, wired by environment."""

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

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.orchestration.partitions import range_tags

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
    landing: Path
    url: str

    def drop(self, name: str, header: str, *rows: str) -> Path:
        """Write an export into the landing folder."""
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
        """One run of the job `refresh` for the months first..last."""
        return self.launch(range_tags(first, last), selection, config)

    def launch(
        self, tags: Any, selection: Any = None, config: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        """One run of the job `refresh` with these tags."""
        from crm_analytics.definitions import defs

        return defs.resolve_job_def("refresh").execute_in_process(
            instance=self.instance,
            tags=dict(tags),
            asset_selection=list(selection) if selection else None,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **(config or {})},
            raise_on_error=False,
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query on the analytics database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchall()

    def execute(self, sql: str) -> None:
        """A statement on the analytics database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.encode())


@pytest.fixture
def platform(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """Fresh databases and folders, and the project's own dagster.yaml; files need not settle first."""
    monkeypatch.setattr(landing_folder, "QUIET_SECONDS", 0)
    url = new_database("analytics")
    landing = tmp_path / "landing"
    landing.mkdir()
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT_DIR / "dagster.yaml").read_text())
    for name, value in {
        "ANALYTICS_DATABASE_URL": url,
        "DAGSTER_POSTGRES_URL": new_database("dagster"),
        "LANDING_DIR": str(landing),
        "DAGSTER_HOME": str(home),
        "CRM_ANALYTICS_DAGSTER_DIR": str(home),
        "DAGSTER_EVENT_BATCH_SIZE": "1000",
    }.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield Platform(instance, landing, url)


def job_row(
    job_id: str, day: str, type_: str = "COD Service", source: str = "Google", number: str = ""
) -> str:
    """One line of a jobs export."""
    return f"{job_id},{number},{type_},{source},Done,{day},0"
