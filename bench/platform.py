"""A platform of its own for each run of a command: sample exports, databases, a state folder, and their variables."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cost import Cost
from bench.environment import Environment, run
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.core.settings import Settings, settings
from crm_analytics.demo.sample_exports import LandingSummary, write_landing
from crm_analytics.orchestration.instance import open_instance


@dataclass(frozen=True)
class Platform:
    """Databases and folders for commands, described by `config`."""

    environment: Environment
    config: Settings

    def refresh(self) -> Cost:
        """Measures `crm-analytics refresh` over all months, from the outside: its process with everything it imports."""
        return self.python("-m", "crm_analytics.cli.main", "refresh")

    def python(self, *arguments: str) -> Cost:
        """Measures a Python process that finds this platform in its environment."""
        self.environment.checkpoint()
        return self.environment.measure(lambda: run(*arguments, environment=self.config.environment()))


def write_sample(environment: Environment, months: int) -> LandingSummary:
    """Writes a landing folder with a sample of so many months, and waits until no file looks as if it still grew."""
    folder = environment.folder / f"sample_{months}"
    environment.say(f"writing sample exports of {months} months")
    sample = write_landing(folder, months=months)
    for path in sample.refused:
        # a file that isn't loaded is news in every run
        path.unlink()
    time.sleep(LocalFolder.quiet_seconds)
    return sample


@contextmanager
def new_platform(environment: Environment, sample: LandingSummary) -> Iterator[Platform]:
    """Gives a platform with empty tables, Dagster's included, for the sample's months; removes it afterwards."""
    home: Path = environment.folder / "home"
    home.mkdir()
    config = settings().model_copy(
        update={
            "analytics_database_url": environment.analytics("platform"),
            "crm_database_url": environment.create("platform_crm"),
            "dagster_postgres_url": environment.create("platform_dagster"),
            "landing_dir": sample.folder,
            "crm_analytics_home": home,
            "start_month": sample.first_month,
        }
    )
    # creates Dagster's tables
    with open_instance(config):
        pass
    try:
        yield Platform(environment, config)
    finally:
        environment.drop("platform", "platform_crm", "platform_dagster")
        shutil.rmtree(home)
