"""Late files: which keys newer files of the source accepted already (architecture, decision 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import psycopg
from psycopg import errors, sql

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading.landing import fingerprint
from crm_analytics.analytics.ingest.loading.ledger import Entry, Order
from crm_analytics.analytics.ingest.loading.plans import Plan
from crm_analytics.analytics.ingest.loading.staging import Staged, stage
from crm_analytics.analytics.ingest.reading.open_file import open_file

Connection = psycopg.Connection[Any]


@dataclass
class NewerKeys:
    """The keys that the source's loaded files accepted, read again from the landing folder once per run.

    They stand in temporary tables of the session: key (or, of job files without UUIDs, number; of Google spend also
    month and campaign, and whether the file has the month whole) and the place in the order of the newest file that
    accepted it.
    """

    connection: Connection
    landing: Path
    plan: Plan
    timezone: ZoneInfo
    report: Callable[[str], None]
    places: list[Entry] | None = None
    lost: set[int] = field(default_factory=set)

    def after(self, order: Order, own: int | None, path: str, known: Iterable[Entry]) -> NewerFiles:
        """What newer files say about the file at this place of the order; reads them again if there are any.

        The first call of a run decides how far back keys are known: later calls must be for newer places.

        Args:
            order: the file's place.
            own: the file's entry, if it has one already (it is not newer than itself).
            path: the file's path below the landing folder.
            known: the source's entries.
        """
        others = [entry for entry in known if entry.file_id != own]
        placed = sorted((entry for entry in others if entry.counts_in_order), key=lambda entry: entry.order)
        newer = [entry for entry in placed if entry.order > order]
        older_ids = [entry.file_id for entry in placed if entry.order < order]
        if newer and self.places is None:
            self.places = newer
            self._read(others)
        places = self.places or []
        threshold = next((place for place, other in enumerate(places) if other.order > order), len(places))
        return NewerFiles(
            self.connection,
            self.plan,
            path,
            older_ids,
            newer,
            [entry for entry in newer if entry.file_id in self.lost],
            threshold,
            {entry.file_id: place for place, entry in enumerate(places)},
        )

    def _read(self, entries: list[Entry]) -> None:
        assert self.places is not None
        self.drop()
        self.connection.execute(
            "CREATE TEMP TABLE newer_keys (row_key text PRIMARY KEY, place int NOT NULL);"
            "CREATE TEMP TABLE newer_numbers (row_key text PRIMARY KEY, place int NOT NULL);"
            "CREATE TEMP TABLE newer_spend"
            " (month date, campaign text, whole boolean, place int NOT NULL, PRIMARY KEY (month, campaign, whole))"
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

    def _find(self, entry: Entry, entries: list[Entry]) -> Path | None:
        """Where the entry's content lies now, under whichever of the source's names."""
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
        opened = open_file(path, self.plan.source, exported_at=entry.exported_at, timezone=self.timezone)
        staged = stage(self.connection, opened, self.plan, None)
        table: LiteralString = "newer_numbers" if staged.numbers_only else "newer_keys"
        key: LiteralString = "s.job_number" if staged.numbers_only else self.plan.key
        self.connection.execute(
            sql.SQL(
                "INSERT INTO pg_temp.{table} SELECT DISTINCT {key}, {place} FROM pg_temp.staged s"
                " WHERE {key} IS NOT NULL ON CONFLICT (row_key) DO UPDATE SET place = excluded.place"
            ).format(table=sql.Identifier(table), key=sql.SQL(key), place=sql.Literal(place))
        )
        self.connection.execute(sql.SQL("ANALYZE pg_temp.{}").format(sql.Identifier(table)))
        if self.plan.source.name == "google_spend":
            self.connection.execute(
                sql.SQL(
                    "INSERT INTO pg_temp.newer_spend"
                    " SELECT DISTINCT s.month, s.campaign, {whole}, {place} FROM pg_temp.staged s"
                    " ON CONFLICT (month, campaign, whole) DO UPDATE SET place = excluded.place"
                ).format(whole=staged.whole, place=sql.Literal(place))
            )

    def drop(self) -> None:
        """Remove the session's temporary tables."""
        self.connection.execute(
            "DROP TABLE IF EXISTS pg_temp.newer_keys, pg_temp.newer_numbers, pg_temp.newer_spend"
        )


@dataclass(frozen=True)
class NewerFiles:
    """The files newer than one file: what they accepted, and which of them are no longer to be found."""

    connection: Connection
    plan: Plan
    name: str
    older_ids: list[int]  #: entries of the files before it
    entries: list[Entry]
    lost: list[Entry]
    threshold: int  #: places from here on are newer
    places: dict[int, int]  #: entry -> its place

    @property
    def _lost_ids(self) -> list[int]:
        return [entry.file_id for entry in self.lost]

    def remove_superseded(self, staged: Staged) -> int:
        """Delete from `staged` the records whose key a newer file accepted; returns how many."""
        if not self.entries:
            return 0
        removed = self.connection.execute(
            sql.SQL(
                "DELETE FROM pg_temp.staged s USING pg_temp.newer_keys n"
                " WHERE n.row_key = {key} AND n.place >= {threshold}"
            ).format(key=sql.SQL(self.plan.key), threshold=sql.Literal(self.threshold))
        ).rowcount
        if self.plan.source.name == "jobs":
            # a newer file without UUIDs means this job if no other has its number
            removed += self.connection.execute(
                "DELETE FROM pg_temp.staged s USING pg_temp.newer_numbers n"
                " WHERE n.row_key = s.job_number AND n.place >= %s AND NOT EXISTS ("
                "  SELECT FROM raw.jobs o WHERE o.job_number = s.job_number AND o.job_id <> s.job_id"
                "  AND o.job_id <> o.job_number) AND NOT EXISTS ("
                "  SELECT FROM pg_temp.staged o WHERE o.job_number = s.job_number AND o.job_id <> s.job_id)",
                [self.threshold],
            ).rowcount
        if self.lost:
            removed += self.connection.execute(
                sql.SQL(
                    "DELETE FROM pg_temp.staged s USING {table} t WHERE {match} AND t.file_id = ANY ({lost})"
                ).format(
                    table=self.plan.table,
                    match=sql.SQL(self.plan.match),
                    lost=sql.Literal(self._lost_ids),
                )
            ).rowcount
        return removed

    def keep_numbers_given_anew(self) -> None:
        """Delete from `rekeyed` what newer files undid: the job of that UUID got another number before a file without
        UUIDs brought the row that has the number now."""
        if not self.entries:
            return
        self.connection.execute(
            "DELETE FROM pg_temp.rekeyed r USING raw.jobs t, pg_temp.newer_keys n,"
            " unnest(%s::bigint[], %s::int[]) AS f (file_id, place)"
            " WHERE t.job_id = r.old_id AND f.file_id = t.file_id"
            " AND n.row_key = r.new_id AND n.place >= %s AND n.place < f.place",
            [list(self.places), list(self.places.values()), self.threshold],
        )

    def remove_superseded_spend(self) -> int:
        """Delete from `sums` what newer files say too; returns how many records these were.

        A newer file that has the month whole says all of it. One that has not says its campaigns, against another that
        has not.
        """
        if not self.entries:
            return 0
        row = self.connection.execute(
            "WITH newer AS (SELECT month, campaign, whole FROM pg_temp.newer_spend WHERE place >= %s"
            "  UNION SELECT month, campaign, whole FROM raw.google_spend WHERE file_id = ANY (%s)),"
            " gone AS (DELETE FROM pg_temp.sums n WHERE EXISTS (SELECT FROM newer WHERE newer.month = n.month"
            "  AND (newer.whole OR (NOT n.whole AND newer.campaign = n.campaign))) RETURNING n.records)"
            " SELECT coalesce(sum(records), 0) FROM gone",
            [self.threshold, self._lost_ids],
        ).fetchone()
        assert row is not None
        return int(row[0])

    def close_answered(self, file_id: int) -> None:
        """Close this file's quarantined records that newer files answer."""
        if not self.entries:
            return
        self.connection.execute(
            "UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = %s"
            " WHERE r.file_id = %s AND r.status = 'open' AND r.row_key IN ("
            "  SELECT row_key FROM pg_temp.newer_keys WHERE place >= %s"
            "  UNION ALL SELECT row_key FROM pg_temp.newer_numbers WHERE place >= %s)",
            ["accepted from a newer export", file_id, self.threshold, self.threshold],
        )
