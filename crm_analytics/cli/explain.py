"""Prints the rows behind a number of the metrics, and whether they add up to it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crm_analytics.analytics.warehouse.explain import (
    METRICS,
    RATIOS,
    Contribution,
    Explanation,
    explain,
    months_with_rows,
    source_named,
    source_names,
)
from crm_analytics.cli.databases import require_analytics
from crm_analytics.cli.terminal import errors
from crm_analytics.core.database import connect
from crm_analytics.core.months import contiguous, end_of_month
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted, listed

#: Rows printed as a table; a month of a big business has 100,000.
SHOWN_ROWS = 500
SHOWN_SOURCES = 30
SHOWN_REVISIONS = 10


def print_explanation(
    config: Settings,
    month: date,
    metric: str,
    *,
    source: str | None,
    segment: str | None,
    day: int | None,
    as_csv: bool,
    console: Console,
) -> bool:
    """Prints the rows of one number, what they add up to, and what is stored.

    As CSV, all rows go to stdout and the rest to stderr.

    Returns:
        True if the rows add up to what is stored, or the month is stale; False also if there is no such number.
    """
    metric = metric.strip().lower().replace("-", "_")
    if metric not in METRICS:
        return _refused(f"no such metric: {metric}", f"expected one of {', '.join(METRICS)}")
    last = end_of_month(month).day
    if day is not None and day > last:
        return _refused(f"no such day: {month:%Y-%m} has {last} days")
    require_analytics(config)
    with connect("analytics", config, autocommit=True) as connection:
        if not _has_rows(connection, month):
            return False
        if source is not None:
            name = source_named(connection, source)
            if name is None:
                known = listed(source_names(connection), SHOWN_SOURCES) or "none yet"
                return _refused(f"no such source: {source}", f"sources: {known}")
            source = name
        explanation = explain(connection, month, metric, source, segment, day)
    if as_csv:
        _write_csv(explanation.rows)
    else:
        _print_rows(explanation.rows, metric, source, segment, console)
    return _print_conclusion(explanation, metric, month, config.timezone, errors if as_csv else console)


def _has_rows(connection: psycopg.Connection[Any], month: date) -> bool:
    """Says whether the month has rows, and if not, which months do."""
    months = months_with_rows(connection)
    if month in months:
        return True
    stretches = [
        f"{first:%Y-%m}" if first == last else f"{first:%Y-%m} to {last:%Y-%m}"
        for first, last in contiguous(months)
    ]
    return _refused(
        f"no rows in {month:%Y-%m}",
        f"months with rows: {listed(stretches, 10) or 'none, load exports first'}",
    )


def _refused(problem: str, remedy: str = "") -> bool:
    errors.print(f"[red]{escape(problem)}[/]{escape(f'; {remedy}' if remedy else '')}", highlight=False)
    return False


def _write_csv(rows: Sequence[Contribution]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(Contribution._fields)
    writer.writerows(rows)


def _print_rows(
    rows: Sequence[Contribution], metric: str, source: str | None, segment: str | None, console: Console
) -> None:
    """Prints the first rows, and below them the paths of their files, which are long and repeat themselves.

    Columns that are the same in all rows are left out.
    """
    shown = {
        "part": metric in RATIOS,
        "day": True,
        "kind": True,
        "id": True,
        "source": source is None,
        "segment": segment is None,
        "amount": True,
        "why it counts": True,
        "file": True,
        "record": True,
    }
    table = Table(box=None, pad_edge=False)
    for name in (name for name, needed in shown.items() if needed):
        numeric = name in ("amount", "file", "record")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    files: dict[str, int] = {}
    for row in rows[:SHOWN_ROWS]:
        file = "by hand" if row.file is None else str(files.setdefault(row.file, len(files) + 1))
        cells = (
            row.part, f"{row.day}", row.kind, row.id, row.source, row.segment, amount_text(row.amount), row.rule, file,
            "" if row.record_no is None else str(row.record_no),
        )  # fmt: skip
        table.add_row(*(escape(cell) for cell, needed in zip(cells, shown.values(), strict=True) if needed))
    if rows:
        console.print(table)
    for path, number in files.items():
        console.print(f"file {number}: {escape(path)}", highlight=False)
    if len(rows) > SHOWN_ROWS:
        console.print(f"… and {len(rows) - SHOWN_ROWS:,} more rows: --csv prints all of them")


def _print_conclusion(
    explanation: Explanation, metric: str, month: date, timezone: ZoneInfo, console: Console
) -> bool:
    """Prints what the rows add up to and what is stored; returns whether nothing is unexplained."""
    explained, stored = explanation.explained, explanation.stored
    for part in stored:
        rows = counted(sum(row.part == part for row in explanation.rows), "row")
        name = _name(metric, part)
        same = "equal" if explained[part] == stored[part] else "not equal"
        console.print(
            f"{name}: {rows}, {amount_text(explained[part])}; as stored: {amount_text(stored[part])}, {same}",
            highlight=False,
        )
    if metric in RATIOS:
        console.print(f"{metric}: {_ratio(explained)}; as stored: {_ratio(stored)}", highlight=False)
    stale = explanation.stale
    if stale is not None:
        console.print(
            f"[yellow]{month:%Y-%m} is stale[/] since {stale.since.astimezone(timezone):%Y-%m-%d %H:%M} ({escape(stale.causes)}):"
            f" crm-analytics refresh --from {month:%Y-%m} --to {month:%Y-%m} computes it",
            highlight=False,
            soft_wrap=True,  # commands must not break
        )
    elif not explanation.is_equal:
        console.print(
            f"[red]the metrics of {month:%Y-%m} differ from their rows, although the month isn't stale[/]: they were"
            " changed by hand, or a trigger was disabled. Remedy: crm-analytics psql analytics -- -c"
            " \"SELECT analytics.queue_every_month('why')\", then crm-analytics refresh",
            highlight=False,
            soft_wrap=True,  # commands must not break
        )
    for revised in explanation.revisions[:SHOWN_REVISIONS]:
        sign = "+" if revised.change > 0 else ""
        console.print(
            f"revised {revised.at.astimezone(timezone):%Y-%m-%d %H:%M}: {revised.measure} {sign}{amount_text(revised.change)},"
            f" because of {escape(revised.causes)}",
            highlight=False,
            soft_wrap=True,
        )
    older = len(explanation.revisions) - SHOWN_REVISIONS
    if older > 0:
        console.print(f"… and {counted(older, 'older revision')}: the table analytics.revisions has them")
    return explanation.is_equal or stale is not None


def _name(metric: str, part: str) -> str:
    if metric not in RATIOS:
        return metric
    numerator, denominator = RATIOS[metric]
    return f"numerator, {numerator}" if part == "numerator" else f"denominator, {denominator}"


def _ratio(parts: Mapping[str, Decimal]) -> str:
    if not parts["denominator"]:
        return "none, the denominator is 0"
    return f"{parts['numerator'] / parts['denominator']:.4f}"


def amount_text(amount: Decimal) -> str:
    """Returns an amount as people write it: whole numbers without decimals, others with two or more."""
    if amount == amount.to_integral_value() and amount.as_tuple().exponent == 0:
        return f"{amount:,}"
    whole, _, decimals = f"{amount:,f}".partition(".")
    return f"{whole}.{decimals.rstrip('0'):0<2}"
