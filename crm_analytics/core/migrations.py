"""Plain SQL files under `sql/<database>/`, run by Alembic: one environment per database.

A file is named `NNNN_what_it_does.sql`; its number is its Alembic revision and follows the number before it.
Every file runs in its own transaction, all of them under one advisory lock. The checksum of every applied
file is stored; a file that was changed after it ran is refused, because databases would differ silently.
Nothing else creates or alters tables. `server.sql` beside the migrations holds what belongs to the server and
not to the database (roles, settings): it runs first, every time.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory

from crm_analytics.core import locks
from crm_analytics.core.database import database_url
from crm_analytics.core.settings import SQL_DIR, Settings, settings

#: Where each database keeps its version table and checksums.
VERSION_SCHEMA = {"analytics": "analytics", "crm": "crm_private"}
_ALEMBIC = threading.Lock()  # its environment is one per process
LOCK_PATIENCE = 300  # seconds to wait for another one
SERVER_FILE = "server.sql"
MINIMUM_SERVER = 160000


class MigrationError(Exception):
    """A migration that must not or cannot run; the message says what to do."""


@dataclass(frozen=True)
class SqlFile:
    """One migration file."""

    path: Path
    version: str

    @property
    def name(self) -> str:
        """The file's name, by which people call the migration."""
        return self.path.name

    def text(self) -> str:
        """The SQL as it stands in the file."""
        return self.path.read_text(encoding="utf-8")

    def sha256(self) -> str:
        """Checksum of the file, line endings normalized."""
        return hashlib.sha256(self.text().replace("\r\n", "\n").encode()).hexdigest()


@dataclass(frozen=True)
class Status:
    """What a database has and what it lacks."""

    version: str | None
    applied: tuple[str, ...]
    pending: tuple[str, ...]


def migration_files(database: str) -> list[SqlFile]:
    """The migration files of `analytics` or `crm`, in order.

    Raises:
        MigrationError: if a name does not fit or a number occurs twice.
    """
    files: list[SqlFile] = []
    for path in sorted((SQL_DIR / database).glob("*.sql")):
        if path.name == SERVER_FILE:
            continue
        match = re.fullmatch(r"(\d{4})_\w+\.sql", path.name)
        if not match:
            raise MigrationError(f"{path}: name migrations NNNN_what_it_does.sql")
        if files and files[-1].version == match[1]:
            raise MigrationError(f"{path}: number {match[1]} is taken by {files[-1].name}")
        files.append(SqlFile(path, match[1]))
    return files


class _SqlScripts(ScriptDirectory):
    """Alembic's script directory, reading SQL files instead of Python modules."""

    def __init__(self, database: str) -> None:
        self.files = migration_files(database)
        super().__init__(str(SQL_DIR / database))

    def _load_revisions(self) -> Iterator[Script]:
        before: str | None = None
        for file in self.files:
            module = ModuleType(f"sql_{file.version}", file.name)
            module.__dict__.update(revision=file.version, down_revision=before, upgrade=lambda: None)
            module.__dict__["sql_file"] = file
            yield Script(module, file.version, file.path)
            before = file.version


def migrate(
    database: str,
    *,
    config: Settings | None = None,
    url: str | None = None,
    before: Callable[[psycopg.Connection[Any]], None] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Status:
    """Bring `analytics` or `crm` to the newest version. Idempotent; concurrent callers wait for each other.

    The server's part (roles, settings) is applied again each time: a restored database has lost it.

    Args:
        database: which environment.
        config: settings; the environment's by default.
        url: the database's address, if not the configured one (tests, scratch servers).
        before: called inside the lock, before any file runs, with a connection in its own transaction
            (adoption of an existing schema).
        report: receives one line per file applied, and what the server's part warns of.

    Raises:
        MigrationError: server too old, an applied file changed, another business timezone than the database
            was made with, roles lost by a restore, or a session that does not let go of the lock.
    """
    config = config or settings()
    url = url or database_url(database, config)
    schema = VERSION_SCHEMA[database]
    scripts = _SqlScripts(database)
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sa.NullPool
    )
    with psycopg.connect(url, autocommit=True) as guard:
        if guard.info.server_version < MINIMUM_SERVER:
            raise MigrationError(
                f"PostgreSQL {guard.info.server_version // 10000} is too old: 16 is the minimum"
            )
        _take_lock(guard, report)
        apply_server_part(guard, database, report)
        _prepare_bookkeeping(guard, schema)
        _refuse_changed_files(guard, schema, scripts.files)
        if before is not None:
            with psycopg.connect(url) as connection:
                before(connection)
        with engine.connect() as connection:
            _run_alembic(connection, scripts, schema, report)
        if database == "analytics":
            _remember_timezone(guard, config.business_timezone)
        return _status(guard, schema, scripts.files)


def status(database: str, *, config: Settings | None = None, url: str | None = None) -> Status:
    """What is applied and what is pending. Reads only.

    Raises:
        MigrationError: if a file changed after it was applied.
    """
    files = migration_files(database)
    schema = VERSION_SCHEMA[database]
    with psycopg.connect(url or database_url(database, config), autocommit=True) as connection:
        known = connection.execute("SELECT to_regclass(%s)", [f"{schema}.migration_files"]).fetchone()
        if not known or known[0] is None:
            return Status(None, (), tuple(file.name for file in files))
        _refuse_changed_files(connection, schema, files)
        return _status(connection, schema, files)


def script(database: str, after: str | None = None) -> str:
    """The server's part and every migration after version `after` (all by default), for review or psql."""
    files = [file for file in migration_files(database) if after is None or file.version > after]
    texts = [(SERVER_FILE, _server_part(database)), *((file.name, file.text()) for file in files)]
    return "\n".join(f"-- {name}\nBEGIN;\n{text.rstrip()}\nCOMMIT;\n" for name, text in texts)


def apply_server_part(
    connection: psycopg.Connection[Any], database: str, report: Callable[[str], None] = lambda line: None
) -> None:
    """Roles and settings of the server, as `sql/<database>/server.sql` says; harmless when repeated.

    Raises:
        MigrationError: if the database was restored without its roles, or the login may not make them.
    """

    def warn(notice: psycopg.errors.Diagnostic) -> None:
        report(". ".join(filter(None, (notice.message_primary, notice.message_hint))))

    connection.add_notice_handler(warn)
    try:
        connection.execute(_server_part(database).encode())
    except psycopg.Error as error:
        raise MigrationError(f"{database}/{SERVER_FILE}: {error}") from error
    finally:
        connection.remove_notice_handler(warn)


def record_applied(connection: psycopg.Connection[Any], database: str, file: SqlFile) -> None:
    """Write a file's checksum; adoption uses it for the baseline that it found instead of ran."""
    connection.execute(
        f"INSERT INTO {VERSION_SCHEMA[database]}.migration_files (version, name, sha256) VALUES (%s, %s, %s)",
        [file.version, file.name, file.sha256()],
    )


def _server_part(database: str) -> str:
    return (SQL_DIR / database / SERVER_FILE).read_text(encoding="utf-8")


def _take_lock(connection: psycopg.Connection[Any], report: Callable[[str], None]) -> None:
    """The database's migration lock, until the connection closes. Says for whom it waits, and not for ever."""
    free = connection.execute(
        "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [locks.MIGRATION]
    ).fetchone()
    if free and free[0]:
        return
    report(f"waiting for another migration: {_lock_holder(connection)}")
    connection.execute(f"SET lock_timeout = '{LOCK_PATIENCE}s'")
    try:
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [locks.MIGRATION])
    except psycopg.errors.LockNotAvailable as error:
        raise MigrationError(
            f"waited {LOCK_PATIENCE} seconds for the migration lock: {_lock_holder(connection)} holds it. If that is "
            "no migration still at work, end it as an administrator: SELECT pg_terminate_backend(<process>);"
        ) from error
    connection.execute("RESET lock_timeout")


def _lock_holder(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute(
        "SELECT l.pid, a.usename FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_database d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND d.datname = current_database()"
        " AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(%s, 0)",
        [locks.MIGRATION],
    ).fetchone()
    return f"process {row[0]}, role {row[1]}" if row else "nobody now"


def _prepare_bookkeeping(connection: psycopg.Connection[Any], schema: str) -> None:
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {schema}.migration_files (version text PRIMARY KEY, name text NOT NULL,"
        " sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )


def _refuse_changed_files(connection: psycopg.Connection[Any], schema: str, files: list[SqlFile]) -> None:
    applied = dict(connection.execute(f"SELECT version, sha256 FROM {schema}.migration_files").fetchall())
    for file in files:
        if file.version in applied and applied[file.version] != file.sha256():
            raise MigrationError(
                f"sql: {file.name} was changed after it was applied. Restore it, and put the change into a new file."
            )
    unknown = sorted(set(applied) - {file.version for file in files})
    if unknown:
        raise MigrationError(
            f"the database has migration(s) {', '.join(unknown)} that this release does not know: "
            "it was migrated by a newer release. Upgrade crm_analytics."
        )


def _run_alembic(
    connection: sa.Connection, scripts: _SqlScripts, schema: str, report: Callable[[str], None]
) -> None:
    database_name = scripts.dir.rsplit("/", 1)[-1]

    def upgrade(revision: Any, context: Any) -> list[Any]:
        return scripts._upgrade_revs("head", revision)

    def apply_file(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:  # alembic passes these by name
        revision = step.up_revision
        file: SqlFile = revision.module.sql_file
        record_applied(connection.connection.driver_connection, database_name, file)  # type: ignore[arg-type]
        report(f"applied {file.name}")

    class _Step:
        """Runs a revision's file on the raw connection: psycopg takes a whole file in one go."""

        def __init__(self, file: SqlFile) -> None:
            self.file = file

        def __call__(self, **_: Any) -> None:
            raw = connection.connection.driver_connection
            assert raw is not None
            try:
                raw.execute(self.file.text().encode())
            except psycopg.Error as error:
                raise MigrationError(f"{self.file.name}: {error}") from error

    for revision in scripts.walk_revisions():
        revision.module.__dict__["upgrade"] = _Step(revision.module.__dict__["sql_file"])

    with _ALEMBIC, EnvironmentContext(Config(), scripts, fn=upgrade) as environment:
        environment.configure(
            connection=connection,
            version_table="alembic_version",
            version_table_schema=schema,
            transaction_per_migration=True,
            on_version_apply=apply_file,
        )
        with environment.begin_transaction():
            environment.run_migrations()
    connection.commit()


def _status(connection: psycopg.Connection[Any], schema: str, files: list[SqlFile]) -> Status:
    applied = [v for (v,) in connection.execute(f"SELECT version FROM {schema}.migration_files ORDER BY 1")]
    return Status(
        version=applied[-1] if applied else None,
        applied=tuple(file.name for file in files if file.version in applied),
        pending=tuple(file.name for file in files if file.version not in applied),
    )


def _remember_timezone(connection: psycopg.Connection[Any], timezone: str) -> None:
    """Dates are the business timezone's, so a database belongs to one timezone (architecture, decision 13)."""
    connection.execute(
        "INSERT INTO analytics.business (timezone) VALUES (%s) ON CONFLICT DO NOTHING", [timezone]
    )
    row = connection.execute("SELECT timezone FROM analytics.business").fetchone()
    if row and row[0] != timezone:
        raise MigrationError(
            f"this database's dates are in {row[0]}, but BUSINESS_TIMEZONE is {timezone}. "
            f"Set BUSINESS_TIMEZONE={row[0]}, or load the landing folder into a new database."
        )
