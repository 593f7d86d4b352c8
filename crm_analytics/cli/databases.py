"""Prepares the databases before a command uses them."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from crm_analytics.core.database import connect
from crm_analytics.core.migrations import migrate, require_migrated
from crm_analytics.core.settings import Settings
from crm_analytics.crm.migrating.migrate import migrate_crm


def migrate_both(config: Settings, console: Console) -> None:
    """Migrates the analytics databases and that of the CRM; prints a line for each file applied."""

    def reporter(name: str) -> Callable[[str], None]:
        return lambda line: console.print(f"{name}: {line}", style="dim")

    for business in config.of_franchises():
        called = f"{business.franchise} analytics".strip()
        migrate("analytics", config=business, report=reporter(called))
    migrate_crm(config=config, report=reporter("crm"))


def require_analytics(config: Settings) -> None:
    """Migrates the embedded analytics database; a configured one must be migrated already.

    Raises:
        NotMigrated: if a configured one isn't.
        MigrationError: if its migrations aren't ours, or something of theirs is gone.
    """
    if config.configured_url("analytics") is None:
        migrate("analytics", config=config)
    else:
        require_migrated("analytics", config=config)


def require_storage(config: Settings) -> None:
    """Raises psycopg.OperationalError at once if Dagster's database cannot be reached; Dagster would retry for long."""
    connect("dagster", config).close()
