"""Rebuilds a source's table after showing what changes, and asking."""

from __future__ import annotations

import sys
from collections.abc import Collection

import click
import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crm_analytics.analytics.ingest.loading.rebuild import PATIENCE, CannotRebuild, Rebuilt, rebuilt
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.cli.databases import require_analytics
from crm_analytics.core.database import connect
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted


def rebuild_source(
    config: Settings,
    source: str,
    without: Collection[str],
    restored: Collection[str],
    *,
    yes: bool,
    console: Console,
) -> bool:
    """Rebuilds the table of a source; returns whether it now agrees with the landing folder."""
    if source not in SOURCES:
        console.print(f"[red]no such source[/]: {escape(source)}; expected one of {', '.join(SOURCES)}")
        return False
    require_analytics(config)
    landing = landing_of(config)
    try:
        with connect("analytics", config, autocommit=True) as connection, console.status(source) as status:
            changes = rebuilt(
                connection,
                landing,
                source,
                timezone=config.timezone,
                without=without,
                restored=restored,
                quiet_seconds=landing.quiet_seconds,
                report=lambda message: status.update(escape(message[:90])),
            )
            with changes as result:
                status.stop()
                _print(result, console)
                needed = bool(result.months or without or restored)
                agreed = needed and (yes or _agreed(source, console))
                if not agreed:
                    raise psycopg.Rollback
            stale = connection.execute("SELECT count(DISTINCT month) FROM analytics.stale_months").fetchone()
    except CannotRebuild as error:
        console.print(f"[red]nothing was changed[/]: {escape(str(error))}", highlight=False)
        return False
    except psycopg.errors.IdleInTransactionSessionTimeout:
        late = f"the answer took longer than {PATIENCE}, and loads of {source} went on without it: ask again"
        console.print(f"[red]nothing was changed[/]: {late}", highlight=False)
        return False
    if not agreed:
        console.print("nothing was changed" if needed else "the table agrees with the landing folder already")
        return not needed
    console.print(
        f"{source} is rebuilt; stale months: {stale[0] if stale else 0}. While `crm-analytics up` runs, they are"
        " recomputed within seconds; otherwise: crm-analytics refresh",
        highlight=False,
    )
    return True


def _agreed(source: str, console: Console) -> bool:
    if not sys.stdin.isatty():
        console.print("no terminal to ask in: add --yes to make these changes")
        return False
    console.print(f"loads of {source} wait for your answer, at most {PATIENCE}", style="dim")
    try:
        return click.confirm("Make these changes?")
    except click.Abort:
        return False


def _print(result: Rebuilt, console: Console) -> None:
    """Prints the months that change, and what is lost with which file."""
    read = sum(file.status == "loaded" for file in result.files)
    console.print(
        f"{result.source}: {counted(read, 'file')} read; {counted(result.by_hand, 'row')} written by hand"
        f" stay{'s' if result.by_hand == 1 else ''}"
    )
    if result.months:
        table = Table("month", title="rows that change")
        for name in ("rows before", "rows after", "removed", "added", "changed"):
            table.add_column(name, justify="right")
        for month in result.months:
            counts = (month.before, month.after, month.removed, month.added, month.changed)
            table.add_row(f"{month.month:%Y-%m}", *(f"{count:,}" for count in counts))
        console.print(table)
    else:
        console.print("no row changes")
    for loss in result.losses:
        label, remedy = {
            "withdrawn": ("taken back", ""),
            "missing": ("no longer in the landing folder", "; put the file back to keep them"),
            "refused": ("refused now", f": {loss.message}"),
        }.get(loss.status, ("no longer in the table", ""))
        style = "yellow" if loss.status == "withdrawn" else "bold red"
        lost = f"{counted(loss.rows, 'row')} lost"
        console.print(f"[{style}]{label}[/]: {escape(loss.path)}: {lost}{escape(remedy)}", highlight=False)
    shown = {loss.path for loss in result.losses}
    for file in result.refused:
        if file.path not in shown:
            console.print(
                f"[red]refused[/]: {escape(file.path)}: {escape(file.message or '')}", highlight=False
            )
