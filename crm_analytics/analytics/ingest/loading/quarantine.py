"""The quarantine (raw.rejected_rows): writes refused records into it, and closes them when they are answered."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg.types.json import Json

from crm_analytics.analytics.ingest.loading.queries import Connection, create_temporary, execute, fetch_value
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, Rejected
from crm_analytics.analytics.ingest.sources.declaration import Source


def quarantine_rejected(
    connection: Connection, file_id: int, source: Source, rejected: list[Rejected]
) -> None:
    """Writes the records that reading refused."""
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY raw.rejected_rows (file_id, source, record_no, row_key, reasons, record) FROM STDIN"
        ) as copy,
    ):
        for row in rejected:
            reasons = [_storable(reason) for reason in row.reasons]
            key = None if row.key is None else _storable(row.key)
            copy.write_row((file_id, source.name, row.record_no, key, reasons, _as_json(row.record)))


def quarantine_staged(
    connection: Connection,
    open_file: OpenFile,
    file_id: int,
    which: LiteralString,
    reason: LiteralString,
    **parts: Any,
) -> None:
    """Writes staged records that only a comparison refuses; the caller deletes them from `staged`.

    Their cells as found are no longer known, so the file is read once more, for these records alone.

    Args:
        connection: inside the file's transaction.
        open_file: the file.
        file_id: its ledger entry.
        which: SQL after `FROM pg_temp.staged s`.
        reason: SQL expression of the one reason.
        parts: values and SQL for the names in `which` and `reason`.
    """
    source = open_file.source
    chosen = execute(
        connection, source, "SELECT s.record_no FROM pg_temp.staged s " + which, **parts
    ).fetchall()
    if not chosen:
        return
    create_temporary(
        connection, source, "as_found", "SELECT NULL::int AS record_no, NULL::jsonb AS record LIMIT 0"
    )
    for records in open_file.as_found({number for (number,) in chosen}):
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY pg_temp.as_found (record_no, record) FROM STDIN") as copy,
        ):
            for number, record in records.items():
                copy.write_row((number, _as_json(record)))
    execute(
        connection,
        source,
        """
        INSERT INTO raw.rejected_rows (file_id, source, record_no, row_key, reasons, record)
        SELECT {file_id}, {source}, s.record_no, {record_key}, ARRAY["""
        + reason
        + """], found.record
        FROM pg_temp.staged s JOIN pg_temp.as_found found ON found.record_no = s.record_no
        """
        + which,
        file_id=file_id,
        **parts,
    )


def _as_json(record: dict[str, str]) -> Json:
    return Json({_storable(header): _storable(cell) for header, cell in record.items()})


def _storable(text: str) -> str:
    """Replaces what PostgreSQL's text cannot hold: NUL and lone surrogates, from damaged cells."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


Dismissed = list[tuple[int, str | None, str, Any]]


def forget_quarantine(connection: Connection, file_id: int) -> Dismissed:
    """Removes what an earlier reading of this file quarantined; returns what a person had dismissed of it."""
    dismissed = connection.execute(
        """
        SELECT record_no, note, record::text, closed_at FROM raw.rejected_rows
        WHERE file_id = %s AND status = 'dismissed'
        """,
        [file_id],
    ).fetchall()
    connection.execute("DELETE FROM raw.rejected_rows WHERE file_id = %s", [file_id])
    return dismissed


def dismiss_again(connection: Connection, file_id: int, dismissed: Dismissed) -> None:
    """Keeps records dismissed that a person dismissed before the file was read again."""
    for record_no, note, record, closed_at in dismissed:
        connection.execute(
            """
            UPDATE raw.rejected_rows SET status = 'dismissed', note = %s, closed_at = %s
            WHERE file_id = %s AND record_no = %s AND record = %s::jsonb
            """,
            [note, closed_at, file_id, record_no, record],
        )


def close_replaced(connection: Connection, path: str, file_id: int) -> None:
    """Closes the records of the contents that this entry's content replaced at its path."""
    connection.execute(
        """
        UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = 'the file has new content'
        FROM raw.source_files f
        WHERE r.file_id = f.file_id AND r.status = 'open' AND f.path = %s AND f.file_id <> %s
        """,
        [path, file_id],
    )


def close_accepted(
    connection: Connection, source: Source, older_ids: list[int], accepted: LiteralString, path: str
) -> None:
    """Closes records of older files whose key the staged file brings in good order.

    Args:
        connection: inside the file's transaction.
        source: the file's source.
        older_ids: ledger entries of the older files.
        accepted: SQL condition over the quarantined record `r`: whether the staged file has it.
        path: the staged file's path, for the note.
    """
    if older_ids and fetch_value(
        connection,
        source,
        "SELECT EXISTS (SELECT FROM raw.rejected_rows WHERE source = {source} AND status = 'open')",
    ):
        execute(
            connection,
            source,
            """
            UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = {note}
            WHERE r.source = {source} AND r.status = 'open' AND r.file_id = ANY ({older_ids}) AND """
            + accepted,
            note=f"accepted from a newer export: {path}",
            older_ids=older_ids,
        )
