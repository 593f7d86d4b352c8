"""Dry run: reports what loading a file would do, without writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read
from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading.landing import PendingFile
from crm_analytics.analytics.ingest.loading.ledger import Connection, Counts
from crm_analytics.analytics.ingest.loading.load import try_file
from crm_analytics.analytics.ingest.reading.open_file import OpenFile, open_file
from crm_analytics.analytics.ingest.reading.source_detection import detect_source, export_time
from crm_analytics.analytics.ingest.reading.totals import compare
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.registry import SOURCES


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

    path: Path
    refusal: str | None = None
    file: OpenFile | None = None  #: read to its end; None if it cannot be opened
    exported_at: datetime | None = None  #: UTC
    warnings: list[str] = field(default_factory=list)
    months: dict[date, int] = field(default_factory=dict)  #: acceptable records by month
    quarantined: list[Quarantined] = field(default_factory=list)
    duplicates: int = 0
    database: Counts | None = None  #: what the database would count; None without one


def examine(
    path: Path, *, timezone: ZoneInfo, landing: Path | None = None, connection: Connection | None = None
) -> FileReport:
    """Reads a file as the loader would; with a connection, also loads it in a transaction that is rolled back.

    Args:
        path: a file inside the landing folder or elsewhere. Elsewhere, the nearest folder above it that has a source's
            name tells the source, or else the file's name or header.
        timezone: the business timezone.
        landing: the landing folder.
        connection: to the analytics database.
    """
    path, landing = _place(path, landing)
    report = FileReport(path)
    try:
        source = detect_source(path, landing)
        report.exported_at, exported_at_from = export_time(path, timezone)
        report.file = open_file(
            path,
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
        status = landing_folder.stat(path, landing)
        pending = PendingFile(**vars(status), source=source.name)
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


def _place(path: Path, landing: Path | None) -> tuple[Path, Path]:
    """Returns the file's absolute path, and the landing folder that it is in or would be in."""
    if landing is not None:
        landing = landing.resolve()
        # A link inside the landing folder is a file of it.
        for absolute in (path.absolute(), path.resolve()):
            if absolute.is_relative_to(landing):
                return absolute, landing
    path = path.resolve()
    return path, next((folder.parent for folder in path.parents if folder.name in SOURCES), path.parent)


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
    rows = pa.concat_tables(tables).to_pandas()
    for name, sql_type in source.staged_columns.items():
        # 10 and 10.00 are the same amount.
        if sql_type.startswith("numeric"):
            rows[name] = [None if pd.isna(value) else Decimal(value) for value in rows[name]]
    accepted = rows if source.month_totals else rows[~_repeats(rows, opened, report)]
    report.duplicates += opened.records.duplicates
    days = pd.to_datetime(accepted[source.date_column])
    counted = days.dt.to_period("M").value_counts().sort_index()
    report.months = {month.to_timestamp().date(): int(count) for month, count in counted.items()}
    report.quarantined.sort(key=lambda row: row.record_no)
    _judge_total(accepted, opened, report)


def _judge_total(accepted: pd.DataFrame, opened: OpenFile, report: FileReport) -> None:
    """Warns if the file's own total is not the sum of its accepted records."""
    source, records = opened.source, opened.records
    if source.summed not in opened.mapping:
        return
    stored = sum((amount for amount in accepted[source.summed] if amount is not None), Decimal(0))
    verdict = compare(records.totals.whole(), stored, len(accepted), len(report.quarantined))
    if verdict is not None:
        left_out = records.left_out(len(report.quarantined), report.duplicates)
        report.warnings += verdict.warnings(opened.mapping[source.summed], left_out)


def _repeats(rows: pd.DataFrame, opened: OpenFile, report: FileReport) -> pd.Series:
    """Returns which records another one with their key makes duplicates or conflicts, and adds them to the report."""
    none = pd.Series(False, index=rows.index)
    key = _key_columns(rows, opened.source)
    folded = opened.source.key.folded
    for name, column in folded.items():
        # labels come with white space collapsed, so case is all that raw.fold would change
        rows[name] = rows[column].str.lower()
    if not key:
        return none
    repeated = rows[rows.duplicated(key, keep=False)]
    if repeated.empty:
        return none
    values = list(opened.source.staged_columns)
    identical = rows.duplicated(values) & rows.index.isin(repeated.index)
    versions = repeated[~repeated.duplicated(values)].groupby(key, dropna=False, sort=False).size()
    conflicting = repeated.set_index(key).index.isin(versions[versions > 1].index)
    conflicts = repeated[conflicting]
    named = [folded.get(column, column) for column in key]
    header = ", ".join(opened.mapping.get(column, column) for column in named)
    for record in conflicts.to_dict("records"):
        shown = ", ".join(str(record[column]) for column in key)
        reason = Reason("conflicting_records", header, shown, "identical records, or one")
        report.quarantined.append(Quarantined(int(record["record_no"]), None, shown, [reason]))
    collapsed = identical & ~rows.index.isin(conflicts.index)
    report.duplicates = int(collapsed.sum())
    return collapsed | rows.index.isin(conflicts.index)


def _key_columns(rows: pd.DataFrame, source: Source) -> list[str]:
    """Returns the staged columns that are a record's key; none if it is a hash with an occurrence number."""
    if len(source.key.columns) > 1:
        return list(source.key.columns)
    return [name for name in source.key.given_in_files if name in rows and rows[name].notna().any()][:1]
