"""Bulk loads: the same tables, definitions and ledger as the ordinary way leaves, whatever goes wrong, and when."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from crm_analytics.analytics.ingest.loading import bulk, load_file, merge_rows
from crm_analytics.analytics.ingest.loading.landing import pending
from crm_analytics.analytics.ingest.loading.load import load_source, try_file
from crm_analytics.analytics.ingest.loading.rebuild import rebuilt
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics_tests import chance
from crm_analytics_tests.analytics.ingest.landing_folder import (
    JOBS,
    NEW_YORK,
    PAYMENTS,
    Landing,
    job,
    text,
    text_of,
)
from crm_analytics_tests.conftest import PATIENCE, wait_until_blocked

NewDatabase = Callable[..., str]
#: The state that loading a source leaves, and the number of steps of its bulk load.
Whole = Callable[[str, bool], tuple[dict[str, Any], int]]

#: Everything that a bulk load takes off and makes again, and what else hangs on it.
DEFINITIONS = """
    SELECT 'index', c.relname, pg_get_indexdef(c.oid), obj_description(c.oid, 'pg_class'), pg_get_userbyid(c.relowner)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid::regclass::text ~ %(tables)s
    UNION ALL
    SELECT 'constraint', conname, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint'), contype::text
    FROM pg_constraint WHERE conrelid::regclass::text ~ %(tables)s OR confrelid::regclass::text ~ %(tables)s
    UNION ALL
    SELECT 'trigger', tgname, pg_get_triggerdef(oid), obj_description(oid, 'pg_trigger'), tgenabled::text
    FROM pg_trigger WHERE tgrelid::regclass::text ~ %(tables)s AND NOT tgisinternal
    UNION ALL
    SELECT 'foreign key trigger', tgrelid::regclass::text, tgfoid::regproc::text, NULL, tgenabled::text
    FROM pg_trigger WHERE tgrelid::regclass::text ~ %(tables)s AND tgisinternal
    UNION ALL
    SELECT 'column', attrelid::regclass || '.' || attname, format_type(atttypid, atttypmod), attnotnull::text, NULL
    FROM pg_attribute WHERE attrelid::regclass::text ~ %(tables)s AND attnum > 0
    ORDER BY 1, 2, 3
"""


def definitions(landing: Landing) -> list[tuple[Any, ...]]:
    return landing.rows(DEFINITIONS, {"tables": r"^(raw\.)?(jobs|payments|calls)$"})


def state(landing: Landing) -> dict[str, Any]:
    """Returns everything that loads write, without ids and times."""
    return {
        **{name: landing.table(name) for name in ("raw.jobs", "raw.payments", "raw.calls")},
        "files": landing.rows(
            "SELECT path, status, message, records_read, inserted, updated, unchanged, duplicates, superseded,"
            " quarantined, first_date, last_date, warnings, accepted_total FROM raw.source_files ORDER BY path"
        ),
        "rejected": landing.rows(
            "SELECT f.path, r.record_no, r.row_key, r.reasons, r.record, r.status, r.note"
            " FROM raw.rejected_rows r JOIN raw.source_files f USING (file_id) ORDER BY 1, 2"
        ),
        "origin": landing.rows(
            "SELECT t.job_id, f.path, t.record_no FROM raw.jobs t JOIN raw.source_files f USING (file_id)"
            " UNION ALL SELECT t.payment_id, f.path, t.record_no FROM raw.payments t JOIN raw.source_files f USING (file_id)"
            " ORDER BY 1, 2"
        ),
        "months": landing.rows("SELECT DISTINCT month FROM analytics.stale_months ORDER BY 1"),
        "names": landing.rows("SELECT * FROM analytics.source_names ORDER BY 1"),
        "vanished": landing.rows("SELECT source, row_key FROM raw.vanished_rows ORDER BY 1, 2"),
    }


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every load into an empty table a bulk load: jobs go in while they are read, payments when they are staged."""
    monkeypatch.setattr(bulk, "ENOUGH", 1)
    monkeypatch.setattr(load_file, "LARGE", 0)
    monkeypatch.setattr(merge_rows, "FEW", 0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Returns a list that gets the table and outcome of every bulk load that is tried."""
    outcomes: list[tuple[str, bool]] = []
    original = bulk.fill_table

    def recorded(connection: Any, source: Source, *arguments: Any, **options: Any) -> bool:
        outcome = original(connection, source, *arguments, **options)
        outcomes.append((source.table, outcome))
        return outcome

    monkeypatch.setattr(bulk, "fill_table", recorded)
    return outcomes


def _days(rng: random.Random) -> str:
    return f"2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _numbers(rng: random.Random, first: int, count: int) -> list[int]:
    """Returns the numbers of a file's records; half of the files repeat some of them."""
    numbers = rng.sample(range(first + 1, first + count + 1), rng.randint(1, count))
    return sorted(numbers + rng.choice([[], rng.choices(numbers, k=2)]))


def _jobs_file(rng: random.Random) -> str:
    rows = []
    # now and then no job is known already
    first = rng.choice([0, 0, 40])
    for number in _numbers(rng, first, 20):
        row = job(
            number,
            # now and then two jobs share a number
            f"J{number}{'b' if rng.random() < 0.1 else ''}",
            Created=rng.choice([_days(rng)] * 9 + ["no date"]),
            Source=rng.choice(["Google", "google ", "Angi", "ANGI", ""]),
            Total=rng.choice(["85", "12.50", "many"] if rng.random() < 0.1 else ["85", "12.50"]),
        )
        rows.append(row)
    return text(JOBS, rows)


def _payments_file(rng: random.Random) -> str:
    rows = []
    first = rng.choice([0, 0, 60])
    for number in _numbers(rng, first, 40):
        reference = rng.choice([str(rng.randint(1, 24)), f"J{rng.randint(1, 24)}"])
        row = (
            f"P{number}",
            reference,
            _days(rng),
            rng.choice(["10", "20.50", "-5"]),
            "Cash",
            rng.choice(["Paid", "Failed"]),
            "",
        )
        rows.append(row)
    return text(PAYMENTS, rows)


def _histories(seed: int) -> Iterator[tuple[str, str, int]]:
    """Yields source, text and day of export of files in the order in which they arrive."""
    rng = chance.generator(f"bulk {seed}")
    sources = rng.choice(
        [["jobs", "payments"], ["payments", "jobs"], ["jobs", "payments", "jobs", "payments"]]
    )
    days = rng.sample(range(1, 28), len(sources))
    for source, day in zip(sources, days, strict=True):
        yield source, (_jobs_file if source == "jobs" else _payments_file)(rng), day


@pytest.mark.random
def test_all_ways_leave_the_same(
    tmp_path: Path, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, taken: list[tuple[str, bool]]
) -> None:
    """Random files with repeats, conflicts, bad records, shared numbers, payments before jobs and late files."""
    for seed in range(25 * chance.TIMES):
        found = []
        for way, (enough, large) in enumerate([(10**9, 10**9), (1, 10**9), (1, 0)]):
            monkeypatch.setattr(bulk, "ENOUGH", enough)
            monkeypatch.setattr(load_file, "LARGE", large)
            monkeypatch.setattr(merge_rows, "FEW", 0 if enough == 1 else 1000)
            folder = tmp_path / f"{seed}_{way}"
            folder.mkdir()
            with psycopg.connect(new_database("analytics"), autocommit=True) as connection:
                landing = Landing(folder, connection)
                before = definitions(landing)
                for number, (source, content, day) in enumerate(_histories(seed)):
                    landing.write(f"{source}/{number}.csv", content, day=day)
                    landing.load(source)
                assert definitions(landing) == before
                found.append(state(landing))
        assert found[1] == found[0], f"seed {seed}"
        assert found[2] == found[0], f"seed {seed}"
    outcomes = {(table, outcome) for table, outcome in taken}
    # repeated keys send some of them back to the ordinary way
    assert outcomes == {
        (table, outcome) for table in ("raw.jobs", "raw.payments") for outcome in (True, False)
    }


JOB_ROWS = [
    job(n, f"J{n}", Created=f"2024-{n % 12 + 1:02}-03", Source=("Google", "Angi")[n % 2])
    for n in range(1, 31)
]
PAYMENT_ROWS = [
    (f"P{n}", str(n % 33 + 1), f"2024-{n % 12 + 1:02}-05", "10", "Cash", "Paid", "") for n in range(1, 61)
]


#: What is loaded in bulk: the source, and whether its table has half of the rows already.
LOADS = [("jobs", False), ("payments", False), ("jobs", True), ("payments", True)]


def _write(landing: Landing) -> None:
    """Writes a file of jobs and one of their payments, some of which name no job."""
    landing.write("jobs/jobs.csv", text(JOBS, JOB_ROWS), day=2)
    landing.write("payments/payments.csv", text(PAYMENTS, PAYMENT_ROWS), day=3)


def _prepare(landing: Landing, source: str, doubles: bool) -> None:
    """Loads what comes before the bulk load of a source, and writes that file."""
    if source == "payments":
        landing.write("jobs/jobs.csv", text(JOBS, JOB_ROWS), day=2)
        landing.load("jobs")
    header, rows = (JOBS, JOB_ROWS) if source == "jobs" else (PAYMENTS, PAYMENT_ROWS)
    if doubles:
        half = len(rows) // 2
        landing.write(f"{source}/half.csv", text(header, rows[:half]), day=4)
        landing.load(source)
        if source == "jobs":
            landing.write("payments/payments.csv", text(PAYMENTS, PAYMENT_ROWS), day=3)
            landing.load("payments")
        rows = rows[half:]
    landing.write(f"{source}/rest.csv", text(header, rows), day=5)


@contextmanager
def _at_statement(
    connection: psycopg.Connection[Any], number: int, strike: Callable[[psycopg.Cursor[Any]], None]
) -> Iterator[list[str]]:
    """Strikes before the n-th statement of each bulk load, counted from its lock; gives the statements."""
    seen: list[str] = []

    class Striking(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            statement = text_of(query)
            if "IN ACCESS EXCLUSIVE MODE" in statement:
                seen.clear()
            if seen or "IN ACCESS EXCLUSIVE MODE" in statement:
                seen.append(statement)
                if len(seen) == number:
                    strike(psycopg.Cursor(self.connection))
            return super().execute(query, *arguments, **options)

    connection.cursor_factory = Striking
    try:
        yield seen
    finally:
        connection.cursor_factory = psycopg.Cursor


def _steps(landing: Landing, source: str) -> list[str]:
    """Loads a source; returns the statements of its bulk load."""
    with _at_statement(landing.connection, 0, lambda cursor: None) as seen:
        assert landing.load_one(source).status == "loaded"
    last = max(
        number for number, step in enumerate(seen) if step.startswith(("CREATE TRIGGER", "COMMENT ON"))
    )
    return seen[: last + 1]


def _raise(sqlstate: str) -> Callable[[psycopg.Cursor[Any]], None]:
    """Makes the server raise this error in the session."""
    statement: Any = f"DO $$ BEGIN RAISE EXCEPTION 'as ordered' USING ERRCODE = '{sqlstate}'; END $$"

    def strike(cursor: psycopg.Cursor[Any]) -> None:
        cursor.execute(statement)

    return strike


def _lose_connection(cursor: psycopg.Cursor[Any]) -> None:
    cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture
def whole(tmp_path: Path, new_database: NewDatabase, eager: None) -> Whole:
    """Returns the state that loading a source leaves, and the number of steps of its bulk load."""

    def load(source: str, doubles: bool) -> tuple[dict[str, Any], int]:
        folder = tmp_path / "whole"
        folder.mkdir()
        with psycopg.connect(new_database("analytics"), autocommit=True) as connection:
            landing = Landing(folder, connection)
            _prepare(landing, source, doubles)
            steps = _steps(landing, source)
            assert len(steps) > 12, steps
            return state(landing), len(steps)

    return load


@pytest.mark.parametrize(("source", "doubles"), LOADS)
def test_a_server_that_fails_leaves_everything_as_it_was(
    landing: Landing, analytics_url: str, whole: Whole, source: str, doubles: bool
) -> None:
    """A full disk and a lost connection, at each step: nothing of the file is there, and the next load brings all."""
    loaded, steps = whole(source, doubles)
    _prepare(landing, source, doubles)
    before, described = state(landing), definitions(landing)
    failures: list[tuple[Callable[[psycopg.Cursor[Any]], None], type[psycopg.Error]]] = [
        (_raise("53100"), errors.DiskFull),
        (_lose_connection, psycopg.OperationalError),
    ]
    for step in range(1, steps + 1):
        for strike, error in failures:
            with (
                psycopg.connect(analytics_url, autocommit=True) as session,
                _at_statement(session, step, strike),
                pytest.raises(error),
            ):
                load_source(session, landing.folder, source, timezone=NEW_YORK)
            assert state(landing) == before, step
            assert definitions(landing) == described, step
    assert landing.load_one(source).status == "loaded"
    assert state(landing) == loaded
    assert definitions(landing) == described


#: A refused lock, a unique violation, an object of the user's own that depends on the table, another owner, and use.
REFUSALS = ["55P03", "23505", "2BP01", "42501", "55006"]


@pytest.mark.parametrize(("source", "doubles"), LOADS)
def test_what_cannot_be_taken_off_stays_on(
    tmp_path: Path,
    new_database: NewDatabase,
    whole: Whole,
    taken: list[tuple[str, bool]],
    source: str,
    doubles: bool,
) -> None:
    """Whatever step is refused, the file is loaded the ordinary way, with the same result."""
    loaded, steps = whole(source, doubles)
    for step in range(1, steps + 1):
        (tmp_path / str(step)).mkdir()
        with psycopg.connect(new_database("analytics"), autocommit=True) as connection:
            landing = Landing(tmp_path / str(step), connection)
            _prepare(landing, source, doubles)
            described = definitions(landing)
            with _at_statement(connection, step, _raise(REFUSALS[step % len(REFUSALS)])):
                assert landing.load_one(source).status == "loaded"
            assert taken[-1] == (f"raw.{source}", False)
            assert state(landing) == loaded, step
            assert definitions(landing) == described, step


def _load_and_die(url: str, folder: Path, source: str, step: int) -> None:
    """Loads in a process of its own, which is killed before this step of the bulk load."""
    with (
        psycopg.connect(url, autocommit=True) as session,
        _at_statement(session, step, lambda cursor: os.kill(os.getpid(), signal.SIGKILL)),
    ):
        load_source(session, folder, source, timezone=NEW_YORK)


@pytest.mark.parametrize(("source", "doubles"), LOADS)
def test_a_kill_leaves_everything_as_it_was(
    landing: Landing, analytics_url: str, whole: Whole, source: str, doubles: bool
) -> None:
    """kill -9 of the loading process at each step: nothing of the file is there, and the next load brings all."""
    loaded, steps = whole(source, doubles)
    _prepare(landing, source, doubles)
    before, described = state(landing), definitions(landing)
    # a fork has the constants that `eager` set
    forked = multiprocessing.get_context("fork")
    for step in range(1, steps + 1):
        process = forked.Process(target=_load_and_die, args=(analytics_url, landing.folder, source, step))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
        assert state(landing) == before, step
        assert definitions(landing) == described, step
    assert landing.load_one(source).status == "loaded"
    assert state(landing) == loaded
    assert definitions(landing) == described


#: A file whose second amount disproves the first reading of its decimal mark, and one with a total that is wrong.
READ_TWICE = text(JOBS, [job(1, "J1", Total="85,50"), job(2, "J2", Total="1.234,50"), job(3, "", Total="1")])
TOTALED = text(JOBS, [job(1, "J1", Total="85"), job(2, "J2", Total="15"), ("Total", *[""] * 8, "90")])


@pytest.mark.parametrize("content", [READ_TWICE, TOTALED], ids=["read twice", "totaled"])
def test_what_only_the_whole_file_tells(
    tmp_path: Path,
    new_database: NewDatabase,
    monkeypatch: pytest.MonkeyPatch,
    taken: list[tuple[str, bool]],
    content: str,
) -> None:
    """A file that goes straight into the table is read again where it was misread, and its total is compared."""
    found = []
    for way, large in enumerate([10**9, 0]):
        monkeypatch.setattr(load_file, "LARGE", large)
        monkeypatch.setattr(bulk, "ENOUGH", 1 if large == 0 else 10**9)
        (tmp_path / str(way)).mkdir()
        with psycopg.connect(new_database("analytics"), autocommit=True) as connection:
            landing = Landing(tmp_path / str(way), connection)
            landing.write("jobs/jobs.csv", content, day=2)
            assert landing.load_one("jobs").warnings
            found.append(state(landing))
    assert found[1] == found[0]
    assert ("raw.jobs", True) in taken


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fails", [False, True])
def test_readers_wait_and_then_see_all_or_nothing(landing: Landing, analytics_url: str, fails: bool) -> None:
    """A reader that comes while a table is filled waits for the end of the file's transaction."""
    _write(landing)
    counted: list[int] = []

    def read() -> None:
        with psycopg.connect(analytics_url, autocommit=True) as reader:
            row = reader.execute("SELECT count(*) FROM raw.jobs").fetchone()
            assert row is not None
            counted.append(row[0])

    reader = threading.Thread(target=read)

    def let_read(cursor: psycopg.Cursor[Any]) -> None:
        reader.start()
        wait_until_blocked(landing.connection, "relation")
        assert counted == []
        if fails:
            _raise("53100")(cursor)

    with psycopg.connect(analytics_url, autocommit=True) as session, _at_statement(session, 12, let_read):
        try:
            load_source(session, landing.folder, "jobs", timezone=NEW_YORK)
        except errors.DiskFull:
            assert fails
    reader.join(PATIENCE)
    assert counted == [0 if fails else len(JOB_ROWS)]


@pytest.mark.usefixtures("eager")
def test_nobody_waits_behind_a_lock_that_is_not_granted(
    landing: Landing, analytics_url: str, taken: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads all the time, the file is loaded beside the reader, and a second reader doesn't wait."""
    _write(landing)
    monkeypatch.setattr(bulk.time, "sleep", lambda seconds: counted.append(_count(analytics_url)))
    counted: list[int] = []
    with psycopg.connect(analytics_url) as reader:
        reader.execute("SELECT count(*) FROM raw.jobs")
        assert landing.load_one("jobs").status == "loaded"
        assert taken == [("raw.jobs", False)]
    assert counted == [0] * bulk.TRIES
    assert _count(analytics_url) == len(JOB_ROWS)


def test_a_vacuum_that_gives_back_space_is_outlasted(
    landing: Landing, analytics_url: str, whole: Whole, taken: list[tuple[str, bool]]
) -> None:
    """A load that failed leaves dead rows; the vacuum that cuts them off and the next load refuse each other's locks."""
    _, steps = whole("payments", False)
    _prepare(landing, "payments", doubles=False)
    with pytest.raises(errors.DiskFull), _at_statement(landing.connection, steps, _raise("53100")):
        landing.load("payments")
    vacuum = threading.Thread(target=_execute, args=(analytics_url, "VACUUM raw.payments"))

    def begin(cursor: psycopg.Cursor[Any]) -> None:
        if vacuum.ident is not None:
            # the lock is asked for once more
            return
        vacuum.start()
        with psycopg.connect(analytics_url, autocommit=True) as watch:
            while not watch.execute(TRUNCATES).fetchone():
                assert vacuum.is_alive()
                time.sleep(0.01)

    with _at_statement(landing.connection, 1, begin):
        assert landing.load_one("payments").status == "loaded"
    vacuum.join(PATIENCE)
    assert taken[-1] == ("raw.payments", True)


TRUNCATES = "SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = 'raw.payments'::regclass AND phase = 'truncating heap'"


def _execute(url: str, statement: Any) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def _count(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM raw.jobs").fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.usefixtures("eager")
def test_jobs_and_payments_at_once_do_not_deadlock(
    tmp_path: Path, new_database: NewDatabase, taken: list[tuple[str, bool]]
) -> None:
    """Two bulk loads take their locks in one order; whichever is first, the payments are linked."""
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        url = new_database("analytics")
        with psycopg.connect(url, autocommit=True) as connection:
            landing = Landing(tmp_path / str(number), connection)
            _write(landing)
            barrier = threading.Barrier(2)
            failed: list[BaseException] = []

            def run(source: str) -> None:
                try:
                    barrier.wait(PATIENCE)  # noqa: B023 the thread ends within the loop
                    load_source(url, landing.folder, source, timezone=NEW_YORK)  # noqa: B023
                except BaseException as error:
                    failed.append(error)  # noqa: B023

            threads = [threading.Thread(target=run, args=[source]) for source in ("jobs", "payments")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert failed == []
            assert landing.rows("SELECT count(*), count(job_id) FROM raw.payments") == [(60, 57)]
    # one may find the other reading each time that it asks for its lock
    assert {table for table, _ in taken} == {"raw.jobs", "raw.payments"}


@pytest.mark.usefixtures("eager")
def test_what_later_migrations_and_people_added_comes_back(
    landing: Landing, taken: list[tuple[str, bool]]
) -> None:
    """Further indexes, constraints and comments are made again as they were, without code that knows them."""
    landing.connection.execute(
        """
        CREATE INDEX own ON raw.jobs (lower(zip) DESC NULLS LAST) INCLUDE (technician) WITH (fillfactor = 70)
            WHERE zip IS NOT NULL;
        ALTER TABLE raw.jobs ADD CONSTRAINT own_key UNIQUE (job_id, job_date) DEFERRABLE INITIALLY DEFERRED;
        COMMENT ON INDEX raw.own IS 'it''s mine';
        COMMENT ON INDEX raw.jobs_pkey IS 'the index';
        COMMENT ON CONSTRAINT jobs_pkey ON raw.jobs IS 'the key';
        COMMENT ON CONSTRAINT payments_job_id_fkey ON raw.payments IS 'the link';
        COMMENT ON TRIGGER a_relink_insert ON raw.jobs IS 'the trigger';
        CREATE TABLE raw."My.Notes" (job_id text REFERENCES raw.jobs ON DELETE CASCADE)
        """
    )
    described = definitions(landing)
    _write(landing)
    for source in ("jobs", "payments"):
        assert landing.load_one(source).status == "loaded"
    assert taken == [("raw.jobs", True), ("raw.payments", True)]
    assert definitions(landing) == described


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "own",
    [
        pytest.param("CREATE TABLE public.own (job_id text REFERENCES raw.jobs)", id="foreign key"),
        pytest.param("CREATE VIEW public.own AS SELECT * FROM raw.jobs GROUP BY job_id", id="view by key"),
        pytest.param("ALTER TABLE raw.jobs DISABLE TRIGGER a_relink_insert", id="disabled trigger"),
        pytest.param("CLUSTER raw.jobs USING jobs_job_date", id="clustered"),
        pytest.param("ALTER TABLE raw.jobs REPLICA IDENTITY USING INDEX jobs_pkey", id="replica identity"),
    ],
)
def test_what_the_catalog_does_not_describe_is_left_alone(
    landing: Landing, taken: list[tuple[str, bool]], own: str
) -> None:
    """Where something of the user's own hangs on the table, the file is loaded the ordinary way."""
    landing.connection.execute(own.encode())
    described = definitions(landing)
    _write(landing)
    assert landing.load_one("jobs").status == "loaded"
    assert taken == [("raw.jobs", False)]
    assert definitions(landing) == described


@pytest.mark.usefixtures("eager")
def test_an_owner_without_superuser_loads_in_bulk(landing: Landing, taken: list[tuple[str, bool]]) -> None:
    """A plain role that owns the tables suffices; one that doesn't own them loads the ordinary way."""
    name = landing.connection.info.dbname
    landing.connection.execute(
        f"""
        CREATE ROLE "{name}_owner" LOGIN PASSWORD 'owner' NOSUPERUSER;
        ALTER DATABASE "{name}" OWNER TO "{name}_owner";
        DO $$
        DECLARE statement text;
        BEGIN
            FOR statement IN
                SELECT format('ALTER SCHEMA %I OWNER TO "{name}_owner"', nspname) FROM pg_namespace
                WHERE nspname IN ('raw', 'analytics')
                UNION ALL
                SELECT format('ALTER TABLE %s OWNER TO "{name}_owner"', oid::regclass) FROM pg_class
                WHERE relnamespace IN ('raw'::regnamespace, 'analytics'::regnamespace) AND relkind IN ('r', 'v')
                UNION ALL
                SELECT format('ALTER ROUTINE %s OWNER TO "{name}_owner"', oid::regprocedure) FROM pg_proc
                WHERE pronamespace IN ('raw'::regnamespace, 'analytics'::regnamespace)
            LOOP
                EXECUTE statement;
            END LOOP;
        END $$
        """.encode()
    )
    described = definitions(landing)
    _write(landing)
    info = landing.connection.info
    url = f"postgresql://{name}_owner:owner@{info.host}:{info.port}/{name}"
    for source in ("jobs", "payments"):
        (file,) = load_source(url, landing.folder, source, timezone=NEW_YORK).files
        assert file.status == "loaded"
    assert taken == [("raw.jobs", True), ("raw.payments", True)]
    assert definitions(landing) == described


@pytest.mark.usefixtures("eager")
def test_a_dry_run_never_keeps_readers_out(landing: Landing, taken: list[tuple[str, bool]]) -> None:
    """`check` and `rebuild` load into a transaction of their own, and take no such lock."""
    _write(landing)
    (file,) = [file for file in pending(landing.connection, landing.folder) if file.source == "jobs"]
    result, _ = try_file(landing.connection, landing.folder, file, timezone=NEW_YORK)
    assert result.counts.inserted == len(JOB_ROWS)
    with rebuilt(landing.connection, landing.folder, "jobs", timezone=NEW_YORK) as rebuild:
        assert [file.status for file in rebuild.files] == ["loaded"]
    assert taken == []


@pytest.mark.usefixtures("eager")
def test_a_table_that_was_emptied_and_analyzed_is_filled_in_bulk(
    landing: Landing, taken: list[tuple[str, bool]]
) -> None:
    """After TRUNCATE and ANALYZE, statistics say that the tables are empty; links and months are the same again."""
    _write(landing)
    for source in ("jobs", "payments"):
        landing.load(source)
    before = state(landing)
    landing.connection.execute("TRUNCATE raw.jobs, raw.payments; ANALYZE raw.jobs, raw.payments")
    landing.connection.execute("TRUNCATE analytics.stale_months")
    for source in ("jobs", "payments"):
        assert landing.load(source, force=True).files[0].counts.inserted
    assert state(landing) == before
    assert [outcome for _, outcome in taken] == [True] * 4


def test_the_planner_expects_numbers_in_the_view(landing: Landing) -> None:
    """Were no row expected of raw.jobs_by_number, a large change of numbers would be joined row by row, for hours."""
    landing.write("jobs/jobs.csv", text(JOBS, [job(n, f"J{n}") for n in range(1, 2001)]))
    landing.load("jobs")
    ((plan,),) = landing.rows("EXPLAIN (FORMAT JSON) SELECT * FROM raw.jobs_by_number")
    assert plan[0]["Plan"]["Plan Rows"] > 200
