"""Reports vanished rows, which are kept: rows of older exports that the newest export of their dates lacks."""

from __future__ import annotations

from typing import Any, LiteralString

from crm_analytics.analytics.ingest.loading.staging import Staged
from crm_analytics.core.wording import counted

#: Rows of the source that are listed already.
VANISHED: LiteralString = "SELECT FROM raw.vanished_rows WHERE source = {source}"
#: Whether the dates of a file have more rows than the file, but less than twice as many; `span` gives the parts. Counted
#: no further than it matters: a small export may have the dates of a million rows.
A_FEW_MORE: LiteralString = """
    SELECT FROM (
        SELECT count(*) AS known FROM (
            SELECT FROM {table} t WHERE t.{day} BETWEEN {first} AND {last} LIMIT 2 * {here}
        ) AS enough
    ) AS counted
    WHERE known > {here} AND known < 2 * {here}
    """


def span(staged: Staged) -> dict[str, Any]:
    """Returns the first and last date of the file's records, and how many records there are."""
    days = staged.days()
    return {"first": min(days, default=None), "last": max(days, default=None), "here": sum(days.values())}


def note_vanished(staged: Staged) -> list[str]:
    """Lists vanished rows in raw.vanished_rows, and forgets those that came back; returns the warning.

    The staged file is the newest of its source. If it has at most half of the rows known for its dates, it is a
    selection, not an export of them all; if it was probably cut off, it proves nothing either.
    """
    if staged.exists(VANISHED):
        staged.execute(
            """
            DELETE FROM raw.vanished_rows v USING pg_temp.staged s
            WHERE v.source = {source} AND v.row_key = {record_key}
            """
        )
    if staged.open_file.records.probably_cut_off:
        return []
    dates = span(staged)
    if not staged.exists(A_FEW_MORE, **dates):
        return []
    # quarantined records are in the file, under their key or under the alternate
    by_alternate: LiteralString = (
        "AND coalesce(t.{alternate}, '') NOT IN (SELECT row_key FROM unread)"
        if staged.source.key.alternate
        else ""
    )
    vanished = staged.value(
        """
        WITH unread AS (
            SELECT r.row_key FROM raw.rejected_rows r WHERE r.file_id = {file_id} AND r.row_key IS NOT NULL
        ), gone AS (
            SELECT {row_key} AS row_key FROM {table} t
            WHERE t.{day} BETWEEN {first} AND {last}
                AND NOT EXISTS (SELECT FROM pg_temp.staged s WHERE {same_key})
                AND {row_key} NOT IN (SELECT row_key FROM unread) """
        + by_alternate
        + """
        ), noted AS (
            INSERT INTO raw.vanished_rows (source, row_key, file_id)
            SELECT {source}, row_key, {file_id} FROM gone ON CONFLICT DO NOTHING
        )
        SELECT count(*) FROM gone
        """,
        **dates,
    )
    if not vanished:
        return []
    return [
        f"{counted(vanished, 'row')} of older exports from {dates['first']} to {dates['last']} "
        f"{'are' if vanished != 1 else 'is'} not in this one; kept, and listed in raw.vanished_rows"
    ]
