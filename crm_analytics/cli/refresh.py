"""Runs Dagster jobs inside the command line's own process, with progress on the console."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import dagster as dg
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.cli.databases import require_analytics, require_storage
from crm_analytics.cli.summary import print_failed_checks, print_summary
from crm_analytics.core.database import connect
from crm_analytics.core.months import next_month
from crm_analytics.core.settings import Settings
from crm_analytics.definitions import build_defs
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.raw_assets import RAW_KEYS
from crm_analytics.orchestration.check_results import check_name
from crm_analytics.orchestration.failures import root_cause
from crm_analytics.orchestration.instance import open_instance
from crm_analytics.orchestration.partitions import key_month, range_tags

#: Checks of files, which the summary lists one by one.
LISTED = ("files_read", "unrecognized_files")


def run_job(
    config: Settings,
    job: str,
    *,
    tags: Mapping[str, str] | None = None,
    ops: Mapping[str, Any] | None = None,
    show: Callable[[str], None] = lambda text: None,
) -> dg.ExecuteInProcessResult:
    """Runs a job on the databases and folders of `config`, so that the UI shows the run afterwards.

    Args:
        tags: the run's tags, e.g. its range of months.
        ops: configuration by step.
        show: receives what the run is doing, instead of the log of all events.
    """
    defs = build_defs(config, loggers={"console": _progress_logger(show)})
    with open_instance(config) as instance:
        return defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            tags=dict(tags or {}),
            run_config={"ops": dict(ops or {}), "loggers": {"console": {}}},
            raise_on_error=False,
        )


def refresh_months(
    config: Settings,
    first: date | None,
    last: date | None,
    *,
    console: Console,
    force: bool = False,
    accept_refused: bool = False,
) -> bool:
    """Loads every new file and computes the months first..last as one run of the job `refresh`; prints a summary.

    Returns:
        True if every file was read (or `accept_refused`), the run succeeded, and no month in range is stale.
    """
    require_storage(config)
    require_analytics(config)
    franchise = Franchise(config)
    known = [key_month(key) for key in franchise.months.get_partition_keys()]
    asked = first or known[0], last or known[-1]
    covered = _covered(known, asked, console)
    if covered is None:
        return False
    landing = landing_of(config)
    if not landing.exists():
        console.print(f"[red]not refreshed[/]: {escape(landing.missing())}", highlight=False)
        return False
    loads = ["__".join(franchise.key(key).path) for key in RAW_KEYS]
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"refreshing {covered[0]:%Y-%m} to {covered[1]:%Y-%m}", total=None)
        result = run_job(
            config,
            franchise.name("refresh"),
            tags=range_tags(*covered),
            ops={step: {"config": {"force": True}} for step in loads} if force else {},
            show=lambda text: progress.update(task, description=text),
        )
        progress.update(task, description="done" if result.success else "[red]failed[/]")
    with connect("analytics", config) as connection:
        unread, stale = print_summary(
            connection, landing, result.run_id, asked[0], next_month(asked[1]), console
        )
    print_failed_checks(
        (
            (check_name(check.asset_check_key), check.description or "")
            for check in result.get_asset_check_evaluations()
            if not check.passed and check.check_name not in LISTED
        ),
        console,
    )
    if not result.success:
        failed: dict[str, list[str]] = {}
        for event in result.get_step_failure_events():
            failed.setdefault(root_cause(event), []).append(str(event.step_key))
        for reason, steps in failed.items():
            console.print(f"[red]{', '.join(steps)} failed[/]: {escape(reason)}", highlight=False)
        console.print(f"the run {result.run_id} has the details: crm-analytics up, then Runs")
    return result.success and not stale and (accept_refused or not unread)


def _covered(known: list[date], asked: tuple[date, date], console: Console) -> tuple[date, date] | None:
    """Returns the known months among those asked for, and says what is left out; None if there are none."""
    if asked[0] > asked[1]:
        console.print(f"[red]no such months[/]: --from {asked[0]:%Y-%m} is after --to {asked[1]:%Y-%m}")
        return None
    first, last = max(asked[0], known[0]), min(asked[1], known[-1])
    bounds = f"{known[0]:%Y-%m} (START_MONTH) to {known[-1]:%Y-%m} (today)"
    if first > last:
        console.print(f"[red]no such months[/]: the months known are {bounds}")
        return None
    if (first, last) != asked:
        console.print(
            f"only {first:%Y-%m} to {last:%Y-%m} can be refreshed: the months known are {bounds}",
            style="yellow",
        )
    return first, last


def _progress_logger(show: Callable[[str], None]) -> dg.LoggerDefinition:
    """Returns a Dagster logger that shows the running step and its last message."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            meta: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}
            step, event = meta.get("step_key"), meta.get("dagster_event")
            name = str(step).replace("__", "/")
            if event is None and step:
                message = record.getMessage().split("\n")[-1]
                show(f"{name}: {message[:90]}")
            elif event is not None and event.event_type_value == "STEP_START":
                show(name)

    @dg.logger(config_schema={})
    def progress(_: Any) -> logging.Logger:
        logger = logging.Logger("crm_analytics.progress", logging.DEBUG)
        logger.addHandler(Handler())
        return logger

    return progress
