"""Loads one file of a source in one transaction: stages it, merges it, and writes the ledger; or refuses it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from zoneinfo import ZoneInfo

import psycopg
from psycopg import errors

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read
from crm_analytics.analytics.ingest.loading import bulk, ledger, quarantine
from crm_analytics.analytics.ingest.loading.alternate_keys import KNOWN_BY_ALTERNATE, find_keys
from crm_analytics.analytics.ingest.loading.file_identity import IdentifiedFile, find_loaded_copy, identify
from crm_analytics.analytics.ingest.loading.known_files import KnownFiles
from crm_analytics.analytics.ingest.loading.late_files import (
    WAITING,
    NewerFiles,
    NewerKeys,
    UnknownNewerValues,
)
from crm_analytics.analytics.ingest.loading.ledger import Content, Entry, Reading, Shape
from crm_analytics.analytics.ingest.loading.merge_months import merge_months
from crm_analytics.analytics.ingest.loading.merge_rows import (
    KNOWN,
    all_new,
    fill_in_bulk,
    is_empty,
    merge_rows,
)
from crm_analytics.analytics.ingest.loading.queries import SourceSession, drop_temporary, takes_statements
from crm_analytics.analytics.ingest.loading.read_ahead import Read, ReadFile, read_ahead
from crm_analytics.analytics.ingest.loading.results import FileResult, Merged
from crm_analytics.analytics.ingest.loading.staging import (
    FEW,
    REPEATED,
    Staged,
    copy_in_place,
    encode_whole,
    prepare,
    settle_repeats,
    stage,
)
from crm_analytics.analytics.ingest.loading.vanished_rows import VANISHED
from crm_analytics.analytics.ingest.reading.conventions import ReadDifferently
from crm_analytics.analytics.ingest.reading.csv_records import PIECE
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, open_file
from crm_analytics.analytics.ingest.reading.totals import Verdict
from crm_analytics.analytics.ingest.storage.landing import Landing, LandingFile, is_larger
from crm_analytics.core.wording import counted, listed

#: Bytes of a file whose reading is announced, whose joins get more memory, and which may fill its table while it is read.
LARGE = 20_000_000
#: Bytes of the largest file that is read as a whole before it is staged, while the database takes the file before it.
SMALL = PIECE
#: Joins of a million staged records; PostgreSQL's default of 4 MB spills them to disk.
WORK_MEM = "128MB"

_DATED_BACK = (
    "its modification time is before that of the content which it replaced here; it counts as the newer one, because"
    " it replaced it"
)


class _FileChanged(Exception):
    """Raised where the file changed while it was read."""


@dataclass
class FileLoader(SourceSession):
    """Loads the files of one run: knows the source's files, and the newer keys once a late file needs them."""

    landing: Landing
    timezone: ZoneInfo
    run_id: str | None
    report: Callable[[str], None]
    #: Whether readers of the table may have to wait until the file's transaction ends (docs/decisions/bulk-loads.md).
    may_lock: bool = False
    #: Whether the table of staged records is there and empty when a file's transaction begins.
    prepared: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.newer_keys = NewerKeys(self.connection, self.source, self.landing, self.timezone, self.report)

    @cached_property
    def known(self) -> KnownFiles:
        """The source's files as the ledger knows them."""
        return KnownFiles(self.connection, self.source.name)

    @cached_property
    def withdrawn(self) -> dict[str, str]:
        """Contents that people took back, and where they were first."""
        found: dict[str, str] = {}
        for entry in self.known.all():
            if entry.status == "withdrawn":
                found.setdefault(entry.sha256, entry.path)
        return found

    def close(self) -> None:
        """Leaves the session as it was."""
        if takes_statements(self.connection):
            drop_temporary(self.connection)

    def load(self, files: list[LandingFile], conclude: Callable[[FileResult], None]) -> None:
        """Loads the files in their order; notes copies of loaded files first, since late files may need them."""
        to_read: list[IdentifiedFile] = []
        for file in files:
            try:
                item = identify(file, self.timezone, self.known)
            except FileNotFoundError:
                # removed since the folder was listed
                continue
            except OSError as error:
                conclude(_not_readable(file, error) if file.is_unchanged() else _changed(file))
                continue
            settled = self._conclude_withdrawn(item) or self._conclude_copy(item)
            if settled is not None:
                conclude(settled)
            else:
                to_read.append(item)
        to_read.sort(key=lambda item: item.order)
        # in a caller's transaction, another file may be staged before
        self.prepared = bool(to_read) and takes_statements(self.connection)
        if self.prepared:
            prepare(self)
        with read_ahead(to_read, self._read_small) as in_turn:
            for item, read in in_turn:
                conclude(self._conclude_copy(item) or self._load_file(item, read))

    def _conclude_withdrawn(self, item: IdentifiedFile) -> FileResult | None:
        content = item.content
        if content.sha256 not in self.withdrawn:
            return None
        message = withdrawal(self.source.name, self.withdrawn[content.sha256])
        reading = Reading("withdrawn", self.source.version, message, run_id=self.run_id)
        with self.connection.transaction():
            file_id = ledger.identify(self.connection, self.source.name, content, self.source.version)
            concluded = ledger.conclude(self.connection, file_id, reading)
        self.known.remember(concluded)
        return FileResult(content.path, reading.status, message, file_id)

    def _conclude_copy(self, item: IdentifiedFile) -> FileResult | None:
        twin = find_loaded_copy(item, self.known)
        if twin is None:
            return None
        message = f"the same content as {twin.path}, which is loaded"
        reading = Reading("same_content", self.source.version, message, twin.file_id, run_id=self.run_id)
        return self._conclude_without_rows(item.content, reading)

    def _load_file(self, item: IdentifiedFile, read: Read) -> FileResult:
        content, entry = item.content, item.entry
        newer = self.newer_keys.after(item.order, entry.file_id if entry else None, content.path, self.known)
        try:
            with self.connection.transaction():
                result, concluded, shape = self._load_rows(item, read, newer)
        except (
            _FileChanged,
            RefusedFile,
            UnknownNewerValues,
            OSError,
            errors.DataError,
            errors.IntegrityError,
            errors.ProgramLimitExceeded,
        ) as error:
            return self._not_loaded(item, newer, error)
        self.known.remember(concluded, shape)
        return result

    def _not_loaded(self, item: IdentifiedFile, newer: NewerFiles, error: Exception) -> FileResult:
        """Refuses a content only for what is in it: not for what was read while it changed, or could not be read."""
        content = item.content
        if isinstance(error, _FileChanged) or not item.file.is_unchanged():
            return _changed(item.file)
        fault = error if isinstance(error, OSError) else error.__cause__
        if isinstance(fault, OSError):
            return _not_readable(item.file, fault)
        if isinstance(error, UnknownNewerValues):
            message = str(_unknowable(content, newer, error))
        elif isinstance(error, psycopg.Error):
            message = str(_rejected_by_database(error))
        else:
            message = error.why if isinstance(error, RefusedFile) else str(error)
        reading = Reading("refused", self.source.version, message, run_id=self.run_id)
        return self._conclude_without_rows(content, reading)

    def _load_rows(
        self, item: IdentifiedFile, read: Read, newer: NewerFiles
    ) -> tuple[FileResult, Entry, Shape]:
        file, content = item.file, item.content
        source, connection = self.source, self.connection
        if file.size > LARGE:
            self.report(f"{content.path}: reading {file.size / 1_000_000:,.0f} MB")
        file_id = ledger.identify(connection, source.name, content, source.version)
        # a new entry has no quarantine yet
        dismissed = quarantine.forget_quarantine(connection, file_id) if item.entry else []
        staged, filled = self._stage(item, read(), file_id, newer)
        opened = staged.open_file
        if not filled:
            settle_repeats(staged)
        verdict = staged.verdict()
        merged = all_new(staged) if filled else merge(staged, newer, self.may_lock)
        merged.counts.records_read = opened.records.read
        merged.counts.duplicates = staged.duplicates
        merged.counts.quarantined = staged.rejected
        merged.counts.summary_lines = opened.records.summary_lines
        quarantine.dismiss_again(connection, file_id, dismissed)
        if not file.is_unchanged():
            raise _FileChanged
        warnings = _warnings(item, staged, merged, verdict, self.known.shapes_without(file_id))
        reading = Reading(
            status="loaded",
            declaration_version=source.version,
            encoding=opened.encoding,
            delimiter=opened.delimiter or None,
            mapping=opened.mapping,
            unknown_columns=opened.located.match.unknown,
            warnings=warnings,
            counts=merged.counts,
            stated_total=verdict.stated.amount if verdict else None,
            accepted_total=round(verdict.stored, 2) if verdict else None,
            total_agrees=verdict.agrees if verdict else None,
            first_date=merged.first_date,
            last_date=merged.last_date,
            run_id=self.run_id,
        )
        result = FileResult(
            content.path, "loaded", None, file_id, merged.counts, warnings, merged.changed_by_month
        )
        shape = Shape(frozenset(opened.mapping), merged.counts.records_read > 0)
        return result, ledger.conclude(connection, file_id, reading), shape

    def _read_small(self, item: IdentifiedFile) -> ReadFile | None:
        """Reads a file to its end, in whichever thread; returns None if it is not small, or may fill its table while it is read."""
        if item.file.size > min(SMALL, LARGE):
            return None
        opened = self._open(item)
        if is_larger(opened.content, SMALL):
            # once it is unpacked
            return None
        return ReadFile(opened, encode_whole(opened))

    def _open(self, item: IdentifiedFile) -> OpenFile:
        return open_file(
            item.file.content,
            self.source,
            exported_at=item.content.exported_at,
            timezone=self.timezone,
            export_named=item.content.exported_at_from == "name",
        )

    def _stage(
        self, item: IdentifiedFile, read: ReadFile | None, file_id: int, newer: NewerFiles
    ) -> tuple[Staged, bool]:
        """Stages the file's records; returns whether all of them are rows of the table already, by a bulk load."""
        opened = read.opened if read else self._open(item)
        is_large = is_larger(opened.content, LARGE)
        if is_large:
            self.connection.execute(f"SET LOCAL work_mem = '{WORK_MEM}'")
        in_bulk = self.may_lock and not newer.entries and not self.source.month_totals
        if in_bulk and is_large and self._may_fill_in_place(opened):
            staged = self._fill_in_place(opened, file_id)
            if staged is not None:
                return staged, True
            # what kept the table from being filled would do so again
            in_bulk, opened = False, self._open(item)
        batches = read.batches if read else None
        staged = stage(self.connection, opened, file_id, batches, prepared=self.prepared)
        self._lock_and_ask(staged)
        filled = in_bulk and staged.has_keys and not staged.by_alternate and fill_in_bulk(staged)
        if filled:
            newer.close_answered(staged)
        return staged, filled

    def _may_fill_in_place(self, opened: OpenFile) -> bool:
        """Returns whether the file's records may go into the table as they are read, before anything is known of them."""
        return (
            self.source.records_are_rows
            and self.source.key.columns[0] in opened.mapping
            and is_empty(self)
            and not self.value("SELECT EXISTS (" + WAITING + ")")
        )

    def _fill_in_place(self, opened: OpenFile, file_id: int) -> Staged | None:
        """Fills the empty table while the file is read; returns None where that is not possible."""
        self._lock()
        copied: list[Staged] = []

        def copy() -> None:
            copied[:] = [copy_in_place(self.connection, opened, file_id)]

        while True:
            try:
                filled = bulk.fill_table(self.connection, self.source, file_id, copy, was_empty=True)
                return copied[0] if filled else None
            except ReadDifferently:
                # the savepoint took back what was read the wrong way
                continue

    def _lock_and_ask(self, staged: Staged) -> None:
        """Takes the lock of the links, and asks for all that a usual small file is asked for."""
        if staged.open_file.records.read > FEW or self.source.month_totals:
            self._lock()
            return
        by_alternate = [KNOWN_BY_ALTERNATE] if self.source.key.alternate else []
        staged.ask(self.source.lock or "", [REPEATED, WAITING, KNOWN, VANISHED, *by_alternate])

    def _lock(self) -> None:
        if self.source.lock:
            self.connection.execute(self.source.lock)

    def _conclude_without_rows(self, content: Content, reading: Reading) -> FileResult:
        with self.connection.transaction():
            file_id = ledger.identify(self.connection, self.source.name, content, self.source.version)
            quarantine.forget_quarantine(self.connection, file_id)
            concluded = ledger.conclude(self.connection, file_id, reading)
        self.known.remember(concluded)
        return FileResult(content.path, reading.status, reading.message, file_id)


def merge(staged: Staged, newer: NewerFiles, may_lock: bool) -> Merged:
    """Applies the staged file to its table as if it had come in its turn, and counts what became of its records."""
    find_keys(staged)
    newer.close_answered(staged)
    if staged.source.month_totals:
        merged = merge_months(staged, newer)
    else:
        merged = merge_rows(staged, newer, may_lock=may_lock)
    if not merged.analyzed:
        _analyze_if_grown(staged, sum(merged.changed_by_month.values()))
    return merged


def _analyze_if_grown(staged: Staged, changed: int) -> None:
    """Refreshes the table's statistics for what follows (links, facts), where autovacuum would come too late."""
    if changed < FEW:
        return
    estimate, is_trial = staged.row(
        "SELECT reltuples, raw.is_trial() FROM pg_class WHERE oid = {name}::regclass",
        name=staged.source.table,
    )
    if changed > 0.1 * estimate and not is_trial:
        staged.execute("ANALYZE {table}")


def _warnings(
    item: IdentifiedFile, staged: Staged, merged: Merged, verdict: Verdict | None, others: list[Shape]
) -> list[str]:
    """Returns what people should know about a file that was loaded; `others` are the shapes of other loaded files."""
    source, opened = staged.source, staged.open_file
    warnings = [_DATED_BACK] if item.dated_back else []
    warnings += opened.warnings
    if verdict is not None and source.summed:
        warnings += verdict.warnings(opened.mapping[source.summed], staged.left_out)
    warnings += merged.warnings + _column_warnings(staged, merged, others)
    if source.review:
        warnings += [warning for (warning,) in staged.execute(source.review)]
    return warnings


def _column_warnings(staged: Staged, merged: Merged, others: list[Shape]) -> list[str]:
    """Warns of columns that other files of the source have and this one lacks, where that matters."""
    source, mapping = staged.source, staged.open_file.mapping
    replaceable = {column.name for column in source.columns if column.replaceable}
    elsewhere = {name for shape in others for name in shape.columns}
    missing = elsewhere & source.staged_columns.keys() - replaceable - mapping.keys()
    warnings = []
    if missing and merged.counts.updated:
        warnings.append(
            f"no column for {', '.join(sorted(missing))}, which other exports have: rows that this file updates have none"
            " now"
        )
    given = source.given_id in mapping
    if source.given_id and any(
        shape.has_records and (source.given_id in shape.columns) != given for shape in others
    ):
        label = source.key.label
        here, there = ("a", "none") if given else ("no", "one")
        warnings.append(
            f"this export has {here} {label} id column and others have {there}: a {label} that is in both counts"
            f" twice; export all {label}s in one form"
        )
    return warnings


def withdrawal(source: str, path: str) -> str:
    """Returns the message for a content that a person took back, which was at this path."""
    return f"taken back by a person; to load it after all: crm-analytics rebuild {source} --with {shlex.quote(path)}"


def _changed(file: LandingFile) -> FileResult:
    return FileResult(file.name, "waiting", "changed while it was read; it is loaded when it has settled")


def _not_readable(file: LandingFile, error: OSError) -> FileResult:
    """Reports a file that may be readable later: the ledger has no entry for it, and the next run tries again."""
    return FileResult(file.name, "refused", str(cannot_be_read(error)))


def _unknowable(content: Content, newer: NewerFiles, error: UnknownNewerValues) -> Reason:
    missing = listed([entry.path for entry in newer.lost])
    return Reason(
        "may_be_older_than_missing_files",
        found=f"exported {content.exported_at:%Y-%m-%d %H:%M} UTC, {counted(error.records, 'record')}, e.g. {error.example}",
        remedy=f"put back {counted(len(newer.lost), 'newer file')} that cannot be read again ({missing}) into the landing"
        " folder, under any name in this source's folder, and load again with force",
    )


def _rejected_by_database(error: psycopg.Error) -> Reason:
    detail = error.diag.message_detail
    return Reason(
        "rejected_by_the_database",
        found=f"{error.diag.message_primary or error}" + (f" ({detail})" if detail else ""),
        remedy="correct the value in the export, or report this, since such a record should have been quarantined;"
        " nothing in the file was loaded",
    )
