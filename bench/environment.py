"""What all sections share: a durable server of their own, its databases, the landing folder, and the clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core import migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR

JOBS = 1_000_000
PAYMENTS = 1_500_000


@dataclass
class Environment:
    """One run of the benchmark: its server, folder and scale, and the results that later sections reuse."""

    server: EmbeddedPostgres
    folder: Path
    scale: float
    say: Callable[[str], None]
    #: Measurements so far, by name.
    seconds: dict[str, float] = field(default_factory=dict)
    databases: set[str] = field(default_factory=set)

    @property
    def jobs(self) -> int:
        """The number of jobs in the big export."""
        return round(JOBS * self.scale)

    @property
    def payments(self) -> int:
        """The number of payments in the big export."""
        return round(PAYMENTS * self.scale)

    @property
    def landing(self) -> Path:
        """The landing folder with the big exports."""
        return self.folder / "landing"

    def cpu(self) -> float:
        """Returns the CPU seconds that the server and all its processes have used, ended ones included.

        On a busy machine CPU seconds still compare when wall-clock seconds do not. Returns 0 outside Linux.
        """
        pid_file = self.server.data / "postmaster.pid"
        if not Path("/proc/self/stat").exists():
            return 0.0
        postmaster = int(pid_file.read_text().split()[0])
        ticks = sum(_stat(postmaster)[11:15])
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    fields = _stat(int(entry.name))
                    ticks += sum(fields[11:13]) if fields[1] == postmaster else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def analytics(self, name: str) -> str:
        """Returns the URL of a migrated analytics database, which is created on first use."""
        if name not in self.databases:
            with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"')
            migrations.migrate("analytics", url=self.server.url(name))
            self.databases.add(name)
        return self.server.url(name)

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """Opens an autocommit connection to `analytics(name)`."""
        return psycopg.connect(self.analytics(name), autocommit=True)


def _stat(pid: int) -> list[int]:
    """Reads /proc/<pid>/stat after the command's name: 0 for the state, parent, …, utime, stime, cutime, cstime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, fields[1:15])]


def timed(work: Callable[[], Any]) -> float:
    """Returns the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def child(module: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs `python -m module` in its own process and returns the JSON object on the last line of its output.

    Raises:
        RuntimeError: if it failed; the message has the end of its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT_DIR,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
