"""Late files: older exports that arrive after newer ones, and change only what these left open.

A row knows only the file that last changed it, not every newer file that has it unchanged. So when a late file arrives,
the newer files are read once more, from the landing folder and without their values: `NewerKeys` notes which keys each
of them accepted, and `NewerFiles` takes these out of what the late file would write. Where a newer file is gone, the
rows it wrote still count as its own; records that it may have had unchanged cannot be placed, and refuse the late file.
See docs/decisions/late-files.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

from psycopg import errors, sql

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading.known_files import KnownFiles
from crm_analytics.analytics.ingest.loading.ledger import Entry, Order
from crm_analytics.analytics.ingest.loading.queries import NEWER, SourceSession, drop_temporary
from crm_analytics.analytics.ingest.loading.staging import Staged, settle_repeats, stage
from crm_analytics.analytics.ingest.reading.open_file import open_file
from crm_analytics.analytics.ingest.storage.landing import Content, Landing, fingerprint
from crm_analytics.core.wording import counted

#: Records of the source that wait in the quarantine.
WAITING: LiteralString = "SELECT file_id FROM raw.rejected_rows WHERE source = {source} AND status = 'open'"


class UnknownNewerValues(Exception):
    """Raised where a late file's records may be older than those of a file that is gone."""

    def __init__(self, records: int, example: str) -> None:
        super().__init__(f"{counted(records, 'record')}, e.g. {example}")
        self.records = records
        self.example = example


@dataclass
class NewerKeys(SourceSession):
    """The keys that the source's loaded files accepted, read again from the landing folder once per run.

    They are in temporary tables of the session, each with the place in the order of the newest file that accepted it:
    `newer_keys`; `newer_alternates` for files that have only the alternate key; `newer_months` with the keys of monthly
    totals and whether the file has the complete month.
    """

    landing: Landing
    timezone: ZoneInfo
    report: Callable[[str], None]
    places: list[Entry] | None = None
    lost: set[int] = field(default_factory=set)

    def after(self, order: Order, own: int | None, path: str, known: KnownFiles) -> NewerFiles:
        """Returns the files around this place in the order; reads the newer ones again if there are any.

        The first use in a run decides how far back keys are known: later ones must be for newer places.

        Args:
            order: the file's place.
            own: the file's entry, if it has one already (it is neither newer nor older than itself).
            path: the file's path below the landing folder.
            known: the source's files.
        """
        newer = [entry for entry in known.after(order) if entry.file_id != own]
        if newer and self.places is None:
            self.places = newer
            self._read(known)
        places = self.places or []
        return NewerFiles(
            self.connection,
            self.source,
            path,
            own=own,
            order=order,
            known=known,
            entries=newer,
            lost=[entry for entry in newer if entry.file_id in self.lost],
            threshold=next((place for place, other in enumerate(places) if other.order > order), len(places)),
            places={entry.file_id: place for place, entry in enumerate(places)},
        )

    def _read(self, known: KnownFiles) -> None:
        assert self.places is not None
        drop_temporary(self.connection, NEWER)
        self.connection.execute(
            """
            CREATE TEMP TABLE newer_keys (row_key text PRIMARY KEY, place int NOT NULL);
            CREATE TEMP TABLE newer_alternates (row_key text PRIMARY KEY, place int NOT NULL);
            """
        )
        if self.source.month_totals:
            self.execute(
                """
                CREATE TEMP TABLE newer_months AS SELECT {keys}, complete_month, 0 AS place FROM {table} LIMIT 0;
                ALTER TABLE pg_temp.newer_months ADD PRIMARY KEY ({keys}, complete_month)
                """
            )
        for place, entry in enumerate(self.places):
            content = self._find(entry, known)
            if content is None:
                self.lost.add(entry.file_id)
                continue
            self.report(f"{entry.path}: read again, because an older file came after it")
            try:
                with self.connection.transaction():
                    self._note_keys(content, entry, place)
            except (RefusedFile, OSError, errors.DataError):
                self.lost.add(entry.file_id)

    def _find(self, entry: Entry, known: KnownFiles) -> Content | None:
        """Returns the entry's content where it is now, under whichever of the source's names."""
        names = [entry.path, *(other.path for other in known.with_content(entry.sha256))]
        for name in dict.fromkeys(names):
            try:
                file = self.landing.find(name)
                if file is None or file.size != entry.size_bytes:
                    continue
                content = file.content
                if fingerprint(content) == entry.sha256:
                    return content
            except OSError:
                continue
        return None

    def _note_keys(self, content: Content, entry: Entry, place: int) -> None:
        opened = open_file(
            content,
            self.source,
            exported_at=entry.exported_at,
            timezone=self.timezone,
            export_named=entry.exported_at_from == "name",
        )
        staged = stage(self.connection, opened, None)
        settle_repeats(staged)
        if self.source.month_totals:
            self.execute(
                """
                INSERT INTO pg_temp.newer_months SELECT DISTINCT {keys}, {complete_month}, {place} FROM pg_temp.staged s
                ON CONFLICT ({keys}, complete_month) DO UPDATE SET place = excluded.place
                """,
                complete_month=staged.complete_month,
                place=place,
            )
            return
        self.execute(
            """
            INSERT INTO pg_temp.{noted}
            SELECT DISTINCT {record_key}, {place} FROM pg_temp.staged s WHERE {record_key} IS NOT NULL
            ON CONFLICT (row_key) DO UPDATE SET place = excluded.place;
            ANALYZE pg_temp.{noted}
            """,
            noted=sql.Identifier("newer_alternates" if staged.by_alternate else "newer_keys"),
            place=place,
        )


@dataclass
class NewerFiles(SourceSession):
    """The files newer than one file: what they accepted, and which of them are gone."""

    path: str
    #: The file's own ledger entry, if it has one already.
    own: int | None
    #: Its place in the order.
    order: Order
    #: The source's files.
    known: KnownFiles
    #: The files after it.
    entries: list[Entry]
    #: Those of them that cannot be read again.
    lost: list[Entry]
    #: Places from here on are newer.
    threshold: int
    #: Entry -> its place.
    places: dict[int, int]

    @property
    def parts(self) -> dict[str, Any]:
        """See `SourceSession`."""
        return {"threshold": self.threshold, "lost": [entry.file_id for entry in self.lost]}

    def remove_superseded(self, staged: Staged) -> int:
        """Deletes from `staged` the records whose key a newer file accepted; returns how many."""
        if not self.entries:
            return 0
        removed = staged.take_out(
            """
            DELETE FROM pg_temp.staged s USING pg_temp.newer_keys n
            WHERE n.row_key = {record_key} AND n.place >= {threshold}
            """,
            threshold=self.threshold,
        )
        if self.source.key.alternate:
            # a newer file without keys means this row if no other has its alternate
            removed += staged.take_out(
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
                """,
                threshold=self.threshold,
            )
        if self.lost:
            removed += staged.take_out(
                "DELETE FROM pg_temp.staged s USING {table} t WHERE {same_key} AND t.file_id = ANY ({lost})",
                lost=self.parts["lost"],
            )
        return removed

    def keep_alternates_given_anew(self) -> None:
        """Deletes from `rekeyed` what newer files undid.

        That is where the row of the key got another alternate, before a file without keys brought the row that has the
        alternate now.
        """
        if not self.entries:
            return
        self.execute(
            """
            DELETE FROM pg_temp.rekeyed r
            USING {table} t, pg_temp.newer_keys n, unnest({files}::bigint[], {places}::int[]) AS f (file_id, place)
            WHERE t.{key_column} = r.old_key AND f.file_id = t.file_id
                AND n.row_key = r.new_key AND n.place >= {threshold} AND n.place < f.place
            """,
            files=list(self.places),
            places=list(self.places.values()),
        )

    def remove_superseded_months(self) -> int:
        """Deletes from `totals` what newer files have too; returns how many records these were.

        A newer file that has the complete month replaces all of it. One that has not replaces the parts that it names,
        and only those of another file that has not.
        """
        if not self.entries:
            return 0
        removed: int = self.value(
            """
            WITH newer AS (
                SELECT {keys}, complete_month FROM pg_temp.newer_months WHERE place >= {threshold}
                UNION SELECT {keys}, complete_month FROM {table} WHERE file_id = ANY ({lost}::bigint[])
            ), gone AS (
                DELETE FROM pg_temp.totals
                WHERE {day} IN (SELECT {day} FROM newer WHERE complete_month)
                    OR (NOT complete_month AND ({day}, {part}) IN (SELECT {day}, {part} FROM newer))
                RETURNING records
            )
            SELECT coalesce(sum(records), 0)::int FROM gone
            """
        )
        return removed

    def close_answered(self, staged: Staged) -> None:
        """Closes records in the quarantine that another file answers: older files' by this one, its own by newer ones."""
        if not staged.exists(WAITING):
            return
        waiting = self.execute("SELECT DISTINCT file_id FROM (" + WAITING + ") AS open_records")
        older = [
            file_id
            for (file_id,) in waiting
            if file_id != self.own and self.known.is_before(file_id, self.order)
        ]
        if older:
            self.execute(
                """
                UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = {note}
                WHERE r.source = {source} AND r.status = 'open' AND r.file_id = ANY ({older}) AND """
                + _accepted_in(staged),
                note=f"accepted from a newer export: {self.path}",
                older=older,
            )
        if self.entries:
            staged.execute(
                """
                UPDATE raw.rejected_rows r
                SET status = 'closed', closed_at = now(), note = 'accepted from a newer export'
                WHERE r.file_id = {file_id} AND r.status = 'open' AND r.row_key IN (
                    SELECT row_key FROM pg_temp.newer_keys WHERE place >= {threshold}
                    UNION ALL SELECT row_key FROM pg_temp.newer_alternates WHERE place >= {threshold}
                )
                """,
                threshold=self.threshold,
            )


def _accepted_in(staged: Staged) -> LiteralString:
    """Returns SQL over a quarantined record `r`: whether the staged file has its key.

    A record of a file without keys was quarantined under its alternate, which must not be taken for a key that looks
    like one.
    """
    key = staged.source.key
    if key.alternate is None:
        return "r.row_key IN (SELECT {record_key} FROM pg_temp.staged s)"
    known = " WHERE s.{key_column} <> s.{alternate}" if staged.by_alternate else ""
    return f"""
        CASE WHEN EXISTS (
            SELECT FROM raw.source_files f WHERE f.file_id = r.file_id AND f.mapping ? '{key.columns[0]}'
        ) THEN r.row_key IN (SELECT s.{{key_column}} FROM pg_temp.staged s{known})
        ELSE r.row_key IN (SELECT s.{{alternate}} FROM pg_temp.staged s) END
        """
