"""What tests of connectors share: settings with folders of their own, a clock without waiting, and pulled files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.connectors.client import Clock
from crm_analytics.analytics.connectors.connector import (
    Connector,
    Window,
)
from crm_analytics.analytics.connectors.pull import HEADER, PullResult, pull
from crm_analytics.core.settings import Settings
from crm_analytics_tests.analytics.connectors.workiz_server import TOKEN

NOW = datetime(2024, 7, 31, 18, 0, 5, tzinfo=UTC)


@dataclass
class FastClock:
    """A clock that waits for nothing, and notes for how long it was told to."""

    now: datetime = NOW
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds
        self.now += timedelta(seconds=seconds)

    @property
    def clock(self) -> Clock:
        """The clock as connectors take it."""
        return Clock(self.sleep, lambda: self.seconds, lambda: self.now)


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    """Settings with the token, and folders of their own."""
    (tmp_path / "landing").mkdir()
    return Settings(
        crm_analytics_home=tmp_path / "home",
        landing_dir=tmp_path / "landing",
        workiz_token=TOKEN,
        start_month=date(2024, 1, 1),
    )


@dataclass
class Pulling:
    """Pulls with a fast clock, and looks at what came of it."""

    connection: psycopg.Connection[Any]
    config: Settings
    database: str
    clock: FastClock = field(default_factory=FastClock)
    reports: list[str] = field(default_factory=list)

    def __call__(self, connector: Connector, window: Window | None = None, **changes: Any) -> PullResult:
        """Pulls, with other settings if need be."""
        return pull(
            self.connection, connector, self.config.model_copy(update=changes), window,
            clock=self.clock.clock, report=self.reports.append,
        )  # fmt: skip

    @property
    def files(self) -> list[Path]:
        """Everything in the landing folder, also what scans ignore."""
        return sorted(path for path in self.config.landing_dir.rglob("*") if path.is_file())

    @property
    def spools(self) -> list[Path]:
        """Everything in the folder of unfinished pulls."""
        return sorted((self.config.crm_analytics_home / "pulls").glob("*"))


@pytest.fixture
def pulling(analytics: psycopg.Connection[Any], analytics_url: str, config: Settings) -> Pulling:
    """Pulls into a landing folder and a database of their own."""
    return Pulling(analytics, config, analytics_url)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns what the first line of a pulled file says, and its records."""
    first, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    header = json.loads(first)[HEADER]
    records = [json.loads(line, parse_float=Decimal) for line in lines]
    assert header["records"] == len(records)
    return header, records


def identities(path: Path) -> list[str]:
    """Returns the ids of the records in a pulled file, in order, repeated ones too."""
    return [record["UUID"] for record in read(path)[1]]


def once(*actions: tuple[int, Callable[[], None]]) -> Callable[[int], None]:
    """Returns what a server does before its n-th requests, counted from 1."""
    by_number = dict(actions)

    def act(number: int) -> None:
        if number in by_number:
            by_number[number]()

    return act
