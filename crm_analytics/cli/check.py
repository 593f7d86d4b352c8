"""Prints what loading files would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crm_analytics.analytics.ingest.dry_run import FileReport, examine
from crm_analytics.analytics.ingest.loading.ledger import Connection
from crm_analytics.analytics.ingest.reading.batches import Records
from crm_analytics.analytics.ingest.storage.places import Place, landing_of
from crm_analytics.cli.terminal import console, errors
from crm_analytics.core.database import database_url, embedded
from crm_analytics.core.migrations import MigrationError, require_migrated
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted

#: quarantined records printed per file
MOST_RECORDS = 20


def check_with_database(config: Settings, paths: Sequence[str | Path]) -> bool:
    """Prints what loading the files would do, also in the analytics database if it can be asked."""
    connection = None
    if config.analytics_database_url or embedded(config).initialized():
        try:
            require_migrated("analytics", config=config)
            connection = psycopg.connect(database_url("analytics", config), autocommit=True)
        except (psycopg.OperationalError, MigrationError) as error:
            errors.print(f"without the database: {escape(str(error))}", style="dim", highlight=False)
    return check_files(
        paths, console=console, timezone=config.timezone, landing=landing_of(config), connection=connection
    )


def check_files(
    paths: Sequence[str | Path],
    *,
    console: Console,
    timezone: ZoneInfo,
    landing: Place | None = None,
    connection: Connection | None = None,
) -> bool:
    """Prints what loading the files would do; returns whether all of them can be read.

    `timezone` is the business timezone, `landing` the landing folder. With a connection to the analytics database, the
    counts say what would be inserted, updated and superseded there. Nothing is written in either case.
    """
    reports = [examine(path, timezone=timezone, landing=landing, connection=connection) for path in paths]
    for report in reports:
        _print(report, console, timezone)
    return all(report.refusal is None for report in reports)


def _print(report: FileReport, console: Console, timezone: ZoneInfo) -> None:
    console.print()
    console.rule(escape(report.name), align="left")
    console.print(_origin(report), highlight=False)
    if report.refusal is not None:
        console.print(f"[red]would be refused:[/] {escape(report.refusal)}", highlight=False)
        return
    file, exported_at = report.file, report.exported_at
    assert file is not None and exported_at is not None
    how = (
        f"{file.encoding}, JSON Lines"
        if file.json_lines
        else f"{file.encoding}, delimiter {file.delimiter!r}"
        if file.delimiter
        else "workbook"
    )
    console.print(
        f"source [bold]{file.source.name}[/], exported {exported_at.astimezone(timezone):%Y-%m-%d %H:%M}, {how}"
    )
    columns = Table("column", "header in the file", box=None, pad_edge=False)
    for name, header in file.mapping.items():
        columns.add_row(name, escape(header))
    console.print(columns)
    if unknown := file.located.match.unknown:
        console.print(f"not used: {escape(', '.join(unknown))}", highlight=False)
    _print_counts(report, file.records, console)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    if report.quarantined:
        _print_quarantine(report, console)


def _origin(report: FileReport) -> str:
    """Tells where a file came from, and of a pulled one which rows it has completely."""
    if report.connector is None:
        return "exported by a person"
    pull = report.file.pull if report.file else None
    if pull is None:
        return f"pulled by {report.connector}"
    complete = f"all rows {pull.covers}" if pull.covers else "proves nothing about rows that it lacks"
    return f"pulled by {report.connector}, {complete}"


def _print_counts(report: FileReport, records: Records, console: Console) -> None:
    accepted = records.read - records.summary_lines - report.duplicates - len(report.quarantined)
    console.print(
        f"{counted(records.read, 'record')}: {accepted:,} good, {counted(report.duplicates, 'duplicate')},"
        f" {len(report.quarantined):,} to be quarantined, {counted(records.summary_lines, 'summary line')}"
    )
    if report.database is not None:
        counts = vars(report.database)
        changes = ("inserted", "updated", "unchanged", "superseded", "quarantined")
        console.print("in the database: " + ", ".join(f"{counts[name]:,} {name}" for name in changes))
    if report.months:
        months = ", ".join(f"{month:%Y-%m} ({count:,})" for month, count in report.months.items())
        console.print(f"months: {months}", highlight=False)


def _print_quarantine(report: FileReport, console: Console) -> None:
    records = Table("record", "line", "key", "would be quarantined because", box=None, pad_edge=False)
    for row in report.quarantined[:MOST_RECORDS]:
        line = "" if row.line_no is None else str(row.line_no)
        reasons = "; ".join(map(str, row.reasons))
        records.add_row(str(row.record_no), line, escape(row.key or ""), escape(reasons))
    console.print(records)
    if len(report.quarantined) > MOST_RECORDS:
        console.print(f"… and {len(report.quarantined) - MOST_RECORDS:,} more")
