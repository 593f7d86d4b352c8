"""What a file of a few records costs: the same few statements, however many files were loaded before it."""

from __future__ import annotations

import pytest

from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    JOBS,
    PAYMENTS,
    Landing,
    job,
    record_statements,
    text,
)

_written: dict[str, int] = {}


def _write(landing: Landing, source: str, files: int) -> None:
    """Writes so many new exports of one record each."""
    for _ in range(files):
        number = _written[source] = _written.get(source, 0) + 1
        day, hour = divmod(number, 24)
        content = {
            "jobs": text(JOBS, [job(number, f"JOB{number:03}")]),
            "payments": text(PAYMENTS, [(f"P{number}", number, "2024-11-15", "20", "Cash", "Paid", "")]),
        }[source]
        landing.write(f"{source}/{source}_2024-12-{day + 1:02}T{hour:02}_00_00.csv", content)


def _load(landing: Landing, source: str, files: int) -> None:
    _write(landing, source, files)
    assert [file.status for file in landing.load(source).files] == ["loaded"] * files


def _costs(landing: Landing, source: str, files: int) -> tuple[int, int]:
    """Returns how many rows of the ledger a run with so many new files reads, and how many columns of tables it makes."""

    def so_far() -> tuple[int, int]:
        landing.rows("SELECT pg_stat_force_next_flush()")
        ((read, made),) = landing.rows(
            """
            SELECT ledger.seq_tup_read + ledger.idx_tup_fetch, columns.n_tup_ins
            FROM pg_stat_all_tables ledger, pg_stat_all_tables columns
            WHERE ledger.relid = 'raw.source_files'::regclass AND columns.relid = 'pg_attribute'::regclass
            """
        )
        return int(read), int(made)

    before = so_far()
    _load(landing, source, files)
    after = so_far()
    return after[0] - before[0], after[1] - before[1]


@pytest.mark.parametrize("source", ["jobs", "payments"])
def test_a_file_costs_the_same_however_many_were_loaded(source: str, landing: Landing) -> None:
    """A run reads the ledger once and makes its temporary tables once; a file needs only a few statements.

    Reading the ledger for each file would make a folder of small exports slower every day, and so would tables that are
    made for each file, which the database's catalog has to forget again.
    """
    _load(landing, source, 2)
    entries = 2000
    landing.rows(
        """
        INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, declaration_version, exported_at,
            exported_at_from, status, mapping)
        SELECT source, 'gone/' || n, 'gone' || n, 1, now(), 1, exported_at - n * interval '1 hour', 'name', status, mapping
        FROM raw.source_files, generate_series(1, %s) AS n WHERE file_id = 1 RETURNING 1
        """,
        [entries],
    )
    landing.connection.execute("ANALYZE raw.source_files")
    read_by_one, made_by_one = _costs(landing, source, 1)
    # so the counting works
    assert read_by_one > entries
    assert made_by_one > 20
    statements = record_statements(landing.connection)
    read_by_many, made_by_many = _costs(landing, source, 11)
    assert (read_by_many - read_by_one) / 10 < 10
    assert made_by_many == made_by_one
    # 5 for each file, 6 where it refers to others; the rest is the run's
    assert len(statements) / 11 < 8
    assert landing.rows("SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()") == []


def test_vanished_rows_are_counted_no_further_than_it_matters(landing: Landing) -> None:
    """A small export of a day with many rows is a selection of them, which twice as many rows as it has already prove."""

    def leads(count: int) -> str:
        return text(
            ELOCALS, [(str(n), "2025-01-05 10:21:17 -0500", "01:10", "10", "ok", "") for n in range(count)]
        )

    landing.write("elocals_leads/1.csv", leads(500), day=1)
    landing.load("elocals_leads")
    landing.write("elocals_leads/2.csv", leads(10), day=2)
    statements = record_statements(landing.connection)
    assert landing.load_one("elocals_leads").warnings == []
    (statement,) = [text for text in statements if ") AS enough" in text]
    counted = statement.partition("SELECT count(*) AS known FROM (")[2].partition(") AS enough")[0]
    assert len(landing.rows(counted)) == 20


def test_new_records_are_not_compared(landing: Landing) -> None:
    """A small file of nothing but new records is inserted as it is staged; one known record makes it compare them."""
    landing.write("jobs/jobs_2024-11-16.csv", text(JOBS, [job(901, "JOB901")]))
    landing.load_one("jobs")
    statements = record_statements(landing.connection)
    landing.write("jobs/jobs_2024-11-17.csv", text(JOBS, [job(902, "JOB902")]))
    landing.load_one("jobs")
    assert not [statement for statement in statements if "pg_temp.changes" in statement]
    landing.write("jobs/jobs_2024-11-18.csv", text(JOBS, [job(902, "JOB902"), job(903, "JOB903")]))
    counts = landing.load_one("jobs").counts
    assert (counts.inserted, counts.unchanged) == (1, 1)
    assert any("pg_temp.changes" in statement for statement in statements)


def test_settled_repeats_are_looked_for_again(landing: Landing) -> None:
    """Whether records are known is asked before repeats of a hash get their numbers, and once more with these."""
    header = PAYMENTS[1:]
    twice = [("901", "2024-11-15", "20", "Cash", "Paid", "")] * 2
    landing.write("payments/payments_2024-11-16.csv", text(header, twice))
    assert landing.load_one("payments").counts.inserted == 2
    landing.connection.execute("DELETE FROM raw.payments WHERE payment_id LIKE '%-1'")
    landing.write("payments/payments_2024-11-17.csv", text(header, [*twice, ("902", *twice[0][1:])]))
    counts = landing.load_one("payments").counts
    assert (counts.inserted, counts.unchanged) == (2, 1)


def test_a_small_file_does_not_read_the_table(landing: Landing) -> None:
    """Whether its records are new is asked of the key's index, also in a table that was never analyzed."""
    landing.connection.execute(
        "INSERT INTO raw.jobs (job_id, job_number, created_at, job_date)"
        " SELECT 'JOB' || n, n, '2024-11-16', '2024-11-16' FROM generate_series(1, 20000) n"
    )

    def read() -> int:
        landing.connection.execute("SELECT pg_stat_force_next_flush()")
        ((rows,),) = landing.rows(
            "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = 'raw.jobs'::regclass"
        )
        return int(rows)

    before = read()
    landing.write("jobs/jobs_2024-11-17.csv", text(JOBS, [job(n, f"JOB{n}") for n in range(20_001, 20_101)]))
    assert landing.load_one("jobs").counts.inserted == 100
    assert read() - before < 20_000


@pytest.mark.parametrize(
    ("reference", "linked"),
    [("JOB901", "JOB901"), ("901", "JOB901"), ("JOB999", None)],
    ids=["waiting by id", "waiting by number", "waiting for another job"],
)
def test_a_few_jobs_are_linked_only_where_a_payment_waits(
    reference: str, linked: str | None, landing: Landing
) -> None:
    """The long statement that links payments runs only if the jobs' ids and numbers concern one."""
    header = ("Payment ID", "Job ID", *PAYMENTS[2:])
    payments = text(header, [("P900", reference, "2024-11-15", "20", "Cash", "Paid", "")])
    landing.write("payments/payments_2024-11-16.csv", payments)
    landing.load_one("payments")
    landing.connection.execute("SET track_functions = 'pl'")
    landing.write("jobs/jobs_2024-11-16.csv", text(JOBS, [job(901, "JOB901")]))
    landing.load_one("jobs")
    assert landing.rows("SELECT job_id FROM raw.payments") == [(linked,)]
    landing.rows("SELECT pg_stat_force_next_flush()")
    called = {
        name
        for (name,) in landing.rows("SELECT funcname FROM pg_stat_user_functions WHERE schemaname = 'raw'")
    }
    assert "may_link" in called
    assert ("correct_statistics" in called) == (linked is not None)


def test_a_few_jobs_that_share_a_number_unlink_its_payments(landing: Landing) -> None:
    """A second job with the number makes the number ambiguous, in a later file of one record too."""
    landing.write("jobs/jobs_2024-11-16.csv", text(JOBS, [job(901, "JOB901")]))
    landing.load_one("jobs")
    payments = text(PAYMENTS, [("P900", "901", "2024-11-15", "20", "Cash", "Paid", "")])
    landing.write("payments/payments_2024-11-16.csv", payments)
    landing.load_one("payments")
    assert landing.rows("SELECT job_id FROM raw.payments") == [("JOB901",)]
    landing.write("jobs/jobs_2024-11-17.csv", text(JOBS, [job(901, "JOB902")]))
    landing.load_one("jobs")
    assert landing.rows("SELECT job_id FROM raw.payments") == [(None,)]
