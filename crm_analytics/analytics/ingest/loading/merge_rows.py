"""Merges staged records into a table that has one row per record: set-based SQL that writes only what changed."""

from __future__ import annotations

from typing import LiteralString

from psycopg import sql

from crm_analytics.analytics.ingest.loading.alternate_keys import bring_keys
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
from crm_analytics.analytics.ingest.loading.staging import FEW, Staged
from crm_analytics.analytics.ingest.loading.vanished_rows import note_vanished


def merge_rows(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> Merged:
    """Inserts new records and updates changed ones, except where a newer file has the record too.

    Raises:
        UnknownNewerValues: if only files that cannot be read again could tell which values are newer.
    """
    source = staged.source
    rekeyed = bring_keys(connection, staged, newer)
    superseded = newer.remove_superseded(staged)
    if newer.lost:
        _refuse_if_unknowable(connection, staged, file_id)
    first, last, accepted = fetch_row(
        connection, source, "SELECT min(s.{day}), max(s.{day}), count(*) FROM pg_temp.staged s"
    )
    merged = Merged(Counts(superseded=superseded), first_date=first, last_date=last)
    # into an empty table go all staged records, which then need no comparison
    was_empty = not fetch_value(connection, source, "SELECT EXISTS (SELECT FROM {table})")
    if not was_empty:
        _find_changes(connection, staged, rekeyed)
        if accepted > FEW:
            connection.execute("ANALYZE pg_temp.changes")
        _update(connection, staged, file_id, merged)
    _insert(connection, staged, file_id, merged, was_empty)
    merged.counts.unchanged = accepted - merged.counts.inserted - merged.counts.updated
    if not was_empty:
        merged.warnings += note_vanished(connection, staged, file_id, newer)
    return merged


def _find_changes(connection: Connection, staged: Staged, rekeyed: bool) -> None:
    """Puts new and changed records into the temporary table `changes`, and those whose row got its key just now."""
    forced: LiteralString = "OR s.{key_column} IN (SELECT new_key FROM pg_temp.rekeyed)" if rekeyed else ""
    create_temporary(
        connection,
        staged.source,
        "changes",
        """
        SELECT s.*, t.{key_column} IS NULL AS is_new, t.{day} AS old_date
        FROM pg_temp.staged s LEFT JOIN {table} t ON {same_key}
        WHERE t.{key_column} IS NULL OR ({row_values}) IS DISTINCT FROM ({record_values}) """
        + forced,
    )


def _update(connection: Connection, staged: Staged, file_id: int, merged: Merged) -> None:
    source = staged.source
    merged.counts.updated = execute(
        connection,
        source,
        """
        UPDATE {table} t SET ({values}) = ROW ({record_values}), file_id = {file_id}, record_no = s.record_no,
            updated_at = now()
        FROM pg_temp.changes s WHERE NOT s.is_new AND {same_key}
        """,
        file_id=file_id,
    ).rowcount
    for month, rows in execute(
        connection,
        source,
        """
        SELECT date_trunc('month', moved.day)::date, count(DISTINCT s.record_no)
        FROM pg_temp.changes s, LATERAL (VALUES (s.{day}), (s.old_date)) AS moved (day)
        WHERE NOT s.is_new GROUP BY 1
        """,
    ):
        merged.note_changes(month, rows)


def _insert(connection: Connection, staged: Staged, file_id: int, merged: Merged, was_empty: bool) -> None:
    source = staged.source
    targets = [*source.key.columns, *source.value_columns]
    expressions: list[sql.Composable] = [
        sql.SQL("s.{}").format(sql.Identifier(name)) for name in (*source.staged_key, *source.value_columns)
    ]
    joins, found = _lookups(connection, staged)
    targets += found
    expressions += found.values()
    for month, rows in execute(
        connection,
        source,
        """
        WITH added AS (
            INSERT INTO {table} ({targets}, file_id, record_no)
            SELECT {expressions}, {file_id}, s.record_no FROM {records} s {joins} {only_new}
            RETURNING {day}
        )
        SELECT date_trunc('month', {day})::date, count(*) FROM added GROUP BY 1
        """,
        targets=sql.SQL(", ").join(map(sql.Identifier, targets)),
        expressions=sql.SQL(", ").join(expressions),
        file_id=file_id,
        records=sql.Identifier("pg_temp", "staged" if was_empty else "changes"),
        joins=sql.SQL(" ").join(joins),
        only_new=sql.SQL("" if was_empty else "WHERE s.is_new"),
    ):
        merged.note_changes(month, rows)
        merged.counts.inserted += rows


def _lookups(
    connection: Connection, staged: Staged
) -> tuple[list[sql.Composable], dict[str, sql.Composable]]:
    """Returns the joins that find what new rows refer to, and by column the SQL of what they find.

    A join that can find nothing is left out.
    """
    reference = staged.source.reference
    if reference is None:
        return [], {}
    joins: list[sql.Composable] = []
    found: list[sql.Composable] = []
    for lookup in reference.lookups:
        staged_column, alias = sql.Identifier("s", lookup.staged), f"by_{lookup.by}"
        if fetch_value(
            connection,
            staged.source,
            "SELECT EXISTS (SELECT FROM pg_temp.staged s WHERE {staged_column} IS NOT NULL)",
            staged_column=staged_column,
        ):
            joins.append(
                sql.SQL("LEFT JOIN {} {} ON {} = {}").format(
                    sql.Identifier(*lookup.relation.split(".")),
                    sql.Identifier(alias),
                    sql.Identifier(alias, lookup.by),
                    staged_column,
                )
            )
            found.append(sql.Identifier(alias, reference.column))
    if not found:
        return [], {}
    return joins, {reference.column: sql.SQL("coalesce({})").format(sql.SQL(", ").join(found))}


def _refuse_if_unknowable(connection: Connection, staged: Staged, file_id: int) -> None:
    """Refuses records that differ from rows of older files when newer files are gone: either may be the newer one."""
    records, example = fetch_row(
        connection,
        staged.source,
        """
        SELECT count(*), min({record_key}) FROM pg_temp.staged s JOIN {table} t ON {same_key}
        WHERE t.file_id IS DISTINCT FROM {file_id} AND ({row_values}) IS DISTINCT FROM ({record_values})
        """,
        file_id=file_id,
    )
    if records:
        raise UnknownNewerValues(records, example)
