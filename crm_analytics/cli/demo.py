"""`crm-analytics demo`: sample data from nothing to a served Dagster UI."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from crm_analytics.cli.run_dagster import (
    dagster_environment,
    migrate_both,
    print_months,
    refresh_months,
    silent_logger,
)
from crm_analytics.cli.run_dagster import serve as serve_ui
from crm_analytics.core.database import connect, database_url
from crm_analytics.core.settings import Settings, settings
from crm_analytics.demo.sample_exports import REFUSED, ForeignFiles, write_landing


def run_demo(config: Settings, *, serve: bool, port: int, months: int, console: Console) -> int:
    """Migrate, write the sample landing folder, refresh it through Dagster, show the result; returns an exit code.

    The sample's one refused file shows what a refusal looks like; it is left out of the exit code.
    """
    today = datetime.now(config.timezone).date()
    os.environ["LANDING_DIR"] = str(config.sample_dir)  # runs and the served UI read it too
    config = settings()
    console.rule("1. databases")
    migrate_both(config, console)
    console.rule("2. sample exports")
    try:
        summary = write_landing(config.landing_dir, months=months, until=today)
    except ForeignFiles as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 1
    console.print(f"{len(summary.files)} files in {config.landing_dir}")
    console.rule("3. refresh through Dagster")
    first = _first_month(today, months)
    os.environ["START_MONTH"] = f"{min(first, config.start_month):%Y-%m}"
    config = settings()
    good = refresh_months(config, None, None, console=console, accept_refused=True)
    with connect("analytics", config) as connection:
        print_months(connection, console)
        _print_quarantine(connection, console)
        unexpected = connection.execute(
            "SELECT count(*) FROM raw.source_files WHERE status IN ('refused', 'unrecognized') AND path <> %s",
            [REFUSED],
        ).fetchone()
    console.rule("4. the CRM")
    crm_good = _play_crm(config, console)
    _print_next(console, port)
    if not good or not crm_good or (unexpected and unexpected[0]):
        return 1
    return serve_ui(config, "127.0.0.1", port, console) if serve else 0


def _first_month(today: Any, months: int) -> Any:
    index = today.year * 12 + today.month - 1 - (months - 1)
    return today.replace(year=index // 12, month=index % 12 + 1, day=1)


def _print_quarantine(connection: psycopg.Connection[Any], console: Console) -> None:
    rows = connection.execute(
        """
        SELECT f.path, r.line_no, (
                SELECT string_agg(raw.reason_text(found.reason - '{accepted,remedy}'::text[]), '; ')
                FROM jsonb_array_elements(r.reasons) AS found (reason)
            )
        FROM raw.rejected_rows r
        JOIN raw.source_files f USING (file_id)
        WHERE r.status = 'open'
        ORDER BY r.source, f.path, r.record_no
        LIMIT 20
        """
    ).fetchall()
    table = Table(
        "file",
        "line",
        "why it is in quarantine",
        title="quarantined records (all of them: raw.rejected_rows)",
    )
    for path, line_no, reasons in rows:
        table.add_row(path, str(line_no), reasons)
    console.print(table)


def _play_crm(config: Settings, console: Console) -> bool:
    """Some months of bicycle business through the RPCs, then every proof as runs that the UI shows."""
    from crm_analytics.demo.crm_activity import play

    console.print(play(database_url("crm", config)).text(), highlight=False)
    os.environ.update(dagster_environment(config))
    import dagster as dg

    from crm_analytics.definitions import build_defs

    defs = build_defs(loggers={"console": silent_logger})
    passed, failed = 0, []
    with dg.DagsterInstance.get() as instance, console.status("proving the guards"):
        for job in ("crm_deploy", "crm_seal", "crm_invariants"):
            result = defs.resolve_job_def(job).execute_in_process(
                instance=instance, raise_on_error=False, run_config={"loggers": {"console": {}}}
            )
            checks = result.get_asset_check_evaluations()
            passed += sum(check.passed for check in checks)
            failed += [check.check_name for check in checks if not check.passed]
            failed += [] if result.success else [f"job {job}"]
    console.print(f"{passed} guard and invariant checks passed, {len(failed)} failed")
    for name in failed:
        console.print(f"[red]failed[/] {name}")
    return not failed


def _print_next(console: Console, port: int) -> None:
    console.rule("where to look next")
    console.print(
        f"""  Dagster UI          make demo, then http://localhost:{port} (lineage, checks, backfills)
  the tables          .venv/bin/crm-analytics psql analytics -- -c 'SELECT * FROM monthly_by_source LIMIT 20'
  a number's rows     .venv/bin/crm-analytics psql analytics -- -c "SELECT * FROM job_facts WHERE is_repair LIMIT 20"
  one file, dry run   .venv/bin/crm-analytics check FILE
  your own exports    README.md, "On your own data"
""",
        highlight=False,
    )
