"""From an open export file into a temporary table: COPY while the next batch is parsed, repeats sorted out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any, LiteralString

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb
from pyarrow import csv

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.loading.plans import Plan
from crm_analytics.analytics.ingest.reading.batches import Rejected
from crm_analytics.analytics.ingest.reading.open_file import OpenFile

Connection = psycopg.Connection[Any]
FEW = 1000  #: with so few records any plan is good, and statistics cost more than they save
_CSV = csv.WriteOptions(include_header=False)


@dataclass
class Staged:
    """A file's records in the temporary table `staged`, and what was left out of it."""

    open_file: OpenFile
    plan: Plan
    numbers_only: bool  #: a jobs file without UUIDs: job_id holds the number until it is matched
    rejected: int = 0
    duplicates: int = 0
    #: Google spend: months of quarantined records, None where one's month cannot be read
    partial_months: set[date | None] = field(default_factory=set)

    @property
    def whole(self) -> sql.Composable:
        """SQL over `s`: whether the file has no quarantined record of the month (Google spend)."""
        if None in self.partial_months:
            return sql.SQL("false")
        return sql.SQL("s.month <> ALL ({}::date[])").format(sql.Literal(list(self.partial_months)))


def stage(connection: Connection, open_file: OpenFile, plan: Plan, file_id: int | None) -> Staged:
    """Copy a file's good records into the temporary table `staged` and its bad ones into the quarantine.

    Identical records of one key are collapsed; records of one key that differ are quarantined, all of them. Keys
    made of a hash get their occurrence numbers.

    Args:
        connection: inside a transaction; the table goes with it.
        open_file: the file.
        plan: of its source.
        file_id: its ledger entry; None to write no quarantine (only the accepted keys are wanted).

    Raises:
        RefusedFile: by the reader, for what it finds only while reading.
    """
    staged = Staged(open_file, plan, plan.source.name == "jobs" and "job_id" not in open_file.mapping)
    _create(connection, plan)
    names = [name for name, _ in plan.source.staged_columns]
    copy_rows = sql.SQL("COPY pg_temp.staged ({}) FROM STDIN (FORMAT csv)").format(
        sql.SQL(", ").join(map(sql.Identifier, ["record_no", *names]))
    )
    for rows, rejected in _read_ahead(staged):
        if rows:
            with connection.cursor() as cursor, cursor.copy(copy_rows) as copy:
                copy.write(rows)
        if rejected and file_id is not None:
            _quarantine(connection, file_id, plan, rejected)
        staged.rejected += len(rejected)
        if plan.source.name == "google_spend":
            staged.partial_months.update(row.day for row in rejected)
    if (
        open_file.records_read > FEW
    ):  # the key decides how to join; statistics of the rest cost time for nothing
        keys = [sql.Identifier(column.removeprefix("s.")) for _, column in plan.identity]
        connection.execute(sql.SQL("ANALYZE pg_temp.staged ({})").format(sql.SQL(", ").join(keys)))
    _settle_repeats(connection, staged, file_id)
    return staged


def _create(connection: Connection, plan: Plan) -> None:
    columns: list[sql.Composable] = [sql.SQL("record_no int NOT NULL")]
    columns += [
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(sql_type))
        for name, sql_type in plan.source.staged_columns
    ]
    if plan.hashed_key:
        columns.append(sql.SQL("occurrence int NOT NULL DEFAULT 1"))
        columns.append(
            sql.SQL("row_key text GENERATED ALWAYS AS ({}) STORED").format(sql.SQL(plan.hashed_key))
        )
    connection.execute(
        sql.SQL("DROP TABLE IF EXISTS pg_temp.staged; CREATE TEMP TABLE staged ({}) ON COMMIT DROP").format(
            sql.SQL(", ").join(columns)
        )
    )


def _read_ahead(staged: Staged) -> Iterator[tuple[bytes, list[Rejected]]]:
    """Batches as CSV for COPY; the next one is parsed in a thread while the database takes this one."""
    batches = staged.open_file.batches()

    def encode_next() -> tuple[bytes, list[Rejected]] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        rows = batch.rows
        if staged.numbers_only:
            rows = rows.set_column(rows.schema.get_field_index("job_id"), "job_id", rows["job_number"])
        rows = _with_written_moments(rows)
        sink = pa.BufferOutputStream()
        csv.write_csv(rows, sink, _CSV)
        return sink.getvalue().to_pybytes() if rows.num_rows else b"", batch.rejected

    with ThreadPoolExecutor(1, "reader") as pool:
        upcoming = pool.submit(encode_next)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(encode_next)
            yield item


def _with_written_moments(rows: pa.Table) -> pa.Table:
    """Moments as text, each distinct one written once: most exports have dates, and a batch has few of these."""
    for number, column in enumerate(rows.schema):
        if pa.types.is_timestamp(column.type):
            encoded = rows[column.name].combine_chunks().dictionary_encode()
            written = encoded.dictionary.cast(pa.string()).take(encoded.indices)
            rows = rows.set_column(number, column.name, written)
    return rows


def _quarantine(connection: Connection, file_id: int, plan: Plan, rejected: list[Rejected]) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY raw.rejected_rows (file_id, source, record_no, line_no, row_key, reasons, record) FROM STDIN"
        ) as copy,
    ):
        for row in rejected:
            record_no, line_no, record = row.as_found
            key = None if row.key is None else _storable(row.key)
            reasons = Jsonb([_storable_values(reason.as_dict()) for reason in row.reasons])
            values = (record_no, line_no, key, reasons, Jsonb(_storable_values(record)))
            copy.write_row((file_id, plan.source.name, *values))


def _storable_values(texts: dict[str, str]) -> dict[str, str]:
    return {_storable(name): _storable(text) for name, text in texts.items()}


def _storable(text: str) -> str:
    """PostgreSQL's text holds no NUL and no lone surrogate; a damaged cell is quarantined without them."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _settle_repeats(connection: Connection, staged: Staged, file_id: int | None) -> None:
    """Collapse identical records of one key, quarantine different ones, number the occurrences of a hash."""
    plan = staged.plan
    key = sql.SQL(plan.key)
    repeated = sql.SQL("SELECT {} AS row_key FROM pg_temp.staged s GROUP BY 1 HAVING count(*) > 1").format(
        key
    )
    if connection.execute(repeated + sql.SQL(" LIMIT 1")).fetchone() is None:
        return
    connection.execute(
        sql.SQL(
            "DROP TABLE IF EXISTS pg_temp.repeated; CREATE TEMP TABLE repeated ON COMMIT DROP AS {}"
        ).format(repeated)
    )
    if plan.hashed_key:
        connection.execute(
            "UPDATE pg_temp.staged s SET occurrence = numbered.occurrence FROM ("
            "  SELECT s.record_no, row_number() OVER (PARTITION BY s.row_key ORDER BY s.record_no) AS occurrence"
            "  FROM pg_temp.staged s JOIN pg_temp.repeated r USING (row_key)"
            f"  WHERE {plan.numbered}) numbered"
            " WHERE numbered.occurrence > 1 AND s.record_no = numbered.record_no"
        )
        if not plan.given_key:
            return
    connection.execute(
        sql.SQL(
            "DROP TABLE IF EXISTS pg_temp.conflicting; CREATE TEMP TABLE conflicting ON COMMIT DROP AS"
            " SELECT r.row_key, to_jsonb(array_remove(ARRAY[{differing}], NULL)) AS reasons"
            " FROM pg_temp.staged s JOIN pg_temp.repeated r ON r.row_key = {key} GROUP BY r.row_key"
        ).format(differing=sql.SQL(", ").join(_differences(staged)), key=key)
    )
    if plan.source.name == "google_spend":
        staged.partial_months.update(
            month
            for (month,) in connection.execute(
                sql.SQL(
                    "SELECT DISTINCT s.month FROM pg_temp.staged s JOIN pg_temp.conflicting c ON c.row_key = {key}"
                    " WHERE c.reasons <> '[]'"
                ).format(key=key)
            )
        )
    if file_id is not None:
        quarantine_staged(
            connection,
            staged,
            file_id,
            "JOIN pg_temp.conflicting c ON c.row_key = {key} WHERE c.reasons <> '[]'",
            sql.SQL("c.reasons"),
        )
    staged.rejected += connection.execute(
        sql.SQL(
            "DELETE FROM pg_temp.staged s USING pg_temp.conflicting c"
            " WHERE c.row_key = {key} AND c.reasons <> '[]'"
        ).format(key=key)
    ).rowcount
    staged.duplicates += connection.execute(
        sql.SQL(
            "DELETE FROM pg_temp.staged s USING ("
            " SELECT {key} AS row_key, min(s.record_no) AS record_no FROM pg_temp.staged s"
            " JOIN pg_temp.conflicting c ON c.row_key = {key} WHERE c.reasons = '[]' GROUP BY 1) first"
            " WHERE first.row_key = {key} AND s.record_no <> first.record_no"
        ).format(key=key)
    ).rowcount


def _differences(staged: Staged) -> Iterator[sql.Composable]:
    """Yields, by staged column, SQL of the reason why records of one key conflict; NULL if they agree."""
    personal = {column.name for column in staged.plan.source.columns if column.personal}
    for name, _ in staged.plan.source.staged_columns:
        header = staged.open_file.mapping.get(name, name)
        reason = Reason("conflicting_records", header, accepted="identical records, or one")
        found: LiteralString = (
            "left(string_agg(DISTINCT coalesce(left(s.{column}::text, 80), '(blank)'), ' | '), 1000)"
        )
        yield sql.SQL(
            "CASE WHEN count(DISTINCT s.{column}) + (count(*) > count(s.{column}))::int > 1 THEN {reason} "
            + ("" if name in personal else f"|| jsonb_build_object('found', {found}) ")
            + "END"
        ).format(column=sql.Identifier(name), reason=as_sql(reason))


def as_sql(reason: Reason) -> sql.Literal:
    """Returns the reason as an SQL constant (jsonb)."""
    return sql.Literal(Jsonb(_storable_values(reason.as_dict())))


def quarantine_staged(
    connection: Connection, staged: Staged, file_id: int, which: LiteralString, reasons: sql.Composable
) -> None:
    """Write staged records into the quarantine (the caller deletes them from `staged`).

    Their cells as found are no longer known, so the file is read once more, for these records alone.

    Args:
        connection: inside the file's transaction.
        staged: the file.
        file_id: its ledger entry.
        which: SQL after `FROM pg_temp.staged s`; `{key}` is the record's key.
        reasons: SQL expression of the reasons (jsonb).
    """
    plan = staged.plan
    parts: dict[str, sql.Composable] = {"key": sql.SQL(plan.key), "reasons": reasons}
    chosen = connection.execute(
        sql.SQL("SELECT s.record_no FROM pg_temp.staged s " + which).format(**parts)
    ).fetchall()
    if not chosen:
        return
    connection.execute(
        "DROP TABLE IF EXISTS pg_temp.as_found;"
        "CREATE TEMP TABLE as_found (record_no int, line_no int, record jsonb) ON COMMIT DROP"
    )
    for records in staged.open_file.as_found({number for (number,) in chosen}):
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY pg_temp.as_found (record_no, line_no, record) FROM STDIN") as copy,
        ):
            for record_no, line_no, record in records:
                copy.write_row((record_no, line_no, Jsonb(_storable_values(record))))
    connection.execute(
        sql.SQL(
            "INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, row_key, reasons, record)"
            " SELECT {file_id}, {source}, s.record_no, found.line_no, {key}, {reasons}, found.record"
            " FROM pg_temp.staged s JOIN pg_temp.as_found found ON found.record_no = s.record_no " + which
        ).format(file_id=sql.Literal(file_id), source=sql.Literal(plan.source.name), **parts)
    )
