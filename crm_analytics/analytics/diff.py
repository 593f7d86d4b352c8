"""What files or a change in SQL would do to the metrics: makes the change in a transaction that is rolled back.

It never refreshes: the months that the change makes stale are computed and compared with the stored ones, which takes no
lock of a month. Nothing in here may wait for a session that waits for it, because then PostgreSQL would end one of the
two, perhaps a refresh. So locks that others need, too, are taken first, in the order in which loads and refreshes take
them, and nothing is waited for longer than `PATIENCE`, or half of `deadlock_timeout`. See docs/decisions/diff.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import psycopg
from psycopg import errors, sql

from crm_analytics.analytics.ingest.dry_run import named_file, why_ignored
from crm_analytics.analytics.ingest.errors import cannot_be_read
from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading import ledger
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.load import (
    load_in_trial,
    only_load_of,
    refuse_other_timezone,
    trial,
)
from crm_analytics.analytics.ingest.loading.queries import Connection, takes_statements
from crm_analytics.analytics.ingest.loading.results import FileResult
from crm_analytics.analytics.ingest.reading.source_detection import export_time
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import Landing, LandingFile, Listing
from crm_analytics.analytics.ingest.storage.places import Place, landing_at
from crm_analytics.analytics.warehouse.refresh import MEASURES
from crm_analytics.core.locks import LockHeld
from crm_analytics.core.months import contiguous, next_month
from crm_analytics.core.wording import listed

#: Seconds to wait for any lock, at most.
PATIENCE = 0.5
#: A refresh locks these tables before it reads anything, and in this order.
_RULES = "LOCK TABLE analytics.lead_channels, analytics.channel_aliases IN ROW EXCLUSIVE MODE"
_BUSY = "a load, a refresh or another change holds what diff needs, and diff doesn't keep others waiting"
_NOTHING = "Nothing was changed"
_SETVAL = "no rollback takes back what setval does to a sequence. Leave it out"


class CannotDiff(Exception):
    """Raised when there is nothing to compare; the message says why and what to do. Nothing was changed."""


@dataclass(frozen=True)
class ChangedSum:
    """A measure's sum of a month and source, as it is stored and as it would be."""

    month: date
    source: str
    measure: str
    old: Decimal
    new: Decimal

    @property
    def change(self) -> Decimal:
        """By how much."""
        return self.new - self.old


@dataclass(frozen=True)
class TriedFile:
    """What loading a file would do, and the export time that decides which files come after it."""

    result: FileResult
    #: UTC; None if the file is not read.
    exported_at: datetime | None = None
    #: name, mtime, seen: that of the content when it was first seen, or before: that of the content which it replaces,
    #: which is later.
    exported_at_from: str | None = None

    @property
    def is_refused(self) -> bool:
        """Whether a load would leave the file out, and not because its content is there already."""
        return self.result.status not in ("loaded", "same_content", "known")


@dataclass
class Difference:
    """What a change would do to the metrics."""

    files: list[TriedFile] = field(default_factory=list)
    #: The months that it makes stale.
    months: list[date] = field(default_factory=list)
    changes: list[ChangedSum] = field(default_factory=list)
    #: Months and sources whose sums stay, while days or segments change.
    moved: list[tuple[date, str]] = field(default_factory=list)
    #: Months with changes that were stale before: the pending change is included.
    stale_before: list[date] = field(default_factory=list)
    #: Months that become stale and that no refresh computes: before START_MONTH, or in the future.
    not_computed: list[date] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether any number would change."""
        return bool(self.changes or self.moved)


def diff_files(
    connection: Connection,
    landing: Place,
    paths: Sequence[str | Path],
    *,
    timezone: ZoneInfo,
    start_month: date,
) -> Difference:
    """Says what loading these files and refreshing would change.

    Args:
        connection: to the analytics database, in autocommit mode, of which nothing else is asked afterwards.
        landing: the landing folder. A file elsewhere is taken for one that lies directly in it, or in the folder of its
            source if it is below a folder of that name.
        paths: the files.
        timezone: the business timezone.
        start_month: the first month that is computed.

    Raises:
        CannotDiff: if two files would have one path, or the database's dates are in another timezone.
        LockHeld: if a load or another change holds a lock that is needed.
    """
    try:
        refuse_other_timezone(connection, timezone)
    except ValueError as error:
        raise CannotDiff(str(error)) from error
    landing = landing_at(landing)
    with _politely(connection) as patience:
        files, _ = _pending(connection, landing, paths)
        wanted = {file.source for file in files}
        sources = [name for name in SOURCES if name in wanted]
        with _without_loads(connection, sources, patience), trial(connection):
            # again, because a load may have taken some of them before it could be kept out
            files, others = _pending(connection, landing, paths)
            # the lock of the links comes before that of new names, as in every load
            for lock in dict.fromkeys(SOURCES[name].lock for name in sources):
                if lock:
                    connection.execute(lock)
            results = load_in_trial(connection, landing, files, timezone=timezone)
            found = _compare(connection, start_month)
            tried = {pending.name: pending.file for pending in files}
            found.files = others + [
                _tried(connection, tried[result.path], result, timezone) for result in results
            ]
            return found


def diff_sql(connection: Connection, statements: str, *, start_month: date) -> Difference:
    """Says what running SQL and refreshing would change: rules, aliases, corrections of rows.

    No load and no refresh runs meanwhile, since the SQL may lock whatever they need.

    Args:
        connection: to the analytics database, in autocommit mode, of which nothing else is asked afterwards.
        statements: SQL without transaction commands.
        start_month: the first month that is computed.

    Raises:
        CannotDiff: if the SQL fails, would begin or end transactions, or sets a sequence.
        LockHeld: if a load, a refresh or another change holds a lock that is needed.
    """
    if re.search(r"\bsetval\b", statements, re.IGNORECASE):
        raise CannotDiff(f"the SQL names setval, and {_SETVAL}. {_NOTHING}")
    with (
        _politely(connection) as patience,
        _without_loads(connection, list(SOURCES), patience),
        _sequences_kept(connection),
        trial(connection),
    ):
        connection.execute(_RULES)
        _run(connection, statements)
        with _told_as(connection, statements, "with the SQL, the months can't be computed"):
            # the SQL may have set another one
            _limit_waiting(connection)
            return _compare(connection, start_month)


def _pending(
    connection: Connection, landing: Landing, paths: Sequence[str | Path]
) -> tuple[list[PendingFile], list[TriedFile]]:
    """Returns the files that a load would read, and what it would say of the others."""
    files: dict[str, PendingFile] = {}
    named: dict[str, tuple[LandingFile, str | Path]] = {}
    tried: list[TriedFile] = []
    for path in dict.fromkeys(paths):
        try:
            file, _ = named_file(path, landing)
        except OSError as error:
            raise CannotDiff(f"{path}: {cannot_be_read(error)}") from error
        first, first_path = named.get(file.name, (None, None))
        # by another path, or by a link
        if file == first:
            continue
        ignored = why_ignored(file.name)
        if ignored is not None:
            tried.append(TriedFile(FileResult(file.name, "refused", ignored)))
            continue
        if file.name in files:
            raise CannotDiff(
                f"{first_path} and {path} would both be {file.name} in the landing folder, where the second"
                " replaces the first: compare them one after the other"
            )
        named[file.name] = file, path
        # a new modification time of known content is noted in the ledger, which is for loads to do
        with connection.transaction(force_rollback=True):
            found = landing_folder.pending(connection, landing, listing=Listing([file]))
        if not found:
            entry = max(ledger.entries_at(connection, [file.name]), key=lambda entry: entry.first_seen_at)
            known = FileResult(file.name, entry.status, entry.message)
            if entry.counts_in_order:
                known = FileResult(file.name, "known", "loaded already")
            tried.append(TriedFile(known))
        elif found[0].source is None:
            tried.append(TriedFile(FileResult(file.name, "unrecognized", found[0].message)))
        else:
            files[file.name] = found[0]
    return list(files.values()), tried


def _tried(connection: Connection, file: LandingFile, result: FileResult, timezone: ZoneInfo) -> TriedFile:
    if not result.file_id:
        return TriedFile(result)
    exported_at, told_by, is_known = _row(
        connection,
        # a content that comes back is seen anew
        "SELECT exported_at, exported_at_from, first_seen_at < now() FROM raw.source_files WHERE file_id = %s",
        [result.file_id],
    )
    own, _ = export_time(file, timezone)
    if own != exported_at:
        told_by = "seen" if is_known else "before"
    return TriedFile(result, exported_at, told_by)


@contextmanager
def _politely(connection: Connection) -> Iterator[float]:
    """Waits for no lock for long, and turns every lock that others keep into `LockHeld`; gives the seconds."""
    try:
        yield _limit_waiting(connection)
    except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
        raise LockHeld(f"{_BUSY}. {_NOTHING}: try again in a moment") from error


@contextmanager
def _without_loads(connection: Connection, sources: Sequence[str], patience: float) -> Iterator[None]:
    """Holds the locks of the sources' loads, which a rollback would leave with the session."""
    with ExitStack() as held:
        for source in sources:
            try:
                held.enter_context(only_load_of(connection, source, lambda message: None, patience))
            except LockHeld as error:
                raise LockHeld(
                    f"a load, rebuild or diff of {source} is at work. {_NOTHING}: try again when it has ended"
                ) from error
        yield


def _limit_waiting(connection: Connection) -> float:
    """Sets the limit, below the time after which PostgreSQL looks for a deadlock; returns it in seconds."""
    (deadlock_ms,) = _row(
        connection, "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'", []
    )
    limit_ms: int = max(1, min(int(PATIENCE * 1000), deadlock_ms // 2))
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{limit_ms}ms"])
    return limit_ms / 1000


@contextmanager
def _sequences_kept(connection: Connection) -> Iterator[None]:
    """Sets sequences forward again that were set back in whatever way: a later row would get an earlier one's number."""
    before = connection.execute(
        "SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences"
        " WHERE last_value IS NOT NULL AND NOT cycle"
    ).fetchall()
    set_back: list[str] = []
    try:
        yield
    finally:
        if takes_statements(connection):
            found = connection.execute(
                """
                SELECT b.name, setval(b.name::regclass, b.last_value)
                FROM unnest(%s::text[], %s::bigint[]) AS b (name, last_value)
                JOIN pg_sequences s ON format('%%I.%%I', s.schemaname, s.sequencename) = b.name
                WHERE s.last_value IS NULL OR (b.last_value - s.last_value) * sign(s.increment_by) > 0
                ORDER BY b.name
                """,
                [[name for name, _ in before], [value for _, value in before]],
            )
            set_back = [name for name, _ in found]
    if set_back:
        raise CannotDiff(
            f"the SQL sets back {listed(set_back)}, and {_SETVAL}. diff has set forward again what was set back"
        )


def _run(connection: Connection, statements: str) -> None:
    """Runs SQL inside a function's body, where PostgreSQL itself refuses to begin or end a transaction."""
    with _told_as(connection, statements, "the SQL fails"):
        try:
            body = sql.SQL("BEGIN EXECUTE {}; END").format(sql.Literal(statements)).as_string(connection)
            connection.execute(sql.SQL("DO {}").format(sql.Literal(body)))
            # what would be found only when the transaction commits
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except (errors.FeatureNotSupported, errors.InvalidTransactionTermination) as error:
            raise CannotDiff(
                "the SQL can't be run in diff's own transaction, which is rolled back. Leave out BEGIN, COMMIT, ROLLBACK,"
                f" SAVEPOINT and COPY from stdin (PostgreSQL says: {_told(error, statements)}). {_NOTHING}"
            ) from error


@contextmanager
def _told_as(connection: Connection, statements: str, what: str) -> Iterator[None]:
    """Turns what PostgreSQL says of the SQL into a sentence, but not locks that others hold, or a server that is gone."""
    try:
        yield
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        if connection.closed:
            raise
        raise CannotDiff(f"{what}: {_told(error, statements)}. {_NOTHING}") from error


def _told(error: psycopg.Error, statements: str) -> str:
    """Returns what PostgreSQL says, with the line of the SQL if it names a place in it."""
    diagnosis = error.diag
    line = ""
    if diagnosis.internal_position and diagnosis.internal_query == statements:
        line = f"line {statements.count(chr(10), 0, int(diagnosis.internal_position) - 1) + 1}: "
    parts = [diagnosis.message_primary or str(error), diagnosis.message_detail, diagnosis.message_hint]
    return line + "; ".join(part.rstrip(".") for part in parts if part)


#: The transaction's own entries in the queue are those of its time. Each stretch of months is compared in one statement,
#: whose snapshot has either all or nothing of a refresh that commits meanwhile.
_STALE = "SELECT DISTINCT month FROM analytics.stale_months WHERE noted_at = now() ORDER BY month"


def _compare_sql() -> str:
    def row(side: str) -> str:
        return ", ".join(f"{side}.{name}" for name in MEASURES)

    def sums(side: str) -> str:
        return ", ".join(f"coalesce(sum({side}.{name}), 0) AS {side}_{name}" for name in MEASURES)

    return f"""
        SELECT *, EXISTS (
            SELECT FROM analytics.stale_months q WHERE q.month = compared.month AND q.noted_at <> now()
        )
        FROM (
            SELECT analytics.month_of(date) AS month, source, {sums("stored")}, {sums("computed")}
            FROM (
                SELECT * FROM analytics.daily_metrics WHERE date >= %(start)s AND date < %(end)s
            ) AS stored
            FULL JOIN analytics.compute_daily_metrics(%(start)s::date, %(end)s::date) AS computed
                USING (date, source, segment)
            GROUP BY 1, 2
            HAVING bool_or(({row("stored")}) IS DISTINCT FROM ({row("computed")}))
        ) AS compared
        ORDER BY month, source
    """


_COMPARE = _compare_sql()


def _compare(connection: Connection, start_month: date) -> Difference:
    """Compares what is stored for the months that this transaction has made stale with what its rows give."""
    (this_month,) = _row(connection, "SELECT analytics.month_of(analytics.today())", [])
    stale = [month for (month,) in connection.execute(_STALE)]
    found = Difference(months=[month for month in stale if start_month <= month <= this_month])
    found.not_computed = [month for month in stale if month not in found.months]
    for first, last in contiguous(found.months):
        window = {"start": first, "end": next_month(last)}
        # each range gets its own plan, as in a refresh
        for month, source, *numbers, pending in connection.execute(_COMPARE.encode(), window, prepare=False):
            old, new = numbers[: len(MEASURES)], numbers[len(MEASURES) :]
            changes = [
                ChangedSum(month, source, measure, Decimal(before), Decimal(after))
                for measure, before, after in zip(MEASURES, old, new, strict=True)
                if before != after
            ]
            found.changes += changes
            if not changes:
                found.moved.append((month, source))
            if pending and month not in found.stale_before:
                found.stale_before.append(month)
    return found


def _row(connection: Connection, query: LiteralString, parameters: Sequence[object]) -> tuple[Any, ...]:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return tuple(row)
