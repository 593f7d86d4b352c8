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


def _entries_read(landing: Landing) -> int:
    """Returns how many rows of the ledger the database has read so far."""
    landing.rows("SELECT pg_stat_force_next_flush()")
    ((count,),) = landing.rows(
        "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relid = 'raw.source_files'::regclass"
    )
    return int(count)


@pytest.mark.parametrize("source", ["jobs", "payments"])
def test_a_file_costs_the_same_however_many_were_loaded(source: str, landing: Landing) -> None:
    """A run reads the ledger once; reading it for each file would make a folder of small exports slower every day."""
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
    before = _entries_read(landing)
    _load(landing, source, 1)
    between = _entries_read(landing)
    assert between - before > entries  # so the counting works
    statements = record_statements(landing.connection)
    _load(landing, source, 11)
    added = (_entries_read(landing) - between) - (between - before)
    assert added / 10 < 10
    # 20 and 21 for each file; the rest is the run's
    assert len(statements) / 11 < 23


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
