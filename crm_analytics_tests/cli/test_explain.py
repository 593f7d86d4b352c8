"""What `crm-analytics explain` prints, and how it exits."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from crm_analytics.analytics.warehouse.explain import METRICS
from crm_analytics.cli import explain as command
from crm_analytics.cli.explain import amount_text
from crm_analytics.cli.main import main
from crm_analytics_tests.analytics.ingest.landing_folder import Landing, text
from crm_analytics_tests.analytics.model_comparison import refresh_stale

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def world(analytics: psycopg.Connection[Any], tmp_path: Path) -> psycopg.Connection[Any]:
    """Three jobs of Google and one of Rely in October 2024, with payments, from two files; and a job in December."""
    landing = Landing(tmp_path, analytics)
    lines = [
        ("AAAAAA", "COD Service", "Google", "2024-10-05"),
        ("BBBBBB", "COD Repair", "google", "2024-10-06"),
        ("CCCCCC", "COD Service", "Google", "2024-10-06"),
        ("DDDDDD", "INS Service", "Rely", "2024-10-06"),
        ("EEEEEE", "INS Service", "Rely", "2024-12-24"),
    ]
    landing.write("jobs/october [1].csv", text(("UUID", "Job Type", "Source", "Created"), lines), day=1)
    landing.write(
        "payments/october.csv",
        text(
            ("Payment ID", "Job UUID", "Amount", "Date"),
            [("P1", "AAAAAA", "120.00", "2024-10-05"), ("P2", "CCCCCC", "100.00", "2024-10-07")],
        ),
        day=1,
    )
    for source in ("jobs", "payments"):
        landing.load(source)
    refresh_stale(analytics)
    return analytics


@pytest.fixture
def run(
    world: psycopg.Connection[Any], analytics_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs `crm-analytics explain`; returns (exit code, all it printed)."""
    monkeypatch.setenv("ANALYTICS_DATABASE_URL", analytics_url)
    monkeypatch.setenv("CRM_ANALYTICS_HOME", str(tmp_path / "state"))

    def command(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["explain", *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return command


def words(printed: str) -> str:
    return " ".join(printed.split())


def test_prints_rows_total_and_what_is_stored(run: Run) -> None:
    """The rows of one source, each with its rule, file and record; their sum, and that it is the stored one."""
    code, printed = run("2024-10", "repairs", "--source", "google")
    assert code == 0
    assert [words(line) for line in printed.splitlines()] == [
        "day kind id segment amount why it counts file record",
        "2024-10-05 job AAAAAA COD 1 COD Service with 120.00 paid, more than 100 1 1",
        "2024-10-06 job BBBBBB COD 1 COD Repair, a repair by its type 1 2",
        "file 1: jobs/october [1].csv",
        "repairs: 2 rows, 2; as stored: 2, equal",
    ]


def test_choices_narrow_the_rows_down(run: Run) -> None:
    """A segment and a day leave out the other rows, and the stored number is that of the same choice."""
    assert "jobs: 4 rows, 4; as stored: 4, equal" in run("2024-10", "jobs")[1]
    code, printed = run("2024-10", "jobs", "--segment", "ins")
    assert code == 0 and "Rely" in printed and "jobs: 1 row, 1; as stored: 1, equal" in printed
    code, printed = run("2024-10", "jobs", "--day", "6", "--source", "Google")
    assert code == 0 and "jobs: 2 rows, 2; as stored: 2, equal" in printed
    code, printed = run("2024-10", "revenue-gross", "--source", "rely")
    assert (code, printed) == (0, "revenue_gross: 0 rows, 0; as stored: 0.00, equal\n")


def test_a_ratio_shows_both_parts(run: Run) -> None:
    """A ratio has the rows of both parts, their sums, and the quotient; without a denominator there is none."""
    code, printed = run("2024-10", "conv_u_to_r", "--source", "Google")
    assert code == 0
    assert [words(line) for line in printed.splitlines()[-3:]] == [
        "numerator, repairs: 2 rows, 2; as stored: 2, equal",
        "denominator, units: 2 rows, 2; as stored: 2, equal",
        "conv_u_to_r: 1.0000; as stored: 1.0000",
    ]
    assert printed.count("denominator  2024-10") == 2
    assert (
        "cpl: none, the denominator is 0; as stored: none" in run("2024-10", "cpl", "--segment", "OTHER")[1]
    )


def test_csv_has_all_rows_and_nothing_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --csv, stdout has the rows alone, all of them, so that it can be a file; the conclusion is on stderr."""
    monkeypatch.setattr(command, "SHOWN_ROWS", 1)
    assert "… and 1 more rows: --csv prints all of them" in run("2024-10", "revenue_gross")[1]
    done = CliRunner().invoke(main, ["explain", "2024-10", "revenue_gross", "--csv"])
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["id"], row["day"], Decimal(row["amount"]), row["file"], row["record_no"]) for row in found] == [
        ("P1", "2024-10-05", Decimal("120.00"), "payments/october.csv", "1"),
        ("P2", "2024-10-06", Decimal("100.00"), "payments/october.csv", "2"),
    ]  # fmt: skip
    assert words(done.stderr) == "revenue_gross: 2 rows, 220.00; as stored: 220.00, equal"


def test_stale_month_is_told_with_the_command_that_computes_it(
    run: Run, world: psycopg.Connection[Any]
) -> None:
    """A correction in SQL shows at once in the rows; the stored number waits for a refresh, which is printed."""
    world.execute("UPDATE raw.payments SET amount = 100.01 WHERE payment_id = 'P2'")
    code, printed = run("2024-10", "repairs", "--source", "Google")
    assert code == 0
    assert "repairs: 3 rows, 3; as stored: 2, not equal" in printed
    assert "2024-10 is stale since" in printed and "(payments update)" in printed
    assert "crm-analytics refresh --from 2024-10 --to 2024-10 computes it" in words(printed)


def test_difference_that_nothing_explains_is_an_error(run: Run, world: psycopg.Connection[Any]) -> None:
    """Metrics that were changed by hand don't pass as explained: exit code 1, and the way out."""
    world.execute(
        "UPDATE analytics.monthly_metrics SET jobs = 7 WHERE month = '2024-10-01' AND source = 'Rely'"
    )
    code, printed = run("2024-10", "jobs")
    assert code == 1
    assert "jobs: 4 rows, 4; as stored: 10, not equal" in printed
    assert "the metrics of 2024-10 differ from their rows, although the month isn't stale" in words(printed)
    assert "queue_every_month('why')" in printed
    assert run("2024-10", "jobs", "--source", "Google")[0] == 0


def test_row_written_by_hand(run: Run, world: psycopg.Connection[Any]) -> None:
    """A row without a file says so."""
    world.execute(
        "INSERT INTO raw.payments (payment_id, job_ref, paid_date, amount) VALUES ('H', 'DDDDDD', '2024-10-09', 5)"
    )
    _, printed = run("2024-10", "revenue_gross", "--source", "Rely")
    assert "5.00 paid on 2024-10-09 for job DDDDDD  by hand" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["2024-10", "repair"], 1, f"no such metric: repair; expected one of {', '.join(METRICS)}"),
        (["2031-10", "jobs"], 1, "no rows in 2031-10; months with rows: 2024-10, 2024-12"),
        (["2024-10", "jobs", "--source", "[b]Gogle"], 1, "no such source: [b]Gogle; sources: Google, Rely"),
        (["2024-11", "jobs", "--day", "31"], 1, "no such day: 2024-11 has 30 days"),
        (["October", "jobs"], 2, "'October' is not a month: write it as YYYY-MM, e.g. 2024-10"),
        (["2024-10", "jobs", "--segment", "X"], 2, "'X' is not one of"),
    ],
)
def test_mistakes_are_told_with_what_is_accepted(
    run: Run, arguments: list[str], code: int, said: str
) -> None:
    """A metric, month, source or day that doesn't exist is a sentence that names those that do."""
    found, printed = run(*arguments)
    assert found == code and said in words(printed)


def test_empty_database_says_what_is_missing(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first load, the answer is to load something, and a database that isn't migrated names the command."""
    monkeypatch.setenv("ANALYTICS_DATABASE_URL", new_database("analytics"))
    done = CliRunner().invoke(main, ["explain", "2024-10", "jobs"])
    assert done.exit_code == 1
    assert "no rows in 2024-10; months with rows: none, load exports first" in words(done.output)
    monkeypatch.setenv("ANALYTICS_DATABASE_URL", new_database())
    done = CliRunner().invoke(main, ["explain", "2024-10", "jobs"])
    assert done.exit_code == 1 and "run `crm-analytics migrate analytics`" in words(done.output)


def test_help_names_every_metric() -> None:
    """Help lists the metrics and has examples that are commands."""
    printed = words(CliRunner().invoke(main, ["explain", "--help"]).output)
    assert all(metric in printed for metric in METRICS)
    assert "crm-analytics explain 2024-10 repairs --source Google" in printed


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("1", "1"), ("1234", "1,234"), ("0", "0"), ("10.00", "10.00"), ("40.0040", "40.004"), ("-7.9960", "-7.996"),
        ("48.0000", "48.00"), ("1234567.5", "1,234,567.50"), ("0.0", "0.00"),
    ],
)  # fmt: skip
def test_amounts(amount: str, shown: str) -> None:
    """Counts have no decimals; money has two, and more where a cent is split."""
    assert amount_text(Decimal(amount)) == shown
