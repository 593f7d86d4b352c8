"""Merges a file into a table of monthly totals: the newest file that covers a month replaces the month's rows.

A file with quarantined records of a month does not have the month whole. Of such files the newest record of each key
counts, and only until a file has the month whole.
"""

from __future__ import annotations

from datetime import date

from psycopg import sql

from crm_analytics.analytics.ingest.loading.late_files import NewerFiles, UnknownNewerValues
from crm_analytics.analytics.ingest.loading.ledger import Counts
from crm_analytics.analytics.ingest.loading.merge_result import Merged
from crm_analytics.analytics.ingest.loading.queries import (
    Connection,
    create_temporary,
    execute,
    fetch_row,
    fetch_value,
)
from crm_analytics.analytics.ingest.loading.staging import Staged
from crm_analytics.analytics.ingest.sources.declaration import Source


def merge_months(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> Merged:
    """Replaces the months that the file has whole, and completes those that no file has whole.

    Raises:
        UnknownNewerValues: if only files that cannot be read again could tell which totals are newer.
    """
    source = staged.source
    parts = _parts(source)
    create_temporary(
        connection,
        source,
        "totals",
        """
        SELECT {staged_keys}, round(sum(s.{amount}), 2) AS {amount}, max(s.{covered_to}) AS {covered_to},
            min(s.record_no) AS record_no, count(*) AS records, {whole} AS whole
        FROM pg_temp.staged s GROUP BY {staged_keys}
        """,
        whole=staged.whole,
        **parts,
    )
    merged = Merged(Counts(superseded=newer.remove_superseded_months()))
    _yield_to_whole_months(connection, source, file_id, merged)
    if newer.lost:
        _refuse_if_unknowable(connection, source, file_id)
    merged.first_date, merged.last_date = fetch_row(
        connection, source, "SELECT min({day}), max({covered_to}) FROM pg_temp.totals", **parts
    )
    removed = _remove_others(connection, source)
    _write(connection, source, file_id, merged)
    accepted = int(fetch_value(connection, source, "SELECT coalesce(sum(records), 0) FROM pg_temp.totals"))
    merged.counts.unchanged = accepted - merged.counts.inserted - merged.counts.updated
    (name,) = (column for column in source.key.columns if column != source.date_column)
    for month, rows in removed:
        merged.note_changes(month, rows)
        merged.warnings.append(
            f"{month:%Y-%m}: {rows} {name}{'s' if rows != 1 else ''} of an older file replaced: this file does not"
            " name them"
        )
    return merged


def _parts(source: Source) -> dict[str, sql.Composable]:
    """Returns what the statements need beyond the source's fragments."""
    totals = source.month_totals
    assert totals is not None

    def keys(alias: str) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(alias, column) for column in source.key.columns)

    return {
        "amount": sql.Identifier(totals.amount),
        "covered_to": sql.Identifier(totals.covered_to),
        "keys": sql.SQL(", ").join(map(sql.Identifier, source.key.columns)),
        "staged_keys": keys("s"),
        "row_keys": keys("t"),
        "total_keys": keys("n"),
        "written_keys": keys("w"),
    }


def _yield_to_whole_months(connection: Connection, source: Source, file_id: int, merged: Merged) -> None:
    """Drops totals of months that this file has not whole and another has; warns of months that stay incomplete."""
    for month, records in execute(
        connection,
        source,
        """
        WITH gone AS (
            DELETE FROM pg_temp.totals n
            WHERE NOT n.whole AND EXISTS (
                SELECT FROM {table} t
                WHERE t.{day} = n.{day} AND t.whole AND t.file_id IS DISTINCT FROM {file_id}
            )
            RETURNING n.{day}, n.records
        )
        SELECT {day}, sum(records)::int FROM gone GROUP BY {day} ORDER BY {day}
        """,
        file_id=file_id,
    ).fetchall():
        merged.counts.superseded += records
        merged.warnings.append(
            f"{month:%Y-%m}: this file has quarantined records of the month, so the month stays as another file has it"
            " whole; mend the records, or export the month again"
        )
    for (month,) in execute(
        connection, source, "SELECT DISTINCT {day} FROM pg_temp.totals WHERE NOT whole ORDER BY {day}"
    ).fetchall():
        merged.warnings.append(
            f"{month:%Y-%m}: incomplete, because this file has quarantined records of the month"
        )


def _refuse_if_unknowable(connection: Connection, source: Source, file_id: int) -> None:
    """Refuses totals that differ from rows of older files when newer files are gone: either may be the newer one."""
    records, example = fetch_row(
        connection,
        source,
        """
        SELECT coalesce(sum(n.records), 0), min(to_char(n.{day}, 'YYYY-MM')) FROM pg_temp.totals n
        WHERE EXISTS (
            SELECT FROM {table} t
            WHERE t.{day} = n.{day} AND t.file_id IS DISTINCT FROM {file_id} AND (t.whole OR NOT n.whole)
        ) AND NOT EXISTS (
            SELECT FROM {table} t
            WHERE ({row_keys}, t.{amount}, t.{covered_to}) = ({total_keys}, n.{amount}, n.{covered_to})
        )
        """,
        file_id=file_id,
        **_parts(source),
    )
    if records:
        raise UnknownNewerValues(records, example)


def _remove_others(connection: Connection, source: Source) -> list[tuple[date, int]]:
    """Removes rows of the file's whole months that the file does not name; returns how many by month."""
    return sorted(
        execute(
            connection,
            source,
            """
            WITH gone AS (
                DELETE FROM {table} t
                WHERE t.{day} IN (SELECT {day} FROM pg_temp.totals WHERE whole)
                    AND NOT EXISTS (SELECT FROM pg_temp.totals n WHERE ({total_keys}) = ({row_keys}))
                RETURNING t.{day}
            )
            SELECT {day}, count(*) FROM gone GROUP BY {day}
            """,
            **_parts(source),
        ).fetchall()
    )


def _write(connection: Connection, source: Source, file_id: int, merged: Merged) -> None:
    """Inserts new totals and updates changed ones."""
    for month, is_new, records, rows in execute(
        connection,
        source,
        """
        WITH written AS (
            INSERT INTO {table} AS t ({keys}, {amount}, {covered_to}, whole, file_id, record_no)
            SELECT {total_keys}, n.{amount}, n.{covered_to}, n.whole, {file_id}, n.record_no
            FROM pg_temp.totals n LEFT JOIN {table} w ON ({written_keys}) = ({total_keys})
            WHERE w.{day} IS NULL
                OR (w.{amount}, w.{covered_to}, w.whole) IS DISTINCT FROM (n.{amount}, n.{covered_to}, n.whole)
            ON CONFLICT ({keys}) DO UPDATE SET {amount} = excluded.{amount}, {covered_to} = excluded.{covered_to},
                whole = excluded.whole, file_id = excluded.file_id, record_no = excluded.record_no, updated_at = now()
            RETURNING {row_keys}
        )
        -- the table is read as it was before the write
        SELECT w.{day}, t.{day} IS NULL, sum(n.records), count(*)
        FROM written w
        JOIN pg_temp.totals n ON ({total_keys}) = ({written_keys})
        LEFT JOIN {table} t ON ({row_keys}) = ({written_keys})
        GROUP BY 1, 2
        """,
        file_id=file_id,
        **_parts(source),
    ).fetchall():
        if is_new:
            merged.counts.inserted += int(records)
        else:
            merged.counts.updated += int(records)
        merged.note_changes(month, rows)
