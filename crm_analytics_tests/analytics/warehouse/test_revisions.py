"""Tests of revisions: which changes of closed months are one, what it says, and whom or what it names as the cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crm_analytics.analytics.ingest.loading import bulk, merge_rows
from crm_analytics.analytics.ingest.loading.rebuild import rebuilt
from crm_analytics.analytics.warehouse.refresh import MEASURES, refresh, stale_months
from crm_analytics.core import EMBEDDED_LOGIN
from crm_analytics.core.months import next_month
from crm_analytics_tests import chance
from crm_analytics_tests.analytics.held_refresh import refresh_held
from crm_analytics_tests.analytics.ingest.landing_folder import (
    JOBS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    job,
    text,
)
from crm_analytics_tests.conftest import PATIENCE

Connection = psycopg.Connection[Any]
SEPTEMBER, OCTOBER, NOVEMBER, DECEMBER = (date(2024, month, 1) for month in (9, 10, 11, 12))


@pytest.fixture
def landing(tmp_path: Path, analytics: Connection) -> Landing:
    """A landing folder that loads into the test's database."""
    return Landing(tmp_path, analytics)


def insert_job(connection: Connection, job_id: str, day: str, source: str = "Google") -> None:
    connection.execute(
        "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date) VALUES (%s, 'COD Service', %s, %s, %s)",
        [job_id, source, f"{day} 12:00-05", day],
    )


def insert_payment(connection: Connection, payment_id: str, job_id: str, amount: str) -> None:
    connection.execute(
        "INSERT INTO raw.payments (payment_id, job_id, paid_date, amount) VALUES (%s, %s, '2024-12-24', %s)",
        [payment_id, job_id, amount],
    )


def jobs_file(*days: str) -> str:
    """Returns a jobs file with a COD Service from Google of each day, numbered from 1."""
    return text(JOBS, [job(number, f"JOB{number:03}", Created=day) for number, day in enumerate(days, 1)])


def payments_file(*rows: tuple[str, str, str]) -> str:
    """Returns a payments file of (id, number of the job, amount), all paid on November 16, 2024."""
    return text(
        PAYMENTS, [(key, number, "11/16/2024", paid, "Cash", "Paid", "") for key, number, paid in rows]
    )


def revisions(connection: Connection) -> list[tuple[str, str | None]]:
    """Returns month and run of all revisions, in order."""
    return connection.execute(
        "SELECT to_char(r.month, 'YYYY-MM'), l.run_id FROM revisions r JOIN refresh_log l USING (refresh_id, month)"
        " ORDER BY revision_id"
    ).fetchall()


def changes(connection: Connection) -> list[tuple[Any, ...]]:
    """Returns what all revisions changed."""
    return connection.execute(
        "SELECT to_char(month, 'YYYY-MM'), source, segment, measure, old::text, new::text"
        " FROM revision_changes JOIN revisions USING (revision_id) ORDER BY revision_id, source, segment, measure"
    ).fetchall()


def causes(connection: Connection) -> list[tuple[Any, ...]]:
    """Returns the month, table, operation, file, login and rows of all causes."""
    return connection.execute(
        "SELECT to_char(month, 'YYYY-MM'), table_name, operation, path, changed_by, rows"
        " FROM revision_causes JOIN revisions USING (revision_id) LEFT JOIN raw.source_files USING (file_id)"
        " ORDER BY revision_id, table_name, operation, path"
    ).fetchall()


# -- what a revision is -------------------------------------------------------------------------------------------


def test_a_late_payments_file_is_one_revision_with_the_file_as_its_only_cause(landing: Landing) -> None:
    """A payments file for a closed month makes one revision: its numbers before and after, its run, and this file."""
    database = landing.connection
    landing.write("jobs/j.csv", jobs_file("Tue Oct 15 2024", "Tue Oct 15 2024"))
    landing.load("jobs")
    refresh(database, OCTOBER, DECEMBER, "first")
    assert revisions(database) == []
    landing.write("payments/late.csv", payments_file(("p1", "1", "120.00"), ("p2", "2", "80.50")))
    landing.load("payments")
    refresh(database, OCTOBER, DECEMBER, "second")
    assert revisions(database) == [("2024-10", "second")]
    # one of the two jobs has more than 100 dollars paid
    assert changes(database) == [
        ("2024-10", "Google", "COD", "repairs", "0", "1"),
        ("2024-10", "Google", "COD", "revenue_gross", "0.00", "200.50"),
    ]
    assert causes(database) == [("2024-10", "payments", "insert", "payments/late.csv", None, 2)]
    assert stale_months(database) == []
    assert database.execute("SELECT changes, causes, dollars FROM reporting.revisions").fetchall() == [
        (
            "repairs +1, revenue_gross +200.50",
            "payments insert from payments/late.csv (2 rows)",
            Decimal("200.50"),
        )
    ]


def test_a_refresh_that_changes_nothing_writes_nothing(analytics: Connection) -> None:
    """Nothing is written where nothing was queued, where what was queued changed no number, or only days of a month."""
    insert_job(analytics, "A", "2024-10-05")
    insert_payment(analytics, "p", "A", "50.00")
    refresh(analytics, OCTOBER, NOVEMBER)
    refresh(analytics, OCTOBER, NOVEMBER)
    analytics.execute("UPDATE raw.payments SET amount = 60")
    analytics.execute("UPDATE raw.payments SET amount = 50")
    assert refresh(analytics, OCTOBER, NOVEMBER)[0].stale_rows == 2
    analytics.execute("UPDATE raw.jobs SET job_date = '2024-10-06'")
    assert refresh(analytics, OCTOBER, NOVEMBER)[0].changed_rows == 2
    assert stale_months(analytics) == []
    for table in ("revisions", "revision_changes", "revision_causes"):
        assert analytics.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,), table


@pytest.mark.parametrize(
    ("refreshed", "revised"),
    [
        ("2024-10-20 12:00-04", []),
        ("2024-10-31 23:59:59-04", []),
        ("2024-11-01 00:00-04", [("2024-10", None)]),
        ("2024-12-10 12:00-05", [("2024-10", None)]),
    ],
)
def test_a_month_is_closed_if_it_had_ended_when_it_was_last_refreshed(
    analytics: Connection, refreshed: str, revised: list[Any]
) -> None:
    """What changes a month for the first time after its end, in the business timezone, completes it and revises nothing."""
    analytics.execute("UPDATE business SET timezone = 'America/New_York'")
    insert_job(analytics, "A", "2024-10-05")
    refresh(analytics, OCTOBER, NOVEMBER)
    analytics.execute("UPDATE refresh_log SET started_at = %s", [refreshed])
    insert_job(analytics, "B", "2024-10-31")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert revisions(analytics) == revised


def test_the_running_month_has_no_revisions(analytics: Connection) -> None:
    """Whatever changes the current month is how it goes, not a revision."""
    found = analytics.execute("SELECT month_of(today())").fetchone()
    assert found is not None
    (month,) = found
    for number in range(3):
        insert_job(analytics, f"J{number}", month.isoformat())
        # the next month as well, so that this holds if a month ends meanwhile
        refresh(analytics, month, next_month(next_month(month)))
    assert revisions(analytics) == []


def test_first_numbers_are_no_revision_but_numbers_that_return_are(analytics: Connection) -> None:
    """A month that was empty gets its first numbers without a revision, however often it was refreshed before."""
    refresh(analytics, OCTOBER, NOVEMBER)
    refresh(analytics, OCTOBER, NOVEMBER)
    insert_job(analytics, "A", "2024-10-05")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert revisions(analytics) == []
    analytics.execute("DELETE FROM raw.jobs")
    refresh(analytics, OCTOBER, NOVEMBER, "gone")
    insert_job(analytics, "A", "2024-10-05")
    refresh(analytics, OCTOBER, NOVEMBER, "back")
    assert revisions(analytics) == [("2024-10", "gone"), ("2024-10", "back")]
    gone = [("2024-10", "Google", "COD", measure, "1", "0") for measure in ("jobs", "leads", "units")]
    assert changes(analytics) == gone + [(*row[:4], "0", "1") for row in gone]


def test_what_nothing_noted_is_a_revision_without_a_cause(analytics: Connection) -> None:
    """Where a trigger was off, the revision says that nothing was noted; a months' row put right makes none."""
    insert_job(analytics, "A", "2024-10-05")
    refresh(analytics, OCTOBER, NOVEMBER)
    analytics.execute("UPDATE monthly_metrics SET leads = 7")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert analytics.execute("SELECT leads FROM monthly_metrics").fetchall() == [(1,)]
    assert revisions(analytics) == []
    analytics.execute("ALTER TABLE raw.jobs DISABLE TRIGGER USER; UPDATE raw.jobs SET source = 'Rely'")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert len(revisions(analytics)) == 1
    assert causes(analytics) == []
    assert analytics.execute("SELECT causes FROM reporting.revisions").fetchall() == [
        ("nothing was noted: a trigger was off, or metrics were changed by hand",)
    ]


# -- whom it names ------------------------------------------------------------------------------------------------


def test_a_job_that_links_a_waiting_payment_names_the_file_of_the_job(landing: Landing) -> None:
    """The file that is being loaded is the cause, although the row that changed came from another one."""
    database = landing.connection
    landing.write("payments/p.csv", payments_file(("p1", "1", "120.00")))
    landing.load("payments")
    refresh(database, SEPTEMBER, DECEMBER)
    landing.write("jobs/j.csv", jobs_file("Tue Oct 15 2024"))
    landing.load("jobs")
    refresh(database, SEPTEMBER, DECEMBER)
    # October gets its first numbers
    assert changes(database) == [("2024-11", "Unattributed", "OTHER", "revenue_gross", "120.00", "0")]
    assert causes(database) == [("2024-11", "payments", "update", "jobs/j.csv", None, 1)]


def test_each_file_of_a_load_is_named_for_what_it_changed(landing: Landing) -> None:
    """Files are named one by one, and a refresh that answers several makes one revision of each month."""
    database = landing.connection
    landing.write("jobs/j.csv", jobs_file("Tue Oct 15 2024", "Tue Sep 10 2024"))
    landing.load("jobs")
    refresh(database, SEPTEMBER, NOVEMBER)
    landing.write("payments/a.csv", payments_file(("p1", "1", "10.00")), day=2)
    landing.write("payments/b.csv", payments_file(("p2", "1", "20.00"), ("p3", "2", "30.00")), day=3)
    landing.write("payments/c.csv", payments_file(("p1", "1", "11.00")), day=4)
    landing.load("payments")
    refresh(database, SEPTEMBER, NOVEMBER)
    assert [month for month, _ in revisions(database)] == ["2024-09", "2024-10"]
    assert causes(database) == [
        ("2024-09", "payments", "insert", "payments/b.csv", None, 1),
        ("2024-10", "payments", "insert", "payments/a.csv", None, 1),
        ("2024-10", "payments", "insert", "payments/b.csv", None, 1),
        ("2024-10", "payments", "update", "payments/c.csv", None, 1),
    ]


@pytest.mark.parametrize("empty", [True, False])
def test_a_bulk_load_names_its_file(landing: Landing, monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    """A load without the table's triggers notes its file, too; the rows of an empty table's first file aren't counted."""
    database = landing.connection
    monkeypatch.setattr(bulk, "ENOUGH", 1)
    monkeypatch.setattr(merge_rows, "FEW", 0)
    landing.write("jobs/j.csv", jobs_file(*["Tue Oct 15 2024"] * 8))
    landing.load("jobs")
    filled: list[bool] = []
    original = bulk.fill_table

    def recorded(*arguments: Any, **options: Any) -> bool:
        filled.append(original(*arguments, **options))
        return filled[-1]

    if not empty:
        landing.write("payments/a.csv", payments_file(("p0", "1", "1.00")), day=1)
        landing.load("payments")
    refresh(database, OCTOBER, DECEMBER)
    monkeypatch.setattr(bulk, "fill_table", recorded)
    landing.write("payments/b.csv", payments_file(*((f"p{n}", str(n), "20.00") for n in range(1, 9))), day=3)
    landing.load("payments")
    assert filled == [True], "else this is no bulk load"
    refresh(database, OCTOBER, DECEMBER)
    assert causes(database) == [
        ("2024-10", "payments", "insert", "payments/b.csv", None, None if empty else 8)
    ]


def test_a_rebuild_names_who_took_the_file_back(landing: Landing) -> None:
    """A file taken back is a person's decision: the login is the cause, not the file that was read again last."""
    database = landing.connection
    landing.write("jobs/j.csv", jobs_file("Tue Oct 15 2024"))
    landing.write("payments/a.csv", payments_file(("p1", "1", "10.00")), day=2)
    landing.write("payments/b.csv", payments_file(("p2", "1", "20.00")), day=3)
    landing.load("jobs")
    landing.load("payments")
    refresh(database, OCTOBER, NOVEMBER)
    without = [Path("payments/b.csv")]
    with rebuilt(database, landing.folder, "payments", timezone=NEW_YORK, without=without):
        pass
    refresh(database, OCTOBER, NOVEMBER)
    assert changes(database) == [("2024-10", "Google", "COD", "revenue_gross", "30.00", "10.00")]
    assert causes(database) == [("2024-10", "payments", "delete", None, EMBEDDED_LOGIN, 1)]


@pytest.fixture
def bookkeeper(analytics: Connection, analytics_url: str) -> Iterator[Connection]:
    """A connection of a login of its own, which may write everything."""
    name = "bookkeeper_" + analytics_url.rpartition("/")[2]
    analytics.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'test'".encode())
    analytics.execute(f"GRANT ALL ON SCHEMA raw, analytics TO {name}".encode())
    analytics.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA raw, analytics TO {name}".encode())
    url = make_conninfo(analytics_url, user=name, password="test")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection
    analytics.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def test_a_correction_in_sql_names_its_login(analytics: Connection, bookkeeper: Connection) -> None:
    """A correction by hand names who made it, and how many rows of each month it changed, those that moved in both."""
    for number in range(1, 6):
        insert_job(analytics, f"J{number}", f"2024-10-0{number}")
    insert_job(analytics, "K", "2024-11-20")
    refresh(analytics, OCTOBER, DECEMBER)
    bookkeeper.execute("UPDATE raw.jobs SET job_date = job_date + 30 WHERE job_id IN ('J1', 'J5')")
    bookkeeper.execute("UPDATE raw.jobs SET type = 'INS Service' WHERE job_id IN ('J2', 'J3', 'K')")
    refresh(analytics, OCTOBER, DECEMBER)
    login = bookkeeper.info.user
    # J1 is on October 31 now; J5, on November 4
    assert causes(analytics) == [
        ("2024-10", "jobs", "update", None, login, 2 + 2),
        ("2024-11", "jobs", "update", None, login, 1 + 1),
    ]


@pytest.mark.parametrize("setting", ["", "no file", "-1", "1; DROP", "99999999999999999999", "7"])
def test_the_setting_is_attribution_only(analytics: Connection, setting: str) -> None:
    """Whatever a session writes into the loader's setting, its changes succeed, and a file that there isn't hides nothing."""
    insert_job(analytics, "A", "2024-10-05")
    refresh(analytics, OCTOBER, NOVEMBER)
    analytics.execute("SELECT set_config('crm_analytics.file_id', %s, false)", [setting])
    insert_payment(analytics, "p", "A", "10.00")
    refresh(analytics, OCTOBER, NOVEMBER)
    found = analytics.execute("SELECT file_id, changed_by FROM revision_causes").fetchall()
    assert found == ([(7, None)] if setting == "7" else [(None, EMBEDDED_LOGIN)])
    assert len(changes(analytics)) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE lead_channels SET lead_rule = 'none' WHERE source = 'Google'", ("lead_channels", "update")),
        ("INSERT INTO channel_aliases VALUES ('yelp ads', 'Google')", ("channel_aliases", "insert")),
        ("UPDATE source_names SET shown = 'Yelp 2' WHERE folded = 'yelp ads'", ("source_names", "update")),
        ("TRUNCATE raw.payments", ("payments", "truncate")),
    ],
)
def test_a_change_of_every_month_names_itself(
    analytics: Connection, change: str, expected: tuple[str, str]
) -> None:
    """A channel rule, an alias, a name or a TRUNCATE revises every closed month that it changes, and is named with its login."""
    for month in ("09", "10"):
        insert_job(analytics, f"G{month}", f"2024-{month}-05")
        insert_job(analytics, f"Y{month}", f"2024-{month}-05", source="Yelp Ads")
        insert_payment(analytics, f"P{month}", f"G{month}", "70.00")
    insert_job(analytics, "R", "2024-08-05", source="Rely")
    refresh(analytics, date(2024, 8, 1), NOVEMBER)
    analytics.execute(change.encode())
    refresh(analytics, date(2024, 8, 1), NOVEMBER)
    assert causes(analytics) == [
        (month, *expected, None, EMBEDDED_LOGIN, None) for month in ("2024-09", "2024-10")
    ]


def test_what_moves_between_sources_is_said_to_move(analytics: Connection) -> None:
    """A revision whose sums are as before tells how much moved, and both sides are kept."""
    insert_job(analytics, "A", "2024-10-05")
    insert_job(analytics, "B", "2024-10-05", source="Angi")
    insert_payment(analytics, "p", "B", "70.00")
    refresh(analytics, OCTOBER, NOVEMBER)
    analytics.execute("UPDATE raw.jobs SET source = 'Retention' WHERE job_id = 'B'")
    refresh(analytics, OCTOBER, NOVEMBER)
    assert [row[1:] for row in changes(analytics)] == [
        ("Angi", "COD", "jobs", "1", "0"),
        ("Angi", "COD", "revenue_gross", "70.00", "0"),
        ("Angi", "COD", "units", "1", "0"),
        ("Retention", "COD", "jobs", "0", "1"),
        ("Retention", "COD", "leads", "0", "1"),
        ("Retention", "COD", "revenue_gross", "0", "70.00"),
        ("Retention", "COD", "units", "0", "1"),
    ]
    assert analytics.execute("SELECT changes FROM reporting.revisions").fetchall() == [
        ("jobs: 1 moved, leads +1, revenue_gross: 70.00 moved, units: 1 moved",)
    ]
    only = "SELECT reporting.changes_of(revision_id, %s, %s) FROM revisions"
    assert analytics.execute(only, [["Angi"], ["COD", "INS"]]).fetchone() == (
        "jobs -1, revenue_gross -70.00, units -1",
    )
    assert analytics.execute(only, [["Google"], ["COD"]]).fetchone() == (None,)


# -- whatever happens meanwhile -----------------------------------------------------------------------------------


def monthly(connection: Connection) -> dict[tuple[Any, ...], Decimal]:
    """Returns every stored measure of monthly_metrics that isn't 0."""
    rows = connection.execute(
        f"SELECT month, source, segment, {', '.join(MEASURES)} FROM monthly_metrics".encode()
    )
    return {
        (*row[:3], measure): Decimal(value)
        for row in rows
        for measure, value in zip(MEASURES, row[3:], strict=True)
        if value
    }


@pytest.mark.random
def test_revisions_are_the_difference_of_the_tables(analytics: Connection) -> None:
    """Through random corrections and refreshes, revisions hold exactly what differs in closed months, and have causes."""
    dice = chance.generator("revisions")
    had_numbers: set[date] = set()
    made = 0
    for _ in range(80 * chance.TIMES):
        for _ in range(dice.randint(0, 3)):
            _correct(analytics, dice)
        start = dice.choice((SEPTEMBER, OCTOBER, NOVEMBER))
        before = monthly(analytics)
        latest = analytics.execute("SELECT coalesce(max(revision_id), 0) FROM revisions").fetchone()
        refresh(analytics, start, dice.choice([m for m in (OCTOBER, NOVEMBER, DECEMBER) if m > start]))
        after = monthly(analytics)
        expected = {
            (*key, before.get(key, Decimal(0)), after.get(key, Decimal(0)))
            for key in before.keys() | after.keys()
            if before.get(key) != after.get(key) and key[0] in had_numbers
        }
        found = analytics.execute(
            "SELECT month, source, segment, measure, old, new FROM revision_changes JOIN revisions USING (revision_id)"
            " WHERE revision_id > %s",
            latest,
        ).fetchall()
        assert set(found) == expected and len(found) == len(expected)
        new = analytics.execute(
            "SELECT month, EXISTS (SELECT FROM revision_causes c WHERE c.revision_id = r.revision_id)"
            " FROM revisions r WHERE revision_id > %s",
            latest,
        ).fetchall()
        assert Counter(new) == Counter((month, True) for month in {key[0] for key in expected})
        had_numbers |= {key[0] for key in after}
        made += len(new)
    assert made >= 30


def _correct(connection: Connection, dice: Random) -> None:
    """Makes one random change of jobs, payments or rules."""
    number = dice.randint(1, 6)
    day = SEPTEMBER + timedelta(dice.randint(0, 90))
    statement: str = dice.choice(
        (
            "INSERT INTO raw.jobs (job_id, type, source, created_at, job_date)"
            " VALUES (%(key)s, %(type)s, %(source)s, now(), %(day)s)"
            " ON CONFLICT (job_id) DO UPDATE SET job_date = excluded.job_date, source = excluded.source",
            "INSERT INTO raw.payments (payment_id, job_ref, paid_date, amount) VALUES (%(key)s, %(other)s, %(day)s, %(paid)s)"
            " ON CONFLICT (payment_id) DO UPDATE SET amount = excluded.amount",
            "UPDATE raw.payments SET amount = amount + 20 WHERE payment_id > %(key)s",
            "UPDATE raw.jobs SET type = %(type)s WHERE job_id > %(key)s",
            "DELETE FROM raw.jobs WHERE job_id = %(key)s",
            "DELETE FROM raw.payments WHERE payment_id = %(key)s",
            "UPDATE lead_channels SET lead_rule = %(rule)s WHERE source = 'Google'",
        )
    )
    connection.execute(
        statement.encode(),
        {
            "key": f"J{number}",
            "other": f"J{dice.randint(1, 6)}",
            "type": dice.choice(("COD Service", "INS Repair")),
            "source": dice.choice(("Google", "Angi")),
            "day": day,
            "paid": dice.randint(-50, 400),
            "rule": dice.choice(("jobs", "units", "none")),
        },
    )


def test_a_change_that_commits_just_before_the_computation_is_a_cause(analytics_url: str) -> None:
    """What a refresh has computed from is what it answers: a change that commits while it waits keeps its cause."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as refresher,
        psycopg.connect(analytics_url, autocommit=True) as holder,
        psycopg.connect(analytics_url, autocommit=True) as editor,
    ):
        insert_job(editor, "A", "2024-10-05")
        refresh(refresher, OCTOBER, NOVEMBER)
        with refresh_held(refresher, holder, OCTOBER, before="daily_metrics"):
            insert_payment(editor, "p", "A", "10.00")
        assert [row[-1] for row in changes(editor)] == ["10.00"]
        assert causes(editor) == [("2024-10", "payments", "insert", None, EMBEDDED_LOGIN, 1)]
        assert stale_months(editor) == []


def test_a_change_that_commits_after_the_computation_belongs_to_the_next_revision(analytics_url: str) -> None:
    """A change that commits between days and months is in the numbers and causes of the next refresh only."""
    with (
        psycopg.connect(analytics_url, autocommit=True) as refresher,
        psycopg.connect(analytics_url, autocommit=True) as holder,
        psycopg.connect(analytics_url, autocommit=True) as editor,
    ):
        insert_job(editor, "A", "2024-10-05")
        refresh(refresher, OCTOBER, NOVEMBER)
        insert_payment(editor, "p", "A", "10.00")
        with refresh_held(refresher, holder, OCTOBER, "first"):
            editor.execute("UPDATE raw.payments SET amount = 25")
        assert [entry.month for entry in stale_months(editor)] == [OCTOBER]
        refresh(refresher, OCTOBER, NOVEMBER, "second")
        assert revisions(editor) == [("2024-10", "first"), ("2024-10", "second")]
        assert [row[-2:] for row in changes(editor)] == [("0.00", "10.00"), ("10.00", "25.00")]
        assert [row[2] for row in causes(editor)] == ["insert", "update"]


_KILLED = """
import os, signal, sys
from datetime import date
import psycopg
from crm_analytics.analytics.warehouse import refresh as module
original = getattr(module, sys.argv[2])
def killed(*args):
    result = original(*args)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, sys.argv[2], killed)
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    module.refresh(connection, date(2024, 10, 1), date(2024, 11, 1), "killed")
"""


@pytest.mark.parametrize("after", ["closed_months", "_log", "record_revisions", "_forget_empty_months"])
def test_killed_between_queue_and_revision(landing: Landing, analytics_url: str, after: str) -> None:
    """A kill loses neither the queue nor the revision: the next refresh makes exactly one, with its cause."""
    database = landing.connection
    landing.write("jobs/j.csv", jobs_file("Tue Oct 15 2024"))
    landing.load("jobs")
    refresh(database, OCTOBER, NOVEMBER)
    landing.write("payments/late.csv", payments_file(("p1", "1", "120.00")))
    landing.load("payments")
    before = monthly(database)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, analytics_url, after],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).parents[3],
        env=dict(os.environ),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # the server may still be about to end the session; its locks say when it has
    database.execute("BEGIN; LOCK TABLE analytics.daily_metrics, analytics.revisions; COMMIT")
    assert (revisions(database), monthly(database)) == ([], before)
    assert [entry.month for entry in stale_months(database)] == [OCTOBER]
    refresh(database, OCTOBER, NOVEMBER, "repeated")
    assert revisions(database) == [("2024-10", "repeated")]
    assert causes(database) == [("2024-10", "payments", "insert", "payments/late.csv", None, 1)]
    assert stale_months(database) == []
