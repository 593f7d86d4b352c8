"""Running Dagster from the command line: the instance, one refresh with progress and summary, the UI."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.core import migrations
from crm_analytics.core.database import connect, resolved
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import PROJECT_DIR, Settings

FAILURE = f"{dg.Failure.__module__}.{dg.Failure.__qualname__}"  # what Dagster writes before such a message
SHOWN_MONTHS = 6
PATIENCE = 30  # seconds that Dagster's processes have to stop by themselves


def dagster_environment(config: Settings) -> dict[str, str]:
    """The environment of every process that runs Dagster: URLs, instance, local folder, batched events."""
    config = resolved(config)
    folder = config.crm_analytics_home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **config.environment(),
        "DAGSTER_HOME": str(PROJECT_DIR),
        "CRM_ANALYTICS_DAGSTER_DIR": str(folder),
        "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", "1000"),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def require_storage(config: Settings) -> None:
    """Raise psycopg.OperationalError at once if Dagster's database cannot be reached; Dagster itself tries for long."""
    connect("dagster", config).close()


def migrate_both(config: Settings, console: Console) -> None:
    """Migrate the analytics and the CRM database, a line for each file applied."""
    from crm_analytics.crm.migrating.migrate import migrate_crm

    migrations.migrate(
        "analytics", config=config, report=lambda line: console.print(f"analytics: {line}", style="dim")
    )
    migrate_crm(report=lambda line: console.print(f"crm: {line}", style="dim"))


def refresh_months(
    config: Settings,
    first: date | None,
    last: date | None,
    *,
    console: Console,
    force: bool = False,
    accept_refused: bool = False,
) -> bool:
    """Load every new file and compute the months first..last as one run of the job `refresh`; print a summary.

    Returns:
        True if every file was read (or `accept_refused`), the run succeeded, and no month in range is stale.
    """
    os.environ.update(dagster_environment(config))
    require_storage(config)
    if config.configured_url("analytics") is None:
        migrations.migrate("analytics", config=config)
    from crm_analytics.definitions import build_defs
    from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
    from crm_analytics.orchestration.partitions import key_month, months, range_tags

    known = [key_month(key) for key in months.get_partition_keys()]
    asked = first or known[0], last or known[-1]
    if asked[0] > asked[1]:
        console.print(f"[red]no such months[/]: {asked[0]:%Y-%m} is after {asked[1]:%Y-%m}")
        return False
    first, last = max(asked[0], known[0]), min(asked[1], known[-1])
    if first > last:
        console.print(
            f"[red]no such months[/]: known are {known[0]:%Y-%m} to {known[-1]:%Y-%m} (START_MONTH and today)"
        )
        return False
    if (first, last) != asked:
        console.print(
            f"only {first:%Y-%m} to {last:%Y-%m} can be refreshed: the months known are {known[0]:%Y-%m} (START_MONTH)"
            f" to {known[-1]:%Y-%m} (today)",
            style="yellow",
        )
    if not config.landing_dir.is_dir():
        console.print(
            f"[red]the landing folder {config.landing_dir} does not exist[/]: create it, or set LANDING_DIR"
        )
        return False
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task(f"refreshing {first:%Y-%m} to {last:%Y-%m}", total=None)
        logger = _progress_logger(lambda text: progress.update(task, description=text))
        defs = build_defs(loggers={"console": logger})
        ops = {"__".join(key.path): {"config": {"force": True}} for key in RAW_KEYS} if force else {}
        with dg.DagsterInstance.get() as instance:
            result = defs.resolve_job_def("refresh").execute_in_process(
                instance=instance,
                tags=range_tags(first, last),
                run_config={"ops": ops, "loggers": {"console": {}}},
                raise_on_error=False,
            )
        progress.update(task, description="done" if result.success else "[red]failed[/]")
    with connect("analytics", config) as connection:
        refused, stale = _summary(
            connection, config.landing_dir, result.run_id, asked[0], next_month(asked[1]), console
        )
    if not result.success:
        for reason, steps in _failures(result).items():
            console.print(f"[red]{', '.join(steps)} failed[/]: {escape(reason)}", highlight=False)
        console.print(f"the run {result.run_id} has the details: crm-analytics up, then Runs")
    return result.success and not stale and (accept_refused or not refused)


def _failures(result: dg.ExecuteInProcessResult) -> dict[str, list[str]]:
    """The failed steps by what they said: their own exception rather than the one wrapped around it."""
    found: dict[str, list[str]] = {}
    for event in result.get_step_failure_events():
        error = event.step_failure_data.error
        while error and error.cause:
            error = error.cause
        reason = error.message.strip() if error else "no reason given"
        found.setdefault(reason.removeprefix(f"{FAILURE}: "), []).append(str(event.step_key))
    return found


def _progress_logger(show: Callable[[str], None]) -> dg.LoggerDefinition:
    """A Dagster logger that shows what the run is doing instead of printing every event."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            meta: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}
            step = meta.get("step_key") if isinstance(meta, Mapping) else getattr(meta, "step_key", None)
            message = record.getMessage().split("\n")[0]
            event = (
                meta.get("dagster_event")
                if isinstance(meta, Mapping)
                else getattr(meta, "dagster_event", None)
            )
            if event is None and step:
                show(f"{str(step).replace('__', '/')}: {message[:90]}")
            elif event is not None and event.event_type_value == "STEP_START":
                show(str(step).replace("__", "/"))

    @dg.logger(config_schema={})
    def progress(_: Any) -> logging.Logger:
        logger = logging.Logger("crm_analytics.progress", logging.DEBUG)
        logger.addHandler(Handler())
        return logger

    return progress


silent_logger = _progress_logger(lambda _: None)


def _summary(
    connection: psycopg.Connection[Any], landing: Path, run_id: str, start: date, end: date, console: Console
) -> tuple[int, int]:
    """Print what was read, what was not, and what is stale; returns (files refused, stale months of [start, end))."""
    files = connection.execute(
        "SELECT coalesce(source, '?'), status, count(*), sum(records_read), sum(inserted), sum(updated),"
        " sum(quarantined) FROM raw.source_files WHERE run_id = %s GROUP BY 1, 2 ORDER BY 1, 2",
        [run_id],
    ).fetchall()
    if files:
        table = Table("source", "files", "", "records", "new", "changed", "quarantined", title="files read")
        for name in ("records", "new", "changed", "quarantined", "files"):
            column = next(c for c in table.columns if c.header == name)
            column.justify = "right"
        for source, status, count, records, inserted, updated, quarantined in files:
            style = {"refused": "red", "unrecognized": "red"}.get(status, "")
            table.add_row(
                source,
                f"{count:,}",
                Text(status, style),
                *(f"{n:,}" for n in (records, inserted, updated, quarantined)),
            )
        console.print(table)
    else:
        console.print("no new or changed files")
    unread = landing_folder.not_loaded(connection, landing)
    for message in unread:
        console.print(f"[red]not loaded[/] {escape(message)}", highlight=False)
    changed = connection.execute(
        "SELECT count(*), coalesce(sum(changed_rows), 0) FROM analytics.refresh_log WHERE run_id = %s",
        [run_id],
    ).fetchone()
    stale = connection.execute(
        "SELECT count(DISTINCT month) FROM analytics.stale_months WHERE month >= %s AND month < %s",
        [start, end],
    ).fetchone()
    outside = connection.execute(
        "SELECT string_agg(DISTINCT to_char(month, 'YYYY-MM'), ', ') FROM analytics.stale_months"
        " WHERE month < %s OR month >= %s",
        [start, end],
    ).fetchone()
    assert changed is not None and stale is not None and outside is not None
    console.print(
        f"months recomputed: {changed[0]}; daily rows changed: {changed[1]:,}; months asked for that are stale: {stale[0]}"
    )
    if outside[0]:
        console.print(f"stale outside the months asked for: {outside[0]}", style="yellow")
    return len(unread), stale[0]


def print_months(connection: psycopg.Connection[Any], console: Console) -> None:
    """The month-by-source table of the newest months, whole ones, the newest first."""
    rows = connection.execute(
        "SELECT month, source, leads, units, repairs, cost, revenue40, cpl FROM analytics.monthly_by_source"
        " WHERE month IN (SELECT DISTINCT month FROM analytics.monthly_metrics ORDER BY month DESC LIMIT %s)"
        " ORDER BY month DESC, revenue40 DESC",
        [SHOWN_MONTHS],
    ).fetchall()
    table = Table(
        "month", "source", title="metrics by month and source (newest first; all: monthly_by_source)"
    )
    for name in ("leads", "units", "repairs", "cost $", "revenue40 $", "CPL $"):
        table.add_column(name, justify="right")
    before: date | None = None
    for month, source, leads, units, repairs, cost, revenue40, cpl in rows:
        if before not in (None, month):
            table.add_section()
        label = f"{month:%Y-%m}" if month != before else ""
        before = month
        money = [f"{cost:,.2f}", f"{revenue40:,.2f}", f"{cpl:,.2f}" if cpl is not None else "–"]
        table.add_row(label, source, f"{leads:,}", f"{units:,}", f"{repairs:,}", *money)
    console.print(table)


def why_not_free(host: str, port: int) -> str | None:
    """Why nothing can listen on the port; None where something can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def serve(config: Settings, host: str, port: int, console: Console) -> int:
    """Run the Dagster UI and daemon until interrupted or terminated; returns their exit code."""
    require_storage(config)
    console.print(f"Dagster UI: http://{host}:{port} (in some ten seconds; Ctrl+C stops it)")
    environment = dagster_environment(config)
    dagster = Path(sys.executable).parent / "dagster"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children must not inherit an ignored interrupt
    process = subprocess.Popen(
        [
            dagster,
            "dev",
            "--workspace",
            "workspace.yaml",
            "--host",
            host,
            "--port",
            str(port),
            "--log-level",
            "warning",
        ],
        cwd=PROJECT_DIR,
        env={**environment, "PYTHONWARNINGS": "ignore"},  # it advertises another tool's command
        start_new_session=True,  # an interrupt from the terminal reaches it once, through us
    )
    asked: list[float] = []

    def stop(*_: object) -> None:
        asked.append(time.monotonic())
        process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    code: int | None = None
    while code is None:
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if asked and time.monotonic() - asked[0] > PATIENCE:
                break
    with suppress(ProcessLookupError):  # whatever it started and left; a run cut off is marked failed later
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() if code is None else code
