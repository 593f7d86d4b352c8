"""Dry run: reports what loading a file would do, without writing."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.ledger import Connection, Counts
from crm_analytics.analytics.ingest.loading.load import try_file
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, open_file
from crm_analytics.analytics.ingest.reading.pull_line import connector_of
from crm_analytics.analytics.ingest.reading.source_detection import detect_source, export_time
from crm_analytics.analytics.ingest.reading.totals import compare
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.landing import Landing, LandingFile, is_ignored
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.analytics.ingest.storage.places import Place, landing_at

#: A record's place among the accepted ones, and its staged columns.
Repeated = tuple[int, dict[str, Any]]


@dataclass
class Quarantined:
    """A record that would be quarantined."""

    record_no: int
    line_no: int | None  #: None where only a comparison of records finds the fault
    key: str | None
    reasons: list[Reason]


@dataclass
class FileReport:
    """What loading one file would do."""

    name: str  #: without folders
    refusal: str | None = None
    file: OpenFile | None = None  #: read to its end; None if it cannot be opened
    exported_at: datetime | None = None  #: UTC
    connector: str | None = None  #: who pulled it; None for a person's export
    warnings: list[str] = field(default_factory=list)
    months: dict[date, int] = field(default_factory=dict)  #: acceptable records by month
    quarantined: list[Quarantined] = field(default_factory=list)
    duplicates: int = 0
    database: Counts | None = None  #: what the database would count; None without one


def examine(
    path: str | Path,
    *,
    timezone: ZoneInfo,
    landing: Place | None = None,
    connection: Connection | None = None,
) -> FileReport:
    """Reads a file as the loader would; with a connection, also loads it in a transaction that is rolled back.

    Args:
        path: a file inside the landing folder or elsewhere on this machine. Elsewhere, the nearest folder above it that has a source's
            name tells the source, or else the file's name or header.
        timezone: the business timezone.
        landing: the landing folder.
        connection: to the analytics database.
    """
    report = FileReport(Path(path).name)
    try:
        file, landing = named_file(path, None if landing is None else landing_at(landing))
        report.refusal = why_ignored(file.name)
        if report.refusal is not None:
            return report
        content = file.content
        report.connector = connector_of(content)
        source = detect_source(file)
        report.exported_at, exported_at_from = export_time(file, timezone)
        report.file = open_file(
            content,
            source,
            exported_at=report.exported_at,
            timezone=timezone,
            export_named=exported_at_from == "name",
        )
        _read(report.file, report)
    except RefusedFile as error:
        report.refusal = error.why
        return report
    except OSError as error:
        report.refusal = str(cannot_be_read(error))
        return report
    if connection is not None:
        pending = PendingFile(file, source.name)
        result, rejected = try_file(connection, landing, pending, timezone=timezone)
        if result.status in ("refused", "withdrawn"):
            report.refusal = result.message
        else:
            report.database = result.counts
            report.quarantined = [
                Quarantined(record_no, line_no, key, [Reason(**reason) for reason in reasons])
                for record_no, line_no, key, reasons in rejected
            ]
            report.warnings = result.warnings + ([result.message] if result.message else [])
    return report


def named_file(file: str | Path, landing: Landing | None) -> tuple[LandingFile, Landing]:
    """Returns the file that a person names, and the landing folder that it is in or would be in.

    That is a file of this machine, inside the landing folder or elsewhere, or else one of the landing folder.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be looked at.
        LandingUnavailable: the same, of a file that is not on this machine.
    """
    path = Path(file)
    is_here = path.exists()
    if landing is not None:
        for name in landing.names(path.absolute() if is_here else file):
            found = landing.find(name)
            if found is not None:
                return found, landing
    path = path.resolve()
    folder = LocalFolder(
        next((folder.parent for folder in path.parents if folder.name in SOURCES), path.parent)
    )
    found = folder.find(path.relative_to(folder.path).as_posix())
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    return found, landing or folder


def why_ignored(name: str) -> str | None:
    """Says why no load sees a file of the landing folder, of which a part of the path is ignored; None if loads do."""
    for part in name.split("/"):
        if is_ignored(part):
            return (
                f"no load sees what is called {part}: such names are those of hidden, temporary and lock files and of"
                " unfinished downloads; rename it if it is an export"
            )
    return None


def _read(opened: OpenFile, report: FileReport) -> None:
    source = opened.source
    batches = opened.all_batches()
    tables = [batch.rows for batch in batches]
    report.quarantined = [
        Quarantined(row.as_found.record_no, row.as_found.line_no, row.key, row.reasons)
        for batch in batches
        for row in batch.rejected
    ]
    report.warnings = opened.warnings
    if not tables:
        return
    rows = pa.concat_tables(tables)
    if not source.month_totals:
        rows = _without_repeats(rows, opened, report)
    report.duplicates += opened.records.duplicates
    months = Counter[date]()
    for day in rows[source.date_column].drop_null().value_counts().to_pylist():
        months[day["values"].replace(day=1)] += day["counts"]
    report.months = dict(sorted(months.items()))
    report.quarantined.sort(key=lambda row: row.record_no)
    _judge_total(rows, opened, report)


def _judge_total(accepted: pa.Table, opened: OpenFile, report: FileReport) -> None:
    """Warns if the file's own total is not the sum of its accepted records."""
    source, records = opened.source, opened.records
    if source.summed not in opened.mapping:
        return
    stored = sum(map(Decimal, accepted[source.summed].drop_null().to_pylist()), Decimal(0))
    verdict = compare(records.totals.whole(), stored, accepted.num_rows, len(report.quarantined))
    if verdict is not None:
        left_out = records.left_out(len(report.quarantined), report.duplicates)
        report.warnings += verdict.warnings(opened.mapping[source.summed], left_out)


def _without_repeats(rows: pa.Table, opened: OpenFile, report: FileReport) -> pa.Table:
    """Leaves out records that another one with their key makes duplicates or conflicts, and adds them to the report."""
    key = _key_columns(rows, opened.source)
    if not key:
        return rows
    folded = opened.source.key.folded
    for name, column in folded.items():
        # labels come with white space collapsed, so case is all that raw.fold would change
        rows = rows.append_column(name, pc.utf8_lower(rows[column]))
    header = ", ".join(opened.mapping.get(column, column) for column in (folded.get(c, c) for c in key))
    counts = np.ones(rows.num_rows, dtype=np.bool_)
    for group in _repeated(rows, key):
        first, *others = (place for place, _ in group)
        counts[others] = False
        if len({_version(record, opened.source) for _, record in group}) == 1:
            report.duplicates += len(others)
            continue
        counts[first] = False
        for _, record in group:
            shown = ", ".join(str(record[column]) for column in key)
            reason = Reason("conflicting_records", header, shown, "identical records, or one")
            report.quarantined.append(Quarantined(record["record_no"], None, shown, [reason]))
    return rows if counts.all() else rows.filter(pa.array(counts))


def _repeated(rows: pa.Table, key: list[str]) -> list[list[Repeated]]:
    """Returns the records that share a key, each with its place in the table."""
    keys = list(zip(*(rows[name].to_pylist() for name in key), strict=True))
    times = Counter(keys)
    places = [place for place, value in enumerate(keys) if times[value] > 1]
    groups: dict[tuple[Any, ...], list[Repeated]] = {}
    for place, record in zip(places, rows.take(pa.array(places, pa.int64())).to_pylist(), strict=True):
        groups.setdefault(keys[place], []).append((place, record))
    return list(groups.values())


def _version(record: dict[str, Any], source: Source) -> tuple[Any, ...]:
    """Returns what tells a record from others with its key; 10 and 10.00 are the same amount."""
    return tuple(
        Decimal(record[name]) if sql_type.startswith("numeric") and record[name] is not None else record[name]
        for name, sql_type in source.staged_columns.items()
    )


def _key_columns(rows: pa.Table, source: Source) -> list[str]:
    """Returns the staged columns that are a record's key; none if it is a hash with an occurrence number."""
    if len(source.key.columns) > 1:
        return list(source.key.columns)
    given = [name for name in source.key.given_in_files if name in rows.column_names]
    return [name for name in given if rows[name].null_count < rows.num_rows][:1]
