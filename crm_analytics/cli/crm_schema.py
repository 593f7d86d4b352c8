"""Migrates the CRM database and reports its drift: `crm-analytics migrate crm` and `crm-analytics crm guards`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import psycopg

from crm_analytics.core import migrations
from crm_analytics.core.database import database_url
from crm_analytics.core.settings import settings
from crm_analytics.crm.migrating.adoption import plan
from crm_analytics.crm.migrating.legacy import read_status_map
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.migrating.server_roles import refuse_strangers
from crm_analytics.crm.schema.drift import drift


def migrate(
    *,
    url: str | None = None,
    sql: bool = False,
    check: bool = False,
    replace_legacy: bool = False,
    map_status: Path | None = None,
    echo: Callable[[str], None] = click.echo,
) -> int:
    """Runs `crm-analytics migrate crm [--sql|--check|--replace-legacy|--map-status FILE]` and returns its exit code.

    `--sql` prints the SQL without running it. `--check` changes nothing and returns 1 if a migration is pending or the
    catalog differs from the manifest; for a database that is not the migrations' yet, it prints what adoption would do.
    """
    url = url or database_url("crm")
    status_map = read_status_map(map_status) if map_status else {}
    if sql:
        echo(migrations.script("crm", after=migrations.status("crm", url=url).version))
        return 0
    if check:
        status = migrations.status("crm", url=url)
        if status.version is None:
            with psycopg.connect(url) as connection:
                connection.read_only = True
                for line in plan(connection, replace_legacy=replace_legacy, status_map=status_map).lines():
                    echo(line)
                refuse_strangers(connection, settings())
        if status.pending:
            echo(f"pending: {', '.join(status.pending)}. Run: crm-analytics migrate crm")
            return 1
        return report_drift(url, echo)
    status = migrate_crm(url, replace_legacy=replace_legacy, status_map=status_map, report=echo)
    echo(f"crm is at {status.version}")
    return 0


def report_drift(url: str, echo: Callable[[str], None]) -> int:
    """Prints how the catalog differs from the manifest, with the SQL that repairs it; returns 1 if it does."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = drift(connection)
    for key in found.allowed_extras:
        echo(f"allowed extra: {key}")
    for problem in found.problems:
        echo(problem)
    if found.problems:
        return 1
    echo("the catalog equals the manifest")
    return 0
