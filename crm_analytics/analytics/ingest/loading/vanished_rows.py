"""Vanished rows: rows of older exports that the newest export of their dates lacks. They are kept and reported."""

from __future__ import annotations

from typing import LiteralString

from crm_analytics.analytics.ingest.loading.late_files import NewerFiles
from crm_analytics.analytics.ingest.loading.queries import Connection, execute, fetch_row, fetch_value
from crm_analytics.analytics.ingest.loading.staging import Staged


def note_vanished(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> list[str]:
    """Lists vanished rows in raw.vanished_rows, and forgets those that came back; returns the warning.

    A file with at most half of the rows known for its dates is a selection, not an export of them all. One that was
    probably cut off proves nothing either, nor does one that came after newer ones.
    """
    if newer.entries:
        return []
    source = staged.source
    if fetch_value(
        connection, source, "SELECT EXISTS (SELECT FROM raw.vanished_rows WHERE source = {source})"
    ):
        execute(
            connection,
            source,
            """
            DELETE FROM raw.vanished_rows v USING pg_temp.staged s
            WHERE v.source = {source} AND v.row_key = {record_key}
            """,
        )
    if staged.open_file.probably_cut_off:
        return []
    first, last, here = fetch_row(
        connection, source, "SELECT min(s.{day}), max(s.{day}), count(*) FROM pg_temp.staged s"
    )
    known = fetch_value(
        connection,
        source,
        "SELECT count(*) FROM {table} t WHERE t.{day} BETWEEN {first} AND {last}",
        first=first,
        last=last,
    )
    # every staged record is a row between these dates by now
    if not here < known < 2 * here:
        return []
    # quarantined records are in the file, under their key or under the alternate
    has_alternate: LiteralString = (
        "AND coalesce(t.{alternate}, '') NOT IN (SELECT row_key FROM unread)" if source.key.alternate else ""
    )
    vanished = fetch_value(
        connection,
        source,
        """
        WITH unread AS (
            SELECT r.row_key FROM raw.rejected_rows r WHERE r.file_id = {file_id} AND r.row_key IS NOT NULL
        ), gone AS (
            SELECT {row_key} AS row_key FROM {table} t
            WHERE t.{day} BETWEEN {first} AND {last}
                AND NOT EXISTS (SELECT FROM pg_temp.staged s WHERE {same_key})
                AND {row_key} NOT IN (SELECT row_key FROM unread) """
        + has_alternate
        + """
        ), noted AS (
            INSERT INTO raw.vanished_rows (source, row_key, file_id)
            SELECT {source}, row_key, {file_id} FROM gone ON CONFLICT DO NOTHING
        )
        SELECT count(*) FROM gone
        """,
        file_id=file_id,
        first=first,
        last=last,
    )
    if not vanished:
        return []
    return [
        f"{vanished:,} row{'s' if vanished != 1 else ''} of older exports from {first} to {last} "
        f"{'are' if vanished != 1 else 'is'} not in this one; kept, and listed in raw.vanished_rows"
    ]
