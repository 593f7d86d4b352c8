"""What `diff` says of files and SQL, worked out by hand; what it leaves behind; and whom it keeps waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics import diff as module
from crm_analytics.analytics.diff import CannotDiff, ChangedSum, Difference, diff_files, diff_sql
from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.loading.load import only_load_of
from crm_analytics.analytics.warehouse.refresh import refresh
from crm_analytics.core.locks import LockHeld
from crm_analytics_tests.analytics.held_refresh import refresh_held
from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    JOBS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    job,
    text,
    write_export,
)
from crm_analytics_tests.analytics.warehouse.test_refresh import monthly
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

Connection = psycopg.Connection[Any]
OCTOBER, NOVEMBER, DECEMBER, FEBRUARY = (
    date(2024, 10, 1),
    date(2024, 11, 1),
    date(2024, 12, 1),
    date(2025, 2, 1),
)
#: J1 is a COD Service of November 15, J2 one of November 20, both from Google; of J1, 80.00 are paid.
TWO_JOBS = text(JOBS, [job(1, "J1"), job(2, "J2", Created="Wed Nov 20 2024")])
PAID_80 = text(PAYMENTS, [("P1", "1", "11/16/2024", "80.00", "Cash", "Paid", "")])
#: 30.00 more for J1 make 110.00, which is a repair.
PAID_30 = text(PAYMENTS, [("P2", "1", "12/02/2024", "30.00", "Cash", "Paid", "")])


@pytest.fixture
def landing(tmp_path: Path, analytics: Connection) -> Landing:
    """A landing folder with two jobs and a payment, which are loaded and computed."""
    landing = Landing(tmp_path, analytics)
    landing.write("jobs/a.csv", TWO_JOBS, day=3)
    landing.write("payments/a.csv", PAID_80, day=3)
    for source in ("jobs", "payments"):
        landing.load_one(source)
    refresh(analytics, NOVEMBER, DECEMBER)
    return landing


@pytest.fixture
def asking(analytics_url: str) -> Iterator[Connection]:
    """The session of a diff."""
    with psycopg.connect(analytics_url, autocommit=True) as connection:
        yield connection


def diff(
    asking: Connection, landing: Landing, *paths: Path, start_month: date = date(2024, 1, 1)
) -> Difference:
    return diff_files(asking, landing.folder, paths, timezone=NEW_YORK, start_month=start_month)


def diff_of(asking: Connection, statements: str) -> Difference:
    return diff_sql(asking, statements, start_month=date(2024, 1, 1))


def write(folder: Path, name: str, content: str, day: int = 9) -> Path:
    """Writes a file outside the landing folder."""
    return write_export(folder, name, content, day=day)


def numbers(found: Difference) -> list[tuple[str, str, str, str]]:
    """Returns source, measure, old and new of one month's changes."""
    assert len({change.month for change in found.changes}) <= 1
    return [(c.source, c.measure, str(c.old), str(c.new)) for c in found.changes]


# -- what it says ------------------------------------------------------------------------------------------------


def test_late_payment_that_makes_a_repair(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """A payment changes the month of its job, here from 80.00 to 110.00 and from no repair to one, and no other."""
    found = diff(asking, landing, write(tmp_path / "downloads", "late.csv", PAID_30))
    assert found.months == [NOVEMBER]
    assert found.changes == [
        ChangedSum(NOVEMBER, "Google", "repairs", Decimal(0), Decimal(1)),
        ChangedSum(NOVEMBER, "Google", "revenue_gross", Decimal(80), Decimal(110)),
    ]
    assert found.changes[1].change == Decimal("30.00")
    (file,) = found.files
    assert (file.result.path, file.result.status, file.result.counts.inserted) == ("late.csv", "loaded", 1)
    assert (found.moved, found.stale_before, found.not_computed) == ([], [], [])


def test_rule_that_gives_a_source_leads_and_costs(asking: Connection, landing: Landing) -> None:
    """A channel rule makes every month stale; what differs is told: two units, 35.00 each, from Google's own rule to this."""
    found = diff_of(
        asking,
        "UPDATE analytics.lead_channels SET lead_rule = 'units', cost_rule = 'per_lead', cost_per_lead = 35"
        " WHERE source = 'Google'",
    )
    assert numbers(found) == [("Google", "cost", "0.00", "70.00")]


def test_alias_moves_numbers_from_one_source_to_another(asking: Connection, landing: Landing) -> None:
    """Both sources are told: the one that loses its rows, and the one that gets them."""
    found = diff_of(asking, "INSERT INTO analytics.channel_aliases VALUES ('google', 'Retention') ON CONFLICT (alias_folded)"
                    " DO UPDATE SET source = excluded.source")  # fmt: skip
    assert [row[1:] for row in numbers(found) if row[0] == "Google"] == [
        ("jobs", "2", "0"), ("units", "2", "0"), ("leads", "2", "0"), ("revenue_gross", "80.00", "0"),
    ]  # fmt: skip
    assert ("Retention", "jobs", "0", "2") in numbers(found)


def test_other_days_with_the_same_sums_are_told(asking: Connection, landing: Landing) -> None:
    """A job that moves within its month changes no sum, but charts of days: that is a difference."""
    found = diff_of(asking, "UPDATE raw.jobs SET job_date = '2024-11-21' WHERE job_id = 'J2'")
    assert (found.changes, found.moved, found.differs) == ([], [(NOVEMBER, "Google")], True)


def test_nothing_differs(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """A file that says what is known, and SQL that changes nothing, make no difference."""
    assert not diff(asking, landing, write(tmp_path / "downloads", "again.csv", PAID_80 + "\n")).differs
    assert not diff_of(asking, "UPDATE raw.jobs SET technician = 'Bob'; -- no metric has it\n").differs
    assert not diff_of(asking, "").differs


def test_pending_changes_are_included_and_named(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """What already waits for a refresh is part of the new number, and the month is named; a month without difference isn't."""
    landing.connection.execute("UPDATE raw.payments SET amount = 81 WHERE payment_id = 'P1'")
    found = diff(asking, landing, write(tmp_path / "downloads", "late.csv", PAID_30))
    assert ("Google", "revenue_gross", "80.00", "111.00") in numbers(found)
    assert found.stale_before == [NOVEMBER]
    assert diff_of(asking, "UPDATE raw.payments SET amount = 80").stale_before == []


def test_months_that_no_refresh_computes_are_named(
    asking: Connection, landing: Landing, tmp_path: Path
) -> None:
    """Rows before START_MONTH load, but their months are not computed: no number is foretold for them."""
    path = write(tmp_path / "downloads", "late.csv", PAID_30)
    found = diff(asking, landing, path, start_month=DECEMBER)
    assert (found.months, found.changes, found.not_computed) == ([], [], [NOVEMBER])
    assert diff_of(asking, "UPDATE raw.jobs SET job_date = '2099-01-01'").not_computed == [date(2099, 1, 1)]


def test_export_times_and_who_tells_them(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """The place among other exports is told by the name, else by the modification time, else by what is replaced."""
    named = write(tmp_path / "downloads", "payments_2025-01-20T10_00_00Z.csv", PAID_30)
    dated = write(tmp_path / "downloads", "late.csv", PAID_30.replace("P2", "P3"), day=9)
    replacing = landing.write("payments/a.csv", PAID_80.replace("80.00", "85.00"), day=2)
    found = diff(asking, landing, named, dated, replacing)
    assert {f.result.path: (f.exported_at, f.exported_at_from) for f in found.files} == {
        named.name: (datetime(2025, 1, 20, 10, tzinfo=UTC), "name"),
        dated.name: (datetime(2025, 1, 9, 12, tzinfo=UTC), "mtime"),
        "payments/a.csv": (datetime(2025, 1, 3, 12, tzinfo=UTC), "before"),
    }
    assert ("Google", "revenue_gross", "80.00", "145.00") in numbers(found)


def test_export_time_of_content_that_was_seen_before_stays(asking: Connection, landing: Landing) -> None:
    """A content that is read again, by a newer declaration, keeps its place, whatever its modification time is by now."""
    landing.connection.execute(
        "UPDATE raw.source_files SET declaration_version = 0 WHERE path = 'payments/a.csv'"
    )
    for day in (1, 20):
        path = landing.write("payments/a.csv", PAID_80, day=day)
        (file,) = diff(asking, landing, path).files
        assert (file.exported_at, file.exported_at_from) == (datetime(2025, 1, 3, 12, tzinfo=UTC), "seen")
    # other content in between, and it comes back: now it counts from its modification time, or after what it replaces
    landing.write("payments/a.csv", PAID_80.replace("80.00", "85.00"), day=10)
    landing.load_one("payments")
    for day, told in ((20, (20, "mtime")), (1, (10, "before"))):
        path = landing.write("payments/a.csv", PAID_80, day=day)
        (file,) = diff(asking, landing, path).files
        assert (file.exported_at, file.exported_at_from) == (
            datetime(2025, 1, told[0], 12, tzinfo=UTC),
            told[1],
        )


def test_older_export_changes_only_what_newer_ones_left_open(
    asking: Connection, landing: Landing, tmp_path: Path
) -> None:
    """A late file elsewhere is compared with the newer files of the landing folder: P1 stays 80.00, and P2 comes."""
    both = text(
        PAYMENTS,
        [
            ("P1", "1", "11/16/2024", "5.00", "Cash", "Paid", ""),
            ("P2", "2", "11/16/2024", "7.00", "", "Paid", ""),
        ],
    )
    found = diff(asking, landing, write(tmp_path / "downloads", "old.csv", both, day=1))
    assert numbers(found) == [("Google", "revenue_gross", "80.00", "87.00")]


def test_files_that_are_not_loaded_are_told(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """A refused file, one of no source and one that is loaded already change nothing; the first two are refusals."""
    no_source = write(tmp_path / "downloads", "list.csv", "a,b\n1,2\n")
    no_columns = write(tmp_path / "downloads", "jobs/bad.csv", "a,b\n1,2\n")
    found = diff(asking, landing, landing.folder / "jobs/a.csv", no_source, no_columns)
    told = {file.result.path: (file.result.status, file.is_refused) for file in found.files}
    assert told == {
        "jobs/a.csv": ("known", False),
        "list.csv": ("unrecognized", True),
        "jobs/bad.csv": ("refused", True),
    }
    assert not found.differs
    landing.write("jobs/bad.csv", "a,b\n1,2\n")
    landing.load("jobs")
    (again,) = diff(asking, landing, landing.folder / "jobs/bad.csv").files
    assert (again.result.status, again.is_refused) == ("refused", True)


@pytest.mark.parametrize(
    "name", [".payments.csv", "~payments.csv", "payments.csv.part", "payments.tmp", "payments.csv~", ".old/payments.csv"]
)  # fmt: skip
@pytest.mark.parametrize("inside", [True, False])
def test_names_that_loads_ignore_are_refused(
    asking: Connection, landing: Landing, tmp_path: Path, name: str, inside: bool
) -> None:
    """What no load would see changes no number, in the landing folder as elsewhere, and the reason is its name."""
    folder = landing.folder if inside else tmp_path / ".downloads"
    good = write(tmp_path / ".downloads", "late.csv", PAID_30)
    ignored = write(folder / "payments", name, PAID_30)
    called = Path(name).parts[0]
    found = diff(asking, landing, ignored, good)
    assert [(f.result.path, f.is_refused) for f in found.files] == [
        (f"payments/{name}", True),
        ("late.csv", False),
    ]
    assert (found.files[0].result.message or "").startswith(f"no load sees what is called {called}: ")
    assert (
        examine(ignored, timezone=NEW_YORK, landing=landing.folder).refusal == found.files[0].result.message
    )
    assert ("Google", "revenue_gross", "80.00", "110.00") in numbers(found)


def test_one_file_named_twice_is_one(
    asking: Connection, landing: Landing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a file is named, by another path or by a link, it is compared once."""
    path = write(tmp_path / "downloads", "late.csv", PAID_30)
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    monkeypatch.chdir(path.parent)
    names = (path, path.parent / ".." / "downloads" / "late.csv", Path("late.csv"), link)
    found = diff(asking, landing, *names)
    assert [file.result.path for file in found.files] == ["late.csv"]
    assert ("Google", "revenue_gross", "80.00", "110.00") in numbers(found)


def test_mistakes_are_told(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """Two files for one path, a file that is gone and another timezone end with a sentence."""
    one, other = (write(tmp_path / name, "late.csv", PAID_30) for name in ("one", "other"))
    with pytest.raises(CannotDiff, match=r"would both be late\.csv in the landing folder"):
        diff(asking, landing, one, other)
    with pytest.raises(CannotDiff, match="No such file"):
        diff(asking, landing, tmp_path / "gone.csv")
    with pytest.raises(
        CannotDiff, match="dates are in America/New_York, but BUSINESS_TIMEZONE is Europe/Oslo"
    ):
        diff_files(
            asking, landing.folder, [one], timezone=module.ZoneInfo("Europe/Oslo"), start_month=NOVEMBER
        )


def test_rule_of_a_migration_is_foretold(asking: Connection, landing: Landing) -> None:
    """A function is no row, so nothing notes its change: a migration is tried with the call that follows each of them."""
    rule = """
        CREATE OR REPLACE FUNCTION analytics.repair_rule(type_folded text, paid numeric) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE WHEN paid > 50 THEN 'paid_service' END;
    """
    assert not diff_of(asking, rule).differs
    found = diff_of(asking, rule + "SELECT analytics.queue_every_month('0007');")
    assert numbers(found) == [("Google", "repairs", "0", "1")]


# -- what it leaves behind -----------------------------------------------------------------------------------


def traces(connection: Connection, folder: Path) -> dict[str, Any]:
    """Returns every row of every table with its version, the statistics, the locks, and the files of the landing folder."""
    tables = [
        name
        for (name,) in connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = ANY ('{raw, analytics}'::regnamespace[]) ORDER BY 1"
        )
    ]
    found: dict[str, Any] = {
        name: connection.execute(
            f"SELECT xmin::text, t::text FROM {name} t ORDER BY ctid".encode()
        ).fetchall()
        for name in tables
    }
    for name, query in {
        "pages": "SELECT oid::regclass::text, relpages, reltuples, relfilenode FROM pg_class"
        " WHERE relnamespace = ANY ('{raw, analytics}'::regnamespace[]) ORDER BY 1",
        "statistics": "SELECT s::text FROM pg_stats s WHERE schemaname IN ('raw', 'analytics') ORDER BY 1",
        "functions": "SELECT oid::regprocedure::text, xmin::text FROM pg_proc"
        " WHERE pronamespace = ANY ('{raw, analytics}'::regnamespace[]) ORDER BY 1",
        "locks": "SELECT locktype, mode FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND (locktype = 'advisory' OR pid <> pg_backend_pid())",
        "temporary": "SELECT relname FROM pg_class WHERE relpersistence = 't'",
    }.items():
        found[name] = connection.execute(query).fetchall()
    found["files"] = sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))
    return found


@pytest.fixture
def without_autovacuum(analytics: Connection) -> None:
    """Nobody else changes statistics."""
    for (name,) in analytics.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = ANY ('{raw, analytics}'::regnamespace[])"
    ).fetchall():
        analytics.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = off)".encode())


def many_jobs(rows: int) -> str:
    return text(JOBS, [job(n, f"N{n}", Source="Nextdoor Ads") for n in range(100, 100 + rows)])


@pytest.mark.usefixtures("without_autovacuum")
def test_files_leave_no_trace(asking: Connection, landing: Landing, tmp_path: Path) -> None:
    """Ledger, quarantine, rows, names, queue, statistics, locks and landing folder are as before, of known and new files."""
    # after these, statistics say that the tables have a few rows, and every load that links would correct them
    landing.connection.execute("ANALYZE raw.jobs, raw.payments, raw.source_files")
    bad = text(
        PAYMENTS,
        [
            ("P9", "1", "13/45/2024", "30.00", "Cash", "Paid", ""),
            ("P8", "101", "11/16/2024", "1", "", "", ""),
        ],
    )
    files = [
        write(tmp_path / "downloads", "jobs/many.csv", many_jobs(3000)),
        write(tmp_path / "downloads", "payments/bad.csv", bad),
        landing.write("payments/a.csv", PAID_80.replace("80", "90"), day=4),
    ]
    known = landing.write("jobs/a.csv", TWO_JOBS, day=5)
    before = traces(landing.connection, landing.folder)
    found = diff(asking, landing, *files, known)
    assert {file.result.status for file in found.files} == {"loaded", "known"}
    assert sum(file.result.counts.quarantined for file in found.files) == 1
    assert ("Nextdoor Ads", "jobs", "0", "3000") in numbers(found)
    assert traces(landing.connection, landing.folder) == before
    # the same holds for `check`, which tries the load, too
    assert examine(files[0], timezone=NEW_YORK, connection=asking).database is not None
    assert traces(landing.connection, landing.folder) == before


@pytest.mark.usefixtures("without_autovacuum")
@pytest.mark.parametrize(
    ("statements", "told"),
    [
        ("UPDATE raw.jobs SET source = 'X'; COMMIT; UPDATE raw.jobs SET source = 'Y'", "Leave out BEGIN, COMMIT"),
        ("UPDATE raw.jobs SET source = 'X'; ROLLBACK; UPDATE raw.jobs SET source = 'Y'", "Leave out BEGIN, COMMIT"),
        ("BEGIN; UPDATE raw.jobs SET source = 'X'; END", "Leave out BEGIN, COMMIT"),
        ("UPDATE raw.jobs SET source = 'X'; PREPARE TRANSACTION 'x'", "Leave out BEGIN, COMMIT"),
        ("SAVEPOINT a; UPDATE raw.jobs SET source = 'X'; ROLLBACK TO a", "Leave out BEGIN, COMMIT"),
        ("DO $$ BEGIN UPDATE raw.jobs SET source = 'X'; COMMIT; END $$", "Leave out BEGIN, COMMIT"),
        ("DO $$ BEGIN UPDATE raw.jobs SET source = 'X'; ROLLBACK; END $$", "Leave out BEGIN, COMMIT"),
        ("COPY raw.jobs FROM stdin", "COPY from stdin"),
        ("UPDATE raw.jobs SET source = 'X';\n\nSELEKT 1;", 'line 3: syntax error at or near "SELEKT"'),
        ("UPDATE raw.jobs SET source = 'X';\nUPDATE raw.jos SET source = 'Y'", 'line 2: relation "raw.jos" does not'),
        ("UPDATE raw.jobs SET source = 'it''s 100%% \\'; SELECT 1 / 0", "the SQL fails: division by zero. Nothing was"),
        ("VACUUM raw.jobs", "VACUUM cannot run inside a transaction block"),
        # errors that psycopg takes for operational ones
        ("UPDATE reporting.sources SET source = 'X'", 'the SQL fails: cannot update view "sources"; Views'),
        ("SELECT lastval()", "the SQL fails: lastval is not yet defined in this session. Nothing was"),
        (
            "CREATE OR REPLACE FUNCTION analytics.is_unit(type_folded text) RETURNS boolean LANGUAGE sql IMMUTABLE"
            " RETURN 1 / length(left(type_folded, 0)) > 0; SELECT analytics.queue_every_month('try')",
            "with the SQL, the months can't be computed: division by zero. Nothing was",
        ),
        (
            "INSERT INTO analytics.lead_channels VALUES ('Yelp', '2024-01-01', 'elocals_paid', 'none')",
            "rule elocals_paid can belong to one channel only, found: Yelp, eLocals; Its rows would be counted once for",
        ),
        (
            "CREATE TABLE public.late (i int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO public.late VALUES (1), (1)",
            "duplicate key value violates unique constraint",
        ),
    ],
)  # fmt: skip
def test_sql_that_cannot_be_tried_leaves_nothing(
    asking: Connection, landing: Landing, statements: str, told: str
) -> None:
    """SQL that fails, or ends its transaction in whichever way, is refused in a sentence, and nothing of it stays."""
    before = traces(landing.connection, landing.folder)
    with pytest.raises(CannotDiff) as refusal:
        diff_of(asking, statements)
    assert told in str(refusal.value)
    assert str(refusal.value).endswith("Nothing was changed")
    assert traces(landing.connection, landing.folder) == before


SET_BACK = """
    DO $$ BEGIN
        EXECUTE 'SELECT set' || 'val(''raw.source_files_file_id_seq'', 1, false)';
        EXECUTE 'SELECT set' || 'val(''analytics.refresh_log_refresh_id_seq'', 1)';
    END $$;
"""


NUMBERS = "SELECT nextval('raw.source_files_file_id_seq'), nextval('analytics.refresh_log_refresh_id_seq')"


@pytest.mark.usefixtures("without_autovacuum")
def test_sequences_that_are_set_back_are_set_forward_again(asking: Connection, landing: Landing) -> None:
    """setval survives a rollback, and text can hide it: later rows still get new numbers, also if the SQL fails then."""
    before = traces(landing.connection, landing.folder)
    (first,) = landing.rows(NUMBERS)
    with pytest.raises(CannotDiff, match=r"names setval, and no rollback takes back .* Nothing was changed"):
        diff_of(asking, "SELECT setval('raw.source_files_file_id_seq', 1)")
    with pytest.raises(CannotDiff) as refusal:
        diff_of(asking, SET_BACK)
    assert str(refusal.value).startswith(
        "the SQL sets back analytics.refresh_log_refresh_id_seq, raw.source_files_file_id_seq, and no rollback takes"
    )
    assert landing.rows(NUMBERS) == [tuple(number + 1 for number in first)]
    with pytest.raises(CannotDiff, match="the SQL fails: division by zero"):
        diff_of(asking, SET_BACK + "SELECT 1 / 0")
    assert landing.rows(NUMBERS) == [tuple(number + 2 for number in first)]
    assert traces(landing.connection, landing.folder) == before


def test_a_lost_server_is_no_fault_of_the_sql(asking: Connection, landing: Landing) -> None:
    """A session that an administrator ends says so: correcting the SQL wouldn't help."""
    with pytest.raises(psycopg.OperationalError, match="terminating connection"):
        diff_of(asking, "SELECT pg_terminate_backend(pg_backend_pid()); SELECT pg_sleep(9)")


@pytest.mark.usefixtures("without_autovacuum")
def test_sql_leaves_no_trace(asking: Connection, landing: Landing) -> None:
    """Rules, aliases, names, rows, functions and tables are as before, though the SQL changed all of them."""
    before = traces(landing.connection, landing.folder)
    found = diff_of(
        asking,
        """
        UPDATE analytics.lead_channels SET lead_rule = 'none', cost_rule = 'none', cost_per_lead = NULL;
        TRUNCATE analytics.channel_aliases;
        UPDATE analytics.source_names SET shown = 'Yelp!' WHERE folded = 'yelp';
        DELETE FROM raw.payments;
        CREATE OR REPLACE FUNCTION analytics.is_unit(type_folded text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN false;
        CREATE TABLE public.made AS SELECT 1;
        SET lock_timeout = 0;
        SET search_path = public;
        """,
    )
    assert ("Google", "leads", "2", "0") in numbers(found)
    assert traces(landing.connection, landing.folder) == before


# -- whom it keeps waiting -----------------------------------------------------------------------------------


@contextmanager
def held(connection: Connection, statement: str) -> Iterator[None]:
    """Holds what a statement locks."""
    with connection.transaction(force_rollback=True):
        connection.execute(statement.encode())
        yield


def test_gives_up_while_a_load_of_the_source_runs(
    asking: Connection, landing: Landing, tmp_path: Path
) -> None:
    """Who holds a source's load lock is not waited for; other sources can be compared meanwhile."""
    path = write(tmp_path / "downloads", "late.csv", PAID_30)
    leads = text(ELOCALS, [("A", "2024-11-05", "", "10", "", "")])
    other = write(tmp_path / "downloads", "elocals_leads/a.csv", leads)
    with only_load_of(landing.connection, "payments", print):
        with pytest.raises(
            LockHeld, match=r"a load, rebuild or diff of payments is at work\. Nothing was changed"
        ):
            diff(asking, landing, path)
        with pytest.raises(LockHeld, match="of payments is at work"):
            diff_of(asking, "SELECT 1")
        assert diff(asking, landing, other).differs
    assert diff(asking, landing, path).differs


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT raw.lock_links()",
        "SELECT pg_advisory_xact_lock(hashtextextended('analytics:source_names', 0))",
        "LOCK TABLE raw.payments IN EXCLUSIVE MODE",
        "LOCK TABLE raw.source_files IN EXCLUSIVE MODE",
        "LOCK TABLE analytics.daily_metrics IN ACCESS EXCLUSIVE MODE",
    ],
)
def test_gives_up_while_others_hold_a_lock(
    asking: Connection, landing: Landing, tmp_path: Path, statement: str
) -> None:
    """Any lock that another session keeps ends a diff with a sentence, and nothing of it stays."""
    path = write(tmp_path / "downloads", "late.csv", PAID_30)
    more = write(tmp_path / "downloads", "jobs/many.csv", many_jobs(1))
    with held(landing.connection, statement):
        with pytest.raises(
            LockHeld, match=r"diff doesn't keep others waiting\. Nothing was changed: try again"
        ):
            diff(asking, landing, path, more)
        assert advisory_locks_of(asking) == 0
    assert diff(asking, landing, path, more).differs


def advisory_locks_of(connection: Connection) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("how", ["found", "refused", "interrupted"])
def test_locks_of_loads_are_given_back(
    asking: Connection, landing: Landing, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A session lock survives a rollback: it is unlocked however a diff ends."""
    if how == "interrupted":

        def interrupted(*_: object) -> Difference:
            assert advisory_locks_of(asking) >= len(module.SOURCES)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "_compare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            diff_of(asking, "DELETE FROM raw.payments")
    elif how == "refused":
        with pytest.raises(CannotDiff):
            diff_of(asking, "COMMIT")
    else:
        assert diff_of(asking, "DELETE FROM raw.payments").differs
    assert advisory_locks_of(asking) == 0


@pytest.mark.parametrize(
    ("deadlock_timeout", "patience"), [("1s", "500ms"), ("300ms", "150ms"), ("1ms", "1ms")]
)
def test_waits_less_than_deadlocks_are_looked_for(
    asking: Connection, landing: Landing, deadlock_timeout: str, patience: str
) -> None:
    """A diff gives up before PostgreSQL looks for a deadlock in which it waits."""
    asking.execute(f"SET deadlock_timeout = '{deadlock_timeout}'".encode())
    with pytest.raises(CannotDiff, match=f"it is {patience}\\. Nothing"):
        diff_of(asking, "DO $$ BEGIN RAISE 'it is %', current_setting('lock_timeout'); END $$")


def test_waits_for_loads_no_longer_than_for_others(asking: Connection, landing: Landing) -> None:
    """The lock of a load, which is taken outside the transaction, is waited for as long as every other lock."""
    asking.execute("SET deadlock_timeout = '300ms'")
    with only_load_of(landing.connection, "calls", print), pytest.raises(LockHeld) as refusal:
        diff_of(asking, "SELECT 1")
    assert str(refusal.value.__cause__).startswith("waited 0.15 seconds for the lock analytics:load:calls")


def test_gives_up_during_a_refresh_which_goes_on(
    asking: Connection, landing: Landing, analytics_url: str, tmp_path: Path
) -> None:
    """In the middle of a refresh, SQL is not tried, and files are: the refresh holds nothing that a load needs."""
    path = write(tmp_path / "downloads", "late.csv", PAID_30)
    landing.connection.execute("UPDATE raw.payments SET amount = 81")
    with psycopg.connect(analytics_url, autocommit=True) as refresher:
        landing.connection.execute("UPDATE raw.jobs SET job_date = '2024-10-31' WHERE job_id = 'J2'")
        with refresh_held(refresher, landing.connection, OCTOBER):
            with pytest.raises(LockHeld, match="a load, a refresh or another change holds what diff needs"):
                diff_of(asking, "UPDATE analytics.lead_channels SET lead_segment = 'COD'")
            assert ("Google", "revenue_gross", "80.00", "111.00") in [
                row for row in numbers(diff(asking, landing, path)) if row[1] == "revenue_gross"
            ]
    assert monthly(landing.connection)[0][:4] == ("2024-10", "Google", "COD", 1)


def test_refresh_runs_in_the_middle_of_a_diff_of_files(
    asking: Connection, landing: Landing, analytics_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diff of files holds nothing that a refresh waits for; what commits meanwhile is seen as a whole."""
    compare = module._compare
    landing.connection.execute("UPDATE raw.payments SET amount = 81")

    def after_a_refresh(*arguments: Any) -> Difference:
        with psycopg.connect(analytics_url, autocommit=True) as refresher:
            refresher.execute("SET lock_timeout = '60s'")
            refresh(refresher, NOVEMBER, FEBRUARY)
        return compare(*arguments)

    monkeypatch.setattr(module, "_compare", after_a_refresh)
    files = [
        write(tmp_path / "downloads", "late.csv", PAID_30),
        write(tmp_path / "downloads", "jobs/many.csv", many_jobs(2)),
    ]
    found = diff(asking, landing, *files)
    assert ("Google", "revenue_gross", "81.00", "111.00") in numbers(found)
    assert ("Nextdoor Ads", "jobs", "0", "2") in numbers(found)
    assert found.stale_before == []


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Starts work in a thread; returns it with the list that gets what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_refresh_waits_for_a_diff_of_sql_and_then_succeeds(
    asking: Connection, landing: Landing, analytics_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with every open change of rules: the refresh waits, and computes without what was only tried."""
    compare = module._compare
    started: list[tuple[threading.Thread, list[BaseException]]] = []
    landing.connection.execute("UPDATE raw.payments SET amount = 81")
    with psycopg.connect(analytics_url, autocommit=True) as refresher:

        def with_a_refresh_waiting(*arguments: Any) -> Difference:
            started.append(in_background(lambda: refresh(refresher, NOVEMBER, DECEMBER)))
            wait_until_blocked(landing.connection, "relation")
            return compare(*arguments)

        monkeypatch.setattr(module, "_compare", with_a_refresh_waiting)
        found = diff_of(
            asking, "UPDATE analytics.lead_channels SET lead_rule = 'none' WHERE source = 'Google'"
        )
        ((thread, raised),) = started
        thread.join(PATIENCE)
    assert raised == []
    assert ("Google", "leads", "2", "0") in numbers(found)
    assert monthly(landing.connection) == [("2024-11", "Google", "COD", 2, 2, 0, 2, "81.00")]


def test_rules_changed_in_any_order_cannot_deadlock_a_refresh(
    asking: Connection, landing: Landing, analytics_url: str
) -> None:
    """The SQL changes an alias, waits until a refresh waits for long enough to look for a deadlock soon, and changes a rule.

    A refresh that had got the first of the two tables would wait for the second, look, find the diff that waits for the
    first, and end. So a diff has both from its beginning.
    """
    statements = """
        INSERT INTO analytics.channel_aliases VALUES ('angi', 'Retention');
        DO $$ BEGIN
            WHILE NOT EXISTS (
                SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                WHERE d.datname = current_database() AND l.locktype = 'relation' AND NOT l.granted
            ) LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
            PERFORM pg_sleep(0.8);
        END $$;
        UPDATE analytics.lead_channels SET lead_rule = 'none' WHERE source = 'Google';
    """
    with psycopg.connect(analytics_url, autocommit=True) as refresher:
        found: list[Difference] = []
        thread, raised = in_background(lambda: found.append(diff_of(asking, statements)))
        alias = (
            "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND granted"
            " AND relation = 'analytics.channel_aliases_pkey'::regclass)"
        )
        while landing.rows(alias, [asking.info.backend_pid]) != [(True,)]:
            assert thread.is_alive(), raised
        refresh(refresher, NOVEMBER, DECEMBER)
        thread.join(PATIENCE)
    assert raised == []
    assert ("Google", "leads", "2", "0") in numbers(found[0])
