"""What loading a file would do, said beforehand; nothing is written. Behind `crm-analytics check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.ledger import Connection, Counts
from crm_analytics.analytics.ingest.loading.load import try_file
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, export_time, open_file, recognize
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES

SHOWN = 20  #: quarantined records printed for each file


@dataclass
class Quarantined:
    """A record that would be quarantined."""

    record_no: int
    key: str | None
    reasons: list[str]


@dataclass
class FileReport:
    """What loading one file would do."""

    path: Path
    source: str | None = None
    refusal: str | None = None
    exported_at: datetime | None = None  #: UTC
    encoding: str | None = None
    delimiter: str | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    unknown_columns: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    months: dict[date, int] = field(default_factory=dict)  #: acceptable records by month
    quarantined: list[Quarantined] = field(default_factory=list)
    records_read: int = 0
    duplicates: int = 0
    summary_lines: int = 0
    database: Counts | None = None  #: what the database would count; None without one


def examine(
    path: Path, *, timezone: ZoneInfo, landing: Path | None = None, connection: Connection | None = None
) -> FileReport:
    """Read a file as the loader would; with a connection, load it in a transaction that is rolled back.

    Args:
        path: a file of the landing folder, or one that lies elsewhere: then the nearest folder above it that is
            named like a source says its source, and without one its name or header.
        timezone: the business timezone.
        landing: the landing folder.
        connection: to the analytics database.
    """
    path, landing = _place(path, landing)
    report = FileReport(path)
    try:
        source = recognize(path, landing)
        report.source = source.name
        report.exported_at, _ = export_time(path, timezone)
        opened = open_file(path, source, exported_at=report.exported_at, timezone=timezone)
        _read(opened, report)
    except RefusedFile as error:
        report.refusal = str(error)
        return report
    except OSError as error:
        report.refusal = f"{path.name}: cannot be read ({error})"
        return report
    if connection is not None:
        status = landing_folder.stat(path, landing)
        pending = PendingFile(**vars(status), source=source.name)
        result, rejected = try_file(connection, landing, pending, timezone=timezone)
        if result.status == "refused":
            report.refusal = result.message
        else:
            report.database = result.counts
            report.quarantined = [Quarantined(*row) for row in rejected]
            report.warnings = result.warnings + ([result.message] if result.message else [])
    return report


def _place(path: Path, landing: Path | None) -> tuple[Path, Path]:
    """The file's path, absolute, and the landing folder that it lies in, or would."""
    if landing is not None:
        landing = landing.resolve()
        for absolute in (path.absolute(), path.resolve()):  # a link in the landing folder lies there too
            if absolute.is_relative_to(landing):
                return absolute, landing
    path = path.resolve()
    return path, next((folder.parent for folder in path.parents if folder.name in SOURCES), path.parent)


def _read(opened: OpenFile, report: FileReport) -> None:
    source = opened.source
    tables = []
    for batch in opened.batches():
        tables.append(batch.rows)
        report.quarantined += [Quarantined(row.record_no, row.key, row.reasons) for row in batch.rejected]
    report.encoding, report.delimiter = opened.encoding, opened.delimiter or None
    report.mapping, report.unknown_columns = opened.mapping, opened.unknown_columns
    report.records_read, report.summary_lines = opened.records_read, opened.summary_lines
    report.warnings = opened.warnings
    if not tables:
        return
    rows = pa.concat_tables(tables).to_pandas()
    for name, sql_type in source.staged_columns.items():
        if sql_type.startswith("numeric"):  # 10 and 10.00 are one amount
            rows[name] = [None if pd.isna(value) else Decimal(value) for value in rows[name]]
    accepted = rows[~_repeats(rows, source, report)]
    days = pd.to_datetime(accepted[source.date_column])
    counted = days.dt.to_period("M").value_counts().sort_index()
    report.months = {month.to_timestamp().date(): int(count) for month, count in counted.items()}
    report.quarantined.sort(key=lambda row: row.record_no)


def _repeats(rows: pd.DataFrame, source: Source, report: FileReport) -> pd.Series:
    """Which records would be collapsed or quarantined because another has their key; notes them in the report."""
    none = pd.Series(False, index=rows.index)
    key = _key_columns(rows, source)
    if not key:
        return none
    repeated = rows[rows.duplicated(key, keep=False)]
    if repeated.empty:
        return none
    values = list(source.staged_columns)
    identical = rows.duplicated(values) & rows.index.isin(repeated.index)
    versions = repeated[~repeated.duplicated(values)].groupby(key, dropna=False, sort=False).size()
    conflicting = repeated.set_index(key).index.isin(versions[versions > 1].index)
    conflicts = repeated[conflicting]
    for record in conflicts.to_dict("records"):
        shown = ", ".join(str(record[column]) for column in key)
        reason = f"{source.key.label} {shown} stands in this file with different values; accepted: identical records, or one"
        report.quarantined.append(Quarantined(int(record["record_no"]), shown, [reason]))
    collapsed = identical & ~rows.index.isin(conflicts.index)
    report.duplicates = int(collapsed.sum())
    return collapsed | rows.index.isin(conflicts.index)


def _key_columns(rows: pd.DataFrame, source: Source) -> list[str]:
    """Returns the staged columns that are a record's key; none where it is a hash with an occurrence number."""
    columns = source.key.record_columns or source.key.columns
    if len(columns) > 1:
        return list(columns)
    return [name for name in source.key.given_in_files if name in rows and rows[name].notna().any()][:1]


def check_files(
    paths: Sequence[Path],
    *,
    console: Console,
    timezone: ZoneInfo,
    landing: Path | None = None,
    connection: Connection | None = None,
) -> bool:
    """Print what loading the files would do; says whether every one of them can be read.

    `timezone` is the business timezone, `landing` the landing folder. With a connection to the analytics database, the counts say what would
    be inserted, updated and superseded there; nothing is written in either case.
    """
    reports = [examine(path, timezone=timezone, landing=landing, connection=connection) for path in paths]
    for report in reports:
        _print(report, console, timezone)
    return all(report.refusal is None for report in reports)


def _print(report: FileReport, console: Console, timezone: ZoneInfo) -> None:
    console.print()
    console.rule(escape(report.path.name), align="left")
    if report.refusal is not None:
        console.print(f"[red]would be refused:[/] {escape(report.refusal)}", highlight=False)
        return
    assert report.exported_at is not None
    how = "workbook" if report.delimiter is None else f"{report.encoding}, delimiter {report.delimiter!r}"
    console.print(
        f"source [bold]{report.source}[/], exported {report.exported_at.astimezone(timezone):%Y-%m-%d %H:%M}, {how}"
    )
    columns = Table("column", "header in the file", box=None, pad_edge=False)
    for name, header in report.mapping.items():
        columns.add_row(name, escape(header))
    console.print(columns)
    if report.unknown_columns:
        console.print(f"not used: {escape(', '.join(report.unknown_columns))}", highlight=False)
    accepted = report.records_read - report.summary_lines - report.duplicates - len(report.quarantined)
    console.print(
        f"{report.records_read:,} records: {accepted:,} good, {report.duplicates:,} duplicates,"
        f" {len(report.quarantined):,} to be quarantined, {report.summary_lines:,} summary lines"
    )
    if report.database is not None:
        counts = vars(report.database)
        changes = ("inserted", "updated", "unchanged", "superseded", "quarantined")
        console.print("in the database: " + ", ".join(f"{counts[name]:,} {name}" for name in changes))
    if report.months:
        months = ", ".join(f"{month:%Y-%m} ({count:,})" for month, count in report.months.items())
        console.print(f"months: {months}", highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    if not report.quarantined:
        return
    records = Table("record", "key", "would be quarantined because", box=None, pad_edge=False)
    for row in report.quarantined[:SHOWN]:
        records.add_row(str(row.record_no), escape(row.key or ""), escape("; ".join(row.reasons)))
    console.print(records)
    if len(report.quarantined) > SHOWN:
        console.print(f"… and {len(report.quarantined) - SHOWN:,} more")
