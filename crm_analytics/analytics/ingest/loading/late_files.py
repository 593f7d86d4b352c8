"""Late files: older exports that arrive after newer ones, and change only what these left open.

A row knows only the file that last changed it, not every newer file that has it unchanged. So when a late file arrives,
the newer files are read once more, from the landing folder and without their values: `NewerKeys` notes which keys each
of them accepted, and `NewerFiles` takes these out of what the late file would write. Where a newer file is gone, the
rows it wrote still count as its own; records that it may have had unchanged cannot be placed, and refuse the late file.
See docs/decisions/late-files.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString
from zoneinfo import ZoneInfo

from psycopg import errors, sql

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading.landing import fingerprint
from crm_analytics.analytics.ingest.loading.ledger import Entry, Order
from crm_analytics.analytics.ingest.loading.queries import Connection, execute, fetch_value
from crm_analytics.analytics.ingest.loading.staging import Staged, stage
from crm_analytics.analytics.ingest.reading.open_file import open_file
from crm_analytics.analytics.ingest.sources.declaration import Source


class UnknownNewerValues(Exception):
    """Raised where a late file's records may be older than those of a file that is gone."""

    def __init__(self, records: int, example: str) -> None:
        super().__init__(f"{records} records, e.g. {example}")
        self.records = records
        self.example = example


@dataclass
class NewerKeys:
    """The keys that the source's loaded files accepted, read again from the landing folder once per run.

    They are in temporary tables of the session, each with the place in the order of the newest file that accepted it:
    `newer_keys`; `newer_alternates` for files that have only the alternate key; `newer_months` with the keys of monthly
    totals and whether the file has the month whole.
    """

    connection: Connection
    landing: Path
    source: Source
    timezone: ZoneInfo
    report: Callable[[str], None]
    places: list[Entry] | None = None
    lost: set[int] = field(default_factory=set)

    def after(self, order: Order, own: int | None, path: str, known: Iterable[Entry]) -> NewerFiles:
        """Returns the files around this place in the order; reads the newer ones again if there are any.

        The first use in a run decides how far back keys are known: later ones must be for newer places.

        Args:
            order: the file's place.
            own: the file's entry, if it has one already (it is not newer than itself).
            path: the file's path below the landing folder.
            known: the source's entries.
        """
        others = [entry for entry in known if entry.file_id != own]
        placed = sorted((entry for entry in others if entry.counts_in_order), key=lambda entry: entry.order)
        newer = [entry for entry in placed if entry.order > order]
        if newer and self.places is None:
            self.places = newer
            self._read(others)
        places = self.places or []
        return NewerFiles(
            self.connection,
            self.source,
            path,
            older_ids=[entry.file_id for entry in placed if entry.order < order],
            entries=newer,
            lost=[entry for entry in newer if entry.file_id in self.lost],
            threshold=next((place for place, other in enumerate(places) if other.order > order), len(places)),
            places={entry.file_id: place for place, entry in enumerate(places)},
        )

    def _read(self, entries: list[Entry]) -> None:
        assert self.places is not None
        self.drop()
        self.connection.execute(
            """
            CREATE TEMP TABLE newer_keys (row_key text PRIMARY KEY, place int NOT NULL);
            CREATE TEMP TABLE newer_alternates (row_key text PRIMARY KEY, place int NOT NULL);
            """
        )
        if self.source.month_totals:
            execute(
                self.connection,
                self.source,
                """
                CREATE TEMP TABLE newer_months AS SELECT {keys}, whole, 0 AS place FROM {table} LIMIT 0;
                ALTER TABLE pg_temp.newer_months ADD PRIMARY KEY ({keys}, whole)
                """,
                keys=self._keys,
            )
        for place, entry in enumerate(self.places):
            path = self._find(entry, entries)
            if path is None:
                self.lost.add(entry.file_id)
                continue
            self.report(f"{entry.path}: read again, because an older file came after it")
            try:
                with self.connection.transaction():
                    self._note_keys(path, entry, place)
            except (RefusedFile, OSError, errors.DataError):
                self.lost.add(entry.file_id)

    @property
    def _keys(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.source.key.columns))

    def _find(self, entry: Entry, entries: list[Entry]) -> Path | None:
        """Returns where the entry's content is now, under whichever of the source's names."""
        names = [entry.path, *(other.path for other in entries if other.sha256 == entry.sha256)]
        for name in dict.fromkeys(names):
            path = self.landing / name
            try:
                if path.stat().st_size == entry.size_bytes and fingerprint(path) == entry.sha256:
                    return path
            except OSError:
                continue
        return None

    def _note_keys(self, path: Path, entry: Entry, place: int) -> None:
        opened = open_file(path, self.source, exported_at=entry.exported_at, timezone=self.timezone)
        staged = stage(self.connection, opened, None)
        execute(
            self.connection,
            self.source,
            """
            INSERT INTO pg_temp.{noted} SELECT DISTINCT {key}, {place} FROM pg_temp.staged s WHERE {key} IS NOT NULL
            ON CONFLICT (row_key) DO UPDATE SET place = excluded.place;
            ANALYZE pg_temp.{noted}
            """,
            noted=sql.Identifier("newer_alternates" if staged.by_alternate else "newer_keys"),
            key=self.source.fragments["record_key"],
            place=place,
        )
        if self.source.month_totals:
            execute(
                self.connection,
                self.source,
                """
                INSERT INTO pg_temp.newer_months SELECT DISTINCT {keys}, {whole}, {place} FROM pg_temp.staged s
                ON CONFLICT ({keys}, whole) DO UPDATE SET place = excluded.place
                """,
                keys=self._keys,
                whole=staged.whole,
                place=place,
            )

    def drop(self) -> None:
        """Removes the session's temporary tables."""
        self.connection.execute(
            "DROP TABLE IF EXISTS pg_temp.newer_keys, pg_temp.newer_alternates, pg_temp.newer_months"
        )


@dataclass(frozen=True)
class NewerFiles:
    """The files newer than one file: what they accepted, and which of them are gone."""

    connection: Connection
    source: Source
    path: str
    #: Ledger entries of the files before it.
    older_ids: list[int]
    #: The files after it.
    entries: list[Entry]
    #: Those of them that cannot be read again.
    lost: list[Entry]
    #: Places from here on are newer.
    threshold: int
    #: Entry -> its place.
    places: dict[int, int]

    def _execute(self, statement: LiteralString) -> int:
        """Executes a statement; returns how many rows it changed."""
        return execute(
            self.connection,
            self.source,
            statement,
            threshold=self.threshold,
            lost=[entry.file_id for entry in self.lost],
        ).rowcount

    def remove_superseded(self, staged: Staged) -> int:
        """Deletes from `staged` the records whose key a newer file accepted; returns how many."""
        if not self.entries:
            return 0
        removed = self._execute(
            """
            DELETE FROM pg_temp.staged s USING pg_temp.newer_keys n
            WHERE n.row_key = {record_key} AND n.place >= {threshold}
            """
        )
        if self.source.key.alternate:
            # a newer file without keys means this row if no other has its alternate
            removed += self._execute(
                """
                DELETE FROM pg_temp.staged s USING pg_temp.newer_alternates n
                WHERE n.row_key = s.{alternate} AND n.place >= {threshold}
                    AND NOT EXISTS (
                        SELECT FROM {table} o
                        WHERE o.{alternate} = s.{alternate} AND o.{key_column} <> s.{key_column}
                            AND o.{key_column} <> o.{alternate}
                    ) AND NOT EXISTS (
                        SELECT FROM pg_temp.staged o
                        WHERE o.{alternate} = s.{alternate} AND o.{key_column} <> s.{key_column}
                    )
                """
            )
        if self.lost:
            removed += self._execute(
                "DELETE FROM pg_temp.staged s USING {table} t WHERE {same_key} AND t.file_id = ANY ({lost})"
            )
        return removed

    def keep_alternates_given_anew(self) -> None:
        """Deletes from `rekeyed` what newer files undid.

        That is where the row of the key got another alternate, before a file without keys brought the row that has the
        alternate now.
        """
        if not self.entries:
            return
        execute(
            self.connection,
            self.source,
            """
            DELETE FROM pg_temp.rekeyed r
            USING {table} t, pg_temp.newer_keys n, unnest({files}::bigint[], {places}::int[]) AS f (file_id, place)
            WHERE t.{key_column} = r.old_key AND f.file_id = t.file_id
                AND n.row_key = r.new_key AND n.place >= {threshold} AND n.place < f.place
            """,
            files=list(self.places),
            places=list(self.places.values()),
            threshold=self.threshold,
        )

    def remove_superseded_months(self) -> int:
        """Deletes from `totals` what newer files have too; returns how many records these were.

        A newer file that has the month whole replaces all of it. One that has not replaces its own keys, against
        another that has not.
        """
        if not self.entries:
            return 0
        others = [name for name in self.source.key.columns if name != self.source.date_column]
        removed: int = fetch_value(
            self.connection,
            self.source,
            """
            WITH newer AS (
                SELECT {keys}, whole FROM pg_temp.newer_months WHERE place >= {threshold}
                UNION SELECT {keys}, whole FROM {table} WHERE file_id = ANY ({lost}::bigint[])
            ), gone AS (
                DELETE FROM pg_temp.totals n WHERE EXISTS (
                    SELECT FROM newer
                    WHERE newer.{day} = n.{day} AND (newer.whole OR (NOT n.whole AND ({newer_others}) = ({others})))
                )
                RETURNING n.records
            )
            SELECT coalesce(sum(records), 0)::int FROM gone
            """,
            keys=sql.SQL(", ").join(map(sql.Identifier, self.source.key.columns)),
            newer_others=sql.SQL(", ").join(sql.Identifier("newer", name) for name in others),
            others=sql.SQL(", ").join(sql.Identifier("n", name) for name in others),
            threshold=self.threshold,
            lost=[entry.file_id for entry in self.lost],
        )
        return removed

    def close_answered(self, file_id: int) -> None:
        """Closes this file's quarantined records that newer files answer."""
        if not self.entries:
            return
        execute(
            self.connection,
            self.source,
            """
            UPDATE raw.rejected_rows r
            SET status = 'closed', closed_at = now(), note = 'accepted from a newer export'
            WHERE r.file_id = {file_id} AND r.status = 'open' AND r.row_key IN (
                SELECT row_key FROM pg_temp.newer_keys WHERE place >= {threshold}
                UNION ALL SELECT row_key FROM pg_temp.newer_alternates WHERE place >= {threshold}
            )
            """,
            file_id=file_id,
            threshold=self.threshold,
        )
