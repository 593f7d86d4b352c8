"""Prints what files or SQL would do to the metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crm_analytics.analytics.diff import CannotDiff, ChangedSum, Difference, TriedFile, diff_files, diff_sql
from crm_analytics.analytics.ingest.loading.results import describe
from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.cli.databases import require_analytics
from crm_analytics.cli.terminal import errors
from crm_analytics.core.database import connect, end_with_client
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted, listed

NOTHING_DIFFERS, FAILED, DIFFERS = 0, 1, 3  #: exit codes
#: Lines of the table; `--json` has all of them.
SHOWN_CHANGES = 200
_MONEY = {"cost", "revenue_gross"}
_TOLD_BY = {
    "name": "as its name says",
    "mtime": "its modification time: a copy with another one may come before or after other files",
    "seen": "as when this content was first seen",
    "before": "that of the content which it replaces, which is later than its own",
}


def diff(
    config: Settings, paths: Sequence[str], statements: str | None, *, as_json: bool, console: Console
) -> int:
    """Prints what loading the files, or running the SQL, would change; returns the exit code."""
    require_analytics(config)
    try:
        with connect("analytics", config, autocommit=True) as connection:
            end_with_client(connection)
            if statements is not None:
                found = diff_sql(connection, statements, start_month=config.start_month)
            else:
                found = diff_files(
                    connection,
                    landing_of(config),
                    paths,
                    timezone=config.timezone,
                    start_month=config.start_month,
                )
    except CannotDiff as error:
        errors.print(f"[red]not compared[/]: {escape(str(error))}", highlight=False)
        return FAILED
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        _print(found, config.timezone, console)
    if any(file.is_refused for file in found.files):
        return FAILED
    return DIFFERS if found.differs else NOTHING_DIFFERS


def _print(found: Difference, timezone: ZoneInfo, console: Console) -> None:
    for file in found.files:
        _print_file(file, timezone, console)
    if found.changes:
        _print_changes(found.changes, console)
    for month, source in found.moved:
        console.print(
            f"{month:%Y-%m} {escape(source)}: the same sums, on other days or in other segments",
            highlight=False,
        )
    if found.stale_before:
        console.print(
            f"[yellow]stale before[/]: {_written(found.stale_before)}; changes that wait for a refresh there are included",
            highlight=False,
        )
    if found.not_computed:
        console.print(
            f"[yellow]not computed[/]: {_written(found.not_computed)}; before START_MONTH, or in the future",
            highlight=False,
        )
    months = {change.month for change in found.changes} | {month for month, _ in found.moved}
    told = f"{counted(len(found.changes), 'number')} would change in {counted(len(months), 'month')}"
    console.print(
        f"{told if found.differs else 'no number would change'}; nothing was changed", highlight=False
    )


def _print_file(file: TriedFile, timezone: ZoneInfo, console: Console) -> None:
    style = "[red]" if file.is_refused else "[default]"
    console.print(f"{style}{escape(describe(file.result))}[/]", highlight=False)
    if file.exported_at is not None and file.exported_at_from is not None:
        told = f"{file.exported_at.astimezone(timezone):%Y-%m-%d %H:%M} ({_TOLD_BY[file.exported_at_from]})"
        console.print(f"  assumed export time: {told}", highlight=False)


def _print_changes(changes: Sequence[ChangedSum], console: Console) -> None:
    table = Table("month", "source", "measure", title="what would change")
    for name in ("old", "new", "change"):
        table.add_column(name, justify="right")
    before: tuple[date, str] | None = None
    for change in changes[:SHOWN_CHANGES]:
        here = (change.month, change.source)
        words = [f"{change.month:%Y-%m}", escape(change.source)] if here != before else ["", ""]
        before = here
        money = ",.2f" if change.measure in _MONEY else ",.0f"
        table.add_row(
            *words,
            change.measure,
            format(change.old, money),
            format(change.new, money),
            format(change.change, f"+{money}"),
        )
    console.print(table)
    if len(changes) > SHOWN_CHANGES:
        console.print(f"… and {len(changes) - SHOWN_CHANGES:,} more; all of them: --json")


def _written(months: Sequence[date]) -> str:
    return listed([f"{month:%Y-%m}" for month in months], most=12)


def _as_json(found: Difference) -> dict[str, Any]:
    """Returns the difference with amounts as text, so that no reader makes binary fractions of them."""

    def number(measure: str, value: Decimal) -> int | str:
        return f"{value:.2f}" if measure in _MONEY else int(value)

    return {
        "files": [
            {
                "path": file.result.path,
                "status": file.result.status,
                "message": file.result.message,
                "exported_at": file.exported_at and file.exported_at.isoformat(),
                "exported_at_from": file.exported_at_from,
                "counts": vars(file.result.counts),
                "warnings": file.result.warnings,
            }
            for file in found.files
        ],
        "changes": [
            {
                "month": f"{change.month:%Y-%m}",
                "source": change.source,
                "measure": change.measure,
                "old": number(change.measure, change.old),
                "new": number(change.measure, change.new),
                "change": number(change.measure, change.change),
            }
            for change in found.changes
        ],
        "moved": [{"month": f"{month:%Y-%m}", "source": source} for month, source in found.moved],
        "stale_before": [f"{month:%Y-%m}" for month in found.stale_before],
        "not_computed": [f"{month:%Y-%m}" for month in found.not_computed],
    }
