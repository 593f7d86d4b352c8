"""Lists the connectors, and pulls by hand."""

from __future__ import annotations

from datetime import date

import psycopg
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from crm_analytics.analytics.connectors.connector import (
    RecordConnector,
    Window,
)
from crm_analytics.analytics.connectors.errors import ConnectorError
from crm_analytics.analytics.connectors.pull import PullResult, pull
from crm_analytics.analytics.connectors.registry import CONNECTORS
from crm_analytics.cli.databases import require_analytics
from crm_analytics.core.database import connect
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted


def list_connectors(config: Settings, console: Console) -> None:
    """Prints each connector: whether it is on, and if not, what to set."""
    table = Table("connector", "what", "fills", "state", box=None, pad_edge=False)
    for connector in CONNECTORS.values():
        missing = connector.missing(config)
        state = f"off: set {' and '.join(missing)}" if missing else "[green]on[/]"
        table.add_row(connector.name, connector.title, ", ".join(connector.sources), state)
    console.print(table)


def pull_by_hand(
    config: Settings, name: str, first: date | None, last: date | None, console: Console
) -> None:
    """Pulls, prints what came of it, and writes it down in Dagster.

    Raises:
        ConnectorError: if there is no such connector, it is off, or the service refuses.
    """
    connector = CONNECTORS.get(name)
    if connector is None:
        raise ConnectorError(f"there is no connector {name!r}; accepted: {', '.join(CONNECTORS)}")
    connector.require_on(config)
    window = _window(config, name, first, last)
    require_analytics(config)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with (
        connect("analytics", config, autocommit=True) as connection,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task(f"{name}: asking for the first page", total=None)
        result = pull(
            connection,
            connector,
            config,
            window,
            report=lambda text: progress.update(task, description=escape(text)),
        )
    _print(result, console)
    _record(config, result, console)


def _window(config: Settings, name: str, first: date | None, last: date | None) -> Window | None:
    connector = CONNECTORS[name]
    if first is None and last is None:
        return None
    if first is None:
        first = config.start_month
    if last is None and isinstance(connector, RecordConnector) and connector.takes_last_day:
        last = max(first, _today(config))
    return Window(first, last)


def _today(config: Settings) -> date:
    from datetime import datetime

    return datetime.now(config.timezone).date()


def _print(result: PullResult, console: Console) -> None:
    asked = f", {result.window.words}" if result.window else ""
    console.print(
        f"{result.connector}{asked}: {counted(result.records, 'record')} in {counted(result.pages, 'page')}",
        highlight=False,
    )
    for file in result.files:
        console.print(f"written: {escape(file)}", highlight=False)
    if not result.files:
        console.print("nothing has changed since the last pull, so no file was written")
    if result.note:
        console.print(f"[yellow]note:[/] {escape(result.note)}", highlight=False)


def _record(config: Settings, result: PullResult, console: Console) -> None:
    """Tells Dagster of the pull, whose files are there in any case."""
    from crm_analytics.orchestration.analytics.pulls import record
    from crm_analytics.orchestration.instance import open_instance

    try:
        connect("dagster", config).close()
    except psycopg.OperationalError as error:
        console.print(f"not shown in Dagster: {escape(str(error))}", style="dim", highlight=False)
        return
    with open_instance(config) as instance:
        record(instance, config, result)
