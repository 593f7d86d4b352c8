"""Runs migration files through Alembic, which knows the order and keeps the version table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory

from crm_analytics.core.migrations import SqlFile

#: Alembic has one environment per process.
_ALEMBIC = threading.Lock()


def run_pending(
    url: str,
    version_schema: str,
    files: list[SqlFile],
    run: Callable[[psycopg.Connection[Any], SqlFile], None],
) -> None:
    """Calls `run` for each file that the database's version table lacks, each in its own transaction.

    Args:
        url: the database's address.
        version_schema: where Alembic keeps its version table.
        files: all migration files, in order.
        run: applies one file through the connection that it is given.
    """
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        scripts = _SqlScripts(files, partial(run, raw))

        def upgrade(revision: Any, context: Any) -> list[Any]:
            return scripts._upgrade_revs("head", revision)

        with _ALEMBIC, EnvironmentContext(Config(), scripts, fn=upgrade) as environment:
            environment.configure(
                connection=connection,
                version_table="alembic_version",
                version_table_schema=version_schema,
                transaction_per_migration=True,
            )
            with environment.begin_transaction():
                environment.run_migrations()
        connection.commit()


class _SqlScripts(ScriptDirectory):
    """Makes Alembic read SQL files instead of Python modules, and run each with `run`."""

    def __init__(self, files: list[SqlFile], run: Callable[[SqlFile], None]) -> None:
        self._files = files
        self._run = run
        super().__init__(str(files[0].path.parent))

    def _load_revisions(self) -> Iterator[Script]:
        before: str | None = None
        for file in self._files:
            module = ModuleType(f"sql_{file.version}", file.name)
            module.__dict__.update(
                revision=file.version, down_revision=before, upgrade=partial(self._run, file)
            )
            yield Script(module, file.version, file.path)
            before = file.version
