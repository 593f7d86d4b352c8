"""Migrates a CRM database: the one entry point by which it is created or brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from crm_analytics.core.database import database_url
from crm_analytics.core.migrations import Status, migrate
from crm_analytics.core.settings import Settings
from crm_analytics.crm.migrating.adoption import prepare, shared_contacts


def migrate_crm(
    url: str | None = None,
    replace_legacy: bool = False,
    report: Callable[[str], None] = lambda line: None,
    config: Settings | None = None,
) -> Status:
    """Brings the CRM database to the newest version, adopting an existing one first. Harmless when repeated.

    Args:
        url: the database's address; the configured CRM database by default.
        replace_legacy: drop functions with an RPC's name, triggers, rules and policies that are in the way.
        report: receives one line per finding of adoption and per file applied.
        config: settings; the environment's by default.

    Raises:
        AdoptionError: an existing database differs from the baseline; the message is the diff.
        MigrationError: server too old, or an applied file was changed.
    """

    found: list[str] = []

    def adopt(connection: psycopg.Connection[Any]) -> None:
        found.extend(prepare(connection, replace_legacy=replace_legacy))
        for line in found:
            report(line)

    status = migrate("crm", url=url, before=adopt, report=report, config=config)
    if found:
        with psycopg.connect(url or database_url("crm", config)) as connection:
            for line in shared_contacts(connection):
                report(line)
    return status
