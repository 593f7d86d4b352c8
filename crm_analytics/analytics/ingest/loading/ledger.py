"""The ledger of landing files (raw.source_files): reads its entries and writes what became of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Json

Connection = psycopg.Connection[Any]
#: Export time, path, and when the content was seen at that path.
Order = tuple[datetime, str, datetime]


@dataclass(frozen=True)
class Entry:
    """One content seen at one path: the columns of raw.source_files that decide what to do with a file."""

    file_id: int
    source: str | None
    path: str
    sha256: str
    size_bytes: int
    modified_at: datetime
    etag: str | None
    declaration_version: int | None
    exported_at: datetime
    exported_at_from: str
    status: str
    message: str | None
    first_seen_at: datetime

    @property
    def order(self) -> Order:
        """The order in which files of a source apply; contents of one path apply as they came."""
        return (self.exported_at, self.path, self.first_seen_at)

    @property
    def counts_in_order(self) -> bool:
        """Whether this content is in the tables: it was loaded, or a copy of it was."""
        return self.status in ("loaded", "same_content")


class Shape(NamedTuple):
    """What warnings compare between loaded files."""

    #: Canonical names of the columns in the header.
    columns: frozenset[str]
    has_records: bool


@dataclass
class Counts:
    """What became of a file's records; the parts always add up to `records_read`."""

    records_read: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    superseded: int = 0
    quarantined: int = 0
    summary_lines: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Content:
    """A file's content as the ledger identifies it."""

    path: str
    sha256: str
    size_bytes: int
    modified_at: datetime
    etag: str | None
    exported_at: datetime
    exported_at_from: str
    #: The connector that wrote it; None for one that a person put there.
    connector: str | None = None
    #: Known content that is at its path again, which makes its entry the path's last once more.
    returned: bool = False


@dataclass
class Reading:
    """How a file was read and what came of it: the rest of its ledger entry."""

    status: str
    declaration_version: int
    message: str | None = None
    same_as: int | None = None
    encoding: str | None = None
    delimiter: str | None = None
    mapping: dict[str, str] | None = None
    unknown_columns: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    stated_total: Decimal | None = None
    accepted_total: Decimal | None = None
    total_agrees: bool | None = None
    first_date: date | None = None
    last_date: date | None = None
    run_id: str | None = None


_ENTRY_COLUMNS = ", ".join(Entry.__dataclass_fields__)


def entries(connection: Connection) -> list[Entry]:
    """Returns the entries of all sources, oldest first, unrecognized files included."""
    return _select(connection, "true")


def entries_of(connection: Connection, source: str) -> list[Entry]:
    """Returns the entries of a source, and those of no source, oldest first."""
    return _select(connection, "source = %s OR source IS NULL", source)


def entries_at(connection: Connection, paths: list[str]) -> list[Entry]:
    """Returns the entries of all sources at these paths, oldest first."""
    return _select(connection, "path = ANY(%s)", paths) if paths else []


def _select(connection: Connection, condition: LiteralString, *values: Any) -> list[Entry]:
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        query = f"SELECT {_ENTRY_COLUMNS} FROM raw.source_files WHERE {condition} ORDER BY file_id"
        return cursor.execute(query, values).fetchall()


def shapes(connection: Connection, source: str) -> dict[Shape, set[int]]:
    """Returns the shapes that a source's loaded files have, each with the entries of its files."""
    found = connection.execute(
        """
        SELECT names, has_records, array_agg(file_id) FROM (
            SELECT ARRAY(SELECT jsonb_object_keys(mapping)) AS names, records_read > 0 AS has_records, file_id
            FROM raw.source_files WHERE source = %s AND status = 'loaded'
        ) AS loaded GROUP BY names, has_records
        """,
        [source],
    )
    return {Shape(frozenset(names), has_records): set(files) for names, has_records, files in found}


#: Path, bytes, modification time (microseconds since 1970, UTC) and etag of a content.
Seen = tuple[str, int, int, str | None]

#: What `seen_last` returned last, and the state of the ledger, the versions and the database that it is true for.
_seen_last: tuple[object, frozenset[Seen]] = (None, frozenset())


def seen_last(connection: Connection, versions: dict[str, int], unrecognized: int) -> frozenset[Seen]:
    """Returns the last content of each path.

    It is kept until the ledger changes, because a sensor asks every few seconds. Every insert and update gives a row
    another `xmin`, a later one, so as many rows with the same sum of them are the same rows.

    Args:
        connection: to the analytics database.
        versions: of the declarations, by source. Content that another version read is left out.
        unrecognized: the same for content that no source recognized.
    """
    global _seen_last
    # before the rows: what is written meanwhile is then read again
    state = connection.execute(
        "SELECT count(*), sum(xmin::text::bigint), max(finished_at) FROM raw.source_files"
    ).fetchone()
    key = connection.info.dsn, state, versions, unrecognized
    known_for, seen = _seen_last
    if key == known_for:
        return seen
    found = connection.execute(
        """
        WITH last AS (
            SELECT DISTINCT ON (path COLLATE "C") path, size_bytes, modified_at, etag, source, declaration_version
            FROM raw.source_files ORDER BY path COLLATE "C", first_seen_at DESC, file_id
        )
        SELECT path, size_bytes, (extract(epoch FROM modified_at) * 1000000)::bigint, etag FROM last
        WHERE declaration_version = CASE WHEN source IS NULL THEN %s ELSE (%s::jsonb ->> source)::int END
        """,
        [unrecognized, Json(versions)],
    )
    seen = frozenset(found.fetchall())
    _seen_last = key, seen
    return seen


def touch(connection: Connection, file_id: int, modified_at: datetime, etag: str | None) -> None:
    """Notes a new modification time and etag of known content, so that it is not hashed again."""
    connection.execute(
        "UPDATE raw.source_files SET modified_at = %s, etag = %s WHERE file_id = %s",
        [modified_at, etag, file_id],
    )


def see_unrecognized_again(connection: Connection, file_id: int) -> None:
    """Notes that this content, which no source recognizes, is at its path now.

    Only for content without a place in the order, of which `first_seen_at` is a part.
    """
    connection.execute(
        "UPDATE raw.source_files SET first_seen_at = clock_timestamp() WHERE file_id = %s", [file_id]
    )


def identify(connection: Connection, source: str | None, content: Content, version: int) -> int:
    """Returns the number of the entry for this content at this path, which is new if the content never was there.

    An entry that no source recognized becomes this source's. A known entry keeps its place in the order, unless its
    content returned. Quarantined records of the contents that this one replaced at its path are closed.

    Until the transaction ends, the triggers of the raw tables name this entry as the cause of what changes.
    """
    found = connection.execute(
        """
        WITH known AS (
            UPDATE raw.source_files
            SET source = %(source)s, size_bytes = %(size_bytes)s, modified_at = %(modified_at)s, etag = %(etag)s,
                exported_at = CASE WHEN %(returned)s THEN %(exported_at)s ELSE exported_at END,
                exported_at_from = CASE WHEN %(returned)s THEN %(exported_at_from)s ELSE exported_at_from END,
                first_seen_at = CASE WHEN %(returned)s THEN clock_timestamp() ELSE first_seen_at END
            WHERE file_id = (
                SELECT file_id FROM raw.source_files
                WHERE path = %(path)s AND sha256 = %(sha256)s AND (source = %(source)s OR source IS NULL)
                ORDER BY source NULLS LAST LIMIT 1
            )
            RETURNING file_id
        ), added AS (
            INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, etag, declaration_version,
                exported_at, exported_at_from, connector, status)
            SELECT %(source)s, %(path)s, %(sha256)s, %(size_bytes)s, %(modified_at)s, %(etag)s, %(version)s,
                %(exported_at)s, %(exported_at_from)s, %(connector)s, 'loaded'
            WHERE NOT EXISTS (SELECT FROM known)
            -- loads of two sources at once may both meet a file that no source recognizes
            ON CONFLICT ON CONSTRAINT source_files_content DO UPDATE
                SET modified_at = excluded.modified_at, etag = excluded.etag
            RETURNING file_id
        ), here AS (
            SELECT file_id FROM known UNION ALL SELECT file_id FROM added
        ), closed AS (
            UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = 'the file has new content'
            FROM raw.source_files f
            WHERE r.file_id = f.file_id AND r.status = 'open' AND f.path = %(path)s
                AND f.file_id <> (SELECT file_id FROM here)
        )
        SELECT file_id, set_config('crm_analytics.file_id', file_id::text, true) FROM here
        """,
        {**vars(content), "source": source, "version": version},
    ).fetchone()
    assert found is not None
    return int(found[0])


def conclude(connection: Connection, file_id: int, reading: Reading) -> Entry:
    """Writes what became of a file into its entry, which is returned; the table's CHECK refuses counts that do not add up."""
    values: dict[str, Any] = {
        **{name: value for name, value in vars(reading).items() if name != "counts"},
        **vars(reading.counts),
        "mapping": None if reading.mapping is None else Json(reading.mapping),
    }
    assignments = ", ".join(f"{name} = %({name})s" for name in values)
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        cursor.execute(
            f"""
            UPDATE raw.source_files SET {assignments}, finished_at = clock_timestamp() WHERE file_id = %(file_id)s
            RETURNING {_ENTRY_COLUMNS}
            """,
            {**values, "file_id": file_id},
        )
        (entry,) = cursor
        return entry
