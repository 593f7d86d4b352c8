"""Rebuilds a source's table from the landing folder, with files taken back or restored.

The files are loaded, in order, into a copy of the table that begins with nothing but the rows written by hand. Then the
differences are written to the table. So readers see the old table until the end, only what changes is written, and the
triggers note exactly the months that it affects. See docs/decisions/rebuilding.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

from psycopg import sql

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.load import (
    Report,
    only_load_of,
    open_session,
    refuse_other_timezone,
    settled,
)
from crm_analytics.analytics.ingest.loading.load_file import FileLoader, withdrawal
from crm_analytics.analytics.ingest.loading.queries import Connection, SourceSession
from crm_analytics.analytics.ingest.loading.results import FileResult, describe
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.declaration import column_list
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import Landing, LandingFile, fingerprint
from crm_analytics.analytics.ingest.storage.places import Place, landing_at

#: How long the source's loads wait at most while a person is asked whether the changes are right.
PATIENCE = "10min"
_MISSING = "not in the landing folder when the source was rebuilt; put it back to have it loaded"


class CannotRebuild(Exception):
    """Raised when a rebuild cannot begin or is given up. Nothing was changed."""


@dataclass(frozen=True)
class Month:
    """What a rebuild changes in one month; a row that moves to another month counts as changed in both."""

    month: date
    before: int
    after: int
    added: int
    removed: int
    changed: int


@dataclass(frozen=True)
class Loss:
    """A file content whose rows are not in the rebuilt table."""

    path: str
    #: Its status in the ledger now.
    status: str
    message: str | None
    rows: int


@dataclass
class Rebuilt:
    """What a rebuild has read and is about to change."""

    source: str
    files: list[FileResult] = field(default_factory=list)
    #: The months that change.
    months: list[Month] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    #: Rows written by hand, which stay.
    by_hand: int = 0

    @property
    def refused(self) -> list[FileResult]:
        """The files that cannot be read as files of the source any more."""
        return [file for file in self.files if file.status == "refused"]


@contextmanager
def rebuilt(
    connection_or_url: Connection | str,
    landing: Place,
    source: str,
    *,
    timezone: ZoneInfo,
    without: Collection[str | Path] = (),
    restored: Collection[str | Path] = (),
    quiet_seconds: float = 0,
    report: Report = lambda message: None,
) -> Iterator[Rebuilt]:
    """Yields what a rebuild will change, and changes it, in one transaction, when the block ends without an error.

    Args:
        connection_or_url: an idle connection to the analytics database, or its URL.
        landing: the landing folder.
        source: a name in `registry.SOURCES`.
        timezone: the business timezone.
        without: files to take back. Their content isn't loaded under any name until it is restored.
        restored: files that were taken back, to load again.
        quiet_seconds: files that were touched within so many seconds get this time to settle.
        report: takes progress messages, one line each.

    Raises:
        CannotRebuild: if a file is unknown, is still growing or cannot be read, or the database has another timezone.
        psycopg.Error: if the database fails. Nothing was changed.
    """
    landing = landing_at(landing)
    with open_session(connection_or_url) as connection, only_load_of(connection, source, report):
        try:
            refuse_other_timezone(connection, timezone)
            taken_back = dict(_content(connection, landing, source, file) for file in without)
            given_back = dict(_content(connection, landing, source, file) for file in restored)
            for path in taken_back:
                if taken_back[path] in given_back.values():
                    raise ValueError(f"{path} can't be both taken back and taken in again")
            files = settled(connection, landing, source, True, quiet_seconds, report)
        except (OSError, ValueError) as error:
            raise CannotRebuild(str(error)) from error
        with connection.transaction():
            rebuild = _Rebuild(connection, SOURCES[source])
            rebuild.reset_ledger(taken_back, given_back)
            result = Rebuilt(source, by_hand=rebuild.copy_rows_by_hand())
            loader = FileLoader(connection, rebuild.shadow, landing, timezone, None, report)
            loader.withdrawn |= {sha256: path for path, sha256 in taken_back.items()}
            _load(loader, [file for file in files if file.source == source], quiet_seconds, result)
            _refuse_unreadable(landing, source)
            rebuild.close_quarantine()
            rebuild.keep_dismissals()
            result.months, result.losses = rebuild.compare()
            connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{PATIENCE}'")
            yield result
            rebuild.apply()
        loader.close()


def _content(connection: Connection, landing: Landing, source: str, file: str | Path) -> tuple[str, str]:
    """Returns the path below the landing folder, and the hash, of the file that a person names.

    A file that is gone is found by the path that the ledger has.
    """
    names = landing.names(file, source)
    known = [entry for entry in ledger.entries(connection) if entry.source == source]
    for name in names:
        found = landing.find(name)
        if found is not None:
            sha256 = fingerprint(found.content)
            if any(entry.sha256 == sha256 for entry in known) or _is_of(source, found):
                return name, sha256
            raise CannotRebuild(f"{name} is not a file of {source}, so the table has no rows of it")
    for name in names:
        here = [entry for entry in known if entry.path == name]
        if here:
            return name, max(here, key=lambda entry: entry.first_seen_at).sha256
    raise CannotRebuild(
        f"no file {file} in the landing folder {landing}, and none of that name was ever loaded as {source}"
    )


def _is_of(source: str, file: LandingFile) -> bool:
    try:
        return detect_source(file).name == source
    except RefusedFile as error:
        raise CannotRebuild(str(error)) from error


def _load(loader: FileLoader, files: list[PendingFile], quiet_seconds: float, result: Rebuilt) -> None:
    """Loads every file, or raises CannotRebuild: a table that lacks a file of the folder would be wrong."""

    def conclude(file: FileResult) -> None:
        if file.status == "waiting" or not file.file_id:
            raise CannotRebuild(f"{file.path}: {file.message}")
        result.files.append(file)
        loader.report(describe(file))

    growing = [pending.name for pending in files if pending.file.age() < quiet_seconds]
    if growing:
        raise CannotRebuild(f"{growing[0]} is still growing: try again when it has settled")
    loader.load([pending.file for pending in files], conclude)


def _refuse_unreadable(landing: Landing, source: str) -> None:
    for entry in landing.scan().unreadable:
        if entry.source == source:
            raise CannotRebuild(f"{entry.name}: {entry.message}")


@dataclass
class _Rebuild(SourceSession):
    """The statements of a rebuild, inside its transaction; `shadow` is the source with the copy as its table."""

    def __post_init__(self) -> None:
        # the copy has no triggers, so links are made when the table gets the differences
        self.shadow = replace(self.source, table="pg_temp.rebuilt", lock=None, reference=None)

    def reset_ledger(self, taken_back: dict[str, str], given_back: dict[str, str]) -> None:
        """Marks every content as taken back or missing, until its file is read."""
        self.execute(
            """
            CREATE TEMP TABLE dismissed ON COMMIT DROP AS
            SELECT row_key, dismissed_at FROM raw.vanished_rows WHERE source = {source} AND dismissed_at IS NOT NULL;
            DELETE FROM raw.vanished_rows WHERE source = {source};
            UPDATE raw.source_files
            SET status = 'missing', message = {missing}, declaration_version = NULL, same_as = NULL, warnings = '{{}}',
                records_read = 0, inserted = 0, updated = 0, unchanged = 0, duplicates = 0, superseded = 0,
                quarantined = 0, summary_lines = 0, stated_total = NULL, accepted_total = NULL, total_agrees = NULL,
                first_date = NULL, last_date = NULL
            WHERE source = {source}
                AND (status IN ('loaded', 'same_content') OR sha256 = ANY ({given_back}) OR sha256 = ANY ({taken_back}))
            """,
            missing=_MISSING,
            given_back=list(given_back.values()),
            taken_back=list(taken_back.values()),
        )
        for path, sha256 in taken_back.items():
            self.execute(
                """
                UPDATE raw.source_files SET status = 'withdrawn', message = {message}, declaration_version = {version}
                WHERE source = {source} AND sha256 = {sha256}
                """,
                message=withdrawal(self.source.name, path),
                version=self.source.version,
                sha256=sha256,
            )

    def copy_rows_by_hand(self) -> int:
        """Makes the copy, with the rows that no file brought; returns how many."""
        columns: list[str] = self.value(
            """
            SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
            WHERE attrelid = {name}::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                AND attname <> ALL ({not_compared})
            """,
            name=self.source.table,
            not_compared=["file_id", "record_no", "updated_at", *self._linked],
        )
        self.columns = column_list(columns)
        self.compared = [sql.SQL("ROW ({})").format(column_list(columns, alias)) for alias in "tr"]
        self.execute("CREATE TEMP TABLE rebuilt (LIKE {table} INCLUDING ALL) ON COMMIT DROP")
        return self.execute(
            "INSERT INTO pg_temp.rebuilt ({columns}) SELECT {columns} FROM {table} WHERE file_id IS NULL",
            columns=self.columns,
        ).rowcount

    @property
    def _linked(self) -> list[str]:
        """The column that triggers fill, if there is one."""
        return [self.source.reference.column] if self.source.reference else []

    def close_quarantine(self) -> None:
        """Closes the quarantined records of contents that are gone; dismissed ones stay dismissed."""
        self.execute(
            """
            UPDATE raw.rejected_rows r SET status = 'closed', closed_at = now(), note = f.message
            FROM raw.source_files f
            WHERE r.file_id = f.file_id AND r.status = 'open' AND f.source = {source}
                AND f.status IN ('withdrawn', 'missing')
            """
        )

    def keep_dismissals(self) -> None:
        """Dismisses vanished rows again that a person had dismissed."""
        self.execute(
            """
            UPDATE raw.vanished_rows v SET dismissed_at = d.dismissed_at FROM pg_temp.dismissed d
            WHERE v.source = {source} AND v.row_key = d.row_key
            """
        )

    def compare(self) -> tuple[list[Month], list[Loss]]:
        """Returns the months that differ from the table, and the contents whose rows would go."""
        self.execute("ANALYZE pg_temp.rebuilt")
        self.execute(
            """
            CREATE TEMP TABLE compared ON COMMIT DROP AS
            SELECT t.{day} AS old_day, r.{day} AS new_day, t.file_id, {old} IS DISTINCT FROM {new} AS differs
            FROM {table} t FULL JOIN pg_temp.rebuilt r ON ({old_keys}) = ({new_keys})
            """,
            **self._sides(),
        )
        months = self.execute(
            """
            SELECT *
            FROM (
                SELECT date_trunc('month', side.day)::date AS month,
                    count(*) FILTER (WHERE side.is_old) AS before, count(*) FILTER (WHERE NOT side.is_old) AS after,
                    count(*) FILTER (WHERE NOT side.is_old AND c.old_day IS NULL) AS added,
                    count(*) FILTER (WHERE side.is_old AND c.new_day IS NULL) AS removed,
                    count(*) FILTER (
                        WHERE c.differs AND c.old_day IS NOT NULL AND c.new_day IS NOT NULL
                            AND (NOT side.is_old OR date_trunc('month', c.old_day) <> date_trunc('month', c.new_day))
                    ) AS changed
                FROM pg_temp.compared c, LATERAL (VALUES (c.old_day, true), (c.new_day, false)) AS side (day, is_old)
                WHERE side.day IS NOT NULL GROUP BY 1
            ) m
            WHERE added + removed + changed > 0 ORDER BY month
            """
        ).fetchall()
        losses = self.execute(
            """
            SELECT f.path, f.status, f.message, count(*)::int
            FROM pg_temp.compared c JOIN raw.source_files f USING (file_id)
            WHERE c.new_day IS NULL GROUP BY f.file_id ORDER BY f.path
            """
        ).fetchall()
        return [Month(*month) for month in months], [Loss(*loss) for loss in losses]

    def apply(self) -> None:
        """Writes to the table what differs in the copy; rows written by hand in the meantime stay, too.

        Who rebuilds is the cause of that, not the file that was loaded into the copy last.
        """
        self.execute("SET LOCAL crm_analytics.file_id = ''")
        if self.source.lock:
            self.execute(self.source.lock)
        parts = self._sides()
        same_key: sql.Composable = sql.SQL("({old_keys}) = ({new_keys})").format(**parts)
        self.execute(
            """
            DELETE FROM {table} t
            WHERE t.file_id IS NOT NULL AND NOT EXISTS (SELECT FROM pg_temp.rebuilt r WHERE {same})
            """,
            same=same_key,
        )
        self.execute(
            """
            UPDATE {table} t SET ({columns}) = {new}, file_id = r.file_id, record_no = r.record_no,
                updated_at = CASE WHEN {old} IS DISTINCT FROM {new} THEN now() ELSE t.updated_at END
            FROM pg_temp.rebuilt r
            WHERE {same} AND ({old}, t.file_id, t.record_no) IS DISTINCT FROM ({new}, r.file_id, r.record_no)
            """,
            same=same_key,
            columns=self.columns,
            **parts,
        )
        self.execute(
            """
            INSERT INTO {table} ({columns}, file_id, record_no)
            SELECT {columns}, r.file_id, r.record_no FROM pg_temp.rebuilt r
            WHERE NOT EXISTS (SELECT FROM {table} t WHERE {same})
            """,
            same=same_key,
            columns=self.columns,
        )

    def _sides(self) -> dict[str, sql.Composable]:
        keys, (old, new) = self.source.key.columns, self.compared
        return {
            "old": old,
            "new": new,
            "old_keys": column_list(keys, "t"),
            "new_keys": column_list(keys, "r"),
        }
