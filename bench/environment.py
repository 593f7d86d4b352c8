"""What all sections stand on: a durable server of its own, databases, landing folders, the clock."""

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
class Ground:
    """One run of the benchmark: its server, its folder, its scale, and what sections leave for later ones."""

    server: EmbeddedPostgres
    folder: Path
    scale: float
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)  #: measured so far, by name
    databases: set[str] = field(default_factory=set)

    @property
    def jobs(self) -> int:
        """Jobs of the big export."""
        return round(JOBS * self.scale)

    @property
    def payments(self) -> int:
        """Payments of the big export."""
        return round(PAYMENTS * self.scale)

    @property
    def landing(self) -> Path:
        """The landing folder with the big exports."""
        return self.folder / "landing"

    def cpu(self) -> float:
        """CPU seconds used so far by the server and all its processes, ended ones included (Linux; else 0).

        Where other programs keep the machine busy, CPU seconds still compare when wall-clock seconds do not.
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
        """URL of a migrated analytics database, made if it is not there."""
        if name not in self.databases:
            with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"')
            migrations.migrate("analytics", url=self.server.url(name))
            self.databases.add(name)
        return self.server.url(name)

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """An autocommit connection to `analytics(name)`."""
        return psycopg.connect(self.analytics(name), autocommit=True)


def _stat(pid: int) -> list[int]:
    """The numbers of /proc/<pid>/stat after the command's name: state, parent, ..., utime, stime, cutime, cstime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, fields[1:15])]


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def child(module: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m module` in a process of its own and read the JSON object on its last line.

    Raises:
        RuntimeError: with the end of its output if it failed.
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
