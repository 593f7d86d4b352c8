"""Draws the plot of months for the Dagster UI: a small SVG image inside markdown metadata.

Written by hand, because a plotting library takes longer to import than most runs take to compute.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import dagster as dg
import psycopg

MOST_MONTHS = 24
WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 845, 40, 245  #: the edges of the drawing area
BLUE, RED, BLACK, GRAY = "#7aa6d9", "#c2552d", "#222222", "#dddddd"


class Month(NamedTuple):
    """A month's revenue40, repairs, and target of revenue40 where one is set."""

    month: date
    revenue40: Decimal
    repairs: int
    target: Decimal | None


def months_plot(connection: psycopg.Connection[Any]) -> dg.MarkdownMetadataValue:
    """Plots revenue40 and repairs by month for the last two years, with the target where one is set."""
    rows = connection.execute(
        """
        SELECT m.month, m.revenue40, m.repairs, t.target_revenue40
        FROM (
            SELECT month, sum(revenue40) AS revenue40, sum(repairs) AS repairs
            FROM analytics.monthly_metrics
            GROUP BY month
            ORDER BY month DESC
            LIMIT %s
        ) m
        LEFT JOIN analytics.targets t ON t.month = m.month AND t.source_folded = 'all' AND t.segment = 'ALL'
        ORDER BY m.month
        """,
        [MOST_MONTHS],
    ).fetchall()
    if not rows:
        return dg.MetadataValue.md("_no metrics yet_")
    encoded = base64.b64encode(svg([Month(*row) for row in rows]).encode()).decode()
    return dg.MetadataValue.md(f"![revenue40 and repairs by month](data:image/svg+xml;base64,{encoded})")


def svg(months: Sequence[Month]) -> str:
    """Returns the image: a bar and a mark for the target on the left axis, a line for repairs on the right one."""
    dollars = _steps([float(value) for m in months for value in (m.revenue40, m.target) if value is not None])
    counts = _steps([float(m.repairs) for m in months])
    slot = (RIGHT - LEFT) / len(months)
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for value in dollars:
        y = _y(value, dollars)
        parts.append(_line(LEFT, y, RIGHT, y, GRAY, 1))
        parts.append(_text(LEFT - 6, y + 4, f"{value:,.0f}", "end"))
    parts += [_text(RIGHT + 6, _y(value, counts) + 4, f"{value:,.0f}", "start") for value in counts]
    points: list[tuple[float, float]] = []
    for number, month in enumerate(months):
        middle = LEFT + (number + 0.5) * slot
        zero, top = _y(0, dollars), _y(float(month.revenue40), dollars)
        parts.append(
            f'<rect x="{middle - slot * 0.4:.1f}" y="{min(zero, top):.1f}" width="{slot * 0.8:.1f}"'
            f' height="{abs(zero - top):.1f}" fill="{BLUE}"/>'
        )
        if month.target is not None:
            y = _y(float(month.target), dollars)
            parts.append(_line(middle - slot * 0.3, y, middle + slot * 0.3, y, BLACK, 2))
        points.append((middle, _y(month.repairs, counts)))
        parts.append(_text(middle + 4, BOTTOM + 14, f"{month.month:%b %y}", "end", turned=True))
    parts += [_line(*before, *after, RED, 1.5) for before, after in pairwise(points)]
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{RED}"/>' for x, y in points]
    parts += _legend(any(month.target is not None for month in months))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'


def _steps(values: Sequence[float]) -> list[float]:
    """Returns the labels of an axis: three to six multiples of 1, 2 or 5 times a power of ten, from zero or below."""
    low, high = min(0.0, *values), max(0.0, *values)
    rough = (high - low or 1) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _y(value: float, axis: Sequence[float]) -> float:
    return BOTTOM - (value - axis[0]) / (axis[-1] - axis[0]) * (BOTTOM - TOP)


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str, turned: bool = False) -> str:
    turn = f' transform="rotate(-60 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{text}</text>'


def _legend(with_targets: bool) -> Iterator[str]:
    yield f'<rect x="300" y="12" width="18" height="10" fill="{BLUE}"/>' + _text(
        324, 21, "revenue40, $", "start"
    )
    yield _line(420, 17, 438, 17, RED, 1.5) + _text(444, 21, "repairs", "start")
    if with_targets:
        yield _line(510, 17, 528, 17, BLACK, 2) + _text(534, 21, "target, $", "start")
