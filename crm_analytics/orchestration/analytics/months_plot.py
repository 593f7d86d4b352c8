"""Draws the plot of months for the Dagster UI: a small SVG image inside markdown metadata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import dagster as dg
import psycopg

MOST_MONTHS = 24
STEPS = 5  #: of an axis above zero
BLUE, BLACK, RED = "#2f6db5", "#222222", "#c2552d"


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
    return dg.MetadataValue.md(
        f"![revenue40 and repairs by month]({data_uri([Month(*row) for row in rows])})"
    )


def data_uri(months: Sequence[Month]) -> str:
    """Returns the image: revenue40 and its target in dollars on the left axis, repairs on the right one.

    A browser neither runs nor loads anything for such an image, so that it has no scripts and no remote references.
    """
    import pygal  # only where a plot is drawn: no other part of a run needs it
    from pygal.style import Style

    dollars = [float(value) for m in months for value in (m.revenue40, m.target) if value is not None]
    dollar_step, repair_step = _step(dollars), _step([m.repairs for m in months])
    # Both axes have the same number of steps, so that zero is at the same height and all labels are whole numbers.
    lowest = math.floor(min(0, *dollars) / dollar_step)
    chart = pygal.Line(
        width=900,
        height=320,
        margin=12,
        explicit_size=True,
        js=(),
        no_prefix=True,
        style=Style(
            background="white",
            colors=(BLUE, BLACK, RED),
            opacity=".3",
            stroke_width="2",
            font_family="sans-serif",
            label_font_size=11,
            major_label_font_size=11,
            legend_font_size=12,
            guide_stroke_color="#dddddd",
            guide_stroke_dasharray="none",
            major_guide_stroke_color="#dddddd",
            major_guide_stroke_dasharray="none",
        ),
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        truncate_legend=-1,
        x_labels=[f"{m.month:%b %y}" for m in months],
        x_label_rotation=300,
        y_labels=[dollar_step * number for number in range(lowest, STEPS + 1)],
        secondary_range=(repair_step * lowest, repair_step * STEPS),
        value_formatter=lambda value: f"{value:,.0f}",
    )
    chart.add("revenue40, $", [float(m.revenue40) for m in months], fill=True)
    chart.add(
        "target, $",
        [None if m.target is None else float(m.target) for m in months],
        stroke=False,
        dots_size=4,
    )
    chart.add("repairs (right axis)", [m.repairs for m in months], secondary=True)
    chart.add_xml_filter(_without_interaction)
    uri: str = chart.render_data_uri()
    return uri


def _without_interaction(image: Element) -> Element:
    """Drops what only a script would use, two fifths of the size."""
    for parent in list(image.iter()):
        for child in [child for child in parent if child.tag in ("script", "desc")]:
            parent.remove(child)
    return image


def _step(values: Sequence[float]) -> int:
    """Returns the step of an axis that fits these values: a whole number with one significant digit."""
    least = max(1.0, *map(abs, values)) / STEPS
    power: int = 10 ** max(0, math.floor(math.log10(least)))
    return math.ceil(least / power) * power
