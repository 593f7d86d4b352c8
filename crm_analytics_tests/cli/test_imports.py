"""What commands import: a heavy library loads only for the commands that use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psycopg
import pytest

from crm_analytics.cli.main import main
from crm_analytics_tests.analytics.ingest.landing_folder import JOBS, job, text

#: Runs command lines one after another in a new interpreter, and prints which modules it has in the end.
RUN = """
import json, sys
from contextlib import suppress
from runpy import run_module

class WithoutPandas:  # which is not required; pyarrow imports it where it is installed
    def find_spec(self, name, path, target=None):
        if name == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutPandas())
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["crm-analytics", *arguments]
    with suppress(SystemExit):
        run_module("crm_analytics", run_name="__main__")
print(json.dumps([name.split(".")[0] for name in sys.modules]))
"""


def _imported(*commands: list[str], **environment: str) -> tuple[set[str], str, str]:
    """Returns the libraries that a process imports which runs these commands, and their stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    *printed, names = done.stdout.splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    return set(json.loads(names)) - sys.stdlib_module_names, "\n".join(printed), done.stderr


def _command_lines(command: click.Command, *words: str) -> Iterator[list[str]]:
    yield [*words, "--help"]
    for name, part in getattr(command, "commands", {}).items():
        yield from _command_lines(part, *words, name)


def test_help_imports_click_alone() -> None:
    """Help of every command is instant: what commands need is imported when they run."""
    commands = list(_command_lines(main))
    assert len(commands) > 15
    imported, printed, told = _imported(*commands)
    assert printed.count("Usage: ") == len(commands) and told == ""
    # an editable installation and other start-up hooks begin with an underscore
    assert {name for name in imported if not name.startswith("_")} == {"click", "crm_analytics"}


@pytest.mark.parametrize(
    ("arguments", "needed", "prints"),
    [
        (["check", "jobs.csv"], {"pyarrow"}, "source jobs"),
        (["migrate", "--check"], {"psycopg"}, "analytics: up to date"),
        (["stop"], {"psycopg"}, ""),
        (["url", "analytics"], {"psycopg"}, "postgresql://"),
        (["explain", "2024-10", "repairs"], {"psycopg"}, "1 COD Repair, a repair by its type"),
        (["crm", "guards"], {"psycopg"}, "manifest"),
    ],
)
def test_commands_leave_alone_what_they_do_not_need(
    new_database: Callable[..., str], tmp_path: Path, arguments: list[str], needed: set[str], prints: str
) -> None:
    """A command that runs no Dagster job imports neither Dagster nor what comes with it, and a CSV file no workbook's."""
    file = tmp_path / "jobs.csv"
    file.write_text(text(JOBS, [job(1, "AAAAAA")]))
    url = new_database("analytics")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
            " VALUES ('AAAAAA', 'COD Repair', 'Google', '2024-10-05 12:00Z', '2024-10-05')"
        )
    imported, printed, told = _imported(
        [str(file) if word == file.name else word for word in arguments],
        ANALYTICS_DATABASE_URL=url,
        CRM_DATABASE_URL=new_database("crm"),
        CRM_ANALYTICS_HOME=str(tmp_path),
    )
    assert prints in " ".join(printed.split()) and told == "" and needed <= imported
    heavy = {
        "dagster",
        "sqlalchemy",
        "alembic",
        "matplotlib",
        "openpyxl",
        "pandas",
        "pygal",
        "grafana_foundation_sdk",
    }
    assert not imported & heavy


def test_the_collector_leaves_lasting_imports_alone() -> None:
    """A refresh doesn't look for garbage among Dagster's modules, but does among what it makes itself."""
    code = (
        "import gc\n"
        "from crm_analytics.core.lasting_imports import lasting_imports\n"
        "with lasting_imports():\n"
        "    import crm_analytics.cli.refresh\n"
        "    assert not gc.isenabled()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
