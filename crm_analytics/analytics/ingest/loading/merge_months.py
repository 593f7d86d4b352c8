"""Merges a file into a table of monthly totals: the newest file that covers a month replaces the month's rows.

A file with quarantined records of a month does not have the complete month. Of such files the newest that names a part
of the month counts for it, and only until a file has the complete month.
"""

from __future__ import annotations

from datetime import date

from crm_analytics.analytics.ingest.loading.late_files import NewerFiles, UnknownNewerValues
from crm_analytics.analytics.ingest.loading.ledger import Counts
from crm_analytics.analytics.ingest.loading.results import Merged
from crm_analytics.analytics.ingest.loading.staging import Staged
from crm_analytics.core.wording import counted


def merge_months(staged: Staged, newer: NewerFiles) -> Merged:
    """Replaces the months that the file has complete, and adds to those that no file has complete.

    Raises:
        UnknownNewerValues: if only files that cannot be read again could tell which totals are newer.
    """
    staged.create_temporary(
        "totals",
        """
        SELECT {keys}, round(sum({amount}), 2) AS {amount}, max({covered_to}) AS {covered_to},
            min(record_no) AS record_no, count(*) AS records, {complete_month} AS complete_month
        FROM pg_temp.staged s GROUP BY {keys}
        """,
        complete_month=staged.complete_month,
    )
    merged = Merged(Counts(superseded=newer.remove_superseded_months()))
    _yield_to_complete_months(staged, merged)
    if newer.lost:
        _refuse_if_unknowable(staged)
    merged.first_date, merged.last_date, accepted = staged.row(
        "SELECT min({day}), max({covered_to}), coalesce(sum(records), 0)::int FROM pg_temp.totals"
    )
    removed = _remove_others(staged)
    _write(staged, merged)
    merged.counts.unchanged = accepted - merged.counts.inserted - merged.counts.updated
    part = staged.source.key.columns[-1]
    for month, rows, gone in removed:
        merged.note_changes(month, rows)
        if gone:
            merged.warnings.append(
                f"{month:%Y-%m}: removed {counted(gone, part)} of an older file, not in this one"
            )
    return merged


def _yield_to_complete_months(staged: Staged, merged: Merged) -> None:
    """Drops totals of months of which this file has only a part and another has all; warns of months that stay incomplete."""
    for month, records in staged.execute(
        """
        WITH gone AS (
            DELETE FROM pg_temp.totals n
            WHERE NOT n.complete_month AND EXISTS (
                SELECT FROM {table} t
                WHERE t.{day} = n.{day} AND t.complete_month AND t.file_id IS DISTINCT FROM {file_id}
            )
            RETURNING n.{day}, n.records
        )
        SELECT {day}, sum(records)::int FROM gone GROUP BY {day} ORDER BY {day}
        """
    ):
        merged.counts.superseded += records
        merged.warnings.append(
            f"{month:%Y-%m}: this file has quarantined records of the month, so the month stays as in the file that"
            " has it complete; correct the records, or export the month again"
        )
    for (month,) in staged.execute(
        "SELECT DISTINCT {day} FROM pg_temp.totals WHERE NOT complete_month ORDER BY {day}"
    ):
        merged.warnings.append(
            f"{month:%Y-%m}: incomplete, because this file has quarantined records of the month"
        )


def _refuse_if_unknowable(staged: Staged) -> None:
    """Refuses totals that differ from rows of older files when newer files are gone: either may be the newer one."""
    records, example = staged.row(
        """
        SELECT coalesce(sum(n.records), 0), min(to_char({day}, 'YYYY-MM'))
        FROM pg_temp.totals n LEFT JOIN {table} same USING ({keys}, {amount}, {covered_to})
        WHERE same.updated_at IS NULL AND EXISTS (
            SELECT FROM {table} t
            WHERE t.{day} = n.{day} AND t.file_id IS DISTINCT FROM {file_id} AND (t.complete_month OR NOT n.complete_month)
        )
        """
    )
    if records:
        raise UnknownNewerValues(records, example)


def _remove_others(staged: Staged) -> list[tuple[date, int, int]]:
    """Removes rows that the file replaces under other keys: all of its complete months, named parts of the others.

    Returns by month how many rows these were, and of how many parts that the file does not name.
    """
    return staged.execute(
        """
        WITH gone AS (
            DELETE FROM {table}
            WHERE (
                {day} IN (SELECT {day} FROM pg_temp.totals WHERE complete_month)
                OR ({day}, {part}) IN (SELECT {day}, {part} FROM pg_temp.totals)
            ) AND ({keys}) NOT IN (SELECT {keys} FROM pg_temp.totals)
            RETURNING {day}, {part}
        )
        SELECT {day}, count(*),
            count(DISTINCT {part}) FILTER (WHERE ({day}, {part}) NOT IN (SELECT {day}, {part} FROM pg_temp.totals))
        FROM gone GROUP BY {day} ORDER BY {day}
        """
    ).fetchall()


def _write(staged: Staged, merged: Merged) -> None:
    """Inserts new totals and updates changed ones."""
    for month, is_new, records, rows in staged.execute(
        """
        WITH written AS (
            INSERT INTO {table} ({keys}, {amount}, {covered_to}, complete_month, file_id, record_no)
            SELECT {keys}, n.{amount}, n.{covered_to}, n.complete_month, {file_id}, n.record_no
            FROM pg_temp.totals n LEFT JOIN {table} t USING ({keys})
            WHERE t.updated_at IS NULL
                OR (t.{amount}, t.{covered_to}, t.complete_month) IS DISTINCT FROM (n.{amount}, n.{covered_to}, n.complete_month)
            ON CONFLICT ({keys}) DO UPDATE SET {amount} = excluded.{amount}, {covered_to} = excluded.{covered_to},
                complete_month = excluded.complete_month, file_id = excluded.file_id, record_no = excluded.record_no, updated_at = now()
            RETURNING {keys}
        )
        -- the table is read as it was before the write
        SELECT {day}, t.updated_at IS NULL, sum(n.records)::int, count(*)
        FROM written JOIN pg_temp.totals n USING ({keys}) LEFT JOIN {table} t USING ({keys})
        GROUP BY 1, 2
        """
    ):
        if is_new:
            merged.counts.inserted += records
        else:
            merged.counts.updated += records
        merged.note_changes(month, rows)
