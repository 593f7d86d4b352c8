"""The quarantine (raw.rejected_rows): writes refused records into it, and closes them when they are answered."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from crm_analytics.analytics.ingest.loading.queries import Connection
from crm_analytics.analytics.ingest.reading.batches import Rejected

Dismissed = list[tuple[int, str | None, str, Any]]


def quarantine_rejected(connection: Connection, file_id: int, source: str, rejected: list[Rejected]) -> None:
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
            copy.write_row((file_id, source, record_no, line_no, key, reasons, as_json(record)))


def as_json(texts: dict[str, str]) -> Jsonb:
    """Returns a record (header -> cell, both as found) or a reason as the quarantine keeps it."""
    return Jsonb(_storable_texts(texts))


def _storable_texts(texts: dict[str, str]) -> dict[str, str]:
    return {_storable(name): _storable(text) for name, text in texts.items()}


def _storable(text: str) -> str:
    """Replaces what PostgreSQL's text cannot hold: NUL and lone surrogates, from damaged cells."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


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
