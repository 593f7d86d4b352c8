"""Reports vanished rows, which are kept: rows of older exports that the newest export of their dates lacks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, LiteralString, NamedTuple

from psycopg import sql

from crm_analytics.analytics.ingest.loading.staging import Staged
from crm_analytics.analytics.ingest.reading.pull_line import Coverage
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


class _Window(NamedTuple):
    """The rows that a file must have."""

    #: SQL condition over the table's row `t`.
    rows: sql.Composable
    words: str


def _window(staged: Staged) -> _Window | None:
    """Returns the rows that the staged file must have; None if it proves nothing.

    A pulled file says itself what it covers. An export has all rows of its dates, unless it was probably cut off, or has
    at most half of the rows known for them: then it is a selection.
    """
    pull = staged.open_file.pull
    if pull is not None:
        return None if pull.covers is None else _Window(_covered(staged, pull.covers), str(pull.covers))
    if staged.open_file.records.probably_cut_off:
        return None
    dates = span(staged)
    if not staged.exists(A_FEW_MORE, **dates):
        return None
    rows = staged.compose("t.{day} BETWEEN {first} AND {last}", **dates)
    return _Window(sql.SQL(rows), f"from {dates['first']} to {dates['last']}")


def _covered(staged: Staged, covers: Coverage) -> sql.Composable:
    column = sql.Identifier("t", covers.by)
    timezone = staged.open_file.records.facts.context.zone.timezone.key
    is_date = staged.source.staged_columns[covers.by] == "date"
    midnight = sql.SQL("{}::date" if is_date else "{}::timestamp AT TIME ZONE {}")
    conditions = [sql.SQL("{} IS NOT NULL").format(column)]
    if covers.first is not None:
        start = midnight.format(sql.Literal(covers.first.isoformat()), sql.Literal(timezone))
        conditions.append(sql.SQL("{} >= {}").format(column, start))
    if covers.last is not None:
        after = covers.last + timedelta(days=1)
        end = midnight.format(sql.Literal(after.isoformat()), sql.Literal(timezone))
        conditions.append(sql.SQL("{} < {}").format(column, end))
    return sql.SQL(" AND ").join(conditions)


def note_vanished(staged: Staged) -> list[str]:
    """Lists vanished rows in raw.vanished_rows, and forgets those that came back; returns the warning.

    The staged file is the newest of its source.
    """
    if staged.exists(VANISHED):
        staged.execute(
            """
            DELETE FROM raw.vanished_rows v USING pg_temp.staged s
            WHERE v.source = {source} AND v.row_key = {record_key}
            """
        )
    window = _window(staged)
    if window is None:
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
            WHERE {window}
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
        window=window.rows,
    )
    if not vanished:
        return []
    return [
        f"{counted(vanished, 'row')} of older exports {window.words} "
        f"{'are' if vanished != 1 else 'is'} not in this one; kept, and listed in raw.vanished_rows"
    ]
