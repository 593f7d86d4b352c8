"""Runs the migrations of a database: the plain SQL files under `sql/<database>/`, through Alembic.

A file is named `NNNN_what_it_does.sql`; its number is its Alembic revision, and follows the number before it. Each
file runs in its own transaction, all of them under one advisory lock. The checksum of every applied file is stored: a
file that changed after it ran is refused, because databases would silently differ; so is a database that lacks what the
record of applied files says it has. `server.sql` beside the migrations has what belongs to the server (roles,
settings); it runs first, every time. Roles are the server's, so where there are franchises, `grafana_reader` in the
analytics files stands for the franchise's own. docs/decisions/migrations-as-sql.md has the reasons.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from crm_analytics.core import business, locks
from crm_analytics.core.database import database_url
from crm_analytics.core.migrated_objects import MigratedObjects, found, remedy
from crm_analytics.core.settings import SQL_DIR, Settings, settings
from crm_analytics.core.wording import counted

#: Where each database keeps its version table and checksums.
VERSION_SCHEMA = {"analytics": "analytics", "crm": "crm_private"}
#: While a migration runs: whoever may create objects in another schema must not give a name in a file another meaning.
SEARCH_PATH = "pg_catalog, pg_temp"
#: Seconds to wait for another migration.
LOCK_PATIENCE = 300
SERVER_FILE = "server.sql"
MINIMUM_SERVER = 160000


class MigrationError(Exception):
    """Raised when a migration must not or cannot run; the message names the remedy."""


class DriftError(MigrationError):
    """Raised when all migrations ran, but the database is not what they lead to; the message is the difference."""


class NotMigrated(MigrationError):
    """Raised when a database lacks migrations; the message names the command to type."""


@dataclass(frozen=True)
class SqlFile:
    """One migration file."""

    path: Path
    version: str

    @property
    def name(self) -> str:
        """Returns the file's name, by which people call the migration."""
        return self.path.name

    def text(self) -> str:
        """Returns the SQL, unchanged."""
        return self.path.read_text(encoding="utf-8")

    def sha256(self) -> str:
        """Returns the file's checksum, with normalized line endings."""
        return hashlib.sha256(self.text().replace("\r\n", "\n").encode()).hexdigest()


@dataclass(frozen=True)
class Status:
    """The migrations that a database has, and those that it lacks."""

    version: str | None
    applied: tuple[str, ...]
    pending: tuple[str, ...]


def migration_files(database: str) -> list[SqlFile]:
    """Returns the migration files of `analytics` or `crm`, in order.

    Raises:
        MigrationError: if a file is misnamed, or a number occurs twice.
    """
    files: list[SqlFile] = []
    for path in sorted((SQL_DIR / database).glob("*.sql")):
        if path.name == SERVER_FILE:
            continue
        match = re.fullmatch(r"(\d{4})_\w+\.sql", path.name)
        if not match:
            raise MigrationError(f"{path}: a migration's name must be NNNN_what_it_does.sql")
        if files and files[-1].version == match[1]:
            raise MigrationError(
                f"{path}: {files[-1].name} already has the number {match[1]}; take the next one"
            )
        files.append(SqlFile(path, match[1]))
    return files


def migrate(
    database: str,
    *,
    config: Settings | None = None,
    url: str | None = None,
    before: Callable[[psycopg.Connection[Any]], None] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Status:
    """Brings `analytics` or `crm` to the newest version. Idempotent; concurrent callers wait for each other.

    Applies the server's part (roles, settings) again each time, because a restored database has lost it.

    Args:
        database: `analytics` or `crm`.
        config: the settings; the environment's by default.
        url: the database's address, if not the configured one (tests, scratch servers).
        before: called inside the lock, before any file runs, with a connection in its own transaction
            (the CRM's adoption of an existing schema).
        report: receives a line per applied file, and the warnings of the server's part.

    Raises:
        MigrationError: the server is too old, an applied file changed, the database lacks what its record says it
            has, it is another business's, a restore lost its roles, or another session does not
            release the lock.
    """
    config = config or settings()
    url = url or database_url(database, config)
    files = migration_files(database)
    with psycopg.connect(url, autocommit=True) as guard:
        if guard.info.server_version < MINIMUM_SERVER:
            raise MigrationError(
                f"PostgreSQL {guard.info.server_version // 10000} is too old: 16 is the minimum"
            )
        guard.execute(f"SET search_path = {SEARCH_PATH}")
        _take_lock(guard, report)
        # before anything is changed in what may be another's database
        if database == "analytics" and _exists(guard, "to_regclass('analytics.business')"):
            _refuse_other(guard, config)
        apply_server_part(guard, database, report, config)
        state = _status(_recorded(guard, database, files), files)
        prepare_bookkeeping(guard, database)
        if before is not None:
            with psycopg.connect(url) as connection:
                connection.execute(f"SET LOCAL search_path = {SEARCH_PATH}")
                before(connection)
        if state.pending:
            _apply(database, url, files, report, config)
            state = _status(_recorded(guard, database, files), files)
        if database == "analytics":
            business.remember(guard, config)
        return state


def status(database: str, *, config: Settings | None = None, url: str | None = None) -> Status:
    """Returns what is applied and what is pending. Reads only.

    Raises:
        MigrationError: if a file changed after it was applied, or the database lacks what its record says it has.
    """
    files = migration_files(database)
    with psycopg.connect(url or database_url(database, config), autocommit=True) as connection:
        return _status(_recorded(connection, database, files), files)


def require_migrated(database: str, *, config: Settings | None = None, url: str | None = None) -> None:
    """Does nothing if the database has every migration. Reads only.

    Raises:
        NotMigrated: if one is pending.
        MigrationError: if a file changed after it was applied, the database lacks what its record says it has, or
            it is another business's than the one of `config`.
    """
    pending = status(database, config=config, url=url).pending
    if pending:
        more = f" and {counted(len(pending) - 1, 'more migration')}" if pending[1:] else ""
        raise NotMigrated(
            f"the {database} database lacks {pending[0]}{more}: run "
            f"`{(config or settings()).command(f'migrate {database}')}`"
        )
    if database == "analytics" and config is not None:
        with psycopg.connect(url or database_url(database, config)) as connection:
            _refuse_other(connection, config)


def script(database: str, after: str | None = None, config: Settings | None = None) -> str:
    """Returns the server's part and every migration after version `after` (all by default), for review or psql."""
    files = [file for file in migration_files(database) if after is None or file.version > after]
    texts = [(SERVER_FILE, _server_part(database)), *((file.name, file.text()) for file in files)]
    reader = config or settings()
    begin = f"BEGIN;\nSET LOCAL search_path = {SEARCH_PATH};"
    return "\n".join(
        f"-- {name}\n{begin}\n{_with_reader(text, database, reader).rstrip()}\nCOMMIT;\n"
        for name, text in texts
    )


def apply_server_part(
    connection: psycopg.Connection[Any],
    database: str,
    report: Callable[[str], None] = lambda line: None,
    config: Settings | None = None,
) -> None:
    """Creates the roles and settings of `sql/<database>/server.sql`; harmless when repeated.

    Raises:
        MigrationError: if the database was restored without its roles, or the login may not create them.
    """

    def warn(notice: psycopg.errors.Diagnostic) -> None:
        report(". ".join(filter(None, (notice.message_primary, notice.message_hint))))

    connection.add_notice_handler(warn)
    try:
        config = config or settings()
        text = _with_reader(_server_part(database), database, config)
        connection.execute(f"SET LOCAL search_path = {SEARCH_PATH};\n{text}".encode())
        if database == "analytics" and config.franchise:
            _close_to_other_franchises(connection, config)
    except psycopg.Error as error:
        raise MigrationError(f"{database}/{SERVER_FILE}: {error}") from error
    finally:
        connection.remove_notice_handler(warn)


def record_applied(connection: psycopg.Connection[Any], database: str, file: SqlFile) -> None:
    """Stores a file's checksum; adoption does so for the baseline, which it found instead of running it."""
    connection.execute(
        f"INSERT INTO {VERSION_SCHEMA[database]}.migration_files (version, name, sha256) VALUES (%s, %s, %s)",
        [file.version, file.name, file.sha256()],
    )


def _close_to_other_franchises(connection: psycopg.Connection[Any], config: Settings) -> None:
    """Lets nobody but the database's owner and its reader connect: other franchises' roles are on the same server."""
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    reader = sql.Identifier(config.grafana_reader)
    connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, reader))


def _with_reader(text: str, database: str, config: Settings) -> str:
    """Returns SQL for the role that reads this business's database."""
    return text.replace("grafana_reader", config.grafana_reader) if database == "analytics" else text


def _refuse_other(connection: psycopg.Connection[Any], config: Settings) -> None:
    try:
        business.refuse_other(connection, config)
    except business.OtherBusiness as error:
        raise MigrationError(str(error)) from error


def _server_part(database: str) -> str:
    return (SQL_DIR / database / SERVER_FILE).read_text(encoding="utf-8")


def _take_lock(connection: psycopg.Connection[Any], report: Callable[[str], None]) -> None:
    """Takes the database's migration lock until the connection closes. Reports who holds it; does not wait forever."""
    try:
        locks.take(
            connection,
            locks.MIGRATION,
            LOCK_PATIENCE,
            lambda who: report(f"waiting for another migration: {who}"),
        )
    except locks.LockHeld as error:
        raise MigrationError(str(error)) from error


def prepare_bookkeeping(connection: psycopg.Connection[Any], database: str) -> None:
    """Creates the record of applied files, if there is none.

    Raises:
        MigrationError: if another role made its schema beforehand.
    """
    schema = VERSION_SCHEMA[database]
    squatter = connection.execute(
        "SELECT nspowner::regrole::text, current_user::regrole::text FROM pg_namespace WHERE nspname = %s"
        " AND nspowner <> current_user::regrole AND to_regclass(%s) IS NULL",
        [schema, f"{schema}.migration_files"],
    ).fetchone()
    if squatter:
        raise MigrationError(
            f"the schema {schema} belongs to {squatter[0]}, who could replace what is in it. As an administrator: "
            f"ALTER SCHEMA {schema} OWNER TO {squatter[1]};"
        )
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    connection.execute(
        f"""
        CREATE TABLE IF NOT EXISTS {schema}.migration_files (
            version text PRIMARY KEY,
            name text NOT NULL,
            sha256 text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )


def _recorded(connection: psycopg.Connection[Any], database: str, files: list[SqlFile]) -> dict[str, str]:
    """Returns the checksums of the applied files by version, which are none if there is no record.

    Raises:
        MigrationError: if the record doesn't fit the files, or the database doesn't fit the record.
    """
    schema = VERSION_SCHEMA[database]
    with connection.transaction():
        # one snapshot: a migration may be running
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        there = found(connection, database)
        tables = connection.execute(
            "SELECT to_regclass(%s), to_regclass(%s)",
            [f"{schema}.migration_files", f"{schema}.alembic_version"],
        ).fetchone()
        assert tables is not None
        applied, newest = dict[str, str](), None
        if tables[0]:
            applied = dict(
                connection.execute(f"SELECT version, sha256 FROM {schema}.migration_files").fetchall()
            )
        if tables[1]:
            newest = connection.execute(f"SELECT max(version_num) FROM {schema}.alembic_version").fetchone()
    _refuse_changed_files(applied, files)
    objects = MigratedObjects.read(SQL_DIR / database)
    problem = objects.contradiction(applied, there, {file.version: file.name for file in files})
    if problem is None and (newest[0] if newest else None) != max(applied, default=None):
        problem = (
            f"the {database} database has two records of its migrations that disagree: {schema}.migration_files says "
            f"{max(applied, default='nothing')}, {schema}.alembic_version says {(newest and newest[0]) or 'nothing'}. "
            "One of them was changed by hand, or only a part of a backup was restored. Nothing was changed. Now: "
            + remedy(database)
        )
    if problem:
        raise MigrationError(problem)
    return applied


def _refuse_changed_files(applied: Mapping[str, str], files: list[SqlFile]) -> None:
    for file in files:
        if file.version in applied and applied[file.version] != file.sha256():
            raise MigrationError(
                f"{file.name} was changed after it was applied. Restore the file, and put the change into a new one. "
                "After an upgrade from a version before 2.0.0, use a new database: `make clean` removes the embedded ones."
            )
    unknown = sorted(set(applied) - {file.version for file in files})
    if unknown:
        raise MigrationError(
            f"this release does not know migration {', '.join(unknown)} of the database: "
            "a newer release has migrated it. Upgrade crm_analytics."
        )


def _apply(
    database: str, url: str, files: list[SqlFile], report: Callable[[str], None], config: Settings
) -> None:
    # a quarter of a second to import, and most commands find nothing to apply
    from crm_analytics.core.alembic_files import run_pending

    def run(connection: psycopg.Connection[Any], file: SqlFile) -> None:
        connection.execute(f"SET LOCAL search_path = {SEARCH_PATH}")
        if database == "analytics":
            _hold_refreshes(connection)
        # psycopg takes a whole file in one go
        try:
            connection.execute(_with_reader(file.text(), database, config).encode())
        except psycopg.Error as error:
            raise MigrationError(f"{file.name}: {error}") from error
        record_applied(connection, database, file)
        report(f"applied {file.name}")
        if database == "analytics":
            _queue_every_month(connection, file, report)

    run_pending(url, VERSION_SCHEMA[database], files, run)


def _hold_refreshes(connection: psycopg.Connection[Any]) -> None:
    """Makes refreshes wait until the transaction ends: a month that appears meanwhile would be computed by old rules.

    Before the file runs, because a refresh takes this lock first, too, and may wait for what the file locks.
    """
    if _exists(connection, "to_regclass('analytics.lead_channels')"):
        connection.execute("LOCK TABLE analytics.lead_channels IN ROW EXCLUSIVE MODE")


def _queue_every_month(
    connection: psycopg.Connection[Any], file: SqlFile, report: Callable[[str], None]
) -> None:
    """Makes every month stale, in the file's transaction, because the file may have changed a rule."""
    if not _exists(connection, "to_regprocedure('analytics.queue_every_month(text, text)')"):
        return
    cause = f"migration {file.name}"
    connection.execute("SELECT analytics.queue_every_month(%s)", [cause])
    found = connection.execute("SELECT count(*) FROM analytics.stale_months WHERE cause = %s", [cause])
    (months,) = found.fetchone() or (0,)
    if months:
        report(
            f"{counted(months, 'month')} will be computed again, because {file.name} may have changed a rule"
        )


def _exists(connection: psycopg.Connection[Any], name: LiteralString) -> bool:
    return connection.execute("SELECT " + name + " IS NOT NULL").fetchone() == (True,)


def _status(applied: Collection[str], files: list[SqlFile]) -> Status:
    return Status(
        version=max(applied, default=None),
        applied=tuple(file.name for file in files if file.version in applied),
        pending=tuple(file.name for file in files if file.version not in applied),
    )
