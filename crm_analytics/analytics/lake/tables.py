"""The Iceberg side of the lake: its catalog and tables, a franchise's months in them, and what they no longer need.

Needs the extra `lake`, as do the modules that import this one: they are imported when the lake is used, not before.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
from pyarrow import fs
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationError,
    ValidationException,
)
from pyiceberg.io.pyarrow import PyArrowFileIO, _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.update.snapshot import ExpireSnapshots
from sqlalchemy.exc import IntegrityError, ProgrammingError

from crm_analytics.analytics.lake.datasets import Sums, measures
from crm_analytics.analytics.lake.errors import LakeError
from crm_analytics.core.database import sqlalchemy_url
from crm_analytics.core.months import contiguous
from crm_analytics.core.settings import Settings

NAMESPACE = "lake"
#: Begins the property that names a franchise's last write.
LAST_WRITE = "crm-analytics.last-write."
#: What pyiceberg calls the settings of object storage.
STORAGE = {
    "aws_access_key_id": "s3.access-key-id",
    "aws_secret_access_key": "s3.secret-access-key",
    "aws_session_token": "s3.session-token",
    "aws_region": "s3.region",
    "aws_endpoint_url": "s3.endpoint",
}
#: How many writes of all franchises a table remembers: so far back its readers can travel. Each costs every commit time.
KEPT_SNAPSHOTS = 20
#: Files that no snapshot needs are removed after this time: writers and readers may be at work with younger ones.
GRACE = timedelta(days=1)
SWEPT = "crm-analytics.swept"
#: Seconds in which a write tries to commit between the writes of other franchises.
LONGEST_COMMIT = 300
PROPERTIES = {
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    # each write leaves one manifest: ten become one
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "10",
    # a name longer than the usual 16 characters would look as if a file may have rows of another franchise
    "write.metadata.metrics.column.franchise": "full",
    # every attempt begins with a look at the table here: pyiceberg's own attempts would not see who has written
    "commit.retry.num-retries": "0",
}


@dataclass(frozen=True)
class Mark:
    """A franchise's last write, as each table of the lake names it."""

    write_id: int
    #: the database that wrote (`incarnation`)
    database: str

    def __str__(self) -> str:
        return f"{self.write_id} {self.database}"


@dataclass(frozen=True)
class Lake:
    """The tables of all franchises; `franchise` is the one that this process writes and compares."""

    catalog: SqlCatalog
    franchise: str

    def mark(self, name: str) -> Mark | None:
        """Returns the franchise's last write to a table; None if there is none."""
        try:
            return _mark(self.catalog.load_table((NAMESPACE, name)), self.franchise)
        except NoSuchTableError:
            return None

    def location(self, name: str) -> str | None:
        """Returns the address of a table's metadata, which other engines read it by; None before the first write."""
        try:
            return self.catalog.load_table((NAMESPACE, name)).metadata_location
        except NoSuchTableError:
            return None

    def prepare(self, name: str, schema: pa.Schema) -> Table:
        """Returns a table that has at least these columns: makes it, or adds to it what is new."""
        with suppress(NamespaceAlreadyExistsError, IntegrityError):
            self.catalog.create_namespace_if_not_exists(NAMESPACE)
        for _ in _attempts():
            try:
                table = self.catalog.load_table((NAMESPACE, name))
            except NoSuchTableError:
                with (
                    suppress(CommitFailedException, TableAlreadyExistsError),  # another franchise made it

                    self.catalog.create_table_transaction((NAMESPACE, name), schema, properties=PROPERTIES) as new,
                    new.update_spec() as spec,
                ):  # fmt: skip
                    spec.add_identity("franchise")
                    spec.add_identity("month")
                table = self.catalog.load_table((NAMESPACE, name))
            with _conflicts():
                try:
                    with table.update_schema() as update:
                        update.union_by_name(schema)
                except (ValidationError, ValueError) as error:
                    raise LakeError(
                        f"the lake's table {name} cannot take the columns of this database: {error}. A column that changes"
                        " its type needs another name"
                    ) from error
                return table
        raise AssertionError

    def files(self, table: Table, rows: pa.Table) -> list[DataFile]:
        """Writes rows into files, which belong to the table only when `replace` commits them."""
        return list(_dataframe_to_data_files(table.metadata, rows, table.io)) if rows.num_rows else []

    def replace(
        self,
        name: str,
        months: Sequence[date] | None,
        files: Sequence[DataFile],
        mark: Mark,
        notes: Mapping[str, str],
        *,
        take_over: bool = False,
    ) -> None:
        """Makes these files the franchise's months in a table, in one commit.

        Args:
            months: what is replaced; None for everything that the table has of the franchise.
            mark: of this write.
            notes: what the snapshot says about itself.
            take_over: don't mind who wrote before.

        Raises:
            LakeError: if a newer write, or another database, has written to the table since.
            CommitFailedException: if other writers came first for 5 minutes.
        """
        rows = _rows_of(self.franchise, months)
        for _ in _attempts():
            table = self.catalog.load_table((NAMESPACE, name))
            last = _mark(table, self.franchise)
            if last and not take_over and (last.database != mark.database or last.write_id > mark.write_id):
                raise LakeError(
                    f"{name} has write {last} of the franchise {self.franchise}, so write {mark} came too late and is"
                    " left out"
                )
            due = _is_sweep_due(table)
            with _conflicts():
                with table.transaction() as commit:
                    commit.set_properties({LAST_WRITE + self.franchise: str(mark)})
                    if due:
                        commit.set_properties({SWEPT: datetime.now(UTC).isoformat()})
                    if any(True for _ in table.scan(row_filter=rows).plan_files()):
                        commit.delete(rows)
                    with commit.update_snapshot(snapshot_properties=dict(notes)).merge_append() as added:
                        for file in files:
                            added.append_data_file(file)
                    _expire(table, commit)
                if due:
                    sweep(self.catalog, name, datetime.now(UTC) - GRACE)
                return
        raise AssertionError

    def sums(self, name: str, schema: pa.Schema) -> Sums:
        """Returns, by month of the franchise, the number of its rows and the sum of each measure."""
        try:
            table = self.catalog.load_table((NAMESPACE, name))
        except NoSuchTableError:
            return {}
        there = set(table.schema().column_names)
        names = [measure for measure in measures(schema) if measure in there]
        scan = table.scan(row_filter=_rows_of(self.franchise, None), selected_fields=("month", *names))
        found: Sums = {}
        for batch in scan.to_arrow_batch_reader():
            for row in _added_up(pa.table(batch), names):
                month = found.setdefault(row.pop("month"), dict.fromkeys(("rows", *names), 0))
                for measure, value in row.items():
                    month[measure] += value or 0
        return found


@contextmanager
def open_lake(config: Settings) -> Iterator[Lake]:
    """Opens the lake of the settings for their franchise.

    Raises:
        sqlalchemy.exc.OperationalError: if the catalog's database cannot be reached.
    """
    assert config.lake_url and config.lake_catalog_url
    properties = {
        "uri": sqlalchemy_url(config.lake_catalog_url, "postgresql+psycopg"),
        "warehouse": config.lake_url,
        "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO",
        **{STORAGE[name]: value for name, value in config.object_storage.items()},
    }
    try:
        catalog = SqlCatalog("crm_analytics", **properties)
    except (IntegrityError, ProgrammingError):
        # two franchises that create the catalog's tables at once: now they are there
        catalog = SqlCatalog("crm_analytics", **properties)
    try:
        yield Lake(catalog, config.lake_franchise)
    finally:
        catalog.close()


def sweep(catalog: SqlCatalog, name: str, before: datetime) -> int:
    """Removes the files of a table that no snapshot needs and that are older than `before`; returns how many.

    Snapshots that were forgotten leave such files, and writes that were interrupted or came too late.
    """
    location = catalog.load_table((NAMESPACE, name)).location()
    io = PyArrowFileIO(catalog.properties)
    scheme, netloc, path = PyArrowFileIO.parse_location(location)
    files = io.fs_by_scheme(scheme, netloc)
    listed = files.get_file_info(fs.FileSelector(path, recursive=True))
    # after the listing: what is committed meanwhile is needed
    needed = {
        PyArrowFileIO.parse_location(file)[2] for file in _needed(catalog.load_table((NAMESPACE, name)))
    }
    gone = [
        file.path
        for file in listed
        if file.type == fs.FileType.File and file.path not in needed and file.mtime < before
    ]
    for file in gone:
        with suppress(FileNotFoundError):
            files.delete_file(file)
    return len(gone)


def _needed(table: Table) -> Iterator[str]:
    """Yields the addresses of all files that some snapshot, or the table's history, needs."""
    metadata = table.metadata
    yield table.metadata_location
    yield from (entry.metadata_file for entry in metadata.metadata_log)
    yield from (entry.statistics_path for entry in (*metadata.statistics, *metadata.partition_statistics))
    read: set[str] = set()
    for snapshot in metadata.snapshots:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in read:
                read.add(manifest.manifest_path)
                yield manifest.manifest_path
                yield from (entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io))


def _expire(table: Table, commit: Transaction) -> None:
    """Forgets old snapshots, and the one between removing and adding: no reader shall travel to a lake without months."""
    now = commit.table_metadata  # made anew at each look
    newest = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)[
        -KEPT_SNAPSHOTS:
    ]
    kept = {snapshot.snapshot_id for snapshot in newest} | {ref.snapshot_id for ref in now.refs.values()}
    forgotten = [snapshot.snapshot_id for snapshot in now.snapshots if snapshot.snapshot_id not in kept]
    if forgotten:
        ExpireSnapshots(commit).by_ids(forgotten).commit()


def _mark(table: Table, franchise: str) -> Mark | None:
    text = table.properties.get(LAST_WRITE + franchise)
    if text is None:
        return None
    number, database = text.split(" ", 1)
    return Mark(int(number), database)


def _is_sweep_due(table: Table) -> bool:
    swept = table.properties.get(SWEPT)
    return swept is None or datetime.fromisoformat(swept) < datetime.now(UTC) - GRACE


def _rows_of(franchise: str, months: Sequence[date] | None) -> str:
    """Returns the condition for a franchise's rows, of some months or of all."""
    mine = f"franchise = '{franchise}'"
    if months is None:
        return mine
    # stretches: a list of more than 200 values is no longer judged by a file's bounds
    stretches = (f"(month >= '{first}' AND month <= '{last}')" for first, last in contiguous(months))
    return f"{mine} AND ({' OR '.join(stretches)})"


def _added_up(rows: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns, by month, the number of rows and the sum of each column."""
    for name in names:
        if pa.types.is_boolean(rows.schema.field(name).type):
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, name, rows[name].cast(pa.int32()))
    summed = rows.group_by("month").aggregate([([], "count_all"), *((name, "sum") for name in names)])
    labels = {"count_all": "rows", **{f"{name}_sum": name for name in names}}
    named = summed.rename_columns([labels.get(name, name) for name in summed.column_names])
    return list(named.to_pylist())


def _attempts() -> Iterator[int]:
    """Yields the numbers of attempts at a commit, with pauses between them, for at most 5 minutes."""
    deadline = time.monotonic() + LONGEST_COMMIT
    for number in itertools.count():
        yield number
        if time.monotonic() > deadline:
            raise CommitFailedException(
                f"other writers of the lake came first for {LONGEST_COMMIT} seconds: try again later"
            )
        time.sleep(random.uniform(0, min(0.1 * 2**number, 5)))  # noqa: S311


@contextmanager
def _conflicts() -> Iterator[None]:
    """Goes on to the next attempt where another writer's commit came first."""
    with suppress(CommitFailedException, ValidationException):
        yield
