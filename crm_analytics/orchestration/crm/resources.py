"""Dagster resources of the CRM: its database, its migrations, and the proof that its guards hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.core import migrations
from crm_analytics.core.database import database_url
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import attacks, invariants
from crm_analytics.crm.proof import audit_seals as seals
from crm_analytics.crm.schema import manifest


class CrmDatabase(dg.ConfigurableResource):
    """The CRM's database: `CRM_DATABASE_URL`, or the embedded server."""

    url: str = ""
    lock_timeout_seconds: int = 5
    statement_timeout_seconds: int = 300

    def conninfo(self) -> str:
        """The libpq URL; starts the embedded server if that is where the database lives."""
        return self.url or database_url("crm")

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """An autocommit connection whose every statement and lock wait is bounded."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            for name, seconds in (
                ("lock_timeout", self.lock_timeout_seconds),
                ("statement_timeout", self.statement_timeout_seconds),
            ):
                connection.execute("SELECT set_config(%s, %s, false)", [name, f"{seconds}s"])
            yield connection


class CrmMigrations(dg.ConfigurableResource):
    """Runs the migrations under sql/crm (Alembic), adopting an existing database."""

    database: CrmDatabase

    def migrate(self, report: Callable[[str], None] = lambda line: None) -> migrations.Status:
        """Bring the database to the newest version; idempotent."""
        return migrate_crm(self.database.conninfo(), report=report)


class CrmGuards(dg.ConfigurableResource):
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


def crm_resources() -> dict[str, Any]:
    """The resources by the names under which assets and checks ask for them."""
    database = CrmDatabase()
    return {
        "crm_database": database,
        "crm_migrations": CrmMigrations(database=database),
        "crm_guards": CrmGuards(database=database),
    }
