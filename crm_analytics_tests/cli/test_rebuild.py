"""What `crm-analytics rebuild` prints and asks, and how it exits."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from crm_analytics.analytics.ingest.loading import rebuild as loading
from crm_analytics.cli import rebuild as command
from crm_analytics.core.settings import Settings
from crm_analytics_tests.analytics.ingest.landing_folder import ELOCALS, Landing, text

GOOD = text(ELOCALS, [("A", "2025-01-05", "", "10", "", ""), ("B", "2025-02-05", "", "20", "", "")])
WRONG = text(ELOCALS, [("A", "2025-01-05", "", "99", "", ""), ("C", "2025-03-05", "", "7", "", "")])
PROGRAM = str(Path(sys.executable).parent / "crm-analytics")


@pytest.fixture
def landing(tmp_path: Path, analytics: psycopg.Connection[Any]) -> Landing:
    """A landing folder with a good and a wrong file of leads, both loaded."""
    landing = Landing(tmp_path, analytics)
    landing.write("elocals_leads/good.csv", GOOD, day=1)
    landing.write("elocals_leads/wrong file.csv", WRONG, day=2)
    landing.load("elocals_leads")
    return landing


@pytest.fixture
def environment(landing: Landing, analytics_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ANALYTICS_DATABASE_URL": analytics_url,
        "LANDING_DIR": str(landing.folder),
        "CRM_ANALYTICS_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., tuple[int, str]]:
    """Runs `crm-analytics rebuild` without a terminal; returns (exit code, all it printed)."""

    def started(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [PROGRAM, "rebuild", *arguments],
            env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stdout, done.stdout
        return done.returncode, " ".join(done.stdout.split())

    return started


def costs(landing: Landing) -> dict[str, int]:
    return dict(landing.rows("SELECT lead_id, cost::int FROM raw.elocals_leads ORDER BY 1"))


def answer(environment: dict[str, str], text: str) -> int:
    """Runs the command in a terminal and answers its question; returns its exit code."""
    terminal, end = pty.openpty()
    words = [PROGRAM, "rebuild", "elocals_leads", "--without", "wrong file.csv"]
    with subprocess.Popen(words, env=environment, stdin=end, stdout=subprocess.PIPE) as child:
        os.write(terminal, text.encode())
        code = child.wait(120)
    os.close(end)
    os.close(terminal)
    return code


def test_shows_what_would_change_and_says_how(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """Without a terminal and without --yes, it is a preview: the months, the lost rows, and how to go on."""
    before = costs(landing)
    code, shown = run("elocals_leads", "--without", "elocals_leads/wrong file.csv")
    assert code == 1
    assert "elocals_leads: 1 file read; 0 rows written by hand stay" in shown
    assert "2025-01 │ 1 │ 1 │ 0 │ 0 │ 1 │" in shown and "2025-03 │ 1 │ 0 │ 1 │ 0 │ 0 │" in shown
    assert "2025-02" not in shown, "a month that stays as it is"
    assert "taken back: elocals_leads/wrong file.csv: 1 row lost" in shown
    assert shown.endswith("no terminal to ask in: add --yes to make these changes nothing was changed")
    assert costs(landing) == before == {"A": 99, "B": 20, "C": 7}


def test_takes_a_file_back_and_in_again(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """With --yes the table changes, and the message says what recomputes the months; the way back is --with."""
    code, shown = run("elocals_leads", "--without", "wrong file.csv", "--yes")
    assert code == 0
    assert "elocals_leads is rebuilt; stale months: 3." in shown and shown.endswith("crm-analytics refresh")
    assert costs(landing) == {"A": 10, "B": 20}
    code, shown = run("elocals_leads", "--yes")
    assert (code, shown.endswith("the table agrees with the landing folder already")) == (0, True)
    assert run("elocals_leads", "--with", "wrong file.csv", "--yes")[0] == 0
    assert costs(landing) == {"A": 99, "B": 20, "C": 7}


def test_missing_file_is_loud(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """Rows whose file is gone are named with it before they are lost."""
    (landing.folder / "elocals_leads/good.csv").unlink()
    code, shown = run("elocals_leads")
    assert code == 1
    lost = (
        "no longer in the landing folder: elocals_leads/good.csv: 1 row lost; put the file back to keep them"
    )
    assert lost in shown


@pytest.mark.parametrize(("typed", "code", "expected"), [("y\n", 0, 10), ("n\n", 1, 99), ("\n", 1, 99)])
def test_asks(typed: str, code: int, expected: int, environment: dict[str, str], landing: Landing) -> None:
    """Only a yes at the question changes something."""
    assert answer(environment, typed) == code
    assert costs(landing)["A"] == expected


def test_file_whose_rows_others_have_is_taken_back(
    run: Callable[..., tuple[int, str]], landing: Landing
) -> None:
    """What is asked for is told also if no row changes: the file isn't loaded again."""
    landing.write("elocals_leads/part.csv", text(ELOCALS, [("B", "2025-02-05", "", "20", "", "")]), day=1)
    landing.load("elocals_leads")
    code, shown = run("elocals_leads", "--without", "part.csv", "--yes")
    assert (code, "no row changes elocals_leads is rebuilt" in shown) == (0, True)


def test_late_answer_changes_nothing(
    landing: Landing, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads don't wait forever for a person: an answer that comes too late is told in a sentence."""
    before = costs(landing)

    def yes_too_late(*_: object) -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
        while landing.rows(waiting) != [(0,)]:
            time.sleep(0.05)
        return True

    monkeypatch.setattr(loading, "PATIENCE", "50ms")
    monkeypatch.setattr(command, "_agreed", yes_too_late)
    config = Settings(
        analytics_database_url=environment["ANALYTICS_DATABASE_URL"], landing_dir=landing.folder
    )
    told = StringIO()
    done = command.rebuild_source(
        config,
        "elocals_leads",
        ["wrong file.csv"],
        [],
        yes=False,
        console=Console(file=told, width=200),
    )
    assert not done
    assert "nothing was changed: the answer took longer than" in told.getvalue()
    assert costs(landing) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["leads"], "no such source: leads; expected one of jobs, payments"),
        (["jobs", "--without", "good.csv"], "nothing was changed: no file good.csv in the landing folder"),
        (
            ["elocals_leads", "--without", "good.csv", "--with", "elocals_leads/good.csv", "--yes"],
            "nothing was changed: elocals_leads/good.csv can't be both taken back and taken in again",
        ),
        (
            ["elocals_leads", "--landing", "/nowhere"],
            "nothing was changed: the landing folder /nowhere does not exist",
        ),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, run: Callable[..., tuple[int, str]]) -> None:
    """A mistyped source, file or folder ends with one sentence and exit code 1."""
    code, shown = run(*arguments)
    assert code == 1
    assert message in shown
