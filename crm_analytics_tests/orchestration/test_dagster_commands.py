"""What Dagster people type, as processes in a checkout: with no variable set, and on databases of one's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

from crm_analytics.core import migrations
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics.orchestration.crm.resources import CrmDatabase
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, job_row
from crm_analytics_tests.orchestration.test_end_to_end import page, wait_for
from crm_analytics_tests.ports import free_port

BIN = Path(sys.executable).parent
MATERIALIZE = "dagster asset materialize -m crm_analytics.definitions --select raw/jobs --partition 2024-10"
LAUNCH = "dg launch --assets raw/jobs --partition 2024-10"


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """A checkout with one export in `landing/`, so that nothing is left in the developer's own.

    It is not in pytest's folder, which every new pytest closes to the system user that the server runs as.
    """
    folder = Path(tempfile.mkdtemp(prefix="crm_analytics_checkout_"))
    for name in ("crm_analytics", "dagster.yaml", "workspace.yaml", "pyproject.toml"):
        (folder / name).symlink_to(PROJECT_DIR / name)
    (folder / "landing" / "jobs").mkdir(parents=True)
    (folder / "landing" / "jobs" / "a.csv").write_text(f"{JOBS_HEADER}\n{job_row('AAAAAA', '2024-10-31')}\n")
    (folder / ".config").mkdir()
    (folder / ".config" / "dg.toml").write_text("[cli.telemetry]\nenabled = false\n")
    yield folder
    EmbeddedPostgres(folder / ".crm_analytics").stop()
    shutil.rmtree(folder)


def environment(checkout: Path, **variables: str) -> dict[str, str]:
    """No variable of ours but those given."""
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(checkout), **variables}


def run(checkout: Path, command: str, **variables: str) -> tuple[int, str]:
    """Runs the command as a person would; returns (exit code, all it printed)."""
    done = subprocess.run(
        command.split(), cwd=checkout, env=environment(checkout, **variables), timeout=PATIENCE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("dagster definitions validate", "All code locations passed validation"),
        ("dg check defs", "All definitions loaded successfully"),
        ("dg list defs --json", "load_landing_files"),
        ("dagster asset list -m crm_analytics.definitions", "analytics/monthly_metrics"),
        (LAUNCH, "RUN_SUCCESS"),
    ],
)
def test_command_works_without_a_variable(checkout: Path, command: str, shown: str) -> None:
    """Whoever knows Dagster types these first; a trace about a variable would be all they see of the platform."""
    code, output = run(checkout, command)
    assert code == 0 and shown in output, output
    assert not list(checkout.glob(".tmp_dagster_home_*"))


def test_runs_under_up_print_no_events(checkout: Path) -> None:
    """`crm-analytics up` sets INFO: the terminal has messages, and dozens of events per run only in the UI."""
    code, output = run(checkout, LAUNCH, RUN_LOG_LEVEL="INFO")
    assert code == 0 and "DEBUG" not in output, output


def test_dagster_dev_shows_what_another_command_ran(checkout: Path) -> None:
    """Each command has a temporary DAGSTER_HOME of its own; runs and their output must outlive it."""
    code, output = run(checkout, MATERIALIZE)
    assert code == 0, output
    port, log = free_port(), checkout / "up.log"
    with log.open("w") as file:
        dev = subprocess.Popen(
            ["dagster", "dev", "--port", str(port)], cwd=checkout, env=environment(checkout), stdout=file, stderr=file,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL), start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(PATIENCE, lambda: shows_success(port), checkout)
        locations = page(port, LOCATIONS)["workspaceOrError"]["locationEntries"]
        assert [entry["loadStatus"] for entry in locations] == ["LOADED"]
    finally:
        dev.send_signal(signal.SIGINT)
        dev.wait(PATIENCE)
        # its code server would wait for a run that a sensor has started meanwhile
        with suppress(ProcessLookupError):
            os.killpg(dev.pid, signal.SIGKILL)
    assert dev.returncode == 0
    assert list((checkout / ".crm_analytics" / "dagster" / "storage").glob("*/compute_logs/*.err"))


def shows_success(port: int) -> bool:
    """Says whether the UI answers and shows a run that succeeded."""
    with suppress(OSError):
        return "SUCCESS" in str(page(port, RUNS))
    return False


RUNS = "{ runsOrError { ... on Runs { results { status } } } }"
LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"


def test_configured_databases_are_used_and_never_migrated(
    checkout: Path, new_database: Callable[..., str], tmp_path: Path
) -> None:
    """A configured database is migrated only by its own command, which the message names."""
    analytics, storage = new_database(), new_database("dagster")
    variables = {
        "ANALYTICS_DATABASE_URL": analytics,
        "DAGSTER_POSTGRES_URL": storage,
        "CRM_ANALYTICS_HOME": str(tmp_path / "state"),
    }
    code, output = run(checkout, LAUNCH, **variables)
    assert code != 0 and "run `crm-analytics migrate analytics`" in output, output
    with psycopg.connect(analytics) as connection:
        assert connection.execute("SELECT to_regnamespace('analytics')").fetchone() == (None,)
    migrations.migrate("analytics", url=analytics)
    code, output = run(checkout, LAUNCH, **variables)
    assert code == 0, output
    with psycopg.connect(storage) as connection:
        assert connection.execute("SELECT status FROM runs ORDER BY id").fetchall() == [
            ("FAILURE",),
            ("SUCCESS",),
        ]
    assert not (tmp_path / "state" / "postgres-18").exists(), "no embedded server was needed"


def test_crm_that_is_configured_and_not_migrated_is_one_sentence(new_database: Callable[..., str]) -> None:
    """Its checks would otherwise report every table as missing, one by one."""
    database = CrmDatabase(Settings(crm_database_url=new_database()))
    with pytest.raises(Exception, match="run `crm-analytics migrate crm`"), database.connection():
        pass
