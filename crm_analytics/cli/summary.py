"""Prints what a refresh has read and computed, and what is left to do."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from crm_analytics.analytics.ingest.loading import landing as landing_folder

SHOWN_MONTHS = 6
SHOWN_RECORDS = 20


def print_summary(
    connection: psycopg.Connection[Any], landing: Path, run_id: str, start: date, end: date, console: Console
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
        table = _table("files read", ("source", ""), ("files", "records", "new", "changed", "quarantined"))
        for source, status, *counts in files:
            style = {"refused": "red", "unrecognized": "red"}.get(status, "")
            table.add_row(source, Text(status, style), *(f"{count:,}" for count in counts))
        console.print(table)
    else:
        console.print("no new or changed files")
    unread = landing_folder.not_loaded(connection, landing)
    for message in unread:
        console.print(f"[red]not loaded[/] {escape(message)}", highlight=False)
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
