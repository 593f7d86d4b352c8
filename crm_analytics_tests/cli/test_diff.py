"""What `crm-analytics diff` prints, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.ingest.loading.load import only_load_of
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics_tests.analytics.ingest.landing_folder import ELOCALS, Landing, text

PROGRAM = str(Path(sys.executable).parent / "crm-analytics")
LOADED = text(ELOCALS, [("A", "2024-10-05", "", "10", "", ""), ("B", "2024-11-05", "", "20", "", "")])
#: A costs 5.50 more, B is as before, C is new; the last one is quarantined.
LATER = text(
    ELOCALS,
    [("A", "2024-10-05", "", "15.5", "", ""), ("B", "2024-11-05", "", "20", "", ""),
     ("C", "2024-12-01", "", "1000", "", ""), ("D", "2024-12-01", "", "NaN", "", "")],
)  # fmt: skip


@pytest.fixture
def landing(tmp_path: Path, analytics: psycopg.Connection[Any]) -> Landing:
    """A landing folder whose file of leads is loaded and computed."""
    landing = Landing(tmp_path, analytics)
    landing.write("elocals_leads/a.csv", LOADED, day=1)
    landing.load_one("elocals_leads")
    refresh(analytics, date(2024, 10, 1), date(2024, 12, 1))
    return landing


@pytest.fixture
def run(landing: Landing, analytics_url: str, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs `crm-analytics diff` in a folder with exports; returns (exit code, all it printed)."""

    def started(*arguments: str, given: str | bytes = "") -> tuple[int, str]:
        done = subprocess.run(
            [PROGRAM, "diff", *arguments],
            env={
                **os.environ,
                "ANALYTICS_DATABASE_URL": analytics_url,
                "LANDING_DIR": str(landing.folder),
                "CRM_ANALYTICS_HOME": str(tmp_path / "state"),
            },
            cwd=tmp_path, input=given.encode() if isinstance(given, str) else given,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip
        printed = done.stdout.decode()
        assert "Traceback" not in printed, printed
        return done.returncode, printed

    return started


def words(printed: str) -> str:
    return " ".join(printed.split())


def test_file_that_changes_numbers(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """Old, new and change by month, source and measure; the export time; what becomes of the records; exit code 3."""
    landing.write("../later.csv", LATER, day=9)
    code, printed = run("later.csv")
    shown = words(printed)
    assert code == 3
    assert "later.csv: records read 4, inserted 1, updated 1, unchanged 1, quarantined 1" in shown
    assert "assumed export time: 2025-01-09 07:00 (its modification time: a copy with another one" in shown
    for row in (
        "│ 2024-10 │ eLocals │ cost │ 10.00 │ 15.50 │ +5.50 │",
        "│ 2024-12 │ eLocals │ leads │ 0 │ 1 │ +1 │",
        "│ │ │ cost │ 0.00 │ 1,000.00 │ +1,000.00 │",
    ):
        assert row in shown, printed
    assert "2024-11" not in shown, "a month that stays as it is"
    assert shown.endswith("3 numbers would change in 2 months; nothing was changed")
    assert landing.rows("SELECT count(*) FROM raw.elocals_leads") == [(2,)]


def test_json(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """Programs get exact amounts as text, counts as numbers, and the same exit code."""
    landing.write("../later.csv", LATER, day=9)
    landing.connection.execute("UPDATE raw.elocals_leads SET cost = 11 WHERE lead_id = 'A'")
    code, printed = run("later.csv", "--json")
    found = json.loads(printed)
    assert code == 3
    assert found["changes"] == [
        {"month": "2024-10", "source": "eLocals", "measure": "cost", "old": "10.00", "new": "15.50", "change": "5.50"},
        {"month": "2024-12", "source": "eLocals", "measure": "leads", "old": 0, "new": 1, "change": 1},
        {"month": "2024-12", "source": "eLocals", "measure": "cost", "old": "0.00", "new": "1000.00", "change": "1000.00"},
    ]  # fmt: skip
    assert (found["stale_before"], found["not_computed"], found["moved"]) == (["2024-10"], [], [])
    (file,) = found["files"]
    assert (file["path"], file["status"], file["counts"]["quarantined"]) == ("later.csv", "loaded", 1)
    assert (file["exported_at"], file["exported_at_from"]) == ("2025-01-09T12:00:00+00:00", "mtime")


def test_sql_from_a_file_and_from_standard_input(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Both say what a correction does; one that changes no number exits with 0."""
    (tmp_path / "fix.sql").write_text("\ufeffUPDATE raw.elocals_leads SET cost = 0 WHERE lead_id = 'B';\n")
    code, printed = run("--sql", "fix.sql")
    assert code == 3
    assert "│ 2024-11 │ eLocals │ leads │ 1 │ 0 │ -1 │" in words(printed)
    code, printed = run(
        "--sql", "-", given="UPDATE raw.elocals_leads SET lead_date = '2024-11-06' WHERE lead_id = 'B'"
    )
    assert code == 3
    assert "2024-11 eLocals: the same sums, on other days or in other segments" in words(printed)
    code, printed = run("--sql", "-", given="UPDATE raw.elocals_leads SET status = 'x'")
    assert (code, words(printed)) == (0, "no number would change; nothing was changed")


def test_files_that_would_not_be_loaded(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """A refused file is told with the reason, also beside a good one, and exits with 1; a loaded one exits with 0."""
    landing.write("../later.csv", LATER, day=9)
    landing.write("../jobs/login.csv", "<!DOCTYPE html><html><body>Sign in</body></html>")
    code, printed = run("later.csv", "jobs/login.csv")
    assert code == 1
    assert "refused: jobs/login.csv: " in words(printed)
    assert "3 numbers would change" in printed
    code, printed = run("landing/elocals_leads/a.csv")
    assert code == 0
    assert "known: elocals_leads/a.csv: loaded already" in words(printed)


def test_failures_are_told(run: Callable[..., tuple[int, str]], landing: Landing) -> None:
    """SQL that ends its transaction, SQL in another encoding, no argument or both, and a load that runs: a sentence each."""
    code, printed = run("--sql", "-", given="DELETE FROM raw.elocals_leads; COMMIT")
    assert code == 1
    assert "not compared: the SQL can't be run in diff's own transaction" in words(printed)
    assert "Leave out BEGIN, COMMIT, ROLLBACK, SAVEPOINT and COPY from stdin (PostgreSQL says: " in words(
        printed
    )
    code, printed = run("--sql", "-", given="SELECT 'caf\xe9'".encode("latin-1"))
    assert (code, "the SQL is not UTF-8" in printed) == (1, True)
    code, printed = run()
    assert (code, "give either files or --sql FILE" in printed) == (2, True)
    code, printed = run("landing/elocals_leads/a.csv", "--sql", "-")
    assert code == 2
    with only_load_of(landing.connection, "calls", print):
        code, printed = run("--sql", "-", given="SELECT 1")
    assert code == 1
    assert "busy: a load, rebuild or diff of calls is at work. Nothing was changed: try again" in words(
        printed
    )
    assert landing.rows("SELECT count(*) FROM raw.elocals_leads") == [(2,)]


def test_long_tables_end_with_the_way_to_see_all(run: Callable[..., tuple[int, str]]) -> None:
    """A rule that changes hundreds of numbers doesn't flood the terminal; --json has them all."""
    many = (
        "INSERT INTO raw.elocals_leads (lead_id, lead_at, lead_date, cost)"
        " SELECT 'M' || i, now(), '2023-01-01'::date + i, 1 FROM generate_series(1, 700) i;"
        " INSERT INTO raw.calls (call_id, started_at, call_date, flow)"
        " SELECT 'C' || i || s, now(), '2023-01-01'::date + i, s FROM generate_series(1, 700) i,"
        " unnest('{A, B, C, D, E, F, G, H}'::text[]) s"
    )
    code, printed = run("--sql", "-", given=many)
    changes = json.loads(run("--sql", "-", "--json", given=many)[1])["changes"]
    assert code == 3
    # 2023-01-02 to 2024-12-01 are 24 months, each with leads and cost of eLocals and with calls of eight sources
    assert len(changes) == 240
    assert "… and 40 more; all of them: --json" in printed
    assert printed.count("│ calls ") + printed.count("│ leads ") + printed.count("│ cost ") == 200
