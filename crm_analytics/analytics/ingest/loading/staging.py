"""Staging: copies an open file's records, mostly into a temporary table, and settles those that repeat a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any, LiteralString, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from pyarrow import csv

from crm_analytics.analytics.ingest.errors import Reason
from crm_analytics.analytics.ingest.loading.quarantine import (
    as_json,
    forget_quarantine,
    quarantine_rejected,
)
from crm_analytics.analytics.ingest.loading.queries import EMPTY, Connection, SourceSession
from crm_analytics.analytics.ingest.reading.batches import Rejected
from crm_analytics.analytics.ingest.reading.conventions import ReadDifferently
from crm_analytics.analytics.ingest.reading.csv_records import PIECE
from crm_analytics.analytics.ingest.reading.open_file import OpenFile
from crm_analytics.analytics.ingest.reading.totals import Verdict, compare
from crm_analytics.analytics.ingest.sources.declaration import column_list
from crm_analytics.analytics.ingest.storage.landing import is_larger

#: With so few records any query plan is good, and statistics cost more than they save.
FEW = 1000
_CSV = csv.WriteOptions(include_header=False)

#: The keys that records repeat.
REPEATED: LiteralString = (
    "SELECT {record_key} AS row_key FROM pg_temp.staged s GROUP BY 1 HAVING count(*) > 1"
)


class Encoded(NamedTuple):
    """A batch as CSV, what was rejected of it, how many of its records each day has, and hashes of their keys."""

    rows: memoryview
    rejected: list[Rejected]
    days: dict[date, int]
    key_hashes: npt.NDArray[np.int64] | None


@dataclass
class Staged(SourceSession):
    """A file's records in the temporary table `staged`, and what was left out of it."""

    open_file: OpenFile
    #: The file's ledger entry; None where only the accepted keys are wanted, and no quarantine is written.
    file_id: int | None
    rejected: int = 0
    duplicates: int = 0
    #: Months of quarantined records, None for an unreadable one; noted where files replace whole months.
    partial_months: set[date | None] = field(default_factory=set)
    #: The records of each day, as they were copied; None once some were taken out.
    copied: Counter[date] | None = field(default_factory=Counter)
    #: The hashes of the records' keys, if the file gives these.
    key_hashes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    #: Whether the records went straight into the source's table, which was empty.
    in_place: bool = False
    #: What `ask` found out.
    answers: dict[str, bool] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """See `SourceSession`."""
        records = self.source.fragments["table"] if self.in_place else sql.SQL("pg_temp.staged")
        return {"file_id": self.file_id, "records": records}

    @property
    def by_alternate(self) -> bool:
        """Whether the file lacks the key and has only the alternate, which takes the key's place in `staged`."""
        return _is_by_alternate(self.open_file)

    @property
    def has_keys(self) -> bool:
        """Whether the file itself gives its records' keys, so that no key is a hash with the number of an occurrence."""
        return _has_keys(self.open_file)

    def may_repeat_keys(self) -> bool:
        """Returns whether two records may have one key. Equal keys have equal hashes."""
        if not self.key_hashes:
            return True
        hashes = np.sort(np.concatenate(self.key_hashes))
        return bool((hashes[1:] == hashes[:-1]).any())

    def days(self) -> dict[date, int]:
        """Returns how many staged records each day has."""
        if self.copied is not None:
            return self.copied
        return dict(self.execute("SELECT s.{day}, count(*) FROM pg_temp.staged s GROUP BY 1").fetchall())

    def take_out(self, statement: LiteralString, **parts: Any) -> int:
        """Deletes records from `staged`; returns how many."""
        gone = self.execute(statement, **parts).rowcount
        if gone:
            self.copied = None
            self.answers.clear()
        return gone

    def ask(self, before: LiteralString, queries: Sequence[LiteralString], **parts: Any) -> None:
        """Executes a statement, if there is one, and asks with it which of the queries have rows then, for `exists`.

        One by one, planning and sending these questions is much of what a small file costs. Who changes what a question
        is about clears `answers`.
        """
        exist: LiteralString = ", ".join("EXISTS (" + query + ")" for query in queries)
        cursor = self.execute(before + "; SELECT " + exist if queries else before, **parts)
        if not queries:
            return
        # the answers are the last result
        while cursor.nextset():
            pass
        (answers,) = cursor
        self.answers.update(zip(queries, answers, strict=True))

    def exists(self, query: LiteralString, **parts: Any) -> bool:
        """Returns whether a query has rows."""
        answer = self.answers.get(query)
        return bool(self.value("SELECT EXISTS (" + query + ")", **parts)) if answer is None else answer

    def verdict(self) -> Verdict | None:
        """Compares the file's own total with the sum of its accepted records; None if it has no total."""
        totals = self.open_file.records.totals.whole()
        if not any(line.amount is not None for line in totals):
            return None
        stored, records = self.row("SELECT coalesce(sum(s.{summed}), 0), count(*) FROM {records} s")
        return compare(totals, stored, records, self.rejected)

    @property
    def left_out(self) -> str:
        """Says for messages what of the file was not accepted."""
        return self.open_file.records.left_out(self.rejected, self.duplicates)

    @property
    def complete_month(self) -> sql.Composable:
        """SQL over the record `s`: whether the file has no quarantined record of the record's month."""
        if None in self.partial_months:
            return sql.SQL("false")
        return sql.SQL("s.{} <> ALL ({}::date[])").format(
            sql.Identifier(self.source.date_column), sql.Literal(list(self.partial_months))
        )

    def quarantine(
        self, compared: LiteralString, where: LiteralString, reasons: LiteralString, **parts: Any
    ) -> None:
        """Moves records that only a comparison refuses from `staged` into the quarantine.

        Args:
            compared: a temporary table.
            where: SQL condition over the record `s` and the table's row `c`.
            reasons: SQL expression of the reasons (jsonb).
            parts: further names in the reasons.
        """
        refused: LiteralString = "pg_temp." + compared + " c WHERE " + where
        if self.file_id is not None and self._find_cells(refused):
            self.execute(
                """
                INSERT INTO raw.rejected_rows (file_id, source, record_no, line_no, row_key, reasons, record)
                SELECT {file_id}, {source}, s.record_no, found.line_no, {record_key}, """
                + reasons
                + """, found.record
                FROM pg_temp.staged s JOIN pg_temp.as_found found ON found.record_no = s.record_no, """
                + refused,
                **parts,
            )
        self.rejected += self.take_out("DELETE FROM pg_temp.staged s USING " + refused)

    def _find_cells(self, refused: LiteralString) -> bool:
        """Reads the file once more for the cells of these records, into the temporary table `as_found`."""
        numbers = {
            number for (number,) in self.execute("SELECT s.record_no FROM pg_temp.staged s, " + refused)
        }
        if not numbers:
            return False
        self.execute(
            "CREATE TEMP TABLE IF NOT EXISTS {name} (record_no int, line_no int, record jsonb) ON COMMIT DELETE ROWS; "
            + EMPTY,
            name=sql.Identifier("as_found"),
        )
        for found in self.open_file.as_found(numbers):
            with (
                self.connection.cursor() as cursor,
                cursor.copy("COPY pg_temp.as_found (record_no, line_no, record) FROM STDIN") as copy,
            ):
                for record_no, line_no, record in found:
                    copy.write_row((record_no, line_no, as_json(record)))
        return True


def prepare(session: SourceSession) -> None:
    """Makes the table `staged` of a session's source, or empties it."""
    session.execute(
        "CREATE TEMP TABLE IF NOT EXISTS {name} ({staged_definition}) ON COMMIT DELETE ROWS; " + EMPTY,
        name=sql.Identifier("staged"),
    )


def stage(
    connection: Connection,
    open_file: OpenFile,
    file_id: int | None,
    batches: Iterable[Encoded] | None = None,
    *,
    prepared: bool = False,
) -> Staged:
    """Copies a file's good records into the temporary table `staged` and its bad ones into the quarantine.

    Args:
        connection: inside a transaction; the records go with it.
        open_file: the file.
        file_id: its ledger entry; None writes no quarantine, where only the accepted keys are wanted.
        batches: what `encode_whole` returned, of a file that was read already.
        prepared: whether `prepare` made the table before this transaction, in which nothing else is staged.

    Raises:
        RefusedFile: for what the reader finds only while it reads.
    """
    while True:
        staged = Staged(connection, open_file.source, open_file, file_id)
        if not prepared:
            prepare(staged)
        try:
            return _copy(staged, batches)
        except ReadDifferently:
            prepared = False
            if file_id is not None:
                forget_quarantine(connection, file_id)


def settle_repeats(staged: Staged) -> None:
    """Settles records that repeat a key.

    Identical records with one key are collapsed. Records with one key that differ are quarantined, all of them. Keys
    made of a hash get their occurrence numbers. In a file that replaces whole months the reader has settled all that.
    """
    if staged.open_file.records.read > FEW:
        # the key decides how to join, and a small sample shows whether it repeats; more would cost time for nothing
        staged.execute(
            "SET LOCAL default_statistics_target = 10; ANALYZE pg_temp.staged ({columns});"
            # a RESET would outlast the transaction
            " SET LOCAL default_statistics_target = DEFAULT",
            columns=column_list(staged.source.staged_key),
        )
    if staged.source.month_totals:
        staged.duplicates = staged.open_file.records.duplicates
    else:
        _settle_repeats(staged)


def copy_in_place(connection: Connection, open_file: OpenFile, file_id: int) -> Staged:
    """Copies a file's good records into the source's table, which must be empty, and its bad ones into the quarantine.

    Only for sources whose records are rows as they are: with keys of their own, and without references.

    Raises:
        ReadDifferently: if the records so far were misread; then the caller takes them back, and tries again.
        RefusedFile: for what the reader finds only while it reads.
    """
    return _copy(Staged(connection, open_file.source, open_file, file_id, in_place=True))


def encode_whole(open_file: OpenFile) -> list[Encoded]:
    """Reads a file to its end, again if it was misread, and returns its batches for `stage`.

    Raises:
        RefusedFile: for what the reader finds only while it reads.
    """
    while True:
        try:
            return list(_encoded(open_file))
        except ReadDifferently:
            continue


def _copy(staged: Staged, batches: Iterable[Encoded] | None = None) -> Staged:
    """Copies the records as they are read, or were; raises what `OpenFile.batches` raises."""
    connection, source, file_id = staged.connection, staged.source, staged.file_id
    copied: Counter[date] = Counter()
    staged.copied = copied
    copy_rows = staged.compose(
        "COPY {records} ({staged_columns}{file}) FROM STDIN (FORMAT csv)",
        file=sql.SQL(", file_id" if staged.in_place else ""),
    )
    for batch in _ahead(staged) if batches is None else batches:
        copied.update(batch.days)
        if batch.key_hashes is not None:
            staged.key_hashes.append(batch.key_hashes)
        if batch.rows:
            with connection.cursor() as cursor, cursor.copy(copy_rows) as copy:
                copy.write(batch.rows)
        if batch.rejected and file_id is not None:
            quarantine_rejected(connection, file_id, source.name, batch.rejected)
        staged.rejected += len(batch.rejected)
        if source.month_totals:
            staged.partial_months.update(row.day for row in batch.rejected)
    return staged


def _ahead(staged: Staged) -> Iterator[Encoded]:
    """Yields encoded batches; a thread makes the next one while the database takes this one."""
    batches = _encoded(staged.open_file, staged.file_id if staged.in_place else None)
    if not is_larger(staged.open_file.content, PIECE):
        # one batch, with nothing to do meanwhile
        yield from batches
        return
    with ThreadPoolExecutor(1, "reader") as pool:
        upcoming = pool.submit(next, batches, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, batches, None)
            yield item


def _is_by_alternate(open_file: OpenFile) -> bool:
    key = open_file.source.key
    return key.alternate is not None and key.columns[0] not in open_file.mapping


def _has_keys(open_file: OpenFile) -> bool:
    source = open_file.source
    return not source.key.hashed or source.given_id in open_file.mapping


def _hashed_column(open_file: OpenFile) -> str | None:
    """Returns the key's column, where hashes of it are worth having: they show that no two records have one key."""
    source = open_file.source
    if source.month_totals or not _has_keys(open_file) or len(source.key.columns) > 1:
        return None
    (column,) = source.key.columns
    return column if source.staged_columns.get(column) == "text" else None


def _encoded(open_file: OpenFile, file_id: int | None = None) -> Iterator[Encoded]:
    """Yields batches as CSV for COPY, with what was rejected, and the records of each day.

    The records get `file_id` if it is given, for the source's table.
    """
    source, by_alternate = open_file.source, _is_by_alternate(open_file)
    hashed = _hashed_column(open_file) if file_id is None else None
    for batch in open_file.batches():
        rows = batch.rows
        if by_alternate:
            (column,) = source.key.columns
            rows = rows.set_column(rows.schema.get_field_index(column), column, rows[source.key.alternate])
        days = pc.value_counts(rows[source.date_column]).to_pylist()
        if file_id is not None:
            rows = rows.append_column("file_id", pa.repeat(file_id, rows.num_rows))
        sink = pa.BufferOutputStream()
        if rows.num_rows:
            csv.write_csv(_with_written_moments(rows), sink, _CSV)
        yield Encoded(
            memoryview(sink.getvalue()),
            batch.rejected,
            {day["values"]: day["counts"] for day in days},
            _hashes(rows[hashed]) if hashed else None,
        )


def _hashes(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, keys.to_numpy()), np.int64, len(keys))


def _with_written_moments(rows: pa.Table) -> pa.Table:
    """Writes moments as text, in a large batch each distinct one once: most exports have dates, so it has few of these."""
    for number, column in enumerate(rows.schema):
        if not pa.types.is_timestamp(column.type):
            continue
        moments = rows[column.name].combine_chunks()
        if rows.num_rows <= FEW:
            written = _as_text(moments)
        else:
            encoded = moments.dictionary_encode()
            written = _as_text(encoded.dictionary).take(encoded.indices)
        rows = rows.set_column(number, column.name, written)
    return rows


def _as_text(moments: pa.Array) -> pa.Array:
    """Writes moments in UTC, without a fraction if none has one: PostgreSQL reads shorter texts faster."""
    # of moments with a time zone, pyarrow would look up the zone for each
    moments = moments.cast(pa.timestamp("us"))
    with suppress(pa.ArrowInvalid):
        moments = moments.cast(pa.timestamp("s"))
    return pc.binary_join_element_wise(moments.cast(pa.string()), "Z", "")


def _settle_repeats(staged: Staged) -> None:
    """Numbers the occurrences of a hash, collapses identical records, and quarantines those that differ."""
    source = staged.source
    if not staged.may_repeat_keys() or not staged.exists(REPEATED):
        return
    # settling changes keys
    staged.answers.clear()
    staged.create_temporary("repeated", REPEATED)
    if source.key.hashed:
        staged.execute(
            """
            UPDATE pg_temp.staged s SET occurrence = numbered.occurrence
            FROM (
                SELECT s.record_no, row_number() OVER (PARTITION BY s.row_key ORDER BY {occurrence_order}) AS occurrence
                FROM pg_temp.staged s JOIN pg_temp.repeated r USING (row_key)
                WHERE {given_id} IS NULL
            ) numbered
            WHERE numbered.occurrence > 1 AND s.record_no = numbered.record_no
            """,
            # without such a column every key is a hash
            given_id=sql.Identifier("s", source.given_id) if source.given_id else None,
        )
        if not source.given_id:
            return
    _note_conflicts(staged)
    staged.quarantine(
        "conflicting",
        "c.row_key = {record_key} AND c.reasons <> '[]'",
        "c.reasons",
    )
    staged.duplicates += staged.take_out(
        """
        DELETE FROM pg_temp.staged s USING (
            SELECT {record_key} AS row_key, min(s.record_no) AS record_no
            FROM pg_temp.staged s JOIN pg_temp.conflicting c ON c.row_key = {record_key} GROUP BY 1
        ) first
        WHERE first.row_key = {record_key} AND s.record_no <> first.record_no
        """
    )


def _note_conflicts(staged: Staged) -> None:
    """Lists the repeated keys in the temporary table `conflicting`, with a reason per column that differs."""
    source, mapping = staged.source, staged.open_file.mapping
    personal = {column.name for column in source.columns if column.personal}
    found: LiteralString = """
        || jsonb_build_object(
            'found', left(string_agg(DISTINCT coalesce(left(s.{column}::text, 80), '(blank)'), ' | '), 1000)
        )
        """
    reasons = []
    for name in source.staged_columns:
        reason = Reason("conflicting_records", mapping.get(name, name), accepted="identical records, or one")
        case = sql.SQL(
            "CASE WHEN count(DISTINCT s.{column}) + (count(*) > count(s.{column}))::int > 1 THEN {reason}"
            + ("" if name in personal else found)
            + " END"
        )
        reasons.append(
            case.format(column=sql.Identifier(name), reason=sql.Literal(as_json(reason.as_dict())))
        )
    staged.create_temporary(
        "conflicting",
        """
        SELECT r.row_key, to_jsonb(array_remove(ARRAY[{reasons}], NULL)) AS reasons
        FROM pg_temp.staged s JOIN pg_temp.repeated r ON r.row_key = {record_key}
        GROUP BY r.row_key
        """,
        reasons=sql.SQL(", ").join(reasons),
    )
