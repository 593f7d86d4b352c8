"""Defines the command line `crm-analytics`; each command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crm_analytics.cli import crm, franchise
from crm_analytics.cli.options import of_businesses, of_one_business
from crm_analytics.core import DATABASES
from crm_analytics.core.months import parse_month

if TYPE_CHECKING:
    from crm_analytics.analytics.ingest.storage.landing import Landing
    from crm_analytics.core.settings import Settings

PORT = click.IntRange(1, 65535)


class Month(click.ParamType[date]):
    """A month written YYYY-MM."""

    name = "YYYY-MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Returns the first day of the month, or raises a usage error that says how to write it."""
        try:
            return parse_month(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Day(click.ParamType[date]):
    """A day written YYYY-MM-DD."""

    name = "YYYY-MM-DD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Returns the day, or raises a usage error that says how to write it."""
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a day: write it as 2024-10-31", param, ctx)


def _landing_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the option that names another landing folder than the settings'."""
    return click.option(
        "--landing",
        metavar="FOLDER|URL",
        help="Landing folder, or s3://bucket/prefix; that of the settings by default.",
    )(command)


def _with_landing(config: Settings, landing: str | None) -> Settings:
    """Returns the settings with another landing folder, if one is named."""
    try:
        return config if landing is None else config.with_landing(landing)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--landing") from error


def _require_files(files: Iterable[str], landing: Landing) -> None:
    """Raises a usage error for a file that is neither on this machine nor in the landing folder."""
    for file in files:
        if not Path(file).is_file() and not any(map(landing.find, landing.names(file))):
            raise click.UsageError(f"no file {file}, neither here nor in the landing folder {landing}")


class _Commands(click.Group):
    """Prints an expected failure as one readable line on stderr, with exit code 1 and no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from crm_analytics.cli.failures import print_expected

            if not print_expected(error):
                raise
        ctx.exit(1)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="crm-analytics")
def main() -> None:
    """Analytics from export files, and a guarded CRM schema, on PostgreSQL through Dagster.

    Without database URLs in the environment, an embedded PostgreSQL under CRM_ANALYTICS_HOME is used.

    \b
    First steps:
      crm-analytics demo                     sample data, metrics, Dagster UI
      crm-analytics check FILE...            what would happen to an export
      crm-analytics diff FILE...             which numbers it would change
      crm-analytics refresh --from 2024-01   load new files and compute the months
      crm-analytics pull                     services that can be asked for their data
      crm-analytics up                       Dagster UI with sensors and schedules
      crm-analytics explain 2024-10 repairs  the rows behind a number
      crm-analytics status                   what needs a person
      crm-analytics psql analytics           look at the tables
    """


@main.command()
@click.argument("database", type=click.Choice(["analytics", "crm"]), required=False)
@click.option(
    "--sql",
    is_flag=True,
    help="Print SQL and run nothing: all scripts of analytics, the pending ones of crm.",
)
@click.option(
    "--check", is_flag=True, help="Only print whether anything is pending or drifted; exit code 1 if so."
)
@click.option(
    "--replace-legacy",
    is_flag=True,
    help="crm: drop functions with our names, and triggers, rules and policies in the way.",
)
@click.option(
    "--map-status",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="crm: a file with lines `older status = status`, for orders of a database that is adopted.",
)
@of_businesses
def migrate(
    database: str | None,
    sql: bool,
    check: bool,
    replace_legacy: bool,
    map_status: Path | None,
    config: Settings,
) -> None:
    """Bring one database, or both, to the newest schema.

    The analytics databases of all franchises, if there are any. Safe to repeat, and to run twice at once.
    """
    from crm_analytics.cli import crm_schema
    from crm_analytics.core import migrations

    failed = False
    # the CRM belongs to no franchise
    both = ["analytics"] if config.franchise else ["analytics", "crm"]
    for name in [database] if database else both:
        if name == "crm":
            echo = (lambda text: click.echo(f"crm: {text}")) if check else click.echo
            failed |= bool(
                crm_schema.migrate(
                    sql=sql, check=check, replace_legacy=replace_legacy, map_status=map_status, echo=echo
                )
            )
            continue
        for business in config.of_franchises():
            called = f"{business.franchise} {name}".strip()
            if sql:
                click.echo(migrations.script(name, config=business))
            elif check:
                pending = migrations.status(name, config=business).pending
                todo = f"pending: {', '.join(pending)}. Run: {business.command(f'migrate {name}')}"
                click.echo(f"{called}: {todo if pending else 'up to date'}")
                failed |= bool(pending)
            else:
                done = migrations.migrate(name, config=business, report=click.echo)
                click.echo(f"{called} is at {done.version}")
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--from", "first", type=Month(), help="First month; START_MONTH by default.")
@click.option("--to", "last", type=Month(), help="Last month, included; the current month by default.")
@_landing_option
@click.option("--force", is_flag=True, help="Read every file again, even if its content is loaded already.")
@of_one_business
def refresh(
    first: date | None, last: date | None, landing: str | None, force: bool, config: Settings
) -> None:
    """Load new files and compute the months.

    This is one Dagster run, and the UI shows it. Afterwards, the warnings about the files that it loaded are printed, the
    files that are not loaded with the reason and the remedy, and the checks that failed.

    Exit code 1 if a file in the landing folder is not loaded (refused, unrecognized or still growing), the run failed, or
    a month in the range is stale. Warnings and failed checks don't change the exit code.
    """
    from crm_analytics.core.lasting_imports import lasting_imports

    with lasting_imports():
        from crm_analytics.cli.refresh import refresh_months
        from crm_analytics.cli.terminal import console

    config = _with_landing(config, landing)
    sys.exit(0 if refresh_months(config, first, last, force=force, console=console) else 1)


@main.command()
@click.option(
    "--rewrite",
    is_flag=True,
    help="Write all of history again, and take over the franchise from whoever wrote it: after a database was restored.",
)
@of_one_business
def lake(rewrite: bool, config: Settings) -> None:
    """Write pending months to the lake, and print how other engines read it.

    The lake has each month of all franchises in Apache Iceberg tables: LAKE_URL is where, LAKE_CATALOG_URL the database
    of its catalog. This is one Dagster run, and the UI shows it. While `crm-analytics up` runs, its sensor does the same
    by itself.

    Exit code 1 if the run failed or the lake differs from PostgreSQL.
    """
    from crm_analytics.core.lasting_imports import lasting_imports

    with lasting_imports():
        from crm_analytics.cli.lake import write_lake
        from crm_analytics.cli.terminal import console

    sys.exit(0 if write_lake(config, rewrite=rewrite, console=console) else 1)


@main.command()
@click.argument("source")
@click.option(
    "--without",
    multiple=True,
    metavar="FILE",
    help="Take this file back: its content is not loaded again under any name. Repeatable.",
)
@click.option(
    "--with",
    "restored",
    multiple=True,
    metavar="FILE",
    help="Load a file again that was taken back. Repeatable.",
)
@click.option("--yes", is_flag=True, help="Make the changes without asking.")
@_landing_option
@of_one_business
def rebuild(
    source: str,
    without: tuple[str, ...],
    restored: tuple[str, ...],
    yes: bool,
    landing: str | None,
    config: Settings,
) -> None:
    """Rebuild the table of SOURCE from the landing folder, e.g. without a wrong file.

    SOURCE is the name of a source's folder, such as jobs or google_spend. Every file of the source is read again, in
    order. Rows written by hand stay; corrections made by hand to rows from files are lost. Shows what would change, then
    asks. A rebuild that is declined or killed changes nothing.

    \b
    A wrong file was loaded:
      crm-analytics rebuild jobs --without "jobs/export (7).csv"
    It was right after all:
      crm-analytics rebuild jobs --with "jobs/export (7).csv"

    FILE is relative to the working directory, the landing folder or the source's folder, or the URL of an object. The file
    itself stays where it is. A file that is no longer there needs no option: its rows are left out.
    """
    from crm_analytics.cli.rebuild import rebuild_source
    from crm_analytics.cli.terminal import console

    config = _with_landing(config, landing)
    sys.exit(0 if rebuild_source(config, source, without, restored, yes=yes, console=console) else 1)


@main.command("check")
@click.argument("files", nargs=-1, required=True)
@of_one_business
def check_files_command(files: tuple[str, ...], config: Settings) -> None:
    """Print what loading FILES would do; write nothing.

    FILES are on this machine, or else in the landing folder: jobs/may.csv, or s3://bucket/prefix/jobs/may.csv.

    Names the source recognized, the columns mapped, the records that would be quarantined and why, and the
    months touched. Exit code 1 if a file would be refused.
    """
    from crm_analytics.analytics.ingest.storage.places import landing_of
    from crm_analytics.cli.check import check_with_database

    _require_files(files, landing_of(config))
    sys.exit(0 if check_with_database(config, files) else 1)


@main.command("diff")
@click.argument("files", nargs=-1)
@click.option(
    "--sql",
    "statements",
    metavar="FILE|-",
    type=click.File(encoding="utf-8-sig"),
    help="Run this SQL instead of loading files; - reads standard input.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, amounts as text.")
@_landing_option
@of_one_business
def diff_command(
    files: tuple[str, ...], statements: Any, as_json: bool, landing: str | None, config: Settings
) -> None:
    """Print which numbers loading FILES, or running SQL, would change; change nothing.

    In one transaction that is rolled back, the files are loaded or the SQL is run. The months that this makes stale are
    computed and compared with the stored ones, by source and measure.

    \b
    What will this late export do?
      crm-analytics diff ~/Downloads/payments.csv
    Then do it: move the file into the landing folder.

    \b
    What will this rule, alias or correction do?
      crm-analytics diff --sql rule.sql
      echo "UPDATE raw.jobs SET source = 'Yelp' WHERE job_number = '17'" | crm-analytics diff --sql -
    Then do it: run the same SQL with `crm-analytics psql analytics`.

    A file's place among the other exports depends on its export time, so the assumed one is printed. A file outside
    the landing folder is taken for one that lies directly in it, or in its source's folder if it is in a folder of that
    name. A file that no load would see, such as one called .part or .tmp, is refused.
    Months that were stale before are named: changes that wait for a refresh there are part of what is printed.

    The SQL can't begin or end transactions. Put `SELECT analytics.queue_every_month('try');` behind functions that you
    replace, because nothing else notes that these change a number. What acts outside of transactions isn't taken back:
    leave out ANALYZE, COPY TO a file or program, and dblink. SQL that names setval is refused.

    If a load of the same source is running (with --sql: any load or refresh), diff gives up after half a second. While diff
    runs, these wait for it.

    Exit code 0 if no number would change, 3 if some would, 1 if a file would not be loaded, the SQL fails, or diff gives up.
    """
    if bool(files) == bool(statements):
        raise click.UsageError("give either files or --sql FILE, e.g. crm-analytics diff payments.csv")
    try:
        text = statements.read() if statements else None
    except UnicodeDecodeError as error:
        raise click.ClickException(f"the SQL is not UTF-8 ({error.reason}): save it as UTF-8") from error
    from crm_analytics.analytics.ingest.storage.places import landing_of
    from crm_analytics.cli.diff import diff
    from crm_analytics.cli.terminal import console

    config = _with_landing(config, landing)
    _require_files(files, landing_of(config))
    sys.exit(diff(config, files, text, as_json=as_json, console=console))


@main.command()
@click.argument("month", type=Month())
@click.argument("metric")
@click.option("--source", metavar="NAME", help="Only this source, in any spelling; all by default.")
@click.option(
    "--segment",
    type=click.Choice(["COD", "INS", "OTHER"], case_sensitive=False),
    help="Only this segment; all by default.",
)
@click.option("--day", type=click.IntRange(1, 31), help="Only this day of the month.")
@click.option("--csv", "as_csv", is_flag=True, help="Print all rows as CSV, and the conclusion on stderr.")
@of_one_business
def explain(
    month: date,
    metric: str,
    source: str | None,
    segment: str | None,
    day: int | None,
    as_csv: bool,
    config: Settings,
) -> None:
    """Print the rows that a number is made of, and why each of them counts.

    METRIC is a column of monthly_metrics: jobs, units, repairs, leads, calls, cost, revenue_gross, revenue40, profit,
    conv_l_to_u, conv_l_to_r, conv_u_to_r or cpl. The rows of a ratio are those of its numerator and its denominator; the
    amounts of any other metric's rows add up to it, to the cent. At the end you see whether the stored number is the same.
    If it isn't, the month has changed since it was computed, and the command that computes it is printed.

    \b
    Why does Google have so many repairs in October?
      crm-analytics explain 2024-10 repairs --source Google
    Which payments make up one day's revenue?
      crm-analytics explain 2024-10 revenue_gross --day 5
    Work with the rows in a spreadsheet:
      crm-analytics explain 2024-10 cost --csv > cost.csv

    A payment counts on the day of its job, whenever it was paid. File and record say which export last changed a row; a
    row written in SQL is by hand. Exit code 1 if there is no such number, or if the rows don't add up to it although the
    month is up to date.
    """
    from crm_analytics.cli.explain import print_explanation
    from crm_analytics.cli.terminal import console

    done = print_explanation(
        config, month, metric, source=source, segment=segment, day=day, as_csv=as_csv, console=console
    )
    sys.exit(0 if done else 1)


@main.command()
@click.argument("name", required=False)
@click.option("--from", "first", type=Day(), help="First day; see below.")
@click.option("--to", "last", type=Day(), help="Last day, included; today by default.")
@of_one_business
def pull(name: str | None, first: date | None, last: date | None, config: Settings) -> None:
    """Ask a service for its data, and write what it returns into the landing folder.

    Without NAME, lists the connectors: which are on, and which variables the others need (docs/connectors.md). The platform
    pulls all that are on by itself, every hour, while `crm-analytics up` or the daemon runs.

    
    What can be pulled?
      crm-analytics pull
    Pull the recent days now, as every hour:
      crm-analytics pull workiz_jobs
    Pull everything since a day:
      crm-analytics pull workiz_jobs --from 2024-01-01

    The file appears when its last page has come, or not at all. A pull that was interrupted goes on where it was if you
    repeat it within a quarter of an hour. No file is written when nothing has changed since the last pull. Some services take no
    last day: leave out --to there. Files are loaded as if you had dropped them, by the daemon or `crm-analytics refresh`.

    Exit code 1 if a variable is missing or the service refuses.
    """
    from crm_analytics.cli.pull import list_connectors, pull_by_hand
    from crm_analytics.cli.terminal import console

    if name is None:
        if first or last:
            raise click.UsageError(
                "name the connector, e.g. crm-analytics pull workiz_jobs --from 2024-01-01"
            )
        list_connectors(config, console)
        return
    pull_by_hand(config, name, first, last, console)


@main.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@of_one_business
def status_command(as_json: bool, config: Settings) -> None:
    """Show the state of the platform, and what in it needs a person.

    The last refresh, stale months, files that are not loaded or wait, the quarantine, runs that wait, died or failed,
    sensors, schedules and checks that fail, checks that did not run, how old the newest row of each source is, and the
    last alerts. Changes nothing.

    Exit code 1 if something needs a person; the last lines say what, and the remedy. What the platform does by itself
    within 15 minutes needs nobody.
    """
    from crm_analytics.cli.status import print_status

    sys.exit(0 if print_status(config, as_json=as_json) else 1)


@main.command()
@click.option("--port", type=PORT, default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the UI listens on.")
@click.option(
    "--path-prefix",
    metavar="PATH",
    help="Path of the UI behind a reverse proxy, e.g. /dagster; DAGSTER_WEBSERVER_PATH_PREFIX by default.",
)
def up(port: int, host: str, path_prefix: str | None) -> None:
    """Serve the Dagster UI and its daemon on your own data.

    The daemon runs sensors, schedules and backfills: files load when you drop them into the landing folder.
    """
    from crm_analytics.analytics.ingest.storage.places import landing_of
    from crm_analytics.cli.databases import migrate_both
    from crm_analytics.cli.serving import serve
    from crm_analytics.cli.terminal import console
    from crm_analytics.core.settings import Settings, settings

    config = settings() if path_prefix is None else Settings(dagster_webserver_path_prefix=path_prefix)
    _refuse_taken(host, port)
    migrate_both(config, console)
    for business in config.of_franchises():
        landing = landing_of(business)
        landing.prepare()
        whose = f"{business.franchise}: " if business.franchise else ""
        console.print(
            f"{whose}drop exports into [bold]{landing}[/]/<source>/; they are loaded within seconds"
        )
    sys.exit(serve(config, host, port, console))


@main.command()
@click.option("--serve/--no-serve", default=True, help="Serve the Dagster UI at the end.")
@click.option("--port", type=PORT, default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option(
    "--months", type=click.IntRange(1, 120), default=24, show_default=True, help="Months of sample data."
)
def demo(serve: bool, port: int, months: int) -> None:
    """Load sample exports, compute everything, show the result.

    The sample's landing folder is in the state folder, never your own. The CRM gets three months of invented business.
    """
    from crm_analytics.cli.demo import run_demo
    from crm_analytics.cli.terminal import console
    from crm_analytics.core.settings import settings

    if serve:
        _refuse_taken("127.0.0.1", port)
    config = settings()
    if config.franchise_names:
        raise click.ClickException("the demo is of one business: unset FRANCHISES")
    sys.exit(run_demo(config, serve=serve, port=port, months=months, console=console))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("database", type=click.Choice(DATABASES))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@of_businesses
def psql(database: str, arguments: tuple[str, ...], config: Settings) -> None:
    """Open psql on a database.

    What follows `--` goes to psql, e.g. `-- -c 'SELECT * FROM monthly_by_source'`.
    """
    import subprocess

    from crm_analytics.core.database import database_url, embedded

    program = embedded(config).bin / "psql"
    address = database_url(database, config)
    sys.exit(subprocess.run([program, address, *arguments], check=False).returncode)


@main.command()
@click.argument("database", type=click.Choice(DATABASES))
@of_businesses
def url(database: str, config: Settings) -> None:
    """Print a database's URL, for psql, DBeaver or Grafana.

    Leaves the embedded server running.
    """
    from crm_analytics.cli.terminal import errors
    from crm_analytics.core.database import database_url, embedded

    click.echo(database_url(database, config))
    if config.configured_url(database) is None:
        embedded(config).keep_running()
        errors.print("the embedded PostgreSQL stays up until `crm-analytics stop`", style="dim")


@main.command("grafana-reader")
@of_businesses
def grafana_reader(config: Settings) -> None:
    """Set up the role grafana_reader in both databases.

    Gives it its settings and the password in GRAFANA_READER_PASSWORD; without that variable it keeps the one it has. Every
    franchise has a role of its own, such as grafana_reader_north with the password in NORTH_GRAFANA_READER_PASSWORD.
    """
    from crm_analytics.dashboards import reader_role as reader

    reader.main(config)


@main.command()
def stop() -> None:
    """Stop the embedded PostgreSQL.

    It stops by itself when nothing uses it, unless `url` kept it up.
    """
    from crm_analytics.cli.terminal import console
    from crm_analytics.core.database import embedded

    server = embedded()
    if server.running():
        server.stop()
        console.print("the embedded PostgreSQL is stopped")
    else:
        console.print("the embedded PostgreSQL is not running")


@main.command()
@click.option(
    "--days",
    type=click.IntRange(min=1),
    default=90,
    show_default=True,
    help="Keep event logs, output and check results of runs that ended within so many days.",
)
@click.option(
    "--check-days",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Keep runs that did nothing but check if they ended within so many days.",
)
def prune(days: int, check_days: int) -> None:
    """Delete old runs of checks, check results, event logs and output.

    Materializations are never deleted, nor the latest result of each check.
    """
    from crm_analytics.cli.terminal import console
    from crm_analytics.core.settings import settings
    from crm_analytics.orchestration.retention import prune_all

    console.print(str(prune_all(settings(), days, check_days)))


def _refuse_taken(host: str, port: int) -> None:
    """Refuses a taken port before anything starts, because Dagster itself would go on without its UI."""
    from crm_analytics.cli.serving import why_not_free

    reason = why_not_free(host, port)
    if reason:
        raise click.ClickException(f"port {port} of {host} is taken ({reason}): choose another with --port")


main.add_command(crm.crm)
main.add_command(franchise.franchise)

if __name__ == "__main__":
    main()
