"""Prints what a refresh has read and computed, and what is left to do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.storage.landing import Landing
from crm_analytics.core.wording import counted

SHOWN_MONTHS = 6
SHOWN_RECORDS = 20
#: Lines of one kind about files; a folder full of other people's files must not hide the rest.
SHOWN_FILES = 20


def print_summary(
    connection: psycopg.Connection[Any],
    landing: Landing,
    run_id: str,
    start: date,
    end: date,
    console: Console,
) -> tuple[int, int]:
    """Prints the run's files and months; returns how many files were not read, and how many of [start, end) are stale."""
    files = connection.execute(
        """
        SELECT coalesce(source, '?'), status, count(*), sum(records_read), sum(inserted), sum(updated), sum(quarantined)
        FROM raw.source_files WHERE run_id = %s GROUP BY 1, 2 ORDER BY 1, 2
        """,
        [run_id],
    ).fetchall()
    if files:
        table = _table(
            "files read", ("source", "status"), ("files", "records", "new", "changed", "quarantined")
        )
        for source, status, *counts in files:
            style = {"refused": "red", "unrecognized": "red"}.get(status, "")
            table.add_row(source, Text(status.replace("_", " "), style), *(f"{count:,}" for count in counts))
        console.print(table)
    else:
        console.print("no new or changed files")
    _print_warnings(connection, run_id, console)
    unread = landing_folder.not_loaded(connection, landing)
    refused = (
        "SELECT path, message FROM reporting.files WHERE is_current AND status IN ('refused', 'unrecognized')"
    )
    _print_lines("[red]not loaded[/]", unread, refused, console)
    row = connection.execute(
        """
        SELECT r.months, r.changed_rows, s.inside, s.outside
        FROM (SELECT count(*) AS months, coalesce(sum(changed_rows), 0) AS changed_rows
              FROM analytics.refresh_log WHERE run_id = %s) r,
             (SELECT count(DISTINCT month) FILTER (WHERE month >= %s AND month < %s) AS inside,
                     string_agg(DISTINCT to_char(month, 'YYYY-MM'), ', ') FILTER (WHERE month < %s OR month >= %s) AS outside
              FROM analytics.stale_months) s
        """,
        [run_id, start, end, start, end],
    ).fetchone()
    assert row is not None
    months, changed_rows, stale, outside = row
    console.print(
        f"months recomputed: {months}; daily rows changed: {changed_rows:,}; months asked for that are stale: {stale}"
    )
    if outside:
        console.print(f"stale outside the months asked for: {outside}", style="yellow")
    return len(unread), stale


def _print_warnings(connection: psycopg.Connection[Any], run_id: str, console: Console) -> None:
    """Prints what people should know about the files that the run loaded; files that share a warning share a line."""
    rows = connection.execute(
        """
        SELECT min(f.path), count(*), warning
        FROM raw.source_files f, unnest(f.warnings) WITH ORDINALITY AS w (warning, place)
        WHERE f.run_id = %s AND f.status = 'loaded'
        GROUP BY f.source, warning ORDER BY min(f.file_id), min(place)
        """,
        [run_id],
    ).fetchall()
    lines = [
        f"{path}: {text}" if files == 1 else f"{path} and {counted(files - 1, 'more file')}: {text}"
        for path, files, text in rows
    ]
    query = f"SELECT path, unnest(warnings) FROM raw.source_files WHERE run_id = '{run_id}'"
    _print_lines("[yellow]warning[/]", lines, query, console)


def print_failed_checks(failed: Iterable[tuple[str, str]], console: Console) -> None:
    """Prints the names of checks that failed in the run, each with what it found."""
    for name, found in failed:
        console.print(f"[yellow]check failed[/] {escape(name)}: {escape(found)}", highlight=False)


def _print_lines(label: str, lines: list[str], query: str, console: Console) -> None:
    """Prints the first lines under a label, the number of the others, and the query that shows all of them."""
    for line in lines[:SHOWN_FILES]:
        console.print(f"{label} {escape(line)}", highlight=False)
    if len(lines) > SHOWN_FILES:
        command = f'crm-analytics psql analytics -- -c "{query}"'
        console.print(
            f"… and {len(lines) - SHOWN_FILES:,} more; all of them: {escape(command)}", highlight=False
        )


def print_months(connection: psycopg.Connection[Any], console: Console) -> None:
    """Prints metrics by month and source for the newest months, each with all of its sources, the newest first."""
    rows = connection.execute(
        """
        SELECT month, source, leads, units, repairs, cost, revenue40, cpl FROM analytics.monthly_by_source
        WHERE month IN (SELECT DISTINCT month FROM analytics.monthly_metrics ORDER BY month DESC LIMIT %s)
        ORDER BY month DESC, revenue40 DESC
        """,
        [SHOWN_MONTHS],
    ).fetchall()
    table = _table(
        "metrics by month and source (newest first; all: monthly_by_source)",
        ("month", "source"),
        ("leads", "units", "repairs", "cost $", "revenue40 $", "CPL $"),
    )
    before: date | None = None
    for month, source, leads, units, repairs, cost, revenue40, cpl in rows:
        if before not in (None, month):
            table.add_section()
        label = f"{month:%Y-%m}" if month != before else ""
        before = month
        money = [f"{cost:,.2f}", f"{revenue40:,.2f}", f"{cpl:,.2f}" if cpl is not None else "–"]
        table.add_row(label, source, f"{leads:,}", f"{units:,}", f"{repairs:,}", *money)
    console.print(table)


def print_quarantine(connection: psycopg.Connection[Any], console: Console) -> None:
    """Prints the first quarantined records with their reasons."""
    rows = connection.execute(
        """
        SELECT f.path, r.line_no::text, (
                SELECT string_agg(raw.reason_text(found.reason - '{accepted,remedy}'::text[]), '; ')
                FROM jsonb_array_elements(r.reasons) AS found (reason)
            )
        FROM raw.rejected_rows r
        JOIN raw.source_files f USING (file_id)
        WHERE r.status = 'open'
        ORDER BY r.source, f.path, r.record_no
        LIMIT %s
        """,
        [SHOWN_RECORDS],
    ).fetchall()
    columns = ("file", "line", "why it is in quarantine")
    table = _table("quarantined records (all of them: raw.rejected_rows)", columns)
    for path, line_no, reasons in rows:
        table.add_row(path, line_no, reasons)
    console.print(table)


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...] = ()) -> Table:
    table = Table(*words, title=title)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
