"""Dagster resources of the CRM: its database, its migrations, and the proof that its guards hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from crm_analytics.core import migrations
from crm_analytics.core.database import database_url
from crm_analytics.core.settings import Settings
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import attacks, invariants
from crm_analytics.crm.proof import audit_seals as seals
from crm_analytics.crm.schema import manifest
from crm_analytics.orchestration.migrated import migrated_url


@dataclass(frozen=True)
class CrmDatabase:
    """The CRM's database. A plain object, because Dagster would show a config with its password."""

    settings: Settings
    lock_timeout_seconds: int = 5
    statement_timeout_seconds: int = 300

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Opens an autocommit connection whose statements and lock waits are bounded.

        Raises:
            dg.Failure: not retried, if the database is not migrated.
        """
        url = migrated_url("crm", self.settings, migrate_crm)
        with psycopg.connect(url, autocommit=True) as connection:
            for name, seconds in (
                ("lock_timeout", self.lock_timeout_seconds),
                ("statement_timeout", self.statement_timeout_seconds),
            ):
                connection.execute("SELECT set_config(%s, %s, false)", [name, f"{seconds}s"])
            yield connection


@dataclass(frozen=True)
class CrmMigrations:
    """Runs the migrations under sql/crm (Alembic), adopting an existing database."""

    database: CrmDatabase

    def migrate(self, report: Callable[[str], None] = lambda line: None) -> migrations.Status:
        """Bring the database to the newest version; idempotent."""
        return migrate_crm(database_url("crm", self.database.settings), report=report)


@dataclass(frozen=True)
class CrmGuards:
    """Proves that the guards hold: drift in the catalog, invariants over the rows, attacks on a scratch server."""

    database: CrmDatabase
    scratch_postgres_version: int = 18

    def comparison(self) -> tuple[manifest.Comparison, list[dict[str, Any]]]:
        """The catalog against the committed manifest, and the roles that could write besides crm_rpc."""
        with self.database.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            return manifest.compare(connection), manifest.unexpected_writers(connection)

    def invariants(self, only: frozenset[str] | None = None) -> Mapping[str, invariants.Result]:
        """Every invariant (or those named) in one read-only snapshot."""
        with self.database.connection() as connection:
            return invariants.check(connection, only)

    def head_is_in_chain(self, head: str) -> bool:
        """Whether a seal published earlier is still part of the chain."""
        with self.database.connection() as connection:
            return seals.head_is_in_chain(connection, head)

    def attacks(self, only: list[str] | None = None) -> list[attacks.Outcome]:
        """Try the attacks on a throwaway server of this machine; production is not touched."""
        return attacks.run_on_scratch_server(self.scratch_postgres_version, only)


def crm_resources(settings: Settings) -> dict[str, Any]:
    """Returns the resources by the names under which assets and checks ask for them."""
    database = CrmDatabase(settings)
    return {
        "crm_database": database,
        "crm_migrations": CrmMigrations(database),
        "crm_guards": CrmGuards(database, settings.embedded_postgres_version),
    }
