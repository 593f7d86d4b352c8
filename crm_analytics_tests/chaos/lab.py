"""The place where work is killed: a server and databases of its own, the exports, and what an undisturbed run leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import psycopg

from crm_analytics.analytics.ingest.loading import landing
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.core import locks, migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.months import months_between
from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics_tests.chaos.exports import UNTIL, write_stages
from crm_analytics_tests.chaos.tables import Rows, contents, differences
from crm_analytics_tests.databases import clone

#: Ways to do the work: two of `work.py`, and the real command in its own Dagster run.
WAYS = ("together", "stepwise", "crm-analytics refresh")
#: Seconds between two looks at the server.
LOOK = 0.02
#: Seconds after which a process that lost its database connections or its server is killed, too.
PATIENCE = 60
#: Seconds in which undisturbed work must end.
LIMIT = 600

LOADS = [locks.load(name) for name in SOURCES]
REFRESHES = [locks.month(month) for month in months_between(date(2020, 1, 1), date(2030, 1, 1))]


@dataclass(frozen=True)
class Kill:
    """What is killed, and after how many seconds of the work, or of its part that begins with the first refresh."""

    victim: str
    delay: float
    in_refresh: bool


@dataclass(frozen=True)
class Hit:
    """What a kill met: a load, a refresh, neither of them (startup, bookkeeping), or work that was already done."""

    way: str
    victim: str
    met: str
    #: Whether a transaction had written something.
    writing: bool

    @property
    def counts(self) -> bool:
        """Whether there was anything to kill."""
        return self.met != "nothing"


@dataclass
class Lab:
    """Runs the work on one server, undisturbed or with kills, and compares what is in the tables afterwards."""

    folder: Path
    version: int
    #: Months of sample exports, and jobs in the large export.
    months: int
    jobs: int
    stages: list[Path] = field(init=False)
    server: EmbeddedPostgres = field(init=False)
    #: Seconds from the first lock to the last, by way and stage; and from the first one of a refresh.
    spans: dict[tuple[str, int, bool], float] = field(default_factory=dict)
    #: The tables after each stage.
    expected: list[dict[str, Rows]] = field(default_factory=list)
    _observer: psycopg.Connection[Any] | None = None
    _working: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.stages = write_stages(self.folder, self.months, self.jobs)
        self.server = EmbeddedPostgres(self.folder / "home", self.version).start()
        migrations.migrate("analytics", url=self.server.url("analytics"))
        with self._postgres() as connection:
            connection.execute("ALTER DATABASE analytics RENAME TO template_analytics")

    def close(self) -> None:
        """Stops what still works and the server, and removes everything."""
        if self._working and self._working.poll() is None:
            self._working.kill()
        if self._observer:
            self._observer.close()
        self.server.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def measured(self) -> set[str]:
        """The ways whose undisturbed work is known."""
        return {way for way, _, _ in self.spans}

    def reset(self) -> None:
        """Makes an empty analytics database."""
        with self._postgres() as connection:
            connection.execute("DROP DATABASE IF EXISTS analytics WITH (FORCE)")
            clone(connection, "template_analytics", "analytics")

    def measure(self, way: str) -> None:
        """Does the work undisturbed: notes how long it holds locks, and what it leaves."""
        self.reset()
        for stage in range(len(self.stages)):
            first = refreshing = last = 0.0
            process = self._start(way, stage)
            while process.poll() is None:
                if met := self._met(())[0]:
                    last = time.monotonic()
                    first = first or last
                    refreshing = refreshing or last * (met == "refresh")
                time.sleep(LOOK)
            self._require_good_end(process, way)
            self.spans[way, stage, False] = last - first
            self.spans[way, stage, True] = last - refreshing
            if len(self.expected) == stage:
                self.expected.append(self._contents())
                assert not self.expected[stage]["analytics.stale_months"]
                assert self.expected[stage]["analytics.daily_metrics"]
            self.require_expected(stage)

    def kill(self, way: str, stage: int, kill: Kill) -> Hit:
        """Starts the work, kills after the delay, and returns what that met."""
        others = self._sessions()
        process = self._start(way, stage)
        awaited = ("refresh",) if kill.in_refresh else ("load", "refresh")
        while process.poll() is None and self._met(others)[0] not in awaited:
            time.sleep(LOOK)
        with suppress(subprocess.TimeoutExpired):
            process.wait(kill.delay)
        doing, writing = self._met(others)
        hit = Hit(way, kill.victim, doing or "neither", writing)
        if process.poll() is not None:
            self._require_good_end(process, way)
            return Hit(way, kill.victim, "nothing", False)
        self._strike(kill.victim, process, others)
        return hit

    def finish(self, way: str, stage: int) -> None:
        """Does the rest of the work undisturbed."""
        process = self._start(way, stage)
        process.wait(LIMIT)
        self._require_good_end(process, way)

    def require_expected(self, stage: int) -> None:
        """Raises AssertionError if the tables differ from those of undisturbed work, or a file still waits."""
        found = differences(self._contents(), self.expected[stage])
        with psycopg.connect(self.server.url("analytics"), autocommit=True) as connection:
            waiting = landing.pending(connection, self.stages[stage])
        found += [f"{file.name} would be loaded once more" for file in waiting]
        if found:
            raise AssertionError("\n".join(found))

    # -- processes ---------------------------------------------------------------------------------------------

    def _start(self, way: str, stage: int) -> subprocess.Popen[bytes]:
        folder = self.stages[stage]
        config = Settings(
            _env_file=None,
            crm_analytics_home=self.server.home,
            embedded_postgres_version=self.version,
            landing_dir=folder,
            start_month=date(UNTIL.year - self.months // 12 - 1, 1, 1),
        )
        environment = config.environment() | {"CRM_ANALYTICS_ENV_FILE": os.devnull}
        for name in ("ANALYTICS_DATABASE_URL", "CRM_DATABASE_URL", "DAGSTER_POSTGRES_URL"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "crm_analytics_tests.chaos.work", str(folder), way]
        if way not in ("together", "stepwise"):
            command = [
                str(Path(sys.executable).with_name("crm-analytics")),
                "refresh",
                "--to",
                f"{UNTIL:%Y-%m}",
            ]
        with self._output().open("wb") as output:
            self._working = subprocess.Popen(
                command, cwd=PROJECT_DIR, env=environment, stdout=output, stderr=output
            )
        return self._working

    def _output(self) -> Path:
        return self.folder / "output.txt"

    def _require_good_end(self, process: subprocess.Popen[bytes], way: str) -> None:
        """The command ends with 1, because the sample has a file that must be refused."""
        text = self._output().read_text(errors="replace")
        if process.returncode != (1 if way == WAYS[2] else 0) or "Traceback" in text:
            raise AssertionError(f"undisturbed work ended with {process.returncode}:\n{text[-3000:]}")

    def _strike(self, victim: str, process: subprocess.Popen[bytes], others: Collection[int]) -> None:
        """Kills the victim, and waits until the working process is gone."""
        if victim in ("worker", "everything"):
            process.kill()
        if victim == "sessions":
            with self._postgres() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname IN ('analytics', 'dagster') AND NOT pid = ANY (%s)",
                    [list(others)],
                )
        if victim in ("server", "server at once", "everything"):
            postmaster = psutil.Process(int((self.server.data / "postmaster.pid").read_text().split()[0]))
            # SIGQUIT is PostgreSQL's immediate shutdown, which crash recovery follows
            how = signal.SIGQUIT if victim == "server at once" else signal.SIGKILL
            backends = postmaster.children(recursive=True) if victim == "everything" else []
            for one in (postmaster, *backends):
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(how)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # -- the server --------------------------------------------------------------------------------------------

    def _postgres(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url("postgres"), autocommit=True)

    def _contents(self) -> dict[str, Rows]:
        with psycopg.connect(self.server.url("analytics"), autocommit=True) as connection:
            return contents(connection)

    def _observe(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Returns what a query finds; nothing while the server is down."""
        try:
            if self._observer is None:
                self._observer = self._postgres()
            return self._observer.execute(query.encode(), parameters).fetchall()
        except psycopg.Error:
            if self._observer is not None:
                self._observer.close()
            self._observer = None
            return []

    def _sessions(self) -> list[int]:
        return [
            pid for (pid,) in self._observe("SELECT pid FROM pg_stat_activity WHERE datname = 'analytics'")
        ]

    def _met(self, others: Collection[int]) -> tuple[str, bool]:
        """Returns what sessions other than these hold locks for (load, refresh or nothing), and whether they have written."""
        found = self._observe(
            """
            SELECT l.key = ANY (refreshes.keys), bool_or(a.backend_xid IS NOT NULL)
            FROM (SELECT pid, classid::bigint << 32 | objid::bigint AS key FROM pg_locks
                  WHERE locktype = 'advisory' AND granted) l
            JOIN pg_stat_activity a USING (pid),
                (SELECT array_agg(hashtextextended(name, 0)) AS keys FROM unnest(%s::text[]) name) refreshes,
                (SELECT array_agg(hashtextextended(name, 0)) AS keys FROM unnest(%s::text[]) name) loads
            WHERE a.datname = 'analytics' AND NOT pid = ANY (%s)
                AND (l.key = ANY (refreshes.keys) OR l.key = ANY (loads.keys))
            GROUP BY 1 ORDER BY 1 DESC LIMIT 1
            """,
            REFRESHES,
            LOADS,
            list(others),
        )
        if not found:
            return "", False
        ((refreshing, writing),) = found
        return "refresh" if refreshing else "load", writing
