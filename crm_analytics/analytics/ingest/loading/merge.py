"""Merging staged records into the raw tables: set-based SQL, only changed rows written, every record counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.loading.late_files import NewerFiles
from crm_analytics.analytics.ingest.loading.ledger import Counts
from crm_analytics.analytics.ingest.loading.plans import Plan
from crm_analytics.analytics.ingest.loading.staging import FEW, Staged, as_sql, quarantine_staged

Connection = psycopg.Connection[Any]


class UnknownNewerValues(Exception):
    """A late file's records may be older than what a file that is no longer there said: (how many, an example)."""

    def __init__(self, records: int, example: str) -> None:
        super().__init__(f"{records} records, e.g. {example}")
        self.records = records
        self.example = example


@dataclass
class Merged:
    """What merging did to the table."""

    counts: Counts
    changed_by_month: dict[date, int] = field(default_factory=dict)  #: rows inserted, updated or removed
    first_date: date | None = None
    last_date: date | None = None
    warnings: list[str] = field(default_factory=list)


def merge(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> Merged:
    """Apply the staged file to its table as if it had come in its turn (architecture, decisions 3 and 8).

    Runs inside the file's transaction, with the source's lock held. Quarantines what only the tables can tell
    (a job number that names several jobs).

    Raises:
        UnknownNewerValues: see there; the caller rolls back and refuses the file.
    """
    source = staged.plan.source.name
    if source in ("jobs", "payments"):
        connection.execute("SELECT raw.lock_links()")
    if source == "jobs":
        _match_numbers(connection, staged, file_id)
    _close_quarantine(connection, staged, file_id, newer)
    result = _spend(connection, staged, file_id, newer) if source == "google_spend" else None
    if result is None:
        result = _rows(connection, staged, file_id, newer)
    result.counts.duplicates = staged.duplicates
    result.counts.quarantined = staged.rejected
    _analyze_if_grown(connection, staged.plan, sum(result.changed_by_month.values()))
    return result


# -- jobs and numbers ----------------------------------------------------------------------------------------


def _match_numbers(connection: Connection, staged: Staged, file_id: int) -> None:
    """Give records that have only a number the id of the one job with that number (inputs.md, Payments)."""
    if not staged.numbers_only:
        return
    connection.execute(
        "DROP TABLE IF EXISTS pg_temp.numbers; CREATE TEMP TABLE numbers ON COMMIT DROP AS"
        " SELECT j.job_number, min(j.job_id) AS job_id, count(*) AS jobs,"
        "  left(string_agg(j.job_id, ', ' ORDER BY j.job_id), 200) AS job_ids"
        " FROM raw.jobs j WHERE j.job_number IN (SELECT s.job_number FROM pg_temp.staged s)"
        " GROUP BY j.job_number"
    )
    reason = Reason(
        "ambiguous_job_number",
        staged.open_file.mapping["job_number"],
        accepted="a number that names one job, or an export with the UUID column",
    )
    found: LiteralString = "format('%s (%s jobs: %s)', s.job_number, n.jobs, n.job_ids)"
    quarantine_staged(
        connection,
        staged,
        file_id,
        "JOIN pg_temp.numbers n ON n.job_number = s.job_number WHERE n.jobs > 1",
        sql.SQL("jsonb_build_array({} || jsonb_build_object('found', " + found + "))").format(as_sql(reason)),
    )
    staged.rejected += connection.execute(
        "DELETE FROM pg_temp.staged s USING pg_temp.numbers n WHERE n.job_number = s.job_number AND n.jobs > 1"
    ).rowcount
    connection.execute(
        "UPDATE pg_temp.staged s SET job_id = n.job_id FROM pg_temp.numbers n"
        " WHERE n.job_number = s.job_number AND n.job_id <> s.job_id"
    )


def _rekey(connection: Connection, staged: Staged, newer: NewerFiles) -> bool:
    """Rows known by their number alone get the UUID that a record brings for that number.

    The rows' new keys stand in the temporary table `rekeyed`; says whether there are any.
    """
    if staged.numbers_only or not _one(
        connection, "SELECT EXISTS (SELECT FROM raw.jobs WHERE job_id = job_number)"
    ):
        return False
    connection.execute(
        "DROP TABLE IF EXISTS pg_temp.rekeyed; CREATE TEMP TABLE rekeyed ON COMMIT DROP AS"
        " SELECT t.job_id AS old_id, s.job_id AS new_id FROM raw.jobs t JOIN ("
        "  SELECT s.job_number, min(s.job_id) AS job_id FROM pg_temp.staged s WHERE s.job_number IS NOT NULL"
        "  GROUP BY s.job_number HAVING count(*) = 1) s ON s.job_number = t.job_number"
        " WHERE t.job_id = t.job_number AND s.job_id <> t.job_id AND NOT EXISTS ("
        "  SELECT FROM raw.jobs o WHERE o.job_number = t.job_number AND o.job_id NOT IN (t.job_id, s.job_id))"
    )
    newer.keep_numbers_given_anew()
    # a job that is known under both names is one job: what the newer record says holds
    connection.execute(
        "DELETE FROM raw.jobs t USING pg_temp.rekeyed r"
        " WHERE t.job_id = r.old_id AND EXISTS (SELECT FROM raw.jobs o WHERE o.job_id = r.new_id)"
    )
    connection.execute(
        "UPDATE raw.jobs t SET job_id = r.new_id FROM pg_temp.rekeyed r WHERE t.job_id = r.old_id"
    )
    return bool(_one(connection, "SELECT EXISTS (SELECT FROM pg_temp.rekeyed)"))


# -- tables with one row a record ----------------------------------------------------------------------------


def _rows(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> Merged:
    plan = staged.plan
    table = plan.table
    day = sql.Identifier(plan.source.date_column)
    rekeyed = plan.source.name == "jobs" and _rekey(connection, staged, newer)
    superseded = newer.remove_superseded(staged)
    if newer.lost:
        _refuse_if_unknowable(connection, staged, file_id)
    first, last, accepted = _fetch_one(
        connection,
        sql.SQL("SELECT min(s.{day}), max(s.{day}), count(*) FROM pg_temp.staged s").format(day=day),
    )
    values = [sql.Identifier(name) for name in plan.values]
    parts: dict[str, sql.Composable] = {
        "table": table,
        "day": day,
        "match": sql.SQL(plan.match),
        "theirs": sql.SQL(", ").join(sql.SQL("t.{}").format(name) for name in values),
        "ours": sql.SQL(", ").join(sql.SQL("s.{}").format(name) for name in values),
        "key": sql.Identifier(plan.identity[0][0]),
        "forced": sql.SQL("OR s.job_id IN (SELECT new_id FROM pg_temp.rekeyed)" if rekeyed else ""),
    }
    months: dict[date, int] = {}
    updated = 0
    fresh: LiteralString = "staged"
    if _one(connection, sql.SQL("SELECT EXISTS (SELECT FROM {table})").format(**parts)):
        fresh = "changes"
        connection.execute(
            sql.SQL(
                "DROP TABLE IF EXISTS pg_temp.changes; CREATE TEMP TABLE changes ON COMMIT DROP AS"
                " SELECT s.*, t.{key} IS NULL AS is_new, t.{day} AS old_date"
                " FROM pg_temp.staged s LEFT JOIN {table} t ON {match}"
                " WHERE t.{key} IS NULL OR ({theirs}) IS DISTINCT FROM ({ours}) {forced}"
            ).format(**parts)
        )
        if accepted > FEW:
            connection.execute("ANALYZE pg_temp.changes")
        updated = connection.execute(
            sql.SQL(
                "UPDATE {table} t SET ({columns}) = ROW ({ours}), file_id = {file_id}, record_no = s.record_no,"
                " updated_at = now() FROM pg_temp.changes s WHERE NOT s.is_new AND {match}"
            ).format(columns=sql.SQL(", ").join(values), file_id=sql.Literal(file_id), **parts)
        ).rowcount
        for month, count in connection.execute(
            sql.SQL(
                "SELECT date_trunc('month', moved.day)::date, count(DISTINCT s.record_no) FROM pg_temp.changes s,"
                " LATERAL (VALUES (s.{day}), (s.old_date)) AS moved (day) WHERE NOT s.is_new GROUP BY 1"
            ).format(**parts)
        ):
            months[month] = months.get(month, 0) + count
    inserted = 0
    for month, count in connection.execute(_insertion(connection, staged, file_id, fresh)):
        months[month] = months.get(month, 0) + count
        inserted += count
    warnings = [] if fresh == "staged" else _note_vanished(connection, staged, file_id, newer)
    return Merged(
        Counts(
            inserted=inserted,
            updated=updated,
            unchanged=accepted - inserted - updated,
            superseded=superseded,
        ),
        months,
        first,
        last,
        warnings,
    )


def _note_vanished(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> list[str]:
    """Report rows of older exports that this newest one, which covers their dates, has not (decision 9).

    They are kept. A file with at most half of the rows that are known for its dates is a selection, not an
    export of them all; one that was probably cut off proves nothing either.
    """
    plan = staged.plan
    if newer.entries or plan.row_key is None:
        return []
    parts: dict[str, sql.Composable] = {
        "table": plan.table,
        "day": sql.Identifier(plan.source.date_column),
        "row_key": sql.SQL(plan.row_key),
        "key": sql.SQL(plan.key),
        "match": sql.SQL(plan.match),
        "source": sql.Literal(plan.source.name),
        "file_id": sql.Literal(file_id),
    }
    if _one(
        connection,
        sql.SQL("SELECT EXISTS (SELECT FROM raw.vanished_rows WHERE source = {source})").format(**parts),
    ):
        connection.execute(
            sql.SQL(
                "DELETE FROM raw.vanished_rows v USING pg_temp.staged s WHERE v.source = {source} AND v.row_key = {key}"
            ).format(**parts)
        )
    if staged.open_file.probably_cut_off:
        return []
    first, last, here = _fetch_one(
        connection,
        sql.SQL("SELECT min(s.{day}), max(s.{day}), count(*) FROM pg_temp.staged s").format(**parts),
    )
    parts |= {"first": sql.Literal(first), "last": sql.Literal(last)}
    known = _one(
        connection,
        sql.SQL("SELECT count(*) FROM {table} t WHERE t.{day} BETWEEN {first} AND {last}").format(**parts),
    )
    # every staged record is a row between these dates by now
    if not here < known < 2 * here:
        return []
    parts["unread"] = sql.SQL(
        "SELECT r.row_key FROM raw.rejected_rows r WHERE r.file_id = {file_id} AND r.row_key IS NOT NULL"
    ).format(**parts)
    by_number: LiteralString = (
        " AND coalesce(t.job_number, '') NOT IN ({unread})" if plan.source.name == "jobs" else ""
    )
    vanished = _one(
        connection,
        sql.SQL(
            "WITH gone AS (SELECT {row_key} AS row_key FROM {table} t WHERE t.{day} BETWEEN {first} AND {last}"
            "  AND NOT EXISTS (SELECT FROM pg_temp.staged s WHERE {match})"
            "  AND {row_key} NOT IN ({unread})" + by_number + "),"
            " noted AS (INSERT INTO raw.vanished_rows (source, row_key, file_id)"
            "  SELECT {source}, row_key, {file_id} FROM gone ON CONFLICT DO NOTHING)"
            " SELECT count(*) FROM gone"
        ).format(**parts),
    )
    if not vanished:
        return []
    return [
        f"{vanished:,} row{'s' if vanished != 1 else ''} of older exports from {first} to {last} "
        f"{'are' if vanished != 1 else 'is'} not in this one; kept, and listed in raw.vanished_rows"
    ]


def _insertion(connection: Connection, staged: Staged, file_id: int, fresh: LiteralString) -> sql.Composed:
    """Insert the new records; returns rows by month."""
    plan = staged.plan
    columns = [name for name, _ in plan.identity] + list(plan.values)
    expressions: list[sql.Composable] = [sql.SQL(expression) for _, expression in plan.identity]
    expressions += [sql.SQL("s.{}").format(sql.Identifier(name)) for name in plan.values]
    joins: LiteralString = ""
    if plan.source.name == "payments":
        # the same two joins as in raw.relink_payments; a join that can find nothing is left out
        by_id, by_number = _fetch_one(
            connection,
            sql.SQL(
                "SELECT bool_or(s.job_id_ref IS NOT NULL), bool_or(s.job_number_ref IS NOT NULL)"
                " FROM pg_temp.staged s"
            ),
        )
        found: list[LiteralString] = []
        if by_id:
            joins += " LEFT JOIN raw.jobs by_id ON by_id.job_id = s.job_id_ref"
            found.append("by_id.job_id")
        if by_number:
            joins += " LEFT JOIN raw.jobs_by_number by_number ON by_number.job_number = s.job_number_ref"
            found.append("by_number.job_id")
        if found:
            columns.append("job_id")
            expressions.append(sql.SQL("coalesce({})").format(sql.SQL(", ").join(map(sql.SQL, found))))
    return sql.SQL(
        "WITH added AS (INSERT INTO {table} ({columns}, file_id, record_no)"
        " SELECT {expressions}, {file_id}, s.record_no FROM {fresh} s {joins} {only_new} RETURNING {day})"
        " SELECT date_trunc('month', {day})::date, count(*) FROM added GROUP BY 1"
    ).format(
        table=plan.table,
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        expressions=sql.SQL(", ").join(expressions),
        file_id=sql.Literal(file_id),
        fresh=sql.Identifier("pg_temp", fresh),
        joins=sql.SQL(joins),
        only_new=sql.SQL("WHERE s.is_new" if fresh == "changes" else ""),
        day=sql.Identifier(plan.source.date_column),
    )


def _refuse_if_unknowable(connection: Connection, staged: Staged, file_id: int) -> None:
    """Newer files are gone: records that differ from rows of older files cannot be placed."""
    plan = staged.plan
    records, example = _fetch_one(
        connection,
        sql.SQL(
            "SELECT count(*), min({key}) FROM pg_temp.staged s JOIN {table} t ON {match}"
            " WHERE t.file_id IS DISTINCT FROM {file_id} AND ({theirs}) IS DISTINCT FROM ({ours})"
        ).format(
            key=sql.SQL(plan.key),
            table=plan.table,
            match=sql.SQL(plan.match),
            file_id=sql.Literal(file_id),
            theirs=sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in plan.values),
            ours=sql.SQL(", ").join(sql.SQL("s.{}").format(sql.Identifier(name)) for name in plan.values),
        ),
    )
    if records:
        raise UnknownNewerValues(records, example)


# -- Google spend: months are replaced -----------------------------------------------------------------------


def _spend(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> Merged:
    """The newest file that covers a month replaces that month's rows (metrics.md, Google spend).

    A file with quarantined records of a month does not have it whole: of such files the newest record of a campaign
    counts, and only until one has the month whole.
    """
    connection.execute(
        sql.SQL(
            "DROP TABLE IF EXISTS pg_temp.sums; CREATE TEMP TABLE sums ON COMMIT DROP AS"
            " SELECT s.month, s.campaign, round(sum(s.amount), 2) AS amount, max(s.covered_to) AS covered_to,"
            "  min(s.record_no) AS record_no, count(*) AS records, {whole} AS whole FROM pg_temp.staged s"
            " GROUP BY s.month, s.campaign"
        ).format(whole=staged.whole)
    )
    superseded = newer.remove_superseded_spend()
    warnings = []
    for month, records in connection.execute(
        "WITH gone AS (DELETE FROM pg_temp.sums n WHERE NOT n.whole AND EXISTS (SELECT FROM raw.google_spend t"
        "  WHERE t.month = n.month AND t.whole AND t.file_id IS DISTINCT FROM %s) RETURNING n.month, n.records)"
        " SELECT month, sum(records)::int FROM gone GROUP BY month ORDER BY month",
        [file_id],
    ).fetchall():
        superseded += records
        warnings.append(
            f"{month:%Y-%m}: this file has quarantined records of the month, so what another file says of the whole month"
            " stays; mend them, or export the month again"
        )
    for (month,) in connection.execute(
        "SELECT DISTINCT month FROM pg_temp.sums WHERE NOT whole ORDER BY month"
    ).fetchall():
        warnings.append(f"{month:%Y-%m}: incomplete, because this file has quarantined records of the month")
    if newer.lost:
        months, example = _fetch_one(
            connection,
            sql.SQL(
                "SELECT coalesce(sum(n.records), 0), min(to_char(n.month, 'YYYY-MM')) FROM pg_temp.sums n"
                " WHERE EXISTS (SELECT FROM raw.google_spend t WHERE t.month = n.month"
                "  AND t.file_id IS DISTINCT FROM {file_id} AND (t.whole OR NOT n.whole))"
                " AND NOT EXISTS (SELECT FROM raw.google_spend t WHERE (t.month, t.campaign, t.amount, t.covered_to)"
                "  = (n.month, n.campaign, n.amount, n.covered_to))"
            ).format(file_id=sql.Literal(file_id)),
        )
        if months:
            raise UnknownNewerValues(months, example)
    first, last = _fetch_one(connection, sql.SQL("SELECT min(month), max(covered_to) FROM pg_temp.sums"))
    months_changed: dict[date, int] = {}
    removed = connection.execute(
        "WITH gone AS (DELETE FROM raw.google_spend t"
        "  WHERE t.month IN (SELECT month FROM pg_temp.sums WHERE whole) AND NOT EXISTS ("
        "   SELECT FROM pg_temp.sums n WHERE (n.month, n.campaign) = (t.month, t.campaign)) RETURNING t.month)"
        " SELECT month, count(*) FROM gone GROUP BY month"
    ).fetchall()
    written = connection.execute(
        "WITH written AS (INSERT INTO raw.google_spend AS t"
        "  (month, campaign, amount, covered_to, whole, file_id, record_no)"
        "  SELECT n.month, n.campaign, n.amount, n.covered_to, n.whole, %s, n.record_no FROM pg_temp.sums n"
        "  LEFT JOIN raw.google_spend was ON (was.month, was.campaign) = (n.month, n.campaign)"
        "  WHERE was.month IS NULL OR (was.amount, was.covered_to, was.whole)"
        "   IS DISTINCT FROM (n.amount, n.covered_to, n.whole)"
        "  ON CONFLICT (month, campaign) DO UPDATE SET amount = excluded.amount, covered_to = excluded.covered_to,"
        "   whole = excluded.whole, file_id = excluded.file_id, record_no = excluded.record_no, updated_at = now()"
        "  RETURNING t.month, t.campaign)"
        " SELECT w.month, was.month IS NULL, sum(n.records), count(*) FROM written w"
        " JOIN pg_temp.sums n ON (n.month, n.campaign) = (w.month, w.campaign)"
        " LEFT JOIN raw.google_spend was ON (was.month, was.campaign) = (w.month, w.campaign)"  # as before the write
        " GROUP BY 1, 2",
        [file_id],
    ).fetchall()
    counts = Counts(superseded=superseded)
    for month, is_new, records, rows in written:
        if is_new:
            counts.inserted += int(records)
        else:
            counts.updated += int(records)
        months_changed[month] = months_changed.get(month, 0) + rows
    accepted = int(_one(connection, "SELECT coalesce(sum(records), 0) FROM pg_temp.sums"))
    counts.unchanged = accepted - counts.inserted - counts.updated
    for month, rows in sorted(removed):
        months_changed[month] = months_changed.get(month, 0) + rows
        warnings.append(
            f"{month:%Y-%m}: {rows} campaign{'s' if rows != 1 else ''} of an older file replaced: this file does not"
            " name them"
        )
    return Merged(counts, months_changed, first, last, warnings)


# -- shared --------------------------------------------------------------------------------------------------


def _close_quarantine(connection: Connection, staged: Staged, file_id: int, newer: NewerFiles) -> None:
    """Close what this file answers in older files, and what newer files answer in this one (decision 8)."""
    plan = staged.plan
    accepted: LiteralString = "r.row_key IN (SELECT {key} FROM pg_temp.staged s)"
    if plan.source.name == "jobs":
        # a record of a file without UUIDs was quarantined under its number; a number is no UUID of all digits
        accepted = (
            "CASE WHEN EXISTS (SELECT FROM raw.source_files f WHERE f.file_id = r.file_id AND f.mapping ? 'job_id')"
            " THEN r.row_key IN (SELECT s.job_id FROM pg_temp.staged s"
            + (" WHERE s.job_id <> s.job_number" if staged.numbers_only else "")
            + ") ELSE r.row_key IN (SELECT s.job_number FROM pg_temp.staged s) END"
        )
    if newer.older_ids and _one(
        connection,
        sql.SQL("SELECT EXISTS (SELECT FROM raw.rejected_rows WHERE source = {} AND status = 'open')").format(
            sql.Literal(plan.source.name)
        ),
    ):
        connection.execute(
            sql.SQL(
                "UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = {note}"
                " WHERE r.source = {source} AND r.status = 'open' AND r.file_id = ANY ({older})"
                " AND " + accepted
            ).format(
                note=sql.Literal(f"accepted from a newer export: {newer.name}"),
                source=sql.Literal(plan.source.name),
                older=sql.Literal(newer.older_ids),
                key=sql.SQL(plan.key),
            )
        )
    newer.close_answered(file_id)


def _analyze_if_grown(connection: Connection, plan: Plan, changed: int) -> None:
    """Fresh statistics for what follows (links, facts), where autovacuum would come too late."""
    if changed < FEW:
        return
    estimate = _one(
        connection,
        sql.SQL("SELECT reltuples FROM pg_class WHERE oid = {}::regclass").format(
            sql.Literal(plan.source.table)
        ),
    )
    if changed > 0.1 * estimate:
        connection.execute(sql.SQL("ANALYZE {}").format(plan.table))


def _fetch_one(connection: Connection, query: sql.SQL | sql.Composed) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)


def _one(connection: Connection, query: LiteralString | sql.Composed) -> Any:
    return _fetch_one(connection, sql.SQL(query) if isinstance(query, str) else query)[0]
