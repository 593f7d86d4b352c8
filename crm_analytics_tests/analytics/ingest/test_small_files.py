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
    # 15 for each file; the rest is the run's
    assert len(statements) / 11 < 17
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
    (statement,) = [text for text in statements if text.endswith("AS known")]
    assert landing.rows(statement) == [(20,)]
