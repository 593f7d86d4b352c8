"""Merges staged records into a table that has one row per record: set-based SQL that writes only what changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import compress
from typing import LiteralString

from psycopg import sql

from crm_analytics.analytics.ingest.loading import bulk
from crm_analytics.analytics.ingest.loading.alternate_keys import bring_keys
from crm_analytics.analytics.ingest.loading.late_files import NewerFiles, UnknownNewerValues
from crm_analytics.analytics.ingest.loading.ledger import Counts
from crm_analytics.analytics.ingest.loading.queries import SourceSession
from crm_analytics.analytics.ingest.loading.results import Merged
from crm_analytics.analytics.ingest.loading.staging import FEW, Staged
from crm_analytics.analytics.ingest.loading.vanished_rows import A_FEW_MORE, note_vanished, span

#: Records of which the table has the key. It is asked record by record, of the key's index: joined, the planner may read
#: the whole table for a few records.
KNOWN: LiteralString = "SELECT FROM pg_temp.staged s WHERE (SELECT true FROM {table} t WHERE {same_key})"


def fill_in_bulk(staged: Staged) -> bool:
    """Fills an empty table with many records, before any are settled that repeat a key: making the key finds these.

    Returns False if it can't be done (see `bulk.fill_table`); then nothing has changed.
    """
    return (
        staged.file_id is not None
        and sum(staged.days().values()) >= bulk.ENOUGH
        and is_empty(staged)
        and bulk.fill_table(
            staged.connection,
            staged.source,
            staged.file_id,
            lambda: _insert(staged, "staged"),
            was_empty=True,
        )
    )


def all_new(staged: Staged) -> Merged:
    """Returns what was done where every staged record made a row."""
    days = staged.days()
    merged = _merged(days)
    _note_inserted(merged, days)
    return merged


def merge_rows(staged: Staged, newer: NewerFiles, *, may_lock: bool) -> Merged:
    """Inserts new records and updates changed ones, except where a newer file has the record too.

    New records that at least double the table go the bulk way, if readers may be locked out.

    Raises:
        UnknownNewerValues: if only files that cannot be read again could tell which values are newer.
    """
    rekeyed = bring_keys(staged, newer)
    superseded = newer.remove_superseded(staged)
    if newer.lost:
        _refuse_if_unknowable(staged)
    days = staged.days()
    accepted = sum(days.values())
    merged = _merged(days)
    merged.counts.superseded = superseded
    if _are_all_new(staged, accepted):
        # what a pulled file says of itself needs no question
        ask = not newer.entries and staged.open_file.pull is None
        _insert(staged, "staged", then=[A_FEW_MORE] if ask else [])
        _note_inserted(merged, days)
    else:
        _find_changes(staged, rekeyed)
        if accepted > FEW:
            staged.execute("ANALYZE pg_temp.changes")
        _note_changes(staged, merged)
        if merged.counts.updated:
            _update(staged)
        merged.analyzed = may_lock and _double_in_bulk(staged, merged.counts)
        if merged.counts.inserted and not merged.analyzed:
            _insert(staged, "changes")
    merged.counts.unchanged = accepted - merged.counts.inserted - merged.counts.updated
    if not newer.entries:
        merged.warnings += note_vanished(staged)
    return merged


def _double_in_bulk(staged: Staged, counts: Counts) -> bool:
    """Inserts the new ones of `changes` in bulk, if nothing else changes and they are no fewer than the rows of the table.

    Then making the indexes again costs less than adding to them.
    """
    if counts.updated or counts.inserted < bulk.ENOUGH or staged.file_id is None:
        return False
    known = staged.value(
        "SELECT count(*) FROM (SELECT FROM {table} LIMIT {more}) t", more=counts.inserted + 1
    )
    return known <= counts.inserted and bulk.fill_table(
        staged.connection,
        staged.source,
        staged.file_id,
        lambda: _insert(staged, "changes"),
        was_empty=False,
    )


def _merged(days: dict[date, int]) -> Merged:
    return Merged(Counts(), first_date=min(days, default=None), last_date=max(days, default=None))


def _note_inserted(merged: Merged, days: dict[date, int]) -> None:
    for day, rows in days.items():
        merged.note_changes(day.replace(day=1), rows)
        merged.counts.inserted += rows


def _find_changes(staged: Staged, rekeyed: bool) -> None:
    """Puts new and changed records into the temporary table `changes`, and those whose row got its key just now."""
    forced: LiteralString = "OR s.{key_column} IN (SELECT new_key FROM pg_temp.rekeyed)" if rekeyed else ""
    staged.create_temporary(
        "changes",
        """
        SELECT s.*, t.{key_column} IS NULL AS is_new, t.{day} AS old_date
        FROM pg_temp.staged s LEFT JOIN {table} t ON {same_key}
        WHERE t.{key_column} IS NULL OR ({row_values}) IS DISTINCT FROM ({record_values}) """
        + forced,
    )


def _note_changes(staged: Staged, merged: Merged) -> None:
    """Counts new and changed records; one whose date changed counts for both months."""
    for is_new, day, old_date, records in staged.execute(
        "SELECT s.is_new, s.{day}, s.old_date, count(*) FROM pg_temp.changes s GROUP BY 1, 2, 3"
    ):
        if is_new:
            merged.counts.inserted += records
        else:
            merged.counts.updated += records
        for month in {day.replace(day=1), (old_date or day).replace(day=1)}:
            merged.note_changes(month, records)


def _update(staged: Staged) -> None:
    staged.execute(
        """
        UPDATE {table} t SET ({values}) = ROW ({record_values}), file_id = {file_id}, record_no = s.record_no,
            updated_at = now()
        FROM pg_temp.changes s WHERE NOT s.is_new AND {same_key}
        """
    )


def _insert(staged: Staged, records: LiteralString, *, then: Sequence[LiteralString] = ()) -> None:
    """Inserts the records of `staged`, or the new ones of `changes`, and asks what is asked of the table afterwards."""
    joins, found = _lookups(staged)
    staged.ask(
        """
        INSERT INTO {table} ({row_columns}, {found_columns} file_id, record_no)
        SELECT {new_row}, {found} {file_id}, s.record_no FROM pg_temp.{records} s {joins} WHERE {new}
        """,
        then,
        found_columns=sql.SQL("").join(sql.SQL("{}, ").format(sql.Identifier(name)) for name in found),
        found=sql.SQL("").join(sql.SQL("{}, ").format(value) for value in found.values()),
        records=sql.Identifier(records),
        joins=sql.SQL(" ").join(joins),
        new=sql.SQL("s.is_new" if records == "changes" else "true"),
        **(span(staged) if then else {}),
    )


def _are_all_new(staged: Staged, accepted: int) -> bool:
    """Returns whether the table has none of the records, as far as that is quicker to tell than what changed in each."""
    if accepted > FEW:
        return is_empty(staged)
    return not staged.exists(KNOWN)


def is_empty(session: SourceSession) -> bool:
    """Returns whether the source's table has no rows."""
    return not session.value("SELECT EXISTS (SELECT FROM {table})")


def _lookups(staged: Staged) -> tuple[list[sql.Composed], dict[str, sql.Composed]]:
    """Returns the joins that find what new rows refer to, and by column the SQL of what they find.

    A join that can find nothing is left out.
    """
    reference = staged.source.reference
    if reference is None:
        return [], {}
    present = staged.row(
        "SELECT {present}",
        present=sql.SQL(", ").join(
            sql.SQL("EXISTS (SELECT FROM pg_temp.staged s WHERE {} IS NOT NULL)").format(
                sql.Identifier("s", lookup.staged)
            )
            for lookup in reference.lookups
        ),
    )
    joins, found = [], []
    for lookup in compress(reference.lookups, present):
        alias = f"by_{lookup.by}"
        joins.append(
            sql.SQL("LEFT JOIN {} {} ON {} = {}").format(
                sql.Identifier(*lookup.relation.split(".")),
                sql.Identifier(alias),
                sql.Identifier(alias, lookup.by),
                sql.Identifier("s", lookup.staged),
            )
        )
        found.append(sql.Identifier(alias, reference.column))
    if not found:
        return [], {}
    return joins, {reference.column: sql.SQL("coalesce({})").format(sql.SQL(", ").join(found))}


def _refuse_if_unknowable(staged: Staged) -> None:
    """Refuses records that differ from rows of older files when newer files are gone: either may be the newer one."""
    records, example = staged.row(
        """
        SELECT count(*), min({record_key}) FROM pg_temp.staged s JOIN {table} t ON {same_key}
        WHERE t.file_id IS DISTINCT FROM {file_id} AND ({row_values}) IS DISTINCT FROM ({record_values})
        """
    )
    if records:
        raise UnknownNewerValues(records, example)
