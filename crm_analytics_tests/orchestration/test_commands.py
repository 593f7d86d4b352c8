"""What the command line prints, and how it exits, when something is not as it should be."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from click.testing import CliRunner
from rich.console import Console

from crm_analytics.cli.main import main
from crm_analytics.cli.summary import print_months
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, job_row

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(new_database: Callable[..., str], tmp_path: Path) -> Run:
    """Runs `crm-analytics` on fresh databases and a landing folder; returns (exit code, all it printed)."""
    landing = tmp_path / "landing"
    landing.mkdir()
    environment = {
        **os.environ,
        "ANALYTICS_DATABASE_URL": new_database("analytics"),
        "CRM_DATABASE_URL": new_database(),
        "DAGSTER_POSTGRES_URL": new_database("dagster"),
        "LANDING_DIR": str(landing),
        "CRM_ANALYTICS_HOME": str(tmp_path / "state"),
    }

    def command(*arguments: str, **changes: str) -> tuple[int, str]:
        done = subprocess.run(
            [Path(sys.executable).parent / "crm-analytics", *arguments],
            env={**environment, **changes}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
        )  # fmt: skip
        assert "Traceback" not in done.stdout, done.stdout
        return done.returncode, " ".join(done.stdout.split())

    return command


def test_first_steps_of_the_help_are_commands() -> None:
    """Each is set off from what it does, so that nobody types a word of the explanation."""
    page = CliRunner().invoke(main, ["--help"]).output
    steps = [line for line in page.splitlines() if line.startswith("    crm-analytics ")]
    assert len(steps) > 5
    assert all(re.fullmatch(r" +crm-analytics( \S+)+  +\w.*", line) for line in steps), steps


def test_refresh_names_the_months_that_it_cannot_refresh(run: Run, tmp_path: Path) -> None:
    """A range that begins before START_MONTH is cut with a message, and fails if a month that was cut is stale."""
    jobs = [job_row("AAAAAA", "2020-05-04"), job_row("BBBBBB", "2023-02-03")]
    (tmp_path / "landing" / "jobs").mkdir()
    (tmp_path / "landing" / "jobs" / "a.csv").write_text("\n".join([JOBS_HEADER, *jobs]) + "\n")
    code, text = run("refresh", "--from", "2020-01", "--to", "2023-03", START_MONTH="2023-01")
    assert "only 2023-01 to 2023-03 can be refreshed" in text and "(START_MONTH)" in text
    assert "months recomputed: 3;" in text and "months asked for that are stale: 1" in text
    assert code == 1
    code, text = run("refresh", "--from", "2023-01", "--to", "2023-03", START_MONTH="2023-01")
    assert code == 0 and "only" not in text and "stale outside the months asked for: 2020-05" in text


def test_refresh_prints_warnings_failed_checks_and_files_not_loaded(run: Run, tmp_path: Path) -> None:
    """Whatever may make a number wrong is printed after the run; a file that is not loaded makes it end with code 1."""
    landing = tmp_path / "landing"
    (landing / "proref_leads").mkdir()
    header = "Lead ID,Date,Customer,Category,ZIP,Current Status\n"
    for name in ("a", "b", "c"):
        # different contents, or the second would be a copy of the first
        (landing / "proref_leads" / f"{name}.csv").write_text(header.replace("ZIP", f"ZIP,{name}"))
    (landing / "proref_leads" / "d.csv").write_text(f"{header}L1,2025-01-05,,,,\nL2,2025-02-30,,,,\n")
    page = landing / "proref_leads" / "page.csv"
    page.write_text("<html><body>Sign in</body></html>")
    strange = [landing / f"minutes {number}.csv" for number in range(21)]
    for path in strange:
        path.write_text(f"who,what\nAnn,{path.name}\n")
    code, text = run("refresh", "--from", "2025-01", "--to", "2025-02")
    assert code == 1
    assert "warning proref_leads/a.csv and 2 more files: the file has a header but no records" in text
    assert "check failed raw/proref_leads: quarantine: 1 record in quarantine" in text
    assert text.count("not loaded ") == 20 and "not loaded minutes 0.csv: " in text
    query = re.search(r'… and 2 more; all of them: crm-analytics psql analytics -- -c "(.+?)"', text)
    assert query and "HTML or XML" in run("psql", "analytics", "--", "-c", query[1])[1]

    for path in strange:
        path.unlink()
    code, text = run("refresh", "--from", "2025-01", "--to", "2025-02")
    assert code == 1 and 'not loaded proref_leads/page.csv: "HTML or XML": web page; accepted: ' in text
    assert "export it again as CSV" in text and "warning" not in text
    page.unlink()
    assert run("refresh", "--from", "2025-01", "--to", "2025-02")[0] == 0


def test_reversed_range_is_named(run: Run) -> None:
    """A reversed range names both months; they exist, so "no such months" alone would mislead."""
    code, text = run("refresh", "--from", "2024-05", "--to", "2024-01")
    assert (code, text) == (1, "no such months: --from 2024-05 is after --to 2024-01")


def test_common_cause_is_printed_once(run: Run) -> None:
    """Steps that fail for the same reason are listed under one message."""
    code, text = run("refresh", "--from", "2024-01", "--to", "2024-01", LANDING_DIR="/nowhere/landing")
    assert code == 1 and text.count("does not exist") == 1 and "or set LANDING_DIR" in text
    code, text = run("refresh", "--from", "2024-01", "--to", "2024-01", BUSINESS_TIMEZONE="Europe/Berlin")
    assert code == 1 and text.count("BUSINESS_TIMEZONE is Europe/Berlin") == 1
    assert "raw__payments" in text and "dagster._core" not in text


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ANALYTICS_DATABASE_URL", "s3cret garbage", "ANALYTICS_DATABASE_URL: not a database address"),
        ("CRM_DATABASE_URL", "postgresql://u:s3cret@[h/x", "CRM_DATABASE_URL: not a database address"),
        ("DAGSTER_POSTGRES_URL", "mysql://u:s3cret@h/x", "DAGSTER_POSTGRES_URL: not a database address"),
        ("START_MONTH", "2999-01", "START_MONTH: 2999-01 is in the future"),
        ("EMBEDDED_POSTGRES_VERSION", "17", "EMBEDDED_POSTGRES_VERSION: 17 does not come with the platform"),
    ],
)
def test_wrong_setting_is_one_line(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting is one line with the variable and what is accepted, without a traceback or a password."""
    monkeypatch.setenv(variable, value)
    done = CliRunner().invoke(main, ["refresh"])
    assert done.exit_code == 1 and said in done.output, done.output
    assert "s3cret" not in done.output


@pytest.mark.parametrize("variable", ["ANALYTICS_DATABASE_URL", "DAGSTER_POSTGRES_URL"])
def test_database_that_is_down_is_one_line(run: Run, variable: str) -> None:
    """A database that is down is reported at once; Dagster would retry its own for a quarter of a minute."""
    code, text = run("refresh", **{variable: "postgresql://u@127.0.0.1:1/x"})
    assert code == 1 and "no connection to the database" in text and "port 1" in text
    assert "WARNING" not in text


def test_database_without_its_tables_is_one_line(run: Run, new_database: Callable[..., str]) -> None:
    """A database that lacks a table is refused before anything runs: what is missing and what to do, no traceback."""
    url = new_database("analytics")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE analytics.refresh_log RENAME TO elsewhere")
    code, text = run("refresh", ANALYTICS_DATABASE_URL=url)
    assert code == 1 and "missing: table analytics.refresh_log (0004_metrics.sql)" in text
    assert "`crm-analytics migrate analytics`" in text and "Traceback" not in text


@pytest.mark.parametrize("command", ["refresh", "check", "grafana-reader"])
def test_database_that_is_not_migrated_is_one_line(
    run: Run, new_database: Callable[..., str], tmp_path: Path, command: str
) -> None:
    """A configured database is never migrated on the way; the answer is the command to type. Only `check` goes on."""
    file = tmp_path / "targets.csv"
    file.write_text("month,target_repairs\n2024-10,5\n")
    arguments = [command, str(file)] if command == "check" else [command]
    code, text = run(*arguments, ANALYTICS_DATABASE_URL=new_database())
    assert "the analytics database lacks 0001_raw.sql and" in text
    assert "run `crm-analytics migrate analytics`" in text
    assert code == (0 if command == "check" else 1) and ("1 record:" in text) == (command == "check")


def test_prune_before_the_first_run_deletes_nothing(run: Run, new_database: Callable[..., str]) -> None:
    """Prune succeeds on a database in which Dagster has not created its tables yet."""
    expected = (
        0,
        "deleted 0 runs of checks, 0 check results of other runs, 0 events and the output of 0 runs",
    )
    assert run("prune", DAGSTER_POSTGRES_URL=new_database()) == expected


@pytest.mark.parametrize(
    "arguments",
    [["prune", "--days", "-5"], ["prune", "--days", "0"], ["prune", "--check-days", "0"], ["demo", "--months", "0"], ["demo", "--months", "100000"],
     ["up", "--port", "70000"]],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(arguments: list[str]) -> None:
    """Numbers out of range are usage errors; `--days -5` would delete the events of today."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and "is not in the range" in done.output


@pytest.mark.parametrize("arguments", [["up"], ["demo"]])
def test_taken_port_is_refused_before_anything_starts(arguments: list[str]) -> None:
    """A taken port is refused first; Dagster would go on without its UI, and the demo would fail only at its end."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, [*arguments, "--port", str(port)])
    assert done.exit_code == 1
    assert re.search(rf"port {port} of 127.0.0.1 is taken \(.+\): choose another with --port", done.output)


def test_demo_that_begins_before_start_month_goes_on_in_a_process_with_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sample that is longer than the configured months is computed whole: the demo sets its own START_MONTH."""
    processes: list[tuple[str, list[str], dict[str, str]]] = []

    def replace_process(*process: Any) -> None:
        processes.append(process)
        sys.exit()

    monkeypatch.setattr(os, "execve", replace_process)
    today = datetime.now(ZoneInfo("America/New_York")).date()
    monkeypatch.setenv("START_MONTH", f"{today:%Y-%m}")
    CliRunner().invoke(main, ["demo", "--no-serve", "--months", "13"])
    ((_, _, environment),) = processes
    assert environment["START_MONTH"] == f"{today.year - 1}-{today:%m}"
    assert environment["LANDING_DIR"].endswith("/sample_landing")


def test_table_of_months_ends_with_a_complete_month(
    analytics: psycopg.Connection[tuple[object, ...]],
) -> None:
    """The table shows every source of each month that it shows, because people add them up."""
    analytics.execute(
        "INSERT INTO analytics.monthly_metrics (month, source, segment, jobs)"
        " SELECT month, 'Source ' || n, 'COD', 1"
        " FROM generate_series(date '2023-01-01', '2024-12-01', interval '1 month') month, generate_series(1, 9) n"
    )
    console = Console(record=True, width=120)
    print_months(analytics, console)
    text = console.export_text()
    shown = re.findall(r"20\d\d-\d\d", text)
    assert shown[0] == f"{date(2024, 12, 1):%Y-%m}" and len(shown) > 2
    assert text.count("Source ") == 9 * len(shown)
