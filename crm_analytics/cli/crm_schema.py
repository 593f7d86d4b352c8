"""Migrates the CRM database and reports its drift: `crm-analytics migrate crm` and `crm-analytics crm guards`."""

from __future__ import annotations

from collections.abc import Callable

import click
import psycopg

from crm_analytics.core import migrations
from crm_analytics.core.database import database_url
from crm_analytics.crm.migrating.adoption import refuse_lost_record
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.schema import manifest
from crm_analytics.crm.schema.repairs import writer_repair


def migrate(
    *,
    url: str | None = None,
    sql: bool = False,
    check: bool = False,
    replace_legacy: bool = False,
    echo: Callable[[str], None] = click.echo,
) -> int:
    """Runs `crm-analytics migrate crm [--sql|--check|--replace-legacy]` and returns its exit code.

    `--sql` prints the SQL without running it. `--check` changes nothing and returns 1 if a migration is pending or the
    catalog differs from the manifest.
    """
    url = url or database_url("crm")
    if sql:
        echo(migrations.script("crm", after=migrations.status("crm", url=url).version))
        return 0
    if check:
        status = migrations.status("crm", url=url)
        if status.version is None:
            with psycopg.connect(url, autocommit=True) as connection:
                refuse_lost_record(connection)
        if status.pending:
            echo(f"pending: {', '.join(status.pending)}. Run: crm-analytics migrate crm")
            return 1
        return report_drift(url, echo)
    status = migrate_crm(url, replace_legacy=replace_legacy, report=echo)
    echo(f"crm is at {status.version}")
    return 0


def report_drift(url: str, echo: Callable[[str], None]) -> int:
    """Prints how the catalog differs from the manifest, with the SQL that repairs it; returns 1 if it does."""
    with psycopg.connect(url, autocommit=True) as connection:
        comparison = manifest.compare(connection)
        writers = manifest.unexpected_writers(connection)
    for key in comparison.allowed_extras:
        echo(f"allowed extra: {key}")
    for difference in comparison.differences:
        echo(f"{difference.problem}\n{difference.repair}\n")
    for writer in writers:
        echo(f"{writer['role_name']} can {', '.join(writer['privileges'])} {writer['table_name']}")
        echo(f"{writer_repair(writer)}\n")
    if comparison.differences or writers:
        return 1
    echo("the catalog equals the manifest")
    return 0
