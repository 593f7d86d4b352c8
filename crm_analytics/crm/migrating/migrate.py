"""Migrates a CRM database: the one entry point by which it is created or brought up to date, and proved afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from crm_analytics.core.database import database_url
from crm_analytics.core.migrations import SEARCH_PATH, DriftError, Status, migrate
from crm_analytics.core.settings import Settings, settings
from crm_analytics.crm.migrating.adoption import prepare, shared_contacts
from crm_analytics.crm.migrating.server_roles import grant_members, refuse_strangers
from crm_analytics.crm.schema.drift import drift


def migrate_crm(
    url: str | None = None,
    replace_legacy: bool = False,
    status_map: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda line: None,
    config: Settings | None = None,
    prove: bool = True,
) -> Status:
    """Brings the CRM database to the newest version, adopting an existing one first. Harmless when repeated.

    Args:
        url: the database's address; the configured CRM database by default.
        replace_legacy: drop functions with an RPC's name, triggers, rules and policies that are in the way.
        status_map: which status the orders of an adopted database get that have an older one.
        report: receives one line per finding of adoption and per file applied.
        config: settings; the environment's by default.
        prove: whether to end with the drift check. Only what writes the manifest anew goes without.

    Raises:
        AdoptionError: an existing database differs from the baseline; the message is the diff.
        MigrationError: server too old, an applied file was changed, or another login has the CRM's roles.
        DriftError: the migrated database is not what the migrations lead to.
    """
    config = config or settings()
    url = url or database_url("crm", config)

    findings: list[str] = []

    def adopt(connection: psycopg.Connection[Any]) -> None:
        refuse_strangers(connection, config)
        findings.extend(prepare(connection, replace_legacy=replace_legacy, status_map=status_map))
        for line in findings:
            report(line)

    status = migrate("crm", url=url, before=adopt, report=report, config=config)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET search_path = {SEARCH_PATH}")
        grant_members(connection, config)
        if findings:
            for line in shared_contacts(connection):
                report(line)
        found = drift(connection, config) if prove else None
    if found and found.problems:
        raise DriftError(
            f"the CRM database is at {status.version}, but it is not what the migrations lead to:\n"
            + "\n".join(found.problems)
        )
    return status
