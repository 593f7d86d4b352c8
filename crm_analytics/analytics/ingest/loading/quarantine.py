"""The quarantine (raw.rejected_rows): writes refused records into it, and closes them when they are answered."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import sql
from psycopg.types.json import Jsonb

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.loading.queries import Connection, create_temporary, execute, fetch_value
from crm_analytics.analytics.ingest.reading.batches import Rejected
from crm_analytics.analytics.ingest.reading.open_file import OpenFile
from crm_analytics.analytics.ingest.sources.declaration import Source


def quarantine_rejected(
    connection: Connection, file_id: int, source: Source, rejected: list[Rejected]
) -> None:
    """Writes the records that reading refused."""
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY raw.rejected_rows (file_id, source, record_no, line_no, row_key, reasons, record) FROM STDIN"
        ) as copy,
    ):
        for row in rejected:
            record_no, line_no, record = row.as_found
            key = None if row.key is None else _storable(row.key)
            reasons = Jsonb([_storable_texts(reason.as_dict()) for reason in row.reasons])
            values = (record_no, line_no, key, reasons, Jsonb(_storable_texts(record)))
            copy.write_row((file_id, source.name, *values))


def quarantine_staged(
    connection: Connection,
    open_file: OpenFile,
    file_id: int,
    which: LiteralString,
    reasons: LiteralString,
    **parts: Any,
) -> None:
    """Writes staged records that only a comparison refuses; the caller deletes them from `staged`.

    Their cells as found are no longer known, so the file is read once more, for these records alone.

    Args:
        connection: inside the file's transaction.
        open_file: the file.
        file_id: its ledger entry.
        which: SQL after `FROM pg_temp.staged s`.
        reasons: SQL expression of the reasons (jsonb).
        parts: values and SQL for the names in `which` and `reasons`.
    """
    source = open_file.source
    chosen = execute(
        connection, source, "SELECT s.record_no FROM pg_temp.staged s " + which, **parts
    ).fetchall()
    if not chosen:
        return
    create_temporary(
        connection,
        source,
        "as_found",
        "SELECT NULL::int AS record_no, NULL::int AS line_no, NULL::jsonb AS record LIMIT 0",
    )
    for records in open_file.as_found({number for (number,) in chosen}):
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY pg_temp.as_found (record_no, line_no, record) FROM STDIN") as copy,
        ):
            for record_no, line_no, record in records:
                copy.write_row((record_no, line_no, Jsonb(_storable_texts(record))))
    execute(
        connection,
        source,
        """
        INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, row_key, reasons, record)
        SELECT {file_id}, {source}, s.record_no, found.line_no, {record_key}, """
        + reasons
        + """, found.record
        FROM pg_temp.staged s JOIN pg_temp.as_found found ON found.record_no = s.record_no
        """
        + which,
        file_id=file_id,
        **parts,
    )


def reason_sql(reason: Reason) -> sql.Literal:
    """Returns a reason as an SQL constant (jsonb)."""
    return sql.Literal(Jsonb(_storable_texts(reason.as_dict())))


def _storable_texts(texts: dict[str, str]) -> dict[str, str]:
    return {_storable(name): _storable(text) for name, text in texts.items()}


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
