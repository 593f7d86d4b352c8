"""The CRM's database as a Dagster resource."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from crm_analytics.core.settings import Settings
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.orchestration.migrated import connection_to, migrated_url


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
            dg.Failure: if the database is not migrated or not whole.
        """
        url = migrated_url("crm", self.settings, migrate_crm)
        with connection_to("crm", url) as connection:
            for name, seconds in (
                ("lock_timeout", self.lock_timeout_seconds),
                ("statement_timeout", self.statement_timeout_seconds),
            ):
                connection.execute("SELECT set_config(%s, %s, false)", [name, f"{seconds}s"])
            yield connection
