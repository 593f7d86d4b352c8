"""Tells the whole story on sample data: from empty databases to a served Dagster UI."""

from __future__ import annotations

from datetime import date, datetime

from rich.console import Console

from crm_analytics.cli.databases import migrate_both
from crm_analytics.cli.refresh import refresh_months, run_job
from crm_analytics.cli.serving import serve as serve_ui
from crm_analytics.cli.summary import print_months, print_quarantine
from crm_analytics.core.database import connect, database_url
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.demo.sample_exports import REFUSED, ForeignFiles, write_landing


def demo_settings(config: Settings, months: int) -> Settings:
    """Returns the settings with the sample's landing folder, and a first month no later than the sample's."""
    today = datetime.now(config.timezone).date()
    years, month = divmod(today.year * 12 + today.month - months, 12)
    changes = {
        "landing_dir": config.sample_dir,
        "landing_url": None,
        "start_month": min(date(years, month + 1, 1), config.start_month),
    }
    return config.model_copy(update=changes)


def run_demo(config: Settings, *, serve: bool, port: int, months: int, console: Console) -> int:
    """Migrates, writes the sample exports, refreshes them through Dagster, shows the result; returns an exit code.

    The sample's one refused file shows what a refusal looks like; it does not count as a failure.
    """
    config = demo_settings(config, months)
    console.rule("1. databases")
    migrate_both(config, console)
    console.rule("2. sample exports")
    try:
        summary = write_landing(config.landing_dir, months=months, until=datetime.now(config.timezone).date())
    except ForeignFiles as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 1
    console.print(f"{counted(len(summary.files), 'file')} in {config.landing_dir}")
    console.rule("3. refresh through Dagster")
    good = refresh_months(config, None, None, console=console, accept_refused=True)
    with connect("analytics", config) as connection:
        print_months(connection, console)
        print_quarantine(connection, console)
        unexpected = connection.execute(
            "SELECT 1 FROM raw.source_files WHERE status IN ('refused', 'unrecognized') AND path <> %s",
            [REFUSED],
        ).fetchone()
    console.rule("4. the CRM")
    good = _run_crm(config, console) and good and not unexpected
    serve = serve and good
    _print_next(console, serve, datetime.now(config.timezone).date())
    return serve_ui(config, "127.0.0.1", port, console) if serve else int(not good)


def _run_crm(config: Settings, console: Console) -> bool:
    """Does some months of bicycle business through the RPCs, then proves every guard in runs that the UI shows."""
    from crm_analytics.demo.crm_activity import play

    console.print(play(database_url("crm", config), report=console.print).text(), highlight=False)
    passed, failed = 0, []
    with console.status("proving the guards"):
        for job in ("crm_deploy", "crm_seal", "crm_invariants"):
            result = run_job(config, job)
            checks = result.get_asset_check_evaluations()
            passed += sum(check.passed for check in checks)
            failed += [check.check_name for check in checks if not check.passed]
            failed += [] if result.success else [f"job {job}"]
    console.print(f"guard and invariant checks: {passed} passed, {len(failed)} failed")
    for name in failed:
        console.print(f"[red]failed[/] {name}")
    return not failed


def _print_next(console: Console, serving: bool, month: date) -> None:
    console.rule("where to look next")
    start = "the address below" if serving else ".venv/bin/crm-analytics up"
    console.print(
        f"""  Dagster UI          {start} (lineage, checks, backfills)
  the tables          .venv/bin/crm-analytics psql analytics -- -c 'SELECT * FROM monthly_by_source LIMIT 20'
  a number's rows     .venv/bin/crm-analytics explain {month:%Y-%m} repairs --source Google
  one file, dry run   .venv/bin/crm-analytics check FILE
  your own exports    README.md, "On your own data"
""",
        highlight=False,
    )
