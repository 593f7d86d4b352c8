"""A reader of docker-compose.yml that needs no Docker, and a stack that runs its services as local processes.

The image's folder, the volumes and the landing folder become folders of the test, host names become 127.0.0.1, and
ports become free ones. Commands, order, environment and health checks are the file's own.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg.conninfo import make_conninfo

from crm_analytics.core import locks
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics_tests.conftest import PATIENCE, PG_VERSION
from crm_analytics_tests.ports import free_port, listens

COMPOSE_FILE = PROJECT_DIR / "docker-compose.yml"
SECRETS = {
    name: f"{name.lower()[:6]}0123456789abcdef"
    for name in (
        "POSTGRES_PASSWORD", "ANALYTICS_DB_PASSWORD", "CRM_DB_PASSWORD", "DAGSTER_DB_PASSWORD",
        "GRAFANA_ADMIN_PASSWORD", "GRAFANA_READER_PASSWORD", "GRAFANA_SECRET_KEY",
    )
}  # fmt: skip
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:?[-?])([^}]*))?\})")


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """Expands Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?error}` everywhere in a structure.

    Raises:
        ValueError: with the message after `:?`, if the variable is missing or empty.
    """
    if isinstance(value, dict):
        return {key: interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if name is None:
            return "$"
        given = environment.get(name, "")
        if given or operator is None:
            return given
        if operator == ":?":
            raise ValueError(f"{name}: {rest}")
        return str(rest)

    return _VARIABLE.sub(replace, value)


def services(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns the services with their variables expanded."""
    return dict(interpolated(yaml.safe_load(COMPOSE_FILE.read_text()), environment)["services"])


def start_order(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the services in the order in which `depends_on` lets them start."""
    graph = {name: set(service.get("depends_on", {})) for name, service in found.items()}
    return list(TopologicalSorter(graph).static_order())


def image_environment(dockerfile: Path) -> dict[str, str]:
    """Returns the variables that the Dockerfile's ENV lines set."""
    text = dockerfile.read_text().replace("\\\n", " ")
    pairs = [part for line in re.findall(r"^ENV (.*)$", text, re.M) for part in shlex.split(line)]
    return dict(pair.split("=", 1) for pair in pairs)


def build_image(target: Path) -> None:
    """Copies what `COPY . .` puts into the image: the files that .dockerignore lets through."""
    lines = [
        line for line in (PROJECT_DIR / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    kept = [line[1:] for line in lines if line.startswith("!")]
    dropped = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    target.mkdir(parents=True)
    for name in kept:
        source, copy = PROJECT_DIR / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*dropped))
        elif source.exists() and not any(fnmatch.fnmatch(source.name, pattern) for pattern in dropped):
            shutil.copy(source, copy)


def _seconds(duration: str) -> int:
    """Converts a Compose duration of one unit, such as `40s` or `5m`."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def start_postgres(folder: Path, environment: Mapping[str, str]) -> EmbeddedPostgres:
    """Starts the postgres service: the embedded server, with the settings from the service's command."""
    command = services(environment)["postgres"]["command"]
    options = dict(word.split("=", 1) for word in command if "=" in word)
    return EmbeddedPostgres(folder / "postgres-data", PG_VERSION, {**options, "fsync": "off"}).start()


def init_databases(server: EmbeddedPostgres, environment: Mapping[str, str]) -> None:
    """Does what the image does on an empty volume: runs its init file with the service's environment."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        # the embedded server creates these; the image doesn't
        for name in ("analytics", "crm", "dagster"):
            connection.execute(f"DROP DATABASE {name}".encode())
    service = services(environment)["postgres"]
    (init,) = [volume.split(":")[0] for volume in service["volumes"] if "initdb.d" in volume]
    done = subprocess.run(
        [server.bin / "psql", server.url("postgres"), "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-f", PROJECT_DIR / init],
        env={**os.environ, **{key: str(value) for key, value in service["environment"].items()}},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def assert_readers_cannot_write_or_lock(url: str, password: str) -> None:
    """Tries, as grafana_reader in every database, what a viewer could do if functions were open to PUBLIC."""
    for database in ("analytics", "crm"):
        login = make_conninfo(url, dbname=database, user="grafana_reader", password=password)
        with psycopg.connect(login, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            for statement in (
                "SELECT lo_from_bytea(0, 'x')",
                "SELECT lo_create(0)",
                "SELECT lo_creat(-1)",
                f"SELECT pg_advisory_lock(hashtextextended('{locks.MIGRATION}', 0))",
                f"SELECT pg_try_advisory_lock_shared(hashtextextended('{locks.MIGRATION}', 0))",
                "SELECT pg_advisory_xact_lock(1, 2)",
                "CREATE TEMP TABLE mine (a int)",
            ):
                try:
                    connection.execute(statement.encode())
                except psycopg.errors.InsufficientPrivilege:
                    continue
                raise AssertionError(f"grafana_reader may run {statement} in {database}")
    for database in ("dagster", "postgres", "template1"):
        try:
            psycopg.connect(make_conninfo(url, dbname=database, user="grafana_reader", password=password))
        except psycopg.OperationalError as error:
            assert "permission denied for database" in str(error)
        else:
            raise AssertionError(f"grafana_reader may use the database {database}")


class LocalStack:
    """The application's services as local processes; `folder` takes the place of the containers' file systems."""

    def __init__(self, folder: Path, environment: Mapping[str, str], postgres_port: int) -> None:
        self.folder = folder
        self.services = services(environment)
        self.ports = {"4000": str(free_port()), "3000": str(free_port())}
        self.postgres_port = postgres_port
        self.app = folder / "app"
        if not self.app.exists():
            build_image(self.app)
        (folder / "dagster-files" / "dagster").mkdir(parents=True, exist_ok=True)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, name: str, command: list[str] | None = None) -> str:
        """Runs a service that exits, or `command` instead of its own; raises with its output if it fails."""
        done = subprocess.run(
            self._words(command or self.services[name]["command"]), env=self._environment(name), cwd=self.app, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}:\n{done.stdout.decode()[-4000:]}"
        return done.stdout.decode()

    def start(self, name: str) -> None:
        """Starts a service that keeps running."""
        log = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            self._words(self.services[name]["command"]), env=self._environment(name), cwd=self.app,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            # A container starts with default signal handlers, but a test that a script runs in the background doesn't.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        log.close()

    def wait_until_healthy(self, name: str, timeout: float = PATIENCE) -> None:
        """Repeats the service's own health check until it passes; raises with its log on timeout."""
        check = self.services[name]["healthcheck"]["test"]
        assert check[0] == "CMD"
        deadline = time.monotonic() + timeout
        reason = "its port is closed"
        while time.monotonic() < deadline:
            assert self.running[name].poll() is None, f"{name} ended:\n{self.log(name)}"
            # a check is a process of some seconds, so wait until it can pass
            if not self._listens(name):
                time.sleep(0.2)
                continue
            done = subprocess.run(
                self._words(check[1:]),
                env=self._environment(name),
                cwd=self.app,
                capture_output=True,
                check=False,
            )
            if done.returncode == 0:
                return
            reason = done.stderr.decode()[-500:]
            time.sleep(1)
        raise AssertionError(f"{name} is not healthy: {reason}\n{self.log(name)}")

    def stop(self, name: str) -> None:
        """Sends SIGTERM, as Compose does; raises if the service does not end in its grace period, which a busy machine makes longer."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5 * _seconds(self.services[name].get("stop_grace_period", "40s")))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{name} did not stop on SIGTERM:\n{self.log(name)}") from None

    def kill_all(self) -> None:
        """Kills what a failed test left running."""
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log(self, name: str) -> str:
        """Returns the end of a service's output."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def _listens(self, name: str) -> bool:
        words = self._words(self.services[name]["command"])
        return "-p" not in words or listens(int(words[words.index("-p") + 1]))

    def _environment(self, name: str) -> dict[str, str]:
        image = image_environment(PROJECT_DIR / "Dockerfile")
        own = {key: str(value) for key, value in self.services[name].get("environment", {}).items()}
        values = {key: self._word(value) for key, value in (image | own).items()}
        system = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.folder)}
        return {**system, "PYTHONPATH": str(self.app), **values}

    def _words(self, command: list[str]) -> list[str]:
        return [self._word(word) for word in command]

    def _word(self, word: str) -> str:
        for here, there in (
            ("@postgres:5432/", f"@127.0.0.1:{self.postgres_port}/"),
            ("http://127.0.0.1:3000/", f"http://127.0.0.1:{self.ports['3000']}/"),
            ("/var/lib/crm_analytics", str(self.folder / "dagster-files")),
        ):
            word = word.replace(here, there)
        exact = {"0.0.0.0": "127.0.0.1", "code": "127.0.0.1", "/landing": str(self.folder / "landing"),
                 "/app": str(self.app), **self.ports}  # fmt: skip
        return exact.get(word, word)
