"""Writes the lake by hand, and prints how other engines read it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.errors import require_extra
from crm_analytics.analytics.lake.pending import pending_months
from crm_analytics.cli.databases import require_analytics, require_storage
from crm_analytics.cli.refresh import run_job
from crm_analytics.cli.summary import print_failed_checks
from crm_analytics.core.database import connect
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.check_results import check_name
from crm_analytics.orchestration.failures import root_cause

NO_LAKE = "there is no lake: set LAKE_URL to a folder or s3://bucket/folder, and LAKE_CATALOG_URL to a database for its catalog"


def write_lake(config: Settings, *, rewrite: bool, console: Console) -> bool:
    """Runs the job `lake`; returns whether it succeeded, and the lake is as PostgreSQL.

    Raises:
        LakeError: if the extra `lake` is not installed.
    """
    if config.lake_url is None:
        console.print(NO_LAKE, highlight=False)
        return False
    require_extra()
    require_storage(config)
    require_analytics(config)
    name = Franchise(config).name("lake")
    with console.status("writing the lake") as status:
        result = run_job(
            config,
            name,
            ops={name: {"config": {"rewrite": rewrite}}},
            show=lambda text: status.update(escape(text[:90])),
        )
    for event in result.get_step_failure_events():
        console.print(f"[red]{event.step_key} failed[/]: {escape(root_cause(event))}", highlight=False)
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    print_failed_checks(
        ((check_name(check.asset_check_key), check.description or "") for check in failed),
        console,
    )
    with connect("analytics", config) as connection:
        waiting = [month for month in pending_months(connection) if month.is_stale]
    if waiting:
        console.print(
            f"{counted(len(waiting), 'month')} wait for a refresh first: {config.command('refresh')}"
        )
    _print_readers(config, console)
    return result.success and not failed


def _print_readers(config: Settings, console: Console) -> None:
    """Prints the tables' addresses, and how DuckDB and Spark read them."""
    from crm_analytics.analytics.lake.tables import NAMESPACE, open_lake

    with open_lake(config) as lake:
        locations = {dataset.name: lake.location(dataset.name) for dataset in DATASETS}
    console.print("tables, as they are now:")
    for name, location in locations.items():
        console.print(f"  {name}: {location or 'not written yet'}", highlight=False, soft_wrap=True)
    if location := locations["monthly_metrics"]:
        console.print(
            "DuckDB:\n"
            "  INSTALL iceberg; LOAD iceberg;\n"
            f"  SELECT franchise, month, sum(revenue_gross) FROM iceberg_scan('{location}') GROUP BY ALL ORDER BY ALL;\n"
            f"Spark, Trino and others: a JDBC catalog named crm_analytics on LAKE_CATALOG_URL, tables {NAMESPACE}.*;"
            " docs/scale.md has the settings.",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
