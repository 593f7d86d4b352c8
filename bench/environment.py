"""What all sections share: a durable server of their own, its databases, working folders, and the clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from bench.cost import Cost, of_rounds
from crm_analytics.core import migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics_tests.databases import clone

JOBS = 1_000_000
PAYMENTS_PER_JOB = 1.5


@dataclass
class Environment:
    """One run of the benchmark: its server, folder and scale, and the measurements that later sections reuse."""

    server: EmbeddedPostgres
    folder: Path
    scale: float
    say: Callable[[str], None]
    #: Measurements so far, by name; one for each round.
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    databases: set[str] = field(default_factory=set)
    #: Peak memory of the big loads, in MB.
    peaks: list[float] = field(default_factory=list)
    #: The most bytes that the working folder has had.
    disk: int = 0

    def scaled(self, count: int, least: int = 1) -> int:
        """Returns a full-size count at this run's scale."""
        return max(least, round(count * self.scale))

    def note(self, name: str, cost: Cost) -> Cost:
        """Keeps one round's measurement under a name."""
        self.costs.setdefault(name, []).append(cost)
        return cost

    def cost(self, name: str) -> Cost:
        """Returns what was noted under a name, over all rounds."""
        return of_rounds(self.costs[name])

    def measure(self, work: Callable[[], Any]) -> Cost:
        """Does the work once and returns what it costs; the client is this process with the children that it waits for."""
        server, client, start = self.server_cpu(), _client_cpu(), time.perf_counter()
        work()
        # in this order, so that looking for the server's processes isn't counted
        seconds, client = time.perf_counter() - start, _client_cpu() - client
        return Cost(seconds, self.server_cpu() - server, client)

    def server_cpu(self) -> float:
        """Returns the CPU seconds that the server and all its processes have used, ended ones included.

        Returns 0 outside Linux.
        """
        if not Path("/proc/self/stat").exists():
            return 0.0
        postmaster = int((self.server.data / "postmaster.pid").read_text().split()[0])
        while True:
            own = _stat(postmaster)[11:15]
            children = 0
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with suppress(OSError):
                        fields = _stat(int(entry.name))
                        children += sum(fields[11:13]) if fields[1] == postmaster else 0
            # a child that ended meanwhile may be counted twice or not at all
            if _stat(postmaster)[13:15] == own[2:]:
                return (sum(own) + children) / os.sysconf("SC_CLK_TCK")

    def analytics(self, name: str) -> str:
        """Returns the URL of a migrated analytics database, which is created on first use."""
        if name not in self.databases:
            migrations.migrate("analytics", url=self.create(name))
        return self.server.url(name)

    def create(self, name: str) -> str:
        """Creates an empty database and returns its URL."""
        self._admin(f'CREATE DATABASE "{name}"')
        self.databases.add(name)
        return self.server.url(name)

    def drop(self, *names: str) -> None:
        """Drops databases, whoever is still connected."""
        self.look_at_disk()
        for name in names:
            self._admin(f'DROP DATABASE "{name}" WITH (FORCE)')
            self.databases.discard(name)

    @contextmanager
    def copy_of(self, name: str) -> Iterator[str]:
        """Copies a database under another name, for work that changes it; drops the copy afterwards."""
        copy = f"{name}_copy"
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            clone(connection, name, copy)
        self.databases.add(copy)
        try:
            self.checkpoint()
            yield copy
        finally:
            self.drop(copy)

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """Opens an autocommit connection to `analytics(name)`."""
        return psycopg.connect(self.analytics(name), autocommit=True)

    def checkpoint(self) -> None:
        """Writes what earlier work left behind, so that the next measurement doesn't pay for it."""
        self._admin("CHECKPOINT")

    def look_at_disk(self) -> None:
        """Notes how much the working folder has, the server's data included, if that is the most so far."""
        total = 0
        for folder, _, files in os.walk(self.folder):
            for file in files:
                # the server removes files meanwhile
                with suppress(OSError):
                    total += Path(folder, file).lstat().st_blocks * 512
        self.disk = max(self.disk, total)

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


def _stat(pid: int) -> list[int]:
    """Reads /proc/<pid>/stat after the command's name: 0 for the state, parent, …, utime, stime, cutime, cstime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, fields[1:15])]


def _client_cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run(
    *command: str,
    environment: dict[str, str] | None = None,
    patience: float | None = None,
) -> str:
    """Runs this Python with arguments in its own process and returns its output.

    Raises:
        RuntimeError: if it failed; the message has the end of its output.
        subprocess.TimeoutExpired: if it took longer than `patience` seconds; it is killed.
    """
    done = subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT_DIR,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def report_of(output: str) -> dict[str, Any]:
    """Returns the JSON object on the last line of a child's output."""
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result
